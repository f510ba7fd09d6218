import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scotopia.hdl.program import Addend, Carry, Instruction, Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.equivalence import CELLS, _Plane, equivalent, missing
from scotopia.sim.faults import flip_digit
from scotopia.sim.proof import new_solver
from scotopia.sim.symbolic import FALSE, TRUE, Graph

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

Make = Callable[..., IntegerRule]


@pytest.fixture(scope="module")
def program(small_config: Make, random_rule: Make) -> Program:
    """A program of few instructions."""
    rule = random_rule(5, small_config(channels=1, hidden=1, inputs=("valid",), border="wrap"))
    return Program.compile(rule.with_proof())


def changed(program: Program, index: int, **fields: object) -> Program:
    instructions = list(program.instructions)
    instructions[index] = replace(instructions[index], **fields)  # type: ignore[arg-type]
    return replace(program, instructions=instructions)


def find(program: Program, wanted: Callable[[Instruction], object]) -> int:
    start = program.entries["step"]
    return next(i for i, op in enumerate(program.instructions[start:], start) if wanted(op))


def test_program_is_equivalent_to_itself(program: Program) -> None:
    assert equivalent(program, replace(program)) is True


def test_weight_of_the_other_sign_is_told_apart(program: Program) -> None:
    other = flip_digit(program)
    assert equivalent(program, other) is False


def test_carry_that_nothing_takes_may_be_anything(program: Program) -> None:
    # A constant that is added to 0 as the sum begins: no bit of it can carry.
    index = find(
        program,
        lambda op: op.carry is Carry.START and op.addend is Addend.ZERO and not op.read_bits,
    )
    assert equivalent(program, changed(program, index, subtract=True)) is True


def test_routine_that_does_not_end_is_not_asked_about(program: Program) -> None:
    last = len(program.instructions) - 1
    assert program.instructions[last].end
    assert equivalent(program, changed(program, last, end=False)) is None


def test_planes_compute_as_integers_do() -> None:
    graph, rng = Graph(), np.random.default_rng(1)

    def plane(number: int) -> _Plane:
        return _Plane(graph, (TRUE if number >> cell & 1 else FALSE for cell in range(CELLS)))

    def number(plane: _Plane) -> int:
        return sum(1 << cell for cell, bit in enumerate(plane) if bit == TRUE)

    every = (1 << CELLS) - 1
    for a, b in rng.integers(0, every + 1, (20, 2)).tolist():
        assert number(plane(a) & plane(b)) == number(a & plane(b)) == a & b
        assert number(plane(a) | b) == a | b
        assert number(plane(a) ^ plane(b)) == a ^ b
        assert number(~plane(a)) == ~a & every
        assert number(plane(a) << 3) == a << 3 & every
        assert number(plane(a) >> 3) == a >> 3


def test_missing_solver_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "z3", None)
    assert missing() == "z3 is not installed: pip install 'scotopia[formal]'"


def test_ctrl_c_is_not_taken_by_the_solver() -> None:
    z3 = pytest.importorskip("z3")
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: heard.append(number))
    try:
        solver = new_solver(0.5)
        a, b = (z3.ZeroExt(60, z3.BitVec(name, 60)) for name in "ab")
        solver.add(a * b == 1000000000039 * 1000000000061, a > 1, b > 1)  # takes it minutes
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        assert solver.check() == z3.unknown
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
