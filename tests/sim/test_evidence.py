from collections.abc import Callable

import numpy as np
import pytest

from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.compare import Mismatch
from scotopia.sim.evidence import AFTER, BEFORE, LONGEST, evidence, window
from scotopia.sim.stimulus import Stimulus

Make = Callable[..., IntegerRule]


@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_evidence_is_the_neighbourhood_before_the_step(
    small_config: Make, random_rule: Make, random_stimulus: Callable[..., Stimulus], border: str
) -> None:
    rule = random_rule(1, small_config(border=border))
    stimulus = random_stimulus(rule, 2, 2, 4, 3)
    found = evidence(rule, stimulus, Mismatch(3, "x1", 0, 2, 5, 6))
    before = stimulus.expected[2, 1]
    assert found.codes["x1"][1][:2] == before[0, 1:].tolist()
    beyond = {"zero": 0, "replicate": before[0, 2], "wrap": before[0, 0]}[border]
    assert found.codes["x1"][1][2] == beyond
    above = {"zero": 0, "replicate": before[0, 2], "wrap": before[3, 2]}[border]
    assert found.codes["x1"][0][1] == above
    assert list(found.codes) == list(rule.config.channel_names)


def test_evidence_has_the_sample_of_the_frame(
    small_config: Make, random_rule: Make, random_stimulus: Callable[..., Stimulus]
) -> None:
    rule = random_rule(1, small_config())
    stimulus = random_stimulus(rule, 2, 2, 3, 3)
    steps = rule.config.steps_per_frame
    for frame, y, x in np.ndindex(stimulus.mask.shape):
        found = evidence(rule, stimulus, Mismatch(frame * steps + 1, "x0", y, x, 0, 1)).sample
        arrived = stimulus.mask[frame, y, x]
        assert found == (stimulus.samples[frame, y, x] if arrived else None)


def test_the_first_step_starts_from_the_initial_state(
    small_config: Make, random_rule: Make, random_stimulus: Callable[..., Stimulus]
) -> None:
    rule = random_rule(1, small_config())
    stimulus = random_stimulus(rule, 2, 1, 3, 3)
    found = evidence(rule, stimulus, Mismatch(0, "x0", 1, 1, 0, 1))
    assert found.codes["x0"] == rule.initial_state(3, 3)[0].tolist()


def test_the_window_is_what_computes_the_channel(small_config: Make, random_rule: Make) -> None:
    rule = random_rule(1, small_config())
    program = Program.compile(rule)
    total = program.cycles("step", width=3)
    last = rule.config.channel_names[rule.config.channels - 1]
    shown = window(program, Mismatch(4, last, 2, 1, 0, 1), 3)
    assert (shown.step, shown.row) == (4, 2)
    assert shown.last == total + AFTER
    first = window(program, Mismatch(0, "x0", 2, 1, 0, 1), 3)
    assert 0 < first.first < first.last < shown.last
    assert first.last - first.first <= LONGEST + AFTER - BEFORE
