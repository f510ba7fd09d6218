from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import (
    Overflow,
    QFormat,
    Rounding,
    parse_format,
    required_bits,
    shift_right,
)

RoundExactly = Callable[[Fraction, Rounding], int]

INT64 = st.integers(-(2**63), 2**63 - 1)
NEAREST = [r for r in Rounding if r.startswith("RND")]


@st.composite
def formats(draw: st.DrawFn) -> QFormat:
    bits, int_bits = draw(st.integers(1, 32)), draw(st.integers(-40, 40))
    return QFormat(int_bits, bits - int_bits, draw(st.booleans()))


@st.composite
def values_near(draw: st.DrawFn, format: QFormat) -> float:
    """Values up to twice a format's range, a few bits finer than its codes: ties are common."""
    below = draw(st.integers(-2, 4))
    limit = 2 ** max(format.bits + below + 1, 0)
    return float(np.ldexp(draw(st.integers(-limit, limit)), -format.frac_bits - below))


@st.composite
def quotients(draw: st.DrawFn) -> tuple[int, int]:
    """A code, and a shift that often leaves it at a tie, next to one, or whole."""
    shift = draw(st.integers(0, 63))
    half = 2**shift // 2
    rest = draw(st.sampled_from([0, 1, half - 1, half, half + 1]) | st.integers(0, 2**shift - 1))
    whole = draw(st.integers(-(2**63) >> shift, (2**63 - 1) >> shift))
    return (whole << shift) + rest % 2**shift, shift


def shifted(code: int, shift: int, rounding: Rounding) -> int:
    return int(shift_right(np.array([code]), shift, rounding)[0])


def quantized(
    format: QFormat, value: float, rounding: Rounding, overflow: Overflow = Overflow.SAT
) -> int:
    return int(format.quantize(np.array([value]), rounding, overflow)[0])


def fitted(format: QFormat, code: int, overflow: Overflow) -> int:
    return int(format.fit(np.array([code]), overflow)[0])


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
        (QFormat(16, 16, signed=False), 0, 2**32 - 1),
    ],
)
def test_range_of_codes(format: QFormat, lowest: int, highest: int) -> None:
    assert (format.lowest, format.highest) == (lowest, highest)


def test_int_bits_count_the_sign() -> None:
    np.testing.assert_array_equal(QFormat(2, 2).values(np.array([-8, -1, 7])), [-2, -0.25, 1.75])


@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
@example(-128, 127)
@example(-129, 128)
def test_required_bits_are_enough_and_no_more(one: int, other: int) -> None:
    lowest, highest = sorted([one, other])
    bits = required_bits(lowest, highest)
    assert -(2 ** (bits - 1)) <= lowest <= highest < 2 ** (bits - 1)
    assert bits == 1 or not (-(2 ** (bits - 2)) <= lowest <= highest < 2 ** (bits - 2))


@given(formats())
def test_parsing_inverts_printing(format: QFormat) -> None:
    assert parse_format(str(format)) == format


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("Q1.7", QFormat(1, 7)),
        ("UQ0.8", QFormat(0, 8, signed=False)),
        ("Q-3.12", QFormat(-3, 12)),
        ("UQ10.-6", QFormat(10, -6, signed=False)),
    ],
)
def test_format_is_read_from_text(text: str, format: QFormat) -> None:
    assert parse_format(text) == format


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


@pytest.mark.parametrize(
    ("rounding", "of_positive", "of_negative"),
    [
        (Rounding.RND, 1.5, -1.0),
        (Rounding.RND_ZERO, 1.0, -1.0),
        (Rounding.RND_MIN_INF, 1.0, -1.5),
        (Rounding.RND_INF, 1.5, -1.5),
    ],
)
def test_rounding_examples_of_ug1399(
    rounding: Rounding, of_positive: float, of_negative: float
) -> None:
    format = QFormat(2, 1)  # ap_fixed<3, 2>
    codes = format.quantize(np.array([1.25, -1.25]), rounding)
    assert format.values(codes).tolist() == [of_positive, of_negative]


@pytest.mark.parametrize("rounding", Rounding)
@given(st.lists(quotients(), min_size=1))
@example([(-(2**63), 63), (-(2**62), 63), (2**62, 63), (2**63 - 1, 63), (2**63 - 1, 0)])
def test_shift_right_is_exact_for_any_code(
    rounding: Rounding, round_exactly: RoundExactly, of: list[tuple[int, int]]
) -> None:
    codes, shifts = zip(*of, strict=True)
    expected = [round_exactly(Fraction(code, 2**shift), rounding) for code, shift in of]
    assert shift_right(np.array(codes), np.array(shifts), rounding).tolist() == expected
    assert shifted(codes[0], shifts[0], rounding) == expected[0]


@pytest.mark.parametrize("rounding", Rounding)
@given(code=st.integers(-(2**62) + 1, 2**62 - 1), shift=st.integers(64, 200))
def test_shift_beyond_the_word_is_exact(
    rounding: Rounding, round_exactly: RoundExactly, code: int, shift: int
) -> None:
    assert shifted(code, shift, rounding) == round_exactly(Fraction(code, 2**shift), rounding)


@pytest.mark.parametrize("rounding", Rounding)
@given(st.lists(INT64))
def test_shift_by_nothing_changes_nothing(rounding: Rounding, codes: list[int]) -> None:
    assert shift_right(np.array(codes, np.int64), 0, rounding).tolist() == codes


@given(quotients())
def test_truncation_errs_by_less_than_one_unit(of: tuple[int, int]) -> None:
    exact = Fraction(of[0], 2 ** of[1])
    assert 0 <= exact - shifted(*of, Rounding.TRN) < 1
    assert 0 <= abs(exact) - abs(shifted(*of, Rounding.TRN_ZERO)) < 1


@pytest.mark.parametrize("rounding", NEAREST)
@given(quotients())
def test_rounding_to_nearest_errs_by_half_a_unit_at_most(
    rounding: Rounding, of: tuple[int, int]
) -> None:
    assert abs(Fraction(of[0], 2 ** of[1]) - shifted(*of, rounding)) <= Fraction(1, 2)


@given(quotients())
def test_only_ties_tell_the_nearest_modes_apart(of: tuple[int, int]) -> None:
    code, shift = of
    is_tie = shift > 0 and code % 2**shift == 2**shift // 2
    assert len({shifted(code, shift, rounding) for rounding in NEAREST}) == 1 + is_tie


@given(st.integers(-(2**40), 2**40), st.integers(1, 20))
def test_ties_go_where_the_mode_says(below: int, shift: int) -> None:
    tie, above = (2 * below + 1) << (shift - 1), below + 1
    assert shifted(tie, shift, Rounding.RND) == above
    assert shifted(tie, shift, Rounding.RND_MIN_INF) == below
    assert shifted(tie, shift, Rounding.RND_ZERO) == min(below, above, key=abs)
    assert shifted(tie, shift, Rounding.RND_INF) == max(below, above, key=abs)
    assert shifted(tie, shift, Rounding.RND_CONV) == below + below % 2


@pytest.mark.parametrize(
    ("rounding", "mirrored"),
    [
        (Rounding.TRN_ZERO, Rounding.TRN_ZERO),
        (Rounding.RND_ZERO, Rounding.RND_ZERO),
        (Rounding.RND_INF, Rounding.RND_INF),
        (Rounding.RND_CONV, Rounding.RND_CONV),
        (Rounding.RND, Rounding.RND_MIN_INF),
    ],
)
@given(quotients())
def test_rounding_mirrors_at_zero(
    rounding: Rounding, mirrored: Rounding, of: tuple[int, int]
) -> None:
    code, shift = of
    assume(code > -(2**63))
    assert shifted(-code, shift, rounding) == -shifted(code, shift, mirrored)


@pytest.mark.parametrize("rounding", [Rounding.TRN, Rounding.TRN_ZERO])
@given(code=INT64, first=st.integers(0, 31), second=st.integers(0, 31))
def test_truncating_twice_is_truncating_once(
    rounding: Rounding, code: int, first: int, second: int
) -> None:
    twice = shifted(shifted(code, first, rounding), second, rounding)
    assert twice == shifted(code, first + second, rounding)


@pytest.mark.parametrize("rounding", NEAREST)
def test_rounding_to_nearest_twice_is_not_once(rounding: Rounding) -> None:
    once, twice = [], []
    for code in (-9, -7, 7, 9):
        once.append(shifted(code, 4, rounding))
        twice.append(shifted(shifted(code, 2, rounding), 2, rounding))
    assert once == [-1, 0, 0, 1] != twice


@pytest.mark.parametrize(
    ("overflow", "signed", "value", "expected"),
    [
        (Overflow.SAT, True, 19, 7),
        (Overflow.SAT, True, -19, -8),
        (Overflow.SAT, False, 19, 15),
        (Overflow.SAT, False, -19, 0),
        (Overflow.SAT_SYM, True, 19, 7),
        (Overflow.SAT_SYM, True, -19, -7),
        (Overflow.SAT_SYM, False, 19, 15),
        (Overflow.SAT_SYM, False, -19, 0),
        (Overflow.WRAP, True, 31, -1),
        (Overflow.WRAP, True, -19, -3),
        (Overflow.WRAP, False, 19, 3),
        (Overflow.WRAP, False, -19, 13),
    ],
)
def test_overflow_examples_of_ug1399(
    overflow: Overflow, signed: bool, value: int, expected: int
) -> None:
    format = QFormat(4, 0, signed)  # ap_fixed<4, 4> or ap_ufixed<4, 4>
    assert quantized(format, value, Rounding.RND, overflow) == expected


@pytest.mark.parametrize("overflow", Overflow)
@given(format=formats(), codes=st.lists(INT64))
def test_fit_brings_any_code_into_range(
    overflow: Overflow, format: QFormat, codes: list[int]
) -> None:
    expected = [fit_exactly(code, format, overflow) for code in codes]
    assert format.fit(np.array(codes, np.int64), overflow).tolist() == expected


@given(format=formats(), one=INT64, other=INT64)
def test_wrap_is_arithmetic_modulo_two_to_the_bits(format: QFormat, one: int, other: int) -> None:
    a, b = (np.array([code]) for code in (one, other))
    wrapped_a, wrapped_b = (format.fit(code, Overflow.WRAP) for code in (a, b))
    assert (int(wrapped_a[0]) - one) % 2**format.bits == 0
    for whole, parts in ((a + b, wrapped_a + wrapped_b), (a * b, wrapped_a * wrapped_b)):
        assert format.fit(whole, Overflow.WRAP) == format.fit(parts, Overflow.WRAP)


@given(format=formats(), code=st.integers(-(2**33), 2**33))
def test_sat_sym_is_sat_without_the_lowest_signed_code(format: QFormat, code: int) -> None:
    plain = fitted(format, code, Overflow.SAT)
    is_lowest = format.signed and plain == format.lowest
    assert fitted(format, code, Overflow.SAT_SYM) == plain + is_lowest


@given(format=formats(), code=st.integers(-(2**33), 2**33))
def test_signed_sat_sym_mirrors_at_zero(format: QFormat, code: int) -> None:
    assume(format.signed)
    mirrored = fitted(format, -code, Overflow.SAT_SYM)
    assert mirrored == -fitted(format, code, Overflow.SAT_SYM)


@pytest.mark.parametrize("overflow", Overflow)
@given(format=formats(), more=st.integers(0, 31), code=INT64)
def test_wider_range_on_the_way_changes_nothing(
    overflow: Overflow, format: QFormat, more: int, code: int
) -> None:
    wider = QFormat(min(more, 32 - format.bits) + format.int_bits, format.frac_bits, format.signed)
    by_the_way = fitted(format, fitted(wider, code, overflow), overflow)
    assert by_the_way == fitted(format, code, overflow)


@pytest.mark.parametrize("rounding", Rounding)
@given(data=st.data(), format=formats(), overflow=st.sampled_from(Overflow))
def test_quantize_rounds_and_fits(
    rounding: Rounding,
    round_exactly: RoundExactly,
    data: st.DataObject,
    format: QFormat,
    overflow: Overflow,
) -> None:
    value = data.draw(values_near(format))
    code = round_exactly(Fraction(value) * Fraction(2) ** format.frac_bits, rounding)
    assert quantized(format, value, rounding, overflow) == fit_exactly(code, format, overflow)


@pytest.mark.parametrize("overflow", Overflow)
@given(
    rounding=st.sampled_from(Rounding),
    format=formats(),
    # Not so small that scaling by 2**-39 makes it subnormal.
    value=st.floats(allow_nan=False, allow_infinity=False).filter(
        lambda value: value == 0 or abs(value) > 2.0**-980
    ),
)
def test_quantize_is_exact_for_any_float(
    overflow: Overflow,
    round_exactly: RoundExactly,
    rounding: Rounding,
    format: QFormat,
    value: float,
) -> None:
    code = round_exactly(Fraction(value) * Fraction(2) ** format.frac_bits, rounding)
    assert quantized(format, value, rounding, overflow) == fit_exactly(code, format, overflow)


@pytest.mark.parametrize("rounding", NEAREST)
@pytest.mark.parametrize("tie", [-1.5, -0.5, 0.5, 1.5])
def test_neighbours_of_a_tie_are_no_ties(rounding: Rounding, tie: float) -> None:
    below, above = np.nextafter(tie, -np.inf), np.nextafter(tie, np.inf)
    codes = QFormat(8, 0).quantize(np.array([below, above]), rounding)
    assert codes.tolist() == [tie - 0.5, tie + 0.5]


@pytest.mark.parametrize("rounding", Rounding)
@given(
    format=formats(),
    overflow=st.sampled_from(Overflow),
    code=st.integers(-(2**52), 2**52),
    shift=st.integers(0, 60),
)
def test_shift_right_equals_quantize_of_the_exact_value(
    rounding: Rounding, format: QFormat, overflow: Overflow, code: int, shift: int
) -> None:
    value = float(np.ldexp(code, -format.frac_bits - shift))
    expected = fitted(format, shifted(code, shift, rounding), overflow)
    assert quantized(format, value, rounding, overflow) == expected


@pytest.mark.parametrize("overflow", Overflow)
@given(data=st.data(), format=formats(), rounding=st.sampled_from(Rounding))
def test_quantize_is_idempotent(
    overflow: Overflow, data: st.DataObject, format: QFormat, rounding: Rounding
) -> None:
    values = np.array(data.draw(st.lists(values_near(format), min_size=1)))
    codes = format.quantize(values, rounding, overflow)
    again = format.quantize(format.values(codes), rounding, overflow)
    np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize("rounding", Rounding)
@given(data=st.data(), format=formats(), overflow=st.sampled_from([Overflow.SAT, Overflow.SAT_SYM]))
def test_quantize_keeps_order_unless_it_wraps(
    rounding: Rounding, data: st.DataObject, format: QFormat, overflow: Overflow
) -> None:
    values = np.sort(data.draw(st.lists(values_near(format), min_size=2)))
    assert (np.diff(format.quantize(values, rounding, overflow)) >= 0).all()


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
    with pytest.raises(InputError) as caught:
        parse_format(f"{'Q' if signed else 'UQ'}{int_bits}.{frac_bits}")
    assert str(caught.value) == sentence


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("overflow", Overflow)
def test_value_that_is_not_finite_is_refused(overflow: Overflow, value: float) -> None:
    for values in (np.array([0.0, value]), np.array(value, np.float32)):
        with pytest.raises(InputError) as caught:
            QFormat(1, 7).quantize(values, overflow=overflow)
        assert str(caught.value) == (
            f"value {value} has no code in Q1.7: remove NaN and infinity first"
        )


@pytest.mark.parametrize(
    "text",
    [
        *("", "Q", "1.7", "Q1", "Q1.", "Q.7", "q1.7", "SQ1.7", "Q+1.7", "Q01.7", "Q-0.8", "Q1,7"),
        *("Q1.7.1", "Q1e1.0", " Q1.7", "Q1.7\n", "Q٠.٨", "Q" + "9" * 500 + ".1"),
    ],
)
def test_text_that_names_no_format_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_format(text)
    assert str(caught.value) == (
        f"format {text!r} is unknown: write int_bits.frac_bits after Q (signed) or UQ (unsigned), "
        "such as Q1.7 or UQ0.8"
    )
