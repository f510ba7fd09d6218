"""Verilog: one file a module, whatever the size of the array, and a manifest beside them."""

import json
from pathlib import Path
from typing import Any

from amaranth.back import verilog
from amaranth.back.verilog import YosysError
from amaranth.lib import wiring

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.model.files import write_atomically

from .array import PixelArray
from .fusesoc import CORE, fusesoc_core
from .program import Program
from .retina import Retina, check_size
from .row import PixelRow
from .sequencer import RowBuffer, Sequencer

MANIFEST = "manifest.json"


def emit(program: Program, height: int, width: int, folder: Path) -> dict[str, Any]:
    """Write the Verilog of a height x width array that runs `program`.

    Returns
    -------
    What `manifest.json` holds: `top`, `sources` (file names), `height`, `width`, `channels`
    (names), `word_bits`, `steps_per_frame`, `cycles_per_step`, `code_bits` of
    a sample, its `targets` in their order, and the program's figures.

    Raises
    ------
    InputError
        If a side is out of range.
    """
    check_size(height, width)  # before Amaranth complains of parts that were never used
    rule = program.rule
    modules = verilog_modules(program, height, width)
    manifest: dict[str, Any] = {
        "top": "retina",
        "sources": [f"{name}.v" for name in modules],
        "height": height,
        "width": width,
        "channels": list(rule.channel_names),
        "steps_per_frame": rule.steps_per_frame,
        "cycles_per_step": program.cycles("step", width),
        "word_bits": program.operand_bits,
        "planes": program.planes,
        "instructions": len(program.instructions),
        "code_bits": rule.code_bits,
        "targets": [
            {
                "kind": "event" if number < len(rule.events) else "channel",
                "name": name,
                "format": str(format),
            }
            for number, (name, format) in enumerate(rule.targets)
        ],
    }
    files = {f"{name}.v": text for name, text in modules.items()}
    files["program.txt"] = program.listing()
    files[CORE] = fusesoc_core(
        manifest["sources"], f"Neural cellular automaton, {height} x {width} cells"
    )
    files[MANIFEST] = json.dumps(manifest, indent=2) + "\n"  # last: it vouches for the others
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, text in files.items():
        write_atomically(folder / name, text)
    return manifest


def verilog_modules(program: Program, height: int, width: int) -> dict[str, str]:
    """Verilog text of every module by its name, each kind once."""
    parts: dict[str, wiring.Component] = {
        "pixel_row": PixelRow(program, width),
        "pixel_array": PixelArray(program, height, width, by_name=True),
        "sequencer": Sequencer(program, height, width),
        "row_buffer": RowBuffer(program, width),
        "retina": Retina(program, height, width, by_name=True),
    }
    try:
        with processes.in_environment():  # for the Yosys that Amaranth starts
            return {
                name: verilog.convert(part, name=name, emit_src=False, strip_internal_attrs=True)
                for name, part in parts.items()
            }
    except YosysError as error:
        what = (str(error).splitlines() or ["no output"])[-1].strip()
        mend = processes.remedy(what, "install amaranth[builtin-yosys] again")
        raise InputError(f"Yosys failed to write the Verilog ({what}): {mend}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder that `emit` wrote.

    Raises
    ------
    InputError
        If it is missing or broken, or a source that it names is missing.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        missing = [name for name in manifest["sources"] if not (folder / name).is_file()]
        for key in ("top", "height", "width", "channels", "cycles_per_step", "word_bits"):
            manifest[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error.__class__.__name__}): "
            "give a folder written by `scotopia emit`"
        ) from error
    if missing:
        raise InputError(f"{folder / missing[0]} is missing: emit the Verilog again")
    return manifest
