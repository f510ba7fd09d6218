"""How to train: every number that decides what comes out, beside the rule's shape and the clips."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from scotopia.graph.errors import InputError

from .losses import LOSSES, Loss
from .sensor import Sensor

#: Motion of a clip, see `score.motion`, from which on it counts as moving in training.
MOVING = 0.01


OPTIMIZERS = ("soap", "adam")


@dataclass(frozen=True)
class LoopOptions:
    """How the weights are moved, whatever the task.

    Attributes
    ----------
    iterations
        Optimizer steps.
    batch
        States that run side by side.
    optimizer
        "soap", or "adam", which is the better where weights sit on a grid: see `presets`.
    learning_rate
        Peak, up to 1, of a schedule that warms up for 2 % and falls as a cosine to 1 %.
    average
        Decay per iteration of the running average of the weights that training ends with; 0 for
        the last weights. A rule runs for thousands of steps, so that weights which are right only
        on the average of a few iterations drift.
    seed
        Of all that is drawn by chance; the weights are the caller's.

    Raises
    ------
    InputError
        If a field is out of its range.
    """

    iterations: int = 3600
    batch: int = 8
    optimizer: str = "soap"
    learning_rate: float = 2e-3
    average: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch"):
            _at_least_one(name, getattr(self, name))
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is below 0: choose 0 or more")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"optimizer {self.optimizer!r} is unknown: choose one of {', '.join(OPTIMIZERS)}"
            )
        if not 0 < self.learning_rate <= 1:  # also refuses NaN
            raise InputError(
                f"learning_rate {self.learning_rate:g} is outside (0, 1]: choose 0.002"
            )
        if not 0 <= self.average < 1:
            raise InputError(f"average {self.average:g} is outside [0, 1): choose 0.998")

    def describe(self) -> dict[str, Any]:
        """All fields as JSON holds them."""
        return dataclasses.asdict(self)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} {value} is below 1: choose at least 1")


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """How to train a scotopic rule, beside what `LoopOptions` has.

    Attributes
    ----------
    crop
        Side of the square cut out of each video, in pixels; a multiple of the rule's block.
    chunk
        Frames between two truncations of the gradient.
    densities
        Lowest, likeliest and highest share of pixels shown, in (0, 1]; each video draws its own,
        from a triangle in the logarithm.
    restart
        Chance that a video ends with a chunk: another takes its place, its state set to zero.
    real_share
        Share of the shots that come from real clips, where there are synthetic ones, too.
    moving_share
        Share of the real shots that come from clips in which much moves (`score.motion` of at
        least `MOVING`), where there are others, too. Clips that stand still are many and easy.
    zoom
        Share of the shots that are shown at half or twice their size: what is busy becomes
        busier, what is smooth smoother and faster. Needs an even crop; clips of less than twice
        the crop are not halved.
    blend
        Share of the shots that are two shots seen through each other, as in a window pane. What
        moves is then no longer told by what it looks like: a rule that is to hold its samples on
        some clips and to drop them on others learns to tell by the samples themselves.
    contrast
        Least contrast of a shot, as a share of its clip's, in (0, 1]; the largest is 1.3. A low one
        shows a rule what is nearly even, where light that flutters outweighs all else.
    drift
        Share of the shots whose brightness and contrast slowly change.
    flutter
        Share of the shots whose light is not the same from frame to frame, as under lamps on the
        mains or in a time-lapse: a rule learns to see through it.
    cut
        Chance that a video jumps to another shot between two chunks. Unlike at a restart, its
        state stays: the rule learns to forget.
    blackout
        Chance that no pixel arrives for a whole chunk: the rule learns to hold what it has.
    sensor, sensor_share
        `sensor_share` of the videos are seen through a sensor whose flaws are those of `sensor`
        times a random number from 0 to 1. What is learned stays the scene itself.
    loss
        A name out of `LOSSES`, or any function of `Loss`'s form.

    Raises
    ------
    InputError
        If a field is out of its range.
    """

    crop: int = 64
    chunk: int = 8
    densities: tuple[float, float, float] = (0.005, 0.01, 0.04)
    restart: float = 0.08
    real_share: float = 0.7
    moving_share: float = 0.5
    zoom: float = 0.0
    blend: float = 0.0
    contrast: float = 0.3
    drift: float = 0.2
    flutter: float = 0.0
    cut: float = 0.02
    blackout: float = 0.01
    sensor: Sensor | None = None
    sensor_share: float = 0.0
    loss: str | Loss = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop", "chunk"):
            _at_least_one(name, getattr(self, name))
        low, likeliest, high = self.densities
        if not 0 < low <= likeliest <= high <= 1:
            raise InputError(
                f"densities {low}, {likeliest}, {high} do not rise inside (0, 1]: "
                "choose 0.005,0.01,0.04"
            )
        if not 0 < self.contrast <= 1:  # also refuses NaN
            raise InputError(f"contrast {self.contrast:g} is outside (0, 1]: choose 0.3")
        for name in (
            "restart",
            "real_share",
            "moving_share",
            "zoom",
            "blend",
            "drift",
            "flutter",
            "cut",
            "blackout",
            "sensor_share",
        ):
            if not 0 <= getattr(self, name) <= 1:  # also refuses NaN
                raise InputError(
                    f"{name} {getattr(self, name):g} is outside [0, 1]: give 0.1 for 10 %"
                )
        if self.zoom and self.crop % 2:
            raise InputError(f"crop {self.crop} is odd, which zoom cannot halve: choose it even")
        if (self.sensor is None) != (self.sensor_share == 0):
            raise InputError(
                f"sensor_share {self.sensor_share:g} with {'no' if self.sensor is None else 'a'} "
                "sensor: give both, for instance photons 10 and a share of 0.5, or neither"
            )
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise InputError(f"loss {self.loss!r} is unknown: choose one of {', '.join(LOSSES)}")

    @property
    def loss_function(self) -> Loss:
        """The loss itself."""
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    def describe(self) -> dict[str, Any]:
        """All fields as JSON holds them; a loss that was passed in goes by its name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {
            "densities": list(self.densities),
            "sensor": None if self.sensor is None else dataclasses.asdict(self.sensor),
            "loss": self.loss if isinstance(self.loss, str) else self.loss.__qualname__,
        }
