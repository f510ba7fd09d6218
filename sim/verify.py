"""Staged verification: each stage is compared with the golden model, code by code."""

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import OutOfRange, compare_with
from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import IntArray
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.twin import ArrayTwin
from scotopia.model.sampling import seen_mask
from scotopia.quantize.integer_rule import IntegerRule

from .amaranth_bench import run_amaranth
from .anywhere import COUNT, SIDE, compare_steps, moments
from .compare import compare
from .evidence import Evidence, evidence, window
from .faults import instrument, sure_faults
from .netlist import cell_models, synthesize_netlist
from .port_faults import PORT_FAULTS
from .ports import RuleDevice, Use, uses
from .simulators import Bench, manifest_for
from .stimulus import Stimulus, central_crop, golden_states
from .stress import StressBench, check_trace

WAVEFORM = "mismatch.vcd"


@dataclass(frozen=True)
class Stage:
    """One row of the proof.

    Attributes
    ----------
    name
        The two that were compared.
    compared
        On what: "16 x 16 cells, 8 frames, every channel and step".
    cell_updates, mismatches
        As in `Comparison`; at the ports, steps that the golden model did for all cells, and
        scenarios in which something differs.
    seconds
        Wall time, compiling included.
    cycles
        Clock cycles simulated, reading included; 0 where there is no clock. At the ports, those
        in which every output was compared.
    expect_mismatch
        Whether a fault was planted, which the comparison must find.
    detail
        The first mismatch, or nothing; of a skipped stage, why.
    measured
        Whether it is no comparison, but a distance: `detail` says how large.
    skipped
        Whether an optional tool is missing.
    evidence
        What went into the first mismatch.
    waveform
        File that shows it.
    ports
        How far each port and register was exercised, where the stage is about them.
    """

    name: str
    compared: str
    cell_updates: int
    mismatches: int
    seconds: float
    expect_mismatch: bool = False
    detail: str = ""
    cycles: int = 0
    measured: bool = False
    skipped: bool = False
    evidence: Evidence | None = field(default=None, repr=False)
    waveform: Path | None = None
    ports: tuple[Use, ...] = field(default=(), repr=False)

    @property
    def passed(self) -> bool:
        """Value of the stage's verdict. One that compared nothing, or was skipped, has not."""
        if self.measured:
            return True
        if self.expect_mismatch:
            return self.mismatches > 0
        return self.cell_updates > 0 and not self.mismatches


@dataclass(frozen=True)
class Extent:
    """How much of the clip a stage runs: the central height x width pixels of some frames."""

    height: int
    width: int
    frames: int


#: Some stages are slow: this much, at most.
SMALL = Extent(4, 4, 1)

#: Clocks that Amaranth's simulator does in some ten seconds, on an array of that size: it runs
#: as many steps of the frame. So do Icarus, and the gates of a netlist.
PATIENCE = 80_000

#: So few cells see nothing at 1 %, and what sees nothing proves nothing: they are shown this share.
SMALL_DENSITY = 0.5

#: Height and width of the largest array whose ports are driven if it was emitted just now, and of
#: that in which faults are planted there: with three rows, there are addresses outside it.
PORTS_SHAPE = (3, 4)


@dataclass(frozen=True)
class Material:
    """What is verified, and on what.

    Attributes
    ----------
    rule
        Its golden model is the truth.
    frames, clip_name
        (T, H, W) the clip, in [0, 1], and its name.
    extent
        What the Verilog and the program's twin run; the slow stages run at most `SMALL`.
    density, seed
        Of the mask, drawn for the crop; the slow stages see `SMALL_DENSITY`.
    """

    rule: IntegerRule
    frames: NDArray[np.float32]
    extent: Extent
    density: float = 0.01
    seed: int = 0
    clip_name: str = "clip"

    def stimulus(self, *, small: bool = False) -> Stimulus:
        """Cut the clip, draw the mask, and run the golden model.

        Raises
        ------
        InputError
            If the clip is too small.
        """
        return self._small if small else self._whole

    @cached_property
    def _whole(self) -> Stimulus:  # for a whole clip, the golden model takes minutes
        return self._show(self.extent, self.density)

    @cached_property
    def _small(self) -> Stimulus:
        extent = Extent(
            min(SMALL.height, self.extent.height),
            min(SMALL.width, self.extent.width),
            min(SMALL.frames, self.extent.frames),
        )
        return self._show(extent, SMALL_DENSITY)

    def _show(self, extent: Extent, density: float) -> Stimulus:
        crop = central_crop(self.frames, self.clip_name, extent.height, extent.width, extent.frames)
        mask = seen_mask(self.clip_name, crop.shape, density, self.seed, self.rule.input_words)
        return Stimulus.of(self.rule, crop, mask)

    def brief(self) -> "Material":
        """Return the same with as many steps a frame as a slow stage has time for."""
        steps = Program.compile(self.rule).cycles("step", width=4)
        steps = max(1, min(self.rule.steps_per_frame, PATIENCE // steps))
        return replace(self, rule=self.rule.with_steps(steps))


Simulate = Callable[[Stimulus], tuple[IntArray, int]]


def compared_stage(
    name: str,
    material: Material,
    simulate: Simulate,
    *,
    small: bool = False,
    expect_mismatch: bool = False,
) -> Stage:
    """Run one stage: compare what `simulate` makes of a stimulus with the golden model."""
    start = time.perf_counter()
    rule = material.rule
    stimulus = material.stimulus(small=small)
    cycles, detail = 0, ""
    try:
        states, cycles = simulate(stimulus)
    except OutOfRange as error:
        states, detail = stimulus.expected[:0], str(error)
    result = compare(stimulus.expected, states, rule.channel_names)
    if result.first and not detail:
        detail = f"first at {result.first}"
    height, width = stimulus.shape
    frames = len(stimulus.mask)
    return Stage(
        name,
        f"{height} x {width} cells, {frames} frame{'s' if frames > 1 else ''} of "
        f"{rule.steps_per_frame} steps, {stimulus.mask.sum()} samples; every channel",
        result.cell_updates,
        result.mismatches,
        time.perf_counter() - start,
        expect_mismatch,
        detail,
        cycles,
        evidence=evidence(rule, stimulus, result.first) if result.first else None,
    )


def verify(
    rule: IntegerRule,
    frames: NDArray[np.float32],
    extent: Extent,
    *,
    density: float = 0.01,
    seed: int = 0,
    clip_name: str = "clip",
    verilog: Path | None = None,
    library: Sequence[Path] = (),
    simulator: str = "verilator",
    gates: bool = False,
    faults: bool = False,
    ports: bool = True,
    ports_shape: tuple[int, int] | None = None,
    waveforms: Path | None = None,
    on_stage: Callable[[str], None] = lambda name: None,
) -> list[Stage]:
    """Compare the program's twin, Amaranth simulation and Verilog with the golden model.

    Parameters
    ----------
    frames, extent, density, seed, clip_name
        As in `Material`.
    verilog, library
        Folder of Verilog to check, of extent's height and width, and models of its cells if it is a
        netlist; None emits it.
    simulator
        Runs the Verilog: verilator or icarus.
    gates
        Whether to go on: to the other simulator, and to a netlist of gates. What those need is
        optional; without it they are skipped, and have not passed.
    faults
        Whether to plant faults, each of which a run on the small extent must find.
    ports
        Whether to drive the ports, too: every command, random stalls, resets at any time, drops,
        registers and another program, all outputs compared in every clock.
    ports_shape
        Height and width of an array that is emitted for the ports; None drives those of `verilog`,
        of extent's size, or where none is given, those of an emitted array of at most 3 x 4 cells.
    waveforms
        Folder for a waveform of the first mismatch of the Verilog.
    on_stage
        Called with the name of each stage before it runs.

    Raises
    ------
    InputError
        If the clip is too small, a tool is missing, or the Verilog does not compile or fit.
    """
    material = Material(rule, frames, extent, density, seed, clip_name)
    program = Program.compile(rule)
    brief = material.brief()
    stages: list[Stage] = []

    def run(name: str, material: Material, simulate: Simulate, **options: bool) -> None:
        on_stage(name)
        stages.append(compared_stage(name, material, simulate, **options))

    # What is bad is said before anything slow begins.
    central_crop(frames, clip_name, extent.height, extent.width, extent.frames)
    if verilog is not None:
        manifest_for(rule, verilog, extent.height, extent.width)
    with (
        StressBench(simulator) as bench,
        processes.temporary_folder() as name,
        processes.workers(1) as other_core,
    ):
        scratch = Path(name)
        # It takes almost as long as the Verilog: both at once. Pickled here and not by a thread of
        # the pool: where two threads ask one object for its attributes and the garbage collector
        # comes between, CPython 3.11 makes two dictionaries of the same values, and crashes later.
        sent = pickle.dumps((program, material.stimulus()))
        twin = other_core.submit(_timed_program, sent)
        run(
            "golden model in its proven ranges",
            material,
            lambda stimulus: (run_monitored(rule, stimulus), 0),
        )
        run(
            "golden model = Amaranth",
            brief,
            lambda stimulus: run_amaranth(replace(program, rule=brief.rule), stimulus),
            small=True,
        )
        folder = verilog or _emitted(program, (extent.height, extent.width), scratch / "verilog")
        run(
            f"golden model = Verilog ({simulator.capitalize()})",
            material,
            lambda stimulus: bench.run(rule, folder, stimulus, library=library),
        )
        if waveforms is not None and stages[-1].evidence:
            stages[-1] = _with_waveform(stages[-1], bench, material, folder, library, waveforms)
        states, seconds = twin.result()
        run("golden model = program", material, lambda _: (states, 0))
        stages.insert(1, replace(stages.pop(), seconds=seconds))
        on_stage("golden model = program, from any state")
        stages.insert(2, _steps_from_anywhere(program))
        if ports:
            on_stage(PORTS_STAGE.format(simulator.capitalize()))
            whole = extent.height, extent.width
            if verilog is None and ports_shape is None:
                ports_shape = min(whole[0], PORTS_SHAPE[0]), min(whole[1], PORTS_SHAPE[1])
            device = RuleDevice(program, *(ports_shape or whole), slow=simulator == "icarus")
            if ports_shape is None:
                driven, models = folder, library
            else:
                driven, models = _emitted(program, ports_shape, scratch / "ports"), ()
            stages.append(_ports(bench, device, driven, models, seed))
        shape = material.stimulus(small=True).shape
        if gates:
            small = _emitted(program, shape, scratch / "small")
            stages += _gates(brief, small, simulator, on_stage)
        if faults:
            broken = _emitted(program, shape, scratch / "broken")
            planted = sure_faults(program, broken)
            instrument(broken, planted)
            build = bench.build(rule, broken, *shape)
            for number, fault in enumerate(planted, 1):
                run(
                    fault.name,
                    material,
                    lambda stimulus, n=number, f=fault: build.run(  # type: ignore[misc]
                        stimulus, f.program, plusargs=[f"+fault={n}"]
                    ),
                    small=True,
                    expect_mismatch=True,
                )
            folder = _emitted(program, PORTS_SHAPE, scratch / "port_faults")
            stages += _port_faults(bench, RuleDevice(program, *PORTS_SHAPE), folder, on_stage)
    return stages


PORTS_STAGE = "contract of the ports = Verilog ({})"


def _ports(
    bench: StressBench,
    device: RuleDevice,
    verilog: Path,
    library: Sequence[Path],
    seed: int,
) -> Stage:
    """Drive the ports through all scenarios, and compare every clock with their contract."""
    start = time.perf_counter()
    bench.build_device(device, verilog, library)
    trace = bench.run_device(device, seed, device.scenarios)
    findings = check_trace(device, trace)
    wrong = [finding for finding in findings if finding.detail]
    used = uses(device, trace, verilog)
    idle = [use.name for use in used if not use.exercised]
    detail = f"not exercised: {', '.join(idle)}" if idle else "every port and register exercised"
    if wrong:
        detail = f"{wrong[0].scenario}: {wrong[0].detail}"
    cells = device.height * device.width
    return Stage(
        PORTS_STAGE.format(bench.simulator.capitalize()),
        f"{device}, {len(findings)} scenarios of commands, stalls, resets, drops and registers; "
        "every output in every clock",
        sum(finding.steps for finding in findings) * cells,
        len(wrong),
        time.perf_counter() - start,
        detail=detail,
        cycles=sum(finding.clocks for finding in findings),
        ports=used,
    )


def _port_faults(
    bench: StressBench, device: RuleDevice, folder: Path, on_stage: Callable[[str], None]
) -> list[Stage]:
    """Plant every fault at the ports, and drive each through the scenario that is to find it."""
    targets = len(device.programs[0].rule.targets)
    chosen = [fault for fault in PORT_FAULTS if fault.targets <= targets]
    planted = [fault.fault(folder) for fault in chosen]
    instrument(folder, planted)
    bench.build_device(device, folder)
    stages = []
    with processes.workers() as pool:
        sent = pickle.dumps((bench, device, chosen))
        futures = [pool.submit(_drive_with_fault, sent, i) for i in range(len(planted))]
        for fault, future in zip(planted, futures, strict=True):
            on_stage(fault.name)
            stages.append(replace(future.result(), name=fault.name))
    return stages


def _drive_with_fault(sent: bytes, index: int) -> Stage:
    """Drive what was built with one of the faults awake through the scenario that is for it."""
    bench, device, faults = pickle.loads(sent)
    start = time.perf_counter()
    fault = faults[index]
    trace = bench.run_device(device, 0, (fault.scenario,), [f"+fault={index + 1}"])
    (finding,) = check_trace(device, trace)
    return Stage(
        fault.name,
        f"{device}, {fault.scenario}; every output in every clock",
        finding.steps * device.height * device.width,
        int(bool(finding.detail)),
        time.perf_counter() - start,
        expect_mismatch=True,
        detail=finding.detail,
        cycles=finding.clocks,
    )


def _steps_from_anywhere(program: Program) -> Stage:
    """Compare single steps from states that the clip need not lead to."""
    start = time.perf_counter()
    result = compare_steps(program.rule, program, moments(program.rule))
    return Stage(
        "golden model = program, from any state",
        f"{COUNT} steps of {SIDE} x {SIDE} cells, from states drawn in the proven ranges",
        result.cell_updates,
        result.mismatches,
        time.perf_counter() - start,
        detail=f"of state {result.first}" if result.first else "",
    )


def _timed_program(sent: bytes) -> tuple[IntArray, float]:
    program, stimulus = pickle.loads(sent)
    start = time.perf_counter()
    return run_program(program, stimulus), time.perf_counter() - start


def _emitted(program: Program, shape: tuple[int, int], folder: Path) -> Path:
    folder.mkdir()
    emit(program, *shape, folder)
    return folder


def _gates(
    brief: Material, verilog: Path, simulator: str, on_stage: Callable[[str], None]
) -> list[Stage]:
    """Run the small array in the other simulator, and as a netlist."""
    other = "icarus" if simulator == "verilator" else "verilator"

    def in_other_simulator(stimulus: Stimulus) -> tuple[IntArray, int]:
        with Bench(other) as bench:
            return bench.run(brief.rule, verilog, stimulus)

    def as_netlist(stimulus: Stimulus) -> tuple[IntArray, int]:
        with processes.temporary_folder() as name, Bench(simulator) as bench:
            models = synthesize_netlist(verilog, Path(name))
            return bench.run(brief.rule, Path(name), stimulus, library=models)

    stages = []
    for name, missing, simulate in (
        (
            f"golden model = Verilog ({other.capitalize()})",
            Bench(other).missing,
            in_other_simulator,
        ),
        (f"golden model = netlist of iCE40 cells ({simulator.capitalize()})", no_yosys, as_netlist),
    ):
        on_stage(name)
        if why := missing():
            stages.append(Stage(name, "nothing", 0, 0, 0.0, skipped=True, detail=why))
        else:
            stages.append(compared_stage(name, brief, simulate, small=True))
    return stages


def no_yosys() -> str:
    """Say why there can be no netlist, if so."""
    try:
        cell_models()
    except InputError as error:
        return str(error)
    return ""


def _with_waveform(
    stage: Stage,
    bench: Bench,
    material: Material,
    verilog: Path,
    library: Sequence[Path],
    waveforms: Path,
) -> Stage:
    """Run again up to the first mismatch, and write its waveform."""
    if stage.evidence is None:
        return stage
    shown = window(Program.compile(material.rule), stage.evidence.mismatch, material.extent.width)
    stimulus = material.stimulus()
    waveforms.mkdir(parents=True, exist_ok=True)
    path = waveforms / WAVEFORM
    build = bench.build(material.rule, verilog, *stimulus.shape, library=library, waves=True)
    build.run(stimulus, window=shown, waveform=path)
    # A device that stopped answering before has none.
    return replace(stage, waveform=path) if path.exists() else stage


def run_monitored(rule: IntegerRule, stimulus: Stimulus) -> IntArray:
    """Run the golden model again, each number compared with its range; raise `OutOfRange`."""
    watched = compare_with(rule.ranges)
    return golden_states(rule, stimulus.samples, stimulus.mask, watch=watched)


def run_program(program: Program, stimulus: Stimulus) -> IntArray:
    """Run a stimulus through the program's twin; states as in `Stimulus.expected`."""
    rule, (height, width) = program.rule, stimulus.shape
    twin = ArrayTwin(program, height, width)
    registers = RowRegisters(height, width, rule.noise_seed)
    twin.run("clear")
    states, steps = [], 0
    written = rule.loads(height, width)
    for frame in range(len(stimulus.mask)):
        for target, y, x, code in chain(written, stimulus.arrivals(frame)):
            offset = program.senses[target]
            twin.run("sense", offset, sample=code, sensed=1 << y * width + x)
        for _ in range(rule.steps_per_frame):
            twin.run("step", noise=twin.packed(registers.planes(rule.noise_planes)))
            steps += 1
            if steps % stimulus.every == 0:
                names = rule.channel_names
                states.append([twin.read(program.words[name]) for name in names])
        twin.run("forget")
    return np.array(states)
