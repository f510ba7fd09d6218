"""Float rules that run: as their module does, and with an integer rule's random bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.lfsr import RowRegisters, plane_number
from scotopia.graph.surroundings import Event, Initial
from scotopia.model import running, task
from scotopia.model.float_rule import FloatRule
from scotopia.model.scotopic.float_graph import as_float_rule

Make = Callable[..., Any]
T, H, W = 11, 12, 14


@pytest.fixture(scope="module")
def frames() -> NDArray[np.float32]:
    return np.random.default_rng(1).random((T, H, W), np.float32)


@pytest.fixture(scope="module")
def mask() -> NDArray[np.bool_]:
    return np.random.default_rng(2).random((T, H, W)) < 0.2


@pytest.mark.parametrize(
    "fields",
    [{}, {"kind": "residual", "border": "zero"}, {"channels": 6, "block": 2}],
    ids=["gated", "residual", "block"],
)
def test_a_rule_and_its_graph_compute_the_same(
    float_rule: Make,
    small_config: Make,
    fields: dict[str, Any],
    frames: NDArray[np.float32],
    mask: NDArray[np.bool_],
) -> None:
    rule = float_rule(5, small_config(**fields))
    graph = as_float_rule(rule)
    assert graph.channel_names == rule.config.channel_names
    found = np.stack([*running.run(graph, frames, mask)])
    assert np.allclose(found, [state.numpy() for state in task.run(rule, frames, mask)], atol=1e-6)
    estimates = running.reconstruct(graph, frames, mask)
    assert np.allclose(estimates, task.reconstruct(rule, frames, mask), atol=1e-6)


def test_compiled_and_interpreted_agree(
    float_rule: Make,
    small_config: Make,
    frames: NDArray[np.float32],
    mask: NDArray[np.bool_],
    request: pytest.FixtureRequest,
) -> None:
    rule = as_float_rule(float_rule(5, small_config(fire_rate=0.5)))
    slow = np.stack([*running.run(rule, frames, mask)])
    request.getfixturevalue("compiler")
    assert np.allclose([*running.run(rule, frames, mask)], slow, atol=1e-5)
    assert slow.any()


def test_random_words_are_those_of_an_integer_rule() -> None:
    build = Builder()
    x = build.channels({"x": None, "y": None})
    drawn = build.random(3, 1)
    rule = FloatRule(build.graph({"x": x[0] + drawn[0], "y": drawn[1]}), 2)
    first, second = running.states(rule, 2, 3, [{}, {}], noise_seed=7)
    registers = RowRegisters(2, 3, 7)
    planes = [registers.planes(4) for _ in range(4)]
    numbers = [plane_number(one[:3])[0] / 8 for one in planes]
    assert np.array_equal(first[0], numbers[0] + numbers[1])
    assert np.array_equal(second[0], sum(numbers))
    assert np.array_equal(second[1], planes[3][3] / 2)


def test_a_rule_that_is_given_nothing_runs_from_its_state() -> None:
    build = Builder()
    x = build.channels({"x": None})
    spread = build.linear(x, np.full((1, 1, 9), 0.5), [0.0])
    rule = FloatRule(build.graph({"x": spread}), 1, initial=Initial.cell(np.ones(1)))
    states = [*running.states(rule, 5, 5, [{}] * 10)]
    assert len(states) == 10
    assert np.array_equal(states[0][0] > 0, np.pad(np.ones((3, 3), bool), 1))


def test_an_event_holds_its_number_until_the_next() -> None:
    build = Builder()
    x = build.channels({"x": None})
    value, flag = build.inputs({"value": None, "flag": None})
    rule = FloatRule(build.graph({"x": x + value * flag}), 1, (Event("value", "flag"),))
    pixels, mask = np.ones((2, 1, 2), np.float32), np.array([[[1, 0]], [[0, 1]]], bool)
    first, second = running.shown(rule, pixels, mask)
    assert second["value"][0, 0] == first["value"][0, 0] != 0
    assert second["flag"].tolist() == [[0, 1]]


def test_cells_of_several_pixels_need_an_event_for_each() -> None:
    build = Builder()
    x, value = build.channels({"x": None}), build.inputs({"value": None})
    graph = build.graph({"x": x + value})
    with pytest.raises(InputError, match="block 2 asks for 4 events, the rule has 1"):
        FloatRule(graph, 1, (Event("value"),), block=2)
