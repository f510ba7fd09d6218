"""A step graph in PyTorch: floats, with gradients.

    run = Interpreter(graph)
    after = run(state, {"sample": sample}, run.draw(state))

Of a graph with formats it computes the values of the golden model's codes, exactly in float64: so
it is the fake-quantized rule as well as the float rule.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scotopia.graph.operations import (
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
)
from scotopia.graph.step import StepGraph

from .settle import Codes, clipped_ends, settle

#: Numbers of operations, by their index in the graph: of a `Linear`, (O, I, K) and (O,); of a
#: `Constant`, (L,).
Weights = Mapping[int, tuple[Tensor, ...]]

PAD_MODES: dict[Border, str] = {
    "zero": "constant",
    "replicate": "replicate",
    "wrap": "circular",
    "reflect": "reflect",
}


class Interpreter:
    """What runs a graph; it keeps what is the same in each step.

    Parameters
    ----------
    rounds
        Whether what is brought to a format is rounded; else it is clipped to its range alone.
    """

    def __init__(self, graph: StepGraph, *, rounds: bool = True) -> None:
        self.graph, self.rounds = graph, rounds
        #: Number of random words that a cell takes in each step.
        self.random = sum(operation.count for _, operation in graph.of_kind(Random))
        self._pieces = {
            words: graph.runs(words)
            for words in (*(w for o in graph.operations for w in o.arguments), graph.outputs)
        }
        self._ends = clipped_ends(graph)
        self._codes: dict[tuple[int, torch.dtype, torch.device], Codes] = {}
        self._numbers: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def draw(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw the random words of a step, (B, `random`, H, W), for cells like those of a state."""
        drawn = [
            torch.randint(1 << bits, (len(state), *state.shape[2:]), generator=generator)
            * 2.0**-bits
            for _, one in self.graph.of_kind(Random)
            if isinstance(one, Random)
            for bits in one.bits
        ]
        if not drawn:
            return state.new_zeros(len(state), 0, *state.shape[2:])
        return torch.stack(drawn, 1).to(state)

    def __call__(
        self,
        state: Tensor,
        inputs: Mapping[str, Tensor] | None = None,
        noise: Tensor | None = None,
        weights: Weights | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Do one step.

        Parameters
        ----------
        state
            (B, C, H, W).
        inputs
            Each, by name, (B, H, W).
        noise
            Random words, (B, `random`, H, W) in [0, 1); see `draw`. None, if there are none.
        weights
            In place of the graph's own.
        watch
            Is told what each operation computed, by its index: (B, L, H, W).

        Returns
        -------
        The next state; differentiable in all that is given.

        Raises
        ------
        ValueError
            If the state or the noise has another number of planes than the graph.
        """
        for what, planes, needed in (
            ("state", state.shape[1], len(self.graph.channels)),
            ("noise", 0 if noise is None else noise.shape[1], self.random),
        ):
            if planes != needed:
                raise ValueError(f"{what} has {planes} planes, the graph takes {needed}")
        found: list[Tensor] = []
        taken = 0
        for index, operation in enumerate(self.graph.operations):
            match operation:
                case Channel():
                    result = state
                case Input(names=names):
                    given = inputs or {}
                    plane = state[:, 0]
                    result = torch.stack([given[name].expand_as(plane) for name in names], 1)
                case Random():
                    assert noise is not None
                    result = noise[:, taken : taken + operation.count]
                    taken += operation.count
                case _:
                    own = (weights or {}).get(index)
                    result = self._compute(index, operation, found, state, own)
            found.append(result)
            if watch:
                watch(index, result)
        return self._gather(self.graph.outputs, found)

    def _gather(self, words: Words, found: Sequence[Tensor]) -> Tensor:
        """Return words as (B, L, H, W)."""
        parts = [found[index][:, lanes] for index, lanes in self._pieces[words]]
        if len(parts) == 1:
            return parts[0]
        batch, height, width = found[0].shape[0], *found[0].shape[2:]
        return torch.cat([part.expand(batch, -1, height, width) for part in parts], 1)

    def _compute(
        self,
        index: int,
        operation: Operation,
        found: Sequence[Tensor],
        state: Tensor,
        given: tuple[Tensor, ...] | None,
    ) -> Tensor:
        arguments = [self._gather(words, found) for words in operation.arguments]
        match operation:
            case Constant():
                (values,) = given or self._own(index, operation, state)
                return values[None, :, None, None].expand(state.shape[0], -1, *state.shape[2:])
            case Linear(border=border):
                weight, bias = given or self._own(index, operation, state)
                return _linear(arguments[0], weight, bias, border)
            case Window(largest=largest, border=border):
                return _window(arguments[0], largest, border)
            case Fit():
                key = index, state.dtype, state.device
                if key not in self._codes:
                    clipped = [self._ends[word] for word in self.graph.words(index)]
                    self._codes[key] = Codes(
                        operation.formats, state, operation.rounding, operation.overflow, clipped
                    )
                codes = self._codes[key]
                if not self.rounds:
                    ends = codes.lowest * codes.unit, codes.highest * codes.unit
                    return torch.clamp(arguments[0], *ends)
                return settle(arguments[0], codes)
            case Select():
                bits, a, b = arguments
                return torch.where(bits != 0, a, b)
        a, b = arguments
        match operation:
            case Add():
                return a + b
            case Subtract():
                return a - b
            case Multiply():
                return a * b
            # Where both are the same, the gradient is b's: that of max(x, 0) at 0 is 0.
            case Minimum():
                return torch.where(a < b, a, b)
            case Maximum():
                return torch.where(a > b, a, b)
            case Less():
                return (a < b).to(state.dtype)
        raise NotImplementedError(type(operation).__name__)

    def _own(self, index: int, operation: Linear | Constant, state: Tensor) -> tuple[Tensor, ...]:
        """Return the numbers that the graph itself holds."""
        key = index, state.dtype, state.device
        if key not in self._numbers:
            if isinstance(operation, Linear):
                arrays = [torch.from_numpy(operation.weight), torch.from_numpy(operation.bias)]
            else:
                arrays = [torch.tensor(operation.values, dtype=torch.float64)]
            self._numbers[key] = tuple(array.to(state) for array in arrays)
        return self._numbers[key]


def _linear(a: Tensor, weight: Tensor, bias: Tensor, border: Border) -> Tensor:
    around = weight.shape[2] == AROUND
    kernel = weight.reshape(*weight.shape[:2], *((3, 3) if around else (1, 1)))
    if around and border != "zero":
        a = F.pad(a, (1, 1, 1, 1), mode=PAD_MODES[border])
    return F.conv2d(a, kernel, bias, padding=1 if around and border == "zero" else 0)


def _window(a: Tensor, largest: bool, border: Border) -> Tensor:
    if border != "replicate":  # else the edge twice is as if nothing were beyond it
        a = F.pad(a, (1, 1, 1, 1), mode=PAD_MODES[border])
    signed = a if largest else -a
    found = F.max_pool2d(signed, 3, stride=1, padding=1 if border == "replicate" else 0)
    return found if largest else -found
