"""How sums end: rounded, and brought into the range of their result."""

from scotopia.graph.intervals import Interval
from scotopia.graph.qformat import Rounding, required_bits

from ..program import Addend, Carry, Flag, Instruction, Word
from .cells import Cells, OutOfPlanesError, runs
from .jobs import Held
from .partial import Sum


class Results:
    """What brings sums to their results."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def finish(self, one: Sum, place: Word | None) -> Word:
        """Bring a sum to its result: in `place`, or where there is room; release what it leaves."""
        one.low, one.high = one.final.ends
        if one.dropped:
            one.extend(self.cells, one.dropped + 1)
            above = min(one.dropped, one.bits - 1)
            one.plane, one.bits = one.plane + above, one.bits - above
            one.low, one.high = one.low >> one.dropped, one.high >> one.dropped
            one.late, one.offset = one.late >> one.dropped, one.offset >> one.dropped
            one.shift, one.dropped = one.shift - one.dropped, 0
        if one.total.sign:
            return self._sign(one)
        self._round(one)
        one.extend(self.cells, one.shift + 1)
        above = min(one.shift, one.bits - 1)
        source = Word(one.plane + above, one.bits - above, one.signed)
        if one.total.limit:
            return self._saturate(one, source, one.total.limit, place)
        held = one.held
        result = source if source.bits < held.bits else Word(source.plane, held.bits, held.signed)
        if place or not one.owned:
            place = place or self._new(held)
            self.cells.copy(result, place)
            return self._leave(one, place)
        one.extend(self.cells, one.shift + held.bits)
        return self._leave(one, Word(source.plane, held.bits, held.signed))

    def _sign(self, one: Sum) -> Word:
        """Keep the highest bit alone."""
        sign = Word(one.plane + one.bits - 1, int(one.signed), signed=False)
        if one.owned and one.total.sign > 0:
            return self._leave(one, sign)
        place = self._new(one.held)
        self.cells.emit(
            Instruction(
                1,
                read=sign.plane,
                read_bits=sign.bits,
                write=place.plane,
                write_bits=1,
                addend=Addend.ONE if one.total.sign < 0 else Addend.ZERO,
            )
        )
        return self._leave(one, place)

    def _saturate(self, one: Sum, source: Word, limit: Interval, place: Word | None) -> Word:
        """Bring what is at least 0, but for what lies below the limit, into the limit."""
        total, cells = one.total, self.cells
        signed = limit.lowest < 0
        bits = limit.bits - (not signed)
        if not (total.above or signed):
            bits = one.held.bits
        here = self._result(one, source, bits, signed, place)
        to = Word(here.plane, bits, signed)
        sign, above = source.plane + source.bits - 1, source.bits - bits
        if total.below and total.above and above > 0:
            cells.emit(Instruction(1, read=sign, read_bits=1, addend=Addend.ONE, flag=Flag.TAKE))
            cells.carry_or(source.plane + bits, above)
            cells.select(source, to, Addend.FLAG)
        elif total.below:
            cells.carry_from(sign)
            cells.select(source, to, Addend.ZERO)
        elif above > 0:
            cells.carry_or(source.plane + bits, above)
            cells.select(source, to, Addend.ONE)
        else:
            cells.copy(source, to)
        if signed:
            if total.below and limit.lowest == -limit.highest:
                # The carry becomes 1, and stays so as long as bits are 0.
                cells.emit(Instruction(1, addend=Addend.ONE, subtract=True))
                cells.emit(
                    Instruction(
                        bits, read=to.plane, read_bits=bits, subtract=True, carry=Carry.CONTINUE
                    )
                )
                cells.select(Word(to.plane, 1, signed=False), Word(to.plane, 1, False), Addend.ONE)
            top = to.plane + bits - 1
            cells.emit(
                Instruction(1, read=top, read_bits=1, write=top, write_bits=1, addend=Addend.ONE)
            )
        if here.bits > bits:
            rest = Word(here.plane + bits, here.bits - bits, signed)
            if signed:
                cells.copy(Word(to.plane + bits - 1, 1, signed=True), rest)
            else:
                self.cells.write(rest.plane, 0, rest.bits)
        return self._leave(one, here)

    def _result(self, one: Sum, source: Word, bits: int, signed: bool, place: Word | None) -> Word:
        """Where a result that is written anew is to be: with other words, or else in the sum."""
        if place:
            return place
        try:
            return Word(self.cells.allocate(bits), bits, signed)
        except OutOfPlanesError:
            if not one.owned or sum(one.owned) < source.plane + bits:
                raise
            return Word(source.plane, bits, signed)

    def _new(self, held: Held) -> Word:
        return Word(self.cells.allocate(held.bits), held.bits, held.signed)

    def _leave(self, one: Sum, result: Word) -> Word:
        """Give back the planes of a sum that are not its result's."""
        if one.owned:
            start, count = one.owned
            for plane in range(start, start + count):
                if not result.plane <= plane < result.plane + result.bits:
                    self.cells.release(plane, 1)
        return result

    def _round(self, one: Sum) -> None:
        """Do that part of rounding which depends on the sum, and add the offset then."""
        rounding, shift = one.total.rounding, one.shift
        if not one.late:
            return
        half = 1 << shift - 1
        # Now, for the carry has to stay between here and the addition.
        one.extend(self.cells, required_bits(one.low, one.high + one.late))
        sign = one.plane + one.bits - 1
        offset = one.offset
        if rounding is Rounding.TRN_ZERO:
            # Nearly a unit more where it is negative; one bit, repeated, is that number.
            self.cells.flag_from(sign)
            self._grow(one, shift, one.low, one.high + 2 * half - 1)
            if offset:
                self._offset(one, offset, Carry.START)
            return
        plane, inverted = {
            Rounding.RND_ZERO: (sign, False),
            Rounding.RND_INF: (sign, True),
            Rounding.RND_CONV: (one.plane + shift, False),
        }[rounding]
        if plane >= one.plane + one.bits:
            plane = sign
        self.cells.carry_from(plane, inverted=inverted)
        self._offset(one, offset + half - 1, Carry.CONTINUE)

    def _offset(self, one: Sum, constant: int, carry: Carry) -> None:
        """Add a constant, and the carry if it continues."""
        low, high = one.low + constant, one.high + constant + (carry is Carry.CONTINUE)
        one.low, one.high = low, high
        # First, since what is added lies in several instructions, and the sign would be gone.
        one.extend(self.cells, required_bits(low, high))
        done = 0
        for bit, count in runs(constant, one.bits):
            addend = Addend.ONE if bit else Addend.ZERO
            self._change(one.plane + done, count, addend, Carry.CONTINUE if done else carry)
            done += count

    def _grow(self, one: Sum, count: int, low: int, high: int) -> None:
        """Add the flag for `count` bits, then zeros, to a sum that is `low` to `high` then."""
        one.low, one.high = low, high
        one.extend(self.cells, required_bits(low, high))
        self._change(one.plane, min(count, one.bits), Addend.FLAG, Carry.START)
        if one.bits > count:
            self._change(one.plane + count, one.bits - count, Addend.ZERO, Carry.CONTINUE)

    def _change(self, plane: int, bits: int, addend: Addend, carry: Carry) -> None:
        """Add to some bits."""
        self.cells.emit(
            Instruction(
                bits,
                read=plane,
                read_bits=bits,
                write=plane,
                write_bits=bits,
                addend=addend,
                carry=carry,
            )
        )
