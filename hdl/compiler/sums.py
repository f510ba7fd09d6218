"""Sums in planes: how a cell computes `jobs.Total`.

Each sum starts as a word or 0 and a constant (its own, half a unit for rounding, and for a signed
result that saturates the offset that makes it unsigned), has just as many bits as its terms so far
can need, and ends in its result's format. A word is made the operand once, moved to each neighbour
in turn, and added to all sums that want it there: a digit of a weight is the operand, shifted by
where it is added and with a sign.
"""

from collections.abc import Callable, Mapping, Sequence

from scotopia.graph.errors import InputError
from scotopia.graph.intervals import ZERO, Interval
from scotopia.graph.qformat import Rounding, required_bits

from ..program import Addend, Carry, Instruction, Shift, Word
from .cells import LONGEST, Cells, runs
from .expression import CENTRE, signed_digits
from .jobs import EARLY, Held, Total
from .partial import Digit, Sum
from .results import Results

#: The nine neighbours, in reading order, on four ways of one move each.
_WAYS: tuple[tuple[tuple[int, Shift | None], ...], ...] = (
    ((4, None), (1, Shift.NORTH), (2, Shift.EAST)),
    ((4, None), (5, Shift.EAST), (8, Shift.SOUTH)),
    ((4, None), (7, Shift.SOUTH), (6, Shift.WEST)),
    ((4, None), (3, Shift.WEST), (0, Shift.NORTH)),
)


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
        self._results = Results(cells)

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
            settle(one.total, self._results.finish(one, place(one.total)))
        if read_on:
            finished()

    # Beginning.

    def _digits(self, total: Total) -> list[Digit]:
        found = []
        for term, times in total.expression.terms.items():
            held = Interval(1, 1) if term.word is None else self.held[term.word].interval
            if term.gate or term.border == "zero":
                held |= ZERO
            for position, sign in signed_digits(times):
                interval = held << position
                found.append(Digit(term, position, sign, interval if sign > 0 else -interval))
        return found

    def _prepare(self, total: Total) -> Sum:
        expression, digits = total.expression, self._digits(total)
        fraction = expression.fraction
        dropped = 0 if expression.cut is None else fraction - expression.cut
        one = Sum(total, self.held[total.word], digits, fraction - total.fraction, dropped)
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

    def _start(self, one: Sum) -> None:
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

    def _word(self, digit: Digit) -> Word:
        return self.find(_of(digit))

    # Terms.

    def _add_all(self, sums: Sequence[Sum]) -> None:
        """Add all that is left, word by word."""
        words: dict[int | None, list[tuple[Sum, Digit]]] = {}
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

    def _weight(self, wanted: list[tuple[Sum, Digit]]) -> int:
        """Large where a word makes sums grow."""
        return max(max(map(abs, digit.interval.ends)) for _, digit in wanted)

    def _add_around(self, word: Word, border: str, wanted: list[tuple[Sum, Digit]]) -> None:
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

    def _add_gated(self, word: Word | None, wanted: list[tuple[Sum, Digit]]) -> None:
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

    def _add_units(self, plane: int, wanted: list[tuple[Sum, Digit]]) -> None:
        """Add a bit."""
        if wanted:
            self.cells.flag_from(plane)
        for one, digit in wanted:
            self._add(one, digit, unit=True)

    def _add_each(self, wanted: list[tuple[Sum, Digit]]) -> None:
        # From the highest digit down, so that no bit is read that is on its way.
        for one, digit in reversed(wanted):
            self._add(one, digit)

    def _add(self, one: Sum, digit: Digit, *, unit: bool = False) -> None:
        """Add a digit of the operand where the flag is set, or the flag."""
        one.low, one.high = one.low + digit.interval.lowest, one.high + digit.interval.highest
        if digit.position >= one.limit:
            return
        one.extend(self.cells, digit.position + 1)
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


def _of(digit: Digit) -> int:
    assert digit.term.word is not None
    return digit.term.word


def _part(digit: Digit, start: int, part: Word) -> Digit:
    """A digit of a part of its word, which starts at bit `start`."""
    if part.signed:
        held = Interval(-1 << part.bits - 1, (1 << part.bits - 1) - 1)
    else:
        held = Interval(0, (1 << part.bits) - 1)
    if digit.term.gate:
        held |= ZERO
    interval = held << digit.position + start
    sign = digit.sign
    return Digit(digit.term, digit.position + start, sign, interval if sign > 0 else -interval)
