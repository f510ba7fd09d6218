"""A step graph in the making, whose numbers can be computed anew from a module's parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.graph.operations import (
    HERE,
    Add,
    Border,
    Constant,
    Less,
    Linear,
    Maximum,
    Minimum,
    Multiply,
    Operation,
    Random,
    Select,
    Subtract,
    Window,
)

from .fields import Atom, Dim, Field, broadcast, size
from .refusal import Refusal

#: Values of what the module computes of its parameters alone, by the name of its node.
Values = Mapping[str, Tensor]

#: Computes numbers from these.
Formula = Callable[[Values], Tensor]

Pairwise = type[Add] | type[Subtract] | type[Multiply] | type[Minimum] | type[Maximum] | type[Less]


@dataclass(frozen=True, eq=False)
class Const:
    """A tensor that no cell has any part in.

    Attributes
    ----------
    value
        As it is now.
    formula
        Computes it anew; None if it never changes.
    """

    value: Tensor
    formula: Formula | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Const":
        """Apply a function."""
        formula = self.formula
        if formula is None:
            return Const(function(self.value))
        return Const(function(self.value), lambda values: function(formula(values)))

    @classmethod
    def of(cls, function: Callable[..., Tensor], *arguments: "Const") -> "Const":
        """Apply a function to several."""
        value = function(*(one.value for one in arguments))
        if all(one.formula is None for one in arguments):
            return cls(value)
        return cls(value, lambda values: function(*(one.at(values) for one in arguments)))

    def at(self, values: Values) -> Tensor:
        """Compute it."""
        return self.value if self.formula is None else self.formula(values)


#: What an operation of the module takes.
Operand = Field | Const | float | bool

#: Bits of a random number, where nothing says how many it needs.
RANDOM_BITS = 8


@dataclass
class Writer:
    """Writes operations on fields.

    Attributes
    ----------
    formulas
        Of the numbers of operations, by index.
    bits
        Words that are 0 or 1.
    ranges
        Of words of which it is known: least and largest value, where the latter may be excluded.
    written
        "file:line: " of each operation, as far as known.
    grid
        Sizes of the axes, by which shapes that are given as numbers are understood.
    lines
        How many clipped lines a smooth function becomes.
    draws
        Fields of random numbers, in the order in which they are drawn.
    approximations
        Largest error of each smooth function, by where it stands.
    """

    operations: list[Operation] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    formulas: dict[int, tuple[Const, ...]] = field(default_factory=dict)
    bits: set[int] = field(default_factory=set)
    ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    written: dict[int, str] = field(default_factory=dict)
    grid: Mapping[str, int] = field(default_factory=dict)
    lines: int = 8
    approximations: dict[str, float] = field(default_factory=dict)
    draws: list[Field] = field(default_factory=list)
    label: str = ""
    _sums: dict[int, tuple[int, float, float]] = field(default_factory=dict)
    _opposites: dict[int, int] = field(default_factory=dict)
    place: str = ""
    _constants: dict[float, int] = field(default_factory=dict)
    _count: int = 0

    def append(self, operation: Operation) -> NDArray[np.int64]:
        """Append an operation, named by what is being written, and return its words."""
        self.written[len(self.operations)] = self.place
        words = np.arange(self._count, self._count + operation.count)
        self.operations.append(operation)
        self._count += operation.count
        for lane, word in enumerate(words.tolist()):
            self.names[word] = f"{self.label} {lane}" if len(words) > 1 else self.label
        return words

    def number(self, value: float) -> int:
        """Return the word of a number."""
        if value not in self._constants:
            word = int(self.append(Constant((float(value),)))[0])
            self.names[word] = f"{value:g}"
            self._constants[value] = word
            self.ranges[word] = value, value
            if value in (0, 1):
                self.bits.add(word)
        return self._constants[value]

    def as_field(self, operand: Operand, like: Field) -> Field:
        """Return an operand as a field that can be broadcast with another.

        Raises
        ------
        Refusal
            If it is a tensor that differs from cell to cell.
        """
        if isinstance(operand, Field):
            return operand
        if isinstance(operand, Const) and operand.value.numel() == 1 and not operand.formula:
            operand = operand.value.item()
        if not isinstance(operand, Const):
            word = self.number(float(operand))
            return Field(np.array(word), (), torch.float32)
        rank = operand.value.ndim
        own = like.dims[max(len(like.dims) - rank, 0) :]
        dims = tuple(
            (Atom(length),) if size(dim) == 1 else dim
            for dim, length in zip(
                ((),) * (rank - len(own)) + tuple(own), operand.value.shape, strict=True
            )
        )
        at_once = self._uniform(operand, dims)
        shape = at_once.value.shape
        flat = at_once.map(torch.flatten)
        index = len(self.operations)
        words = self.append(Constant(tuple(flat.value.tolist())))
        for word, value in zip(words, flat.value.tolist(), strict=True):
            self.ranges[int(word)] = value, value
        if flat.formula:
            self.formulas[index] = (flat,)
        elif ((flat.value == 0) | (flat.value == 1)).all():
            self.bits |= set(words.tolist())
        # Dimensions along which it has one number have no atoms.
        kept = tuple(d if n != 1 else () for d, n in zip(dims, operand.value.shape, strict=True))
        sizes = [1 if atom.axis else atom.size for dim in kept for atom in dim]
        assert int(np.prod(sizes)) == int(np.prod(shape)), (sizes, shape)
        return Field(words.reshape(sizes), kept, operand.value.dtype)

    def _uniform(self, const: Const, dims: Sequence[Dim]) -> Const:
        """Take one cell of a constant tensor, whose atoms then are one axis each."""
        for dim, atoms in reversed(list(enumerate(dims))):
            length = const.value.shape[dim]
            if length == 1:
                continue
            sizes = [atom.size for atom in atoms]
            if length != int(np.prod(sizes)):
                raise Refusal(
                    f"joins a state with a constant tensor of {length} places, where it has "
                    f"{int(np.prod(sizes))}",
                    "give constants one number for each channel",
                )
            const = const.map(lambda t, d=dim, s=sizes: t.unflatten(d, s))  # type: ignore[misc]
            for i, atom in enumerate(atoms):
                if atom.axis:
                    first = const.value.narrow(dim + i, 0, 1)
                    if not torch.equal(const.value, first.expand_as(const.value)):
                        raise Refusal(
                            "reads a constant tensor that differs from cell to cell",
                            "give it to the step as an argument, which becomes an input",
                        )
                    const = const.map(lambda t, d=dim + i: t.narrow(d, 0, 1))  # type: ignore[misc]
        return const

    def joined(self, *operands: Operand) -> list[Field]:
        """Return operands, one of which is a field, as fields of the same dimensions."""
        like = next(one for one in operands if isinstance(one, Field))
        for one in operands:
            if isinstance(one, Field) and len(one.dims) > len(like.dims):
                like = one
        return broadcast([self.as_field(one, like) for one in operands])

    def pairwise(self, kind: Pairwise, one: Operand, other: Operand) -> Field:
        """Compute an operation of two operands, element by element."""
        a, b = self.joined(one, other)
        dtype = torch.bool if kind is Less else a.dtype if a.dtype != torch.bool else b.dtype
        words = self.append(kind(a.listed, b.listed))
        found = set(words.tolist())
        known = {*a.listed, *b.listed}
        if kind is Less or (kind in (Minimum, Maximum) and known <= self.bits):
            self.bits |= found
        self._derive(kind, words, a.words.ravel(), b.words.ravel())
        return replace(a, words=words.reshape(a.words.shape), dtype=dtype)

    def _derive(
        self, kind: Pairwise, words: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]
    ) -> None:
        for word, one, other in zip(words.tolist(), a.tolist(), b.tolist(), strict=True):
            (p, q), (r, s) = self.span(one), self.span(other)
            for x, y, number in ((one, other, (r, s)), (other, one, (p, q))):
                if x in self._sums and number[0] == number[1] and y not in self._sums:
                    drawn, shift, scale = self._sums[x]
                    if kind is Add:
                        self._sums[word] = drawn, shift + number[0], scale
                    elif kind is Subtract and x == one:
                        self._sums[word] = drawn, shift - number[0], scale
                    elif kind is Subtract:
                        self._sums[word] = drawn, number[0] - shift, -scale
                    elif kind is Multiply and number[0]:
                        self._sums[word] = drawn, shift * number[0], scale * number[0]
            if kind is Add:
                self.ranges[word] = p + r, q + s
            elif kind is Subtract:
                self.ranges[word] = p - s, q - r
            elif kind is Minimum:
                self.ranges[word] = min(p, r), min(q, s)
            elif kind is Maximum:
                self.ranges[word] = max(p, r), max(q, s)
            elif kind is Multiply and isfinite(p + q + r + s):
                ends = [p * r, p * s, q * r, q * s]
                self.ranges[word] = min(ends), max(ends)

    def span(self, word: int) -> tuple[float, float]:
        """Return what a word is known to lie between."""
        if word in self.ranges:
            return self.ranges[word]
        return (0.0, 1.0) if word in self.bits else (-inf, inf)

    def cells(self, shape: Sequence[int]) -> tuple[Dim, ...]:
        """Return the dimensions of a tensor that is given by its sizes alone."""
        atoms = [Atom(length, axis) for axis, length in self.grid.items()]
        # Of a row of all cells, too: (H * W,).
        known = {size(atoms[i:j]): tuple(atoms[i:j]) for j in (1, 2, 3) for i in range(j)}
        return tuple(known.get(length, (Atom(length),)) if length != 1 else () for length in shape)

    def draw(self, dims: Sequence[Dim], bits: int | None = None) -> Field:
        """Draw a random number in each place of a tensor."""
        sizes = [1 if atom.axis else atom.size for dim in dims for atom in dim]
        words = self.append(Random((bits or RANDOM_BITS,) * int(np.prod(sizes))))
        self.ranges |= dict.fromkeys(words.tolist(), (0.0, 1.0))
        self._sums |= {word: (word, 0.0, 1.0) for word in words.tolist()}
        drawn = Field(words.reshape(sizes), tuple(dims))
        self.draws.append(drawn)
        return drawn

    def less(self, one: Operand, other: Operand) -> Field:
        """Compare: 1 where one is less than the other.

        A random number is compared so that it is 1 for random < limit, or its opposite: of a few
        bits, it meets a limit too often for whether they are equal not to matter.
        """
        if isinstance(one, Field) and isinstance(other, int | float):
            return self._less_random(one, other) or self.pairwise(Less, one, other)
        if isinstance(other, Field) and isinstance(one, int | float):
            less = self._less_random(other, one)
            return self.pairwise(Less, one, other) if less is None else self.opposite(less)
        return self.pairwise(Less, one, other)

    def _less_random(self, a: Field, limit: float) -> Field | None:
        """Compare random numbers, or their sums with a number, with a limit; None if they are not.

        They are scale * random + shift.
        """
        found = [self._sums[word] for word in a.listed if word in self._sums]
        if len({(shift, scale) for _, shift, scale in found}) != 1 or len(found) != a.words.size:
            return None
        _, shift, scale = found[0]
        edge = (float(limit) - shift) / scale  # random < edge, or not
        if not 0 < edge < 1:
            always = self.number(float((edge >= 1) is (scale > 0)))
            return replace(a, words=np.full(a.words.shape, always), dtype=torch.bool)
        drawn = replace(a, words=np.array([one[0] for one in found]).reshape(a.words.shape))
        less = self.pairwise(Less, drawn, edge)
        return less if scale > 0 else self.opposite(less)

    def forget_random(self, a: Field) -> None:
        """Compare random numbers as they are: those of few values are often equal to a limit."""
        for word in a.listed:
            self._sums.pop(word, None)

    def opposite(self, bit: Field) -> Field:
        """Return 1 - a bit."""
        known = [self._opposites.get(word) for word in bit.listed]
        if None not in known:
            words = np.array(known, np.int64).reshape(bit.words.shape)
            return replace(bit, words=words, dtype=torch.bool)
        found = self.pairwise(Subtract, 1.0, bit)
        self.bits.update(found.listed)
        for word, turned in zip(bit.listed, found.listed, strict=True):
            self._opposites |= {word: turned, turned: word}
        return replace(found, dtype=torch.bool)

    def is_bit(self, field: Field) -> bool:
        """Whether all its words are known to be 0 or 1."""
        return self.bits.issuperset(field.listed)

    def as_bit(self, operand: Operand) -> Operand:
        """Return 1 where an operand is not 0."""
        if not isinstance(operand, Field):
            return operand
        if self.is_bit(operand):
            return operand
        return self.differs(operand, 0.0)

    def differs(self, one: Operand, other: Operand) -> Field:
        """Return 1 where two operands differ."""
        return self.pairwise(Maximum, self.less(one, other), self.less(other, one))

    def select(self, condition: Operand, one: Operand, other: Operand) -> Field:
        """Select one where a condition is 1, else the other."""
        bit, a, b = self.joined(self.as_bit(condition), one, other)
        words = self.append(Select(bit.listed, a.listed, b.listed))
        if self.is_bit(a) and self.is_bit(b):
            self.bits |= set(words.tolist())
        dtypes = {
            part.dtype for part, given in ((a, one), (b, other)) if not isinstance(given, float)
        }
        dtype = torch.bool if dtypes == {torch.bool} else torch.float32
        return replace(a, words=words.reshape(bit.words.shape), dtype=dtype)

    def product(self, one: Operand, other: Operand) -> Field:
        """Multiply; where one is a bit, it masks."""
        bits = [isinstance(x, Field) and self.is_bit(x) for x in (one, other)]
        if all(bits):
            return self.pairwise(Minimum, one, other)
        if any(bits):
            mask, masked = (one, other) if bits[0] else (other, one)
            return self.select(mask, masked, 0.0)
        return self.pairwise(Multiply, one, other)

    def weigh(
        self,
        words: NDArray[np.int64],
        weight: Const,
        bias: Const | None = None,
        border: Border = "zero",
    ) -> NDArray[np.int64]:
        """Sum words (I,) up with weights (O, I, K) and biases (O,); return (O,)."""
        if bias is None:
            bias = Const(torch.zeros(len(weight.value)))
        index = len(self.operations)
        found = self.append(
            Linear(
                tuple(words.tolist()),
                weight.value.double().numpy(),
                bias.value.double().numpy(),
                border,
            )
        )
        if weight.formula or bias.formula:
            self.formulas[index] = weight, bias
        return found

    def sum_with(self, a: Field, matrix: Const, dims: Sequence[int], bias: float = 0.0) -> Field:
        """Sum channels up: matrix (O, I) on the dimensions that are given, which become one."""
        rest = [i for i in range(len(a.dims)) if i not in dims]
        for dim in dims:
            a = a.merged(dim)
        moved = a.permute([*rest, *dims])
        count = int(np.prod([size(a.dims[dim]) for dim in dims]))
        table = moved.words.reshape(-1, count)
        rows, outputs = len(table), len(matrix.value)
        weight = matrix.map(lambda m: torch.kron(torch.eye(rows), m.float())[:, :, None])
        offset = Const(torch.full((rows * outputs,), bias))
        words = self.weigh(table.ravel(), weight, offset).reshape(rows, outputs)
        assert weight.value.shape[2] == HERE
        kept = tuple(moved.dims[: len(rest)])
        shape = [1 if atom.axis else atom.size for dim in kept for atom in dim]
        return Field(words.reshape(*shape, outputs), (*kept, (Atom(outputs),)), a.dtype, a.margins)

    def extreme(self, a: Field, border: Border, *, largest: bool = True) -> Field:
        """Take the largest or smallest of the 3x3 cells around."""
        words = self.append(Window(a.listed, largest, border))
        if self.is_bit(a):
            self.bits |= set(words.tolist())
        return replace(a, words=words.reshape(a.words.shape), margins=(None, None))
