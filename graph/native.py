"""Compiled loops: C or C++ that is compiled for this very machine, while the process runs."""

import ctypes
import platform
import shutil
import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from . import processes
from .errors import InputError

FLAGS = (
    *("-shared", "-fPIC"),
    # For this very machine: the library lives no longer than the process.
    *("-O3", "-march=native"),
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
    # So that a choice between two numbers needs no branch.
    *("-fno-math-errno", "-fno-trapping-math"),
)


def available() -> bool:
    """Whether there is a C compiler that knows GNU C."""
    return _compiler() is not None


def _compiler() -> str | None:
    return next(filter(shutil.which, ("gcc", "clang", "cc")), None)


_compiling = threading.Lock()


def compiled(source: str) -> ctypes.CDLL | None:
    """Return a library made of C, compiled once a process; None without a compiler, or if it fails.

    A failure is warned of, with what the compiler said.
    """
    if not available():
        return None
    with _compiling:  # threads that want the same library, or two at once, wait for each other
        return _compiled(source)


@cache
def _compiled(source: str) -> ctypes.CDLL | None:
    return load([_compiler() or "cc", "-std=gnu99", *FLAGS, "-x", "c", "-"], source)


def load(command: Sequence[str], source: str = "") -> ctypes.CDLL | None:
    """Run a compiler on files that its command names, or on a text; load what it makes.

    None, with a warning that says why, if that fails: whoever asks computes the same without.
    """
    try:
        with processes.temporary_folder() as name:
            library, log, text = (Path(name, part) for part in ("rule.so", "log", "rule.c"))
            text.write_text(source)
            command = [str(text) if part == "-" else part for part in command]
            with log.open("w") as output:
                status = processes.run([*command, "-o", str(library)], output)
            if status == 0:
                return ctypes.CDLL(str(library))  # which needs its file no more
            why = processes.complaint(log)
    except (OSError, InputError) as error:
        why = str(error)
    warnings.warn(
        f"{command[0]} made no compiled steps ({why}): the same is computed without, many times "
        "slower",
        RuntimeWarning,
        stacklevel=2,
    )
    return None
