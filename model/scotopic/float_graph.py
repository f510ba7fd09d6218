"""The step graph of a float rule: the same operations as an integer rule's, and no `Fit`."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from scotopia.graph.build import Builder, Value
from scotopia.graph.operations import Linear
from scotopia.graph.qformat import QFormat
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import Event

from ..config import RuleConfig
from ..float_rule import FloatRule
from .register import look

if TYPE_CHECKING:
    from ..rule import Rule

#: Bits of the number that decides whether a cell fires.
FIRE_BITS = 24


class _Builder(Builder):
    def not_negative(self, a: Value) -> Value:
        return a.maximum(0)

    def clip(self, a: Value, low: float, high: float) -> Value:
        """Bring words into an interval, at whose ends they keep their gradient."""
        # Of two equal words the gradient is that of the second.
        return self.constant(high).minimum(self.constant(low).maximum(a))


@cache
def float_graph(config: RuleConfig) -> StepGraph:
    """Write the step of `Rule` down, with weights of 1 in place of a rule's.

    Its inputs are `sample` and `valid`; of a cell of several pixels `sample0`, `valid0` and so on.
    Its two `Linear` are the layers of the rule.
    """
    build, pixels, channels = _Builder(), config.pixels, config.channels
    # As an integer, too, a trace loses a last bit in each step: with fewer it would stand still.
    trace = QFormat(0, config.trace_bits, signed=False)
    state = build.channels(
        {name: trace if name.startswith("trace") else None for name in config.channel_names}
    )
    samples, flags = _inputs(config)
    given = build.inputs(dict.fromkeys((*samples, *flags)))
    fires = None
    if config.fire_rate < 1:
        fires = build.random(FIRE_BITS) < config.fire_rate
    x = state[:channels]
    limits = {"flicker": (-1, 1), "innovation": (-1, 1), "trust": (0, 1), "recall": (-1, 1)}

    def keep(name: str, value: Value) -> Value:
        if name not in limits:
            return value
        return build.clip(value, *limits[name])

    seen = look(
        build,
        config.inputs,
        prediction=x[:pixels],
        doubt=build.repeated(x[config.doubt], pixels) if "trust" in config.inputs else None,
        old=state[channels : channels + pixels],
        age=state[channels + pixels :],
        sample=given[:pixels],
        valid=given[pixels:],
        trace_bits=config.trace_bits,
        keep=keep,
    )
    shown = build.concatenate([x, *seen.inputs])
    hidden = build.not_negative(
        build.linear(
            shown,
            np.ones((config.hidden, config.perceived, 9)),
            np.ones(config.hidden),
            config.border,
        )
    )
    update = build.linear(
        hidden, np.ones((config.updates, config.hidden, 1)), np.ones(config.updates)
    )
    if config.kind == "residual":
        updated = build.clip(x + update, -1, 1)
    else:
        candidate, gate = update[:channels], update[channels:]
        opened = build.clip(0.5 + 0.25 * gate, 0, 1)
        build.name(opened, [f"gate x{i}" for i in range(channels)])
        updated = x + opened * (build.clip(candidate, -1, 1) - x)
    if fires is not None:
        updated = build.where(fires, updated, x)
    after = [*updated, *seen.last, *seen.trace]
    return build.graph(dict(zip(config.channel_names, after, strict=True)))


def as_float_rule(rule: "Rule") -> FloatRule:
    """Write a rule down as its step graph, with its weights; it computes the same."""
    config, graph = rule.config, float_graph(rule.config)
    weight, bias, update_weight, update_bias = (
        one.detach().cpu().double().flatten(2 if one.dim() > 1 else 0).numpy()
        for one in rule.layers()
    )
    changed = {}
    for (index, layer), numbers in zip(
        graph.of_kind(Linear), ((weight, bias), (update_weight, update_bias)), strict=True
    ):
        assert isinstance(layer, Linear)
        changed[index] = replace(layer, weight=numbers[0], bias=numbers[1])
    return FloatRule(
        graph.changed(changed),
        config.steps_per_frame,
        tuple(map(Event, *_inputs(config))),
        training=rule.training_record,
        block=config.block,
    )


def _inputs(config: RuleConfig) -> tuple[list[str], list[str]]:
    """Names of the samples, and of the flags that say whether one arrives."""
    numbers = [""] if config.pixels == 1 else [str(i) for i in range(config.pixels)]
    samples, flags = ([f"{name}{number}" for number in numbers] for name in ("sample", "valid"))
    return samples, flags
