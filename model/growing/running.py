"""A float rule that grows: what `GrowingTask.grow` asks for."""

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.graph.lfsr import RowRegisters

from ..float_rule import FloatRule
from ..interpret import Interpreter
from ..running import NOISE_SEED, random_words
from .task import Advance


def advance(rule: FloatRule, height: int, width: int, noise_seed: int = NOISE_SEED) -> Advance:
    """Return what runs a rule; its random words are those of an integer rule of this seed."""
    registers, run = RowRegisters(height, width, noise_seed), Interpreter(rule.graph)

    @torch.no_grad()
    def steps(state: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        now = torch.from_numpy(state).float()[None]
        for _ in range(count):
            words = random_words(rule.graph, registers.planes(rule.graph.random_bits))
            now = run(now, None, torch.from_numpy(words).float()[None])
        return now[0].double().numpy()

    return steps
