"""Single steps of golden model and twin from states that no run came to."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.anywhere import channel_ranges, compare_steps, moments
from scotopia.sim.faults import flip_digit
from scotopia.sim.specimen import specimen


def test_twin_steps_as_the_golden_model_from_any_state() -> None:
    rule = specimen()
    result = compare_steps(rule, Program.compile(rule), moments(rule, side=16))
    assert result.first is None
    assert result.cell_updates == 8 * 16 * 16


def test_wrong_program_is_told_apart() -> None:
    rule = specimen()
    assert compare_steps(rule, flip_digit(Program.compile(rule)), moments(rule)).first


def test_states_lie_in_the_proven_ranges_and_reach_their_ends() -> None:
    rule = specimen()
    states = np.stack([moment.state for moment in moments(rule)])
    for codes, range in zip(states.swapaxes(0, 1), channel_ranges(rule), strict=True):
        assert (codes.min(), codes.max()) == (range.lowest, range.highest)


def test_cells_are_single_and_alike_inside_and_at_the_ends() -> None:
    rule = specimen()
    kinds = [
        (len(np.unique(x0)) == 2, bool((x0[:, 1:] == x0[:, :-1]).mean() > 0.9))
        for x0 in (moment.state[0] for moment in moments(rule))
    ]
    assert kinds == 2 * [(False, False), (False, True), (True, False), (True, True)]


def test_rule_without_a_proof_uses_all_of_its_formats(
    small_config: Callable[..., IntegerRule], random_rule: Callable[..., IntegerRule]
) -> None:
    rule = replace(random_rule(1, small_config()), proof=None)
    whole = [(format.lowest, format.highest) for format in rule.channel_formats]
    assert [(r.lowest, r.highest) for r in channel_ranges(rule)] == whole
    proven = rule.with_proof()
    assert all(
        low <= r.lowest and r.highest <= high
        for (low, high), r in zip(whole, channel_ranges(proven), strict=True)
    )
