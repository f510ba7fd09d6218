"""One step from anywhere: the golden model and the program's twin, from states that are drawn.

What starts from reset and sees one clip comes to few of all states, hardly to those at the ends of
the ranges, where sums need their highest bits. The next clip may.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from scotopia.graph.intervals import Interval
from scotopia.graph.qformat import IntArray
from scotopia.hdl.program import Program
from scotopia.hdl.twin import ArrayTwin
from scotopia.quantize.integer_rule import IntegerRule

from .compare import Comparison, compare

#: States that are drawn, of so many cells each way.
COUNT, SIDE = 8, 64


@dataclass(frozen=True, eq=False)
class Moment:
    """What goes into a step, as in `IntegerRule.step`."""

    state: IntArray
    inputs: dict[str, IntArray]
    noise: IntArray | None


def channel_ranges(rule: IntegerRule) -> list[Interval]:
    """Value of what each channel can hold, by the rule's proof if it has one."""
    return list(rule.ranges.channels.values())


def moments(rule: IntegerRule, count: int = COUNT, side: int = SIDE) -> Iterator[Moment]:
    """Draw states in the proven ranges: of single cells and of alike ones, inside and at the ends.

    Samples and random bits are anything.
    """
    rng = np.random.default_rng(0)
    events = [Interval.of(format) for _, format in rule.targets[: len(rule.events)]]

    def draw(range: Interval, ends: int) -> IntArray:
        if ends:
            return rng.choice([range.lowest, range.highest], (side, side))
        return rng.integers(range.lowest, range.highest + 1, (side, side))

    for number in range(count):
        alike, ends = number % 2, number // 2 % 2
        state = np.stack([draw(one, ends) for one in channel_ranges(rule)])
        if alike:
            state = state[:, ::16, ::16].repeat(16, 1).repeat(16, 2)[:, :side, :side]
        inputs = {}
        for event, held in zip(rule.events, events, strict=True):
            inputs[event.value] = draw(held, ends)
            if event.flag:
                inputs[event.flag] = (rng.random((side, side)) < 0.5).astype(np.int64)
        noise = rng.integers(0, 2, (rule.noise_planes, side, side)) if rule.noise_planes else None
        yield Moment(state, inputs, noise)


def compare_steps(rule: IntegerRule, program: Program, steps: Iterable[Moment]) -> Comparison:
    """Compare the step that the program's twin does with the rule's, the golden model's."""
    expected, found = [], []
    for moment in steps:
        twin = ArrayTwin(program, *moment.state.shape[1:])
        expected.append(rule.step(moment.state, moment.inputs, moment.noise))
        found.append(twin.step(moment.state, moment.inputs, moment.noise))
    return compare(np.stack(expected), np.stack(found), rule.channel_names)
