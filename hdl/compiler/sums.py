"""Sums in planes: how a cell computes `jobs.Total`.

Each sum starts as a word or 0 and a constant (its own, half a unit for rounding, and for a signed
result that saturates the offset that makes it unsigned), has just as many bits as its terms so far
can need, and ends in its result's format. A word is made the operand once, moved to each neighbour
in turn, and added to all sums that want it there: a digit of a weight is the operand, shifted by
where it is added and with a sign.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scotopia.graph.errors import InputError
from scotopia.graph.intervals import ZERO, Interval
from scotopia.graph.qformat import Rounding, required_bits

from ..program import Addend, Carry, Flag, Instruction, Shift, Word
from .cells import LONGEST, Cells, OutOfPlanesError, runs
from .expression import CENTRE, Term, signed_digits
from .jobs import Held, Total
from .plan import EARLY

#: The nine neighbours, in reading order, on four ways of one move each.
_WAYS: tuple[tuple[tuple[int, Shift | None], ...], ...] = (
    ((4, None), (1, Shift.NORTH), (2, Shift.EAST)),
    ((4, None), (5, Shift.EAST), (8, Shift.SOUTH)),
    ((4, None), (7, Shift.SOUTH), (6, Shift.WEST)),
    ((4, None), (3, Shift.WEST), (0, Shift.NORTH)),
)


@dataclass(frozen=True)
class _Digit:
    """A summand: +/- 2**position times a term."""

    term: Term
    position: int
    sign: int
    interval: Interval


@dataclass
class _Sum:
    """A sum in the making, in two's complement.

    Attributes
    ----------
    total
        What it is to be.
    held
        How its result is stored.
    digits
        Those that are still to be added.
    shift
        Bits below the result.
    dropped
        Of them, those that are dropped before anything is rounded.
    known, late
        What is added for rounding and range, beside its constant: at first; when all else is.
    offset
        Of `known` or `late`, what makes a signed result unsigned.
    plane, bits, signed
        Where it is by now. A sum that is a word alone is that word, and may be unsigned.
    owned
        Its planes: the first, and how many; None for another word's.
    limit
        More bits than this it never needs.
    low, high
        What it can be by now.
    final
        What it can be when all is added but `late`.
    """

    total: Total
    held: Held
    digits: list[_Digit]
    shift: int
    dropped: int
    known: int = 0
    late: int = 0
    offset: int = 0
    plane: int = 0
    bits: int = 0
    signed: bool = True
    owned: tuple[int, int] | None = None
    limit: int = 0
    low: int = 0
    high: int = 0
    final: Interval = ZERO


class Sums:
    """What computes sums.

    Parameters
    ----------
    held
        How words are stored.
    find
        Where they are.
    """

    def __init__(self, cells: Cells, held: Mapping[int, Held], find: Callable[[int], Word]) -> None:
        self.cells, self.held, self.find = cells, held, find

    def compute(
        self,
        totals: Sequence[Total],
        finished: Callable[[], None],
        place: Callable[[Total], Word | None],
        settle: Callable[[Total, Word], None],
    ) -> None:
        """Compute sums side by side.

        Parameters
        ----------
        finished
            Is called when no term is read any more.
        place
            Says where a result is to be, if that matters.
        settle
            Is told where it is.
        """
        sums = [self._prepare(total) for total in totals]
        for one in sums:
            self._start(one)
        self._add_all(sums)
        read_on = not all(one.owned for one in sums)  # a word that itself is a sum
        if not read_on:
            finished()
        for one in sums:
            settle(one.total, self._finish(one, place(one.total)))
        if read_on:
            finished()

    # Beginning.

    def _digits(self, total: Total) -> list[_Digit]:
        found = []
        for term, times in total.expression.terms.items():
            held = Interval(1, 1) if term.word is None else self.held[term.word].interval
            if term.gate or term.border == "zero":
                held |= ZERO
            for position, sign in signed_digits(times):
                interval = held << position
                found.append(_Digit(term, position, sign, interval if sign > 0 else -interval))
        return found

    def _prepare(self, total: Total) -> _Sum:
        expression, digits = total.expression, self._digits(total)
        fraction = expression.fraction
        dropped = 0 if expression.cut is None else fraction - expression.cut
        one = _Sum(total, self.held[total.word], digits, fraction - total.fraction, dropped)
        if total.sign:
            one.shift = dropped
        rounds = one.shift > dropped
        half = 1 << one.shift - 1 if rounds else 0
        if rounds and total.rounding is Rounding.RND:
            one.known = half
        elif rounds and total.rounding is Rounding.RND_MIN_INF:
            one.known = half - (1 << dropped)
        elif total.rounding not in EARLY:
            one.late = 2 * half
        if total.limit and total.limit.lowest < 0:
            one.offset = 1 << total.limit.bits - 1 + one.shift
            if one.late:
                one.late += one.offset
            else:
                one.known += one.offset
        sum = Interval(expression.constant, expression.constant)
        for digit in digits:
            sum += digit.interval
        if total.bounds:
            sum = Interval(
                max(sum.lowest, total.bounds.lowest), min(sum.highest, total.bounds.highest)
            )
        one.final = Interval(sum.lowest + one.known, sum.highest + one.known)
        one.limit = required_bits(one.final.lowest, one.final.highest + one.late)
        if not (total.limit or total.sign or one.late):
            one.limit = min(one.limit, one.shift + one.held.bits)  # what is above is dropped
        return one

    def _start(self, one: _Sum) -> None:
        """Begin with a constant, and a word if there is one; reserve what the terms will need."""
        constant = one.total.expression.constant + one.known
        plain = [
            digit
            for digit in one.digits
            if digit.sign > 0
            and digit.term.word is not None
            and digit.term.tap == CENTRE
            and not digit.term.gate
        ]
        if len(one.digits) == len(plain) == 1 and constant == one.late == 0:
            (digit,) = plain
            if digit.position <= one.shift or one.total.sign:
                word = self._word(digit)
                one.digits = []
                one.plane, one.bits, one.signed = word.plane, word.bits, word.signed
                one.shift = max(one.shift - digit.position, 0)
                one.dropped = max(one.dropped - digit.position, 0)
                one.final = self.held[_of(digit)].interval
                return
        result = one.shift + (0 if one.total.sign else one.held.bits)
        if one.total.limit:
            result = max(result, one.shift + one.total.limit.bits)
        reserved = max(one.limit, result)
        if reserved > LONGEST:
            raise InputError(
                f"a sum needs {reserved} bits, a cell adds {LONGEST} at most: "
                "quantize the rule with fewer"
            )
        one.owned = self.cells.allocate(reserved, high=True), reserved
        one.plane = one.owned[0]
        one.low = one.high = constant
        first = max((digit.position + 1 for digit in one.digits), default=1)
        if not plain:
            one.bits = min(max(required_bits(constant, constant), first), one.limit)
            self.cells.write(one.plane, constant, one.bits)
            return
        # One that is needed nowhere else need not be loaded.
        words = [digit.term for digit in one.digits]
        digit = min(plain, key=lambda digit: words.count(digit.term))
        one.digits.remove(digit)
        one.low, one.high = constant + digit.interval.lowest, constant + digit.interval.highest
        one.bits = min(max(required_bits(one.low, one.high), first), one.limit)
        below = min(digit.position, one.bits)
        self.cells.write(one.plane, constant, below)
        word, at = self._word(digit), below
        for bit, count in runs(constant >> below, one.bits - below):
            done = at - below
            read = min(max(word.bits - done, 0), count)
            # The bits that follow the word are its sign, which stays where it was read.
            self.cells.emit(
                Instruction(
                    count,
                    read=word.plane + min(done, word.bits - 1),
                    read_bits=max(read, 1) if word.signed else read,
                    signed=word.signed,
                    write=one.plane + at,
                    write_bits=count,
                    addend=Addend.ONE if bit else Addend.ZERO,
                    carry=Carry.CONTINUE if done else Carry.START,
                )
            )
            at += count

    def _word(self, digit: _Digit) -> Word:
        return self.find(_of(digit))

    # Terms.

    def _add_all(self, sums: Sequence[_Sum]) -> None:
        """Add all that is left, word by word."""
        words: dict[int | None, list[tuple[_Sum, _Digit]]] = {}
        for one in sums:
            for digit in one.digits:
                words.setdefault(digit.term.word, []).append((one, digit))
        for number in sorted(words, key=lambda number: self._weight(words[number])):
            wanted = words[number]
            if number is None:
                self._add_gated(None, wanted)
                continue
            word = self.find(number)
            near = [(one, digit) for one, digit in wanted if digit.term.border]
            here = [(one, digit) for one, digit in wanted if not digit.term.border]
            for border in sorted({digit.term.border for _, digit in near}):
                chosen = [(one, digit) for one, digit in near if digit.term.border == border]
                plain = [(one, digit) for one, digit in here if not digit.term.gate]
                self._add_around(word, border, chosen + plain)
                here = [(one, digit) for one, digit in here if digit.term.gate]
            if word.bits == 1 and not word.signed and not any(d.term.gate for _, d in here):
                self._add_units(word.plane, here)
                continue
            for start, part in self.cells.parts(word) if here else ():
                whole = part is word or part == word
                cut = [(one, digit if whole else _part(digit, start, part)) for one, digit in here]
                plain = [(one, digit) for one, digit in cut if not digit.term.gate]
                if plain:
                    self.cells.set_flag()
                    self.cells.load(part)
                    self._add_each(plain)
                self._add_gated(part, [(one, digit) for one, digit in cut if digit.term.gate])

    def _weight(self, wanted: list[tuple[_Sum, _Digit]]) -> int:
        """Large where a word makes sums grow."""
        return max(max(map(abs, digit.interval.ends)) for _, digit in wanted)

    def _add_around(self, word: Word, border: str, wanted: list[tuple[_Sum, _Digit]]) -> None:
        """Add a word where it comes from neighbours, and from the cell itself."""
        self.cells.set_flag()
        left = {digit.term.tap for _, digit in wanted}
        for way in _WAYS:
            if not {tap for tap, _ in way} & left:
                continue
            for tap, move in way:
                if move is None:
                    self.cells.load(word)
                elif {tap for tap, move in way[way.index((tap, move)) :]} & left:
                    self.cells.move(move, border)
                if tap in left:
                    self._add_each([pair for pair in wanted if pair[1].term.tap == tap])
                    left.remove(tap)

    def _add_gated(self, word: Word | None, wanted: list[tuple[_Sum, _Digit]]) -> None:
        """Add a word, or 1, where bits of others are 1."""
        for gate in dict.fromkeys(digit.term.gate for _, digit in wanted):
            assert gate is not None
            chosen = [pair for pair in wanted if pair[1].term.gate == gate]
            plane = self.find(gate[0]).plane + gate[1]
            if word is None:
                self._add_units(plane, chosen)
                continue
            self.cells.flag_from(plane)
            self.cells.load(word)
            self._add_each(chosen)

    def _add_units(self, plane: int, wanted: list[tuple[_Sum, _Digit]]) -> None:
        """Add a bit."""
        if wanted:
            self.cells.flag_from(plane)
        for one, digit in wanted:
            self._add(one, digit, unit=True)

    def _add_each(self, wanted: list[tuple[_Sum, _Digit]]) -> None:
        # From the highest digit down, so that no bit is read that is on its way.
        for one, digit in reversed(wanted):
            self._add(one, digit)

    def _add(self, one: _Sum, digit: _Digit, *, unit: bool = False) -> None:
        """Add a digit of the operand where the flag is set, or the flag."""
        one.low, one.high = one.low + digit.interval.lowest, one.high + digit.interval.highest
        if digit.position >= one.limit:
            return
        self._extend(one, digit.position + 1)
        before = one.bits
        one.bits = max(before, min(required_bits(one.low, one.high), one.limit))
        count = one.bits - digit.position
        self.cells.emit(
            Instruction(
                count if unit else max(count, self.cells.operand_bits),
                read=one.plane + digit.position,
                read_bits=before - digit.position,
                signed=True,
                write=one.plane + digit.position,
                write_bits=count,
                addend=Addend.UNIT if unit else Addend.WORD,
                subtract=digit.sign < 0,
                shift=Shift.HOLD if unit else Shift.ROTATE,
            )
        )

    # Ending.

    def _finish(self, one: _Sum, place: Word | None) -> Word:
        """Bring a sum to its result: in `place`, or where there is room; release what it leaves."""
        one.low, one.high = one.final.ends
        if one.dropped:
            self._extend(one, one.dropped + 1)
            above = min(one.dropped, one.bits - 1)
            one.plane, one.bits = one.plane + above, one.bits - above
            one.low, one.high = one.low >> one.dropped, one.high >> one.dropped
            one.late, one.offset = one.late >> one.dropped, one.offset >> one.dropped
            one.shift, one.dropped = one.shift - one.dropped, 0
        if one.total.sign:
            return self._sign(one)
        self._round(one)
        self._extend(one, one.shift + 1)
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
        self._extend(one, one.shift + held.bits)
        return self._leave(one, Word(source.plane, held.bits, held.signed))

    def _sign(self, one: _Sum) -> Word:
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

    def _saturate(self, one: _Sum, source: Word, limit: Interval, place: Word | None) -> Word:
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

    def _result(self, one: _Sum, source: Word, bits: int, signed: bool, place: Word | None) -> Word:
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

    def _leave(self, one: _Sum, result: Word) -> Word:
        """Give back the planes of a sum that are not its result's."""
        if one.owned:
            start, count = one.owned
            for plane in range(start, start + count):
                if not result.plane <= plane < result.plane + result.bits:
                    self.cells.release(plane, 1)
        return result

    def _round(self, one: _Sum) -> None:
        """Do that part of rounding which depends on the sum, and add the offset then."""
        rounding, shift = one.total.rounding, one.shift
        if not one.late:
            return
        half = 1 << shift - 1
        # Now, for the carry has to stay between here and the addition.
        self._extend(one, required_bits(one.low, one.high + one.late))
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

    def _offset(self, one: _Sum, constant: int, carry: Carry) -> None:
        """Add a constant, and the carry if it continues."""
        low, high = one.low + constant, one.high + constant + (carry is Carry.CONTINUE)
        one.low, one.high = low, high
        # First, since what is added lies in several instructions, and the sign would be gone.
        self._extend(one, required_bits(low, high))
        done = 0
        for bit, count in runs(constant, one.bits):
            addend = Addend.ONE if bit else Addend.ZERO
            self._change(one.plane + done, count, addend, Carry.CONTINUE if done else carry)
            done += count

    def _grow(self, one: _Sum, count: int, low: int, high: int) -> None:
        """Add the flag for `count` bits, then zeros, to a sum that is `low` to `high` then."""
        one.low, one.high = low, high
        self._extend(one, required_bits(low, high))
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

    def _extend(self, one: _Sum, bits: int) -> None:
        """Repeat a sum's sign, so that it has this many bits at least."""
        if one.owned and one.bits < bits:
            top = Word(one.plane + one.bits - 1, 1, signed=True)
            self.cells.copy(top, Word(one.plane + one.bits, bits - one.bits, signed=True))
            one.bits = bits


def _of(digit: _Digit) -> int:
    assert digit.term.word is not None
    return digit.term.word


def _part(digit: _Digit, start: int, part: Word) -> _Digit:
    """A digit of a part of its word, which starts at bit `start`."""
    if part.signed:
        held = Interval(-1 << part.bits - 1, (1 << part.bits - 1) - 1)
    else:
        held = Interval(0, (1 << part.bits) - 1)
    if digit.term.gate:
        held |= ZERO
    interval = held << digit.position + start
    sign = digit.sign
    return _Digit(digit.term, digit.position + start, sign, interval if sign > 0 else -interval)
