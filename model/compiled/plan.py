"""When and where each word of a step is computed, and which have a gradient.

A step is a few passes over the grid, its **stages**: what is seen of a neighbour must have been
computed for all cells before. In a stage row follows row, and in a row **level** follows level:
first the layers that sum up whole rows by `kernels.hpp`, then loops over the row's cells that do
all the rest. A word that is needed elsewhere than in the loop that computes it has a plane: for all
rows if a later stage reads it, else for a strip of them.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.operations import (
    AROUND,
    Border,
    Channel,
    Constant,
    Fit,
    Input,
    Less,
    Linear,
    Maximum,
    Minimum,
    Random,
    Select,
    Window,
)
from scotopia.graph.step import StepGraph

#: Fewest weights that are worth a layer of its own, and the share of them that is not always 0.
LAYER, DENSE = 128, 0.5

#: Behind all levels of a stage.
_END = 1 << 30

#: Stage and level.
Position = tuple[int, int]


class Plan:
    """Where and when each word is computed, and where it is kept."""

    def __init__(
        self, graph: StepGraph, trained: frozenset[int], patterns: Mapping[int, NDArray[np.bool_]]
    ) -> None:
        self.graph, self.trained = graph, trained
        self.masks: dict[int, NDArray[np.bool_]] = {}
        for index, linear in self._linears():
            if index in trained:
                full = np.ones(linear.weight.shape, bool)
                self.masks[index] = np.asarray(patterns.get(index, full))
            else:
                self.masks[index] = linear.weight != 0
        self.layers = {
            index
            for index, linear in self._linears()
            if linear.weight.size >= LAYER and self.masks[index].mean() >= DENSE
        }
        #: Where an operation's numbers begin among those that are given.
        self.given: dict[int, int] = {}
        self.numbers = 0
        for index, operation in enumerate(graph.operations):
            if index in trained or index in self.layers:
                self.given[index] = self.numbers
                if isinstance(operation, Linear):
                    self.numbers += operation.weight.size + operation.bias.size
                else:
                    self.numbers += operation.count
        #: Words that a layer brings its sums to before it writes them, by the words of the sums.
        self.finish: dict[int, int] = {}
        for layer in self.layers:
            self._find_finish(layer)
        self.position: dict[int, Position] = {}
        self._place()
        self._sink()
        self.saved: list[int] = []

    def _linears(self) -> list[tuple[int, Linear]]:
        return [(i, one) for i, one in self.graph.of_kind(Linear) if isinstance(one, Linear)]

    def _find_finish(self, layer: int) -> None:
        """Let a layer do itself what is done to all of its sums and to nothing else."""
        found: dict[int, int] = {}
        kinds: set[object] = set()
        for word in self.outputs(layer):
            readers = self.readers[word]
            if len(readers) != 1 or word in self.borders or word in self.graph.outputs:
                return
            operation, lane = self.graph.made_by(readers[0])
            kinds.add((type(operation), getattr(operation, "rounding", None)))
            kinds.add(getattr(operation, "overflow", None))
            if isinstance(operation, Maximum | Minimum):
                # Only of the first of two words is it known by the result whether it was taken.
                known = self.graph.origin(operation.b[lane])[0]
                fixed = self.kind(operation.b[lane]) is Constant and known not in self.trained
                if operation.a[lane] != word or not fixed:
                    return
            elif not isinstance(operation, Fit):
                return
            found[word] = readers[0]
        if len(kinds) == 2:  # all the same
            self.finish.update(found)

    # ---- what reads what ----

    def here(self, word: int) -> list[int]:
        """Words of the same cell that a word is computed of; of a layer, all of its inputs."""
        index, lane = self.graph.origin(word)
        operation = self.graph.operations[index]
        if isinstance(operation, Linear):
            if operation.weight.shape[2] == AROUND:
                return []
            if index in self.layers:
                return list(operation.a)
            return [
                a
                for a, used in zip(operation.a, self.masks[index][lane, :, 0], strict=True)
                if used
            ]
        if isinstance(operation, Window):
            return []
        return [words[lane] for words in operation.arguments]

    def around(self, word: int) -> list[int]:
        """Words that it reads of the nine cells around."""
        index, lane = self.graph.origin(word)
        operation = self.graph.operations[index]
        if isinstance(operation, Window):
            return [operation.a[lane]]
        if isinstance(operation, Linear) and operation.weight.shape[2] == AROUND:
            if index in self.layers:
                return list(operation.a)
            used = self.masks[index][lane].any(1)
            return [a for a, seen in zip(operation.a, used, strict=True) if seen]
        return []

    @cached_property
    def live(self) -> set[int]:
        """Words that the next state needs."""
        found: set[int] = set()
        stack = list(self.graph.outputs)
        while stack:
            word = stack.pop()
            if word not in found:
                found.add(word)
                stack += [*self.here(word), *self.around(word)]
        return found

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """Live words that are computed of a word, of the same cell."""
        found: dict[int, list[int]] = defaultdict(list)
        for word in sorted(self.live):
            for read in self.here(word):
                found[read].append(word)
        return found

    @cached_property
    def borders(self) -> dict[int, list[Border]]:
        """Borders with which the neighbours' words are seen, of the words that are."""
        found: dict[int, set[Border]] = defaultdict(set)
        for word in self.live:
            operation, _ = self.graph.made_by(word)
            if isinstance(operation, Linear | Window):
                for read in self.around(word):
                    found[read].add(operation.border)
        return {word: sorted(borders) for word, borders in found.items()}

    def layer_of(self, word: int) -> int | None:
        """Return the layer that computes a word, None if it is computed in a loop."""
        index, _ = self.graph.origin(self._sums.get(word, word))
        return index if index in self.layers else None

    def is_sum(self, word: int) -> bool:
        """Whether a word is what a layer sums up, before it is finished."""
        return self.graph.origin(word)[0] in self.layers

    @cached_property
    def _sums(self) -> dict[int, int]:
        """Words that layers sum up, by what they are brought to."""
        return {word: total for total, word in self.finish.items()}

    def outputs(self, layer: int) -> list[int]:
        """Live words that a layer sums up."""
        return [word for word in self.graph.words(layer) if word in self.live]

    def written(self, layer: int) -> list[int]:
        """Words that a layer writes: its sums, or what they are brought to."""
        return [self.finish.get(word, word) for word in self.outputs(layer)]

    def kind(self, word: int) -> type:
        """Return the kind of operation that computes a word."""
        return type(self.graph.made_by(word)[0])

    # ---- when ----

    def _place(self) -> None:
        """Compute each word as early as possible."""
        for word in range(self.graph.count):
            if word not in self.live or self.kind(word) is Channel:
                continue
            stage, level = 0, 0
            around = self.around(word)
            if around:
                stage = 1 + max(self._stage(read) for read in around)
            of_layer = self.is_sum(word)
            for read in self.here(word):
                if self.kind(read) in (Channel, Input, Random):
                    continue
                at = self.position[read]
                if of_layer:
                    at = at[0], at[1] + 1
                stage, level = max((stage, level), at)
            self.position[word] = stage, level
        for layer in self.layers:  # all at once
            words = {*self.outputs(layer), *self.written(layer)}
            latest = max((self.position[word] for word in words), default=(0, 0))
            self.position.update(dict.fromkeys(words, latest))

    def _stage(self, word: int) -> int:
        """Stage after which neighbours can see a word: a state's channels before all."""
        return -1 if self.kind(word) is Channel else self.position[word][0]

    def _sink(self) -> None:
        """Compute words as late as their readers allow, so that they need no plane."""
        limit: dict[int, Position] = {}
        for word in sorted(self.live, reverse=True):
            if self.kind(word) is Channel:
                continue
            early = self.position[word]
            latest = limit.get(word)
            leaf = self.kind(word) in (Input, Random)
            if latest is not None and self.layer_of(word) is None and not leaf and latest > early:
                stage, level = latest
                if level == _END:
                    level = early[1] if stage == early[0] else 0
                self.position[word] = stage, level
            stage, level = self.position[word]
            layer = self.is_sum(word)
            before = (stage, level - 1) if level > 0 else (stage - 1, _END)
            for read in self.here(word):
                limit[read] = min(limit.get(read, (_END, 0)), before if layer else (stage, level))
            for read in self.around(word):
                limit[read] = min(limit.get(read, (_END, 0)), (stage - 1, _END))

    @cached_property
    def stages(self) -> int:
        """Number of stages."""
        return 1 + max((stage for stage, _ in self.position.values()), default=0)

    @cached_property
    def levels(self) -> dict[int, int]:
        """Number of levels of each stage."""
        found = dict.fromkeys(range(self.stages), 1)
        for stage, level in self.position.values():
            found[stage] = max(found[stage], level + 1)
        return found

    # ---- where ----

    def crosses(self, word: int) -> bool:
        """Whether another stage reads a word that is computed in this one."""
        kind = self.kind(word)
        if kind is Channel:
            return False
        if kind in (Input, Random):
            return word in self.borders
        stage = self.position[word][0]
        return word in self.borders or any(
            self.position[reader][0] > stage
            for reader in self.readers[word]
            if kind is not Constant or self.is_sum(reader)
        )

    def stored(self, word: int) -> bool:
        """Whether a word has a plane of its own, beside those of state, inputs and noise."""
        if self.kind(word) in (Channel, Input, Random):
            return self.crosses(word)
        if word in self.finish:
            return False
        if self.layer_of(word) is not None or self.crosses(word):
            return True
        if self.kind(word) is Constant:
            return any(self.is_sum(reader) for reader in self.readers[word])
        return any(
            self.is_sum(reader) or self.position[reader] != self.position[word]
            for reader in self.readers[word]
        )

    # ---- what gets a gradient ----

    @cached_property
    def varying(self) -> set[int]:
        """Live words that a small change of what is trained may change, in this step or before."""
        found: set[int] = set()
        while True:
            before = len(found)
            for word in sorted(self.live):
                if self._varies(word, found):
                    found.add(word)
            if len(found) == before:
                return found

    def _varies(self, word: int, known: set[int]) -> bool:
        index, lane = self.graph.origin(word)
        operation = self.graph.operations[index]
        if isinstance(operation, Channel):
            return self.graph.outputs[lane] in known
        if isinstance(operation, Less):
            return False
        if index in self.trained:
            return True
        read = [*self.here(word), *self.around(word)]
        if isinstance(operation, Select):
            read = read[1:]
        return any(one in known for one in read)

    @cached_property
    def wanted(self) -> set[int]:
        """Words that have a gradient: those of `varying` that a next state depends on smoothly."""
        found: set[int] = set()
        stack = list(self.graph.outputs)
        while stack:
            word = stack.pop()
            if word in found or word not in self.varying:
                continue
            found.add(word)
            read = [*self.here(word), *self.around(word)]
            stack += read[1:] if self.kind(word) is Select else read
        return found

    @cached_property
    def varying_channels(self) -> dict[int, int]:
        """Numbers among the channels that vary, by number of channel."""
        channels = [c for c, word in enumerate(self.graph.outputs) if word in self.varying]
        return {c: i for i, c in enumerate(channels)}
