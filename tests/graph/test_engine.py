import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scotopia.graph import golden, native
from scotopia.graph.build import Builder
from scotopia.graph.c.vectors import TILE, engine_source
from scotopia.graph.engine import Engine
from scotopia.graph.operations import AROUND, HERE, OPERATIONS
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.sim.random_graphs import any_graph

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
    pytest.mark.usefixtures("compiler"),
]

SEEDS = range(14)
SIZES = [(3, 2 * TILE + 1), (2, TILE - 1), (2, TILE), (1, 1), (5, 1)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile with little effort: what is computed is the same."""
    flags = ("-O1" if flag == "-O3" else flag for flag in native.FLAGS)
    monkeypatch.setattr(native, "FLAGS", tuple(flags))


def assert_engine_is_golden(
    graph: StepGraph, moment: Any, sizes: list[tuple[int, int]] = SIZES
) -> None:
    """Compare three steps, the last of which has other inputs."""
    for seed, size in enumerate(sizes):
        first, second = moment(graph, seed, *size), moment(graph, seed + 99, *size)
        engine = Engine(graph, *size)
        assert engine.compiled
        engine.state = expected = first.state
        for steps, now in ((2, first), (1, second)):
            found = engine.advance(now.inputs, steps, noise_of(now))
            for _ in range(steps):
                expected = golden.step(graph, expected, now.inputs, now.noise)
            np.testing.assert_array_equal(found, expected)


def noise_of(moment: Any) -> Callable[[], IntArray | None]:
    return lambda: moment.noise


@pytest.mark.parametrize("seed", SEEDS)
def test_compiled_steps_are_those_of_the_golden_model(seed: int, moment: Any) -> None:
    assert_engine_is_golden(any_graph(seed), moment)


def test_every_kind_of_operation_was_compared() -> None:
    kinds = {type(operation) for seed in SEEDS for operation in any_graph(seed).operations}
    assert kinds == set(OPERATIONS)


def layer(bits: int, weights: list[list[int]], taps: int = AROUND) -> StepGraph:
    """A graph of one layer that sees channels of so many bits."""
    build = Builder()
    format = QFormat(bits, 0)
    x = build.channels({f"x{i}": format for i in range(len(weights[0]))})
    kernels = np.array(weights, float)[:, :, None] * [1, 2, 0, 0, -1, 0, 0, 0, 1][:taps]
    total = build.linear(x, kernels, [7.0] * len(weights), "replicate")
    low = total.fit(format, overflow=Overflow.WRAP)
    high = total.fit(QFormat(32, -8), Rounding.RND_CONV, Overflow.WRAP) * 2.0**-8
    high = high.fit(format, overflow=Overflow.WRAP)
    parts = [(low, high)[i % 2][i % len(total)] for i in range(len(x))]
    return build.graph({f"x{i}": part for i, part in enumerate(parts)})


@pytest.mark.parametrize("taps", [HERE, AROUND])
@pytest.mark.parametrize(
    ("bits", "weights", "type"),
    [
        (8, [[5, -7, 127]], "float_int32_t"),
        (10, [[4001, -3999, 4003], [3999, -4001, 1]], "float_int32_t"),  # in groups
        (10, [[1 << 12, 3, 1 << 16, 5 << 12, 1]] * 17, "float_int32_t"),
        (20, [[4001, -4003]], "double_int64_t"),
        (24, [[(1 << 20) + 1, 3], [1 << 30, -(1 << 30)]], "double_int64_t"),
        (29, [[(1 << 28) - 1, 1]], "int64_t_int64_t"),
    ],
)
def test_sums_are_exact_whatever_their_size(
    bits: int, weights: list[list[int]], type: str, taps: int, moment: Any
) -> None:
    graph = layer(bits, weights, taps)
    assert f"sums_{type}(" in engine_source(graph).text
    assert_engine_is_golden(graph, moment, SIZES[:2])


def test_extremes_of_groups_are_exact() -> None:
    # All of a layer's products at their ends: the sum is beyond what floats hold.
    graph = layer(10, [[4001, -3999, 4003], [3999, -4001, 1]])
    assert "ends[2]" in engine_source(graph).text
    for low, high in ((-512, 511), (511, -512)):
        state = np.broadcast_to(np.array([low, high, low])[:, None, None], (3, 4, 70))
        engine = Engine(graph, 4, 70)
        engine.state = state
        np.testing.assert_array_equal(engine.advance({}, 1), golden.step(graph, state, {}))


@pytest.mark.parametrize("width", [2 * TILE, TILE + 15, TILE + 1])
def test_rows_of_zeros_are_left_out_and_nothing_else(width: int) -> None:
    build = Builder()
    x = build.channels({"x": QFormat(6, 0)})
    total = build.linear(x, np.arange(1.0, 10)[None, None], [0.0], "wrap")
    graph = build.graph({"x": total.fit(QFormat(6, 0))})
    engine = Engine(graph, 3, width)
    for place in range(width):  # a single cell that is not zero
        state = np.zeros((1, 3, width), np.int64)
        state[0, 1, place] = 1
        engine.state = state
        np.testing.assert_array_equal(engine.advance({}, 1), golden.step(graph, state, {}))


def test_golden_model_serves_where_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch, moment: Any
) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    graph = any_graph(3)
    first = moment(graph, 0)
    engine = Engine(graph, 4, 5)
    assert not engine.compiled
    engine.state = first.state
    expected = golden.step(graph, first.state, first.inputs, first.noise)
    found = engine.advance(first.inputs, 1, noise_of(first))
    np.testing.assert_array_equal(found, expected)


def test_golden_model_serves_where_c_has_too_few_bits() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(1, 31)})
    graph = build.graph({"x": build.where(x < 2.0**-70, x, 0.0)})
    assert not Engine(graph, 2, 2).compiled
