from dataclasses import replace

import numpy as np
import pytest

from scotopia.graph.qformat import Rounding
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import shape_code
from scotopia.sim import random_rules
from scotopia.sim.check import Verdict
from scotopia.sim.faults import flip_digit
from scotopia.sim.random_rules import (
    MODES,
    Device,
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
    rules = [rule for _, rule in device.rules(4)]
    codes = {shape_code(Program.compile(rule), device.height, device.width) for rule in rules}
    assert len(codes) == 1
    assert len({rule.rounding for rule in rules}) > 1


def test_every_mode_has_its_turn() -> None:
    drawn = [any_rule(seed) for seed in range(len(MODES))]
    modes = [(r.rounding, r.overflow, r.config.border, r.config.kind) for r in drawn]
    assert modes == list(MODES)


def test_devices_differ_and_are_drawn_alike_each_time() -> None:
    devices = [Device.draw(number) for number in range(12)]
    assert devices == [Device.draw(number) for number in range(12)]
    assert {device.example.border for device in devices} == {"zero", "replicate", "wrap"}
    assert {device.stochastic for device in devices} == {True, False}
    assert len({(device.height, device.width) for device in devices}) > 5


def test_weights_at_both_ends_and_saturated_states_occur() -> None:
    rules = dict(Device.draw(4).rules(12))
    assert any(set(np.unique(r.perceive.weight)) <= {-128, 0, 127} for r in rules.values())
    device = Device.draw(4)
    reached = {"lowest": False, "highest": False}
    for seed, rule in rules.items():
        states = stimulus_of(rule, seed, device.height, device.width).expected
        for channel, format in enumerate(rule.state_formats):
            reached["lowest"] |= bool((states[:, channel] == format.lowest).any())
            reached["highest"] |= bool((states[:, channel] == format.highest).any())
    assert all(reached.values())


def test_rules_agree_on_a_shared_device() -> None:
    findings = run_device(1, 3)
    assert [finding.detail for finding in findings] == [""] * 3
    assert len({finding.seed for finding in findings}) == 3
    assert all(finding.states > 0 for finding in findings)


def test_stage_that_is_wrong_is_named_with_its_rule() -> None:
    device = Device.draw(3)
    ((seed, rule),) = device.rules(1)
    program = Program.compile(rule)
    stimulus = stimulus_of(rule, seed, device.height, device.width)
    wrong = run_program(flip_digit(program), stimulus)
    finding = judge(device, seed, rule, stimulus, {"right": stimulus.expected, "wrong": wrong})
    assert finding.detail.startswith(f"rule {seed}: wrong, step ")


def test_report_fails_where_a_mode_or_a_kind_did_not_occur() -> None:
    one = random_rules.Finding(0, 5, (Rounding.RND, *MODES[0][1:]), 8, 0.5, "")
    checks = report([one], 1.0)
    assert [check.verdict for check in checks].count(Verdict.PASSED) == 1
    assert checks[-1].detail.startswith("125 of 126 did not occur")
    bad = report([one, replace(one, detail="rule 5: Amaranth, step 0")], 1.0)
    assert [check.detail for check in bad if check.cases == 2] == ["rule 5: Amaranth, step 0"]


@pytest.mark.slow
def test_a_thousand_random_rules_agree() -> None:
    checks = prove(1000)
    assert [check.detail for check in checks if check.verdict is not Verdict.PASSED] == []
    assert sum(check.cases for check in checks if check.unit == "rules") == 1000
