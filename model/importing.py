"""A Growing-NCA model of one's own, as a float rule.

After Mordvintsev et al., "Growing Neural Cellular Automata" (2020): x <- x + update(relu(hidden(
perceive(x)))) in the cells that fire. `perceive` sees 3x3 cells and has no nonlinearity, `hidden`
and `update` see one cell. So `perceive` and `hidden` are one full 3x3 layer, whose kernels are
computed here. What a model does beyond that is refused, never dropped.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scotopia.graph.errors import InputError

from .config import Border, RuleConfig
from .rule import PAD_MODE, Rule

#: A layer, or the weight of a convolution without bias.
Layer = nn.Module | Tensor

#: A layer, and what to call it in an error.
Named = tuple[str, Layer]

_BORDERS: dict[str, Border] = {"zeros": "zero", "replicate": "replicate", "circular": "wrap"}

#: Ranges of the random states that a model's own step is compared on: in the last, every cell of
#: the original model is dead.
_RANGES = (1.0, 0.1, 0.01)

#: Largest difference there that the order of sums explains.
_TOLERANCE = 1e-4


def import_growing_nca(
    perceive: Layer | Sequence[Layer],
    hidden: Layer | None = None,
    update: Layer | None = None,
    *,
    inputs: Sequence[str] = ("sample", "valid"),
    prediction: int = 0,
    border: Border | None = None,
    fire_rate: float = 1.0,
    steps_per_frame: int = 4,
    trace_bits: int = 8,
    reference: Callable[[Tensor], Tensor] | None,
) -> Rule:
    """Turn the layers of a Growing-NCA model into a residual rule.

    For instance `import_growing_nca(nca.perceive, nca.fc0, nca.fc1, reference=nca.step)`. As long
    as the model's state stays in [-1, 1], the rule computes the same, up to the order of sums;
    there the rule clips its state in every step, which the original model does not.

    Parameters
    ----------
    perceive
        What a cell sees of its neighbours: a 3x3 `Conv2d` (full, depthwise or grouped), or the
        weight of one, (O, I / groups, 3, 3), or one filter of every channel, (3, 3). A list of
        such stands for their outputs behind each other, as `torch.cat([x, sobel_x, sobel_y], 1)`
        does; `nn.Identity()` there is the cell itself. Without `hidden` and `update`, an
        `nn.Sequential` of all layers.
    hidden, update
        1x1 `Conv2d`, `nn.Linear`, or an `nn.Sequential` of such. A rule has one ReLU, between the
        two; it need not be named there, since many models apply it as a function.
    inputs
        What the model perceives beside its state, out of `INPUTS` and in that order, each with its
        meaning there: one channel each, **behind the C state channels**. So `perceive` takes C +
        inputs channels, where C is the number of outputs of `update`.
    prediction
        State channel that predicts the pixel. It becomes the rule's channel 0; the others follow
        in their order.
    border
        What lies beyond the border, by default what `perceive` pads with. To be given with
        tensors, and with convolutions whose padding is 0 because the model pads by hand.
    fire_rate, steps_per_frame, trace_bits
        As in `RuleConfig`.
    reference
        The model's own step: from (1, C + inputs, H, W), what the cells show, to the next state
        (1, C, H, W), all cells firing. The rule is compared with it on random states, so that what
        stands in no layer (alive masking, another nonlinearity) is found out; None if the layers
        are known to be all that there is.

    Raises
    ------
    InputError
        If the model does what a rule cannot: a layer of another type or size, channels that do not
        match, a weight that is not finite, a result that differs from `reference`.
    """
    views, before, after = _split(perceive, hidden, update)
    channels = _outputs(*after[-1])
    if not 0 <= prediction < channels:
        raise InputError(
            f"prediction {prediction} is outside 0 to {channels - 1}, the channels that "
            f"{after[-1][0]} has: choose one inside"
        )
    perceived = channels + len(inputs)
    seen = [_linear(*view, perceived, (1, 3)) for view in views]
    kernel, bias = torch.cat([weight for weight, _ in seen]), torch.cat([bias for _, bias in seen])
    for layer in before:
        kernel, bias = _compose(kernel, bias, *_linear(*layer, len(kernel), (1,)))
    config = RuleConfig(
        kind="residual",
        channels=channels,
        hidden=len(kernel),
        inputs=tuple(inputs),
        steps_per_frame=steps_per_frame,
        border=_common_border(views, border),
        trace_bits=trace_bits,
        fire_rate=fire_rate,
    )
    matrix, offset = _linear(*after[0], config.hidden, (1,))
    for layer in after[1:]:
        matrix, offset = _compose(matrix, offset, *_linear(*layer, len(matrix), (1,)))
    if reference is not None:
        _compare(reference, config, kernel, bias, matrix[:, :, 1:2, 1:2], offset)

    order = [prediction, *(i for i in range(channels) if i != prediction)]
    rule = Rule(config)
    tensors = {
        "perceive.weight": kernel[:, [*order, *range(channels, perceived)]].float(),
        "perceive.bias": bias.float(),
        "update.weight": matrix[order, :, 1:2, 1:2].float(),
        "update.bias": offset[order].float(),
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{name} of the rule is not finite: train the model again")
    rule.load_state_dict(tensors)
    return rule


def _split(
    perceive: Layer | Sequence[Layer], hidden: Layer | None, update: Layer | None
) -> tuple[list[Named], list[Named], list[Named]]:
    """Return what perceives, then the layers before and those behind the ReLU, all named."""
    if (hidden is None) != (update is None):
        raise InputError("hidden and update come together: give both or neither")
    first: list[Named] = []
    views: list[Named] = []
    if isinstance(perceive, list | tuple):
        views = [(f"perceive[{i}]", view) for i, view in enumerate(perceive)]
    else:
        first = _flatten("perceive", perceive)  # type: ignore[arg-type]
    if hidden is None or update is None:
        relus = [i for i, (_, layer) in enumerate(first) if type(layer) is nn.ReLU]
        if len(relus) != 1:
            raise InputError(
                f"perceive has {len(relus)} ReLU, a rule has one: give hidden and update, or an "
                "nn.Sequential with one nn.ReLU"
            )
        first, after = first[: relus[0]], first[relus[0] + 1 :]
    else:
        first, after = first + _flatten("hidden", hidden), _flatten("update", update)
        if first and type(first[-1][1]) is nn.ReLU:
            del first[-1]
        elif after and type(after[0][1]) is nn.ReLU:
            del after[0]
    if not views:
        views, first = first[:1], first[1:]
    for name, layers in (("perceive", views), ("update", after)):
        if not layers:
            raise InputError(f"{name} has no layer: give a 3x3 layer before and a 1x1 behind ReLU")
    return views, first, after


def _flatten(name: str, layer: Layer) -> list[Named]:
    """Take an nn.Sequential apart."""
    if type(layer) is not nn.Sequential:
        return [(name, layer)]
    _refuse_hooks(name, layer)
    parts = [part for i, step in enumerate(layer) for part in _flatten(f"{name}[{i}]", step)]
    return [part for part in parts if type(part[1]) is not nn.Identity]


def _linear(name: str, layer: Layer, inputs: int, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Kernels (O, inputs, 3, 3) and biases (O,) of a layer, in float64.

    Raises
    ------
    InputError
        If it is no layer of these kernel `sizes` that a rule can hold.
    """
    weight, bias, groups = _parameters(name, layer, inputs)
    outputs, taken, *size = weight.shape
    if size not in [[side, side] for side in sizes]:
        raise InputError(
            f"{name} has kernels of {' x '.join(map(str, size))}, a rule has 3 x 3 in perceive and "
            "1 x 1 behind it: train a model with these"
        )
    if taken * groups != inputs or outputs % groups:
        raise InputError(
            f"{name} has weights of shape {tuple(weight.shape)} and groups {groups}, but is shown "
            f"{inputs} channels: name in inputs what the model perceives beside its state"
        )
    for numbers in (weight, bias):
        if not numbers.is_floating_point() or not numbers.isfinite().all():
            raise InputError(f"{name} has a number that is no finite float: train the model again")
    margin = (3 - size[0]) // 2
    kernel = torch.zeros(outputs, inputs, 3, 3, dtype=torch.float64)
    for group in range(groups):
        rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
        columns = slice(group * taken, (group + 1) * taken)
        kernel[rows, columns] = F.pad(weight[rows].detach().cpu().double(), (margin,) * 4)
    return kernel, bias.detach().cpu().double()


def _parameters(name: str, layer: Layer, inputs: int) -> tuple[Tensor, Tensor, int]:
    """Weight (O, I / groups, k, k), bias (O,) and groups of a layer of a type that a rule holds."""
    if type(layer) is nn.Identity:
        return torch.ones(inputs, 1, 1, 1), torch.zeros(inputs), inputs
    if isinstance(layer, Tensor):
        if layer.shape == (3, 3):
            layer = layer.expand(inputs, 1, 3, 3)
        if layer.ndim != 4:
            raise InputError(
                f"{name} has shape {tuple(layer.shape)}: give (O, I / groups, 3, 3) or (3, 3)"
            )
        return layer, torch.zeros(len(layer)), max(1, inputs // max(1, layer.shape[1]))
    # No subclass: it may compute something else.
    if type(layer) not in (nn.Conv2d, nn.Linear) or not isinstance(layer, nn.Conv2d | nn.Linear):
        kind = type(layer)
        raise InputError(
            f"{name} is a {kind.__module__}.{kind.__qualname__}, a rule has nn.Conv2d, nn.Linear "
            "and one nn.ReLU: train a model without it"
        )
    _refuse_hooks(name, layer)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    if isinstance(layer, nn.Linear):
        return layer.weight[:, :, None, None], bias, 1
    same = (layer.kernel_size[0] // 2,) * 2
    for field, allowed in (
        ("stride", [(1, 1)]),
        ("dilation", [(1, 1)]),
        ("padding", [same, "same", (0, 0), "valid"]),
        ("padding_mode", list(_BORDERS)),
    ):
        if getattr(layer, field) not in allowed:
            raise InputError(
                f"{name} has {field} {getattr(layer, field)}, a rule has {allowed[0]}: "
                "train a model with that"
            )
    return layer.weight, bias, layer.groups


def _refuse_hooks(name: str, layer: nn.Module) -> None:
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise InputError(f"{name} has hooks, which may change what it computes: remove them")


def _compose(kernel: Tensor, bias: Tensor, after: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Kernels and biases of a layer with a 1x1 layer behind it; exact at every border."""
    matrix = after[:, :, 1, 1]
    return torch.einsum("oi,ipyx->opyx", matrix, kernel), matrix @ bias + offset


def _outputs(name: str, layer: Layer) -> int:
    """Number of channels that a layer gives."""
    if isinstance(layer, Tensor):
        return len(layer)
    return len(_parameters(name, layer, 1)[0])


def _common_border(views: list[Named], given: Border | None) -> Border:
    """Border of what perceives, by its own padding and by what the user says."""
    found = {} if given is None else {given: "border"}
    for name, layer in views:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            if layer.padding in ((1, 1), "same"):
                found.setdefault(_BORDERS[layer.padding_mode], name)
            elif given is None:
                raise InputError(f"{name} does not pad: name the border that the model pads with")
        elif isinstance(layer, Tensor) and given is None:
            raise InputError(f"{name} is a tensor: name the border that the model pads with")
    if len(found) > 1:
        said = ", ".join(f"{name} says {border}" for border, name in found.items())
        raise InputError(f"a rule has one border, but {said}: train a model with one")
    return next(iter(found), "zero")


def _compare(
    reference: Callable[[Tensor], Tensor],
    config: RuleConfig,
    kernel: Tensor,
    bias: Tensor,
    matrix: Tensor,
    offset: Tensor,
) -> None:
    """Raise InputError unless the layers' step is the model's own, where both are in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    for scale in _RANGES:
        shown = torch.rand(1, config.perceived, 9, 9, generator=generator) * 2 * scale - scale
        padded = F.pad(shown, (1, 1, 1, 1), mode=PAD_MODE[config.border]).double()
        change = F.conv2d(F.relu(F.conv2d(padded, kernel, bias)), matrix, offset)
        expected = (shown[:, : config.channels] + change).clamp(-1, 1)
        with torch.no_grad():
            found = reference(shown)
        if found.shape != expected.shape:
            raise InputError(
                f"reference gives shape {tuple(found.shape)}, a next state has "
                f"{tuple(expected.shape)}: return the state channels alone"
            )
        difference = float((found.clamp(-1, 1) - expected).abs().max())
        if not difference <= _TOLERANCE:
            raise InputError(
                f"reference differs from the layers by {difference:.2g}: the model does more than "
                "its layers say, alive masking for instance; train one without it"
            )
