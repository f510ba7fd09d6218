"""The scotopic task on integers: as `scotopia.model.task`, by the golden model."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.lfsr import RowRegisters, plane_number
from scotopia.graph.qformat import IntArray

from .engine import Engine, supports
from .integer_rule import IntegerRule
from .layered_rule import FIRE_BITS, LayeredRule, fire_threshold

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
    if isinstance(rule, LayeredRule) and supports(rule):
        engine = Engine(rule, height, width)
        for t in range(0, len(frames), CHUNK):
            shown, valid = samples[t : t + CHUNK], mask[t : t + CHUNK]
            yield from engine.advance(shown, valid, *_noise(rule, registers, len(shown)))
        return
    state = rule.initial_state(height, width)
    inputs: dict[str, IntArray] = {}
    for sample, valid in zip(samples, mask, strict=True):
        inputs = rule.given(sample, valid, inputs)
        for _ in range(rule.steps_per_frame):
            noise = registers.planes(rule.noise_planes) if rule.noise_planes else None
            state = rule.step(state, inputs, noise)
        yield state


def _noise(
    rule: LayeredRule, registers: RowRegisters, frames: int
) -> tuple[NDArray[np.bool_] | None, NDArray[np.float32] | None]:
    """Where cells fire in the steps of the next frames, and their dither, as `Engine.advance`."""
    fired, dither = [], []
    if rule.noise_planes:
        for _ in range(frames * rule.steps_per_frame):
            noise = registers.planes(rule.noise_planes)
            if rule.config.fire_rate < 1:
                fired.append(plane_number(noise[:FIRE_BITS]) < fire_threshold(rule.config))
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
