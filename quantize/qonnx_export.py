"""The integer rule as QONNX, and back.

QONNX (Pappalardo et al., "QONNX: Representing Arbitrary-Precision Quantized Neural Networks", 2022)
is ONNX with `Quant` nodes: q = clamp(x / scale) rounded, times scale, in float32. Tensors carry
values, not codes; since every scale is a power of two and every sum fits float32's 24 bits, or is
stated as two that do, a value is exactly its code * 2**-frac_bits, and the graph computes the
golden model bit for bit. Formats,
scales and codes are read back from the `Quant` nodes. Needs the package `onnx`; `qonnx` runs it.
"""

import dataclasses
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.file import unpack_format
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding, required_bits
from scotopia.model.config import RuleConfig
from scotopia.model.files import check_training_record
from scotopia.model.onnx_export import (
    QONNX,
    STATED,
    StepGraph,
    check_same,
    one_line,
    read_model,
    read_tensors,
    refuse_unstated,
    write_model,
)

from .layered_rule import IntegerLayer, LayeredRule

#: `rounding_mode` of a Quant node, and what of a last bit is added before it. QONNX's HALF_UP and
#: HALF_DOWN go by magnitude: of its modes none has ties towards plus or minus infinity, but FLOOR
#: has after half a bit was added, and CEIL after it was taken off.
ROUNDING_MODE = {
    Rounding.TRN: ("FLOOR", 0.0),
    Rounding.TRN_ZERO: ("DOWN", 0.0),
    Rounding.RND: ("FLOOR", 0.5),
    Rounding.RND_ZERO: ("HALF_DOWN", 0.0),
    Rounding.RND_INF: ("HALF_UP", 0.0),
    Rounding.RND_MIN_INF: ("CEIL", -0.5),
    Rounding.RND_CONV: ("ROUND", 0.0),
}

#: What float32 holds exactly: integers below this.
EXACT = 1 << 24

#: Widest format: half a bit beside its codes still is exact.
MOST_BITS = 23

#: Fields of an integer rule that a graph or its metadata can state, whatever their value.
RULE_FIELDS = frozenset(
    (
        *("config", "state_formats", "sample_format", "input_formats", "gate_format"),
        *("perceive", "update", "rounding", "overflow", "noise_seed", "training", "proof"),
    )
)


def export_qonnx(rule: LayeredRule, path: Path, height: int = 16, width: int = 16) -> None:
    """Write one step of the rule, on H x W cells, to a QONNX model, whole or not at all.

    Inputs are `state` (1, C, H, W), `sample` and `valid`, both (1, 1, H, W), finite everywhere;
    output is `next_state`: values, float32, with the meaning of `LayeredRule.step`. The size is
    fixed because QONNX's tools ask for every shape; it is no part of the rule.

    Raises
    ------
    InputError
        If a step of the rule is more than QONNX can state, if a number in it is more than float32
        holds exactly, or if the package `onnx` is missing.
    """
    check_size(height, width)
    check_exportable(rule)
    write_model(path, qonnx_graph(rule, height, width).model("integer rule", describe(rule)))


def import_qonnx(path: Path) -> LayeredRule:
    """Read a rule from a model that `export_qonnx` wrote: equal in every field.

    Codes and formats come from the graph; the shape and what no node states (a residual rule's
    gate format, the noise seed, the training, the range proof) from the metadata. A range proof is
    checked again.

    Raises
    ------
    InputError
        If the file is no such model, of another version, or was changed.
    """
    model, description = read_model(path, "integer rule")
    try:
        _, _, height, width = (
            axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim
        )
        check_size(height, width)
        rule = _read_rule(model, description)
        check_exportable(rule)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"model {path} holds no rule ({one_line(error)}): export it again") from (
            error
        )
    check_same(path, model, qonnx_graph(rule, height, width))
    return rule


def check_size(height: int, width: int) -> None:
    """Raise InputError unless an array can have that many rows and columns."""
    for name, side in (("height", height), ("width", width)):
        if not 1 <= side <= 1024:
            raise InputError(f"{name} {side} is outside 1 to 1024: choose one inside")


def check_exportable(rule: LayeredRule) -> None:
    """Raise InputError unless the graph of `rule` computes exactly what the rule does."""
    refuse_unstated(rule.config, STATED - {"block", "perception"})
    refuse_unstated(rule, RULE_FIELDS)
    if rule.overflow is Overflow.WRAP:
        raise InputError("overflow WRAP has no Quant node, which clamps: choose SAT or SAT_SYM")
    named = {
        "state": rule.state_formats,
        "trace": (rule.trace_format,),
        "input": rule.input_formats,
        "hidden": rule.perceive.outputs,
        "update": rule.update.outputs,
    }
    for name, formats in named.items():
        for format in formats:
            if format.bits > MOST_BITS or (format.signed and format.bits == 1):
                raise InputError(
                    f"{name} format {format} has {format.bits} bits, QONNX in float32 holds 2 to "
                    f"{MOST_BITS} signed and 1 to {MOST_BITS} unsigned: choose others"
                )
    for name, layer in (("perceive", rule.perceive), ("update", rule.update)):
        try:
            fine_bits(layer)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    for name, bound in _bounds(rule).items():
        if bound >= EXACT:
            raise InputError(
                f"{name} can reach {bound}, float32 is exact below {EXACT}: "
                "quantize with fewer bits"
            )


def _bounds(rule: LayeredRule) -> dict[str, int]:
    """Largest magnitudes of what is rounded, as integers, with the half that is added to it."""
    bounds = {}
    frac = rule.sample_format.frac_bits
    surprise = 1 << rule.sample_format.bits
    sources = {name: (1, 0) for name in ("valid", "fresh")}
    sources |= {name: (surprise, frac) for name in ("flicker", "innovation")}
    if "trust" in rule.config.inputs:
        doubt = rule.state_formats[rule.config.doubt]
        finest = max(rule.trace_format.frac_bits, doubt.frac_bits)
        sources["trust"] = 8 << finest, finest  # 4 of recency, and 4 times the doubt
        sources["recall"] = surprise << rule.trust_format.bits, frac + rule.trust_format.frac_bits
    for name, format in zip(rule.config.inputs, rule.input_formats, strict=True):
        if name in sources:
            magnitude, source_frac = sources[name]
            half = (1 << max(0, source_frac - format.frac_bits)) >> 1
            bounds[f"input {name}"] = magnitude + half
    if rule.config.kind == "gated":
        # Neither factor reaches the power of two, and the half is less than what that takes away.
        widest = max(format.bits for format in rule.state_formats)
        bounds["a gated update"] = (1 << (widest + rule.gate_format.bits)) - 1
    return bounds


class QuantGraph(StepGraph):
    """ONNX graph of one step, with Quant nodes."""

    def __init__(self, rule: LayeredRule, height: int, width: int) -> None:
        super().__init__(rule.config, 1, height, width)
        self.rule = rule

    def quant(
        self,
        tensor: str,
        to: str,
        scale: NDArray[np.float64],
        bits: int,
        signed: bool = True,
        narrow: bool = False,
        mode: str = "ROUND",
    ) -> str:
        """Add a Quant node; the scale's shape fits the tensor's."""
        return self.node(
            "Quant",
            tensor,
            self.constant(f"{to}.scale", scale),
            self.constant("zero", 0),
            self.constant(f"{to}.bits", bits),
            to=to,
            shape=self.shapes[tensor],
            domain=QONNX,
            signed=int(signed),
            narrow=int(narrow),
            rounding_mode=mode,
        )

    def round(self, tensor: str, to: str, formats: tuple[QFormat, ...]) -> str:
        """Round values as the rule does, then clamp them to their channels' formats."""
        mode, half = ROUNDING_MODE[self.rule.rounding]
        if half:
            name = self.constant(f"{to}.half", _column(half * _scale(formats)))
            tensor = self.node("Add", tensor, name, to=f"{to}_to_round")
        return self.fit(tensor, to, formats, mode)

    def fit(
        self,
        tensor: str,
        to: str,
        formats: tuple[QFormat, ...],
        mode: str = "ROUND",
        overflow: Overflow | None = None,
    ) -> str:
        """Clamp values to their channels' formats, by default as the rule's overflow says.

        By Quant nodes with a scale by channel, but one width: one for each run of equal widths.
        """
        narrow = (overflow or self.rule.overflow) is Overflow.SAT_SYM
        runs = [list(run) for _, run in groupby(formats, lambda f: (f.bits, f.signed))]
        names = [to] if len(runs) == 1 else [f"{to}.run{i}" for i in range(len(runs))]
        parts = [tensor]
        if len(runs) > 1:
            parts = [f"{tensor}.run{i}" for i in range(len(runs))]
            self.split(tensor, **{part: len(run) for part, run in zip(parts, runs, strict=True)})
        for part, name, run in zip(parts, names, runs, strict=True):
            bits, signed = run[0].bits, run[0].signed
            self.quant(part, name, _column(_scale(run)), bits, signed, narrow and signed, mode)
        return to if len(runs) == 1 else self.concat(names, to=to)

    def layer(self, layer: IntegerLayer, tensor: str, name: str, side: int, to: str) -> str:
        """Add a convolution by quantized weights, whose sums are exact.

        A sum that float32 does not hold is stated as two: of the lowest bits of weights and bias,
        and of the others, in multiples of a larger unit. Of the first, the second gets whole units,
        and half a unit where something is left: of that, rounding asks no more.
        """
        fine = fine_bits(layer)
        if not fine.any():
            return self.convolution(layer, layer.weight, layer.bias, tensor, name, side, to)
        low_weight, low_bias = _low_parts(layer, fine)
        high_weight, high_bias = layer.weight - low_weight, layer.bias - low_bias
        low = self.convolution(
            layer, low_weight, low_bias, tensor, f"{name}.fine", side, f"{to}.fine"
        )
        high = self.convolution(layer, high_weight, high_bias, tensor, name, side, f"{to}.coarse")
        unit = np.ldexp(_unit(layer), fine)
        bits = EXACT.bit_length()
        carry = self.quant(low, f"{to}.carry", _column(unit), bits, mode="FLOOR")
        left = self.node("Sub", low, carry, to=f"{to}.left")
        half = self.constant(f"{to}.half_unit", _column(np.where(fine, unit / 2, 0)))
        sign = self.node("Sign", left, to=f"{to}.has_left")
        sticky = self.node("Mul", sign, half, to=f"{to}.sticky")
        carried = self.node("Add", high, carry, to=f"{to}.carried")
        return self.node("Add", carried, sticky, to=to)

    def convolution(
        self,
        layer: IntegerLayer,
        weight: IntArray,
        bias: IntArray,
        tensor: str,
        name: str,
        side: int,
        to: str,
    ) -> str:
        """Add a convolution by weights and biases in units of a layer's."""
        scale = np.ldexp(1.0, -layer.weight_frac)
        parameters = [
            self.quant(
                self.constant(f"{name}.{part}", codes * unit),
                f"{name}.{part}.quant",
                unit,
                # One bit would mean -1 and +1.
                max(2, required_bits(int(codes.min()), int(codes.max()))),
            )
            for part, codes, unit in (
                (
                    "weight",
                    weight.reshape(*weight.shape[:2], side, side),
                    scale[:, None, None, None],
                ),
                ("bias", bias, _unit(layer)),
            )
        ]
        shape = self.cells(len(layer.outputs))
        return self.node("Conv", tensor, *parameters, to=to, shape=shape)


def fine_bits(layer: IntegerLayer) -> IntArray:
    """Lowest bits of each output's sum that are summed on their own, (O,): 0 where all fit.

    As few as will do, and fewer than rounding drops, so that what is left of them tells rounding no
    more than whether it is 0.

    Raises
    ------
    InputError
        If two sums in float32 cannot be exact.
    """
    largest = np.array([max(-format.lowest, format.highest) for format in layer.inputs])
    dropped = layer.weight_frac + _finest(layer) - [format.frac_bits for format in layer.outputs]
    weights = layer.weight << _alignment(layer)[:, None]

    def bounds(output: int, fine: int) -> tuple[int, int]:
        """Largest magnitudes of both sums; the upper one in halves of its unit, if there are two.

        With the carry, and the half that rounding adds.
        """
        weight, bias = weights[output], int(layer.bias[output])
        low_bits = (1 << fine) - 1
        low = int((weight & low_bits).sum(1) @ largest) + (bias & low_bits)
        high = int(np.abs(weight >> fine).sum(1) @ largest) + abs(bias >> fine)
        half = (1 << max(0, int(dropped[output]) - fine)) >> 1
        if fine == 0:
            return 0, high + half
        return low, 2 * (high + (low >> fine) + 1 + half) + 1

    found = []
    for output, most in enumerate(dropped):
        choices = range(max(1, int(most)))
        exact = (fine for fine in choices if max(bounds(output, fine)) < EXACT)
        if (fine := next(exact, None)) is None:
            raise InputError(
                f"output {output} can sum up to {bounds(output, 0)[1]}, which is more than two "
                f"sums in float32, exact below {EXACT}, can hold: quantize with fewer bits"
            )
        found.append(fine)
    return np.array(found)


def _low_parts(layer: IntegerLayer, fine: IntArray) -> tuple[IntArray, IntArray]:
    """What of a layer's weights and biases are the `fine` lowest bits of its accumulators."""
    align, low_bits = _alignment(layer)[:, None], (1 << fine) - 1
    return ((layer.weight << align) & low_bits[:, None, None]) >> align, layer.bias & low_bits


def _finest(layer: IntegerLayer) -> int:
    return max(format.frac_bits for format in layer.inputs)


def _alignment(layer: IntegerLayer) -> IntArray:
    """Bits by which weights are shifted to the unit of their accumulator, (I,)."""
    return np.array([_finest(layer) - format.frac_bits for format in layer.inputs])


def _unit(layer: IntegerLayer) -> NDArray[np.float64]:
    """Unit of each output's accumulator and bias, (O,)."""
    return np.ldexp(1.0, -layer.weight_frac - _finest(layer))


def qonnx_graph(rule: LayeredRule, height: int, width: int) -> QuantGraph:
    """One step of an integer rule that `check_exportable` passes."""
    config, channels = rule.config, rule.config.channels
    graph = QuantGraph(rule, height, width)

    def given(tensor: str, to: str, formats: tuple[QFormat, ...]) -> str:
        """State the formats of an input, whose codes may be the lowest even with SAT_SYM."""
        return graph.fit(tensor, to, formats, overflow=Overflow.SAT)

    graph.split("state", x_in=channels, old_sample_in=1, old_trace_in=1)
    x = given("x_in", "x", rule.state_formats)
    old_sample = given("old_sample_in", "old_sample", (rule.sample_format,))
    old_trace = given("old_trace_in", "old_trace", (rule.trace_format,))
    arriving = given("sample", "arriving_sample", (rule.sample_format,))
    valid = given("valid", "arrives", (QFormat(1, 0, signed=False),))
    formats = dict(zip(config.inputs, rule.input_formats, strict=True))

    def fit(name: str, tensor: str) -> str:
        return graph.round(tensor, f"input.{name}", (formats[name],))

    sample, trace, flicker = graph.latch(arriving, valid, old_sample, old_trace)
    padded = graph.perception(x, sample, trace, valid, old_trace, flicker, fit)
    total = graph.layer(rule.perceive, padded, "perceive", 3, to="hidden_sum")
    rectified = graph.node("Relu", total, to="hidden_relu")
    hidden = graph.round(rectified, "hidden", rule.perceive.outputs)
    total = graph.layer(rule.update, hidden, "update", 1, to="update_sum")
    update = graph.round(total, "update", rule.update.outputs)

    if config.kind == "residual":
        moved = graph.node("Add", x, update, to="moved")
        new_x = graph.fit(moved, "new_x", rule.state_formats)
    else:
        graph.split(update, candidate=channels, gate=channels)
        way = graph.node("Sub", "candidate", x, to="way")
        product = graph.node("Mul", "gate", way, to="gated_way")
        # Wide enough for every move: none is clamped, and none leads beyond the candidate.
        wider = tuple(QFormat(f.int_bits + 1, f.frac_bits) for f in rule.state_formats)
        move = graph.round(product, "move", wider)
        new_x = graph.node("Add", x, move, to="new_x")
    graph.concat([new_x, sample, trace], to="next_state")
    return graph


def describe(rule: LayeredRule) -> str:
    """JSON of what no node of the graph states, and of what says how to read it."""
    gate = rule.gate_format
    return json.dumps(
        {
            "config": dataclasses.asdict(rule.config),
            "gate_format": [gate.int_bits, gate.frac_bits, gate.signed],
            "rounding": str(rule.rounding),
            "overflow": str(rule.overflow),
            "noise_seed": rule.noise_seed,
            "training": rule.training,
            "proof": rule.packed_proof,
        }
    )


def _read_rule(model: Any, description: dict[str, Any]) -> LayeredRule:
    config = RuleConfig(**description["config"])
    tensors = read_tensors(model)
    quants = {node.name: node for node in model.graph.node if node.op_type == "Quant"}

    def read_formats(tensor: str) -> tuple[QFormat, ...]:
        """Formats of a tensor's channels, from one Quant node or from those of its runs."""
        runs = [name for name in quants if name.startswith(f"{tensor}.run")]
        formats: list[QFormat] = []
        for name in runs or [tensor]:
            signed = {entry.name: entry.i for entry in quants[name].attribute}["signed"]
            bits = int(tensors[f"{name}.bits"])
            fracs = _frac_bits(tensors[f"{name}.scale"]).ravel().tolist()
            formats += [QFormat(bits - frac, frac, bool(signed)) for frac in fracs]
        return tuple(formats)

    def read_layer(
        name: str, inputs: tuple[QFormat, ...], outputs: tuple[QFormat, ...]
    ) -> IntegerLayer:
        codes = []
        for part in ("weight", "bias"):
            frac = _frac_bits(tensors[f"{name}.{part}.quant.scale"])
            value = tensors[f"{name}.{part}"].astype(float)
            value += tensors.get(f"{name}.fine.{part}", 0)
            with np.errstate(invalid="ignore"):  # too large ones are refused as codes
                codes.append(np.ldexp(value, frac).astype(int))
        weight, bias = codes
        return IntegerLayer(
            weight=weight.reshape(*weight.shape[:2], -1),
            weight_frac=_frac_bits(tensors[f"{name}.weight.quant.scale"]).ravel(),
            bias=bias,
            inputs=inputs,
            outputs=outputs,
        )

    state = read_formats("x")
    inputs = tuple(read_formats(f"input.{name}")[0] for name in config.inputs)
    hidden = read_formats("hidden")
    rule = LayeredRule(
        config=config,
        state_formats=state,
        sample_format=read_formats("old_sample")[0],
        input_formats=inputs,
        gate_format=unpack_format(description["gate_format"]),
        perceive=read_layer("perceive", state + inputs, hidden),
        update=read_layer("update", hidden, read_formats("update")),
        rounding=Rounding(description["rounding"]),
        overflow=Overflow(description["overflow"]),
        noise_seed=description["noise_seed"],
        training=check_training_record(description["training"]),
    )
    proof = description["proof"]
    return rule if proof is None else rule.with_packed_proof(proof)


def _scale(formats: tuple[QFormat, ...] | list[QFormat]) -> NDArray[np.float64]:
    return np.ldexp(1.0, [-format.frac_bits for format in formats])


def _column(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return numbers.reshape(1, -1, 1, 1)


def _frac_bits(scale: NDArray[np.float32]) -> IntArray:
    """Fraction bits of power-of-two scales; others are found out by comparing the graphs."""
    return 1 - np.frexp(scale)[1].astype(np.int64)
