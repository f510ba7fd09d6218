from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import QFormat
from scotopia.model.checkpoint import digest
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule, to_state
from scotopia.model.sampling import sample_mask
from scotopia.model.task import run
from scotopia.model.video import Clip
from scotopia.quantize.feedback import Moments
from scotopia.quantize.formats import Formats, Precision
from scotopia.quantize.post_training import Calibration, fill_range

Make = Callable[..., Any]  # a fixture of conftest.py


def seen(activations: NDArray[np.float32]) -> Calibration:
    """Calibration that tells nothing but these activations."""
    config = RuleConfig(channels=2, hidden=len(activations))
    return Calibration(Rule(config), activations, Moments(np.zeros((1, 1)), np.zeros((1, 1))))


def uq(int_bits: int, frac_bits: int) -> QFormat:
    return QFormat(int_bits, frac_bits, signed=False)


def test_an_integer_rule_names_what_it_was_calibrated_on(small_config: Make) -> None:
    rule = Rule(small_config())
    rule.training_record = {"clips": ["shown"]}
    clip = Clip("noise", np.random.default_rng(0).random((3, 8, 8), dtype=np.float32))
    found = Calibration.measure(rule, [clip])
    formats = Formats.choose(found.rule, found.formats(8), Precision())
    record = dict(formats.integer_rule(found.rule).training)
    assert set(record.pop("channel_scales")) <= {"x2"}  # neither the prediction nor the doubt
    assert record == {"clips": ["shown", "noise"], "digests": {"noise": digest(clip)}}


@pytest.mark.parametrize("kind", ["gated", "residual"])
@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_many_bits_track_the_float_rule(kind: str, border: str, small_config: Make) -> None:
    torch.manual_seed(0)
    rule = Rule(small_config(kind=kind, border=border, hidden=6, trace_bits=8))
    with torch.no_grad():
        rule.update.weight.mul_(0.3)  # so that the rule forgets errors faster than it makes them
    rng = np.random.default_rng(1)
    clip = Clip("noise", rng.integers(0, 256, (8, 8, 8)).astype(np.float32) / np.float32(255))
    activations = Calibration.measure(rule, [clip], density=0.3).activations
    hidden = seen(activations * np.float32(1.5)).formats(13, "max")
    precision = Precision(weight=13, state=13, hidden=13, gate=13)
    integer = Formats.choose(rule, hidden, precision).integer_rule(rule)
    state, codes = rule.initial_state(1, 8, 8), integer.initial_state(8, 8)
    for step in range(20):
        frame, valid = clip.frames[step % 8], rng.random((8, 8)) < 0.3
        with torch.no_grad():
            sample = to_state(torch.from_numpy(frame))[None, None]
            state = rule(state, sample, torch.from_numpy(valid)[None, None].float())
        codes = integer.step(codes, integer.given(integer.sample_codes(frame), valid))
    for channel, format in enumerate(integer.channel_formats):
        # A state's unit is 2**-12. Rounding errs by about a unit a step, for 20 steps; a wrong
        # scale or tap errs by a tenth of the range, which is 400 units.
        np.testing.assert_allclose(
            format.values(codes[channel]), state[0, channel].numpy(), atol=20 * 2**-12
        )


def test_activations_are_what_the_neurons_show(small_config: Make) -> None:
    rule = Rule(small_config(hidden=2, inputs=()))
    with torch.no_grad():
        rule.perceive.weight.zero_()
        rule.perceive.bias[:] = torch.tensor([-3.0, 2.5])
    clip = Clip("dark", np.zeros((2, 4, 4), np.float32))
    found = Calibration.measure(rule, [clip]).activations
    # Two frames of two steps; one in seven of 16 cells, from another one on each time.
    assert found.shape == (2, 3 + 3 + 2 + 2)
    assert set(found[0]) == {0} and set(found[1]) == {2.5}


def timid(rule: Rule) -> Rule:
    """Return the rule, its last two channels using a hundredth of their range, or nothing of it."""
    with torch.no_grad():
        rule.update.weight[2] *= 1e-2
        rule.update.bias[2] *= 1e-2
        rule.update.weight[3] = rule.update.bias[3] = 0
    return rule


@pytest.mark.parametrize("perception", ["full", "depthwise", "sobel"])
@pytest.mark.parametrize("kind", ["gated", "residual"])
def test_a_rule_of_scaled_channels_does_the_same(
    kind: str, perception: str, float_rule: Make, small_config: Make
) -> None:
    shape = small_config(kind=kind, perception=perception, channels=4, hidden=6)
    rule = timid(float_rule(0, shape))
    scales = torch.tensor([1.0, 1, 4, 8, 1, 1])[:, None, None]
    state = torch.rand(1, 6, 8, 8, generator=torch.Generator().manual_seed(0)) / (2 * scales)
    sample, valid = torch.full((1, 1, 8, 8), 0.3), torch.ones(1, 1, 8, 8)
    with torch.no_grad():
        expected = rule(state, sample, valid) * scales
        found = fill_range(rule, scales[:4, 0, 0].double().numpy())(state * scales, sample, valid)
    assert expected[0, 2].abs().max() < 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gated", "residual"])
def test_calibration_scales_channels_so_that_they_fill_their_range(
    kind: str, float_rule: Make, small_config: Make
) -> None:
    rule = timid(float_rule(0, small_config(kind=kind, channels=4, hidden=6)))
    clip = Clip("noise", np.random.default_rng(1).random((3, 8, 8), np.float32))
    filled = Calibration.measure(rule, [clip], density=0.3).rule
    ratio = (filled.update.weight / rule.update.weight)[:4].detach().flatten(1)
    assert torch.equal(ratio[:2], torch.ones(2, 6))  # the prediction and the doubt
    states = torch.stack(list(run(rule, clip.frames, sample_mask(clip.frames.shape, 0.3, 0))))
    peak = states[:, 2].abs().amax()
    assert 0.3 < ratio[2, 0] * peak < 2
    assert torch.equal(ratio[:3].log2(), ratio[:3].log2().round())


def test_moments_are_those_of_the_rule_that_fills_its_range(
    float_rule: Make, small_config: Make
) -> None:
    rule = timid(float_rule(0, small_config(channels=4, hidden=6)))
    clip = Clip("noise", np.random.default_rng(1).random((3, 8, 8), np.float32))
    found = Calibration.measure(rule, [clip], density=0.3)
    again = Calibration.measure(found.rule, [clip], density=0.3)
    for ours, measured in (
        (found.moments.perceive, again.moments.perceive),
        (found.moments.update, again.moments.update),
    ):
        np.testing.assert_allclose(ours, measured, rtol=1e-2, atol=1e-3)


def test_max_holds_all_that_was_seen_and_percentile_nearly_all() -> None:
    rare = np.full((1, 10_000_0), 0.9, np.float32)
    rare[0, :5] = 3.9  # five in a hundred thousand
    calibration = seen(rare)
    assert calibration.formats(8, "max") == (uq(2, 6),)
    assert calibration.formats(8, "percentile") == (uq(0, 8),)


def test_what_a_neuron_rarely_says_is_held_as_well_as_what_it_always_says() -> None:
    often = np.random.default_rng(0).uniform(0, 1.9, 100_000).astype(np.float32)
    rarely = np.zeros(100_000, np.float32)
    rarely[:12] = np.linspace(0.1, 1.9, 12)  # only where a sample arrives
    silent = np.zeros(100_000, np.float32)
    formats = seen(np.stack([often, rarely, silent])).formats(8)
    assert formats[:2] == (uq(1, 7), uq(1, 7))
    assert formats[2] == seen(silent[None]).formats(8, "max")[0]


def test_mse_clips_what_costs_less_than_the_bit_it_takes() -> None:
    rng = np.random.default_rng(0)
    neuron = rng.uniform(0, 0.99, 100_000).astype(np.float32)
    neuron[0] = 1.2  # clipping it to 1 errs by 0.04, once; a coarser grid would err always
    (found,) = seen(neuron[None]).formats(4, "mse")
    assert found == uq(0, 4)
    neuron[:20_000] = 1.9
    (found,) = seen(neuron[None]).formats(4, "mse")
    assert found == uq(1, 3)


def test_mse_is_the_best_of_all_formats_of_its_width() -> None:
    activations = np.random.default_rng(1).exponential(0.3, (3, 5_000)).astype(np.float32)
    for neuron, found in zip(activations, seen(activations).formats(5, "mse"), strict=True):

        def error(format: QFormat, neuron: Any = neuron) -> float:
            return float(np.square(format.values(format.quantize(neuron)) - neuron).mean())

        assert error(found) == min(error(uq(5 - f, f)) for f in range(16))


def test_the_report_counts_what_is_clipped() -> None:
    activations = np.array([[0.5, 1.0, 0.99, 0.0], [0.1, 0.2, 0.3, 0.9]], np.float32)
    first, second = seen(activations).clipped([uq(0, 4), uq(0, 4)])
    # The highest code is 0.9375; what rounds to it is not clipped.
    assert first == {"format": "UQ0.4", "largest": 1.0, "clipped": 0.5}
    assert second["clipped"] == 0


def test_calibration_needs_a_clip(small_config: Make) -> None:
    with pytest.raises(InputError) as caught:
        Calibration.measure(Rule(small_config()), [])
    assert str(caught.value) == "the calibration set is empty: give at least one clip"


def test_activations_that_are_no_numbers_are_refused(small_config: Make) -> None:
    rule = Rule(small_config())
    with torch.no_grad():
        rule.perceive.bias[0] = torch.inf
    clip = Clip("dark", np.zeros((2, 4, 4), np.float32))
    with pytest.raises(InputError) as caught:
        Calibration.measure(rule, [clip])
    assert str(caught.value) == ("a hidden neuron's activation is not finite: train the rule again")


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        seen(np.ones((1, 3), np.float32)).formats(8, "median")
    assert str(caught.value) == (
        "calibration 'median' is unknown: choose one of max, percentile, mse"
    )
