"""The C++ compiler. Needs no torch."""

import ctypes
import shutil
import threading
from functools import cache

from scotopia.graph.native import FLAGS, load


def available() -> bool:
    """Whether there is a GNU C++ compiler."""
    return shutil.which("g++") is not None


_compiling = threading.Lock()


def compiled(text: str) -> ctypes.CDLL | None:
    """Return a library made of C++, compiled once a process; None, and a warning, if it fails."""
    with _compiling:  # threads that want the same library, or two at once, wait for each other
        return _compiled(text)


@cache
def _compiled(text: str) -> ctypes.CDLL | None:
    return load(["g++", "-std=gnu++17", *FLAGS, "-x", "c++", "-"], text)
