"""The integer rule: the one contract between the float world and the gates.

`IntegerRule.step` is **the golden model**. Every other implementation (the array's program, the
Amaranth cell, the emitted Verilog) derives from this object, and where one disagrees, it is wrong.
It loads without torch.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding, shift_right
from scotopia.graph.step import StepGraph
from scotopia.model.config import RuleConfig
from scotopia.model.files import check_training_record, read_rule_file, write_rule_file

if TYPE_CHECKING:
    from .ranges import RangeProof

#: Random bits that decide whether a cell fires.
FIRE_BITS = 8

_PAD_MODE = {"zero": "constant", "replicate": "edge", "wrap": "wrap"}


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

    def __call__(
        self, taps: IntArray, rounding: Rounding, overflow: Overflow = Overflow.SAT
    ) -> IntArray:
        """Map input codes (..., I, K, N) of N cells to output codes (..., O, N)."""
        rounded = shift_right(self.totals(taps), self.aligned[2][:, None], rounding)
        return _fit_all(rounded, self.outputs, overflow)

    def totals(self, taps: IntArray) -> IntArray:
        """Sums of products and biases, (..., O, N): what the accumulators hold in the end."""
        weight, bias, _ = self.aligned
        # Floats are fast here, and exact: no sum can leave the integers that they hold.
        exact: type[np.floating[Any]] = np.float32 if self.accumulator_bound < 2**24 else np.float64
        flat = taps.reshape(*taps.shape[:-3], -1, taps.shape[-1]).astype(exact)
        total = (weight.reshape(len(weight), -1).astype(exact) @ flat).astype(np.int64)
        return total + bias[:, None]


@dataclass(frozen=True, eq=False)
class IntegerRule:
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
        Ranges of all that it computes, from `ranges.with_proof`, or None. Checked when a file is
        loaded; who changes a weight has to prove the rule again.
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
    proof: "RangeProof | None" = None

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
    def graph(self) -> StepGraph:
        """The step, written down as operations."""
        from .version_1 import graph_of  # here: it needs this module

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
    def channel_formats(self) -> tuple[QFormat, ...]:
        """Formats of all state channels, in the order of `config.channel_names`."""
        return (*self.state_formats, self.sample_format, self.trace_format)

    @property
    def state_bits(self) -> int:
        """Bits that a cell keeps from frame to frame, valid flag included."""
        return sum(format.bits for format in self.channel_formats) + 1

    @property
    def noise_planes(self) -> int:
        """Random bits that a cell takes in each step: 8 if not all cells fire, then the dither."""
        return FIRE_BITS * (self.config.fire_rate < 1) + self.dither

    def initial_state(self, height: int, width: int) -> IntArray:
        """Return the state before the first sample, (C, H, W): all codes 0."""
        return np.zeros((len(self.channel_formats), height, width), np.int64)

    def sample_codes(self, pixels: NDArray[np.floating]) -> IntArray:
        """Codes of pixels in [0, 1], any shape: what the sensor's converter delivers.

        An 8-bit pixel p becomes p - 128; a narrower sample format drops low bits.
        """
        eight_bit = np.rint(np.asarray(pixels, np.float64) * 255).astype(np.int64) - 128
        shift = 7 - self.sample_format.frac_bits
        return eight_bit >> shift if shift >= 0 else eight_bit << -shift

    def pixels(self, prediction: IntArray) -> NDArray[np.float32]:
        """Pixels in [0, 1] of prediction codes, any shape."""
        values = self.state_formats[0].values(prediction)
        return np.clip((values + 1) * (128 / 255), 0, 1).astype(np.float32)

    def step(
        self,
        state: IntArray,
        sample: IntArray,
        valid: NDArray[np.bool_],
        noise: IntArray | None = None,
    ) -> IntArray:
        """Do one step: the golden model.

        Parameters
        ----------
        state
            (..., C, H, W) codes in `channel_formats`.
        sample
            (..., H, W) codes in `sample_format` of this frame's samples; read where valid.
        valid
            (..., H, W) where a pixel arrived in this frame. Both are held for all its steps.
        noise
            (..., noise_planes, H, W) of 0 and 1, new for each step; may be None if the rule takes
            none. Where fire_rate is below 1, the first 8 planes, most significant first, are a
            number: a cell fires where it is below `fire_threshold`, else it keeps its learned
            channels. The last `dither` planes, most significant first, are the bits that all
            channels of a cell add below the last bit of their update.

        Returns
        -------
        The next state, of the same shape.

        Raises
        ------
        ValueError
            If the noise has another number of planes.
        """
        planes = 0 if noise is None else noise.shape[-3]
        if planes != self.noise_planes:
            raise ValueError(f"noise has {planes} planes, the rule takes {self.noise_planes}")
        channels = self.config.channels
        x = state[..., :channels, :, :]
        old, age = state[..., channels, :, :], state[..., channels + 1, :, :]
        last = np.where(valid, sample, old)
        trace = np.where(valid, self.trace_format.highest, np.maximum(age - 1, 0))
        flicker = np.where(age > 0, last - old, 0)

        fresh = valid & (age < self.trace_format.highest)
        inputs = self.inputs(x, last, trace, valid, fresh, flicker)
        seen = np.concatenate([x, inputs], axis=-3)
        hidden = self.perceive(self.neighbourhood(seen), self.rounding, self.overflow)
        update = self.update(hidden[..., None, :], self.rounding, self.overflow).reshape(
            *x.shape[:-3], -1, *x.shape[-2:]
        )
        updated = self.apply_update(x, update, noise)
        if noise is not None and self.config.fire_rate < 1:
            updated = np.where(self.fires(noise), updated, x)
        register = np.stack([last, trace], axis=-3)
        return np.concatenate([updated, register], axis=-3)

    def fires(self, noise: IntArray) -> NDArray[np.bool_]:
        """Where cells update, (..., 1, H, W), if `config.fire_rate` is below 1."""
        fires: NDArray[np.bool_] = plane_number(noise[..., :FIRE_BITS, :, :]) < fire_threshold(
            self.config
        )
        return fires

    def inputs(
        self,
        x: IntArray,
        last: IntArray,
        trace: IntArray,
        valid: NDArray[np.bool_],
        fresh: NDArray[np.bool_],
        flicker: IntArray,
    ) -> IntArray:
        """Codes of `config.inputs`, (..., inputs, H, W)."""
        surprise = last - x[..., 0, :, :]
        frac = self.sample_format.frac_bits
        codes: dict[str, tuple[IntArray, int]] = {  # name: code, fraction bits
            "sample": (last, frac),
            "trace": (trace, self.trace_format.frac_bits),
            "valid": (valid.astype(np.int64), 0),
            "fresh": (fresh.astype(np.int64), 0),
            "flicker": (flicker, frac),
            "innovation": (valid * surprise, frac),
        }
        out: list[IntArray] = []
        for name, format in zip(self.config.inputs, self.input_formats, strict=True):
            if name == "trust":
                codes[name] = self.trust(x[..., self.config.doubt, :, :], trace)
            elif name == "recall":
                product = out[-1] * surprise  # with the trust, which is the input before
                codes[name] = (product, frac + self.trust_format.frac_bits)
            code, code_frac = codes[name]
            shift = code_frac - format.frac_bits
            if shift < 0:
                code, shift = code << -shift, 0
            out.append(format.fit(shift_right(code, shift, self.rounding), self.overflow))
        return np.stack(out, axis=-3) if out else x[..., :0, :, :]

    def trust(self, doubt: IntArray, trace: IntArray) -> tuple[IntArray, int]:
        """Code of recency(trace) - 4 doubt, not yet clipped, and its fraction bits."""
        bits = self.trace_format.frac_bits
        fast = np.maximum(8 * trace - (7 << bits), 0)
        fastest = np.maximum(64 * trace - (63 << bits), 0)
        doubt_frac = self.state_formats[self.config.doubt].frac_bits
        frac = max(bits, doubt_frac)
        recency = (trace + fast + 2 * fastest) << (frac - bits)
        return recency - (4 * doubt << (frac - doubt_frac)), frac

    def neighbourhood(self, seen: IntArray) -> IntArray:
        """The nine neighbours of every cell, (..., I, H, W) to (..., I, 9, H * W).

        In reading order: north-west first, the cell itself fifth.
        """
        height, width = seen.shape[-2:]
        border = [(0, 0)] * (seen.ndim - 2) + [(1, 1), (1, 1)]
        padded = np.pad(seen, border, mode=_PAD_MODE[self.config.border])  # type: ignore[call-overload]
        taps = [
            padded[..., dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)
        ]
        stacked: IntArray = np.stack(taps, axis=-3)
        return stacked.reshape(*stacked.shape[:-2], height * width)

    def apply_update(
        self, x: IntArray, update: IntArray, noise: IntArray | None = None
    ) -> IntArray:
        """Move x towards the candidate as far as the gate opens, or by the residual."""
        channels = self.config.channels
        if self.config.kind == "residual":
            moved = [
                format.fit(x[..., i, :, :] + update[..., i, :, :], self.overflow)
                for i, format in enumerate(self.state_formats)
            ]
            return np.stack(moved, axis=-3)
        candidate, gate = update[..., :channels, :, :], update[..., channels:, :, :]
        way, frac, rounding = gate * (candidate - x), self.gate_format.frac_bits, self.rounding
        if noise is not None and self.dither:
            below = plane_number(noise[..., -self.dither :, :, :]) << (frac - self.dither)
            way, rounding = way + below, Rounding.TRN
        # A gate is below 1: however rounded, the way ends at the candidate. Nothing is fitted.
        return x + shift_right(way, frac, rounding)

    def save(self, path: Path) -> None:
        """Write the rule to one file, whole or not at all."""
        description = {
            "config": dataclasses.asdict(self.config),
            "formats": {
                "state": [_pack(f) for f in self.state_formats],
                "sample": _pack(self.sample_format),
                "inputs": [_pack(f) for f in self.input_formats],
                "hidden": [_pack(f) for f in self.perceive.outputs],
                "gate": _pack(self.gate_format),
            },
            "rounding": str(self.rounding),
            "overflow": str(self.overflow),
            "dither": self.dither,
            "noise_seed": self.noise_seed,
            "training": self.training,
            "proof": self.proof and self.proof.pack(),
        }
        tensors = {
            f"{name}.{field}": getattr(layer, field).astype(np.int32)
            for name, layer in (("perceive", self.perceive), ("update", self.update))
            for field in ("weight", "weight_frac", "bias")
        }
        write_rule_file(path, "integer rule", description, tensors)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a rule.

        Raises
        ------
        InputError
            If the file is no integer rule of this version, contradicts itself, holds a range
            proof that is wrong, or none and none can be found.
        """
        description, tensors = read_rule_file(path, "integer rule")
        try:
            config = RuleConfig(**description["config"])
            formats = description["formats"]
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
                rounding=Rounding(description["rounding"]),
                overflow=Overflow(description["overflow"]),
                dither=description.get("dither", 0),  # older files have neither
                noise_seed=description.get("noise_seed", 1),
                training=check_training_record(description["training"]),
            )
            from .ranges import RangeProof, check, prove  # here: ranges needs this module

            if description.get("proof") is None:  # older files have none
                return dataclasses.replace(rule, proof=prove(rule))
            proof = RangeProof.unpack(description["proof"])
            check(rule, proof)
            return dataclasses.replace(rule, proof=proof)
        except InputError as error:
            raise InputError(f"rule {path}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"rule {path} has no valid description ({error!r}): write it again"
            ) from error


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


def _fit_all(codes: IntArray, formats: tuple[QFormat, ...], overflow: Overflow) -> IntArray:
    """Bring codes (..., O, N) into the range of the format of each of O, as `QFormat.fit` does."""
    lowest = np.array([f.lowest for f in formats])[:, None]
    highest = np.array([f.highest for f in formats])[:, None]
    if overflow is Overflow.WRAP:
        wrapped: IntArray = (codes - lowest) % (highest - lowest + 1) + lowest
        return wrapped
    if overflow is Overflow.SAT_SYM:
        lowest = lowest + (lowest < 0)
    return np.clip(codes, lowest, highest).astype(np.int64, copy=False)


def plane_number(planes: IntArray) -> IntArray:
    """Numbers (..., 1, H, W) of which planes (..., N, H, W) are the bits, the highest first."""
    weight = 1 << np.arange(planes.shape[-3])[::-1]
    numbers: IntArray = (planes * weight[:, None, None]).sum(-3, keepdims=True)
    return numbers


def _load_layer(
    tensors: dict[str, NDArray[Any]],
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


def _pack(format: QFormat) -> list[int | bool]:
    return [format.int_bits, format.frac_bits, format.signed]


def unpack_format(packed: Any) -> QFormat:
    """Format from JSON, [int_bits, frac_bits, signed]; ValueError, if it is something else."""
    if not isinstance(packed, list) or [type(field) for field in packed] != [int, int, bool]:
        raise ValueError(f"{packed} is no format")
    return QFormat(*packed)


def _unpack_all(packed: list[Any]) -> tuple[QFormat, ...]:
    return tuple(map(unpack_format, packed))
