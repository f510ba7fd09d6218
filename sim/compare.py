"""Bit-exact comparison of two runs, and what to say where they differ."""

from dataclasses import dataclass

import numpy as np

from scotopia.graph.qformat import IntArray


@dataclass(frozen=True)
class Mismatch:
    """The first place where two runs differ: by step, then channel, then cell."""

    step: int
    channel: str
    y: int
    x: int
    expected: int
    found: int | None

    def __str__(self) -> str:
        found = "no answer" if self.found is None else f"got {self.found}"
        return (
            f"step {self.step}, cell (x {self.x}, y {self.y}), channel {self.channel}: "
            f"expected {self.expected}, {found}"
        )


@dataclass(frozen=True)
class Comparison:
    """How many codes were compared and how many differ.

    Attributes
    ----------
    cell_updates
        Cells times steps.
    mismatches
        Codes that differ, of cell_updates * channels.
    first
        The first of them.
    """

    cell_updates: int
    mismatches: int
    first: Mismatch | None


def compare(expected: IntArray, found: IntArray, channels: tuple[str, ...]) -> Comparison:
    """Compare the states (steps, C, H, W) of two runs, every code.

    `found` may hold fewer steps, if the device stopped answering: each missing code is a mismatch.
    """
    answered = len(found)
    different = np.ones(expected.shape, bool)
    different[:answered] = expected[:answered] != found
    first = None
    if different.any():
        step, channel, y, x = (int(i) for i in np.argwhere(different)[0])
        code = int(found[step, channel, y, x]) if step < answered else None
        wanted = int(expected[step, channel, y, x])
        first = Mismatch(step, channels[channel], y, x, wanted, code)
    steps, _, height, width = expected.shape
    return Comparison(steps * height * width, int(different.sum()), first)
