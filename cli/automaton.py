"""A rule of either kind as functions on arrays: all that an experiment may know of a rule."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.graph.lfsr import RowRegisters
from scotopia.model.blocks import to_cells, to_pixels
from scotopia.model.config import REGISTER, RuleConfig
from scotopia.model.rule import Rule, hard_sigmoid, to_state
from scotopia.model.task import FIRE_SEED
from scotopia.model.unroll import draw_fired
from scotopia.quantize.layered_rule import LayeredRule

State = NDArray[Any]  # (channels, H, W), numbers as the rule keeps them
Values = NDArray[np.float64]
Video = NDArray[np.float32]  # (T, H, W), in [0, 1]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Automaton:
    """A rule of either kind, as functions on arrays without a batch.

    All arrays have a place for each pixel, also where a cell stands for block x block of them: its
    predictions, samples and traces are then one channel each, and what it has but once is repeated.

    Attributes
    ----------
    config
        Shape of the rule.
    start
        (height, width) to the state before the first sample.
    step
        State (channels, H, W), samples (H, W), valid (H, W) and the number of steps before this
        one, which decides what is left to chance, to the next state.
    samples
        Pixels in [0, 1], of any shape, to what the sensor delivers.
    values
        State to real numbers (channels, H, W): in [-1, 1], a trace in [0, 1).
    scramble
        A generator and a state to random numbers of the state's shape, uniform in each channel's
        range.
    gates
        State, samples and valid to the gates (learned, H, W) that it opens, in [0, 1]; None if the
        rule has none or does not tell.
    """

    config: RuleConfig
    start: Callable[[int, int], State]
    step: Callable[[State, State, Mask, int], State]
    samples: Callable[[Video], State]
    values: Callable[[State], Values]
    scramble: Callable[[np.random.Generator, State], State]
    gates: Callable[[State, State, Mask], Values] | None = None

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, the input register's two last."""
        return (*(f"x{i}" for i in range(self.learned)), *REGISTER)

    @property
    def learned(self) -> int:
        """Learned channels: the prediction and those that a cell has once."""
        return self.config.channels - self.config.pixels + 1

    def prediction(self, state: State) -> Values:
        """Brightness that a state predicts, (H, W); 0 to 1, not clipped."""
        brightness: Values = (self.values(state)[0] + 1) * (128 / 255)  # the rules' `to_pixel`
        return brightness

    def run(self, state: State, frames: Video, mask: Mask, frame: int = 0) -> Iterator[State]:
        """Show the pixels of `frames` that `mask` lets through; yield the state of each step.

        `frame` is the number of the first frame.
        """
        number = frame * self.config.steps_per_frame
        for sample, valid in zip(self.samples(frames), mask, strict=True):
            for _ in range(self.config.steps_per_frame):
                state = self.step(state, sample, valid, number)
                number += 1
                yield state

    def run_frames(
        self, state: State, frames: Video, mask: Mask, frame: int = 0
    ) -> Iterator[State]:
        """As `run`, but yield the state of each frame's last step."""
        count = self.config.steps_per_frame
        return islice(self.run(state, frames, mask, frame), count - 1, None, count)


class Drawn:
    """Random planes of 0 and 1, drawn in order and kept, so that all runs of a rule see the same.

    Parameters
    ----------
    draw
        Draws those of the next steps, (steps, planes, H, W).
    """

    def __init__(self, draw: Callable[[], NDArray[Any]]) -> None:
        self._draw = draw
        self._kept: list[NDArray[np.uint8]] = []
        self._shape: tuple[int, ...] = ()

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        while number >= len(self._kept):
            for planes in self._draw():
                self._shape = planes.shape
                self._kept.append(np.packbits(planes.astype(np.uint8)))
        count = int(np.prod(self._shape))
        return np.unpackbits(self._kept[number], count=count).reshape(self._shape)


def automaton(rule: Rule | LayeredRule) -> Automaton:
    """Wrap a rule."""
    return _of_integers(rule) if isinstance(rule, LayeredRule) else _of_floats(rule)


def _of_integers(rule: LayeredRule) -> Automaton:
    formats = rule.channel_formats

    @cache
    def drawn(height: int, width: int) -> Drawn:
        registers = RowRegisters(height, width, rule.noise_seed)
        return Drawn(lambda: registers.planes(rule.noise_planes)[None])

    def step(state: State, sample: State, valid: Mask, number: int) -> State:
        noise = None
        if rule.noise_planes:
            noise = drawn(*valid.shape)[number].astype(np.int64)
        return rule.step(state, rule.given(sample, valid), noise)

    def scramble(random: np.random.Generator, state: State) -> State:
        planes = [random.integers(f.lowest, f.highest + 1, state.shape[1:]) for f in formats]
        return np.stack(planes).astype(state.dtype)

    return Automaton(
        rule.config,
        start=rule.initial_state,
        step=step,
        samples=rule.sample_codes,
        values=lambda state: np.stack(
            [f.values(codes) for f, codes in zip(formats, state, strict=True)]
        ),
        scramble=scramble,
    )


def _of_floats(rule: Rule) -> Automaton:
    config = rule.config
    block, channels, pixels = config.block, config.channels, config.pixels

    def cells(planes: NDArray[Any]) -> torch.Tensor:
        """(N, H, W) to (1, N * pixels, H / block, W / block)."""
        tensor = torch.from_numpy(np.asarray(planes, np.float32))[:, None]
        return to_cells(tensor, block).flatten(0, 1)[None]

    def spread(once: torch.Tensor) -> torch.Tensor:
        """(N, H / block, W / block) to (N, H, W)."""
        return once.repeat_interleave(block, 1).repeat_interleave(block, 2)

    def view(found: torch.Tensor) -> State:
        """Give what cells have, (C, H / block, W / block), a place for each pixel."""
        predictions, once = found[:pixels], found[pixels:channels]
        samples, traces = found[channels:].chunk(2)
        parts = [to_pixels(one, block) for one in (predictions, samples, traces)]
        planes: State = torch.cat([parts[0], spread(once), *parts[1:]]).numpy()
        return planes

    def state_of_cells(state: State) -> torch.Tensor:
        """Undo `view`; with a batch of one."""
        once = torch.from_numpy(np.ascontiguousarray(state[1:-2, ::block, ::block], np.float32))
        return torch.cat([cells(state[:1]), once[None], cells(state[-2:])], 1)

    @cache
    def drawn(height: int, width: int) -> Drawn:
        """As `task.run` draws them, a frame's at once."""
        generator = torch.Generator().manual_seed(FIRE_SEED)

        def draw() -> NDArray[Any]:
            fired = draw_fired(rule, torch.empty(1, 1, 1, height, width), generator)
            assert fired is not None
            return fired[0].numpy()

        return Drawn(draw)

    @torch.no_grad()
    def step(state: State, sample: State, valid: Mask, number: int) -> State:
        before = state_of_cells(state)
        fired = None
        if config.fire_rate < 1:
            fired = torch.from_numpy(drawn(*before.shape[2:])[number])[None]
        return view(rule(before, cells(sample[None]), cells(valid[None]), fired)[0])

    @torch.no_grad()
    def gates(state: State, sample: State, valid: Mask) -> Values:
        updates: list[torch.Tensor] = []
        hook = rule.update.register_forward_hook(lambda _, __, out: updates.append(out))
        try:
            rule(state_of_cells(state), cells(sample[None]), cells(valid[None]))
        finally:
            hook.remove()
        opened = hard_sigmoid(updates[-1].chunk(2, 1)[1])[0]
        planes = torch.cat([to_pixels(opened[:pixels], block), spread(opened[pixels:])])
        return planes.double().numpy()

    def start(height: int, width: int) -> State:
        _, _, rows, columns = cells(np.zeros((1, height, width))).shape
        return view(rule.initial_state(1, rows, columns)[0])

    def scramble(random: np.random.Generator, state: State) -> State:
        values = random.uniform(-1, 1, state_of_cells(state).shape[1:])
        traces = values[-pixels:]
        traces[:] = random.uniform(0, 1 - 2.0**-config.trace_bits, traces.shape)
        return view(torch.from_numpy(values.astype(state.dtype)))

    return Automaton(
        config,
        start=start,
        step=step,
        samples=lambda frames: to_state(torch.from_numpy(frames)).numpy(),
        values=lambda state: state.astype(np.float64),
        scramble=scramble,
        gates=gates if config.kind == "gated" else None,
    )
