"""From a PyTorch module to the step graph of what it does to every cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scotopia.graph.step import StepGraph

from .calls import understood
from .check import Draws, check
from .export import Program, Step, evaluating, export, type_of
from .simplify import simplify
from .walk import Walk
from .writer import Const


@dataclass(frozen=True, eq=False)
class Traced:
    """A module's step as a graph.

    Attributes
    ----------
    graph
        Of floats, with the numbers that the module has now.
    module
        The module.
    approximations
        Largest error of each smooth function that became a sum of clipped lines, by where it is.
    places
        "file:line" of each operation in the user's file, empty where unknown.
    difference
        Largest difference seen between graph and module, with smooth functions as they are in the
        graph: the order of sums.
    """

    graph: StepGraph
    module: nn.Module
    approximations: Mapping[str, float]
    places: tuple[str, ...]
    difference: float
    _program: Program
    _formulas: Mapping[int, tuple[Const, ...]]

    def weights(self) -> dict[int, tuple[Tensor, ...]]:
        """Compute anew, differentiably, what depends on the module's parameters and buffers.

        Returns
        -------
        By index of the operation: of a `Linear`, its weights (O, I, K) and biases (O,); of a
        `Constant`, its values (L,). `Interpreter` takes them in place of the graph's own.
        """
        values = self._program.values()
        dtype = self._program.dtype
        return {
            index: tuple(one.at(values).to(dtype) for one in formulas)
            for index, formulas in self._formulas.items()
        }

    def trained(self) -> dict[int, tuple[NDArray[np.bool_], ...]]:
        """Tell which numbers depend on the module's parameters, as `FloatRule.trained` does."""
        parameters = [one for one in self.module.parameters() if one.requires_grad]
        before = [one.detach().clone() for one in parameters]
        generator = torch.Generator().manual_seed(0)
        found = []
        with torch.no_grad():
            try:
                for _ in range(2):
                    for one in parameters:
                        # Not negative, nor near 0: some modules take the logarithm of theirs.
                        one.copy_(torch.rand(one.shape, generator=generator) + 0.5)
                    found.append(self.weights())
            finally:
                for one, values in zip(parameters, before, strict=True):
                    one.copy_(values)
        differ = {
            index: tuple((a != b).numpy() for a, b in zip(parts, found[1][index], strict=True))
            for index, parts in found[0].items()
        }
        return {index: masks for index, masks in differ.items() if any(m.any() for m in masks)}


def trace(
    module: nn.Module,
    channels: int | Sequence[str] | None = None,
    *,
    inputs: Mapping[str, int] | None = None,
    random: Mapping[str, float | None] | None = None,
    constants: Mapping[str, Any] | None = None,
    method: str = "forward",
    layout: str = "BCHW",
    output: int | str | None = None,
    lines: int = 8,
) -> Traced:
    """Turn a module's step into a graph, and check that both compute the same.

    It is traced in eval mode, and does one step: `forward(state, *inputs) -> state`.

    Parameters
    ----------
    channels
        Of the state: their number or their names; by default `module.channel_names`.
    inputs
        Arguments of the step that are given from outside, and how many channels each has. Other
        arguments without a default have one.
    random
        Arguments that are drawn anew in each step; see `Call`.
    constants
        Values of arguments that are no tensors of the grid: `{"steps": 1}`.
    method
        Which method is the step.
    layout
        "BCHW", or "BHWC" where the state and all inputs have their channels last.
    output
        Which part of what is returned is the next state, by its place, key or attribute; None if
        it is returned alone.
    lines
        How many bent lines a smooth function becomes.

    Raises
    ------
    InputError
        If the step is not local, or has an operation that a step graph has not; if it changes the
        number of channels, returns NaN, depends on the grid's size or branches on the state; if
        graph and module differ. It names the line of the user's file.
    """
    call = understood(module, channels, inputs, random, constants, method, layout, output)
    where = f"{type(module).__name__}.{method}"
    with evaluating(module), torch.no_grad():
        step = Step(module, call)
        dtype = type_of(module)
        program, exported = export(step, call, dtype, where)
        walk = Walk(exported, program, call, lines)
        outputs = walk.run(where)
        graph, writer, drawn, compared = simplify(walk.writer, outputs)
        places = tuple(writer.written[i].removesuffix(": ") for i in range(len(graph.operations)))
        approximations = dict(walk.writer.approximations)
        draws = Draws(walk.writer.draws, drawn, compared)
        difference = check(graph, dtype, step, call, draws, lines, where)
    return Traced(graph, module, approximations, places, difference, program, writer.formulas)
