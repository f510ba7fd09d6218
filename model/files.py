"""Rule files: safetensors with a JSON description in the header, written whole or not at all.

Nothing in such a file is executed or unpickled. The float rule and the integer rule share this
layer and differ in `kind`.
"""

import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from scotopia.graph.errors import InputError

#: Version of both kinds of rule file; a reader refuses any other.
VERSION = 2

#: What a rule file can hold.
KINDS = ("float rule", "float graph", "integer rule")

#: Deepest nesting in a description; what Scotopia writes has a few levels.
MAX_DEPTH = 50

#: A rule is at most a few thousand numbers: refuse files that cannot be one before reading them.
MAX_BYTES = 10_000_000


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError in here name `path`: one of a full disk names nothing by itself."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write one file, see `write_all`."""
    write_all({path: content})


def write_all(files: Mapping[Path, bytes | str]) -> None:
    """Write files; none of them gets its name before all are complete.

    A link is followed, and what it points at is replaced. A file that is there keeps its mode, a
    new one gets that of the umask. What is there and no regular file, such as a device or a pipe,
    is written to.

    Raises
    ------
    OSError
        Naming the file, if the disk is full or it cannot be written; then all are as they were.
    """
    complete: dict[Path, Path] = {}
    special = [path for path in files if is_special(path)]
    try:
        for path, content in files.items():
            if path in special:
                continue
            with naming(path):
                target = path.resolve()
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{uuid4().hex}")
                with temporary.open("xb") as file:
                    complete[temporary] = target
                    if mode := file_mode(target):
                        temporary.chmod(stat.S_IMODE(mode))
                    file.write(_encoded(content))
        for path in special:
            with naming(path):
                path.write_bytes(_encoded(files[path]))
        for temporary, target in complete.items():
            with naming(target):
                temporary.replace(target)
    finally:
        for temporary in complete:
            temporary.unlink(missing_ok=True)


def _encoded(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def is_special(path: Path) -> bool:
    """Whether something is there that is neither a regular file nor a folder, links followed."""
    mode = file_mode(path)
    return bool(mode) and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Check that `write_all` can write a file, or files into a folder. Nothing is left behind.

    Raises
    ------
    OSError
        Naming it, if it cannot.
    """
    with naming(path):
        try:
            found = path.stat()
        except FileNotFoundError:
            found = None
        if found is not None:
            if stat.S_ISDIR(found.st_mode) != folder:
                code = errno.ENOTDIR if folder else errno.EISDIR
                raise OSError(code, os.strerror(code))
            if not os.access(path, os.W_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            if is_special(path):
                return
        nearest = path.resolve() if folder else path.resolve().parent
        while not nearest.exists():
            nearest = nearest.parent
        tempfile.TemporaryFile(dir=nearest).close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep `path` for this process: a lock file lies beside it meanwhile.

    Whatever ends the process also lifts the lock; then a lock file that it left is of no effect.

    Raises
    ------
    InputError
        If another process has it.
    """
    path = path.resolve()
    lock = path.with_name(f".{path.name}.lock")
    with naming(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with naming(lock):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                with naming(lock):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{path} belongs to a command that is running: wait for it, or choose "
                    "another path"
                ) from error
            # Its last owner may have removed it after it was opened here.
            mine = os.fstat(handle)
            if file_id(lock) != (mine.st_dev, mine.st_ino):
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def write_rule_file(
    path: Path, kind: str, description: dict[str, Any], tensors: dict[str, NDArray[Any]]
) -> None:
    """Write a rule file of one of `KINDS`."""
    metadata = {
        "scotopia": kind,
        "version": str(VERSION),
        "description": json.dumps(description, sort_keys=True),
    }
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata))


def file_mode(path: Path) -> int:
    """`st_mode` of what is at `path`, links followed; 0 if nothing is, or nothing can be."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # also a name that is too long, or holds a zero
        return 0


def file_id(path: Path) -> tuple[int, int] | None:
    """What tells the file at `path`, links followed, from all others; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def parse_description(text: str) -> dict[str, Any]:
    """Parse a description: a JSON object of Unicode that names no key twice and is not too deep.

    Raises
    ------
    ValueError
        If it is something else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    try:
        description = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(description, dict):
        raise ValueError(f"it is a {type(description).__name__}")
    level: list[Any] = [description]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:  # Python could not copy it, compare it or print it
        raise ValueError("it is nested too deep")
    json.dumps(description, ensure_ascii=False).encode()  # not half a surrogate pair
    return description


def check_training_record(record: Any) -> dict[str, Any]:
    """Return the record of how a rule was trained.

    Raises
    ------
    ValueError
        If it is no object, its clips are no list of names, or its digests are none by name.
    """
    if not isinstance(record, dict):
        raise ValueError(f"training is a {type(record).__name__}")
    clips = record.get("clips", [])
    if not isinstance(clips, list) or not all(isinstance(name, str) for name in clips):
        raise ValueError("clips of the training are no list of names")
    digests = record.get("digests", {})
    if not isinstance(digests, dict) or not all(isinstance(one, str) for one in digests.values()):
        raise ValueError("digests of the training are no texts by name")
    if not isinstance(record.get("quantized_by", []), list):
        raise ValueError("quantized_by of the training is no list")
    return record


def with_clips(
    record: dict[str, Any], names: Iterable[str], digests: dict[str, str]
) -> dict[str, Any]:
    """Return a record of training that names these clips, too, and what digests are known."""
    clips = dict.fromkeys([*record.get("clips", ()), *names])
    return record | {"clips": [*clips], "digests": record.get("digests", {}) | digests}


def read_rule_file(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a rule file of the given kind.

    Returns
    -------
    description, tensors
        What `write_rule_file` was given.

    Raises
    ------
    InputError
        If the file is missing, truncated, no rule, of another kind or of another version.
    """
    found = rule_kind(path)
    if found != kind:
        remedy = (
            "make one with `scotopia quantize`" if kind == "integer rule" else "name its source"
        )
        raise InputError(f"{path} is a Scotopia {found}, not a Scotopia {kind}: {remedy}")
    with safe_open(path, framework="numpy") as file:
        try:
            description = parse_description(file.metadata()["description"])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"rule {path} has no valid description ({error!r}): write it again"
            ) from error
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for tensor in tensors.values():
                if tensor.dtype.kind not in "iuf":  # which a package has taught NumPy
                    raise TypeError(str(tensor.dtype))
        except (TypeError, AttributeError, ValueError) as error:  # or a shape that NumPy has not
            raise InputError(
                f"rule {path} has a tensor of a type or shape that no rule has "
                f"({_one_line(error)}): write it again"
            ) from error
    return description, tensors


def rule_kind(path: Path) -> str:
    """Kind of the rule file at `path`: "float rule" or "integer rule".

    Raises
    ------
    InputError
        If the file is missing, truncated, no rule, or of another version.
    """
    if not stat.S_ISREG(file_mode(path)):
        raise InputError(f"rule {path} does not exist: give the path of a .safetensors rule file")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"rule {path} has {path.stat().st_size} bytes, more than {MAX_BYTES}: "
            "give a rule file written by Scotopia"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"rule {path} cannot be read ({_one_line(error)}): "
            "it is truncated or no rule file; write it again"
        ) from error
    if metadata.get("scotopia") not in KINDS:
        raise InputError(
            f"{path} is a safetensors file but no Scotopia rule: "
            "give one written by `scotopia train` or `scotopia quantize`"
        )
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"rule {path} has version {metadata.get('version')}, this Scotopia reads version "
            f"{VERSION}: write it again with this Scotopia"
        )
    return str(metadata["scotopia"])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
