"""The compiled loops: `fused.cpp`, as a library for one shape of rule. Needs no torch."""

import ctypes
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

from .config import INPUTS, RuleConfig

SOURCE = Path(__file__).with_name("fused.cpp")
FLAGS = (
    *("-std=gnu++17", "-shared", "-fPIC"),
    # For this very machine: the library lives no longer than the process.
    *("-O3", "-march=native", "-mprefer-vector-width=512"),
    # So that a choice between two numbers needs no branch.
    *("-fno-math-errno", "-fno-trapping-math"),
)


@cache
def available() -> bool:
    """Whether the GNU C++ compiler is there, and makes code for this processor."""
    return shutil.which("g++") is not None and compile_library(RuleConfig()) is not None


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="scotopia-")


_compiling = threading.Lock()


def compile_library(
    config: RuleConfig, quantized: bool = False, wide: bool = False
) -> ctypes.CDLL | None:
    """Compile `fused.cpp` for rules of one shape, once a process; None if the compiler fails.

    Parameters
    ----------
    quantized
        Whether all numbers that are kept sit on the grids of their formats.
    wide
        Whether what is summed and multiplied is double precision.
    """
    with _compiling:  # threads that want the same library, or two at once, wait for each other
        return _compile(config, quantized, wide)


@cache
def _compile(config: RuleConfig, quantized: bool, wide: bool) -> ctypes.CDLL | None:
    defines = {
        "CHANNELS": config.channels,
        "HIDDEN": config.hidden,
        "PIXELS": config.pixels,
        "GATED": int(config.kind == "gated"),
        "QUANTIZED": int(quantized),
        "WIDE": int(wide),
        "BORDER": config.border.upper(),
        "TRACE_TICK": 2.0**-config.trace_bits,
        **{f"HAS_{name.upper()}": int(name in config.inputs) for name in INPUTS},
    }
    folder = Path(_folder().name)
    library = folder / f"rule{len(list(folder.iterdir()))}.so"
    options = [f"-D{name}={value}" for name, value in defines.items()]
    command = ["g++", *FLAGS, *options, str(SOURCE), "-o", str(library)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return None
    return ctypes.CDLL(str(library))
