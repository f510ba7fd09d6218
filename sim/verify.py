"""Staged verification: each stage is compared with the golden model, code by code."""

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scotopia.hdl.emit import emit, read_manifest
from scotopia.hdl.program import Program
from scotopia.hdl.twin import ArrayTwin
from scotopia.model.sampling import sample_mask
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.lfsr import RowRegisters
from scotopia.quantize.qformat import IntArray
from scotopia.quantize.ranges import OutOfRange, monitor

from .amaranth_bench import run_amaranth
from .compare import compare
from .faults import Fault
from .simulators import Bench
from .stimulus import Stimulus, central_crop, golden_states


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
        As in `Comparison`.
    seconds
        Wall time, compiling included.
    cycles
        Clock cycles simulated, reading included; 0 where there is no clock.
    expect_mismatch
        Whether a fault was planted, which the comparison must find.
    detail
        The first mismatch, or nothing.
    """

    name: str
    compared: str
    cell_updates: int
    mismatches: int
    seconds: float
    expect_mismatch: bool = False
    detail: str = ""
    cycles: int = 0

    @property
    def passed(self) -> bool:
        """Value of the stage's verdict. A stage that compared nothing has not passed."""
        return self.cell_updates > 0 and (self.mismatches > 0) == self.expect_mismatch


@dataclass(frozen=True)
class Extent:
    """How much of the clip a stage runs: the central height x width pixels of some frames."""

    height: int
    width: int
    frames: int


#: Amaranth's simulator is slow, and a simulator is built anew for each fault: this much, at most.
SMALL = Extent(4, 4, 1)

#: Clocks that Amaranth's simulator does in some ten seconds, on an array of that size: it runs
#: as many steps of the frame.
PATIENCE = 80_000

#: So few cells see nothing at 1 %, and what sees nothing proves nothing: they are shown this share.
SMALL_DENSITY = 0.5


def verify(
    rule: IntegerRule,
    frames: NDArray[np.float32],
    extent: Extent,
    *,
    density: float = 0.01,
    seed: int = 0,
    clip_name: str = "clip",
    verilog: Path | None = None,
    simulator: str = "verilator",
    faults: Iterable[Fault] = (),
    on_stage: Callable[[str], None] = lambda name: None,
) -> list[Stage]:
    """Compare the program's twin, Amaranth simulation and Verilog with the golden model.

    Parameters
    ----------
    frames
        (T, H, W) the clip, in [0, 1].
    extent
        What the Verilog and the program twin run; the slow stages run at most `SMALL`.
    density, seed
        Of the mask, drawn for the crop; the slow stages see `SMALL_DENSITY`.
    verilog
        Folder of Verilog to check, of extent's height and width; None emits it.
    faults
        Faults to plant, each of which a run on the small extent must find.
    on_stage
        Called with the name of each stage before it runs.

    Raises
    ------
    InputError
        If the clip is too small, a tool is missing, or the Verilog does not compile or fit.
    """
    program = Program.compile(rule)
    stages: list[Stage] = []

    def run(
        name: str,
        part: Extent,
        share: float,
        simulate: Callable[[Stimulus], tuple[IntArray, int]],
        expect_mismatch: bool = False,
        rule: IntegerRule = rule,
    ) -> None:
        on_stage(name)
        start = time.perf_counter()
        crop = central_crop(frames, clip_name, part.height, part.width, part.frames)
        mask = sample_mask(crop.shape, share, seed)
        stimulus = Stimulus.of(rule, crop, mask)
        cycles, detail = 0, ""
        try:
            states, cycles = simulate(stimulus)
        except OutOfRange as error:
            states, detail = stimulus.expected[:0], str(error)
        result = compare(stimulus.expected, states, rule.config.channel_names)
        if result.first and not detail:
            detail = f"first at {result.first}"
        stages.append(
            Stage(
                name,
                f"{part.height} x {part.width} cells, "
                f"{part.frames} frame{'s' if part.frames > 1 else ''} of "
                f"{rule.config.steps_per_frame} steps, {mask.sum()} samples; every channel",
                result.cell_updates,
                result.mismatches,
                time.perf_counter() - start,
                expect_mismatch,
                detail,
                cycles,
            )
        )

    def emitted(stimulus: Stimulus, fault: Fault | None = None) -> tuple[IntArray, int]:
        with tempfile.TemporaryDirectory(prefix="scotopia-") as name:
            folder = Path(name)
            if fault:
                fault.emit(program, *stimulus.shape, folder)
            else:
                emit(program, *stimulus.shape, folder)
            return bench.run(rule, folder, stimulus)

    steps = max(1, min(rule.config.steps_per_frame, PATIENCE // program.cycles("step", width=4)))
    brief = replace(rule, config=replace(rule.config, steps_per_frame=steps), proof=None)
    small = Extent(
        min(SMALL.height, extent.height),
        min(SMALL.width, extent.width),
        min(SMALL.frames, extent.frames),
    )
    # What is bad is said before anything slow begins.
    central_crop(frames, clip_name, extent.height, extent.width, extent.frames)
    if verilog is not None:
        read_manifest(verilog)
    with Bench(simulator) as bench:
        run(
            "golden model in its proven ranges",
            extent,
            density,
            lambda stimulus: (run_monitored(rule, stimulus), 0),
        )
        run(
            "golden model = program",
            extent,
            density,
            lambda stimulus: (run_program(program, stimulus), 0),
        )
        run(
            "golden model = Amaranth",
            small,
            SMALL_DENSITY,
            lambda stimulus: run_amaranth(replace(program, rule=brief), stimulus),
            rule=brief,
        )
        run(
            f"golden model = Verilog ({simulator.capitalize()})",
            extent,
            density,
            emitted if verilog is None else lambda stimulus: bench.run(rule, verilog, stimulus),
        )
        for fault in faults:
            run(
                fault.name,
                small,
                SMALL_DENSITY,
                lambda stimulus, fault=fault: emitted(stimulus, fault),  # type: ignore[misc]
                expect_mismatch=True,
            )
    return stages


def run_monitored(rule: IntegerRule, stimulus: Stimulus) -> IntArray:
    """Run the golden model again, each number compared with its range; raise `OutOfRange`."""
    return golden_states(monitor(rule), stimulus.samples, stimulus.mask)


def run_program(program: Program, stimulus: Stimulus) -> IntArray:
    """Run a stimulus through the program's twin; states as in `Stimulus.expected`."""
    rule, (height, width) = program.rule, stimulus.shape
    twin = ArrayTwin(program, height, width)
    registers = RowRegisters(height, width, rule.noise_seed)
    twin.run("clear")
    states, steps = [], 0
    for samples, mask in zip(stimulus.samples, stimulus.mask, strict=True):
        for y, x in np.argwhere(mask):
            twin.run("sense", sample=int(samples[y, x]), sensed=1 << int(y) * width + int(x))
        for _ in range(rule.config.steps_per_frame):
            twin.run("step", noise=twin.packed(registers.planes(rule.noise_planes)))
            steps += 1
            if steps % stimulus.every == 0:
                names = rule.config.channel_names
                states.append([twin.read(program.words[name]) for name in names])
        twin.run("forget")
    return np.array(states)
