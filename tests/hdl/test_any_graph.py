"""The array's program of any step graph, on its twin, against the golden model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scotopia.cli.rules import rule_path
from scotopia.graph import golden
from scotopia.graph.build import Builder, Value
from scotopia.graph.errors import InputError
from scotopia.graph.operations import OPERATIONS, Border
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import Event, Initial
from scotopia.hdl.program import Program, Shift
from scotopia.hdl.twin import ArrayTwin
from scotopia.model.video import embedded_clip
from scotopia.quantize.integer_rule import GraphRule, IntegerRule
from scotopia.sim.random_graphs import any_graph
from scotopia.sim.stimulus import Stimulus
from scotopia.sim.verify import run_program

Moment = Callable[..., Any]  # a fixture of conftest.py

BORDERS: tuple[Border, ...] = ("zero", "replicate", "wrap", "reflect")
SIDES = ((4, 5), (1, 3), (3, 1), (2, 2), (1, 1))


def compile_graph(graph: StepGraph, planes: int | None = None) -> Program:
    return Program.compile(GraphRule(graph, events=tuple(map(Event, graph.inputs))), planes)


def assert_step_is_golden(
    graph: StepGraph, moment: Moment, program: Program | None = None, sides: Any = SIDES
) -> None:
    program = program or compile_graph(graph)
    for seed, (height, width) in enumerate(sides):
        given = moment(graph, seed, height, width)
        expected = golden.step(graph, given.state, given.inputs, given.noise)
        found = ArrayTwin(program, height, width).step(given.state, given.inputs, given.noise)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("one_border", [False, True])
@pytest.mark.parametrize("first", range(0, 100, 10))
def test_program_is_the_graph(first: int, one_border: bool, moment: Moment) -> None:
    for seed in range(first, first + 10):
        graph = any_graph(seed, one_border=one_border)
        sides = [SIDES[0], SIDES[1 + seed % 4]]
        assert_step_is_golden(graph, moment, sides=sides)


@pytest.mark.parametrize("seed", range(10))
def test_program_is_a_larger_graph(seed: int, moment: Moment) -> None:
    assert_step_is_golden(any_graph(seed, 40), moment, sides=SIDES[:1])


def test_random_graphs_have_every_operation_and_border() -> None:
    graphs = [any_graph(seed) for seed in range(20)]
    assert {type(one) for graph in graphs for one in graph.operations} == set(OPERATIONS)
    assert {border for graph in graphs for border in graph.borders} == set(BORDERS)


X, Y = QFormat(2, 5), QFormat(1, 4, signed=False)
BIT = QFormat(1, 0, signed=False)


def step_of(
    make: Callable[[Builder, Value, Value], Value], format: QFormat, *mode: Any
) -> StepGraph:
    """A step of two channels, which makes the first of both, and exchanges nothing else."""
    build = Builder()
    x, y = build.channels({"x": format, "y": Y})
    return build.graph({"x": make(build, x, y).fit(format, *mode), "y": y})


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("format", [QFormat(3, 7), QFormat(1, 2), Y, QFormat(1, 0)])
def test_every_fit(rounding: Rounding, overflow: Overflow, format: QFormat, moment: Moment) -> None:
    for number in (0.375, -2.5):
        graph = step_of(lambda _, x, y: x * number + y, format, rounding, overflow)  # noqa: B023
        assert_step_is_golden(graph, moment)
    graph = step_of(lambda _, x, y: x * y, format, rounding, overflow)
    assert_step_is_golden(graph, moment)
    graph = step_of(lambda _, x, y: x.maximum(y), format, rounding, overflow)
    assert_step_is_golden(graph, moment)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("format", [X, Y, BIT, QFormat(1, 0)])
def test_window(border: Border, largest: bool, format: QFormat, moment: Moment) -> None:
    def around(build: Builder, x: Value, _y: Value) -> Value:
        return build.window(x, largest=largest, border=border)

    graph = step_of(around, format)
    program = compile_graph(graph)
    assert program.borders == (border,)
    assert_step_is_golden(graph, moment, program)


@pytest.mark.parametrize("border", BORDERS)
def test_each_tap_comes_from_its_neighbour(border: Border, moment: Moment) -> None:
    weight = 2.0 ** np.arange(9)[None, None] * [[[1, -1, 1, 1, -1, 1, 1, 1, -1]]]
    graph = step_of(lambda build, x, _y: build.linear(x, weight, [3], border), QFormat(14, 5))
    assert_step_is_golden(graph, moment)


def test_moves_go_through_the_borders_of_their_operations(moment: Moment) -> None:
    def around(build: Builder, x: Value, y: Value) -> Value:
        seen = [
            build.linear(x, np.ones((1, 1, 9)), [0], "zero"),
            build.linear(y, np.ones((1, 1, 9)), [0], "wrap"),
            build.window(x, border="reflect"),
            build.window(y, border="replicate", largest=False),
        ]
        return seen[0] + seen[1] - seen[2] - seen[3]

    graph = step_of(around, QFormat(8, 5))
    program = compile_graph(graph)
    assert program.borders == ("reflect", "replicate", "wrap", "zero")[:4]
    used = {op.border for op in program.routine("step") if op.shift >= Shift.NORTH}
    assert used == {0, 1, 2, 3}
    assert_step_is_golden(graph, moment, program)


@pytest.mark.parametrize("formats", [(BIT, BIT), (X, Y), (BIT, X), (Y, BIT)])
def test_comparisons_and_choices(formats: tuple[QFormat, QFormat], moment: Moment) -> None:
    build = Builder()
    a, b, c = build.channels({"a": formats[0], "b": formats[1], "c": BIT})
    after = {
        "a": build.where(c, a.minimum(b), a.maximum(b)).fit(formats[0]),
        "b": build.where(a < b, b, build.where(b < 0.5, a, 0.25)).fit(formats[1]),
        "c": build.where(c, 0 < (a - b).minimum(0.5), b > a).minimum(c),  # noqa: SIM300
    }
    assert_step_is_golden(build.graph(after), moment)


def test_channels_may_change_places(moment: Moment) -> None:
    build = Builder()
    a, b, c, _ = build.channels(dict.fromkeys("abcd", X))
    graph = build.graph({"a": b, "b": c, "c": a, "d": build.constant(0.75).fit(X)})
    assert_step_is_golden(graph, moment)


def test_channel_is_kept_while_a_neighbour_needs_it(moment: Moment) -> None:
    build = Builder()
    a, b = build.channels(dict.fromkeys("ab", X))
    mean = np.full((1, 1, 9), 0.125)
    changed = build.linear(b, mean, [0], "wrap").fit(X)
    graph = build.graph({"a": changed, "b": build.linear(a, mean, [0], "zero").fit(X)})
    assert_step_is_golden(graph, moment)


def test_random_numbers_are_drawn_in_the_order_of_the_graph(moment: Moment) -> None:
    build = Builder()
    (a,) = build.channels({"a": X})
    first, _unread, last = build.random(3, 2, 4)
    graph = build.graph({"a": (a + last - first * a).fit(X)})
    assert_step_is_golden(graph, moment)


def test_nothing_that_saturates_nowhere_is_clipped() -> None:
    build = Builder()
    a, b = build.channels(dict.fromkeys("ab", X))
    half = build.constant(0.5)
    graph = build.graph({"a": ((a + b) * half).fit(X), "b": b})
    assert not any(op.select for op in compile_graph(graph).routine("step"))


def test_word_of_one_reader_is_part_of_its_sum() -> None:
    def sums(graph: StepGraph) -> int:
        return len(list(compile_graph(graph).routine("step")))

    build = Builder()
    x, c, share = build.channels({"x": X, "c": X, "share": QFormat(0, 4, signed=False)})
    way = (share * (c - x)).fit(QFormat(3, 5))
    fused = build.graph({"x": (x + way).fit(X), "c": c, "share": share})
    build = Builder()
    x, c, share = build.channels({"x": X, "c": X, "share": QFormat(0, 4, signed=False)})
    way = (share * (c - x)).fit(QFormat(3, 5))
    kept = build.graph({"x": (x + way).fit(X), "c": (way * 0.5).fit(X), "share": share})
    assert sums(fused) + 2 < sums(kept)


def test_sum_that_no_cell_can_hold_is_refused() -> None:
    build = Builder()
    a, b = build.channels(dict.fromkeys("ab", QFormat(32, 0)))
    graph = build.graph({"a": (a * b).fit(QFormat(32, 0)), "b": b})
    with pytest.raises(InputError) as caught:
        compile_graph(graph)
    assert str(caught.value) == (
        "a sum needs 64 bits, a cell adds 63 at most: quantize the rule with fewer"
    )


def test_graph_that_does_not_fit_is_refused() -> None:
    build = Builder()
    a = build.channels({f"a{i}": X for i in range(12)})
    with pytest.raises(InputError, match="the rule does not fit a memory of 64 planes"):
        compile_graph(build.graph({f"a{i}": one for i, one in enumerate(a)}), 64)


def test_clearing_brings_the_first_state() -> None:
    build = Builder()
    a, b = build.channels({"a": X, "b": Y})
    graph = build.graph({"a": b.fit(X), "b": a.fit(Y)})
    initial = replace(Initial.zeros(2), fill=np.array([-0.75, 1]))
    program = Program.compile(GraphRule(graph, initial=initial))
    twin = ArrayTwin(program, 2, 3)
    twin.run("clear")
    found = [twin.read(word) for word in program.words.values()]
    np.testing.assert_array_equal(found, program.rule.initial_state(2, 3))


# Rules of today.


@pytest.mark.parametrize(("name", "clocks"), [("retina-int", 62_393), ("retina-shift", 31_830)])
def test_shipped_rules_take_no_more_clocks(name: str, clocks: int) -> None:
    program = Program.compile(IntegerRule.load(rule_path(name)))
    assert program.cycles("step", 64) <= clocks
    assert program.planes == 512


@pytest.mark.parametrize("name", ["retina-int", "retina-shift"])
def test_shipped_rules_see_the_clip(name: str) -> None:
    rule = IntegerRule.load(rule_path(name))
    frames = embedded_clip().frames[:3, 40:46, 40:47]
    mask = np.random.default_rng(0).random(frames.shape) < 0.2
    stimulus = Stimulus.of(rule, frames, mask)
    found = run_program(Program.compile(rule), stimulus)
    np.testing.assert_array_equal(found, stimulus.expected)


def test_program_is_any_rule_of_two_layers(layered_rule: Any, moment: Moment) -> None:
    for seed in range(0, 160, 4):
        rule = layered_rule(seed)
        assert_step_is_golden(rule.graph, moment, Program.compile(rule), SIDES[:2])
