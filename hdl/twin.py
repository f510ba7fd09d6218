"""The program's software twin: the array's cells as bits of Python's integers.

It runs instructions with no notion of a clock, so that a wrong program and a wrong gate can be
told apart.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from scotopia.graph.qformat import IntArray

from .program import Addend, Carry, Flag, Instruction, Program, Shift, Word


class ArrayTwin:
    """An array of height x width cells that run a program.

    Bit y * width + x of a plane is that of the cell in row y and column x.

    Attributes
    ----------
    planes
        The cells' memory.
    operand, carry, flag
        As in the cells, a plane for each bit.
    """

    def __init__(self, program: Program, height: int, width: int) -> None:
        self.program, self.height, self.width = program, height, width
        self.planes = [0] * program.planes
        self.operand = [0] * program.operand_bits
        self.carry = self.flag = 0
        row, column = (1 << width) - 1, sum(1 << width * y for y in range(height))
        self._all = (1 << width * height) - 1
        self._north, self._south = row, row << width * (height - 1)
        self._west, self._east = column, column << (width - 1)

    def packed(self, planes: IntArray) -> list[int]:
        """Planes (N, H, W) of 0 and 1 as integers."""
        rows = planes.reshape(len(planes), self.height * self.width).astype(np.uint8)
        return [
            int.from_bytes(row.tobytes(), "little")
            for row in np.packbits(rows, axis=1, bitorder="little")
        ]

    def write(self, word: Word, codes: IntArray) -> None:
        """Set a word of every cell to codes (H, W)."""
        bits = codes >> np.arange(word.bits)[:, None, None] & 1
        self.planes[word.plane : word.plane + word.bits] = self.packed(bits)

    def read(self, word: Word) -> IntArray:
        """Codes (H, W) of a word of every cell."""
        codes = np.zeros(self.height * self.width, np.int64)
        for bit in range(word.bits):
            codes += self._bits(self.planes[word.plane + bit]) << bit
        if word.signed:
            codes -= codes >> (word.bits - 1) << word.bits
        return codes.reshape(self.height, self.width)

    def step(
        self, state: IntArray, inputs: Mapping[str, IntArray], noise: IntArray | None = None
    ) -> IntArray:
        """Do one step on codes (C, H, W); has the meaning of `scotopia.graph.golden.step`."""
        program = self.program
        for word, codes in zip(program.words.values(), state, strict=True):
            self.write(word, codes)
        for name, word in program.inputs.items():
            self.write(word, inputs[name])
        self.run("step", noise=() if noise is None else self.packed(noise))
        return np.stack([self.read(word) for word in program.words.values()])

    def run(
        self,
        routine: str,
        offset: int = 0,
        *,
        sample: int = 0,
        sensed: int = 0,
        noise: Sequence[int] = (),
    ) -> None:
        """Run a routine.

        Parameters
        ----------
        sample
            Code of the sample that arrives.
        sensed
            Plane of the cell that it arrives at.
        noise
            Random planes, in the order in which they are drawn.
        """
        drawn = iter(noise)
        for instruction in self.program.routine(routine, offset):
            if instruction.flag is Flag.NOISE:
                self.flag = next(drawn)
            else:
                self.execute(instruction, sample, sensed)

    def execute(self, instruction: Instruction, sample: int = 0, sensed: int = 0) -> None:
        """Run one instruction, not one of NOISE."""
        op, a = instruction, 0
        last = self.program.operand_bits - 1
        for i in range(op.count):
            if i < op.read_bits:
                a = self.planes[op.read + i]
            elif not op.signed:
                a = 0
            x = {
                Addend.ZERO: 0,
                Addend.ONE: self._all,
                Addend.UNIT: 0 if i else self.flag,
                Addend.FLAG: self.flag,
                Addend.WORD: self.operand[0] & self.flag,
                Addend.SAMPLE: self._sampled(sample, i),
            }[op.addend]
            if i == 0 and op.carry is Carry.START:
                self.carry = 0
            carry = self.carry
            result = x & carry | a & ~carry if op.select else a ^ x ^ carry
            if op.carry is not Carry.HOLD:
                minuend = a ^ self._all if op.subtract else a
                self.carry = minuend & x | carry & (minuend | x)
            if i < op.write_bits:
                self.planes[op.write + i] = result
            if op.flag is Flag.TAKE:
                self.flag = result
            elif op.flag is Flag.SENSE:
                self.flag = sensed
            if op.shift is not Shift.HOLD and (i < last or i == op.count - 1):
                self.operand.append(self._entering(op, result))
                del self.operand[0]

    def _sampled(self, sample: int, bit: int) -> int:
        return self._all * (sample >> bit & 1)

    def _entering(self, op: Instruction, result: int) -> int:
        """What enters the operand."""
        shown, width = self.operand[0], self.width
        if op.shift is Shift.ROTATE:
            return shown
        if op.shift is Shift.LOAD:
            return result
        # From where, which cells lie at that border, and how far is the opposite one.
        inner, edge, across = {
            Shift.NORTH: (width, self._north, width * (self.height - 1)),
            Shift.SOUTH: (-width, self._south, -width * (self.height - 1)),
            Shift.WEST: (1, self._west, width - 1),
            Shift.EAST: (-1, self._east, -(width - 1)),
        }[op.shift]
        opposite = _moved(edge, across)
        moved = _moved(shown & ~opposite & self._all, inner)
        match self.program.borders[op.border]:
            case "replicate":
                beyond = shown & edge
            case "wrap":
                beyond = _moved(shown & opposite, -across)
            case "reflect":  # an array of one row has no other one to show
                beyond = _moved(shown, -inner) & edge if across else shown & edge
            case _:
                return moved
        return moved | beyond

    def _bits(self, plane: int) -> IntArray:
        count = self.height * self.width
        packed = np.frombuffer(plane.to_bytes((count + 7) // 8, "little"), np.uint8)
        return np.unpackbits(packed, count=count, bitorder="little").astype(np.int64)


def _moved(plane: int, places: int) -> int:
    return plane << places if places > 0 else plane >> -places
