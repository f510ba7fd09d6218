"""What is left to chance: which pixels arrive, and sizes of any magnitude."""

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError


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


def seen_mask(
    name: str, shape: tuple[int, ...], density: float, seed: int, inputs: Collection[str]
) -> NDArray[np.bool_]:
    """Draw the mask of a clip as `sample_mask` does, for who would judge by what is seen of it.

    Parameters
    ----------
    name, shape
        Of the clip; (T, H, W).
    inputs
        What a rule sees of samples, `RuleConfig.inputs`; one that sees none needs none.

    Raises
    ------
    InputError
        If `density` is not in (0, 1], or no pixel arrives.
    """
    mask = sample_mask(shape, density, seed)
    if inputs:
        check_seen(f"clip {name}", mask, density, seed)
    return mask


def check_seen(what: str, mask: NDArray[np.bool_], density: float, seed: int) -> None:
    """Raise InputError if no pixel of (T, H, W) arrives."""
    if not mask.any():
        frames, height, width = mask.shape
        raise InputError(
            f"{what}: no pixel of {frames} frame(s) of {width} x {height} arrives at "
            f"density {density:g} and seed {seed}, so that nothing would be seen: raise the "
            "density, or show more or larger frames"
        )


def check_density(density: float) -> None:
    """Raise InputError unless a share of the pixels is above 0 and up to 1."""
    if not 0 < density <= 1:  # also refuses NaN
        raise InputError(f"density {density:g} is not above 0 and up to 1: give 0.01 for 1 %")


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between `low` and `high`, both above 0, each magnitude as likely as another."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))
