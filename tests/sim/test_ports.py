import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.graph.operations import Linear
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import Op, shape_code
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim import verify as verification
from scotopia.sim.cocotb_stress import MANY, SCENARIOS
from scotopia.sim.device_model import DeviceModel, Inputs, Mismatch, Outputs
from scotopia.sim.port_faults import PORT_FAULTS
from scotopia.sim.ports import OF_MANY, OF_SLOW, RuleDevice, other_programs, top_ports, uses
from scotopia.sim.stress import INSIDE, Trace
from scotopia.sim.verify import Extent, verify

Make = Callable[..., IntegerRule]


@pytest.fixture
def rule(small_config: Make, random_rule: Make) -> IntegerRule:
    """A small rule, whose arrays compile fast."""
    return random_rule(5, small_config(channels=2, hidden=2, inputs=("sample", "valid")))


@pytest.fixture
def device(rule: IntegerRule) -> RuleDevice:
    return RuleDevice(Program.compile(rule), 3, 4)


# Faults at the ports.


@pytest.mark.parametrize(("height", "width", "kind"), [(3, 4, "gated"), (5, 2, "residual")])
def test_every_port_fault_finds_its_place_in_emitted_verilog(
    height: int, width: int, kind: str, small_config: Make, random_rule: Make, tmp_path: Path
) -> None:
    rule = random_rule(5, small_config(channels=2, hidden=2, inputs=("valid",), kind=kind))
    emit(Program.compile(rule), height, width, tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.glob("*.v")}
    changed = []
    for fault in PORT_FAULTS:
        planted = fault.fault(tmp_path)
        assert 1 <= len(planted.edits) <= 3, fault.name
        for edit in planted.edits:
            edit.plant(tmp_path)
        after = {path.name: path.read_text() for path in tmp_path.glob("*.v")}
        assert [name for name in before if before[name] != after[name]] == [f"{fault.module}.v"]
        changed.append(after[f"{fault.module}.v"])
        (tmp_path / f"{fault.module}.v").write_text(before[f"{fault.module}.v"])
    assert len(set(changed)) == len(changed)


def test_every_port_fault_names_a_scenario_that_any_rule_can_be_driven_through(
    device: RuleDevice,
) -> None:
    assert {fault.scenario for fault in PORT_FAULTS} <= set(device.scenarios)


def test_pattern_that_matches_nothing_is_no_fault() -> None:
    fault = replace(PORT_FAULTS[0], pattern="nowhere", text="")
    with pytest.raises(InputError) as error:
        fault.plant("module sequencer; endmodule")
    assert str(error.value) == (
        "fault 'FRAME runs a step less' finds no place in sequencer: mend its pattern"
    )


@pytest.mark.slow
def test_every_port_fault_is_found_by_its_scenario(rule: IntegerRule, tmp_path: Path) -> None:
    emit(Program.compile(rule), 3, 4, tmp_path)
    with verification.StressBench() as bench:
        device = RuleDevice(Program.compile(rule), 3, 4)
        stages = verification._port_faults(bench, device, tmp_path, lambda name: None)
    assert [stage.name for stage in stages if not stage.passed] == []
    assert len(stages) == len(PORT_FAULTS) > 35


# Devices of a user's rule.


def test_other_program_is_of_the_same_shape_and_of_another_rule(rule: IntegerRule) -> None:
    program = Program.compile(rule)
    (other,) = other_programs(program)
    assert shape_code(other, 3, 4) == shape_code(program, 3, 4)
    assert other.instructions != program.instructions
    pairs = zip(rule.graph.operations, other.rule.graph.operations, strict=True)
    weights = [(a.weight, b.weight) for a, b in pairs if a is not b]  # type: ignore[attr-defined]
    ((before, after),) = weights
    differ = after != before
    assert differ.sum() == 1
    assert (after[differ] == -before[differ]).all()


def test_rule_without_weights_has_no_other_program(rule: IntegerRule) -> None:
    nothing = {
        index: replace(one, weight=np.zeros_like(one.weight))  # type: ignore[type-var]
        for index, one in rule.graph.of_kind(Linear)
    }
    program = Program.compile(rule.with_graph(rule.graph.changed(nothing)))
    assert list(other_programs(program)) == []
    left_out = set(RuleDevice(Program.compile(rule), 3, 4).scenarios) - set(
        RuleDevice(program, 3, 4).scenarios
    )
    assert left_out and all("load" in name or "written as" in name for name in left_out)


def test_what_looks_behind_the_ports_is_left_out(device: RuleDevice) -> None:
    assert INSIDE not in device.scenarios
    assert set(device.scenarios) < set(SCENARIOS)


def test_many_cells_are_driven_through_less(rule: IntegerRule) -> None:
    program = Program.compile(rule)
    assert RuleDevice(program, MANY + 1, 1).scenarios == OF_MANY
    assert set(OF_MANY) < set(RuleDevice(program, MANY, 1).scenarios)


def test_slow_simulator_drives_less(rule: IntegerRule) -> None:
    program = Program.compile(rule)
    assert RuleDevice(program, 3, 4, slow=True).scenarios == OF_SLOW
    assert set(OF_SLOW) < set(RuleDevice(program, 3, 4).scenarios)


# What was exercised.


def trace_of(*clocks: tuple[dict[str, int], int]) -> Trace:
    fields = (*Inputs._fields, *Outputs._fields)
    rows = [[*(given.get(name, 0) for name in fields), turns] for given, turns in clocks]
    return Trace(
        ("x",), np.array(rows), np.array([len(rows)]), np.array([0.0]), np.empty((0, 2), np.int64)
    )


def test_port_that_never_changes_and_one_of_the_users_own_are_named(
    device: RuleDevice, tmp_path: Path
) -> None:
    emit(device.programs[0], 3, 4, tmp_path)
    path = tmp_path / "retina.v"
    text = path.read_text()
    head = re.search(r"module retina\((.*?)\);", text, re.DOTALL)
    assert head is not None
    path.write_text(text.replace(head[0], f"module retina({head[1]}, scan_in);\n  input scan_in;"))
    trace = trace_of(
        ({"samples_valid": 1, "x": 3, "address": 1, "frames": 5}, 1),
        ({"y": 2, "code": -1, "address": 1, "write": 1, "frames": 4, "read_data": -1}, 10),
    )
    found = {use.name: use for use in uses(device, trace, tmp_path)}
    assert set(top_ports(tmp_path)) <= set(found)
    assert found["clk"].detail == "11 clocks"
    assert found["samples__valid"].exercised and not found["rst"].exercised
    assert found["rst"].detail == "0 of 1 bits were 0 and 1"
    assert found["frames"].detail == "1 of 16 bits were 0 and 1"
    code, targets = device.programs[0].rule.code_bits, len(device.programs[0].rule.targets)
    moved = 3 + code  # all but the lowest bit of y and the target
    bits = 4 + code + (targets - 1).bit_length()
    assert found["samples__payload"].detail == f"{moved} of {bits} bits were 0 and 1"
    assert not found["registers__read_data"].exercised  # it was X, which is no bit
    assert (found["scan_in"].exercised, found["scan_in"].detail) == (
        False,
        "not of the contract: left open",
    )
    assert found["registers: FRAMES"].detail == "read 2 times, written 1 times"
    assert not found["registers: STATUS"].exercised


@pytest.mark.parametrize(
    "head",
    [
        "module retina(clk, rst, busy);",
        "module retina (input wire clk, input rst, // reset\n output reg [3:0] busy);",
        "module retina #(parameter A = 3) (\n  input clk, input [1:0] rst,\n  output busy\n);",
    ],
)
def test_ports_are_read_from_any_head(head: str, device: RuleDevice, tmp_path: Path) -> None:
    emit(device.programs[0], 3, 4, tmp_path)
    (tmp_path / "retina.v").write_text(f"/* module retina(x); */ {head}\nendmodule\n")
    assert top_ports(tmp_path) == ["clk", "rst", "busy"]


# Clocks in which nothing changes.


def busy_model(device: RuleDevice, command: Op) -> DeviceModel:
    model = device.model()
    model.clock(Inputs(1, *[0] * 12), Outputs(*[0] * 11))
    quiet, answer = Inputs(*[0] * 13)._replace(address=7), Outputs(*[0] * 11)
    for _ in range(model.clocks.clear):
        model.clock(quiet, answer._replace(busy=1, read_data=0))
    told = answer._replace(samples_ready=1, commands_ready=1)
    model.clock(quiet, told)
    model.clock(quiet._replace(commands_valid=1, op=command, argument=1), told)
    return model


@pytest.mark.parametrize("command", [Op.RUN, Op.READ, Op.FRAME, Op.FORGET])
@pytest.mark.parametrize("ready", [0, 1])
@pytest.mark.parametrize("valid", [0, 1])
def test_many_clocks_in_turn_are_what_they_are_one_by_one(
    device: RuleDevice, command: Op, ready: int, valid: int
) -> None:
    quiet = Inputs(*[0] * 13)._replace(address=7)
    shown = Outputs(*[0] * 11)._replace(busy=1, samples_ready=ready, pixels_valid=valid)
    clocks = device.model().clocks
    routines = (clocks.step, clocks.forget, clocks.read + clocks.move)
    ends = {near + offset for near in (0, *routines) for offset in (1, 2, 3, 5, 16, 17, 18, 40, 70)}
    for turns in sorted(ends):
        together, alone = busy_model(device, command), busy_model(device, command)
        found = []
        for model, times, each in ((together, 1, turns), (alone, turns, 1)):
            try:
                for _ in range(times):
                    model.clock(quiet, shown, each)
            except Mismatch as mismatch:
                found.append(mismatch.signal)
            else:
                found.append((model.phase, model.waited, model.elapsed, model.stalled))
        assert found[0] == found[1], turns


# A verdict over nothing.


def test_clip_of_which_no_pixel_arrives_verifies_nothing(rule: IntegerRule) -> None:
    frames = np.full((1, 2, 2), 0.5, np.float32)
    with pytest.raises(InputError) as error:
        verify(rule, frames, Extent(2, 2, 1), density=1e-9)
    assert str(error.value) == (
        "clip clip: no pixel of 1 frame(s) of 2 x 2 arrives at density 1e-09 and seed 0, so that "
        "nothing would be seen: raise the density, or show more or larger frames"
    )
