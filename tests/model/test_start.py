import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.graph.errors import InputError
from scotopia.model import baselines
from scotopia.model.options import TrainOptions
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.score import psnr
from scotopia.model.scotopic.training import train
from scotopia.model.start import (
    CEILING,
    NEURONS,
    NEURONS_OF_VERDICT,
    can_start_as_filter,
    held_weights,
    settle,
    start_as,
    start_as_filter,
)
from scotopia.model.start import INPUTS as INPUTS_OF_FILTER
from scotopia.model.task import reconstruct, run
from scotopia.model.video import Clip, embedded_clip

Make = Callable[..., Any]  # a fixture of conftest.py


def started(small_config: Make, seed: int = 0, **fields: object) -> Rule:
    torch.manual_seed(seed)
    rule = Rule(small_config(hidden=NEURONS, steps_per_frame=4, trace_bits=10, **fields))
    start_as_filter(rule)
    return rule


def shown() -> tuple[Any, Any]:
    frames = embedded_clip().frames[:60, 48:80, 48:80]
    return frames, sample_mask(frames.shape, 0.02, 0)


def test_the_start_beats_normalized_convolution(small_config: Make) -> None:
    frames, mask = shown()
    fixed = baselines.BASELINES["normalized-convolution"]
    theirs = psnr(frames, baselines.reconstruct(fixed, mask, mask * frames))
    assert psnr(frames, reconstruct(started(small_config), frames, mask)) > theirs


def test_the_start_is_one_filter_whatever_else_the_rule_has(small_config: Make) -> None:
    frames, mask = shown()
    expected = reconstruct(started(small_config), frames, mask)
    for seed, fields in enumerate(({"perception": "sobel"}, {"channels": 6}, {"border": "zero"})):
        found = reconstruct(started(small_config, seed + 1, **fields), frames, mask)
        inner = np.s_[:5, 20:-20, 20:-20] if "border" in fields else np.s_[:]
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-4)


def test_chance_decides_what_the_start_does_not(small_config: Make) -> None:
    one, other = (started(small_config, seed, channels=6) for seed in (0, 1))
    assert torch.equal(one.update.weight[:2], other.update.weight[:2])
    assert not torch.equal(one.update.weight[2:6], other.update.weight[2:6])


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "residual"},
        {"perception": "depthwise"},
        {"hidden": NEURONS - 1},
        {"inputs": ("innovation", "trust", "recall")},
        {"block": 2, "channels": 5},
    ],
)
def test_shapes_without_room_for_the_filter(fields: dict[str, Any], small_config: Make) -> None:
    assert can_start_as_filter(small_config(hidden=NEURONS))
    config = small_config(**{"hidden": NEURONS, **fields})
    assert not can_start_as_filter(config)
    with pytest.raises(ValueError, match="has no room for the filter"):
        start_as_filter(Rule(config))


def test_a_pixel_that_changed_is_doubted_for_a_while_and_its_neighbours_too(
    small_config: Make,
) -> None:
    frames = np.full((60, 9, 9), 0.5, np.float32)
    mask = np.zeros(frames.shape, np.bool_)
    mask[0], mask[10, 4, 4] = True, True
    frames[10, 4, 4] = 0.7
    doubt = [state[1] for state in run(started(small_config), frames, mask)]
    # At first every sample surprises, since mid-grey codes as a little less than zero.
    calm, alarmed, later = doubt[9], doubt[10], doubt[-1]
    assert calm.abs().max() < 0.05
    assert alarmed[3:6, 3:6].min() > 0.1
    assert alarmed[0, 0] < 0.05
    assert later.max() < alarmed.max() / 2


@pytest.fixture
def judge(small_config: Make) -> Rule:
    rule = Rule(small_config(channels=3, hidden=NEURONS_OF_VERDICT, trace_bits=10))
    start_as_filter(rule)
    return rule


@torch.no_grad()
def vote(judge: Rule, missed_by: float, bent: float, steps: int = 1) -> float:
    """Verdict on the whole array after one sample at a prediction that its neighbours surpass."""
    state, valid = judge.initial_state(1, 9, 9), torch.zeros(1, 1, 9, 9)
    state[0, 0, 4, 4], valid[0, 0, 4, 4] = -bent, 1
    for _ in range(steps):
        state = judge(state, torch.full((1, 1, 9, 9), missed_by - bent), valid)
    return float(state[0, 2].sum())


@pytest.mark.parametrize("contrast", [0.02, 0.1, 0.5])
def test_a_sample_votes_for_smoothing_where_that_leads_towards_it(
    contrast: float, judge: Rule
) -> None:
    votes = {
        (missed_by, bent): vote(judge, missed_by * contrast, bent * contrast)
        for missed_by in (1, -1)
        for bent in (1, -1)
    }
    assert votes == {key: pytest.approx(votes[1, 1] * key[0] * key[1], rel=1e-4) for key in votes}
    assert votes[1, 1] > 0.2


def test_no_sample_no_vote_and_no_sample_votes_twice(judge: Rule) -> None:
    assert vote(judge, 0.0, 0.3) == pytest.approx(0, abs=1e-5)
    assert vote(judge, 0.3, 0.3, steps=5) == pytest.approx(vote(judge, 0.3, 0.3), rel=1e-4)


def test_the_doubt_follows_the_verdict(judge: Rule) -> None:
    doubts = []
    for verdict in (-0.02, 0, 0.02):
        state = judge.initial_state(1, 9, 9)
        state[0, 1], state[0, 2] = 0.1, verdict
        with torch.no_grad():
            for _ in range(8):
                state = judge(state, torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9))
        assert state[0, 2].sub(verdict).abs().max() < 1e-5  # which stays until the next vote
        doubts.append(float(state[0, 1, 4, 4]))
    assert doubts[0] + 0.02 < doubts[1] < doubts[2] - 0.02


def test_settled_a_ceiling_presses_down_what_is_above_it_alone(judge: Rule) -> None:
    settle(judge)
    free = copy.deepcopy(judge)
    with torch.no_grad():
        free.update.weight[1, NEURONS + 1] = 0
    left = {}
    for doubt in (CEILING - 0.1, 0.9):
        for rule in (free, judge):
            state = rule.initial_state(1, 9, 9)
            state[0, 1] = doubt
            with torch.no_grad():
                for _ in range(6):
                    state = rule(state, torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9))
            left[doubt, rule is judge] = float(state[0, 1, 4, 4])
    assert left[CEILING - 0.1, True] == left[CEILING - 0.1, False]
    assert left[0.9, True] < CEILING < CEILING + 0.1 < left[0.9, False]


def test_settled_the_doubt_follows_the_verdict_faster_and_is_else_the_same(judge: Rule) -> None:
    settled = copy.deepcopy(judge)
    settle(settled)
    rises = {}
    for verdict in (0, 0.02):
        for rule in (judge, settled):
            state = rule.initial_state(1, 9, 9)
            state[0, 1], state[0, 2] = 0.1, verdict
            with torch.no_grad():
                after = rule(state, torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9))
            rises[verdict, rule is settled] = float(after[0, 1, 4, 4])
    assert rises[0, True] == pytest.approx(rises[0, False], abs=1e-6)
    before, now = (rises[0.02, settled] - rises[0, settled] for settled in (False, True))
    assert now == pytest.approx(2 * before, rel=1e-3)


def test_settling_twice_or_without_a_verdict_changes_nothing(judge: Rule, float_rule: Make) -> None:
    settle(judge)
    for rule in (judge, float_rule(0, judge.config)):
        before = copy.deepcopy(rule.state_dict())
        settle(rule)
        assert all(before[name].equal(weight) for name, weight in rule.state_dict().items())
    assert len(held_weights(judge)) == 4


def test_training_leaves_the_verdict_alone(judge: Rule) -> None:
    before = copy.deepcopy(judge)
    held = held_weights(judge)
    assert [int(mask.sum()) for _, mask in held] == [
        6 * 9 * judge.config.perceived,
        6,
        2 * 13 + 2,
        2,
    ]
    clip = Clip("noise", np.random.default_rng(0).random((30, 16, 16), np.float32))
    options = TrainOptions(iterations=25, batch=2, crop=12, learning_rate=1e-2)
    train(judge, [clip], options)
    settle(before)
    for (weight, mask), was in zip(
        held, [weight for weight, _ in held_weights(before)], strict=True
    ):
        assert weight[mask].equal(was[mask])
        assert not weight[~mask].equal(was[~mask])


def test_only_a_verdict_as_written_is_left_alone(judge: Rule, float_rule: Make) -> None:
    assert held_weights(float_rule(0, judge.config)) == []
    assert held_weights(Rule(dataclasses.replace(judge.config, inputs=INPUTS_OF_FILTER))) == []
    with torch.no_grad():
        judge.update.weight[2, 12] += 1e-3
    assert held_weights(judge) == []


@pytest.mark.parametrize(
    ("its", "fields"),
    [
        ({}, {}),
        ({"perception": "sobel"}, {"channels": 6, "hidden": 9}),
        ({"perception": "sobel"}, {"perception": "sobel", "channels": 4, "hidden": 5}),
        ({"perception": "depthwise"}, {"perception": "depthwise", "hidden": 5}),
        ({"kind": "residual", "inputs": ("innovation",)}, {"kind": "residual", "channels": 6}),
        ({"block": 2, "channels": 5}, {"block": 2, "channels": 7}),
    ],
)
def test_a_rule_starts_as_a_smaller_one(
    its: dict[str, Any], fields: dict[str, Any], small_config: Make, float_rule: Make
) -> None:
    inputs = ("flicker", "innovation", "trust", "recall")
    small = float_rule(1, small_config(**{"inputs": inputs, **its}))
    small.training_record = {"clips": ["seen"]}
    large = float_rule(2, small_config(**fields))
    frames, mask = shown()
    expected = reconstruct(small, frames, mask)
    assert not np.allclose(reconstruct(large, frames, mask), expected, atol=0.1)
    start_as(large, small)
    np.testing.assert_allclose(reconstruct(large, frames, mask), expected, atol=1e-4)
    assert large.training_record["clips"] == ["seen"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"kind": "residual"},
            "a rule of kind residual cannot start as one of gated: choose gated",
        ),
        (
            {"hidden": 2},
            "a rule of hidden 2 cannot start as one of 3: choose 3 or more",
        ),
        (
            {"inputs": ("flicker", "innovation")},
            "a rule without input trust cannot start as one with it: add it to the inputs",
        ),
        (
            {"perception": "sobel"},
            "a rule of perception sobel cannot start as one of full: choose full",
        ),
    ],
)
def test_a_rule_without_room_for_the_other_is_refused(
    fields: dict[str, Any], sentence: str, small_config: Make, float_rule: Make
) -> None:
    inputs = ("flicker", "innovation", "trust", "recall")
    other = float_rule(0, small_config(hidden=3, inputs=inputs))
    rule = float_rule(0, small_config(**{"hidden": 3, "inputs": inputs, **fields}))
    with pytest.raises(InputError) as caught:
        start_as(rule, other)
    assert str(caught.value) == sentence
