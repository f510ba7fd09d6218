"""The fake-quantized scotopic rule: floats that sit where the integer rule's codes are.

As `fake_graph`, with the parameters of the float rule, which it is trained from and for.
"""

from functools import cached_property

import torch
from torch import Tensor

from scotopia.graph.step import StepGraph
from scotopia.model.interpret import Interpreter
from scotopia.model.rule import Rule

from .formats import Formats, bias_format, by_weight, folded_layers
from .grids import Grids, exact_type
from .layered_rule import LayeredRule


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
        seen = formats.state + formats.inputs
        perceived, hidden = formats.config.perceived, formats.config.hidden
        self._grids = [
            Grids(
                [one for row in by_weight(formats.perceive_weights, perceived, 9) for one in row]
            ),
            Grids([bias_format(f, seen) for f in formats.perceive_weights]),
            Grids([one for row in by_weight(formats.update_weights, hidden, 1) for one in row]),
            Grids([bias_format(f, formats.hidden) for f in formats.update_weights]),
        ]

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
        parts = zip(self._grids, folded_layers(self), strict=True)
        weight, bias, update_weight, update_bias = (grids.round(part) for grids, part in parts)
        return weight, bias, update_weight, update_bias

    @cached_property
    def graph(self) -> StepGraph:
        """The integer rule's graph, with the weights that this one had at first."""
        return self.integer_rule().graph

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
        kind = exact_type(state.device)
        weights = {
            index: tuple(part.to(kind) for part in parts) for index, parts in self.weights().items()
        }
        noise = self.noise(fired, dither)
        after = self._run(
            state.to(kind),
            {"sample": sample[:, 0].to(kind), "valid": valid[:, 0].to(kind)},
            None if noise is None else noise.to(kind),
            weights,
        )
        return after.to(state.dtype)

    @cached_property
    def _run(self) -> Interpreter:
        return Interpreter(self.graph)
