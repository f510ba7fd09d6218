"""The fake-quantized rule: floats that sit where the integer rule's codes are.

It computes the values of the golden model's codes, exactly: numbers that are kept have at most 16
bits, which floats hold, and sums and products are double precision (but on Apple's MPS, which has
none). It has gradients, by the straight-through
estimator (Bengio, Leonard, Courville: "Estimating or Propagating Gradients Through Stochastic
Neurons for Conditional Computation", 2013): rounding has the gradient 1, and a number that sits at
an end of its format has none. So it is what quantization-aware training trains.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.model.rule import PAD_MODE, Grids, Rule, recency
from scotopia.model.settle import Codes, settle

from .formats import Formats, bias_format, by_weight, folded_layers
from .layered_rule import LayeredRule

#: Floats of 24 bits hold a half beside any integer below this.
EXACT = 1 << 23


class FakeQuantRule(Rule):
    """A float rule seen through formats.

    Its parameters are the float rule's, not rounded, so that small steps of training add up. All
    tensors have the shapes and the meaning of `Rule`'s; states must sit on the grids of their
    formats, samples too, where `sense` has put them.
    """

    def __init__(self, rule: Rule, formats: Formats) -> None:
        super().__init__(formats.config)
        self.formats = formats
        self.dither = formats.dither
        self.training_record = rule.training_record
        layers = Rule.layers(rule)
        self.to(layers[0].dtype)
        with torch.no_grad():
            for mine, given in zip(Rule.layers(self), layers, strict=True):
                mine.copy_(given)
        #: `fused` knows the modes that hardware uses.
        self.fusible = formats.overflow is Overflow.SAT and formats.rounding in (
            Rounding.RND,
            Rounding.TRN,
        )
        if self.fusible:
            every = (*formats.inputs, *formats.hidden, *formats.updates, *formats.state)
            rows = torch.tensor([_grid(format) for format in every])
            self.grids = Grids(rows, 0.5 if formats.rounding is Rounding.RND else 0.0)

    @classmethod
    def of(cls, integer: LayeredRule) -> "FakeQuantRule":
        """Return the twin of an integer rule, in float64."""
        rule = Rule(integer.config).double()
        with torch.no_grad():
            for part, layer in ((rule.perceive, integer.perceive), (rule.update, integer.update)):
                assert part.bias is not None
                scale = torch.from_numpy(2.0 ** -layer.weight_frac.astype(float))
                codes = torch.from_numpy(layer.weight).double().reshape(part.weight.shape)
                part.weight.copy_(codes * scale[:, None, None, None])
                unit = 2.0 ** -max(format.frac_bits for format in layer.inputs)
                part.bias.copy_(torch.from_numpy(layer.bias).double() * scale * unit)
            if integer.config.kind == "gated":  # take the hard sigmoid out again
                channels = integer.config.channels
                assert rule.update.bias is not None
                rule.update.weight[channels:] *= 4
                rule.update.bias[channels:] = 4 * (rule.update.bias[channels:] - 0.5)
        rule.training_record = integer.training
        return cls(rule, Formats.of(integer))

    def sense(self, samples: Tensor) -> Tensor:
        """Put samples on the grid of their format, as `LayeredRule.sample_codes`."""
        format = self.formats.sample
        eight_bit = torch.round((samples + 1) * 128) - 128
        return torch.floor(eight_bit * 2.0 ** (format.frac_bits - 7)) * 2.0**-format.frac_bits

    def integer_rule(self) -> LayeredRule:
        """Return the integer rule that this one is the twin of."""
        return self.formats.integer_rule(self)

    def layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and biases on their grids, the hard sigmoid in the gates'."""
        formats = self.formats
        weight, bias, update_weight, update_bias = folded_layers(self)
        seen = formats.state + formats.inputs
        return (
            _round(weight, by_weight(formats.perceive_weights, weight.shape[1], 9)),
            _round(bias, [(bias_format(f, seen),) for f in formats.perceive_weights]),
            _round(update_weight, by_weight(formats.update_weights, update_weight.shape[1], 1)),
            _round(
                update_bias, [(bias_format(f, formats.hidden),) for f in formats.update_weights]
            ),
        )

    def needs_doubles(self, layers: tuple[Tensor, Tensor, Tensor, Tensor]) -> bool:
        """Whether a sum or product with these `layers` may need more bits than floats have."""
        formats = self.formats
        kept = (*formats.state, *formats.inputs, *formats.updates)
        if 2 ** (2 * max(format.bits for format in kept) + 1) >= EXACT:
            return True
        for weight, bias, seen, written in (
            (*layers[:2], formats.state + formats.inputs, formats.perceive_weights),
            (*layers[2:], formats.hidden, formats.update_weights),
        ):
            largest = [max(-f.lowest, f.highest) * 2.0**-f.frac_bits for f in seen]
            units = [2.0 ** bias_format(f, seen).frac_bits for f in written]
            sums = weight.detach().abs().sum((2, 3)) @ weight.new_tensor(largest)
            codes = (sums + bias.detach().abs()) * weight.new_tensor(units)
            if codes.max() >= EXACT:
                return True
        return False

    def forward(
        self,
        state: Tensor,
        sample: Tensor,
        valid: Tensor,
        fired: Tensor | None = None,
        dither: Tensor | None = None,
    ) -> Tensor:
        """Do one step, as `LayeredRule.step`.

        Parameters
        ----------
        state, sample, valid, fired
            See `Rule.forward`.
        dither
            (B, 1, H, W) in [0, 1): what is added below the last bit of the gated update, in place
            of rounding.
        """
        formats, channels = self.formats, self.config.channels
        x, last, age = state[:, :channels], state[:, channels:-1], state[:, -1:]
        arrived = valid > 0
        register = torch.where(arrived, sample, last)
        tick = 2.0**-self.config.trace_bits
        trace = torch.where(arrived, 1 - tick, (age - tick).clamp(min=0))
        flicker = torch.where(age > 0, register - last, torch.zeros_like(last))
        surprise = register - x[:, :1]
        shown = {
            "sample": register,
            "trace": trace,
            "valid": arrived.to(x.dtype),
            "fresh": (arrived & (age < 1 - tick)).to(x.dtype),
            "flicker": flicker,
            "innovation": valid * surprise,
        }
        for name, format in zip(self.config.inputs, formats.inputs, strict=True):
            if name == "trust":
                doubt = x[:, self.config.doubt : self.config.doubt + 1]
                shown[name] = recency(trace) - 4 * doubt
            elif name == "recall":
                shown[name] = _exact(shown["trust"]) * surprise
            shown[name] = self._settle(shown[name], (format,))

        seen = torch.cat([x, *(shown[name] for name in self.config.inputs)], 1)
        padded = F.pad(seen, (1, 1, 1, 1), mode=PAD_MODE[self.config.border])
        weight, bias, update_weight, update_bias = self.layers()
        hidden = self._settle(_exact_conv2d(padded, weight, bias), formats.hidden)
        update = self._settle(_exact_conv2d(hidden, update_weight, update_bias), formats.updates)
        if self.config.kind == "residual":
            updated = self._settle(x + update, formats.state)
        else:
            candidate, gate = update.chunk(2, 1)
            updated = x + self._round_way(_exact(gate) * (candidate - x), dither)
        if fired is not None:
            updated = torch.where(fired > 0, updated, x)
        return torch.cat([updated, register, trace], 1)

    def _settle(self, values: Tensor, formats: Sequence[QFormat]) -> Tensor:
        grids = Codes(formats, values, self.formats.rounding, self.formats.overflow)
        return settle(values, grids).to(self.update.weight.dtype)

    def _round_way(self, way: Tensor, dither: Tensor | None) -> Tensor:
        """Round what is added to the state; it never leaves the format, so nothing is clipped."""
        codes = Codes(self.formats.state, way, self.formats.rounding, None)
        if dither is not None:
            codes.rounding = Rounding.TRN
            way = way + dither * codes.unit
        return settle(way, codes).to(self.update.weight.dtype)


def _exact(tensor: Tensor) -> Tensor:
    """Return the tensor in the precision that sums and products need."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _exact_conv2d(seen: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(_exact(seen), _exact(weight), _exact(bias))


def _grid(format: QFormat) -> list[float]:
    """Row of `Grids` of a format."""
    unit = math.ldexp(1, -format.frac_bits)
    return [1 / unit, unit, format.lowest * unit, format.highest * unit]


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        codes = torch.floor(_exact(values) * scale + 0.5)
        ctx.save_for_backward((codes >= lowest) & (codes <= highest))
        return (torch.minimum(torch.maximum(codes, lowest), highest) / scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def _round(values: Tensor, formats: Sequence[Sequence[QFormat]]) -> Tensor:
    """Round weights (O, ...) or biases (O,), each to its format."""

    def column(number: Callable[[QFormat], float]) -> Tensor:
        numbers = [[number(format) for format in row] for row in formats]
        return _exact(torch.tensor(numbers, device=values.device)).reshape(values.shape)

    rounded: Tensor = _Nearest.apply(  # type: ignore[no-untyped-call]
        values,
        column(lambda format: math.ldexp(1, format.frac_bits)),
        column(lambda format: format.lowest),
        column(lambda format: format.highest),
    )
    return rounded
