"""`scotopia train` of a scotopic rule: clips in, a float or an integer rule out."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Rounding
from scotopia.model.checkpoint import digests
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.model.files import rule_kind
from scotopia.model.front.loading import load_function
from scotopia.model.losses import Loss
from scotopia.model.memory import check_memory
from scotopia.model.options import LoopOptions, TrainOptions
from scotopia.model.presets import PRESETS, find_preset
from scotopia.model.rule import Rule
from scotopia.model.sampling import seen_mask
from scotopia.model.score import check_scorable
from scotopia.model.scotopic.training import ScotopicTask, check_options
from scotopia.model.sensor import Sensor
from scotopia.model.start import can_start_as_filter, start_as, start_as_filter
from scotopia.model.synthetic import synthetic_clips
from scotopia.model.train import Trainer
from scotopia.model.video import Clip
from scotopia.model.videos import check_crop
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.feedback import round_weights
from scotopia.quantize.formats import Formats, Precision, check_scales
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.post_training import Calibration

from .clips import read_clips
from .rules import parse_rounding, rule_path
from .train import Course, Prepared, guarded

#: Frames of a synthetic clip to train on, and their side, pixels.
SYNTHETIC_FRAMES, SYNTHETIC_SIDE = 120, 128

#: Synthetic clips that nobody trains on: their numbers begin here.
FIRST_VALIDATION_CLIP = 1_000_000

#: Inputs that tell a cell a sample's brightness; one of them is needed to learn from samples.
SEEING = frozenset({"sample", "flicker", "innovation", "recall"})

#: What quantization-aware training calibrates with: this many clips, this many frames of each.
CALIBRATION_CLIPS, CALIBRATION_FRAMES = 8, 80

#: Options of `scotopia train` that are fields of `RuleConfig`, and of `TrainOptions`.
SHAPE = (
    *("kind", "channels", "hidden", "inputs", "steps_per_frame", "border", "trace_bits"),
    *("perception", "fire_rate", "block"),
)
VIDEOS = (
    *("crop", "chunk", "restart", "real_share", "moving_share", "zoom", "blend", "contrast"),
    *("drift", "flutter", "cut", "blackout", "sensor_share"),
)

Fields = TypeVar("Fields", RuleConfig, TrainOptions, LoopOptions)


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
class Videos(Course[Rule]):
    """A scotopic rule, and the clips that it is trained on.

    Attributes
    ----------
    clips, synthetic
        Names of clips, folders of clips; number of synthetic ones.
    validation
        Names of clips to score the rule on, none for four synthetic ones.
    size
        Side of the frames of these clips, see `read_clip`.
    start
        What a float rule starts from.
    teacher
        See `ScotopicTask`.
    quantization
        How to train on the grid of an integer rule, which is then what is written; None for a float
        rule. Then `start` is not used, and `config` is the quantization's.
    """

    config: RuleConfig
    options: TrainOptions
    clips: Sequence[str] = ()
    synthetic: int = 64
    validation: Sequence[str] = ()
    size: int | None = None
    start: Start = Start("filter")
    teacher: Teacher | None = None
    quantization: Quantization | None = None

    @property
    def beginning(self) -> str:
        """What training starts from, in words that a checkpoint keeps."""
        taught = "" if self.teacher is None else f", taught by {self.teacher}"
        return str(self.quantization or self.start) + taught

    def describe(self) -> dict[str, Any]:
        """Return the rule's shape."""
        return vars(self.config)

    def check(self) -> None:
        """Refuse inputs that show nothing."""
        if not SEEING.intersection(self.config.inputs):
            raise InputError(
                f"inputs {', '.join(self.config.inputs)!r} show a cell no sample: name "
                f"{', '.join(name for name in INPUTS if name in SEEING)} or several of these"
            )

    def read(self, device: str) -> None:
        """Read the clips.

        Raises
        ------
        InputError
            If there is nothing to train on, or it cannot be trained so.
        """
        teacher = None if self.teacher is None else self.teacher.rule
        check_options(self.config, self.options, device, teacher)
        self._real = read_clips(self.clips, self.size)
        if not self._real and not self.synthetic:
            raise InputError("there is nothing to train on: name a clip, or --synthetic 64")
        self._scored = read_clips(self.validation, self.size)
        for clip in self._real:
            check_crop(clip.name, clip.frames.shape, self.options.crop)
        if self.synthetic:
            shape = SYNTHETIC_FRAMES, SYNTHETIC_SIDE, SYNTHETIC_SIDE
            check_crop("synthetic_000", shape, self.options.crop)
            check_memory(
                f"synthetic {self.synthetic}", 4 * self.synthetic * math.prod(shape), "give fewer"
            )
        for clip in self._scored:
            check_scorable(clip)
            seen_mask(
                clip.name, clip.frames.shape, 0.01, 0, self.config.inputs
            )  # as `validate` shows it

    def prepare(self, device: str, progress: Progress) -> Prepared[Rule]:
        """Render what is synthetic, and make the rule."""
        real, scored, seed = self._real, self._scored, self.options.seed
        synthetic = _render(self.synthetic, SYNTHETIC_FRAMES, seed, 0, "training clips", progress)
        if not scored:
            scored = _render(4, 60, 0, FIRST_VALIDATION_CLIP, "validation clips", progress)
        rule = self._new_rule(real, synthetic)
        teacher = None if self.teacher is None else self.teacher.rule
        task = ScotopicTask(
            real, self.options, synthetic=synthetic, teacher=teacher, validation=scored
        )
        return Prepared(
            Trainer(rule, task, self.options, device=device),
            {"validation_clips": [clip.name for clip in scored]},
            digests(scored),
        )

    def save(self, rule: Rule, path: Path) -> None:
        """Write it; what was trained on a grid as an integer rule, with its proof."""
        if isinstance(rule, FakeQuantRule):
            rule.integer_rule().with_proof().save(path)
        else:
            rule.save(path)

    def _new_rule(self, real: Sequence[Clip], synthetic: Sequence[Clip]) -> Rule:
        if self.quantization is not None:
            return self.quantization.new_rule(real or synthetic, self.options.densities[1])
        torch.manual_seed(self.options.seed)
        return self.start.new_rule(self.config)


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


def loss_of(name: str | None) -> str | Loss | None:
    """Return a loss as `TrainOptions` takes it: a name, or a function of the user's file.

    Raises
    ------
    InputError
        If there is no such function.
    """
    return name if name is None or ":" not in name else guarded(name, load_function(name, "loss"))


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


def videos_of(given: Mapping[str, Any], moved: Mapping[str, Any]) -> Videos:
    """Return what `scotopia train` is to do, by its options: all, and those of `LoopOptions`."""
    quantize, teacher = given["quantize"], given["teacher"]
    preset = given["preset"] or "retina"
    chosen = find_preset(preset if quantize is None else "quantize")
    shape = {name: given[name] for name in SHAPE} | {"inputs": parse_names(given["inputs"])}
    config = override(chosen.config, **shape)
    source = parse_quantization(
        quantize,
        {part: given[f"{part}_bits"] for part in ("weight", "state", "hidden", "gate", "update")},
        given["rounding"],
        shape,
        given["scales"],
        given["dither"],
    )
    if source is not None:
        config = source.config
    sensor = Sensor(
        *(given[name] for name in ("photons", "read_noise", "dead", "stuck", "gain_mismatch"))
    )
    options = override(
        chosen.options,
        **moved,
        **{name: given[name] for name in VIDEOS},
        densities=parse_densities(given["densities"]),
        sensor=None if sensor.is_ideal else sensor,
        loss=loss_of(given["loss"]),
    )
    synthetic = given["synthetic"]
    return Videos(
        config,
        options,
        clips=given["clips"] or [],
        synthetic=chosen.synthetic if synthetic is None else synthetic,
        validation=given["validate"] or [],
        size=given["size"],
        start=Start.named(given["start"] or "filter"),
        teacher=None if teacher is None else Teacher(teacher, Rule.load(rule_path(teacher))),
        quantization=source,
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
