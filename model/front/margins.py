"""What looks at a neighbour by hand: padding, cutting the padding off again, rolling the grid."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from scotopia.graph.operations import Border

from .fields import COLUMNS, ROWS, WHOLE_GRID, Atom, Field
from .handlers import handles
from .refusal import Refusal
from .shapes import joined
from .writer import Const, Operand, Writer

PADDING: dict[str, Border] = {
    "constant": "zero",
    "zeros": "zero",
    "replicate": "replicate",
    "circular": "wrap",
    "reflect": "reflect",
}


@handles("slice")
def _slice(
    writer: Writer,
    a: Field,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Field:
    length = a.shape[a.dim(dim)]
    first, last, step = slice(start, end, step).indices(length)
    if (first, last, step) == (0, length, 1):
        return a
    atoms = a.dims[a.dim(dim)]
    axis = atoms[0].axis if len(atoms) == 1 else None
    margin = a.margin(axis) if axis else None
    if axis and margin and step == 1 and last - first == length - 2:
        return _without_margin(writer, a, a.dim(dim), axis, margin, first - 1)
    return a.take(dim, slice(first, last, step))


def _without_margin(
    writer: Writer, a: Field, dim: int, axis: str, margin: Border, offset: int
) -> Field:
    """Cut a margin off, and look at the neighbour on one side where it is cut unevenly."""
    cut = replace(
        a,
        dims=(*a.dims[:dim], (Atom(a.shape[dim] - 2, axis),), *a.dims[dim + 1 :]),
        margins=(None, a.margins[1]) if axis == ROWS else (a.margins[0], None),
    )
    return shifted(writer, cut, axis, offset, margin) if offset else cut


def shifted(writer: Writer, a: Field, axis: str, offset: int, border: Border) -> Field:
    """Return what the neighbour holds: below or on the right, for an offset of 1."""
    words = a.words.ravel()
    weight = torch.zeros(len(words), len(words), 9)
    tap = 4 + offset * (3 if axis == ROWS else 1)
    weight[range(len(words)), range(len(words)), tap] = 1
    moved = writer.weigh(words, Const(weight), None, border)
    if set(words.tolist()) <= writer.bits:
        writer.bits |= set(moved.tolist())
    return replace(a, words=moved.reshape(a.words.shape))


@handles("roll")
def _roll(writer: Writer, a: Field, shifts: Sequence[int], dims: Sequence[int] = ()) -> Field:
    if not dims:
        raise Refusal("rolls all cells and channels as one row", "name the dimensions")
    for shift, dim in zip(shifts, dims, strict=True):
        dim = a.dim(dim)
        axes = [atom.axis for atom in a.dims[dim] if atom.axis]
        if not axes:
            a = a.take(dim, (np.arange(a.shape[dim]) - shift) % a.shape[dim])
        elif axes == [ROWS] or axes == [COLUMNS]:
            if shift not in (-1, 0, 1):
                raise Refusal(f"moves the grid by {shift} cells", WHOLE_GRID)
            if shift:
                a = shifted(writer, a, axes[0], -shift, "wrap")
        else:
            raise Refusal("moves the grids of a batch", WHOLE_GRID)
    return a


@handles("pad")
def _pad(
    writer: Writer,
    a: Field,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Field:
    if value:
        raise Refusal(f"pads with {value}", "pad with zeros, or with the grid's own edge")
    margins = dict(zip((ROWS, COLUMNS), a.margins, strict=True))
    dims = list(a.dims)
    for i in range(len(pad) // 2):
        dim, (before, after) = len(dims) - 1 - i, pad[2 * i : 2 * i + 2]
        if (before, after) == (0, 0):
            continue
        atoms = dims[dim]
        axis = atoms[0].axis if len(atoms) == 1 else None
        if axis not in margins:
            if not any(atom.axis for atom in atoms) and mode == "constant" and min(pad) >= 0:
                zeros = [Const(torch.zeros([*a.shape[:dim], n, *a.shape[dim + 1 :]]))
                         for n in (before, after)]  # fmt: skip
                parts: list[Operand] = [zeros[0], a, zeros[1]]
                kept = [p for p in parts if not isinstance(p, Const) or p.value.shape[dim]]
                a = joined(writer, kept, dim)
                dims = list(a.dims)
                continue
            raise Refusal("pads batch or channels", "pad rows and columns")
        if margins[axis] or (before, after) != (1, 1):
            raise Refusal(
                f"pads {before} and {after} cells, where a cell sees 3x3",
                "use 3x3 kernels, padded once by one cell on each side",
            )
        margins[axis] = PADDING[mode]
        dims[dim] = (Atom(atoms[0].size + 2, axis),)
    return replace(a, dims=tuple(dims), margins=(margins[ROWS], margins[COLUMNS]))


@handles("reflection_pad2d")
def _reflect(writer: Writer, a: Field, pad: Sequence[int]) -> Field:
    return _pad(writer, a, pad, "reflect")


@handles("replication_pad2d")
def _replicate(writer: Writer, a: Field, pad: Sequence[int]) -> Field:
    return _pad(writer, a, pad, "replicate")


@handles("_pad_circular")
def _wrap(writer: Writer, a: Field, pad: Sequence[int]) -> Field:
    return _pad(writer, a, pad, "circular")


@handles("constant_pad_nd")
def _constant_pad(writer: Writer, a: Field, pad: Sequence[int], value: float = 0.0) -> Field:
    return _pad(writer, a, pad, "constant", value)
