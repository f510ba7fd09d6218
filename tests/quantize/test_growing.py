"""What the shipped lizard can do: claims about its weights, not about code."""

from pathlib import Path

import numpy as np
import pytest

from scotopia.cli.rules import rule_path
from scotopia.graph.lfsr import RowRegisters
from scotopia.model.float_rule import FloatRule
from scotopia.model.growing import running
from scotopia.model.growing.task import ALPHA, GrowingTask, Growth
from scotopia.model.trainable import TrainableGraph
from scotopia.quantize.growing import advance
from scotopia.quantize.integer_rule import IntegerRule


@pytest.fixture(scope="module")
def task() -> GrowingTask:
    found = GrowingTask.of(FloatRule.load(rule_path("lizard")).training)
    assert found is not None and found.target.shape == (4, 32, 32)
    return found


@pytest.fixture(scope="module")
def floats(task: GrowingTask) -> Growth:
    rule = FloatRule.load(rule_path("lizard"))
    return task.grow(running.advance(rule, 32, 32), rule.initial)


@pytest.fixture(scope="module")
def integers(task: GrowingTask) -> Growth:
    rule = IntegerRule.load(rule_path("lizard-int"))
    return task.grow(advance(rule, 32, 32), rule.initial)


@pytest.mark.parametrize("kind", ["floats", "integers"])
def test_it_grows_from_one_cell_stays_and_heals(kind: str, request: pytest.FixtureRequest) -> None:
    growth = request.getfixturevalue(kind)
    assert (growth.states[0] != 0).any(0).sum() == 1
    assert growth.grown > 33 and growth.stayed > 35
    assert growth.psnr[growth.steps.index(500) + 1] < 20  # soon after a third was wiped out
    assert (growth.wounded == 0).all(0).sum() > 300
    assert growth.psnr[-1] > 35


def test_its_integers_are_within_1_db_of_the_floats(floats: Growth, integers: Growth) -> None:
    assert integers.stayed > floats.stayed - 1


def test_nothing_is_alive_beside_it(integers: Growth, task: GrowingTask) -> None:
    outside = np.ones((32, 32), bool)
    outside[2:-2, 2:-2] = False
    assert not integers.states[integers.steps.index(500)][ALPHA][outside].any()


def test_it_was_trained_as_the_documents_say() -> None:
    rule = FloatRule.load(rule_path("lizard"))
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    command = (
        "scotopia train --task growing --target lizard --iterations 4000 --out lizard.safetensors"
    )
    assert command in text and rule.training["command"].startswith(command)
    assert TrainableGraph(rule).parameter_count == 3136
    integer = IntegerRule.load(rule_path("lizard-int"))
    assert integer.training["task"] == rule.training["task"]
    assert integer.state_bits == 120 and integer.proof is not None


def test_integers_grow_as_the_golden_model_steps() -> None:
    rule = IntegerRule.load(rule_path("lizard-int"))
    registers, state = RowRegisters(12, 12, rule.noise_seed), rule.initial_state(12, 12)
    values = rule.initial.state(12, 12)
    run = advance(rule, 12, 12)
    for count in (1, 4):
        values = run(values, count)
        for _ in range(count):
            state = rule.step(state, {}, registers.planes(rule.noise_planes))
        expected = [f.values(one) for f, one in zip(rule.channel_formats, state, strict=True)]
        assert np.array_equal(values, np.stack(expected))
