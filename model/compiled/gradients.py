"""C++ of the gradients of a step: the plan in reverse order.

Gradients are those of `interpret`: of what rounds they go straight through, but not where a number
sits at an end of its format and may have been clipped there; of two equal words, the second is the
larger and the smaller.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce

import numpy as np

from scotopia.graph.operations import (
    AROUND,
    HERE,
    Add,
    Border,
    Channel,
    Constant,
    Fit,
    Linear,
    Maximum,
    Minimum,
    Multiply,
    Select,
    Subtract,
    Window,
    Words,
)

from ..settle import Ends, clipped_ends
from .expressions import Assignment, Node, Plane, ends, loads, loops
from .plan import Position
from .values import Piece, Values, over_strips, table

#: Multiplications of a sum that cost more than to keep it and to read it again.
WORTH_KEEPING = 64


@dataclass
class Backward:
    """Text of the backward pass by stage, and what it reads of values."""

    stages: list[tuple[int, list[Piece], list[str]]] = field(default_factory=list)
    reads: set[Plane] = field(default_factory=set)
    words: set[int] = field(default_factory=set)


class Gradients(Values):
    """Writes what computes the gradients of a plan."""

    @cached_property
    def _ends(self) -> dict[int, Ends]:
        return clipped_ends(self.graph)

    def gradient(self, word: int) -> Plane:
        """Where the gradient of a word that is kept lies."""
        plan = self.plan
        if plan.kind(word) is Channel:
            return Plane("dprevious", plan.varying_channels[self._channels[word]])
        if plan.crosses(word) or plan.around(word):
            return Plane("dplane", self.dplanes(word))
        return Plane("dstrip", self.dstrips(word))

    def gradient_of_sum(self, word: int) -> Plane:
        """Where a layer, or a sum or window of neighbours, finds the gradient of what it gives."""
        if self.plan.around(word):
            return self.gradient(word)
        return Plane("dstrip", self.dstrips(("sum", word)))

    def _give(self, word: int, value: Node) -> Assignment:
        """Add to the gradient of a word that is kept, or begin it."""
        target = self.gradient(word)
        adds = target in self.written
        self.written.add(target)
        return Assignment(target, value, adds)

    def backward_loop(self, at: Position) -> list[Assignment]:
        """Return the assignments of the loop at a stage and level, backward."""
        plan, make = self.plan, self.make
        found: list[Assignment] = []
        gradients: dict[int, Node] = {}
        outside: dict[int, Node] = {}
        numbers: dict[int, Node] = {}
        mine = [w for w in sorted(plan.wanted, reverse=True) if plan.position.get(w) == at]

        def pass_on(word: int, value: Node) -> None:
            operation, lane = self.graph.made_by(word)
            index = self.graph.origin(word)[0]
            if word not in plan.wanted:
                return
            if isinstance(operation, Constant):
                number = plan.given[index] + lane
                numbers[number] = make.add(numbers.get(number), value)
            elif plan.position.get(word) == at:
                gradients[word] = make.add(gradients.get(word), value)
            else:
                outside[word] = make.add(outside.get(word), value)

        if at == (0, 0):  # what leaves the step as it came
            for channel, i in plan.varying_channels.items():
                word = self.graph.outputs[channel]
                if plan.kind(word) in (Channel, Constant):
                    pass_on(word, make.load(Plane("dnext", i)))
        for word in mine:
            if plan.kind(word) is Constant:
                if plan.stored(word) and self.gradient(word) in self.written:
                    index, lane = self.graph.origin(word)
                    number = plan.given[index] + lane
                    kept = make.load(self.gradient(word))
                    numbers[number] = make.add(numbers.get(number), kept)
                continue
            total = gradients.get(word)
            for channel, i in plan.varying_channels.items():
                if self.graph.outputs[channel] == word:
                    total = make.add(total, make.load(Plane("dnext", i)))
            if plan.stored(word) and self.gradient(word) in self.written:
                total = make.add(total, make.load(self.gradient(word)))
            if total is None:
                continue
            if plan.is_sum(word) or plan.around(word):
                if not plan.is_sum(word):
                    found += self._numbers_around(word, total, numbers)
                target = self.gradient_of_sum(word)
                self.written.add(target)
                found.append(Assignment(target, total))
            else:
                self._pass_back(word, total, at, pass_on, numbers)
        found += [self._give(word, value) for word, value in outside.items()]
        found += [
            Assignment(Plane("dnumber", self.dnumbers(n)), v, True) for n, v in numbers.items()
        ]
        return found

    def _numbers_around(self, word: int, total: Node, numbers: dict[int, Node]) -> list[Assignment]:
        """Give the weights of a sum of neighbours their gradients; of a window, tell the tap."""
        index, lane = self.graph.origin(word)
        operation = self.graph.operations[index]
        make = self.make
        if isinstance(operation, Window):
            place = Plane("dplane", self.dplanes(("tap", word)))
            return [Assignment(place, self._extremum(operation, lane)[1])]
        assert isinstance(operation, Linear)
        if index in self.plan.trained:
            start, shape = self.plan.given[index], operation.weight.shape
            bias = start + operation.weight.size + lane
            numbers[bias] = make.add(numbers.get(bias), total)
            for i, tap in zip(*np.nonzero(self.plan.masks[index][lane]), strict=True):
                number = start + int(np.ravel_multi_index((lane, i, tap), shape))
                read = self.tap(operation.a[i], operation.border, int(tap))
                product = make.multiply(total, make.narrow(read))
                numbers[number] = make.add(numbers.get(number), product)
        return []

    def _pass_back(
        self,
        word: int,
        total: Node,
        at: Position,
        pass_on: Callable[[int, Node], None],
        numbers: dict[int, Node],
    ) -> None:
        """Give what a word is computed of its share of the word's gradient."""
        make, plan = self.make, self.plan
        index, lane = self.graph.origin(word)
        operation = self.graph.operations[index]
        read = [words[lane] for words in operation.arguments if len(words) > lane]
        nothing = make.number(0)
        match operation:
            case Add(a=a, b=b):
                pass_on(a[lane], total)
                pass_on(b[lane], total)
            case Subtract(a=a, b=b):
                pass_on(a[lane], total)
                pass_on(b[lane], make.make("neg", total))
            case Multiply(a=a, b=b):
                pass_on(a[lane], make.multiply(total, make.narrow(self.term(b[lane], at))))
                pass_on(b[lane], make.multiply(total, make.narrow(self.term(a[lane], at))))
            case Minimum(b=b) | Maximum(b=b) if read[0] in plan.finish:
                pair = self.term(word, at), self.term(b[lane], at)
                order = pair if isinstance(operation, Minimum) else pair[::-1]
                pass_on(read[0], make.where(make.make("lt", *order), total, nothing))
            case Minimum() | Maximum():  # where both are the same, it is b's
                one, other = (self.term(each, at) for each in read)
                order = (one, other) if isinstance(operation, Minimum) else (other, one)
                first = make.make("lt", *order)
                pass_on(read[0], make.where(first, total, nothing))
                pass_on(read[1], make.where(first, nothing, total))
            case Select(condition=condition, a=a, b=b):
                chosen = make.truth(self.term(condition[lane], at))
                pass_on(a[lane], make.where(chosen, total, nothing))
                pass_on(b[lane], make.where(chosen, nothing, total))
            case Fit(a=a, formats=formats, overflow=overflow):
                unit, limits = 2.0 ** -formats[lane].frac_bits, ends(formats[lane], overflow)
                below, above = self._ends[word]
                if below or above:
                    low, high = (make.number(end * unit) for end in limits)
                    code = self.term(word, at)
                    inside = [make.make("lt", low, code)] * below
                    inside += [make.make("lt", code, high)] * above
                    total = make.where(reduce(partial(make.make, "and"), inside), total, nothing)
                pass_on(a[lane], total)
            case Linear():
                self._pass_back_sum(index, operation, lane, total, at, pass_on, numbers)
            case _:
                raise NotImplementedError(type(operation).__name__)

    def _pass_back_sum(
        self,
        index: int,
        linear: Linear,
        lane: int,
        total: Node,
        at: Position,
        pass_on: Callable[[int, Node], None],
        numbers: dict[int, Node],
    ) -> None:
        make, plan = self.make, self.plan
        trained = index in plan.trained
        if trained:
            bias = plan.given[index] + linear.weight.size + lane
            numbers[bias] = make.add(numbers.get(bias), total)
        for i in np.nonzero(plan.masks[index][lane, :, 0])[0]:
            place = lane, int(i), 0
            pass_on(linear.a[i], make.multiply(total, self.weight(index, linear, place)))
            if trained:
                shape = linear.weight.shape
                number = plan.given[index] + int(np.ravel_multi_index(place, shape))
                product = make.multiply(total, make.narrow(self.term(linear.a[i], at)))
                numbers[number] = make.add(numbers.get(number), product)

    def backward_around(self, layer: int) -> list[str]:
        """Write what a 3x3 layer passes back, and the gradient of its weights, for all rows."""
        linear = self.linear(layer)
        outputs = self.differentiated(layer)
        if not outputs:
            return []
        planes = [self.gradient_of_sum(word) for word in outputs]
        rows = ", ".join(f"{{{p.at('0')}, {p.array}.row, nullptr}}" for p in planes)
        lines = ["{", f"const Source<float> d[] = {{{rows}}};"]
        if layer in self.plan.trained:
            lines += [
                *self.sources("sources", linear.a, linear.border),
                "for (int top = 0; top < height; top += STRIP) {",
                "const int rows = top + STRIP < height ? STRIP : height - top;",
                f"differentiate<{len(outputs)}, 9>(d, sources, {len(linear.a)}, top, rows, padded, "
                f"padded, scratch, sum{layer}.data());",
                "}",
            ]
        read = self.read_back(layer)
        targets = [self.gradient(word) for word in read]
        if read:
            adds = any(target in self.written for target in targets)
            for target in targets:  # those that are new begin with zeros
                if adds and target not in self.written:
                    lines.append("for (int y = 0; y < height; y++)")
                    lines.append(f"std::memset({target.at()}, 0, 4 * padded);")
            self.written.update(targets)
            views = ", ".join(target.array for target in targets)
            lines += [
                f"const View<float> views[] = {{{views}}};",
                f"const int numbers[] = {table(targets)};",
                f"transpose<{len(read)}, {'true' if adds else 'false'}>(back{layer}, "
                f"{len(outputs)}, d, views, numbers, {linear.border.upper()}, height, width, "
                "padded);",
            ]
        return [*lines, "}"]

    def backward_here(self, layer: int) -> list[Piece]:
        """Write the same of a layer of the cell alone, for a strip."""
        linear = self.linear(layer)
        outputs = self.differentiated(layer)
        if not outputs:
            return []
        count, read = len(linear.a), self.read_back(layer)
        d = table(map(self.gradient_of_sum, outputs))
        pieces = []
        if read:
            places, moved = [], []
            for word in read:
                place = target = self.gradient(word)
                if target.array != "dstrip" or target in self.written:
                    place = Plane("dstrip", self.dstrips(("back", layer, word)))
                    moved.append(self._give(word, self.make.load(place)))
                self.written.add(target)
                places.append(place)
            lines = [
                *("{", f"static const int from[] = {d}, to[] = {table(places)};"),
                f"Tap<float> taps[{len(outputs)}];",
                f"float* out[{len(read)}];",
                "for (Tap<float>& tap : taps) {",
                "const int o = &tap - taps;",
                "tap = {dstrip.at(from[o], top), o};",
                "}",
                f"for (int i = 0; i < {len(read)}; i++) out[i] = dstrip.at(to[i], top);",
                f"back{layer}.apply<false>({len(outputs)}, taps, out, whole);",
                "}",
            ]
            pieces += [Piece(False, lines), Piece(True, loops(moved))]
        if layer in self.plan.trained:
            sources = table(self.in_strip(word) for word in linear.a)
            lines = [
                *("{", f"static const int from[] = {d}, read[] = {sources};"),
                f"Source<float> d[{len(outputs)}];",
                f"Source<Store> sources[{count}];",
                f"for (int o = 0; o < {len(outputs)}; o++)",
                "d[o] = {dstrip.at(from[o], top), 0, nullptr};",
                f"for (int i = 0; i < {count}; i++)",
                "sources[i] = {strip.at(read[i], top), 0, nullptr};",
                f"differentiate<{len(outputs)}, 1>(d, sources, {count}, 0, 1, whole, cells, "
                f"scratch, sum{layer}.data());",
                "}",
            ]
            pieces += [self.into_strip(linear.a), Piece(False, lines)]
        return pieces

    def differentiated(self, layer: int) -> list[int]:
        """Sums of a layer that have a gradient."""
        return [word for word in self.plan.outputs(layer) if word in self.plan.wanted]

    def read_back(self, layer: int) -> list[int]:
        """Words that a layer passes a gradient back to, each once."""
        linear = self.linear(layer)
        return list(dict.fromkeys(word for word in linear.a if word in self.plan.wanted))

    def gather(self, stage: int) -> list[str]:
        """Write what sums and windows over neighbours, which are no layers, pass back."""
        plan, make = self.plan, self.make
        found: dict[tuple[int, Border], Node] = {}
        for word in sorted(plan.wanted):
            index, lane = self.graph.origin(word)
            operation = self.graph.operations[index]
            at = plan.position.get(word)
            if at is None or at[0] != stage or index in plan.layers or not plan.around(word):
                continue
            mine = self.gradient(word)

            def from_tap(tap: int, plane: Plane = mine) -> Node:
                return make.load(plane, 1 - tap // 3, 1 - tap % 3)

            if isinstance(operation, Window):
                place = Plane("dplane", self.dplanes(("tap", word)))
                read = operation.a[lane]
                for tap in range(9):
                    there = make.make("eq", from_tap(tap, place), make.number(tap))
                    share = make.where(there, from_tap(tap), make.number(0))
                    key = read, operation.border
                    found[key] = make.add(found.get(key), share)
            elif isinstance(operation, Linear):
                for i, tap in zip(*np.nonzero(plan.masks[index][lane]), strict=True):
                    if operation.a[i] in plan.wanted:
                        weight = self.weight(index, operation, (lane, int(i), int(tap)))
                        share = make.multiply(weight, from_tap(int(tap)))
                        key = operation.a[i], operation.border
                        found[key] = make.add(found.get(key), share)
        direct, beyond, folds = [], [], []
        for (word, border), value in found.items():
            if border == "zero":
                direct.append(self._give(word, value))
            else:
                plane = Plane("extended", self.extended((word, border)))
                beyond.append(Assignment(plane, value))
                target = self.gradient(word)
                adds = "true" if target in self.written else "false"
                self.written.add(target)
                folds.append(
                    f"fold(extended, {plane.number}, {target.array}, {target.number}, "
                    f"{border.upper()}, {adds}, height, width);"
                )
        lines = []
        if direct:
            lines += ["for (int y = 0; y < height; y++) {", *loops(direct)]
            for one in direct:
                row = one.target.at()
                lines.append(f"trim({row}, width, padded);")
            lines.append("}")
        if beyond:
            lines += ["for (int y = -1; y <= height; y++) {"]
            lines += [*loops(beyond, "-1", "width + 1"), "}", *folds]
        return lines

    # ---- all stages ----

    def save(self, demanded: set[int]) -> None:
        """Decide what is kept of each step."""
        plan = self.plan
        for word in sorted(demanded):
            layer = plan.layer_of(word)
            if layer is not None:
                linear = self.linear(layer)
                if linear.weight[0].size >= WORTH_KEEPING:
                    plan.saved.append(word)
        # Nothing that is needed of all rows may need a layer anew.
        first, _ = self.again(demanded)

        def costs(word: int) -> bool:
            if word not in first:
                return False
            return plan.layer_of(word) is not None or any(
                costs(other) for other in self.needed(word) if not plan.crosses(other)
            )

        plan.saved += [
            word
            for word in sorted(first)
            if plan.crosses(word) and costs(word) and word not in plan.saved
        ]

    def parts(self) -> Backward:
        """Write the backward pass of all stages, and find out what it needs."""
        plan = self.plan
        parts = Backward()
        for stage in reversed(range(plan.stages)):
            strip: list[Piece] = []
            after: list[str] = []
            for level in reversed(range(plan.levels[stage])):
                assigned = self.backward_loop((stage, level))
                parts.reads.update(loads(assigned))
                strip.append(Piece(True, loops(assigned)))
                for layer in self.layers_at(stage, level, HERE):
                    strip += self.backward_here(layer)
                    parts.words.update(self.read_by(layer))
            for layer in self.layers_at(stage, 0, AROUND):
                after += self.backward_around(layer)
                parts.words.update(self.read_by(layer))
            after += self.gather(stage)
            parts.stages.append((stage, strip, after))
        return parts

    def layers_at(self, stage: int, level: int, taps: int) -> list[int]:
        """Layers of the cell alone, or of the nine around, at a stage and level."""
        found = []
        for layer in sorted(self.plan.layers):
            outputs = self.plan.outputs(layer)
            at = self.plan.position[outputs[0]] if outputs else None
            if at == (stage, level) and self.linear(layer).weight.shape[2] == taps:
                found.append(layer)
        return found

    def read_by(self, layer: int) -> Words:
        """Words whose values the gradient of a layer's weights needs."""
        needed = layer in self.plan.trained and self.differentiated(layer)
        return self.linear(layer).a if needed else ()

    def backward(self, parts: Backward, first: set[int], strips: set[int]) -> list[str]:
        """Write the backward pass, with what it computes again before it and in its strips."""
        plan = self.plan
        lines = self.copies()
        for stage in range(plan.stages):
            for word in plan.saved:
                if plan.position[word][0] == stage:
                    lines += self.surround(word)
            lines += self.values(stage, first, state=False, seen=True)
        for stage, strip, after in parts.stages:
            mine = {word for word in strips if plan.position[word][0] == stage}
            lines += over_strips([*self.strip(stage, mine, state=False), *strip])
            lines += after
        for channel in plan.varying_channels.values():
            if Plane("dprevious", channel) not in self.written:
                lines += [
                    "for (int y = 0; y < height; y++)",
                    f"std::memset(dprevious.at({channel}, y), 0, 4 * padded);",
                ]
        return lines
