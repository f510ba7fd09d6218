"""The engine's source: the statements of a step in loops for the vector units of a processor.

A row of cells is worked on in **tiles**: a loop over a tile's cells has no branch, and no sum over
other words, so that compilers vectorise it; in between come the sums, of which as many are in the
registers as there is room for. What neighbours see lies in planes with a margin around, in
the type that the sums work with: floats, as long as each sum of some of the products is exact in
them, which is a multiple of some power of two and less than 2**24 times that. If those of all
products are not, the inputs are taken in groups, of each of which they are. What no grouping
helps is summed in doubles, or in integers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..operations import AROUND, Linear, Window
from ..qformat import IntArray
from ..step import StepGraph
from .stages import is_given, reads
from .statements import StepCode, functions, render, suffix

#: Cells of a row that are worked on together; cells left and right of a picture's row.
TILE, MARGIN = 64, 16

_SIZES = {"float": 4, "double": 8, "int32_t": 4, "int64_t": 8}

#: Bits of the integers, of either sign, that a type holds without a gap.
_EXACT = {"float": 24, "double": 53}


@dataclass(frozen=True)
class EngineSource:
    """C that exports `step`, which is `header.c_header`'s but for its scratch, and `scratch_bytes`.

    Attributes
    ----------
    text
        The source.
    state_type, input_types
        NumPy's names of the codes' types.
    """

    text: str
    state_type: str
    input_types: dict[str, str]


def engine_source(graph: StepGraph) -> EngineSource:
    """Write a graph's step down for speed.

    Raises
    ------
    InputError
        If some number needs more than 64 bits.
    """
    code = _EngineCode(graph)
    body = code.stages()
    borders = [f"step_beyond_{border}(" for _, border, _ in code.planes if border]
    text = render(
        "vectors.c.jinja",
        tile=TILE,
        margin=MARGIN,
        code=code,
        types=sorted({layer.type for layer in code.layers.values()}),
        kernels=sorted({(layer.type, layer.sums) for layer in code.layers.values()}),
        bordered=sorted({type for _, border, type in code.planes if border}),
        body=body,
        functions=functions("step", body + " ".join(borders)),
    )
    types = {name: code.input_type(word) for name, word in graph.inputs.items()}
    return EngineSource(
        text, _numpy(code.state_type), {name: _numpy(type) for name, type in types.items()}
    )


def _numpy(type: str) -> str:
    return type.removesuffix("_t")


@dataclass(frozen=True)
class _Layer:
    """How a `Linear` is summed up.

    Attributes
    ----------
    type, sums
        C types of products, and of what they add up to.
    groups
        Of its inputs, each of whose partial sums are exact.
    """

    index: int
    linear: Linear
    type: str
    sums: str
    groups: list[list[int]]

    @property
    def inputs(self) -> list[int]:
        """Inputs in the order in which they are summed up."""
        return [one for group in self.groups for one in group]

    @property
    def around(self) -> bool:
        """Whether it sees neighbours."""
        return int(self.linear.weight.shape[2]) == AROUND


#: A word, the border that is around it, and the type; without a border it is not seen from around.
_Plane = tuple[int, str, str]


class _EngineCode(StepCode):
    def __init__(self, graph: StepGraph) -> None:
        super().__init__(graph, "step", copied=True)
        self.stage, self.now = self.plan.stage, 0
        self.layers = {
            index: self._layer(index, operation)
            for index, operation in graph.of_kind(Linear)
            if isinstance(operation, Linear) and any(w in self.stage for w in graph.words(index))
        }
        self.planes = self._planes()
        self.tables = "\n".join(self._table(layer) for layer in self.layers.values())

    def _layer(self, index: int, linear: Linear) -> _Layer:
        weight, _ = self.graph.codes_of(index)
        reach = [max(map(abs, self.ranges.words[word].ends)) for word in linear.a]
        sums = f"int{self.sum_bits(index)}_t"
        for type, bits in _EXACT.items():
            groups = _groups(weight, reach, bits)
            if groups is not None:
                return _Layer(index, linear, type, sums, groups)
        return _Layer(index, linear, "int64_t", "int64_t", [list(range(len(linear.a)))])

    def _planes(self) -> dict[_Plane, int]:
        found: list[_Plane] = []
        for word in sorted(self.stage):
            operation, lane = self.graph.made_by(word)
            if isinstance(operation, Window):
                source = operation.a[lane]
                found.append((source, operation.border, f"int{self.bits_of(source)}_t"))
        for layer in self.layers.values():
            if layer.around:
                linear = layer.linear
                found += [(linear.a[i], linear.border, layer.type) for i in layer.inputs]
        for word in self.plan.stored:
            later = [
                reader
                for index in self.graph.readers[word]
                for reader in self.graph.words(index)
                if reader in self.stage
                and (word, False) in reads(self.graph, reader)
                and self.stage[reader] > self.stage[word]
            ]
            if later and not is_given(self.graph, word):
                found.append((word, "", f"int{self.bits_of(word)}_t"))
        return {plane: number for number, plane in enumerate(dict.fromkeys(found))}

    @property
    def plane_bytes(self) -> int:
        """Bytes of a cell in all planes."""
        return sum(_SIZES[type] for _, _, type in self.planes)

    @property
    def declarations(self) -> str:
        """Return where the planes lie, and memory for a tile."""
        lines, offset = [], 0
        for (word, border, type), number in self.planes.items():
            lines.append(
                f"{type} *const plane_{number} = ({type} *)(scratch + area * {offset}); "
                f"/* {self.graph.name(word)} {border} */"
            )
            offset += _SIZES[type]
        for number in self.planes.values():
            place = f"area * {offset} + {number} * (height + 2) * marks"
            lines.append(f"uint8_t *const quiet_{number} = (uint8_t *)scratch + {place};")
        for layer in self.layers.values():
            lines.append(f"{layer.sums} sum_{layer.index}[{layer.linear.count}][TILE];")
            if not layer.around:
                count = max(len(layer.inputs), 1)
                lines.append(f"{layer.type} seen_{layer.index}[{count}][TILE] = {{ {{ 0 }} }};")
        return "\n".join(f"    {line}" for line in lines)

    def load(self, word: int) -> tuple[str, int]:
        index, lane = self.graph.origin(word)
        if is_given(self.graph, word):
            return self.given(word, "cell")
        if index in self.layers and self.stage[word] == self.now:
            return f"sum_{index}[{lane}][x]", self.sum_bits(index)
        if self.stage[word] == self.now:
            return f"row_{word}[x]", self.bits_of(word)
        number = self.planes[word, "", f"int{self.bits_of(word)}_t"]
        return f"plane_{number}[place + x]", self.bits_of(word)

    def stages(self) -> str:
        return "\n".join(map(self._stage, range(self.plan.stages)))

    def _stage(self, now: int) -> str:
        self.now = now
        here = [
            word
            for word, at in sorted(self.stage.items())
            if at == now and not is_given(self.graph, word)
        ]
        segment = self._segments(here)
        inner: list[str] = []
        rows: list[str] = []
        for number in range(max(segment.values(), default=0) + 1):
            for layer in self.layers.values():
                words = [word for word in self.graph.words(layer.index) if word in segment]
                if words and segment[words[0]] == number:
                    inner += self._sums(layer)
            body, more = self._segment(here, segment, number)
            rows += more
            if body:
                inner += [
                    "#pragma GCC ivdep",
                    "            for (int x = 0; x < count; x++) {",
                    "                const ptrdiff_t cell = first + x;",
                    *body,
                    "            }",
                ]
        text = [
            "    for (int y = 0; y < height; y++) {",
            "        for (int left = 0; left < width; left += TILE) {",
            "            const int count = width - left < TILE ? width - left : TILE;",
            "            const ptrdiff_t first = (ptrdiff_t)y * width + left;",
            "            const ptrdiff_t place = (y + 1) * row + MARGIN + left;",
            "            (void)place;",
            *(f"            {row}" for row in rows),
            *inner,
            "        }",
            "    }",
        ]
        for (word, border, type), number in self.planes.items():
            if border and self.stage[word] == now:
                text.append(
                    f"    surround_{type}(plane_{number}, quiet_{number}, step_beyond_{border}, "
                    "height, width, row, marks);"
                )
        return "\n".join(text)

    def _segments(self, here: Sequence[int]) -> dict[int, int]:
        """In which of a tile's loops each word is computed: all that a layer sees, before it."""
        found: dict[int, int] = {}
        for word in here:
            index, _ = self.graph.origin(word)
            before = [found.get(one, 0) for one, _ in reads(self.graph, word)]
            sums = index in self.layers and not self.layers[index].around
            around = index in self.layers and self.layers[index].around
            found[word] = 0 if around else max(before, default=0) + sums
        return found

    def _segment(
        self, here: Sequence[int], segment: dict[int, int], number: int
    ) -> tuple[list[str], list[str]]:
        """Return the statements of a loop, and what it keeps for later ones of the same tile."""
        start, self.defined, self.indent = len(self.lines), {}, 16
        rows = []
        mine = [word for word in here if segment[word] == number]
        for word in mine:
            index, lane = self.graph.origin(word)
            operation = self.graph.operations[index]
            if isinstance(operation, Window):
                self._window(word, operation, lane)
            elif not isinstance(operation, Linear):
                self.define(word, *self.compute(word))
        for word in mine:
            later = [
                one
                for index in self.graph.readers[word]
                for one in self.graph.words(index)
                if segment.get(one, 0) > number
                and not isinstance(self.graph.operations[index], Linear)
                and (word, False) in reads(self.graph, one)
            ]
            if later and self.graph.origin(word)[0] not in self.layers:
                rows.append(f"int{self.bits_of(word)}_t row_{word}[TILE];")
                self.line(f"row_{word}[x] = {self.use(word)};")
        for layer in self.layers.values():
            words = [word for word in self.graph.words(layer.index) if word in segment]
            if words and not layer.around:
                for place, i in enumerate(layer.inputs):
                    word = layer.linear.a[i]
                    if segment.get(word, 0) == number:
                        text = f"({layer.type}){self.use(word)}"
                        self.line(f"seen_{layer.index}[{place}][x] = {text};")
        for (word, _, type), plane in self.planes.items():
            given = is_given(self.graph, word) and number == 0
            if self.stage[word] == self.now and (given or segment.get(word) == number):
                self.line(f"plane_{plane}[place + x] = ({type}){self.use(word)};")
        for place, word in enumerate(self.graph.outputs):
            given = is_given(self.graph, word)
            if (
                self.now == self.plan.stages - 1 and number == 0
                if given
                else segment.get(word) == number
            ):
                text = f"({self.state_type}){self.use(word)}"
                self.line(f"next[{place} * cells + cell] = {text};")
        return self.lines[start:], rows

    def _window(self, word: int, window: Window, lane: int) -> None:
        source = window.a[lane]
        bits = self.bits_of(source)
        plane = self.planes[source, window.border, f"int{bits}_t"]
        call = f"step_{'max' if window.largest else 'min'}{suffix(bits)}"
        rows = []
        for dy in ("- row", "", "+ row"):
            at = f"plane_{plane}[place + x {dy}".strip()
            name = self.unique("three")
            self.line(f"const int{bits}_t {name} = {call}({call}({at} - 1], {at}]), {at} + 1]);")
            rows.append(name)
        self.define(word, f"{call}({call}({rows[0]}, {rows[1]}), {rows[2]})", bits)

    def _sums(self, layer: _Layer) -> list[str]:
        """Return the statements that sum a layer up for a tile."""
        index, count, type = layer.index, layer.linear.count, layer.type
        ends = list(np.cumsum([len(group) for group in layer.groups]))
        taps = 3 if layer.around else 1
        lines = ["{"]
        lines.append(f"    struct {type}_term terms[{max(len(layer.inputs), 1) * taps}];")
        lines.append(f"    int ends[{len(ends)}], found = 0;")
        if layer.around:
            keys = [(layer.linear.a[i], layer.linear.border, type) for i in layer.inputs]
            numbers = [self.planes[key] for key in keys]
            planes = ", ".join(f"plane_{number}" for number in numbers) or "0"
            quiet = ", ".join(f"quiet_{number}" for number in numbers) or "0"
            lines.append(f"    const {type} *const planes[] = {{ {planes} }};")
            lines.append(f"    const uint8_t *const quiet[] = {{ {quiet} }};")
        for number, end in enumerate(ends):
            begin = ends[number - 1] if number else 0
            if layer.around:
                lines.append(
                    f"    found = find_{type}(terms, found, planes, quiet, {begin}, {end}, row, "
                    "place, y * marks + left / TILE, marks);"
                )
            else:
                lines.append(f"    for (; found < {end}; found++) {{")
                lines.append(f"        terms[found].at = seen_{index}[found];")
                lines.append("        terms[found].row = found;")
                lines.append("    }")
            lines.append(f"    ends[{number}] = found;")
        tail = f"terms, ends, {len(ends)}, {count}"
        call = f"sums_{type}_{layer.sums}"

        def at(first: str) -> str:
            return f"weight_{index} + {first}, bias_{index} + {first}, sum_{index} + {first}, count"

        lines.append("    int o = 0;")
        lines.append(f"    for (; o + EACH({count}) <= {count}; o += EACH({count})) {{")
        lines.append(f"        {call}(EACH({count}), {taps}, {tail}, {at('o')});")
        lines.append("    }")
        lines.append(f"    if ({count} % EACH({count})) {{")
        lines.append(f"        {call}({count} % EACH({count}), {taps}, {tail}, {at('o')});")
        lines.append("    }")
        lines.append("}")
        return [f"            {line}" for line in lines]

    def _table(self, layer: _Layer) -> str:
        """Return the constants of a layer: [input, row of neighbours, neighbour in it][output]."""
        weight, bias = self.graph.codes_of(layer.index)
        rows = weight[:, layer.inputs].reshape(len(weight), -1).T
        text = ",\n".join("    " + ", ".join(map(str, row)) for row in rows) or "    0"
        biases = ", ".join(map(str, bias))
        return (
            f"static const {layer.type} weight_{layer.index}[] = {{\n{text}\n}};\n"
            f"static const {layer.sums} bias_{layer.index}[] = {{ {biases} }};"
        )


def _groups(weight: IntArray, reach: Sequence[int], bits: int) -> list[list[int]] | None:
    """Part a layer's inputs so that all partial sums of each group are exact in a float; or None.

    Parameters
    ----------
    weight
        (O, I, K) integers.
    reach
        Largest magnitude of each input.
    bits
        Of the float.
    """
    outputs, inputs, _ = weight.shape
    sizes = np.abs(weight).astype(object).sum(2) * np.array(reach, object)  # (O, I)
    units = np.bitwise_or.reduce(weight, 2)
    units = units & -units  # (O, I): what all weights of a kernel are multiples of; 0 of none
    used = [i for i in range(inputs) if reach[i] and units[:, i].any()]
    used.sort(key=lambda i: max(map(int, units[:, i])))
    groups: list[list[int]] = []
    for i in used:
        for candidate in ([*groups[-1], i] if groups else [i], [i]):
            total = sizes[:, candidate].sum(1)
            unit = np.bitwise_or.reduce(units[:, candidate], 1)
            unit = unit & -unit
            if all(total[o] < int(unit[o]) << bits for o in range(outputs) if unit[o]):
                break
        else:
            return None
        if candidate == [i]:
            groups.append(candidate)
        else:
            groups[-1] = candidate
    return groups or [[]]
