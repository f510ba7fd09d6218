import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scotopia.graph import native
from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import Overflow, Rounding
from scotopia.quantize.formats import Precision
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.task import reconstruct, run

Make = Callable[..., Any]  # a fixture of conftest.py

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture
def clip() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    frames = rng.random((5, 5, 19)).astype(np.float32)
    return frames, rng.random(frames.shape) < 0.2


def by_steps(rule: LayeredRule, frames: Any, mask: Any) -> list[Any]:
    """What `IntegerRule.step` makes of a clip."""
    registers = RowRegisters(*frames.shape[1:], rule.noise_seed)
    codes, found = rule.initial_state(*frames.shape[1:]), []
    for sample, valid in zip(rule.sample_codes(frames), mask, strict=True):
        for _ in range(rule.config.steps_per_frame):
            noise = registers.planes(rule.noise_planes) if rule.noise_planes else None
            codes = rule.step(codes, rule.given(sample, valid), noise)
        found.append(codes)
    return found


@needs_compiler
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("fire_rate", "dither"), [(1, 0), (1, 3), (0.4, 0), (0.4, 8)])
def test_a_clip_is_seen_alike_with_and_without_a_compiler(
    fire_rate: float,
    dither: int,
    small_config: Make,
    random_rule: Make,
    clip: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule = random_rule(5, small_config(fire_rate=fire_rate), Precision(8, 6, 8, 8))
    rule = replace(rule, dither=dither, noise_seed=3)
    fast = list(run(rule, *clip))
    monkeypatch.setattr(native, "available", lambda: False)
    slow = list(run(rule, *clip))
    np.testing.assert_array_equal(fast, slow)
    np.testing.assert_array_equal(fast, by_steps(rule, *clip))


@needs_compiler
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("rounding", [Rounding.TRN_ZERO, Rounding.RND_CONV])
def test_every_kind_of_rule_is_compiled(
    overflow: Overflow, rounding: Rounding, small_config: Make, mixed_rule: Make, clip: Any
) -> None:
    config = small_config(inputs=() if overflow is Overflow.WRAP else ("trust", "recall"))
    rule = replace(mixed_rule(2, config, rounding), overflow=overflow)
    np.testing.assert_array_equal(list(run(rule, *clip)), by_steps(rule, *clip))


def test_estimates_are_pixels_of_the_predictions(
    small_config: Make, random_rule: Make, clip: Any
) -> None:
    rule = random_rule(1, small_config(), Precision())
    expected = [rule.pixels(codes[0]) for codes in by_steps(rule, *clip)]
    np.testing.assert_array_equal(reconstruct(rule, *clip), expected)
