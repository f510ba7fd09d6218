"""Synthetic motion: photographs that pan, zoom and turn, or random fields that drift and seethe.

Other photographs move in front. The photographs are the ones that scikit-image carries in its
package, so that a rule can be trained on any machine without a download.
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

from .sampling import log_uniform
from .video import Clip

#: Share of the scenes that are no photograph but a random field.
FIELD_SHARE = 1 / 4

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

    A quarter show a random field (see `_random_field`), the others a photograph: two thirds of
    their cameras stand still, the others move at 0.05 to 3 pixels a frame. Zero to four objects
    move in front at up to 4 pixels a frame. Clip n of a seed is always the same.

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
    if rng.random() < FIELD_SHARE:
        scene = _random_field(frames, size, rng)
    else:
        still = rng.random() < 2 / 3
        speed = 0.0 if still else log_uniform(rng, 0.05, 3)
        scene = _moving_view(photographs, frames, size, speed, rng)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for _ in range(rng.integers(0, 5)):
        texture = _moving_view(photographs, frames, size, 0.0, rng)
        brightness = rng.uniform(0, 1)  # half-flat objects: most things are smoother than gravel
        texture = brightness + rng.uniform(0.1, 1) * (texture - brightness)
        position = torch.from_numpy(rng.uniform(0, size, 2))
        velocity = torch.from_numpy(rng.normal(0, 1, 2)) * math.exp(rng.uniform(-3, 1.4))
        radii = [log_uniform(rng, size / 20, size / 3) for _ in range(2)]
        turn = rng.uniform(0, math.pi)
        box = rng.random() < 0.5
        for t in range(frames):
            # Objects leave on one side and come back on the other.
            y, x = torch.remainder(position + velocity * t + max(radii), size + 2 * max(radii))
            dy, dx = rows - (y - max(radii)), columns - (x - max(radii))
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
    scale = log_uniform(rng, 1, max(1.01, min(height, width) / size))
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


def _random_field(frames: int, size: int, rng: np.random.Generator) -> Tensor:
    """Draw water, leaves, smoke: a Gaussian random field; (frames, size, size).

    How long its patterns are, how fast they drift and how soon they are forgotten differs from
    field to field, so that no one blur and no one memory suits them all: what a filter needs must
    be seen in the samples. Each wave of the field is a process of first order, and the field is
    periodic in space.
    """
    frequencies = 2 * np.pi * np.fft.fftfreq(size)
    ky, kx = np.meshgrid(frequencies, frequencies, indexing="ij")
    k = np.hypot(kx, ky)
    length = log_uniform(rng, 1, size / 4)
    amplitude = (1 + (k * length) ** 2) ** (-rng.uniform(1.2, 2.5) / 2)
    amplitude[0, 0] = 0
    # Details live shorter than what is large.
    life = log_uniform(rng, 2, 500) / (1 + k * length) ** rng.uniform(0, 1)
    heading = rng.uniform(0, 2 * np.pi)
    along = kx * np.cos(heading) + ky * np.sin(heading)
    turn = np.zeros_like(k)  # of each wave in a frame, radians
    if rng.random() < 1 / 2:
        turn += log_uniform(rng, 0.02, 2) * along  # a drift, pixels a frame
    if rng.random() < 1 / 2:
        turn += rng.uniform(0, 0.6) * np.sign(along) * np.sqrt(k)  # short waves of water lag
    step, renewed = np.exp(-1 / life + 1j * turn), np.sqrt(1 - np.exp(-2 / life))

    waves = np.fft.fft2(rng.standard_normal((size, size)))
    field = np.empty((frames, size, size))
    for t in range(frames):
        field[t] = np.fft.ifft2(amplitude * waves).real
        waves = step * waves + renewed * np.fft.fft2(rng.standard_normal((size, size)))
    contrast, brightness = log_uniform(rng, 0.02, 0.3), rng.uniform(0.1, 0.9)
    return torch.from_numpy(brightness + contrast * field / field.std()).float()
