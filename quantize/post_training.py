"""Post-training quantization: formats from calibration, power-of-two scales by channel."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.model.errors import InputError
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.task import run
from scotopia.model.video import Clip

from .integer_rule import IntegerLayer, IntegerRule, check_supported, update_formats
from .qformat import QFormat, Rounding


@dataclass(frozen=True)
class Precision:
    """Word lengths in bits, each from 2 to 16.

    Attributes
    ----------
    weight
        Of every weight, sign included.
    state
        Of every learned channel, of the sample, the innovation and the recall, sign included.
    hidden, gate
        Of the hidden neurons and of the gate; unsigned.
    """

    weight: int = 12
    state: int = 8
    hidden: int = 8
    gate: int = 8

    def __post_init__(self) -> None:
        for name in ("weight", "state", "hidden", "gate"):
            if not 2 <= getattr(self, name) <= 16:
                raise InputError(
                    f"{name} bits {getattr(self, name)} are outside 2 to 16: choose 8, for instance"
                )


def quantize(
    rule: Rule,
    hidden_ranges: NDArray[np.float64],
    precision: Precision | None = None,
    rounding: Rounding = Rounding.RND,
) -> IntegerRule:
    """Turn a float rule into an integer rule, without retraining.

    Parameters
    ----------
    hidden_ranges
        (hidden,) the largest value that each hidden neuron needs, from `calibrate`.
    rounding
        Of every shift to the right in the integer rule; weights are rounded to nearest.

    Raises
    ------
    InputError
        If a weight or a range is not finite, or an accumulator would need more than 32 bits.
    """
    for name, parameter in rule.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"{name} of the rule is not finite: train it again")
    if not np.isfinite(hidden_ranges).all():
        raise InputError("the range of a hidden neuron is not finite: calibrate again")
    bits = precision or Precision()
    # A filtered perception equals the full one with its summed kernels.
    config = dataclasses.replace(rule.config, perception="full")
    check_supported(config)
    state = (QFormat(1, bits.state - 1),) * config.channels
    sample = QFormat(1, bits.state - 1)
    formats = {
        "sample": sample,
        "trace": QFormat(0, config.trace_bits, signed=False),
        "valid": QFormat(1, 0, signed=False),
        "flicker": sample,
        "innovation": sample,
        "trust": QFormat(0, bits.gate, signed=False),
        "recall": sample,
    }
    inputs = tuple(formats[name] for name in config.inputs)
    hidden = tuple(unsigned_format(largest, bits.hidden) for largest in hidden_ranges)
    gate = QFormat(0, bits.gate, signed=False)

    weight, bias = _array(rule.update.weight), _array(rule.update.bias)
    if config.kind == "gated":  # the hard sigmoid, 1/2 + x/4, becomes part of the gate's weights
        weight[config.channels :] /= 4
        bias[config.channels :] = bias[config.channels :] / 4 + 0.5
    return IntegerRule(
        config=config,
        state_formats=state,
        sample_format=sample,
        input_formats=inputs,
        gate_format=gate,
        perceive=quantize_layer(
            _array(rule.perceive.weight).reshape(config.hidden, config.perceived, 9),
            _array(rule.perceive.bias),
            state + inputs,
            hidden,
            bits.weight,
        ),
        update=quantize_layer(
            weight.reshape(config.updates, config.hidden, 1),
            bias,
            hidden,
            update_formats(config, state, gate),
            bits.weight,
        ),
        rounding=rounding,
        training=rule.training_record,
    )


def quantize_layer(
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    inputs: tuple[QFormat, ...],
    outputs: tuple[QFormat, ...],
    bits: int,
) -> IntegerLayer:
    """Give each output the finest power-of-two scale at which its weights fit `bits` bits."""
    largest = np.abs(weight).max((1, 2))
    # The bias has no part in the scale: the accumulator has room for it.
    frac = np.array([_frac_bits(value, 2 ** (bits - 1) - 1) for value in largest])
    bias_frac = frac + max(f.frac_bits for f in inputs)
    return IntegerLayer(
        weight=np.rint(np.ldexp(weight, frac[:, None, None])).astype(np.int64),
        weight_frac=frac,
        bias=np.rint(np.ldexp(bias, bias_frac)).astype(np.int64),
        inputs=inputs,
        outputs=outputs,
    )


def unsigned_format(largest: float, bits: int) -> QFormat:
    """Return the finest unsigned format of `bits` bits that holds `largest`."""
    frac_bits = _frac_bits(largest, 2**bits - 1)
    return QFormat(bits - frac_bits, frac_bits, signed=False)


def _frac_bits(largest: float, highest_code: int) -> int:
    """Most fraction bits, 15 at the most, at which `largest` rounds to `highest_code` or less."""
    frac_bits = 15
    while np.rint(np.ldexp(largest, frac_bits)) > highest_code:
        frac_bits -= 1
    return frac_bits


def calibrate(
    rule: Rule,
    clips: Sequence[Clip],
    density: float = 0.01,
    seed: int = 0,
    percentile: float = 99.99,
) -> NDArray[np.float64]:
    """Run the float rule over clips and return what each hidden neuron needs, (hidden,).

    That is a high percentile of its activations: the very largest are worth clipping.

    Raises
    ------
    InputError
        If there is no clip.
    """
    if not clips:
        raise InputError("the calibration set is empty: give at least one clip")
    activations: list[Tensor] = []
    hook = rule.perceive.register_forward_hook(lambda _module, _input, out: activations.append(out))
    try:
        largest = []
        for clip in clips:
            activations.clear()
            mask = sample_mask(clip.frames.shape, density, seed)
            for _ in run(rule, clip.frames, mask):
                pass
            by_neuron = torch.cat(activations).transpose(0, 1).flatten(1).clamp(min=0)
            largest.append(np.percentile(by_neuron[:, ::7].numpy(), percentile, axis=1))
    finally:
        hook.remove()
    ranges: NDArray[np.float64] = np.max(largest, axis=0)
    return ranges


def _array(parameter: Tensor | None) -> NDArray[np.float64]:
    assert parameter is not None, "both layers have a bias"
    return parameter.detach().cpu().numpy().astype(np.float64)
