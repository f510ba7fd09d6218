import numpy as np
import pytest
from numpy.typing import NDArray

from scotopia.model.synthetic import PHOTOGRAPHS, load_photographs, synthetic_clips
from scotopia.model.video import Clip


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return synthetic_clips(16, frames=6, size=24, seed=0)


def unchanged(frames: NDArray[np.float32]) -> float:
    """Share of the pixels that never change by more than a float's rounding."""
    return float((np.ptp(frames, 0) < 1e-5).mean())


def test_photographs_are_all_there() -> None:
    photographs = load_photographs()
    assert len(photographs) == len(PHOTOGRAPHS) == 16
    assert all(p.min() >= 0 and p.max() <= 1 and p.std() > 0.01 for p in photographs)


def test_same_seed_gives_the_same_clips(clips: list[Clip]) -> None:
    for clip, again in zip(clips, synthetic_clips(3, 6, 24, 0), strict=False):
        np.testing.assert_array_equal(clip.frames, again.frames)
    assert not np.array_equal(clips[0].frames, synthetic_clips(1, 6, 24, 1)[0].frames)


def test_a_clip_does_not_depend_on_the_clips_before_it(clips: list[Clip]) -> None:
    (alone,) = synthetic_clips(1, 6, 24, 0, first=5)
    assert alone.name == clips[5].name == "synthetic_005"
    np.testing.assert_array_equal(alone.frames, clips[5].frames)


def test_clips_are_brightnesses_of_the_size_asked_for(clips: list[Clip]) -> None:
    for clip in clips:
        assert clip.frames.shape == (6, 24, 24)
        assert clip.frames.dtype == np.float32
        assert clip.frames.min() >= 0 and clip.frames.max() <= 1


def test_no_two_clips_are_alike(clips: list[Clip]) -> None:
    assert len({clip.frames.tobytes() for clip in clips}) == len(clips)


def test_some_cameras_stand_still_and_some_move(clips: list[Clip]) -> None:
    shares = [unchanged(clip.frames) for clip in clips]
    assert sum(share > 0.5 for share in shares) >= 2
    assert sum(share < 0.1 for share in shares) >= 2
