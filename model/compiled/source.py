"""C++ of a step graph, forward and backward: what is compiled.

Backward keeps the states, and of a step what costs many multiplications
(`gradients.WORTH_KEEPING`); all else it computes again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.operations import Channel
from scotopia.graph.step import StepGraph

from .gradients import Gradients
from .plan import Plan

#: What surrounds the text that is generated.
KERNELS, INTERFACE = (Path(__file__).with_name(f"{name}.hpp") for name in ("kernels", "interface"))


@dataclass(frozen=True)
class Source:
    """A text to compile, and what its caller has to know.

    Attributes
    ----------
    text
        The C++.
    given
        Operations whose numbers the caller passes, in their order: first the weights of a
        `Linear`, then its biases.
    saved
        Planes that are kept of each step, for its gradient.
    wide, wide_store
        See `source`.
    """

    text: str
    given: tuple[int, ...]
    saved: int
    wide: frozenset[int]
    wide_store: bool


def source(
    graph: StepGraph,
    trained: Iterable[int],
    patterns: Mapping[int, NDArray[np.bool_]] | None = None,
    *,
    wide: frozenset[int] = frozenset(),
    wide_store: bool = False,
) -> Source:
    """Write a graph's step.

    Parameters
    ----------
    trained
        Operations, `Linear` or `Constant`, whose numbers are given when the code runs, and get a
        gradient. All others are written into it, or given if there are many.
    patterns
        Of a trained `Linear`, by its index: which of its weights (O, I, K) may be other than 0.
    wide
        Words that are computed in double precision.
    wide_store
        Whether what is kept is, too.
    """
    plan = Plan(graph, frozenset(trained), patterns or {})
    writer = _Writer(plan, wide, wide_store)
    kinds = [
        f"typedef {'double' if double else 'float'} {name};"
        for name, double in (("Real", bool(wide)), ("Store", wide_store))
    ]
    text = "\n".join([*kinds, KERNELS.read_text(), *writer.text(), INTERFACE.read_text()]) + "\n"
    return Source(text, tuple(plan.given), len(plan.saved), wide, wide_store)


class _Writer(Gradients):
    """Writes all of it."""

    def text(self) -> list[str]:
        """Write the code behind the kernels."""
        self.number_silences()
        # First without knowing what is kept, to find out what is needed.
        backward = self.parts()
        demanded = {self.word_at[p] for p in backward.reads if p in self.word_at}
        demanded |= backward.words
        self.save(demanded)
        self.__dict__.pop("word_at", None)
        self.number_planes()
        self.terms.clear()
        self.written.clear()
        forward = self._forward()
        parts = self.parts()
        demanded = {self.word_at[p] for p in parts.reads if p in self.word_at} | parts.words
        first, strips = self.again(demanded)
        backward_text = self.backward(parts, first, strips)
        return [*self._constants(), *self._struct(forward, backward_text)]

    def _forward(self) -> list[str]:
        plan = self.plan
        stored = {
            word for word in plan.live if plan.stored(word) and plan.kind(word) is not Channel
        }
        lines = self.copies()
        for stage in range(plan.stages):
            lines += self.values(stage, stored, state=True, seen=True)
        return lines

    def _constants(self) -> list[str]:
        plan = self.plan
        varying = [plan.varying_channels.get(c, -1) for c in range(len(self.graph.channels))]
        return [
            "namespace {",
            f"constexpr int CHANNELS = {len(self.graph.channels)};",
            f"constexpr int INPUTS = {len(self._inputs)};",
            f"constexpr int RANDOMS = {len(self._random)};",
            f"constexpr int SAVED = {len(plan.saved)};",
            f"constexpr int NUMBERS = {plan.numbers};",
            f"constexpr int VARYING = {len(plan.varying_channels)};",
            f"constexpr int VARIES[] = {{{', '.join(map(str, varying))}}};",
        ]

    def _struct(self, forward: list[str], backward: list[str]) -> list[str]:
        plan = self.plan
        members, packing, packing_back, sums = [], [], [], []
        for layer in sorted(plan.layers):
            outputs = plan.outputs(layer)
            if not outputs:
                continue
            linear = self.linear(layer)
            _, inputs, taps = linear.weight.shape
            start, size = plan.given[layer], linear.weight.size
            lanes = [self.graph.origin(word)[1] for word in outputs]
            members.append(
                f"Layer<{len(outputs)}, {self.kind(layer)}> layer{layer}{{{inputs * taps}}};"
            )
            packing += [
                f"static const int lanes{layer}[] = {{{', '.join(map(str, lanes))}}};",
                f"for (int o = 0; o < {len(outputs)}; o++) {{",
                f"for (int k = 0; k < {inputs * taps}; k++)",
                f"layer{layer}(o, k) = given[{start} + lanes{layer}[o] * {inputs * taps} + k];",
                f"layer{layer}.bias[o] = given[{start + size} + lanes{layer}[o]];",
                "}",
            ]
            wanted = [w for w in outputs if w in plan.wanted]
            read = self.read_back(layer)
            if not wanted:
                continue
            lanes = [self.graph.origin(word)[1] for word in wanted]
            table = f"static const int lanes{layer}[] = {{{', '.join(map(str, lanes))}}};"
            if read:
                members.append(f"Layer<{len(read)}, float> back{layer}{{{len(wanted) * taps}}};")
                pairs = [
                    f"{{{read.index(word)}, {i}}}"
                    for i, word in enumerate(linear.a)
                    if word in read
                ]
                packing_back += [
                    "{",
                    table,
                    f"static const int pairs[][2] = {{{', '.join(pairs)}}};",
                    f"for (int o = 0; o < {len(wanted)}; o++)",
                    "for (const auto& i : pairs)",
                    f"for (int k = 0; k < {taps}; k++)",
                    f"back{layer}(i[0], {taps} * o + k) += "
                    f"given[{start} + (lanes{layer}[o] * {inputs} + i[1]) * {taps} + k];",
                    "}",
                ]
            if layer in plan.trained:
                weights = inputs * taps
                members.append(f"std::vector<Sum> sum{layer};")
                packing_back.append(f"sum{layer}.resize({len(wanted) * (weights + 1)});")
                sums += [
                    "{",
                    table,
                    f"for (int o = 0; o < {len(wanted)}; o++) {{",
                    f"for (int k = 0; k < {weights}; k++)",
                    f"d[{start} + lanes{layer}[o] * {weights} + k] = "
                    f"total(sum{layer}[o * {weights} + k]);",
                    f"d[{start + size} + lanes{layer}[o]] = "
                    f"total(sum{layer}[{len(wanted) * weights} + o]);",
                    "}",
                    "}",
                ]
        quiet = len(self.silences.of)
        return [
            *self.finishes(),
            "struct Video {",
            "int height, width, padded;",
            "long stride;",
            "const Real* given;",
            "Planes<Store> planes;",
            "Strips<Store> strips;",
            "Planes<float> dplanes, extended_planes, dnumbers;",
            "Strips<float> dstrips;",
            "View<Store> plane, strip;",
            "View<float> dplane, dstrip, extended, dnumber;",
            "std::vector<char> silence;",
            "std::vector<Sum> scratch;",
            *members,
            "Video(int height, int width, const Real* given, bool back)",
            ": height(height), width(width), padded((width + PAD - 1) / PAD * PAD),",
            "stride(padded + PAD), given(given),",
            f"planes({len(self.planes.of)}, height, stride, 1),",
            f"strips({len(self.strips.of)}, width),",
            f"dplanes(back ? {len(self.dplanes.of)} : 0, height, stride, 2),",
            f"extended_planes(back ? {len(self.extended.of)} : 0, height, stride, 1),",
            f"dnumbers(back ? {len(self.dnumbers.of)} : 0, 1, stride, 0),",
            f"dstrips(back ? {len(self.dstrips.of)} : 0, width),",
            "plane(planes.view()), strip(strips.view()), dplane(dplanes.view()),",
            "dstrip(dstrips.view()), extended(extended_planes.view()),",
            "dnumber(dnumbers.view(false)),",
            f"silence({quiet} * (height + 2)) {{",
            *packing,
            "if (!back) return;",
            *packing_back,
            "}",
            "char* silent(int i) { return &silence[size_t(i) * (height + 2)]; }",
            "static float total(const Sum& sum) {",
            "float all = 0;",
            "for (int i = 0; i < LANES; i++) all += sum.lanes[i];",
            "return all;",
            "}",
            "// What neighbours see of a state that has been given, or made.",
            "void show([[maybe_unused]] View<Store> state) {",
            *(
                f"surround(state, {c}, {self.plan.borders[w][0].upper()}, height, width);"
                for w, c in self._channels.items()
                if self.plan.borders.get(w)
            ),
            "}",
            "void forward(View<Store> state, [[maybe_unused]] View<Store> input,",
            "[[maybe_unused]] View<Store> random, View<Store> next,",
            "[[maybe_unused]] View<Store> saved) {",
            _WHOLE,
            *forward,
            "}",
            "void backward([[maybe_unused]] View<Store> state, [[maybe_unused]] View<Store> input,",
            "[[maybe_unused]] View<Store> random, [[maybe_unused]] View<Store> saved,",
            "[[maybe_unused]] View<float> dnext, [[maybe_unused]] View<float> dprevious) {",
            _WHOLE,
            *backward,
            "}",
            "void write(float* d) {",
            "for (int i = 0; i < NUMBERS; i++) d[i] = 0;",
            *(
                f"for (int x = 0; x < width; x++) d[{number}] += dnumber.at({i}, 0)[x];"
                for number, i in self.dnumbers.of.items()
            ),
            *sums,
            "}",
            "};",
            "}  // namespace",
        ]


#: Tells the compiler that loops over a row need no rest.
_WHOLE = "const int padded = int(unsigned(this->padded) / PAD * PAD);"
