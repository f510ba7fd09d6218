from dataclasses import replace

import numpy as np
import pytest

from scotopia.graph.operations import OPERATIONS, Fit, Linear
from scotopia.graph.qformat import Overflow, Rounding
from scotopia.hdl.sequencer import shape_code
from scotopia.sim.check import Verdict
from scotopia.sim.faults import flip_digit
from scotopia.sim.random_graphs import BORDERS
from scotopia.sim.random_rules import (
    MODES,
    Device,
    Finding,
    any_rule,
    judge,
    prove,
    report,
    run_device,
    stimulus_of,
)
from scotopia.sim.verify import run_program


def test_rules_of_a_device_run_on_the_same_gates() -> None:
    device = Device.draw(0)
    drawn = list(device.rules(4))
    codes = {shape_code(program, device.height, device.width) for _, _, program in drawn}
    assert len(codes) == 1
    graphs = [rule.graph for _, rule, _ in drawn]
    assert len({len(graph.operations) for graph in graphs}) > 1


def test_devices_differ_and_are_drawn_alike_each_time() -> None:
    devices, again = ([Device.draw(number) for number in range(15)] for _ in range(2))
    assert list(map(repr, devices)) == list(map(repr, again))
    borders = [device.outline.borders for device in devices[:5]]
    assert borders == [*((border,) for border in BORDERS), BORDERS]
    assert {device.outline.random for device in devices} == {True, False}
    assert {device.steps_per_frame for device in devices} == {1, 2}
    assert len({(device.height, device.width) for device in devices}) > 5
    assert {len(device.events) for device in devices} == {0, 1, 2}
    assert {event.flag is None for device in devices for event in device.events} == {True, False}
    first = [(one.initial.fill, one.initial.patch, one.initial.spread) for one in devices]
    assert len({tuple(bool(part.any()) for part in parts) for parts in first}) == 4


def test_every_operation_rounding_and_overflow_has_its_turn() -> None:
    graphs = [any_rule(seed).graph.pruned() for seed in range(60)]
    operations = [one for graph in graphs for one in graph.operations]
    assert {type(one) for one in operations} == set(OPERATIONS)
    fits = {(one.rounding, one.overflow) for one in operations if isinstance(one, Fit)}
    assert fits == {(rounding, overflow) for rounding in Rounding for overflow in Overflow}
    layers = [one.weight for one in operations if isinstance(one, Linear)]
    scales = [np.abs(one[one != 0]) for one in layers if one.any()]
    assert any(np.isin(one / one.max(), (127 / 128, 1)).all() and len(one) > 5 for one in scales)
    assert any((one >= 2).all() for one in scales), "no layer is coarser than its output"
    assert max(one.shape[1] for one in layers) > 6


def test_rules_do_something_and_saturate_at_both_ends() -> None:
    device = Device.draw(4)
    reached = {"lowest": False, "highest": False}
    for seed, rule, _ in device.rules(12):
        states = stimulus_of(rule, seed, device.height, device.width).expected
        assert len(np.unique(states)) > 1
        for channel, format in enumerate(rule.channel_formats):
            reached["lowest"] |= bool((states[:, channel] == format.lowest).any())
            reached["highest"] |= bool((states[:, channel] == format.highest).any())
    assert all(reached.values())


@pytest.mark.parametrize("number", [1, 4])
def test_rules_agree_on_a_shared_device(number: int) -> None:
    findings = run_device(number, 3)
    assert [finding.detail for finding in findings] == [""] * 3
    assert len({finding.seed for finding in findings}) == 3
    assert all(finding.states > 0 for finding in findings)


def test_a_rule_may_take_much_longer_than_the_one_whose_gates_it_runs_on() -> None:
    device = Device.draw(108)
    drawn = list(device.rules(2))
    first, second = (program.cycles("step", device.width) for *_, program in drawn)
    assert second > 10 * first
    assert [finding.detail for finding in run_device(108, 2)] == ["", ""]


def test_stage_that_is_wrong_is_named_with_its_rule() -> None:
    device = Device.draw(3)
    for seed, rule, program in device.rules(5):
        stimulus = stimulus_of(rule, seed, device.height, device.width)
        if flipped := flip_digit(program):
            wrong = run_program(flipped, stimulus)
            found = {"right": stimulus.expected, "wrong": wrong}
            detail = judge(device, seed, rule, stimulus, found).detail
            if detail:
                break
    assert detail.startswith(f"rule {seed}: wrong, step ")


def test_report_fails_where_a_mode_an_operation_or_a_border_did_not_occur() -> None:
    one = Finding(0, 5, frozenset({"Fit"}), frozenset(MODES[:1]), ("zero",), 8, 0.5, "")
    checks = report([one], 1.0)
    assert [check.verdict for check in checks].count(Verdict.PASSED) == 1
    assert checks[-1].detail.startswith("83 of 84 did not occur")
    assert checks[-2].detail.startswith("13 of 14 did not occur")
    bad = report([one, replace(one, detail="rule 5: Amaranth, step 0")], 1.0)
    assert [check.detail for check in bad if check.cases == 2] == ["rule 5: Amaranth, step 0"]
    every = frozenset(kind.__name__ for kind in OPERATIONS)
    groups = [*((border,) for border in BORDERS), BORDERS, ()]
    good = [replace(one, operations=every, modes=frozenset(MODES), borders=b) for b in groups]
    assert {check.verdict for check in report(good, 1.0)} == {Verdict.PASSED}


@pytest.mark.slow
def test_a_thousand_random_rules_agree() -> None:
    checks = prove(1000)
    assert [check.detail for check in checks if check.verdict is not Verdict.PASSED] == []
    assert sum(check.cases for check in checks if check.unit == "rules") == 1000
