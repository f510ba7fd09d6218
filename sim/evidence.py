"""What went into a mismatch, and where to look for it."""

from dataclasses import dataclass

from scotopia.graph.golden import padded
from scotopia.hdl.program import SHORTEST, Flag, Program
from scotopia.quantize.integer_rule import IntegerRule

from .compare import Mismatch
from .simulators import Window
from .stimulus import Stimulus

#: Clocks that a waveform shows at most: the last ones of what computes a channel.
LONGEST = 400

#: From a command to the first bit of an instruction in a row, and from its last one to the memory.
BEFORE, AFTER = 2, 12


@dataclass(frozen=True)
class Evidence:
    """A mismatch, and the neighbourhood that went into it.

    Attributes
    ----------
    mismatch
        Where, and both codes.
    codes
        By channel, the 3 x 3 codes around the cell before the step, north and west first; beyond
        the array what its border says.
    sample
        Code of the sample that the cell has in this frame; None if it has none.
    """

    mismatch: Mismatch
    codes: dict[str, list[list[int]]]
    sample: int | None


def evidence(rule: IntegerRule, stimulus: Stimulus, mismatch: Mismatch) -> Evidence:
    """Collect what went into a step of one cell, by the golden model."""
    height, width = stimulus.shape
    before = (
        stimulus.expected[mismatch.step - 1] if mismatch.step else rule.initial_state(height, width)
    )
    rows = slice(mismatch.y, mismatch.y + 3)
    columns = slice(mismatch.x, mismatch.x + 3)
    codes = {
        name: padded(channel, rule.border)[rows, columns].tolist()
        for name, channel in zip(rule.channel_names, before, strict=True)
    }
    frame, cell = mismatch.step // rule.steps_per_frame, (mismatch.y, mismatch.x)
    arrived = [code for _, y, x, code in stimulus.arrivals(frame) if (y, x) == cell]
    return Evidence(mismatch, codes, arrived[0] if arrived else None)


def window(program: Program, mismatch: Mismatch, width: int) -> Window:
    """Find the clocks in which a step computes a channel: the last ones, if they are many."""
    start = program.entries["step"]
    names = {text: index for index, text in program.comments.items() if index >= start}
    # What no section is named for comes from the sample, in the first one.
    first = names.get(mismatch.channel, start)
    last = min((index for index in names.values() if index > first), default=None)
    end = _clocks(program, start, last, width)
    begin = max(_clocks(program, start, first, width), end - LONGEST)
    return Window(mismatch.step, begin + BEFORE, end + AFTER, mismatch.y)


def _clocks(program: Program, start: int, end: int | None, width: int) -> int:
    return sum(
        max(width, SHORTEST) if op.flag is Flag.NOISE else op.cycles
        for op in program.instructions[start:end]
    )
