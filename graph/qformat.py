"""Fixed-point formats, with the names and the meaning of `ap_fixed`.

A **code** is the stored integer, a **value** the real number that it stands for:
value = code * 2**-frac_bits. Source of the modes: AMD Vitis HLS user guide UG1399, "Quantization
Modes" and "Overflow Modes": all seven of the first, and three of the five others; SAT_ZERO and
WRAP_SM are not here.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

#: Codes of any shape.
IntArray = NDArray[np.int64]


class Rounding(StrEnum):
    """What becomes of bits below the last one kept."""

    TRN = "TRN"  #: towards minus infinity (drop them)
    TRN_ZERO = "TRN_ZERO"  #: towards zero
    RND = "RND"  #: to nearest, ties towards plus infinity
    RND_ZERO = "RND_ZERO"  #: to nearest, ties towards zero
    RND_INF = "RND_INF"  #: to nearest, ties away from zero
    RND_MIN_INF = "RND_MIN_INF"  #: to nearest, ties towards minus infinity
    RND_CONV = "RND_CONV"  #: to nearest, ties to even


class Overflow(StrEnum):
    """What becomes of a code that does not fit.

    A signed code of one bit that saturates symmetrically is 0, by the words of UG1399; AMD's own
    ap_fixed_base.h makes -1 of it.
    """

    WRAP = "WRAP"  #: drop the bits above
    SAT = "SAT"  #: the nearest code that fits
    SAT_SYM = "SAT_SYM"  #: as SAT, but a signed code never is the lowest one


@dataclass(frozen=True)
class QFormat:
    """A fixed-point format.

    Attributes
    ----------
    int_bits
        Bits before the binary point, **the sign included**, as in `ap_fixed`; may be negative.
    frac_bits
        Bits behind it; may be negative. At least one bit must remain in all, 32 at most.
    signed
        Whether codes are two's complement.
    """

    int_bits: int
    frac_bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 32:
            raise InputError(
                f"format {self} has {self.bits} bits: choose int_bits + frac_bits from 1 to 32"
            )

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.int_bits + self.frac_bits

    @property
    def lowest(self) -> int:
        """Lowest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """Highest code."""
        return (1 << (self.bits - self.signed)) - 1

    def __str__(self) -> str:
        return f"{'Q' if self.signed else 'UQ'}{self.int_bits}.{self.frac_bits}"

    def quantize(
        self,
        values: NDArray[np.floating],
        rounding: Rounding = Rounding.RND,
        overflow: Overflow = Overflow.SAT,
    ) -> IntArray:
        """Codes of real `values` of any shape: first rounded, then brought into range.

        Exact for every finite value, as long as neither 2**int_bits nor value * 2**frac_bits is
        subnormal.

        Raises
        ------
        InputError
            If a value is not finite.
        """
        values = values.astype(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            raise InputError(
                f"value {values[~finite][0]} has no code in {self}: remove NaN and infinity first"
            )
        # No integer holds the largest floats: drop whole turns, or what saturates in any case.
        turn = np.ldexp(1.0, self.int_bits)
        wraps = overflow is Overflow.WRAP
        near = np.fmod(values, turn) if wraps else np.clip(values, -turn, turn)
        # In quarters of a code, the last bit set if anything lies below it: a float's own remainder
        # may round to a tie, as 1 - 0.49999999999999994 does.
        doubled = np.ldexp(near, self.frac_bits + 1)
        halves = np.floor(doubled)
        quarters = 2 * halves.astype(np.int64) + (halves < doubled)
        return self.fit(shift_right(quarters, 2, rounding), overflow)

    def values(self, codes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Values of `codes`, exactly."""
        return np.ldexp(codes.astype(np.float64), -self.frac_bits)

    def fit(self, codes: IntArray, overflow: Overflow) -> IntArray:
        """Bring integers into the format's range; any that 64 bits hold."""
        if overflow is Overflow.WRAP:
            return (codes - self.lowest) % (1 << self.bits) + self.lowest
        lowest = self.lowest + (overflow is Overflow.SAT_SYM and self.signed)
        return np.clip(codes, lowest, self.highest)


def parse_format(text: str) -> QFormat:
    """Return the format that `text` names, as in "Q1.7" or "UQ0.8": the inverse of `str`.

    Raises
    ------
    InputError
        If it names none.
    """
    match = re.fullmatch(r"(U?)Q(0|-?[1-9][0-9]{0,3})\.(0|-?[1-9][0-9]{0,3})", text)
    if match is None:
        raise InputError(
            f"format {text!r} is unknown: write int_bits.frac_bits after Q (signed) or UQ "
            "(unsigned), such as Q1.7 or UQ0.8"
        )
    unsigned, int_bits, frac_bits = match.groups()
    return QFormat(int(int_bits), int(frac_bits), not unsigned)


def shift_right(codes: IntArray, shift: IntArray | int, rounding: Rounding) -> IntArray:
    """Return codes / 2**shift, rounded to an integer; shift at least 0, broadcast over codes.

    Exact for every code at shifts up to 63, and beyond for codes of magnitude below 2**62.
    """
    shift = np.minimum(shift, np.int64(63))  # what is less than half a code there stays so
    floor = codes >> shift
    rest = codes & ~(-1 << shift)  # 0 to 2**shift - 1
    half = 1 << np.maximum(shift - 1, 0)  # nothing is half of nothing: no rest rounds up
    rounded: IntArray = floor + round_up(rounding, floor, rest, half)
    return rounded


def round_up(rounding: Rounding, floor: Any, rest: Any, half: Any) -> Any:
    """Whether floor + rest goes to floor + 1; `half` of a unit is where ties are.

    Of integers, or of floats, arrays or tensors, that hold `rest` exactly.
    """
    match rounding:
        case Rounding.TRN:
            return False
        case Rounding.TRN_ZERO:
            return (floor < 0) & (rest > 0)
        case Rounding.RND:
            return rest >= half
        case Rounding.RND_MIN_INF:
            return rest > half
        case Rounding.RND_ZERO:
            return (rest > half) | ((rest == half) & (floor < 0))
        case Rounding.RND_INF:
            return (rest > half) | ((rest == half) & (floor >= 0))
        case Rounding.RND_CONV:
            return (rest > half) | ((rest == half) & (floor % 2 == 1))


def required_bits(lowest: int, highest: int) -> int:
    """Width of the narrowest signed format that holds both."""
    return max((~end if end < 0 else end).bit_length() for end in (lowest, highest)) + 1
