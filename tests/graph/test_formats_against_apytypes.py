"""Every rounding and overflow mode against APyTypes, which shares no code with this package.

APyTypes calls the seven roundings by the same names. Its RND_INF, too, is to nearest with ties away
from zero; its TRN_INF (the ceiling) and its TRN_MAG (which adds the sign bit even to whole numbers)
are none of ours. All its formats are signed, and it has no SAT_SYM: `expected_values` says by which
argument it speaks for unsigned formats and for SAT_SYM nevertheless.
"""

import itertools

import numpy as np
import pytest
from apytypes import APyFixed, APyFixedArray, OverflowMode, QuantizationMode
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scotopia.graph.qformat import Overflow, QFormat, Rounding, shift_right


@st.composite
def formats(draw: st.DrawFn, signed: bool | None = None) -> QFormat:
    bits, int_bits = draw(st.integers(1, 32)), draw(st.integers(-12, 12))
    return QFormat(int_bits, bits - int_bits, draw(st.booleans()) if signed is None else signed)


@st.composite
def sources(draw: st.DrawFn, target: QFormat) -> QFormat:
    """Signed formats a few bits wider or narrower than `target` on either side."""
    int_bits, frac_bits = (
        end + draw(st.integers(-3, 6)) for end in (target.int_bits, target.frac_bits)
    )
    bits = min(max(int_bits + frac_bits, 1), 32)
    return QFormat(bits - frac_bits, frac_bits)


def expected_values(
    source: QFormat, codes: list[int], target: QFormat, rounding: Rounding, overflow: Overflow
) -> NDArray[np.float64]:
    """Values that APyTypes makes of `codes`; floats hold them, none has more than 33 bits."""

    def cast(int_bits: int, overflow_mode: OverflowMode) -> APyFixedArray:
        fixed = APyFixedArray(codes, source.int_bits, source.frac_bits)
        return fixed.cast(int_bits, target.frac_bits, QuantizationMode[rounding], overflow_mode)

    if overflow is Overflow.WRAP:
        wrapped = cast(target.int_bits, OverflowMode.WRAP)
        if target.signed:
            return wrapped.to_numpy()
        # Wrapping drops the bits above and asks for no sign: what stays, read as it is stored.
        return target.values(np.array(wrapped.to_bits()))
    if not target.signed:
        # With one bit more, for the sign, the range ends where the unsigned one does. What remains
        # below zero saturates at zero, symmetrically or not.
        return np.maximum(cast(target.int_bits + 1, OverflowMode.SAT).to_numpy(), 0)
    saturated = cast(target.int_bits, OverflowMode.SAT).to_numpy()
    if overflow is Overflow.SAT_SYM:  # SAT, but for the lowest code
        return np.maximum(saturated, -target.values(np.array([target.highest])))
    return saturated


def assert_agree(
    source: QFormat, codes: list[int], target: QFormat, rounding: Rounding, overflow: Overflow
) -> None:
    expected = expected_values(source, codes, target, rounding, overflow)
    stored = np.array(codes, np.int64)
    ways = [target.quantize(source.values(stored), rounding, overflow)]
    if (shift := source.frac_bits - target.frac_bits) >= 0:
        ways.append(target.fit(shift_right(stored, shift, rounding), overflow))
    for found in ways:
        np.testing.assert_array_equal(target.values(found), expected, f"{source} to {target}")


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("rounding", Rounding)
@given(data=st.data(), target=formats())
def test_agrees_with_apytypes(
    rounding: Rounding, overflow: Overflow, data: st.DataObject, target: QFormat
) -> None:
    source = data.draw(sources(target))
    inside = st.integers(source.lowest, source.highest)
    codes = [source.lowest, *data.draw(st.lists(inside, max_size=20)), source.highest]
    assert_agree(source, codes, target, rounding, overflow)


#: Narrower, wider, shifted, of one bit, wholly below the source and wholly above it.
TARGETS = [(3, 4), (3, 2), (2, 1), (1, 3), (1, 0), (4, -2), (-1, 4), (-3, 9), (6, -4), (5, 6)]


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("rounding", Rounding)
def test_every_code_of_seven_bits_agrees_with_apytypes(
    rounding: Rounding, overflow: Overflow
) -> None:
    source = QFormat(3, 4)
    codes = list(range(source.lowest, source.highest + 1))
    for (int_bits, frac_bits), signed in itertools.product(TARGETS, (True, False)):
        assert_agree(source, codes, QFormat(int_bits, frac_bits, signed), rounding, overflow)


@pytest.mark.parametrize("rounding", Rounding)
@given(data=st.data(), target=formats(signed=True))
def test_one_number_of_apytypes_is_as_its_arrays(
    rounding: Rounding, data: st.DataObject, target: QFormat
) -> None:
    source = data.draw(sources(target))
    code = data.draw(st.integers(source.lowest, source.highest))
    found = target.quantize(source.values(np.array([code])), rounding, Overflow.SAT)
    expected = APyFixed(code, source.int_bits, source.frac_bits).cast(
        target.int_bits, target.frac_bits, QuantizationMode[rounding], OverflowMode.SAT
    )
    assert float(expected) == target.values(found)[0]
