"""The scotopic task as training sees it: videos, of which few pixels arrive, chunk by chunk."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from scotopia.graph.errors import InputError

from .. import score
from ..blocks import to_cells
from ..checkpoint import digests
from ..config import RuleConfig
from ..files import with_clips
from ..memory import check_memory
from ..options import LoopOptions, TrainOptions
from ..rule import Rule, to_state
from ..sampling import check_seen, sample_mask
from ..start import held_weights, settle
from ..task import reconstruct
from ..tasks import AnyTask, Batch
from ..train import Trainer, choose_device, run
from ..unroll import unroll
from ..video import Clip
from ..videos import Slot, Videos

#: Pixels of which one must arrive at the highest density: 16 iterations' of the presets or so.
SEEN_PIXELS = 2**22

#: Bytes that `Videos` keeps of a video beside its pixels, measured.
BYTES_PER_VIDEO = 800


class ScotopicTask(AnyTask[Rule]):
    """See videos by a few of their pixels, and predict them all.

    The state is carried across chunks, and the gradient cut there.

    Parameters
    ----------
    clips, synthetic
        See `Videos`.
    teacher
        A rule of the same block, whose predictions of the same samples are learned in place of the
        truth (Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015): what a
        quantized rule has lost is asked for, and nothing else.

    Raises
    ------
    InputError
        If there is no clip, one is smaller than the crop, two have one name.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        options: TrainOptions,
        *,
        synthetic: Sequence[Clip] = (),
        teacher: Rule | None = None,
        validation: Sequence[Clip] = (),
    ) -> None:
        self._digests = digests([*clips, *synthetic])
        self._shown = {clip.name: self._digests[clip.name] for clip in clips}
        self._synthetic, self._options, self._validation = len(synthetic), options, validation
        self._videos = Videos(clips, options, synthetic)
        self._teacher = teacher and copy.deepcopy(teacher).requires_grad_(False)

    def begin(self, rule: Rule, options: LoopOptions, device: str) -> None:
        """Let all videos begin; errors as `check_options`."""
        check_options(rule.config, self._options, device, self._teacher)
        side = self._options.crop // rule.config.block
        self._state = rule.initial_state(self._options.batch, side, side)
        self._block = rule.config.block
        if self._teacher is not None:
            self._teacher.to(device)
            self._teacher_state = self._teacher.initial_state(self._options.batch, side, side)

    def next_batch(self, iteration: int) -> Batch:
        """Play the videos for a chunk; the goal is what they show, or what the teacher sees."""
        chunk = self._videos.next_chunk()
        frames, samples = self._cells(to_state(chunk.frames)), self._cells(to_state(chunk.samples))
        valids = self._cells(chunk.valids)
        self._state[chunk.new] = 0
        if self._teacher is not None:
            self._teacher_state[chunk.new] = 0
            frames, self._teacher_state = unroll(
                self._teacher,
                self._teacher_state,
                samples[:, :-1],
                valids[:, :-1],
                self._videos.fire_generator(),
            )
        return Batch(
            self._state, {"sample": samples, "valid": valids}, self._options.chunk, goal=frames
        )

    def run(self, rule: Rule, batch: Batch, iteration: int) -> tuple[Tensor, Tensor]:
        """Predict all frames but the last, which is the first of the next chunk."""
        samples, valids = (batch.inputs[name][:, :-1] for name in ("sample", "valid"))
        return unroll(rule, batch.states, samples, valids, self._videos.fire_generator())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Compare predictions with the goal, or with the samples of the frame after."""
        samples, valids = (batch.inputs[name][:, 1:] for name in ("sample", "valid"))
        return self._options.loss_function(outputs, batch.goal, samples, valids)

    def keep(self, batch: Batch, states: Tensor) -> None:
        """Go on from there in the next chunk."""
        self._state = states

    def held(self, rule: Rule) -> list[tuple[Tensor, Tensor]]:
        """See `held_weights`."""
        return held_weights(rule)

    def finish(self, rule: Rule) -> None:
        """See `settle`."""
        settle(rule)

    def score(self, rule: Rule) -> float | None:
        """Score it on the clips for validation."""
        return validate(rule, self._validation) if self._validation else None

    def describe(self, rule: Rule) -> dict[str, Any]:
        """Return the rule's shape."""
        return dataclasses.asdict(rule.config)

    def record(self, rule: Rule) -> dict[str, Any]:
        """Name all clips that the rule, what it began as, and the teacher have seen.

        But for synthetic ones, which are counted.
        """
        found: dict[str, Any] = {"synthetic_clips": self._synthetic}
        teacher = {} if self._teacher is None else self._teacher.training_record
        for seen in (rule.training_record, teacher):
            found = with_clips(found, seen.get("clips", ()), seen.get("digests", {}))
        return with_clips(found, self._shown, self._shown)

    @property
    def digests(self) -> dict[str, str]:
        """Of all clips, by name."""
        return self._digests

    @property
    def slots(self) -> list[Slot]:
        """Where the videos are."""
        return self._videos.slots

    def tensors(self) -> dict[str, Tensor]:
        """States of the cells, the teacher's too."""
        found = {"state": self._state}
        if self._teacher is not None:
            found["teacher_state"] = self._teacher_state
        return found

    def restore(self, iteration: int, slots: Sequence[Slot]) -> None:
        """Go on where the videos were."""
        self._videos.restore(iteration, slots)

    def _cells(self, pixels: Tensor) -> Tensor:
        return to_cells(pixels, self._block).to(self._state.device)


def new_trainer(
    rule: Rule,
    clips: Sequence[Clip],
    options: TrainOptions,
    *,
    synthetic: Sequence[Clip] = (),
    device: str = "cpu",
    teacher: Rule | None = None,
) -> Trainer[Rule]:
    """Return a training of the scotopic task; arguments and errors as of `ScotopicTask`."""
    check_options(rule.config, options, device, teacher)
    task = ScotopicTask(clips, options, synthetic=synthetic, teacher=teacher)
    return Trainer(rule, task, options, device=device)


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

    Those of its videos, and on a CPU of what the gradient is computed from, compiled as well as
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
    trainer = new_trainer(rule, clips, options, device=choose_device(device))
    try:
        run(trainer, on_iteration)
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
