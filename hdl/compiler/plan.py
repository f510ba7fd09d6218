"""What is to be computed for a step, and of what: a step graph taken apart into jobs.

A word that one reader alone adds to others is no word of its own: it is part of that reader's sum.
So the jobs are fewer than the graph's words, and each of them makes one word that is stored. What
never differs, or is a part of another word's bits, takes no job at all.
"""

from collections.abc import Iterable
from dataclasses import replace

from scotopia.graph.intervals import BIT, ZERO, Interval, derive
from scotopia.graph.operations import (
    HERE,
    Add,
    Channel,
    Fit,
    Input,
    Less,
    Linear,
    Maximum,
    Minimum,
    Multiply,
    Operation,
    Random,
    Select,
    Subtract,
    Window,
)
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph

from .expression import CENTRE, Expression, Term, signed_digits
from .jobs import (
    EARLY,
    AnyBit,
    Both,
    Choice,
    Draw,
    Either,
    Extreme,
    Held,
    Job,
    Number,
    OnlySecond,
    Plan,
    Source,
    Total,
)

#: What the roundings are of a sum that is never negative.
_OF_POSITIVE = {
    Rounding.TRN_ZERO: Rounding.TRN,
    Rounding.RND_ZERO: Rounding.RND_MIN_INF,
    Rounding.RND_INF: Rounding.RND,
}


#: Zero, with fewer fraction bits than any word.
NOTHING = Number(0, -1024)


def plan_step(graph: StepGraph) -> Plan:
    """Take a step apart."""
    return _Planner(graph).plan


class _Planner:
    def __init__(self, graph: StepGraph) -> None:
        self.graph, self.plan = graph, Plan(graph)
        # From any codes, not only from those that a proof knows: the array does what the golden
        # model does wherever it starts.
        self.ranges = derive(graph)
        self.same: list[int] = []
        for word in range(graph.count):
            self.same.append(self._same(word))
        self.codes: dict[int, tuple[IntArray, IntArray]] = {}
        self.uses = self._uses()
        self.sums: dict[int, Expression] = {}  # words that may become part of another one's sum
        self.extra = graph.count
        for word in range(graph.count):
            operation, lane = graph.made_by(word)
            given = isinstance(operation, Channel | Input)
            if given or (self.uses.get(word) and self.constant(word) is None):
                self._define(word, operation, lane)
        for word in graph.outputs:
            self.plan.outputs.append(self.source(word))

    # What is known of the graph's words.

    def interval(self, word: int) -> Interval:
        return self.ranges.words[word]

    def constant(self, word: int) -> Number | None:
        """Number that a word always is."""
        low, high = self.interval(word).ends
        return _number(low, self.graph.fractions[word]) if low == high else None

    def _same(self, word: int) -> int:
        """Return the first word that always is the same number."""
        operation, lane = self.graph.made_by(word)
        known = self.graph.fractions
        match operation:
            case Fit(a=a, formats=formats):
                if known[a[lane]] <= formats[lane].frac_bits and self.inside(word):
                    return self.same[a[lane]]
            case Select(condition=bits, a=a, b=b):
                bit = self.interval(bits[lane])
                if self.same[a[lane]] == self.same[b[lane]] or bit.lowest == bit.highest:
                    return self.same[a[lane] if bit.lowest else b[lane]]
            case Minimum(a=a, b=b) | Maximum(a=a, b=b):
                common = max(known[a[lane]], known[b[lane]])
                one, other = (
                    self.interval(word) << (common - known[word]) for word in (a[lane], b[lane])
                )
                if isinstance(operation, Maximum):
                    one, other = -one, -other
                if one.highest <= other.lowest:
                    return self.same[a[lane]]
                if other.highest <= one.lowest:
                    return self.same[b[lane]]
        return word

    def inside(self, word: int) -> bool:
        """Whether a `Fit` neither saturates nor wraps."""
        return self.interval(word) == self.ranges.rounded[word]

    def _uses(self) -> dict[int, int]:
        """How many words, or channels, are made of each."""
        found: dict[int, int] = {}
        waiting = []

        def use(words: Iterable[int]) -> None:
            for word in map(self.same.__getitem__, words):
                found[word] = found.get(word, 0) + 1
                if found[word] == 1 and self.constant(word) is None:
                    waiting.append(word)

        use(self.graph.outputs)
        while waiting:
            word = waiting.pop()
            index, lane = self.graph.origin(word)
            operation = self.graph.operations[index]
            if isinstance(operation, Linear):
                weight = operation.weight[lane]
                use(a for a, taps in zip(operation.a, weight, strict=True) if taps.any())
            else:
                use(words[lane] for words in operation.arguments)
        return found

    # Words to be stored.

    def hold(self, word: int, interval: Interval, fraction: int) -> int:
        """Store a word in as few bits as it needs."""
        signed = interval.lowest < 0
        bits = max(interval.bits - (not signed), 1)
        self.plan.held[word] = Held(interval, bits, signed, fraction, word)
        return word

    def kept(self, word: int, job: Job, fraction: int) -> int:
        """Store a word of the graph, as a job makes it."""
        interval = _at(self.interval(word), self.graph.fractions[word], fraction)
        self.plan.jobs[word] = job
        return self.hold(word, interval, fraction)

    def new(self) -> int:
        """Return the number of a word that the graph does not have."""
        self.extra += 1
        return self.extra - 1

    def part(self, word: int, of: int, low: int, interval: Interval, fraction: int) -> None:
        """Let a word be bits of another one, from bit `low` on."""
        held = self.plan.held[of]
        low = min(low, held.bits - 1)
        signed = interval.lowest < 0
        bits = min(max(interval.bits - (not signed), 1), held.bits - low)
        self.plan.held[word] = Held(interval, bits, signed, fraction, held.base, held.low + low)

    def source(self, word: int) -> Source:
        """Return a number or a stored word."""
        known = self.constant(word)
        return known if known else self.stored(word)

    def stored(self, word: int) -> int:
        """Have a word stored."""
        word = self.same[word]
        if word in self.plan.held:
            return word
        known = self.constant(word)
        if known:  # which a neighbour beyond the border has not
            total = Total(word, _constant(known), fraction=known.fraction)
            return self.kept(word, total, known.fraction)
        expression = self.sums[word]
        one = _only(expression)
        if one and one[0].gate and one[1] == 1 and expression.cut is None:
            assert one[0].word is not None
            chosen = self.new()  # the same bits, worth what the product is worth
            held = self.plan.held[one[0].word]
            self.part(chosen, one[0].word, 0, held.interval, expression.fraction)
            product = Choice(word, one[0].gate[0], chosen, NOTHING)
            return self.kept(word, product, expression.fraction)
        kept = expression.fraction if expression.cut is None else expression.cut
        total = Total(word, expression, self.bounds(word, expression), kept)
        return self.kept(word, total, kept)

    def term(self, word: int) -> Expression:
        """Return a word that is stored, as a sum."""
        word = self.stored(word)
        return Expression.of(Term(word), self.plan.held[word].fraction)

    def taken(self, word: int) -> Expression:
        """Return a word as a sum, which is not computed by itself if that is its only use."""
        known = self.constant(word)
        if known:
            return _constant(known)
        word = self.same[word]
        if word in self.sums and self.uses[word] == 1:
            return self.sums[word]
        return self.term(word)

    def bounds(self, word: int, expression: Expression) -> Interval:
        """What a sum can be, by what is known of the word that it is."""
        kept = expression.fraction if expression.cut is None else expression.cut
        found = _at(self.interval(word), self.graph.fractions[word], kept)
        dropped = expression.fraction - kept
        return Interval(found.lowest << dropped, (found.highest + 1 << dropped) - 1)

    # Operations.

    def _define(self, word: int, operation: Operation, lane: int) -> None:
        match operation:
            case Channel(formats=formats) | Input(formats=formats):
                format = formats[lane]
                assert format is not None
                self.plan.held[word] = Held(
                    Interval.of(format), format.bits, format.signed, format.frac_bits, word
                )
            case Random(bits=bits):
                self.kept(word, Draw(word), bits[lane])
            case Linear():
                index, _ = self.graph.origin(word)
                self.sum_up(word, self.linear(index, operation, lane))
            case Window(a=a, largest=largest, border=border):
                source = self.stored(a[lane])
                self.plan.jobs[word] = Extreme(word, source, largest, border)
                held = self.plan.held[source]
                interval = held.interval | ZERO if border == "zero" else held.interval
                self.hold(word, interval, held.fraction)
            case Add(a=a, b=b):
                self.sum_up(word, self.pair(a[lane], b[lane]))
            case Subtract(a=a, b=b):
                self.sum_up(word, self.pair(a[lane], b[lane], -1))
            case Multiply(a=a, b=b):
                self.sum_up(word, self.product(a[lane], b[lane]))
            case Minimum(a=a, b=b) | Maximum(a=a, b=b):
                self.extreme(word, a[lane], b[lane], isinstance(operation, Maximum))
            case Less(a=a, b=b):
                self.less(word, a[lane], b[lane])
            case Select(condition=condition, a=a, b=b):
                self.select(word, condition[lane], a[lane], b[lane])
            case Fit():
                self.fit(word, operation, lane)
            case _:
                raise NotImplementedError(type(operation).__name__)

    def sum_up(self, word: int, expression: Expression) -> None:
        """Let a word be a sum, or what it is of another word if it is that alone."""
        one = _only(expression)
        if one and expression.cut is None and one[1] > 0 and one[1] & one[1] - 1 == 0:
            term, times = one
            fraction = expression.fraction - (times.bit_length() - 1)
            if term.word is None:
                assert term.gate
                self.part(word, *term.gate, BIT, fraction)
                return
            if not term.gate and term.tap == CENTRE:
                self.part(word, term.word, 0, self.plan.held[term.word].interval, fraction)
                return
        self.sums[word] = expression

    def pair(self, a: int, b: int, sign: int = 1) -> Expression:
        """Add two words, or subtract the second."""
        one, other = self.taken(a), self.taken(b)
        if sign < 0 and other.cut is not None:
            other = self.term(b)
        if not one.addable(other) and one.cut is not None:
            one = self.term(a)
        if not one.addable(other):
            other = self.term(b)
        return one + (other if sign > 0 else other.scaled(-1))

    def scaled(self, word: int, number: Number) -> Expression:
        """Multiply a word by a number."""
        one = self.taken(word)
        digits = len(list(signed_digits(number.code)))
        if one.cut is not None or (one.additions > 1 and digits > 1):
            one = self.term(word)
        return one.scaled(number.code, number.fraction)

    def linear(self, index: int, linear: Linear, lane: int) -> Expression:
        if index not in self.codes:
            self.codes[index] = self.graph.codes_of(index)
        weight, bias = self.codes[index]
        found = self.graph.fractions[self.graph.words(index)[lane]]
        total = _constant(_number(int(bias[lane]), found))
        for word, taps in zip(linear.a, weight[lane], strict=True):
            fraction = found - self.graph.fractions[word]
            for tap, code in enumerate(map(int, taps)):
                times = _number(code, fraction)
                if code == 0:
                    continue
                if len(taps) == HERE:
                    total += self.scaled(word, times)
                elif tap == CENTRE or (linear.border != "zero" and self.constant(word)):
                    known = self.constant(word)
                    one = _constant(known) if known else self.term(word)
                    total += one.scaled(times.code, times.fraction)
                else:
                    source = self.stored(word)
                    term = Term(source, tap, linear.border)
                    one = Expression.of(term, self.plan.held[source].fraction)
                    total += one.scaled(times.code, times.fraction)
        return replace(total, linear=index)

    def product(self, a: int, b: int) -> Expression:
        for one, other in ((a, b), (b, a)):
            known = self.constant(one)
            if known:
                return self.scaled(other, known)
        words = [self.stored(word) for word in (a, b)]
        held = self.plan.held
        # Of the one with fewer bits, each is a term.
        gate, word = sorted(words, key=lambda word: (held[word].bits, held[word].signed))
        last = held[gate].bits - 1
        terms: dict[Term, int] = {}
        for bit in range(held[gate].bits):
            sign = -1 if bit == last and held[gate].signed else 1
            terms[Term(word, gate=(gate, bit))] = sign << bit
        return Expression(held[word].fraction + held[gate].fraction, terms)

    def extreme(self, word: int, a: int, b: int, largest: bool) -> None:
        for one, other in ((a, b), (b, a)):
            known = self.constant(one)
            if largest and known and known.code == 0:
                expression = self.taken(other)
                bounds = self.bounds(self.same[other], expression)
                kept = expression.fraction if expression.cut is None else expression.cut
                limit = Interval(0, _at(bounds, expression.fraction, kept).highest)
                total = Total(word, expression, bounds, kept, limit=limit, below=True)
                self.kept(word, total, kept)
                return
        if self.bits(a, b):
            kind = Either if largest else Both
            self.kept(word, kind(word, self.stored(a), self.stored(b)), self.graph.fractions[word])
            return
        first, second = self.source(a), self.source(b)
        condition = self.new()
        self.negative(condition, self.again(first) + self.again(second).scaled(-1))
        self.hold(condition, BIT, 0)
        choice = (second, first) if largest else (first, second)
        self.kept(word, Choice(word, condition, *choice), self.finest(first, second))

    def bits(self, a: int, b: int) -> bool:
        """Whether two words are bits of the same worth."""
        known = self.graph.fractions
        return known[a] == known[b] and BIT == self.interval(a) == self.interval(b)

    def finest(self, *sources: Source) -> int:
        """Fraction bits of the one that has most."""
        return max(
            source.fraction if isinstance(source, Number) else self.plan.held[source].fraction
            for source in sources
        )

    def again(self, source: Source) -> Expression:
        if isinstance(source, Number):
            return _constant(source)
        return Expression.of(Term(source), self.plan.held[source].fraction)

    def less(self, word: int, a: int, b: int) -> None:
        if self.bits(a, b):
            self.kept(word, OnlySecond(word, self.stored(a), self.stored(b)), 0)
            return
        self.negative(word, self.pair(a, b, -1))
        self.hold(word, BIT, 0)

    def negative(self, word: int, total: Expression) -> None:
        """Let a word be whether a sum is below 0."""
        sign = 1
        begins = [term for term, times in total.terms.items() if times > 0 and term.tap == CENTRE]
        if not begins and total.cut is None:
            # Not below 0 is -total - 1 < 0, which begins with a word and not with 0.
            total, sign = total.scaled(-1), -1
            total = replace(total, constant=total.constant - 1)
        self.plan.jobs[word] = Total(word, total, sign=sign)

    def select(self, word: int, condition: int, a: int, b: int) -> None:
        bit = self.stored(condition)
        if self.plan.held[bit].bits > 1:
            found = self.new()
            self.plan.jobs[found] = AnyBit(found, bit)
            bit = self.hold(found, BIT, 0)
        one, other = self.source(a), self.source(b)
        if isinstance(one, Number) and isinstance(other, Number):
            finest = self.finest(one, other)
            codes = [number.code << finest - number.fraction for number in (one, other)]
            terms = {Term(None, gate=(bit, 0)): codes[0] - codes[1]}
            self.sum_up(word, Expression(finest, terms, codes[1]))
            return
        self.kept(word, Choice(word, bit, one, other), self.finest(one, other))

    def fit(self, word: int, fit: Fit, lane: int) -> None:
        source, format = self.same[fit.a[lane]], fit.formats[lane]
        expression = self.taken(source)
        fraction = expression.fraction if expression.cut is None else expression.cut
        dropped = fraction - format.frac_bits
        rounding = fit.rounding
        if self.interval(source).lowest >= 0:
            rounding = _OF_POSITIVE.get(rounding, rounding)
        if dropped <= 0:
            rounding = Rounding.TRN
        limit, rounded = Interval.of(format, fit.overflow), self.ranges.rounded[word]
        one = _only(expression)
        if one and one[1] == 1 and not one[0].gate and expression.cut is None:
            assert one[0].word is not None
            if rounding is Rounding.TRN and self.slice(word, one[0].word, dropped, format, fit):
                return
        if self.inside(word) and rounding in EARLY:
            if dropped <= 0:
                self.sum_up(word, expression)
            else:
                below = expression.fraction - format.frac_bits
                half = {
                    Rounding.TRN: 0,
                    Rounding.RND: 1 << below - 1,
                    Rounding.RND_MIN_INF: (1 << below - 1) - (1 << expression.fraction - fraction),
                }[rounding]
                self.sums[word] = replace(
                    expression, constant=expression.constant + half, cut=format.frac_bits
                )
            return
        if dropped < 0:
            expression = expression if expression.cut is None else self.term(source)
            expression = expression.at(format.frac_bits)
        clips = fit.overflow is not Overflow.WRAP
        total = Total(
            word,
            expression,
            self.bounds(source, expression),
            format.frac_bits,
            rounding,
            limit if clips and not self.inside(word) else None,
            below=clips and rounded.lowest < limit.lowest,
            above=clips and rounded.highest > limit.highest,
        )
        self.kept(word, total, format.frac_bits)

    def slice(self, word: int, source: int, dropped: int, format: QFormat, fit: Fit) -> bool:
        """Let a word be bits of another one, if that is all that fitting it means."""
        held, inside = self.plan.held[source], self.inside(word)
        found = self.interval(word)
        low = max(dropped, 0)
        if dropped < 0 and inside:
            return False  # a sum of it alone
        if inside or (
            fit.overflow is Overflow.WRAP and dropped >= 0 and held.bits >= low + format.bits
        ):
            self.part(word, source, low, found, format.frac_bits)
            if not inside:
                part = self.plan.held[word]
                self.plan.held[word] = replace(part, bits=format.bits, signed=format.signed)
            return True
        return False


def _number(code: int, fraction_bits: int) -> Number:
    """Return a number with as few fraction bits as it needs."""
    if code == 0:
        return NOTHING
    zeros = (code & -code).bit_length() - 1
    return Number(code >> zeros, fraction_bits - zeros)


def _constant(number: Number) -> Expression:
    return Expression(number.fraction, constant=number.code)


def _only(expression: Expression) -> tuple[Term, int] | None:
    """Return the term that a sum is, and how often, if it is one alone."""
    if len(expression.terms) != 1 or expression.constant:
        return None
    return next(iter(expression.terms.items()))


def _at(interval: Interval, known: int, wanted: int) -> Interval:
    """Bring an interval of multiples of 2**-wanted from `known` fraction bits to as many."""
    if wanted >= known:
        return interval << wanted - known
    shift = known - wanted
    return Interval(-(-interval.lowest >> shift), interval.highest >> shift)
