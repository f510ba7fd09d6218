"""Numbers brought to formats, as floats with a gradient: what `Fit` is in PyTorch.

By the straight-through estimator (Bengio, Léonard, Courville: "Estimating or Propagating Gradients
Through Stochastic Neurons for Conditional Computation", 2013): rounding has the gradient 1, and a
number that sits at an end of its format has none.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scotopia.graph.qformat import Overflow, QFormat, Rounding, round_up


class Codes:
    """Formats of the channels of a (B, C, H, W) tensor, and what becomes of what does not fit.

    Parameters
    ----------
    like
        A tensor of the type and on the device of what will be settled.
    overflow
        None, if everything is known to fit.
    """

    def __init__(
        self,
        formats: Sequence[QFormat],
        like: Tensor,
        rounding: Rounding,
        overflow: Overflow | None,
    ) -> None:
        def column(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]

        self.rounding, self.overflow = rounding, overflow
        self.scale = column([math.ldexp(1, format.frac_bits) for format in formats])
        self.unit = column([math.ldexp(1, -format.frac_bits) for format in formats])
        symmetric = overflow is Overflow.SAT_SYM
        self.lowest = column([f.lowest + (symmetric and f.signed) for f in formats])
        self.highest = column([f.highest for f in formats])


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
        elif codes.overflow is not None:
            code = torch.minimum(torch.maximum(code, codes.lowest), codes.highest)
            ctx.save_for_backward((code > codes.lowest) & (code < codes.highest))
        settled: Tensor = code * codes.unit
        return settled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        for inside in ctx.saved_tensors:
            gradient = gradient * inside
        return gradient, None
