"""Compiled loops: C or C++ that is compiled for this very machine, while the process runs.

What was compiled is kept in the user's cache, for the next process: a compiler takes seconds.
"""

import ctypes
import os
import platform
import shutil
import stat
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from . import processes
from .errors import InputError

FLAGS = (
    *("-shared", "-fPIC"),
    # For this very machine: `_key` tells it from others that share a home.
    *("-O3", "-march=native"),
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
    # So that a choice between two numbers needs no branch.
    *("-fno-math-errno", "-fno-trapping-math"),
)


#: Libraries that are kept; beyond that, those that were not used for longest go.
MOST_KEPT = 256


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
    """Run a compiler on a text, `-` in its command, and load what it makes, or what is kept of it.

    None, with a warning that says why, if that fails: whoever asks computes the same without.
    """
    kept = _kept(command, source)
    if kept is not None and kept.exists():
        with suppress(OSError):  # it was cut short, or removed just now
            library_kept = ctypes.CDLL(str(kept))
            os.utime(kept)
            return library_kept
    try:
        with processes.temporary_folder() as name:
            library, log, text = (Path(name, part) for part in ("rule.so", "log", "rule.c"))
            text.write_text(source)
            command = [str(text) if part == "-" else part for part in command]
            with log.open("w") as output:
                status = processes.run([*command, "-o", str(library)], output)
            if status == 0:
                _keep(library, kept)
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


def _kept(command: Sequence[str], source: str) -> Path | None:
    """Return where a library is kept, if it was made; None if nobody but the user may be trusted.

    What is loaded is executed: the folder has to be the user's own, which no other can write.
    """
    compiler = shutil.which(command[0])
    if compiler is None:
        return None
    try:
        found = processes.environment()
        caches = Path(found.get("XDG_CACHE_HOME") or Path(found["HOME"], ".cache"), "scotopia")
        caches.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder, made = caches.stat(), Path(compiler).stat()
    except (OSError, KeyError, InputError):
        return None
    if folder.st_uid != os.getuid() or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    parts = (*command, compiler, str(made.st_size), str(made.st_mtime_ns), _machine(), source)
    return caches / f"{sha256(chr(0).join(parts).encode()).hexdigest()}.so"


@cache
def _machine() -> str:
    """Say what code for this very machine may use."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    return f"{platform.machine()} {platform.processor()} {platform.node()}"


def _keep(library: Path, kept: Path | None) -> None:
    """Keep a library, and let those go that are too many."""
    if kept is None:
        return
    part = kept.with_suffix(f".{os.getpid()}")
    try:
        shutil.copyfile(library, part)
        part.replace(kept)
        others = sorted(kept.parent.glob("*.so"), key=lambda path: path.stat().st_mtime)
        for path in others[:-MOST_KEPT]:
            path.unlink(missing_ok=True)
    except OSError:  # a full disk: then it is compiled again, and nothing half-written stays
        with suppress(OSError):
            part.unlink(missing_ok=True)
