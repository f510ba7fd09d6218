"""Pictures of four channels: red, green and blue, each times alpha, and alpha."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from scotopia.graph.errors import InputError

from .lizard import lizard

#: Longest side of a target, in pixels: each is a cell.
LARGEST = 128


def target_picture(name: str) -> NDArray[np.float32]:
    """Return the target of a name: `lizard`, or a picture file.

    Returns
    -------
    (4, H, W) in [0, 1].

    Raises
    ------
    InputError
        If there is no such picture, it has no alpha or shows nothing, or is too large.
    """
    if name == "lizard":
        return lizard()
    path = Path(name)
    if not path.is_file():
        raise InputError(f"target {name} is no file: name a picture, or lizard")
    try:
        with Image.open(path) as image:
            width, height = image.size
            sees_through = image.has_transparency_data
            pixels = image.convert("RGBA") if max(image.size) <= LARGEST else image
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"target {path} is no picture ({reason}): give a PNG file") from error
    if max(width, height) > LARGEST:
        raise InputError(
            f"target {path} has {width} x {height} pixels, of which each is a cell: scale it to "
            f"{LARGEST} or fewer, better 40"
        )
    if not sees_through:
        raise InputError(
            f"target {path} has no alpha, which says where it is alive: save it with a "
            "transparent background"
        )
    levels = np.array(pixels, np.float32).transpose(2, 0, 1)
    rgba: NDArray[np.float32] = levels / np.float32(255)
    if not rgba[3].max() > 0.5:
        raise InputError(f"target {path} is transparent everywhere: give one that shows something")
    rgba[:3] *= rgba[3]
    return rgba


def on_white(state: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return what a state (C, H, W) shows, on white: (H, W, 3)."""
    shown = (1 - state[3:4] + state[:3]).clip(0, 1)
    return np.round(255 * shown).astype(np.uint8).transpose(1, 2, 0)
