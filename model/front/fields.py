"""Fields: tensors whose axes are known to be batch, rows, columns or channels of a cell.

What permutes, reshapes, slices and joins channels needs no operation of a step graph: it only says
which words stand where. So a tensor of the module is an array of numbers of words, and each of its
dimensions is a product of **atoms**: the batch, the rows or the columns of the grid, or channels.
`x.reshape(b * c, 1, h, w)` has the batch and C channels in its first dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.graph.operations import Border

from .refusal import Refusal

BATCH, ROWS, COLUMNS = "batch", "rows", "columns"

WHOLE_GRID = (
    "give each cell what its 3x3 neighbours hold, in more steps if need be: a cell sees no more"
)

_ALIKE = (
    "all cells do the same and none knows its place: use 3x3 kernels, or give what differs from "
    "cell to cell as an argument, which becomes an input"
)


@dataclass(frozen=True)
class Atom:
    """A factor of a dimension: channels, if it has no axis."""

    size: int
    axis: str | None = None


#: Atoms of a dimension, the slowest first. None are a dimension of size 1.
Dim = tuple[Atom, ...]


@dataclass(frozen=True, eq=False)
class Field:
    """Words of every cell, in the places of a tensor.

    Attributes
    ----------
    words
        One axis an atom, in their order; of size 1 where the atom is no channels.
    dims
        Atoms of each dimension of the tensor.
    margins
        What stands in a margin of one cell above and below, and left and right; None without.
    """

    words: NDArray[np.int64]
    dims: tuple[Dim, ...]
    dtype: torch.dtype = torch.float32
    margins: tuple[Border | None, Border | None] = (None, None)

    def __post_init__(self) -> None:
        sizes = tuple(1 if atom.axis else atom.size for dim in self.dims for atom in dim)
        assert self.words.shape == sizes, (self.words.shape, self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the tensor's dimensions."""
        return tuple(size(dim) for dim in self.dims)

    @property
    def listed(self) -> tuple[int, ...]:
        """All words, in order."""
        return tuple(self.words.ravel().tolist())

    @property
    def axes(self) -> dict[str, int]:
        """Which dimension has each axis of the grid."""
        return {atom.axis: i for i, dim in enumerate(self.dims) for atom in dim if atom.axis}

    def margin(self, axis: str) -> Border | None:
        """What stands in the margin along an axis."""
        return {ROWS: self.margins[0], COLUMNS: self.margins[1]}.get(axis)

    def dim(self, index: int) -> int:
        """Count a dimension from the front, if it is counted from behind."""
        return index % max(len(self.dims), 1)

    def axis_of(self, dim: int) -> int:
        """Return which axis of `words` the first atom of a dimension is."""
        return sum(len(atoms) for atoms in self.dims[:dim])

    def permute(self, order: Sequence[int]) -> "Field":
        """Put dimensions into another order."""
        order = [self.dim(i) for i in order]
        axes = [a for i in order for a in range(self.axis_of(i), self.axis_of(i + 1))]
        return replace(
            self, words=self.words.transpose(axes), dims=tuple(self.dims[i] for i in order)
        )

    def squeeze(self, dims: Sequence[int]) -> "Field":
        """Drop those dimensions that have size 1."""
        field = self
        for dim in sorted((self.dim(i) for i in dims), reverse=True):
            if size(field.dims[dim]) == 1:
                field = field.merged(dim)
                kept = tuple(d for i, d in enumerate(field.dims) if i != dim)
                at = field.axis_of(dim)
                words = field.words if not field.dims[dim] else field.words.squeeze(at)
                field = replace(field, words=words, dims=kept)
        return field

    def unsqueeze(self, dim: int) -> "Field":
        """Insert a dimension of size 1."""
        dim %= len(self.dims) + 1
        return replace(self, dims=(*self.dims[:dim], (), *self.dims[dim:]))

    def merged(self, dim: int) -> "Field":
        """Make one atom of a dimension of channels: exactly one, of any size.

        Raises
        ------
        Refusal
            If the dimension has an axis of the grid.
        """
        atoms = self.dims[dim]
        if grid := [atom.axis for atom in atoms if atom.axis]:
            raise Refusal(f"works along the {grid[0]}, not on channels alone", _ALIKE)
        first = self.axis_of(dim)
        shape = self.words.shape
        words = self.words.reshape(*shape[:first], size(atoms), *shape[first + len(atoms) :])
        dims = (*self.dims[:dim], (Atom(size(atoms)),), *self.dims[dim + 1 :])
        return replace(self, words=words, dims=dims)

    def take(self, dim: int, which: object) -> "Field":
        """Index a dimension of channels, as NumPy does with a slice or an array."""
        field = self.merged(self.dim(dim))
        dim = self.dim(dim)
        at = (slice(None),) * field.axis_of(dim) + (which,)
        words = field.words[at]  # type: ignore[index]
        dims = (*field.dims[:dim], (Atom(words.shape[len(at) - 1]),), *field.dims[dim + 1 :])
        return replace(field, words=words, dims=dims)

    def expand(self, shape: Sequence[int]) -> "Field":
        """Repeat along dimensions of size 1, to a shape."""
        field = self
        while len(field.dims) < len(shape):
            field = field.unsqueeze(0)
        for dim, wanted in enumerate(shape):
            if wanted not in (-1, field.shape[dim]):
                field = field.take(dim, np.zeros(wanted, int))
        return field

    def reshape(self, shape: Sequence[int]) -> "Field":
        """Group the atoms anew; channels can be split, the grid cannot."""
        wanted = list(shape)
        if -1 in wanted:
            known = prod(n for n in wanted if n != -1)
            wanted[wanted.index(-1)] = prod(self.shape) // max(known, 1)
        atoms = [atom for dim in self.dims for atom in dim]
        sizes = list(self.words.shape)
        dims: list[Dim] = []
        at = 0
        for number in wanted:
            dim: list[Atom] = []
            while size(dim) < number:
                if at == len(atoms):
                    raise _mixes()
                room = number // size(dim)
                atom = atoms[at]
                if atom.size > room or number % size(dim):
                    if atom.axis or atom.size % room or number % size(dim):
                        raise _mixes()
                    atoms[at : at + 1] = [Atom(room), Atom(atom.size // room)]
                    sizes[at : at + 1] = [room, atom.size // room]
                dim.append(atoms[at])
                at += 1
            if size(dim) != number:
                raise _mixes()
            dims.append(tuple(dim))
        if any(atom.size != 1 for atom in atoms[at:]):
            raise _mixes()
        left = len(atoms) - at
        words = self.words.reshape(sizes if not left else sizes[:at])
        return replace(self, words=words, dims=tuple(dims))


def _mixes() -> Refusal:
    return Refusal(
        "regroups the grid's cells", "reshape batch and channels alone, never rows or columns"
    )


def size(dim: Sequence[Atom]) -> int:
    """Size of a dimension."""
    return prod(atom.size for atom in dim)


def broadcast(fields: Sequence[Field]) -> list[Field]:
    """Give fields the same dimensions, as PyTorch does; their words' arrays then agree in shape.

    Raises
    ------
    Refusal
        If two differ in which axis of the grid a dimension has.
    """
    rank = max(len(field.dims) for field in fields)
    padded = [
        replace(field, dims=((),) * (rank - len(field.dims)) + tuple(field.dims))
        for field in fields
    ]
    for dim in range(rank):
        template: Dim = ()
        for field in padded:
            template = refined(template, field.dims[dim])
        padded = [_as(field, dim, template) for field in padded]
    shape = np.broadcast_shapes(*(field.words.shape for field in padded))
    margins = common_margins(fields)
    return [
        Field(np.broadcast_to(field.words, shape), field.dims, field.dtype, margins)
        for field in padded
    ]


def common_margins(fields: Sequence[Field]) -> tuple[Border | None, Border | None]:
    """Return the margins of all fields that vary over the grid.

    Raises
    ------
    Refusal
        If they differ.
    """
    found = {field.margins for field in fields if field.axes.keys() & {ROWS, COLUMNS}}
    if len(found) > 1:
        raise Refusal("joins tensors that are padded in different ways", "pad after joining them")
    return found.pop() if found else (None, None)


def refined(one: Dim, other: Dim) -> Dim:
    """Return the atoms that two dimensions, which shall be the same, have in common."""
    if size(one) == 1:
        return other
    if size(other) == 1:
        return one
    a, b = list(one), list(other)
    found: list[Atom] = []
    while a and b:
        if a[-1] == b[-1]:
            found.append(a.pop())
            b.pop()
            continue
        if a[-1].size < b[-1].size:
            a, b = b, a
        large, small = a[-1], b[-1]
        if large.axis or small.axis or large.size % small.size:
            raise Refusal(
                "joins tensors whose rows, columns and channels do not match",
                "give all of them the same layout",
            )
        a[-1:] = [Atom(large.size // small.size), Atom(small.size)]
    return tuple(reversed(found))


def _as(field: Field, dim: int, template: Dim) -> Field:
    """Split a dimension into the atoms of a template; of size 1, it gets an axis for each."""
    at, own = field.axis_of(dim), field.dims[dim]
    shape = field.words.shape
    if size(own) == 1 and size(template) != 1:
        inner: tuple[int, ...] = (1,) * len(template)
        # Its words are the same all along the dimension: only the array's shape says so.
        words = field.words.reshape(*shape[:at], *inner, *shape[at + len(own) :])
        dims = (*field.dims[:dim], template, *field.dims[dim + 1 :])
        return _Spread(words, dims, field.dtype, field.margins)
    inner = tuple(1 if atom.axis else atom.size for atom in template)
    words = field.words.reshape(*shape[:at], *inner, *shape[at + len(own) :])
    return replace(field, words=words, dims=(*field.dims[:dim], template, *field.dims[dim + 1 :]))


class _Spread(Field):
    """A field whose words are not yet repeated along all its dimensions."""

    def __post_init__(self) -> None:
        pass
