"""How a reconstruction is scored: PSNR and SSIM, with a warm-up that does not count."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from scotopia.graph.errors import InputError

if TYPE_CHECKING:
    from .video import Clip

WARM_UP = 20
"""Frames at the start of a clip that are not scored."""

MAX_PSNR = 100.0
"""PSNR, in dB, of estimates as good as equal; finite, so that means and JSON can hold it."""

SSIM_WINDOW = 7
"""Side of the window that SSIM compares, in pixels (scikit-image's default)."""


MOTION_LAG = 10
"""Frames between the two that `motion` compares."""

STATIC_BELOW = 0.02
"""Motion of a clip that counts as static."""


def check_scorable(clip: "Clip") -> None:
    """Raise InputError, which names it, if a clip is too short for `psnr` or small for `ssim`."""
    try:
        _check_length(clip.frames)
        _check_size(clip.frames)
    except InputError as error:
        raise InputError(f"clip {clip.name}: {error}") from error


def motion(clip: NDArray[Any]) -> float:
    """How much a clip (T, H, W), T > `MOTION_LAG`, changes: the median pixel's change.

    The median over pixels and time of |frame[t + 10] - frame[t]|. A median, so that a camera which
    stands still before a few moving things counts as static.
    """
    return float(np.median(np.abs(clip[MOTION_LAG:] - clip[:-MOTION_LAG])))


def psnr(clip: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio over all scored frames together, in dB, peak 1.

    Parameters
    ----------
    clip : array (T, H, W)
        Ground truth in [0, 1].
    estimate : array (T, H, W)
        Is clipped to [0, 1].

    Returns
    -------
    float
        -10 log10 of the mean squared error, at most `MAX_PSNR`.

    Raises
    ------
    InputError
        If the clip has no more than `WARM_UP` frames.
    """
    return float(_decibel(_squared_error(*_scored(clip, estimate)).mean()))


def psnr_curve(clip: NDArray[Any], estimate: NDArray[Any]) -> NDArray[np.float64]:
    """PSNR of each frame alone, warm-up included: (T,), in dB, each at most `MAX_PSNR`."""
    return _decibel(_squared_error(clip, estimate).mean(axis=(1, 2)))


def ssim(clip: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Structural similarity, the mean over the scored frames; at most 1.

    scikit-image's `structural_similarity` with its defaults and data range 1. Parameters as for
    `psnr`.

    Raises
    ------
    InputError
        If the clip has no more than `WARM_UP` frames, or frames of a side below `SSIM_WINDOW`.
    """
    _check_size(clip)
    truth, guess = _scored(clip, estimate)
    guess = np.clip(guess, 0, 1)
    similarities = [
        structural_similarity(a, b, win_size=SSIM_WINDOW, data_range=1)  # type: ignore[no-untyped-call]
        for a, b in zip(truth.astype(np.float64), guess.astype(np.float64), strict=True)
    ]
    return float(np.mean(similarities))


def _check_length(clip: NDArray[Any]) -> None:
    if len(clip) <= WARM_UP:
        raise InputError(
            f"a clip of {len(clip)} frames cannot be scored, the first {WARM_UP} are warm-up: "
            f"give at least {WARM_UP + 1} frames"
        )


def _check_size(clip: NDArray[Any]) -> None:
    height, width = clip.shape[1:]
    if min(height, width) < SSIM_WINDOW:
        raise InputError(
            f"frames of {width} x {height} pixels are too small for SSIM: give a clip of at least "
            f"{SSIM_WINDOW} x {SSIM_WINDOW}"
        )


def _scored(clip: NDArray[Any], estimate: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    _check_length(clip)
    return clip[WARM_UP:], estimate[WARM_UP:]


def _squared_error(clip: NDArray[Any], estimate: NDArray[Any]) -> NDArray[np.float64]:
    if clip.shape != estimate.shape:  # NumPy would broadcast
        raise ValueError(f"clip has shape {clip.shape}, its estimate {estimate.shape}")
    squared: NDArray[np.float64] = np.square(np.clip(estimate, 0, 1).astype(np.float64) - clip)
    return squared


def _decibel(error: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    least = 10 ** (-MAX_PSNR / 10)
    return np.asarray(-10 * np.log10(np.maximum(error, least)))
