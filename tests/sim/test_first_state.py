"""What is written into the cells from outside: a first state, and several events, on the gates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from scotopia.graph.build import Builder
from scotopia.graph.qformat import QFormat
from scotopia.graph.surroundings import Event, Initial
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.retina import Retina
from scotopia.hdl.sequencer import Op
from scotopia.quantize.integer_rule import GraphRule
from scotopia.sim.amaranth_bench import decode, run_amaranth, stream_get, stream_put
from scotopia.sim.ports import RuleDevice
from scotopia.sim.simulators import Bench
from scotopia.sim.stimulus import Stimulus
from scotopia.sim.stress import StressBench, check_trace
from scotopia.sim.verify import Extent, Material, run_program, verify

HEIGHT, WIDTH = 3, 4
WIDE, NARROW = QFormat(2, 6), QFormat(1, 3, signed=False)
BIT = QFormat(1, 0, signed=False)


def growing() -> GraphRule:
    """A rule of which zeros stay zeros, and that grows from one cell."""
    build = Builder()
    x, y = build.channels({"x": WIDE, "y": NARROW})
    around = build.linear(x, np.full((1, 1, 9), 0.25), [0], "zero")
    after = {"x": around.fit(WIDE), "y": (y + x * 0.5).maximum(0).fit(NARROW)}
    return GraphRule(build.graph(after), 3, initial=Initial.cell(np.array([-1.5, 1.25])))


def seen() -> GraphRule:
    """A rule of three events, two with a flag, of three formats."""
    build = Builder()
    formats = {"a": WIDE, "hot": BIT, "b": NARROW, "c": QFormat(1, 4), "new": BIT}
    (x,) = build.channels({"x": WIDE})
    a, hot, b, c, new = build.inputs(formats)
    x = build.where(hot, a, x) + build.where(new, c, b * 0.25)
    events = Event("a", "hot"), Event("b"), Event("c", "new")
    return GraphRule(build.graph({"x": x.fit(WIDE)}), 2, events, Initial.cell(np.array([1.0])))


RULES = [growing, seen]


def stimulus_of(rule: GraphRule) -> Stimulus:
    rng = np.random.default_rng(4)
    shape = (3, HEIGHT, WIDTH)
    return Stimulus.of(rule, rng.random(shape), rng.random(shape) < 0.6)


def test_of_several_events_each_sees_its_own() -> None:
    rule = seen()
    stimulus = stimulus_of(rule)
    assert stimulus.mask.shape == (3, 3, HEIGHT, WIDTH)
    assert stimulus.mask[:, 0].any() and (stimulus.mask[:, 0] != stimulus.mask[:, 1]).any()
    for event, (_, format) in enumerate(rule.targets[:3]):
        codes = stimulus.samples[:, event]
        assert codes.min() >= format.lowest and codes.max() <= format.highest
        assert len(np.unique(codes)) > 6
    state = stimulus.expected[0]  # after one step, by hand
    a, b, c = stimulus.samples[0]
    hot, _, new = stimulus.mask[0]
    first = rule.initial_state(HEIGHT, WIDTH)[0]
    expected = np.where(hot, a, first) + np.where(new, c << 2, b << 1)
    np.testing.assert_array_equal(state[0], np.clip(expected, WIDE.lowest, WIDE.highest))


def test_without_events_nothing_arrives() -> None:
    stimulus = stimulus_of(growing())
    assert not stimulus.mask.any() and not stimulus.samples.any()
    assert stimulus.expected.any()  # it grew all the same


def test_loads_make_the_first_state() -> None:
    rule = growing()
    state = rule.cleared_state(5, 5)
    assert not state.any()
    for target, y, x, code in rule.loads(5, 5):
        state[target, y, x] = code
    np.testing.assert_array_equal(state, rule.initial_state(5, 5))
    assert list(rule.loads(5, 5)) == [(0, 2, 2, -96), (1, 2, 2, 10)]


@pytest.mark.parametrize("make", RULES)
def test_program_and_amaranth_start_from_it(make: Callable[[], GraphRule]) -> None:
    program, stimulus = Program.compile(make()), stimulus_of(make())
    np.testing.assert_array_equal(run_program(program, stimulus), stimulus.expected)
    np.testing.assert_array_equal(run_amaranth(program, stimulus)[0], stimulus.expected)


@pytest.mark.parametrize("make", RULES)
def test_verilog_starts_from_it_and_keeps_the_contract(
    make: Callable[[], GraphRule], tmp_path: Path
) -> None:
    rule, stimulus = make(), stimulus_of(make())
    program = Program.compile(rule)
    emit(program, HEIGHT, WIDTH, tmp_path)
    with Bench("verilator") as bench:
        found, _cycles = bench.run(rule, tmp_path, stimulus)
    np.testing.assert_array_equal(found, stimulus.expected)
    device = RuleDevice(program, HEIGHT, WIDTH)
    scenarios = ("every channel loaded", "samples outside the array", "random traffic")
    with StressBench("verilator") as bench:
        trace = bench.trace(device, tmp_path, 0, scenarios)
    assert [finding.detail for finding in check_trace(device, trace)] == [""] * 3


def test_a_word_that_is_not_there_is_dropped() -> None:
    rule = growing()  # two channels and no event; a third makes an address of two bits
    build = Builder()
    x, y, z = build.channels({"x": WIDE, "y": NARROW, "z": NARROW})
    rule = GraphRule(build.graph({"x": (x + y).fit(WIDE), "y": y, "z": z}))
    device = Retina(Program.compile(rule), 2, 2)
    found = []

    async def bench(ctx: Any) -> None:
        for target, code in ((0, -100), (1, 9), (3, 7), (1, 3), (2, 15)):
            event = {"x": 1, "y": 0, "code": code, "target": target}
            await stream_put(ctx, device.samples, event)
        for channel, format in enumerate(rule.channel_formats):
            await stream_put(ctx, device.commands, {"op": Op.READ, "argument": channel})
            pixels = [(await stream_get(ctx, device.pixels)).code for _ in range(4)]
            found.append([decode(pixel, format) for pixel in pixels])
        assert (ctx.get(device.dropped), ctx.get(device.error)) == (1, 1)

    simulator = Simulator(device)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == [[0, -100, 0, 0], [0, 3, 0, 0], [0, 15, 0, 0]]


def test_every_stage_of_the_proof_starts_from_it() -> None:
    frames = np.random.default_rng(0).random((2, 6, 6), np.float32)
    stages = verify(growing(), frames, Extent(5, 5, 2), ports=False)
    assert all(stage.passed for stage in stages), [s.detail for s in stages if not s.passed]
    material = Material(growing(), frames, Extent(5, 5, 2))
    assert material.stimulus().expected[-1].any()
