"""Whether a changed program does the same: by a solver, for all states of 3 x 3 cells.

A cell sees no further in one step, and 3 x 3 cells have every kind of border. The program's twin
runs on formulas in place of bits, from any words in the ranges that the rule's proof gives them,
and with anything in the memory between the words and in the cells' registers.

Two claims make an induction. What the right program makes of the words depends on the words alone,
not on what lies between them; and the changed one makes the same of the same memory, whatever it
holds. So both make the same of the same words, however different what they leave behind.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from scotopia.hdl.program import Flag, Instruction, Program
from scotopia.hdl.twin import ArrayTwin
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.ranges import Interval

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


def equivalent(program: Program, changed: Program, seconds: float = 60) -> bool | None:
    """Tell whether all routines that were changed do the same in both; None if it is unknown.

    Samples and random bits are anything, the same for both. False means that some memory within
    the ranges tells them apart, which the device may never hold.
    """
    if differs(program, changed):  # sooner seen than solved
        return False
    for routine, offset in _routines(program):
        before = list(program.routine(routine, offset))
        after = list(changed.routine(routine, offset))
        if before == after:
            continue
        if not after[-1].end or len(after) != len(before):
            return False  # it runs out of the program, or into another routine
        same = _Question(program, changed, seconds).same(routine, offset)
        if not same:
            return same
    return True


def differs(program: Program, changed: Program, side: int = 64) -> bool:
    """Tell whether steps of the two part, on random states in the ranges of side x side cells."""
    rule, rng = program.rule, np.random.default_rng(0)
    ranges = channel_ranges(rule)
    low, high = rule.sample_format.lowest, rule.sample_format.highest
    for number in range(8):
        state = np.stack([rng.integers(r.lowest, r.highest + 1, (side, side)) for r in ranges])
        if number % 2:  # neighbours that are alike
            state = state[:, ::16, ::16].repeat(16, 1).repeat(16, 2)
        sample = rng.integers(low, high + 1, (side, side))
        valid = rng.random((side, side)) < 0.5
        noise = rng.integers(0, 2, (rule.noise_planes, side, side))
        twins = (ArrayTwin(one, side, side) for one in (program, changed))
        right, wrong = (twin.step(state, sample, valid, noise) for twin in twins)
        if not np.array_equal(right, wrong):
            return True
    return False


def channel_ranges(rule: IntegerRule) -> list[Interval]:
    """Value of what each channel can hold, by the rule's proof if it has one."""
    if rule.proof:
        return [rule.proof.channels[name] for name in rule.config.channel_names]
    return [Interval.of(format) for format in rule.channel_formats]


def _routines(program: Program) -> Iterator[tuple[str, int]]:
    for name in program.entries:
        if name == "read":  # an instruction a channel
            yield from (("read", channel) for channel in range(len(program.rule.channel_formats)))
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
        answers = self.right.answer(routine), self.wrong.answer(routine)
        if self.graph.support([b for plane in answers[0] for b in plane]) & self.start.rest(
            routine
        ):
            return None  # of the right program, too, the answer depends on more than the words
        return self._equal(list(_bits(*answers)), self.seconds)

    def _merge(self) -> None:
        """Where a bit is the same after a changed instruction, have both say it alike.

        A cell is like another but for what lies around it, so that a bit that is the same in all
        nine is asked for at once.
        """
        for ours, theirs in zip(self.right.holds(), self.wrong.holds(), strict=True):
            for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                pairs = list(_bits([_plane(self.graph, a)], [_plane(self.graph, b)]))
                if any(x != y for x, y in pairs) and self._equal(pairs, self.seconds / 4):
                    theirs[index] = a
        self.wrong.carry, self.wrong.flag = self.wrong.registers

    def _equal(self, pairs: Iterable[tuple[int, int]], seconds: float) -> bool | None:
        import z3

        differ = [self.graph.difference(a, b) for a, b in pairs]
        differ = [literal for literal in differ if literal != FALSE]
        if not differ:
            return True
        solver = z3.SolverFor("QF_BV")
        solver.set("timeout", int(1000 * seconds))
        solver.add(*self.claims, z3.Or(*map(self.graph.formula, differ)))
        answer = solver.check()
        return None if answer == z3.unknown else bool(answer == z3.unsat)


def _bits(first: Iterable["_Plane"], second: Iterable["_Plane"]) -> Iterator[tuple[int, int]]:
    for a, b in zip(first, second, strict=True):
        yield from zip(a, b, strict=True)


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
        self.sample = graph.symbols("sample", program.rule.sample_format.bits)
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
        for name, range_ in zip(rule.config.channel_names, channel_ranges(rule), strict=True):
            word = program.words[name]
            planes = [self.memory[word.plane + bit].bits for bit in range(word.bits)]
            for cell in range(CELLS):
                literals = [plane[cell] for plane in planes]
                number = self.graph.number(literals, word.bits + 1, signed=word.signed)
                claims += [number >= range_.lowest, number <= range_.highest]
        return claims


def word_planes(program: Program) -> list[int]:
    """Value of the planes that hold the state."""
    return [
        plane
        for word in program.words.values()
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
