"""A float rule that is written down as its step graph: what a module of one's own becomes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scotopia.graph import file
from scotopia.graph.errors import InputError
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import (
    Event,
    Initial,
    check_surroundings,
    given,
    pack_events,
    pack_initial,
    unpack_events,
    unpack_initial,
)
from scotopia.graph.trained import Masks, check_trained, numbers_of, pack_trained, unpack_trained

from .files import check_training_record, read_rule_file, write_rule_file

#: Kind of the files.
KIND = "float graph"


@dataclass(frozen=True, eq=False)
class FloatRule:
    """A step graph of floats, and what it needs to run; the fields mean what `IntegerRule`'s do.

    Attributes
    ----------
    graph
        The step, of any numbers; a channel or an input may have a format, which it then has as an
        integer, too.
    block
        A cell stands for block x block pixels of a video, row by row: each has an event, and a
        prediction among the first channels.
    trained
        Which of its numbers training may change.
    """

    graph: StepGraph
    steps_per_frame: int = 1
    events: tuple[Event, ...] = ()
    initial: Initial = dataclasses.field(default_factory=lambda: Initial.zeros(0))
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    block: int = 1
    trained: Masks = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.steps_per_frame
        if type(steps) is not int or not 1 <= steps <= 64:
            raise InputError(f"steps_per_frame {steps} is outside 1 to 64: choose one inside")
        if not len(self.initial.fill):
            object.__setattr__(self, "initial", Initial.zeros(len(self.graph.channels)))
        check_surroundings(self.graph, self.events, self.initial)
        pixels = self.block**2
        if self.block != 1 and (self.block < 1 or len(self.events) != pixels):
            raise InputError(
                f"block {self.block} asks for {pixels} events, the rule has {len(self.events)}: "
                "give an event for each pixel of a cell"
            )
        check_trained(self.graph, self.trained)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the state's channels."""
        return tuple(self.graph.channels)

    def given(
        self,
        sample: NDArray[np.floating],
        valid: NDArray[np.bool_],
        before: Mapping[str, NDArray[Any]] = {},
    ) -> dict[str, NDArray[Any]]:
        """Return the inputs of a frame's steps, by name, as `IntegerRule.given` does.

        Parameters
        ----------
        sample, valid
            (..., H, W) of pixels, block x block a cell.
        before
            Inputs of the frame before; by default all 0.

        Raises
        ------
        InputError
            If the pixels do not divide into cells.
        """
        if self.block == 1:
            return given(self.events, sample, valid, before)
        height, width = sample.shape[-2:]
        if height % self.block or width % self.block:
            raise InputError(
                f"frames of {width} x {height} pixels do not divide into cells of {self.block} x "
                f"{self.block}: choose sides that are multiples of {self.block}"
            )
        found: dict[str, NDArray[Any]] = {}
        for place, event in enumerate(self.events):
            row, column = divmod(place, self.block)
            own = np.s_[..., row :: self.block, column :: self.block]
            found |= given((event,), sample[own], valid[own], before)
        return found

    def numbers(self, index: int) -> tuple[NDArray[np.float64], ...]:
        """Return the numbers of an operation that could be trained, as `trained` names them."""
        return numbers_of(self.graph.operations[index])

    def save(self, path: Path) -> None:
        """Write the rule to one file, whole or not at all."""
        graph, weights = file.pack(self.graph)
        initial, values = pack_initial(self.initial)
        trained, masks = pack_trained(self.trained)
        description = {
            "graph": graph,
            "steps_per_frame": self.steps_per_frame,
            "events": pack_events(self.events),
            "initial": initial,
            "training": self.training,
            "block": self.block,
            "trained": trained,
        }
        write_rule_file(path, KIND, description, weights | values | masks)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a rule.

        Raises
        ------
        InputError
            If the file is no float graph of this version, or contradicts itself.
        """
        packed, tensors = read_rule_file(path, KIND)
        try:
            return cls(
                file.unpack(packed["graph"], tensors),
                packed["steps_per_frame"],
                unpack_events(packed["events"]),
                unpack_initial(packed["initial"], tensors),
                check_training_record(packed["training"]),
                packed.get("block", 1),  # older files have none
                unpack_trained(packed.get("trained", {}), tensors),
            )
        except InputError as error:
            raise InputError(f"rule {path}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(
                f"rule {path} has no valid description ({error!r}): write it again"
            ) from error
