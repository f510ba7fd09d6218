"""What sums channels or neighbours up: convolutions, matrices, pooling, BatchNorm."""

from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scotopia.graph.operations import Add, Border

from .fields import BATCH, COLUMNS, ROWS, Atom, Field, size
from .handlers import const, field, handles
from .pointwise import _mul
from .refusal import Refusal
from .writer import Const, Operand, Writer

_SMALLER = (
    "use 3x3 kernels of stride and dilation 1 with padding 1: several layers of them, or several "
    "steps, reach as far"
)


def _upright(function: Any) -> Any:
    """Let a function of (B, C, H, W) be one of (B, C, W, H), and of (B, H, W), too."""

    @wraps(function)
    def handle(writer: Writer, a: Operand, *arguments: Any) -> Any:
        a = field(a, "an image")
        axes = [[atom.axis for atom in dim] for dim in a.dims[-2:]]
        if axes == [[ROWS], [COLUMNS]]:
            return function(writer, a, *arguments)
        if axes != [[COLUMNS], [ROWS]]:
            raise Refusal(
                "looks around in other dimensions than rows and columns",
                "give it (B, C, H, W): permute before and behind",
            )
        last = len(a.dims) - 1
        turned = a.permute([*range(last - 1), last, last - 1])
        if function.__name__ == "_conv2d":
            weight, *rest = arguments
            kernel = const(weight, "kernels").map(lambda t: t.transpose(2, 3))
            if len(rest) > 2 and not isinstance(rest[2], str):
                rest[2] = rest[2][::-1]
            found = function(writer, turned, kernel, *rest)
        else:
            found = function(writer, turned, *arguments)
        return found.permute([*range(last - 1), last, last - 1])

    return handle


@handles("conv2d")
@_upright
def _conv2d(
    writer: Writer,
    a: Operand,
    weight: Operand,
    bias: Operand | None = None,
    stride: Sequence[int] = (1,),
    padding: Any = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Field:
    a, kernel = field(a, "an image"), const(weight, "kernels")
    offset = None if bias is None else const(bias, "biases")
    high, wide = kernel.value.shape[2:]
    if (set(stride), set(dilation)) != ({1}, {1}) or not {high, wide} <= {1, 3}:
        detail = "" if set(stride) == {1} else f", stride {_short(stride)}"
        detail += "" if set(dilation) == {1} else f", dilation {_short(dilation)}"
        raise Refusal(f"has {high}x{wide} kernels{detail}", _SMALLER)
    if isinstance(padding, str):
        padding = (high // 2, wide // 2) if padding == "same" else (0, 0)
    pads = tuple(padding) * (2 // len(padding))
    border, margins = _border(a, (high, wide), pads)
    if len(a.dims) != 4:
        raise Refusal("convolves what is no batch of images", "give it (B, C, H, W)")
    a, whole, stacks, channels = _rows(a)
    outputs = len(kernel.value)
    around = 3 in (high, wide)

    def dense(w: Tensor) -> Tensor:
        w = F.pad(w, (1 - wide // 2,) * 2 + (1 - high // 2,) * 2) if around else w
        w = w.reshape(groups, outputs // groups, w.shape[1], -1)
        w = torch.einsum("gh,goik->gohik", torch.eye(groups, dtype=w.dtype), w)
        return _for_each(stacks, w.reshape(outputs, channels, -1))

    words = writer.weigh(
        a.words.ravel(),
        kernel.map(dense),
        Const(torch.zeros(stacks * outputs))
        if offset is None
        else offset.map(lambda b: b.repeat(stacks)),
        border or "zero",
    )
    if margins != (None, None) and "zero" in margins and offset is not None:
        raise Refusal("adds a bias in a border of zeros", "pad behind this layer")
    dims = [whole, (Atom(outputs),), a.dims[2], a.dims[3]]
    for i, length in ((2, high), (3, wide)):
        if a.margins[i - 2] and length == 3:
            dims[i] = (Atom(a.shape[i] - 2, dims[i][0].axis),)
    sizes = [1 if atom.axis else atom.size for dim in dims for atom in dim]
    return Field(words.reshape(sizes), tuple(dims), torch.float32, margins)


def _short(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers)) if len(set(numbers)) > 1 else str(numbers[0])


def _rows(a: Field) -> tuple[Field, tuple[Atom, ...], int, int]:
    """Return a field whose words are channels of so many stacks, and the first dimension."""
    whole = a.dims[0]
    if any(atom.axis not in (None, BATCH) for atom in whole):
        raise Refusal(
            "convolves over other dimensions than rows and columns",
            "give it (B, C, H, W): permute before and behind",
        )
    a = a.merged(1)
    return a, whole, prod(atom.size for atom in whole if not atom.axis), size(a.dims[1])


def _for_each(stacks: int, weight: Tensor) -> Tensor:
    """Repeat weights (O, I, K) along the diagonal, for as many stacks of channels."""
    if stacks == 1:
        return weight
    outputs, inputs, taps = weight.shape
    each = torch.einsum("fe,oik->foeik", torch.eye(stacks, dtype=weight.dtype), weight)
    return each.reshape(stacks * outputs, stacks * inputs, taps)


def _border(
    a: Field, kernel: tuple[int, int], pads: Sequence[int]
) -> tuple[Border | None, tuple[Border | None, Border | None]]:
    """Return the border of what looks around, and the margins that are left."""
    borders: list[Border] = []
    left: list[Border | None] = []
    for length, pad, margin in zip(kernel, pads, a.margins, strict=True):
        if length == 1 and pad == 0:
            left.append(margin)
        elif length == 3 and (pad, margin is None) in ((1, True), (0, False)):
            borders.append(margin or "zero")
            left.append(None)
        else:
            raise Refusal(
                f"changes the grid's size: {length} cells wide with a padding of "
                f"{pad + (margin is not None)}",
                "pad 3x3 kernels by one cell, 1x1 kernels by none",
            )
    if len(set(borders)) > 1:
        raise Refusal("has two kinds of border", "pad rows and columns alike")
    return borders[0] if borders else None, (left[0], left[1])


@handles("max_pool2d")
@_upright
def _max_pool2d(
    writer: Writer,
    a: Field,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Field:
    border = _pooled(a, kernel, stride, padding, dilation)
    padded = a.margins != (None, None)
    cut = _cut(a)
    return writer.extreme(cut, border if padded else "replicate")


@handles("max_pool2d_with_indices")
def _max_pool2d_with_indices(writer: Writer, a: Field, *arguments: Any) -> list[Any]:
    return [_max_pool2d(writer, a, *arguments), None]


@handles("avg_pool2d")
@_upright
def _avg_pool2d(
    writer: Writer,
    a: Field,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Field:
    border = _pooled(a, kernel, stride, padding, (1,))
    if not count_include_pad and a.margins == (None, None):
        raise Refusal(
            "averages fewer cells at the border", "pad it with F.pad(..., mode='replicate') first"
        )
    cut = _cut(a)
    words = cut.words.ravel()
    weight = torch.eye(len(words))[:, :, None].expand(-1, -1, 9) / (divisor or 9)
    summed = writer.weigh(words, Const(weight), None, border)
    return replace(cut, words=summed.reshape(cut.words.shape))


def _pooled(
    a: Field,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Border:
    if set(stride or kernel) != {1} or set(dilation) != {1} or set(kernel) != {3}:
        raise Refusal(
            f"pools {_short(kernel)} cells at stride {_short(stride or kernel)}",
            "pool 3x3 cells at stride 1 with padding 1",
        )
    border, _ = _border(a, (3, 3), tuple(padding) * (2 // len(padding)))
    assert border is not None
    return border


def _cut(a: Field) -> Field:
    """Take margins off a field, which something has looked at."""
    dims = list(a.dims)
    for dim, margin in zip((-2, -1), a.margins, strict=True):
        if margin:
            dims[dim] = (Atom(a.shape[dim] - 2, dims[dim][0].axis),)
    return replace(a, dims=tuple(dims), margins=(None, None))


@handles("_native_batch_norm_legit_no_training")
def _batch_norm(
    writer: Writer,
    a: Field,
    weight: Operand | None,
    bias: Operand | None,
    mean: Operand,
    variance: Operand,
    momentum: float,
    eps: float,
) -> list[Any]:
    shape = (-1, *(1,) * (len(a.dims) - 2))
    centre, spread = const(mean, "means"), const(variance, "variances")
    scale = spread.map(lambda v: (v + eps).rsqrt())
    if weight is not None:
        scale = Const.of(torch.mul, scale, const(weight, "weights"))
    shift = Const.of(lambda m, s: -m * s, centre, scale)
    if bias is not None:
        shift = Const.of(torch.add, shift, const(bias, "biases"))
    scaled = _mul(writer, a, scale.map(lambda t: t.reshape(shape)))
    return [writer.pairwise(Add, scaled, shift.map(lambda t: t.reshape(shape))), None, None]
