"""C++ of the values of a step, forward and again in backward."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np

from scotopia.graph.operations import (
    AROUND,
    Add,
    Border,
    Channel,
    Constant,
    Fit,
    Input,
    Less,
    Linear,
    Maximum,
    Minimum,
    Multiply,
    Random,
    Select,
    Subtract,
    Window,
)

from .expressions import (
    Assignment,
    Expressions,
    Node,
    Plane,
    fitted_lanes,
    literal,
    loads,
    loops,
)
from .plan import Plan, Position

#: Bits of an integer, with its sign, that floats hold beside a half.
FLOAT_BITS = 24


@dataclass
class Numbering:
    """Numbers of planes in an array, given as they are asked for."""

    of: dict[object, int] = field(default_factory=dict)

    def __call__(self, key: object) -> int:
        """Return the number of what a plane holds."""
        return self.of.setdefault(key, len(self.of))


class Piece(NamedTuple):
    """Text that is done for each row `y` of a strip, or once for all of it."""

    each: bool
    lines: list[str]


def over_strips(pieces: Iterable[Piece]) -> list[str]:
    """Write what does pieces, in their order, strip after strip."""
    inner: list[str] = []
    for each, group in groupby((p for p in pieces if p.lines), lambda piece: piece.each):
        lines = [line for piece in group for line in piece.lines]
        loop = "for (int y = top; y < top + rows; y++) {"
        inner += [loop, *lines, "}"] if each else lines
    return [_OVER_STRIPS, *inner, "}"] if inner else []


_OVER_STRIPS = """for (int top = 0; top < height; top += STRIP) {
const int rows = top + STRIP < height ? STRIP : height - top;
[[maybe_unused]] const int cells = rows * width, whole = (cells + PAD - 1) / PAD * PAD;
[[maybe_unused]] const auto strip = this->strip.below(top);
[[maybe_unused]] const auto dstrip = this->dstrip.below(top);"""


def table(planes: Iterable[Plane]) -> str:
    """Write the numbers of planes."""
    return "{" + ", ".join(str(plane.number) for plane in planes) + "}"


class Values:
    """Writes what computes the words of a plan.

    Parameters
    ----------
    wide, wide_store
        See `source.source`.
    """

    def __init__(self, plan: Plan, wide: Set[int], wide_store: bool) -> None:
        self.plan, self.graph, self.wide = plan, plan.graph, wide
        self.make = Expressions(wide_store)
        self.number_planes()
        self.silences = Numbering()
        self._channels = {word: c for c, word in enumerate(self.graph.channels.values())}
        self._inputs = {word: c for c, word in enumerate(self.graph.inputs.values())}
        drawn = [w for i, _ in self.graph.of_kind(Random) for w in self.graph.words(i)]
        self._random = {word: c for c, word in enumerate(drawn)}
        self.terms: dict[tuple[int, tuple[Position, bool]], Node] = {}
        self.written: set[Plane] = set()  # gradients, in the order of the backward pass

    def number_planes(self) -> None:
        """Begin to give numbers to planes."""
        self.planes, self.strips = Numbering(), Numbering()
        self.dplanes, self.dstrips = Numbering(), Numbering()
        self.extended, self.dnumbers = Numbering(), Numbering()

    def linear(self, layer: int) -> Linear:
        """Return the operation of a layer."""
        linear = self.graph.operations[layer]
        assert isinstance(linear, Linear)
        return linear

    # ---- values ----

    def plane(self, word: int, border: Border | None = None) -> Plane:
        """Where a word's values lie, as seen with a border."""
        plan = self.plan
        kind = plan.kind(word)
        borders = plan.borders.get(word, [])
        if border is not None and border != borders[0]:
            return Plane("plane", self.planes((word, border)))
        if kind is Channel:
            return Plane("state", self._channels[word])
        if border is None and kind is Input:
            return Plane("input", self._inputs[word])
        if border is None and kind is Random:
            return Plane("random", self._random[word])
        if word in plan.saved:
            return Plane("saved", plan.saved.index(word))
        if plan.crosses(word):
            return Plane("plane", self.planes(word))
        return Plane("strip", self.strips(word))

    def term(self, word: int, at: Position) -> Node:
        """Return a word as a loop at some stage and level has it."""
        plan, make = self.plan, self.make
        operation, lane = self.graph.made_by(word)
        index = self.graph.origin(word)[0]
        if isinstance(operation, Constant):
            if index in plan.given:
                return make.given(plan.given[index] + lane)
            return make.number(operation.values[lane])
        if plan.kind(word) in (Channel, Input, Random) or plan.layer_of(word) is not None:
            return make.load(self.plane(word))
        if plan.position[word] != at:
            return make.load(self.plane(word))
        key = word, (at, False)
        if key not in self.terms:
            self.terms[key] = self.computed(word, at)
        return self.terms[key]

    def computed(self, word: int, at: Position) -> Node:
        """Return how a loop computes a word."""
        make = self.make
        index, lane = self.graph.origin(word)
        operation = self.graph.operations[index]
        if isinstance(operation, Constant | Channel | Input | Random):
            return self.term(word, at)
        if isinstance(operation, Linear):
            return self._sum(index, operation, lane, at)
        if isinstance(operation, Window):
            return self._extremum(operation, lane)[0]
        arguments = [self.term(words[lane], at) for words in operation.arguments]
        wide = word in self.wide
        match operation:
            case Add():
                return make.make("add", *arguments, wide=wide)
            case Subtract():
                return make.make("sub", *arguments, wide=wide)
            case Multiply():
                return make.multiply(arguments[0], arguments[1], wide)
            case Minimum():
                return make.make("min", *arguments, wide=wide)
            case Maximum():
                return make.make("max", *arguments, wide=wide)
            case Less():
                return make.make("bit", make.make("lt", *arguments))
            case Select():
                return make.where(make.truth(arguments[0]), *arguments[1:])
            case Fit(formats=formats, rounding=rounding, overflow=overflow):
                format = formats[lane]
                found = make.fit(arguments[0], format, rounding, overflow, wide)
                return (
                    make.narrow(found) if format.bits + (not format.signed) <= FLOAT_BITS else found
                )
        raise NotImplementedError(type(operation).__name__)

    def weight(self, index: int, linear: Linear, place: tuple[int, int, int]) -> Node:
        """Return a weight of a sum that is no layer."""
        if index in self.plan.given:
            offset = int(np.ravel_multi_index(place, linear.weight.shape))
            return self.make.given(self.plan.given[index] + offset)
        return self.make.number(linear.weight[place])

    def tap(self, word: int, border: Border, tap: int) -> Node:
        """Return a word of one of the nine cells around."""
        return self.make.load(self.plane(word, border), tap // 3 - 1, tap % 3 - 1)

    def _sum(self, index: int, linear: Linear, lane: int, at: Position) -> Node:
        make, plan = self.make, self.plan
        wide = self.graph.words(index)[lane] in self.wide
        total: Node | None = None
        if index in plan.given:
            total = make.given(plan.given[index] + linear.weight.size + lane)
        elif linear.bias[lane]:
            total = make.number(linear.bias[lane])
        for i, tap in zip(*np.nonzero(plan.masks[index][lane]), strict=True):
            word = linear.a[i]
            around = linear.weight.shape[2] == AROUND
            read = self.tap(word, linear.border, int(tap)) if around else self.term(word, at)
            weight = self.weight(index, linear, (lane, int(i), int(tap)))
            product = make.multiply(weight, read, wide)
            total = product if total is None else make.make("add", total, product, wide=wide)
        return make.number(0) if total is None else total

    def _extremum(self, window: Window, lane: int) -> tuple[Node, Node]:
        """Return what a window finds, and at which tap."""
        make = self.make
        taps = [self.tap(window.a[lane], window.border, tap) for tap in range(9)]
        found, place = taps[0], make.number(0)
        for i, tap in enumerate(taps[1:], 1):
            order = (found, tap) if window.largest else (tap, found)
            place = make.where(make.make("lt", *order), make.number(i), place)
            found = make.make("max" if window.largest else "min", found, tap)
        return found, place

    def assignments(self, at: Position, words: set[int], *, state: bool) -> list[Assignment]:
        """Return what a loop writes: some words, and the next state's share."""
        plan = self.plan
        found = []
        for word in sorted(words):
            if plan.position.get(word) == at and plan.layer_of(word) is None:
                border = plan.borders[word][0] if word in plan.borders else None
                found.append(Assignment(self.plane(word, border), self.computed(word, at)))
        if state:
            for channel, word in enumerate(self.graph.outputs):
                where = plan.position.get(word, (0, 0))
                if plan.kind(word) in (Constant, Input, Random):
                    where = 0, 0
                if where == at:
                    found.append(Assignment(Plane("next", channel), self.term(word, at)))
        return found

    # ---- rows of values, forward and again in backward ----

    def values(self, stage: int, words: set[int], *, state: bool, seen: bool) -> list[str]:
        """Write the pass over the rows that computes words of a stage."""
        lines = over_strips(self.strip(stage, words, state=state))
        if seen:
            for word in sorted(words):
                if self.plan.position[word][0] == stage:
                    lines += self.surround(word)
        return lines

    def strip(self, stage: int, words: set[int], *, state: bool) -> list[Piece]:
        """Write what computes a strip of words of a stage."""
        pieces: list[Piece] = []
        for level in range(self.plan.levels[stage]):
            at = stage, level
            for layer in sorted(self.plan.layers):
                written = self.plan.written(layer)
                if not words.isdisjoint(written) and self.plan.position[written[0]] == at:
                    pieces += self.layer(layer)
            assigned = self.assignments(at, words, state=state)
            ends = [one.target.number for one in assigned if one.target.array == "next"]
            trims = [f"trim(next.at({c}, y), width, padded);" for c in ends]
            pieces.append(Piece(True, [*loops(assigned), *trims]))
        return pieces

    def surround(self, word: int) -> list[str]:
        """Write what lets neighbours see a word that has been computed for all rows."""
        lines = []
        borders = self.plan.borders.get(word, [])
        for border in borders:
            plane = self.plane(word, border)
            if border != borders[0]:
                here = self.plane(word, borders[0])
                lines += [
                    "for (int y = 0; y < height; y++)",
                    f"std::memcpy({plane.at()}, {here.at()}, sizeof(Store) * padded);",
                ]
            lines.append(
                f"surround({plane.array}, {plane.number}, {border.upper()}, height, width);"
            )
            lines += self.listen(word, border)
        return lines

    def listen(self, word: int, border: Border) -> list[str]:
        """Write what finds rows of zeros, of a word that a layer reads and that often is 0."""
        if (word, border) not in self.silences.of:
            return []
        plane = self.plane(word, border)
        return [
            f"listen({plane.array}, {plane.number}, silent({self.silences((word, border))}), "
            "height, width);"
        ]

    def number_silences(self) -> None:
        """Find what often is 0, and is read by layers."""
        for layer in sorted(self.plan.layers):
            linear = self.linear(layer)
            if linear.weight.shape[2] == AROUND and self.plan.outputs(layer):
                for word in linear.a:
                    if self.plan.kind(word) is not Channel and self._often_zero(word):
                        self.silences((word, linear.border))

    def _often_zero(self, word: int) -> bool:
        operation, lane = self.graph.made_by(word)
        match operation:
            case Input() | Less():
                return True
            case Select(a=a, b=b):
                return any(
                    self._constant(w[lane]) == 0 or self._often_zero(w[lane]) for w in (a, b)
                )
            case Multiply(a=a, b=b):
                return self._often_zero(a[lane]) or self._often_zero(b[lane])
            case Minimum(a=a, b=b) | Maximum(a=a, b=b):
                pair = a[lane], b[lane]
                return any(self._constant(w) is not None for w in pair) and any(
                    self._often_zero(w) for w in pair
                )
            case Fit(a=a):
                return self._often_zero(a[lane])
        return False

    def _constant(self, word: int) -> float | None:
        operation, lane = self.graph.made_by(word)
        return operation.values[lane] if isinstance(operation, Constant) else None

    def sources(self, name: str, words: Iterable[int], border: Border | None) -> list[str]:
        """Write a table of the planes that a layer reads."""
        rows = []
        for word in words:
            plane = self.plane(word, border)
            silent = "nullptr"
            if border is not None and (word, border) in self.silences.of:
                silent = f"silent({self.silences((word, border))})"
            rows.append(f"{{{plane.array}.at({plane.number}, 0), {plane.array}.row, {silent}}}")
        return [f"const Source<Store> {name}[] = {{{', '.join(rows)}}};"]

    def finishes(self) -> list[str]:
        """Write what layers do to their sums."""
        lines = []
        for layer in sorted(self.plan.layers):
            words = self.plan.written(layer)
            if words == self.plan.outputs(layer):
                continue
            operation, _ = self.graph.made_by(words[0])
            kind = self.kind(layer)
            if isinstance(operation, Fit):
                formats = [self.graph.formats[word] for word in words]
                tables, text = fitted_lanes(formats, operation.rounding, operation.overflow)
                base, body = (
                    f"Lanewise<Finish{layer}, {kind}>",
                    f"static {kind} one(int n, {kind} v) {{ return {text}; }}",
                )
            else:
                assert isinstance(operation, Maximum | Minimum)
                second = [operation.b[self.graph.origin(word)[1]] for word in words]
                tables = {"bounds": [self._constant(word) or 0.0 for word in second]}
                order = ">" if isinstance(operation, Maximum) else "<"
                base = f"Bounded<Finish{layer}>"
                choice = f"v {order} bound ? v : bound"
                body = f"template <typename V> static V one(V v, V bound) {{ return {choice}; }}"
            lines.append(f"struct Finish{layer} : {base} {{")
            for name, numbers in tables.items():
                rows = ", ".join(literal(number, kind) for number in numbers)
                lines.append(f"static constexpr {kind} {name}[] = {{{rows}}};")
            lines += [body, "};"]
        return lines

    def kind(self, layer: int) -> str:
        """Return the type in which a layer sums up."""
        return "float" if self.wide.isdisjoint(self.plan.outputs(layer)) else "Real"

    def layer(self, layer: int) -> list[Piece]:
        """Write what computes a layer: one of the cell alone all along a strip at once."""
        linear = self.linear(layer)
        count, written = len(linear.a), self.plan.written(layer)
        finish = f"Finish{layer}()" if self.plan.outputs(layer) != written else "Keep()"
        if linear.weight.shape[2] == AROUND:
            rows = ", ".join(self.plane(word).at() for word in written)
            lines = [
                *("{", *self.sources("sources", linear.a, linear.border)),
                f"Store* const out[] = {{{rows}}};",
                f"Tap<Store> taps[{9 * count}];",
                f"const int count = taps_around(sources, {count}, y, taps);",
                f"layer{layer}.apply<false>(count, taps, out, padded, {finish});",
                "}",
            ]
            return [Piece(True, lines)]
        read, to = table([self.in_strip(w) for w in linear.a]), table(map(self.in_strip, written))
        lines = [
            *("{", f"static const int read[] = {read}, to[] = {to};"),
            f"Tap<Store> taps[{count}];",
            f"Store* out[{len(written)}];",
            "for (Tap<Store>& tap : taps) {",
            "const int i = &tap - taps;",
            "tap = {strip.at(read[i], top), i};",
            "}",
            f"for (int o = 0; o < {len(written)}; o++) out[o] = strip.at(to[o], top);",
            f"layer{layer}.apply<false>({count}, taps, out, whole, {finish});",
            "}",
        ]
        back = [
            Assignment(self.plane(word), self.make.load(self.in_strip(word)))
            for word in written
            if self.plane(word) != self.in_strip(word)
        ]
        return [self.into_strip(linear.a), Piece(False, lines), Piece(True, loops(back))]

    def in_strip(self, word: int) -> Plane:
        """Where a layer of the cell alone finds a word, or leaves it."""
        plane = self.plane(word)
        return plane if plane.array == "strip" else Plane("strip", self.strips(("copy", word)))

    def into_strip(self, words: Iterable[int]) -> Piece:
        """Write what copies words to where such a layer finds them."""
        copied = [
            Assignment(self.in_strip(word), self.make.load(self.plane(word)))
            for word in dict.fromkeys(words)
            if self.plane(word) != self.in_strip(word)
        ]
        return Piece(True, loops(copied))

    # ---- what is computed again ----

    def needed(self, word: int) -> list[int]:
        """Words with planes of their own that a stored word is computed of."""
        layer = self.plan.layer_of(word)
        if layer is not None:
            return list(self.linear(layer).a)
        at = self.plan.position[word]
        value = Assignment(Plane("", 0), self.computed(word, at))
        return [self.word_at[p] for p in loads([value]) if p in self.word_at]

    @cached_property
    def word_at(self) -> dict[Plane, int]:
        """Words by the planes that hold them."""
        found = {}
        for word in self.plan.live:
            if self.plan.stored(word):
                for border in self.plan.borders.get(word, [None]):
                    found[self.plane(word, border)] = word
            if self.plan.kind(word) is Channel:
                for border in self.plan.borders.get(word, [])[1:]:
                    found[self.plane(word, border)] = word
        return found

    def again(self, demanded: set[int]) -> tuple[set[int], set[int]]:
        """Words to compute again before all else, and those to compute strip by strip."""
        first: set[int] = set()
        strips: set[int] = set()
        plan = self.plan

        def visit(word: int, before: bool) -> None:
            if not plan.stored(word) or word in plan.saved or plan.kind(word) is Channel:
                return
            before |= plan.crosses(word)
            found = first if before else strips
            if word not in found:
                found.add(word)
                for other in self.needed(word):
                    visit(other, before)

        for word in demanded:
            visit(word, False)
        return first, strips

    def copies(self) -> list[str]:
        """Write copies of channels that are seen with several borders."""
        lines = []
        for word in self._channels:
            for border in self.plan.borders.get(word, [])[1:]:
                plane = self.plane(word, border)
                lines += [
                    "for (int y = 0; y < height; y++)",
                    f"std::memcpy({plane.at()}, {self.plane(word).at()}, sizeof(Store) * padded);",
                    f"surround({plane.array}, {plane.number}, {border.upper()}, height, width);",
                    *self.listen(word, border),
                ]
        return lines
