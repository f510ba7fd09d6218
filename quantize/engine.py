"""The golden model at speed: `fused.cpp` on codes as floats, where floats are exact."""

import ctypes
import math

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.qformat import IntArray, Overflow, Rounding
from scotopia.model import native

from .layered_rule import LayeredRule

#: Floats of 24 bits hold a half beside any integer below this; doubles beside any in 53 bits.
EXACT, EXACT_WIDE = 1 << 23, 1 << 52


def supports(rule: LayeredRule) -> bool:
    """Whether `Engine` computes what `LayeredRule.step` does, and a compiler makes it."""
    return (
        type(rule) is LayeredRule  # none that watches its own steps
        and rule.overflow is Overflow.SAT
        and rule.rounding in (Rounding.RND, Rounding.TRN)
        and _largest(rule) < EXACT_WIDE
        and _kept(rule)
        and native.available()
        and _library(rule) is not None
    )


def _library(rule: LayeredRule) -> ctypes.CDLL | None:
    return native.compile_library(rule.config, quantized=True, wide=_largest(rule) >= EXACT)


class Engine:
    """A rule on H x W cells that advances by frames.

    Parameters
    ----------
    rule
        One that `supports` is true for.

    Attributes
    ----------
    state
        (C, H, W) codes, to be read.
    """

    def __init__(self, rule: LayeredRule, height: int, width: int) -> None:
        library = _library(rule)
        assert library is not None  # by `supports`
        self.rule, self._library = rule, library
        self._shape = height, width
        self._row = library.padded_width(width)
        self._parameters = _parameters(rule)
        self._grids = _grids(rule)
        self._half = ctypes.c_float(0.5 if rule.rounding is Rounding.RND else 0)
        self._units = np.array([f.frac_bits for f in rule.channel_formats])[:, None, None]
        self._last = np.zeros((height, len(rule.channel_formats), self._row), np.float32)

    @property
    def state(self) -> IntArray:
        """Codes of all channels, (C, H, W)."""
        return self._codes(self._last)

    def advance(
        self,
        samples: IntArray,
        valids: NDArray[np.bool_],
        fired: NDArray[np.bool_] | None = None,
        dither: NDArray[np.float32] | None = None,
    ) -> IntArray:
        """Run through T frames.

        Parameters
        ----------
        samples, valids
            (T, H, W) codes, and where they arrive.
        fired
            (T * steps, H, W) where a cell updates; None if all do.
        dither
            (T * steps, H, W) in [0, 1), multiples of 2**-rule.dither: what is added below the last
            bit of an update; None for a rule that rounds it.

        Returns
        -------
        (T, C, H, W), the states after each frame.
        """
        frames, steps = len(samples), self.rule.config.steps_per_frame
        states = np.zeros((frames * steps + 1, *self._last.shape), np.float32)
        states[0] = self._last
        shown = np.ldexp(samples.astype(np.float32), -self.rule.sample_format.frac_bits)
        self._library.forward(
            *(frames, steps, *self._shape),
            *(_at(self._parameters), _at(self._grids), self._half),
            *(_at(np.ascontiguousarray(shown)), _at(valids.astype(np.float32))),
            _at(None if fired is None else fired.astype(np.float32)),
            _at(dither),
            *(_at(states), _at(None)),
        )
        self._last = states[-1].copy()
        return self._codes(states[steps::steps])

    def _codes(self, rows: NDArray[np.float32]) -> IntArray:
        """Turn (..., H, C, row) values into (..., C, H, W) codes."""
        values = np.swapaxes(rows, -2, -3)[..., : self._shape[1]]
        codes: IntArray = np.ldexp(values, self._units).astype(np.int64)
        return codes


def _largest(rule: LayeredRule) -> int:
    """Bound on all integers that a step works with before it fits them to a format."""
    widest = max(format.bits for format in (*rule.channel_formats, *rule.input_formats))
    product = widest + 1 + max(f.bits for f in (rule.gate_format, *rule.input_formats))
    recency = 6 + rule.config.trace_bits
    trust = 4 + max(format.frac_bits for format in rule.channel_formats)
    layers = (rule.perceive.accumulator_bound, rule.update.accumulator_bound)
    return max(*layers, 1 << product, 1 << recency, 1 << trust)


def _kept(rule: LayeredRule) -> bool:
    """Whether floats hold all that is kept: codes of 16 bits, and the parameters as they are."""
    formats = (*rule.channel_formats, *rule.input_formats, *rule.perceive.outputs)
    widest = max(format.bits for format in (*formats, *rule.update.outputs))
    layers = (rule.perceive, rule.update)
    parameters = np.concatenate(
        [codes.ravel() for layer in layers for codes in (layer.weight, layer.bias)]
    )
    return widest <= 16 and np.array_equal(parameters.astype(np.float32), parameters)


def _parameters(rule: LayeredRule) -> NDArray[np.float32]:
    """Weights and biases as values, in the order of `fused.cpp`."""
    parts = []
    for layer in (rule.perceive, rule.update):
        fine = layer.weight_frac + max(format.frac_bits for format in layer.inputs)
        parts += [
            np.ldexp(layer.weight.astype(float), -layer.weight_frac[:, None, None]).ravel(),
            np.ldexp(layer.bias.astype(float), -fine),
        ]
    return np.concatenate(parts).astype(np.float32)


def _grids(rule: LayeredRule) -> NDArray[np.float32]:
    """Scale, unit, lowest and highest value of each format, in the order of `fused.cpp`."""
    formats = (
        *rule.input_formats,
        *rule.perceive.outputs,
        *rule.update.outputs,
        *rule.state_formats,
    )
    units = [math.ldexp(1, -format.frac_bits) for format in formats]
    rows = [
        (1 / unit, unit, format.lowest * unit, format.highest * unit)
        for format, unit in zip(formats, units, strict=True)
    ]
    return np.array(rows, np.float32)


def _at(array: NDArray[np.float32] | None) -> ctypes.c_void_p:
    if array is None:
        return ctypes.c_void_p(None)
    assert array.flags.c_contiguous and array.dtype == np.float32
    return array.ctypes.data_as(ctypes.c_void_p)
