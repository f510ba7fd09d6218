import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import IntArray, QFormat
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule, hard_sigmoid
from scotopia.model.start import start_as_filter
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.formats import (
    SCALES,
    Formats,
    Precision,
    by_weight,
    hidden_bits,
    unsigned_format,
    weight_formats,
)
from scotopia.quantize.layered_rule import LayeredRule

Make = Callable[..., Any]  # a fixture of conftest.py


def quantized(rule: Rule, largest: float = 1.0, bits: int = 8) -> LayeredRule:
    hidden = [unsigned_format(largest, 8)] * rule.config.hidden
    return Formats.choose(rule, hidden, Precision(weight=bits)).integer_rule(rule)


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_weights_fit_their_bits_at_the_finest_scale(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.normal(0, 1, (50, 2, 1)) * np.exp2(rng.integers(-6, 6, (50, 1, 1)))
    highest = 2 ** (bits - 1) - 1
    for row, format in zip(weight, weight_formats(weight, bits), strict=True):
        assert format.bits == bits
        largest = np.abs(row).max()
        assert np.rint(np.ldexp(largest, format.frac_bits)) <= highest
        finer = np.rint(np.ldexp(largest, format.frac_bits + 1))
        assert finer > highest or format.frac_bits == 15


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_each_kernel_has_the_finest_scale_that_it_fits(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.normal(0, 1, (5, 4, 9)) * np.exp2(rng.integers(-6, 2, (5, 4, 1)))
    for row, formats in zip(weight, weight_formats(weight, bits, "kernel"), strict=True):
        assert formats == weight_formats(row, bits)  # as if each kernel were an output's


def test_a_kernel_of_little_weight_is_no_finer_than_2_to_the_8_below_the_largest() -> None:
    kernels = np.stack([np.full(9, 100.0), np.full(9, 0.11), np.full(9, 0.011)])
    (formats,) = weight_formats(kernels[None], 8, "kernel")
    assert formats == (QFormat(8, 0), QFormat(0, 8), QFormat(0, 8))


@pytest.mark.parametrize("scales", SCALES)
def test_weights_that_are_exact_have_no_last_bits_that_are_0(scales: str) -> None:
    written = np.array([[4.0, -0.5, 0], [0, 0, 0], [1.1, 0.5, 0]])[:, :, None]
    first, none, trained = (
        [format.frac_bits for format in by_weight((formats,), 3, 1)[0]]
        for formats in weight_formats(written, 8, scales)
    )
    assert max(first) == 1  # that of -0.5
    assert set(none) == {0}
    assert min(trained) > 1


def test_a_vote_is_blurred_and_not_lost() -> None:
    inputs = ("fresh", "flicker", "innovation", "trust", "recall")
    rule = Rule(RuleConfig(channels=3, hidden=13, inputs=inputs, steps_per_frame=8, trace_bits=11))
    start_as_filter(rule)
    hidden = [unsigned_format(2.0, bits) for bits in hidden_bits(rule, 8)]
    integer = Formats.choose(rule, hidden, Precision(), scales="kernel").integer_rule(rule)
    state, nothing = integer.initial_state(31, 31), np.zeros((31, 31), np.int64)
    state[2, 15, 15] = vote = 2 ** (integer.state_formats[2].frac_bits - 2)
    for _ in range(200):
        state = integer.step(state, integer.given(nothing, nothing.astype(bool)))
    assert state[2].max() < vote / 50
    assert state[2].sum() == pytest.approx(vote, rel=0.3)


def test_a_weight_of_two_bits_and_its_own_scale_is_a_power_of_two() -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(0, 1, (5, 4, 9)) * np.exp2(rng.integers(-6, 6, (5, 1, 1)))
    rows = by_weight(weight_formats(weight, 2, "weight"), 4, 9)
    for values, formats in zip(weight.reshape(5, 36), rows, strict=True):
        rounded = np.array([f.values(f.quantize(v)) for f, v in zip(formats, values, strict=True)])
        assert set(np.abs(np.frexp(rounded)[0])) <= {0.0, 0.5}
        small = np.abs(values).max() / 2**8  # it may become zero
        assert (np.abs(rounded - values) <= np.maximum(np.abs(values) / 3, small) + 1e-9).all()


@pytest.mark.parametrize("each", [1, 4, 36])
def test_formats_are_spread_over_the_weights_that_have_them_in_common(each: int) -> None:
    given = tuple(QFormat(8 - frac, frac) for frac in range(each))
    (spread,) = by_weight((given if each > 1 else given[0],), 4, 9)
    assert [format.frac_bits for format in spread] == [i * each // 36 for i in range(36)]


def test_a_rule_with_a_scale_by_kernel_is_the_integer_rule_it_says(
    float_rule: Make, small_config: Make
) -> None:
    rule = float_rule(0, small_config())
    with torch.no_grad():
        rule.perceive.weight[:, 1] /= 64  # a channel that is seen by small weights
        rule.perceive.weight[1, 2] = 0
    hidden = [unsigned_format(1.0, 8)] * 3
    coarse, fine = (
        Formats.choose(rule, hidden, Precision(weight=4), scales=scales)
        for scales in ("output", "kernel")
    )
    layer = fine.integer_rule(rule).perceive
    assert not coarse.integer_rule(rule).perceive.weight[:, 1].any() and layer.weight[:, 1].any()
    values = np.ldexp(layer.weight.astype(float), -layer.weight_frac[:, None, None])
    formats = by_weight(fine.perceive_weights, *layer.weight.shape[1:])
    kernels = rule.perceive.weight.detach().numpy().reshape(values.shape)
    for i, j in np.ndindex(values.shape[:2]):
        format = formats[i][9 * j]
        assert format.bits == 4
        np.testing.assert_array_equal(values[i, j], format.values(format.quantize(kernels[i, j])))


def test_formats_are_found_again(float_rule: Make, small_config: Make) -> None:
    rule = float_rule(0, small_config(hidden=12, channels=6))
    with torch.no_grad():
        rule.perceive.weight[:, 1] /= 64
    hidden = [unsigned_format(1.0, 8)] * 12
    for scales in SCALES:
        formats = Formats.choose(rule, hidden, Precision(weight=4), scales=scales)
        integer = formats.integer_rule(rule)
        again = Formats.of(integer)
        assert again.weight_bits <= 1.05 * formats.weight_bits  # what keeps a bias exact
        assert isinstance(again.perceive_weights[0], QFormat) == (scales == "output")
        twin = FakeQuantRule.of(integer)
        np.testing.assert_array_equal(twin.integer_rule().perceive.weight, integer.perceive.weight)


def test_a_bias_keeps_its_scale_where_all_weights_are_even(
    float_rule: Make, small_config: Make
) -> None:
    rule = float_rule(0, small_config(hidden=12, channels=6))
    with torch.no_grad():
        rule.perceive.weight[:, 1] /= 64
    formats = Formats.choose(
        rule, [unsigned_format(1.0, 8)] * 12, Precision(weight=4), scales="kernel"
    )
    integer = formats.integer_rule(rule)
    layer = integer.perceive
    # The first output's weights are as they were, on a scale that is a bit finer; its bias is not.
    weight, frac, bias = layer.weight.copy(), layer.weight_frac.copy(), layer.bias.copy()
    weight[0], frac[0], bias[0] = 2 * weight[0], frac[0] + 1, 2 * bias[0] + 1
    finer = replace(layer, weight=weight, weight_frac=frac, bias=bias)
    twin = FakeQuantRule.of(replace(integer, perceive=finer))
    again = twin.integer_rule().perceive
    np.testing.assert_array_equal(again.bias, bias)
    np.testing.assert_array_equal(again.weight, weight)
    # One kernel is a bit wider, not all.
    assert twin.formats.weight_bits <= 1.05 * formats.weight_bits


def test_scale_is_chosen_after_rounding() -> None:
    # 0.994 * 128 rounds to 127, which fits 8 bits; 0.998 * 128 rounds to 128, which does not.
    formats = weight_formats(np.array([[[0.994]], [[0.998]]]), 8)
    assert [format.frac_bits for format in formats] == [7, 6]


def test_weights_are_rounded_to_nearest_and_biases_to_the_accumulators_scale(
    small_config: Make, float_rule: Make
) -> None:
    rule = float_rule(0, small_config(kind="residual"))
    layer = quantized(rule, bits=6).perceive
    weight = rule.perceive.weight.detach().numpy().astype(float).reshape(layer.weight.shape)
    bias = rule.perceive.bias.detach().numpy().astype(float)
    fine = layer.weight_frac + max(format.frac_bits for format in layer.inputs)
    np.testing.assert_array_equal(
        layer.weight, np.rint(np.ldexp(weight, layer.weight_frac[:, None, None]))
    )
    np.testing.assert_array_equal(layer.bias, np.rint(np.ldexp(bias, fine)))


@pytest.mark.parametrize(
    ("largest", "bits", "format"),
    [
        (1.0, 8, QFormat(1, 7, signed=False)),
        (255 / 256, 8, QFormat(0, 8, signed=False)),
        (0.25, 4, QFormat(-1, 5, signed=False)),
        (100.0, 4, QFormat(7, -3, signed=False)),
        (0.0, 8, QFormat(-7, 15, signed=False)),
    ],
)
def test_hidden_format_is_the_finest_that_holds_the_largest(
    largest: float, bits: int, format: QFormat
) -> None:
    assert unsigned_format(largest, bits) == format


def test_gate_folds_the_hard_sigmoid_exactly(small_config: Make) -> None:
    rule = Rule(small_config(channels=1, hidden=1, inputs=()))
    with torch.no_grad():  # numbers that 8 bits hold: nothing is rounded
        rule.perceive.weight.zero_()
        rule.perceive.bias.fill_(1.25)
        rule.update.weight[:] = torch.tensor([0.5, -1.5])[:, None, None, None]
        rule.update.bias[:] = torch.tensor([0.25, 0.5])
    integer = quantized(rule, 1.9)
    names, codes = integer.graph.names, {}

    def watch(index: int, found: IntArray) -> None:
        words = integer.graph.words(index)
        codes.update({names.get(word): found[i, 0, 0] for i, word in enumerate(words)})

    nothing = np.zeros((1, 1), np.int64)
    state = integer.initial_state(1, 1)
    integer.step(state, integer.given(nothing, nothing > 0), watch=watch)
    expected_gate = hard_sigmoid(torch.tensor(-1.5 * 1.25 + 0.5)).item()
    assert integer.gate_format.values(codes["gate x0"]) == expected_gate == 0.15625
    assert integer.state_formats[0].values(codes["candidate x0"]) == 0.5 * 1.25 + 0.25


@pytest.mark.parametrize("name", ["weight", "state", "hidden", "gate", "update"])
@pytest.mark.parametrize("bits", [0, 1, 17])
def test_precision_is_2_to_16_bits(name: str, bits: int) -> None:
    with pytest.raises(InputError) as caught:
        Precision(**{name: bits})
    assert str(caught.value) == f"{name} bits {bits} are outside 2 to 16: choose 8, for instance"


@pytest.mark.parametrize("bits", [2, 12])
def test_fewest_and_many_bits_make_a_rule(bits: int, small_config: Make, random_rule: Make) -> None:
    rule = random_rule(0, small_config(), Precision(bits, bits, bits, bits))
    assert {format.bits for format in rule.state_formats} == {bits}
    assert {format.bits for format in rule.perceive.outputs} == {bits}


@pytest.mark.parametrize("name", ["perceive.weight", "perceive.bias", "update.weight"])
def test_weight_that_is_no_number_is_refused(name: str, small_config: Make) -> None:
    rule = Rule(small_config())
    with torch.no_grad():
        rule.get_parameter(name).view(-1)[0] = torch.nan
    with pytest.raises(InputError) as caught:
        quantized(rule)
    assert str(caught.value) == f"{name} of the rule is not finite: train it again"


def test_sums_too_large_for_32_bits_are_refused(small_config: Make, random_rule: Make) -> None:
    with pytest.raises(InputError, match=r"an accumulator can reach .*: quantize with fewer bits"):
        random_rule(0, small_config(), Precision(16, 16, 16, 16))


def test_a_weight_too_large_for_32_bits_is_named(small_config: Make, float_rule: Make) -> None:
    rule = float_rule(0, small_config())
    with torch.no_grad():
        rule.update.weight[1, 2] = -1e10
    with pytest.raises(InputError) as caught:
        quantized(rule)
    reach = re.search(r"\d{10,}", str(caught.value))
    assert reach and str(caught.value) == (
        f"layer update: an accumulator can reach {reach[0]}, that of output 1 of 0 to 5, more than "
        "half of it by its weight -1.00663e+10 of input 2, tap 0, the most is 2**31 - 1: train the "
        "rule again, to a smaller weight"
    )


def test_a_filtered_perception_becomes_the_full_one_it_equals(
    small_config: Make, float_rule: Make
) -> None:
    filtered = float_rule(0, small_config(perception="depthwise"))
    full = Rule(small_config())
    with torch.no_grad():
        full.perceive.weight.copy_(filtered.perceive.weight)
        full.perceive.bias.copy_(filtered.perceive.bias)
        full.update.load_state_dict(filtered.update.state_dict())
    found, expected = quantized(filtered), quantized(full)
    assert found.config == expected.config
    assert np.array_equal(found.perceive.weight, expected.perceive.weight)


def test_rules_that_integers_cannot_do_are_refused(small_config: Make, float_rule: Make) -> None:
    with pytest.raises(InputError, match="not supported in an integer rule"):
        quantized(float_rule(0, small_config(block=2, channels=5)))


def test_weight_bits_count_every_weight(small_config: Make, float_rule: Make) -> None:
    rule = float_rule(0, small_config(channels=2, hidden=3, inputs=("sample",)))
    hidden = [unsigned_format(1.0, 8)] * 3
    # 3 neurons see 3 channels of 9 cells; 2 candidates and 2 gates see 3 neurons.
    formats = Formats.choose(rule, hidden, Precision(weight=5))
    assert formats.weight_bits == 5 * (3 * 3 * 9 + 4 * 3)
    formats = Formats.choose(rule, hidden, Precision(weight=5, update=7))
    assert formats.weight_bits == 5 * (3 * 2 * 9) + 7 * (3 * 9 + 4 * 3)


@pytest.mark.parametrize("scales", SCALES)
def test_weights_whose_errors_add_up_have_bits_of_their_own(
    small_config: Make, float_rule: Make, scales: str
) -> None:
    rule = float_rule(0, small_config(channels=2, hidden=3, inputs=("trust", "recall")))
    hidden = [unsigned_format(1.0, 8)] * 3
    coarse, mixed, fine = (
        Formats.choose(rule, hidden, precision, scales=scales)
        for precision in (Precision(4), Precision(4, update=9), Precision(9))
    )
    assert mixed.update_weights == fine.update_weights
    found, expected, others = (
        by_weight(formats.perceive_weights, 4, 9) for formats in (mixed, fine, coarse)
    )
    for row, its, coarser in zip(found, expected, others, strict=True):
        assert row[:9] == its[:9]  # of the prediction
        assert row[9:] == coarser[9:]


def test_formats_of_an_integer_rule_give_it_back(small_config: Make, mixed_rule: Make) -> None:
    rule = mixed_rule(3, small_config())
    formats = Formats.of(rule)
    assert formats.state == rule.state_formats
    assert formats.hidden == rule.perceive.outputs
    assert formats.updates == rule.update.outputs
