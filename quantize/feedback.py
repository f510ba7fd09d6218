"""Rounding of weights with error feedback: what one weight loses, those after it make up for.

Rounded to nearest, each weight on its own, the errors of an output add up. Here the weights of an
output are rounded one after the other, and all that are still to come, the bias too, are corrected
so that the sum which they are weights of changes least in mean square, over the inputs that were
measured: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2023), section 3; B. Hassibi and D. Stork, "Second Order Derivatives for Network
Pruning: Optimal Brain Surgeon" (1992), eq. 5. It needs one run over some clips, and no gradient.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule

from .formats import Formats, WeightFormats, by_weight, folded_layers

#: One step in so many is kept, a number that has no factor in common with the steps of a frame.
_STEPS = 5

#: One cell in so many is kept.
_CELLS = 3

#: Share of the mean square of the inputs that is added to each: none is quite what others say.
_DAMPING = 1e-6

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Mean products of what a layer sees, two at a time.

    Attributes
    ----------
    perceive
        (9 * perceived + 1)**2: the inputs' neighbours in the order of the weights, then a 1.
    update
        (hidden + 1)**2: the neurons, then a 1.
    """

    perceive: Array
    update: Array

    def scaled(self, scales: Array) -> "Moments":
        """Return those of a rule whose first inputs are `scales` times as large."""
        factors = np.ones(len(self.perceive))
        factors[: 9 * len(scales)] = np.repeat(scales, 9)
        return Moments(self.perceive * np.outer(factors, factors), self.update)


class Sums:
    """Products of what the layers of a rule see, summed up step by step."""

    def __init__(self, config: RuleConfig) -> None:
        sizes = 9 * config.perceived + 1, config.hidden + 1
        self._sums = [np.zeros((size, size)) for size in sizes]
        self._steps = 0

    def add(self, seen: Tensor, out: Tensor) -> None:
        """Take a step, if it is its turn: what the first layer sees, (1, C, H, W), and gives."""
        self._steps += 1
        if self._steps % _STEPS == 0:
            found = F.unfold(seen, 3)[0], out.clamp(min=0)[0].flatten(1)
            for total, numbers in zip(self._sums, found, strict=True):
                taken = numbers[:, ::_CELLS].double().numpy()
                taken = np.vstack([taken, np.ones(taken.shape[1])])
                total += taken @ taken.T

    def moments(self) -> Moments:
        """Return the means."""
        perceive, update = (total / max(total[-1, -1], 1) for total in self._sums)
        return Moments(perceive, update)


@torch.no_grad()
def round_weights(rule: Rule, formats: Formats, moments: Moments) -> Rule:
    """Return the rule with all weights on the grids of their formats, its biases corrected.

    `formats.integer_rule` and `FakeQuantRule` round these no further.
    """
    result = Rule(formats.config).double()
    result.training_record = copy.copy(rule.training_record)
    perceive, perceive_bias, update, update_bias = (
        tensor.detach().double().numpy() for tensor in folded_layers(rule)
    )
    layers = (
        (perceive, perceive_bias, formats.perceive_weights, moments.perceive),
        (update, update_bias, formats.update_weights, moments.update),
    )
    found: list[Tensor] = []
    for weight, bias, of_outputs, seen in layers:
        flat = weight.reshape(len(weight), -1)
        rounded, corrected = _feed_back(flat, bias, seen, _rounder(of_outputs, weight.shape[1:]))
        found += [torch.from_numpy(rounded.reshape(weight.shape)), torch.from_numpy(corrected)]
    if formats.config.kind == "gated":  # take the hard sigmoid out again
        channels = formats.config.channels
        found[2][channels:] *= 4
        found[3][channels:] = 4 * (found[3][channels:] - 0.5)
    for mine, tensor in zip(Rule.layers(result), found, strict=True):
        mine.copy_(tensor)
    return result.to(folded_layers(rule)[0].dtype)


def _rounder(
    formats: tuple[WeightFormats, ...], shape: tuple[int, ...]
) -> Callable[[Array, int], Array]:
    """Return what rounds the weights of all outputs, (O,), for one of their inputs' taps."""
    rows = by_weight(formats, shape[0], math.prod(shape[1:]))
    frac, lowest, highest = (
        np.array([[getattr(format, name) for format in row] for row in rows])
        for name in ("frac_bits", "lowest", "highest")
    )

    def to_grid(weights: Array, place: int) -> Array:
        at = np.s_[:, place]
        codes = np.floor(np.ldexp(weights, frac[at]) + 0.5)
        values: Array = np.ldexp(np.clip(codes, lowest[at], highest[at]), -frac[at])
        return values

    return to_grid


def _feed_back(
    weight: Array, bias: Array, seen: Array, to_grid: Callable[[Array, int], Array]
) -> tuple[Array, Array]:
    """Round (O, N) weights, the inputs with most power first, and correct the (O,) biases."""
    count = weight.shape[1]
    power = np.diag(seen)[:count]
    order = np.append(np.argsort(-power, kind="stable"), count)  # the bias last: it is not rounded
    damped = seen + np.diag(np.append(np.full(count, _DAMPING * max(power.mean(), 1e-12)), 0))
    # Of the inverse with all rounded inputs left out, the first row: one triangle holds them all.
    ahead = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left = np.hstack([weight, bias[:, None]])[:, order]
    for k, place in enumerate(order[:-1]):
        rounded = to_grid(left[:, k], int(place))
        left[:, k + 1 :] -= np.outer((left[:, k] - rounded) / ahead[k, k], ahead[k, k + 1 :])
        left[:, k] = rounded
    result = np.empty_like(left)
    result[:, order] = left
    return result[:, :count], result[:, count]
