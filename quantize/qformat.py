"""Fixed-point formats, with the names and the meaning of `ap_fixed`.

A **code** is the stored integer, a **value** the real number that it stands for:
value = code * 2**-frac_bits. Source of the modes: AMD Vitis HLS user guide UG1399, "Quantization
Modes" and "Overflow Modes".
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scotopia.model.errors import InputError

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
    """What becomes of a code that does not fit."""

    WRAP = "WRAP"  #: drop the bits above
    SAT = "SAT"  #: the nearest code that fits
    SAT_SYM = "SAT_SYM"  #: as SAT, but a signed code never is the lowest one


@dataclass(frozen=True, order=True)
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
    ) -> NDArray[np.int64]:
        """Codes of real `values` (any shape, |value| * 2**frac_bits below 2**40).

        Raises
        ------
        InputError
            If a value is not finite.
        """
        if not np.isfinite(values).all():
            raise InputError(f"a value for {self} is not finite: remove NaN and infinity first")
        scaled = np.ldexp(values.astype(np.float64), self.frac_bits)
        floor = np.floor(scaled)
        up = _round_up(rounding, floor, scaled - floor, 0.5)
        return self.fit(floor.astype(np.int64) + up, overflow)

    def values(self, codes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Values of `codes`, exactly."""
        return np.ldexp(codes.astype(np.float64), -self.frac_bits)

    def fit(self, codes: IntArray, overflow: Overflow) -> IntArray:
        """Bring integers of any size into the format's range."""
        if overflow is Overflow.WRAP:
            return (codes - self.lowest) % (1 << self.bits) + self.lowest
        lowest = self.lowest + (overflow is Overflow.SAT_SYM and self.signed)
        return np.clip(codes, lowest, self.highest)


def shift_right(codes: IntArray, shift: IntArray | int, rounding: Rounding) -> IntArray:
    """Return codes / 2**shift, rounded to an integer; shift at least 0, broadcast over codes."""
    floor = codes >> shift
    rest = codes - (floor << shift)  # 0 to 2**shift - 1
    half = ((1 << shift) >> 1) | (shift == 0)  # nothing is half of nothing: no rest rounds up
    rounded: IntArray = floor + _round_up(rounding, floor, rest, half)
    return rounded


def _round_up(rounding: Rounding, floor: Any, rest: Any, half: Any) -> Any:
    """Whether floor + rest goes to floor + 1; `half` of a unit is where ties are."""
    match rounding:
        case Rounding.TRN:
            return rest < 0
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
