from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.model import baselines
from scotopia.model.errors import InputError
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.score import psnr
from scotopia.model.start import NEURONS, can_start_as_filter, start_as, start_as_filter
from scotopia.model.task import reconstruct, run
from scotopia.model.video import embedded_clip

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
    large = float_rule(2, small_config(**fields))
    frames, mask = shown()
    expected = reconstruct(small, frames, mask)
    assert not np.allclose(reconstruct(large, frames, mask), expected, atol=0.1)
    start_as(large, small)
    np.testing.assert_allclose(reconstruct(large, frames, mask), expected, atol=1e-4)


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
