"""What `scotopia train` does, whatever the task: a rule out, and a checkpoint to go on from."""

import csv
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Generic, TextIO

import torch
from rich.console import Console
from rich.progress import Progress

from scotopia.graph.errors import InputError
from scotopia.model.checkpoint import Checkpoint
from scotopia.model.files import is_special, locked, naming, write_atomically
from scotopia.model.front.loading import short
from scotopia.model.front.refusal import place_of_error
from scotopia.model.options import LoopOptions
from scotopia.model.tasks import R
from scotopia.model.train import Trainer, choose_device

from .outputs import CHECKPOINT
from .stop import Stop

#: Most seconds of work that a kill may cost.
CHECKPOINT_EVERY = 60.0

#: What the names of the tensors of the rule that scored best begin with, in a checkpoint.
BEST = "best/"

LOG_COLUMNS = ("iteration", "seconds", "loss", "learning_rate", "validation_psnr")


@dataclass
class Prepared(Generic[R]):
    """A training, ready to begin.

    Attributes
    ----------
    record
        What its record says besides, as JSON holds it.
    scored_on
        Digests of what it is scored on, by name: scores on anything else are not comparable.
    """

    trainer: Trainer[R]
    record: dict[str, Any] = field(default_factory=dict)
    scored_on: dict[str, str] = field(default_factory=dict)


class Course(ABC, Generic[R]):
    """What is to be trained, and for what.

    Attributes
    ----------
    options
        How to train.
    """

    options: LoopOptions

    @property
    @abstractmethod
    def beginning(self) -> str:
        """What training starts from, in words that a checkpoint keeps."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint must agree in, but for the options and what is read."""

    def check(self) -> None:
        """Raise InputError for what can be refused before any file is touched."""

    def read(self, device: str) -> None:
        """Read what is trained on; InputError, if that cannot be."""

    @abstractmethod
    def prepare(self, device: str, progress: Progress) -> Prepared[R]:
        """Make the training: what takes long, under a bar that is shown."""

    def save(self, rule: R, path: Path) -> None:
        """Write the rule."""
        rule.save(path)


@dataclass
class Job(Generic[R]):
    """What to train, and what to write.

    Attributes
    ----------
    out
        Rule file; the checkpoint lies beside it.
    validate_every
        Seconds between two scores, 0 for one at the end only.
    resume
        Whether to go on from the checkpoint.
    device
        See `choose_device`.
    log
        CSV file with a row for each iteration.
    command
        How the user put it, for the record.
    """

    out: Path
    course: Course[R]
    validate_every: float = 60.0
    resume: bool = False
    device: str = "auto"
    log: Path | None = None
    command: str = ""

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint lies."""
        return self.out.with_suffix(CHECKPOINT)


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


def guarded(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function of the user's: what goes wrong in it is said in one line."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (InputError, FloatingPointError):
            raise
        except Exception as error:
            raise InputError(
                f"{place_of_error(error)}{what} failed ({short(error)}): mend it"
            ) from error

    return call


def run_training(job: Job[R], progress: Progress, console: Console) -> R:
    """Train a rule and write it.

    Parameters
    ----------
    progress
        A bar that is not yet shown: it is, once everything that may be refused has been.

    Raises
    ------
    InputError
        If it cannot be trained, another training writes the same files, the checkpoint is in the
        way or does not fit, or the training diverges: then `job.out` holds the average of the last
        good weights.
    SystemExit
        On SIGINT and SIGTERM, once the checkpoint is written; status 128 + the signal's number.
    """
    job.course.check()
    with ExitStack() as locks:
        for path in [job.checkpoint, *([] if job.log is None else [job.log])]:
            locks.enter_context(locked(path))
        checkpoint = _find_checkpoint(job)
        device = choose_device(job.device)
        job.course.read(device)
        with progress:
            return _train(job, checkpoint, device, progress, console)


def _train(
    job: Job[R], checkpoint: Checkpoint | None, device: str, progress: Progress, console: Console
) -> R:
    prepared = job.course.prepare(device, progress)
    trainer, scored_on = prepared.trainer, prepared.scored_on
    done, best = _Progress(start=job.course.beginning, validation=scored_on), None
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
    record = prepared.record | {"start": job.course.beginning, "command": job.command}
    with _open_log(job, trainer.iteration) as log:
        return _Loop(job, trainer, done, best, record, log, progress, console).run()


def _best_of(checkpoint: Checkpoint, like: R, path: Path) -> R | None:
    """Find the rule that scored best in a checkpoint; None if none was scored."""
    if checkpoint.notes.get("best_psnr") is None:
        return None
    for name, weight in like.named_parameters():
        found = checkpoint.tensors.get(BEST + name)
        if found is None or found.shape != tuple(weight.shape):
            raise InputError(f"checkpoint {path} is damaged: remove it to start anew")
        weight.copy_(torch.from_numpy(found))
    return like


@dataclass
class _Loop(Generic[R]):
    job: Job[R]
    trainer: Trainer[R]
    done: _Progress
    best: R | None  # the one that scored best
    record: dict[str, Any]
    log: TextIO | None
    progress: Progress
    console: Console

    def run(self) -> R:
        trainer, done, job = self.trainer, self.done, self.job
        total = job.course.options.iterations
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

    def _validate(self) -> float | None:
        done, trainer = self.done, self.trainer
        rule = trainer.result()
        done.psnr = trainer.task.score(rule)
        if done.psnr is not None and (done.best_psnr is None or done.psnr >= done.best_psnr):
            done.best_psnr, done.best_iteration = done.psnr, trainer.iteration
            self.best = rule
        if not self.console.is_terminal:  # where there is no bar to watch
            self.console.print(
                f"iteration {trainer.iteration} of {self.job.course.options.iterations}, "
                f"{done.seconds:.0f} s: loss {done.loss:.4f}" + _scored(done.psnr)
            )
        return done.psnr

    def _show(self) -> None:
        text = f"train, loss {self.done.loss:.4f}" + _scored(self.done.psnr)
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

    def _save_rule(self, best: R | None = None) -> R:
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
        self.job.course.save(rule, self.job.out)
        return rule


def _scored(psnr: float | None) -> str:
    return "" if psnr is None else f", validation {psnr:.2f} dB"


def _find_checkpoint(job: Job[R]) -> Checkpoint | None:
    """Read the checkpoint that is to be resumed, and compare it before any clip is loaded."""
    path = job.checkpoint
    if path == job.out:
        raise InputError(f"out {job.out} is named like a checkpoint: choose a .safetensors file")
    if job.resume:
        checkpoint = Checkpoint.read(path)
        checkpoint.check_same(path, job.course.describe(), job.course.options.describe())
        start = checkpoint.notes.get("start")
        if start != job.course.beginning:
            raise InputError(
                f"checkpoint {path} was made with start {start}, not {job.course.beginning}: "
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


@contextmanager
def _open_log(job: Job[R], iteration: int) -> Iterator[TextIO | None]:
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
