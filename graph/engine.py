"""The golden model at speed: its steps compiled for this machine, or else the golden model."""

import ctypes
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import golden, native
from .c.vectors import EngineSource, engine_source
from .errors import InputError
from .qformat import IntArray
from .step import StepGraph

#: Bytes that a vector takes at once: there the planes of its scratch begin.
_ALIGNED = 64

#: Gives the random planes of the next step, see `golden.step`; None for a graph that takes none.
Noise = Callable[[], IntArray | None]


class Engine:
    """A step graph on H x W cells.

    Without a compiler, or if a number needs more than 64 bits on its way, every step is done by
    `golden.step`: the codes are the same.

    Attributes
    ----------
    state
        (C, H, W) codes of the channels; at first 0.
    """

    def __init__(self, graph: StepGraph, height: int, width: int) -> None:
        self.graph = graph
        self.state: IntArray = np.zeros((len(graph.channels), height, width), np.int64)
        self._compiled = None
        source = _source(graph) if native.available() else None
        library = None if source is None else native.compiled(source.text)
        if source is not None and library is not None:
            self._compiled = _Compiled(library, source, self.state.shape)

    @property
    def compiled(self) -> bool:
        """Whether a compiler has made its steps."""
        return self._compiled is not None

    def advance(
        self, inputs: Mapping[str, IntArray], steps: int, noise: Noise | None = None
    ) -> IntArray:
        """Do some steps, with the same inputs, (H, W) by name; return the state after them."""
        if self._compiled is not None:
            self.state = self._compiled.advance(self.state, inputs, steps, noise)
            return self.state
        for _ in range(steps):
            planes = None if noise is None else noise()
            self.state = golden.step(self.graph, self.state, inputs, planes)
        return self.state


@lru_cache(16)
def _source(graph: StepGraph) -> EngineSource | None:
    try:
        return engine_source(graph)
    except InputError:
        return None


class _Compiled:
    """The library of a graph, and the memory that it works on."""

    def __init__(self, library: ctypes.CDLL, source: EngineSource, shape: tuple[int, ...]) -> None:
        self._step, self._types, self._size = library.step, source.input_types, shape[-2:]
        library.scratch_bytes.restype = ctypes.c_size_t
        memory = np.zeros(library.scratch_bytes(*self._size) + _ALIGNED, np.uint8)
        self._scratch = memory[-memory.ctypes.data % _ALIGNED :]
        self._states = [np.zeros(shape, source.state_type) for _ in range(2)]

    def advance(
        self, state: IntArray, inputs: Mapping[str, IntArray], steps: int, noise: Noise | None
    ) -> IntArray:
        """Do steps from a state."""
        self._states[0][:] = state
        given = [self._array(inputs[name], kind) for name, kind in self._types.items()]
        for _ in range(steps):
            drawn = None if noise is None else noise()
            planes = None if drawn is None else drawn.astype(np.uint8, order="C")
            before, after = self._states
            self._step(
                *(_at(array) for array in (before, *given, planes, self._scratch, after)),
                *self._size,
            )
            self._states = [after, before]
        return self._states[0].astype(np.int64)

    def _array(self, codes: IntArray, kind: str) -> NDArray[np.integer]:
        return np.ascontiguousarray(np.broadcast_to(codes, self._size), kind)


def _at(array: NDArray[np.integer] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None) if array is None else array.ctypes.data_as(ctypes.c_void_p)
