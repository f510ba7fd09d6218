"""Training: one loop for all tasks, which moves the weights, averages them and can be resumed."""

import copy
import math
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic

import torch
from pytorch_optimizer import SOAP
from torch import Tensor, nn

from scotopia.graph.errors import InputError

from .checkpoint import Checkpoint
from .options import LoopOptions
from .tasks import AnyTask, R

#: SOAP (Vyas et al., 2024, arXiv:2409.11321): Adam in the eigenbasis of Shampoo's preconditioner.
#: The layers are so small that it costs nothing beside the gradient. The second moments forget in
#: 100 iterations, not 1,000: the gradient's size changes as fast as the learning rate does.
SOAP_OPTIONS: dict[str, Any] = {
    "betas": (0.9, 0.99),
    "shampoo_beta": 0.97,
    "weight_decay": 0,
    "precondition_frequency": 5,
    "precondition_1d": True,
}

#: Longest gradient: rare videos that a rule fails on must not undo what it learned from others.
MAX_NORM = 1.0


class Trainer(Generic[R]):
    """A training, an iteration at a time.

    On one machine, with one number of threads, the rule's first weights, the task and the options
    decide every bit of the weights, whether or not the training was stopped and resumed.

    Parameters
    ----------
    rule
        Trained in place, moved to `device`.
    task
        What it learns.
    device
        Where the rule runs, see `choose_device`.

    Attributes
    ----------
    iteration
        Iterations done.
    average
        The rule with the running average of its weights.

    Raises
    ------
    InputError
        If the task does not fit the rule or the options.
    """

    def __init__(
        self, rule: R, task: AnyTask[R], options: LoopOptions, *, device: str = "cpu"
    ) -> None:
        self.rule, self.task, self.options = rule.to(device), task, options
        task.begin(self.rule, options, device)
        self._record: dict[str, Any] = task.record(rule) | {
            "options": options.describe(),
            "device": device,
            "scotopia": version("scotopia"),
        }
        self._held = task.held(self.rule)
        self.average = copy.deepcopy(self.rule).requires_grad_(False)
        self.iteration = 0
        self._optimizer = _new_optimizer(self.rule, options.optimizer)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next iteration."""
        return self.options.learning_rate * learning_rate_factor(
            self.iteration, self.options.iterations
        )

    def step(self) -> float:
        """Do one iteration and return its loss.

        Raises
        ------
        FloatingPointError
            If the loss, the gradient or a new weight is not finite: the training is over. `average`
            is as it was before.
        """
        iteration = self.iteration + 1
        batch = self.task.next_batch(iteration)
        outputs, states = self.task.run(self.rule, batch, iteration)
        loss = self.task.loss(outputs, batch)
        _check_loss(loss)
        _check_finite("loss", loss, iteration)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        kept = []
        for weight, mask in self._held:
            assert weight.grad is not None
            weight.grad[mask] = 0
            kept.append(weight[mask].detach())
        norm = torch.nn.utils.clip_grad_norm_(self.rule.parameters(), MAX_NORM)
        _check_finite("gradient", norm, iteration)
        if self.task.unit_gradients:
            for weight in self.rule.parameters():
                assert weight.grad is not None
                weight.grad /= weight.grad.norm() + 1e-8
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.step()
        with torch.no_grad():
            for (weight, mask), values in zip(self._held, kept, strict=True):
                weight[mask] = values  # SOAP may move what has no gradient, too
            weights = list(self.rule.parameters())
            _check_finite("sum of the weights", sum(w.abs().sum() for w in weights), iteration)
            decay = average_decay(iteration, self.options.average)
            for average, weight in zip(self.average.parameters(), weights, strict=True):
                average.lerp_(weight, 1 - decay)
        self.task.keep(batch, states)
        self.iteration = iteration
        return loss.item()

    def result(self) -> R:
        """Return what training is for: a copy of the average, as the task finishes it.

        Its record tells how it was trained.
        """
        rule = copy.deepcopy(self.average)
        self.task.finish(rule)
        rule.training_record = self._record | {"iterations": self.iteration}
        return rule

    def checkpoint(self, **notes: object) -> Checkpoint:
        """Return all that `resume` needs, and `notes`."""
        return Checkpoint(
            self.iteration,
            list(self.task.slots),
            self.task.describe(self.rule),
            self.options.describe(),
            dict(self.task.digests),
            dict(notes),
            {
                name: tensor.detach().cpu().numpy().copy()
                for name, tensor in self._tensors().items()
            },
        )

    def resume(self, checkpoint: Checkpoint, path: Path) -> None:
        """Go on from a checkpoint.

        If more iterations are asked for than were, the learning rate goes on as if they had been
        from the start.

        Raises
        ------
        InputError
            If it was made with another shape, other options or other clips, or does not fit them.
            The message calls it `path`.
        """
        mine = self.checkpoint()
        checkpoint.check_same(path, mine.config, mine.options)
        checkpoint.check_same_clips(path, mine.clips)

        def shapes(of: Checkpoint) -> dict[str, tuple[object, ...]]:
            return {name: (array.dtype, *array.shape) for name, array in of.tensors.items()}

        fits = shapes(mine) == shapes(checkpoint) and len(mine.slots) == len(checkpoint.slots)
        if not fits:
            raise InputError(f"checkpoint {path} is damaged: remove it to start anew")
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(torch.from_numpy(checkpoint.tensors[name]))
        for group in self._optimizer.param_groups:  # SOAP counts here, Adam by weight
            group["step"] = checkpoint.iteration + 1
        for kept in self._optimizer.state.values():
            if "step" in kept:
                kept["step"].fill_(checkpoint.iteration + 1)
        self.iteration = checkpoint.iteration
        self.task.restore(checkpoint.iteration, checkpoint.slots)

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint keeps, but for counts of steps, by name; not copied."""
        found = dict(self.task.tensors())
        averages = self.average.parameters()
        for (name, weight), average in zip(self.rule.named_parameters(), averages, strict=True):
            found |= {f"weight/{name}": weight, f"average/{name}": average}
            for kept, value in self._optimizer.state[weight].items():
                for place, tensor in enumerate(value if isinstance(value, list) else [value]):
                    if isinstance(tensor, Tensor) and kept != "step":
                        found[f"{kept}{place}/{name}"] = tensor
        return found


def run(
    trainer: Trainer[R], on_iteration: Callable[[int, float], None] = lambda iteration, loss: None
) -> R:
    """Do what is left of a training, and return its result.

    Parameters
    ----------
    on_iteration
        Called after each optimizer step with its number, from 1, and its loss.

    Raises
    ------
    FloatingPointError
        If it diverges; see `Trainer.step`.
    """
    while trainer.iteration < trainer.options.iterations:
        loss = trainer.step()
        on_iteration(trainer.iteration, loss)
    return trainer.result()


def choose_device(name: str) -> str:
    """Return the device of a name: "auto" for CUDA or MPS where there is one, else the CPU.

    "cuda:1" is the second of several. All figures in the documents were measured on CPUs.

    Raises
    ------
    InputError
        If the device is unknown or not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device in there if there[device])
    kind, colon, number = name.partition(":")
    numbered = kind == "cuda" and re.fullmatch("[0-9]{1,4}", number)
    if kind not in there or (colon and not numbered):
        raise InputError(f"device {name!r} is unknown: choose one of auto, {', '.join(there)}")
    if not there[kind] or (numbered and int(number) >= torch.cuda.device_count()):
        raise InputError(f"device {name} is not there: choose auto or cpu")
    return name


def _new_optimizer(rule: nn.Module, name: str) -> torch.optim.Optimizer:
    """Make an optimizer, its first step done, on a gradient of zeros: it has all of its state.

    SOAP's first step only takes a gradient's measure.
    """

    def group(weight: Tensor) -> dict[str, Any]:
        # As a matrix: one side for the outputs, one for what they read, taps and inputs together.
        # (A tensor that merges into one side alone, the library reshapes wrongly.)
        sides = len(weight), weight.numel() // len(weight)
        merge = weight.dim() > 1 and min(sides) > 1
        return {
            "params": [weight],
            "merge_dims": merge,
            "max_precondition_dim": max(sides) if merge else weight.numel(),
        }

    optimizer: torch.optim.Optimizer
    if name == "adam":
        optimizer = torch.optim.Adam(rule.parameters(), betas=SOAP_OPTIONS["betas"])
    else:
        optimizer = SOAP([group(weight) for weight in rule.parameters()], **SOAP_OPTIONS)
    for weight in rule.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def average_decay(iteration: int, decay: float) -> float:
    """Decay of the running average: grows from nothing, so that it forgets the first weights."""
    return min(decay, (1 + iteration) / (10 + iteration))


def learning_rate_factor(iteration: int, iterations: int) -> float:
    """Warm up over the first 2 %, then fall as a cosine to 1 %."""
    warm_up = max(1, iterations // 50)
    if iteration < warm_up:
        return (iteration + 1) / warm_up
    progress = (iteration - warm_up) / max(1, iterations - warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def _check_loss(loss: object) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = (
            f"of shape {tuple(loss.shape)}"
            if isinstance(loss, Tensor)
            else f"a {type(loss).__name__}"
        )
        raise InputError(f"the loss is no number, {what}: return a scalar tensor")
    if not loss.requires_grad:
        raise InputError("the loss depends on no weight: compute it of the outputs")


def _check_finite(name: str, value: Tensor | float, iteration: int) -> None:
    number = value.item() if isinstance(value, Tensor) else value
    if not math.isfinite(number):
        raise FloatingPointError(f"the {name} is {number} at iteration {iteration}")
