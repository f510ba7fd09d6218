"""`scotopia quantize` of a rule that is a graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scotopia.graph.errors import InputError
from scotopia.graph.operations import Linear
from scotopia.graph.qformat import Rounding, required_bits
from scotopia.model.float_rule import FloatRule
from scotopia.model.rule import to_state
from scotopia.model.sampling import seen_mask
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import GraphRule
from scotopia.quantize.measure import Episode, Inputs, episodes, measure
from scotopia.quantize.quantizer import Choice, quantize

from .quantize import calibration_clips
from .rules import rule_path


def quantize_graph(
    name: str,
    precision: Precision,
    rounding: Rounding,
    scales: str,
    clips: Sequence[str],
    size: int | None,
    density: float,
) -> tuple[GraphRule, dict[str, Any]]:
    """Quantize a float graph, and return what that did as JSON holds it.

    A rule that takes events is shown clips; any other runs from its initial state.

    Raises
    ------
    InputError
        If the rule or a clip cannot be read, if the rule does nothing, or it cannot be quantized.
    """
    rule = FloatRule.load(rule_path(name))
    runs: list[Episode]
    shown: list[str] = []
    if rule.events:
        runs = []
        for clip in calibration_clips(clips, size):
            mask = seen_mask(clip.name, clip.frames.shape, density, 0, rule.graph.inputs)
            runs.append(_shown(rule, clip.frames, mask))
            shown.append(clip.name)
    elif clips:
        raise InputError(f"rule {name} takes no events, so no clip: leave out --calibrate")
    else:
        runs = episodes()
    seen = measure(rule, runs)
    states = [*rule.graph.channels.values(), *rule.graph.outputs]
    if not (seen.lowest[states].any() or seen.highest[states].any()):
        raise InputError(
            f"rule {name} does nothing: its state stays 0. Import it with --start cell, or with a "
            ".npy file of the state that it starts from"
        )
    made = quantize(rule, seen, Choice(precision, rounding, scales=scales))
    return made, {
        "calibration_clips": shown,
        "weight_bits": _weight_bits(made),
        "state_bits": made.state_bits,
        "formats": {
            name: str(format)
            for name, format in zip(made.channel_names, made.channel_formats, strict=True)
        },
    }


def _shown(rule: FloatRule, frames: Any, mask: Any) -> Episode:
    """Return a clip as the events of a rule: every event is a pixel."""
    values = np.where(mask, np.asarray(to_state(frames)), 0)
    given: list[Inputs] = []
    for value, valid in zip(values, mask, strict=True):
        given.append(rule.given(value, valid, given[-1] if given else {}))
    height, width = frames.shape[1:]
    return Episode(height, width, given)


def _weight_bits(rule: GraphRule) -> int:
    """Bits of all weights that are not 0, each as wide as the widest of its output."""
    total = 0
    for index, operation in rule.graph.of_kind(Linear):
        assert isinstance(operation, Linear)
        codes, _ = rule.graph.codes_of(index)
        for row in codes:
            kept = row[row != 0]
            if len(kept):
                zeros = int(np.bitwise_or.reduce(kept & -kept))
                shift = (zeros & -zeros).bit_length() - 1
                total += len(kept) * required_bits(int(kept.min()), int(kept.max()) >> shift)
    return total
