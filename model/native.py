"""The compiled loops: `fused.cpp`, as a library for one shape of rule. Needs no torch."""

import ctypes
import shutil
import threading
import warnings
from functools import cache
from pathlib import Path

from scotopia.graph.errors import InputError

from . import processes
from .config import INPUTS, RuleConfig

SOURCE = Path(__file__).with_name("fused.cpp")
FLAGS = (
    *("-std=gnu++17", "-shared", "-fPIC"),
    # For this very machine: the library lives no longer than the process.
    *("-O3", "-march=native", "-mprefer-vector-width=512"),
    # So that a choice between two numbers needs no branch.
    *("-fno-math-errno", "-fno-trapping-math"),
)


def available() -> bool:
    """Whether there is a GNU C++ compiler."""
    return shutil.which("g++") is not None


_compiling = threading.Lock()


def compile_library(
    config: RuleConfig, quantized: bool = False, wide: bool = False
) -> ctypes.CDLL | None:
    """Compile `fused.cpp` for rules of one shape, once a process.

    None, with a warning that says why, if that fails: NumPy or PyTorch has to do the same then.

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
    options = [f"-D{name}={value}" for name, value in defines.items()]
    try:
        with processes.temporary_folder() as name:
            library, log = Path(name, "rule.so"), Path(name, "g++.log")
            command = ["g++", *FLAGS, *options, str(SOURCE), "-o", str(library)]
            with log.open("w") as output:
                status = processes.run(command, output)
            if status == 0:
                return ctypes.CDLL(str(library))  # which needs its file no more
            why = processes.complaint(log)
    except (OSError, InputError) as error:
        why = str(error)
    warnings.warn(
        f"g++ made no compiled steps ({why}): the same is computed without, many times slower",
        RuntimeWarning,
        stacklevel=2,
    )
    return None
