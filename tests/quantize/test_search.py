from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.model.rule import Rule
from scotopia.quantize.formats import Formats, Precision, unsigned_format
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.search import cost_of, search

Make = Callable[..., Any]  # a fixture of conftest.py


@pytest.fixture
def start(float_rule: Make, small_config: Make) -> tuple[Rule, Formats]:
    rule = float_rule(0, small_config(inputs=("sample", "trust")))
    hidden = [unsigned_format(2.0, 8)] * rule.config.hidden
    return rule, Formats.choose(rule, hidden, Precision(8, 8, 8, 8))


def weight_error(rule: Rule, formats: Formats, only: int | None = None) -> Any:
    """A score that falls with the weights' rounding: of one neuron, or of all."""
    exact = formats.integer_rule(rule).perceive
    values = np.ldexp(exact.weight.astype(float), -exact.weight_frac[:, None, None])

    def score(integer: LayeredRule) -> float:
        layer = integer.perceive
        found = np.ldexp(layer.weight.astype(float), -layer.weight_frac[:, None, None])
        errors = np.abs(found - values).sum((1, 2))
        return 30 - float(errors.sum() if only is None else errors[only])

    return score


def test_it_saves_bits_and_keeps_within_the_loss(start: tuple[Rule, Formats]) -> None:
    rule, formats = start
    score = weight_error(rule, formats)
    found = search(rule, formats, score, max_loss=1.0)
    assert found.cost == cost_of(found.formats) < cost_of(formats)
    assert found.score == score(found.rule) >= 29.0


def test_a_larger_loss_saves_more(start: tuple[Rule, Formats]) -> None:
    rule, formats = start
    score = weight_error(rule, formats)
    costs = [search(rule, formats, score, loss).cost for loss in (0.1, 1.0, 5.0)]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 3


def test_bits_that_nothing_depends_on_all_go(start: tuple[Rule, Formats]) -> None:
    rule, formats = start
    found = search(rule, formats, weight_error(rule, formats, only=1), max_loss=1e-9)
    # What the score never looks at shrinks to two bits; the neuron that it looks at keeps all.
    assert [format.bits for format in found.formats.perceive_weights] == [2, 8, 2]
    assert {format.bits for format in found.formats.update_weights} == {2}
    assert {format.bits for format in found.formats.state} == {2}


def test_the_sample_keeps_the_predictions_format(start: tuple[Rule, Formats]) -> None:
    rule, formats = start
    found = search(rule, formats, lambda integer: 0.0, max_loss=0.1).formats
    assert found.sample == found.state[0] == found.inputs[0] != formats.sample


def test_state_bits_weigh_as_much_as_there_are_cells(start: tuple[Rule, Formats]) -> None:
    _, formats = start
    state = sum(format.bits for format in formats.state) + formats.sample.bits
    assert cost_of(formats, cells=100) == formats.weight_bits + 100 * state


def test_moves_that_lose_more_together_than_alone_are_not_all_taken(
    start: tuple[Rule, Formats],
) -> None:
    rule, formats = start
    finest = formats.integer_rule(rule).perceive.weight_frac.sum()

    def score(integer: LayeredRule) -> float:  # one bit of one neuron is free, a second is not
        return 0.0 if integer.perceive.weight_frac.sum() >= finest - 1 else -10.0

    found = search(rule, formats, score, max_loss=0.1)
    assert found.score == 0.0
    assert sum(format.bits for format in found.formats.perceive_weights) == 3 * 8 - 1


def test_another_cost_takes_other_bits(start: tuple[Rule, Formats]) -> None:
    rule, formats = start

    def neuron(chosen: Formats, _integer: LayeredRule) -> int:  # all else is free
        return chosen.perceive_weights[1].bits  # type: ignore[union-attr]

    found = search(rule, formats, lambda integer: 0.0, 0.1, cost=neuron)
    assert found.cost == 2
    assert [format.bits for format in found.formats.perceive_weights] == [8, 2, 8]
    assert found.formats.state == formats.state


def test_neurons_and_gates_lose_bits_where_that_is_cheaper(start: tuple[Rule, Formats]) -> None:
    rule, formats = start

    def results(chosen: Formats, _integer: LayeredRule) -> int:  # all else is free
        return sum(format.bits for format in (*chosen.hidden[1:], chosen.gate))

    found = search(rule, formats, lambda integer: 0.0, 0.1, cost=results)
    assert found.cost == 3 * 2
    assert [format.bits for format in found.formats.hidden] == [8, 2, 2]
    assert found.formats.gate.bits == 2
    assert found.rule.gate_format == found.formats.gate
    assert found.rule.perceive.outputs == found.formats.hidden
    assert [f.int_bits for f in found.formats.hidden] == [f.int_bits for f in formats.hidden]


def test_a_gate_keeps_the_bits_that_the_dither_needs(start: tuple[Rule, Formats]) -> None:
    rule, formats = start

    def gate(chosen: Formats, _integer: LayeredRule) -> int:  # all else is free
        return chosen.gate.bits

    found = search(rule, replace(formats, dither=6), lambda integer: 0.0, 0.1, cost=gate)
    assert found.formats.gate.bits == 6


def test_a_cost_in_bits_leaves_alone_what_it_does_not_count(start: tuple[Rule, Formats]) -> None:
    rule, formats = start
    found = search(rule, formats, lambda integer: 0.0, 0.1).formats
    assert (found.hidden, found.gate) == (formats.hidden, formats.gate)


def test_the_rule_is_rounded_as_one_says(start: tuple[Rule, Formats]) -> None:
    rule, formats = start
    built = []

    def build(chosen: Formats) -> LayeredRule:
        built.append(chosen)
        return chosen.integer_rule(rule)

    found = search(rule, formats, weight_error(rule, formats), 0.1, build=build)
    assert len(built) >= found.tried and found.formats in built


def test_all_kernels_of_a_neuron_lose_a_bit_together(float_rule: Make, small_config: Make) -> None:
    rule = float_rule(0, small_config(inputs=("sample", "trust")))
    hidden = [unsigned_format(2.0, 8)] * rule.config.hidden
    formats = Formats.choose(rule, hidden, Precision(3), scales="kernel")
    found = search(rule, formats, lambda integer: 0.0, 0.1).formats
    for before, after in zip(formats.perceive_weights, found.perceive_weights, strict=True):
        assert [f.frac_bits - 1 for f in before] == [f.frac_bits for f in after]
        assert {f.bits for f in after} == {2}


@pytest.mark.parametrize("loss", [0.0, -1.0, float("nan")])
def test_a_loss_that_allows_nothing_is_refused(start: tuple[Rule, Formats], loss: float) -> None:
    with pytest.raises(InputError) as caught:
        search(*start, lambda integer: 0.0, loss)
    assert str(caught.value) == f"max_loss {loss:g} is not above 0: choose 0.1, for instance"
