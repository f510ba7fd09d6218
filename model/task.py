"""The scotopic task: see a video by a few of its pixels, and predict them all."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .rule import Rule, to_pixel, to_state


@torch.no_grad()
def run(rule: Rule, frames: NDArray[np.float32], mask: NDArray[np.bool_]) -> Iterator[Tensor]:
    """Show a rule the pixels of `frames` (T, H, W) that `mask` lets through, frame by frame.

    Yields
    ------
    (C, H, W), the state after each frame.
    """
    state = rule.initial_state(1, *frames.shape[1:])
    seen = to_state(torch.from_numpy(frames * mask))
    for sample, valid in zip(seen, torch.from_numpy(mask).float(), strict=True):
        for _ in range(rule.config.steps_per_frame):
            state = rule(state, sample[None, None], valid[None, None])
        yield state[0]


def reconstruct(
    rule: Rule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the rule's estimate of every frame, (T, H, W) in [0, 1]."""
    return np.stack([to_pixel(state[0]).numpy() for state in run(rule, frames, mask)])
