"""To write a step graph down: words with Python's operators.

    build = Builder()
    x, age = build.channels({"x": QFormat(1, 7), "age": QFormat(0, 8, signed=False)})
    older = (age - 1 / 256).maximum(0)
    graph = build.graph({"x": x, "age": older.fit(QFormat(0, 8, signed=False))})

`where` and `concatenate` complete what is written as methods of NumPy's arrays and PyTorch's
tensors would be.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

import numpy as np
from numpy.typing import ArrayLike

from .operations import (
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
)
from .qformat import Overflow, QFormat, Rounding
from .step import StepGraph

#: Words, or a number that is the same for all.
Operand = Union["Value", float]


@dataclass(frozen=True, eq=False)
class Value:
    """Some words of a graph that is being written."""

    builder: "Builder"
    words: Words

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, which: int | slice) -> "Value":
        words = self.words[which]
        return Value(self.builder, words if isinstance(words, tuple) else (words,))

    def __iter__(self) -> Iterator["Value"]:
        return (Value(self.builder, (word,)) for word in self.words)

    def __add__(self, other: Operand) -> "Value":
        return self._pairwise(Add, other)

    def __radd__(self, other: float) -> "Value":
        return self._pairwise(Add, other)

    def __sub__(self, other: Operand) -> "Value":
        return self._pairwise(Subtract, other)

    def __rsub__(self, other: float) -> "Value":
        return self.builder.constant(other)._pairwise(Subtract, self)

    def __mul__(self, other: Operand) -> "Value":
        return self._pairwise(Multiply, other)

    def __rmul__(self, other: float) -> "Value":
        return self._pairwise(Multiply, other)

    def __lt__(self, other: Operand) -> "Value":
        return self._pairwise(Less, other)

    def __gt__(self, other: Operand) -> "Value":
        second = other if isinstance(other, Value) else self.builder.constant(other)
        return second._pairwise(Less, self)

    def maximum(self, other: Operand) -> "Value":
        """Return the larger of each two words."""
        return self._pairwise(Maximum, other)

    def minimum(self, other: Operand) -> "Value":
        """Return the smaller of each two words."""
        return self._pairwise(Minimum, other)

    def fit(
        self,
        formats: QFormat | Sequence[QFormat],
        rounding: Rounding = Rounding.RND,
        overflow: Overflow = Overflow.SAT,
    ) -> "Value":
        """Return the words brought to formats, or all to the same one."""
        each = (formats,) * len(self) if isinstance(formats, QFormat) else tuple(formats)
        return self.builder.add(Fit(self.words, each, rounding, overflow))

    def _pairwise(
        self, kind: type[Add | Subtract | Multiply | Minimum | Maximum | Less], other: Operand
    ) -> "Value":
        a, b = self.builder.same_count(self, other)
        return self.builder.add(kind(a.words, b.words))


@dataclass
class Builder:
    """A graph in the making."""

    operations: list[Operation] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    _count: int = 0

    def add(self, operation: Operation, names: Iterable[str] = ()) -> Value:
        """Append an operation and return its words, with names for the first of them."""
        words = tuple(range(self._count, self._count + operation.count))
        self.operations.append(operation)
        self._count += operation.count
        self.names.update(zip(words, names, strict=False))
        return Value(self, words)

    def channels(self, formats: Mapping[str, QFormat | None]) -> Value:
        """Declare channels of the state, by name."""
        return self.add(Channel(tuple(formats), tuple(formats.values())), formats)

    def inputs(self, formats: Mapping[str, QFormat | None]) -> Value:
        """Declare what is given from outside, by name."""
        return self.add(Input(tuple(formats), tuple(formats.values())), formats)

    def random(self, *bits: int) -> Value:
        """Draw a number of so many bits for each."""
        return self.add(Random(bits))

    def constant(self, *values: float) -> Value:
        """Write numbers down."""
        return self.add(Constant(tuple(map(float, values))))

    def linear(
        self, a: Value, weight: ArrayLike, bias: ArrayLike, border: Border = "zero"
    ) -> Value:
        """Sum words up with weights (O, I, K) and biases (O,); see `Linear`."""
        kernels = np.asarray(weight, np.float64)
        return self.add(Linear(a.words, kernels, np.asarray(bias, np.float64), border))

    def window(self, a: Value, *, largest: bool = True, border: Border = "replicate") -> Value:
        """Take the largest or the smallest of the cells around; see `Window`."""
        return self.add(Window(a.words, largest, border))

    def where(self, condition: Value, a: Operand, b: Operand) -> Value:
        """Select `a` where a bit is 1, else `b`."""
        one, other = (v if isinstance(v, Value) else self.constant(v) for v in (a, b))
        count = max(len(condition), len(one), len(other))
        parts = (self.repeated(value, count).words for value in (condition, one, other))
        return self.add(Select(*parts))

    def concatenate(self, values: Iterable[Value]) -> Value:
        """Take words together."""
        return Value(self, tuple(word for value in values for word in value.words))

    def repeated(self, value: Value, count: int) -> Value:
        """Repeat a single word, so that there are `count`."""
        return Value(self, value.words * count) if len(value) == 1 else value

    def same_count(self, a: Operand, b: Operand) -> tuple[Value, Value]:
        """Return two operands with as many words as the longer has; a number is a word."""
        one, other = (v if isinstance(v, Value) else self.constant(v) for v in (a, b))
        count = max(len(one), len(other))
        return self.repeated(one, count), self.repeated(other, count)

    def name(self, value: Value, names: Iterable[str]) -> Value:
        """Name words, and return them."""
        self.names.update(zip(value.words, names, strict=True))
        return value

    def graph(self, after: Mapping[str, Value]) -> StepGraph:
        """Return the graph, whose next state is `after`, by the names of the channels."""
        channels = [one for one in self.operations if isinstance(one, Channel)]
        words = tuple(after[name].words[0] for channel in channels for name in channel.names)
        return StepGraph(tuple(self.operations), words, dict(self.names))
