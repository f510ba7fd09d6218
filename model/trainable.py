"""A float graph whose numbers are parameters: what training moves."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scotopia.graph.errors import InputError
from scotopia.graph.file import pack
from scotopia.graph.operations import Linear
from scotopia.graph.step import StepGraph
from scotopia.graph.trained import with_numbers

from . import compiled, native
from .float_rule import FloatRule
from .interpret import Interpreter
from .learner import Learner


class TrainableGraph(Learner):
    """A float graph in training.

    Parameters
    ----------
    rule
        Says which of its numbers are trained.

    Attributes
    ----------
    rule
        As it was before.

    Raises
    ------
    InputError
        If none of its numbers is to be trained.
    """

    def __init__(self, rule: FloatRule) -> None:
        super().__init__()
        if not any(mask.any() for masks in rule.trained.values() for mask in masks):
            raise InputError(
                "the rule has no parameter that could be trained: import a module with parameters"
            )
        self.rule = rule
        self.training_record = dict(rule.training)
        self._run = Interpreter(rule.graph)
        self._masks: dict[str, Tensor] = {}
        for index, masks in rule.trained.items():
            for place, (numbers, mask) in enumerate(zip(rule.numbers(index), masks, strict=True)):
                name = f"operation{index}_{place}"
                tensor = torch.from_numpy(numbers).float()
                if mask.any():
                    self.register_parameter(name, nn.Parameter(tensor))
                    self._masks[name] = torch.from_numpy(mask)
                else:
                    self.register_buffer(name, tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the numbers; the graph is one for all, for which code is compiled once."""
        made = self._anew().to(next(self.parameters()).device)
        made.load_state_dict(self.state_dict())
        for copied, own in zip(made.parameters(), self.parameters(), strict=True):
            copied.requires_grad_(own.requires_grad)
        made.training_record = copy.deepcopy(self.training_record, memo)
        return made

    def _anew(self) -> Self:
        """Make another of what this one was made of."""
        return type(self)(self.rule)

    @property
    def parameter_count(self) -> int:
        """Number of trained numbers."""
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def shape(self) -> str:
        """Digest of the graph, whatever its numbers are."""
        return sha256(json.dumps(pack(self.rule.graph)[0]).encode()).hexdigest()[:16]

    def held(self) -> list[tuple[Tensor, Tensor]]:
        """Return parameters, and where each has numbers that are not trained."""
        device = next(self.parameters()).device
        return [
            (self.get_parameter(name), ~mask.to(device))
            for name, mask in self._masks.items()
            if not mask.all()
        ]

    def weights(self) -> dict[int, tuple[Tensor, ...]]:
        """Return the numbers of what is trained, as `Interpreter` takes them."""
        return {
            index: tuple(getattr(self, f"operation{index}_{place}") for place in range(len(masks)))
            for index, masks in self.rule.trained.items()
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
        """Run the rule.

        On a CPU with a C++ compiler by what is `compiled` for it; elsewhere by PyTorch's own
        operators: same numbers up to the order of sums.

        Parameters
        ----------
        states
            (B, C, H, W). No gradient flows into them.
        inputs
            By name, (B, frames, H, W).
        steps
            Of a frame; by default as many as the rule does.
        generator
            Of the random words.

        Returns
        -------
        outputs
            (B, frames, C, H, W) after each frame, differentiable in the parameters.
        states
            (B, C, H, W) at the end, without gradient.
        """
        steps = steps or self.rule.steps_per_frame
        states = states.detach()
        drawn = [self._run.draw(states, generator) for _ in range(frames * steps)]
        if states.device.type == "cpu" and native.available():
            try:
                return compiled.unroll(
                    self.rule.graph,
                    self.weights(),
                    states,
                    inputs,
                    frames=frames,
                    steps_per_frame=steps,
                    noise=torch.stack(drawn, 1) if self._run.random else None,
                    patterns=self._patterns,
                )
            except compiled.NotCompiled:
                pass
        weights, outputs = self.weights(), []
        for frame in range(frames):
            given = {name: planes[:, frame] for name, planes in inputs.items()}
            for step in range(steps):
                states = self._run(states, given, drawn[frame * steps + step], weights)
            outputs.append(states)
        return torch.stack(outputs, 1), states.detach()

    def float_rule(self) -> FloatRule:
        """Return the rule with the numbers of now, and its record."""
        return dataclasses.replace(self.rule, graph=self.graph, training=self.training_record)

    @property
    def graph(self) -> StepGraph:
        """The graph with the numbers of now."""
        numbers = {
            index: [part.detach().cpu().double().numpy() for part in parts]
            for index, parts in self.weights().items()
        }
        return with_numbers(self.rule.graph, numbers)

    def save(self, path: Path) -> None:
        """Write it as a float graph."""
        self.float_rule().save(path)

    @property
    def _patterns(self) -> dict[int, NDArray[np.bool_]]:
        """Of each trained sum, which weights may be other than 0."""
        return {
            index: masks[0] | (operation.weight != 0)
            for index, masks in self.rule.trained.items()
            if isinstance(operation := self.rule.graph.operations[index], Linear)
        }
