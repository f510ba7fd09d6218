"""What makes a traced graph smaller, and computes the same.

Factors and offsets behind a layer go into its weights, as those of BatchNorm; a random number that
is only compared gets as many bits as that takes; what nothing reads goes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from scotopia.graph.operations import (
    Add,
    Channel,
    Constant,
    Input,
    Less,
    Linear,
    Multiply,
    Operation,
    Random,
    Select,
    Subtract,
    Words,
    fraction,
)
from scotopia.graph.step import StepGraph

from .writer import RANDOM_BITS, Const, Writer

#: Most bits of a random number that is compared: more make a cell draw long.
MOST_RANDOM_BITS = 16


def simplify(writer: Writer, outputs: Words) -> tuple[StepGraph, Writer, list[int], set[int]]:
    """Return the graph, a writer that knows formulas and places of its operations, and more.

    The last two are random words, counted from the first that the module draws: those that the
    graph draws, and those that it only compares with numbers.
    """
    work = _Work(writer, outputs)
    work.drop_what_changes_nothing()
    for index in range(len(work.operations)):
        work.select_directly(index)
        work.fold(index)
    compared = work.choose_bits()
    needed, drawn = work.needed(), []
    for word, (index, _) in enumerate(work.origin):
        if isinstance(work.operations[index], Random):
            drawn.append(word in needed)
    kept = [i for i, read in enumerate(drawn) if read]
    return *work.without_the_unread(), kept, compared


class _Work:
    def __init__(self, writer: Writer, outputs: Words) -> None:
        self.writer, self.outputs = writer, outputs
        self.operations = list(writer.operations)
        self.formulas = dict(writer.formulas)
        self.origin: list[tuple[int, int]] = [
            (index, lane)
            for index, operation in enumerate(self.operations)
            for lane in range(operation.count)
        ]

    def made_by(self, words: Words) -> tuple[int, list[int]] | None:
        """Return the one operation that makes words, and which of its words they are."""
        origins = [self.origin[word] for word in words]
        if len({index for index, _ in origins}) != 1:
            return None
        return origins[0][0], [lane for _, lane in origins]

    def plain(self, word: int) -> float | None:
        """Return the number that a word is, and will always be."""
        index, lane = self.origin[word]
        operation = self.operations[index]
        if isinstance(operation, Constant) and index not in self.formulas:
            return operation.values[lane]
        return None

    def constant(self, words: Words) -> Const | None:
        """Return the constants that words are."""
        origins = [self.origin[word] for word in words]
        if not all(isinstance(self.operations[index], Constant) for index, _ in origins):
            return None
        parts = []
        for index, lane in origins:
            operation = self.operations[index]
            assert isinstance(operation, Constant)
            given = self.formulas.get(index)
            if given:
                parts.append(given[0].map(lambda t, lane=lane: t[lane].double()))  # type: ignore[misc]
            else:
                parts.append(Const(torch.tensor(operation.values[lane], dtype=torch.float64)))
        found = self.made_by(words)
        if found and found[0] in self.formulas:  # one tensor: index it at once
            lanes = torch.tensor(found[1])
            return self.formulas[found[0]][0].map(lambda t: t[lanes].double())
        return Const.of(lambda *numbers: torch.stack(numbers), *parts)

    def drop_what_changes_nothing(self) -> None:
        """Read words in place of their sums with 0, products with 1, and the like."""
        same: dict[int, int] = {}
        word = 0
        for index, operation in enumerate(self.operations):
            moved = _moved(operation, same)
            self.operations[index] = moved
            for lane in range(moved.count):
                if (found := self._same_as(moved, lane)) is not None:
                    same[word + lane] = found
            word += moved.count
        self.outputs = tuple(same.get(word, word) for word in self.outputs)

    def _same_as(self, operation: Operation, lane: int) -> int | None:
        """Return the word that a word of an operation is equal to, as it stands there."""
        if not isinstance(operation, Add | Subtract | Multiply | Select):
            return None
        a, b = operation.a[lane], operation.b[lane]
        if isinstance(operation, Select):
            bit = self.plain(operation.condition[lane])
            return b if bit == 0 else a if bit is not None or a == b else None
        one, other = self.plain(a), self.plain(b)
        if isinstance(operation, Multiply):
            for word, value, factor in ((a, one, b), (b, other, a)):
                if value in (0, 1):
                    return factor if value else word
            return None
        if other == 0:
            return a
        return b if one == 0 and isinstance(operation, Add) else None

    def number(self, value: float) -> int:
        """Return the word of a number; it may come late, and `without_the_unread` puts it first."""
        word = self.writer.number(value)
        while len(self.operations) < len(self.writer.operations):
            new = self.writer.operations[len(self.operations)]
            self.origin.extend((len(self.operations), lane) for lane in range(new.count))
            self.operations.append(new)
        return word

    def select_directly(self, index: int) -> None:
        """Exchange what is selected in place of turning the bit."""
        operation = self.operations[index]
        if not isinstance(operation, Select):
            return
        lanes = [
            self._turned(*lane)
            for lane in zip(operation.condition, operation.a, operation.b, strict=True)
        ]
        self.operations[index] = Select(*(tuple(column) for column in zip(*lanes, strict=True)))

    def _turned(self, condition: int, a: int, b: int) -> tuple[int, int, int]:
        at, of = self.origin[condition]
        turned = self.operations[at]
        if isinstance(turned, Subtract) and self.plain(turned.a[of]) == 1:
            return turned.b[of], b, a
        return condition, a, b

    def readers(self) -> Counter[int]:
        """Return how often each word is read."""
        found = Counter(self.outputs)
        for operation in self.operations:
            for words in operation.arguments:
                found.update(words)
        return found

    def fold(self, index: int) -> None:
        """Multiply a layer's weights, or add to its biases, in place of its sums."""
        operation = self.operations[index]
        if not isinstance(operation, Add | Subtract | Multiply):
            return
        for sums, numbers, turned in (
            (operation.a, operation.b, False),
            (operation.b, operation.a, True),
        ):
            found, number = self.made_by(sums), self.constant(numbers)
            if found is None or number is None:
                continue
            at, lanes = found
            layer = self.operations[at]
            if not isinstance(layer, Linear):
                continue
            readers = self.readers()
            if any(readers[word] != 1 for word in sums):
                continue
            self._fold(index, operation, at, layer, lanes, number, turned)
            return

    def _fold(
        self,
        index: int,
        operation: Add | Subtract | Multiply,
        at: int,
        layer: Linear,
        lanes: list[int],
        number: Const,
        turned: bool,
    ) -> None:
        chosen = torch.tensor(lanes)
        given = self.formulas.get(at) or (
            Const(torch.from_numpy(layer.weight)),
            Const(torch.from_numpy(layer.bias)),
        )
        weight, bias = (one.map(lambda t: t[chosen].double()) for one in given)
        if isinstance(operation, Multiply):
            weight = Const.of(lambda w, n: w * n[:, None, None], weight, number)
            bias = Const.of(lambda b, n: b * n, bias, number)
        elif isinstance(operation, Subtract) and turned:
            weight, bias = weight.map(torch.neg), Const.of(lambda b, n: n - b, bias, number)
        elif isinstance(operation, Subtract):
            bias = Const.of(lambda b, n: b - n, bias, number)
        else:
            bias = Const.of(lambda b, n: b + n, bias, number)
        self.operations[index] = Linear(
            layer.a, weight.value.numpy(), bias.value.numpy(), layer.border
        )
        if weight.formula or bias.formula:
            self.formulas[index] = weight, bias
        self.writer.written[index] = self.writer.written[at]
        first = self.origin.index((at, 0))
        mine = self.origin.index((index, 0))
        for lane, of in enumerate(lanes):
            self.writer.names[mine + lane] = self.writer.names[first + of]

    def choose_bits(self) -> set[int]:
        """Give random numbers that are only compared as many bits as that takes.

        Numbers that they are compared with become multiples of the last bit, which makes their
        chance as near as it can be. Return which random words these are, counted from the first.
        """
        limits: dict[int, list[float | None]] = {word: [None] for word in self.outputs}
        for word in self.needed():
            index, lane = self.origin[word]
            operation = self.operations[index]
            if isinstance(operation, Less):
                number = self.plain(operation.b[lane])
                limits.setdefault(operation.a[lane], []).append(number)
                limits.setdefault(operation.b[lane], []).append(None)
            else:
                for read in _read(operation, lane):
                    limits.setdefault(read, []).append(None)
        bits_of: dict[int, int] = {}
        compared: set[int] = set()
        word = drawn = 0
        for index, operation in enumerate(self.operations):
            if isinstance(operation, Random):
                bits = list(operation.bits)
                for lane in range(operation.count):
                    found = limits.get(word + lane, [])
                    numbers = [number for number in found if number is not None]
                    if found and len(numbers) == len(found):
                        bits[lane] = bits_of[word + lane] = _needed(numbers)
                        compared.add(drawn + lane)
                self.operations[index] = Random(tuple(bits))
                drawn += operation.count
            word += operation.count
        for index, operation in enumerate(self.operations):
            if isinstance(operation, Less):
                limit = [
                    self._rounded(b, bits_of[a]) if a in bits_of else b
                    for a, b in zip(operation.a, operation.b, strict=True)
                ]
                self.operations[index] = Less(operation.a, tuple(limit))
        return compared

    def _rounded(self, word: int, bits: int) -> int:
        limit = self.plain(word)
        assert limit is not None
        return self.number(round(limit * 2.0**bits) * 2.0**-bits)

    def without_the_unread(self) -> tuple[StepGraph, Writer]:
        """Drop words that nothing needs, and put constants first: some came late."""
        needed = self.needed()
        order = sorted(
            range(len(self.operations)),
            key=lambda i: (isinstance(self.operations[i], Constant), -i) if i else (True, 1),
            reverse=True,
        )
        first = np.cumsum([0, *(operation.count for operation in self.operations)])
        after = Writer()
        places: dict[int, int] = {}
        for index in order:
            operation = self.operations[index]
            words = range(first[index], first[index] + operation.count)
            always = isinstance(operation, Channel | Input)
            lanes = [i for i, word in enumerate(words) if always or word in needed]
            if not lanes:
                continue
            new = len(after.operations)
            after.label, after.place = "", self.writer.written.get(index, "")
            moved = after.append(_some(operation, lanes, places))
            for lane, word in zip(lanes, moved.tolist(), strict=True):
                places[words[lane]] = word
                after.names[word] = self.writer.names[words[lane]]
            if index in self.formulas:
                chosen = torch.tensor(lanes)
                after.formulas[new] = tuple(
                    one.map(lambda t, c=chosen: t[c])  # type: ignore[misc]
                    for one in self.formulas[index]
                )
        outputs = tuple(places[word] for word in self.outputs)
        return StepGraph(tuple(after.operations), outputs, after.names), after

    def needed(self) -> set[int]:
        """Return all words that the next state is computed of."""
        found: set[int] = set()
        left = list(self.outputs)
        while left:
            word = left.pop()
            if word not in found:
                found.add(word)
                index, lane = self.origin[word]
                left.extend(_read(self.operations[index], lane))
        return found


def _read(operation: Operation, lane: int) -> Words:
    """Return the words that one word of an operation is computed of."""
    if isinstance(operation, Linear):
        return operation.a
    return tuple(words[lane] for words in operation.arguments)


def _moved(operation: Operation, same: Mapping[int, int]) -> Operation:
    """Return an operation that reads other words in place of some."""
    changed = {
        name: tuple(same.get(word, word) for word in getattr(operation, name))
        for name in ("condition", "a", "b")
        if hasattr(operation, name)
    }
    return replace(operation, **changed) if changed else operation


def _needed(limits: list[float]) -> int:
    bits = max(1, *(fraction(limit) for limit in limits))
    return bits if bits <= MOST_RANDOM_BITS else RANDOM_BITS


def _some(operation: Operation, lanes: list[int], places: dict[int, int]) -> Operation:
    """Return an operation for some of its words, which reads words by their new numbers."""
    if isinstance(operation, Channel | Input):
        return operation
    if isinstance(operation, Random):
        return Random(tuple(operation.bits[lane] for lane in lanes))
    if isinstance(operation, Constant):
        return Constant(tuple(operation.values[lane] for lane in lanes))
    if isinstance(operation, Linear):
        return replace(
            operation,
            a=tuple(places[word] for word in operation.a),
            weight=operation.weight[lanes],
            bias=operation.bias[lanes],
        )
    reads = {
        name: tuple(places[getattr(operation, name)[lane]] for lane in lanes)
        for name in ("condition", "a", "b")
        if hasattr(operation, name)
    }
    return replace(operation, **reads)
