"""The array's program: the integer rule as a list of micro-operations.

All cells run the same program in lockstep, one operation a clock. A cell is an accumulator, a few
words of memory and nothing that multiplies: a weight is broadcast as its non-zero **signed
digits**, most significant first, each an addition or subtraction of a neighbour's word, with a
doubling of the accumulator from one position to the next (Booth-style digit-serial arithmetic;
signed-digit form: Avizienis 1961). A product of two words is the same with one factor's bits, held
in the cell's gate register, deciding in each cell whether a term counts.

`Program.run` is the program's software twin: it interprets the operations on integer arrays, so
that a wrong program and a wrong gate can be told apart.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from scotopia.model.errors import InputError
from scotopia.quantize.integer_rule import IntegerLayer, IntegerRule
from scotopia.quantize.qformat import IntArray, Overflow, QFormat, Rounding, required_bits

#: Operand codes below this one are neighbours in reading order; 4 is the cell itself.
HERE, ONE = 4, 9

DIRECTIONS = ("NW", "N", "NE", "W", "here", "E", "SW", "S", "SE")


class Base(IntEnum):
    """What the accumulator starts an operation from."""

    KEEP = 0  #: itself
    DOUBLE = 1  #: twice itself
    CLEAR = 2  #: zero


class Term(IntEnum):
    """What is done with the operand."""

    NONE = 0
    ADD = 1
    SUBTRACT = 2


class Condition(IntEnum):
    """In which cells the term counts."""

    ALWAYS = 0
    VALID = 1  #: a sample arrived in this frame
    GATE_SET = 2  #: the gate register's top bit is 1
    GATE_CLEAR = 3  #: it is 0


class Gate(IntEnum):
    """What becomes of the gate register, after its top bit was looked at."""

    HOLD = 0
    SHIFT = 1  #: the next bit below becomes the top bit
    LOAD = 2  #: take the operand


@dataclass(frozen=True)
class Operation:
    """One clock of every cell: acc = base(acc) +/- operand, and at most one word stored.

    Attributes
    ----------
    address
        Word that is read, or stored.
    source
        Whose word is the operand: a neighbour by reading order (0 to 8), or `ONE`.
    signed
        Whether the operand is two's complement.
    store
        Whether `address` is stored: the accumulator as it was before, shifted right by
        `Program.tap` and clipped to format `limit` of `Program.limits`.
    """

    address: int = 0
    source: int = ONE
    signed: bool = False
    base: Base = Base.KEEP
    term: Term = Term.NONE
    condition: Condition = Condition.ALWAYS
    gate: Gate = Gate.HOLD
    store: bool = False
    limit: int = 0

    @property
    def reads(self) -> bool:
        """Whether the operand is a word of memory."""
        return self.source != ONE and (self.term != Term.NONE or self.gate == Gate.LOAD)


@dataclass(frozen=True)
class Product:
    """A summand: +/- 2**position * operand, in the cells where the condition holds.

    `gate_bit` names the bit of the gate register that GATE_SET and GATE_CLEAR speak of.
    """

    position: int
    sign: int
    address: int = 0
    source: int = ONE
    condition: Condition = Condition.ALWAYS
    gate_bit: int = 0


@dataclass
class Program:
    """One step of a rule, for a cell of `words` words.

    Attributes
    ----------
    words
        Format of each word of a cell's memory: the state channels, then scratch.
    names
        Name of each word.
    operations
        What all cells do, one a clock.
    limits
        Ranges that stored words are clipped to, as formats without fraction.
    tap
        Right shift of the accumulator on its way to memory.
    accumulator_bits
        Width that no partial sum exceeds, whatever the words hold within their formats.
    """

    rule: IntegerRule
    words: list[QFormat] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    limits: list[QFormat] = field(default_factory=list)
    tap: int = 0
    accumulator_bits: int = 1

    @classmethod
    def compile(cls, rule: IntegerRule) -> "Program":
        """Compile a rule.

        Raises
        ------
        InputError
            If the rule does what the cell cannot: round by more than an addition, which only TRN
            and RND are; drop bits above; draw random bits.
        """
        if rule.rounding not in (Rounding.TRN, Rounding.RND):
            raise InputError(
                f"rounding {rule.rounding} is not supported by the cell: "
                "quantize with --rounding RND or TRN"
            )
        if rule.overflow is not Overflow.SAT:
            raise InputError(
                f"overflow {rule.overflow} is not supported by the cell: quantize with SAT"
            )
        if rule.noise_planes:
            raise InputError(
                f"fire_rate {rule.config.fire_rate}, dither {rule.dither} are not supported by the "
                "cell: choose 1, 0"
            )
        return _Compiler(rule).compile()

    @property
    def word_bits(self) -> int:
        """Width of a word of memory."""
        return max(format.bits for format in self.words)

    @property
    def sensor_word(self) -> int:
        """Address of the word that the sensor writes when a sample arrives."""
        return self.names.index("arrival")

    @property
    def cycles_per_step(self) -> int:
        """Operations of one step, one a clock."""
        return len(self.operations)

    def run(self, state: IntArray, sample: IntArray, valid: NDArray[np.bool_]) -> IntArray:
        """Interpret one step on codes (C, H, W); has `IntegerRule.step`'s meaning."""
        channels, height, width = state.shape
        memory = np.zeros((len(self.words), height, width), np.int64)
        memory[:channels] = state
        memory[self.sensor_word] = np.where(valid, sample, memory[self.sensor_word])
        accumulator = np.zeros((height, width), np.int64)
        gate = np.zeros((height, width), np.int64)
        top = self.word_bits - 1
        for operation in self.operations:
            operand = np.ones((height, width), np.int64)
            if operation.source != ONE:
                operand = self.rule.neighbourhood(memory[operation.address][None])[
                    0, operation.source
                ].reshape(height, width)
            if operation.store:
                limit = self.limits[operation.limit]
                memory[operation.address] = limit.fit(accumulator >> self.tap, self.rule.overflow)
            match operation.base:
                case Base.DOUBLE:
                    accumulator = accumulator * 2
                case Base.CLEAR:
                    accumulator = accumulator * 0
            holds = {
                Condition.ALWAYS: True,
                Condition.VALID: valid,
                Condition.GATE_SET: (gate >> top) & 1 == 1,
                Condition.GATE_CLEAR: (gate >> top) & 1 == 0,
            }[operation.condition]
            match operation.term:
                case Term.ADD:
                    accumulator = accumulator + np.where(holds, operand, 0)
                case Term.SUBTRACT:
                    accumulator = accumulator - np.where(holds, operand, 0)
            match operation.gate:
                case Gate.LOAD:
                    gate = operand
                case Gate.SHIFT:
                    gate = gate << 1
        return memory[:channels]

    def listing(self) -> str:
        """Return the program as text, one operation a line, in groups that end with a store."""
        lines = [f"; {len(self.operations)} operations, tap {self.tap}, {len(self.words)} words"]
        lines += [
            f"; word {i:2}  {name:12} {format}"
            for i, (name, format) in enumerate(zip(self.names, self.words, strict=True))
        ]
        lines += [f"{i:5}  {self._describe(op)}" for i, op in enumerate(self.operations)]
        return "\n".join(lines) + "\n"

    def _describe(self, operation: Operation) -> str:
        name = self.names[operation.address]
        if operation.store:
            limit = self.limits[operation.limit]
            return f"{name} = clip(acc >> {self.tap}) to {limit.lowest}..{limit.highest}"
        operand = "1" if operation.source == ONE else f"{name}[{DIRECTIONS[operation.source]}]"
        if operation.gate is Gate.LOAD:
            return f"gate = {operand}"
        base = {Base.KEEP: "acc", Base.DOUBLE: "2 acc", Base.CLEAR: "0"}[operation.base]
        text = f"acc = {base}"
        if operation.term is not Term.NONE:
            text += f" {'+' if operation.term is Term.ADD else '-'} {operand}"
        if operation.condition is not Condition.ALWAYS:
            text += f" if {operation.condition.name.lower()}"
        return text + ("; gate <<= 1" if operation.gate is Gate.SHIFT else "")


def signed_digits(number: int) -> Iterator[tuple[int, int]]:
    """Yield (position, +1 or -1) of the canonical signed-digit form: no two digits adjacent."""
    position = 0
    while number:
        if number & 1:
            digit = 2 - (number & 3)  # 1 if the two low bits are 01, -1 if they are 11
            yield position, digit
            number -= digit
        number >>= 1
        position += 1


class _Compiler:
    def __init__(self, rule: IntegerRule) -> None:
        self.rule = rule
        self.program = Program(rule)
        self.largest = 0

    def compile(self) -> Program:
        rule, config, program = self.rule, self.rule.config, self.program
        formats = dict(zip(config.inputs, rule.input_formats, strict=True))
        for name, format in zip(config.channel_names, rule.channel_formats, strict=True):
            self._allocate(name, format)
        for name in ("valid", "flicker", "innovation", "trust", "recall"):
            if name in formats:
                self._allocate(name, formats[name])
        hidden = [self._allocate(f"h{i}", f) for i, f in enumerate(rule.perceive.outputs)]
        widest = max(rule.update.outputs[: config.channels], key=lambda format: format.bits)
        candidate = self._allocate("candidate", widest)
        gate = self._allocate("gate", rule.gate_format) if config.kind == "gated" else -1

        sample, trace = (program.names.index(name) for name in ("sample", "trace"))
        innovation_shift = rule.sample_format.frac_bits
        doubt_frac = rule.state_formats[config.doubt].frac_bits if "trust" in formats else 0
        trust_frac = max(rule.trace_format.frac_bits, doubt_frac)
        recall_frac = rule.sample_format.frac_bits + (
            formats["trust"].frac_bits if "recall" in formats else 0
        )
        program.tap = max(
            int(rule.perceive.aligned[2].max()),
            int(rule.update.aligned[2].max()),
            rule.gate_format.bits,
            *(
                innovation_shift - formats[name].frac_bits
                for name in ("flicker", "innovation")
                if name in formats
            ),
            trust_frac - formats["trust"].frac_bits if "trust" in formats else 0,
            recall_frac - formats["recall"].frac_bits if "recall" in formats else 0,
        )

        self._take_sample(sample, trace, formats.get("flicker"))
        bits = rule.trace_format.bits
        self._store(
            trace,
            [
                Product(bits, 1, condition=Condition.VALID),
                Product(0, 1, trace, HERE),
                Product(0, -1),
            ],
            shift=0,
        )
        if "valid" in formats:
            self._store(
                program.names.index("valid"),
                [Product(0, 1, condition=Condition.VALID)],
                shift=-formats["valid"].frac_bits,
            )
        if "innovation" in formats:
            self._store(
                program.names.index("innovation"),
                [
                    Product(0, 1, sample, HERE, Condition.VALID),
                    Product(0, -1, 0, HERE, Condition.VALID),
                ],
                shift=innovation_shift - formats["innovation"].frac_bits,
            )
        if "trust" in formats:
            trust = program.names.index("trust")
            self._trust(trust, trace, trust_frac)
        if "recall" in formats:
            self._store(
                program.names.index("recall"),
                [
                    Product(bit, sign, address, HERE, Condition.GATE_SET, bit)
                    for bit in reversed(range(formats["trust"].bits))
                    for sign, address in ((1, sample), (-1, 0))
                ],
                shift=recall_frac - formats["recall"].frac_bits,
                gate=trust,
            )

        seen = list(range(config.channels)) + [program.names.index(n) for n in config.inputs]
        for output, address in enumerate(hidden):
            self._layer(rule.perceive, output, seen, range(9), address)
        for channel in range(config.channels):
            self._layer(rule.update, channel, hidden, (HERE,), candidate)
            if config.kind == "residual":
                terms = [Product(0, 1, channel, HERE), Product(0, 1, candidate, HERE)]
                self._store(channel, terms, shift=0)
                continue
            self._layer(rule.update, config.channels + channel, hidden, (HERE,), gate)
            self._gated_update(channel, candidate, gate)
        program.accumulator_bits = required_bits(-self.largest, self.largest)
        return program

    def _take_sample(self, sample: int, trace: int, flicker_format: QFormat | None) -> None:
        """Take the sample that arrived; first store what it differs by from the one before."""
        arrival = self._allocate("arrival", self.rule.sample_format)
        change = [
            Product(0, 1, arrival, HERE, Condition.VALID),
            Product(0, -1, sample, HERE, Condition.VALID),
        ]
        if flicker_format is not None:
            flicker = self.program.names.index("flicker")
            known = self._allocate("known", QFormat(1, 0, signed=False))
            self._store(
                flicker, change, self.rule.sample_format.frac_bits - flicker_format.frac_bits
            )
            self._store(known, [Product(0, 1, trace, HERE)], shift=0)  # clipped to 1: any trace
            self._store(flicker, [Product(0, 1, flicker, HERE, Condition.GATE_SET)], 0, gate=known)
        self._store(sample, [Product(0, 1, sample, HERE), *change], shift=0)

    def _trust(self, trust: int, trace: int, frac: int) -> None:
        """Store recency(trace) - 4 doubt, a sum with `frac` fraction bits."""
        trace_format, doubt = self.rule.trace_format, self.rule.config.doubt
        up = frac - trace_format.frac_bits
        terms = [Product(up, 1, trace, HERE)]
        for name, scale, weight in (("fast", 3, 0), ("fastest", 6, 1)):
            # Clipped below at zero: 2**scale * trace - (2**scale - 1).
            word = self._allocate(name, trace_format)
            constant = -((1 << scale) - 1) << trace_format.frac_bits
            offset = [Product(position, digit) for position, digit in signed_digits(constant)]
            self._store(word, [Product(scale, 1, trace, HERE), *offset], shift=0)
            terms.append(Product(up + weight, 1, word, HERE))
        down = frac - self.rule.state_formats[doubt].frac_bits
        terms.append(Product(2 + down, -1, doubt, HERE))
        self._store(trust, terms, shift=frac - self.rule.trust_format.frac_bits)

    def _gated_update(self, channel: int, candidate: int, gate: int) -> None:
        # x + z (c - x) / 2**n with n bits of z is sum(2**b (c if z[b] else x)) + x, over 2**n:
        # no subtraction, and since it lies between x and c, no overflow.
        bits = self.rule.gate_format.bits
        terms = [
            Product(bit, 1, address, HERE, condition, bit)
            for bit in reversed(range(bits))
            for address, condition in (
                (candidate, Condition.GATE_SET),
                (channel, Condition.GATE_CLEAR),
            )
        ]
        self._store(channel, [*terms, Product(0, 1, channel, HERE)], shift=bits, gate=gate)

    def _layer(
        self,
        layer: IntegerLayer,
        output: int,
        inputs: list[int],
        sources: Iterable[int],
        address: int,
    ) -> None:
        weight, bias, shift = (array[output] for array in layer.aligned)
        terms = [
            Product(position, digit, word, source)
            for word, taps in zip(inputs, weight, strict=True)
            for source, code in zip(sources, taps, strict=True)
            for position, digit in signed_digits(int(code))
        ]
        terms += [Product(position, digit) for position, digit in signed_digits(int(bias))]
        self._store(address, terms, int(shift), limit=layer.outputs[output])

    def _allocate(self, name: str, format: QFormat) -> int:
        self.program.words.append(format)
        self.program.names.append(name)
        return len(self.program.words) - 1

    def _store(
        self,
        address: int,
        terms: list[Product],
        shift: int,
        gate: int | None = None,
        limit: QFormat | None = None,
    ) -> None:
        """Store the rounded sum of terms / 2**shift, with word `gate` in the gate register.

        It is clipped to `limit`, or to the word's own format.
        """
        if self.rule.rounding is Rounding.RND and shift > 0:
            terms = [*terms, Product(shift - 1, 1)]  # half a unit, then drop the rest
        if gate is not None:
            self._load_gate(gate)
        self._accumulate(terms, self.program.tap - shift)
        limit = limit or self.program.words[address]
        limit = QFormat(limit.bits, 0, limit.signed)  # only the range of codes matters
        if limit not in self.program.limits:
            self.program.limits.append(limit)
        self._emit(Operation(address, store=True, limit=self.program.limits.index(limit)))

    def _load_gate(self, address: int) -> None:
        self._emit(Operation(address, HERE, gate=Gate.LOAD))
        for _ in range(self.program.word_bits - self.program.words[address].bits):
            self._emit(Operation(gate=Gate.SHIFT))

    def _accumulate(self, terms: list[Product], up: int) -> None:
        """Sum the terms, times 2**up, most significant position first."""
        terms = sorted(terms, key=lambda term: -term.position)
        base, position, gate_bit, bound = Base.CLEAR, 0, None, 0
        for term in terms:
            while position > term.position:
                if base is Base.DOUBLE:  # a position without terms
                    self._emit(Operation(base=base))
                base, position, bound = Base.DOUBLE, position - 1, 2 * bound
            if base is Base.CLEAR:
                position = term.position
            if term.condition in (Condition.GATE_SET, Condition.GATE_CLEAR):
                if gate_bit is not None and term.gate_bit != gate_bit:
                    operations = self.program.operations
                    operations[-1] = replace(operations[-1], gate=Gate.SHIFT)
                gate_bit = term.gate_bit
            bound += self._magnitude(term)
            self._emit(
                Operation(
                    address=term.address,
                    source=term.source,
                    signed=term.source != ONE and self.program.words[term.address].signed,
                    base=base,
                    term=Term.ADD if term.sign > 0 else Term.SUBTRACT,
                    condition=term.condition,
                )
            )
            base = Base.KEEP
        if base is Base.CLEAR:
            self._emit(Operation(base=base))
        for _ in range(position + up):
            self._emit(Operation(base=Base.DOUBLE))
        self.largest = max(self.largest, bound << (position + up))

    def _magnitude(self, term: Product) -> int:
        if term.source == ONE:
            return 1
        format = self.program.words[term.address]
        return max(-format.lowest, format.highest)

    def _emit(self, operation: Operation) -> None:
        operations = self.program.operations
        last = operations[-1] if operations else Operation()
        if operation.reads and last.store and last.address == operation.address:
            # A word is read one clock before the accumulator works, and stored along with it.
            operations.append(Operation())
        operations.append(operation)
