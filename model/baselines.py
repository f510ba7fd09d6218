"""Reconstruction without learning: the scores that a trained rule has to beat.

Every baseline is online: it is given one frame's samples at a time and answers with its estimate
of that frame, so none of them can see a later one.
"""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .score import psnr

MID_GRAY = 0.5
"""Estimate of a pixel about which no sample says anything."""

ORACLE_SIGMAS = (1.5, 2.0, 3.0)
ORACLE_DECAYS = (0.5, 0.7, 0.85, 0.95)


class Baseline(Protocol):
    """Online method; a new one for every clip."""

    def estimate(self, mask: NDArray[np.bool_], masked: NDArray[Any]) -> NDArray[np.float64]:
        """Estimate the frame of which `masked` has just arrived.

        Parameters
        ----------
        mask : array (H, W), bool
            Where a pixel has arrived.
        masked : array (H, W)
            The frame times its mask, values in [0, 1].

        Returns
        -------
        array (H, W), float64
            Not clipped. The caller must not write to it.
        """
        ...


class LastSeen:
    """Each pixel's last sample; before its first one, the running mean of all samples."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._value = np.zeros(shape)
        self._seen = np.zeros(shape, dtype=np.bool_)
        self._total = 0.0
        self._count = 0

    def estimate(self, mask: NDArray[np.bool_], masked: NDArray[Any]) -> NDArray[np.float64]:
        """See `Baseline.estimate`."""
        self._value[mask] = masked[mask]
        self._seen |= mask
        self._total += masked[mask].sum(dtype=np.float64)
        self._count += int(np.count_nonzero(mask))
        mean = self._total / self._count if self._count else MID_GRAY
        return np.where(self._seen, self._value, mean)


class NormalizedConvolution:
    """Normalized convolution (Knutsson and Westin, 1993) of samples that fade with age.

    With samples v under mask m, and G_s a Gaussian blur of standard deviation s pixels:
    a = l a + m v; d = l d + m; estimate = (G_s a + 0.001 G_4s a) / (G_s d + 0.001 G_4s d).
    The wide blur decides only where the narrow one finds no sample.

    Parameters
    ----------
    shape : (H, W)
    sigma : float
        s, in pixels.
    decay : float
        l, the share of a sample's weight that is left after a frame, in [0, 1].
    """

    def __init__(self, shape: tuple[int, int], sigma: float = 2.0, decay: float = 0.85) -> None:
        self._sigma = sigma
        self._decay = decay
        self._values = np.zeros(shape)  # a
        self._weights = np.zeros(shape)  # d

    def estimate(self, mask: NDArray[np.bool_], masked: NDArray[Any]) -> NDArray[np.float64]:
        """See `Baseline.estimate`."""
        self._values = self._decay * self._values + masked
        self._weights = self._decay * self._weights + mask
        weights = self._blur(self._weights)
        estimate = np.full_like(weights, MID_GRAY)
        return np.divide(self._blur(self._values), weights, out=estimate, where=weights > 0)

    def _blur(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        near = gaussian_filter(image, self._sigma)
        return near + 0.001 * gaussian_filter(image, 4 * self._sigma)


Constructor = Callable[[tuple[int, int]], Baseline]

BASELINES: Mapping[str, Constructor] = {
    "last-seen": LastSeen,
    "normalized-convolution": NormalizedConvolution,
}
"""Constructors by name, each given a frame's shape (H, W)."""


def reconstruct(
    baseline: Constructor,
    mask: NDArray[np.bool_],
    masked: NDArray[Any],
) -> NDArray[np.float32]:
    """Show a whole clip to a new baseline, frame by frame.

    Parameters
    ----------
    baseline : callable
        Constructor, for example `BASELINES["last-seen"]`.
    mask : array (T, H, W), bool
        From `sampling.sample_mask`.
    masked : array (T, H, W)
        mask * clip.

    Returns
    -------
    array (T, H, W), float32
        The estimates, clipped to [0, 1].
    """
    height, width = mask.shape[1:]
    method = baseline((height, width))
    estimates = np.empty(mask.shape, dtype=np.float32)
    for t in range(len(mask)):
        estimates[t] = np.clip(method.estimate(mask[t], masked[t]), 0, 1)
    return estimates


def reconstruct_oracle(
    clip: NDArray[Any], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Normalized convolution with the parameters that turn out best for this very clip.

    No real system could choose them so, for it takes the ground truth: this is
    `normalized-convolution-oracle`, the bar to clear.

    Parameters
    ----------
    clip : array (T, H, W)
        Ground truth in [0, 1].
    mask : array (T, H, W), bool

    Returns
    -------
    estimates : array (T, H, W), float32
        In [0, 1].
    parameters : (float, float)
        Standard deviation in pixels and decay, out of `ORACLE_SIGMAS` and `ORACLE_DECAYS`.

    Raises
    ------
    InputError
        If the clip is too short to be scored.
    """
    masked = mask * clip
    best_score = -np.inf
    for sigma, decay in product(ORACLE_SIGMAS, ORACLE_DECAYS):

        def configured(
            shape: tuple[int, int], sigma: float = sigma, decay: float = decay
        ) -> Baseline:
            return NormalizedConvolution(shape, sigma, decay)

        estimates = reconstruct(configured, mask, masked)
        score = psnr(clip, estimates)
        if score > best_score:
            best_score, best = score, (estimates, (sigma, decay))
    return best
