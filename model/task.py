"""The scotopic task: see a video by a few of its pixels, and predict them all."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .blocks import to_cells, to_pixels
from .rule import Rule, to_pixel, to_state
from .unroll import draw_dither, draw_fired, unroll

#: Frames that `reconstruct` unrolls at once: enough to keep the loop out of Python, few enough to
#: keep their states in the cache.
CHUNK = 8

#: Seed of which cells fire, where a rule's `fire_rate` is below 1, and of a dither.
FIRE_SEED = 0


@torch.no_grad()
def run(rule: Rule, frames: NDArray[np.float32], mask: NDArray[np.bool_]) -> Iterator[Tensor]:
    """Show a rule the pixels of `frames` (T, H, W) that `mask` lets through, frame by frame.

    Yields
    ------
    (C, H, W), the state of the cells after each frame.

    Raises
    ------
    InputError
        If the frames do not divide into the rule's cells.
    """
    samples, valids = shown(rule, frames, mask)
    state = rule.initial_state(1, *samples.shape[-2:])
    generator = torch.Generator().manual_seed(FIRE_SEED)
    samples = rule.sense(samples)
    for t in range(len(frames)):
        fired = draw_fired(rule, samples[:, t : t + 1], generator)
        dither = draw_dither(rule, samples[:, t : t + 1], generator)
        for step in range(rule.config.steps_per_frame):
            mask_now = None if fired is None else fired[:, step]
            noise = () if dither is None else (dither[:, step],)
            state = rule(state, samples[:, t], valids[:, t], mask_now, *noise)
        yield state[0]


@torch.no_grad()
def reconstruct(
    rule: Rule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the rule's estimate of every frame, (T, H, W) in [0, 1]; errors as for `run`."""
    samples, valids = shown(rule, frames, mask)
    state = rule.initial_state(1, *samples.shape[-2:])
    generator = torch.Generator().manual_seed(FIRE_SEED)
    estimates = []
    for t in range(0, len(frames), CHUNK):
        chunk = slice(t, t + CHUNK)
        predictions, state = unroll(rule, state, samples[:, chunk], valids[:, chunk], generator)
        estimates.append(to_pixel(to_pixels(predictions[0], rule.config.block))[:, 0])
    return torch.cat(estimates).numpy()


def shown(
    rule: Rule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[Tensor, Tensor]:
    """Samples and where they are valid, both (1, T, P, H, W) of the rule's cells."""
    samples = to_state(torch.from_numpy(np.where(mask, frames, 0).astype(np.float32)))
    valids = torch.from_numpy(mask.astype(np.float32))
    block = rule.config.block
    return to_cells(samples[None, :, None], block), to_cells(valids[None, :, None], block)
