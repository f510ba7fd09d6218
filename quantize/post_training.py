"""Post-training quantization: what a rule sees on clips, measured, and formats that follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.model.errors import InputError
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.task import run
from scotopia.model.video import Clip

from .feedback import Moments, Sums
from .formats import FINEST, Formats, Precision, finest, unsigned_format
from .integer_rule import IntegerRule
from .qformat import QFormat, Rounding

#: Ways to choose the range of a hidden neuron: the largest activation seen; a high percentile of
#: them, because the very largest are worth clipping; the least mean squared error.
METHODS = ("max", "percentile", "mse")

#: One activation in so many is kept, a number that has no factor in common with a row of cells.
_STRIDE = 7


@dataclass(frozen=True)
class Calibration:
    """What a float rule has seen on clips.

    Attributes
    ----------
    activations
        Of hidden neurons: (hidden, N) float32, at least 0, in no order.
    moments
        Of what both layers see, for `feedback.round_weights`.
    """

    activations: NDArray[np.float32]
    moments: Moments

    @classmethod
    def measure(
        cls, rule: Rule, clips: Sequence[Clip], density: float = 0.01, seed: int = 0
    ) -> "Calibration":
        """Run the float rule over clips.

        Raises
        ------
        InputError
            If there is no clip, or an activation is not finite.
        """
        if not clips:
            raise InputError("the calibration set is empty: give at least one clip")
        found: list[Tensor] = []
        sums = Sums(rule.config)

        def keep(_module: object, seen: tuple[Tensor, ...], out: Tensor) -> None:
            sums.add(seen[0], out)
            by_neuron = out.detach().transpose(0, 1).flatten(1)
            found.append(by_neuron[:, len(found) % _STRIDE :: _STRIDE].clamp(min=0).clone())

        hook = rule.perceive.register_forward_hook(keep)
        try:
            for clip in clips:
                mask = sample_mask(clip.frames.shape, density, seed)
                for _ in run(rule, clip.frames, mask):
                    pass
        finally:
            hook.remove()
        activations = torch.cat(found, 1).numpy()
        if not np.isfinite(activations).all():
            raise InputError("a hidden neuron's activation is not finite: train the rule again")
        return cls(activations, sums.moments())

    def formats(
        self, bits: int, method: str = "percentile", percentile: float = 99.99
    ) -> tuple[QFormat, ...]:
        """Choose an unsigned format of `bits` bits for each neuron, by one of `METHODS`.

        Raises
        ------
        InputError
            If the method is unknown.
        """
        if method not in METHODS:
            raise InputError(
                f"calibration {method!r} is unknown: choose one of {', '.join(METHODS)}"
            )
        if method == "mse":
            return tuple(_least_error(neuron, bits) for neuron in self.activations)
        share = 100 if method == "max" else percentile
        largest = np.percentile(self.activations, share, axis=1)
        return tuple(unsigned_format(float(value), bits) for value in largest)

    def clipped(self, formats: Sequence[QFormat]) -> list[dict[str, Any]]:
        """What these formats would clip: for each neuron format, largest activation and share."""
        report = []
        for neuron, format in zip(self.activations, formats, strict=True):
            most = (format.highest + 0.5) * 2.0**-format.frac_bits
            report.append(
                {
                    "format": str(format),
                    "largest": float(neuron.max()),
                    "clipped": float((neuron >= most).mean()),
                }
            )
        return report


def quantize(
    rule: Rule,
    calibration: Calibration,
    precision: Precision | None = None,
    rounding: Rounding = Rounding.RND,
    method: str = "percentile",
) -> IntegerRule:
    """Turn a float rule into an integer rule, without retraining.

    Raises
    ------
    InputError
        If a weight is not finite, the method is unknown, or an accumulator needs over 32 bits.
    """
    precision = precision or Precision()
    hidden = calibration.formats(precision.hidden, method)
    return Formats.choose(rule, hidden, precision, rounding).integer_rule(rule)


def _least_error(activations: NDArray[np.float32], bits: int) -> QFormat:
    highest = 2**bits - 1
    widest = finest(float(activations.max()), highest)
    # Each bit more clips more and rounds less: beyond some, it only gets worse.
    choices = [QFormat(bits - f, f, signed=False) for f in range(widest, FINEST + 1)]
    errors = [
        np.square(
            np.clip(np.rint(np.ldexp(activations, f.frac_bits)), 0, highest)
            - np.ldexp(activations, f.frac_bits)
        ).mean()
        * 4.0**-f.frac_bits
        for f in choices
    ]
    return choices[int(np.argmin(errors))]
