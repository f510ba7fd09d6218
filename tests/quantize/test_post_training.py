from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.model.errors import InputError
from scotopia.model.rule import Rule, hard_sigmoid, to_state
from scotopia.model.video import Clip
from scotopia.quantize.post_training import (
    Precision,
    calibrate,
    quantize,
    quantize_layer,
    unsigned_format,
)
from scotopia.quantize.qformat import QFormat

Make = Callable[..., Any]  # a fixture of conftest.py


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_weights_fit_their_bits_at_the_finest_scale(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.normal(0, 1, (50, 2, 1)) * np.exp2(rng.integers(-6, 6, (50, 1, 1)))
    state = (QFormat(1, 1),)
    layer = quantize_layer(weight, np.zeros(50), state * 2, state * 50, bits)
    highest = 2 ** (bits - 1) - 1
    largest = np.abs(weight).max((1, 2))
    assert np.abs(layer.weight).max() <= highest
    np.testing.assert_array_equal(
        layer.weight, np.rint(weight * 2.0 ** layer.weight_frac[:, None, None])
    )
    finer = np.rint(largest * 2.0 ** (layer.weight_frac + 1))
    assert ((finer > highest) | (layer.weight_frac == 15)).all()


def test_scale_is_chosen_after_rounding() -> None:
    # 0.994 * 128 rounds to 127, which fits 8 bits; 0.998 * 128 rounds to 128, which does not.
    weight, state = np.array([[[0.994]], [[0.998]]]), (QFormat(1, 7),)
    layer = quantize_layer(weight, np.zeros(2), state, state * 2, 8)
    assert layer.weight_frac.tolist() == [7, 6]
    assert layer.weight.ravel().tolist() == [127, 64]


def test_bias_is_on_the_accumulators_scale() -> None:
    inputs = (QFormat(1, 3), QFormat(1, 7))
    layer = quantize_layer(
        np.array([[[0.5], [0.25]]]), np.array([-1.5]), inputs, (QFormat(1, 7),), 4
    )
    assert layer.weight_frac.tolist() == [3]
    assert layer.bias.tolist() == [-1.5 * 2 ** (3 + 7)]


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
    integer = quantize(rule, np.array([1.9]))
    hidden = integer.perceive.outputs[0].quantize(np.array([1.25]))
    codes = integer.update(hidden[:, None, None], integer.rounding)[:, 0]
    expected_gate = hard_sigmoid(torch.tensor(-1.5 * 1.25 + 0.5)).item()
    assert integer.gate_format.values(codes[1]) == expected_gate == 0.15625
    assert integer.state_formats[0].values(codes[0]) == 0.5 * 1.25 + 0.25


@pytest.mark.parametrize("kind", ["gated", "residual"])
@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_many_bits_track_the_float_rule(kind: str, border: str, small_config: Make) -> None:
    torch.manual_seed(0)
    rule = Rule(small_config(kind=kind, border=border, hidden=6, trace_bits=8))
    with torch.no_grad():
        rule.update.weight.mul_(0.3)  # so that the rule forgets errors faster than it makes them
    rng = np.random.default_rng(1)
    clip = Clip("noise", rng.integers(0, 256, (8, 8, 8)).astype(np.float32) / np.float32(255))
    ranges = calibrate(rule, [clip], density=0.3, percentile=100) * 1.5
    integer = quantize(rule, ranges, Precision(weight=13, state=13, hidden=13, gate=13))
    state, codes = rule.initial_state(1, 8, 8), integer.initial_state(8, 8)
    for step in range(20):
        frame, valid = clip.frames[step % 8], rng.random((8, 8)) < 0.3
        with torch.no_grad():
            sample = to_state(torch.from_numpy(frame))[None, None]
            state = rule(state, sample, torch.from_numpy(valid)[None, None].float())
        codes = integer.step(codes, integer.sample_codes(frame), valid)
    for channel, format in enumerate(integer.channel_formats):
        # A state's unit is 2**-12. Rounding errs by about a unit a step, for 20 steps; a wrong
        # scale or tap errs by a tenth of the range, which is 400 units.
        np.testing.assert_allclose(
            format.values(codes[channel]), state[0, channel].numpy(), atol=20 * 2**-12
        )


def test_hidden_ranges_are_the_largest_activations(small_config: Make) -> None:
    rule = Rule(small_config(hidden=2, inputs=()))
    with torch.no_grad():
        rule.perceive.weight.zero_()
        rule.perceive.bias[:] = torch.tensor([-3.0, 2.5])
    clip = Clip("dark", np.zeros((2, 4, 4), np.float32))
    assert calibrate(rule, [clip]).tolist() == [0, 2.5]


def test_calibration_needs_a_clip(small_config: Make) -> None:
    with pytest.raises(InputError) as caught:
        calibrate(Rule(small_config()), [])
    assert str(caught.value) == "the calibration set is empty: give at least one clip"


@pytest.mark.parametrize("name", ["weight", "state", "hidden", "gate"])
@pytest.mark.parametrize("bits", [1, 17])
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
        quantize(rule, np.ones(3))
    assert str(caught.value) == f"{name} of the rule is not finite: train it again"


def test_range_that_is_no_number_is_refused(small_config: Make) -> None:
    with pytest.raises(InputError) as caught:
        quantize(Rule(small_config()), np.array([1, np.nan, 1]))
    assert str(caught.value) == "the range of a hidden neuron is not finite: calibrate again"


def test_sums_too_large_for_32_bits_are_refused(small_config: Make, random_rule: Make) -> None:
    with pytest.raises(InputError, match=r"an accumulator can reach .*: quantize with fewer bits"):
        random_rule(0, small_config(), Precision(16, 16, 16, 16))


def test_a_filtered_perception_becomes_the_full_one_it_equals(
    small_config: Make, float_rule: Make
) -> None:
    filtered = float_rule(0, small_config(perception="depthwise"))
    full = Rule(small_config())
    with torch.no_grad():
        full.perceive.weight.copy_(filtered.perceive.weight)
        full.perceive.bias.copy_(filtered.perceive.bias)
        full.update.load_state_dict(filtered.update.state_dict())
    ranges = np.ones(3)
    found, expected = quantize(filtered, ranges), quantize(full, ranges)
    assert found.config == expected.config
    assert np.array_equal(found.perceive.weight, expected.perceive.weight)


@pytest.mark.parametrize("field", [{"block": 2, "channels": 5}, {"fire_rate": 0.5}])
def test_rules_that_integers_cannot_do_are_refused(
    field: dict[str, Any], small_config: Make, float_rule: Make
) -> None:
    with pytest.raises(InputError, match="not supported in an integer rule: choose 1, 1, full"):
        quantize(float_rule(0, small_config(**field)), np.ones(3))
