import math

import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.model.score import MAX_PSNR, WARM_UP, motion, psnr, psnr_curve, ssim


def test_psnr_is_that_of_the_error_over_all_scored_frames_together() -> None:
    clip = np.zeros((WARM_UP + 2, 8, 8))
    estimate = clip.copy()
    estimate[WARM_UP], estimate[WARM_UP + 1] = 0.1, 0.3
    assert psnr(clip, estimate) == pytest.approx(-10 * math.log10((0.01 + 0.09) / 2))


def test_warm_up_is_not_scored() -> None:
    clip = np.random.default_rng(0).random((WARM_UP + 1, 8, 8))
    estimate = clip.copy()
    estimate[:WARM_UP] = 1 - estimate[:WARM_UP]
    assert psnr(clip, estimate) == MAX_PSNR
    assert ssim(clip, estimate) == pytest.approx(1)


def test_estimate_is_clipped_before_it_is_scored() -> None:
    clip = np.ones((WARM_UP + 1, 8, 8))
    assert psnr(clip, 3 * clip) == MAX_PSNR
    assert ssim(clip, 3 * clip) == pytest.approx(1)


def test_curve_has_every_frame() -> None:
    clip = np.zeros((3, 2, 2))
    estimate = np.zeros((3, 2, 2))
    estimate[1], estimate[2] = 0.1, 1
    assert psnr_curve(clip, estimate) == pytest.approx([MAX_PSNR, 20, 0])


def test_ssim_of_flat_frames_is_its_luminance_term() -> None:
    clip = np.full((WARM_UP + 1, 8, 8), 0.2, np.float32)
    estimate = np.full((WARM_UP + 1, 8, 8), 0.4, np.float32)
    c1 = 0.01**2
    expected = (2 * 0.2 * 0.4 + c1) / (0.2**2 + 0.4**2 + c1)
    assert ssim(clip, estimate) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("frames", [0, 1, WARM_UP])
def test_clip_no_longer_than_the_warm_up_is_refused(frames: int) -> None:
    clip = np.zeros((frames, 8, 8))
    for score in (psnr, ssim):
        with pytest.raises(InputError) as caught:
            score(clip, clip)
        assert str(caught.value) == (
            f"a clip of {frames} frames cannot be scored, the first 20 are warm-up: give at least "
            "21 frames"
        )


def test_frames_smaller_than_ssims_window_are_refused() -> None:
    clip = np.zeros((WARM_UP + 1, 6, 8))
    with pytest.raises(InputError) as caught:
        ssim(clip, clip)
    assert str(caught.value) == (
        "frames of 8 x 6 pixels are too small for SSIM: give a clip of at least 7 x 7"
    )


def test_shapes_that_numpy_would_broadcast_are_refused() -> None:
    clip = np.zeros((WARM_UP + 1, 8, 8))
    with pytest.raises(ValueError, match="shape"):
        psnr(clip, clip[:, :1])


def test_motion_is_the_median_change_in_ten_frames() -> None:
    ramp = np.arange(21)[:, None, None] / 100 * np.ones((4, 4))
    assert motion(ramp) == pytest.approx(0.1)


def test_a_few_things_that_move_leave_a_clip_static() -> None:
    clip = np.zeros((21, 4, 4))
    clip[:, :, 0] = np.random.default_rng(0).random((21, 4))
    assert motion(clip) == 0
