"""Instructions in the making: the cells' memory and registers, as far as a program knows them."""

from dataclasses import replace

from ..program import LATENCY, SHORTEST, Addend, Carry, Flag, Instruction, Program, Shift, Word

#: Most planes that one instruction can read or write.
LONGEST = 63


class OutOfPlanesError(Exception):
    """The cells' memory is full."""


class Cells:
    """What writes a program, instruction by instruction.

    Attributes
    ----------
    loaded
        Word that is the operand; None, if it is another one or a neighbour's.
    gate
        Plane that the flag shows; None: it is set in all cells; -1: it is anything.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.operand_bits = program.operand_bits
        self.loaded: Word | None = None
        self.gate: int | None = -1
        self._free = [True] * program.planes
        self._clock = 0
        self._written: dict[int, int] = {}  # when the result for a plane was read

    # Memory.

    def allocate(self, bits: int, *, high: bool = False) -> int:
        """Take the lowest of so many free planes in a row, or the highest; return the first."""
        order = range(len(self._free))
        run = 0
        for plane in reversed(order) if high else order:
            run = run + 1 if self._free[plane] else 0
            if run == bits:
                start = plane if high else plane - bits + 1
                self._free[start : start + bits] = [False] * bits
                return start
        raise OutOfPlanesError

    def release(self, plane: int, bits: int) -> None:
        """Give planes back."""
        self._free[plane : plane + bits] = [True] * bits

    # Routines.

    def begin(self, name: str) -> None:
        """Start a routine."""
        self.program.entries[name] = len(self.program.instructions)
        self._clock, self._written = 0, {}
        self.loaded, self.gate = None, -1

    def end(self) -> None:
        """End it with the instruction before."""
        self.program.instructions[-1] = replace(self.program.instructions[-1], end=True)

    def comment(self, text: str) -> None:
        """Say what follows."""
        self.program.comments[len(self.program.instructions)] = text

    def emit(self, instruction: Instruction) -> None:
        """Add an instruction, as late as its bits need to be there."""
        wait = 0
        for bit in range(min(instruction.read_bits, instruction.count)):
            ready = self._written.get(instruction.read + bit, -LATENCY) + LATENCY
            wait = max(wait, ready - (self._clock + bit))
        if wait:
            # Longer than a routine's end lets it be, never: a pause is an instruction, too.
            self._append(Instruction(max(wait, SHORTEST), carry=Carry.HOLD))
        self._append(instruction)

    def _append(self, instruction: Instruction) -> None:
        for bit in range(instruction.write_bits):
            self._written[instruction.write + bit] = self._clock + bit
        written = range(instruction.write, instruction.write + instruction.write_bits)
        if self.loaded:
            word = range(self.loaded.plane, self.loaded.plane + self.loaded.bits)
            overlap = written.start < word.stop and word.start < written.stop
            if overlap or instruction.shift not in (Shift.HOLD, Shift.ROTATE):
                self.loaded = None
        if instruction.flag is not Flag.HOLD or self.gate in written:
            self.gate = -1
        self._clock += instruction.cycles
        self.program.instructions.append(instruction)

    # Registers.

    def set_flag(self) -> None:
        """Set the flag in all cells. The carry is gone."""
        if self.gate is not None:
            self.emit(Instruction(1, addend=Addend.ONE, flag=Flag.TAKE))
        self.gate = None

    def flag_from(self, plane: int) -> None:
        """Set the flag where a plane is 1. The carry is gone."""
        if self.gate != plane:
            self.emit(Instruction(1, read=plane, read_bits=1, flag=Flag.TAKE))
        self.gate = plane

    def carry_from(self, plane: int, *, inverted: bool = False) -> None:
        """Set the carry where a plane is 1, or where it is 0."""
        self.emit(Instruction(1, read=plane, read_bits=1, addend=Addend.ONE, subtract=inverted))

    def carry_or(self, plane: int, bits: int) -> None:
        """Set the carry where any of some bits is 1: that is where adding all ones carries."""
        self.emit(Instruction(bits, read=plane, read_bits=bits, addend=Addend.ONE))

    def load(self, word: Word) -> None:
        """Make a word the operand. The carry is gone."""
        if self.loaded != word:
            self.emit(
                Instruction(
                    self.operand_bits,
                    read=word.plane,
                    read_bits=word.bits,
                    signed=word.signed,
                    shift=Shift.LOAD,
                )
            )
        self.loaded = word

    def move(self, way: Shift, border: str) -> None:
        """Take a neighbour's operand. The carry is gone."""
        index = self.program.borders.index(border)
        self.emit(Instruction(self.operand_bits, shift=way, border=index))

    # Words.

    def write(self, plane: int, number: int, bits: int) -> None:
        """Write the same number in all cells."""
        for bit, count in runs(number, bits):
            addend = Addend.ONE if bit else Addend.ZERO
            self.emit(Instruction(count, write=plane, write_bits=count, addend=addend))
            plane += count

    def copy(self, word: Word, to: Word) -> None:
        """Copy a word, with its sign repeated where there is more room."""
        self.emit(
            Instruction(
                to.bits,
                read=word.plane,
                read_bits=min(word.bits, to.bits),
                signed=word.signed,
                write=to.plane,
                write_bits=to.bits,
            )
        )

    def select(self, word: Word, to: Word, addend: Addend) -> None:
        """Write a word, or the addend where the carry is 1."""
        self.emit(
            Instruction(
                to.bits,
                read=word.plane,
                read_bits=min(word.bits, to.bits),
                signed=word.signed,
                write=to.plane,
                write_bits=to.bits,
                addend=addend,
                select=True,
                carry=Carry.HOLD,
            )
        )

    def parts(self, word: Word) -> list[tuple[int, Word]]:
        """Cut a word into what the operand holds: where each part begins, and the part."""
        most = self.operand_bits - 1
        found, start = [], 0
        while word.operand_bits > most + 1:
            found.append((start, Word(word.plane, most, signed=False)))
            word = Word(word.plane + most, word.bits - most, word.signed)
            start += most
        return [*found, (start, word)]


def runs(number: int, bits: int) -> list[tuple[int, int]]:
    """Bits of a number in two's complement as runs (bit, count), the lowest first."""
    found: list[tuple[int, int]] = []
    for place in range(bits):
        bit = number >> place & 1
        if found and found[-1][0] == bit and found[-1][1] < LONGEST:
            found[-1] = (bit, found[-1][1] + 1)
        else:
            found.append((bit, 1))
    return found
