"""The step graph: operations in their order, and which words are the next state."""

import dataclasses
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Self

import numpy as np

from .errors import InputError
from .operations import (
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
    Operation,
    Random,
    Select,
    Subtract,
    Window,
    Words,
    fraction,
    fractions,
)
from .qformat import IntArray, QFormat


@dataclass(frozen=True, eq=False)
class StepGraph:
    """One step of a cell, in static single assignment.

    Attributes
    ----------
    operations
        Each reads words of those before it.
    outputs
        Words that are the next state, one a channel.
    names
        Of words, for reports: "hidden 3". Words without one are named by their operation.
    """

    operations: tuple[Operation, ...]
    outputs: Words
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for first, operation in zip(self._first, self.operations, strict=False):
            for words in operation.arguments:
                if not all(0 <= word < first for word in words):
                    raise ValueError(f"an operation before word {first} reads {words}")
        if len(self.outputs) != len(self.channels):
            raise ValueError(
                f"{len(self.outputs)} words are the next state of {len(self.channels)} channels"
            )
        if not all(0 <= word < self.count for word in self.outputs):
            raise ValueError(f"the next state is {self.outputs} of {self.count} words")
        self.inputs  # noqa: B018  refuses names that are given twice, as `channels` above

    def __deepcopy__(self, memo: object) -> Self:
        """Return the graph itself, which nobody changes: what is made for it is made once."""
        return self

    @cached_property
    def _first(self) -> list[int]:
        """Number of each operation's first word, and at the end the number of words."""
        return [0, *accumulate(operation.count for operation in self.operations)]

    @property
    def count(self) -> int:
        """Number of words."""
        return self._first[-1]

    def words(self, index: int) -> range:
        """Words that an operation computes."""
        return range(self._first[index], self._first[index + 1])

    def origin(self, word: int) -> tuple[int, int]:
        """Return the index of the operation that computes a word, and which of its words it is."""
        index = bisect_right(self._first, word) - 1
        return index, word - self._first[index]

    def made_by(self, word: int) -> tuple[Operation, int]:
        """Return the operation that computes a word, and which of its words it is."""
        index, lane = self.origin(word)
        return self.operations[index], lane

    def runs(self, words: Iterable[int]) -> list[tuple[int, slice]]:
        """Return what words consist of: indices of operations, and which of their words."""
        found: list[tuple[int, slice]] = []
        for word in words:
            index, lane = self.origin(word)
            if found and (found[-1][0], found[-1][1].stop) == (index, lane):
                found[-1] = index, slice(found[-1][1].start, lane + 1)
            else:
                found.append((index, slice(lane, lane + 1)))
        return found

    def name(self, word: int) -> str:
        """Return a word's name; of one without, what a named `Fit` makes of it, or its number."""
        if word not in self.names and self._fitted(word) in self.names:
            return f"accumulator of {self.title(word)}"
        return self.title(word)

    def title(self, word: int) -> str:
        """Return the name of what a word is, or is the accumulator of."""
        for named in (word, self._fitted(word)):
            if named in self.names:
                return self.names[named]
        index, lane = self.origin(word)
        return f"{type(self.operations[index]).__name__.lower()} {index}.{lane}"

    def fits(self, word: int) -> list[int]:
        """Return the words that a `Fit` makes of a word."""
        return [
            self.words(index)[lane]
            for index in self.readers[word]
            for lane, source in enumerate(self.operations[index].arguments[0])
            if isinstance(self.operations[index], Fit) and source == word
        ]

    def _fitted(self, word: int) -> int:
        found = self.fits(word)
        return found[0] if len(found) == 1 else word

    def of_kind(self, kind: type[Operation]) -> Iterator[tuple[int, Operation]]:
        """Yield all operations of a kind, with their index."""
        for index, operation in enumerate(self.operations):
            if isinstance(operation, kind):
                yield index, operation

    @cached_property
    def channels(self) -> dict[str, int]:
        """Words of the state before the step, by name."""
        return self._given(Channel)

    @cached_property
    def inputs(self) -> dict[str, int]:
        """Words of what is given from outside, by name."""
        return self._given(Input)

    def _given(self, kind: type[Channel] | type[Input]) -> dict[str, int]:
        found: dict[str, int] = {}
        for index, operation in self.of_kind(kind):
            assert isinstance(operation, Channel | Input)
            for name, word in zip(operation.names, self.words(index), strict=True):
                if name in found:
                    raise ValueError(f"two {kind.__name__.lower()}s are called {name}")
                found[name] = word
        return found

    @cached_property
    def formats(self) -> dict[int, QFormat]:
        """Formats of the words that have one."""
        found: dict[int, QFormat] = {}
        for index, operation in enumerate(self.operations):
            if isinstance(operation, Channel | Input | Fit):
                for word, format in zip(self.words(index), operation.formats, strict=True):
                    if format is not None:
                        found[word] = format
        return found

    @property
    def channel_formats(self) -> tuple[QFormat, ...]:
        """Formats of the state's channels."""
        return tuple(self.formats[word] for word in self.channels.values())

    @property
    def random_bits(self) -> int:
        """Random bits that a cell takes in each step."""
        return sum(sum(one.bits) for _, one in self.of_kind(Random) if isinstance(one, Random))

    @cached_property
    def borders(self) -> tuple[Border, ...]:
        """Borders that its operations ask for, in alphabetical order."""
        return tuple(
            sorted(
                {
                    operation.border
                    for operation in self.operations
                    if isinstance(operation, Window)
                    or (isinstance(operation, Linear) and operation.weight.shape[2] == AROUND)
                }
            )
        )

    @cached_property
    def fractions(self) -> list[int]:
        """Fraction bits of all words: what `code * 2**-fraction` is, is the word's value.

        Of an integer rule's words. A sum has as many as its finest summand.
        """
        found: list[int] = []
        for operation in self.operations:
            found.extend(fractions_of(operation, found))
        return found

    def codes_of(self, index: int) -> tuple[IntArray, IntArray]:
        """Weights (O, I, K) and biases (O,) of a `Linear`, as integers on its inputs' codes.

        sum(weight * code) + bias is the code of the sum, with its `fractions`.

        Raises
        ------
        InputError
            If one of them needs more than 62 bits.
        """
        linear = self.operations[index]
        assert isinstance(linear, Linear)
        of_sums = np.array([self.fractions[word] for word in self.words(index)])
        of_inputs = np.array([self.fractions[word] for word in linear.a], np.int64)
        shift = of_sums[:, None, None] - of_inputs[:, None]
        with np.errstate(over="ignore"):
            weight, bias = np.ldexp(linear.weight, shift), np.ldexp(linear.bias, of_sums)
        for what, numbers in (("weight", weight), ("bias", bias)):
            largest = np.abs(numbers).max(initial=0)
            if not largest < 2.0**62:
                raise InputError(
                    f"a {what} of {self.name(self.words(index)[0])} needs more than 62 bits: "
                    "quantize the rule with fewer"
                )
        return weight.astype(np.int64), bias.astype(np.int64)

    def changed(self, operations: Mapping[int, Operation]) -> "StepGraph":
        """Return the graph with other operations of as many words at some places."""
        every = list(self.operations)
        for index, operation in operations.items():
            every[index] = operation
        return StepGraph(tuple(every), self.outputs, self.names)

    def keeping(self, words: Mapping[str, int]) -> "StepGraph":
        """Return the graph with further channels, by name, that hold what words were in the step.

        Its channels are one operation, the first.
        """
        channels, *rest = self.operations
        assert isinstance(channels, Channel)
        count = channels.count

        def moved(word: int) -> int:
            return word if word < count else word + len(words)

        formats = (*channels.formats, *(self.formats.get(word) for word in words.values()))
        operations: list[Operation] = [Channel((*channels.names, *words), formats)]
        for operation in rest:
            fields = [one.name for one in dataclasses.fields(operation)]
            read = {name for name in ("condition", "a", "b") if name in fields}
            changes = {name: tuple(map(moved, getattr(operation, name))) for name in read}
            operations.append(dataclasses.replace(operation, **changes))
        return StepGraph(
            tuple(operations),
            tuple(map(moved, (*self.outputs, *words.values()))),
            {moved(word): name for word, name in self.names.items()},
        )

    def pruned(self) -> "StepGraph":
        """Return the graph without what nothing reads; channels, inputs and random words stay."""
        return self.pruned_words()[0]

    def pruned_words(self) -> tuple["StepGraph", dict[int, int]]:
        """Return it, and the numbers in it of the words that stay, by those in this one."""
        needed = [False] * self.count
        for word in self.outputs:
            needed[word] = True
        kept: list[tuple[Operation, list[int]]] = []
        for index in reversed(range(len(self.operations))):
            operation, words = self.operations[index], self.words(index)
            given = isinstance(operation, Channel | Input | Random)
            lanes = [i for i, word in enumerate(words) if given or needed[word]]
            for arguments in operation.arguments:
                shared = isinstance(operation, Linear)
                for i in range(len(arguments)) if shared and lanes else lanes:
                    needed[arguments[i]] = True
            if lanes:
                kept.append((operation, [words[i] for i in lanes]))
        new: dict[int, int] = {}
        operations = []
        for operation, taken in reversed(kept):
            first = self.words(self.origin(taken[0])[0])[0]
            operations.append(_taken(operation, [word - first for word in taken], new))
            for word in taken:
                new[word] = len(new)
        outputs = tuple(new[word] for word in self.outputs)
        names = {new[word]: name for word, name in self.names.items() if word in new}
        return StepGraph(tuple(operations), outputs, names), new

    @cached_property
    def readers(self) -> list[list[int]]:
        """Indices of the operations that read each word, by word."""
        found: list[list[int]] = [[] for _ in range(self.count)]
        for index, operation in enumerate(self.operations):
            for word in {word for words in operation.arguments for word in words}:
                found[word].append(index)
        return found


def fractions_of(operation: Operation, known: Sequence[int]) -> Sequence[int]:
    """Return the fraction bits of an operation's words, by those of the words before them."""
    match operation:
        case Channel(formats=formats) | Input(formats=formats) | Fit(formats=formats):
            return [_known(format).frac_bits for format in formats]
        case Random(bits=bits):
            return bits
        case Constant(values=values):
            return [fraction(value) for value in values]
        case Linear():
            return list(map(int, _fractions_of_sums(operation, known)))
        case Window(a=words):
            return [known[word] for word in words]
        case Less():
            return [0] * operation.count
        case Multiply(a=first, b=second):
            return [known[a] + known[b] for a, b in zip(first, second, strict=True)]
        case Add() | Subtract() | Minimum() | Maximum() | Select():
            first, second = operation.arguments[-2:]
            return [max(known[a], known[b]) for a, b in zip(first, second, strict=True)]
    raise NotImplementedError(type(operation).__name__)


def _fractions_of_sums(linear: Linear, known: Sequence[int]) -> IntArray:
    """Return the fraction bits of each of its sums, (O,)."""
    lowest = -(1 << 30)
    of_inputs = np.array([known[word] for word in linear.a], np.int64)
    products = fractions(linear.weight) + of_inputs[:, None]
    products[linear.weight == 0] = lowest
    biases = np.where(linear.bias == 0, lowest, fractions(linear.bias))
    finest = np.maximum(products.max((1, 2), initial=lowest), biases)
    found: IntArray = np.where(finest == lowest, 0, finest)
    return found


def _taken(operation: Operation, lanes: list[int], new: Mapping[int, int]) -> Operation:
    """Return an operation that computes some of its words alone, of words with new numbers."""
    changes: dict[str, Any] = {}
    for name in (one.name for one in dataclasses.fields(operation)):
        value = getattr(operation, name)
        if name in ("condition", "a", "b"):
            words = value if isinstance(operation, Linear) else [value[i] for i in lanes]
            changes[name] = tuple(new[word] for word in words)
        elif isinstance(value, tuple):
            changes[name] = tuple(value[i] for i in lanes)
        elif isinstance(value, np.ndarray):
            changes[name] = value[lanes]
    return dataclasses.replace(operation, **changes)


def _known(format: QFormat | None) -> QFormat:
    if format is None:
        raise InputError("a channel or input has no format: quantize the rule")
    return format
