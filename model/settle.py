"""Numbers brought to formats, as floats with a gradient: what `Fit` is in PyTorch.

By the straight-through estimator (Bengio, Léonard, Courville: "Estimating or Propagating Gradients
Through Stochastic Neurons for Conditional Computation", 2013): rounding has the gradient 1, and a
number that sits at an end of its format has none, unless it cannot have been clipped there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.graph.intervals import with_any_weights
from scotopia.graph.operations import Fit
from scotopia.graph.qformat import Overflow, QFormat, Rounding, round_up
from scotopia.graph.step import StepGraph

#: Whether a number can be clipped at the lowest code of its format, and at the highest.
Ends = tuple[bool, bool]


def clipped_ends(graph: StepGraph) -> dict[int, Ends]:
    """Where the words that a graph brings to formats can be clipped, whatever its weights are.

    Anywhere, if nothing is known of what it computes, for its channels have no formats.
    """
    try:
        ranges = with_any_weights(graph)
    except InputError:
        ranges = None
    found = {}
    for index, fit in graph.of_kind(Fit):
        assert isinstance(fit, Fit)
        for word in graph.words(index):
            below = above = fit.overflow is not Overflow.WRAP
            if ranges:
                below &= ranges.clips_below(word)
                above &= ranges.clips_above(word)
            found[word] = below, above
    return found


class Codes:
    """Formats of the channels of a (B, C, H, W) tensor, and what becomes of what does not fit.

    Parameters
    ----------
    like
        A tensor of the type and on the device of what will be settled.
    ends
        Where each can be clipped.
    """

    def __init__(
        self,
        formats: Sequence[QFormat],
        like: Tensor,
        rounding: Rounding,
        overflow: Overflow,
        ends: Sequence[Ends],
    ) -> None:
        def column(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]

        self.rounding, self.overflow = rounding, overflow
        self.scale = column([math.ldexp(1, format.frac_bits) for format in formats])
        self.unit = column([math.ldexp(1, -format.frac_bits) for format in formats])
        symmetric = overflow is Overflow.SAT_SYM
        self.lowest = column([f.lowest + (symmetric and f.signed) for f in formats])
        self.highest = column([f.highest for f in formats])
        # What is at or beyond these may have been clipped.
        below, above = (
            torch.tensor(which, device=like.device)[:, None, None]
            for which in zip(*ends, strict=True)
        )
        self.first = self.lowest.where(below, -math.inf)
        self.last = self.highest.where(above, math.inf)


def settle(values: Tensor, codes: Codes) -> Tensor:
    """Bring values (B, C, H, W) to formats: first rounded, then into range.

    Exact where the tensor's type holds the value in units of half a code.
    """
    settled: Tensor = _Settle.apply(values, codes)  # type: ignore[no-untyped-call]
    return settled


class _Settle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, codes: Codes) -> Tensor:
        scaled = values * codes.scale
        floor = scaled.floor()
        code = floor + round_up(codes.rounding, floor, scaled - floor, 0.5)
        if codes.overflow is Overflow.WRAP:
            span = codes.highest - codes.lowest + 1
            code = (code - codes.lowest) % span + codes.lowest
        else:
            code = torch.minimum(torch.maximum(code, codes.lowest), codes.highest)
            ctx.save_for_backward((code > codes.first) & (code < codes.last))
        settled: Tensor = code * codes.unit
        return settled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        for inside in ctx.saved_tensors:
            gradient = gradient * inside
        return gradient, None
