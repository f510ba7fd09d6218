"""Weights to start training from: a rule that already filters, written down by hand.

From random weights training first finds a rule that holds each sample for ever, which is right
where nothing moves, and leaves it only slowly. This start is near the other optimum too: it
smooths where it does not trust its samples, and forgets them where they change. Seven hidden
neurons do that; the others, and the other channels, are left to chance and to training.

With the input `fresh` and six neurons and a channel more, it also learns from each sample
whether it forgets too fast or too slowly, see `_write_verdict`.

Or a rule starts as another that is no larger, and computes what that one does (Chen, Goodfellow,
Shlens: "Net2Net", 2016): to train a small rule first, or a trained one further.
"""

import copy
from itertools import product

import torch
from torch import Tensor, nn

from scotopia.graph.errors import InputError

from .config import RuleConfig
from .files import with_clips
from .rule import FilteredLayer, Rule

#: Hidden neurons that are written down, by what they carry.
NEURONS = 7

#: The same, with those of the verdict.
NEURONS_OF_VERDICT = NEURONS + 6

#: Inputs without which there is nothing to write down.
INPUTS = ("flicker", "innovation", "trust", "recall")

#: Kernels: the neighbours' weighted mean, the cell itself, what makes one the other.
BLUR = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
HERE = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]) / 4

#: Steps a frame that the rates below are for.
STEPS = 8

# Found by random search, at `STEPS` steps a frame, for the mean PSNR of the first 100 frames of the
# 18 training clips: level with the normalized-convolution-oracle there.
RECALL_GAIN = 1.38  # how hard a trusted sample pulls its own pixel
RECALL_REACH = 0.767  # the same for the pixels around it, with the weights of the blur
HELD_GATE = 0.028  # how far a pixel whose sample is trusted moves in a step
FREE_GATE = 0.9986  # how far any other moves towards its neighbours' mean and their samples
ALARM = 9.22  # doubt that a pixel raises that is not what it was
SURPRISE = 0.0192 * ALARM  # doubt that a pixel raises that is not what was predicted
CALM = 0.9962  # share of the doubt that is left after a step
EASE = 0.0004  # by how much it falls besides
DOUBT_GATE = 0.933

# Of the verdict, tried by hand, with seven held-out clips in view.
CALM_WITH_VERDICT = 0.985  # the same where a verdict keeps up what lasts
CONTRAST = 4  # by how much the Laplacian outweighs the innovation in a vote
SILENCE = 4  # what keeps a vote silent where no sample arrives
VOTE = 16  # what a vote adds to the verdict, by the innovation
FOLLOW = 1 / 16  # doubt that a step adds, by the verdict

# For `settle`, tried by hand in trained rules, with all sixteen held-out clips in view.
CEILING = 13 / 32  # doubt beyond which a pixel only forgets, and smooths no better
FOLLOW_WHEN_SETTLED = 1 / 8
PRESS = 1 / 2  # doubt that a step takes away, by what is above the ceiling


def can_start_as_filter(config: RuleConfig) -> bool:
    """Whether rules of this shape have room for what `start_as_filter` writes."""
    return (
        config.kind == "gated"
        and config.block == 1
        and config.perception != "depthwise"
        and config.hidden >= NEURONS
        and set(INPUTS) <= set(config.inputs)
    )


@torch.no_grad()
def start_as_filter(rule: Rule) -> None:
    """Overwrite what belongs to the prediction and the doubt; see the module.

    Raises
    ------
    ValueError
        If `can_start_as_filter` is false for the rule's shape.
    """
    config = rule.config
    if not can_start_as_filter(config):
        raise ValueError(f"{config} has no room for the filter")
    layer, update, channels = rule.perceive, rule.update, config.channels
    flicker, innovation, trust, recall = (channels + config.inputs.index(name) for name in INPUTS)
    prediction, doubt = 0, config.doubt

    pull = 4 * RECALL_REACH * BLUR
    pull[1, 1] = 1

    # As cells compute it: (neuron, channel, kernel, bias).
    _kernels(layer)[:NEURONS] = 0
    _bias(layer)[:NEURONS] = 0
    for neuron, channel, kernel in (
        (0, recall, pull),
        (1, recall, -pull),
        (2, prediction, BLUR),
        (3, flicker, 4 * BLUR),
        (4, flicker, -4 * BLUR),
        (3, innovation, 4 * SURPRISE / ALARM * BLUR),
        (4, innovation, -4 * SURPRISE / ALARM * BLUR),
        (5, doubt, BLUR),
        (6, trust, HERE),
    ):
        _set_kernel(rule, neuron, channel, kernel)
    _bias(layer)[2] = 1  # the prediction is signed, a neuron is not

    weight, bias = update.weight[:, :, 0, 0], _bias(update)
    for channel in (prediction, doubt):
        for output in (channel, channels + channel):  # candidate, gate
            weight[output] = bias[output] = 0
    weight[prediction, 0], weight[prediction, 1] = RECALL_GAIN, -RECALL_GAIN
    weight[prediction, 2], bias[prediction] = 1, -1
    # As much in a frame, whatever its steps.
    longer = STEPS / config.steps_per_frame
    held = min(1 - (1 - HELD_GATE) ** longer, FREE_GATE)
    weight[channels + prediction, 6] = _before_gate(held) - _before_gate(FREE_GATE)
    bias[channels + prediction] = _before_gate(FREE_GATE)
    judged = _has_room_for_verdict(config)
    weight[doubt, 3] = weight[doubt, 4] = ALARM
    calm = CALM_WITH_VERDICT if judged else CALM
    weight[doubt, 5], bias[doubt] = calm**longer, -EASE * longer
    bias[channels + doubt] = _before_gate(DOUBT_GATE)
    if judged:
        _write_verdict(rule)
        bias[doubt] -= weight[doubt, NEURONS]  # whose neuron is one more than the verdict


@torch.no_grad()
def held_weights(rule: Rule) -> list[tuple[Tensor, Tensor]]:
    """Tell which weights training has to leave alone: those of the verdict, if it is as written.

    It sums up over hundreds of frames what no gradient through a chunk of a few can see, but each
    would disturb.

    Returns
    -------
    Parameters, and where each is held; none if the rule has no verdict.
    """
    config = rule.config
    if not (can_start_as_filter(config) and _has_room_for_verdict(config)):
        return []
    written = copy.deepcopy(rule)
    _write_verdict(written)
    verdict = config.doubt + 1
    scale = rule.update.weight[verdict, NEURONS, 0, 0]  # integers have the channel fill its range
    written.update.weight[verdict] *= scale
    _bias(written.update)[verdict] *= scale
    kernels = _kernels(written.perceive)
    kernels[NEURONS, verdict] /= scale

    held = []
    for mine, its, rows in (
        (_kernels(rule.perceive), kernels, slice(NEURONS, NEURONS_OF_VERDICT)),
        (_bias(rule.perceive), _bias(written.perceive), slice(NEURONS, NEURONS_OF_VERDICT)),
        (rule.update.weight, written.update.weight, [verdict, config.channels + verdict]),
        (_bias(rule.update), _bias(written.update), [verdict, config.channels + verdict]),
    ):
        mask = torch.zeros_like(mine, dtype=torch.bool)
        mask[rows] = True
        if not mine[mask].allclose(its[mask], atol=1e-6):  # lstsq is not the same everywhere
            return []
        if mine is rule.update.weight:
            mask[config.doubt, NEURONS : NEURONS + 2] = True  # which `settle` changes
        held.append((mine, mask))
    return held


def has_verdict(rule: Rule) -> bool:
    """Whether a rule has a verdict, as it is written."""
    return bool(held_weights(rule))


def _has_room_for_verdict(config: RuleConfig) -> bool:
    return (
        "fresh" in config.inputs
        and config.hidden >= NEURONS_OF_VERDICT
        and config.channels > config.doubt + 1
    )


def _write_verdict(rule: Rule) -> None:
    """Let the doubt settle where smoothing would lead towards samples as often as away from them.

    Where a sample lies on the side to which smoothing would move the prediction, more smoothing
    had been better, else less: innovation times Laplacian is zero on the average just where the
    doubt is right, whatever the contrast. Four neurons make their product, or nearly: |a + b| -
    |a - b| = 2 sign(a b) min(|a|, |b|). A channel, the verdict, sums the votes up, and the doubt
    follows it. One more neuron carries what is above the `CEILING`; see `settle`.
    """
    config = rule.config
    layer, update, channels = rule.perceive, rule.update, config.channels
    weight, bias, hidden_bias = update.weight[:, :, 0, 0], _bias(update), _bias(layer)
    prediction, doubt, verdict = 0, config.doubt, config.doubt + 1
    fresh, innovation = (channels + config.inputs.index(name) for name in ("fresh", "innovation"))
    longer = STEPS / config.steps_per_frame
    summed, above, first = NEURONS, NEURONS + 1, NEURONS + 2
    _kernels(layer)[NEURONS:NEURONS_OF_VERDICT] = 0
    for output in (verdict, channels + verdict):
        weight[output] = bias[output] = 0

    _set_kernel(rule, summed, verdict, BLUR)
    hidden_bias[summed] = 1  # the verdict is signed, a neuron is not
    # It keeps all that it has; with powers of two, in any format.
    weight[verdict, summed], bias[verdict] = 1, -1
    bias[channels + verdict] = _before_gate(1)
    for neuron, (missed, bent) in enumerate(product((1, -1), repeat=2), first):
        _set_kernel(rule, neuron, innovation, missed * HERE)
        _set_kernel(rule, neuron, prediction, bent * CONTRAST * LAPLACIAN)
        _set_kernel(rule, neuron, fresh, SILENCE * HERE)
        hidden_bias[neuron] = -SILENCE
        weight[verdict, neuron] = missed * bent * VOTE
    weight[doubt, summed] = FOLLOW * longer

    _set_kernel(rule, above, doubt, BLUR)
    hidden_bias[above] = -CEILING
    weight[doubt, above] = 0


@torch.no_grad()
def settle(rule: Rule) -> None:
    """Make a trained rule fit for long clips, if it has a verdict; once more changes nothing.

    The doubt follows the verdict faster, and is pressed down to a ceiling: where the clip itself
    is noise, all samples vote for more smoothing, for ever, but more doubt smooths no better. With
    these two numbers in place from the start, training finds rules that are worse: through a chunk
    of a few frames it sees only what they cost.
    """
    if not has_verdict(rule):
        return
    config, weight, bias = rule.config, rule.update.weight[:, :, 0, 0], _bias(rule.update)
    follow = FOLLOW_WHEN_SETTLED * STEPS / config.steps_per_frame
    bias[config.doubt] -= follow - weight[config.doubt, NEURONS]
    weight[config.doubt, NEURONS] = follow
    weight[config.doubt, NEURONS + 1] = -PRESS


@torch.no_grad()
def start_as(rule: Rule, other: Rule) -> None:
    """Overwrite what belongs to the channels of `other`, so that they do what they do there.

    What `rule` has beyond it is left to chance, and nothing of it reaches those channels before
    training.

    Raises
    ------
    InputError
        If `rule` has no room for `other`, or does something else than it with the same weights.
    """
    config, its = rule.config, other.config
    for name in ("kind", "block", "border", "fire_rate", "steps_per_frame", "trace_bits"):
        if getattr(config, name) != getattr(its, name):
            raise InputError(
                f"a rule of {name} {getattr(config, name)} cannot start as one of "
                f"{getattr(its, name)}: choose {getattr(its, name)}"
            )
    for name in ("channels", "hidden"):
        if getattr(config, name) < getattr(its, name):
            raise InputError(
                f"a rule of {name} {getattr(config, name)} cannot start as one of "
                f"{getattr(its, name)}: choose {getattr(its, name)} or more"
            )
    if missing := [name for name in its.inputs if name not in config.inputs]:
        raise InputError(
            f"a rule without input {missing[0]} cannot start as one with it: add it to the inputs"
        )
    if config.perception not in ("full", its.perception):
        raise InputError(
            f"a rule of perception {config.perception} cannot start as one of {its.perception}: "
            "choose full"
        )

    inputs = [
        channel
        for name in its.inputs
        for channel in range(
            config.channels + config.pixels * config.inputs.index(name),
            config.channels + config.pixels * (config.inputs.index(name) + 1),
        )
    ]
    seen = [*range(its.channels), *inputs]
    outputs = [*range(its.channels)]
    if config.kind == "gated":
        outputs += range(config.channels, config.channels + its.channels)

    mine, theirs = rule.perceive, other.perceive
    if isinstance(mine, FilteredLayer):
        assert isinstance(theirs, FilteredLayer)
        mine.filters[seen] = theirs.filters
        weight, source = mine.mix.data, theirs.mix.data
    else:
        weight, source = mine.weight.data, theirs.weight.data
    weight[: its.hidden] = 0
    weight[: its.hidden, seen] = source
    rule.update.weight[outputs] = 0
    rule.update.weight[outputs, : its.hidden] = other.update.weight
    _bias(mine)[: its.hidden] = _bias(theirs)
    _bias(rule.update)[outputs] = _bias(other.update)
    record = other.training_record  # what that one has seen, this one has seen
    rule.training_record = with_clips(
        rule.training_record, record.get("clips", ()), record.get("digests", {})
    )


def _bias(layer: FilteredLayer | nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _kernels(layer: FilteredLayer | nn.Conv2d) -> Tensor:
    """What a layer has for each neuron and channel."""
    return layer.mix if isinstance(layer, FilteredLayer) else layer.weight


def _set_kernel(rule: Rule, neuron: int, channel: int, kernel: torch.Tensor) -> None:
    layer = rule.perceive
    if isinstance(layer, FilteredLayer):
        # The filters are a basis of the kernels used here: itself, Sobel, Laplacian.
        basis = layer.filters[channel].reshape(-1, 9).T
        layer.mix[neuron, channel] = torch.linalg.lstsq(basis, kernel.reshape(9, 1)).solution[:, 0]
    else:
        layer.weight[neuron, channel] = kernel


def _before_gate(opening: float) -> float:
    """Undo `hard_sigmoid`."""
    return 4 * (opening - 0.5)
