"""Integer rules of two layers, between named inputs and an update: their tensors and formats."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.file import pack_format, unpack_format
from scotopia.graph.intervals import Interval
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import Event, Initial
from scotopia.model.config import RuleConfig
from scotopia.model.files import check_training_record

from .integer_rule import IntegerRule, unpack_interval

#: Random bits that decide whether a cell fires.
FIRE_BITS = 8


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """One layer of integer weights: out = fit(round((weight . in + bias) / 2**shift)).

    Attributes
    ----------
    weight
        (O, I, K) codes: outputs, inputs, taps (9 neighbours in reading order, or the cell alone).
        The value of a weight is its code * 2**-weight_frac of its output.
    weight_frac
        (O,) fraction bits of each output's weights, so that scales are powers of two by channel.
    bias
        (O,) codes with `weight_frac` + (the inputs' largest frac_bits) fraction bits: the
        accumulator's own scale.
    inputs, outputs
        Formats of the I inputs and the O outputs.
    """

    weight: IntArray
    weight_frac: IntArray
    bias: IntArray
    inputs: tuple[QFormat, ...]
    outputs: tuple[QFormat, ...]

    def __post_init__(self) -> None:
        shape = (len(self.outputs), len(self.inputs))
        if self.weight.ndim != 3 or self.weight.shape[:2] != shape:
            raise InputError(
                f"weight has shape {self.weight.shape}, its formats ask for {shape} and a number "
                "of taps: write the rule again"
            )
        for name, vector in (("bias", self.bias), ("weight_frac", self.weight_frac)):
            if vector.shape != shape[:1]:
                raise InputError(
                    f"{name} has shape {vector.shape}, its formats ask for {shape[:1]}: "
                    "write the rule again"
                )
        for name, numbers in (("weight", self.weight), ("bias", self.bias)):
            for number in (numbers.min(), numbers.max()):
                if not -(2**31) <= number < 2**31:
                    raise InputError(
                        f"{name} reaches {number}, beyond 32 bits: quantize the rule again"
                    )
        for format in (*self.inputs, *self.outputs):
            if abs(format.frac_bits) > 31:
                raise InputError(
                    f"format {format} has more than 31 bits before or behind its point: "
                    "quantize the rule again"
                )
        if np.abs(self.weight_frac).max() > 31:
            raise InputError(
                f"weight_frac reaches {np.abs(self.weight_frac).max()}, the most is 31: "
                "quantize the rule again"
            )
        if self.accumulator_bound >= 2**31:
            raise InputError(
                f"an accumulator can reach {self.accumulator_bound}, that of output "
                f"{self._bounds.argmax()} of 0 to {len(self.outputs) - 1}, {self._too_much()}"
            )

    def _too_much(self) -> str:
        """Say how much is too much for an accumulator, and what helps."""
        output = self._bounds.argmax()
        products = self._products[output]
        if products.max() <= self._bounds.max() / 2:
            return "the most is 2**31 - 1: quantize with fewer bits"
        place = divmod(int(products.argmax()), products.shape[1])
        value = np.ldexp(float(self.weight[output][place]), -int(self.weight_frac[output]))
        return (
            f"more than half of it by its weight {value:g} of input {place[0]}, tap {place[1]}, "
            "the most is 2**31 - 1: train the rule again, to a smaller weight"
        )

    @cached_property
    def aligned(self) -> tuple[IntArray, IntArray, IntArray]:
        """Weights (O, I, K), biases (O,) and right shifts (O,), at least 0, on input codes alone.

        Inputs of different formats are brought to one scale by shifting their weights.
        """
        align, extra, shift = self._shifts
        return self.weight << align[:, :, None], self.bias << extra, shift

    @cached_property
    def _shifts(self) -> tuple[IntArray, IntArray, IntArray]:
        """Left shifts of weights (O, I) and of biases (O,), then right shifts of the sums (O,)."""
        in_frac = np.array([f.frac_bits for f in self.inputs])
        out_frac = np.array([f.frac_bits for f in self.outputs])
        shift = self.weight_frac + in_frac.max() - out_frac
        extra = np.maximum(-shift, 0)  # an output finer than its accumulator
        return (in_frac.max() - in_frac)[None, :] + extra[:, None], extra, shift + extra

    @property
    def accumulator_bound(self) -> int:
        """Largest magnitude of any partial sum, in any order, for inputs in their formats."""
        return int(self._bounds.max())

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        """`accumulator_bound` of each output, (O,)."""
        _, extra, shift = self._shifts
        bias = np.ldexp(np.abs(self.bias).astype(np.float64), extra)
        found: NDArray[np.float64] = (
            self._products.sum((1, 2)) + bias + np.ldexp(0.5, shift) * (shift > 0)
        )
        return found

    @cached_property
    def _products(self) -> NDArray[np.float64]:
        """Largest magnitudes of the products in the accumulators, (O, I, K).

        In floats, since formats far apart shift beyond any integer; below 2**53 they are exact.
        """
        largest = np.array([max(-f.lowest, f.highest) for f in self.inputs])
        codes = np.abs(self.weight).astype(np.float64)
        found: NDArray[np.float64] = np.ldexp(codes, self._shifts[0][..., None]) * largest[:, None]
        return found


@dataclass(frozen=True, eq=False)
class LayeredRule(IntegerRule):
    """Integer weights, a format for every tensor, and what they mean.

    Attributes
    ----------
    config
        Shape of the rule.
    state_formats
        Formats of the learned channels; signed, values in [-1, 1).
    sample_format
        Format of samples; signed, values in [-1, 1).
    input_formats
        Formats of what is perceived beside the learned channels, by `config.inputs`.
    gate_format
        Unsigned, values in [0, 1); unused by a residual rule.
    perceive, update
        The two layers. The update's outputs are the C candidates, then the C gates.
    rounding
        Of every shift to the right.
    overflow
        Of every result that is fitted to a format: inputs, layers' outputs, a residual rule's next
        state. Each clip of the float rule, ReLU included, is a SAT, and no other mode has it.
    dither
        Random bits (0 to 8, at most the gate's frac_bits) that are added below the last bit kept of
        a gated update, in place of rounding; 0 for rounding. A residual rule has none.
    noise_seed
        Seed of the registers that all random bits come from, 0 to 2**32 - 1; see `RowRegisters`.
    training
        How the float rule was trained; carried along, never read.
    proof
        See `IntegerRule`.
    """

    config: RuleConfig
    state_formats: tuple[QFormat, ...]
    sample_format: QFormat
    input_formats: tuple[QFormat, ...]
    gate_format: QFormat
    perceive: IntegerLayer
    update: IntegerLayer
    rounding: Rounding = Rounding.RND
    overflow: Overflow = Overflow.SAT
    dither: int = 0
    noise_seed: int = 1
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    proof: Mapping[str, Interval] | None = None

    def __post_init__(self) -> None:
        config = self.config
        for name, found, expected in (
            ("state_formats", len(self.state_formats), config.channels),
            ("input_formats", len(self.input_formats), len(config.inputs)),
            ("perceive inputs", len(self.perceive.inputs), config.perceived),
            ("perceive taps", self.perceive.weight.shape[2], 9),
            ("perceive outputs", len(self.perceive.outputs), config.hidden),
            ("update inputs", len(self.update.inputs), config.hidden),
            ("update taps", self.update.weight.shape[2], 1),
        ):
            if found != expected:
                raise InputError(
                    f"{name} number {found}, the rule asks for {expected}: write the rule again"
                )
        if self.update.outputs != update_formats(config, self.state_formats, self.gate_format):
            raise InputError("update outputs differ from the state's formats: write the rule again")
        check_supported(config)
        register = {"sample": self.sample_format, "trace": self.trace_format}
        for name, format in zip(config.inputs, self.input_formats, strict=True):
            if format != register.get(name, format):
                raise InputError(
                    f"input {name} has format {format}, its register {register[name]}: "
                    "choose the same, since the cells read the register"
                )
        if self.state_formats[0] != self.sample_format:
            raise InputError(
                f"prediction format {self.state_formats[0]} differs from sample format "
                f"{self.sample_format}: choose the same, since one predicts the other"
            )
        for format in self.state_formats:
            if not format.signed or format.int_bits != 1:
                raise InputError(
                    f"state format {format} is not signed with int_bits 1: choose Q1.7"
                )
        if self.gate_format.int_bits != 0:
            raise InputError(
                f"gate format {self.gate_format} has int_bits {self.gate_format.int_bits}, not 0: "
                "choose UQ0.8"
            )
        for format in (self.gate_format, *self.perceive.outputs):
            if format.signed:
                raise InputError(f"format {format} of gate or hidden is signed: choose UQ0.8")
        for name, highest in (("dither", 8), ("noise_seed", 2**32 - 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value <= highest:
                raise InputError(f"{name} {value} is outside 0 to {highest}: choose one inside")
        if self.dither and config.kind == "residual":
            raise InputError(
                f"dither {self.dither} is not defined in a residual rule, whose update needs no "
                "rounding: choose 0"
            )
        if self.dither > self.gate_format.frac_bits:
            raise InputError(
                f"dither {self.dither} is more than the {self.gate_format.frac_bits} fraction bits "
                f"of gate format {self.gate_format}: choose at most {self.gate_format.frac_bits}"
            )

    @cached_property
    def graph(self) -> StepGraph:  # type: ignore[override]
        """The step, written down as operations."""
        from .layered_graph import graph_of  # here: it needs this module

        return graph_of(self)

    @property
    def trace_format(self) -> QFormat:
        """Format of the trace: one code a step."""
        return QFormat(0, self.config.trace_bits, signed=False)

    @property
    def trust_format(self) -> QFormat:
        """Format of the input `trust`, of a rule that has one."""
        return self.input_formats[self.config.inputs.index("trust")]

    @property
    def channel_names(self) -> tuple[str, ...]:
        """See `IntegerRule`."""
        return self.config.channel_names

    @property
    def channel_formats(self) -> tuple[QFormat, ...]:
        """See `IntegerRule`."""
        return (*self.state_formats, self.sample_format, self.trace_format)

    @property
    def steps_per_frame(self) -> int:  # type: ignore[override]
        """See `IntegerRule`."""
        return self.config.steps_per_frame

    @property
    def events(self) -> tuple[Event, ...]:  # type: ignore[override]
        """See `IntegerRule`."""
        return (Event("sample", "valid"),)

    @property
    def initial(self) -> Initial:  # type: ignore[override]
        """See `IntegerRule`."""
        return Initial.zeros(len(self.config.channel_names))

    def with_steps(self, steps_per_frame: int) -> Self:
        """See `IntegerRule`."""
        config = dataclasses.replace(self.config, steps_per_frame=steps_per_frame)
        return dataclasses.replace(self, config=config)

    def with_packed_proof(self, proof: Any) -> Self:
        """See `IntegerRule`.

        Earlier versions wrote {"channels": [{"name", "range"}], "results": [{"name", ...}]}, with
        ranges of all that is computed; they follow from those of the channels.
        """
        if isinstance(proof, dict) and "results" in proof:
            for result in proof["results"]:
                for field in ("total", "partial", "rounded", "fitted"):
                    unpack_interval(result[field])
            proof = {entry["name"]: entry["range"] for entry in proof["channels"]}
        return super().with_packed_proof(proof)

    def pack(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """See `IntegerRule`."""
        description = {
            "config": dataclasses.asdict(self.config),
            "formats": {
                "state": [pack_format(f) for f in self.state_formats],
                "sample": pack_format(self.sample_format),
                "inputs": [pack_format(f) for f in self.input_formats],
                "hidden": [pack_format(f) for f in self.perceive.outputs],
                "gate": pack_format(self.gate_format),
            },
            "rounding": str(self.rounding),
            "overflow": str(self.overflow),
            "dither": self.dither,
            "noise_seed": self.noise_seed,
            "training": self.training,
            "proof": self.packed_proof,
        }
        tensors = {
            f"{name}.{field}": getattr(layer, field).astype(np.int32)
            for name, layer in (("perceive", self.perceive), ("update", self.update))
            for field in ("weight", "weight_frac", "bias")
        }
        return description, tensors

    @classmethod
    def unpack(cls, packed: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """See `IntegerRule`."""
        config = RuleConfig(**packed["config"])
        formats = packed["formats"]
        state = _unpack_all(formats["state"])
        inputs = _unpack_all(formats["inputs"])
        hidden = _unpack_all(formats["hidden"])
        gate = unpack_format(formats["gate"])
        rule = cls(
            config=config,
            state_formats=state,
            sample_format=unpack_format(formats["sample"]),
            input_formats=inputs,
            gate_format=gate,
            perceive=_load_layer(tensors, "perceive", state + inputs, hidden),
            update=_load_layer(tensors, "update", hidden, update_formats(config, state, gate)),
            rounding=Rounding(packed["rounding"]),
            overflow=Overflow(packed["overflow"]),
            dither=packed.get("dither", 0),  # older files have neither
            noise_seed=packed.get("noise_seed", 1),
            training=check_training_record(packed["training"]),
        )
        proof = packed.get("proof")  # older files have none
        return rule.with_proof() if proof is None else rule.with_packed_proof(proof)


def check_supported(config: RuleConfig) -> None:
    """Raise InputError unless integer rules of this shape are defined."""
    if config.block != 1 or config.perception != "full":
        raise InputError(
            f"block {config.block}, perception {config.perception} are not supported in an integer "
            "rule: choose 1, full"
        )
    if fire_threshold(config) == 0:
        raise InputError(
            f"fire_rate {config.fire_rate} rounds to 0/{1 << FIRE_BITS}: choose at least 0.002"
        )


def fire_threshold(config: RuleConfig) -> int:
    """How many of 256 draws let a cell fire: the fire rate in 256ths, rounded, ties to even."""
    return round(config.fire_rate * (1 << FIRE_BITS))


def update_formats(
    config: RuleConfig, state: tuple[QFormat, ...], gate: QFormat
) -> tuple[QFormat, ...]:
    """Formats of the update layer's outputs: candidates like the state, then gates.

    A residual has one more bit, because x + c may need all of -2 to 2 to reach any next state.
    """
    if config.kind == "residual":
        return tuple(QFormat(f.int_bits + 1, f.frac_bits) for f in state)
    return state + (gate,) * config.channels


def _load_layer(
    tensors: Mapping[str, NDArray[Any]],
    name: str,
    inputs: tuple[QFormat, ...],
    outputs: tuple[QFormat, ...],
) -> IntegerLayer:
    fields = {}
    for field in ("weight", "weight_frac", "bias"):
        tensor = tensors[f"{name}.{field}"]
        if not np.issubdtype(tensor.dtype, np.integer):
            raise InputError(f"{name}.{field} holds {tensor.dtype}, not integers: write it again")
        fields[field] = tensor.astype(np.int64)
    return IntegerLayer(**fields, inputs=inputs, outputs=outputs)


def _unpack_all(packed: list[Any]) -> tuple[QFormat, ...]:
    return tuple(map(unpack_format, packed))
