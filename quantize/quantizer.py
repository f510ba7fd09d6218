"""From a float rule's graph to an integer rule: which words are brought to which formats.

Sums are exact, so what a graph has to be told is where bits are dropped again. That is behind a
`Linear` whose sums are wider than what reads them needs, behind products, and where a channel is
written. A word gets as many bits as what reads it asks for, and its range from what was seen of it
or from the clip that follows:

- read by a `Linear`: `Precision.hidden` bits, or `Precision.state` if the neighbours read it;
- a factor in [0, 1] of a product: `Precision.gate` bits;
- added to what becomes a channel: the channel's fraction bits.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import SUM_BITS, Interval, derive
from scotopia.graph.operations import (
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
    Words,
    fraction,
)
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph, fractions_of
from scotopia.model.float_rule import FloatRule

from .formats import Precision, by_weight, check_scales, weight_formats
from .integer_rule import GraphRule
from .measure import Seen

#: Most fraction bits that a word has beyond its other bits: one that hardly ever leaves 0 has
#: nothing to say, and would make all other summands of a sum long.
MOST_FINER = 2

#: Most bits of a sum of few, simple weights that stays as it is, without a loss.
EXACT_BITS = 16

#: What hands a word on to a channel, as it is or as a summand.
_PASSING = Add | Subtract | Minimum | Maximum | Multiply | Select

#: How much larger a channel may become than what was seen of it, before it saturates.
MARGIN = 1.1


#: Lowest and highest value.
_Bounds = tuple[float, float]

#: What events deliver, see `IntegerRule.sample_codes`.
_PIXELS: _Bounds = -1.0, 1.0


@dataclass(frozen=True)
class Choice:
    """How a rule is quantized.

    Attributes
    ----------
    precision
        Word lengths.
    rounding, overflow
        Of every word that is brought to a format.
    scales
        Of weights; one of `formats.SCALES`.
    """

    precision: Precision = field(default_factory=Precision)
    rounding: Rounding = Rounding.RND
    overflow: Overflow = Overflow.SAT
    scales: str = "output"


def quantize(rule: FloatRule, seen: Seen, choice: Choice) -> GraphRule:
    """Return the integer rule, with its range proof.

    Parameters
    ----------
    seen
        What its words were; see `measure.measure`.

    Raises
    ------
    InputError
        If a weight is not finite, or no proof is found.
    """
    check_scales(choice.scales)
    for index, operation in rule.graph.of_kind(Linear):
        assert isinstance(operation, Linear)
        if not (np.isfinite(operation.weight).all() and np.isfinite(operation.bias).all()):
            name = rule.graph.name(rule.graph.words(index)[0])
            raise InputError(f"a weight of {name} is not finite: train the rule again")
    quantizer = _Quantizer(rule, seen, choice)
    graph, new = quantizer.run().pruned_words()
    made = GraphRule(
        graph,
        rule.steps_per_frame,
        rule.events,
        rule.initial,
        training=rule.training,
        trained=dict(_trained(rule, quantizer.sums, graph, new)),
    )
    return made.with_proof()


def _trained(
    rule: FloatRule, sums: Mapping[int, Words], graph: StepGraph, new: Mapping[int, int]
) -> Iterator[tuple[int, tuple[NDArray[np.bool_], NDArray[np.bool_]]]]:
    """Yield which weights of the new graph are trained in the old one, by layer.

    Parameters
    ----------
    sums
        Words that stand for those of each layer of the rule.
    new
        Words of the new graph, by these.
    """
    for index, words in sums.items():
        lanes = [lane for lane, word in enumerate(words) if word in new]
        if index in rule.trained and lanes:
            weight, bias = rule.trained[index]
            yield graph.origin(new[words[lanes[0]]])[0], (weight[lanes], bias[lanes])


class _Quantizer:
    """Writes a graph anew, operation by operation, with formats."""

    def __init__(self, rule: FloatRule, seen: Seen, choice: Choice) -> None:
        graph = rule.graph
        self.graph, self.seen, self.choice = graph, seen, choice
        self.pixels = {graph.inputs[event.value] for event in rule.events}
        self.build = Builder()
        self.fractions: list[int] = []  # of the new graph's words
        self.word: dict[int, int] = {}  # new words, by the old ones
        self.whole: dict[int, int] = {}  # of those that some readers see narrowed, what they are
        self.sums: dict[int, Words] = {}  # new words of the old graph's layers
        self.bits = _bits(graph)
        self._known_intervals: list[Interval] = []
        self.channel_formats = self._channel_formats()
        self.wanted = self._wanted()

    def run(self) -> StepGraph:
        """Write it."""
        for index, operation in enumerate(self.graph.operations):
            words = self._write(index, operation)
            for old, new in zip(self.graph.words(index), words, strict=True):
                self.word[old] = new
                if old in self.graph.names:
                    self.build.names[new] = self.graph.names[old]
            self._fit(index)
        outputs = self._outputs()
        return StepGraph(tuple(self.build.operations), outputs, dict(self.build.names))

    # Which words get which formats.

    def _channel_formats(self) -> dict[int, QFormat]:
        """Choose formats of channels and inputs, by the words that are them."""
        found = {}
        after = dict(zip(self.graph.channels.values(), self.graph.outputs, strict=True))
        for word in (*self.graph.channels.values(), *self.graph.inputs.values()):
            fixed = self.graph.formats.get(word)
            if fixed is not None:
                found[word] = fixed
                continue
            low, high = self._range(word)
            bounds = _PIXELS if word in self.pixels else None
            if word in after:
                low, high = _hull((low, high), self._range(after[word]))
                bounds = self._bounds(after[word], word)
            if {low, high} <= {0.0, 1.0} and (word not in after or after[word] in self.bits):
                found[word] = QFormat(1, 0, signed=False)
                continue
            largest = MARGIN * max(-low, high)
            if bounds is not None:
                below, above = _hull(self._range(word), bounds)
                largest = min(largest, max(-below, above))
            whole = _whole_bits(largest)
            found[word] = QFormat(whole + 1, self.choice.precision.state - whole - 1)
        return found

    def _bounds(self, word: int, own: int) -> _Bounds | None:
        """Return what bounds a channel `own` that becomes a word, but for how it starts.

        None, if nothing does. A channel that moves towards a clipped word by a share of the way
        stays between where it starts and the ends of the clip.
        """
        if word == own:
            return math.inf, -math.inf
        if word in self.pixels:
            return _PIXELS
        operation, lane = self.graph.made_by(word)
        match operation:
            case Constant(values=values):
                return values[lane], values[lane]
            case Minimum() | Maximum():
                below, above = self._clip_of(word) or (None, None)
                return None if below is None or above is None else (below, above)
            case Select(a=a, b=b):
                ends = self._bounds(a[lane], own), self._bounds(b[lane], own)
                return None if None in ends else _hull(*ends)  # type: ignore[arg-type]
            case Add(a=a, b=b):
                target = self._moves_to(a[lane], b[lane], own)
                return None if target is None else self._bounds(target, own)
        return None

    def _moves_to(self, a: int, b: int, own: int) -> int | None:
        """Return `target`, if a + b is own + share * (target - own), with a share in [0, 1]."""
        for x, way in ((a, b), (b, a)):
            product, lane = self.graph.made_by(way)
            if x != own or not isinstance(product, Multiply):
                continue
            factors = product.a[lane], product.b[lane]
            for share, difference in (factors, factors[::-1]):
                subtract, at = self.graph.made_by(difference)
                below, above = self._clip_of(share) or (None, None)
                inside = below is not None and above is not None and 0 <= below <= above <= 1
                if inside and isinstance(subtract, Subtract) and subtract.b[at] == own:
                    return subtract.a[at]
        return None

    def _wanted(self) -> dict[int, QFormat]:
        """Choose formats of the words that lose bits."""
        found: dict[int, QFormat] = {}
        for index, operation in enumerate(self.graph.operations):
            if isinstance(operation, Linear) and not self._stays_exact(index, operation):
                for word in self.graph.words(index):
                    end = self._end_of_clips(word)
                    found[end] = self._format_for(end)
            elif isinstance(operation, Multiply):
                for word, a, b in zip(
                    self.graph.words(index), operation.a, operation.b, strict=True
                ):
                    if self._is_product(a, b):
                        end = self._end_of_clips(word)
                        found[end] = self._format_for(end)
        return found

    def _is_product(self, a: int, b: int) -> bool:
        """Whether a * b has more bits than its factors: none is a bit or a power of two."""
        for word in (a, b):
            operation, lane = self.graph.made_by(word)
            if word in self.bits:
                return False
            if isinstance(operation, Constant) and _is_power(operation.values[lane]):
                return False
        return True

    def _stays_exact(self, index: int, linear: Linear) -> bool:
        """Whether the sums of a fixed filter are short enough as they are."""
        if any(not isinstance(self.graph.made_by(word)[0], Channel | Input) for word in linear.a):
            return False
        scale = np.array([self.channel_formats[word].frac_bits for word in linear.a])
        largest = np.array([2.0 ** (self.channel_formats[word].bits - 1) for word in linear.a])
        finest = max((fraction(one) for one in linear.weight.ravel()), default=0)
        if any(fraction(one) > finest + scale.max() for one in linear.bias):
            return False
        sums = (np.abs(linear.weight).sum(2) * 2.0**finest) @ largest
        return finest <= EXACT_BITS and float(sums.max()) < 2.0 ** (EXACT_BITS - 1)

    def _end_of_clips(self, word: int) -> int:
        """Follow a word through clips, as long as nothing else reads it."""
        while True:
            readers = self.graph.readers[word]
            if len(readers) != 1 or word in self.graph.outputs:
                return word
            operation = self.graph.operations[readers[0]]
            if not isinstance(operation, Minimum | Maximum):
                return word
            lanes = [
                i
                for i, pair in enumerate(zip(operation.a, operation.b, strict=True))
                if word in pair
            ]
            if len(lanes) != 1:
                return word
            (lane,) = lanes
            other = operation.b[lane] if operation.a[lane] == word else operation.a[lane]
            if not isinstance(self.graph.made_by(other)[0], Constant):
                return word
            word = self.graph.words(readers[0])[lane]

    def _format_for(self, word: int) -> QFormat:
        """Choose the format of a word by its range and by who reads it."""
        precision = self.choice.precision
        low, high = self._range(word)
        signed = low < 0
        channel = self._added_to(word)
        if channel is not None:
            format = self.channel_formats[channel]
            whole = max(_whole_bits(max(-low, high)), format.int_bits - format.signed)
            return QFormat(whole + 1, format.frac_bits)
        bits = precision.hidden + signed
        for reader in self.graph.readers[word]:
            operation = self.graph.operations[reader]
            if (
                isinstance(operation, Linear) and operation.weight.shape[2] == AROUND
            ) or isinstance(operation, Window):
                bits = max(bits, precision.state)
            elif isinstance(operation, Multiply) and not signed and high <= 1:
                return QFormat(0, precision.gate, signed=False)
        whole = max(_whole_bits(max(-low, high)), -MOST_FINER)
        return QFormat(whole + signed, bits - whole - signed, signed)

    def _added_to(self, word: int) -> int | None:
        """Return the channel that a word is added to, or becomes by selections; None for none.

        Of several, the one with most fraction bits.
        """
        befores = set(self.graph.channels.values())
        becomes = dict(zip(self.graph.outputs, self.graph.channels.values(), strict=True))
        ends: set[int] = set()
        waiting, known = [word], {word}
        while waiting:
            one = waiting.pop()
            if one in becomes:
                ends.add(becomes[one])
            for reader in self.graph.readers[one]:
                operation = self.graph.operations[reader]
                if not isinstance(
                    operation, Add | Subtract | Minimum | Maximum | Multiply | Select
                ):
                    continue
                rows = zip(self.graph.words(reader), *operation.arguments[-2:], strict=True)
                for out, a, b in rows:
                    if one not in (a, b):
                        continue
                    if isinstance(operation, Add | Subtract):
                        ends |= befores & {a, b}
                    if isinstance(operation, Multiply) and self._is_product(a, b):
                        continue
                    if out not in known:
                        known.add(out)
                        waiting.append(out)
        return max(ends, key=lambda end: self.channel_formats[end].frac_bits, default=None)

    def _range(self, word: int) -> tuple[float, float]:
        """Lowest and highest value: as seen, but of a clip's result what the clip says."""
        low, high = float(self.seen.lowest[word]), float(self.seen.highest[word])
        if word in self.pixels:
            return _hull((low, high), _PIXELS)
        ends = self._clip_of(word)
        if ends is None:
            return min(low, 0.0), max(high, 0.0)
        below, above = ends
        low = below if below is not None and math.isfinite(below) else min(low, 0.0)
        high = above if above is not None and math.isfinite(above) else max(high, 0.0)
        return min(low, 0.0), max(high, 0.0)

    def _clip_of(self, word: int) -> tuple[float | None, float | None] | None:
        """Ends of the clip that a word is the result of; an end is None where it is open."""
        below: float | None = None
        above: float | None = None
        found = False
        while True:
            operation, lane = self.graph.made_by(word)
            if not isinstance(operation, Minimum | Maximum):
                return (below, above) if found else None
            for constant, other in (
                (operation.a[lane], operation.b[lane]),
                (operation.b[lane], operation.a[lane]),
            ):
                made, of = self.graph.made_by(constant)
                if isinstance(made, Constant):
                    value = made.values[of]
                    if isinstance(operation, Maximum):
                        below = value if below is None else below
                    else:
                        above = value if above is None else above
                    word, found = other, True
                    break
            else:
                return (below, above) if found else None

    # Writing.

    def _add(self, operation: Operation) -> Words:
        words = self.build.add(operation).words
        self.fractions.extend(fractions_of(operation, self.fractions))
        return words

    def _write(self, index: int, operation: Operation) -> Words:
        """Append an operation that does on new words what it does on old ones."""
        old = self.graph.words(index)
        match operation:
            case Channel(names=names):
                return self._add(Channel(names, tuple(self.channel_formats[word] for word in old)))
            case Input(names=names):
                return self._add(Input(names, tuple(self.channel_formats[word] for word in old)))
            case Random():
                return self._add(operation)
            case Constant(values=values):
                return self._add(Constant(tuple(map(self._constant, old, values))))
            case Linear():
                if operation.weight.shape[2] == AROUND:
                    state = self.choice.precision.state
                    self._narrowed(operation.a, state, state)
                self.sums[index] = self._linear(index, operation)
                return self.sums[index]
            case Multiply(a=a, b=b):
                for one, other in zip(a, b, strict=True):
                    if self._is_product(one, other):
                        self._narrow_share(one)
                        self._narrow_share(other)
            case Window(a=a):
                return self._add(Window(self._now(a), operation.largest, operation.border))
            case Select(condition=condition, a=a, b=b):
                return self._add(Select(self._now(condition), self._now(a), self._now(b)))
            case Fit(a=a):
                return self._add(
                    Fit(self._now(a), operation.formats, operation.rounding, operation.overflow)
                )
            case Less():
                return self._less(operation)
        a, b = operation.arguments
        return self._add(type(operation)(self._now(a), self._now(b)))  # type: ignore[call-arg]

    def _narrow_share(self, word: int) -> None:
        """Bring a factor in [0, 1] to the bits of a gate, if it has more."""
        low, high = self._range(word)
        gate = self.choice.precision.gate
        held = self._intervals()[self.word[word]]
        wide = held.bits - (held.lowest >= 0) > gate
        fixed = isinstance(self.graph.made_by(word)[0], Channel | Input | Constant)
        if low >= 0 and high <= 1 and wide and not fixed:
            self._narrow([word], (QFormat(0, gate, signed=False),))

    def _now(self, words: Words) -> Words:
        return tuple(self.word[word] for word in words)

    def _constant(self, word: int, value: float) -> float:
        """Round a number to as many bits as what it meets can tell apart.

        What it is compared with is not known yet: see `_less`.
        """
        readers = [self.graph.operations[reader] for reader in self.graph.readers[word]]
        if readers and all(isinstance(reader, Less) for reader in readers):
            return value
        if any(isinstance(reader, Multiply) for reader in readers):
            bits = self.choice.precision.weight - 1 - _whole_bits(abs(value))
        else:  # that of a counter counts by its last bit
            declared = [format.frac_bits for format in self.graph.formats.values()]
            bits = max(self.choice.precision.state, *declared, 0)
        return float(np.rint(value * 2.0**bits) / 2.0**bits)

    def _less(self, less: Less) -> Words:
        """Compare, with constants rounded so that no word on its grid is compared otherwise."""
        sides: tuple[list[int], list[int]] = ([], [])
        for a, b in zip(less.a, less.b, strict=True):
            pair = [self.word[a], self.word[b]]
            for side, (one, other) in enumerate(((a, b), (b, a))):
                made, lane = self.graph.made_by(one)
                if isinstance(made, Constant):
                    unit = 2.0 ** -self.fractions[self.word[other]]
                    # c < x is floor(c) < x, and x < c is x < ceil(c), on the grid of x.
                    turn = math.floor if side == 0 else math.ceil
                    (pair[side],) = self._add(Constant((turn(made.values[lane] / unit) * unit,)))
            for side in (0, 1):
                sides[side].append(pair[side])
        return self._add(Less(tuple(sides[0]), tuple(sides[1])))

    def _linear(self, index: int, linear: Linear) -> Words:
        """Append a layer with weights and biases on their grids."""
        a = self._now(linear.a)
        if self._stays_exact(index, linear):
            return self._add(Linear(a, linear.weight, linear.bias, linear.border))
        precision = self.choice.precision
        ends = any(
            self._added_to(self._end_of_clips(w)) is not None for w in self.graph.words(index)
        )
        bits = precision.update if precision.update and ends else precision.weight
        count, inputs, taps = linear.weight.shape
        formats = weight_formats(linear.weight, bits, self.choice.scales)
        most = self._most_fractions(linear)
        rows = [
            [_coarser(format, fine) for format in row]
            for row, fine in zip(by_weight(formats, inputs, taps), most, strict=True)
        ]
        weight = np.array(
            [
                [
                    format.values(format.quantize(np.array(one)))
                    for format, one in zip(row, of_output.ravel(), strict=True)
                ]
                for row, of_output in zip(rows, linear.weight, strict=True)
            ]
        ).reshape(count, inputs, taps)
        finest = max((self.fractions[word] for word in a), default=0)
        bias = []
        for row, value in zip(rows, linear.bias, strict=True):
            fine = min(max(format.frac_bits for format in row) + finest, 30)
            bias.append(float(np.rint(np.ldexp(value, fine)) * 2.0**-fine))
        return self._add(Linear(a, weight, np.array(bias), linear.border))

    def _most_fractions(self, linear: Linear) -> list[int]:
        """Most fraction bits of the weights of each output, for its sums to have `SUM_BITS`.

        What a kernel of small weights loses by that is below the sum's last bits.
        """
        intervals, words = self._intervals(), self._now(linear.a)
        largest = np.array([max(abs(end) for end in intervals[word].ends) for word in words])
        units = np.array([2.0 ** -self.fractions[word] for word in words])
        sums = np.abs(linear.weight).sum(2) @ (largest * units) + np.abs(linear.bias)
        finest = max((self.fractions[word] for word in words), default=0)
        # A sign, a bit for what rounding adds, and one for weights that are rounded up.
        return [SUM_BITS - 3 - _whole_bits(float(total)) - finest for total in sums]

    def _fit(self, index: int) -> None:
        """Bring those of an operation's words to formats that are to be."""
        old = [word for word in self.graph.words(index) if word in self.wanted]
        if not old:
            return
        formats = []
        for word in old:
            format = self.wanted[word]
            if (
                isinstance(self.graph.operations[index], Multiply)
                and self._added_to(word) is not None
            ):
                # What moves a channel a share of the way somewhere is as long as the way is.
                held = self._intervals()[self.word[word]]
                drop = self.fractions[self.word[word]] - format.frac_bits
                whole = held.bits - max(drop, 0)
                format = QFormat(whole - format.frac_bits, format.frac_bits)
            formats.append(format)
        self._replace(old, tuple(formats))

    def _without_clips(self, word: int, format: QFormat) -> int:
        """Go back before clips that the format does as well: it saturates at their ends."""
        if self.choice.overflow is not Overflow.SAT:
            return word
        while True:
            index, lane = self._origin(word)
            operation = self.build.operations[index]
            if not isinstance(operation, Minimum | Maximum):
                return word
            pair = operation.a[lane], operation.b[lane]
            for constant, other in (pair, pair[::-1]):
                at, of = self._origin(constant)
                made = self.build.operations[at]
                if not isinstance(made, Constant):
                    continue
                code = int(format.quantize(np.array(made.values[of]), self.choice.rounding))
                end = format.lowest if isinstance(operation, Maximum) else format.highest
                if code == end:
                    word = other
                    break
            else:
                return word

    def _outputs(self) -> Words:
        """Bring what becomes a channel to its format, unless it has that."""
        formats = [self.channel_formats[word] for word in self.graph.channels.values()]
        words = [self.whole.get(word, self.word[word]) for word in self.graph.outputs]
        loose = [i for i, word in enumerate(words) if self._format_of(word) != formats[i]]
        if loose:
            sources = tuple(self._without_clips(words[i], formats[i]) for i in loose)
            kept = tuple(formats[i] for i in loose)
            for i, word in zip(
                loose, self._add(Fit(sources, kept, self.choice.rounding)), strict=True
            ):
                words[i] = word
        names = (f"next {name}" for name in self.graph.channels)
        self.build.names.update(zip(words, names, strict=True))
        return tuple(words)

    def _format_of(self, word: int) -> QFormat | None:
        """Return the format that a new word has by itself."""
        index, lane = self._origin(word)
        operation = self.build.operations[index]
        if isinstance(operation, Channel | Input | Fit):
            return operation.formats[lane]
        if isinstance(operation, Select | Window | Minimum | Maximum):
            found = {self._format_of(words[lane]) for words in operation.arguments[-2:]}
            return found.pop() if len(found) == 1 else None
        return None

    def _intervals(self) -> list[Interval]:
        """Intervals of all new words so far."""
        if len(self._known_intervals) < len(self.fractions):
            channels = self.build.operations[0].count
            partial = StepGraph(tuple(self.build.operations), tuple(range(channels)))
            self._known_intervals = derive(partial).words
        return self._known_intervals

    def _narrowed(self, words: Words, most: int, bits: int) -> None:
        """Bring those of some old words that are wider than `most` bits to formats of `bits`."""
        wide = [
            word
            for word in dict.fromkeys(words)
            if self._intervals()[self.word[word]].bits > most
            and not isinstance(self.graph.made_by(word)[0], Channel | Input | Constant)
        ]
        if not wide:
            return
        formats = []
        for word in wide:
            low, high = self._range(word)
            whole = max(_whole_bits(max(-low, high)), -MOST_FINER)
            formats.append(QFormat(whole + (low < 0), bits - whole - (low < 0), low < 0))
        self._narrow(wide, tuple(formats))

    def _narrow(self, old: Sequence[int], formats: tuple[QFormat, ...]) -> None:
        """Let words be what they are in formats for what follows, but not for the next state."""
        for word in old:
            self.whole.setdefault(word, self.word[word])
        self._replace(old, formats)

    def _replace(self, old: Sequence[int], formats: tuple[QFormat, ...]) -> None:
        """Let words be what they are in formats, from here on."""
        sources = tuple(
            self._without_clips(self.word[word], format)
            for word, format in zip(old, formats, strict=True)
        )
        fitted = self._add(Fit(sources, formats, self.choice.rounding, self.choice.overflow))
        for word, new in zip(old, fitted, strict=True):
            self.word[word] = new
            if word in self.graph.names:
                self.build.names[new] = self.graph.names[word]

    def _origin(self, word: int) -> tuple[int, int]:
        first = 0
        for index, operation in enumerate(self.build.operations):
            if word < first + operation.count:
                return index, word - first
            first += operation.count
        raise AssertionError(word)


def _bits(graph: StepGraph) -> set[int]:
    """Words that are 0 or 1."""
    found: set[int] = set()
    for index, operation in enumerate(graph.operations):
        words = graph.words(index)
        match operation:
            case Less():
                found.update(words)
            case Constant(values=values):
                found.update(w for w, v in zip(words, values, strict=True) if v in (0.0, 1.0))
            case Minimum(a=a, b=b) | Maximum(a=a, b=b) | Multiply(a=a, b=b) | Select(a=a, b=b):
                rows = zip(words, a, b, strict=True)
                found.update(w for w, one, other in rows if one in found and other in found)
            case Window(a=a):
                found.update(w for w, one in zip(words, a, strict=True) if one in found)
            case Channel(formats=formats) | Input(formats=formats):
                found.update(w for w, f in zip(words, formats, strict=True) if f == _BIT)
    return found


_BIT = QFormat(1, 0, signed=False)


def _hull(one: _Bounds, other: _Bounds) -> _Bounds:
    return min(one[0], other[0]), max(one[1], other[1])


def _is_power(value: float) -> bool:
    return value != 0 and math.frexp(abs(value))[0] == 0.5


def _coarser(format: QFormat, most: int) -> QFormat:
    """Return a format with at most so many fraction bits."""
    fine = min(format.frac_bits, most)
    return QFormat(max(format.int_bits, 1 - fine), fine)


def _whole_bits(largest: float) -> int:
    """Bits before the point that hold numbers below `largest`, or as large, but for the last."""
    return math.ceil(math.log2(largest)) if largest > 0 else -MOST_FINER
