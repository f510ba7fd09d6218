"""The scotopic task on integers: as `scotopia.model.task`, by the golden model."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .integer_rule import IntegerRule
from .qformat import IntArray


def run(
    rule: IntegerRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> Iterator[IntArray]:
    """Show a rule the pixels of `frames` (T, H, W) that `mask` lets through, frame by frame.

    Yields
    ------
    (C, H, W), the state's codes after each frame.
    """
    state = rule.initial_state(*frames.shape[1:])
    samples = np.where(mask, rule.sample_codes(frames), 0)
    for sample, valid in zip(samples, mask, strict=True):
        for _ in range(rule.config.steps_per_frame):
            state = rule.step(state, sample, valid)
        yield state


def reconstruct(
    rule: IntegerRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the rule's estimate of every frame, (T, H, W) in [0, 1]."""
    return np.stack([rule.pixels(state[0]) for state in run(rule, frames, mask)])
