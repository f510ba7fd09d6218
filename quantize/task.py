"""The scotopic task on integers: as `scotopia.model.task`, by the golden model."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import IntArray

from .engine import Engine, supports
from .integer_rule import IntegerRule, plane_number

#: Frames that the engine runs through at once.
CHUNK = 8


def run(
    rule: IntegerRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> Iterator[IntArray]:
    """Show a rule the pixels of `frames` (T, H, W) that `mask` lets through, frame by frame.

    Its random bits are the next planes of `RowRegisters`, step by step.

    Yields
    ------
    (C, H, W), the state's codes after each frame.
    """
    samples = np.where(mask, rule.sample_codes(frames), 0)
    height, width = frames.shape[1:]
    registers = RowRegisters(height, width, rule.noise_seed)
    if supports(rule):
        engine = Engine(rule, height, width)
        for t in range(0, len(frames), CHUNK):
            shown, valid = samples[t : t + CHUNK], mask[t : t + CHUNK]
            yield from engine.advance(shown, valid, *_noise(rule, registers, len(shown)))
        return
    state = rule.initial_state(height, width)
    for sample, valid in zip(samples, mask, strict=True):
        for _ in range(rule.config.steps_per_frame):
            state = rule.step(state, sample, valid, registers.planes(rule.noise_planes))
        yield state


def _noise(
    rule: IntegerRule, registers: RowRegisters, frames: int
) -> tuple[NDArray[np.bool_] | None, NDArray[np.float32] | None]:
    """Where cells fire in the steps of the next frames, and their dither, as `Engine.advance`."""
    fired, dither = [], []
    if rule.noise_planes:
        for _ in range(frames * rule.config.steps_per_frame):
            noise = registers.planes(rule.noise_planes)
            if rule.config.fire_rate < 1:
                fired.append(rule.fires(noise))
            if rule.dither:
                below = plane_number(noise[-rule.dither :])
                dither.append(np.ldexp(below.astype(np.float32), -rule.dither))
    return (
        np.concatenate(fired) if fired else None,
        np.concatenate(dither) if dither else None,
    )


def reconstruct(
    rule: IntegerRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the rule's estimate of every frame, (T, H, W) in [0, 1]."""
    return np.stack([rule.pixels(state[0]) for state in run(rule, frames, mask)])
