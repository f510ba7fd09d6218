"""Synthetic motion: photographs that pan, zoom and turn, with other photographs moving in front.

The photographs are the ones that scikit-image carries in its package, so that a rule can be
trained on any machine without a download.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .video import Clip

#: Photographs of scikit-image's package with natural grey statistics.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)


@cache
def load_photographs() -> tuple[Tensor, ...]:
    """Load scikit-image's packaged photographs as (H, W) grey tensors in [0, 1]."""
    folder = Path(skimage.__file__).parent / "data"
    return tuple(
        torch.from_numpy(np.asarray(Image.open(folder / name).convert("L"), np.float32) / 255)
        for name in PHOTOGRAPHS
    )


def synthetic_clips(count: int, frames: int, size: int, seed: int, *, first: int = 0) -> list[Clip]:
    """Render clips number `first` on of an endless series, named by their number.

    Two thirds of the cameras stand still, the others move at 0.05 to 3 pixels a frame; zero to four
    objects move in front at up to 4 pixels a frame. Clip n of a seed is always the same.

    Returns
    -------
    `count` clips of (frames, size, size).
    """
    return [
        Clip(
            f"synthetic_{number:03}",
            _render(load_photographs(), frames, size, np.random.default_rng([seed, number])),
        )
        for number in range(first, first + count)
    ]


def _render(
    photographs: tuple[Tensor, ...], frames: int, size: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    still = rng.random() < 2 / 3
    speed = 0.0 if still else math.exp(rng.uniform(math.log(0.05), math.log(3)))
    scene = _moving_view(photographs, frames, size, speed, rng)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for _ in range(rng.integers(0, 5)):
        texture = _moving_view(photographs, frames, size, 0.0, rng)
        brightness = rng.uniform(0, 1)  # half-flat objects: most things are smoother than gravel
        texture = brightness + rng.uniform(0.1, 1) * (texture - brightness)
        position = torch.from_numpy(rng.uniform(0, size, 2))
        velocity = torch.from_numpy(rng.normal(0, 1, 2)) * math.exp(rng.uniform(-3, 1.4))
        radii = torch.from_numpy(np.exp(rng.uniform(math.log(size / 20), math.log(size / 3), 2)))
        turn = rng.uniform(0, math.pi)
        box = rng.random() < 0.5
        for t in range(frames):
            # Objects leave on one side and come back on the other.
            y, x = torch.remainder(position + velocity * t + radii.max(), size + 2 * radii.max())
            dy, dx = rows - (y - radii.max()), columns - (x - radii.max())
            u = (dx * math.cos(turn) + dy * math.sin(turn)) / radii[0]
            v = (dy * math.cos(turn) - dx * math.sin(turn)) / radii[1]
            inside = torch.maximum(u.abs(), v.abs()) < 1 if box else u * u + v * v < 1
            scene[t] = torch.where(inside, texture[t], scene[t])
    return scene.clamp(0, 1).numpy()


def _moving_view(
    photographs: tuple[Tensor, ...], frames: int, size: int, speed: float, rng: np.random.Generator
) -> Tensor:
    """Film one photograph with a camera of `speed` pixels a frame; (T, size, size)."""
    photograph = photographs[rng.integers(len(photographs))]
    if rng.random() < 0.5:
        photograph = photograph.flip(1)
    height, width = photograph.shape
    # Pixels of the photograph per pixel of the clip: 1 shows detail, the largest shows it all.
    scale = math.exp(rng.uniform(0, math.log(max(1.01, min(height, width) / size))))
    t = torch.arange(frames, dtype=torch.float32)
    heading = rng.uniform(0, 2 * math.pi) + t * rng.normal(0, 0.02)
    way = torch.stack([heading.cos(), heading.sin()]).cumsum(1) * speed * scale
    way = way + torch.from_numpy(rng.uniform(0, [[width], [height]])).float()
    zoom = scale * (1 + 0.3 * torch.sin(t * rng.normal(0, 0.03)) * (speed > 0))
    angle = rng.uniform(-0.3, 0.3) + t * rng.normal(0, 0.004) * (speed > 0)

    # Box-average the photograph first, so that a wide view does not alias.
    factor = max(1, int(scale))
    small = F.avg_pool2d(photograph[None, None], factor)
    axis = (torch.arange(size) - size / 2 + 0.5).float()
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = (angle.cos() * zoom)[:, None, None], (angle.sin() * zoom)[:, None, None]
    x = way[0][:, None, None] + u * cos - v * sin
    y = way[1][:, None, None] + u * sin + v * cos
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], -1)
    grid = 1 - (torch.remainder(grid + 1, 4) - 2).abs()  # reflect at the photograph's edges
    return F.grid_sample(small.expand(frames, -1, -1, -1), grid, align_corners=False)[:, 0]
