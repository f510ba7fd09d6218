"""What a rule learns: a task gives it its inputs, the states that it starts from, and its loss.

One of your own is a subclass of `Task`; see docs/tasks.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from scotopia.graph.errors import InputError

from .float_rule import FloatRule
from .learner import Learner
from .options import LoopOptions
from .trainable import TrainableGraph
from .videos import Slot

#: What is trained.
R = TypeVar("R", bound=Learner)


@dataclass
class Batch:
    """What an optimizer step runs a rule on.

    Attributes
    ----------
    states
        (B, C, H, W) before it; no gradient flows into them.
    inputs
        By name, (B, T, H, W): each held for all steps of a frame.
    frames
        T.
    steps
        Steps of each frame; None for as many as the rule does.
    goal
        What the loss compares with.
    """

    states: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    frames: int = 1
    steps: int | None = None
    goal: Any = None


#: Loss of a batch: (outputs, batch) to a scalar; outputs are (B, T, C, H, W) after each frame.
Loss = Callable[[Tensor, Batch], Tensor]


class AnyTask(Generic[R]):
    """What `Trainer` asks a task for, whatever it trains; `Task` is the one to write your own by.

    Attributes
    ----------
    unit_gradients
        Whether the gradient of each parameter is brought to length 1 before each step. Else one
        that is longer than `train.MAX_NORM`, all parameters together, is shortened to that.
    """

    unit_gradients = False

    def begin(self, rule: R, options: LoopOptions, device: str) -> None:
        """Prepare for a training of `rule`, which is on `device`; InputError if it does not fit."""

    def next_batch(self, iteration: int) -> Batch:
        """Return what the iteration, counted from 1, runs the rule on."""
        raise NotImplementedError

    def run(self, rule: R, batch: Batch, iteration: int) -> tuple[Tensor, Tensor]:
        """Run the rule: outputs (B, T, C, H, W) with, states (B, C, H, W) without gradient."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return what training lowers, a scalar."""
        raise NotImplementedError

    def keep(self, batch: Batch, states: Tensor) -> None:
        """Take the states after an iteration that succeeded."""

    def held(self, rule: R) -> list[tuple[Tensor, Tensor]]:
        """Return parameters, and where each is left as it is."""
        return []

    def finish(self, rule: R) -> None:
        """Change the average of the weights that a training ends with."""

    def score(self, rule: R) -> float | None:
        """Return how good a rule is, in dB, the more the better; None if it is not known."""
        return None

    def describe(self, rule: R) -> dict[str, Any]:
        """Return what a checkpoint must agree in, as JSON holds it, but for the options."""
        return {}

    def record(self, rule: R) -> dict[str, Any]:
        """Return what the record of the training says of the task, as JSON holds it."""
        return {}

    @property
    def digests(self) -> dict[str, str]:
        """Of the clips that are seen, by name."""
        return {}

    @property
    def slots(self) -> list[Slot]:
        """Where the videos are, for a checkpoint."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name; `resume` writes into them."""
        return {}

    def restore(self, iteration: int, slots: Sequence[Slot]) -> None:
        """Go on after so many iterations, once the tensors have been written."""


class Task(AnyTask[TrainableGraph]):
    """A task for rules that are step graphs: subclass it.

    `start`, `batch` and `loss` are to be written, `keep`, `score` and `check` may be; `tensors`,
    too, if there is something to keep between iterations.

    Attributes
    ----------
    defaults
        How to train, where the user does not say.
    loss_name
        Of the loss, where it was exchanged for another.
    rule, options
        Of the training, once it began.
    """

    defaults = LoopOptions()
    loss_name: str = "its own"
    rule: FloatRule
    options: LoopOptions
    device: str = "cpu"

    def start(self) -> FloatRule:
        """Return the rule that training starts from, where the user names none."""
        raise InputError(f"task {type(self).__name__} brings no rule: name one to start from")

    def batch(self, iteration: int, rng: np.random.Generator) -> Batch:
        """Return what the iteration, counted from 1, runs the rule on.

        Parameters
        ----------
        rng
            The iteration's own: a training that is resumed draws the same.
        """
        raise NotImplementedError(f"task {type(self).__name__} has no method batch")

    def check(self, rule: FloatRule) -> None:
        """Raise InputError unless the task can be learned by rules of this form."""

    def initial(self, height: int, width: int) -> Tensor:
        """Return the states of a batch as the rule starts, (B, C, H, W)."""
        one = torch.from_numpy(self.rule.initial.state(height, width)).float()
        return one.repeat(self.options.batch, 1, 1, 1).to(self.device)

    def begin(self, rule: TrainableGraph, options: LoopOptions, device: str) -> None:
        """Note what is trained."""
        self.check(rule.rule)
        self.rule, self.options, self.device = rule.rule, options, device

    def next_batch(self, iteration: int) -> Batch:
        """Ask for the batch, and check it."""
        batch = self.batch(iteration, np.random.default_rng([self.options.seed, iteration]))
        self._check(batch)
        return batch

    def run(self, rule: TrainableGraph, batch: Batch, iteration: int) -> tuple[Tensor, Tensor]:
        """Run it; which random words it draws, the seed and the iteration say."""
        seed = int(np.random.default_rng([self.options.seed, iteration, 1]).integers(2**63))
        return rule.unroll(
            batch.states,
            batch.inputs,
            frames=batch.frames,
            steps=batch.steps,
            generator=torch.Generator().manual_seed(seed),
        )

    def held(self, rule: TrainableGraph) -> list[tuple[Tensor, Tensor]]:
        """Leave alone what is no parameter of the module that the graph was made of."""
        return rule.held()

    def describe(self, rule: TrainableGraph) -> dict[str, Any]:
        """Return what a checkpoint must agree in; a subclass adds what it was made with."""
        return {"task": type(self).__name__, "loss": self.loss_name, "graph": rule.shape}

    def record(self, rule: TrainableGraph) -> dict[str, Any]:
        """Return how the task is called; a subclass adds what it was made with."""
        return {"task": {"name": type(self).__name__, "loss": self.loss_name}}

    def _check(self, batch: Batch) -> None:
        name, graph = type(self).__name__, self.rule.graph
        if batch.states.dim() != 4 or batch.states.shape[1] != len(graph.channels):
            raise InputError(
                f"task {name} gives states of shape {tuple(batch.states.shape)}, the rule has "
                f"{len(graph.channels)} channels: give (B, {len(graph.channels)}, H, W)"
            )
        if set(batch.inputs) != set(graph.inputs):
            raise InputError(
                f"task {name} gives inputs {', '.join(batch.inputs) or 'none'}, the rule takes "
                f"{', '.join(graph.inputs) or 'none'}: give each of them"
            )
        count, _, *sides = batch.states.shape
        for key, tensor in batch.inputs.items():
            expected = (count, batch.frames, *sides)
            if tuple(tensor.shape) != expected:
                raise InputError(
                    f"task {name} gives input {key} of shape {tuple(tensor.shape)}, not "
                    f"{expected}: give (batch, frames, height, width)"
                )


class Pool:
    """States that a training goes on from, so that a rule learns to stay what it has become.

    After Mordvintsev et al. (2020): each iteration takes some out and puts them back as they are
    after it.

    Parameters
    ----------
    state
        (C, H, W) of all at the beginning.
    """

    def __init__(self, state: Tensor, size: int) -> None:
        self.states = state.repeat(size, 1, 1, 1)
        self._taken: Tensor = torch.zeros(0, dtype=torch.long)

    def take(
        self, count: int, rng: np.random.Generator, worst: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return copies of some, (count, C, H, W), by what `worst` says of each, the most first."""
        taken = torch.from_numpy(rng.choice(len(self.states), count, replace=False))
        order = worst(self.states[taken]).argsort(descending=True, stable=True)
        self._taken = taken[order.cpu()]
        return self.states[self._taken]

    def put(self, states: Tensor) -> None:
        """Put those back that were taken last, in the same order."""
        self.states[self._taken] = states


def psnr(error: float) -> float:
    """Return the peak signal-to-noise ratio of a mean squared error, in dB; the peak is 1."""
    return -10 * math.log10(max(error, 1e-12))
