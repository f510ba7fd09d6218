"""A step that sees several borders, on the array's gates."""

from pathlib import Path

import numpy as np
import pytest

from scotopia.graph.build import Builder
from scotopia.graph.operations import Border
from scotopia.graph.qformat import QFormat
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import Event
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.row import ControlLayout
from scotopia.hdl.sequencer import InstructionLayout
from scotopia.quantize.integer_rule import GraphRule
from scotopia.sim.amaranth_bench import run_amaranth
from scotopia.sim.simulators import Bench
from scotopia.sim.stimulus import Stimulus, golden_states
from scotopia.sim.verify import run_program

STEPS = 2


def graph_of(*borders: Border) -> StepGraph:
    """A step that looks for its neighbours through each of some borders."""
    build = Builder()
    x, age = build.channels({"x": QFormat(2, 4), "age": QFormat(0, 3, signed=False)})
    given = build.inputs({"sample": QFormat(1, 4), "valid": QFormat(1, 0, signed=False)})
    last = build.where(given[1], given[0], x)
    weight = np.array([1, -2, 1, 3, 2, 0, -1, 2, -3])[None, None] / 8
    total = last
    for index, border in enumerate(borders):
        total = total + build.linear(last if index % 2 else x, weight, [0.25], border)
        total = total - build.window(x, largest=index % 2 == 0, border=border) * 0.25
    older = build.where(given[1], 0.875, age - build.random(3) * 0.25)
    after = {"x": total.fit(QFormat(2, 4)), "age": older.fit(QFormat(0, 3, signed=False))}
    return build.graph(after)


def rule_of(*borders: Border) -> GraphRule:
    events = (Event("sample", "valid"),)
    return GraphRule(graph_of(*borders), STEPS, events, noise_seed=5)


def stimulus_of(rule: GraphRule, height: int, width: int) -> Stimulus:
    rng = np.random.default_rng(0)
    mask = rng.random((2, height, width)) < 0.6
    samples = np.where(mask, rng.integers(-16, 16, mask.shape), 0)
    return Stimulus(samples, mask, golden_states(rule, samples, mask))


ALL: tuple[Border, ...] = ("zero", "replicate", "wrap", "reflect")


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("borders", [("reflect",), ("wrap", "zero"), ALL])
def test_device_is_the_graph(borders: tuple[Border, ...], shape: tuple[int, int]) -> None:
    rule = rule_of(*borders)
    program = Program.compile(rule)
    assert program.borders == tuple(sorted(borders))
    stimulus = stimulus_of(rule, *shape)
    np.testing.assert_array_equal(run_program(program, stimulus), stimulus.expected)
    found, _cycles = run_amaranth(program, stimulus)
    np.testing.assert_array_equal(found, stimulus.expected)


def test_verilog_is_the_graph(tmp_path: Path) -> None:
    rule = rule_of(*ALL)
    emit(Program.compile(rule), 3, 4, tmp_path)
    stimulus = stimulus_of(rule, 3, 4)
    with Bench("verilator") as bench:
        found, _cycles = bench.run(rule, tmp_path, stimulus)
    np.testing.assert_array_equal(found, stimulus.expected)


def test_one_border_takes_no_choice() -> None:
    one, two = (Program.compile(rule_of(*borders)) for borders in (("wrap",), ("wrap", "zero")))
    assert "border" not in ControlLayout(one).members
    assert ControlLayout(two).members["border"] == range(2)
    assert InstructionLayout(two).size == InstructionLayout(one).size + 1
