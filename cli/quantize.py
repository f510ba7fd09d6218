"""What `scotopia quantize` does: a rule in, an integer rule out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import QFormat, Rounding
from scotopia.hdl.estimate import costs_of_array
from scotopia.model import score
from scotopia.model.checkpoint import digests
from scotopia.model.files import rule_kind, with_clips
from scotopia.model.rule import Rule
from scotopia.model.sampling import seen_mask
from scotopia.model.synthetic import synthetic_clips
from scotopia.model.video import Clip
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.feedback import Moments, round_weights
from scotopia.quantize.formats import Formats, Precision, WeightFormats, check_scales
from scotopia.quantize.integer_rule import SCALES
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.post_training import Calibration, check_method
from scotopia.quantize.search import Build, Cost, Found, Score, cost_of, search
from scotopia.quantize.task import reconstruct

from .clips import read_clips, sizes_of
from .page import figure
from .rules import rule_path

#: What a search can lower: bits of weights and state, or LUT4 for 1,000 cell updates a second: they
#: grow with the clocks of a step.
COSTS = ("bits", "luts")


@dataclass(frozen=True)
class Job:
    """What to quantize, and how.

    Attributes
    ----------
    rule
        Name of a float rule; with `max_loss` also of an integer rule, which keeps its formats but
        for what is taken away.
    precision, rounding
        See `Formats.choose`.
    method, density
        See `Calibration`.
    clips
        Names of clips, and folders of clips, to find ranges with, and to score on; none for four
        synthetic ones, which a search would fit its bits to.
    size
        Side of their frames, see `read_clip`.
    max_loss
        dB that single widths may cost beyond that; None to leave them alone.
    cells
        Cells of the array, each of which has a state; see `search`.
    dither
        See `LayeredRule`.
    scales
        See `Formats.choose`.
    feedback
        Whether a float rule's weights are rounded by `round_weights`, else each to the nearest.
    cost
        What a search lowers, one of `COSTS`.
    command
        How the user put it, for the record.
    """

    rule: str
    precision: Precision
    rounding: Rounding
    method: str
    density: float
    clips: Sequence[str] = ()
    size: int | None = None
    max_loss: float | None = None
    cells: int = 1
    dither: int = 0
    scales: str = "kernel"
    feedback: bool = True
    cost: str = "bits"
    command: str = ""


def run_quantization(job: Job, console: Console) -> tuple[LayeredRule, dict[str, Any]]:
    """Quantize, and tell what that did, on the console and as JSON holds it.

    Raises
    ------
    InputError
        If the rule or a clip cannot be read, or the rule cannot be quantized so.
    """
    if job.max_loss is not None and not job.max_loss > 0:
        raise InputError(f"max_loss {job.max_loss:g} is not above 0: choose 0.1, for instance")
    if job.cells < 1:
        raise InputError(f"cells {job.cells} is below 1: choose 4096 for an array of 64 x 64")
    if job.max_loss is not None and not job.clips:
        raise InputError(
            "a search for fewer bits needs clips like those that the rule is to see: "
            "give --calibrate CLIP"
        )
    check_scales(job.scales)
    check_method(job.method)
    if job.cost not in COSTS:
        raise InputError(f"cost {job.cost!r} is unknown: choose one of {', '.join(COSTS)}")
    path = rule_path(job.rule)
    source: Rule
    build: Build | None = None
    clips = calibration_clips(job.clips, job.size)
    result: dict[str, Any] = {
        "calibration_clips": [clip.name for clip in clips],
        "size": sizes_of(clips),
    }
    keeps_formats = job.max_loss is not None and rule_kind(path) == "integer rule"
    source = FakeQuantRule.of(LayeredRule.load(path)) if keeps_formats else Rule.load(path)
    if job.max_loss is not None:
        mean_psnr = score_on(clips, job.density, source.config.inputs)
    if isinstance(source, FakeQuantRule):
        formats = source.formats
        seen = digests(clips)
        source.training_record = with_clips(source.training_record, seen, seen)
    else:
        with console.status("calibrating"):
            calibration = Calibration.measure(source, clips, job.density)
            source = calibration.rule
            hidden = calibration.formats(job.precision.hidden, job.method)
        formats = replace(
            Formats.choose(source, hidden, job.precision, job.rounding, scales=job.scales),
            dither=job.dither,
        )
        if job.feedback:
            build = _rounded_by_feedback(source, calibration.moments)
        clipped = calibration.clipped(hidden)
        console.print(_clipping_table(clipped))
        result |= {"calibration": job.method, "hidden": clipped}
        scaled = source.training_record[SCALES]
        factors = ", ".join(f"{name} {factor:g}" for name, factor in scaled.items())
        console.print(f"channels scaled to fill their range, by: {factors or 'none'}")
        result[SCALES] = scaled
    if job.max_loss is not None:
        formats = _search(job, source, build, formats, mean_psnr, console, result)
    before = source.training_record.get("quantized_by", ())
    source.training_record = source.training_record | {"quantized_by": [*before, job.command]}
    integer = (build(formats) if build else formats.integer_rule(source)).with_proof()
    ranges = integer.ranges
    bits, widest = ranges.accumulator_bits, ranges.widest_accumulator
    console.print(
        f"proven for every input, for ever: no accumulator needs more than {bits} bits ({widest})"
    )
    result |= {"accumulator_bits": bits, "widest_accumulator": widest}
    return integer, result | {
        "weight_bits": formats.weight_bits,
        "state_bits_per_cell": integer.state_bits,
    }


def _rounded_by_feedback(rule: Rule, moments: Moments) -> Build:
    return lambda formats: formats.integer_rule(round_weights(rule, formats, moments))


def _cost(job: Job) -> Cost | None:
    """What a search lowers in place of bits."""
    if job.cost == "luts":
        return lambda _formats, rule: costs_of_array(rule)[1]
    return None


def calibration_clips(names: Sequence[str], size: int | None = None) -> list[Clip]:
    """Clips to find ranges with, by name or by folder; four synthetic ones, if there is no name."""
    return read_clips(names, size) or synthetic_clips(4, 60, 64, seed=0, first=1000)


def score_on(clips: Sequence[Clip], density: float, inputs: Collection[str]) -> Score:
    """Return the score of integer rules of those `inputs`: their mean PSNR in dB on clips.

    Raises
    ------
    InputError
        If a clip is too short or too small to be scored, or no pixel of it arrives.
    """
    for clip in clips:
        score.check_scorable(clip)
    masks = [seen_mask(clip.name, clip.frames.shape, density, 0, inputs) for clip in clips]

    def mean_psnr(rule: LayeredRule) -> float:
        return float(
            np.mean(
                [
                    score.psnr(clip.frames, reconstruct(rule, clip.frames, mask))
                    for clip, mask in zip(clips, masks, strict=True)
                ]
            )
        )

    return mean_psnr


def _search(
    job: Job,
    source: Rule,
    build: Build | None,
    formats: Formats,
    mean_psnr: Score,
    console: Console,
    result: dict[str, Any],
) -> Formats:
    assert job.max_loss is not None
    cost = _cost(job)
    start = build(formats) if build else formats.integer_rule(source)
    price = cost(formats, start) if cost else cost_of(formats, job.cells)
    before = {job.cost: price, "psnr": mean_psnr(start)}
    with console.status("searching") as status:
        found = search(
            source,
            formats,
            mean_psnr,
            job.max_loss,
            job.cells,
            _progress(status.update, job.cost),
            cost=cost,
            build=build,
        )
    after = {job.cost: found.cost, "psnr": found.score}
    console.print(
        f"{figure(price)} {job.cost} at {before['psnr']:.2f} dB, now {figure(found.cost)} at "
        f"{after['psnr']:.2f} dB; {found.tried} rules tried"
    )
    console.print(_width_table(found.formats))
    result["search"] = {"before": before, "after": after, "tried": found.tried}
    return found.formats


def _progress(show: Callable[[str], None], unit: str) -> Callable[[Found], None]:
    def on_round(found: Found) -> None:
        show(
            f"searching: {figure(found.cost)} {unit} at {found.score:.2f} dB, "
            f"{found.tried} rules tried"
        )

    return on_round


def _clipping_table(clipped: Sequence[dict[str, Any]]) -> Table:
    """What the formats of the hidden neurons clip of what was seen."""
    table = Table("neuron", "format", "largest seen", "clipped", box=SIMPLE_HEAD)
    for number, row in enumerate(clipped):
        table.add_row(
            f"h{number}", row["format"], f"{row['largest']:.3f}", f"{100 * row['clipped']:.3f} %"
        )
    return table


def _width_table(formats: Formats) -> Table:
    def bits(chosen: Sequence[WeightFormats]) -> str:
        first = [format if isinstance(format, QFormat) else format[0] for format in chosen]
        return " ".join(str(format.bits) for format in first)

    table = Table("widths", "bits, one by one", box=SIMPLE_HEAD)
    channels = formats.config.channels
    table.add_row("state channels", bits(formats.state))
    table.add_row("neurons", bits(formats.hidden))
    table.add_row("weights of neurons", bits(formats.perceive_weights))
    table.add_row("weights of candidates", bits(formats.update_weights[:channels]))
    if formats.config.kind == "gated":
        table.add_row("weights of gates", bits(formats.update_weights[channels:]))
        table.add_row("gates", bits([formats.gate]))
    return table
