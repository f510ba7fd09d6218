"""The C header: a step as plain C99, for people.

For microcontrollers, for other people's simulators and browsers, and a second golden model.
`header.h.jinja`, beside this module, is the frame. Each stage is a loop nest; what later stages
read lies in between in pictures that the caller lends, the **scratch**.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from ..intervals import Interval
from ..operations import AROUND, Channel, Input, Linear, Window
from ..qformat import IntArray
from ..step import StepGraph
from ..surroundings import Initial
from .stages import is_given, reads
from .statements import COLUMNS, StepCode, functions, render


@dataclass(frozen=True)
class Extra:
    """What the header of a rule says beside its step.

    Attributes
    ----------
    meanings
        Of channels, by name.
    use
        Lines that show how the step is used, of which "STEP" is one; by default, step after step.
        In them, @ stands for the prefix of names, @@ for it in capitals.
    defines
        Names, without the prefix, of more constants; and their values.
    code
        More functions, in which @ stands for the prefix of names. They may call `@_floor`.
    """

    meanings: Mapping[str, str] = field(default_factory=dict)
    use: Sequence[str] = ()
    defines: Mapping[str, str] = field(default_factory=dict)
    code: str = ""


def c_header(
    graph: StepGraph,
    name: str = "scotopia",
    seed: int = 1,
    initial: Initial | None = None,
    extra: Extra | None = None,
) -> str:
    """Return a header that holds a graph's constants and computes its step.

    All its functions are `static inline`. Arrays are pictures of height * width cells in reading
    order, one after the other:

    - `NAME_step(state, INPUT..., noise, scratch, next, height, width)` reads the state, a picture a
      channel, and each input of the graph, and writes the next state. Codes are int32_t, those of
      inputs of a single bit uint8_t, and those that need it int64_t. `noise` is of `NAME_PLANES`
      pictures of random bits, uint8_t; `scratch` of `NAME_SCRATCH` pictures, whatever they hold.
      Where these are 0, NULL does.
    - `NAME_start(state, height, width)`, if not all codes of the first state are 0, writes it.
    - `NAME_seed_rows(rows, height)` and `NAME_noise(rows, noise, height, width)`, of a graph that
      draws random bits: `lfsr.RowRegisters`, its registers kept by the caller.

    Parameters
    ----------
    name
        What every name in the header starts with.
    seed
        Of the random bits.
    initial
        The first state, by default zeros; what it is off by chance is left to the caller.

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
    first = _first_codes(graph, initial or Initial.zeros(len(graph.channels)))
    return render(
        "header.h.jinja",
        n=name,
        N=name.upper(),
        extra=extra,
        use=[line.replace("@@", name.upper()).replace("@", name) for line in extra.use],
        more=more,
        first=first,
        legend=_legend(graph, extra.meanings),
        channels=len(graph.channels),
        planes=graph.random_bits,
        seed=seed,
        code=code,
        body=body,
        functions=functions(name, body + more),
    )


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
        names = [comment(self.graph.title(word)) for word in self.graph.words(index)]
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


def _first_codes(graph: StepGraph, initial: Initial) -> dict[str, Any]:
    """Return codes of the first state: those of all cells, and of those in the middle."""
    formats = graph.channel_formats
    values = zip(formats, initial.fill, initial.patch, strict=True)
    codes = [(format.quantize(one), format.quantize(part)) for format, one, part in values]
    fill, patch = (np.stack(part) for part in zip(*codes, strict=True))
    _, rows, columns = patch.shape
    names = [comment(name) for name in graph.channels]
    return {
        "used": bool(fill.any() or patch.any()),
        "rows": rows,
        "columns": columns,
        "fill": _vector(fill, " " * 8),
        "patch": _matrix(patch.reshape(len(patch), -1), names, " " * 8) if patch.size else "",
        "by_chance": bool(initial.spread.any()),
    }


def comment(text: str) -> str:
    """Return a name as it may stand in a comment."""
    plain = "".join(c if c.isprintable() else "?" for c in text[:60])
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")


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
        if len(line) > COLUMNS:
            inner = _vector(row, indent + "    ", width)
            line = f"{indent}{{ /* {comment} */\n{inner}\n{indent}}},"
        lines.append(line)
    return "\n".join(lines)


def _vector(numbers: IntArray, indent: str = "    ", width: int = 0) -> str:
    """A vector in C, in columns."""
    width = width or max(len(str(number)) for number in numbers)
    count = (COLUMNS - len(indent) + 1) // (width + 2)
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
