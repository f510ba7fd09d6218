"""What rounding, saturation and a cell's step are by definition, and proofs that they are that.

The definitions are written from UG1399's words ("Quantization Modes", "Overflow Modes") and the
golden model's docstrings, as relations between numbers, not as computations. Two things are held
against them: the arithmetic of `graph.qformat`, run on bit vectors in place of integers, and
the gates of a cell, run on symbols for a whole step.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from scotopia.graph.build import Builder, Value
from scotopia.graph.qformat import Overflow, QFormat, Rounding, shift_right
from scotopia.graph.surroundings import Event
from scotopia.hdl.program import Program, Word
from scotopia.hdl.sequencer import Op, shape_code
from scotopia.quantize.integer_rule import GraphRule

from .exploration import AROUND, Machine
from .proof import Bug, Proof, Refuted, must_fail, satisfiable
from .symbolic import FALSE

# Definitions, as relations between numbers.


def rounds(rounding: Rounding, code: Any, shift: int, result: Any) -> Any:
    """Say that `result` is code / 2**shift, rounded: bit vectors with `shift` + 3 bits to spare."""
    import z3

    here = result << shift
    exact = here >> shift == result  # nothing was lost beyond the vector's end
    if rounding is Rounding.TRN:  # the largest integer that is not above
        return z3.And(exact, here <= code, code < here + (1 << shift))
    size, distance = _magnitude(code), _magnitude(code - here)
    if rounding is Rounding.TRN_ZERO:  # the largest in magnitude that is not beyond
        same_side = z3.Or(here == 0, (here < 0) == (code < 0))
        beyond = _magnitude(here) + (1 << shift)
        return z3.And(exact, same_side, _magnitude(here) <= size, size < beyond)
    tie = {
        Rounding.RND: here > code,
        Rounding.RND_MIN_INF: here < code,
        Rounding.RND_ZERO: _magnitude(here) < size,
        Rounding.RND_INF: _magnitude(here) > size,
        Rounding.RND_CONV: result & 1 == 0,
    }[rounding]
    near = z3.And(exact, distance >= 0, distance <= 1 << shift)  # so that doubling loses nothing
    doubled = distance << 1
    return z3.And(near, z3.Or(doubled < 1 << shift, z3.And(doubled == 1 << shift, tie)))


def fits(format: QFormat, overflow: Overflow, code: Any, result: Any) -> Any:
    """Say that `result` is the code brought into a format's range."""
    import z3

    low, high = format.lowest, format.highest
    if overflow is Overflow.WRAP:
        same = (result ^ code) & (1 << format.bits) - 1 == 0
        return z3.And(low <= result, result <= high, same)
    if overflow is Overflow.SAT_SYM and format.signed:
        low = -high
    return z3.And(
        z3.Implies(code > high, result == high),
        z3.Implies(code < low, result == low),
        z3.Implies(z3.And(low <= code, code <= high), result == code),
    )


def _magnitude(number: Any) -> Any:
    import z3

    return z3.If(number < 0, -number, number)


# Words: the package's own arithmetic on symbols.


class _Integer:
    """A 64-bit integer, unknown, with the operators that `qformat` uses of NumPy's."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def _with(self, other: Any, operation: Callable[[Any, Any], Any]) -> "_Integer":
        return _Integer(operation(self.value, _plain(other)))

    def __add__(self, other: Any) -> "_Integer":
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> "_Integer":
        return self._with(other, lambda a, b: a - b)

    def __and__(self, other: Any) -> "_Integer":
        return self._with(other, lambda a, b: a & b)

    def __rshift__(self, other: Any) -> "_Integer":
        return self._with(other, lambda a, b: a >> b)

    def __mod__(self, other: Any) -> "_Integer":
        return self._with(other, lambda a, b: a % b)  # of the divisor's sign, as Python's

    def clip(self, low: int, high: int, **_keywords: Any) -> "_Integer":
        """Do what `numpy.clip` asks for."""
        import z3

        limited = z3.If(self.value < low, z3.BitVecVal(low, 64), self.value)
        return _Integer(z3.If(limited > high, z3.BitVecVal(high, 64), limited))

    def __lt__(self, other: Any) -> Any:
        return self.value < _plain(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > _plain(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= _plain(other)

    def __eq__(self, other: object) -> Any:
        return self.value == _plain(other)

    __hash__ = None  # type: ignore[assignment]


def _plain(operand: Any) -> Any:
    """Make of an operand what z3 takes: its own, or a Python integer."""
    import z3

    if isinstance(operand, _Integer):
        return operand.value
    if z3.is_bool(operand):
        return z3.If(operand, z3.BitVecVal(1, 64), z3.BitVecVal(0, 64))
    return int(operand)


#: Shifts of 64-bit codes that are tried.
_SHIFTS = range(64)


def prove_rounding(mode: Rounding, timeout: float) -> Proof:
    """Prove that `shift_right` rounds as defined: any 64-bit code, by any number of bits."""
    import z3

    code = z3.BitVec("code", 64)

    def defined(rounding: Rounding, shifts: Sequence[int]) -> None:
        for shift in shifts:
            wide = 64 + shift + 3
            # NumPy's array of objects hands each operation on to its elements' own operators.
            found: Any = shift_right(_Integer(code), shift, mode)  # type: ignore[arg-type]
            claim = rounds(rounding, _widen(code, wide), shift, _widen(found.value, wide))
            model = satisfiable([z3.Not(claim)], timeout, f"shift {shift}")
            if model is not None:
                raise Refuted(f"code {model.eval(code, True).as_signed_long()} >> {shift}")

    defined(mode, _SHIFTS)
    bugs = [
        must_fail(partial(defined, other, [5]), f"defined as {other}", ">> 5")
        for other in Rounding
        if other is not mode
    ]
    return Proof(len(_SHIFTS), "shifts of any 64-bit code", tuple(bugs))


def prove_overflow(mode: Overflow, timeout: float) -> Proof:
    """Prove that `QFormat.fit` limits any 64-bit code as defined, to all widths up to 32 bits."""
    import z3

    code = z3.BitVec("code", 64)
    formats = [QFormat(bits, 0, signed) for bits in range(1, 33) for signed in (False, True)]

    def defined(overflow: Overflow, formats: Sequence[QFormat]) -> None:
        for format in formats:
            found: Any = format.fit(_Integer(code), mode)  # type: ignore[arg-type]
            claim = fits(format, overflow, code, found.value)
            model = satisfiable([z3.Not(claim)], timeout, f"format {format}")
            if model is not None:
                raise Refuted(f"code {model.eval(code, True).as_signed_long()} in {format}")

    defined(mode, formats)
    bugs = [
        must_fail(partial(defined, other, [QFormat(1, 7)]), f"defined as {other}", "in Q1.7")
        for other in Overflow
        if other is not mode
    ]
    return Proof(len(formats), "formats for any 64-bit code", tuple(bugs))


def _widen(number: Any, bits: int) -> Any:
    import z3

    return z3.SignExt(bits - number.size(), number)


#: Formats of the tiny rule's channel and samples, its change, the surprise, the neuron, the share.
STATE, WIDER, SURPRISE = QFormat(1, 4), QFormat(2, 4), QFormat(1, 2)
NEURON, SHARE = QFormat(0, 4, signed=False), QFormat(0, 2, signed=False)
BIT = QFormat(1, 0, signed=False)

#: Codes of its weights and biases, and the fraction bits of the weights: what the neuron sees, what
#: the change is of it, and the share.
SEES, CHANGES, SHARES = ((5, -3), 7, 2), (19, -142, 2), (3, -5, 1)


def tiny_rule(
    kind: str = "residual",
    rounding: Rounding = Rounding.RND,
    overflow: Overflow = Overflow.SAT,
) -> GraphRule:
    """Return a rule of one channel, one neuron and formats of few bits.

    Its sums go beyond every format at both ends, and to ties of either sign.
    """
    build, mode = Builder(), (rounding, overflow)
    x = build.channels({"x0": STATE})
    sample, valid = build.inputs({"sample": STATE, "valid": BIT})
    surprise = build.where(valid, sample - x, 0).fit(SURPRISE, *mode)
    weights, bias, fine = SEES
    scale = 2.0**-fine
    seen = build.concatenate([x, surprise])
    weight = np.array(weights)[None, :, None] * scale
    neuron = build.linear(seen, weight, [bias * scale / (1 << STATE.frac_bits)]).fit(NEURON, *mode)

    def of_neuron(numbers: tuple[int, int, int], format: QFormat) -> Value:
        weight, bias, fine = numbers
        scale = 2.0**-fine
        total = build.linear(neuron, [[[weight * scale]]], [bias * scale / (1 << NEURON.frac_bits)])
        return total.fit(format, *mode)

    if kind == "residual":
        after = (x + of_neuron(CHANGES, WIDER)).fit(STATE, *mode)
    else:
        way = of_neuron(SHARES, SHARE) * (of_neuron(CHANGES, STATE) - x)
        after = (x + way.fit(WIDER, rounding)).fit(STATE)
    return GraphRule(build.graph({"x0": after}), events=(Event("sample", "valid"),))


# Rounding and saturation in the cells.

_BUGS = (
    Bug(
        "the row never clears its carries",
        "pixel_row",
        r"if \(\\control\$8 \[8\]\)",
        "if (1'b0)",
        "by definition",
    ),
    Bug(
        "the sequencer never extends a sign",
        "sequencer",
        r"~ instruction\[18\];",
        "1'b1;",
        "by definition",
    ),
)


def prove_step(kind: str, rounding: Rounding, overflow: Overflow, timeout: float) -> Proof:
    """Prove that a step of one cell is what rounding and overflow are defined to be."""
    program = Program.compile(tiny_rule(kind, rounding, overflow))
    found = _Step.simulate(program, kind)
    found.check(rounding, overflow, timeout)
    found.cover(rounding, overflow, timeout)
    bugs = []
    for other in (*Rounding, *Overflow):
        if other not in (rounding, overflow):
            claim = (
                partial(found.check, other, overflow, timeout)
                if isinstance(other, Rounding)
                else partial(found.check, rounding, other, timeout)
            )
            bugs.append(must_fail(claim, f"defined as {other}", "by definition"))
    for bug in _BUGS:
        claim = partial(_Step.simulate(program, kind, bug).check, rounding, overflow, timeout)
        bugs.append(must_fail(claim, bug.name, bug.symptom))
    return Proof(1, f"step from any of 2**{found.free} states", tuple(bugs))


@cache
def _read_cell(kind: str, bug: Bug | None) -> Machine:
    return Machine(Program.compile(tiny_rule(kind)), 1, 1, bug)


def _cell(kind: str, bug: Bug | None) -> Machine:
    """A single cell. Its gates are those of all programs of one shape."""
    # A copy: the formulas of one program, hundreds of megabytes, should not outlive it.
    return copy.deepcopy(_read_cell(kind, bug))


@dataclass(frozen=True)
class _Step:
    """One step of one cell: what it was, and what the gates made of it.

    Attributes
    ----------
    kind
        Of the rule, as in `tiny_rule`.
    words, inputs
        Bit vectors of `BITS` of the channels and inputs before the step.
    result
        Of the learned channel after it.
    free
        Bits that were free.
    """

    kind: str
    words: dict[str, Any]
    inputs: dict[str, Any]
    result: Any
    free: int

    BITS = 24

    @classmethod
    def simulate(cls, program: Program, kind: str, bug: Bug | None = None) -> "_Step":
        """Run a step from anything in the cell's memory and registers."""
        machine = _cell(kind, bug)
        assert shape_code(program, 1, 1) == shape_code(machine.program, 1, 1)
        graph, (row,) = machine.device.graph, machine.rows
        state = machine.device.power_up()
        machine.load(state, program)
        quiet = {"samples__valid": [FALSE], "commands__valid": [FALSE]}
        _, state = machine.trip(state, quiet, program.cycles("clear", 1) + AROUND)
        for net in machine.registers:
            state.registers[net] = graph.symbol("cell")
        state.memories[row] = [graph.symbols(row, 1) for _ in range(program.planes)]
        before = state.memories[row]
        limit = 2 + program.cycles("step", 1) + AROUND
        _, state = machine.trip(state, machine.command(Op.RUN, 1), limit)
        after = state.memories[row]

        def number(memory: list[list[int]], word: Word) -> Any:
            literals = [memory[word.plane + bit][0] for bit in range(word.bits)]
            return graph.number(literals, cls.BITS, signed=word.signed)

        return cls(
            kind,
            {name: number(before, word) for name, word in program.words.items()},
            {name: number(before, word) for name, word in program.inputs.items()},
            number(after, program.words["x0"]),
            program.planes + len(machine.registers),
        )

    def claims(self, rounding: Rounding, overflow: Overflow) -> tuple[list[Any], Any]:
        """Say by definition what the next state is: claims on numbers, and the number."""
        import z3

        claims, names = [], iter("abcdefghijklmnopqrstuvwxyz")

        def new() -> Any:
            return z3.BitVec(next(names), self.BITS)

        def brought(total: Any, shift: int, format: QFormat) -> Any:
            rounded, result = new(), new()
            claims.append(rounds(rounding, total, shift, rounded))
            claims.append(fits(format, overflow, rounded, result))
            return result

        x, arrived = self.words["x0"], self.inputs["valid"] == 1
        difference = z3.If(arrived, self.inputs["sample"] - x, z3.BitVecVal(0, self.BITS))
        lost = STATE.frac_bits - SURPRISE.frac_bits
        surprise = brought(difference, lost, SURPRISE)
        # A product has the weight's fraction bits and the input's; all inputs are brought to the
        # finest.
        (own, its), bias, fine = SEES
        total = x * own + surprise * (its << lost) + bias
        neuron = brought(total, fine + STATE.frac_bits - NEURON.frac_bits, NEURON)

        def of_neuron(numbers: tuple[int, int, int], format: QFormat) -> Any:
            weight, bias, fine = numbers
            shift = fine + NEURON.frac_bits - format.frac_bits
            return brought(neuron * weight + bias, shift, format)

        if self.kind == "residual":
            result = new()
            claims.append(fits(STATE, overflow, x + of_neuron(CHANGES, WIDER), result))
            return claims, result
        candidate, share = of_neuron(CHANGES, STATE), of_neuron(SHARES, SHARE)
        way = new()
        claims.append(rounds(rounding, share * (candidate - x), SHARE.frac_bits, way))
        return claims, x + way

    def check(self, rounding: Rounding, overflow: Overflow, timeout: float) -> None:
        """Refute that the step equals its definition, if it does not."""
        claims, result = self.claims(rounding, overflow)
        model = satisfiable([*claims, result != self.result], timeout, "one step")
        if model is not None:
            state = ", ".join(
                f"{name} {model.eval(word, True).as_signed_long()}"
                for known in (self.words, self.inputs)
                for name, word in known.items()
            )
            got, due = (model.eval(w, True).as_signed_long() for w in (self.result, result))
            raise Refuted(f"{state}: x0 becomes {got}, by definition {due}")

    def cover(self, rounding: Rounding, overflow: Overflow, timeout: float) -> None:
        """Refute the definition if it leaves out a state, or never reaches an end of the format."""
        claims, result = self.claims(rounding, overflow)
        lowest = STATE.lowest + (overflow is Overflow.SAT_SYM)
        for end in (lowest, STATE.highest):
            if satisfiable([*claims, result == end], timeout, "cover") is None:
                raise Refuted(f"no state leads to {end}")
