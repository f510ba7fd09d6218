"""What is left to chance: which pixels arrive, and sizes of any magnitude."""

import math

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


def sample_mask(shape: tuple[int, ...], density: float, seed: int) -> NDArray[np.bool_]:
    """Draw the mask of the pixels that arrive, each one kept independently.

    Parameters
    ----------
    shape : tuple of int
        Of the clip: (T, H, W).
    density : float
        Probability that a pixel arrives, above 0 and up to 1.
    seed : int
        Of NumPy's default generator; the same seed gives the same mask everywhere.

    Returns
    -------
    array of `shape`, bool
        True where a pixel arrives.

    Raises
    ------
    InputError
        If `density` is not in (0, 1].
    """
    check_density(density)
    return np.random.default_rng(seed).random(shape) < density


def check_density(density: float) -> None:
    """Raise InputError unless a share of the pixels is above 0 and up to 1."""
    if not 0 < density <= 1:  # also refuses NaN
        raise InputError(f"density {density:g} is not above 0 and up to 1: give 0.01 for 1 %")


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between `low` and `high`, both above 0, each magnitude as likely as another."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))
