import math

import numpy as np
import pytest

from scotopia.model.baselines import (
    BASELINES,
    ORACLE_DECAYS,
    ORACLE_SIGMAS,
    LastSeen,
    NormalizedConvolution,
    reconstruct,
    reconstruct_oracle,
)
from scotopia.model.errors import InputError
from scotopia.model.sampling import sample_mask
from scotopia.model.score import psnr
from scotopia.model.video import embedded_clip

CLIP = np.random.default_rng(1).random((24, 10, 12))
MASK = sample_mask(CLIP.shape, 0.1, 0)


def test_last_seen_by_hand() -> None:
    mask = np.array([[[1, 0, 0]], [[0, 1, 0]], [[1, 0, 0]]], dtype=np.bool_)
    masked = np.array([[[0.2, 0, 0]], [[0, 0.6, 0]], [[1.0, 0, 0]]])
    expected = [
        [[0.2, 0.2, 0.2]],  # the mean of all samples so far: 0.2
        [[0.2, 0.6, 0.4]],  # 0.4
        [[1.0, 0.6, 0.6]],  # 0.6
    ]
    np.testing.assert_allclose(reconstruct(LastSeen, mask, masked), expected, rtol=1e-6)


def blur_by_hand(row: list[float], sigma: float) -> list[float]:
    """Gaussian blur of a row whose ends are mirrored (d c b a | a b c d | d c b a)."""
    mirrored = row + row[::-1]
    radius = int(4 * sigma + 0.5)
    kernel = {k: math.exp(-(k**2) / (2 * sigma**2)) for k in range(-radius, radius + 1)}
    return [
        sum(w * mirrored[(x + k) % len(mirrored)] for k, w in kernel.items()) / sum(kernel.values())
        for x in range(len(row))
    ]


def test_normalized_convolution_by_hand() -> None:
    # Frame 0: the first of four pixels is 0.8. Frame 1: the last one is 0.2.
    mask = np.array([[[1, 0, 0, 0]], [[0, 0, 0, 1]]], dtype=np.bool_)
    masked = np.array([[[0.8, 0, 0, 0]], [[0, 0, 0, 0.2]]])
    a, d = [0.85 * 0.8, 0, 0, 0.2], [0.85, 0, 0, 1]
    expected = [
        (near_a + 0.001 * wide_a) / (near_d + 0.001 * wide_d)
        for near_a, wide_a, near_d, wide_d in zip(
            blur_by_hand(a, 2),
            blur_by_hand(a, 8),
            blur_by_hand(d, 2),
            blur_by_hand(d, 8),
            strict=True,
        )
    ]
    method = NormalizedConvolution((1, 4))
    np.testing.assert_allclose(method.estimate(mask[0], masked[0]), [[0.8] * 4])
    np.testing.assert_allclose(method.estimate(mask[1], masked[1]), [expected])


@pytest.mark.parametrize("name", BASELINES)
def test_estimate_never_depends_on_a_later_frame(name: str) -> None:
    whole = reconstruct(BASELINES[name], MASK, MASK * CLIP)
    for end in (1, 7, 23):
        beginning = reconstruct(BASELINES[name], MASK[:end], MASK[:end] * CLIP[:end])
        np.testing.assert_array_equal(beginning, whole[:end])


@pytest.mark.parametrize("name", BASELINES)
def test_estimate_never_depends_on_a_pixel_that_did_not_arrive(name: str) -> None:
    other = np.where(MASK, CLIP, 1 - CLIP)
    np.testing.assert_array_equal(
        reconstruct(BASELINES[name], MASK, MASK * other),
        reconstruct(BASELINES[name], MASK, MASK * CLIP),
    )


@pytest.mark.parametrize("name", BASELINES)
def test_estimate_is_mid_gray_until_a_sample_arrives(name: str) -> None:
    nothing = np.zeros((2, 4, 4), dtype=np.bool_)
    estimates = reconstruct(BASELINES[name], nothing, nothing * 1.0)
    np.testing.assert_array_equal(estimates, np.full((2, 4, 4), 0.5))


@pytest.mark.parametrize("name", BASELINES)
def test_estimates_are_brightnesses(name: str) -> None:
    estimates = reconstruct(BASELINES[name], MASK, MASK * np.round(CLIP))
    assert estimates.dtype == np.float32
    assert estimates.min() >= 0
    assert estimates.max() <= 1


def test_oracle_is_the_best_of_its_grid() -> None:
    estimates, chosen = reconstruct_oracle(CLIP, MASK)
    scores = {}
    for sigma in ORACLE_SIGMAS:
        for decay in ORACLE_DECAYS:
            method = NormalizedConvolution((10, 12), sigma, decay)
            grid_point = [method.estimate(m, m * c) for m, c in zip(MASK, CLIP, strict=True)]
            scores[sigma, decay] = psnr(CLIP, np.array(grid_point))
    assert chosen == max(scores, key=lambda parameters: scores[parameters])
    assert psnr(CLIP, estimates) == pytest.approx(scores[chosen])


def test_oracle_refuses_a_clip_that_cannot_be_scored() -> None:
    with pytest.raises(InputError, match="a clip of 20 frames cannot be scored"):
        reconstruct_oracle(CLIP[:20], MASK[:20])


def test_oracle_has_its_documented_score_on_the_embedded_clip() -> None:
    clip = embedded_clip().frames
    estimates, (sigma, decay) = reconstruct_oracle(clip, sample_mask(clip.shape, 0.01, 0))
    assert psnr(clip, estimates) == pytest.approx(21.93, abs=0.02)
    assert (sigma, decay) == (1.5, 0.95)
