"""A float rule that runs from its initial state: by itself, or shown a clip."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scotopia.graph.lfsr import RowRegisters, plane_number
from scotopia.graph.operations import Linear, Random
from scotopia.graph.qformat import IntArray
from scotopia.graph.step import StepGraph

from . import compiled
from .float_rule import FloatRule
from .interpret import Interpreter
from .rule import to_state

#: Inputs of a frame, by name, (H, W).
Inputs = Mapping[str, NDArray[Any]]

#: Frames that run at once: enough to keep the loop out of Python, few enough to keep their states
#: in the cache.
CHUNK = 8

#: Seed of the registers that all random words come from; an integer rule's own, by default.
NOISE_SEED = 1


def random_words(graph: StepGraph, planes: IntArray) -> NDArray[np.float64]:
    """Return the random words of a step, (words, H, W) in [0, 1), of its planes of bits."""
    bits = [
        bits for _, one in graph.of_kind(Random) if isinstance(one, Random) for bits in one.bits
    ]
    parts = np.split(planes, np.cumsum(bits)[:-1])
    words = [plane_number(part) * 2.0 ** -len(part) for part in parts]
    return np.concatenate(words) if bits else np.zeros((0, *planes.shape[1:]))


@torch.no_grad()
def states(
    rule: FloatRule,
    height: int,
    width: int,
    frames: Iterable[Inputs],
    noise_seed: int = NOISE_SEED,
) -> Iterator[NDArray[np.float32]]:
    """Run a rule on height x width cells, given the inputs of each frame.

    Its random words are made of the planes that an integer rule of this seed would draw.

    Yields
    ------
    (C, H, W), the state after each frame.
    """
    registers = RowRegisters(height, width, noise_seed)
    run = Interpreter(rule.graph)
    state = torch.from_numpy(rule.initial.state(height, width)).float()[None]
    waiting = iter(frames)
    while chunk := list(islice(waiting, CHUNK)):
        inputs = {
            name: torch.stack([_plane(frame[name], height, width) for frame in chunk])[None]
            for name in rule.graph.inputs
        }
        noise = None
        if run.random:
            drawn = [
                random_words(rule.graph, registers.planes(rule.graph.random_bits))
                for _ in range(len(chunk) * rule.steps_per_frame)
            ]
            noise = torch.from_numpy(np.stack(drawn)).float()[None]
        found, state = advance(run, state, inputs, len(chunk), rule.steps_per_frame, noise)
        yield from found[0].numpy()


def advance(
    run: Interpreter,
    state: Tensor,
    inputs: Mapping[str, Tensor],
    frames: int,
    steps_per_frame: int,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Do the steps of some frames: compiled, or else by the interpreter.

    Parameters, and what is returned, as of `compiled.unroll`; of the graph's own numbers.
    """
    try:
        return compiled.unroll(
            run.graph,
            _weights(run.graph),
            state,
            inputs,
            frames=frames,
            steps_per_frame=steps_per_frame,
            noise=noise,
        )
    except compiled.NotCompiled:
        return _interpreted(run, steps_per_frame, state, inputs, frames, noise)


def run(
    rule: FloatRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> Iterator[NDArray[np.float32]]:
    """Show a rule the pixels of `frames` (T, H, W) that `mask` lets through, frame by frame.

    Yields
    ------
    (C, H, W), the state of the cells after each frame.

    Raises
    ------
    InputError
        If the frames do not divide into the rule's cells.
    """
    height, width = (side // rule.block for side in frames.shape[1:])
    return states(rule, height, width, shown(rule, frames, mask))


def reconstruct(
    rule: FloatRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the rule's estimate of every frame, (T, H, W) in [0, 1]; errors as for `run`."""
    estimates = [prediction(state, rule.block) for state in run(rule, frames, mask)]
    clipped: NDArray[np.float32] = np.clip(estimates, 0, 1).astype(np.float32)
    return clipped


def shown(
    rule: FloatRule, frames: NDArray[np.float32], mask: NDArray[np.bool_]
) -> Iterator[Inputs]:
    """Yield what a rule is given of each frame of a clip: its events are the pixels that arrive."""
    before: Inputs = {}
    pixels = to_state(torch.from_numpy(np.where(mask, frames, 0).astype(np.float32))).numpy()
    for sample, valid in zip(pixels, mask, strict=True):
        before = rule.given(sample, valid, before)
        yield before


def prediction(values: NDArray[np.floating], block: int = 1) -> NDArray[np.floating]:
    """Return the brightness (H, W) that values (C, h, w) of the channels predict, not clipped.

    Those of block x block pixels a cell stand in the first channels, row by row.
    """
    _, height, width = values.shape
    cells = values[: block**2].reshape(block, block, height, width)
    pixels = cells.transpose(2, 0, 3, 1).reshape(height * block, width * block)
    return (pixels + 1) * (128 / 255)  # as `rule.to_pixel`


def _weights(graph: StepGraph) -> dict[int, tuple[Tensor, ...]]:
    """Numbers of the layers: given, they are no part of the code, which serves others as well.

    Those of a layer that is mostly zeros are part of it: then what is zero costs nothing.
    """
    found: dict[int, tuple[Tensor, ...]] = {}
    for index, layer in graph.of_kind(Linear):
        assert isinstance(layer, Linear)
        if np.count_nonzero(layer.weight) * 2 > layer.weight.size:
            found[index] = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
    return found


def _interpreted(
    run: Interpreter,
    steps: int,
    state: Tensor,
    inputs: Mapping[str, Tensor],
    frames: int,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Do what `compiled.unroll` does, by PyTorch's own operators."""
    found = []
    for t in range(frames):
        given = {name: planes[:, t] for name, planes in inputs.items()}
        for step in range(t * steps, (t + 1) * steps):
            state = run(state, given, None if noise is None else noise[:, step])
        found.append(state)
    return torch.stack(found, 1), state


def _plane(values: NDArray[Any], height: int, width: int) -> Tensor:
    return torch.from_numpy(np.broadcast_to(values, (height, width)).astype(np.float32))
