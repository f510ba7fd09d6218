"""One line of a proof: what was checked, how much of it, and the verdict."""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  #: for want of a tool that the README calls optional


@dataclass(frozen=True)
class Check:
    """A check and what it found.

    Attributes
    ----------
    part
        What it belongs to: "formal", for instance.
    name
        The claim, in a few words; unique in its part.
    verdict
        See `Verdict`. A check of no cases has not passed.
    cases, unit
        How many of what were checked: 4096 "cell updates", 3 "properties".
    seconds
        Wall time.
    detail
        One line: what was found, or why it was skipped.
    """

    part: str
    name: str
    verdict: Verdict
    cases: int
    unit: str
    seconds: float
    detail: str = ""
