"""A format for every tensor of a rule: what lies between a float rule and an integer rule."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding, required_bits
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule
from scotopia.model.start import NEURONS, has_verdict

from .layered_rule import IntegerLayer, LayeredRule, check_supported, update_formats

#: Most fraction bits of a weight or a hidden neuron: finer ones are as good as zero.
FINEST = 15

#: How many weights have a scale in common: those of an output; those with which it sees one of its
#: inputs, a kernel of nine in the first layer and a single weight in the second; or none.
SCALES = ("output", "kernel", "weight")

#: How much finer than the finest of its output's, at 8 bits, a scale may be. What is smaller is
#: rounded to zero, or accumulators would be as wide as their smallest weight wants.
_OWN = {"kernel": 8, "weight": 1}

#: Bits of the verdict on the doubt, and of the neuron that reads it, at least: a vote is blurred
#: until it is less than a sample's last bit, and must not be lost, see `model.start`.
VERDICT_BITS = 14

#: Formats of the weights of an output: one for all, one for each of its inputs, or one for each.
WeightFormats = QFormat | tuple[QFormat, ...]


@dataclass(frozen=True)
class Precision:
    """Word lengths in bits, each from 2 to 16.

    Attributes
    ----------
    weight
        Of every weight, sign included, but for those that `update` is given for.
    state
        Of every learned channel, of the sample, the flicker, the innovation and the recall, sign
        included.
    hidden, gate
        Of the hidden neurons; of the gate and the trust. Unsigned.
    update
        Of the weights whose errors add up in the state for as long as no sample corrects it, which
        are few: those of the second layer, and those with which the first sees the prediction.
        None: as `weight`.
    """

    weight: int = 8
    state: int = 10
    hidden: int = 8
    gate: int = 8
    update: int | None = None

    def __post_init__(self) -> None:
        for name, bits in self.given.items():
            if not 2 <= bits <= 16:
                raise InputError(f"{name} bits {bits} are outside 2 to 16: choose 8, for instance")

    @property
    def given(self) -> dict[str, int]:
        """What was given, by name."""
        return {name: bits for name, bits in vars(self).items() if bits is not None}


@dataclass(frozen=True)
class Formats:
    """How a rule is quantized, but for the values of its weights.

    Attributes
    ----------
    config
        Shape of the rule; its perception is full.
    state
        By learned channel.
    sample, gate
        See `LayeredRule`.
    inputs
        By `config.inputs`.
    hidden
        By neuron.
    perceive_weights, update_weights
        Of the weights of each output of the two layers: one format for all of them, one for each
        input, or one for each weight, see `by_weight`. Those of a gate hold the hard sigmoid's 1/4.
        A bias has as many bits as it needs.
    rounding, overflow
        Of every result in the integer rule; weights are rounded to nearest.
    dither, noise_seed
        See `LayeredRule`.
    """

    config: RuleConfig
    state: tuple[QFormat, ...]
    sample: QFormat
    inputs: tuple[QFormat, ...]
    hidden: tuple[QFormat, ...]
    gate: QFormat
    perceive_weights: tuple[WeightFormats, ...]
    update_weights: tuple[WeightFormats, ...]
    rounding: Rounding = Rounding.RND
    overflow: Overflow = Overflow.SAT
    dither: int = 0
    noise_seed: int = 1

    @classmethod
    def choose(
        cls,
        rule: Rule,
        hidden: Iterable[QFormat],
        precision: Precision,
        rounding: Rounding = Rounding.RND,
        overflow: Overflow = Overflow.SAT,
        scales: str = "output",
    ) -> "Formats":
        """Give all tensors of a kind the same width, and weights the finest scale they fit.

        Only a verdict has `VERDICT_BITS` at least.

        Scales are powers of two, one for each output of a layer, each of its kernels, or each
        weight: with one of its own, a weight of 2 bits is a power of two or zero.

        Parameters
        ----------
        scales
            One of `SCALES`.

        Raises
        ------
        InputError
            If a weight is not finite, `scales` is unknown, or an integer rule cannot have the
            rule's shape.
        """
        check_scales(scales)
        for name, parameter in rule.named_parameters():
            if not torch.isfinite(parameter).all():
                raise InputError(f"{name} of the rule is not finite: train it again")
        # A filtered perception equals the full one with its summed kernels.
        config = replace(rule.config, perception="full")
        check_supported(config)
        state = QFormat(1, precision.state - 1)
        inputs = {
            "trace": QFormat(0, config.trace_bits, signed=False),
            "valid": QFormat(1, 0, signed=False),
            "fresh": QFormat(1, 0, signed=False),
            "trust": QFormat(0, precision.gate, signed=False),
        }
        channels = [state] * config.channels
        if has_verdict(rule):
            channels[config.doubt + 1] = QFormat(1, max(precision.state, VERDICT_BITS) - 1)
        perceive, _, update, _ = (_array(tensor) for tensor in folded_layers(rule))
        of_perceive = weight_formats(perceive, precision.weight, scales)
        of_update = precision.update or precision.weight
        if precision.update:
            finer = weight_formats(perceive, precision.update, scales)
            of_perceive = _spliced(finer, of_perceive, perceive, config.pixels)
        return cls(
            config=config,
            state=tuple(channels),
            sample=state,
            inputs=tuple(inputs.get(name, state) for name in config.inputs),
            hidden=tuple(hidden),
            gate=QFormat(0, precision.gate, signed=False),
            perceive_weights=of_perceive,
            update_weights=weight_formats(update, of_update, scales),
            rounding=rounding,
            overflow=overflow,
        )

    @classmethod
    def of(cls, rule: LayeredRule) -> "Formats":
        """Return the formats of a rule; its weights are as wide as their codes need."""
        return cls(
            config=rule.config,
            state=rule.state_formats,
            sample=rule.sample_format,
            inputs=rule.input_formats,
            hidden=rule.perceive.outputs,
            gate=rule.gate_format,
            perceive_weights=formats_of(rule.perceive.weight, rule.perceive.weight_frac),
            update_weights=formats_of(rule.update.weight, rule.update.weight_frac),
            rounding=rule.rounding,
            overflow=rule.overflow,
            dither=rule.dither,
            noise_seed=rule.noise_seed,
        )

    @property
    def updates(self) -> tuple[QFormat, ...]:
        """Of the update layer's outputs."""
        return update_formats(self.config, self.state, self.gate)

    @property
    def weight_bits(self) -> int:
        """Bits of all weights together; biases and scales are not counted."""
        config = self.config
        perceive = by_weight(self.perceive_weights, config.perceived, 9)
        update = by_weight(self.update_weights, config.hidden, 1)
        return sum(format.bits for row in (*perceive, *update) for format in row)

    def integer_rule(self, rule: Rule) -> LayeredRule:
        """Round a float rule's weights to their formats.

        Raises
        ------
        InputError
            If a weight is not finite, or an accumulator would need more than 32 bits.
        """
        weight, bias, update_weight, update_bias = map(_array, folded_layers(rule))
        hidden, perceived = weight.shape[:2]
        return LayeredRule(
            config=self.config,
            state_formats=self.state,
            sample_format=self.sample,
            input_formats=self.inputs,
            gate_format=self.gate,
            perceive=_integer_layer(
                "perceive",
                weight.reshape(hidden, perceived, 9),
                bias,
                self.perceive_weights,
                self.state + self.inputs,
                self.hidden,
            ),
            update=_integer_layer(
                "update",
                update_weight.reshape(len(update_bias), hidden, 1),
                update_bias,
                self.update_weights,
                self.hidden,
                self.updates,
            ),
            rounding=self.rounding,
            overflow=self.overflow,
            dither=self.dither,
            noise_seed=self.noise_seed,
            training=rule.training_record,
        )


def hidden_bits(rule: Rule, bits: int) -> list[int]:
    """Give each hidden neuron `bits` bits, and what reads the verdict what that has."""
    widths = [bits] * rule.config.hidden
    if has_verdict(rule):
        widths[NEURONS] = max(bits, VERDICT_BITS)
    return widths


def check_scales(scales: str) -> None:
    """Raise InputError unless it is one of `SCALES`."""
    if scales not in SCALES:
        raise InputError(f"scales {scales!r} are unknown: choose one of {', '.join(SCALES)}")


def folded_layers(rule: Rule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and biases as `Rule.layers` has them, the hard sigmoid 1/2 + x/4 in the gates'."""
    perceive, perceive_bias, update, update_bias = Rule.layers(rule)
    if rule.config.kind == "residual":
        return perceive, perceive_bias, update, update_bias
    channels = rule.config.channels
    gate, gate_bias = update[channels:] / 4, update_bias[channels:] / 4 + 0.5
    return (
        perceive,
        perceive_bias,
        torch.cat([update[:channels], gate]),
        torch.cat([update_bias[:channels], gate_bias]),
    )


def weight_formats(
    weight: NDArray[np.float64], bits: int, scales: str = "output"
) -> tuple[WeightFormats, ...]:
    """Return the finest formats of `bits` bits for weights (O, I, ...) with such scales."""

    def finest_of(weights: NDArray[np.float64], most: int = FINEST) -> QFormat:
        frac = min(most, finest(float(np.abs(weights).max()), 2 ** (bits - 1) - 1))
        return QFormat(bits - frac, frac)

    if scales == "output":
        found: list[WeightFormats] = list(map(finest_of, weight))
    else:
        most = [min(FINEST, finest(float(np.abs(row).max()), 127) + _OWN[scales]) for row in weight]
        found = [
            tuple(finest_of(one, frac) for one in (row.ravel() if scales == "weight" else row))
            for row, frac in zip(weight, most, strict=True)
        ]
    return tuple(_coarsest(formats, row) for formats, row in zip(found, weight, strict=True))


def formats_of(codes: IntArray, fractions: IntArray) -> tuple[WeightFormats, ...]:
    """Return the formats of weights that are as wide as their codes need.

    Scales are by kernel or by weight where that takes fewer bits: a scale then leaves out what last
    bits are 0 in all of its weights, and all are as wide as the widest.

    Parameters
    ----------
    codes
        (O, I, K).
    fractions
        (O,) fraction bits of each output's codes.
    """
    outputs, inputs, taps = codes.shape
    widths = [_width(of_output) for of_output in codes]
    found: tuple[WeightFormats, ...] = tuple(
        QFormat(n - f, f) for n, f in zip(widths, fractions.tolist(), strict=True)
    )
    least = sum(widths) * inputs * taps
    for size in (taps, 1):
        groups = codes.reshape(outputs, -1, size)
        zeros, kept = _common_zeros(groups)
        width = _width(groups >> zeros[..., None])
        if width * codes.size >= least:
            continue
        least = width * codes.size
        left = fractions[:, None] - zeros + kept
        found = tuple(
            tuple(QFormat(n - f, f) for n, f in zip(*row, strict=True))
            for row in zip((width + kept).tolist(), left.tolist(), strict=True)
        )
    return found


def _spliced(
    first: tuple[WeightFormats, ...],
    others: tuple[WeightFormats, ...],
    weight: NDArray[np.float64],
    count: int,
) -> tuple[WeightFormats, ...]:
    """Take the formats of the first `count` inputs, of weights (O, I, ...), from `first`."""

    def spread(given: WeightFormats, inputs: int) -> tuple[QFormat, ...]:
        return (given,) * inputs if isinstance(given, QFormat) else given

    inputs = weight.shape[1]
    rows = ((spread(a, inputs), spread(b, inputs)) for a, b in zip(first, others, strict=True))
    return tuple(a[: len(a) // inputs * count] + b[len(b) // inputs * count :] for a, b in rows)


def _coarsest(formats: WeightFormats, weight: NDArray[np.float64]) -> WeightFormats:
    """Leave out what last bits are 0, if the formats hold all weights of an output exactly.

    Those that are exact were written down and not trained: fraction bits that they do not need
    would only lengthen the accumulator.
    """
    each = (formats,) if isinstance(formats, QFormat) else formats
    groups = weight.reshape(len(each), -1)
    codes = np.ldexp(groups, np.array([[format.frac_bits] for format in each]))
    if (codes != np.rint(codes)).any():
        return formats
    bits = np.bitwise_or.reduce(codes.astype(np.int64), axis=1)
    zeros = np.log2(np.maximum(bits & -bits, 1)).astype(int).tolist()
    frac = [f.frac_bits - zero for f, zero in zip(each, zeros, strict=True)]
    least = min([f for f, some in zip(frac, bits, strict=True) if some], default=0)
    frac = [f if some else least for f, some in zip(frac, bits, strict=True)]
    found = tuple(QFormat(old.bits - new, new) for old, new in zip(each, frac, strict=True))
    return found[0] if isinstance(formats, QFormat) else found


def by_weight(
    formats: Sequence[WeightFormats], inputs: int, taps: int
) -> tuple[tuple[QFormat, ...], ...]:
    """Return the format of each weight of each output, an input's taps beside one another."""

    def spread(given: WeightFormats) -> tuple[QFormat, ...]:
        if isinstance(given, QFormat):
            return (given,) * (inputs * taps)
        each = inputs * taps // len(given)
        return tuple(format for format in given for _ in range(each))

    return tuple(map(spread, formats))


def finest_frac(formats: WeightFormats) -> int:
    """Fraction bits of an output's accumulator, behind those of its inputs."""
    return max(f.frac_bits for f in ((formats,) if isinstance(formats, QFormat) else formats))


def unsigned_format(largest: float, bits: int) -> QFormat:
    """Return the finest unsigned format of `bits` bits that holds `largest`."""
    frac = finest(largest, 2**bits - 1)
    return QFormat(bits - frac, frac, signed=False)


def finest(largest: float, highest_code: int) -> int:
    """Most fraction bits, `FINEST` at most, at which `largest` rounds to `highest_code` or less."""
    frac = FINEST
    while np.rint(np.ldexp(largest, frac)) > highest_code:
        frac -= 1
    return frac


def bias_format(weights: WeightFormats, inputs: Iterable[QFormat]) -> QFormat:
    """Format of a bias: the accumulator's own scale, and all the bits there are."""
    frac = finest_frac(weights) + max(format.frac_bits for format in inputs)
    return QFormat(32 - frac, frac)


def _integer_layer(
    name: str,
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    formats: tuple[WeightFormats, ...],
    inputs: tuple[QFormat, ...],
    outputs: tuple[QFormat, ...],
) -> IntegerLayer:
    biases = [bias_format(format, inputs) for format in formats]
    fractions = [finest_frac(format) for format in formats]
    rows = by_weight(formats, *weight.shape[1:])
    try:
        return IntegerLayer(
            weight=np.array(
                [
                    # A coarser weight is a code of the output's scale that ends in zeros.
                    [
                        int(format.quantize(one)) << (frac - format.frac_bits)
                        for format, one in zip(row, of_output.ravel(), strict=True)
                    ]
                    for row, of_output, frac in zip(rows, weight, fractions, strict=True)
                ]
            ).reshape(weight.shape),
            weight_frac=np.array(fractions),
            bias=np.array(
                [int(f.quantize(np.array(b))) for f, b in zip(biases, bias, strict=True)]
            ),
            inputs=inputs,
            outputs=outputs,
        )
    except InputError as error:
        raise InputError(f"layer {name}: {error}") from error


def _common_zeros(weight: IntArray) -> tuple[IntArray, IntArray]:
    """Last bits that are 0 in all codes of a group, (O, G) of (O, G, K), and those to keep.

    0, if all codes are 0. Of an output's groups one keeps what all could do without, so that the
    bias keeps its scale.
    """
    bits = np.bitwise_or.reduce(weight, axis=2)
    zeros: IntArray = np.log2(np.maximum(bits & -bits, 1)).astype(np.int64)
    kept = np.zeros_like(zeros)
    rows = np.arange(len(zeros))
    finest = zeros.argmin(1)
    kept[rows, finest] = zeros[rows, finest]
    return zeros, kept


def _width(codes: IntArray) -> int:
    return max(2, required_bits(int(codes.min()), int(codes.max())))


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().numpy().astype(np.float64)
