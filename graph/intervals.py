"""Range proof: no word of a step graph leaves its interval, whatever arrives, wherever, for ever.

Interval analysis in exact integers, over all cells at once. The channels' intervals are an
inductive **invariant**: they hold the initial state, and one step from any state inside them, with
any inputs, any neighbours inside them and any random bits, stays inside. They are found by
iteration from the initial state with widening (Cousot and Cousot, "Abstract interpretation: a
unified lattice model for static analysis of programs", 1977), but `check` needs one step and no
trust in how they were found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np

from .errors import InputError
from .golden import Watch
from .operations import (
    AROUND,
    Add,
    Channel,
    Constant,
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
from .qformat import IntArray, Overflow, QFormat, Rounding, required_bits, shift_right
from .step import StepGraph

#: Steps after which a channel that still grows is given at once what it moves towards, and twice
#: that, its whole format.
PATIENCE = 64

#: Width of the golden model's integers, sign included.
GOLDEN_BITS = 64

#: Width of the accumulator of a `Linear`, sign included: that of C's and of most hardware's.
SUM_BITS = 32


@dataclass(frozen=True)
class Interval:
    """All integers from `lowest` to `highest`, both included; exact, of any size."""

    lowest: int
    highest: int

    @classmethod
    def of(cls, format: QFormat, overflow: Overflow = Overflow.SAT) -> Self:
        """Return all codes that a result of this format can have."""
        lowest = format.lowest + (overflow is Overflow.SAT_SYM and format.signed)
        return cls(lowest, format.highest)

    @classmethod
    def hull(cls, numbers: Iterable[int]) -> Self:
        """Return the narrowest interval that holds some numbers."""
        held = [int(number) for number in numbers]
        return cls(min(held), max(held))

    def __str__(self) -> str:
        return f"{self.lowest}..{self.highest}"

    def __or__(self, other: "Interval") -> "Interval":
        return Interval(min(self.lowest, other.lowest), max(self.highest, other.highest))

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.lowest + other.lowest, self.highest + other.highest)

    def __neg__(self) -> "Interval":
        return Interval(-self.highest, -self.lowest)

    def __mul__(self, other: "Interval") -> "Interval":
        return Interval.hull(a * b for a in self.ends for b in other.ends)

    def __lshift__(self, bits: int) -> "Interval":
        return Interval(self.lowest << bits, self.highest << bits)

    @property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest."""
        return self.lowest, self.highest

    @property
    def bits(self) -> int:
        """Width of the narrowest signed code that holds them all."""
        return required_bits(self.lowest, self.highest)

    def holds(self, other: "Interval") -> bool:
        """Whether all of `other` lies inside."""
        return self.lowest <= other.lowest and other.highest <= self.highest

    def clip(self, other: "Interval") -> "Interval":
        """Bring each number of `other` to the nearest one inside."""
        return Interval(*(min(max(end, self.lowest), self.highest) for end in other.ends))


ZERO = Interval(0, 0)
BIT = Interval(0, 1)


@dataclass(frozen=True)
class Ranges:
    """Intervals of all words of a graph, in codes with the words' `fractions`.

    Attributes
    ----------
    graph
        The graph.
    channels
        The invariant: what each channel is inside of before and after every step, by name.
    words
        Of each word.
    sums
        Of each word that a `Linear` computes: every sum of some of its products and its bias, in
        any order.
    rounded
        Of each word that a `Fit` computes: after rounding, before it is brought into range.
    """

    graph: StepGraph = field(compare=False, repr=False)
    channels: dict[str, Interval]
    words: list[Interval] = field(default_factory=list)
    sums: dict[int, Interval] = field(default_factory=dict)
    rounded: dict[int, Interval] = field(default_factory=dict)

    def accumulator(self, word: int) -> Interval:
        """Return all that is met on the way to a word, in any order, and to what it is rounded to.

        For an accumulator that may never overflow, such as a C integer, to which half a unit may
        be added before bits are dropped.
        """
        graph, added = self.graph, 0
        for fitted in graph.fits(word):
            shift = graph.fractions[word] - graph.fractions[fitted]
            fit, _ = graph.made_by(fitted)
            assert isinstance(fit, Fit)
            if shift > 0:
                added = max(added, _rounding_term(shift, fit.rounding))
        held = self.sums.get(word, self.words[word])
        return held | held + Interval(0, added)

    @cached_property
    def _widest(self) -> int:
        return max(range(self.graph.count), key=lambda word: self.accumulator(word).bits)

    @property
    def widest_accumulator(self) -> str:
        """Name of what the widest accumulator computes."""
        return self.graph.title(self._widest)

    @property
    def accumulator_bits(self) -> int:
        """Width of it, sign included."""
        return self.accumulator(self._widest).bits

    @property
    def clips(self) -> tuple[str, ...]:
        """Names of the words that can saturate; an unsigned one that rests at 0 does not count."""
        return tuple(
            self.graph.name(word)
            for word in self.rounded
            if self.clips_above(word) or (self.clips_below(word) and self.words[word].lowest)
        )

    @property
    def narrower(self) -> dict[str, int]:
        """Bits that suffice for the words with a name and a format that need fewer, by name."""
        graph, found = self.graph, {}
        for word, name in graph.names.items():
            format = graph.formats.get(word)
            if format is None or word in graph.outputs:  # whose format is their channel's
                continue
            # An unsigned format lacks the sign bit; nothing has no bits.
            bits = max(self.words[word].bits - (not format.signed), 1)
            if bits < format.bits:
                found[name] = bits
        return found

    def clips_below(self, word: int) -> bool:
        """Whether a `Fit` can saturate at the lowest code of its format."""
        return self.rounded[word].lowest < self.words[word].lowest

    def clips_above(self, word: int) -> bool:
        """Whether it can saturate at the highest."""
        return self.rounded[word].highest > self.words[word].highest


def derive(
    graph: StepGraph, channels: Mapping[str, Interval] | None = None, *, far: bool = False
) -> Ranges:
    """Return the ranges of all that one step computes from states inside `channels`.

    By default from any codes of the channels' formats. Sound for every rounding, since all of them
    are monotone.

    Parameters
    ----------
    far
        Whether what moves a share of the way to somewhere is taken to arrive there.

    Raises
    ------
    InputError
        If a word can exceed the golden model's integers.
    """
    if channels is None:
        channels = _limits(graph)
    return _Step(graph, {name: channels[name] for name in graph.channels}, far).ranges


def with_any_weights(graph: StepGraph) -> Ranges:
    """Return the ranges of a step from any codes, with any weights and biases of its `Linear`.

    All that is known of their sums is that they have `SUM_BITS`, or they cannot be proven.

    Raises
    ------
    InputError
        As `derive` does, or if the graph has no formats.
    """
    known, sums = graph.fractions, {}
    for index, _ in graph.of_kind(Linear):
        words = graph.words(index)
        formats = tuple(QFormat(SUM_BITS - known[word], known[word]) for word in words)
        sums[index] = Input(tuple(f"sum {word}" for word in words), formats)
    return derive(graph.changed(sums))


def prove(graph: StepGraph, initial: Mapping[str, Interval] | None = None) -> Ranges:
    """Prove that nothing overflows in any number of steps from the initial state.

    Parameters
    ----------
    initial
        What each channel can be at first, by name; by default 0.

    Raises
    ------
    InputError
        As `derive` does; if a partial sum of a `Linear` needs more than `SUM_BITS`; if a word can
        wrap where overflow is WRAP; or if the next state can be a code that its format lacks.
    """
    limits = _limits(graph)
    box = dict.fromkeys(limits, ZERO) | dict(initial or {})
    ranges = _derive_held(graph, box)
    steps = 0
    while growing := {n: to for n, to in _after(graph, ranges).items() if not box[n].holds(to)}:
        steps += 1
        if steps > PATIENCE:  # what comes closer by ever smaller steps is put there
            far = _after(graph, derive(graph, box, far=True))
            growing = {name: after | far[name] for name, after in growing.items()}
        for name, after in growing.items():
            held, limit = box[name], after | limits[name] if steps > 2 * PATIENCE else after
            box[name] = Interval(
                limit.lowest if after.lowest < held.lowest else held.lowest,
                limit.highest if after.highest > held.highest else held.highest,
            )
        for name, held in box.items():
            _check_format(graph, name, limits[name], held)
        ranges = _derive_held(graph, box)
    return ranges


def check(
    graph: StepGraph,
    channels: Mapping[str, Interval],
    initial: Mapping[str, Interval] | None = None,
) -> Ranges:
    """Check an invariant, however it was found, by one step; return the ranges that follow.

    It may be wider than necessary, as long as it proves what `prove` does.

    Raises
    ------
    InputError
        If it does not.
    """
    limits = _limits(graph)
    if channels.keys() != limits.keys():
        wrong = sorted(channels.keys() ^ limits.keys())
        raise InputError(
            f"range proof is of other channels than the rule's ({wrong[0]}): prove it again"
        )
    start = dict.fromkeys(limits, ZERO) | dict(initial or {})
    for name, held in channels.items():
        _check_format(graph, name, limits[name], held)
        _check_holds(f"range of channel {name}", held, start[name])
    ranges = _derive_held(graph, channels)
    for name, after in _after(graph, ranges).items():
        _check_holds(f"range of channel {name}", channels[name], after)
    return ranges


class OutOfRange(ArithmeticError):
    """A number left its range: the proof, the golden model or the given state is wrong."""


def compare_with(ranges: Ranges) -> Watch:
    """Return what the golden model shows its codes to: it raises `OutOfRange` for the first."""
    graph = ranges.graph

    def watch(index: int, codes: IntArray) -> None:
        for lane, word in enumerate(graph.words(index)):
            held, found = ranges.words[word], codes[..., lane, :, :]
            outside = (found < held.lowest) | (found > held.highest)
            if outside.any():
                y, x = np.argwhere(outside)[0][-2:]
                raise OutOfRange(
                    f"cell (x {x}, y {y}): {graph.name(word)} is {found[outside][0]}, "
                    f"outside {held}"
                )

    return watch


class _Step:
    """One abstract step; its ranges fill up in the order of evaluation."""

    def __init__(self, graph: StepGraph, box: dict[str, Interval], far: bool) -> None:
        self.graph, self.far = graph, far
        self.ranges = Ranges(graph, box)
        for index, operation in enumerate(graph.operations):
            found = self.compute(index, operation)
            for word, interval in zip(graph.words(index), found, strict=True):
                if interval.bits > GOLDEN_BITS:
                    raise _too_wide(graph.name(word), interval, GOLDEN_BITS)
            self.ranges.words.extend(found)

    def at(self, word: int, fraction: int) -> Interval:
        """Interval of a word, as codes with so many fraction bits, no fewer than it has."""
        found = self.ranges.words[word] << (fraction - self.graph.fractions[word])
        if found.bits > GOLDEN_BITS:
            what = f"{self.graph.name(word)} with {fraction} fraction bits"
            raise _too_wide(what, found, GOLDEN_BITS)
        return found

    def compute(self, index: int, operation: Operation) -> Sequence[Interval]:
        words = self.graph.words(index)
        match operation:
            case Channel(names=names):
                return [self.ranges.channels[name] for name in names]
            case Input():
                return [Interval.of(self.graph.formats[word]) for word in words]
            case Random(bits=bits):
                return [Interval(0, (1 << count) - 1) for count in bits]
            case Constant(values=values):
                codes = [
                    int(np.ldexp(value, self.graph.fractions[word]))
                    for word, value in zip(words, values, strict=True)
                ]
                return [Interval(code, code) for code in codes]
            case Linear():
                return self.linear(index, operation)
            case Window(a=args, largest=largest, border=border):
                held = [self.ranges.words[word] for word in args]
                if border != "zero":
                    return held
                if largest:  # a cell sees itself, too, and at the border zeros
                    return [Interval(one.lowest, max(one.highest, 0)) for one in held]
                return [Interval(min(one.lowest, 0), one.highest) for one in held]
            case Fit():
                return [self.fit(word, lane, operation) for lane, word in enumerate(words)]
            case Select(condition=bits, a=a, b=b):
                return [self.select(word, *of) for word, *of in zip(words, bits, a, b, strict=True)]
            case Add(a=a, b=b):
                return [self.add(word, *of) for word, *of in zip(words, a, b, strict=True)]
        first, second = operation.arguments
        return [
            self.pairwise(operation, word, a, b)
            for word, a, b in zip(words, first, second, strict=True)
        ]

    def pairwise(self, operation: Operation, word: int, a: int, b: int) -> Interval:
        known = self.graph.fractions
        if isinstance(operation, Multiply):
            return self.ranges.words[a] * self.ranges.words[b]
        common = max(known[a], known[b])
        one, other = self.at(a, common), self.at(b, common)
        match operation:
            case Subtract():
                return one + -other
            case Minimum():
                return Interval(*(min(ends) for ends in zip(one.ends, other.ends, strict=True)))
            case Maximum():
                return Interval(*(max(ends) for ends in zip(one.ends, other.ends, strict=True)))
            case Less():
                sure = one.highest < other.lowest
                return Interval(int(sure), int(one.lowest < other.highest))
        raise NotImplementedError(type(operation).__name__)

    def select(self, word: int, condition: int, a: int, b: int) -> Interval:
        fraction = self.graph.fractions[word]
        bit = self.ranges.words[condition]
        if bit.lowest == bit.highest:  # it is always the same
            return self.at(a if bit.lowest else b, fraction)
        return self.at(a, fraction) | self.at(b, fraction)

    def add(self, word: int, a: int, b: int) -> Interval:
        fraction = self.graph.fractions[word]
        move = find_move(self.graph, self.ranges, a, b)
        if move is None:
            return self.at(a, fraction) + self.at(b, fraction)
        x, c = self.at(move.x, fraction), self.at(move.c, fraction)
        if self.far:
            return x | c
        # It grows with x as it does with c: as the share is at most 1, what one code of x takes
        # from the way is at most one code. In the share it is monotone either way. So its
        # extremes are at the corners.
        share = self.ranges.words[move.share]
        shift = self.graph.fractions[move.share]
        noise = ZERO if move.noise is None else self.at(move.noise, fraction + shift)
        low, high = (
            [x_end + _round(z * (c_end - x_end) + extra, shift, move.rounding) for z in share.ends]
            for x_end, c_end, extra in zip(x.ends, c.ends, noise.ends, strict=True)
        )
        return Interval(min(low), max(high))

    def linear(self, index: int, linear: Linear) -> list[Interval]:
        weight, bias = self.graph.codes_of(index)
        _, _, taps = weight.shape
        ends = np.array([self.ranges.words[word].ends for word in linear.a], object)
        ends = ends.reshape(len(linear.a), 2)
        seen = np.repeat(ends[:, None], taps, 1)  # (I, K, 2)
        if taps == AROUND and linear.border == "zero":
            beyond = np.arange(taps) != taps // 2
            seen[:, beyond, 0] = np.minimum(seen[:, beyond, 0], 0)
            seen[:, beyond, 1] = np.maximum(seen[:, beyond, 1], 0)
        found = []
        for word, row, start in zip(self.graph.words(index), weight, bias, strict=True):
            chosen = np.nonzero(row)
            codes = row[chosen].astype(object)[:, None]
            products = (
                np.sort(codes * seen[chosen], axis=1) if len(codes) else np.zeros((0, 2), int)
            )
            start = int(start)
            total = Interval(*(int(end) + start for end in products.sum(0)))
            self.ranges.sums[word] = Interval(
                int(np.minimum(products[:, 0], 0).sum()) + min(start, 0),
                int(np.maximum(products[:, 1], 0).sum()) + max(start, 0),
            )
            found.append(total)
        return found

    def fit(self, word: int, lane: int, fit: Fit) -> Interval:
        format = fit.formats[lane]
        source = fit.a[lane]
        own = self.graph.fractions[source]
        held, shift = self.at(source, max(own, format.frac_bits)), own - format.frac_bits
        if held.bits > GOLDEN_BITS:
            raise _too_wide(self.graph.name(word), held, GOLDEN_BITS)
        rounded = Interval(*(_round(end, max(shift, 0), fit.rounding) for end in held.ends))
        limit = Interval.of(format, fit.overflow)
        self.ranges.rounded[word] = rounded
        if fit.overflow is Overflow.WRAP and not limit.holds(rounded):
            return limit
        return limit.clip(rounded)


@dataclass(frozen=True)
class Move:
    """Words of x + fit(share * (c - x) + noise), which lies between x and c."""

    x: int
    c: int
    share: int
    noise: int | None
    rounding: Rounding


def find_move(graph: StepGraph, ranges: Ranges, a: int, b: int) -> Move | None:
    """Return what moves, if a + b is x, moved by a share of the way to c; else None.

    That is x + fit(share * (c - x)), rounded to the fraction bits of x or c, whichever has more,
    with a share in [0, 1]. However it is rounded, the sum lies between x and c, for they are
    integers there: the way rounds to none that is longer or points away. Nor does it if noise,
    less than the last bit kept, is added and the rest dropped.
    """
    for x, way in ((a, b), (b, a)):
        fit, lane = graph.made_by(way)
        if not isinstance(fit, Fit) or not ranges.words[way].holds(ranges.rounded[way]):
            continue
        unit = fit.formats[lane].frac_bits
        product, at = graph.made_by(fit.a[lane])
        noise = None
        if isinstance(product, Add) and fit.rounding is Rounding.TRN:
            noise = product.b[at]
            below = Interval(0, (1 << max(graph.fractions[noise] - unit, 0)) - 1)
            if not below.holds(ranges.words[noise]):
                continue
            product, at = graph.made_by(product.a[at])
        if not isinstance(product, Multiply):
            continue
        factors = product.a[at], product.b[at]
        for share, difference in (factors, factors[::-1]):
            subtract, of = graph.made_by(difference)
            if not isinstance(subtract, Subtract) or subtract.b[of] != x:
                continue
            c, bits = subtract.a[of], graph.fractions[share]
            if (
                bits >= 0
                and Interval(0, 1 << bits).holds(ranges.words[share])
                and unit == max(graph.fractions[x], graph.fractions[c])
                and (noise is None or graph.fractions[noise] <= unit + bits)
            ):
                return Move(x, c, share, noise, fit.rounding)
    return None


def _limits(graph: StepGraph) -> dict[str, Interval]:
    return {name: Interval.of(graph.formats[word]) for name, word in graph.channels.items()}


def _after(graph: StepGraph, ranges: Ranges) -> dict[str, Interval]:
    """Ranges of all channels after a step, as codes of their formats."""
    found = {}
    for (name, before), word in zip(graph.channels.items(), graph.outputs, strict=True):
        own, needed = graph.fractions[before], graph.fractions[word]
        if needed != own:
            raise InputError(
                f"the next {name} has {needed} fraction bits, its channel {own}: "
                "fit it to the channel's format"
            )
        found[name] = ranges.words[word]
    return found


def _round(code: int, shift: int, rounding: Rounding) -> int:
    return int(shift_right(np.array(code, np.int64), shift, rounding))


def _rounding_term(shift: int, rounding: Rounding) -> int:
    """Return the most that is added before a shift that drops bits, so that it rounds."""
    match rounding:
        case Rounding.TRN:
            return 0
        case Rounding.TRN_ZERO:  # to negative sums
            return (1 << shift) - 1
        case _:
            return 1 << (shift - 1)


def _excess(found: Interval, limit: Interval) -> tuple[int, int]:
    """The end of `found` that lies beyond `limit`, the highest first, and the limit there."""
    if found.highest > limit.highest:
        return found.highest, limit.highest
    return found.lowest, limit.lowest


def _check_format(graph: StepGraph, name: str, limit: Interval, held: Interval) -> None:
    if not limit.holds(held):
        reach, most = _excess(held, limit)
        format = graph.formats[graph.channels[name]]
        raise InputError(
            f"channel {name} can reach {reach}, beyond {format}'s {most}: "
            "let the step saturate it, or choose a wider format"
        )


def _derive_held(graph: StepGraph, channels: Mapping[str, Interval]) -> Ranges:
    """Return the ranges of a step, of which no accumulator overflows and no word wraps."""
    ranges = derive(graph, channels)
    for index, operation in graph.of_kind(Fit):
        assert isinstance(operation, Fit)
        if operation.overflow is Overflow.WRAP:
            for word, format in zip(graph.words(index), operation.formats, strict=True):
                limit, rounded = Interval.of(format), ranges.rounded[word]
                if not limit.holds(rounded):
                    reach, most = _excess(rounded, limit)
                    raise InputError(
                        f"{graph.name(word)} can reach {reach}, beyond {format}'s {most}: "
                        "choose overflow SAT or a wider format"
                    )
    for word, partial in ranges.sums.items():
        if partial.bits > SUM_BITS:
            raise _too_wide(f"accumulator of {graph.title(word)}", partial, SUM_BITS)
    return ranges


def _too_wide(what: str, found: Interval, bits: int) -> InputError:
    reach, most = _excess(found, Interval(-1 << (bits - 1), (1 << (bits - 1)) - 1))
    return InputError(
        f"{what} can reach {reach}, beyond {bits} bits' {most}: quantize with fewer bits"
    )


def _check_holds(what: str, held: Interval, found: Interval) -> None:
    if not held.holds(found):
        raise InputError(
            f"range proof is wrong: {what} is {held}, which does not hold {found}: prove it again"
        )
