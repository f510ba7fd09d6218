"""Cheap trainings and their scores, each kept in a file: what the experiments are made of."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scotopia.cli.evaluate import ORACLE
from scotopia.model import baselines, score
from scotopia.model.checkpoint import digests
from scotopia.model.config import RuleConfig
from scotopia.model.files import write_atomically
from scotopia.model.options import TrainOptions
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.scotopic.training import train
from scotopia.model.start import can_start_as_filter, start_as_filter
from scotopia.model.task import reconstruct
from scotopia.model.video import Clip

DENSITY = 0.01
SEED = 0

#: Frames of a clip that are scored: its first ones, so that a run stays cheap.
FRAMES = 120

#: Learning rate by start. The filter's long memory does not outlive a higher one; at this one, what
#: starts at random would hardly move.
LEARNING_RATES = {"filter": 5e-4, "random": 3e-3}

#: The start as a filter as it is written down, whatever the shape: what training has to improve.
UNTRAINED = "filter-untrained"


@dataclass(frozen=True)
class Variant:
    """A rule to train.

    Attributes
    ----------
    label
        What tells it from the others in a table and a plot.
    config
        Its shape.
    start
        "filter" for the weights of `scotopia.model.start`, "random" for the usual ones.
    loss
        A name out of `scotopia.model.losses.LOSSES`.
    """

    label: str
    config: RuleConfig
    start: str
    loss: str = "log-dense"

    @classmethod
    def best_start(cls, label: str, config: RuleConfig, loss: str = "log-dense") -> "Variant":
        """Make the variant that starts as a filter, if its shape has room for that."""
        return cls(label, config, "filter" if can_start_as_filter(config) else "random", loss)

    def new_rule(self, seed: int) -> Rule:
        """Return the rule as it is before training."""
        torch.manual_seed(seed)
        rule = Rule(self.config)
        if self.start == "filter":
            start_as_filter(rule)
        return rule


@dataclass(frozen=True)
class Score:
    """PSNR in dB at 1 % of the pixels, by clip, and which of the clips hardly change."""

    psnr: dict[str, float]
    motion: dict[str, float]

    @property
    def static(self) -> float:
        """Mean over the clips that hardly change."""
        return self._mean(True)

    @property
    def moving(self) -> float:
        """Mean over the other clips."""
        return self._mean(False)

    @property
    def all(self) -> float:
        """Mean over all clips."""
        return float(np.mean(list(self.psnr.values())))

    def _mean(self, static: bool) -> float:
        chosen = [
            value
            for name, value in self.psnr.items()
            if (self.motion[name] < score.STATIC_BELOW) == static
        ]
        return float(np.mean(chosen)) if chosen else float("nan")


class Lab:
    """Where runs are done, each once.

    Parameters
    ----------
    folder
        Holds a JSON file for each run, named by a digest of all that decides its outcome.
    train_clips, held_out
        Clips to train on; clips to score, none of them among the first.
    options
        How to train, but for the loss and the learning rate.
    """

    def __init__(
        self,
        folder: Path,
        train_clips: Sequence[Clip],
        held_out: Sequence[Clip],
        options: TrainOptions,
    ) -> None:
        self.folder = folder
        self.train_clips = train_clips
        self.held_out = [Clip(clip.name, clip.frames[:FRAMES]) for clip in held_out]
        self.options = options

    def rule_run(self, variant: Variant) -> Path:
        """File of a run."""
        return self._file(
            {
                "config": dataclasses.asdict(variant.config),
                "options": self._options(variant).describe(),
                "first_weights": _digest(variant.new_rule(self.options.seed)),
                "train_clips": self._digests[0],
            }
        )

    def baseline_run(self, name: str) -> Path:
        """File of a baseline's scores."""
        if name == UNTRAINED:
            return self._file({"baseline": name, "weights": _digest(_untrained())})
        return self._file({"baseline": name})

    def train(self, variant: Variant) -> None:
        """Train and score a variant, unless that has been done."""
        path = self.rule_run(variant)
        if path.exists():
            return
        rule, options = variant.new_rule(self.options.seed), self._options(variant)
        start = time.monotonic()
        diverged = ""
        try:
            train(rule, self.train_clips, options)
        except FloatingPointError as error:
            diverged = str(error)  # the average of its last good weights is scored all the same
        seconds = time.monotonic() - start
        found = {
            clip.name: score.psnr(clip.frames, reconstruct(rule, clip.frames, self._mask(clip)))
            for clip in self.held_out
        }
        self._write(
            path,
            found,
            config=dataclasses.asdict(variant.config),
            start=variant.start,
            options=options.describe(),
            train_clips=[clip.name for clip in self.train_clips],
            seconds=round(seconds, 1),
            diverged=diverged,
        )

    def score_baseline(self, name: str) -> None:
        """Score a baseline, or `UNTRAINED`, unless that has been done."""
        path = self.baseline_run(name)
        if path.exists():
            return
        found = {}
        for clip in self.held_out:
            mask = self._mask(clip)
            if name == UNTRAINED:
                estimates = reconstruct(_untrained(), clip.frames, mask)
            elif name == ORACLE:
                estimates, _ = baselines.reconstruct_oracle(clip.frames, mask)
            else:
                estimates = baselines.reconstruct(
                    baselines.BASELINES[name], mask, mask * clip.frames
                )
            found[clip.name] = score.psnr(clip.frames, estimates)
        self._write(path, found, baseline=name)

    def read(self, path: Path) -> Score | None:
        """Score of a run; None, if it has not been done."""
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return Score(found["psnr"], found["motion"])

    def _options(self, variant: Variant) -> TrainOptions:
        rate = LEARNING_RATES[variant.start]
        return dataclasses.replace(self.options, loss=variant.loss, learning_rate=rate)

    def _mask(self, clip: Clip) -> np.ndarray:
        return sample_mask(clip.frames.shape, DENSITY, SEED)

    @cached_property
    def _digests(self) -> tuple[dict[str, str], dict[str, str]]:
        # Together, because a clip must not be in both.
        both = digests([*self.train_clips, *self.held_out])
        names = {clip.name for clip in self.held_out}
        shown = {name: value for name, value in both.items() if name in names}
        return {name: both[name] for name in both if name not in names}, shown

    def _file(self, what: dict[str, Any]) -> Path:
        key = what | {"held_out": self._digests[1], "density": DENSITY, "seed": SEED}
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _write(self, path: Path, psnr: dict[str, float], **notes: Any) -> None:
        result = notes | {
            "density": DENSITY,
            "psnr": {name: round(value, 4) for name, value in psnr.items()},
            "motion": {clip.name: round(score.motion(clip.frames), 5) for clip in self.held_out},
        }
        text = json.dumps(result, indent=1) + "\n"
        write_atomically(path, text)


def _untrained() -> Rule:
    return Variant(UNTRAINED, RuleConfig(trace_bits=10), "filter").new_rule(0)


def _digest(rule: Rule) -> str:
    found = hashlib.sha256()
    for tensor in rule.state_dict().values():
        # Rounded, because the start as a filter solves equations, to the last bit or so; plus 0,
        # because -0 is 0.
        found.update((tensor.numpy().astype(np.float64).round(4) + 0).tobytes())
    return found.hexdigest()
