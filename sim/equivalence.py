"""Whether a changed program does the same: by a solver, for all states of 3 x 3 cells.

A cell sees no further in one step, and 3 x 3 cells have every kind of border. The program's twin
runs on formulas in place of bits, from any words in the ranges that the rule's proof gives them,
and with anything in the memory between the words and in the cells' registers.

Two claims make an induction. What the right program makes of the words depends on the words alone,
not on what lies between them; and the changed one makes the same of the same memory, whatever it
holds. So both make the same of the same words, however different what they leave behind.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from scotopia.graph.qformat import IntArray
from scotopia.hdl.program import Flag, Instruction, Program, Word
from scotopia.hdl.twin import ArrayTwin

from .anywhere import Moment, channel_ranges, compare_steps
from .proof import new_solver
from .symbolic import FALSE, TRUE, Graph

SIDE = 3
CELLS = SIDE * SIDE


def missing() -> str:
    """Say what to install, if z3 is missing."""
    try:
        import z3  # noqa: F401
    except ImportError:
        return "z3 is not installed: pip install 'scotopia[formal]'"
    return ""


def equivalent(program: Program, changed: Program, seconds: float = 20) -> bool | None:
    """Tell whether all routines that were changed do the same in both; None if it is unknown.

    Samples and random bits are anything, the same for both. The solver has so many seconds for each
    question, of a cell. False means that a state in the ranges tells the changed program from the
    golden model: the solver proposed it, and the twin was run from there. The device need not ever
    come to it.
    """
    for routine, offset in _routines(program):
        before = list(program.routine(routine, offset))
        after = list(changed.routine(routine, offset))
        if before == after:
            continue
        if not after[-1].end or len(after) != len(before):
            return None  # it runs out of the program, or into another routine
        same = _Question(program, changed, seconds).same(routine, offset)
        if not same:
            return same
    return True


def _routines(program: Program) -> Iterator[tuple[str, int]]:
    for name in program.entries:
        if name == "read":  # an instruction a channel
            yield from (("read", channel) for channel in range(len(program.rule.channel_formats)))
        elif name == "sense":
            yield from (("sense", offset) for offset in program.senses)
        else:
            yield name, 0


class _Question:
    """Both programs, on the same formulas."""

    def __init__(self, program: Program, changed: Program, seconds: float) -> None:
        self.graph = Graph()
        self.start = _Start(self.graph, program)
        self.right = _SymbolicTwin(program, self.start)
        self.wrong = _SymbolicTwin(changed, self.start)
        self.claims = self.start.claims(program)
        self.seconds = seconds
        self.told_apart = False

    def same(self, routine: str, offset: int) -> bool | None:
        """Run both side by side, and compare what they answer."""
        noise = iter(self.start.noise)
        pairs = zip(
            self.right.program.routine(routine, offset),
            self.wrong.program.routine(routine, offset),
            strict=True,
        )
        for ours, theirs in pairs:
            bits = next(noise) if Flag.NOISE in (ours.flag, theirs.flag) else None
            for twin, instruction in ((self.right, ours), (self.wrong, theirs)):
                twin.take(instruction, bits)
            if ours != theirs:
                self._merge()
                if self.told_apart:
                    return False
        answers = self.right.answer(routine), self.wrong.answer(routine)
        if self.graph.support([b for plane in answers[0] for b in plane]) & self.start.rest(
            routine
        ):
            return None  # of the right program, too, the answer depends on more than the words
        same = self._equal(list(zip(*answers, strict=True)))
        return False if self.told_apart else same or None

    def _merge(self) -> None:
        """Where a bit is the same after a changed instruction, have both say it alike."""
        for ours, theirs in zip(self.right.holds(), self.wrong.holds(), strict=True):
            for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                a, b = _plane(self.graph, a), _plane(self.graph, b)
                if a.bits != b.bits and self._equal([(a, b)]):
                    theirs[index] = a
        self.wrong.carry, self.wrong.flag = self.wrong.registers

    def _equal(self, pairs: Sequence[tuple["_Plane", "_Plane"]]) -> bool | None:
        """Ask whether planes are the same, cell by cell: a cell alone is soon answered."""
        import z3

        for cell in range(CELLS):
            differ = [self.graph.difference(a.bits[cell], b.bits[cell]) for a, b in pairs]
            differ = [literal for literal in differ if literal != FALSE]
            if not differ:
                continue
            solver = new_solver(self.seconds)
            solver.add(*self.claims, z3.Or(*map(self.graph.formula, differ)))
            answer = solver.check()
            if answer == z3.sat:
                # What parts somewhere in the middle mostly does so at the end, too.
                self.told_apart |= self._shows(solver.model())
            if answer != z3.unsat:
                return None if answer == z3.unknown else False
        return True

    def _shows(self, model: Any) -> bool:
        """Whether a step from the state that the solver found is not the golden model's."""
        import z3

        program = self.right.program
        rule = program.rule

        def truth(plane: _Plane) -> IntArray:
            found = [z3.is_true(model.eval(self.graph.formula(bit), True)) for bit in plane]
            return np.array(found, np.int64).reshape(SIDE, SIDE)

        def codes(word: Word) -> IntArray:
            found = np.zeros((SIDE, SIDE), np.int64)
            for bit, plane in enumerate(self.start.memory[word.plane :][: word.bits]):
                found += truth(plane) << bit
            return found - (found >> word.bits - 1 << word.bits) * word.signed

        moment = Moment(
            np.stack([codes(word) for word in program.words.values()]),
            {name: codes(word) for name, word in program.inputs.items()},
            np.stack([truth(plane) for plane in self.start.noise]) if self.start.noise else None,
        )
        return compare_steps(rule, self.wrong.program, [moment]).mismatches > 0


class _Plane:
    """A bit of each cell, with Python's operators as the twin uses them on integers."""

    def __init__(self, graph: Graph, bits: Iterable[int]) -> None:
        self.graph, self.bits = graph, tuple(bits)

    def __iter__(self) -> Iterator[int]:
        return iter(self.bits)

    def _other(self, other: "_Plane | int") -> Iterable[int]:
        if isinstance(other, _Plane):
            return other.bits
        return (other >> cell & 1 for cell in range(CELLS))

    def __and__(self, other: "_Plane | int") -> "_Plane":
        pairs = zip(self.bits, self._other(other), strict=True)
        return _Plane(self.graph, (self.graph.conjunction(a, b) for a, b in pairs))

    def __or__(self, other: "_Plane | int") -> "_Plane":
        pairs = zip(self.bits, self._other(other), strict=True)
        return _Plane(self.graph, (self.graph.disjunction(a, b) for a, b in pairs))

    def __xor__(self, other: "_Plane | int") -> "_Plane":
        pairs = zip(self.bits, self._other(other), strict=True)
        return _Plane(self.graph, (self.graph.difference(a, b) for a, b in pairs))

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> "_Plane":
        return self ^ (1 << CELLS) - 1

    def __lshift__(self, places: int) -> "_Plane":
        return _Plane(self.graph, ([FALSE] * places + list(self.bits))[:CELLS])

    def __rshift__(self, places: int) -> "_Plane":
        return _Plane(self.graph, (list(self.bits) + [FALSE] * places)[-CELLS:])


class _Start:
    """What both programs start from.

    Attributes
    ----------
    memory, operand, carry, flag
        Of all cells.
    sensed, noise, sample
        What comes from outside. A sample is the same in all cells.
    """

    def __init__(self, graph: Graph, program: Program) -> None:
        def plane(name: str) -> _Plane:
            return _Plane(graph, graph.symbols(name, CELLS))

        self.graph = graph
        self.memory = [plane(f"plane {number}") for number in range(program.planes)]
        self.operand = [plane(f"operand {number}") for number in range(program.operand_bits)]
        self.carry, self.flag, self.sensed = plane("carry"), plane("flag"), plane("sensed")
        self.noise = [plane(f"noise {number}") for number in range(program.rule.noise_planes)]
        self.sample = graph.symbols("sample", program.rule.code_bits)
        words = set(word_planes(program))
        self._between = [plane for n, plane in enumerate(self.memory) if n not in words]

    def rest(self, routine: str) -> set[int]:
        """Nodes of the symbols that what a routine answers must not depend on."""
        registers = [self.carry, self.flag, *(self.operand if routine != "move" else [])]
        return {bit >> 1 for plane in (*self._between, *registers) for bit in plane}

    def claims(self, program: Program) -> list[Any]:
        """Say that each word is in its range, cell by cell."""
        rule = program.rule
        claims = []
        for name, range_ in zip(rule.channel_names, channel_ranges(rule), strict=True):
            word = program.words[name]
            planes = [self.memory[word.plane + bit].bits for bit in range(word.bits)]
            for cell in range(CELLS):
                literals = [plane[cell] for plane in planes]
                number = self.graph.number(literals, word.bits + 1, signed=word.signed)
                claims += [number >= range_.lowest, number <= range_.highest]
        return claims


def word_planes(program: Program) -> list[int]:
    """Value of the planes that hold the state, and what is given from outside."""
    return [
        plane
        for word in (*program.words.values(), *program.inputs.values())
        for plane in range(word.plane, word.plane + word.bits)
    ]


class _SymbolicTwin(ArrayTwin):
    """The twin on formulas."""

    def __init__(self, program: Program, start: _Start) -> None:
        super().__init__(program, SIDE, SIDE)
        self._start = start
        self.planes: list[Any] = list(start.memory)
        self.operand: list[Any] = list(start.operand)
        self.carry: Any = start.carry
        self.flag: Any = start.flag

    def take(self, instruction: Instruction, noise: "_Plane | None") -> None:
        """Run one instruction, of NOISE, too."""
        if instruction.flag is Flag.NOISE:
            self.flag = noise
        else:
            self.execute(instruction, sensed=self._start.sensed)  # type: ignore[arg-type]

    def holds(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Value of all that it has: memory, operand, carry and flag, to be changed in place."""
        self.registers = [self.carry, self.flag]
        return self.planes, self.operand, self.registers

    def _sampled(self, sample: int, bit: int) -> Any:
        bits = self._start.sample
        return _Plane(self._start.graph, [bits[bit] if bit < len(bits) else FALSE] * CELLS)

    def answer(self, routine: str) -> list[_Plane]:
        """Value of all that must be right when a routine has ended."""
        found = [self.planes[plane] for plane in word_planes(self.program)]
        if routine in ("read", "move"):
            found += self.operand
        elif routine == "clear":
            found = self.planes
        return [_plane(self._start.graph, value) for value in found]


def _plane(graph: Graph, value: "_Plane | int") -> _Plane:
    """Planes of constants are integers, as the twin has them."""
    if isinstance(value, _Plane):
        return value
    return _Plane(graph, (TRUE if value >> cell & 1 else FALSE for cell in range(CELLS)))
