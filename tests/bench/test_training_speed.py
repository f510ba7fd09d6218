import shutil

import pytest
import training_speed

from scotopia.model.config import RuleConfig
from scotopia.model.options import TrainOptions
from scotopia.model.presets import find_preset

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.usefixtures("compiler"),
]

#: The plain loop is of the preset's rule, and sees what that does.
INPUTS = find_preset("retina").config.inputs


@pytest.mark.parametrize("quantized", [False, True])
def test_both_loops_of_a_rule_compute_the_same(quantized):
    config = RuleConfig(channels=3, hidden=5, trace_bits=3, inputs=INPUTS)
    options = TrainOptions(batch=2, crop=9, chunk=4)
    training_speed.retina(config, options, quantized=quantized).check()


def test_both_loops_of_a_growing_automaton_compute_the_same():
    training_speed.growing(batch=2, side=9, steps=4).check()


def test_every_round_is_timed_but_the_first():
    work = training_speed.retina(
        RuleConfig(channels=2, hidden=2, inputs=INPUTS), TrainOptions(batch=1, crop=4, chunk=1)
    )
    seconds = training_speed.measure(work, 2)
    assert {len(found) for found in seconds.values()} == {2}
    assert len(seconds) == 5  # two tasks by two loops, and the matrix product
