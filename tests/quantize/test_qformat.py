from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scotopia.model.errors import InputError
from scotopia.quantize.qformat import Overflow, QFormat, Rounding, required_bits, shift_right

RoundExactly = Callable[[Fraction, Rounding], int]


@st.composite
def formats(draw: st.DrawFn) -> QFormat:
    bits, int_bits = draw(st.integers(1, 32)), draw(st.integers(-8, 12))
    return QFormat(int_bits, bits - int_bits, draw(st.booleans()))


def fit_exactly(code: int, format: QFormat, overflow: Overflow) -> int:
    if overflow is Overflow.WRAP:
        code %= 2**format.bits
        return code - 2**format.bits if code > format.highest else code
    lowest = -format.highest if overflow is Overflow.SAT_SYM else format.lowest
    return (
        sorted([lowest, code, format.highest])[1]
        if format.signed
        else max(0, min(code, format.highest))
    )


@pytest.mark.parametrize(
    ("format", "lowest", "highest"),
    [
        (QFormat(1, 7), -128, 127),
        (QFormat(8, 0, signed=False), 0, 255),
        (QFormat(1, 0), -1, 0),
        (QFormat(1, 0, signed=False), 0, 1),
        (QFormat(-2, 5), -4, 3),
        (QFormat(-2, 5, signed=False), 0, 7),
        (QFormat(10, -6), -8, 7),
        (QFormat(16, 16), -(2**31), 2**31 - 1),
    ],
)
def test_range_of_codes(format: QFormat, lowest: int, highest: int) -> None:
    assert (format.lowest, format.highest) == (lowest, highest)


def test_int_bits_count_the_sign() -> None:
    np.testing.assert_array_equal(QFormat(2, 2).values(np.array([-8, -1, 7])), [-2, -0.25, 1.75])


@pytest.mark.parametrize(
    ("rounding", "expected"),  # of -2.5, -1.5, -1.25, -0.5, 0.5, 1.25, 1.5, 2.5
    [
        (Rounding.TRN, [-3, -2, -2, -1, 0, 1, 1, 2]),
        (Rounding.TRN_ZERO, [-2, -1, -1, 0, 0, 1, 1, 2]),
        (Rounding.RND, [-2, -1, -1, 0, 1, 1, 2, 3]),
        (Rounding.RND_ZERO, [-2, -1, -1, 0, 0, 1, 1, 2]),
        (Rounding.RND_INF, [-3, -2, -1, -1, 1, 1, 2, 3]),
        (Rounding.RND_MIN_INF, [-3, -2, -1, -1, 0, 1, 1, 2]),
        (Rounding.RND_CONV, [-2, -2, -1, 0, 0, 1, 2, 2]),
    ],
)
def test_rounding_by_hand(rounding: Rounding, expected: list[int]) -> None:
    values = np.array([-2.5, -1.5, -1.25, -0.5, 0.5, 1.25, 1.5, 2.5])
    np.testing.assert_array_equal(QFormat(8, 0).quantize(values, rounding), expected)
    np.testing.assert_array_equal(shift_right((values * 4).astype(np.int64), 2, rounding), expected)


@pytest.mark.parametrize("rounding", Rounding)
@given(
    format=formats(),
    overflow=st.sampled_from(Overflow),
    numerator=st.integers(-(2**24), 2**24),
    below=st.integers(-2, 4),
)
def test_quantize_rounds_and_fits(
    rounding: Rounding,
    round_exactly: RoundExactly,
    format: QFormat,
    overflow: Overflow,
    numerator: int,
    below: int,
) -> None:
    # The value lies `below` bits under the format's last one: ties and their neighbours are common.
    value = float(Fraction(numerator) * Fraction(2) ** -(format.frac_bits + below))
    code = round_exactly(Fraction(value) * Fraction(2) ** format.frac_bits, rounding)
    found = format.quantize(np.array([value]), rounding, overflow)
    assert found.tolist() == [fit_exactly(code, format, overflow)]


@pytest.mark.parametrize("rounding", Rounding)
@given(codes=st.lists(st.integers(-(2**40), 2**40), min_size=1), shift=st.integers(0, 20))
def test_shift_right_divides_and_rounds(
    rounding: Rounding, round_exactly: RoundExactly, codes: list[int], shift: int
) -> None:
    expected = [round_exactly(Fraction(code, 2**shift), rounding) for code in codes]
    assert shift_right(np.array(codes), shift, rounding).tolist() == expected
    assert shift_right(np.array(codes), np.full(len(codes), shift), rounding).tolist() == expected


@pytest.mark.parametrize("rounding", Rounding)
@given(codes=st.lists(st.integers(-(2**62), 2**62)))
def test_shift_by_nothing_changes_nothing(rounding: Rounding, codes: list[int]) -> None:
    assert shift_right(np.array(codes, np.int64), 0, rounding).tolist() == codes


def test_every_code_can_have_its_own_shift() -> None:
    codes, shifts = np.array([7, 7, 7]), np.array([0, 1, 2])
    np.testing.assert_array_equal(shift_right(codes, shifts, Rounding.RND), [7, 4, 2])


@given(
    format=formats(),
    overflow=st.sampled_from(Overflow),
    codes=st.lists(st.integers(-(2**62), 2**62)),
)
def test_fit_brings_any_code_into_range(
    format: QFormat, overflow: Overflow, codes: list[int]
) -> None:
    expected = [fit_exactly(code, format, overflow) for code in codes]
    assert format.fit(np.array(codes, np.int64), overflow).tolist() == expected


@given(
    format=formats(),
    rounding=st.sampled_from(Rounding),
    overflow=st.sampled_from([Overflow.WRAP, Overflow.SAT]),
    data=st.data(),
)
def test_values_of_codes_quantize_to_the_codes(
    format: QFormat, rounding: Rounding, overflow: Overflow, data: st.DataObject
) -> None:
    inside = st.integers(format.lowest, format.highest)
    codes = [format.lowest, *data.draw(st.lists(inside)), format.highest]
    values = format.values(np.array(codes))
    assert format.quantize(values, rounding, overflow).tolist() == codes


@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
def test_required_bits_are_enough_and_no_more(one: int, other: int) -> None:
    lowest, highest = sorted([one, other])
    bits = required_bits(lowest, highest)
    assert -(2 ** (bits - 1)) <= lowest <= highest < 2 ** (bits - 1)
    assert bits == 1 or not (-(2 ** (bits - 2)) <= lowest <= highest < 2 ** (bits - 2))


@pytest.mark.parametrize(
    ("int_bits", "frac_bits", "signed", "sentence"),
    [
        (0, 0, True, "format Q0.0 has 0 bits: choose int_bits + frac_bits from 1 to 32"),
        (-3, 2, False, "format UQ-3.2 has -1 bits: choose int_bits + frac_bits from 1 to 32"),
        (1, 32, True, "format Q1.32 has 33 bits: choose int_bits + frac_bits from 1 to 32"),
    ],
)
def test_format_needs_1_to_32_bits(
    int_bits: int, frac_bits: int, signed: bool, sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        QFormat(int_bits, frac_bits, signed)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputError) as caught:
        QFormat(1, 7).quantize(np.array([0.0, value]))
    assert str(caught.value) == "a value for Q1.7 is not finite: remove NaN and infinity first"
