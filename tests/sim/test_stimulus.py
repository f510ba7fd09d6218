from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.sim.stimulus import Stimulus, central_crop

Make = Callable[..., Any]  # a fixture of conftest.py

CLIP = np.arange(5 * 6 * 8).reshape(5, 6, 8) / 255


def test_crop_is_central_and_early() -> None:
    np.testing.assert_array_equal(central_crop(CLIP, "clip", 2, 3, 4), CLIP[:4, 2:4, 2:5])


def test_whole_clip_is_a_crop() -> None:
    np.testing.assert_array_equal(central_crop(CLIP, "clip", 6, 8, 5), CLIP)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (6, 9)])
def test_clip_smaller_than_the_array_is_refused(height: int, width: int) -> None:
    with pytest.raises(InputError) as caught:
        central_crop(CLIP, "street", height, width, 1)
    assert str(caught.value) == (
        f"clip street has 8 x 6 pixels, the array {width} x {height} cells: "
        "choose a larger clip or a smaller array"
    )


@pytest.mark.parametrize("count", [-1, 0, 6])
def test_frames_that_the_clip_lacks_are_refused(count: int) -> None:
    with pytest.raises(InputError) as caught:
        central_crop(CLIP, "street", 2, 2, count)
    assert str(caught.value) == (
        f"clip street has 5 frames, {count} were asked for: choose --frames from 1 to 5"
    )


def test_expected_states_are_the_golden_models(small_config: Make, random_rule: Make) -> None:
    rule = random_rule(0, small_config(steps_per_frame=3))
    mask = np.random.default_rng(0).random(CLIP.shape) < 0.4
    stimulus = Stimulus.of(rule, CLIP, mask)
    assert stimulus.shape == (6, 8)
    assert stimulus.expected.shape == (5 * 3, 5, 6, 8)
    state = rule.initial_state(6, 8)
    for step, expected in enumerate(stimulus.expected):
        state = rule.step(state, rule.given(rule.sample_codes(CLIP[step // 3]), mask[step // 3]))
        np.testing.assert_array_equal(expected, state)


def test_samples_are_zero_where_no_pixel_arrives(small_config: Make, random_rule: Make) -> None:
    rule = random_rule(0, small_config())
    mask = np.random.default_rng(0).random(CLIP.shape) < 0.4
    samples = Stimulus.of(rule, CLIP, mask).samples
    np.testing.assert_array_equal(samples[mask], rule.sample_codes(CLIP[mask]))
    assert not samples[~mask].any()
