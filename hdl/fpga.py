# TO THE HELPER: read hdl/READ_ME_FIRST_fpga_helper.txt; do not write this file anew.
"""What the array takes of an FPGA: synthesis, placement and routing by open tools.

Yosys and nextpnr come from PyPI as WebAssembly (YoWASP), so that nothing else has to be installed;
their native builds, which are faster, serve where those are missing.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scotopia.model.errors import InputError

from .emit import emit
from .program import Program

#: Of a tool's log, shown when it fails.
LAST_LINES = 5


@dataclass(frozen=True)
class Family:
    """How a family of devices is synthesized, and what its primitives count for.

    Attributes
    ----------
    synthesis
        Yosys's command.
    router
        Program of nextpnr.
    lut4, ff, bram, dsp
        How many of a resource each cell of a netlist takes.
    routed
        What nextpnr's report calls these resources, as far as it counts them.
    """

    synthesis: str
    router: str
    lut4: Mapping[str, int]
    ff: re.Pattern[str]
    bram: Mapping[str, int]
    dsp: Mapping[str, int]
    routed: Mapping[str, str]


ECP5 = Family(
    # Wide multiplexers, which -nowidelut forbids, take several LUT4 each.
    synthesis="synth_ecp5 -nowidelut",
    router="nextpnr-ecp5",
    # A carry cell takes two sites; 16 x 4 bits of RAM take four, and two to write them.
    lut4={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
    ff=re.compile("TRELLIS_FF"),
    bram={"DP16KD": 1, "PDPW16KD": 1},
    dsp={"MULT18X18D": 1},
    routed={"lut4": "TRELLIS_COMB", "ff": "TRELLIS_FF", "bram": "DP16KD", "dsp": "MULT18X18D"},
)
ICE40 = Family(
    synthesis="synth_ice40",
    router="nextpnr-ice40",
    lut4={"SB_LUT4": 1},
    ff=re.compile("SB_DFF"),
    bram={"SB_RAM40_4K": 1},
    dsp={"SB_MAC16": 1},
    # A logic cell holds a LUT4, a flip-flop and a carry: what one has, the other cannot use.
    routed={"lut4": "ICESTORM_LC", "bram": "ICESTORM_RAM", "dsp": "ICESTORM_DSP"},
)
GOWIN = Family(
    synthesis="synth_gowin -nowidelut",
    router="nextpnr-himbaechel-gowin",
    lut4={"LUT1": 1, "LUT2": 1, "LUT3": 1, "LUT4": 1, "ALU": 1, "RAM16SDP4": 4},
    ff=re.compile("DFF"),
    bram={"SDPB": 1, "SDPX9B": 1, "DPB": 1, "DPX9B": 1, "SPX9": 1, "SP": 1, "pROM": 1},
    dsp={"MULT18X18": 1},
    routed={"lut4": "LUT4", "ff": "DFF", "bram": "BSRAM"},
)


@dataclass(frozen=True)
class Device:
    """A device: how to name it to the router, and what it has. Figures are its data sheet's."""

    family: Family
    arguments: tuple[str, ...]
    pins: int
    lut4: int
    ff: int
    bram: int
    dsp: int


def _ecp5(size: str, package: str, pins: int, lut4: int, bram: int, dsp: int) -> Device:
    arguments = (f"--{size}", "--package", package, "--speed", "6", "--lpf-allow-unconstrained")
    return Device(ECP5, arguments, pins, lut4, lut4, bram, dsp)


DEVICES = {
    "ecp5-25k": _ecp5("25k", "CABGA381", 197, 24_288, 56, 28),
    "ecp5-45k": _ecp5("45k", "CABGA554", 245, 43_848, 108, 72),
    "ecp5-85k": _ecp5("85k", "CABGA756", 365, 83_640, 208, 156),
    "ice40-hx8k": Device(
        ICE40, ("--hx8k", "--package", "ct256", "--pcf-allow-unconstrained"), 206, 7_680, 7_680,
        32, 0,
    ),
    "ice40-up5k": Device(
        ICE40, ("--up5k", "--package", "sg48", "--pcf-allow-unconstrained"), 36, 5_280, 5_280, 30, 8
    ),
    "gowin-gw1nr9": Device(
        GOWIN,
        ("--device", "GW1NR-LV9QN88PC6/I5", "--vopt", "family=GW1N-9C"),
        60, 8_640, 6_480, 26, 20,
    ),
    "gowin-gw2a18": Device(
        GOWIN,
        ("--device", "GW2A-LV18PG256C8/I7", "--vopt", "family=GW2A-18"),
        200, 20_736, 15_552, 46, 48,
    ),
}


@dataclass(frozen=True)
class Report:
    """What an array takes of a device.

    Attributes
    ----------
    device, height, width
        Which.
    lut4, ff, bram, dsp
        Of the whole design. Sites that carry chains and distributed RAM take count as LUT4.
    lut4_per_cell
        Of the array: a row of cells, synthesized alone, by its cells.
    ff_per_cell
        The same, in flip-flops.
    available
        What the device has, by resource.
    cells_that_fit
        How many cells of such rows the device could hold, by its scarcest resource.
    cycles_per_frame
        As in `Estimate`.
    fmax_mhz
        Clock that the router achieved; None if nothing was routed.
    frames_per_second
        At that clock.
    seconds
        That each tool took.
    """

    device: str
    height: int
    width: int
    lut4: int
    ff: int
    bram: int
    dsp: int
    lut4_per_cell: float
    ff_per_cell: float
    available: dict[str, int]
    cells_that_fit: int
    cycles_per_frame: int
    fmax_mhz: float | None
    frames_per_second: float | None
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name, for JSON."""
        return dataclasses.asdict(self)

    @property
    def utilization(self) -> dict[str, float]:
        """Share of each resource of the device that is taken."""
        return {
            name: getattr(self, name) / count for name, count in self.available.items() if count
        }


def measure(
    program: Program,
    height: int,
    width: int,
    device: str,
    folder: Path,
    *,
    cycles_per_frame: int,
    route: bool = True,
    frequency: float = 100.0,
    seed: int = 1,
    on_tool: Callable[[str], None] = lambda name: None,
) -> Report:
    """Synthesize an array for a device, and place and route it.

    Parameters
    ----------
    device
        One of `DEVICES`.
    folder
        Where the Verilog, the netlists and the tools' logs go.
    cycles_per_frame
        From `estimate`.
    route
        Whether to place and route.
    frequency
        Clock in MHz that the router aims for.
    seed
        Of the placer.
    on_tool
        Called with what is done, before it is.

    Raises
    ------
    InputError
        If the device is unknown, the design does not fit it, or a tool is missing or fails.
    """
    if device not in DEVICES:
        raise InputError(f"device {device!r} is unknown: choose one of {', '.join(DEVICES)}")
    part = DEVICES[device]
    family = part.family
    yosys, router = find_tool("yosys"), find_tool(family.router) if route else []
    seconds = {}
    manifest = emit(program, height, width, folder)
    sources = " ".join(manifest["sources"])
    (folder / "pins.v").write_text(pin_saver(folder / "retina.v"))

    # Yosys's WebAssembly build writes to no folder but the one it is in, and its output ends when
    # it calls ABC: statistics go to files.
    on_tool(f"yosys: a row of {width} cells")
    row = synthesize(yosys, family, "pixel_row", "pixel_row.v", folder)
    on_tool(f"yosys: {height} x {width} cells for {device}")
    start = time.perf_counter()
    saved = _count_pins(folder / "retina.v") > part.pins
    used = synthesize(yosys, family, "pins" if saved else "retina", f"{sources} pins.v", folder)
    seconds["yosys"] = time.perf_counter() - start
    available = {name: getattr(part, name) for name in ("lut4", "ff", "bram", "dsp")}
    for name, count in available.items():
        if used[name] > count:
            raise InputError(
                f"an array of {height} x {width} cells needs {used[name]} {name}, {device} has "
                f"{count}: choose a smaller array or a larger device"
            )
    shared = {name: used[name] - height * row[name] for name in available}
    rows = min(
        (available[name] - shared[name]) // row[name] for name in available if row[name]
    )

    fmax = None
    if route:
        on_tool(f"{family.router}: {height} x {width} cells on {device}")
        start = time.perf_counter()
        routed = _route(router, part, "pins" if saved else "retina", folder, frequency, seed)
        seconds["nextpnr"] = time.perf_counter() - start
        for name, bel in family.routed.items():
            if bel in routed["utilization"]:
                used[name] = int(routed["utilization"][bel]["used"])
        fmax = min(clock["achieved"] for clock in routed["fmax"].values())
    return Report(
        device=device,
        height=height,
        width=width,
        **used,
        lut4_per_cell=row["lut4"] / width,
        ff_per_cell=row["ff"] / width,
        available=available,
        cells_that_fit=rows * width,
        cycles_per_frame=cycles_per_frame,
        fmax_mhz=fmax,
        frames_per_second=fmax * 1e6 / cycles_per_frame if fmax else None,
        seconds=seconds,
    )


def find_tool(name: str) -> list[str]:
    """Return the command that starts Yosys or a nextpnr.

    Raises
    ------
    InputError
        If there is none.
    """
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for candidate in (f"yowasp-{name}", name):
        found = shutil.which(candidate, path=beside)
        if found:
            return [found]
    raise InputError(f"{name} is not installed: pip install 'scotopia[fpga]'")


def synthesize(
    yosys: list[str], family: Family, top: str, sources: str, folder: Path
) -> dict[str, int]:
    """Synthesize `top` into `top.json`, and count lut4, ff, bram and dsp."""
    script = folder / f"{top}.ys"
    script.write_text(
        f"read_verilog {sources}\n"
        f"{family.synthesis} -top {top} -json {top}.json\n"
        f"tee -q -o {top}.stat.json stat -json\n"
    )
    statistics = folder / f"{top}.stat.json"
    statistics.unlink(missing_ok=True)
    run([*yosys, "-q", script.name], folder / f"{top}.yosys.log", script.name)
    try:
        design = json.loads(statistics.read_text())["design"]["num_cells_by_type"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"yosys left no statistics in {statistics} ({error.__class__.__name__}): "
            f"see {folder / f'{top}.yosys.log'}"
        ) from error
    return count_cells(family, design)


def count_cells(family: Family, cells: Mapping[str, int]) -> dict[str, int]:
    """Sum up what the cells of a netlist take: lut4, ff, bram, dsp."""
    totals = {
        name: sum(weights.get(cell, 0) * count for cell, count in cells.items())
        for name, weights in (("lut4", family.lut4), ("bram", family.bram), ("dsp", family.dsp))
    }
    totals["ff"] = sum(count for cell, count in cells.items() if family.ff.match(cell))
    return totals


def _route(
    router: list[str], part: Device, top: str, folder: Path, frequency: float, seed: int
) -> dict[str, Any]:
    report = folder / "route.json"
    report.unlink(missing_ok=True)
    run(
        [
            *router,
            *part.arguments,
            *("--json", f"{top}.json", "--report", report.name, "--seed", str(seed)),
            *("--freq", str(frequency), "--timing-allow-fail"),
        ],
        folder / "nextpnr.log",
        f"{top}.json",
    )
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def run(command: list[str], log: Path, file: str) -> None:
    """Run a tool in the log's folder.

    Raises
    ------
    InputError
        If it fails: which tool, which file, and the last lines of its log.
    """
    with log.open("w") as output:
        status = subprocess.run(
            command, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        last = " | ".join([line for line in lines if line][-LAST_LINES:])
        raise InputError(
            f"{Path(command[0]).name} failed on {log.parent / file} with status {status} ({last}): "
            f"see {log}"
        )


_PORT = re.compile(r"^  (input|output) (?:\[(\d+):0\] )?(\S+);$", re.MULTILINE)


def _ports(verilog: Path) -> list[tuple[str, int, str]]:
    """Direction, width and name of each port of a module that Amaranth emitted."""
    return [
        (way, int(high or 0) + 1, name) for way, high, name in _PORT.findall(verilog.read_text())
    ]


def _count_pins(verilog: Path) -> int:
    return sum(width for _, width, _ in _ports(verilog))


def pin_saver(verilog: Path) -> str:
    """Return Verilog of a module `pins` around a device: for packages of fewer pins than ports.

    Inputs come from a shift register, and one pin is the parity of all outputs, so that nothing can
    be optimized away.
    """
    ports = [port for port in _ports(verilog) if port[2] != "clk"]
    inputs = [port for port in ports if port[0] == "input"]
    outputs = [port for port in ports if port[0] == "output"]
    bits_in, bits_out = (sum(port[1] for port in group) for group in (inputs, outputs))
    wires, first = [".clk(clk)"], {"input": 0, "output": 0}
    for way, width, name in ports:
        start = first[way]
        first[way] += width
        wires.append(f".{name}({way}s[{start + width - 1}:{start}])")
    return (
        "module pins(input clk, input in, output reg out);\n"
        f"  reg [{bits_in - 1}:0] inputs;\n"
        f"  wire [{bits_out - 1}:0] outputs;\n"
        f"  reg [{bits_out - 1}:0] seen;\n"
        "  always @(posedge clk) begin\n"
        "    inputs <= {inputs, in};\n"
        "    seen <= outputs;\n"
        "    out <= ^seen;\n"
        "  end\n"
        f"  retina retina({', '.join(wires)});\n"
        "endmodule\n"
    )
