import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.cli.rules import SHIPPED
from scotopia.graph.qformat import QFormat, Rounding
from scotopia.model.config import INPUTS
from scotopia.model.rule import Rule, to_state
from scotopia.model.task import reconstruct, shown
from scotopia.model.unroll import draw_dither, unroll_compiled, unroll_plainly
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.formats import Formats, Precision, unsigned_format
from scotopia.quantize.grids import Grids
from scotopia.quantize.layered_rule import FIRE_BITS, LayeredRule, fire_threshold
from scotopia.quantize.task import reconstruct as reconstruct_by_codes

Make = Callable[..., Any]  # a fixture of conftest.py

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def number(planes: Any) -> Any:
    """Of the bits (N, H, W), the highest first."""
    return sum(plane * 2**i for i, plane in enumerate(planes[::-1]))


def assert_twins_agree(rule: LayeredRule, seed: int, extreme_state: Make, steps: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 4)
    twin = FakeQuantRule.of(rule)
    codes = extreme_state(rule, seed, *shape)
    formats = rule.channel_formats
    values = [torch.from_numpy(f.values(c)) for f, c in zip(formats, codes, strict=True)]
    state = torch.stack(values)[None]
    low, high = rule.sample_format.lowest, rule.sample_format.highest
    for _ in range(steps):
        sample, valid = rng.integers(low, high + 1, shape), rng.random(shape) < 0.4
        noise = rng.integers(0, 2, (rule.noise_planes, *shape)) if rule.noise_planes else None
        fired = dither = None
        if rule.config.fire_rate < 1:
            fires = number(noise[:FIRE_BITS]) < fire_threshold(rule.config)
            fired = torch.from_numpy(fires)[None, None].double()
        if rule.dither:
            dither = torch.from_numpy(number(noise[-rule.dither :]) / 2.0**rule.dither)[None, None]
        codes = rule.step(codes, rule.given(sample, valid), noise)
        shown = torch.from_numpy(rule.sample_format.values(sample))[None, None]
        with torch.no_grad():
            arrived = torch.from_numpy(valid)[None, None].double()
            state = twin(state, shown, arrived, fired, dither)
        for name, format, code, value in zip(
            rule.config.channel_names, formats, codes, state[0], strict=True
        ):
            np.testing.assert_array_equal(value.numpy(), format.values(code), f"{name}, {seed}")


def test_twins_agree_exactly_in_every_mode(layered_rule: Make, extreme_state: Make) -> None:
    for seed in range(252):
        assert_twins_agree(layered_rule(seed), seed, extreme_state, steps=3)


@pytest.mark.slow
def test_twins_agree_exactly_over_ten_thousand_rules(
    layered_rule: Make, extreme_state: Make
) -> None:
    for seed in range(10_000):
        assert_twins_agree(layered_rule(seed), seed, extreme_state, steps=1)


def test_a_twin_gives_its_integer_rule_back(layered_rule: Make) -> None:
    for seed in range(40):
        rule = layered_rule(seed)
        again = FakeQuantRule.of(rule).integer_rule()
        assert again.config == rule.config
        assert (again.dither, again.noise_seed) == (rule.dither, rule.noise_seed)
        for ours, given in ((again.perceive, rule.perceive), (again.update, rule.update)):
            np.testing.assert_array_equal(ours.weight, given.weight)
            np.testing.assert_array_equal(ours.bias, given.bias)
            np.testing.assert_array_equal(ours.weight_frac, given.weight_frac)


def trained_for(
    rule: Any,
    bits: int = 8,
    rounding: Rounding = Rounding.RND,
    scales: str = "output",
    state: int = 8,
) -> FakeQuantRule:
    hidden = [unsigned_format(2.0, bits)] * rule.config.hidden
    precision = Precision(bits, state, bits)
    return FakeQuantRule(rule, Formats.choose(rule, hidden, precision, rounding, scales=scales))


def test_the_twin_of_a_float_rule_becomes_the_integer_rule_that_post_training_makes(
    float_rule: Make, small_config: Make
) -> None:
    rule = float_rule(0, small_config())
    twin = trained_for(rule)
    expected, found = twin.formats.integer_rule(rule), twin.integer_rule()
    np.testing.assert_array_equal(found.perceive.weight, expected.perceive.weight)
    np.testing.assert_array_equal(found.update.bias, expected.update.bias)


def test_a_weight_that_its_format_clips_has_no_gradient() -> None:
    values = torch.tensor([0.3, 0.994, 5.0, -0.2, -7.0], requires_grad=True)
    rounded = Grids([QFormat(1, 7)] * 5).round(values)
    rounded.sum().backward()
    assert rounded.tolist() == [38 / 128, 127 / 128, 127 / 128, -26 / 128, -1]
    assert values.grad is not None and values.grad.tolist() == [1, 1, 0, 1, 0]


def test_samples_are_seen_as_the_integer_rule_takes_them(
    float_rule: Make, small_config: Make
) -> None:
    pixels = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for bits in (4, 6, 8, 10):
        rule = float_rule(0, small_config(inputs=()))
        formats = Formats.choose(rule, [unsigned_format(2.0, 8)] * 3, Precision(state=bits))
        twin = FakeQuantRule(rule, formats)
        integer = twin.integer_rule()
        expected = integer.sample_format.values(integer.sample_codes(pixels.numpy()))
        np.testing.assert_array_equal(twin.sense(to_state(pixels)).numpy(), expected)


def test_a_clip_is_reconstructed_as_by_the_integer_rule(
    float_rule: Make, small_config: Make
) -> None:
    twin = trained_for(float_rule(2, small_config()), state=5)
    frames = np.random.default_rng(0).random((9, 6, 11)).astype(np.float32)
    mask = np.random.default_rng(1).random(frames.shape) < 0.3
    found = reconstruct(twin, frames, mask)
    np.testing.assert_allclose(
        found, reconstruct_by_codes(twin.integer_rule(), frames, mask), atol=1e-6
    )


@needs_compiler
@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": INPUTS, "trace_bits": 8},
        {"inputs": (), "kind": "residual", "border": "zero", "channels": 5},
        {"inputs": ("innovation",), "channels": 1, "hidden": 9, "border": "wrap"},
        {"inputs": ("trust",), "fire_rate": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rounding", "scales", "dither"),
    [(Rounding.RND_CONV, "output", 0), (Rounding.TRN, "kernel", 0), (Rounding.RND, "kernel", 5)],
)
@pytest.mark.usefixtures("compiler")
def test_the_compiled_loop_trains_the_same_twin(
    fields: dict[str, Any],
    rounding: Rounding,
    scales: str,
    dither: int,
    float_rule: Make,
    small_config: Make,
) -> None:
    twin = trained_for(float_rule(1, small_config(**fields)), 6, rounding, scales)
    chances = None
    if twin.config.kind == "gated":
        twin = FakeQuantRule(twin, replace(twin.formats, dither=dither))
        chances = draw_dither(twin, torch.zeros(2, 3, 1, 5, 19), torch.Generator().manual_seed(2))
        assert (chances is None) == (dither == 0)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 1, 5, 19)  # videos, frames, pixels, rows, columns
    samples = torch.randint(-128, 128, shape, generator=generator) / 128
    valids = (torch.rand(shape, generator=generator) < 0.3).float()
    fired = None
    if twin.config.fire_rate < 1:
        fired = (torch.rand(2, 6, 1, 5, 19, generator=generator) < 0.5).float()
    state = twin.initial_state(2, 5, 19)

    def gradients(predictions: torch.Tensor) -> list[torch.Tensor]:
        target = torch.linspace(-1, 1, predictions.numel()).reshape(predictions.shape)
        return list(
            torch.autograd.grad((predictions - target).square().mean(), list(twin.parameters()))
        )

    expected, expected_state = unroll_plainly(twin, state, samples, valids, fired, chances)
    found, found_state = unroll_compiled(twin, state, samples, valids, fired, chances)
    assert torch.equal(found, expected) and torch.equal(found_state, expected_state)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@needs_compiler
@pytest.mark.parametrize(
    ("precision", "scales", "least"),
    [
        (Precision(), "kernel", 2**24),
        (Precision(), "weight", 0),
        (Precision(14, 12, 12, 12), "output", 2**29),  # too wide for sums of floats
    ],
    ids=str,
)
@pytest.mark.usefixtures("compiler")
def test_training_sees_the_integer_rule_however_wide_its_sums(
    precision: Precision, scales: str, least: int
) -> None:
    rule = Rule.load(Path(str(SHIPPED["retina"])))
    hidden = [unsigned_format(4.0, precision.hidden)] * rule.config.hidden
    twin = FakeQuantRule(rule, Formats.choose(rule, hidden, precision, scales=scales))
    integer = twin.integer_rule()
    assert integer.perceive.accumulator_bound > least
    rng = np.random.default_rng(0)
    frames, mask = rng.random((4, 16, 19), np.float32), rng.random((4, 16, 19)) < 0.3
    codes = integer.initial_state(16, 19)
    for frame, valid in zip(frames, mask, strict=True):
        for _ in range(rule.config.steps_per_frame):
            codes = integer.step(codes, integer.given(integer.sample_codes(frame), valid))
    expected = np.stack([f.values(c) for f, c in zip(integer.channel_formats, codes, strict=True)])
    samples, valids = shown(twin, frames, mask)
    for run in (unroll_plainly, unroll_compiled):
        with torch.no_grad():
            _, state = run(twin, twin.initial_state(1, 16, 19), twin.sense(samples), valids)
        np.testing.assert_array_equal(state[0].numpy(), expected)
