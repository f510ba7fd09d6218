"""Why a module is refused, and where in the user's file."""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from scotopia.graph.errors import InputError

_TORCH = str(Path(torch.__file__).parent)
_PACKAGES = str(Path(torch.__file__).parent.parent)
_HERE = str(Path(__file__).parent)


class Refusal(Exception):
    """What an operation does that a step graph cannot, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason, self.remedy = reason, remedy


def place(stack_trace: str | None) -> str:
    """Return "file:line: " of the innermost line of a stack trace that is the user's."""
    found = re.findall(r'File "([^"\n]+)", line (\d+)', stack_trace or "")
    return _innermost([(file, int(line)) for file, line in found])


def place_of_error(error: BaseException) -> str:
    """Return "file:line: " of the innermost frame of an error that is the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    return _innermost([(frame.filename, frame.lineno or 0) for frame in frames])


def is_ours(file: str) -> bool:
    """Whether a file is PyTorch's or the front end's, not the user's."""
    return file.startswith((_TORCH, _HERE, "<"))


def _innermost(lines: Sequence[tuple[str, int]]) -> str:
    users = [(file, line) for file, line in lines if not is_ours(file)]
    # A line of the user's own says more than one of a package that it calls.
    for file, line in reversed([one for one in users if not one[0].startswith(_PACKAGES)] or users):
        return f"{file}:{line}: "
    return ""


def refused(where: str, what: str, refusal: Refusal) -> InputError:
    """Return the error that says so in one line."""
    return InputError(f"{where}{what} {refusal.reason}: {refusal.remedy}")
