"""The golden model: a step graph on codes, in NumPy's integers.

What it computes is right by definition. It is exact as long as no word needs more than 63 bits,
which `intervals.prove` checks.
"""

from collections.abc import Callable, Mapping

import numpy as np

from .lfsr import plane_number
from .operations import (
    AROUND,
    Add,
    Border,
    Channel,
    Constant,
    Fit,
    Input,
    Less,
    Linear,
    Maximum,
    Minimum,
    Multiply,
    Operation,
    Random,
    Select,
    Subtract,
    Window,
    Words,
)
from .qformat import IntArray, Overflow, QFormat, shift_right
from .step import StepGraph

_PAD: dict[Border, str] = {
    "zero": "constant",
    "replicate": "edge",
    "wrap": "wrap",
    "reflect": "reflect",
}

#: Is told what an operation computed, (..., L, H, W): what compares codes with a proof.
Watch = Callable[[int, IntArray], None]


def step(
    graph: StepGraph,
    state: IntArray,
    inputs: Mapping[str, IntArray],
    noise: IntArray | None = None,
    watch: Watch | None = None,
) -> IntArray:
    """Do one step.

    Parameters
    ----------
    state
        (..., C, H, W) codes of the channels, in their formats.
    inputs
        (..., H, W) codes of each input, by name.
    noise
        (..., `graph.random_bits`, H, W) of 0 and 1, new for each step; None, if there are none.

    Returns
    -------
    The next state, of the same shape.

    Raises
    ------
    ValueError
        If the noise has another number of planes.
    """
    planes = 0 if noise is None else noise.shape[-3]
    if planes != graph.random_bits:
        raise ValueError(f"noise has {planes} planes, the rule takes {graph.random_bits}")
    golden = _Step(graph, state.shape)
    for index, operation in enumerate(graph.operations):
        match operation:
            case Channel():
                result = state
            case Input(names=names):
                given = [np.broadcast_to(inputs[name], golden.plane) for name in names]
                result = np.stack(given, -3).astype(np.int64)
            case Random(bits=bits):
                assert noise is not None
                result = golden.drawn(noise, bits)
            case _:
                result = golden.compute(index, operation)
        golden.results.append(result)
        if watch:
            watch(index, result)
    return golden.gather(graph.outputs)


class _Step:
    def __init__(self, graph: StepGraph, shape: tuple[int, ...]) -> None:
        self.graph = graph
        self.plane = (*shape[:-3], *shape[-2:])
        self.results: list[IntArray] = []  # (..., L, H, W) of each operation
        self.taken = 0  # random planes

    def gather(self, words: Words, fractions: list[int] | None = None) -> IntArray:
        """Codes of words, (..., L, H, W); with so many fraction bits, no fewer than they have."""
        origins = [self.graph.origin(word) for word in words]
        index, lane = origins[0] if origins else (0, 0)
        if origins == [(index, lane + i) for i in range(len(origins))] and origins:
            codes = self.results[index][..., lane : lane + len(origins), :, :]
        else:
            codes = np.stack([self.results[i][..., j, :, :] for i, j in origins], -3)
        if fractions is None:
            return codes
        known = self.graph.fractions
        shift = np.array([to - known[word] for word, to in zip(words, fractions, strict=True)])
        return codes << shift[:, None, None] if shift.any() else codes

    def drawn(self, noise: IntArray, bits: tuple[int, ...]) -> IntArray:
        numbers = []
        for count in bits:
            planes = noise[..., self.taken : self.taken + count, :, :]
            numbers.append(plane_number(planes))
            self.taken += count
        return np.concatenate(numbers, -3)

    def compute(self, index: int, operation: Operation) -> IntArray:
        fractions = [self.graph.fractions[word] for word in self.graph.words(index)]
        match operation:
            case Constant(values=values):
                codes = np.ldexp(np.array(values), fractions).astype(np.int64)[:, None, None]
                shape = (*self.plane[:-2], len(values), *self.plane[-2:])
                return np.broadcast_to(codes, shape)
            case Linear():
                return self.linear(index, operation)
            case Window(a=words, largest=largest, border=border):
                taps = around(self.gather(words), border)
                found: IntArray = taps.max(-3) if largest else taps.min(-3)
                return found
            case Multiply(a=a, b=b):
                return self.gather(a) * self.gather(b)
            case Less(a=a, b=b):
                known = self.graph.fractions
                common = [max(known[one], known[two]) for one, two in zip(a, b, strict=True)]
                return (self.gather(a, common) < self.gather(b, common)).astype(np.int64)
            case Add(a=a, b=b):
                return self.gather(a, fractions) + self.gather(b, fractions)
            case Subtract(a=a, b=b):
                return self.gather(a, fractions) - self.gather(b, fractions)
            case Minimum(a=a, b=b):
                return np.minimum(self.gather(a, fractions), self.gather(b, fractions))
            case Maximum(a=a, b=b):
                return np.maximum(self.gather(a, fractions), self.gather(b, fractions))
            case Select(condition=condition, a=a, b=b):
                chosen = self.gather(condition) != 0
                return np.where(chosen, self.gather(a, fractions), self.gather(b, fractions))
            case Fit():
                return self.fit(operation)
        raise NotImplementedError(type(operation).__name__)

    def linear(self, index: int, linear: Linear) -> IntArray:
        weight, bias = self.graph.codes_of(index)
        codes = self.gather(linear.a)
        height, width = codes.shape[-2:]
        if weight.shape[2] == AROUND:
            codes = np.moveaxis(around(codes, linear.border), -3, -4)  # (..., 9, I, H, W)
            weight = weight.swapaxes(1, 2)
            codes = codes.reshape(*codes.shape[:-4], -1, height, width)
        flat = codes.reshape(*codes.shape[:-2], height * width)
        matrix = weight.reshape(len(weight), -1)
        total = product(matrix, flat) + bias[:, None]
        return total.reshape(*total.shape[:-1], height, width)

    def fit(self, fit: Fit) -> IntArray:
        known = self.graph.fractions
        codes = self.gather(fit.a)
        shift = np.array(
            [known[word] - to.frac_bits for word, to in zip(fit.a, fit.formats, strict=True)]
        )[:, None, None]
        rounded = shift_right(codes << np.maximum(-shift, 0), np.maximum(shift, 0), fit.rounding)
        return fit_all(rounded, fit.formats, fit.overflow)


def around(codes: IntArray, border: Border) -> IntArray:
    """The nine neighbours of every cell, (..., I, H, W) to (..., I, 9, H, W).

    In reading order: north-west first, the cell itself fifth.
    """
    height, width = codes.shape[-2:]
    seen = padded(codes, border)
    taps: IntArray = np.stack(
        [seen[..., y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=-3
    )
    return taps


def padded(codes: IntArray, border: Border) -> IntArray:
    """Codes (..., H, W) with what lies beyond the border, (..., H + 2, W + 2)."""
    margin = [(0, 0)] * (codes.ndim - 2) + [(1, 1), (1, 1)]
    found: IntArray = np.pad(codes, margin, mode=_PAD[border])  # type: ignore[call-overload]
    return found


def product(matrix: IntArray, codes: IntArray) -> IntArray:
    """Matrix (O, I) times codes (..., I, N), in floats where they hold every sum of products."""
    bound = int(np.abs(matrix).sum(1).max(initial=0)) * int(np.abs(codes).max(initial=0))
    if bound >= 1 << 53:
        return matrix @ codes
    exact: type[np.floating] = np.float32 if bound < 1 << 24 else np.float64
    return (matrix.astype(exact) @ codes.astype(exact)).astype(np.int64)


def fit_all(codes: IntArray, formats: tuple[QFormat, ...], overflow: Overflow) -> IntArray:
    """Bring codes (..., L, H, W) into the range of the format of each word."""
    lowest = np.array([f.lowest for f in formats])[:, None, None]
    highest = np.array([f.highest for f in formats])[:, None, None]
    if overflow is Overflow.WRAP:
        wrapped: IntArray = (codes - lowest) % (highest - lowest + 1) + lowest
        return wrapped
    if overflow is Overflow.SAT_SYM:
        lowest = lowest + (lowest < 0)
    return np.clip(codes, lowest, highest)
