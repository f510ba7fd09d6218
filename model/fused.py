"""The rule unrolled over a chunk of frames as one autograd function, compiled for its shape.

A rule is so small that PyTorch spends its time on moving tensors through memory. `fused.cpp` keeps
a cell's numbers in registers, and videos run side by side, one a thread. Each video's gradient is
summed on its own, so that a result does not depend on the number of threads.
"""

import ctypes
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import native
from .config import RuleConfig
from .rule import Grids, Rule


def unroll(
    rule: Rule,
    state: Tensor,
    samples: Tensor,
    valids: Tensor,
    fired: Tensor | None,
    dither: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `scotopia.model.unroll.unroll_plainly`, for tensors of a CPU; needs its `library`."""
    parameters = torch.cat([part.reshape(-1) for part in rule.layers()])
    compiled = library(rule)
    assert compiled is not None
    shown, noise = (samples.contiguous(), valids.contiguous()), (fired, dither)
    predictions, last = _Unroll.apply(  # type: ignore[no-untyped-call]
        parameters, compiled, rule.config, rule.grids, state, *shown, noise
    )
    return predictions, last.detach()


def library(rule: Rule) -> ctypes.CDLL | None:
    """What is compiled for a rule; None if the compiler fails."""
    wide = rule.needs_doubles(rule.layers())
    return native.compile_library(rule.config, rule.grids is not None, wide)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        parameters: Tensor,
        library: ctypes.CDLL,
        config: RuleConfig,
        grids: Grids | None,
        state: Tensor,
        samples: Tensor,
        valids: Tensor,
        noise: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        half = ctypes.c_float(0 if grids is None else grids.half)
        numbers = parameters, None if grids is None else grids.rows
        videos, frames, _, height, width = samples.shape
        steps = config.steps_per_frame
        row = library.padded_width(width)
        # Rows of all channels lie together; what pads them stays zero.
        states = _take(videos, frames * steps + 1, height, state.shape[1], row)
        states[:, 0, ..., :width] = state.transpose(1, 2)
        hiddens = None
        if ctx.needs_input_grad[0]:
            hiddens = _take(videos, frames * steps, height, config.hidden, row)

        def run(video: int) -> None:
            arrays = (samples, valids, *noise, states, hiddens)
            library.forward(
                *(frames, steps, height, width, *map(_at, numbers), half),
                *(_at(None if array is None else array[video]) for array in arrays),
            )

        _for_each_video(run, videos)
        ctx.config, ctx.library, ctx.half = config, library, half
        # Rounded by chance or not, an update passes its gradient on.
        ctx.arrays = (samples, valids, noise[0], states, hiddens)
        ctx.numbers = numbers
        frame_ends = states[:, steps::steps, :, : config.pixels, :width]
        results = (
            frame_ends.transpose(2, 3).clone(),
            states[:, -1, ..., :width].transpose(1, 2).clone(),
        )
        if hiddens is None:
            _give_back(states)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        dpredictions = gradients[0].contiguous()
        videos, frames, _, height, width = dpredictions.shape
        dparameters = torch.empty(videos, len(ctx.numbers[0]))

        def run(video: int) -> None:
            arrays = (*ctx.arrays, dpredictions, dparameters)
            ctx.library.backward(
                *(frames, ctx.config.steps_per_frame, height, width),
                *(*map(_at, ctx.numbers), ctx.half),
                *(_at(None if array is None else array[video]) for array in arrays),
            )

        _for_each_video(run, videos)
        _give_back(*ctx.arrays[-2:])
        ctx.arrays = None  # they may be another's from now on
        return dparameters.sum(0), *[None] * 7


#: Arrays that nobody uses any more. New ones would be a hundred megabytes an iteration, which the
#: system hands out as pages of zeros, in a quarter of the time that the work itself takes. Beyond a
#: row's width they hold the zeros that they began with.
_spare: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)


def _take(*shape: int) -> Tensor:
    try:  # not asked first: another thread may take the last one
        return _spare[shape].pop()
    except IndexError:
        return torch.zeros(shape)


def _give_back(*arrays: Tensor) -> None:
    for array in arrays:
        _spare[tuple(array.shape)].append(array)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _for_each_video(run: Callable[[int], None], videos: int) -> None:
    list(_pool(torch.get_num_threads()).map(run, range(videos)))


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is None:
        return ctypes.c_void_p(None)
    assert tensor.is_contiguous() and tensor.dtype == torch.float32
    return ctypes.c_void_p(tensor.data_ptr())
