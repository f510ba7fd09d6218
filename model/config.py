"""Shape of a rule, shared by the float rule and the integer rule."""

from dataclasses import dataclass
from typing import Literal

from .errors import InputError

Kind = Literal["gated", "residual"]
Border = Literal["zero", "replicate", "wrap"]

#: What a cell may perceive beside its learned channels, in this order:
#: `sample`, the last sample; `trace`, 1 when it arrived, falling linearly to 0; `valid`, 1 while
#: the frame that brought it lasts; `innovation`, valid * (sample - prediction);
#: `recall`, trace * (sample - prediction).
INPUTS = ("sample", "trace", "valid", "innovation", "recall")

#: Channels of the input register, behind the learned ones.
REGISTER = ("sample", "trace")


@dataclass(frozen=True)
class RuleConfig:
    """Shape of a rule: all that is not a weight.

    Attributes
    ----------
    kind
        "gated": x <- x + z (c - x), or "residual": x <- x + c.
    channels
        Learned channels C, prediction included (1 to 32).
    hidden
        Neurons of the hidden layer (1 to 64).
    inputs
        Names out of `INPUTS`, in that order.
    steps_per_frame
        Steps between two frames (1 to 64); information travels one pixel a step.
    border
        What a cell at the border sees beyond it: zeros, its own edge, or the opposite side.
    trace_bits
        A trace lasts 2**trace_bits steps (1 to 16).
    """

    kind: Kind = "gated"
    channels: int = 8
    hidden: int = 16
    inputs: tuple[str, ...] = INPUTS
    steps_per_frame: int = 4
    border: Border = "replicate"
    trace_bits: int = 8

    def __post_init__(self) -> None:
        for name, low, high in (
            ("channels", 1, 32),
            ("hidden", 1, 64),
            ("steps_per_frame", 1, 64),
            ("trace_bits", 1, 16),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name} {value} is outside {low} to {high}: choose one inside")
        if self.kind not in ("gated", "residual"):
            raise InputError(f"kind {self.kind!r} is unknown: choose gated or residual")
        if self.border not in ("zero", "replicate", "wrap"):
            raise InputError(f"border {self.border!r} is unknown: choose zero, replicate or wrap")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if self.inputs != tuple(name for name in INPUTS if name in self.inputs):
            raise InputError(
                f"inputs {', '.join(map(str, self.inputs))} are not a part of "
                f"{', '.join(INPUTS)} in that order: name each once, in that order"
            )

    @property
    def perceived(self) -> int:
        """Channels a cell sees of each neighbour: learned ones, then inputs."""
        return self.channels + len(self.inputs)

    @property
    def updates(self) -> int:
        """Outputs of the update layer: a candidate per channel, and a gate if gated."""
        return self.channels * (2 if self.kind == "gated" else 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per cell and step in both layers."""
        return self.hidden * (9 * self.perceived + self.updates)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of all state channels, register included."""
        return (*(f"x{i}" for i in range(self.channels)), *REGISTER)
