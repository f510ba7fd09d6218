"""Word lengths against accuracy: what a sweep computes, each thing once, and its table.

A `Plan` takes a `Grid` apart into `Task`s. A task names all that decides its result, so that a
result can be kept under that name, found again, and made anywhere: rules and clips are in the tasks
as data.
"""

import base64
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from hashlib import sha256
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import QFormat, Rounding
from scotopia.model import score
from scotopia.model import task as float_task
from scotopia.model.checkpoint import digest, digests
from scotopia.model.config import RuleConfig
from scotopia.model.files import with_clips
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask, seen_mask
from scotopia.model.video import Clip

from . import task as integer_task
from .feedback import Moments, round_weights
from .formats import Formats, Precision
from .layered_rule import IntegerLayer, LayeredRule
from .post_training import Calibration

#: What a task found out, as JSON; `{"refused": REASON}` if there is no such thing.
Result = dict[str, Any]

Video = NDArray[np.float32]

#: Tells `Summary.cycles_per_step` and `Summary.lut4_per_thousand_updates`.
Estimator = Callable[[LayeredRule], tuple[int, float]]

VERSION = 4
"""Of the tasks: raise it when one of them comes to give another result."""

DIGITS = 4
"""Decimals of a PSNR: fewer than two machines' floats disagree in."""


@dataclass(frozen=True)
class Source:
    """A float rule.

    Attributes
    ----------
    name
        What tables call it.
    content
        Its file.
    config
        Its shape.
    trained_on
        Names of the clips it was trained on.
    """

    name: str
    content: bytes
    config: RuleConfig
    trained_on: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, name: str) -> "Source":
        """Read a rule file; InputError, if it is no float rule."""
        rule = Rule.load(path)
        known = tuple(rule.training_record.get("clips", ()))
        return cls(name, path.read_bytes(), rule.config, known)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the file's SHA-256."""
        return sha256(self.content).hexdigest()[:16]


@dataclass(frozen=True, order=True)
class Design:
    """A rule by its name, and how it is quantized; all other word lengths are `Precision`'s."""

    rule: str
    weight_bits: int
    state_bits: int
    rounding: Rounding
    update_bits: int | None = None

    @property
    def precision(self) -> Precision:
        """Word lengths; InputError, if one is outside 2 to 16."""
        return Precision(self.weight_bits, self.state_bits, update=self.update_bits)

    def __str__(self) -> str:
        update = "" if self.update_bits is None else f" u{self.update_bits}"
        return f"{self.rule} w{self.weight_bits}{update} s{self.state_bits} {self.rounding}"


@dataclass(frozen=True)
class Grid:
    """All that a sweep compares: every rule in every precision, on every clip and seed.

    Attributes
    ----------
    rules
        One or more, of different names.
    clips
        One or more, of different names, with more frames than the warm-up. The first is the one
        that drift is measured on.
    calibration
        Clips that ranges are found with.
    weight_bits, state_bits
        Each from 2 to 16.
    update_bits
        Of the weights whose errors add up, see `Precision`, in all designs; None: as `weight_bits`.
    roundings
        Of every shift to the right.
    seeds
        Of which pixels are shown. The first is the one that drift is measured with.
    density
        Share of the pixels shown.
    drift_steps
        Least steps of a drift run.
    estimate
        Called once for each integer rule, wherever that is made.
    """

    rules: Sequence[Source]
    clips: Sequence[Clip]
    calibration: Sequence[Clip]
    weight_bits: Sequence[int] = (4, 6, 8)
    state_bits: Sequence[int] = (8, 10)
    update_bits: int | None = None
    roundings: Sequence[Rounding] = (Rounding.TRN, Rounding.RND)
    seeds: Sequence[int] = (0, 1)
    density: float = 0.01
    drift_steps: int = 1000
    estimate: Estimator | None = None

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two rules are called {name}: rename one, or name it once")
        for clip in self.clips:
            score.check_scorable(clip)
        digests(list(self.clips))
        inputs = {name for rule in self.rules for name in rule.config.inputs}
        for clip, seed in (*product(self.clips, self.seeds), *product(self.calibration, [0])):
            seen_mask(clip.name, clip.frames.shape, self.density, seed, inputs)
        for design in self.designs:
            _ = design.precision
        if self.drift_steps < 1:
            raise InputError(f"drift steps {self.drift_steps} are fewer than 1: give 1000")
        for rule in self.rules:
            steps = rule.config.steps_per_frame
            if self.drift_steps <= steps:
                raise InputError(
                    f"drift steps {self.drift_steps} are one frame of {rule.name}, which tells no "
                    f"slope: give 1000, or more than {steps}"
                )
            first = self.clips[0]
            played = first.frames[: math.ceil(self.drift_steps / steps)].shape
            seen_mask(first.name, played, self.density, self.seeds[0], rule.config.inputs)

    @property
    def designs(self) -> list[Design]:
        """All of them, in the order of a table."""
        names = [rule.name for rule in self.rules]
        return sorted(
            Design(*choice, self.update_bits)
            for choice in product(names, self.weight_bits, self.state_bits, self.roundings)
        )

    @property
    def points(self) -> list["Point"]:
        """All of them, in the order of a table."""
        clips = sorted(clip.name for clip in self.clips)
        return [Point(*choice) for choice in product(self.designs, clips, sorted(self.seeds))]

    @property
    def counted(self) -> list[str]:
        """Names of the clips that means are over: those no rule has seen, if there are."""
        known = {name for rule in self.rules for name in rule.trained_on}
        known |= {clip.name for clip in self.calibration}
        names = sorted(clip.name for clip in self.clips)
        return [name for name in names if name not in known] or names


@dataclass(frozen=True, order=True)
class Point:
    """What a row of the table is about."""

    design: Design
    clip: str
    seed: int


@dataclass(frozen=True, eq=False)
class Task:
    """Something to compute.

    Attributes
    ----------
    what
        All that decides the result, as JSON.
    compute
        A function of this module, so that another process finds it.
    arguments
        Of `compute`, where tasks stand for their results.
    """

    what: dict[str, Any]
    compute: Callable[..., Any]
    arguments: tuple[Any, ...]

    @cached_property
    def key(self) -> str:
        """Name of the result."""
        return key_of(self.what)


def key_of(what: Mapping[str, Any]) -> str:
    """Digest of all that decides a result: 32 hexadecimal digits."""
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Plan:
    """Tasks of a grid. Those that are the same thing are the same object.

    Attributes
    ----------
    float_scores
        By rule, clip and seed: `score_float`.
    integer_rules
        By design: `quantize`.
    scores
        By point: `score_integer`.
    float_drifts, drifts
        By rule and by design: `drift_of_float`, `drift_of_integer`.
    """

    grid: Grid
    float_scores: dict[tuple[str, str, int], Task] = field(default_factory=dict)
    integer_rules: dict[Design, Task] = field(default_factory=dict)
    scores: dict[Point, Task] = field(default_factory=dict)
    float_drifts: dict[str, Task] = field(default_factory=dict)
    drifts: dict[Design, Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        grid = self.grid
        frames = {clip.name: _frames_task(clip) for clip in grid.clips}
        calibration = [_frames_task(clip) for clip in grid.calibration]
        seen_by_all = digests(list(grid.calibration))
        first = grid.clips[0].name

        def shown(clip: str, seed: int) -> dict[str, Any]:
            return {**frames[clip].what, "density": grid.density, "seed": seed}

        for source in grid.rules:
            rule = {"rule": source.digest}
            for clip, seed in product(frames, grid.seeds):
                self.float_scores[source.name, clip, seed] = _task(
                    score_float,
                    {**rule, **shown(clip, seed)},
                    (source.content, frames[clip], grid.density, seed),
                )
            drift = {**shown(first, grid.seeds[0]), "steps": grid.drift_steps}
            drift_arguments = (frames[first], grid.density, grid.seeds[0], grid.drift_steps)
            self.float_drifts[source.name] = _task(
                drift_of_float, rule | drift, (source.content, *drift_arguments)
            )
            ranges = {
                **rule,
                "calibration": seen_by_all,
                "density": grid.density,
            }
            seen = _task(
                measure,
                ranges,
                (source.content, Precision().hidden, grid.density, *calibration),
            )
            for design in grid.designs:
                if design.rule != source.name:
                    continue
                rounding, precision = design.rounding, design.precision
                how = {**ranges, **precision.given, "rounding": str(rounding)}
                self.integer_rules[design] = _task(
                    quantize,
                    {**how, "estimated": grid.estimate is not None},
                    (seen, precision, rounding, grid.estimate, seen_by_all),
                )
                integer = self.integer_rules[design]
                for clip, seed in product(frames, grid.seeds):
                    self.scores[Point(design, clip, seed)] = _task(
                        score_integer,
                        how | shown(clip, seed),
                        (integer, frames[clip], grid.density, seed),
                    )
                self.drifts[design] = _task(
                    drift_of_integer, how | drift, (integer, *drift_arguments)
                )

    @property
    def stages(self) -> tuple[list[Task], list[Task]]:
        """Tasks whose results are kept: those of the points, then those of the drift."""
        points = (self.float_scores, self.integer_rules, self.scores)
        drift = (self.float_drifts, self.drifts)
        return (
            [task for tasks in points for task in tasks.values()],
            [task for tasks in drift for task in tasks.values()],
        )

    @property
    def tasks(self) -> list[Task]:
        """Tasks of all stages."""
        return [task for stage in self.stages for task in stage]


def _task(compute: Callable[..., Any], what: dict[str, Any], arguments: tuple[Any, ...]) -> Task:
    made_by = {"task": compute.__name__, "version": VERSION, "scotopia": version("scotopia")}
    return Task(made_by | what, compute, arguments)


def _frames_task(clip: Clip) -> Task:
    """Task that has the frames at hand: should a worker take them along, another gets them anew."""
    return Task({"clip": digest(clip), "frames": len(clip.frames)}, same, (clip.frames,))


def same(value: Any) -> Any:
    """Return the value."""
    return value


def refusable(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Make what is refused, here or in an argument, the result; compute in one thread."""

    @wraps(compute)
    def wrapped(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, dict) and "refused" in argument:
                return argument
        torch.set_num_threads(1)  # the processes have the other cores
        try:
            return compute(*arguments)
        except InputError as error:
            return {"refused": str(error)}

    return wrapped


@refusable
def score_float(rule: bytes, frames: Video, density: float, seed: int) -> Result:
    """Score a float rule."""
    mask = sample_mask(frames.shape, density, seed)
    estimates = float_task.reconstruct(_load(Rule, rule), frames, mask)
    return {"psnr": _decibels(score.psnr(frames, estimates))}


@refusable
def measure(
    rule: bytes, bits: int, density: float, *clips: Video
) -> tuple[Rule, tuple[QFormat, ...], Moments]:
    """Find what `scotopia quantize` rounds: the rule that fills its range, formats of the hidden
    neurons, and what to round weights by.
    """
    named = [Clip(str(number), frames) for number, frames in enumerate(clips)]
    source = _load(Rule, rule)
    found = Calibration.measure(source, named, density)
    found.rule.training_record = source.training_record  # `quantize` knows the clips' names
    return found.rule, found.formats(bits), found.moments


@refusable
def quantize(
    seen: tuple[Rule, tuple[QFormat, ...], Moments],
    precision: Precision,
    rounding: Rounding,
    estimate: Estimator | None,
    calibration: dict[str, str],
) -> Result:
    """Make an integer rule as `scotopia quantize` does, and count what it costs.

    Returns
    -------
    `file` (in base64), `state_bits_per_cell`, `weight_bits_total`, `signed_digits`,
    `cycles_per_step` and `lut4_per_thousand_updates` (None, if no cell can run the rule), and
    `note`, why there is none.
    """
    rule, hidden, moments = seen
    formats = Formats.choose(rule, hidden, precision, rounding, scales="kernel")
    rounded = round_weights(rule, formats, moments)
    rounded.training_record = with_clips(rule.training_record, calibration, calibration)
    integer = formats.integer_rule(rounded).with_proof()
    cycles, lut4, note = None, None, ""
    if estimate is not None:
        try:
            cycles, lut4 = estimate(integer)
            lut4 = round(lut4, DIGITS)
        except InputError as error:
            note = str(error)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rule.safetensors"
        integer.save(path)
        file = base64.b64encode(path.read_bytes()).decode()
    return {
        "state_bits_per_cell": integer.state_bits,
        "weight_bits_total": formats.weight_bits,
        "signed_digits": signed_digits(integer.perceive) + signed_digits(integer.update),
        "cycles_per_step": cycles,
        "lut4_per_thousand_updates": lut4,
        "note": note,
        "file": file,
    }


@refusable
def score_integer(quantized: Result, frames: Video, density: float, seed: int) -> Result:
    """Score an integer rule, by the golden model."""
    mask = sample_mask(frames.shape, density, seed)
    rule = _load(LayeredRule, rule_file(quantized))
    integer_task.reconstruct(rule, frames[:1], mask[:1])  # what is compiled once, costs no time
    start = time.monotonic()
    estimates = integer_task.reconstruct(rule, frames, mask)
    seconds = time.monotonic() - start
    return {"psnr": _decibels(score.psnr(frames, estimates)), "seconds": round(seconds, 3)}


@refusable
def drift_of_float(rule: bytes, frames: Video, density: float, seed: int, steps: int) -> Result:
    """Run a float rule for so many steps or a few more; `psnr` of each frame."""
    source = _load(Rule, rule)
    every = source.config.steps_per_frame
    played = forth_and_back(frames, math.ceil(steps / every))
    mask = sample_mask(played.shape, density, seed)
    estimates = float_task.reconstruct(source, played, mask)
    return {"steps_per_frame": every, "psnr": _curve(played, estimates)}


@refusable
def drift_of_integer(
    quantized: Result, frames: Video, density: float, seed: int, steps: int
) -> Result:
    """Run an integer rule as `drift_of_float` does."""
    rule = _load(LayeredRule, rule_file(quantized))
    every = rule.config.steps_per_frame
    played = forth_and_back(frames, math.ceil(steps / every))
    mask = sample_mask(played.shape, density, seed)
    estimates = integer_task.reconstruct(rule, played, mask)
    return {"steps_per_frame": every, "psnr": _curve(played, estimates)}


def forth_and_back(frames: Video, count: int) -> Video:
    """Play frames (T, H, W) forth and back until there are `count`, each end shown twice."""
    place = np.arange(count) % (2 * len(frames))
    return frames[np.minimum(place, 2 * len(frames) - 1 - place)]


def signed_digits(layer: IntegerLayer) -> int:
    """Non-zero digits of all weights in canonical signed-digit form: additions of a cell.

    In that form no two digits are adjacent: they stand where n and 3n differ.
    """
    codes = np.abs(layer.weight)
    return int(np.bitwise_count(codes ^ 3 * codes).sum())


def rule_file(quantized: Result) -> bytes:
    """File of the integer rule that `quantize` made."""
    return base64.b64decode(quantized["file"])


def _load(kind: Any, content: bytes) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        return kind.load(Path(file.name))


def _curve(frames: Video, estimates: Video) -> list[float]:
    return [_decibels(value) for value in score.psnr_curve(frames, estimates)]


def _decibels(psnr: float) -> float:
    if not math.isfinite(psnr):
        raise InputError(f"PSNR is {psnr}, the rule diverges: train it again")
    return round(float(psnr), DIGITS)


@dataclass(frozen=True)
class Row:
    """A point of the table. What is not known because a task was refused, is None.

    Attributes
    ----------
    float_psnr, psnr, loss
        Of the float rule, of the integer rule, and the first less the second, dB.
    state_bits_per_cell
        Valid flag included.
    weight_bits_total
        Of all weights together, biases not counted.
    signed_digits
        See `signed_digits`.
    cycles_per_step
        Of the array's program.
    lut4_per_thousand_updates
        LUT4 of as many cells as do 1,000 cell updates a second, estimated: see
        `scotopia.hdl.estimate.Estimate`.
    seconds
        That the golden model took.
    reason
        Why something is None.
    """

    rule: str
    weight_bits: int
    state_bits: int
    rounding: str
    update_bits: int | None
    clip: str
    seed: int
    density: float
    frames: int
    float_psnr: float | None = None
    psnr: float | None = None
    loss: float | None = None
    state_bits_per_cell: int | None = None
    weight_bits_total: int | None = None
    signed_digits: int | None = None
    cycles_per_step: int | None = None
    lut4_per_thousand_updates: float | None = None
    seconds: float | None = None
    reason: str = ""


def table(plan: Plan, results: Mapping[str, Result]) -> list[Row]:
    """Rows of the points whose results are all there, in order; `results` by `Task.key`."""
    frames = {clip.name: len(clip.frames) for clip in plan.grid.clips}
    rows = []
    for point in plan.grid.points:
        design = point.design
        tasks = (
            plan.float_scores[design.rule, point.clip, point.seed],
            plan.integer_rules[design],
            plan.scores[point],
        )
        if not all(task.key in results for task in tasks):
            continue
        exact, costs, scored = (results[task.key] for task in tasks)
        whole = "psnr" in exact and "psnr" in scored
        reasons = [result["refused"] for result in (exact, scored) if "refused" in result]
        rows.append(
            Row(
                rule=design.rule,
                weight_bits=design.weight_bits,
                state_bits=design.state_bits,
                rounding=str(design.rounding),
                update_bits=design.update_bits,
                clip=point.clip,
                seed=point.seed,
                density=plan.grid.density,
                frames=frames[point.clip],
                float_psnr=exact.get("psnr"),
                psnr=scored.get("psnr"),
                loss=round(exact["psnr"] - scored["psnr"], DIGITS) if whole else None,
                state_bits_per_cell=costs.get("state_bits_per_cell"),
                weight_bits_total=costs.get("weight_bits_total"),
                signed_digits=costs.get("signed_digits"),
                cycles_per_step=costs.get("cycles_per_step"),
                lut4_per_thousand_updates=costs.get("lut4_per_thousand_updates"),
                seconds=scored.get("seconds"),
                reason="; ".join(dict.fromkeys([*reasons, costs.get("note", "")])).strip("; "),
            )
        )
    return rows


@dataclass(frozen=True)
class Summary:
    """A design that was scored on every clip and seed: means in dB, and costs as in `Row`."""

    design: Design
    psnr: float
    float_psnr: float
    loss: float
    state_bits_per_cell: int
    weight_bits_total: int
    signed_digits: int
    cycles_per_step: int | None
    lut4_per_thousand_updates: float | None

    @property
    def total_bits(self) -> int:
        """Bits of all weights and of one cell's state."""
        return self.weight_bits_total + self.state_bits_per_cell


#: What a design can be cheap in: attributes of `Summary`.
COSTS = ("total_bits", "state_bits_per_cell", "lut4_per_thousand_updates")


def summarize(grid: Grid, rows: Iterable[Row]) -> list[Summary]:
    """Means over `grid.counted` and the seeds, of the designs that were scored on all of them."""
    by_design: dict[Design, list[Row]] = {design: [] for design in grid.designs}
    for row in rows:
        quantized = row.weight_bits, row.state_bits, Rounding(row.rounding), row.update_bits
        design = Design(row.rule, *quantized)
        if row.clip in grid.counted and row.loss is not None:
            by_design[design].append(row)
    return [
        Summary(
            design,
            _mean(row.psnr for row in found),
            _mean(row.float_psnr for row in found),
            _mean(row.loss for row in found),
            found[0].state_bits_per_cell or 0,
            found[0].weight_bits_total or 0,
            found[0].signed_digits or 0,
            found[0].cycles_per_step,
            found[0].lut4_per_thousand_updates,
        )
        for design, found in by_design.items()
        if len(found) == len(grid.counted) * len(grid.seeds)
    ]


def _mean(values: Iterable[float | None]) -> float:
    return round(float(np.mean([value for value in values if value is not None])), DIGITS)


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Places of the points that no other one beats, the cheapest first.

    One beats another if it is no dearer and no worse, and cheaper or better.
    """
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i], i)):
        last = front[-1] if front else None
        if (
            last is None
            or values[place] > values[last]
            or (costs[place], values[place]) == (costs[last], values[last])
        ):
            front.append(place)
    return front


def fronts(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Designs on the Pareto front of PSNR against each of `COSTS`, the cheapest first."""
    found = {}
    for cost in COSTS:
        known = [summary for summary in summaries if getattr(summary, cost) is not None]
        places = pareto_front([getattr(one, cost) for one in known], [one.psnr for one in known])
        found[cost] = [known[place] for place in places]
    return found


@dataclass(frozen=True)
class Drift:
    """A float rule and its integer rule side by side over many steps.

    Attributes
    ----------
    step
        (T,) steps done after each frame.
    float_psnr, psnr
        (T,) of each frame, dB.
    """

    design: Design
    step: NDArray[np.int64]
    float_psnr: NDArray[np.float64]
    psnr: NDArray[np.float64]

    @property
    def loss(self) -> NDArray[np.float64]:
        """(T,) of each frame, dB."""
        return np.round(self.float_psnr - self.psnr, DIGITS)

    @property
    def settled(self) -> slice:
        """Frames after the warm-up; all, if there are hardly more."""
        return slice(score.WARM_UP if len(self.step) > score.WARM_UP + 1 else 0, None)

    @property
    def slope(self) -> float:
        """Growth of the loss in dB per 1,000 steps after the warm-up: the least squares' line."""
        step, loss = self.step[self.settled], self.loss[self.settled]
        return round(1000 * float(np.polyfit(step, loss, 1)[0]), DIGITS) if len(step) > 1 else 0.0


def drifts(plan: Plan, results: Mapping[str, Result]) -> list[Drift]:
    """Drift runs whose results are there and not refused, in the order of a table."""
    found = []
    for design in plan.grid.designs:
        exact = results.get(plan.float_drifts[design.rule].key, {})
        fixed = results.get(plan.drifts[design].key, {})
        if "psnr" in exact and "psnr" in fixed:
            step = exact["steps_per_frame"] * np.arange(1, len(exact["psnr"]) + 1)
            curves = (np.array(result["psnr"]) for result in (exact, fixed))
            found.append(Drift(design, step, *curves))
    return found
