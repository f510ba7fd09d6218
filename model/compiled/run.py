"""The step of a graph unrolled over a chunk of frames, as one autograd function.

A step is so small that PyTorch spends its time on moving tensors through memory. What is generated
and compiled for the graph (`source`) keeps a cell's numbers in registers, and videos run
side by side, one a thread. Each video's gradient is summed on its own, so that a result does not
depend on the number of threads.
"""

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.graph.intervals import derive
from scotopia.graph.operations import Channel, Fit, Input, Linear, Random
from scotopia.graph.step import StepGraph
from scotopia.graph.trained import with_numbers

from .. import native
from .plan import Plan
from .source import Source, source
from .values import FLOAT_BITS

#: Numbers of operations, by their index in the graph, as `interpret` has them: of a `Linear`, its
#: weight (O, I, K) and bias (O,); of a `Constant`, its values (L,).
Weights = Mapping[int, tuple[Tensor, ...]]

#: Bits of an integer, with its sign, that doubles hold beside a half.
DOUBLE_BITS = 53

#: Numbers by which a row is padded, and its margin; see `kernels.hpp`.
PAD = 16


class NotCompiled(RuntimeError):
    """There is no compiler, or it failed, of which it warned."""


def unroll(
    graph: StepGraph,
    weights: Weights,
    state: Tensor,
    inputs: Mapping[str, Tensor] | None = None,
    *,
    frames: int | None = None,
    steps_per_frame: int = 1,
    noise: Tensor | None = None,
    channels: Sequence[int] | None = None,
    patterns: Mapping[int, NDArray[np.bool_]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `steps_per_frame` steps in each frame of a chunk.

    A graph with formats is computed exactly, as `golden.step`.

    Parameters
    ----------
    weights
        In place of the graph's own. What is not among them is written into the code.
    state
        (B, C, H, W) before the chunk. No gradient flows into it.
    inputs
        Each, by name, (B, T, H, W), held for all steps of a frame.
    frames
        T; by default as many as the inputs have.
    noise
        (B, T * steps, R, H, W) random words in [0, 1), if the graph takes any.
    channels
        Numbers of those that are returned; by default all.
    patterns
        See `source.source`.

    Returns
    -------
    outputs
        (B, T, channels, H, W) after each frame, differentiable in the weights.
    state
        (B, C, H, W) after the chunk, without gradient.

    Raises
    ------
    InputError
        If an integer of the graph may need more bits than a double holds.
    NotCompiled
        If there is no compiler, or it fails.
    """
    given = {index: weights[index] for index in sorted(weights)}
    code = _code(graph, given, patterns or {})
    if frames is None:
        frames = next(iter((inputs or {}).values())).shape[1]
    parts = [part.reshape(-1) for index in code.source.given for part in _of(graph, given, index)]
    numbers = torch.cat(parts) if parts else state.new_zeros(0)
    work = _Work(
        code,
        frames,
        steps_per_frame,
        list(range(len(graph.channels)) if channels is None else channels),
        _rows([(inputs or {})[name] for name in graph.inputs], state, frames, code.kept),
        _rows(
            [] if noise is None else list(noise.unbind(2)),
            state,
            frames * steps_per_frame,
            code.kept,
        ),
        {index: [part.shape for part in parts] for index, parts in given.items()},
    )
    outputs, last = _Unroll.apply(numbers, state.detach(), work)  # type: ignore[no-untyped-call]
    return outputs, last.detach()


def random_words(graph: StepGraph) -> int:
    """Return how many random words a cell takes in each step."""
    return sum(operation.count for _, operation in graph.of_kind(Random))


def _of(graph: StepGraph, given: Weights, index: int) -> tuple[Tensor, ...]:
    """Return the numbers of an operation: those that are given, or the graph's own."""
    if index in given:
        return given[index]
    operation = graph.operations[index]
    assert isinstance(operation, Linear)
    return torch.from_numpy(operation.weight), torch.from_numpy(operation.bias)


@dataclass(frozen=True)
class _Code:
    """What is compiled for a graph."""

    source: Source
    library: ctypes.CDLL

    @property
    def real(self) -> torch.dtype:
        """Type of the numbers that are given."""
        return torch.float64 if self.source.wide else torch.float32

    @property
    def kept(self) -> torch.dtype:
        """Type of what is kept."""
        return torch.float64 if self.source.wide_store else torch.float32


class _Made:
    """What is known of a graph and of what is trained of it, whatever the weights."""

    def __init__(
        self,
        graph: StepGraph,
        trained: Iterable[int],
        patterns: Mapping[int, NDArray[np.bool_]],
    ) -> None:
        self._make = partial(source, graph, tuple(trained), patterns)
        self.exact = any(True for _ in graph.of_kind(Fit))
        plan = Plan(graph, frozenset(trained), patterns)
        given = (Channel, Input, Random)
        self.kept = [w for w in plan.live if plan.stored(w) or plan.kind(w) in given]
        self._sources: list[Source] = []

    def source(self, wide: frozenset[int], wide_store: bool) -> Source:
        """Return code in which these words are wide, and maybe others that once were."""
        for known in self._sources:
            if known.wide >= wide and known.wide_store >= wide_store:
                return known
        self._sources.append(self._make(wide=wide, wide_store=wide_store))
        return self._sources[-1]


_made: WeakKeyDictionary[StepGraph, dict[object, _Made]] = WeakKeyDictionary()


def _code(graph: StepGraph, given: Weights, patterns: Mapping[int, NDArray[np.bool_]]) -> _Code:
    key = tuple(given), tuple((i, patterns[i].tobytes()) for i in sorted(patterns))
    known = _made.setdefault(graph, {})
    if key not in known:
        known[key] = _Made(graph, given, patterns)
    made = known[key]
    code = (
        made.source(*_wide(graph, given, made.kept))
        if made.exact
        else made.source(frozenset(), False)
    )
    library = native.compiled(code.text) if native.available() else None
    if library is None:
        raise NotCompiled("g++ made no compiled step: run the graph by model.interpret")
    return _Code(code, library)


def _wide(graph: StepGraph, given: Weights, kept: Iterable[int]) -> tuple[frozenset[int], bool]:
    """Words that are computed in double precision, to be exact, and whether any of them is kept."""
    numbers = {i: [part.detach().double().numpy() for part in parts] for i, parts in given.items()}
    ranges = derive(with_numbers(graph, numbers))
    bits = [one.bits for one in ranges.words]
    kept_bits = max((bits[word] for word in kept), default=0)
    for found in (ranges.sums, ranges.rounded):
        for word, one in found.items():
            bits[word] = max(bits[word], one.bits)
    if max(bits) > DOUBLE_BITS:
        raise InputError(
            f"a word of the step may need {max(bits)} bits, doubles hold {DOUBLE_BITS}: "
            "quantize the rule with fewer"
        )
    wide = frozenset(word for word, most in enumerate(bits) if most > FLOAT_BITS)
    return wide, kept_bits > FLOAT_BITS


@dataclass
class _Work:
    """What is to be done, but for the numbers that it is differentiated by."""

    code: _Code
    frames: int
    steps: int
    channels: list[int]
    inputs: Tensor
    noise: Tensor
    shapes: dict[int, list[torch.Size]]


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Tensor, state: Tensor, work: _Work) -> tuple[Tensor, Tensor]:
        code, (videos, channels, height, width) = work.code, state.shape
        given = numbers.detach().to(code.real).contiguous()
        keep = bool(ctx.needs_input_grad[0])
        steps = work.frames * work.steps
        row = _padded(width) + PAD
        owner = id(code.library), width, code.kept
        states = _take(owner, videos, steps + 1 if keep else 2, height + 2, channels, row)
        states[:, 0, 1:-1, :, PAD : PAD + width] = state.transpose(1, 2)
        saved = _take(owner, videos, steps if keep else 1, height + 2, code.source.saved, row)
        chosen = (ctypes.c_int * len(work.channels))(*work.channels)
        outputs = torch.empty(
            videos, work.frames, len(work.channels), height, width, dtype=code.kept
        )

        def run(video: int) -> None:
            code.library.forward(
                *(work.frames, work.steps, height, width, _at(given)),
                *map(_at, (work.inputs[video], work.noise[video], states[video], saved[video])),
                *(int(keep), chosen, len(work.channels), _at(outputs[video])),
            )

        _for_each_video(run, videos)
        last = states[:, steps if keep else steps % 2, 1:-1, :, PAD : PAD + width]
        results = outputs.to(state.dtype), last.transpose(1, 2).to(state.dtype).clone()
        if keep:
            ctx.work, ctx.arrays, ctx.chosen = work, (owner, given, states, saved), chosen
            ctx.like = numbers
        else:
            _give_back(owner, states, saved)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        work, (owner, given, states, saved) = ctx.work, ctx.arrays
        doutputs = gradients[0].float().contiguous()
        videos, _, _, height, width = doutputs.shape
        dgiven = torch.empty(videos, len(given))

        def run(video: int) -> None:
            work.code.library.backward(
                *(work.frames, work.steps, height, width, _at(given)),
                *map(_at, (work.inputs[video], work.noise[video], states[video], saved[video])),
                *(ctx.chosen, len(work.channels), _at(doutputs[video]), _at(dgiven[video])),
            )

        _for_each_video(run, videos)
        _give_back(owner, states, saved)
        ctx.arrays = None  # they may be another's from now on
        return dgiven.sum(0).to(ctx.like.dtype), None, None


def _padded(width: int) -> int:
    return -(-width // PAD) * PAD


def _rows(planes: Sequence[Tensor], state: Tensor, count: int, kept: torch.dtype) -> Tensor:
    """Planes (B, count, H, W) with the rows of all together, padded."""
    videos, _, height, width = state.shape
    rows = torch.zeros(videos, count, height, len(planes), _padded(width), dtype=kept)
    for i, plane in enumerate(planes):
        rows[:, :, :, i, :width] = plane
    return rows


#: Arrays that nobody uses any more. New ones would be a hundred megabytes an iteration, which the
#: system hands out as pages of zeros, in a quarter of the time that the work itself takes. What
#: lies beyond a row, the code that they belong to left there. One for many steps does for fewer.
_spare: defaultdict[tuple[object, ...], list[Tensor]] = defaultdict(list)


def _take(owner: tuple[int, int, torch.dtype], videos: int, steps: int, *shape: int) -> Tensor:
    """Return an array (videos, steps or more, *shape)."""
    try:  # not asked first: another thread may take the last one
        array = _spare[owner, videos, shape].pop()
        if array.shape[1] >= steps:
            return array
    except IndexError:
        pass
    return torch.zeros(videos, steps, *shape, dtype=owner[2])


def _give_back(owner: tuple[int, int, torch.dtype], *arrays: Tensor) -> None:
    for array in arrays:
        _spare[owner, len(array), tuple(array.shape[2:])].append(array)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _for_each_video(run: Callable[[int], None], videos: int) -> None:
    list(_pool(torch.get_num_threads()).map(run, range(videos)))


def _at(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
