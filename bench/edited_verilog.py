"""What `scotopia verify --verilog` says of Verilog that was edited by hand.

Twenty-three edits of an emitted array, as a user might make them, each in a folder of its own, and
the array as it was emitted: exit status, stage that saw it, first mismatch, seconds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scotopia.cli.rules import rule_path
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.faults import Area, flip_digit
from scotopia.sim.port_faults import PORT_FAULTS, PortFault

#: At the ports, by their names.
AT_PORTS = (
    "FRAME runs a step less",
    "FRAME sends channel 1",
    "FRAME leaves the valid flags",
    "a word goes on without being taken",
    "a word changes while it waits",
    "a reset leaves error",
    "frames counts by two",
    "dropped does not count",
    "memory is not cleared after a reset",
    "busy and error change places in STATUS",
    "the program is written while busy",
    "commands are taken while a sample is offered",
    "every row starts a frame",
    "tlast comes a pixel too early",
)

#: In the array: name, module, pattern, text.
IN_ARRAY = (
    (
        "a cell's sum is an OR",
        "pixel_row",
        r"(assign \\\$\d+  = a )\^ (\\\$signal\$\d+ ;)",
        r"\1| \2",
    ),
    (
        "a cell's carry is never cleared",
        "pixel_row",
        r"(\\\$\d+  = \\\$signal ;\s+)if \(\\control\$\d+ \[\d+\]\)",
        r"\1if (1'b0)",
    ),
    ("a cell never senses", "pixel_row", r"\? selected : result;", "? result : result;"),
    (
        "row 1 sees the south in its north",
        "pixel_array",
        r"(pixel_row row_1 \([^;]*?\.north\()\w+",
        r"\1shown_2",
    ),
    (
        "row 2 takes the samples of row 3",
        "pixel_array",
        r"(pixel_row row_2 \([^;]*?\.row\()rows\[2\]",
        r"\1rows[3]",
    ),
    (
        "beyond the north edge lies the second row",
        "pixel_array",
        r"(pixel_row row_0 \([^;]*?\.north\()\w+",
        r"\1shown_1",
    ),
    (
        "beyond the west end lies the second column",
        "pixel_row",
        r"(\{ shown\[\d+:0\], shown\[)0\]",
        r"\g<1>1]",
    ),
    ("a routine ends a clock too early", "sequencer", r"drain == 1'h1;", "drain == 2'h2;"),
)


def main() -> None:
    """Make the edits, verify each, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rule", nargs="?", default="retina-int")
    parser.add_argument("--side", type=int, default=8, help="of the array, cells")
    parser.add_argument("--at-once", type=int, default=1, help="commands that run side by side")
    arguments = parser.parse_args()
    program = Program.compile(IntegerRule.load(rule_path(arguments.rule)))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.at_once) as pool:
        folders = edited(program, arguments.side, Path(name))
        lines = pool.map(lambda item: verified(arguments.rule, arguments.side, *item), folders)
        missed = 0
        for line, right in lines:
            print(line, flush=True)
            missed += not right
    print(f"{missed} with the wrong verdict")
    sys.exit(missed > 0)


def edited(program: Program, side: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write Verilog as emitted, then with each edit; yield names and folders."""
    yield "", emitted(program, side, folder / "as emitted")
    turned = flip_digit(program)
    yield "a digit of a weight has the other sign", emitted(turned, side, folder / "digit")
    faults = {fault.name: fault for fault in PORT_FAULTS}
    edits = [faults[name] for name in AT_PORTS]
    edits += [PortFault(name, Area.CELL, *edit, scenario="") for name, *edit in IN_ARRAY]
    for edit in edits:
        place = emitted(program, side, folder / edit.name)
        file = place / f"{edit.module}.v"
        file.write_text(edit.plant(file.read_text()))
        yield edit.name, place


def emitted(program: Program, side: int, folder: Path) -> Path:
    """Emit a square array into a folder that is made for it."""
    folder.mkdir()
    emit(program, side, side, folder)
    return folder


def verified(rule: str, side: int, name: str, folder: Path) -> tuple[str, bool]:
    """Run the command on a folder; what it came to, and whether that is right."""
    start = time.perf_counter()
    result = folder / "verify.json"
    size = ["--height", str(side), "--width", str(side)]
    command = ["scotopia", "verify", rule, *size, "--verilog", str(folder), "--json", str(result)]
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]], capture_output=True
    )
    seconds = time.perf_counter() - start
    stages = json.loads(result.read_text())["stages"] if result.exists() else []
    saw = [f"{stage['name']}: {stage['detail']}" for stage in stages if not stage["passed"]]
    expected = 1 if name else 0
    verdict = {0: "passes", 1: "caught"}.get(done.returncode, "error")
    said = saw[0] if saw else done.stderr.decode().strip()
    line = f"{name or 'as emitted'}: {verdict}, {seconds:.0f} s{'; ' if said else ''}{said}"
    return line, done.returncode == expected


if __name__ == "__main__":
    main()
