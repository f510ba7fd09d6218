"""The input register of a cell, and what it perceives beside its learned channels.

Written once, for tensors and for the words of a step graph: `Arithmetic` is what differs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

#: A tensor, or words of a graph.
Number = Any


class Arithmetic(Protocol):
    """What numbers have no operator for."""

    def where(self, condition: Number, a: Number, b: Number) -> Number:
        """Select `a` where `condition`, else `b`."""

    def not_negative(self, a: Number) -> Number:
        """Return `a`, and 0 where it is negative."""


class Seen(NamedTuple):
    """What a cell knows after it looked.

    Attributes
    ----------
    last, trace
        The register: the last sample, and how long ago it arrived.
    inputs
        In the order of the names that were asked for.
    """

    last: Number
    trace: Number
    inputs: list[Number]


def look(
    arithmetic: Arithmetic,
    names: Sequence[str],
    *,
    prediction: Number,
    doubt: Number,
    old: Number,
    age: Number,
    sample: Number,
    valid: Number,
    trace_bits: int,
    keep: Callable[[str, Number], Number],
) -> Seen:
    """Take a sample if one arrives, and compute what is perceived.

    Parameters
    ----------
    names
        Which of `config.INPUTS`, in that order.
    prediction, doubt
        Learned channels; None for doubt, if there is no trust.
    old, age
        The register before: the last sample, and its trace.
    sample, valid
        What arrives, and whether.
    keep
        Brings an input, by its name, into the range or the format in which it is shown.
    """
    tick = 2.0**-trace_bits
    last = arithmetic.where(valid, sample, old)
    trace = arithmetic.where(valid, 1 - tick, arithmetic.not_negative(age - tick))
    surprise = last - prediction
    shown: dict[str, Number] = {}
    formulas: dict[str, Callable[[], Number]] = {
        "sample": lambda: last,
        "trace": lambda: trace,
        "valid": lambda: valid,
        "fresh": lambda: arithmetic.where(age < 1 - tick, valid, 0.0),
        "flicker": lambda: arithmetic.where(age > 0, last - old, 0.0),
        "innovation": lambda: arithmetic.where(valid, surprise, 0.0),
        "trust": lambda: recency(arithmetic, trace) - 4 * doubt,
        "recall": lambda: shown["trust"] * surprise,
    }
    for name in names:
        shown[name] = keep(name, formulas[name]())
    return Seen(last, trace, list(shown.values()))


def recency(arithmetic: Arithmetic, trace: Number) -> Number:
    """Tell how recent a sample is, from 4 to 0, about linearly in the logarithm of its age.

    From a trace in [0, 1): it falls to 2 in a 64th of the trace's life, to 1 in an eighth, then to
    0. So a cell can forget what is older than a few frames, or than a few hundred, by subtracting
    its doubt. Made of shifts and clips.
    """
    fast = arithmetic.not_negative(8 * trace - 7)
    return trace + fast + 2 * arithmetic.not_negative(64 * trace - 63)
