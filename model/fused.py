"""The rule unrolled over a chunk of frames as one autograd function, compiled for its shape.

A rule is so small that PyTorch spends its time on moving tensors through memory. `fused.cpp` keeps
a cell's numbers in registers, and videos run side by side, one a thread. Each video's gradient is
summed on its own, so that a result does not depend on the number of threads.
"""

import ctypes
import shutil
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import INPUTS, RuleConfig
from .rule import Rule

SOURCE = Path(__file__).with_name("fused.cpp")
FLAGS = (
    *("-std=gnu++17", "-shared", "-fPIC"),
    # For this very machine: the library lives no longer than the process.
    *("-O3", "-march=native", "-mprefer-vector-width=512"),
    # So that a choice between two numbers needs no branch.
    *("-fno-math-errno", "-fno-trapping-math"),
)


@cache
def available() -> bool:
    """Whether the GNU C++ compiler is there, and makes code for this processor."""
    return shutil.which("g++") is not None and compile_library(RuleConfig()) is not None


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="scotopia-")


_compiling = threading.Lock()


def compile_library(config: RuleConfig) -> ctypes.CDLL | None:
    """Compile `fused.cpp` for rules of one shape, once a process; None if the compiler fails."""
    with _compiling:  # threads that want the same library, or two at once, wait for each other
        return _compile(config)


@cache
def _compile(config: RuleConfig) -> ctypes.CDLL | None:
    defines = {
        "CHANNELS": config.channels,
        "HIDDEN": config.hidden,
        "PIXELS": config.pixels,
        "GATED": int(config.kind == "gated"),
        "BORDER": config.border.upper(),
        "TRACE_TICK": 2.0**-config.trace_bits,
        **{f"HAS_{name.upper()}": int(name in config.inputs) for name in INPUTS},
    }
    folder = Path(_folder().name)
    library = folder / f"rule{len(list(folder.iterdir()))}.so"
    options = [f"-D{name}={value}" for name, value in defines.items()]
    command = ["g++", *FLAGS, *options, str(SOURCE), "-o", str(library)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return None
    return ctypes.CDLL(str(library))


def unroll(
    rule: Rule, state: Tensor, samples: Tensor, valids: Tensor, fired: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `scotopia.model.unroll.unroll_plainly`, for tensors of a CPU."""
    layers = (rule.perceive.weight, rule.perceive.bias, rule.update.weight, rule.update.bias)
    parameters = torch.cat([part.reshape(-1) for part in layers if part is not None])
    predictions, last = _Unroll.apply(  # type: ignore[no-untyped-call]
        parameters, rule.config, state, samples.contiguous(), valids.contiguous(), fired
    )
    return predictions, last.detach()


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        parameters: Tensor,
        config: RuleConfig,
        state: Tensor,
        samples: Tensor,
        valids: Tensor,
        fired: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        library = compile_library(config)
        if library is None:
            raise RuntimeError(f"g++ failed on {SOURCE}, but not for another shape of rule")
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
            arrays = (samples, valids, fired, states, hiddens)
            library.forward(
                *(frames, steps, height, width, _at(parameters)),
                *(_at(None if array is None else array[video]) for array in arrays),
            )

        _for_each_video(run, videos)
        ctx.config, ctx.library = config, library
        ctx.arrays = (samples, valids, fired, states, hiddens)
        ctx.save_for_backward(parameters)
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
        (parameters,) = ctx.saved_tensors
        dpredictions = gradients[0].contiguous()
        videos, frames, _, height, width = dpredictions.shape
        dparameters = torch.empty(videos, len(parameters))

        def run(video: int) -> None:
            arrays = (*ctx.arrays, dpredictions, dparameters)
            ctx.library.backward(
                *(frames, ctx.config.steps_per_frame, height, width, _at(parameters)),
                *(_at(None if array is None else array[video]) for array in arrays),
            )

        _for_each_video(run, videos)
        _give_back(*ctx.arrays[-2:])
        ctx.arrays = None  # they may be another's from now on
        return dparameters.sum(0), None, None, None, None, None


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
