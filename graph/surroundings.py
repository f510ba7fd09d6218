"""What a step graph needs around it to run: the state that it starts from, and events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .step import StepGraph


@dataclass(frozen=True)
class Event:
    """What arrives at a cell from outside, once a frame at most.

    Attributes
    ----------
    value
        Input that takes its number and keeps it.
    flag
        Input of one bit that is 1 in the steps of a frame in which one arrived; None for none.
    """

    value: str
    flag: str | None = None


def given(
    events: tuple[Event, ...],
    value: NDArray[Any],
    arrived: NDArray[np.bool_],
    before: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Return the inputs of a frame's steps, by name, of cells whose events all bring the same.

    Parameters
    ----------
    value, arrived
        (..., H, W) what events bring, and where there is one.
    before
        Inputs of the frame before; those that are missing were 0.
    """
    found = {}
    for event in events:
        held = before.get(event.value, np.zeros((), value.dtype))
        found[event.value] = np.where(arrived, value, held)
        if event.flag is not None:
            found[event.flag] = np.asarray(arrived).astype(np.int64)
    return found


@dataclass(frozen=True, eq=False)
class Initial:
    """The state before the first step.

    Attributes
    ----------
    fill
        (C,) value of each channel in every cell.
    patch
        (C, h, w) values of the cells in the middle, such as the seed of an automaton that grows;
        none of them with h and w 0. What does not fit into a small grid is cut off.
    spread
        (C,) each cell's value is off by up to so much, either way, by chance.
    seed
        Of that chance.
    """

    fill: NDArray[np.float64]
    patch: NDArray[np.float64]
    spread: NDArray[np.float64]
    seed: int = 0

    @classmethod
    def zeros(cls, channels: int) -> Self:
        """Return a state of zeros."""
        none = np.zeros(channels)
        return cls(none, np.zeros((channels, 0, 0)), none)

    @classmethod
    def cell(cls, values: NDArray[np.floating]) -> Self:
        """Return a state of zeros but for one cell, in the middle, with values (C,)."""
        none = np.zeros(len(values))
        return cls(none, np.asarray(values, np.float64)[:, None, None], none)

    def state(self, height: int, width: int) -> NDArray[np.float64]:
        """Values of all channels, (C, H, W)."""
        chance = np.random.default_rng(self.seed).uniform(-1, 1, (len(self.fill), height, width))
        found: NDArray[np.float64] = self.fill[:, None, None] + self.spread[:, None, None] * chance
        _, rows, columns = self.patch.shape
        top, left = height // 2 - rows // 2, width // 2 - columns // 2
        cut_top, cut_left = max(-top, 0), max(-left, 0)
        inside = self.patch[:, cut_top : cut_top + height, cut_left : cut_left + width]
        top, left = max(top, 0), max(left, 0)
        found[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
        return found

    def ends(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest value of each channel, (C,) both."""
        low, high = self.fill - self.spread, self.fill + self.spread
        if self.patch.size:
            low = np.minimum(low, self.patch.min((1, 2)))
            high = np.maximum(high, self.patch.max((1, 2)))
        return low, high


def check_surroundings(graph: StepGraph, events: tuple[Event, ...], initial: Initial) -> None:
    """Raise InputError unless they are a graph's: each input of one event, a value a channel."""
    written = [name for event in events for name in (event.value, event.flag) if name is not None]
    if sorted(written) != sorted(graph.inputs):
        raise InputError(
            f"events write {', '.join(written) or 'nothing'}, the inputs are "
            f"{', '.join(graph.inputs) or 'none'}: let each input be written by one event"
        )
    count = len(graph.channels)
    for name in ("fill", "spread", "patch"):
        values = getattr(initial, name)
        if len(values) != count or not np.isfinite(values).all():
            raise InputError(
                f"{name} of the initial state has {len(values)} channels or a number that is not "
                f"finite, the rule has {count} channels: give a number for each"
            )


def pack_events(events: tuple[Event, ...]) -> list[list[str | None]]:
    """Return events as JSON holds them."""
    return [[event.value, event.flag] for event in events]


def unpack_events(packed: Any) -> tuple[Event, ...]:
    """Undo `pack_events`; ValueError, if it was something else."""
    for value, flag in packed:
        if not isinstance(value, str) or not isinstance(flag, str | None):
            raise ValueError(f"{value!r}, {flag!r} are no event")
    return tuple(Event(*one) for one in packed)


def pack_initial(initial: Initial) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Return an initial state as a description and tensors."""
    tensors = {f"initial.{name}": getattr(initial, name) for name in ("fill", "patch", "spread")}
    return {"seed": initial.seed}, tensors


def unpack_initial(packed: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Initial:
    """Undo `pack_initial`; KeyError or ValueError, if it was something else."""
    fields = {name: tensors[f"initial.{name}"] for name in ("fill", "patch", "spread")}
    if [fields[name].ndim for name in ("fill", "patch", "spread")] != [1, 3, 1]:
        raise ValueError("the initial state has tensors of other shapes")
    if type(packed["seed"]) is not int:
        raise ValueError(f"{packed['seed']!r} is no seed")
    fill, patch, spread = (one.astype(np.float64) for one in fields.values())
    return Initial(fill, patch, spread, packed["seed"])
