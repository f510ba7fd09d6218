"""What `scotopia fpga` does: an array on a device, beside its estimate."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from scotopia.hdl.estimate import Estimate, estimate
from scotopia.hdl.fpga import Report, measure
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule

from .rules import rule_path

_RESOURCES = {"lut4": "LUT4", "ff": "flip-flops", "bram": "block RAMs", "dsp": "DSPs"}


def fpga(
    rule: str,
    height: int,
    width: int,
    device: str,
    *,
    route: bool,
    frequency: float,
    seed: int,
    out: Path | None,
    on_tool: Callable[[str], None],
) -> tuple[Report, Estimate]:
    """Measure a rule's array on a device, and estimate it.

    Raises
    ------
    InputError
        As `measure`.
    """
    integer = IntegerRule.load(rule_path(rule))
    expected = estimate(integer, height, width)
    program = Program.compile(integer)
    with tempfile.TemporaryDirectory(prefix="scotopia-") as temporary:
        folder = out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(
            program,
            height,
            width,
            device,
            folder,
            cycles_per_frame=int(expected.cycles_per_frame or 0),
            route=route,
            frequency=frequency,
            seed=seed,
            on_tool=on_tool,
        )
    return report, expected


def rows(report: Report, expected: Estimate) -> list[tuple[str, str, str, str]]:
    """Rows of the table: what, measured, of the device, estimated."""
    guesses = {
        "lut4": expected.lut4,
        "ff": expected.flip_flops,
        "bram": expected.block_rams,
        "dsp": 0,
    }
    table = [
        (
            title,
            f"{getattr(report, name):,}",
            f"{report.utilization.get(name, 0):.0%} of {report.available[name]:,}",
            f"{guesses[name]:,}",
        )
        for name, title in _RESOURCES.items()
    ]
    cells = report.height * report.width
    table += [
        ("LUT4 a cell, the array", f"{report.lut4_per_cell:.2f}", "", f"{expected.lut4_per_cell}"),
        ("LUT4 a cell, all", f"{report.lut4 / cells:.2f}", "", f"{expected.lut4 / cells:.2f}"),
        (
            "flip-flops a cell, the array",
            f"{report.ff_per_cell:.2f}",
            "",
            f"{expected.flip_flops_per_cell}",
        ),
        ("cells that fit", f"{report.cells_that_fit:,}", "", ""),
        ("clocks a frame", f"{report.cycles_per_frame:,}", "", f"{expected.cycles_per_frame:,}"),
    ]
    if report.fmax_mhz and report.frames_per_second:
        table += [
            ("clock, MHz", f"{report.fmax_mhz:.1f}", "", f"{expected.clock_mhz:.1f}, assumed"),
            (
                "frames a second",
                f"{report.frames_per_second:.1f}",
                "",
                f"{expected.frames_per_second:.1f}",
            ),
        ]
    return table


def as_table(report: Report, expected: Estimate) -> Table:
    """Return a table for the terminal."""
    table = Table(title=f"{report.height} x {report.width} cells on {report.device}")
    for column in ("", "measured", "of the device", "estimated"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows(report, expected):
        table.add_row(*row)
    return table


def as_markdown(rule: str, report: Report, expected: Estimate) -> str:
    """Return the same table as Markdown."""
    lines = [
        f"### {rule}, {report.height} x {report.width} cells on {report.device}",
        "",
        "| | measured | of the device | estimated |",
        "|---|--:|--:|--:|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows(report, expected)]
    return "\n".join(lines) + "\n"


def as_json(rule: str, report: Report, expected: Estimate) -> dict[str, Any]:
    """Return report and estimate for JSON."""
    return {
        "rule": rule,
        **report.as_dict(),
        "utilization": report.utilization,
        "estimate": expected.as_dict(),
    }
