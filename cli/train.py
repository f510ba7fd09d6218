"""What `scotopia train` does: clips in, a rule out, and a checkpoint to go on from."""

import csv
import hashlib
import io
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Rounding
from scotopia.model.checkpoint import Checkpoint, digests
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.model.files import (
    is_special,
    locked,
    naming,
    rule_kind,
    write_atomically,
)
from scotopia.model.memory import check_memory
from scotopia.model.options import TrainOptions
from scotopia.model.presets import PRESETS
from scotopia.model.rule import Rule
from scotopia.model.sampling import seen_mask
from scotopia.model.score import check_scorable
from scotopia.model.start import can_start_as_filter, start_as, start_as_filter
from scotopia.model.synthetic import synthetic_clips
from scotopia.model.train import Trainer, check_options, choose_device, validate
from scotopia.model.video import Clip
from scotopia.model.videos import check_crop
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.feedback import round_weights
from scotopia.quantize.formats import Formats, Precision, check_scales
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.post_training import Calibration

from .clips import read_clips
from .outputs import CHECKPOINT
from .rules import parse_rounding, rule_path
from .stop import Stop

#: Most seconds of work that a kill may cost.
CHECKPOINT_EVERY = 60.0

#: Frames of a synthetic clip to train on, and their side, pixels.
SYNTHETIC_FRAMES, SYNTHETIC_SIDE = 120, 128

#: Synthetic clips that nobody trains on: their numbers begin here.
FIRST_VALIDATION_CLIP = 1_000_000

#: What the names of the tensors of the rule that scored best begin with, in a checkpoint.
BEST = "best/"

LOG_COLUMNS = ("iteration", "seconds", "loss", "learning_rate", "validation_psnr")

#: Inputs that tell a cell a sample's brightness; one of them is needed to learn from samples.
SEEING = frozenset({"sample", "flicker", "innovation", "recall"})

#: What quantization-aware training calibrates with: this many clips, this many frames of each.
CALIBRATION_CLIPS, CALIBRATION_FRAMES = 8, 80

Fields = TypeVar("Fields", RuleConfig, TrainOptions)


@dataclass(frozen=True)
class Start:
    """What the training of a float rule starts from.

    Attributes
    ----------
    name
        "filter" for `start_as_filter` where the shape has room for it, "random" for chance alone,
        else that of `rule`.
    rule
        For `start_as`.
    """

    name: str
    rule: Rule | None = None

    def __str__(self) -> str:
        return self.name if self.rule is None else f"{self.name} ({_digest(self.rule)})"

    @classmethod
    def named(cls, name: str) -> "Start":
        """Read the rule, if it is one's name or file.

        Raises
        ------
        InputError
            If there is none, or it is no float rule.
        """
        if name in ("filter", "random"):
            return cls(name)
        try:
            return cls(name, Rule.load(rule_path(name)))
        except InputError as error:
            raise InputError(f"start {name!r} is neither filter nor random, and {error}") from error

    def new_rule(self, config: RuleConfig) -> Rule:
        """Make a rule; what is left to chance, by torch's generator."""
        rule = Rule(config)
        if self.rule is not None:
            start_as(rule, self.rule)
        elif self.name == "filter" and can_start_as_filter(config):
            start_as_filter(rule)
        return rule


@dataclass
class Job:
    """What to train, and what to write.

    Attributes
    ----------
    out
        Rule file; the checkpoint lies beside it.
    clips, synthetic
        Names of clips, folders of clips; number of synthetic ones.
    validation, validate_every
        Names of clips to score the rule on, none for four synthetic ones; seconds between two
        scores, 0 for one at the end only.
    size
        Side of the frames of these clips, see `read_clip`.
    resume
        Whether to go on from the checkpoint.
    device
        See `choose_device`.
    log
        CSV file with a row for each iteration.
    command
        How the user put it, for the record.
    start
        What a float rule starts from.
    teacher
        See `Trainer`.
    quantization
        How to train on the grid of an integer rule, which is then what is written; None for a float
        rule. Then `start` is not used, and `config` is the quantization's.
    """

    out: Path
    config: RuleConfig
    options: TrainOptions
    clips: Sequence[str] = ()
    synthetic: int = 64
    validation: Sequence[str] = ()
    validate_every: float = 60.0
    size: int | None = None
    resume: bool = False
    device: str = "auto"
    log: Path | None = None
    command: str = ""
    start: Start = Start("filter")
    teacher: "Teacher | None" = None
    quantization: "Quantization | None" = None

    @property
    def beginning(self) -> str:
        """What training starts from, in words that a checkpoint keeps."""
        taught = "" if self.teacher is None else f", taught by {self.teacher}"
        return str(self.quantization or self.start) + taught

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint lies."""
        return self.out.with_suffix(CHECKPOINT)


@dataclass(frozen=True)
class Teacher:
    """A float rule, by its name and as it was read."""

    name: str
    rule: Rule

    def __str__(self) -> str:
        return f"{self.name} ({_digest(self.rule)})"


@dataclass(frozen=True)
class Quantization:
    """What quantization-aware training starts from, and the formats it trains for.

    Attributes
    ----------
    name, rule
        A rule, by its name and as it was read: a float rule, or an integer rule, which keeps its
        formats.
    precision, rounding
        Of a float rule, see `Formats.choose`. Ranges are measured on the clips that are trained on.
    scales
        Of a float rule, see `Formats.choose`.
    dither
        Of a float rule, see `LayeredRule`.
    """

    name: str
    rule: Rule | LayeredRule
    precision: Precision
    rounding: Rounding
    scales: str = "kernel"
    dither: int = 0

    @property
    def config(self) -> RuleConfig:
        """Shape of what is trained: as integers, a perception that has filters is a full one."""
        return replace(self.rule.config, perception="full")

    def __str__(self) -> str:
        if isinstance(self.rule, LayeredRule):
            return f"{self.name} ({_digest(self.rule)}), in its formats"
        bits = ", ".join(f"{bits}-bit {name}" for name, bits in self.precision.given.items())
        rest = f"{self.rounding}, scales by {self.scales}, dither {self.dither}"
        return f"{self.name} ({_digest(self.rule)}), {bits}, {rest}"

    def new_rule(self, clips: Sequence[Clip], density: float) -> FakeQuantRule:
        """Choose the formats, by what the first frames of some of the clips need."""
        if isinstance(self.rule, LayeredRule):
            twin = FakeQuantRule.of(self.rule)
            return FakeQuantRule(twin.float(), twin.formats)
        chosen = clips[:: -(-len(clips) // CALIBRATION_CLIPS)]
        shown = [Clip(clip.name, clip.frames[:CALIBRATION_FRAMES]) for clip in chosen]
        calibration = Calibration.measure(self.rule, shown, density)
        hidden = calibration.formats(self.precision.hidden)
        formats = replace(
            Formats.choose(
                calibration.rule, hidden, self.precision, self.rounding, scales=self.scales
            ),
            dither=self.dither,
        )
        # On the grid from the start: what is left to learn is what rounding the state costs.
        twin = FakeQuantRule(round_weights(calibration.rule, formats, calibration.moments), formats)
        twin.integer_rule().with_proof()  # refused now, if it is
        return twin


def _digest(rule: Rule | LayeredRule) -> str:
    """16 hexadecimal digits of SHA-256 over a rule's weights."""
    layers = rule.layers() if isinstance(rule, Rule) else FakeQuantRule.of(rule).layers()
    found = hashlib.sha256()
    for tensor in layers:
        found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()[:16]


@dataclass
class _Progress:
    """What a checkpoint notes beside the training itself."""

    seconds: float = 0.0
    psnr: float | None = None  # the last validation's, dB
    best_psnr: float | None = None
    best_iteration: int = 0
    validation: dict[str, str] = field(default_factory=dict)  # digests of clips, by name
    loss: float | None = None  # a running mean, to show
    start: str = ""


def override(preset: Fields, **given: Any) -> Fields:
    """Return the preset with the fields that a user gave; None is one that was not given."""
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Names that a user separated by commas; "" for none."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def parse_densities(text: str | None) -> tuple[float, float, float] | None:
    """Three numbers that a user separated by commas.

    Raises
    ------
    InputError
        If it is something else.
    """
    if text is None:
        return None
    try:
        low, likeliest, high = map(float, text.split(","))
    except ValueError as error:
        raise InputError(
            f"densities {text!r} are not three numbers: give LOWEST,LIKELIEST,HIGHEST, "
            "for instance 0.005,0.01,0.04"
        ) from error
    return low, likeliest, high


def parse_quantization(
    name: str | None,
    bits: dict[str, int | None],
    rounding: str | None,
    shape: dict[str, Any],
    scales: str | None = None,
    dither: int | None = None,
) -> Quantization | None:
    """Read the float rule that quantization-aware training starts from; None without a name.

    Parameters
    ----------
    bits
        Fields of `Precision`; None is one that was not given.
    shape
        Fields of `RuleConfig`, of which none may be given beside a rule.
    scales, dither
        Of `Quantization`; None is one that was not given.

    Raises
    ------
    InputError
        If an option makes no sense with, or without, a rule; or the rule cannot be read.
    """
    widths = {part: width for part, width in bits.items() if width is not None}
    given: dict[str, Any] = {f"{part}_bits": width for part, width in widths.items()}
    if rounding is not None:
        given["rounding"] = rounding
    if scales is not None:
        check_scales(scales)
        given["scales"] = scales
    if dither is not None:
        given["dither"] = dither
    for option, value in given.items():
        if name is None:
            raise InputError(
                f"{option} {value} is for an integer rule: add --quantize RULE, or leave it out"
            )
    if name is None:
        return None
    for part, value in shape.items():
        if value is not None:
            raise InputError(
                f"{part} {value} is given beside rule {name}, which has a shape: leave it out"
            )
    path = rule_path(name)
    rule = Rule.load(path) if rule_kind(path) != "integer rule" else LayeredRule.load(path)
    for option, value in given.items():
        if isinstance(rule, LayeredRule):
            raise InputError(
                f"{option} {value} is given beside integer rule {name}, which has formats: "
                "leave it out"
            )
    return Quantization(
        name,
        rule,
        Precision(**widths),
        parse_rounding(rounding or "RND"),
        scales or "kernel",
        dither or 0,
    )


def preset_table() -> Table:
    """Presets, what their rules cost, and how long they train."""
    table = Table("preset", "parameters", "MACs", "iterations", "", box=SIMPLE_HEAD)
    for column in table.columns[1:4]:
        column.justify = "right"
    for name, preset in PRESETS.items():
        numbers = preset.config.parameters, preset.config.macs, preset.options.iterations
        table.add_row(name, *(f"{number:,}" for number in numbers), preset.description)
    table.caption = "MACs: multiply-accumulates per cell and step"
    return table


def run_training(job: Job, progress: Progress, console: Console) -> Rule:
    """Train a rule and write it.

    Parameters
    ----------
    progress
        A bar that is not yet shown: it is, once everything that may be refused has been.

    Raises
    ------
    InputError
        If there is nothing to train on, another training writes the same files, the checkpoint is
        in the way or does not fit, or the training diverges: then `job.out` holds the average of
        the last good weights.
    SystemExit
        On SIGINT and SIGTERM, once the checkpoint is written; status 128 + the signal's number.
    """
    if not SEEING.intersection(job.config.inputs):
        raise InputError(
            f"inputs {', '.join(job.config.inputs)!r} show a cell no sample: name "
            f"{', '.join(name for name in INPUTS if name in SEEING)} or several of these"
        )
    with ExitStack() as locks:
        for path in [job.checkpoint, *([] if job.log is None else [job.log])]:
            locks.enter_context(locked(path))
        return _run_training(job, progress, console)


def _run_training(job: Job, progress: Progress, console: Console) -> Rule:
    checkpoint = _find_checkpoint(job)
    device = choose_device(job.device)
    teacher = None if job.teacher is None else job.teacher.rule
    check_options(job.config, job.options, device, teacher)
    real = read_clips(job.clips, job.size)
    if not real and not job.synthetic:
        raise InputError("there is nothing to train on: name a clip, or --synthetic 64")
    validation = read_clips(job.validation, job.size)
    for clip in real:
        check_crop(clip.name, clip.frames.shape, job.options.crop)
    if job.synthetic:
        shape = SYNTHETIC_FRAMES, SYNTHETIC_SIDE, SYNTHETIC_SIDE
        check_crop("synthetic_000", shape, job.options.crop)
        check_memory(
            f"synthetic {job.synthetic}", 4 * job.synthetic * math.prod(shape), "give fewer"
        )
    for clip in validation:
        check_scorable(clip)
        seen_mask(
            clip.name, clip.frames.shape, 0.01, 0, job.config.inputs
        )  # as `validate` shows it
    with progress:
        return _train(job, checkpoint, device, real, validation, progress, console)


def _train(
    job: Job,
    checkpoint: Checkpoint | None,
    device: str,
    real: list[Clip],
    validation: list[Clip],
    progress: Progress,
    console: Console,
) -> Rule:
    count, seed = job.synthetic, job.options.seed
    synthetic = _render(count, SYNTHETIC_FRAMES, seed, 0, "training clips", progress)
    if not validation:
        validation = _render(4, 60, 0, FIRST_VALIDATION_CLIP, "validation clips", progress)
    rule = _new_rule(job, real, synthetic)
    teacher = None if job.teacher is None else job.teacher.rule
    trainer = Trainer(rule, real, job.options, synthetic=synthetic, device=device, teacher=teacher)
    scored_on = digests(validation)
    done, best = _Progress(start=job.beginning, validation=scored_on), None
    if checkpoint is not None:
        best = _best_of(checkpoint, trainer.result(), job.checkpoint)
        others = {n: array for n, array in checkpoint.tensors.items() if not n.startswith(BEST)}
        trainer.resume(replace(checkpoint, tensors=others), job.checkpoint)
        done = _Progress(**checkpoint.notes)
        if done.validation != scored_on:  # no score is comparable
            done = replace(done, best_psnr=None, best_iteration=0, validation=scored_on)
    console.print(
        f"training {trainer.rule.parameter_count} parameters on {device}"
        + (f", from iteration {trainer.iteration} on" if checkpoint else "")
    )
    record = {
        "validation_clips": [clip.name for clip in validation],
        "start": job.beginning,
        "command": job.command,
    }
    with _open_log(job, trainer.iteration) as log:
        return _Loop(job, trainer, validation, done, best, record, log, progress, console).run()


def _best_of(checkpoint: Checkpoint, like: Rule, path: Path) -> Rule | None:
    """Find the rule that scored best in a checkpoint; None if none was scored."""
    if checkpoint.notes.get("best_psnr") is None:
        return None
    for name, weight in like.named_parameters():
        found = checkpoint.tensors.get(BEST + name)
        if found is None or found.shape != tuple(weight.shape):
            raise InputError(f"checkpoint {path} is damaged: remove it to start anew")
        weight.copy_(torch.from_numpy(found))
    return like


def _new_rule(job: Job, real: Sequence[Clip], synthetic: Sequence[Clip]) -> Rule:
    if job.quantization is not None:
        return job.quantization.new_rule(real or synthetic, job.options.densities[1])
    torch.manual_seed(job.options.seed)
    return job.start.new_rule(job.config)


@dataclass
class _Loop:
    job: Job
    trainer: Trainer
    validation: list[Clip]
    done: _Progress
    best: Rule | None  # the one that scored best
    record: dict[str, Any]
    log: TextIO | None
    progress: Progress
    console: Console

    def run(self) -> Rule:
        trainer, done, job = self.trainer, self.done, self.job
        total = job.options.iterations
        self.bar = self.progress.add_task("train", total=total, completed=trainer.iteration)
        start = time.monotonic() - done.seconds
        saved = validated = time.monotonic()
        with Stop() as stop:
            while trainer.iteration < total:
                learning_rate = trainer.learning_rate
                try:
                    loss = trainer.step()
                except FloatingPointError as error:
                    self._save_rule()
                    kept = f"{job.out} holds the average of the weights before it"
                    if job.checkpoint.exists():
                        kept += f", {job.checkpoint} the last checkpoint"
                    raise InputError(
                        f"training diverged, {error}: {kept}; "
                        "try a smaller --learning-rate or another --seed"
                    ) from error
                now = time.monotonic()
                done.seconds = now - start
                done.loss = loss if done.loss is None else done.loss + 0.02 * (loss - done.loss)
                due = job.validate_every and now - validated >= job.validate_every
                score = None
                if trainer.iteration == total or due:
                    score = self._validate()
                    validated = time.monotonic()
                self._write_row(loss, learning_rate, score)
                self._show()
                if trainer.iteration < total and (stop.received or now - saved >= CHECKPOINT_EVERY):
                    self._write_checkpoint()
                    self._save_rule()
                    saved = time.monotonic()
                    if stop.received:
                        self.console.print(
                            f"stopped after iteration {trainer.iteration}: "
                            f"go on with --resume from {job.checkpoint}"
                        )
                        raise SystemExit(128 + stop.received)
        self._write_checkpoint()
        if self.best is None or done.psnr == done.best_psnr:
            return self._save_rule()
        self.console.print(
            f"{job.out} keeps the rule of iteration {done.best_iteration}, validation "
            f"{done.best_psnr:.2f} dB: the last, of {total}, has {done.psnr:.2f} dB",
            soft_wrap=True,
        )
        return self._save_rule(self.best)

    def _write_checkpoint(self) -> None:
        """Write all that is needed to go on, the rule that scored best included."""
        made = self.trainer.checkpoint(**vars(self.done))
        kept = {} if self.best is None else dict(self.best.named_parameters())
        best = {BEST + name: weight.detach().cpu().numpy() for name, weight in kept.items()}
        replace(made, tensors={**made.tensors, **best}).write(self.job.checkpoint)

    def _validate(self) -> float:
        done, trainer = self.done, self.trainer
        rule = trainer.result()
        done.psnr = validate(rule, self.validation)
        if done.best_psnr is None or done.psnr >= done.best_psnr:
            done.best_psnr, done.best_iteration = done.psnr, trainer.iteration
            self.best = rule
        if not self.console.is_terminal:  # where there is no bar to watch
            self.console.print(
                f"iteration {trainer.iteration} of {self.job.options.iterations}, "
                f"{done.seconds:.0f} s: loss {done.loss:.4f}, validation {done.psnr:.2f} dB"
            )
        return done.psnr

    def _show(self) -> None:
        text = f"train, loss {self.done.loss:.4f}"
        if self.done.psnr is not None:
            text += f", validation {self.done.psnr:.2f} dB"
        self.progress.update(self.bar, completed=self.trainer.iteration, description=text)

    def _write_row(self, loss: float, learning_rate: float, score: float | None) -> None:
        if self.log is None or self.job.log is None:
            return
        with naming(self.job.log):
            csv.writer(self.log).writerow(
                [
                    self.trainer.iteration,
                    f"{self.done.seconds:.2f}",
                    f"{loss:.6g}",
                    f"{learning_rate:.6g}",
                    "" if score is None else f"{score:.3f}",
                ]
            )
            self.log.flush()

    def _save_rule(self, best: Rule | None = None) -> Rule:
        """Write the rule so far, or the one that scored best."""
        done, last = self.done, self.trainer.iteration
        rule = self.trainer.result() if best is None else best
        rule.training_record |= self.record | {
            "iterations": last if best is None else done.best_iteration,
            "seconds": round(done.seconds, 1),
            "validation_psnr": done.psnr if best is None else done.best_psnr,
            "best_validation": {"psnr": done.best_psnr, "iteration": done.best_iteration},
        }
        if best is not None:
            rule.training_record["last_validation"] = {"psnr": done.psnr, "iteration": last}
        if isinstance(rule, FakeQuantRule):
            rule.integer_rule().with_proof().save(self.job.out)
        else:
            rule.save(self.job.out)
        return rule


def _find_checkpoint(job: Job) -> Checkpoint | None:
    """Read the checkpoint that is to be resumed, and compare it before any clip is loaded."""
    path = job.checkpoint
    if path == job.out:
        raise InputError(f"out {job.out} is named like a checkpoint: choose a .safetensors file")
    if job.resume:
        checkpoint = Checkpoint.read(path)
        checkpoint.check_same(path, vars(job.config), job.options.describe())
        start = checkpoint.notes.get("start")
        if start != job.beginning:
            raise InputError(
                f"checkpoint {path} was made with start {start}, not {job.beginning}: "
                f"ask for {start}, or remove it to start anew"
            )
        return checkpoint
    if path.exists() and not _is_finished(path):
        raise InputError(f"checkpoint {path} exists: add --resume, or remove it to start anew")
    return None


def _is_finished(path: Path) -> bool:
    """Whether nothing is lost if a file is overwritten: it is of a training that is done."""
    try:
        return Checkpoint.read(path).finished
    except InputError:
        return False


def _render(
    count: int, frames: int, seed: int, first: int, title: str, progress: Progress
) -> list[Clip]:
    task = progress.add_task(title, total=count)

    def render(number: int) -> Clip:
        (clip,) = synthetic_clips(1, frames, SYNTHETIC_SIDE, seed, first=number)
        progress.advance(task)
        return clip

    # Threads suffice: torch lets go of the interpreter while it computes.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(pool.map(render, range(first, first + count)))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _open_log(job: Job, iteration: int) -> Iterator[TextIO | None]:
    """Open the log behind the row of `iteration`: what came after it will come again."""
    if job.log is None:
        yield None
        return
    rows = [list(LOG_COLUMNS)]
    if job.resume and job.log.is_file():
        with job.log.open(newline="") as file:
            found = list(csv.reader(file))
        if found[:1] != rows:
            raise InputError(f"log {job.log} is no log of a training: choose another file")
        # A kill may have cut the last row short.
        complete = [row for row in found[1:] if len(row) == len(LOG_COLUMNS)]
        rows += [row for row in complete if int(row[0]) <= iteration]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    if is_special(job.log):  # opened once: a pipe's reader takes its end for that of the log
        with job.log.open("w", newline="") as file:
            file.write(text.getvalue())
            yield file
        return
    write_atomically(job.log, text.getvalue())
    with job.log.open("a", newline="") as file:
        yield file
