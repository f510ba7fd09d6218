"""Cells that stand for more than one pixel: from pixels to cells and back."""

import torch.nn.functional as F
from torch import Tensor

from scotopia.graph.errors import InputError


def to_cells(pixels: Tensor, block: int) -> Tensor:
    """Give each cell its block x block pixels as channels.

    (..., 1, H, W) to (..., block**2, H / block, W / block), row by row of the block.

    Raises
    ------
    InputError
        If H or W is no multiple of `block`.
    """
    height, width = pixels.shape[-2:]
    if height % block or width % block:
        raise InputError(
            f"frames of {width} x {height} pixels do not divide into cells of {block} x {block}: "
            f"choose sides that are multiples of {block}"
        )
    return F.pixel_unshuffle(pixels, block)


def to_pixels(cells: Tensor, block: int) -> Tensor:
    """Undo `to_cells`."""
    return F.pixel_shuffle(cells, block)
