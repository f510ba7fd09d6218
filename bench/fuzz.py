"""Readers of users' files against damaged and hostile ones: python bench/fuzz.py

Small valid files of each kind are damaged by a seeded generator, and read. A file may be accepted,
and then what it gave must be within its documented limits, or refused by an InputError of one
printable line. Anything else is a finding: another exception, an interpreter that dies, more than
SECONDS of processor time, more than MEGABYTES of memory above what the process had, a message on
standard error (but for libtiff's, which cannot be silenced), or an attempt to unpickle, to start a
program, to open a connection or to write a file. Of each finding, the file is kept in the folder
`--out`. 100,000 inputs take a few minutes on one core.

    python bench/fuzz.py [--inputs 100000] [--seed 0] [--kind rule,npz] [--first 0] [--out FOLDER]

Input N of a kind and a seed is always the same, so `--kind KIND --first N --inputs 1` repeats one.
Exit status 1 if there is a finding.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from fuzz_kinds import KINDS, Kind
from mutations import damage
from PIL import Image

from scotopia.graph.errors import InputError

#: Most processor time of one input, and most wall time, in seconds: the second is for what waits.
SECONDS = 5.0
PATIENCE = 60.0

#: Most memory above what the process had at the beginning. The address space has another limit,
#: so that no reader can take the machine's memory before it is caught.
MEGABYTES = 512
ADDRESS_SPACE = 4 << 30

#: Findings of a kind after which its other inputs are left out.
MOST_FINDINGS = 10

#: Longest message of an InputError.
LONGEST = 2000

#: What no reader has to do, as Python's audit events name it.
_FORBIDDEN = frozenset(
    {
        *("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"),
        *("os.spawn", "os.fork", "os.forkpty", "os.remove", "os.rename", "os.mkdir", "os.chmod"),
        *("socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen", "import"),
        *("shutil.rmtree", "marshal.loads", "exec", "webbrowser.open"),
    }
)


class TooSlow(BaseException):
    """The time is up. No `Exception`, so that no reader takes it for one of its own."""


@dataclass(frozen=True)
class Finding:
    """An input that does what it must not."""

    kind: str
    number: int
    what: str
    file: Path


@dataclass
class Tally:
    """What became of the inputs of one kind.

    Attributes
    ----------
    megabytes
        Most memory above what the process had.
    digest
        Of all inputs and verdicts: the same in every run.
    """

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0
    digest: Any = field(default_factory=hashlib.sha256)
    findings: list[Finding] = field(default_factory=list)


def make_input(kind: Kind, name: str, seed: int, number: int) -> tuple[str, bytes]:
    """Suffix and content of one input."""
    rng = random.Random(f"{seed} {name} {number}")
    seeds = _seeds(name)
    suffix = rng.choice(kind.suffixes)
    content = rng.choice(seeds)
    if kind.mutate is not None and rng.random() < 0.7:
        content = kind.mutate(rng, content)
        if rng.random() < 0.9:
            return suffix, content
    elif rng.random() < 0.01:
        return suffix, rng.choice((content, b"", rng.randbytes(rng.randrange(200))))
    return suffix, damage(rng, content, rng.choice(seeds))


def fuzz(
    name: str,
    first: int,
    count: int,
    seed: int,
    out: Path,
    on_input: Callable[[], object] = lambda: None,
) -> Tally:
    """Read inputs `first` to `first + count` of a kind, in a process that may die of them."""
    kind, tally, number = KINDS[name], Tally(), first
    _warm_up(name)
    start = time.monotonic()
    with _folder() as folder:
        while number < first + count and len(tally.findings) < MOST_FINDINGS:
            ours, theirs = multiprocessing.Pipe(duplex=False)
            worker = multiprocessing.get_context("fork").Process(
                target=_work, args=(name, number, first + count, seed, folder, theirs), daemon=True
            )
            worker.start()
            theirs.close()
            verdict = ""
            while number < first + count and verdict in ("", "accepted", "refused"):
                verdict, megabytes = _next_verdict(ours, worker)
                number += 1
                tally.inputs += 1
                tally.accepted += verdict == "accepted"
                tally.refused += verdict == "refused"
                tally.megabytes = max(tally.megabytes, megabytes)
                suffix, content = make_input(kind, name, seed, number - 1)
                tally.digest.update(suffix.encode() + content + verdict.encode())
                on_input()
            worker.kill()
            worker.join()
            if verdict not in ("accepted", "refused"):
                file = out / f"{name}-{number - 1}{suffix or '.image'}"
                out.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                tally.findings.append(Finding(name, number - 1, verdict, file))
    tally.seconds = time.monotonic() - start
    return tally


def _next_verdict(ours: Connection, worker: Any) -> tuple[str, float]:
    if not ours.poll(PATIENCE):
        return f"hangs: no answer in {PATIENCE:g} s", 0.0
    try:
        verdict, megabytes = ours.recv()
    except EOFError:
        worker.join()
        return f"dies: exit status {worker.exitcode}", 0.0
    return verdict, megabytes


def _work(name: str, first: int, last: int, seed: int, folder: Path, answer: Connection) -> None:
    """Read inputs and answer a verdict and the memory for each; end at the first finding."""
    kind = KINDS[name]
    forbidden: list[str] = []
    armed = False

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if armed and (event in _FORBIDDEN or (event == "open" and _writes(*args))):
            forbidden.append(f"{event} {args!r}"[:200])

    def too_slow(*_: object) -> None:
        raise TooSlow

    noise = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(noise, 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGPROF, too_slow)
    before = _peak()
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + ADDRESS_SPACE,) * 2)
    sys.addaudithook(audit)
    for number in range(first, last):
        path = _place(folder, *make_input(kind, name, seed, number))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        armed = True
        try:
            found = kind.read(path)
            armed = False
            kind.check(found)
            verdict = "accepted"
        except InputError as error:
            verdict = _complaint(str(error)) or "refused"
        except TooSlow:
            verdict = f"hangs: more than {SECONDS:g} s of processor time"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = ascii(str(error))[:200]
            verdict = f"{type(error).__name__}: {text} ({where.filename}:{where.lineno})"
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stderr.flush()
        megabytes = _peak() - before
        printed = os.pread(noise, 200, 0).decode(errors="replace")
        if forbidden:
            verdict = f"does what no reader has to: {forbidden[0]}"
        elif printed and not kind.prints:
            verdict = f"prints on standard error: {printed.strip()!r}"
        elif megabytes > MEGABYTES:
            verdict = f"takes {megabytes:.0f} MB of memory"
        answer.send((verdict, megabytes))
        if verdict not in ("accepted", "refused"):
            break


def _writes(path: object, mode: object, flags: object) -> bool:
    """Whether an "open" event is one of a file that is to be written."""
    changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return isinstance(flags, int) and bool(flags & changes)


def _complaint(message: str) -> str:
    """Return what is wrong with the message of an InputError."""
    if not message.isprintable() or not message:
        return f"refuses in a message that is no printable line: {message[:200]!r}"
    if len(message) > LONGEST:
        return f"refuses in a message of {len(message)} characters: {message[:200]!r}"
    return ""


def _peak() -> float:
    """Most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _place(folder: Path, suffix: str, content: bytes) -> Path:
    """Write an input, and return the path to read."""
    if suffix:
        path = folder / f"input{suffix}"
        path.write_bytes(content)
        return path
    images = folder / "images"
    images.mkdir(exist_ok=True)
    (images / "0.png").write_bytes(content)
    return images


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Folder in memory, if there is one."""
    memory = Path("/dev/shm")
    place = tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place)


def _warm_up(name: str) -> None:
    """Read each valid file: readers import what they need, and a file that is refused is noticed.

    Raises
    ------
    RuntimeError
        If all valid files are refused: then all others are, and nothing is found out.
    """
    Image.init()
    importlib.import_module("av.subtitles.codeccontext")
    unicodedata.normalize("NFC", "\n".encode("unicode_escape").decode())
    kind, refusals = KINDS[name], []
    with _folder() as folder:
        for content in _seeds(name):
            try:
                kind.check(kind.read(_place(folder, kind.suffixes[0], content)))
            except InputError as error:
                refusals.append(str(error))
    if len(refusals) == len(_seeds(name)):
        raise RuntimeError(f"valid files of kind {name} are refused: {refusals[0]}")


@functools.cache
def _seeds(name: str) -> list[bytes]:
    return KINDS[name].seeds()


def available() -> dict[str, Kind]:
    """Kinds whose packages are installed."""
    return {name: kind for name, kind in KINDS.items() if kind.available()}


def shares(names: list[str], inputs: int) -> dict[str, int]:
    """How many inputs each kind gets, by its share."""
    whole = sum(KINDS[name].share for name in names)
    return {name: round(inputs * KINDS[name].share / whole) for name in names}


def _parse_kinds(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in KINDS:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(KINDS)}")
    return names


def main() -> int:
    """Fuzz, print a table and the findings; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="files in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", type=_parse_kinds, default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--first", type=int, default=0, help="number of the first input of a kind")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder of findings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in options.kind if name in available()]
    for name in sorted({*options.kind} - {*names}):
        print(f"{name} is left out: its package is not installed")
    print(
        f"{'reader':12}{'inputs':>8}{'accepted':>10}{'refused':>9}{'seconds':>9}{'MB':>6}  digest"
    )
    tallies = []
    for name, count in shares(names, options.inputs).items():
        tally = fuzz(name, options.first, count, options.seed, options.out)
        tallies.append(tally)
        print(_row(name, tally), flush=True)
        for finding in tally.findings:
            print(f"    {finding.file}: {finding.what}", flush=True)
    whole = Tally(
        *(sum(getattr(tally, column) for tally in tallies) for column in _COLUMNS),
        megabytes=max(tally.megabytes for tally in tallies),
    )
    for tally in tallies:
        whole.digest.update(tally.digest.digest())
    print(_row("all", whole))
    found = sum(len(tally.findings) for tally in tallies)
    print(f"{found} findings" if found else "no finding")
    return 1 if found else 0


_COLUMNS = ("inputs", "accepted", "refused", "seconds")


def _row(name: str, tally: Tally) -> str:
    return (
        f"{name:12}{tally.inputs:8}{tally.accepted:10}{tally.refused:9}{tally.seconds:9.1f}"
        f"{tally.megabytes:6.0f}  {tally.digest.hexdigest()[:8]}"
    )


if __name__ == "__main__":
    sys.exit(main())
