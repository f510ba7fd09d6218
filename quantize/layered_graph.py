"""The step graph of a layered rule."""

from collections.abc import Sequence

from scotopia.graph.build import Builder, Value
from scotopia.graph.qformat import QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.model.scotopic.register import look

from .layered_rule import FIRE_BITS, IntegerLayer, LayeredRule, fire_threshold


def graph_of(rule: LayeredRule) -> StepGraph:
    """Write the step of a rule down as a graph; it computes the same codes."""
    config, build = rule.config, _Builder()
    formats = dict(zip(config.channel_names, rule.channel_formats, strict=True))
    state = build.channels(formats)
    given = build.inputs({"sample": rule.sample_format, "valid": QFormat(1, 0, signed=False)})
    fires = None
    if config.fire_rate < 1:
        fires = build.random(FIRE_BITS) < fire_threshold(config) / (1 << FIRE_BITS)
    dither = build.random(rule.dither) if rule.dither else None
    x = state[: config.channels]
    names = config.inputs
    input_formats = dict(zip(names, rule.input_formats, strict=True))

    def keep(name: str, value: Value) -> Value:
        fitted = value.fit(input_formats[name], rule.rounding, rule.overflow)
        return build.name(fitted, [f"input {name}"])

    seen = look(
        build,
        names,
        prediction=x[0],
        doubt=x[config.doubt] if "trust" in names else None,
        old=state[config.channels],
        age=state[config.channels + 1],
        sample=given[0],
        valid=given[1],
        trace_bits=config.trace_bits,
        keep=keep,
    )
    shown = build.concatenate([x, *seen.inputs])
    total = build.layer(rule.perceive, shown, rule)
    hidden = build.name(total, [f"hidden neuron h{i}" for i in range(config.hidden)])
    update = build.layer(rule.update, hidden, rule)
    if config.kind == "residual":
        build.name(update, [f"residual x{i}" for i in range(config.channels)])
        updated = (x + update).fit(rule.state_formats, rule.rounding, rule.overflow)
    else:
        candidate, gate = update[: config.channels], update[config.channels :]
        build.name(candidate, [f"candidate x{i}" for i in range(config.channels)])
        build.name(gate, [f"gate x{i}" for i in range(config.channels)])
        updated = gated_update(x, candidate, gate, rule.state_formats, rule.rounding, dither)
    if fires is not None:
        updated = build.where(fires, updated, x)
    build.name(updated, [f"channel x{i}" for i in range(config.channels)])
    after = [*updated, seen.last, seen.trace]
    return build.graph(dict(zip(config.channel_names, after, strict=True)))


def gated_update(
    x: Value,
    candidate: Value,
    gate: Value,
    formats: Sequence[QFormat],
    rounding: Rounding,
    dither: Value | None = None,
) -> Value:
    """Move x towards the candidate as far as the gate opens, and round or dither the way."""
    way = gate * (candidate - x)
    if dither is not None:
        units = x.builder.constant(*(2.0**-format.frac_bits for format in formats))
        way, rounding = way + dither * units, Rounding.TRN
    # One bit more than the state: it is the difference of two.
    wider = [QFormat(format.int_bits + 1, format.frac_bits) for format in formats]
    # It lies between what it was and the candidate: the last fit changes nothing.
    return (x + way.fit(wider, rounding)).fit(formats)


class _Builder(Builder):
    def not_negative(self, a: Value) -> Value:
        return a.maximum(0)

    def layer(self, layer: IntegerLayer, a: Value, rule: LayeredRule) -> Value:
        """Sum up with a layer's weights, and bring the sums to its formats."""
        scale = 2.0 ** -layer.weight_frac.astype(float)
        finest = max(format.frac_bits for format in layer.inputs)
        weight = layer.weight * scale[:, None, None]
        bias = layer.bias * scale * 2.0**-finest
        total = self.linear(a, weight, bias, rule.config.border)
        return total.fit(layer.outputs, rule.rounding, rule.overflow)
