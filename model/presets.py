"""Trainings that are known to work, by name."""

from dataclasses import dataclass, replace

from scotopia.graph.errors import InputError

from .config import RuleConfig
from .options import TrainOptions


@dataclass(frozen=True)
class Preset:
    """A shape, how to train it, and how many synthetic clips to train it on."""

    description: str
    config: RuleConfig
    options: TrainOptions
    synthetic: int = 96


_CONFIG = RuleConfig(channels=8, hidden=18, steps_per_frame=8, trace_bits=11)
_OPTIONS = TrainOptions(
    iterations=5000,
    batch=16,
    crop=48,
    learning_rate=3e-4,
    densities=(0.005, 0.01, 0.2),
    restart=0.05,
    moving_share=0.45,
    average=0.999,
    loss="log-dense",
)

PRESETS = {
    "retina": Preset(
        "the rule that is shipped",
        replace(_CONFIG, inputs=("fresh", "flicker", "innovation", "trust", "recall")),
        # More varied than the clips are. Nearly even shots and light that flutters, together, are
        # what `fish` asks for; the iterations make up for what they are worth less elsewhere.
        replace(_OPTIONS, iterations=6000, zoom=0.2, flutter=0.7, blend=0.2, contrast=0.05),
    ),
    "retina-tiny": Preset(
        "as small as the start as a filter can be",
        replace(
            _CONFIG,
            channels=2,
            hidden=7,
            perception="sobel",
        ),
        _OPTIONS,
    ),
    "retina-small": Preset(
        "a third of retina's parameters", replace(_CONFIG, channels=4, hidden=10), _OPTIONS
    ),
    "retina-medium": Preset(
        "half of retina's parameters", replace(_CONFIG, channels=6, hidden=12), _OPTIONS
    ),
    "quick": Preset(
        "minutes on one core, to try things",
        replace(_CONFIG, channels=4, hidden=10),
        replace(_OPTIONS, iterations=400, crop=48, batch=4),
        synthetic=8,
    ),
    "quantize": Preset(
        "what --quantize trains; its shape is that of the rule it starts from",
        _CONFIG,
        # Where gradients go straight through a rounding, the eigenbasis of their second moments
        # says little: SOAP, the better for floats, did worse than Adam here.
        replace(_OPTIONS, iterations=1500, optimizer="adam", learning_rate=2e-4, average=0.99),
    ),
}


def find_preset(name: str) -> Preset:
    """Return a preset.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
