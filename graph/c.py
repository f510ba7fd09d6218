"""C99: a step graph as plain integer C, written as one header.

For microcontrollers, for other people's simulators and browsers, and a second golden model: it
shares no line of arithmetic with the first. `step.h.jinja`, beside this module, is the frame;
`engine` compiles the same statements, with other loops around them, for this very machine.

The words of a cell are local variables, a line each, named as in the graph. The graph is cut into
**stages**: what cells see of their neighbours comes from an earlier stage, over all cells, and lies
in between in pictures of its own, the **scratch**.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources

from jinja2 import Environment, StrictUndefined

from .errors import InputError
from .intervals import Interval, Ranges, derive
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
    Random,
    Select,
    Subtract,
    Window,
)
from .qformat import IntArray, Overflow, Rounding
from .step import StepGraph

_COLUMNS = 100

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


@dataclass(frozen=True)
class Extra:
    """What the header of a rule says beside its step.

    Attributes
    ----------
    about
        A sentence or more on the rule, for the head of the file.
    meanings
        Of channels, by name.
    use
        Lines that show how the step is used; by default, step after step.
    defines
        Names, without the prefix, of more constants; and their values.
    code
        More functions, in which @ stands for the prefix of names. They may call `@_floor`.
    """

    about: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict)
    use: Sequence[str] = ()
    defines: Mapping[str, str] = field(default_factory=dict)
    code: str = ""


def c_header(
    graph: StepGraph, name: str = "scotopia", seed: int = 1, extra: Extra | None = None
) -> str:
    """Return a header that holds a graph's constants and computes its step.

    All its functions are `static inline`. Arrays are pictures of height * width cells in reading
    order, one after the other:

    - `NAME_step(state, INPUT..., noise, scratch, next, height, width)` reads the state, a picture a
      channel, and each input of the graph, and writes the next state. Codes are int32_t, those of
      inputs of a single bit uint8_t, and those that need it int64_t. `noise` is of `NAME_PLANES`
      pictures of random bits, uint8_t; `scratch` of `NAME_SCRATCH` pictures, whatever they hold.
      Where these are 0, NULL does.
    - `NAME_seed_rows(rows, height)` and `NAME_noise(rows, noise, height, width)`, of a graph that
      draws random bits: `lfsr.RowRegisters`, its registers kept by the caller.

    Parameters
    ----------
    name
        What every name in the header starts with.
    seed
        Of the random bits.

    Raises
    ------
    InputError
        If `name` is no C identifier, or some number needs more than 64 bits.
    """
    # An underscore in front, or two in a row, belong to the compiler and to C++.
    if not re.fullmatch(r"[A-Za-z](_?[A-Za-z0-9])*", name):
        raise InputError(
            f"name {name!r} cannot start C identifiers: choose letters, digits and single "
            "underscores, a letter first, such as scotopia"
        )
    extra = extra or Extra()
    code = _HeaderCode(graph, name)
    body = code.stages()
    more = extra.code.replace("@", name).strip("\n")
    return render(
        "step.h.jinja",
        n=name,
        N=name.upper(),
        about=textwrap.fill(extra.about, _COLUMNS - 3).replace("\n", "\n * "),
        extra=extra,
        more=more,
        legend=_legend(graph, extra.meanings),
        channels=len(graph.channels),
        planes=graph.random_bits,
        seed=seed,
        code=code,
        body=body,
        functions=functions(name, body + more),
    )


def render(template: str, **values: object) -> str:
    """Fill in a template that lies beside this module."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    source = resources.files(__package__).joinpath(template).read_text("utf-8")
    return environment.from_string(source).render(**values)


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


@dataclass(frozen=True)
class Plan:
    """In which stage each word is computed: as late as those allow that read it.

    Attributes
    ----------
    stages
        How many there are.
    stage
        Of each word that the next state depends on.
    stored
        Words that a later stage reads, in their order.
    """

    stages: int
    stage: dict[int, int]
    stored: list[int]


def reads(graph: StepGraph, word: int) -> list[tuple[int, bool]]:
    """Return what is needed for a word: other words, and whether of all cells around."""
    operation, lane = graph.made_by(word)
    match operation:
        case Linear(a=words):
            return [(one, operation.weight.shape[2] == AROUND) for one in words]
        case Window(a=words):
            return [(words[lane], True)]
    return [(words[lane], False) for words in operation.arguments]


def plan(graph: StepGraph, copied: bool) -> Plan:
    """Cut a graph into stages.

    Parameters
    ----------
    copied
        Whether neighbours see copies of channels and inputs, made in a stage before, or them.
    """
    live = set[int]()
    wanted = list(graph.outputs)
    while wanted:
        if (word := wanted.pop()) not in live:
            live.add(word)
            wanted += [one for one, _ in reads(graph, word)]

    def in_place(word: int) -> bool:
        return not copied and isinstance(graph.made_by(word)[0], Channel | Input)

    earliest: dict[int, int] = {}
    for word in sorted(live):
        earliest[word] = max(
            (
                0 if around and in_place(one) else earliest[one] + around
                for one, around in reads(graph, word)
            ),
            default=0,
        )
    count = 1 + max(earliest.values(), default=0)
    latest = dict.fromkeys(live, count - 1)
    stored = set[int]()
    for index in reversed(range(len(graph.operations))):
        words = [word for word in graph.words(index) if word in live]
        if isinstance(graph.operations[index], Linear):  # all at once
            latest.update(dict.fromkeys(words, min((latest[word] for word in words), default=0)))
        for word in words:
            for one, around in reads(graph, word):
                if not (around and in_place(one)):
                    latest[one] = min(latest[one], latest[word] - around)
                    if around:
                        stored.add(one)
    for word in live:
        for one, around in reads(graph, word):
            if not around and latest[word] > latest[one] and not is_given(graph, one):
                stored.add(one)
    return Plan(count, latest, sorted(stored))


def is_given(graph: StepGraph, word: int) -> bool:
    """Whether a word is at hand in every stage."""
    return isinstance(graph.made_by(word)[0], Channel | Input | Random | Constant)


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
        plain = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:32].strip("_") or "word"
        plain = f"word_{plain}" if plain[0].isdigit() else plain
        found, count = plain, 1
        while found in self._taken:
            count += 1
            found = f"{plain}_{count}"
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
        lines = textwrap.wrap(glued, _COLUMNS - 4, break_long_words=False, break_on_hyphens=False)
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
            _COLUMNS,
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


class _HeaderCode(StepCode):
    """A loop nest a stage, and in it cell after cell: to be read."""

    def __init__(self, graph: StepGraph, name: str) -> None:
        super().__init__(graph, name, copied=False)
        self.scratch = {word: i for i, word in enumerate(self.plan.stored)}
        self.scratch_type = self.type_of(self.plan.stored)
        self.layers = {index: number for number, (index, _) in enumerate(graph.of_kind(Linear), 1)}
        self.tables = "\n".join(self._table(index) for index in self.layers)

    def load(self, word: int) -> tuple[str, int]:
        if is_given(self.graph, word):
            return self.given(word, "cell")
        return self.stored(word, "cell")

    def stored(self, word: int, cell: str) -> tuple[str, int]:
        bits = 32 if "32" in self.scratch_type else 64
        return f"scratch[{self.scratch[word]} * cells + {cell}]", bits

    def stages(self) -> str:
        texts = []
        for stage in range(self.plan.stages):
            words = [
                word
                for word, at in sorted(self.plan.stage.items())
                if at == stage and not is_given(self.graph, word)
            ]
            around = any(one for word in words for _, one in reads(self.graph, word))
            self.indent, start = (12 if around else 8), len(self.lines)
            self.defined = {}
            done = set[int]()
            for word in words:
                index, _ = self.graph.origin(word)
                match self.graph.operations[index]:
                    case Linear() as linear:
                        if index not in done:
                            done.add(index)
                            self.linear(index, linear)
                    case Window() as window:
                        if index not in done:
                            done.add(index)
                            self.window(index, window)
                    case _:
                        text, bits = self.compute(word)
                        if text.isidentifier() and word not in self.graph.names:
                            self.defined[word] = text  # it is the same as another
                        else:
                            self.define(word, text, bits)
            self.keep(stage)
            texts.append(self._loops(stage, around, self.lines[start:]))
        return "\n".join(texts)

    def keep(self, stage: int) -> None:
        """Write down what later stages and the next step read."""
        for word, place in self.scratch.items():
            if self.plan.stage[word] == stage:
                self.line(f"scratch[{place} * cells + cell] = {self.use(word)};")
        for place, word in enumerate(self.graph.outputs):
            last = stage == self.plan.stages - 1
            if last if is_given(self.graph, word) else self.plan.stage[word] == stage:
                text = self.use(word)
                if f"int{self.bits_of(word)}_t" > self.state_type:
                    text = f"(int32_t){text}"
                self.line(f"next[{place} * cells + cell] = {text};")

    def _loops(self, stage: int, around: bool, lines: Sequence[str]) -> str:
        head = []
        if self.plan.stages > 1:
            what = "what is seen of the cells around" if stage else "of each cell alone"
            more = ", for its neighbours to see" if stage < self.plan.stages - 1 else ""
            head.append(f"    /* Stage {stage + 1} of {self.plan.stages}: {what}{more}. */")
        if not around:
            head.append("    for (ptrdiff_t cell = 0; cell < cells; cell++) {")
            return "\n".join([*head, *lines, "    }"])
        head += [
            "    for (int y = 0; y < height; y++) {",
            "        for (int x = 0; x < width; x++) {",
            "            const ptrdiff_t cell = (ptrdiff_t)y * width + x;",
        ]
        return "\n".join([*head, *lines, "        }", "    }"])

    def seen(self, word: int) -> tuple[str, int]:
        """Return where a word of a neighbour lies, and its width."""
        operation, _ = self.graph.made_by(word)
        if isinstance(operation, Channel | Input):
            return self.given(word, "there")
        return self.stored(word, "there")

    def neighbours(self, border: str, words: Sequence[int], bits: int, skip: bool) -> None:
        """Open a loop over the neighbours, in which `seen` is what they show."""
        line = self.line
        line("for (int tap = 0; tap < 9; tap++) { /* in reading order */")
        self.indent += 4
        line(f"const int row = {self.n}_beyond_{border}(y + tap / 3 - 1, height);")
        line(f"const int column = {self.n}_beyond_{border}(x + tap % 3 - 1, width);")
        inside = ""
        if border == "zero" and skip:
            line("if (row < 0 || column < 0) {")
            line("    continue; /* zeros add nothing */")
            line("}")
        elif border == "zero":
            line("const int inside = row >= 0 && column >= 0;")
            inside = "inside == 0 ? 0 : "
        line("const ptrdiff_t there = (ptrdiff_t)row * width + column;")
        self.line(f"const int{bits}_t seen[{len(words)}] = {{")
        for word in words:
            source, wide = self.seen(word)
            cast = "(int32_t)" if wide > bits else ""
            self.line(f"    {inside}{cast}{source}, /* {comment(self.graph.name(word))} */")
        self.line("};")

    def linear(self, index: int, linear: Linear) -> None:
        number, bits = self.layers[index], self.sum_bits(index)
        seen_bits = max(map(self.bits_of, linear.a), default=32)
        outputs, inputs, taps = linear.weight.shape
        n, sums = self.n, self.unique(f"sum_{number}")
        self.line(f"int{bits}_t {sums}[{outputs}];")
        self.line(f"for (int o = 0; o < {outputs}; o++) {{")
        self.line(f"    {sums}[o] = {n}_bias_{number}[o];")
        self.line("}")
        cast = "(int64_t)" if bits > 32 else ""
        if inputs and taps == AROUND:
            self.neighbours(linear.border, linear.a, seen_bits, skip=True)
        elif inputs:
            sources = ", ".join([self.use(word) for word in linear.a])
            self.line("{")
            self.indent += 4
            self.line(f"const int{seen_bits}_t seen[{inputs}] = {{ {sources} }};")
        if inputs:
            tap = "[tap]" if taps == AROUND else ""
            self.line(f"for (int o = 0; o < {outputs}; o++) {{")
            self.line(f"    for (int i = 0; i < {inputs}; i++) {{")
            self.line(f"        {sums}[o] += {cast}{n}_weight_{number}[o][i]{tap} * seen[i];")
            self.line("    }")
            self.line("}")
            self.indent -= 4
            self.line("}")
        for lane, word in enumerate(self.graph.words(index)):
            if word in self.plan.stage:
                text = f"{sums}[{lane}]"
                cast = "(int32_t)" if bits > self.bits_of(word) else ""
                self.defined[word] = f"{cast}{text}"

    def window(self, index: int, window: Window) -> None:
        live = [
            (word, source)
            for word, source in zip(self.graph.words(index), window.a, strict=True)
            if word in self.plan.stage
        ]
        bits = max(self.bits_of(word) for word, _ in live)
        found = self.unique(f"window_{index}")
        self.line(f"int{bits}_t {found}[{len(live)}];")
        self.neighbours(window.border, [source for _, source in live], bits, skip=False)
        better = ">" if window.largest else "<"
        self.line(f"for (int i = 0; i < {len(live)}; i++) {{")
        self.line(f"    if (tap == 0 || seen[i] {better} {found}[i]) {{")
        self.line(f"        {found}[i] = seen[i];")
        self.line("    }")
        self.line("}")
        self.indent -= 4
        self.line("}")
        for place, (word, _) in enumerate(live):
            cast = "(int32_t)" if bits > self.bits_of(word) else ""
            self.defined[word] = f"{cast}{found}[{place}]"

    def _table(self, index: int) -> str:
        """Return the constants of a layer."""
        linear, number = self.graph.operations[index], self.layers[index]
        assert isinstance(linear, Linear)
        weight, bias = self.graph.codes_of(index)
        outputs, inputs, taps = weight.shape
        names = [comment(title(self.graph, word)) for word in self.graph.words(index)]
        shown = [comment(self.graph.name(word)) for word in linear.a]
        text = ""
        if inputs:
            table = f"{self.n}_weight_{number}[{outputs}][{inputs}]"
            head = f"static const {_narrowest(weight)} {table}"
            text = f"/* Of sum_{number}: what each of its sums weighs what it sees with"
            if taps == AROUND:
                rows = "\n".join(
                    f"    {{ /* {name} */\n{_matrix(kernels, shown, ' ' * 8)}\n    }},"
                    for name, kernels in zip(names, weight, strict=True)
                )
                text += f", of nine neighbours. */\n{head}[9] = {{\n{rows}\n}};\n"
            else:
                text += f". */\n{head} = {{\n{_matrix(weight[:, :, 0], names)}\n}};\n"
        head = f"static const {_narrowest(bias)} {self.n}_bias_{number}[{outputs}]"
        return f"{text}{head} = {{\n{_vector(bias)}\n}};\n"


def title(graph: StepGraph, word: int) -> str:
    """Return a sum's name, or that of what it is fitted to."""
    readers = graph.readers[word]
    if word not in graph.names and len(readers) == 1:
        fit = graph.operations[readers[0]]
        if isinstance(fit, Fit):
            return graph.name(graph.words(readers[0])[fit.a.index(word)])
    return graph.name(word)


def comment(text: str) -> str:
    """Return a name as it may stand in a comment."""
    plain = "".join(c if c.isprintable() else "?" for c in text[:60])
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")


def literal(number: int, bits: int = 32) -> str:
    """Return an integer constant of at least so many bits."""
    if number == -1 << (bits - 1):
        return f"({literal(number + 1, bits)} - 1)"
    return f"INT64_C({number})" if bits > 32 else str(number)


def suffix(bits: int) -> str:
    """Return what names of functions on integers so wide end with."""
    return "64" if bits > 32 else ""


def _narrowest(numbers: IntArray) -> str:
    reach = Interval.hull((0, *numbers.flat)).bits
    return f"int{next(bits for bits in (8, 16, 32, 64) if bits >= reach)}_t"


def _matrix(numbers: IntArray, comments: Sequence[str], indent: str = "    ") -> str:
    """A matrix in C, a row a line unless it is too long, with its comment."""
    width = max((len(str(number)) for number in numbers.flat), default=0)
    lines = []
    for row, comment in zip(numbers, comments, strict=True):
        cells = ", ".join(str(number).rjust(width) for number in row)
        line = f"{indent}{{ {cells} }}, /* {comment} */"
        if len(line) > _COLUMNS:
            inner = _vector(row, indent + "    ", width)
            line = f"{indent}{{ /* {comment} */\n{inner}\n{indent}}},"
        lines.append(line)
    return "\n".join(lines)


def _vector(numbers: IntArray, indent: str = "    ", width: int = 0) -> str:
    """A vector in C, in columns."""
    width = width or max(len(str(number)) for number in numbers)
    count = (_COLUMNS - len(indent) + 1) // (width + 2)
    rows = [numbers[i : i + count] for i in range(0, len(numbers), count)]
    return "\n".join(
        indent + " ".join(f"{number},".rjust(width + 1) for number in row) for row in rows
    )


def _legend(graph: StepGraph, meanings: Mapping[str, str]) -> list[str]:
    head = ("channel", "name", "codes", "value", "meaning" if meanings else "")
    rows = [head]
    for i, (name, word) in enumerate(graph.channels.items()):
        format = graph.formats[word]
        scale = 2.0**-format.frac_bits
        value = f"code / {1 / scale:.0f}" if scale < 1 else f"code * {scale:.0f}"
        codes = f"{format.lowest} to {format.highest}"
        value = "code" if scale == 1 else value
        rows.append((str(i), comment(name), codes, value, comment(meanings.get(name, ""))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
