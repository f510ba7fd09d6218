from dataclasses import replace

import pytest

from scotopia.graph.operations import OPERATIONS, Fit
from scotopia.graph.qformat import Overflow
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim import mutation
from scotopia.sim.check import Verdict
from scotopia.sim.faults import Area, Fault, program_faults
from scotopia.sim.mutation import Fate, Outcome, prove, score
from scotopia.sim.specimen import specimen


def outcome(fate: Fate, area: Area = Area.CELL) -> Outcome:
    by = {Fate.CAUGHT: "by states", Fate.EQUIVALENT: "equivalent", Fate.MISSED: ""}[fate]
    return Outcome(Fault(area, f"a {fate.value} one"), fate, by, "")


def test_score_leaves_out_what_changes_nothing() -> None:
    caught, equal, missed = map(outcome, Fate)
    assert score([caught, caught, equal]) == 1.0
    assert score([caught, equal, missed]) == 0.5
    assert score([equal]) == score([]) == 0.0


def test_area_fails_if_a_fault_was_missed_or_none_was_planted() -> None:
    caught, equal, missed = map(outcome, Fate)
    assert mutation._check(Area.CELL, [caught, equal], 1.0).verdict is Verdict.PASSED
    assert mutation._check(Area.CELL, [caught, equal], 1.0).detail == "1 by states, 1 equivalent"
    failed = mutation._check(Area.CELL, [caught, missed], 1.0)
    assert (failed.verdict, failed.detail) == (Verdict.FAILED, "missed: a missed one")
    assert mutation._check(Area.BORDER, [caught], 1.0).verdict is Verdict.FAILED


def test_specimen_uses_every_kind_of_instruction() -> None:
    program = Program.compile(specimen())
    addends = {op.addend for op in program.instructions}
    assert len(addends) == 6
    assert {op.select for op in program.instructions} == {True, False}
    assert len({op.flag for op in program.instructions}) == 4
    assert len({op.shift for op in program.instructions}) >= 6
    assert {op.border for op in program.instructions} == {0, 1}


def test_specimen_uses_every_operation_and_every_way_to_fit() -> None:
    operations = specimen().graph.operations
    assert {type(operation) for operation in operations} == set(OPERATIONS)
    fits = [operation for operation in operations if isinstance(operation, Fit)]
    assert {fit.overflow for fit in fits} == set(Overflow)
    assert len({fit.rounding for fit in fits}) > 4


def test_specimen_saturates_at_both_ends() -> None:
    rule: IntegerRule = specimen()
    states = mutation._stimulus(rule, 0, 20, 6, 6).expected
    for channel, format in enumerate(rule.channel_formats):
        codes = states[:, channel]
        assert codes.min() == format.lowest or codes.max() == format.highest
        assert codes.max() - codes.min() > (format.highest - format.lowest) // 2


def test_missing_solver_leaves_a_fault_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program.compile(specimen())
    fault = next(iter(program_faults(program)))
    monkeypatch.setattr(mutation.equivalence, "missing", lambda: "z3 is not installed")
    found = mutation._asked(program, fault)
    assert (found.fate, found.detail) == (Fate.MISSED, "z3 is not installed")


@pytest.mark.parametrize(
    ("answer", "fate"), [(True, Fate.EQUIVALENT), (False, Fate.CAUGHT), (None, Fate.MISSED)]
)
def test_solver_decides_what_nothing_else_sees(
    monkeypatch: pytest.MonkeyPatch, answer: bool | None, fate: Fate
) -> None:
    program = Program.compile(specimen())
    monkeypatch.setattr(mutation.equivalence, "missing", lambda: "")
    monkeypatch.setattr(mutation.equivalence, "equivalent", lambda *_: answer)
    assert mutation._asked(program, next(iter(program_faults(program)))).fate is fate


@pytest.mark.slow
def test_every_planted_fault_is_caught_or_changes_nothing() -> None:
    checks, outcomes = prove(4)
    assert [check.name for check in checks] == [area.value for area in Area]
    assert [o.fault.name for o in outcomes if o.fate is Fate.MISSED] == []
    assert score(outcomes) == 1.0


@pytest.mark.slow
def test_fault_that_nothing_looks_at_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A comparison that sees nothing, and a solver that knows nothing.
    monkeypatch.setattr(mutation, "run_states", lambda _, faults, *__, **___: [""] * len(faults))
    monkeypatch.setattr(mutation, "_from_anywhere", lambda *_: "")
    monkeypatch.setattr(mutation.equivalence, "equivalent", lambda *_: None)
    checks, outcomes = prove(2, areas=[Area.SCHEDULE])
    assert [check.verdict for check in checks] == [Verdict.FAILED]
    assert {replace(o, fault=outcomes[0].fault).fate for o in outcomes} == {Fate.MISSED}
