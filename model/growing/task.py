"""The growing task of Mordvintsev et al. (2020): from one cell to a picture, which stays and heals.

The first four channels of a state are the picture, and a cell is alive where there is some of the
fourth around it.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.graph.surroundings import Initial

from ..float_rule import FloatRule
from ..front import trace
from ..options import LoopOptions
from ..tasks import Batch, Pool, Task, psnr
from ..trainable import TrainableGraph
from .module import GrowingNCA
from .picture import target_picture

#: Channels of a picture, and of these the one that tells where it is.
PICTURE, ALPHA = 4, 3

#: Steps after which what has grown is scored, and what has stayed; steps that a wound has to heal.
GROWN, STAYED, HEALED = 96, 500, 96

#: Runs a rule: values of a state (C, H, W) and a number of steps to the state after them.
Advance = Callable[[NDArray[np.float64], int], NDArray[np.float64]]


@dataclass(frozen=True)
class Growth:
    """How a rule grew, was wounded, and healed.

    Attributes
    ----------
    steps
        At which it was looked at, from the seed on; those after `STAYED` are after the wound.
    states
        (C, H, W) at these.
    psnr
        In dB, against the target, at these.
    wounded
        State (C, H, W) just after the wound.
    """

    steps: list[int]
    states: list[NDArray[np.float64]]
    psnr: list[float]
    wounded: NDArray[np.float64]

    @property
    def grown(self) -> float:
        """PSNR after `GROWN` steps, in dB."""
        return self.psnr[self.steps.index(GROWN)]

    @property
    def stayed(self) -> float:
        """PSNR after `STAYED` steps."""
        return self.psnr[self.steps.index(STAYED)]

    @property
    def healed(self) -> float:
        """PSNR `HEALED` steps after the wound."""
        return self.psnr[self.steps.index(STAYED + HEALED)]


class GrowingTask(Task):
    """Grow a picture of a seed.

    Parameters
    ----------
    target
        A picture file, or `lizard`.
    padding
        Cells around it.
    channels, hidden
        Of the rule that is trained where none is named.
    pool
        States that training goes on from.
    steps
        Fewest and most of an iteration.
    damage_from
        Iteration from which on three states of a batch are wounded.
    overflow
        Weight of how far states are beyond -1 to 1 in the loss: what an integer rule has to hold.

    Raises
    ------
    InputError
        If there is no such picture, or a number makes no sense.
    """

    unit_gradients = True
    defaults = LoopOptions(iterations=2400, batch=8, learning_rate=3e-3, average=0.99)

    def __init__(
        self,
        target: str = "lizard",
        padding: int = 4,
        channels: int = 12,
        hidden: int = 64,
        pool: int = 256,
        steps: tuple[int, int] = (32, 64),
        damage_from: int = 300,
        overflow: float = 0.3,
    ) -> None:
        for name, value, low in (
            ("padding", padding, 0),
            ("channels", channels, PICTURE),
            ("hidden", hidden, 1),
            ("pool", pool, 1),
            ("damage_from", damage_from, 0),
        ):
            if type(value) is not int or value < low:
                raise InputError(f"{name} {value} is below {low}, or no whole number: raise it")
        if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
            raise InputError(f"steps {steps} are not fewest and most: give steps=(32, 64)")
        if not overflow >= 0:
            raise InputError(f"overflow {overflow} is below 0: give 0.3")
        self.named = {
            "target": target,
            "padding": padding,
            "pool": pool,
            "steps": list(steps),
            "damage_from": damage_from,
            "overflow": overflow,
        }
        self.channels, self.hidden = channels, hidden
        self.pool_size, self.steps = pool, steps
        self.damage_from, self.overflow = damage_from, overflow
        pads = (padding, padding)
        self.target = np.pad(target_picture(target), ((0, 0), pads, pads))

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self | None:
        """Return the task that a rule was trained for, by its record; None if it was another.

        Raises
        ------
        InputError
            If its target is not there any more.
        """
        task = record.get("task")
        if not isinstance(task, dict) or task.get("name") != "growing":
            return None
        return cls(str(task.get("target")), int(task.get("padding", 4)))

    # ---- what training asks for ----

    def start(self) -> FloatRule:
        """Return a Growing NCA that does nothing yet, and its seed."""
        module = GrowingNCA(self.channels, self.hidden)
        torch.nn.init.zeros_(module.update.weight)
        traced = trace(module, self.channels)
        seed = np.ones(self.channels)
        seed[:ALPHA] = 0
        return FloatRule(traced.graph, initial=Initial.cell(seed), trained=traced.trained())

    def check(self, rule: FloatRule) -> None:
        """Refuse rules that show no picture, are given anything, or start of nothing."""
        if len(rule.graph.channels) < PICTURE:
            raise InputError(
                f"the rule has {len(rule.graph.channels)} channels, a picture has {PICTURE}: red, "
                "green, blue and alpha: choose another rule"
            )
        if rule.graph.inputs:
            raise InputError(
                f"the rule takes {', '.join(rule.graph.inputs)}, which nothing gives it when it "
                "grows: choose another rule"
            )
        if not rule.initial.patch.any():
            raise InputError(
                "the rule starts of nothing: import it again, to start from a cell or a .npy file"
            )

    def begin(self, rule: TrainableGraph, options: LoopOptions, device: str) -> None:
        """Fill the pool with seeds."""
        super().begin(rule, options, device)
        if options.batch > self.pool_size:
            raise InputError(
                f"batch {options.batch} is more than the pool of {self.pool_size}: choose fewer"
            )
        self._goal = torch.from_numpy(self.target).to(device)
        self._pool = Pool(self.initial(*self.target.shape[1:])[0], self.pool_size)

    def batch(self, iteration: int, rng: np.random.Generator) -> Batch:
        """Take states out of the pool: the worst becomes a seed, the three best are wounded."""
        states = self._pool.take(self.options.batch, rng, self._errors)
        states[0] = self.initial(*states.shape[2:])[0]
        if iteration > self.damage_from:
            for state in states[1:][-3:]:
                state *= torch.from_numpy(~wound(rng, *self.target.shape[1:])).to(state)
        return Batch(states, steps=int(rng.integers(self.steps[0], self.steps[1] + 1)))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Squared distance of the pictures from the target, and what is out of bounds."""
        states = outputs[:, -1]
        beyond = (states.abs() - 1).clamp(min=0).square().mean()
        return self._errors(states).mean() + self.overflow * beyond

    def keep(self, batch: Batch, states: Tensor) -> None:
        """Put the states back into the pool."""
        self._pool.put(states)

    def tensors(self) -> dict[str, Tensor]:
        """Return the pool."""
        return {"pool": self._pool.states}

    def describe(self, rule: TrainableGraph) -> dict[str, Any]:
        """Return the numbers of the task, and a digest of its target."""
        digest = sha256(self.target.tobytes()).hexdigest()[:16]
        return super().describe(rule) | self.named | {"picture": digest}

    def record(self, rule: TrainableGraph) -> dict[str, Any]:
        """Return the numbers of the task."""
        return {"task": {"name": "growing", "loss": self.loss_name} | self.named}

    def score(self, rule: TrainableGraph) -> float:
        """Return the least PSNR of what grew, stayed and healed, in dB."""
        generator = torch.Generator().manual_seed(0)

        @torch.no_grad()
        def advance(state: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
            start = torch.from_numpy(state).float()[None].to(self.device)
            _, after = rule.unroll(start, {}, frames=1, steps=steps, generator=generator)
            return after[0].cpu().double().numpy()

        found = self.grow(advance, rule.rule.initial)
        return min(found.grown, found.stayed, found.healed)

    def _errors(self, states: Tensor) -> Tensor:
        return (states[:, :PICTURE] - self._goal).square().mean((1, 2, 3))

    # ---- what evaluation and pictures ask for ----

    def psnr(self, state: NDArray[np.floating]) -> float:
        """Return the PSNR of a state's picture (C, H, W) against the target, in dB; the peak is 1.

        Of red, green and blue, each times alpha, and alpha, over all cells.
        """
        return psnr(float(np.square(state[:PICTURE] - self.target).mean()))

    def grow(self, advance: Advance, initial: Initial) -> Growth:
        """Grow a rule, float or integer, from its seed, wound it, and let it heal.

        A third of the picture, its right one, is wiped out when it has stayed.
        """
        state = initial.state(*self.target.shape[1:])
        steps = [0, 8, 16, 24, 32, 48, 64, GROWN, 192, STAYED]
        states = [state]
        for before, after in itertools.pairwise(steps):
            states.append(advance(states[-1], after - before))
        wounded = states[-1] * ~self.third()
        healing = [4, 16, HEALED, 2 * HEALED]
        now = wounded
        for before, after in zip([0, *healing], healing, strict=False):
            now = advance(now, after - before)
            states.append(now)
        return Growth(
            [*steps, *(STAYED + after for after in healing)],
            states,
            [self.psnr(one) for one in states],
            wounded,
        )

    def third(self) -> NDArray[np.bool_]:
        """Return the cells (H, W) of the right third of the picture, and what is right of it."""
        columns = np.flatnonzero(self.target[ALPHA].any(0))
        edge = columns[0] + round(2 / 3 * (columns[-1] + 1 - columns[0]))
        shape = self.target.shape[1:]
        found: NDArray[np.bool_] = np.broadcast_to(np.arange(shape[1]) >= edge, shape)
        return found


def wound(rng: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """Draw cells to wipe out, (H, W): a disc, or all on one side of a line."""
    y, x = np.mgrid[:height, :width]
    side = min(height, width)
    if rng.random() < 0.5:
        row, column = rng.uniform(0.2, 0.8, 2) * (height, width)
        return np.asarray(np.hypot(y - row, x - column) < rng.uniform(0.12, 0.28) * side)
    angle = rng.uniform(0, 2 * np.pi)
    across = (y - height / 2) * np.sin(angle) + (x - width / 2) * np.cos(angle)
    return np.asarray(across > rng.uniform(0.1, 0.4) * side)
