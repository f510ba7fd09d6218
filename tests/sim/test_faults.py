import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.faults import (
    Area,
    draw,
    every_fault,
    instrument,
    rule_faults,
    sure_faults,
    verilog_faults,
)
from scotopia.sim.mutation import run_states
from scotopia.sim.simulators import Bench
from scotopia.sim.stimulus import Stimulus

Make = Callable[..., IntegerRule]


@pytest.fixture
def rule(small_config: Make, random_rule: Make) -> IntegerRule:
    """A small rule, whose arrays compile fast."""
    return random_rule(5, small_config(channels=2, hidden=2, inputs=("valid",)))


@pytest.fixture
def verilog(rule: IntegerRule, tmp_path: Path) -> Path:
    emit(Program.compile(rule), 3, 3, tmp_path)
    return tmp_path


def test_faults_lie_in_every_area(rule: IntegerRule, verilog: Path) -> None:
    faults = every_fault(Program.compile(rule), verilog)
    assert {fault.area for fault in faults} == set(Area)
    assert len(faults) > 1000
    names = [fault.name for fault in faults]
    assert len(set(names)) > 0.99 * len(names)


def test_every_edit_changes_its_line_and_no_other(verilog: Path) -> None:
    texts = {path: path.read_text() for path in verilog.glob("*.v")}
    for fault in verilog_faults(verilog):
        (edit,) = fault.edits
        edit.plant(verilog)
        for path, before in texts.items():
            lines = before.split("\n"), path.read_text().split("\n")
            changed = [n for n, (a, b) in enumerate(zip(*lines, strict=True), 1) if a != b]
            assert changed == ([edit.line] if path.name == edit.file else [])
            path.write_text(before)


def test_rule_faults_can_be_loaded(rule: IntegerRule) -> None:
    program = Program.compile(rule)
    faults = list(rule_faults(program))
    assert {fault.area for fault in faults} == {Area.RULE, Area.ROUNDING, Area.SATURATION}
    for fault in faults:
        assert fault.program is not None
        assert fault.program.entries == program.entries
        assert fault.program.instructions != program.instructions
        assert fault.program.rule is rule


def test_draws_are_seeded_and_take_as_many_of_each_area(rule: IntegerRule, verilog: Path) -> None:
    faults = every_fault(Program.compile(rule), verilog)
    drawn = draw(faults, 3, seed=1)
    assert drawn == draw(faults, 3, seed=1) != draw(faults, 3, seed=2)
    counts = [sum(fault.area is area for fault in drawn) for area in Area]
    assert max(counts) == 3 and min(counts) >= 1


def test_instrumented_verilog_holds_every_fault_and_sleeps(
    rule: IntegerRule, verilog: Path, random_stimulus: Callable[..., Stimulus]
) -> None:
    program = Program.compile(rule)
    faults = draw(every_fault(program, verilog), 2, seed=3)
    instrument(verilog, faults)
    edits = [number for number, fault in enumerate(faults, 1) if fault.edits]
    text = "".join(path.read_text() for path in verilog.glob("*.v"))
    assert sorted(map(int, re.findall(r"fault == (\d+) \?", text))) == edits
    stimulus = random_stimulus(rule, 1, 4, 3, 3)
    with Bench() as bench:
        build = bench.build(rule, verilog, 3, 3)
        found = run_states(build, faults, stimulus)
    assert sum(bool(detail) for detail in found) > len(faults) // 2
    # Those that no gate can hide.
    for fault, detail in zip(faults, found, strict=True):
        if fault.area in (Area.BORDER, Area.WIRING):
            assert detail, fault.name


def test_sure_faults_need_a_row_inside(rule: IntegerRule, tmp_path: Path) -> None:
    program = Program.compile(rule)
    emit(program, 1, 2, tmp_path)
    with pytest.raises(InputError) as error:
        sure_faults(program, tmp_path)
    assert str(error.value) == (
        f"{tmp_path} has no row inside the borders: plant faults in an array of 3 rows or more"
    )


def test_verilog_that_differs_by_itself_is_refused(
    rule: IntegerRule, verilog: Path, random_stimulus: Callable[..., Stimulus]
) -> None:
    stimulus = random_stimulus(rule, 1, 1, 3, 3)
    wrong = Stimulus(stimulus.samples, stimulus.mask, stimulus.expected ^ 1)
    with Bench() as bench:
        build = bench.build(rule, verilog, 3, 3)
        with pytest.raises(InputError, match=r"^the Verilog differs before any fault is planted"):
            run_states(build, [], wrong)
    assert np.array_equal(stimulus.expected ^ 1, wrong.expected)
