"""Weights to start training from: a rule that already filters, written down by hand.

From random weights training first finds a rule that holds each sample for ever, which is right
where nothing moves, and leaves it only slowly. This start is near the other optimum too: it
smooths where it does not trust its samples, and forgets them where they change. Seven hidden
neurons do that; the others, and the other channels, are left to chance and to training.

Or a rule starts as another that is no larger, and computes what that one does (Chen, Goodfellow,
Shlens: "Net2Net", 2016): to train a small rule first, or a trained one further.
"""

import torch
from torch import Tensor, nn

from .config import RuleConfig
from .errors import InputError
from .rule import FilteredLayer, Rule

#: Hidden neurons that are written down, by what they carry.
NEURONS = 7

#: Inputs without which there is nothing to write down.
INPUTS = ("flicker", "innovation", "trust", "recall")

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

    blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    here = torch.zeros(3, 3)
    here[1, 1] = 1
    pull = 4 * RECALL_REACH * blur
    pull[1, 1] = 1

    # As cells compute it: (neuron, channel, kernel, bias).
    if isinstance(layer, FilteredLayer):
        layer.mix[:NEURONS] = 0
    else:
        layer.weight[:NEURONS] = 0
    assert layer.bias is not None
    layer.bias[:NEURONS] = 0
    for neuron, channel, kernel in (
        (0, recall, pull),
        (1, recall, -pull),
        (2, prediction, blur),
        (3, flicker, 4 * blur),
        (4, flicker, -4 * blur),
        (3, innovation, 4 * SURPRISE / ALARM * blur),
        (4, innovation, -4 * SURPRISE / ALARM * blur),
        (5, doubt, blur),
        (6, trust, here),
    ):
        _set_kernel(rule, neuron, channel, kernel)
    layer.bias[2] = 1  # the prediction is signed, a neuron is not

    weight, bias = update.weight[:, :, 0, 0], update.bias
    assert bias is not None
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
    weight[doubt, 3] = weight[doubt, 4] = ALARM
    weight[doubt, 5], bias[doubt] = CALM**longer, -EASE * longer
    bias[channels + doubt] = _before_gate(DOUBT_GATE)


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


def _bias(layer: FilteredLayer | nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


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
