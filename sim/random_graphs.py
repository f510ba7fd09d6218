"""Random step graphs: any operations, formats, roundings, overflows and borders.

Where a rule of one's own passes, another may still meet an operation, a width or a rounding that
the first one never used.
"""

import numpy as np

from scotopia.graph.build import Builder, Value
from scotopia.graph.intervals import derive
from scotopia.graph.operations import AROUND, HERE, Border
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph

BORDERS: tuple[Border, ...] = ("zero", "replicate", "wrap", "reflect")

#: Most bits of a word before it has to be fitted, and of one that is multiplied.
WIDEST, FACTOR = 28, 12


class _Drawn(Builder):
    """A builder that knows which words it has, and how wide they are."""

    def __init__(self, seed: int, borders: tuple[Border, ...], most_bits: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.borders = borders
        self.most_bits = most_bits
        self.pool: list[Value] = []  # single words

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, count: int, most: int = WIDEST) -> Value:
        """Take words of at most so many bits, preferring late ones."""
        ranges = derive(StepGraph(tuple(self.operations), self._channel_words()))
        narrow = [one for one in self.pool if ranges.words[one.words[0]].bits <= most]
        places = self.rng.beta(2, 1, count) * len(narrow)
        return self.concatenate([narrow[int(place)] for place in places])

    def pick_bits(self, count: int) -> Value:
        """Take words that are 0 or 1."""
        one, other = self.pick(count), self.pick(count)
        return one < other

    def format(self) -> QFormat:
        signed = self.chance(0.7)
        bits = int(self.rng.integers(1 + signed, self.most_bits + 1))
        whole = int(self.rng.integers(-1, 4))
        return QFormat(whole, bits - whole, signed)

    def mode(self) -> tuple[Rounding, Overflow]:
        return Rounding(self.rng.choice(list(Rounding))), Overflow(self.rng.choice(list(Overflow)))

    def keep(self, value: Value) -> None:
        self.pool.extend(value)

    def _channel_words(self) -> tuple[int, ...]:
        return tuple(range(self.operations[0].count))


def any_graph(
    seed: int, operations: int = 12, *, one_border: bool = False, most_bits: int = 10
) -> StepGraph:
    """Draw a graph of about so many operations; every kind is among those of a few seeds.

    Parameters
    ----------
    one_border
        Whether all its operations see the same beyond the border.
    most_bits
        Of its formats.
    """
    build = _Drawn(seed, BORDERS, most_bits)
    rng = build.rng
    if one_border:
        build.borders = (BORDERS[rng.integers(len(BORDERS))],)
    names = [f"x{i}" for i in range(rng.integers(1, 5))]
    formats = {name: build.format() for name in names}
    state = build.channels(formats)
    build.keep(state)
    if build.chance(0.7):
        count = int(rng.integers(1, 4))
        build.keep(build.inputs({f"input{i}": build.format() for i in range(count)}))
    if build.chance(0.5):
        build.keep(build.random(*map(int, rng.integers(1, 9, rng.integers(1, 3)))))
    for _ in range(operations):
        _draw(build)
    after = {}
    for before, (name, format) in zip(state, formats.items(), strict=True):
        after[name] = build.pick(1).fit(format, *build.mode())
        if build.chance(0.2):  # a cell that keeps what it has
            after[name] = build.where(build.pick_bits(1), after[name], before)
    return build.graph(after)


def _draw(build: _Drawn) -> None:
    """Append an operation or two."""
    rng, count = build.rng, int(build.rng.integers(1, 4))
    border = build.borders[rng.integers(len(build.borders))]
    kind = rng.integers(11)
    if kind <= 2:
        a = build.pick(int(rng.integers(1, 5)), FACTOR)
        taps = AROUND if build.chance(0.6) else HERE
        fraction = int(rng.integers(0, 6))
        weight = rng.integers(-31, 32, (count, len(a), taps)) * 2.0**-fraction
        weight *= rng.random(weight.shape) < rng.choice([0.2, 0.7, 1])
        bias = rng.integers(-200, 201, count) * 2.0 ** -int(rng.integers(0, 9))
        total = build.linear(a, weight, bias, border)
        build.keep(total.fit([build.format() for _ in range(count)], *build.mode()))
    elif kind == 3:
        a = build.pick(count, FACTOR)
        build.keep(build.window(a, largest=build.chance(0.5), border=border))
    elif kind == 4:
        a, b = build.pick(count, FACTOR), build.pick(count, FACTOR)
        build.keep((a * b).fit([build.format() for _ in range(count)], *build.mode()))
    elif kind == 5:
        a = build.pick(count, FACTOR)
        number = int(rng.integers(-20, 21)) * 2.0 ** -int(rng.integers(-2, 5))
        build.keep(a * number if build.chance(0.5) else a + number)
    elif kind == 6:
        a, b = build.pick(count), build.pick(count)
        build.keep(a + b if build.chance(0.5) else a - b)
    elif kind == 7:
        a, b = build.pick(count), build.pick(count)
        build.keep(a.minimum(b) if build.chance(0.5) else a.maximum(b))
    elif kind == 8:
        build.keep(build.where(build.pick_bits(count), build.pick(count), build.pick(count)))
    elif kind == 9:
        build.keep(build.pick_bits(count))
    else:  # a gated move, whose range is that of its ends
        x, c = build.pick(1, FACTOR), build.pick(1, FACTOR)
        share = build.pick(1, FACTOR).fit(QFormat(0, int(rng.integers(1, 7)), signed=False))
        partial = StepGraph(tuple(build.operations), build._channel_words())
        fraction = max(partial.fractions[x.words[0]], partial.fractions[c.words[0]])
        way = (share * (c - x)).fit(QFormat(16 - fraction, fraction), build.mode()[0])
        build.keep(x + way)
