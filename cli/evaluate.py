"""PROTOCOL: how reconstruction is scored, and what it costs."""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scotopia.graph import counts
from scotopia.graph.errors import InputError
from scotopia.model import baselines, running, score
from scotopia.model.float_rule import FloatRule
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.scotopic.float_graph import as_float_rule
from scotopia.model.sensor import Sensor
from scotopia.model.video import Clip
from scotopia.quantize import task as integer_task
from scotopia.quantize.integer_rule import GraphRule, IntegerRule

from .clips import sizes_of

Video = NDArray[np.float32]
Scores = dict[str, float]
Method = Callable[["Shown"], Video]

AnyRule = Rule | FloatRule | IntegerRule

ORACLE = "normalized-convolution-oracle"
BASELINES = (*baselines.BASELINES, ORACLE)
DEFAULT_BASELINES = ("last-seen", "normalized-convolution", ORACLE)

CURVE = 60
"""Frames of the warm-up curve: three warm-ups."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A clip, and what is shown of it.

    Attributes
    ----------
    clip
        The ground truth.
    mask
        (T, H, W) by PROTOCOL: numpy's default generator, `density`, `seed`.
    readings
        (T, H, W) in [0, 1], what the sensor reads where `mask` is true.
    """

    clip: Clip
    mask: NDArray[np.bool_]
    readings: Video

    @classmethod
    def by_protocol(
        cls, clip: Clip, density: float, seed: int, sensor: Sensor | None = None
    ) -> "Shown":
        """Draw the mask and, from another stream of the same seed, the noise of a sensor."""
        rng = np.random.default_rng([seed, 1])
        readings = sensor.expose(clip.frames, rng) if sensor else clip.frames
        return cls(clip, sample_mask(clip.frames.shape, density, seed), readings)

    def score(self, estimates: Video) -> Scores:
        """PSNR in dB and SSIM of estimates (T, H, W)."""
        return {
            "psnr": score.psnr(self.clip.frames, estimates),
            "ssim": score.ssim(self.clip.frames, estimates),
        }


@dataclass(frozen=True)
class Glimpse:
    """A late frame of a clip, for the picture: brightness in [0, 1], (H, W)."""

    frame: int
    truth: Video
    mask: NDArray[np.bool_]
    readings: Video
    estimates: dict[str, Video]


@dataclass(frozen=True)
class Evaluation:
    """Scores of methods on clips, in the order of a table.

    Attributes
    ----------
    clips
        By clip and method, means over the seeds: unseen ones first, of these the static first.
    motion
        By clip, see `score.motion`.
    trained_on
        Names of those clips that a rule was trained on; they are the last ones.
    warm_up
        By method, the PSNR of each of the first `CURVE` frames, the mean over the seeds and the
        clips: the unseen ones, if there are any, and of these the ones that have so many frames (if
        none has, the longest). Were shorter ones in it, the curve would jump where they end.
    glimpses
        By clip, of the first seed.
    size
        By clip, height and width of its frames.
    """

    clips: dict[str, dict[str, Scores]]
    motion: dict[str, float]
    trained_on: list[str]
    warm_up: dict[str, list[float]]
    glimpses: dict[str, Glimpse]
    size: dict[str, list[int]]

    @property
    def unseen(self) -> dict[str, dict[str, Scores]]:
        """Scores of the clips that no rule was trained on: all that count for means."""
        return {name: row for name, row in self.clips.items() if name not in self.trained_on}

    @property
    def static(self) -> dict[str, dict[str, Scores]]:
        """Scores of the unseen clips that hardly change."""
        return {name: row for name, row in self.unseen.items() if self.is_static(name)}

    @property
    def moving(self) -> dict[str, dict[str, Scores]]:
        """Scores of the other unseen clips."""
        return {name: row for name, row in self.unseen.items() if not self.is_static(name)}

    def is_static(self, name: str) -> bool:
        """Whether the clip of that name hardly changes."""
        return self.motion[name] < score.STATIC_BELOW


def baseline_names(text: str) -> tuple[str, ...]:
    """Baselines that a user named: `all`, `none`, or a list with commas.

    Raises
    ------
    InputError
        If one is unknown.
    """
    if text in ("all", "none"):
        return BASELINES if text == "all" else ()
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in BASELINES:
            raise InputError(
                f"baseline {name!r} is unknown: choose all, none, or out of {', '.join(BASELINES)}"
            )
    return names


def methods(
    rules: Sequence[AnyRule], chosen: Sequence[str] = DEFAULT_BASELINES
) -> dict[str, Method]:
    """Methods by name: baselines, then those of `by_kind`, of rules that see video.

    Raises
    ------
    InputError
        If two rules would have one name.
    """
    found: dict[str, Method] = {}
    for name in chosen:
        found[name] = _oracle if name == ORACLE else partial(_classical, baselines.BASELINES[name])
    for name, rule in by_kind(rules).items():
        found[name] = (
            partial(_integer, rule) if isinstance(rule, IntegerRule) else partial(_float, rule)
        )
    return found


def by_kind(rules: Sequence[AnyRule]) -> dict[str, FloatRule | IntegerRule]:
    """Return rules by name: "nca" for a float rule, as its graph, "nca-int" for an integer one.

    Raises
    ------
    InputError
        If there are two of a kind.
    """
    found: dict[str, FloatRule | IntegerRule] = {}
    for rule in rules:
        name = name_of(rule)
        if name in found:
            kind = "integer" if name == "nca-int" else "float"
            raise InputError(
                f"there are two {kind} rules: evaluate at most one float and one integer rule"
            )
        found[name] = as_float_rule(rule) if isinstance(rule, Rule) else rule
    return found


def name_of(rule: AnyRule) -> str:
    """Name of a rule's method: "nca" or "nca-int"."""
    return "nca-int" if isinstance(rule, IntegerRule) else "nca"


def _classical(baseline: baselines.Constructor, shown: Shown) -> Video:
    return baselines.reconstruct(baseline, shown.mask, shown.mask * shown.readings)


def _oracle(shown: Shown) -> Video:
    masked = shown.mask * shown.readings
    return baselines.reconstruct_oracle(shown.clip.frames, shown.mask, masked)[0]


def _float(rule: FloatRule, shown: Shown) -> Video:
    return running.reconstruct(rule, shown.readings, shown.mask)


def _integer(rule: IntegerRule, shown: Shown) -> Video:
    return integer_task.reconstruct(rule, shown.readings, shown.mask)


def evaluate(
    clips: Sequence[Clip],
    estimators: dict[str, Method],
    show: Callable[[Clip, int], Shown],
    seeds: Sequence[int],
    trained_on: Collection[str] = (),
    on_progress: Callable[[str, str], object] = lambda clip, method: None,
    on_clip: Callable[[str, dict[str, Scores]], object] = lambda clip, scores: None,
) -> Evaluation:
    """Score every method on every clip.

    Parameters
    ----------
    estimators
        By name, from `methods`.
    show
        Makes what is shown of a clip, given a seed: `Shown.by_protocol` with its other arguments.
    seeds
        One or more.
    trained_on
        Names of clips that a rule was trained on.
    on_progress
        Called with the names of clip and method after each of them and each seed.
    on_clip
        Called with the name of each clip, when it is done, and the scores of its methods.

    Raises
    ------
    InputError
        Before anything is scored, if a clip is too short or too small, or two have the same name.
    """
    motion: dict[str, float] = {}
    for clip in clips:
        if clip.name in motion:
            raise InputError(f"two clips are called {clip.name}: rename one, or name it once")
        score.check_scorable(clip)
        motion[clip.name] = score.motion(clip.frames)

    def place(clip: Clip) -> tuple[bool, bool, str]:
        return clip.name in trained_on, motion[clip.name] >= score.STATIC_BELOW, clip.name

    table: dict[str, dict[str, Scores]] = {}
    curves: dict[str, NDArray[np.float64]] = {}  # by clip: (methods, CURVE)
    glimpses: dict[str, Glimpse] = {}
    # Threads suffice: NumPy, SciPy and torch let go of the interpreter while they compute.
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for clip in sorted(clips, key=place):
            late = len(clip.frames) * 3 // 4
            rows, lines = [], []
            for seed in seeds:
                shown = show(clip, seed)
                results = {}
                jobs = pool.map(partial(_try_method, shown, late), estimators.values())
                for name, result in zip(estimators, jobs, strict=True):
                    results[name] = result
                    on_progress(clip.name, name)
                rows.append({name: result.scores for name, result in results.items()})
                lines.append([result.curve for result in results.values()])
                if seed == seeds[0]:
                    glimpses[clip.name] = Glimpse(
                        late,
                        clip.frames[late],
                        shown.mask[late],
                        shown.readings[late],
                        {name: result.late for name, result in results.items()},
                    )
            table[clip.name] = mean_scores(rows)
            on_clip(clip.name, table[clip.name])
            curves[clip.name] = np.mean(lines, axis=0)
    finally:
        pool.shutdown(cancel_futures=True)

    counted = [name for name in table if name not in trained_on] or list(table)
    stacked = np.array([curves[name] for name in counted])  # (clips, methods, CURVE)
    reached = ~np.isnan(stacked).all(axis=(0, 1))  # the longest clip's frames
    complete = ~np.isnan(stacked[..., reached]).any(axis=(1, 2))
    warm_up = stacked[complete][..., reached].mean(axis=0)
    return Evaluation(
        table,
        {name: motion[name] for name in table},
        [name for name in table if name in trained_on],
        {name: curve.tolist() for name, curve in zip(estimators, warm_up, strict=True)},
        glimpses,
        sizes_of(clips),
    )


@dataclass(frozen=True)
class _Result:
    scores: Scores
    curve: NDArray[np.float64]  # (CURVE,), PSNR of the first frames, NaN after the clip's end
    late: Video  # (H, W), one frame's estimate


def _try_method(shown: Shown, late: int, method: Method) -> _Result:
    estimates = method(shown)
    curve = np.full(CURVE, np.nan)
    begin = shown.clip.frames[:CURVE]
    curve[: len(begin)] = score.psnr_curve(begin, estimates[:CURVE])
    return _Result(shown.score(estimates), curve, estimates[late])


def mean_scores(rows: Collection[dict[str, Scores]]) -> dict[str, Scores]:
    """Mean of each method's scores; empty, if there are no rows."""
    names = next(iter(rows), {})
    return {
        method: {
            figure: float(np.mean([row[method][figure] for row in rows]))
            for figure in ("psnr", "ssim")
        }
        for method in names
    }


def score_table(evaluation: Evaluation, figure: str) -> Table:
    """Table of one figure, "psnr" or "ssim": clips by methods, the best of each row in bold."""
    means = {
        f"mean, {kind} ({len(rows)})": mean_scores(rows.values())
        for kind, rows in {
            "static": evaluation.static,
            "moving": evaluation.moving,
            "unseen": evaluation.unseen,
        }.items()
        if rows
    }
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("clip", no_wrap=True)
    table.add_column("pixels", justify="right", no_wrap=True)
    table.add_column("motion", justify="right")
    for method in next(iter(evaluation.clips.values())):
        table.add_column(method.replace("-", "-\n"), justify="right", no_wrap=True)

    def add(label: str, row: dict[str, Scores], name: str | None = None) -> None:
        best = max(scores[figure] for scores in row.values())
        digits = 2 if figure == "psnr" else 3
        cells = [
            f"[bold]{value:.{digits}f}[/bold]" if value == best else f"{value:.{digits}f}"
            for value in (scores[figure] for scores in row.values())
        ]
        about = ["", ""]
        if name is not None:
            height, width = evaluation.size[name]
            about = [f"{width} x {height}", f"{evaluation.motion[name]:.4f}"]
        table.add_row(label, *about, *cells)

    for group in (evaluation.static, evaluation.moving):
        for name, row in group.items():
            add(escape(name), row, name)
        table.add_section()
    for label, row in means.items():
        add(label, row)
    table.add_section()
    for name in evaluation.trained_on:
        add(f"{escape(name)}, trained on", evaluation.clips[name], name)
    return table


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Value of an evaluation for machines, without its pictures."""
    return {
        "clips": evaluation.clips,
        "mean": mean_scores(evaluation.unseen.values()),
        "static": mean_scores(evaluation.static.values()),
        "moving": mean_scores(evaluation.moving.values()),
        "size": evaluation.size,
        "motion": evaluation.motion,
        "trained_on": evaluation.trained_on,
        "warm_up": evaluation.warm_up,
    }


def cost(rule: AnyRule) -> dict[str, int]:
    """What a rule costs: parameters, MACs, steps, and state bits per cell."""
    graph = as_float_rule(rule) if isinstance(rule, Rule) else rule
    # Of a rule that was trained here, it is known which of its weights are of fixed filters.
    config = rule.config if isinstance(rule, Rule) else None
    flags = sum(event.flag is not None for event in graph.events)
    return {
        "parameters": config.parameters if config else _parameters(graph),
        "macs_per_cell_and_step": config.macs if config else counts.macs(graph.graph),
        "steps_per_frame": graph.steps_per_frame,
        "state_bits_per_cell": (
            graph.state_bits
            if isinstance(graph, IntegerRule)
            else 32 * len(graph.channel_names) + flags  # floats
        ),
    }


def _parameters(rule: FloatRule | IntegerRule) -> int:
    """Trained numbers, where it is known which these are; else all weights and biases."""
    if isinstance(rule, FloatRule | GraphRule) and rule.trained:
        return sum(int(mask.sum()) for masks in rule.trained.values() for mask in masks)
    return counts.parameters(rule.graph)
