"""An integer rule that grows: what `GrowingTask.grow` asks for, by the golden model."""

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.engine import Engine
from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import IntArray
from scotopia.model.growing.task import Advance

from .integer_rule import IntegerRule


def advance(rule: IntegerRule, height: int, width: int) -> Advance:
    """Return what runs a rule, from values to values: each the nearest that a code stands for."""
    registers = RowRegisters(height, width, rule.noise_seed)
    engine = Engine(rule.graph, height, width)

    def noise() -> IntArray | None:
        return registers.planes(rule.noise_planes) if rule.noise_planes else None

    def steps(state: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        engine.state = rule.codes(state)
        return rule.values(engine.advance({}, count, noise))

    return steps
