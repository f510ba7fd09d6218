"""A sum in the making."""

from dataclasses import dataclass

from scotopia.graph.intervals import ZERO, Interval

from ..program import Word
from .cells import Cells
from .expression import Term
from .jobs import Held, Total


@dataclass(frozen=True)
class Digit:
    """A summand: +/- 2**position times a term."""

    term: Term
    position: int
    sign: int
    interval: Interval


@dataclass
class Sum:
    """A sum in the making, in two's complement.

    Attributes
    ----------
    total
        What it is to be.
    held
        How its result is stored.
    digits
        Those that are still to be added.
    shift
        Bits below the result.
    dropped
        Of them, those that are dropped before anything is rounded.
    known, late
        What is added for rounding and range, beside its constant: at first; when all else is.
    offset
        Of `known` or `late`, what makes a signed result unsigned.
    plane, bits, signed
        Where it is by now. A sum that is a word alone is that word, and may be unsigned.
    owned
        Its planes: the first, and how many; None for another word's.
    limit
        More bits than this it never needs.
    low, high
        What it can be by now.
    final
        What it can be when all is added but `late`.
    """

    total: Total
    held: Held
    digits: list[Digit]
    shift: int
    dropped: int
    known: int = 0
    late: int = 0
    offset: int = 0
    plane: int = 0
    bits: int = 0
    signed: bool = True
    owned: tuple[int, int] | None = None
    limit: int = 0
    low: int = 0
    high: int = 0
    final: Interval = ZERO

    def extend(self, cells: Cells, bits: int) -> None:
        """Repeat its sign, so that it has this many bits at least, if its planes are its own."""
        if self.owned and self.bits < bits:
            top = Word(self.plane + self.bits - 1, 1, signed=True)
            cells.copy(top, Word(self.plane + self.bits, bits - self.bits, signed=True))
            self.bits = bits
