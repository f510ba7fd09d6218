"""`scotopia verify`: a verification of a user's own rule, and of changes to the Verilog."""

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.model.video import Clip
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.netlist import as_device, cell_models
from scotopia.sim.simulators import Bench, manifest_for
from scotopia.sim.verify import Extent, Material
from scotopia.sim.verify import verify as run_verification

from .clips import read_clip
from .float_stages import float_stages
from .proof import Proof, write_proof
from .rules import check_alike, load_float_rule, rule_path

#: A folder of Verilog, a module `pixel_row`, a netlist, and models of its cells.
Device = tuple[Path | None, Path | None, Path | None, list[Path]]


def verify(
    rule: str,
    extent: tuple[int, int, int],
    clip: str,
    *,
    size: int | None,
    density: float,
    seed: int,
    device: Device,
    float_rule: str | None,
    simulator: str,
    gates: bool,
    faults: bool,
    report: Path | None,
    on_stage: Callable[[str], None],
) -> Proof:
    """Verify, and write the report if there is to be one.

    Raises
    ------
    InputError
        As `scotopia.sim.verify.verify`, or if two devices are given.
    """
    height, width, count = extent
    verilog, row, netlist, library = device
    if sum(given is not None for given in (verilog, row, netlist)) > 1:
        raise InputError("--verilog, --row and --netlist are three devices: choose one")
    for path in (row, netlist, *library):
        if path is not None:
            path.open("rb").close()  # refused now, if it cannot be read
    Bench(simulator)  # refuses another one now, not after the first stages
    if library and netlist is None:
        raise InputError(f"--library {library[0]} is for a netlist: give --netlist, too")
    integer = IntegerRule.load(rule_path(rule))
    trained = None
    if float_rule is not None:
        trained = load_float_rule(float_rule)
        check_alike(float_rule, trained, integer)
    source = read_clip(clip, size, (height, width)) if integer.events else _nothing(extent)
    whole = Extent(height, width, count or len(source.frames))
    material = Material(integer, source.frames, whole, density, seed, source.name)
    if verilog is not None:
        manifest_for(integer, verilog, height, width)
    with processes.temporary_folder() as name:
        scratch = Path(name)
        if netlist is not None:
            verilog = as_device(Program.compile(integer), height, width, netlist, scratch)
            library = library or cell_models()
        elif row is not None:
            emit(Program.compile(integer), height, width, scratch)
            shutil.copyfile(row, scratch / "pixel_row.v")
            verilog = scratch
        material.stimulus()  # what is bad is said before anything slow begins
        on_stage("float rule, fake-quantized")
        stages = float_stages(material, trained)
        stages += run_verification(
            integer,
            source.frames,
            whole,
            density=density,
            seed=seed,
            clip_name=source.name,
            verilog=verilog,
            library=library,
            simulator=simulator,
            gates=gates,
            faults=faults,
            waveforms=report,
            on_stage=on_stage,
        )
    way = "of" if integer.events else "from"
    title = f"{rule}, {height} x {width} cells, {whole.frames} frames {way} {source.name}"
    proof = Proof(title, command(), stages)
    if report is not None:
        write_proof(proof, report)
    return proof


def _nothing(extent: tuple[int, int, int]) -> Clip:
    """What a rule without events is shown: it runs from its first state."""
    height, width, count = extent
    if not count:
        raise InputError("frames 0 is a whole clip, the rule sees none: give --frames")
    return Clip("its first state", np.zeros((count, height, width), np.float32))


def command() -> str:
    """Value of the command that runs, to be run again."""
    return shlex.join(["scotopia", *sys.argv[1:]])
