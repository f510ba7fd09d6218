"""Random step graphs: any operations, formats, roundings, overflows and borders.

Where a rule of one's own passes, another may still meet an operation, a width or a rounding that
the first one never used.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from scotopia.graph.build import Builder, Value
from scotopia.graph.intervals import derive
from scotopia.graph.operations import AROUND, HERE, Border
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph

BORDERS: tuple[Border, ...] = ("zero", "replicate", "wrap", "reflect")

#: Most bits of a word before it has to be fitted, and of one that is multiplied.
WIDEST, FACTOR = 28, 12


def any_format(rng: np.random.Generator, most_bits: int = 10) -> QFormat:
    """Draw a format of at most so many bits."""
    signed = bool(rng.random() < 0.7)
    bits = int(rng.integers(1 + signed, most_bits + 1))
    whole = int(rng.integers(-1, 4))
    return QFormat(whole, bits - whole, signed)


@dataclass(frozen=True)
class Outline:
    """What graphs can have in common.

    Attributes
    ----------
    channels, inputs
        Formats, by name.
    borders
        That operations may see.
    random
        Whether it draws random numbers.
    """

    channels: dict[str, QFormat]
    inputs: dict[str, QFormat]
    borders: tuple[Border, ...] = BORDERS
    random: bool = False

    @classmethod
    def draw(cls, rng: np.random.Generator, *, one_border: bool, most_bits: int) -> Self:
        """Draw one: up to four channels and three inputs."""
        channels = {f"x{i}": any_format(rng, most_bits) for i in range(rng.integers(1, 5))}
        count = int(rng.integers(1, 4)) if rng.random() < 0.7 else 0
        inputs = {f"input{i}": any_format(rng, most_bits) for i in range(count)}
        borders = (BORDERS[rng.integers(len(BORDERS))],) if one_border else BORDERS
        return cls(channels, inputs, borders, bool(rng.random() < 0.5))


class _Drawn(Builder):
    """A builder that knows which words it has, and how wide they are."""

    def __init__(self, rng: np.random.Generator, outline: Outline, most_bits: int) -> None:
        super().__init__()
        self.rng = rng
        self.outline = outline
        self.most_bits = most_bits
        self.pool: list[Value] = []  # single words

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, count: int, most: int = WIDEST) -> Value:
        """Take words of at most so many bits, preferring late ones."""
        ranges = derive(self.so_far())
        narrow = [one for one in self.pool if ranges.words[one.words[0]].bits <= most]
        places = self.rng.beta(2, 1, count) * len(narrow)
        return self.concatenate([narrow[int(place)] for place in places])

    def pick_bits(self, count: int) -> Value:
        """Take words that are 0 or 1."""
        one, other = self.pick(count), self.pick(count)
        return one < other

    def formats(self, count: int) -> list[QFormat]:
        return [any_format(self.rng, self.most_bits) for _ in range(count)]

    def mode(self) -> tuple[Rounding, Overflow]:
        return Rounding(self.rng.choice(list(Rounding))), Overflow(self.rng.choice(list(Overflow)))

    def keep(self, value: Value) -> None:
        self.pool.extend(value)

    def so_far(self) -> StepGraph:
        """Graph of all that is there, which changes nothing."""
        return StepGraph(tuple(self.operations), tuple(range(len(self.outline.channels))))


def any_graph(
    seed: int,
    operations: int = 12,
    *,
    one_border: bool = False,
    most_bits: int = 10,
    outline: Outline | None = None,
) -> StepGraph:
    """Draw a graph of about so many operations; every kind is among those of a few seeds.

    Parameters
    ----------
    one_border
        Whether all its operations see the same beyond the border.
    most_bits
        Of its formats.
    outline
        What is not drawn; the graph sees all of its borders.
    """
    rng = np.random.default_rng(seed)
    needed = outline.borders if outline else ()
    if outline is None:
        outline = Outline.draw(rng, one_border=one_border, most_bits=most_bits)
    build = _Drawn(rng, outline, most_bits)
    state = build.channels(outline.channels)
    build.keep(state)
    if outline.inputs:
        build.keep(build.inputs(outline.inputs))
    fires = None
    if outline.random:
        build.keep(build.random(*map(int, rng.integers(1, 9, rng.integers(1, 3)))))
        if build.chance(0.3):  # not all cells do what the graph says
            bits = int(rng.integers(1, 9))
            fires = build.random(bits) < int(rng.integers(1, 1 << bits)) / (1 << bits)
    for _ in range(operations):
        _draw(build)
    for border in needed:
        if border not in build.so_far().borders:
            build.keep(build.window(build.pick(1, FACTOR), border=border))
    after = {}
    for before, (name, format) in zip(state, outline.channels.items(), strict=True):
        after[name] = build.pick(1).fit(format, *build.mode())
        if fires is not None:
            after[name] = build.where(fires, after[name], before)
        elif build.chance(0.2):  # a cell that keeps what it has
            after[name] = build.where(build.pick_bits(1), after[name], before)
    return build.graph(after)


def _draw(build: _Drawn) -> None:
    """Append an operation or two."""
    rng, count = build.rng, int(build.rng.integers(1, 4))
    border = build.outline.borders[rng.integers(len(build.outline.borders))]
    kind = rng.integers(11)
    if kind <= 2:
        _sum(build, count, border)
    elif kind == 3:
        a = build.pick(count, FACTOR)
        build.keep(build.window(a, largest=build.chance(0.5), border=border))
    elif kind == 4:
        a, b = build.pick(count, FACTOR), build.pick(count, FACTOR)
        build.keep((a * b).fit(build.formats(count), *build.mode()))
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
    else:
        _move(build)


def _sum(build: _Drawn, count: int, border: Border) -> None:
    """Append a layer: of few words or of many, of small weights or of extreme ones."""
    rng = build.rng
    a = build.pick(int(rng.integers(1, 13 if build.chance(0.1) else 5)), FACTOR)
    shape = count, len(a), AROUND if build.chance(0.6) else HERE
    codes = rng.integers(-31, 32, shape)
    if build.chance(0.15):
        codes = rng.choice([-128, 0, 127], shape)
    codes *= rng.random(shape) < rng.choice([0.2, 0.7, 1])
    # Sums that are coarser than what they are brought to are shifted to the left.
    fraction = int(rng.integers(-4, 1) if build.chance(0.15) else rng.integers(0, 6))
    bias = rng.integers(-200, 201, count) * 2.0 ** -int(rng.integers(0, 9))
    total = build.linear(a, codes * 2.0**-fraction, bias * (fraction >= 0), border)
    build.keep(total.fit(build.formats(count), *build.mode()))


def _move(build: _Drawn) -> None:
    """Append a gated move, whose range is that of its ends, rounded or dithered."""
    rng = build.rng
    x, c = build.pick(1, FACTOR), build.pick(1, FACTOR)
    share = build.pick(1, FACTOR).fit(QFormat(0, int(rng.integers(1, 7)), signed=False))
    known = build.so_far().fractions
    fraction = max(known[x.words[0]], known[c.words[0]])
    way, rounding = share * (c - x), build.mode()[0]
    if build.outline.random and build.chance(0.5):
        way = way + build.random(int(rng.integers(1, 7))) * 2.0**-fraction
        rounding = Rounding.TRN
    build.keep(x + way.fit(QFormat(16 - fraction, fraction), rounding))
