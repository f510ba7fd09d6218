import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scotopia.graph.qformat import Overflow, Rounding
from scotopia.model.config import INPUTS
from scotopia.quantize.engine import Engine, supports
from scotopia.quantize.formats import Precision
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.task import run

Make = Callable[..., Any]  # a fixture of conftest.py

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.usefixtures("compiler"),
]

FIELDS: list[dict[str, Any]] = [
    {"inputs": INPUTS, "trace_bits": 8, "border": "zero"},
    {"inputs": ("trust", "recall"), "border": "wrap", "hidden": 9},
    {"inputs": ("sample", "innovation"), "kind": "residual"},
    {"inputs": (), "channels": 1, "hidden": 1},
]


def by_steps(rule: LayeredRule, codes: Any, samples: Any, valids: Any) -> Any:
    for sample, valid in zip(samples, valids, strict=True):
        for _ in range(rule.config.steps_per_frame):
            codes = rule.step(codes, rule.given(sample, valid))
        yield codes


@pytest.mark.parametrize("dither", [1, 3, 8])
@pytest.mark.parametrize("fire_rate", [1.0, 0.4])
def test_updates_are_rounded_by_the_same_chances(
    dither: int,
    fire_rate: float,
    small_config: Make,
    random_rule: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule = random_rule(5, small_config(fire_rate=fire_rate), Precision(8, 6, 8, 8))
    rule = replace(rule, dither=dither, noise_seed=3)
    rng = np.random.default_rng(1)
    frames = rng.random((9, 5, 19)).astype(np.float32)
    mask = rng.random(frames.shape) < 0.2
    assert supports(rule)
    fast = list(run(rule, frames, mask))
    monkeypatch.setattr("scotopia.quantize.task.supports", lambda rule: False)
    np.testing.assert_array_equal(fast, list(run(rule, frames, mask)))


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("rounding", [Rounding.RND, Rounding.TRN])
def test_frames_are_what_the_steps_give(
    fields: dict[str, Any],
    rounding: Rounding,
    small_config: Make,
    random_rule: Make,
    mixed_rule: Make,
) -> None:
    config = small_config(**fields)
    rules = [
        random_rule(0, config, Precision(8, 8, 8, 8), rounding),
        random_rule(1, config, Precision(4, 6, 5, 3), rounding),
        mixed_rule(2, config, rounding),
        random_rule(3, config, Precision(14, 12, 12, 12), rounding),  # in double precision
    ]
    rng = np.random.default_rng(0)
    shape = (5, 6, 21)
    for rule in rules:
        assert supports(rule)
        low, high = rule.sample_format.lowest, rule.sample_format.highest
        samples, valids = rng.integers(low, high + 1, shape), rng.random(shape) < 0.3
        engine = Engine(rule, *shape[1:])
        found = [*engine.advance(samples[:2], valids[:2]), *engine.advance(samples[2:], valids[2:])]
        expected = by_steps(rule, rule.initial_state(*shape[1:]), samples, valids)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(engine.state, found[-1])


def test_rules_that_floats_cannot_hold_are_left_to_the_steps(
    small_config: Make, random_rule: Make
) -> None:
    rule = random_rule(0, small_config(), Precision())
    assert supports(rule)
    update = replace(rule.update, bias=rule.update.bias + (1 << 25) + 1)
    assert not supports(replace(rule, update=update))
    assert not supports(replace(rule, overflow=Overflow.SAT_SYM))
    assert not supports(replace(rule, rounding=Rounding.RND_CONV))


@pytest.mark.parametrize("fire_rate", [1.0, 0.4])
def test_a_clip_is_seen_alike_with_and_without_a_compiler(
    fire_rate: float, small_config: Make, random_rule: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = random_rule(3, small_config(fire_rate=fire_rate), Precision())
    rng = np.random.default_rng(1)
    frames = rng.random((11, 7, 9)).astype(np.float32)  # more than a chunk, and not two
    mask = rng.random(frames.shape) < 0.2
    fast = list(run(rule, frames, mask))
    monkeypatch.setattr("scotopia.quantize.task.supports", lambda rule: False)
    slow = list(run(rule, frames, mask))
    assert len(fast) == len(slow) == 11
    np.testing.assert_array_equal(fast, slow)
