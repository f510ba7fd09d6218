"""Programs and workers that this process starts: where they run, in which environment, their end.

A child process inherits nothing by accident: its environment is made, it does not see a terminal's
Ctrl-C (this process does, and decides), and all that it started ends with it.
"""

import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from .errors import InputError

#: What a child process gets of the user's environment: where things are, and nothing that changes
#: what a tool does, as `MAKEFLAGS`, `COCOTB_TESTCASE` or a language of its messages would.
KEPT = (
    *("PATH", "HOME", "USER", "LOGNAME", "TZ", "XDG_CACHE_HOME", "PYTHONPATH"),
    *("LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "YOWASP_CACHE_DIR"),
)

#: For temporary files if the folder that `TMPDIR` names is of no use.
PLACES = ("/tmp", "/var/tmp", "/dev/shm")

_PR_SET_PDEATHSIG = 1


def environment(**more: str) -> dict[str, str]:
    """Make the environment of a child process: `KEPT`, English messages, and `more`.

    Caches lie in a temporary folder if there is no home that can be written, as in a container
    whose user has none.
    """
    found = {name: os.environ[name] for name in KEPT if name in os.environ}
    found |= {"LC_ALL": "C.UTF-8", "TMPDIR": _place()}
    caches = Path(found.get("XDG_CACHE_HOME") or Path(found.get("HOME", ""), ".cache"))
    try:
        if not caches.is_absolute():
            raise NotADirectoryError(caches)
        caches.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=caches):
            pass
    except OSError:
        found["XDG_CACHE_HOME"] = _caches(found["TMPDIR"]).name
    return found | more


@contextmanager
def in_environment(**more: str) -> Iterator[None]:
    """Have this process's environment be the made one, for libraries that start programs."""
    made, before = environment(**more), dict(os.environ)
    os.environ.clear()
    os.environ.update(made)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@cache
def _caches(place: str) -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="scotopia-", dir=place)


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """Make a temporary folder in which programs can be built and run, as a context.

    Raises
    ------
    InputError
        If there is no place for one.
    """
    return tempfile.TemporaryDirectory(prefix="scotopia-", dir=_place())


def _place() -> str:
    """Find a folder for temporary files: writable, programs may run there, no space in its name."""
    first = tempfile.gettempdir()
    for place in (first, *PLACES):
        if not _fault_of(place):
            return place
    raise InputError(f"temporary folder {first} {_fault_of(first)}: set TMPDIR to another")


def _fault_of(place: str) -> str:
    """Say why programs cannot be built and run in a folder, if so."""
    if not os.access(place, os.W_OK | os.X_OK):
        return "cannot be written"
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        return "is mounted noexec, so that no program can run there"
    if any(letter.isspace() for letter in place):
        return "has a space in its name, which make cannot take"
    return ""


@contextmanager
def one_folder() -> Iterator[str | None]:
    """Have all temporary files, also of workers that are killed, lie in one folder, removed last.

    Where none can be made, nothing changes: not every command needs one.
    """
    before = tempfile.tempdir
    with ExitStack() as stack:
        name = None
        with suppress(InputError, OSError):
            name = tempfile.tempdir = stack.enter_context(temporary_folder())
        try:
            yield name
        finally:
            tempfile.tempdir = before


def run(
    command: Sequence[str],
    output: IO[Any],
    *,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> int:
    """Run a program to its end; return its exit status, or minus the signal that ended it.

    Parameters
    ----------
    output
        A file that gets what it prints, on standard error, too.
    folder
        Where it runs.
    env
        See `environment`, which is the default.
    timeout
        Most seconds that it may take.

    Raises
    ------
    subprocess.TimeoutExpired
        If it takes longer. Then, as at any exception, it and what it started are killed.
    OSError
        If it cannot be started.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment() if env is None else env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that Ctrl-C does not reach it, and all of it can be killed
    ) as process:
        try:
            return process.wait(timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


_STARVED = "out of memory|memory exhausted|cannot allocate|bad_alloc|killed|no space left|quota"


def complaint(log: Path) -> str:
    """Find the first line of a program's log that speaks of an error, or else the last line."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if re.search(rf"(?i)\berror\b *[:-]|{_STARVED}", line)]
    return (errors or lines[-1:] or ["no output"])[0]


def remedy(complaint: str, otherwise: str) -> str:
    """Return what helps a program that complained: memory or disk, or what helps `otherwise`."""
    starved = re.search(f"(?i){_STARVED}", complaint)
    return "free some memory or disk space, and try again" if starved else otherwise


@contextmanager
def workers(count: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Processes that work for this one, forked; as many as cores by default.

    At an exception they are killed, with all that they started, whatever they are at.

    Raises
    ------
    InputError
        If one of them was killed.
    """
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count or os.cpu_count(), fork, begin_worker)
    try:
        yield pool
    except BaseException as error:
        kill(pool._processes or ())
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "a worker process was killed, for want of memory as a rule: "
                "give fewer --workers, or free some memory"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """Have a forked process leave signals to the one that it works for, and end with that."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill(processes: Collection[int]) -> None:
    """Kill processes and all that they started."""
    _send(signal.SIGSTOP, processes)  # they start no more
    _send(signal.SIGKILL, {*processes, *_descendants(processes)})


def kill_children() -> None:
    """Kill all processes that this one started, and those that they started."""
    for _ in range(100):  # those, too, that are being started
        living = _descendants([os.getpid()])
        if not living:
            return
        _send(signal.SIGKILL, living)
        time.sleep(0.01)


def _send(number: signal.Signals, processes: Iterable[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _descendants(processes: Collection[int]) -> set[int]:
    """Find the living ones in /proc."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            # "number (name) state parent ...", and a name may hold anything.
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.parent.name)] = int(parent)
    found, new = set[int](), set(processes)
    while new := {number for number, parent in parents.items() if parent in new} - found:
        found |= new
    return found
