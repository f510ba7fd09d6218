import math

import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.model.baselines import (
    BASELINES,
    ORACLE_DECAYS,
    ORACLE_SIGMAS,
    Diffusion,
    GriddataLinear,
    Kalman,
    LastSeen,
    NormalizedConvolution,
    reconstruct,
    reconstruct_oracle,
)
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


def arriving(shape: tuple[int, int], samples: dict[tuple[int, int], float]) -> tuple:
    """Mask and masked frame of the given samples."""
    mask, masked = np.zeros(shape, np.bool_), np.zeros(shape)
    for place, value in samples.items():
        mask[place], masked[place] = True, value
    return mask, masked


def test_kalman_gain_by_hand() -> None:
    # A lone pixel: the prior's variance 0.06 falls by the first sample, which is the first
    # estimate, to 0.06 * 0.03 / (0.06 + 0.03) = 0.02. A frame adds 0.004.
    method = Kalman((1, 1), drift=0.004, noise=0.03)
    assert method.estimate(*arriving((1, 1), {(0, 0): 0.2})) == pytest.approx(0.2)
    gain = 0.024 / (0.024 + 0.03)
    expected = 0.2 + gain * (0.7 - 0.2)
    assert method.estimate(*arriving((1, 1), {(0, 0): 0.7})) == pytest.approx(expected)


def test_kalman_updates_all_pixels_by_the_textbook() -> None:
    # After frames without a sample, every variance is the prior's: C is known.
    shape, sigma, noise, prior = (5, 6), 1.5, 0.03, Kalman.PRIOR
    method = Kalman(shape, sigma, drift=1, noise=noise)
    start = method.estimate(*arriving(shape, {(0, 0): 0.4}))
    np.testing.assert_allclose(start, 0.4)
    samples = {(1, 1): 0.9, (1, 2): 0.1, (4, 5): 0.6}
    pixels = list(np.ndindex(shape))
    covariance = np.array(
        [
            [prior * math.exp(-(math.dist(i, j) ** 2) / (2 * sigma**2)) for j in samples]
            for i in pixels
        ]
    )
    seen = [pixels.index(place) for place in samples]
    innovation = np.array(list(samples.values())) - 0.4
    gain = covariance @ np.linalg.inv(covariance[seen] + noise * np.eye(3))
    expected = 0.4 + (gain @ innovation).reshape(shape)
    np.testing.assert_allclose(method.estimate(*arriving(shape, samples)), expected)


def test_kalman_without_drift_is_the_mean_of_all_samples() -> None:
    # The prior, at the first sample, weighs noise / PRIOR = 0.5 samples.
    method = Kalman((1, 1), drift=0, noise=0.03)
    estimates = [method.estimate(*arriving((1, 1), {(0, 0): v}))[0, 0] for v in (0.5, 1, 1, 1)]
    np.testing.assert_allclose(estimates, [(0.75 + k) / (1.5 + k) for k in range(4)])


def test_kalman_takes_more_samples_than_one_batch_holds() -> None:
    frame = np.random.default_rng(2).random((40, 30))
    mask = np.ones_like(frame, dtype=np.bool_)
    assert frame.size > 2 * Kalman.BATCH
    method = Kalman(frame.shape, sigma=0.3, noise=1e-6)
    np.testing.assert_allclose(method.estimate(mask, frame), frame, atol=1e-3)


def test_diffusion_between_two_samples_is_a_ramp() -> None:
    method = Diffusion((1, 7), memory=100, sweeps=200)
    method.estimate(*arriving((1, 7), {(0, 1): 0.2}))
    estimate = method.estimate(*arriving((1, 7), {(0, 5): 0.6}))
    np.testing.assert_allclose(estimate, [[0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6]], atol=1e-6)


def test_diffusion_goes_on_where_it_stopped() -> None:
    samples = arriving((9, 9), {(0, 0): 0.2, (8, 8): 1})
    nothing = arriving((9, 9), {})
    twice, once = Diffusion((9, 9), memory=9, sweeps=5), Diffusion((9, 9), memory=9, sweeps=10)
    twice.estimate(*samples)
    np.testing.assert_array_equal(twice.estimate(*nothing), once.estimate(*samples))


def test_diffusion_forgets_samples_after_its_memory() -> None:
    method = Diffusion((1, 5), memory=3, sweeps=200)
    method.estimate(*arriving((1, 5), {(0, 0): 0.2}))
    for _ in range(2):
        estimate = method.estimate(*arriving((1, 5), {(0, 4): 0.8}))
        assert estimate[0, 0] == 0.2
    np.testing.assert_allclose(method.estimate(*arriving((1, 5), {(0, 4): 0.8})), 0.8, atol=1e-6)


def test_griddata_is_exact_on_a_plane_and_takes_the_nearest_outside_the_samples() -> None:
    y, x = np.indices((6, 7))
    plane = 0.1 + 0.05 * y + 0.07 * x
    mask = np.zeros((6, 7), np.bool_)
    mask[1:5:3, 1:6:4] = True  # the corners of rows 1 to 4, columns 1 to 5
    estimate = GriddataLinear((6, 7)).estimate(mask, plane * mask)
    np.testing.assert_allclose(estimate[1:5, 1:6], plane[1:5, 1:6])
    assert estimate[0, 0] == pytest.approx(plane[1, 1])
    assert estimate[5, 6] == pytest.approx(plane[4, 5])


@pytest.mark.parametrize("columns", [(1,), (1, 4), (0, 1, 4)])
def test_griddata_takes_the_nearest_where_samples_span_no_triangle(
    columns: tuple[int, ...],
) -> None:
    mask, masked = arriving((3, 6), {(1, x): x / 10 for x in columns})
    estimate = GriddataLinear((3, 6)).estimate(mask, masked)
    nearest = [min(columns, key=lambda c: abs(c - x)) / 10 for x in range(6)]
    np.testing.assert_allclose(estimate, [nearest] * 3)


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


def test_oracle_sees_what_the_sensor_reads_and_scores_by_the_truth() -> None:
    readings = 1 - CLIP
    estimates, (sigma, decay) = reconstruct_oracle(CLIP, MASK, MASK * readings)
    method = NormalizedConvolution((10, 12), sigma, decay)
    seen = [method.estimate(m, m * r) for m, r in zip(MASK, readings, strict=True)]
    np.testing.assert_allclose(estimates, np.clip(seen, 0, 1), rtol=1e-6)


def test_oracle_refuses_a_clip_that_cannot_be_scored() -> None:
    with pytest.raises(InputError, match="a clip of 20 frames cannot be scored"):
        reconstruct_oracle(CLIP[:20], MASK[:20])


def test_oracle_has_its_documented_score_on_the_embedded_clip() -> None:
    clip = embedded_clip().frames
    estimates, (sigma, decay) = reconstruct_oracle(clip, sample_mask(clip.shape, 0.01, 0))
    assert psnr(clip, estimates) == pytest.approx(21.93, abs=0.02)
    assert (sigma, decay) == (1.5, 0.95)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("last-seen", 18.47),
        ("normalized-convolution", 20.80),
        ("kalman", 21.61),
        ("diffusion", 20.58),
        ("griddata-linear", 17.21),
    ],
)
def test_baseline_has_its_documented_score_on_the_embedded_clip(name: str, score: float) -> None:
    clip = embedded_clip().frames
    mask = sample_mask(clip.shape, 0.01, 0)
    assert psnr(clip, reconstruct(BASELINES[name], mask, mask * clip)) == pytest.approx(
        score, abs=0.02
    )
