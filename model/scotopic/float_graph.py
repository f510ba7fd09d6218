"""The step graph of a float rule: the same operations as an integer rule's, and no `Fit`."""

from functools import cache

import numpy as np

from scotopia.graph.build import Builder, Value
from scotopia.graph.step import StepGraph

from ..config import RuleConfig
from .register import look

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
    state = build.channels(dict.fromkeys(config.channel_names))
    numbers = [""] if pixels == 1 else [str(i) for i in range(pixels)]
    given = build.inputs(
        {f"{name}{number}": None for name in ("sample", "valid") for number in numbers}
    )
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
        updated = x + opened * (build.clip(candidate, -1, 1) - x)
    if fires is not None:
        updated = build.where(fires, updated, x)
    after = [*updated, *seen.last, *seen.trace]
    return build.graph(dict(zip(config.channel_names, after, strict=True)))
