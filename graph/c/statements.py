"""C statements of the words of a cell: the arithmetic, whatever the loops around it.

A word is a local variable, and a line, named as in the graph. Its type holds what the intervals say
that it can be, and so do those of what is computed on the way. It shares nothing with the golden
model, so that it is a second one.
"""

import re
import textwrap
from collections.abc import Collection, Iterable
from functools import cached_property
from importlib import resources

from jinja2 import Environment, StrictUndefined

from ..errors import InputError
from ..intervals import Interval, Ranges, derive
from ..operations import (
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
    Random,
    Select,
    Subtract,
)
from ..qformat import Overflow, Rounding
from ..step import StepGraph
from .stages import plan

COLUMNS = 100

#: What no variable can be called: words of C and C++, and names that the step has for itself.
_RESERVED = """
    alignas alignof and asm auto bitand bitor bool break case catch char class compl concept const
    consteval constexpr constinit continue decltype default delete do double else enum explicit
    export extern false final float for friend goto if import inline int long module mutable
    namespace new noexcept not nullptr operator or override private protected public register
    requires restrict return short signed sizeof static struct switch template this throw true try
    typedef typeid typename typeof union unsigned using virtual void volatile while xor near far
    state noise scratch next height width cells cell there tap here x y i o seen row first count
"""

_ROUND = {
    Rounding.TRN: "floor",
    Rounding.TRN_ZERO: "trn_zero",
    Rounding.RND: "rnd",
    Rounding.RND_ZERO: "rnd_zero",
    Rounding.RND_INF: "rnd_inf",
    Rounding.RND_MIN_INF: "rnd_min_inf",
    Rounding.RND_CONV: "rnd_conv",
}


class StepCode:
    """C statements of all words of a graph: the arithmetic, whatever the loops around it.

    Who derives from it says where words lie (`load`, `store`) and what sums up (`linear`).
    """

    def __init__(self, graph: StepGraph, name: str, copied: bool) -> None:
        self.graph, self.n = graph, name
        self.ranges: Ranges = derive(graph)
        self.plan = plan(graph, copied)
        self.lines: list[str] = []
        self.indent = 0
        self.defined: dict[int, str] = {}  # of the words that this loop has computed or loaded
        self._taken = set(_RESERVED.split())
        of_inputs = [(self.unique(text), word) for text, word in graph.inputs.items()]
        self.inputs = {word: text for text, word in of_inputs}
        self.idents = {word: self.unique(self.text_of(word)) for word in sorted(self.plan.stage)}
        self.first_plane: dict[int, int] = {}
        planes = 0
        for index, operation in graph.of_kind(Random):
            assert isinstance(operation, Random)
            for word, bits in zip(graph.words(index), operation.bits, strict=True):
                self.first_plane[word] = planes
                planes += bits

    # What C calls things

    def text_of(self, word: int) -> str:
        """Return what the variable of a word is called like."""
        if word in self.inputs:
            return f"{self.graph.name(word)} here"
        index, _ = self.graph.origin(word)
        operation = self.graph.operations[index]
        if word in self.graph.names or operation.count > 1:
            return self.graph.name(word)
        return f"{type(operation).__name__.lower()} {index}"

    def unique(self, text: str) -> str:
        """Return an identifier like a text, another one each time."""
        found = identifier(text, self._taken)
        self._taken.add(found)
        return found

    def bits(self, word: int, *intervals: Interval) -> int:
        """Return 32 or 64: the width of a type that holds some numbers on the way to a word."""
        needed = max(interval.bits for interval in intervals)
        if needed > 64:
            raise InputError(
                f"{self.graph.name(word)} needs {needed} bits on its way, C has 64: "
                "quantize with fewer"
            )
        return 32 if needed <= 32 else 64

    def bits_of(self, word: int) -> int:
        """Width of a word's own type."""
        return self.bits(word, self.ranges.words[word])

    @cached_property
    def state_type(self) -> str:
        """Type of the channels' codes."""
        return self.type_of(self.graph.channels.values())

    def type_of(self, words: Iterable[int]) -> str:
        """Type that holds the codes of any of some words."""
        return f"int{max((self.bits_of(word) for word in words), default=32)}_t"

    def input_type(self, word: int) -> str:
        """Type of an input's codes."""
        format = self.graph.formats[word]
        return "uint8_t" if format.bits == 1 and not format.signed else self.type_of([word])

    def signature(self, keyword: str, scratch: str) -> str:
        """Return the parameters of a step, with what follows a pointer's star."""
        codes = self.state_type
        parts = [
            f"const {codes} *{keyword}state",
            *(f"const {self.input_type(at)} *{keyword}{text}" for at, text in self.inputs.items()),
            f"const uint8_t *{keyword}noise",
            f"{scratch} *{keyword}scratch",
            f"{codes} *{keyword}next",
            "int height",
            "int width",
        ]
        glued = " ".join(f"{part},".replace(" ", "~") for part in parts)
        lines = textwrap.wrap(glued, COLUMNS - 4, break_long_words=False, break_on_hyphens=False)
        return "\n    ".join(lines).replace("~", " ").rstrip(",")

    @property
    def unread(self) -> list[str]:
        """Parameters that the step has no use for."""
        used = "\n".join(self.lines)
        names = [*self.inputs.values(), "noise", "scratch", "state"]
        return [name for name in names if not re.search(rf"\b{name}\b", used)]

    # Arithmetic

    def line(self, text: str) -> None:
        """Write a line, in several if it is long."""
        space = " " * self.indent
        self.lines += textwrap.wrap(
            text,
            COLUMNS,
            initial_indent=space,
            subsequent_indent=f"{space}    ",
            break_long_words=False,
            break_on_hyphens=False,
        )

    def use(self, word: int, bits: int = 32, fraction: int | None = None) -> str:
        """Return an operand: a word's code, with so many fraction bits and at least so wide."""
        shift = 0 if fraction is None else fraction - self.graph.fractions[word]
        held = self.ranges.words[word]
        if held.lowest == held.highest and isinstance(self.graph.made_by(word)[0], Constant):
            return literal(held.lowest << shift, bits)
        text = self.ident(word)
        if bits > self.bits_of(word):
            text = f"(int64_t){text}"
        if held == Interval(0, 0):
            return text
        return f"{text} * {literal(1 << shift, bits)}" if shift else text

    def at(self, word: int, fraction: int) -> Interval:
        """Interval of a word's code with so many fraction bits."""
        return self.ranges.words[word] << (fraction - self.graph.fractions[word])

    def ident(self, word: int) -> str:
        """Return the variable of a word, which this loop has computed, or else loads."""
        if word not in self.defined:
            source, bits = self.load(word)
            self.define(word, source, bits)
        return self.defined[word]

    def define(self, word: int, text: str, bits: int) -> None:
        """Write the line that computes a word, of an expression so wide."""
        own = self.bits_of(word)
        if bits > own:
            call = re.fullmatch(r"\w+\(.*\)", text)
            text = f"(int{own}_t){text}" if call else f"(int{own}_t)({text})"
        self.line(f"const int{own}_t {self.idents[word]} = {text};")
        self.defined[word] = self.idents[word]

    def given(self, word: int, cell: str) -> tuple[str, int]:
        """Return what is at hand of a cell, and its width."""
        operation, lane = self.graph.made_by(word)
        match operation:
            case Channel():
                place = list(self.graph.channels.values()).index(word)
                return f"state[{place} * cells + {cell}]", 32 if "32" in self.state_type else 64
            case Input():
                return f"{self.inputs[word]}[{cell}]", self.bits_of(word)
            case Random(bits=counts):
                bits = self.bits_of(word)
                call = f"{self.n}_draw{suffix(bits)}(noise, cells, {cell}"
                return f"{call}, {self.first_plane[word]}, {counts[lane]})", bits
        raise NotImplementedError(type(operation).__name__)

    def compute(self, word: int) -> tuple[str, int]:
        """Return the expression of a word of its own cell's others, and its width."""
        operation, lane = self.graph.made_by(word)
        if isinstance(operation, Fit):
            return self.fit(word, operation, lane)
        if not isinstance(operation, Add | Subtract | Multiply | Minimum | Maximum | Less | Select):
            raise NotImplementedError(type(operation).__name__)
        a, b = (words[lane] for words in operation.arguments[-2:])
        known, own = self.graph.fractions, self.ranges.words[word]
        if isinstance(operation, Multiply):
            for factor, word in ((a, b), (b, a)):
                if self.ranges.words[factor] == Interval(1, 1):
                    return self.use(word), self.bits_of(word)
            bits = self.bits(word, own, self.ranges.words[a], self.ranges.words[b])
            return f"{self.use(a, bits)} * {self.use(b, bits)}", bits
        fraction = max(known[a], known[b])
        bits = self.bits(word, own, self.at(a, fraction), self.at(b, fraction))
        one, other = self.use(a, bits, fraction), self.use(b, bits, fraction)
        match operation:
            case Add():
                return f"{one} + {other}", bits
            case Subtract():
                return f"{one} - {other}", bits
            case Minimum():
                return f"{self.n}_min{suffix(bits)}({one}, {other})", bits
            case Maximum():
                return f"{self.n}_max{suffix(bits)}({one}, {other})", bits
            case Less():
                return f"{one} < {other}", 32
            case _:
                condition = self.use(operation.condition[lane])
                return f"{condition} != 0 ? {one} : {other}", bits

    def fit(self, word: int, fit: Fit, lane: int) -> tuple[str, int]:
        """Return the expression of a word that is rounded and brought into range."""
        source, format = fit.a[lane], fit.formats[lane]
        shift = self.graph.fractions[source] - format.frac_bits
        rounded = self.ranges.rounded[word]
        if shift > 0:
            held = self.ranges.words[source]
            # Room for one more bit: numbers are doubled, or change their sign, on the way.
            bits = self.bits(word, held << 1)
            if bits == 32 and shift > 30:
                bits = 64
            if shift > 62:  # it is less than half a unit, whatever it is
                self.bits(word, held << 4)
                shift = 62
            end = suffix(bits)
            text = f"{self.n}_{_ROUND[fit.rounding]}{end}({self.use(source, bits)}, {shift})"
        else:
            bits = self.bits(word, rounded)
            text = self.use(source, bits, format.frac_bits)
        limit = Interval.of(format, fit.overflow)
        if limit.holds(rounded):
            return text, bits
        bits = max(bits, self.bits(word, limit))
        low, high = literal(limit.lowest, bits), literal(limit.highest, bits)
        if fit.overflow is Overflow.WRAP:
            return f"{self.n}_wrap{suffix(bits)}({text}, {low}, {high})", bits
        if rounded.lowest >= limit.lowest:
            return f"{self.n}_min{suffix(bits)}({text}, {high})", bits
        if rounded.highest <= limit.highest:
            return f"{self.n}_max{suffix(bits)}({text}, {low})", bits
        return f"{self.n}_clamp{suffix(bits)}({text}, {low}, {high})", bits

    # Of a layer

    def sum_bits(self, index: int) -> int:
        """Width of the sums of a `Linear`, and of its products, in any order."""
        linear = self.graph.operations[index]
        assert isinstance(linear, Linear)
        words = self.graph.words(index)
        widths = [self.bits(word, self.ranges.sums[word]) for word in words]
        return max([*widths, *(self.bits_of(word) for word in linear.a)])

    def load(self, word: int) -> tuple[str, int]:
        """Return where a word lies that this loop has not computed, and its width."""
        raise NotImplementedError


def identifier(text: str, taken: Collection[str] = frozenset(_RESERVED.split())) -> str:
    """Return what a word of this name is called in C, none of what is taken."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:32].strip("_") or "word"
    plain = f"word_{plain}" if plain[0].isdigit() else plain
    found, count = plain, 1
    while found in taken:
        count += 1
        found = f"{plain}_{count}"
    return found


def literal(number: int, bits: int = 32) -> str:
    """Return an integer constant of at least so many bits."""
    if number == -1 << (bits - 1):
        return f"({literal(number + 1, bits)} - 1)"
    return f"INT64_C({number})" if bits > 32 else str(number)


def suffix(bits: int) -> str:
    """Return what names of functions on integers so wide end with."""
    return "64" if bits > 32 else ""


def functions(name: str, text: str) -> str:
    """Return the functions of `functions.c` that a text calls, and those that they call."""
    source = resources.files(__package__).joinpath("functions.c").read_text("utf-8")
    found: list[str] = []
    for function in reversed(source.strip().split("\n\n")[1:]):
        for bits in (64, 32):
            made = re.sub(r"W\b", suffix(bits), function)
            made = made.replace("CODE", f"int{bits}_t").replace("NAME", name)
            called = re.findall(r"^static inline \w+ (\w+)", made, re.MULTILINE)[0]
            if re.search(rf"\b{called}\(", "".join([text, *found])):
                found.insert(0, made)
    return "\n\n".join(found)


def render(template: str, **values: object) -> str:
    """Fill in a template that lies beside this module."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    source = resources.files(__package__).joinpath(template).read_text("utf-8")
    return environment.from_string(source).render(**values)
