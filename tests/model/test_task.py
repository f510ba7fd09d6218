from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule, to_pixel, to_state
from scotopia.model.task import reconstruct, run
from scotopia.quantize import task as integer_task


def video(seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.random((4, 6, 7)).astype(np.float32), rng.random((4, 6, 7)) < 0.3


def test_an_estimate_is_the_prediction_after_all_steps_of_its_frame() -> None:
    torch.manual_seed(0)
    rule = Rule(RuleConfig(channels=2, hidden=3, steps_per_frame=3))
    frames, mask = video(0)
    state = rule.initial_state(1, 6, 7)
    for t in range(4):
        for _ in range(3):
            sample, valid = torch.from_numpy(frames[t]), torch.from_numpy(mask[t]).float()
            state = rule(state, to_state(sample)[None, None], valid[None, None])
        expected = to_pixel(state[0, 0]).detach().numpy()
        np.testing.assert_allclose(reconstruct(rule, frames, mask)[t], expected, atol=1e-6)


def test_pixels_that_do_not_arrive_have_no_effect() -> None:
    torch.manual_seed(1)
    rule = Rule(RuleConfig(channels=2, hidden=3))
    frames, mask = video(1)
    hidden = np.where(mask, frames, 1 - frames)
    assert np.array_equal(reconstruct(rule, frames, mask), reconstruct(rule, hidden, mask))


def test_no_frame_is_seen_before_its_time() -> None:
    torch.manual_seed(2)
    rule = Rule(RuleConfig(channels=2, hidden=3))
    frames, mask = video(2)
    first = next(iter(run(rule, frames[:1], mask[:1])))
    assert torch.equal(first, next(iter(run(rule, frames, mask))))


def test_the_integer_task_steps_the_golden_model(
    small_config: Callable[..., Any], random_rule: Callable[..., Any]
) -> None:
    rule = random_rule(3, small_config())
    frames, mask = video(3)
    state = rule.initial_state(6, 7)
    for t, found in enumerate(integer_task.run(rule, frames, mask)):
        for _ in range(rule.config.steps_per_frame):
            state = rule.step(state, rule.given(rule.sample_codes(frames[t]), mask[t]))
        assert np.array_equal(found, state)
        assert np.array_equal(
            integer_task.reconstruct(rule, frames, mask)[t], rule.pixels(state[0])
        )
