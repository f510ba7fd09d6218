"""The golden model against rational numbers, cell by cell, from the docstrings alone."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest

from scotopia.graph import golden
from scotopia.graph.build import Builder
from scotopia.graph.operations import (
    OPERATIONS,
    Add,
    Channel,
    Constant,
    Fit,
    Input,
    Less,
    Linear,
    Maximum,
    Minimum,
    Multiply,
    Random,
    Select,
    Subtract,
    Window,
)
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.sim.random_graphs import any_graph

Round = Callable[[Fraction, Rounding], int]


def place(at: int, size: int, border: str) -> int | None:
    """Which cell is seen at a place that may lie beyond the grid; None for nothing."""
    if 0 <= at < size:
        return at
    inner = 1 if at < 0 else size - 2
    nearest = sorted([0, at, size - 1])[1]
    return {"zero": None, "replicate": nearest, "wrap": at % size, "reflect": inner}[border]


class Exact:
    """Values of words in cells, each worked out when it is asked for."""

    def __init__(self, graph: StepGraph, moment: Any, round_exactly: Round) -> None:
        self.graph, self.moment, self.round = graph, moment, round_exactly
        self.height, self.width = moment.state.shape[-2:]
        self.value = cache(self._value)

    def _value(self, word: int, y: int, x: int) -> Fraction:
        operation, lane = self.graph.made_by(word)
        match operation:
            case Channel(formats=formats):
                return self.unit(formats[lane]) * int(self.moment.state[lane, y, x])
            case Input(names=names, formats=formats):
                code = int(self.moment.inputs[names[lane]][y, x])
                return self.unit(formats[lane]) * code
            case Random(bits=bits):
                draws = [one for _, one in self.graph.of_kind(Random)]
                before = draws[: draws.index(operation)]
                first = sum(sum(one.bits) for one in before) + sum(bits[:lane])
                planes = self.moment.noise[first : first + bits[lane], y, x]
                return sum((Fraction(int(p), 2**i) for i, p in enumerate(planes, 1)), Fraction(0))
            case Constant(values=values):
                return Fraction(values[lane])
            case Linear(a=a, weight=weight, bias=bias, border=border):
                taps = range(9) if weight.shape[2] == 9 else [4]
                return Fraction(bias[lane]) + sum(
                    (
                        Fraction(weight[lane, i, k]) * self.around(one, y, x, tap, border)
                        for i, one in enumerate(a)
                        for k, tap in enumerate(taps)
                    ),
                    Fraction(0),
                )
            case Window(a=a, largest=largest, border=border):
                seen = [self.around(a[lane], y, x, tap, border) for tap in range(9)]
                return max(seen) if largest else min(seen)
            case Fit(a=a, formats=formats):
                return self.fit(self.value(a[lane], y, x), formats[lane], operation)
            case Select(condition=condition, a=a, b=b):
                chosen = a if self.value(condition[lane], y, x) else b
                return self.value(chosen[lane], y, x)
        first, second = (self.value(words[lane], y, x) for words in operation.arguments)
        return {
            Add: first + second,
            Subtract: first - second,
            Multiply: first * second,
            Minimum: min(first, second),
            Maximum: max(first, second),
            Less: Fraction(first < second),
        }[type(operation)]

    def unit(self, format: QFormat | None) -> Fraction:
        assert format is not None
        return Fraction(2) ** -format.frac_bits

    def around(self, word: int, y: int, x: int, tap: int, border: str) -> Fraction:
        row = place(y + tap // 3 - 1, self.height, border)
        column = place(x + tap % 3 - 1, self.width, border)
        return Fraction(0) if row is None or column is None else self.value(word, row, column)

    def fit(self, value: Fraction, format: QFormat, kind: Fit) -> Fraction:
        code = self.round(value / self.unit(format), kind.rounding)
        if kind.overflow is Overflow.WRAP:
            code %= 2**format.bits
            code -= 2**format.bits if code > format.highest else 0
        lowest = format.lowest + (kind.overflow is Overflow.SAT_SYM and format.signed)
        return sorted([lowest, code, format.highest])[1] * self.unit(format)


@pytest.mark.parametrize("seed", range(24))
def test_step_is_exact(seed: int, moment: Any, round_exactly: Round) -> None:
    graph = any_graph(seed)
    now = moment(graph, seed)
    exact = Exact(graph, now, round_exactly)

    def compare(index: int, codes: np.ndarray) -> None:
        for word, found in zip(graph.words(index), codes, strict=True):
            scale = Fraction(2) ** graph.fractions[word]
            for (y, x), code in np.ndenumerate(found):
                assert int(code) == exact.value(word, y, x) * scale, (graph.name(word), y, x)

    after = golden.step(graph, now.state, now.inputs, now.noise, compare)
    assert [tuple(f.shape) for f in after] == [now.state.shape[1:]] * len(graph.outputs)


def test_random_graphs_have_operations_of_every_kind() -> None:
    kinds = {type(operation) for seed in range(24) for operation in any_graph(seed).operations}
    assert kinds == set(OPERATIONS)


def test_many_grids_at_once_are_as_each_alone(moment: Any) -> None:
    graph = next(g for g in map(any_graph, range(99)) if g.inputs and g.random_bits)
    alone = [moment(graph, seed) for seed in range(3)]
    together = golden.step(
        graph,
        np.stack([one.state for one in alone]),
        {name: np.stack([one.inputs[name] for one in alone]) for name in graph.inputs},
        np.stack([one.noise for one in alone]),
    )
    for found, one in zip(together, alone, strict=True):
        assert (found == golden.step(graph, one.state, one.inputs, one.noise)).all()


def test_noise_of_another_number_of_planes_is_refused(moment: Any) -> None:
    graph = next(g for g in map(any_graph, range(99)) if g.random_bits)
    now = moment(graph, 0)
    with pytest.raises(ValueError, match=f"the rule takes {graph.random_bits}"):
        golden.step(graph, now.state, now.inputs, now.noise[1:])


@pytest.mark.parametrize("seed", range(12))
def test_pruned_graph_computes_the_same(seed: int, moment: Any) -> None:
    graph = any_graph(seed)
    pruned, now = graph.pruned(), moment(graph, seed)
    assert pruned.count < graph.count
    for word in range(pruned.count):
        given = isinstance(pruned.made_by(word)[0], Channel | Input | Random)
        assert given or pruned.readers[word] or word in pruned.outputs
    after = golden.step(graph, now.state, now.inputs, now.noise)
    assert (golden.step(pruned, now.state, now.inputs, now.noise) == after).all()


def test_two_words_of_one_name_are_refused() -> None:
    build = Builder()
    (x,) = build.channels({"x": QFormat(1, 3)})
    for _ in range(2):
        build.inputs({"a": QFormat(1, 3)})
    with pytest.raises(ValueError, match="two inputs are called a"):
        build.graph({"x": x})
