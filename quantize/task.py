"""An integer rule that runs, by the golden model: by itself, or shown a clip."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.engine import Engine
from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import IntArray

from .integer_rule import IntegerRule


def states(
    rule: IntegerRule, height: int, width: int, frames: Iterable[Mapping[str, IntArray]]
) -> Iterator[IntArray]:
    """Run a rule on height x width cells, given the inputs of each frame, by name.

    Its random bits are the next planes of `RowRegisters`, step by step.

    Yields
    ------
    (C, H, W), the state's codes after each frame.
    """
    registers = RowRegisters(height, width, rule.noise_seed)

    def noise() -> IntArray | None:
        return registers.planes(rule.noise_planes) if rule.noise_planes else None

    state = rule.initial_state(height, width)
    engine = None
    if type(rule).step is IntegerRule.step:  # it does not watch its own
        engine = Engine(rule.graph, height, width)
        engine.state = state
    for inputs in frames:
        if engine is not None:
            yield engine.advance(inputs, rule.steps_per_frame, noise)
            continue
        for _ in range(rule.steps_per_frame):
            state = rule.step(state, inputs, noise())
        yield state


def run(
    rule: IntegerRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> Iterator[IntArray]:
    """Show a rule the pixels of `frames` (T, H, W) that `mask` lets through, as `states` does."""
    height, width = frames.shape[1:]
    return states(rule, height, width, _shown(rule, frames, mask))


def _shown(
    rule: IntegerRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> Iterator[dict[str, IntArray]]:
    inputs: dict[str, IntArray] = {}
    for pixels, valid in zip(frames, mask, strict=True):
        inputs = rule.shown(pixels, valid, inputs)
        yield inputs


def reconstruct(
    rule: IntegerRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the rule's estimate of every frame, (T, H, W) in [0, 1]."""
    return np.stack([rule.pixels(state[0]) for state in run(rule, frames, mask)])
