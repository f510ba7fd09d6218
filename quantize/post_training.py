"""Calibration: what a rule sees on clips, measured, and formats that follow.

A learned channel may use as little of its range as it likes while it is a float; as an integer it
would throw its upper bits away. So it is scaled to fill its range: what writes it by a factor, what
reads it by the inverse, as M. Nagel et al. do between layers, "Data-Free Quantization Through
Weight Equalization and Bias Correction" (2019), section 4.1.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import QFormat
from scotopia.model.checkpoint import digests
from scotopia.model.files import with_clips
from scotopia.model.rule import FilteredLayer, Rule
from scotopia.model.sampling import seen_mask
from scotopia.model.task import run
from scotopia.model.video import Clip

from .feedback import Moments, Sums
from .formats import FINEST, finest, hidden_bits, unsigned_format
from .integer_rule import SCALES

#: Ways to choose the range of a hidden neuron: the largest activation seen; a high percentile of
#: them, because the very largest are worth clipping; the least mean squared error.
METHODS = ("max", "percentile", "mse")

#: Of what is seen and not 0, what the formats hold: the very largest are worth clipping.
PERCENTILE = 99.99

#: Most that a channel is scaled by: one that hardly ever leaves 0 has nothing to say.
MOST_SCALED = 64.0

#: One activation in so many is kept, a number that has no factor in common with a row of cells.
_STRIDE = 7


@dataclass(frozen=True)
class Calibration:
    """What a float rule has seen on clips.

    Attributes
    ----------
    rule
        The rule that is to be quantized: it does what the one measured does, but its learned
        channels fill their range on these clips, see `fill_range`. Its record names the clips and,
        as `integer_rule.SCALES`, the factors.
    activations
        Of hidden neurons: (hidden, N) float32, at least 0, in no order.
    moments
        Of what both layers of `rule` see, for `feedback.round_weights`.
    """

    rule: Rule
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
            If there is no clip, two have one name, no pixel of one arrives, or an activation is not
            finite.
        """
        if not clips:
            raise InputError("the calibration set is empty: give at least one clip")
        masks = [
            seen_mask(clip.name, clip.frames.shape, density, seed, rule.config.inputs)
            for clip in clips
        ]
        hidden: list[Tensor] = []
        written: list[Tensor] = []
        sums = Sums(rule.config)
        channels = rule.config.channels

        def keep(kept: list[Tensor], numbers: Tensor) -> None:
            kept.append(numbers.detach()[0].flatten(1)[:, len(kept) % _STRIDE :: _STRIDE].clone())

        def perceived(_module: object, seen: tuple[Tensor, ...], out: Tensor) -> None:
            sums.add(seen[0], out)
            keep(hidden, out.clamp(min=0))
            if rule.config.kind == "residual":
                keep(written, seen[0][:, :channels].abs())

        def updated(_module: object, _seen: tuple[Tensor, ...], out: Tensor) -> None:
            if rule.config.kind == "gated":
                keep(written, out[:, :channels].abs())

        hooks = [
            rule.perceive.register_forward_hook(perceived),
            rule.update.register_forward_hook(updated),
        ]
        try:
            for clip, mask in zip(clips, masks, strict=True):
                for _ in run(rule, clip.frames, mask):
                    pass
        finally:
            for hook in hooks:
                hook.remove()
        activations = torch.cat(hidden, 1).numpy()
        if not np.isfinite(activations).all():
            raise InputError("a hidden neuron's activation is not finite: train the rule again")
        scales = _scales(rule, np.percentile(torch.cat(written, 1).numpy(), PERCENTILE, axis=1))
        scaled, seen = fill_range(rule, scales), digests([*clips])
        changed = {f"x{c}": float(scale) for c, scale in enumerate(scales) if scale != 1}
        scaled.training_record = with_clips(rule.training_record, seen, seen) | {SCALES: changed}
        return cls(scaled, activations, sums.moments().scaled(scales))

    def formats(
        self, bits: int, method: str = "percentile", percentile: float = PERCENTILE
    ) -> tuple[QFormat, ...]:
        """Choose an unsigned format for each neuron, of `hidden_bits`, by one of `METHODS`.

        Raises
        ------
        InputError
            If the method is unknown.
        """
        check_method(method)
        widths = hidden_bits(self.rule, bits)
        if method == "mse":
            return tuple(map(_least_error, self.activations, widths))
        share = 100 if method == "max" else percentile
        # Of those that are not 0: a neuron that only speaks where a sample arrives is silent for
        # all but one activation in a thousand, and what it says would be among the very largest.
        # The 0 is for a neuron that says nothing.
        spoken = [np.append(neuron[neuron > 0], 0) for neuron in self.activations]
        largest = [float(np.percentile(neuron, share)) for neuron in spoken]
        return tuple(map(unsigned_format, largest, widths))

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


@torch.no_grad()
def fill_range(rule: Rule, scales: NDArray[np.float64]) -> Rule:
    """Return a rule whose learned channels are `scales`, (channels,), times those of `rule`.

    Else it does the same, as long as nothing that is written to a channel leaves its range.
    """
    scaled = copy.deepcopy(rule)
    channels = rule.config.channels
    factors = torch.from_numpy(scales).to(rule.update.weight)
    read = (
        scaled.perceive.mix
        if isinstance(scaled.perceive, FilteredLayer)
        else scaled.perceive.weight
    )
    read[:, :channels] /= factors.reshape(-1, *[1] * (read.dim() - 2))
    assert scaled.update.bias is not None
    scaled.update.weight[:channels] *= factors[:, None, None, None]
    scaled.update.bias[:channels] *= factors
    return scaled


def _scales(rule: Rule, peaks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors that fill the range with these peaks; 1 where others expect a channel's own scale.

    They are powers of two, so that weights that were exact stay so: what sums up over hundreds of
    frames would drift.
    """
    scales = 2.0 ** np.floor(np.log2(np.maximum(1 / np.maximum(peaks, 1 / MOST_SCALED), 1)))
    scales[: rule.config.pixels] = 1  # predictions
    if "trust" in rule.config.inputs:
        scales[rule.config.doubt] = 1
    return scales


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


def check_method(method: str) -> None:
    """Raise InputError unless it is one of `METHODS`."""
    if method not in METHODS:
        raise InputError(f"calibration {method!r} is unknown: choose one of {', '.join(METHODS)}")
