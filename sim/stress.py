"""Stress of the interfaces: Verilog at its ports, held against `DeviceModel`.

The proof of states drives the device gently. Here it is offered samples and commands at all times,
its pixels are held back, it is reset in the middle of everything, and given another program, and
all that can be seen is compared in every clock: see `cocotb_stress.SCENARIOS`.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scotopia.graph import processes
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.operations import Border
from scotopia.graph.processes import complaint
from scotopia.graph.qformat import QFormat, Rounding
from scotopia.graph.surroundings import Event
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import EventLayout, InstructionLayout, program_depth, shape_code
from scotopia.quantize.integer_rule import GraphRule

from .check import Check, Verdict
from .cocotb_stress import BESIDE, PLAN, READ, SCENARIOS, WRITTEN
from .device_model import Clocks, DeviceModel, Inputs, Loadable, Mismatch, Outputs
from .simulators import Bench, BenchError, simulate

PART = "stress"

FIELDS = len(Inputs._fields)

#: Formats of a device's channels and samples, of their changes, of a share of the way, of a flag.
STATE, WIDER = QFormat(1, 3), QFormat(2, 3)
SHARE, BIT = QFormat(0, 3, signed=False), QFormat(1, 0, signed=False)

#: Random bits that decide whether a cell changes.
FIRE_BITS = 8

#: Writes the Verilog of a program's height x width array into a folder.
Emitter = Callable[[Program, int, int, Path], Any]

#: They take 65,536 clocks, and one device to be shown on.
COUNTING = ("dropped stops at 65,535",)

#: It sets a register from behind, where only Verilog as emitted has one of that name.
INSIDE = "frames begin again at 65,536"


class Driven:
    """An array that is driven through scenarios, and what they have to know of it.

    Attributes
    ----------
    height, width
        Of the array.
    programs
        What it runs, and another of the same shape that can be loaded; or one alone.
    effort
        About how often the longer scenarios repeat.
    long
        Whether to count up to what counters can hold.
    """

    height: int
    width: int
    effort: int
    long: bool
    programs: tuple[Program, ...]

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Which make sense on it."""
        return tuple(name for name in SCENARIOS if self.long or name not in COUNTING)

    def model(self) -> DeviceModel:
        """Return the model of it."""
        program, width = self.programs[0], self.width
        layout = InstructionLayout(program)
        routines = ("clear", "step", "forget", "read", "move")
        return DeviceModel(
            [
                Loadable(
                    program.rule,
                    self.words(program),
                    Clocks(
                        sense=tuple(program.cycles("sense", width, at) for at in program.senses),
                        **{name: program.cycles(name, width) for name in routines},
                    ),
                )
                for program in self.programs
            ],
            self.height,
            width,
            word_bits=program.operand_bits,
            word_mask=(1 << layout.size) - 1,
            shape=shape_code(program, self.height, width),
            depth=program_depth(program),
        )

    def words(self, program: Program) -> list[int]:
        """Return the program as it lies in the memory."""
        encode = InstructionLayout(self.programs[0]).encode
        return [encode(instruction) for instruction in program.instructions]

    def plan(self, seed: int, scenarios: Sequence[str]) -> dict[str, Any]:
        """Return what `cocotb_stress` has to know."""
        program = self.programs[0]
        programs = [self.words(program) for program in self.programs]
        longest = max(map(len, programs))
        return {
            "device": str(self),
            "seed": seed,
            "scenarios": list(scenarios),
            "effort": self.effort,
            "long": self.long,
            "height": self.height,
            "width": self.width,
            "channels": len(program.rule.channel_formats),
            "steps_per_frame": program.rule.steps_per_frame,
            "step": program.cycles("step", self.width),
            "clear": program.cycles("clear", self.width),
            "read": program.cycles("read", self.width) + program.cycles("move", self.width),
            "step_entry": program.entries["step"],
            "code_bits": program.rule.code_bits,
            "targets": len(program.rule.targets),
            "events": len(program.rule.events),
            "loads": list(program.rule.loads(self.height, self.width)),
            "word_bits": program.operand_bits,
            "x_bits": max(1, (self.width - 1).bit_length()),
            "y_bits": max(1, (self.height - 1).bit_length()),
            "word_mask": (1 << InstructionLayout(program).size) - 1,
            # Of one length, so that loading one leaves nothing of the other.
            "words": [[*words, *[0] * (longest - len(words))] for words in programs],
        }


@dataclass(frozen=True)
class Device(Driven):
    """A small array of a rule of few, random weights, and how hard it is driven.

    Attributes
    ----------
    kind
        Whether a neuron changes a channel ("residual"), or moves it a share of the way to what a
        neuron says ("gated").
    border
        What cells see beyond it.
    seeds
        Of the weights of its rule, and of the other one; by these, the prediction takes most of the
        codes that it can.
    channels, steps_per_frame, fire_rate, dither
        Of both rules.
    """

    height: int
    width: int
    kind: Literal["gated", "residual"]
    border: Border
    seeds: tuple[int, int]
    channels: int = 1
    steps_per_frame: int = 2
    fire_rate: float = 1.0
    dither: int = 0
    effort: int = 60
    long: bool = False

    def __str__(self) -> str:
        chance = ", stochastic" if self.fire_rate < 1 or self.dither else ""
        return f"{self.width} x {self.height} cells, {self.kind}, {self.border}{chance}"

    @cached_property
    def programs(self) -> tuple[Program, ...]:  # type: ignore[override]
        """What it runs, and another of the same shape that can be loaded."""
        programs = [Program.compile(self.rule(seed)) for seed in self.seeds]
        codes = {shape_code(program, self.height, self.width) for program in programs}
        assert len(codes) == 1
        return programs[0], programs[1]

    def rule(self, seed: int) -> GraphRule:
        """Return a rule of few, random weights, whose steps are short."""
        rng, build = np.random.default_rng(seed), Builder()
        x = build.channels({f"x{i}": STATE for i in range(self.channels)})
        given = build.inputs({"sample": STATE, "valid": BIT})
        fires = build.random(FIRE_BITS) < self.fire_rate if self.fire_rate < 1 else None
        dither = build.random(self.dither) if self.dither else None
        perceive = np.zeros((1, len(x) + 2, 9))
        for weights in perceive[0]:  # itself and two neighbours, of the nine
            places = [4, *rng.choice([0, 1, 2, 3, 5, 6, 7, 8], 2, replace=False)]
            weights[places] = rng.choice([-2, -1, 1, 2], 3)
        gated = self.kind == "gated"
        update = rng.choice([-4, -2, 2, 4], (len(x) * (1 + gated), 1, 1))
        biases = rng.integers(4, 12, 1), rng.integers(-8, 9, len(update))
        # With two channels, wider than they are: their words are extended when they are sent.
        hidden = QFormat(1, 1 + self.channels, signed=False)
        seen = build.concatenate([x, given])
        neuron = build.linear(seen, perceive / 4, biases[0] / 32, self.border).fit(hidden)
        change = build.linear(neuron, update / 4, biases[1] / 4 * 2.0**-hidden.frac_bits)
        if gated:
            candidate, gate = change[: len(x)].fit(STATE), change[len(x) :].fit(SHARE)
            way = gate * (candidate - x)
            rounding = Rounding.RND
            if dither is not None:
                way, rounding = way + dither * 2.0**-STATE.frac_bits, Rounding.TRN
            after = (x + way.fit(WIDER, rounding)).fit(STATE)
        else:
            after = (x + change.fit(WIDER)).fit(STATE)
        if fires is not None:
            after = build.where(fires, after, x)
        graph = build.graph({f"x{i}": one for i, one in enumerate(after)})
        return GraphRule(graph, self.steps_per_frame, (Event("sample", "valid"),))


#: All borders and kinds; one cell, sides that are powers of two, and sides that are not.
DEVICES = (
    Device(1, 1, "gated", "zero", (165, 53), steps_per_frame=1, effort=250, long=True),
    Device(2, 2, "residual", "replicate", (71, 7), effort=80),
    Device(2, 3, "gated", "wrap", (40, 234), fire_rate=0.5, dither=2),
    Device(3, 2, "residual", "zero", (222, 201), 2),
    Device(
        5, 3, "gated", "replicate", (284, 250), channels=2, steps_per_frame=3, dither=1, effort=40
    ),
    Device(4, 5, "residual", "wrap", (183, 114), fire_rate=0.75, effort=40),
)


@dataclass(frozen=True)
class Trace:
    """What was seen at the ports in every clock, scenario after scenario.

    Attributes
    ----------
    scenarios
        Names of those that were to run.
    clocks
        (N, fields of `Inputs` and of `Outputs`, and for how many clocks in turn they were these).
    ends
        Entry of `clocks` after the last one of each scenario that was begun.
    seconds
        That each took to simulate.
    presets
        (n, 2) entries before which the frames' counter was set from behind, and to what.
    hung
        What became of the last one that was begun, if it did not end.
    """

    scenarios: tuple[str, ...]
    clocks: NDArray[np.int64]
    ends: NDArray[np.int64]
    seconds: NDArray[np.float64]
    presets: NDArray[np.int64]
    hung: str = ""


@dataclass(frozen=True)
class Finding:
    """What a scenario came to on one device.

    Attributes
    ----------
    scenario
        Its name.
    clocks
        That were compared.
    seconds
        Wall time, that of simulating included.
    detail
        The first mismatch, if there was one.
    steps
        That the golden model did.
    """

    scenario: str
    clocks: int
    seconds: float
    detail: str = ""
    steps: int = 0


def check_trace(device: Driven, trace: Trace) -> list[Finding]:
    """Hold a trace against the model, each scenario up to its first mismatch."""
    findings: list[Finding] = []
    model, start = device.model(), 0
    presets = dict(trace.presets.tolist())
    for name, end, seconds in zip(trace.scenarios, trace.ends, trace.seconds, strict=False):
        started, detail, compared, steps = time.perf_counter(), "", 0, model.steps
        for entry, (*row, turns) in enumerate(trace.clocks[start:end].tolist(), start):
            inputs, outputs = Inputs(*row[:FIELDS]), Outputs(*row[FIELDS:])
            if entry in presets:
                model.frames = (presets[entry],)
            try:
                model.clock(inputs, outputs, turns)
            except Mismatch as mismatch:
                detail = f"clock {compared}, {mismatch}"
                break
            compared += turns
        start = int(end)
        if not detail and trace.hung and len(findings) == len(trace.ends) - 1:
            detail = f"clock {compared}, {trace.hung}"
        seconds += time.perf_counter() - started
        findings.append(Finding(name, compared, float(seconds), detail, model.steps - steps))
    for name in trace.scenarios[len(findings) :]:
        findings.append(Finding(name, 0, 0.0, f"not begun: {trace.hung}, before"))
    return findings


class StressBench(Bench):
    """A bench whose software drives the device's ports, through the registers of ports.v."""

    def trace(
        self,
        device: Driven,
        folder: Path,
        seed: int,
        scenarios: Sequence[str],
        plusargs: Sequence[str] = (),
    ) -> Trace:
        """Build the Verilog in `folder`, and run scenarios on it."""
        self.build_device(device, folder)
        return self.run_device(device, seed, scenarios, plusargs)

    def build_device(self, device: Driven, folder: Path, library: Sequence[Path] = ()) -> None:
        """Compile the Verilog in a folder, and ports.v around it.

        Raises
        ------
        InputError
            If it does not compile.
        """
        program = device.programs[0]
        address = EventLayout(program, device.height, device.width)
        reached = [("ports", name) for name in (*WRITTEN, *READ.values(), *BESIDE)]
        if INSIDE in device.scenarios:
            reached.append(("sequencer", "frames"))
        control = "".join(f'public_flat_rw -module "{m}" -var "{name}"\n' for m, name in reached)
        self.compile(
            "ports",
            folder,
            library,
            {"SAMPLE": address.size, "PIXEL": program.operand_bits + 2},
            f"`verilator_config\n{control}",
        )

    def run_device(
        self, device: Driven, seed: int, scenarios: Sequence[str], plusargs: Sequence[str] = ()
    ) -> Trace:
        """Run scenarios on what was built."""
        with tempfile.TemporaryDirectory(dir=self.work, prefix="run-") as name:
            folder = Path(name)
            (folder / PLAN).write_text(json.dumps(device.plan(seed, scenarios)))
            module = "scotopia.sim.cocotb_stress"
            try:
                found = simulate(self.simulator, self.work, folder, module, "ports", plusargs)
            except BenchError as error:
                if "converge" not in str(error):
                    raise
                # A loop without a register in it: the device's fault, and not the bench's.
                return Trace(
                    tuple(scenarios),
                    np.empty((0, FIELDS + len(Outputs._fields) + 1), np.int64),
                    np.array([0]),
                    np.array([0.0]),
                    np.empty((0, 2), np.int64),
                    complaint(folder / "run.log"),
                )
            return _trace(scenarios, **found)


def _trace(
    scenarios: Sequence[str],
    trace: NDArray[np.int64],
    ends: NDArray[np.int64],
    seconds: NDArray[np.float64],
    hung: NDArray[np.bool_],
    presets: NDArray[np.int64],
) -> Trace:
    what = "the device hung" if hung else ""
    return Trace(tuple(scenarios), trace, ends, seconds, presets, what)


def prove(
    simulator: str = "verilator",
    *,
    verilog: Emitter = emit,
    seed: int = 0,
    scenarios: Sequence[str] | None = None,
    devices: Sequence[Device] = DEVICES,
    on_check: Callable[[str], None] = lambda name: None,
) -> list[Check]:
    """Drive devices through all scenarios, and compare every clock with the model.

    Parameters
    ----------
    verilog
        Writes the Verilog.
    scenarios
        Names out of `SCENARIOS`; all by default.
    on_check
        Called with each device before it is built, since all scenarios run in one simulation.

    Returns
    -------
    A check for each scenario, of the clocks compared on all devices.

    Raises
    ------
    InputError
        If a scenario is unknown, or a tool is missing that is not optional, or the Verilog does
        not compile.
    """
    for name in scenarios or ():
        if name not in SCENARIOS:
            raise InputError(f"scenario {name!r} is unknown: choose out of {', '.join(SCENARIOS)}")
    possible = {name for device in devices for name in device.scenarios}
    names = [n for n in SCENARIOS if n in possible and (scenarios is None or n in scenarios)]
    bench = StressBench(simulator)
    if simulator == "icarus" and (why := bench.missing()):
        return [Check(PART, name, Verdict.SKIPPED, 0, "clocks", 0.0, why) for name in names]
    findings: dict[str, list[tuple[Device, Finding]]] = {name: [] for name in names}
    with bench:
        for device in devices:
            on_check(str(device))
            chosen = [name for name in names if name in device.scenarios]
            if not chosen:
                continue
            with processes.temporary_folder() as folder:
                verilog(device.programs[0], device.height, device.width, Path(folder))
                trace = bench.trace(device, Path(folder), seed, chosen)
            for finding in check_trace(device, trace):
                findings[finding.scenario].append((device, finding))
    return [_check(name, findings[name], seed) for name in names]


def _check(name: str, findings: Sequence[tuple[Device, Finding]], seed: int) -> Check:
    wrong = [f"{device}: {one.detail} (seed {seed})" for device, one in findings if one.detail]
    clocks = sum(one.clocks for _, one in findings)
    return Check(
        part=PART,
        name=name,
        verdict=Verdict.FAILED if wrong or not clocks else Verdict.PASSED,
        cases=clocks,
        unit="clocks",
        seconds=sum(one.seconds for _, one in findings),
        detail=wrong[0] if wrong else f"{len(findings)} devices",
    )
