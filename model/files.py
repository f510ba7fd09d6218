"""Rule files: safetensors with a JSON description in the header, written whole or not at all.

Nothing in such a file is executed or unpickled. The float rule and the integer rule share this
layer and differ in `kind`.
"""

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import InputError

#: Version of both kinds of rule file; a reader refuses any other.
VERSION = 2

#: Deepest nesting in a description; what Scotopia writes has a few levels.
MAX_DEPTH = 50

#: A rule is at most a few thousand numbers: refuse files that cannot be one before reading them.
MAX_BYTES = 10_000_000


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then give it its name.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; nothing is left under `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, because encoders choose their format by it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_rule_file(
    path: Path, kind: str, description: dict[str, Any], tensors: dict[str, NDArray[Any]]
) -> None:
    """Write a rule file of the given kind ("float rule" or "integer rule")."""
    metadata = {
        "scotopia": kind,
        "version": str(VERSION),
        "description": json.dumps(description, sort_keys=True),
    }
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    content = save(contiguous, metadata)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def file_mode(path: Path) -> int:
    """`st_mode` of what is at `path`, links followed; 0 if nothing is, or nothing can be."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # also a name that is too long, or holds a zero
        return 0


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
        except (TypeError, AttributeError) as error:  # a type that NumPy has not
            raise InputError(
                f"rule {path} has a tensor of a type that no rule has ({_one_line(error)}): "
                "write it again"
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
    if metadata.get("scotopia") not in ("float rule", "integer rule"):
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
