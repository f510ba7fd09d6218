"""Functions of one number as sums of clipped lines: what tanh and its like are made of.

f(x) is about `offset` + the sum over i of slopes[i] * x, clipped to knots[i]..knots[i + 1], where
the first knot may be minus infinity and the last one infinity.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: Functions that are lines far from zero, with the slopes there.
SMOOTH: dict[str, tuple[Callable[..., Tensor], float, float]] = {
    "tanh": (torch.tanh, 0, 0),
    "sigmoid": (torch.sigmoid, 0, 0),
    "erf": (torch.erf, 0, 0),
    "silu": (F.silu, 0, 1),
    "gelu": (F.gelu, 0, 1),
    "mish": (F.mish, 0, 1),
    "elu": (F.elu, 0, 1),
    "celu": (F.celu, 0, 1),
    "selu": (F.selu, 0, 1.0507009873554805),
    "softplus": (F.softplus, 0, 1),
    "log_sigmoid": (F.logsigmoid, 1, 0),
}

#: How far from zero a function is fitted. Beyond 16 all of them are lines to 1e-6.
_REACH = 16.0

#: Fraction bits of knots, and of slopes and offsets: few, so that a graph holds them exactly.
_KNOT_BITS, _SLOPE_BITS = 7, 12


@dataclass(frozen=True, eq=False)
class Lines:
    """A function that is a sum of clipped lines.

    Attributes
    ----------
    error
        The largest difference from what it stands for, over all numbers.
    """

    knots: NDArray[np.float64]
    slopes: NDArray[np.float64]
    offset: float
    error: float

    def __call__(self, x: Tensor) -> Tensor:
        """Compute it."""
        total = torch.full_like(x, self.offset)
        for slope, low, high in zip(self.slopes, self.knots[:-1], self.knots[1:], strict=True):
            total = total + float(slope) * x.clamp(float(low), float(high))
        return total


@cache
def fitted(name: str, count: int, arguments: tuple[tuple[str, object], ...] = ()) -> Lines:
    """Fit a function by so many bent lines between its straight ends.

    The knots are dense where it is curved, by the square root of its second derivative; its values
    there minimize the largest error (Lawson's reweighted least squares).
    """
    function, left, right = SMOOTH[name]
    x = np.linspace(-_REACH, _REACH, 4001)
    exact = function(torch.from_numpy(x), **dict(arguments)).numpy()
    dense = np.cumsum(np.sqrt(np.abs(np.gradient(np.gradient(exact, x), x))))
    least = np.inf
    best: NDArray[np.float64] = x
    knots: NDArray[np.float64] = x
    for end in (0.2, 0.35, 0.5, 0.7, 1.0):  # how much is left to the straight ends
        share = (np.arange(count + 1) + end) / (count + 2 * end)
        places = _rounded(np.interp(share * dense[-1], dense, x), _KNOT_BITS)
        straight = left * np.minimum(x - places[0], 0) + right * np.maximum(x - places[-1], 0)
        error, values = _least_values(x, exact - straight, places)
        if error < least:
            least, best, knots = error, values, places
    slopes = _rounded(np.diff(best) / np.diff(knots), _SLOPE_BITS)
    offset = best[0] - float(slopes @ knots[:-1])
    left, right = _rounded(np.array([left, right]), _SLOPE_BITS).tolist()
    bent, all_slopes = [*knots], [*slopes]
    if left:
        bent, all_slopes, offset = [-np.inf, *bent], [left, *all_slopes], offset - left * knots[0]
    if right:
        bent, all_slopes = [*bent, np.inf], [*all_slopes, right]
        offset -= right * knots[-1]
    offset = float(_rounded(np.array(offset), _SLOPE_BITS))
    lines = Lines(np.array(bent), np.array(all_slopes), offset, 0.0)
    fine = torch.linspace(-2 * _REACH, 2 * _REACH, 100_001, dtype=torch.float64)
    largest = (lines(fine) - function(fine, **dict(arguments))).abs().max()
    return replace(lines, error=float(largest))


def _rounded(numbers: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    return np.ldexp(np.round(np.ldexp(numbers, bits)), -bits)


def _least_values(
    x: NDArray[np.float64], exact: NDArray[np.float64], knots: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return the values at knots with the least largest error, and that error."""
    basis = np.stack([np.interp(x, knots, row) for row in np.eye(len(knots))], 1)
    weight = np.ones(len(x)) / len(x)
    best: NDArray[np.float64] = knots
    least = np.inf
    for _ in range(60):
        root = np.sqrt(weight)
        values = np.linalg.lstsq(basis * root[:, None], exact * root, rcond=None)[0]
        error = np.abs(basis @ values - exact)
        if error.max() < least:
            best, least = np.asarray(values, np.float64), float(error.max())
        weight = weight * error
        weight /= weight.sum()
    return least, best
