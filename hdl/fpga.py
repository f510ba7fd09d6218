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

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.model.files import write_atomically

from .emit import emit
from .program import Program

#: How far an array is taken: counted after synthesis, or placed and routed, too.
STAGES = ("synth", "route")

#: Of a tool's log, shown when it fails.
LAST_LINES = 5

#: The resources that are counted, and what users call them.
RESOURCES = {"lut4": "LUT4", "ff": "flip-flops", "bram": "block RAMs", "dsp": "DSPs"}


class DoesNotFitError(InputError):
    """An array is too large for a device."""


@dataclass(frozen=True)
class Family:
    """How a family of devices is synthesized, and what its primitives count for.

    Attributes
    ----------
    synthesis
        Yosys's command.
    rows_stay
        Whether rows of cells stay modules of their own in the netlist. The register of control
        words is the same in all of them: Yosys would make it one, and drive each of its signals
        across the chip.
    router
        Program of nextpnr.
    lut4, ff, bram, dsp
        How many of a resource each cell of a netlist takes; of flip-flops, those whose name
        begins so take one.
    routed
        The same of nextpnr's report, as far as it counts a resource.
    """

    synthesis: str
    rows_stay: bool
    router: str
    lut4: Mapping[str, int]
    ff: str
    bram: Mapping[str, int]
    dsp: Mapping[str, int]
    routed: Mapping[str, Mapping[str, int]]


ECP5 = Family(
    # Wide multiplexers, which -nowidelut forbids, take several LUT4 each.
    synthesis="synth_ecp5 -nowidelut",
    rows_stay=True,
    router="nextpnr-ecp5",
    # A carry cell takes two sites; 16 x 4 bits of RAM take four, and two to write them.
    lut4={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
    ff="TRELLIS_FF",
    bram={"DP16KD": 1, "PDPW16KD": 1},
    dsp={"MULT18X18D": 1},
    # TRELLIS_COMB has the sites of carries and of RAM in it, those that write it included.
    routed={
        "lut4": {"TRELLIS_COMB": 1},
        "ff": {"TRELLIS_FF": 1},
        "bram": {"DP16KD": 1},
        "dsp": {"MULT18X18D": 1},
    },
)
ICE40 = Family(
    synthesis="synth_ice40",
    # The devices are small, and a lone flip-flop takes a LUT4.
    rows_stay=False,
    router="nextpnr-ice40",
    # Most carries share a logic cell with a LUT4: those that do not, only the router knows.
    lut4={"SB_LUT4": 1},
    ff="SB_DFF",
    bram={"SB_RAM40_4K": 1},
    dsp={"SB_MAC16": 1},
    # A logic cell holds a LUT4, a flip-flop and a carry: a lone flip-flop takes its LUT4, too.
    routed={
        "lut4": {"ICESTORM_LC": 1},
        "bram": {"ICESTORM_RAM": 1},
        "dsp": {"ICESTORM_DSP": 1},
    },
)
GOWIN = Family(
    synthesis="synth_gowin -nowidelut",
    # Ports of every module would become pins.
    rows_stay=False,
    router="nextpnr-himbaechel-gowin",
    # Where nextpnr puts RAM, none of the eight LUT4 of a block is left for logic.
    lut4={"LUT1": 1, "LUT2": 1, "LUT3": 1, "LUT4": 1, "INV": 1, "ALU": 1, "RAM16SDP4": 8},
    ff="DFF",
    bram={name: 1 for name in ("SP", "SPX9", "SDPB", "SDPX9B", "DPB", "DPX9B", "pROM", "pROMX9")},
    dsp={"MULT18X18": 1},
    # A LUT4 beside a flip-flop may serve as a mere wire to it; nextpnr counts that, too.
    routed={
        "lut4": {"LUT4": 1, "ALU": 1, "RAM16SDP4": 8},
        "ff": {"DFF": 1},
        "bram": {"BSRAM": 1},
        "dsp": {"MULT18X18": 1},
    },
)


@dataclass(frozen=True)
class Device:
    """A device: how to name it to the router, and what it has. Figures are its data sheet's.

    Attributes
    ----------
    part
        Its maker's name for it.
    family
        Which.
    arguments
        What tells nextpnr.
    pins
        That its package has for signals.
    lut4, ff, bram, dsp
        What it has.
    locations
        Pins of `clk`, `in` and `out` of `pin_saver`, for a router that does not choose any.
    """

    part: str
    family: Family
    arguments: tuple[str, ...]
    pins: int
    lut4: int
    ff: int
    bram: int
    dsp: int
    locations: Mapping[str, str] | None = None


def _ecp5(size: str, package: str, pins: int, lut4: int, bram: int, dsp: int) -> Device:
    arguments = (
        *(f"--{size}", "--package", package, "--speed", "6", "--lpf-allow-unconstrained"),
        # The default router does not end in an hour where 64 x 64 cells fill the device.
        *("--router", "router2"),
    )
    return Device(f"LFE5U-{size[:2]}F-6 {package}", ECP5, arguments, pins, lut4, lut4, bram, dsp)


def _ice40(part: str, package: str, pins: int, cells: int, bram: int, dsp: int) -> Device:
    arguments = (f"--{part.lower()}", "--package", package, "--pcf-allow-unconstrained")
    return Device(f"iCE40{part} {package}", ICE40, arguments, pins, cells, cells, bram, dsp)


DEVICES = {
    "ecp5-25k": _ecp5("25k", "CABGA381", 197, 24_288, 56, 28),
    "ecp5-45k": _ecp5("45k", "CABGA554", 245, 43_848, 108, 72),
    "ecp5-85k": _ecp5("85k", "CABGA756", 365, 83_640, 208, 156),
    "ice40-hx8k": _ice40("HX8K", "ct256", 206, 7_680, 32, 0),
    "ice40-up5k": _ice40("UP5K", "sg48", 39, 5_280, 30, 8),
    "gowin-gw1nr9": Device(
        "GW1NR-LV9QN88PC6/I5",
        GOWIN,
        ("--device", "GW1NR-LV9QN88PC6/I5", "--vopt", "family=GW1N-9C"),
        *(71, 8_640, 6_480, 26, 20),
        locations={"clk": "52", "in": "3", "out": "10"},
    ),
    "gowin-gw2a18": Device(
        "GW2A-LV18PG256C8/I7",
        GOWIN,
        ("--device", "GW2A-LV18PG256C8/I7", "--vopt", "family=GW2A-18"),
        *(207, 20_736, 15_552, 46, 48),
        locations={"clk": "H11", "in": "T10", "out": "C13"},
    ),
}


@dataclass(frozen=True)
class FpgaReport:
    """What an array takes of a device.

    Attributes
    ----------
    device, height, width
        Which.
    stage
        One of `STAGES`: whether the counts are those of synthesis, or of the router.
    lut4, ff, bram, dsp
        Of the whole design. Sites that carry chains and distributed RAM take count as LUT4; on
        iCE40, once routed, so do those of lone flip-flops.
    lut4_per_cell
        Of the array: a row of cells, synthesized alone, by its cells.
    ff_per_cell
        The same, in flip-flops.
    available
        What the device has, by resource.
    cells_that_fit
        How many cells, in such rows, the device has room for after synthesis: a router seldom
        fills the last tenth.
    limit
        The resource that allows no more.
    cycles_per_frame
        As in `Estimate`.
    fmax_mhz
        Clock that the router achieved; None if nothing was routed.
    clock_mhz
        That clock, or else the one assumed.
    frames_per_second
        At `clock_mhz`, without the clocks that samples take.
    pin_saver
        Whether the router's figures have `pin_saver` in them: two flip-flops or so a port's bit.
    seconds
        That each tool took.
    """

    device: str
    height: int
    width: int
    stage: str
    lut4: int
    ff: int
    bram: int
    dsp: int
    lut4_per_cell: float
    ff_per_cell: float
    available: dict[str, int]
    cells_that_fit: int
    limit: str
    cycles_per_frame: int
    fmax_mhz: float | None
    clock_mhz: float
    frames_per_second: float
    pin_saver: bool
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and the utilization by name, for JSON."""
        return dataclasses.asdict(self) | {"utilization": self.utilization}

    @property
    def utilization(self) -> dict[str, float]:
        """Share of each resource of the device that is taken; none for those it lacks."""
        return {
            name: getattr(self, name) / count for name, count in self.available.items() if count
        }


def find_device(name: str) -> Device:
    """Return a device by its name.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in DEVICES:
        raise InputError(f"device {name!r} is unknown: choose one of {', '.join(DEVICES)}")
    return DEVICES[name]


def find_tool(name: str) -> str:
    """Return the program that is Yosys or a nextpnr.

    Raises
    ------
    InputError
        If there is none.
    """
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for candidate in (f"yowasp-{name}", name):
        found = shutil.which(candidate, path=beside)
        if found:
            return found
    raise InputError(f"{name} is not installed: pip install 'scotopia[fpga]'")


def check(device: str, stage: str, frequency: float) -> None:
    """Refuse at once what would fail after minutes.

    Raises
    ------
    InputError
        If the device or the stage is unknown, the frequency is none, or a tool is missing.
    """
    part = find_device(device)
    if stage not in STAGES:
        raise InputError(f"stage {stage!r} is unknown: choose one of {', '.join(STAGES)}")
    if not 0 < frequency < float("inf"):
        raise InputError(f"frequency {frequency} MHz is none: choose 100, for instance")
    find_tool("yosys")
    if stage == "route":
        find_tool(part.family.router)


def measure(
    program: Program,
    height: int,
    width: int,
    device: str,
    folder: Path,
    *,
    cycles_per_frame: int,
    assumed_mhz: float,
    stage: str = "route",
    frequency: float = 100.0,
    seed: int = 1,
    timeout: float | None = None,
    on_tool: Callable[[str], None] = lambda name: None,
) -> FpgaReport:
    """Synthesize an array for a device, and place and route it.

    Parameters
    ----------
    device
        One of `DEVICES`.
    folder
        Where the Verilog, the netlists and the tools' logs go.
    cycles_per_frame, assumed_mhz
        From `estimate`; the clock counts if nothing is routed.
    stage
        One of `STAGES`, where to end.
    frequency
        Clock in MHz that the router aims for.
    seed
        Of the placer.
    timeout
        Seconds that one run of a tool may take; None for any.
    on_tool
        Called with what is done, before it is.

    Raises
    ------
    DoesNotFitError
        If the device is too small.
    InputError
        As `check`, or if a tool fails or takes too long.
    """
    check(device, stage, frequency)
    part = DEVICES[device]
    family = part.family
    seconds = {"yosys": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    manifest = emit(program, height, width, folder)
    sources, top = manifest["sources"], manifest["top"]

    def count(name: str, top: str, files: list[str]) -> dict[str, int]:
        on_tool(f"yosys: {name} for {device}")
        start = time.perf_counter()
        used = synthesize(family, top, files, folder, timeout)
        seconds["yosys"] += time.perf_counter() - start
        return used

    array = f"{height} x {width} cells"
    row = count(f"a row of {width} cells", "pixel_row", ["pixel_row.v"])
    used = count(array, top, sources)
    available = {name: int(getattr(part, name)) for name in RESOURCES}
    for name, has in available.items():
        if used[name] > has:
            raise _refusal(array, device, used[name], RESOURCES[name], has)
    rows, limit = rows_that_fit(used, row, height, available)

    fmax, saved = None, False
    if stage == "route":
        saved = part.locations is not None or count_pins(folder / f"{top}.v") > part.pins
        if saved:
            write_atomically(folder / "pins.v", pin_saver(folder / f"{top}.v", top))
            top = "pins"
            count(f"{array} behind three pins", top, [*sources, "pins.v"])
        on_tool(f"{family.router}: {array} on {device}")
        start = time.perf_counter()
        routed, fmax = _route(part, top, folder, frequency, seed, timeout, (array, device))
        seconds["nextpnr"] = time.perf_counter() - start
        used |= routed
    clock = fmax or assumed_mhz
    return FpgaReport(
        device=device,
        height=height,
        width=width,
        stage=stage,
        **used,
        lut4_per_cell=row["lut4"] / width,
        ff_per_cell=row["ff"] / width,
        available=available,
        cells_that_fit=rows * width,
        limit=limit,
        cycles_per_frame=cycles_per_frame,
        fmax_mhz=fmax,
        clock_mhz=clock,
        frames_per_second=clock * 1e6 / cycles_per_frame,
        pin_saver=saved,
        seconds=seconds,
    )


def synthesize(
    family: Family, top: str, sources: list[str], folder: Path, timeout: float | None = None
) -> dict[str, int]:
    """Synthesize `top` into `top.json`, and count lut4, ff, bram and dsp.

    Raises
    ------
    InputError
        If Yosys is missing or fails.
    """
    script = folder / f"{top}.ys"
    # Yosys's WebAssembly build writes to no folder but the one it is in, and its output ends when
    # it calls ABC: statistics go to a file.
    keep = "setattr -mod -set keep_hierarchy 1 pixel_row\n" * family.rows_stay
    write_atomically(
        script,
        f"read_verilog {' '.join(sources)}\n"
        f"{keep}"
        f"{family.synthesis} -top {top} -json {top}.json\n"
        f"tee -q -o {top}.stat.json stat -json\n",
    )
    statistics, log = folder / f"{top}.stat.json", folder / f"{top}.yosys.log"
    statistics.unlink(missing_ok=True)
    run([find_tool("yosys"), "-q", script.name], log, script.name, timeout)
    try:
        return count_cells(family, statistics.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"yosys left no statistics in {statistics} ({error.__class__.__name__}): "
            f"--out FOLDER keeps {log.name}"
        ) from error


def count_cells(family: Family, statistics: str) -> dict[str, int]:
    """Sum up what a netlist takes, from Yosys's `stat -json`: lut4, ff, bram, dsp."""
    cells: dict[str, int] = json.loads(statistics)["design"]["num_cells_by_type"]
    totals = {
        name: sum(weights.get(cell, 0) * count for cell, count in cells.items())
        for name, weights in (("lut4", family.lut4), ("bram", family.bram), ("dsp", family.dsp))
    }
    totals["ff"] = sum(count for cell, count in cells.items() if cell.startswith(family.ff))
    return totals


def rows_that_fit(
    used: Mapping[str, int], row: Mapping[str, int], height: int, available: Mapping[str, int]
) -> tuple[int, str]:
    """Rows of cells that a device has room for beside what they share, and what allows no more."""
    rows = {
        name: (has - max(0, used[name] - height * row[name])) // row[name]
        for name, has in available.items()
        if row[name]
    }
    limit = min(rows, key=rows.__getitem__)
    return rows[limit], limit


def _route(
    part: Device,
    top: str,
    folder: Path,
    frequency: float,
    seed: int,
    timeout: float | None,
    names: tuple[str, str],
) -> tuple[dict[str, int], float]:
    report, log = folder / "route.json", folder / "nextpnr.log"
    report.unlink(missing_ok=True)
    arguments = [*part.arguments]
    if part.locations is not None:
        lines = [f'IO_LOC "{port}" {pin};\n' for port, pin in part.locations.items()]
        write_atomically(folder / "pins.cst", "".join(lines))
        arguments += ["--vopt", "cst=pins.cst"]
    try:
        run(
            [
                *(find_tool(part.family.router), *arguments),
                *("--json", f"{top}.json", "--report", report.name, "--seed", str(seed)),
                # Too slow is a finding, not a failure.
                *("--freq", str(frequency), "--timing-allow-fail"),
            ],
            log,
            f"{top}.json",
            timeout,
        )
    except InputError:
        over = overfull(log.read_text(errors="replace"))
        if over is None:
            raise
        name, needed, has = over
        raise _refusal(*names, needed, name, has) from None
    try:
        return read_route(part.family, report.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{part.family.router} left no report in {report} ({error.__class__.__name__}): "
            f"--out FOLDER keeps {log.name}"
        ) from error


def read_route(family: Family, report: str) -> tuple[dict[str, int], float]:
    """Read what nextpnr's report counts of lut4, ff, bram and dsp, and the slowest clock in MHz."""
    found = json.loads(report)
    sites = found["utilization"]
    used = {
        name: sum(int(sites[site]["used"]) * count for site, count in weights.items())
        for name, weights in family.routed.items()
        # A device without DSPs has none in its report.
        if all(site in sites for site in weights)
    }
    return used, min(float(clock["achieved"]) for clock in found["fmax"].values())


_SITES = re.compile(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%$", re.MULTILINE)


def overfull(log: str) -> tuple[str, int, int] | None:
    """Find in nextpnr's log the sites of which most are missing: name, needed, and there are."""
    sites = [(name, int(used), int(has)) for name, used, has in _SITES.findall(log)]
    over = [site for site in sites if site[1] > site[2]]
    return max(over, key=lambda site: site[1] - site[2], default=None)


def _refusal(array: str, device: str, needed: int, name: str, has: int) -> DoesNotFitError:
    return DoesNotFitError(
        f"an array of {array} needs {needed:,} {name}, and {device} has {has:,}: "
        "choose a smaller array, a smaller rule or a larger device"
    )


def run(command: list[str], log: Path, file: str, timeout: float | None = None) -> None:
    """Run a tool in the log's folder.

    Raises
    ------
    InputError
        If it fails or takes too long: which tool, which file, and the last lines of its log.
    """
    tool = f"{Path(command[0]).name} on {log.parent / file}"
    with log.open("w") as output:
        try:
            status = processes.run(command, output, folder=log.parent, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{tool} took more than {timeout:g} s: raise --timeout, or choose a smaller array"
            ) from None
    if status:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        last = " | ".join([line for line in lines if line][-LAST_LINES:])
        raise InputError(
            f"{tool} failed with status {status} ({last}): --out FOLDER keeps {log.name}"
        )


_PORT = re.compile(r"^  (input|output) (?:\[(\d+):0\] )?(\S+);$", re.MULTILINE)


def _ports(verilog: Path) -> list[tuple[str, int, str]]:
    """Direction, width and name of each port of a module that Amaranth emitted."""
    return [
        (way, int(high or 0) + 1, name) for way, high, name in _PORT.findall(verilog.read_text())
    ]


def count_pins(verilog: Path) -> int:
    """Count the bits of all ports of a module that Amaranth emitted."""
    return sum(width for _, width, _ in _ports(verilog))


def pin_saver(verilog: Path, top: str) -> str:
    """Return Verilog of a module `pins` around `top`: for packages of fewer pins than ports.

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
        f"  {top} wrapped ({', '.join(wires)});\n"
        "endmodule\n"
    )
