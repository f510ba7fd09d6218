"""A state as a picture: RGBA where its channels are that, else channel by channel."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]

#: Channels of a picture, premultiplied: its colours are no brighter than its opacity.
RED, ALPHA = slice(0, 3), 3

#: A cell counts as visible above this opacity, and a colour as above it only if it is by more than
#: this: what is learned is not exact.
VISIBLE, SLACK = 0.1, 0.2

#: Share of the visible cells that have to be premultiplied.
MOST = 0.95


def is_rgba(values: Values) -> bool:
    """Whether states (T, C, H, W) begin with a premultiplied picture, by what they hold."""
    if values.shape[1] <= ALPHA:
        return False
    alpha = values[:, ALPHA]
    seen = alpha > VISIBLE
    if not seen.any():
        return False
    colours = np.moveaxis(values[:, RED], 1, 0)[:, seen]
    fits = (colours <= np.minimum(alpha[seen], 1) + SLACK) & (colours >= -SLACK)
    return bool(fits.all(0).mean() >= MOST)


def on_white(values: Values) -> NDArray[np.float64]:
    """Return the picture of states (..., C, H, W) on white, (..., H, W, 3) in [0, 1]."""
    alpha = np.clip(values[..., ALPHA : ALPHA + 1, :, :], 0, 1)
    picture: NDArray[np.float64] = np.clip(1 - alpha + values[..., RED, :, :], 0, 1)
    return np.moveaxis(picture, -3, -1).astype(np.float64)
