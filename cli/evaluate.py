"""PROTOCOL: how reconstruction is scored, and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scotopia.model import baselines, score
from scotopia.model import task as float_task
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.video import Clip
from scotopia.quantize import task as integer_task
from scotopia.quantize.integer_rule import IntegerRule

Video = NDArray[np.float32]
Scores = dict[str, float]


@dataclass(frozen=True, eq=False)
class Shown:
    """A clip and which of its pixels are shown.

    Attributes
    ----------
    clip
        The ground truth.
    mask
        (T, H, W) by PROTOCOL: numpy's default generator, `density`, `seed`.
    """

    clip: Clip
    mask: NDArray[np.bool_]

    @classmethod
    def by_protocol(cls, clip: Clip, density: float, seed: int) -> "Shown":
        """Draw the mask."""
        return cls(clip, sample_mask(clip.frames.shape, density, seed))

    def score(self, estimates: Video) -> Scores:
        """PSNR in dB and SSIM of estimates (T, H, W)."""
        return {
            "psnr": score.psnr(self.clip.frames, estimates),
            "ssim": score.ssim(self.clip.frames, estimates),
        }


def methods(rules: list[Rule | IntegerRule]) -> dict[str, Callable[[Shown], Video]]:
    """All methods by name: the baselines, then "nca" for a float rule, "nca-int" for an integer."""

    def classical(baseline: baselines.Constructor) -> Callable[[Shown], Video]:
        return lambda shown: baselines.reconstruct(
            baseline, shown.mask, shown.mask * shown.clip.frames
        )

    found: dict[str, Callable[[Shown], Video]] = {
        name: classical(baseline) for name, baseline in baselines.BASELINES.items()
    }
    found["normalized-convolution-oracle"] = lambda shown: baselines.reconstruct_oracle(
        shown.clip.frames, shown.mask
    )[0]
    for rule in rules:
        if isinstance(rule, IntegerRule):
            found["nca-int"] = lambda shown, rule=rule: integer_task.reconstruct(  # type: ignore[misc]
                rule, shown.clip.frames, shown.mask
            )
        else:
            found["nca"] = lambda shown, rule=rule: float_task.reconstruct(  # type: ignore[misc]
                rule, shown.clip.frames, shown.mask
            )
    return found


def cost(rule: Rule | IntegerRule) -> dict[str, int]:
    """What a rule costs: parameters, MACs, steps, and state bits per cell."""
    config = rule.config
    parameters = config.hidden * (9 * config.perceived + 1 + config.updates) + config.updates
    state_bits = (
        rule.state_bits
        if isinstance(rule, IntegerRule)
        else 32 * len(config.channel_names) + 1  # floats, and the valid flag
    )
    return {
        "parameters": parameters,
        "macs_per_cell_and_step": config.macs,
        "steps_per_frame": config.steps_per_frame,
        "state_bits_per_cell": state_bits,
    }


def mean_scores(clips: dict[str, dict[str, Scores]]) -> dict[str, Scores]:
    """Mean over clips of each method's scores."""
    names = next(iter(clips.values())) if clips else {}
    return {
        method: {
            figure: float(np.mean([clip[method][figure] for clip in clips.values()]))
            for figure in ("psnr", "ssim")
        }
        for method in names
    }
