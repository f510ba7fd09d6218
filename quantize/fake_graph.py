"""An integer rule of any graph in quantization-aware training.

Its step is the rule's graph, run by `model.interpret` or `model.compiled`, which are exact and have
gradients. Its weights are floats, not rounded, so that small steps of training add up; where the
graph reads them they are, each to its own grid.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.graph.intervals import SUM_BITS
from scotopia.graph.operations import Linear, fractions
from scotopia.graph.qformat import QFormat
from scotopia.graph.step import StepGraph
from scotopia.model.float_rule import FloatRule
from scotopia.model.trainable import TrainableGraph

from .formats import by_weight, formats_of
from .grids import Grids, exact_type
from .integer_rule import GraphRule


class FakeQuantGraph(TrainableGraph):
    """An integer rule of any graph in training: its layers' weights are floats.

    Their formats are as wide as the rule's weights need, see `formats.formats_of`, and stay; so do
    all other numbers of the graph. States and inputs are brought to their formats first.

    Parameters
    ----------
    rule
        Says which of its weights are trained.

    Attributes
    ----------
    integer
        As it was before.

    Raises
    ------
    InputError
        If none of its weights is to be trained.
    """

    def __init__(self, rule: GraphRule) -> None:
        graph = rule.graph
        layers = {index for index, _ in graph.of_kind(Linear)}
        trained = {index: masks for index, masks in rule.trained.items() if index in layers}
        if not any(mask.any() for masks in trained.values() for mask in masks):
            raise InputError(
                "the integer rule does not say which of its weights can be trained: quantize the "
                "float rule again"
            )
        # A task asks a float rule for its graph and its first state.
        super().__init__(
            FloatRule(
                graph,
                rule.steps_per_frame,
                rule.events,
                rule.initial,
                rule.training,
                trained=trained,
            )
        )
        self.integer = rule
        self._grids = {index: _grids_of(graph, index) for index in trained}
        words = (*graph.channels.values(), *graph.inputs.values())
        self._words = {word: Grids([graph.formats[word]]) for word in words}

    def _anew(self) -> Self:
        return type(self)(self.integer)

    def weights(self) -> dict[int, tuple[Tensor, ...]]:
        """Return the weights on their grids."""
        return {
            index: tuple(
                grids.round(part).to(exact_type(part.device))
                for grids, part in zip(self._grids[index], parts, strict=True)
            )
            for index, parts in super().weights().items()
        }

    def unroll(
        self,
        states: Tensor,
        inputs: Mapping[str, Tensor],
        *,
        frames: int,
        steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the rule, as `TrainableGraph.unroll`."""
        graph, exact = self.integer.graph, exact_type(states.device)
        words = zip(graph.channels.values(), states.unbind(1), strict=True)
        planes = [self._words[word].round(plane) for word, plane in words]
        outputs, after = super().unroll(
            torch.stack(planes, 1).to(exact),
            {
                name: self._words[graph.inputs[name]].round(plane).to(exact)
                for name, plane in inputs.items()
            },
            frames=frames,
            steps=steps,
            generator=generator,
        )
        return outputs.to(states.dtype), after.to(states.dtype)

    def integer_rule(self) -> GraphRule:
        """Return the integer rule with the weights of now, and its range proof.

        Raises
        ------
        InputError
            If there is none any more, see `intervals.prove`.
        """
        rule = replace(self.integer, graph=self.graph, training=self.training_record)
        return rule.with_proof()

    def save(self, path: Path) -> None:
        """Write it as an integer rule; InputError as `integer_rule`."""
        self.integer_rule().save(path)


def _grids_of(graph: StepGraph, index: int) -> tuple[Grids, Grids]:
    """Grids of the weights and the biases of a layer: these have as many bits as they need."""
    linear = graph.operations[index]
    assert isinstance(linear, Linear)
    finest = fractions(linear.weight).max((1, 2), initial=0)
    codes = np.ldexp(linear.weight, finest[:, None, None]).astype(np.int64)
    _, inputs, taps = codes.shape
    rows = by_weight(formats_of(codes, finest), inputs, taps)
    of_sums = [graph.fractions[word] for word in graph.words(index)]
    return (
        Grids([one for row in rows for one in row]),
        Grids([QFormat(SUM_BITS - fraction, fraction) for fraction in of_sums]),
    )
