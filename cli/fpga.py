"""What `scotopia fpga` does: arrays on devices, beside their estimates, or these alone."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.hdl.estimate import Estimate, estimate
from scotopia.hdl.fpga import RESOURCES, STAGES, DoesNotFitError, FpgaReport, check, measure
from scotopia.hdl.program import Program
from scotopia.hdl.retina import check_size
from scotopia.quantize.integer_rule import IntegerRule

from .rules import rule_path


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes
    ----------
    rule
        Name of an integer rule.
    sizes
        Height and width of each array.
    devices
        On each of these, by name.
    stage, frequency, seed, timeout
        As in `measure`.
    out
        Folder that keeps what the tools write, one folder in it for each array on a device; None
        to keep nothing.
    """

    rule: str
    sizes: Sequence[tuple[int, int]]
    devices: Sequence[str]
    stage: str = "route"
    frequency: float = 100.0
    seed: int = 1
    timeout: float | None = None
    out: Path | None = None


#: What stands in a table of estimates for an attribute of `Estimate`.
ESTIMATED = {
    "macs": "MACs a cell and step",
    "macs_per_frame": "MACs a frame",
    "parameters": "parameters",
    "nonzero_weights": "weights that are not 0",
    "distinct_weights": "distinct weights",
    "signed_digits": "non-zero signed digits",
    "weight_bits": "weight bits",
    "mantissa_bits": "mantissa bits",
    "state_bits": "state bits a cell",
    "cycles_per_step": "clocks a step",
    "cycles_per_frame": "clocks a frame",
    "cycles_per_sample": "clocks a sample",
    "planes": "bits of memory a cell",
    "instructions": "instructions",
    "program_bits": "program bits",
    "lut4_per_cell": "LUT4 a cell",
    "flip_flops_per_cell": "flip-flops a cell",
    "lut4": "LUT4",
    "flip_flops": "flip-flops",
    "block_rams": "block RAMs of 18 kbit",
    "clock_mhz": "clock, MHz, assumed",
    "frames_per_second": "frames a second",
    "lut4_per_thousand_updates": "LUT4 for 1,000 cell updates a second",
}


@dataclass(frozen=True)
class Outcome:
    """What came of it: a report for each array on a device, or why it does not fit."""

    rule: str
    measured: list[tuple[FpgaReport, Estimate]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def parse_size(text: str) -> tuple[int, int]:
    """Return height and width.

    Raises
    ------
    InputError
        If the text is not two numbers with an x between them, or there is no such array.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise InputError(f"size {text!r} is not HEIGHTxWIDTH: give 16x16, for instance")
    height, width = int(found[1]), int(found[2])
    try:
        check_size(height, width)
    except InputError as error:
        raise InputError(f"size {text}: {error}") from error
    return height, width


def run_fpga(job: Job, on_tool: Callable[[str], None]) -> Outcome:
    """Measure arrays on devices, and estimate them.

    Raises
    ------
    DoesNotFitError
        If the only array does not fit the only device.
    InputError
        As `measure`.
    """
    pairs = [(size, device) for size in job.sizes for device in job.devices]
    for size in job.sizes:
        check_size(*size)
    for device in job.devices:
        check(device, job.stage, job.frequency)
    integer = IntegerRule.load(rule_path(job.rule))
    program = Program.compile(integer)
    expected = {size: estimate(integer, *size) for size in job.sizes}
    outcome = Outcome(job.rule)
    with processes.temporary_folder() as temporary:
        for (height, width), device in pairs:
            guess = expected[height, width]
            assert guess.cycles_per_frame is not None  # only a rule that does not compile has none
            try:
                report = measure(
                    program,
                    height,
                    width,
                    device,
                    (job.out or Path(temporary)) / f"{device}-{height}x{width}",
                    cycles_per_frame=guess.cycles_per_frame,
                    assumed_mhz=guess.clock_mhz,
                    stage=job.stage,
                    frequency=job.frequency,
                    seed=job.seed,
                    timeout=job.timeout,
                    on_tool=on_tool,
                )
            except DoesNotFitError as error:
                if len(pairs) == 1:
                    raise
                outcome.refused.append(str(error))
            else:
                outcome.measured.append((report, guess))
    return outcome


def check_stage(stage: str) -> None:
    """Raise InputError unless the command can go as far as this stage."""
    stages = ("estimate", *STAGES)
    if stage not in stages:
        raise InputError(f"stage {stage!r} is unknown: choose one of {', '.join(stages)}")


def run_estimates(rule: str, sizes: Sequence[tuple[int, int]]) -> list[Estimate]:
    """Estimate what arrays cost, in a second and without a tool."""
    integer = IntegerRule.load(rule_path(rule))
    return [estimate(integer, *size) for size in sizes]


def estimates_table(rule: str, estimates: Sequence[Estimate]) -> Table:
    """Return a table for the terminal, a column for each array."""
    table = Table(title=f"{rule}, estimated for ECP5")
    table.add_column("cells")
    for one in estimates:
        table.add_column(f"{one.height} x {one.width}", justify="right")
    for name, title in ESTIMATED.items():
        values = [getattr(one, name) for one in estimates]
        digits = 2 if isinstance(values[0], float) else 0
        if None not in values:
            table.add_row(title, *(_number(value, digits) for value in values))
    return table


def estimates_json(rule: str, estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Return the estimates as `as_json` does, but nothing is measured."""
    runs = [{"stage": "estimate", "estimate": one.as_dict()} for one in estimates]
    return {"rule": rule, **runs[0]} if len(runs) == 1 else {"rule": rule, "runs": runs}


def as_rows(report: FpgaReport, expected: Estimate) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a table: what, measured, of the device, estimated."""
    cells = report.height * report.width
    guesses = {
        "lut4": expected.lut4,
        "ff": expected.flip_flops,
        "bram": expected.block_rams,
    }
    for name, title in RESOURCES.items():
        yield title, f"{getattr(report, name):,}", _share(report, name), _number(guesses.get(name))
    yield "LUT4 a cell", f"{report.lut4_per_cell:.2f}", "", _number(expected.lut4_per_cell, 2)
    shared = None if expected.lut4 is None else expected.lut4 / cells
    whole = f"{report.lut4 / cells:.2f}"
    yield "LUT4 a cell, with all that cells share", whole, "", _number(shared, 2)
    flip_flops = _number(expected.flip_flops_per_cell, 2)
    yield "flip-flops a cell", f"{report.ff_per_cell:.2f}", "", flip_flops
    limit = f"for its {RESOURCES[report.limit]}"
    yield "cells that fit", f"{report.cells_that_fit:,}", limit, ""
    yield "clocks a frame", "", "", f"{report.cycles_per_frame:,}"
    clock = "" if report.fmax_mhz is None else f"{report.fmax_mhz:.1f}"
    yield "clock, MHz", clock, "", f"{_number(expected.clock_mhz, 1)}, assumed"
    speed = "" if report.fmax_mhz is None else f"{report.frames_per_second:.1f}"
    yield "frames a second", speed, "", _number(expected.frames_per_second, 1)


#: Columns of a comparison.
COLUMNS = (
    *("cells", "device", "LUT4", "flip-flops", "block RAMs", "LUT4 a cell", "cells that fit"),
    *("MHz", "frames a second"),
)


def as_columns(report: FpgaReport, expected: Estimate) -> tuple[str, ...]:
    """Return one row of a comparison; what was estimated stands in brackets."""
    routed = report.fmax_mhz is not None
    frames = f"{report.frames_per_second:.1f} "
    return (
        f"{report.height} x {report.width}",
        report.device,
        f"{report.lut4:,}, {_share(report, 'lut4', True)} ({_number(expected.lut4)})",
        f"{report.ff:,}, {_share(report, 'ff', True)} ({_number(expected.flip_flops)})",
        f"{report.bram:,}, {_share(report, 'bram', True)} ({_number(expected.block_rams)})",
        f"{report.lut4_per_cell:.2f} ({_number(expected.lut4_per_cell, 2)})",
        f"{report.cells_that_fit:,}",
        f"{report.clock_mhz:.1f}" if routed else f"({report.clock_mhz:.1f})",
        f"{frames if routed else ''}({_number(expected.frames_per_second, 1)})",
    )


def as_table(outcome: Outcome) -> Table:
    """Return a table for the terminal: of one array on a device, or a comparison of several."""
    title, header, rows = _view(outcome)
    table = Table(title=title)
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def as_markdown(outcome: Outcome) -> str:
    """Return the same table as Markdown, and what does not fit as a list."""
    title, header, rows = _view(outcome)
    lines = [f"### {title}", "", f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {refusal}" for refusal in outcome.refused)] if outcome.refused else []
    return "\n".join(lines) + "\n"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return reports with estimates: at the top level if there is one, else as `runs`."""
    runs = [
        {**report.as_dict(), "estimate": expected.as_dict()}
        for report, expected in outcome.measured
    ]
    if len(runs) == 1 and not outcome.refused:
        return {"rule": outcome.rule, **runs[0]}
    return {"rule": outcome.rule, "runs": runs, "refused": outcome.refused}


def _view(outcome: Outcome) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    if len(outcome.measured) == 1:
        report, expected = outcome.measured[0]
        title = f"{outcome.rule}, {report.height} x {report.width} cells on {report.device}"
        header = ("", "measured", "of the device", "estimated")
        return title, header, [*as_rows(report, expected)]
    rows = [as_columns(report, expected) for report, expected in outcome.measured]
    return f"{outcome.rule}, measured (estimated)", COLUMNS, rows


def _share(report: FpgaReport, name: str, brief: bool = False) -> str:
    has = report.available[name]
    share = f"{report.utilization.get(name, 0):.0%}"
    return share if brief else f"{share} of {has:,}" if has else "none"


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
