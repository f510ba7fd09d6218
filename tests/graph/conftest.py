import numpy as np
import pytest

from scotopia.graph.qformat import IntArray
from scotopia.graph.step import StepGraph


class Moment:
    """Random codes of all that a step of a graph reads."""

    def __init__(self, graph: StepGraph, seed: int, height: int = 4, width: int = 5) -> None:
        rng = np.random.default_rng(seed)

        def codes(word: int) -> IntArray:
            format = graph.formats[word]
            return rng.integers(format.lowest, format.highest + 1, (height, width))

        self.state = np.stack([codes(word) for word in graph.channels.values()])
        self.inputs = {name: codes(word) for name, word in graph.inputs.items()}
        drawn = rng.integers(0, 2, (graph.random_bits, height, width))
        self.noise = drawn if graph.random_bits else None


@pytest.fixture(scope="session")
def moment() -> type[Moment]:
    return Moment
