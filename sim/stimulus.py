"""What goes into a verification, and what must come out by the golden model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.golden import Watch
from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import IntArray
from scotopia.quantize.integer_rule import IntegerRule

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Stimulus:
    """Samples of some frames, and the states that follow.

    Attributes
    ----------
    samples
        (T, H, W) codes; 0 where no pixel arrives, so that nothing can leak past the mask. Of a
        rule that takes several events, (T, E, H, W).
    mask
        As many, where a pixel arrives.
    expected
        (S, C, H, W) codes by the golden model: the state after every `every`-th of the
        T * steps_per_frame steps.
    every
        Reading the state takes a large array longer than a step of a simple rule.
    """

    samples: IntArray
    mask: NDArray[np.bool_]
    expected: IntArray
    every: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.mask.shape[-2], self.mask.shape[-1]

    @classmethod
    def of(
        cls,
        rule: IntegerRule,
        frames: NDArray[np.floating],
        mask: NDArray[np.bool_],
        every: int = 1,
    ) -> "Stimulus":
        """Run the golden model over `frames` (T, H, W) in [0, 1], of which it sees `mask`.

        Of several events, each sees another half of that, drawn by chance; without any, nothing
        arrives.
        """
        if len(rule.events) > 1:
            events = range(len(rule.events))
            half = np.random.default_rng(0).random((len(mask), len(events), *mask.shape[1:])) < 0.5
            mask = mask[:, None] & half
            codes = np.stack([rule.sample_codes(frames, event) for event in events], 1)
        else:
            mask, codes = mask & bool(rule.events), rule.sample_codes(frames)
        samples = np.where(mask, codes, 0)
        return cls(samples, mask, golden_states(rule, samples, mask, every), every)

    def arrivals(self, frame: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield what arrives before the steps of a frame: target, y, x and code."""
        for *event, y, x in np.argwhere(self.mask[frame]).tolist():
            yield event[0] if event else 0, y, x, int(self.samples[frame, *event, y, x])


def golden_states(
    rule: IntegerRule,
    samples: IntArray,
    mask: NDArray[np.bool_],
    every: int = 1,
    watch: Watch | None = None,
) -> IntArray:
    """States (S, C, H, W) after every `every`-th step, by the golden model."""
    height, width = samples.shape[-2:]
    state = rule.initial_state(height, width)
    registers = RowRegisters(height, width, rule.noise_seed)
    states, steps = [], 0
    inputs: dict[str, IntArray] = {}
    for sample, valid in zip(samples, mask, strict=True):
        inputs = rule.given(sample, valid, inputs)
        for _ in range(rule.steps_per_frame):
            noise = registers.planes(rule.noise_planes) if rule.noise_planes else None
            state = rule.step(state, inputs, noise, watch)
            steps += 1
            if steps % every == 0:
                states.append(state)
    return np.stack(states)


def central_crop(
    frames: NDArray[Scalar], name: str, height: int, width: int, count: int
) -> NDArray[Scalar]:
    """Cut the central height x width pixels of the first `count` frames of (T, H, W).

    Raises
    ------
    InputError
        If the clip `name` is smaller or shorter.
    """
    available, rows, columns = frames.shape
    if rows < height or columns < width:
        raise InputError(
            f"clip {name} has {columns} x {rows} pixels, the array {width} x {height} cells: "
            "choose a larger clip or a smaller array"
        )
    if not 1 <= count <= available:
        raise InputError(
            f"clip {name} has {available} frames, {count} were asked for: "
            f"choose --frames from 1 to {available}"
        )
    top, left = (rows - height) // 2, (columns - width) // 2
    return frames[:count, top : top + height, left : left + width]
