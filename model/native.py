"""The C++ compiler: `fused.cpp` for one shape of rule, or a text. Needs no torch."""

import ctypes
import shutil
import threading
from functools import cache
from pathlib import Path

from scotopia.graph.native import FLAGS, load

from .config import INPUTS, RuleConfig

SOURCE = Path(__file__).with_name("fused.cpp")


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
    return load(["g++", "-std=gnu++17", *FLAGS, *options, str(SOURCE)])


def compiled(text: str) -> ctypes.CDLL | None:
    """Return a library made of C++, compiled once a process; None, and a warning, if it fails."""
    with _compiling:
        return _compiled(text)


@cache
def _compiled(text: str) -> ctypes.CDLL | None:
    return load(["g++", "-std=gnu++17", *FLAGS, "-x", "c++", "-"], text)
