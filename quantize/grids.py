"""Weights on the grids of their formats, as floats with a gradient.

By the straight-through estimator, as in `model.settle`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scotopia.graph.qformat import QFormat


class Grids:
    """Formats of the single numbers of a tensor.

    Parameters
    ----------
    formats
        One for each number of a tensor, row by row; or one for all.
    """

    def __init__(self, formats: Sequence[QFormat]) -> None:
        def column(number: Callable[[QFormat], float]) -> Tensor:
            return torch.tensor([number(format) for format in formats], dtype=torch.float64)

        self._columns: tuple[Tensor, ...] = (
            column(lambda format: math.ldexp(1, format.frac_bits)),
            column(lambda format: format.lowest),
            column(lambda format: format.highest),
        )

    def columns(self, device: torch.device) -> tuple[Tensor, ...]:
        """Scales, lowest and highest codes, in double precision."""
        if self._columns[0].device != device:
            self._columns = tuple(one.to(device) for one in self._columns)
        return self._columns

    def round(self, values: Tensor) -> Tensor:
        """Round numbers to their formats, to nearest; those that are clipped have no gradient."""
        rounded: Tensor = _Nearest.apply(values, self)  # type: ignore[no-untyped-call]
        return rounded


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, grids: Grids) -> Tensor:
        # Doubles hold all codes: elsewhere, if there are none where the tensor is.
        device = (
            values.device if exact_type(values.device) is torch.float64 else torch.device("cpu")
        )
        scale, lowest, highest = grids.columns(device)
        codes = torch.floor(values.detach().to(device).double().flatten() * scale + 0.5)
        inside = (codes >= lowest) & (codes <= highest)
        ctx.save_for_backward(inside.reshape(values.shape).to(values.device))
        codes = torch.minimum(torch.maximum(codes, lowest), highest)
        return (codes / scale).reshape(values.shape).to(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None


def exact_type(device: torch.device) -> torch.dtype:
    """Type in which steps are computed: exact, but on Apple's MPS, which has no doubles."""
    return torch.float32 if device.type == "mps" else torch.float64
