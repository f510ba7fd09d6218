"""Training by truncated backpropagation through time, with the state carried across chunks."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_optimizer import SOAP
from torch import Tensor

from scotopia.graph.errors import InputError

from . import score
from .blocks import to_cells
from .checkpoint import Checkpoint, digests
from .config import RuleConfig
from .files import with_clips
from .memory import check_memory
from .options import TrainOptions
from .rule import Rule, to_state
from .sampling import check_seen, sample_mask
from .start import held_weights, settle
from .task import reconstruct
from .unroll import unroll
from .video import Clip
from .videos import Videos

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

#: Pixels of which one must arrive at the highest density: 16 iterations' of the presets or so.
SEEN_PIXELS = 2**22

#: Bytes that `Videos` keeps of a video beside its pixels, measured.
BYTES_PER_VIDEO = 800


class Trainer:
    """A training, an iteration at a time.

    On one machine, with one number of threads, the rule's first weights, the clips and the options
    decide every bit of the weights, whether or not the training was stopped and resumed.

    Parameters
    ----------
    rule
        Trained in place, moved to `device`.
    clips, synthetic
        See `Videos`.
    device
        Where the rule runs, see `choose_device`.
    teacher
        A rule of the same block, whose predictions of the same samples are learned in place of the
        truth (Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015): what a
        quantized rule has lost is asked for, and nothing else.

    Attributes
    ----------
    iteration
        Iterations done.
    average
        The rule with the running average of its weights.

    Raises
    ------
    InputError
        If there is no clip, one is smaller than the crop, two have one name, or as
        `check_options`.
    """

    def __init__(
        self,
        rule: Rule,
        clips: Sequence[Clip],
        options: TrainOptions,
        *,
        synthetic: Sequence[Clip] = (),
        device: str = "cpu",
        teacher: Rule | None = None,
    ) -> None:
        check_options(rule.config, options, device, teacher)
        self.clips = digests([*clips, *synthetic])
        self.options = options
        self._record: dict[str, Any] = {
            "synthetic_clips": len(synthetic),
            "options": options.describe(),
            "device": device,
            "scotopia": version("scotopia"),
        }
        for seen in (rule.training_record, {} if teacher is None else teacher.training_record):
            self._record = with_clips(self._record, seen.get("clips", ()), seen.get("digests", {}))
        shown = {clip.name: self.clips[clip.name] for clip in clips}
        self._record = with_clips(self._record, shown, shown)
        self.rule = rule.to(device)
        self._held = held_weights(self.rule)
        self.average = copy.deepcopy(self.rule).requires_grad_(False)
        self.iteration = 0
        self._videos = Videos(clips, options, synthetic)
        self._optimizer = _new_optimizer(self.rule, options.optimizer)
        side = options.crop // rule.config.block
        self._state = rule.initial_state(options.batch, side, side)
        self._teacher = teacher and copy.deepcopy(teacher).requires_grad_(False).to(device)
        if self._teacher is not None:
            self._teacher_state = self._teacher.initial_state(options.batch, side, side)

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
        chunk = self._videos.next_chunk()
        frames, samples = self._cells(to_state(chunk.frames)), self._cells(to_state(chunk.samples))
        valids = self._cells(chunk.valids)
        self._state[chunk.new] = 0
        predictions, state = unroll(
            self.rule,
            self._state,
            samples[:, :-1],
            valids[:, :-1],
            self._videos.fire_generator(),
        )
        if self._teacher is not None:
            self._teacher_state[chunk.new] = 0
            frames, self._teacher_state = unroll(
                self._teacher,
                self._teacher_state,
                samples[:, :-1],
                valids[:, :-1],
                self._videos.fire_generator(),
            )
        loss = self.options.loss_function(predictions, frames, samples[:, 1:], valids[:, 1:])
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
        self._state = state
        self.iteration = iteration
        return loss.item()

    def result(self) -> Rule:
        """Return what training is for: a copy of the average, settled (see `settle`).

        Its record tells how it was trained, and all clips that it, what it began as, and the
        teacher have seen, but for synthetic ones, which are counted.
        """
        rule = copy.deepcopy(self.average)
        settle(rule)
        rule.training_record = self._record | {"iterations": self.iteration}
        return rule

    def checkpoint(self, **notes: object) -> Checkpoint:
        """Return all that `resume` needs, and `notes`."""
        return Checkpoint(
            self.iteration,
            list(self._videos.slots),
            dataclasses.asdict(self.rule.config),
            self.options.describe(),
            self.clips,
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
        self._videos.restore(checkpoint.iteration, checkpoint.slots)

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint keeps, but for counts of steps, by name; not copied."""
        found = {"state": self._state}
        if self._teacher is not None:
            found["teacher_state"] = self._teacher_state
        averages = self.average.parameters()
        for (name, weight), average in zip(self.rule.named_parameters(), averages, strict=True):
            found |= {f"weight/{name}": weight, f"average/{name}": average}
            for kept, value in self._optimizer.state[weight].items():
                for place, tensor in enumerate(value if isinstance(value, list) else [value]):
                    if isinstance(tensor, Tensor) and kept != "step":
                        found[f"{kept}{place}/{name}"] = tensor
        return found

    def _cells(self, pixels: Tensor) -> Tensor:
        return to_cells(pixels, self.rule.config.block).to(self._state.device)


def check_options(
    config: RuleConfig, options: TrainOptions, device: str, teacher: Rule | None = None
) -> None:
    """Refuse what cannot be trained so, whatever the clips.

    Raises
    ------
    InputError
        If the crop does not divide into the rule's cells, the teacher has others, or teaches
        nothing, an iteration takes more memory than there is, or no pixel arrives.
    """
    block = config.block
    if teacher is not None and teacher.config.block != block:
        raise InputError(
            f"the teacher's cells stand for {teacher.config.block} x {teacher.config.block} "
            f"pixels, the rule's for {block} x {block}: choose another teacher"
        )
    if options.crop % block:
        raise InputError(
            f"crop {options.crop} does not divide into cells of {block} x {block} pixels: "
            f"choose a multiple of {block}"
        )
    if teacher is not None and options.loss == "observed":
        raise InputError("loss observed reads no teacher: choose dense, or leave it out")
    extent = f"batch {options.batch}, chunk {options.chunk} and crop {options.crop}"
    check_memory(extent, least_bytes(config, options, device), "choose smaller ones")
    if config.inputs:
        frames = min(
            options.iterations * options.batch * options.chunk,
            max(1, SEEN_PIXELS // options.crop**2),
        )
        # What no pixel of arrives at the highest density, which few videos have, teaches nothing.
        densest, shape = options.densities[2], (frames, options.crop, options.crop)
        mask = sample_mask(shape, densest, options.seed)
        what = f"densities {', '.join(f'{density:g}' for density in options.densities)}"
        check_seen(what, mask, densest, options.seed)


def least_bytes(config: RuleConfig, options: TrainOptions, device: str) -> int:
    """Bytes that an iteration takes of the machine's memory, at least.

    Those of its videos, and on a CPU of what the gradient is computed from, by `fused` as well as
    by PyTorch: state and hidden neurons of every step.
    """
    pixels = options.crop**2
    numbers = 3 * (options.chunk + 1) * pixels  # frames, samples, valids
    if device == "cpu":
        words = len(config.channel_names) + config.hidden
        steps = options.chunk * config.steps_per_frame
        numbers += words * steps * (pixels // config.pixels)
    return options.batch * (4 * numbers + BYTES_PER_VIDEO)


def train(
    rule: Rule,
    clips: Sequence[Clip],
    options: TrainOptions,
    on_iteration: Callable[[int, float], None] = lambda iteration, loss: None,
    *,
    device: str = "cpu",
) -> None:
    """Train `rule` in place; it ends as `Trainer.result`, its record included.

    Parameters
    ----------
    device
        Where the rule is moved to, and stays: see `choose_device`.
    on_iteration
        Called after each optimizer step with its number, from 1, and its loss.

    Raises
    ------
    InputError
        As for `Trainer`.
    FloatingPointError
        If the training diverges; the rule then holds the average of its last finite weights.
    """
    trainer = Trainer(rule, clips, options, device=choose_device(device))
    try:
        while trainer.iteration < options.iterations:
            loss = trainer.step()
            on_iteration(trainer.iteration, loss)
    finally:
        result = trainer.result()
        rule.load_state_dict(result.state_dict())
        rule.training_record = result.training_record


def validate(rule: Rule, clips: Sequence[Clip], density: float = 0.01, seed: int = 0) -> float:
    """Mean PSNR in dB of a rule's reconstructions of clips, warm-up not counted.

    Frames lose the last rows and columns that do not fill a cell.

    Raises
    ------
    InputError
        If a clip is too short to be scored.
    """
    rule = copy.deepcopy(rule).to("cpu")
    block = rule.config.block
    found = []
    for clip in clips:
        height, width = (side // block * block for side in clip.frames.shape[1:])
        frames = clip.frames[:, :height, :width]
        estimates = reconstruct(rule, frames, sample_mask(frames.shape, density, seed))
        found.append(score.psnr(frames, estimates))
    return float(np.mean(found))


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


def _new_optimizer(rule: Rule, name: str) -> torch.optim.Optimizer:
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


def _check_finite(name: str, value: Tensor | float, iteration: int) -> None:
    number = value.item() if isinstance(value, Tensor) else value
    if not math.isfinite(number):
        raise FloatingPointError(f"the {name} is {number} at iteration {iteration}")
