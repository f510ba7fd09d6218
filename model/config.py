"""Shape of a rule, shared by the float rule and the integer rule."""

from dataclasses import dataclass
from typing import Literal

from scotopia.graph.errors import InputError

Kind = Literal["gated", "residual"]
Border = Literal["zero", "replicate", "wrap"]
Perception = Literal["full", "depthwise", "sobel"]

#: 3x3 filters of each perceived channel, where perception is no full 3x3 layer.
FILTERS: dict[Perception, int] = {"depthwise": 3, "sobel": 4}

#: What a cell may perceive beside its learned channels, in this order:
#: `sample`, the last sample; `trace`, 1 when it arrived, falling linearly to 0; `valid`, 1 while
#: the frame that brought it lasts; `fresh`, 1 in the step that takes it, if none was taken in the
#: step before; `flicker`, in the step that takes a sample, what it differs by from the pixel's last
#: one, if that has left a trace; `innovation`, valid * (sample - prediction); `trust`, how much of
#: the last sample still counts, by its age and by what the cell doubts; `recall`, trust * (sample -
#: prediction).
INPUTS = ("sample", "trace", "valid", "fresh", "flicker", "innovation", "trust", "recall")

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
        Neurons of the hidden layer (1 to 128, as many as a Growing NCA has).
    inputs
        Names out of `INPUTS`, in that order.
    steps_per_frame
        Steps between two frames (1 to 64); information travels one pixel a step.
    border
        What a cell at the border sees beyond it: zeros, its own edge, or the opposite side.
    trace_bits
        A trace lasts 2**trace_bits steps (1 to 16).
    perception
        How a cell sees its neighbours: "full", a 3x3 layer; "depthwise", three learned 3x3 filters
        of each channel; "sobel", four fixed ones (itself, Sobel in x and in y, Laplacian).
    fire_rate
        Share of the cells that update in a step, drawn anew each step, in (0, 1].
    block
        A cell stands for block x block pixels (1 to 4), each with a prediction and a register.
    """

    kind: Kind = "gated"
    channels: int = 8
    hidden: int = 16
    inputs: tuple[str, ...] = ("flicker", "innovation", "trust", "recall")
    steps_per_frame: int = 4
    border: Border = "replicate"
    trace_bits: int = 8
    perception: Perception = "full"
    fire_rate: float = 1.0
    block: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("block", 1, 4),
            ("channels", 1, 32),
            ("hidden", 1, 128),
            ("steps_per_frame", 1, 64),
            ("trace_bits", 1, 16),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:  # nor True, which is an int
                raise InputError(f"{name} {value} is outside {low} to {high}: choose one inside")
        if self.kind not in ("gated", "residual"):
            raise InputError(f"kind {self.kind!r} is unknown: choose gated or residual")
        if self.border not in ("zero", "replicate", "wrap"):
            raise InputError(f"border {self.border!r} is unknown: choose zero, replicate or wrap")
        if self.perception not in ("full", "depthwise", "sobel"):
            raise InputError(
                f"perception {self.perception!r} is unknown: choose full, depthwise or sobel"
            )
        if isinstance(self.fire_rate, bool) or not 0 < self.fire_rate <= 1:
            raise InputError(f"fire_rate {self.fire_rate} is outside (0, 1]: choose 1")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if self.inputs != tuple(name for name in INPUTS if name in self.inputs):
            raise InputError(
                f"inputs {', '.join(map(str, self.inputs))} are not a part of "
                f"{', '.join(INPUTS)} in that order: name each once, in that order"
            )
        if "recall" in self.inputs and "trust" not in self.inputs:
            raise InputError("input recall needs input trust: name both or neither")
        needed = self.pixels + ("trust" in self.inputs)
        if self.channels < needed:
            raise InputError(
                f"channels {self.channels} cannot hold a prediction of each pixel and the doubt: "
                f"choose at least {needed}"
            )

    @property
    def pixels(self) -> int:
        """Pixels of a cell: as many predictions, samples and traces it has."""
        return self.block**2

    @property
    def doubt(self) -> int:
        """Number of the learned channel that shortens the memory, behind the predictions."""
        return self.pixels

    @property
    def perceived(self) -> int:
        """Channels a cell sees of each neighbour: learned ones, then inputs."""
        return self.channels + self.pixels * len(self.inputs)

    @property
    def updates(self) -> int:
        """Outputs of the update layer: a candidate per channel, and a gate if gated."""
        return self.channels * (2 if self.kind == "gated" else 1)

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        filters = FILTERS.get(self.perception, 9)
        learned_filters = 9 * filters * self.perceived if self.perception == "depthwise" else 0
        layers = self.hidden * (filters * self.perceived + 1) + self.updates * (self.hidden + 1)
        return learned_filters + layers

    @property
    def macs(self) -> int:
        """Multiply-accumulates per cell and step."""
        if self.perception == "full":
            return self.hidden * (9 * self.perceived + self.updates)
        filters = FILTERS[self.perception]
        # Fixed filters are sums and shifts, but for eight neighbours: counted as what they read.
        filtering = 9 * filters * self.perceived
        return filtering + self.hidden * (filters * self.perceived + self.updates)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of all state channels, register included."""
        numbers = [""] if self.pixels == 1 else [str(i) for i in range(self.pixels)]
        return (
            *(f"x{i}" for i in range(self.channels)),
            *(f"{name}{number}" for name in REGISTER for number in numbers),
        )
