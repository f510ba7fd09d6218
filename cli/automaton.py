"""A rule of either kind as functions on arrays: all that an experiment may know of a rule."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scotopia.model.config import RuleConfig
from scotopia.model.errors import InputError
from scotopia.model.rule import Rule, hard_sigmoid, to_state
from scotopia.quantize.integer_rule import IntegerRule

State = NDArray[Any]  # (C, H, W), numbers as the rule keeps them
Values = NDArray[np.float64]
Video = NDArray[np.float32]  # (T, H, W), in [0, 1]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Automaton:
    """A rule of either kind, as functions on arrays without a batch.

    Attributes
    ----------
    config
        Shape of the rule.
    start
        (height, width) to the state before the first sample.
    step
        State (C, H, W), samples (H, W) and valid (H, W) to the next state.
    samples
        Pixels in [0, 1], of any shape, to what the sensor delivers.
    values
        State to real numbers (C, H, W): in [-1, 1], a trace in [0, 1).
    scramble
        A generator and a state to random numbers of the state's shape, uniform in each channel's
        range.
    gates
        What `step` takes to the gates (channels, H, W) that it opens, in [0, 1]; None if the rule
        has none or does not tell.
    """

    config: RuleConfig
    start: Callable[[int, int], State]
    step: Callable[[State, State, Mask], State]
    samples: Callable[[Video], State]
    values: Callable[[State], Values]
    scramble: Callable[[np.random.Generator, State], State]
    gates: Callable[[State, State, Mask], Values] | None = None

    def prediction(self, state: State) -> Values:
        """Brightness that a state predicts, (H, W); 0 to 1, not clipped."""
        brightness: Values = (self.values(state)[0] + 1) * (128 / 255)  # the rules' `to_pixel`
        return brightness

    def run(self, state: State, frames: Video, mask: Mask) -> Iterator[State]:
        """Show the pixels of `frames` that `mask` lets through; yield the state of each step."""
        for sample, valid in zip(self.samples(frames), mask, strict=True):
            for _ in range(self.config.steps_per_frame):
                state = self.step(state, sample, valid)
                yield state

    def run_frames(self, state: State, frames: Video, mask: Mask) -> Iterator[State]:
        """As `run`, but yield the state of each frame's last step."""
        count = self.config.steps_per_frame
        return islice(self.run(state, frames, mask), count - 1, None, count)


def automaton(rule: Rule | IntegerRule) -> Automaton:
    """Wrap a rule.

    Raises
    ------
    InputError
        If a cell of the rule stands for more than one pixel, or not all cells update in a step.
    """
    config = rule.config
    if config.block != 1:
        raise InputError(
            f"block {config.block}: a cell of this rule stands for {config.block} x {config.block} "
            "pixels; inspect a rule with block 1"
        )
    if config.fire_rate != 1:
        raise InputError(
            f"fire_rate {config.fire_rate:g}: not all cells of this rule update in a step; "
            "inspect a rule with fire_rate 1"
        )
    if isinstance(rule, IntegerRule) and rule.dither:
        raise InputError(
            f"dither {rule.dither}: its updates are rounded by chance; inspect a rule with dither 0"
        )
    return _of_integers(rule) if isinstance(rule, IntegerRule) else _of_floats(rule)


def _of_integers(rule: IntegerRule) -> Automaton:
    formats = rule.channel_formats

    def scramble(random: np.random.Generator, state: State) -> State:
        planes = [random.integers(f.lowest, f.highest + 1, state.shape[1:]) for f in formats]
        return np.stack(planes).astype(state.dtype)

    return Automaton(
        rule.config,
        start=rule.initial_state,
        step=rule.step,
        samples=rule.sample_codes,
        values=lambda state: np.stack(
            [f.values(codes) for f, codes in zip(formats, state, strict=True)]
        ),
        scramble=scramble,
    )


def _of_floats(rule: Rule) -> Automaton:
    def batch(
        state: State, sample: State, valid: Mask
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tensors = (torch.from_numpy(np.asarray(a, np.float32)) for a in (state, sample, valid))
        x, shown, where = tensors
        return x[None], shown[None, None], where[None, None]

    @torch.no_grad()
    def step(state: State, sample: State, valid: Mask) -> State:
        moved: State = rule(*batch(state, sample, valid))[0].numpy()
        return moved

    @torch.no_grad()
    def gates(state: State, sample: State, valid: Mask) -> Values:
        updates: list[torch.Tensor] = []
        hook = rule.update.register_forward_hook(lambda _, __, out: updates.append(out))
        try:
            rule(*batch(state, sample, valid))
        finally:
            hook.remove()
        opened: Values = hard_sigmoid(updates[-1].chunk(2, 1)[1])[0].double().numpy()
        return opened

    def scramble(random: np.random.Generator, state: State) -> State:
        values = random.uniform(-1, 1, state.shape)
        values[-1] = random.uniform(0, 1 - 2.0**-rule.config.trace_bits, state.shape[1:])
        return values.astype(state.dtype)

    return Automaton(
        rule.config,
        start=lambda height, width: rule.initial_state(1, height, width)[0].numpy(),
        step=step,
        samples=lambda pixels: to_state(torch.from_numpy(pixels)).numpy(),
        values=lambda state: state.astype(np.float64),
        scramble=scramble,
        gates=gates if rule.config.kind == "gated" else None,
    )
