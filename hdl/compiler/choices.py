"""What a cell chooses: one of two words by a bit, the largest of those around, bits of bits."""

from collections.abc import Callable, Mapping

from ..program import Addend, Carry, Instruction, Shift, Word
from .cells import Cells, runs
from .jobs import AnyBit, Both, Choice, Either, Extreme, Held, Number, OnlySecond, Source


class Choices:
    """What makes words other than sums.

    Parameters
    ----------
    held
        How words are stored.
    find
        Where they are.
    """

    def __init__(self, cells: Cells, held: Mapping[int, Held], find: Callable[[int], Word]) -> None:
        self.cells, self.held, self.find = cells, held, find

    def choose(self, job: Choice, to: Word) -> None:
        """Select one of two words, neither of which reaches beyond `to` but by its sign."""
        fraction = self.held[job.word].fraction
        condition, (a, b) = self.find(job.condition).plane, (job.a, job.b)
        inverted = False
        # The first is the operand, or a number; the other one is read.
        if isinstance(b, Number) or (not isinstance(a, Number) and self._shift(b, fraction) > 0):
            a, b, inverted = b, a, True
        assert not isinstance(b, Number)
        read = self.find(b)
        if isinstance(a, Number):
            self.cells.carry_from(condition, inverted=inverted)
            code, low = a.code << fraction - a.fraction, self._shift(b, fraction)
            self._numbers(code, low, read, to)
            return
        shift, word = self._shift(a, fraction), self.find(a)
        if word.bits == to.bits == 1 and shift == 0:
            self.cells.flag_from(word.plane)
            self.cells.carry_from(condition, inverted=inverted)
            self.cells.select(read, to, Addend.FLAG)
            return
        zeros = min(shift, to.bits)
        for start, part in self.cells.parts(word):
            self.cells.load(part)
            self.cells.set_flag()
            self.cells.carry_from(condition, inverted=inverted)
            if start == 0 and zeros:
                self.cells.select(read, Word(to.plane, zeros, signed=False), Addend.ZERO)
            low, left = start + shift, to.bits - start - shift
            if start + part.bits < word.bits:
                left = min(left, part.bits)
            if left > 0:  # a word that is chosen where it fits may have more bits
                self._operand(read, low, Word(to.plane + low, left, signed=False))

    def _shift(self, source: Source, fraction: int) -> int:
        """How many zeros follow a word's lowest bit."""
        known = source.fraction if isinstance(source, Number) else self.held[source].fraction
        return fraction - known

    def _operand(self, read: Word, low: int, to: Word) -> None:
        """Select the operand where the carry is 1, or a word's bits from `low` on."""
        count, source = to.bits, _from(read, low)
        self.cells.emit(
            Instruction(
                max(count, self.cells.operand_bits),
                read=source.plane,
                read_bits=min(source.bits, count),
                signed=source.signed,
                write=to.plane,
                write_bits=count,
                addend=Addend.WORD,
                select=True,
                carry=Carry.HOLD,
                shift=Shift.ROTATE,
            )
        )

    def _numbers(self, code: int, shift: int, read: Word, to: Word) -> None:
        """Select a number where the carry is 1, or a word with `shift` zeros below it."""
        done = 0
        for bit, count in runs(code, to.bits):
            addend = Addend.ONE if bit else Addend.ZERO
            while count:
                if done < shift:
                    part, source = min(count, shift - done), Word(0, 0, signed=False)
                else:
                    part, source = count, _from(read, done - shift)
                self.cells.select(source, Word(to.plane + done, part, signed=False), addend)
                done, count = done + part, count - part

    def combine(self, job: Both, to: Word) -> None:
        """Make a bit of two."""
        a, b = (self.find(word) for word in (job.a, job.b))
        one = Word(to.plane, 1, signed=False)
        match job:
            case Either():
                self.cells.carry_from(a.plane)
                self.cells.select(b, one, Addend.ONE)
            case OnlySecond():
                self.cells.carry_from(a.plane)
                self.cells.select(b, one, Addend.ZERO)
            case _:
                self.cells.carry_from(a.plane, inverted=True)
                self.cells.select(b, one, Addend.ZERO)
        self._fill(one, to)

    def any(self, job: AnyBit, to: Word) -> None:
        """Make a bit of whether any is 1."""
        word = self.find(job.a)
        self.cells.carry_or(word.plane, word.bits)
        self.cells.select(Word(0, 0, signed=False), Word(to.plane, 1, signed=False), Addend.ONE)
        self._fill(Word(to.plane, 1, signed=False), to)

    def _fill(self, bit: Word, to: Word) -> None:
        if to.bits > 1:
            self.cells.copy(bit, to)

    def extreme(self, job: Extreme) -> Word:
        """Make the largest or smallest word of the cells around: first of columns, then of rows."""
        cells, word = self.cells, self.find(job.a)
        best = word
        for ways in ((Shift.NORTH, Shift.SOUTH), (Shift.EAST, Shift.WEST)):
            line, found = best, Word(cells.allocate(word.bits), word.bits, word.signed)
            for way in ways:
                cells.load(line)
                cells.move(way, job.border)
                self._take_further(best, found, largest=job.largest)
                best = found
            if line is not word:
                cells.release(line.plane, line.bits)
        return best

    def _take_further(self, word: Word, to: Word, *, largest: bool) -> None:
        """Write a word, or the operand if that is larger, or smaller."""
        cells, bits = self.cells, word.bits
        difference = cells.allocate(bits + 1, high=True)
        cells.set_flag()
        cells.emit(
            Instruction(
                max(bits + 1, cells.operand_bits),
                read=word.plane,
                read_bits=bits,
                signed=word.signed,
                write=difference,
                write_bits=bits + 1,
                addend=Addend.WORD,
                subtract=True,
                shift=Shift.ROTATE,
            )
        )
        cells.carry_from(difference + bits, inverted=not largest)
        self._operand(word, 0, to)
        cells.release(difference, bits + 1)


def _from(word: Word, low: int) -> Word:
    """Bits of a word from `low` on; its sign, or none, if there are no more."""
    if low < word.bits:
        return Word(word.plane + low, word.bits - low, word.signed)
    return Word(word.plane + word.bits - 1, int(word.signed), word.signed)
