"""The operations that a step of a cell is made of.

An operation computes some **words** of every cell, of words that came before it. A word is named by
its number: the words of a graph are counted through, operation after operation, so that a list of
numbers can take any words together in any order. A word stands for a real number; arithmetic is
exact, and only `Fit` rounds. Words of more than one cell meet in `Linear` and `Window` alone.

The same operations make a float rule, whose weights are any numbers and which has no `Fit`, and an
integer rule, whose words all have a known number of fraction bits; see `StepGraph.fractions`.
"""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .qformat import Overflow, QFormat, Rounding

#: Numbers of words.
Words = tuple[int, ...]

#: What a cell at the border sees beyond it: zeros, its own edge, the opposite side, or the grid
#: mirrored at its outermost cells.
Border = Literal["zero", "replicate", "wrap", "reflect"]

#: The cell alone, or the nine cells around it in reading order, of which it is the fifth.
HERE, AROUND = 1, 9


@dataclass(frozen=True, eq=False)
class Operation:
    """What computes some words of every cell."""

    @property
    def arguments(self) -> tuple[Words, ...]:
        """Words that it reads: its fields `condition`, `a` and `b`, as far as it has them."""
        return tuple(getattr(self, name) for name in ("condition", "a", "b") if hasattr(self, name))

    @property
    def count(self) -> int:
        """How many words it computes."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Channel(Operation):
    """Channels of the cell's state, before the step.

    Attributes
    ----------
    names
        Of each.
    formats
        Of each; None where the graph is one of floats.
    """

    names: tuple[str, ...]
    formats: tuple[QFormat | None, ...]

    def __post_init__(self) -> None:
        _require_equal(self.names, self.formats)

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.names)


@dataclass(frozen=True, eq=False)
class Input(Operation):
    """What a cell is given from outside, the same in every step until it is given anew.

    Attributes
    ----------
    names, formats
        As of `Channel`.
    """

    names: tuple[str, ...]
    formats: tuple[QFormat | None, ...]

    def __post_init__(self) -> None:
        _require_equal(self.names, self.formats)

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.names)


@dataclass(frozen=True, eq=False)
class Random(Operation):
    """Random numbers in [0, 1), each cell's own, drawn anew in each step.

    Attributes
    ----------
    bits
        Of each: it is a multiple of 2**-bits. All are drawn in the order of the graph, the highest
        bit of each first; see `lfsr.RowRegisters`.
    """

    bits: tuple[int, ...]

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.bits)


@dataclass(frozen=True, eq=False)
class Constant(Operation):
    """Numbers that are the same everywhere."""

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.values)


@dataclass(frozen=True, eq=False)
class Linear(Operation):
    """Weighted sums of words: out[o] = bias[o] + sum over i, k of weight[o, i, k] * a[i] at k.

    Attributes
    ----------
    a
        I words.
    weight
        (O, I, K) numbers; K is `HERE` or `AROUND`.
    bias
        (O,) numbers.
    border
        What `AROUND` sees beyond the border.
    """

    a: Words
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    border: Border = "zero"

    def __post_init__(self) -> None:
        shapes = [(len(self.bias), len(self.a), taps) for taps in (HERE, AROUND)]
        if self.bias.ndim != 1 or self.weight.shape not in shapes:
            raise ValueError(f"weight has shape {self.weight.shape}, not one of {shapes}")

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.bias)


@dataclass(frozen=True, eq=False)
class _Pairwise(Operation):
    """Of two words, or more pairs of them."""

    a: Words
    b: Words

    def __post_init__(self) -> None:
        _require_equal(self.a, self.b)

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.a)


class Add(_Pairwise):
    """Sums: a + b."""


class Subtract(_Pairwise):
    """Differences: a - b."""


class Multiply(_Pairwise):
    """Products: a * b."""


class Minimum(_Pairwise):
    """The smaller: of two bits, both."""


class Maximum(_Pairwise):
    """The larger: of two bits, either."""


class Less(_Pairwise):
    """1 where a < b, else 0."""


@dataclass(frozen=True, eq=False)
class Select(Operation):
    """The word `a` where the bit `condition` is 1, else `b`."""

    condition: Words
    a: Words
    b: Words

    def __post_init__(self) -> None:
        _require_equal(self.condition, self.a, self.b)

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.a)


@dataclass(frozen=True, eq=False)
class Window(Operation):
    """The largest of a word in the 3x3 cells around, or the smallest.

    Attributes
    ----------
    largest
        Which of the two.
    border
        See `Linear`. Where cells beyond the border shall not count, it is "replicate": a cell of
        the edge is there twice.
    """

    a: Words
    largest: bool = True
    border: Border = "replicate"

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.a)


@dataclass(frozen=True, eq=False)
class Fit(Operation):
    """Words brought to formats: first rounded, then into range."""

    a: Words
    formats: tuple[QFormat, ...]
    rounding: Rounding = Rounding.RND
    overflow: Overflow = Overflow.SAT

    def __post_init__(self) -> None:
        _require_equal(self.a, self.formats)

    @property
    def count(self) -> int:
        """See `Operation`."""
        return len(self.a)


#: All kinds, in the order in which they are explained. A backend that lacks one fails a test.
OPERATIONS: tuple[type[Operation], ...] = (
    *(Channel, Input, Random, Constant),
    *(Linear, Window),
    *(Add, Subtract, Multiply, Minimum, Maximum, Less, Select),
    Fit,
)


def _require_equal(*fields: Sized) -> None:
    lengths = [len(one) for one in fields]
    if len(set(lengths)) > 1:
        raise ValueError(f"an operation has {lengths} words where it needs as many of each")


def fraction(value: float) -> int:
    """Return the fewest fraction bits that hold a number: 0.75 has 2, 12 has -2, 0 has 0."""
    numerator, denominator = float(value).as_integer_ratio()
    if numerator == 0:
        return 0
    zeros = (numerator & -numerator).bit_length() - 1
    return denominator.bit_length() - 1 - zeros


def fractions(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return `fraction` of each of some numbers."""
    mantissa, exponent = np.frexp(values)
    codes = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = codes & -codes
    zeros = np.frexp(lowest.astype(np.float64))[1] - 1
    found: NDArray[np.int64] = np.where(codes == 0, 0, 53 - exponent - zeros).astype(np.int64)
    return found
