"""What a step graph has of weights, and how often a cell multiplies by them."""

from collections.abc import Iterator
from math import gcd

import numpy as np
from numpy.typing import NDArray

from .operations import Linear
from .step import StepGraph


def parameters(graph: StepGraph) -> int:
    """Weights, and biases of the layers that have any; those of fixed filters, too."""
    return macs(graph) + sum(len(one.bias) for one in layers(graph) if one.bias.any())


def macs(graph: StepGraph) -> int:
    """Multiply-accumulates of a cell in a step, those with weights of 0 included."""
    return sum(weights(layer).size for layer in layers(graph))


def layers(graph: StepGraph) -> Iterator[Linear]:
    """Yield its weighted sums, in their order."""
    for _, operation in graph.of_kind(Linear):
        assert isinstance(operation, Linear)
        yield operation


def weights(layer: Linear) -> NDArray[np.float64]:
    """Return the weights that a layer of groups has, such as a depthwise one: (O, I / groups, K).

    Of groups, each of as many outputs and as many inputs in a row, none reads another's inputs.
    Those that would be between groups are 0 and count for nothing.
    """
    outputs, inputs, taps = layer.weight.shape
    if not layer.weight.any():
        return layer.weight
    for groups in range(gcd(outputs, inputs), 1, -1):
        if outputs % groups or inputs % groups:
            continue
        blocks = layer.weight.reshape(groups, outputs // groups, groups, inputs // groups, taps)
        own = np.arange(groups)
        others = blocks.copy()
        others[own, :, own] = 0
        if not others.any():
            return blocks[own, :, own].reshape(outputs, inputs // groups, taps)
    return layer.weight
