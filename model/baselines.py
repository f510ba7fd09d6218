"""Reconstruction without learning: the scores that a trained rule has to beat.

Every baseline is online: it is given one frame's samples at a time and answers with its estimate
of that frame, so none of them can see a later one.

The defaults of `Kalman` and `Diffusion` are the best found by a search over a grid, by their mean
PSNR on 30 clips at 1 % of the pixels (mask seed 3): the first 120 frames of the 18 real ones that
scripts/training_clips.py writes for training, and twelve of `synthetic_clips(40, 100, 96, seed=7,
first=3000)`, the first six that move and the first six that are static and not flat (standard
deviation above 0.05). No other clip had a part in it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import griddata
from scipy.ndimage import gaussian_filter
from scipy.spatial import QhullError

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


class Kalman:
    """Scalar Kalman filter of each pixel, whose innovation a Gaussian prior spreads around it.

    A pixel has an estimate x and a variance P. Each frame adds q to P, up to the prior's P0. The
    errors of two pixels i and j are taken to correlate by g_ij = exp(-|i - j|^2 / 2s^2), so that
    they covary by C_ij = sqrt(P_i P_j) g_ij. The samples v of a frame update all pixels at once,
    x += C_:v (C_vv + r I)^-1 (v - x_v), which is the filter's equation (Kalman, 1960). Variances
    cannot be had so cheaply: each sample i lowers a pixel's by the factor (r / (P_i + r))^(g_ij^2),
    which is exact at the sample itself, if no other is near.

    Parameters
    ----------
    shape : (H, W)
    sigma : float
        s, in pixels.
    drift : float
        q, the variance that a frame adds.
    noise : float
        r, a sample's variance: that of the detail that its neighbours do not share.

    Searched: sigma 2.5 to 4, drift 0.004 to 0.016, noise 0.03 and 0.05.
    """

    PRIOR = 0.06  # P0, about the variance of brightness in photographs
    BATCH = 512  # samples that update at once: more only in dense frames, where one solve is slow

    def __init__(
        self,
        shape: tuple[int, int],
        sigma: float = 3.0,
        drift: float = 0.008,
        noise: float = 0.05,
    ) -> None:
        self._sigma = sigma
        self._drift = drift
        self._noise = noise
        self._estimate = np.full(shape, MID_GRAY)  # x
        self._variance = np.full(shape, self.PRIOR)  # P
        self._empty = True

    def estimate(self, mask: NDArray[np.bool_], masked: NDArray[Any]) -> NDArray[np.float64]:
        """See `Baseline.estimate`."""
        self._variance = np.minimum(self._variance + self._drift, self.PRIOR)
        rows, columns = np.nonzero(mask)
        values = masked[mask].astype(np.float64)
        if self._empty and values.size:
            self._estimate[:] = values.mean()
            self._empty = False
        for start in range(0, values.size, self.BATCH):
            part = slice(start, start + self.BATCH)
            self._update(rows[part], columns[part], values[part])
        return self._estimate.copy()

    def _update(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp], values: NDArray[np.float64]
    ) -> None:
        # g separates: pixel (y, x) and sample i correlate by down[y, i] * across[x, i].
        down = self._fade(np.arange(len(self._estimate))[:, None] - rows)
        across = self._fade(np.arange(self._estimate.shape[1])[:, None] - columns)
        variance = self._variance[rows, columns]
        deviation = np.sqrt(variance)
        covariance = down[rows] * across[columns] * np.outer(deviation, deviation)
        covariance[np.diag_indices_from(covariance)] += self._noise
        innovation = values - self._estimate[rows, columns]
        weight = deviation * np.linalg.solve(covariance, innovation)
        self._estimate += np.sqrt(self._variance) * ((down * weight) @ across.T)
        shrink = np.log1p(variance / self._noise)
        self._variance *= np.exp(-(down**2 * shrink) @ (across**2).T)

    def _fade(self, distance: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.exp(-(distance**2) / (2 * self._sigma**2))


class Diffusion:
    """Homogeneous-diffusion inpainting (Carlsson, 1988): the known pixels heat the others.

    Known is a pixel that has arrived in the last few frames, by its last sample. The others solve
    Laplace's equation, with no flow across the frame's edge. Red-black successive over-relaxation
    goes on from the frame before, so that a few sweeps are enough.

    Parameters
    ----------
    shape : (H, W)
    memory : int
        Frames, this one included, whose samples are known.
    sweeps : int
        Of the solver, a frame.

    Searched: memory 5 to 12. More than five sweeps a frame gain less than 0.02 dB.
    """

    RELAXATION = 1.6

    def __init__(self, shape: tuple[int, int], memory: int = 9, sweeps: int = 5) -> None:
        self._memory = memory
        self._sweeps = sweeps
        self._age = np.full(shape, memory)  # frames since a pixel arrived
        self._padded: NDArray[np.float64] | None = None  # the estimate in a frame of 1 pixel
        self._red = np.indices(shape).sum(axis=0) % 2 == 0

    def estimate(self, mask: NDArray[np.bool_], masked: NDArray[Any]) -> NDArray[np.float64]:
        """See `Baseline.estimate`."""
        if self._padded is None:
            if not mask.any():
                return np.full(mask.shape, MID_GRAY)
            height, width = mask.shape
            self._padded = np.full((height + 2, width + 2), masked[mask].mean(dtype=np.float64))
        padded = self._padded
        inside = padded[1:-1, 1:-1]
        inside[mask] = masked[mask]
        self._age += 1
        self._age[mask] = 0
        free = self._age >= self._memory
        # A quarter of the Laplacian takes a pixel to its neighbours' mean, more goes beyond.
        rates = [
            np.where(free & colour, self.RELAXATION / 4, 0) for colour in (self._red, ~self._red)
        ]
        for _ in range(self._sweeps):
            for rate in rates:
                padded[0], padded[-1] = padded[1], padded[-2]
                padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
                neighbours = (
                    padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
                )
                inside += rate * (neighbours - 4 * inside)
        return inside.copy()


class GriddataLinear:
    """Linear interpolation of this frame's samples alone, by `scipy.interpolate.griddata`.

    It is linear in the triangles of a Delaunay triangulation. Outside their hull, and where the
    samples span no triangle, a pixel takes the nearest sample; a frame without one is mid-gray.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._pixels = np.indices(shape).reshape(2, -1).T  # (H * W, 2)

    def estimate(self, mask: NDArray[np.bool_], masked: NDArray[Any]) -> NDArray[np.float64]:
        """See `Baseline.estimate`."""
        if not mask.any():
            return np.full(mask.shape, MID_GRAY)
        points, values = np.argwhere(mask), masked[mask].astype(np.float64)
        estimate = griddata(points, values, self._pixels, method="nearest")
        if len(points) >= 3:
            # Suppressed: samples on one line, which have no triangle.
            with suppress(QhullError):
                linear = griddata(points, values, self._pixels, method="linear")
                estimate = np.where(np.isnan(linear), estimate, linear)
        return np.asarray(estimate, dtype=np.float64).reshape(mask.shape)


Constructor = Callable[[tuple[int, int]], Baseline]

BASELINES: Mapping[str, Constructor] = {
    "last-seen": LastSeen,
    "normalized-convolution": NormalizedConvolution,
    "kalman": Kalman,
    "diffusion": Diffusion,
    "griddata-linear": GriddataLinear,
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
    clip: NDArray[Any], mask: NDArray[np.bool_], masked: NDArray[Any] | None = None
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Normalized convolution with the parameters that turn out best for this very clip.

    No real system could choose them so, for it takes the ground truth: this is
    `normalized-convolution-oracle`, the bar to clear.

    Parameters
    ----------
    clip : array (T, H, W)
        Ground truth in [0, 1].
    mask : array (T, H, W), bool
    masked : array (T, H, W), optional
        What arrives, if it is not mask * clip: what a noisy sensor reads.

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
    if masked is None:
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
