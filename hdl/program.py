"""What all cells of the array do, clock by clock: instructions, and the program they make.

A cell is one bit wide. Its memory is a column of bits, one in each **plane** (a bit of every cell
of the array), and beside it a cell has

- an **operand**, a word in a shift register, whose lowest bit is added and which is the only thing
  that its four neighbours see;
- a **carry** and a **flag**, one bit each.

An instruction is a loop over the bits of a word, lowest first, one bit a clock. All cells do the
same; in each,

    a       = a bit of its memory
    x       = the operand's lowest bit if the flag is set, or one of the other `Addend`s
    result  = a ^ x ^ carry                         or, with `select`: x if carry else a
    carry   = majority(a, x, carry)                 with `subtract`: of not a, so that it borrows

So an adder, a subtractor, a multiplexer, and the AND or OR of a row of bits are the same two
4-input functions. (Bit-serial arithmetic: K. Batcher, "Bit-Serial Parallel Processing Systems",
IEEE Trans. Computers C-31, 1982.)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from scotopia.quantize.integer_rule import IntegerRule

#: Clocks from reading a bit until one that was made of it can be read.
LATENCY = 3

#: An instruction takes this many clocks at least, for the next one must be fetched meanwhile.
SHORTEST = 2


class Addend(IntEnum):
    """What is added to a bit of memory."""

    ZERO = 0
    ONE = 1
    UNIT = 2  #: the flag to the first bit, then zeros
    FLAG = 3
    WORD = 4  #: the operand's lowest bit where the flag is set
    SAMPLE = 5  #: the next bit of the sample that arrived, the same for all cells


class Carry(IntEnum):
    """What the carry is before the first bit, and whether it changes."""

    START = 0  #: 0
    CONTINUE = 1  #: what the instruction before left
    HOLD = 2  #: that too, and it stays


class Flag(IntEnum):
    """What becomes of the flag with each bit."""

    HOLD = 0
    TAKE = 1  #: it is the result
    SENSE = 2  #: it is 1 in the cell that a sample came for, and 0 in all others
    NOISE = 3  #: it is the west neighbour's, the row's next random bit in the first column


class Shift(IntEnum):
    """What enters the operand at its top, as it moves down by one bit."""

    HOLD = 0  #: it does not move
    ROTATE = 1  #: its lowest bit
    LOAD = 2  #: the result
    NORTH = 3  #: the lowest bit of the neighbour in the north
    EAST = 4
    SOUTH = 5
    WEST = 6


@dataclass(frozen=True)
class Instruction:
    """A loop over the bits of a word, lowest first.

    Attributes
    ----------
    count
        How many bits, 1 or more. A loop of NOISE has as many as the array has columns.
    read, read_bits, signed
        Plane of the lowest bit of the word that is read, how many bits it has, and what follows
        them: the highest of them, or zeros.
    write, write_bits
        Plane that takes the first result, and how many are written: those after it are not.
    addend, select, subtract, carry, flag, shift
        As the module says. The operand turns round once, however many bits there are: it waits
        before its last one, its sign, until the last bit.
    border
        What the cells at the border take from beyond it as the operand moves: an index into
        `Program.borders`.
    end
        Nothing follows in this routine.
    """

    count: int
    read: int = 0
    read_bits: int = 0
    signed: bool = False
    write: int = 0
    write_bits: int = 0
    addend: Addend = Addend.ZERO
    select: bool = False
    subtract: bool = False
    carry: Carry = Carry.START
    flag: Flag = Flag.HOLD
    shift: Shift = Shift.HOLD
    border: int = 0
    end: bool = False

    @property
    def cycles(self) -> int:
        """Clocks that it takes; of NOISE, without what depends on the array."""
        return 0 if self.flag is Flag.NOISE else max(self.count, SHORTEST)


@dataclass(frozen=True)
class Word:
    """Where a number lies: its lowest plane and its bits, of which the last is a sign or not."""

    plane: int
    bits: int
    signed: bool

    @property
    def operand_bits(self) -> int:
        """Bits of an operand that holds it, sign included."""
        return self.bits + (not self.signed)


@dataclass
class Program:
    """The rule as instructions.

    Attributes
    ----------
    rule
        What it computes.
    planes
        How many a cell's memory has, a power of two.
    operand_bits
        Of the operand. A pixel that is read out has as many.
    words, inputs
        Where the channels of the state lie and what is given from outside, by name.
    instructions
        Of all routines.
    entries
        Where each routine starts. `clear`: the state from which all begins; `forget`: the end of a
        frame, no flag of an event is set any more; `read`: one instruction a channel, which makes
        it the operand; `move`: the operands of all cells go one cell north; `sense`: a sample
        arrives; `step`: a step of the rule.
    senses
        For each of the rule's `targets`, where in `sense` a sample for it begins.
    """

    rule: IntegerRule
    planes: int
    operand_bits: int
    words: dict[str, Word] = field(default_factory=dict)
    inputs: dict[str, Word] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    entries: dict[str, int] = field(default_factory=dict)
    senses: list[int] = field(default_factory=list)
    comments: dict[int, str] = field(default_factory=dict)

    @classmethod
    def compile(cls, rule: IntegerRule, planes: int | None = None) -> "Program":
        """Compile a rule, for a memory of so many planes or for the smallest that serves.

        Raises
        ------
        InputError
            If the rule does not fit.
        """
        from .compiler import compile_rule

        return compile_rule(rule, planes)

    def routine(self, name: str, offset: int = 0) -> Iterator[Instruction]:
        """Yield the instructions of a routine, the last of which ends it."""
        for instruction in self.instructions[self.entries[name] + offset :]:
            yield instruction
            if instruction.end:
                return

    def cycles(self, name: str, width: int, offset: int = 0) -> int:
        """Clocks that a routine takes on rows of `width` cells, from its first bit to its last."""
        return sum(
            max(width, SHORTEST) if instruction.flag is Flag.NOISE else instruction.cycles
            for instruction in self.routine(name, offset)
        )

    @property
    def borders(self) -> tuple[str, ...]:
        """Borders that its cells need; one at least, for what is read out moves through it."""
        return self.rule.graph.borders or ("zero",)

    @property
    def lanes_take_noise(self) -> bool:
        """Whether the cells draw random bits."""
        return self.rule.noise_planes > 0

    def listing(self) -> str:
        """Return the program as text, an instruction a line."""
        starts = {start: name for name, start in self.entries.items()}
        lines = [
            f"; {len(self.instructions)} instructions, {self.planes} planes, "
            f"operands of {self.operand_bits} bits"
        ]
        given = [(name, word, ", given from outside") for name, word in self.inputs.items()]
        for name, word, what in [*((name, word, "") for name, word in self.words.items()), *given]:
            kind = ("signed" if word.signed else "unsigned") + what
            lines.append(f"; {_span(word.plane, word.bits):9} {name}, {kind}")
        for index, instruction in enumerate(self.instructions):
            if index in starts:
                lines.append(f"{starts[index]}:")
            comment = self.comments.get(index)
            text = f"{index:6}  {describe(instruction)}"
            lines.append(f"{text:72}; {comment}" if comment else text)
        return "\n".join(lines) + "\n"


def describe(instruction: Instruction) -> str:
    """Say what an instruction does, in one line."""
    op = instruction
    a = _span(op.read, op.read_bits) if op.read_bits else "0"
    addend = {
        Addend.ZERO: "0",
        Addend.ONE: "~0",
        Addend.UNIT: "flag (lowest bit)",
        Addend.FLAG: "flag",
        Addend.WORD: "operand",
        Addend.SAMPLE: "sample",
    }[op.addend]
    if op.select:
        result = f"carry ? {addend} : {a}"
    elif op.carry is Carry.HOLD:
        result = f"{a} ^ {addend} ^ carry"
    else:
        plus = "" if op.carry is Carry.START else " with carry"
        result = f"{a} {'-' if op.subtract else '+'} {addend}{plus}"
    targets = []
    if op.write_bits:
        targets.append(_span(op.write, op.write_bits))
    if op.flag is Flag.TAKE:
        targets.append("flag")
    if op.shift is Shift.LOAD:
        targets.append("operand")
    if op.flag is Flag.SENSE:
        text = "flag = sensed"
    elif op.flag is Flag.NOISE:
        text = "flag = random bit"
    elif op.shift >= Shift.NORTH:
        text = f"operand = operand of {op.shift.name.lower()}"
    else:
        text = f"{', '.join(targets) or 'carry'} = {result}"
    return text + (f"  x{op.count}") + ("  end" if op.end else "")


def _span(plane: int, bits: int) -> str:
    return f"[{plane}]" if bits == 1 else f"[{plane}..{plane + bits - 1}]"
