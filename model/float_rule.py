"""A float rule that is written down as its step graph: what a module of one's own becomes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scotopia.graph import file
from scotopia.graph.errors import InputError
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import (
    Event,
    Initial,
    check_surroundings,
    pack_events,
    pack_initial,
    unpack_events,
    unpack_initial,
)

from .files import check_training_record, read_rule_file, write_rule_file

#: Kind of the files.
KIND = "float graph"


@dataclass(frozen=True, eq=False)
class FloatRule:
    """A step graph of floats, and what it needs to run; the fields mean what `IntegerRule`'s do.

    Attributes
    ----------
    graph
        The step, of any numbers and without formats.
    """

    graph: StepGraph
    steps_per_frame: int = 1
    events: tuple[Event, ...] = ()
    initial: Initial = dataclasses.field(default_factory=lambda: Initial.zeros(0))
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.steps_per_frame
        if type(steps) is not int or not 1 <= steps <= 64:
            raise InputError(f"steps_per_frame {steps} is outside 1 to 64: choose one inside")
        if not len(self.initial.fill):
            object.__setattr__(self, "initial", Initial.zeros(len(self.graph.channels)))
        check_surroundings(self.graph, self.events, self.initial)

    def save(self, path: Path) -> None:
        """Write the rule to one file, whole or not at all."""
        graph, weights = file.pack(self.graph)
        initial, values = pack_initial(self.initial)
        description = {
            "graph": graph,
            "steps_per_frame": self.steps_per_frame,
            "events": pack_events(self.events),
            "initial": initial,
            "training": self.training,
        }
        write_rule_file(path, KIND, description, weights | values)

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
            )
        except InputError as error:
            raise InputError(f"rule {path}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"rule {path} has no valid description ({error!r}): write it again"
            ) from error
