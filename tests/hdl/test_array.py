import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from amaranth import Elaboratable, ResetInserter, Signal
from amaranth.sim import Simulator

from scotopia.hdl.array import beyond
from scotopia.hdl.program import Program
from scotopia.hdl.retina import Retina
from scotopia.hdl.sequencer import Op
from scotopia.model.config import INPUTS
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.qformat import IntArray
from scotopia.sim.amaranth_bench import decode, run_amaranth, stream_get, stream_put

Make = Callable[..., Any]  # a fixture of conftest.py
Testbench = Callable[[Any], Awaitable[None]]


@pytest.fixture
def tiny_rule(small_config: Make, random_rule: Make) -> Callable[..., IntegerRule]:
    def make(
        kind: str = "gated", border: str = "replicate", inputs: tuple[str, ...] = ("valid",)
    ) -> IntegerRule:
        config = small_config(kind=kind, border=border, channels=2, hidden=2, inputs=inputs)
        # The hidden words are unsigned and the widest: no bit of a word is always a sign.
        rule: IntegerRule = random_rule(0, config, Precision(3, 5, 6, 3))
        return rule

    return make


def simulate(device: Elaboratable, *benches: Testbench) -> None:
    simulator = Simulator(device)
    simulator.add_clock(1e-8)
    for bench in benches:
        simulator.add_testbench(bench)
    simulator.run_until(1e-8 * 20_000)  # far more clocks than any test here takes


async def send(ctx: Any, device: Retina, samples: IntArray, mask: Any) -> None:
    for y, x in np.argwhere(mask):
        event = {"x": int(x), "y": int(y), "code": int(samples[y, x])}
        await stream_put(ctx, device.samples, event)


async def command(ctx: Any, device: Retina, op: Op, argument: int = 0) -> None:
    await stream_put(ctx, device.commands, {"op": op, "argument": argument})


async def read(ctx: Any, device: Retina, channel: int) -> IntArray:
    await command(ctx, device, Op.READ, channel)
    return await receive(ctx, device, channel)


async def receive(ctx: Any, device: Retina, channel: int, stalls: Any = None) -> IntArray:
    format = device.program.rule.channel_formats[channel]
    codes = np.zeros((device.height, device.width), np.int64)
    for y, x in np.ndindex(codes.shape):
        if stalls is not None:
            await ctx.tick().repeat(int(stalls.integers(0, 4)) + 1)
        codes[y, x] = decode((await stream_get(ctx, device.pixels)).code, format)
    return codes


async def read_all(ctx: Any, device: Retina) -> IntArray:
    channels = range(len(device.program.rule.channel_formats))
    return np.stack([await read(ctx, device, channel) for channel in channels])


@pytest.mark.parametrize(
    ("border", "seen"),
    [
        ("zero", [None, None, 0, 1, 2, None, None]),
        ("replicate", [0, 0, 0, 1, 2, 2, 2]),
        ("wrap", [1, 2, 0, 1, 2, 0, 1]),
    ],
)
def test_what_lies_beyond_the_border(border: str, seen: list[int | None]) -> None:
    assert [beyond(index, 3, border) for index in range(-2, 5)] == seen


@pytest.mark.parametrize(
    ("kind", "border", "height", "width", "inputs"),
    [
        *(
            (kind, border, 2, 3, INPUTS)
            for kind, border in itertools.product(
                ["gated", "residual"], ["zero", "replicate", "wrap"]
            )
        ),
        ("gated", "wrap", 1, 1, INPUTS),
        ("residual", "zero", 3, 1, ("sample",)),
        ("gated", "replicate", 1, 2, ()),
    ],
)
def test_device_is_the_rule(
    kind: str,
    border: str,
    height: int,
    width: int,
    inputs: tuple[str, ...],
    tiny_rule: Make,
    random_stimulus: Make,
) -> None:
    rule = tiny_rule(kind, border, inputs)
    stimulus = random_stimulus(rule, 1, 2, height, width)
    found, _cycles = run_amaranth(Program.compile(rule), stimulus)
    np.testing.assert_array_equal(found, stimulus.expected)


def test_sample_outside_the_array_changes_nothing(tiny_rule: Make) -> None:
    rule = tiny_rule()
    device = Retina(Program.compile(rule), 3, 3)
    found = []

    async def bench(ctx: Any) -> None:
        for x, y in [(3, 0), (0, 3), (3, 3), (3, 2)]:
            await stream_put(ctx, device.samples, {"x": x, "y": y, "code": 5})
        await command(ctx, device, Op.RUN, 1)
        found.append(await read_all(ctx, device))

    simulate(device, bench)
    nothing = np.zeros((3, 3), np.int64)
    expected = rule.step(rule.initial_state(3, 3), nothing, nothing > 0)
    np.testing.assert_array_equal(found, [expected])


def test_frame_runs_its_steps_forgets_and_sends_the_prediction(
    tiny_rule: Make, random_stimulus: Make
) -> None:
    rule = tiny_rule(inputs=INPUTS)
    stimulus = random_stimulus(rule, 2, 2, 2, 3)
    device = Retina(Program.compile(rule), 2, 3)
    found = []

    async def bench(ctx: Any) -> None:
        for samples, mask in zip(stimulus.samples, stimulus.mask, strict=True):
            await send(ctx, device, samples, mask)
            await command(ctx, device, Op.FRAME)
            found.append(await receive(ctx, device, 0))

    simulate(device, bench)
    steps = rule.config.steps_per_frame
    np.testing.assert_array_equal(found, stimulus.expected[steps - 1 :: steps, 0])


def test_several_steps_can_be_run_at_once(tiny_rule: Make, random_stimulus: Make) -> None:
    rule = tiny_rule()
    stimulus = random_stimulus(rule, 3, 1, 2, 2)
    device = Retina(Program.compile(rule), 2, 2)
    found = []

    async def bench(ctx: Any) -> None:
        await send(ctx, device, stimulus.samples[0], stimulus.mask[0])
        await command(ctx, device, Op.RUN, 5)
        found.append(await read_all(ctx, device))

    simulate(device, bench)
    state = rule.initial_state(2, 2)
    for _ in range(5):
        state = rule.step(state, stimulus.samples[0], stimulus.mask[0])
    np.testing.assert_array_equal(found, [state])


@pytest.mark.parametrize("seed", range(3))
def test_stalled_pixels_are_neither_lost_nor_changed(
    seed: int, tiny_rule: Make, random_stimulus: Make
) -> None:
    rule = tiny_rule()
    stimulus = random_stimulus(rule, 4, 1, 3, 2)
    device = Retina(Program.compile(rule), 3, 2)
    found = []

    async def bench(ctx: Any) -> None:
        await send(ctx, device, stimulus.samples[0], stimulus.mask[0])
        await command(ctx, device, Op.FRAME)
        found.append(await receive(ctx, device, 0, np.random.default_rng(seed)))

    async def watch(ctx: Any) -> None:
        pixels, waiting = device.pixels, None
        async for _, _, valid, ready, code in ctx.tick().sample(
            pixels.valid, pixels.ready, pixels.payload
        ):
            if waiting is not None:  # what was offered and not taken is offered still
                assert valid and code == waiting
            waiting = code if valid and not ready else None
            if found:
                break

    simulate(device, bench, watch)
    np.testing.assert_array_equal(found, stimulus.expected[-1:, 0])


def test_sample_offered_together_with_a_command_goes_first(tiny_rule: Make) -> None:
    rule = tiny_rule(inputs=INPUTS)
    device = Retina(Program.compile(rule), 2, 2)
    samples, mask = np.array([[3, -4], [5, -6]]), np.array([[True, True], [False, True]])
    found = []

    async def sensor(ctx: Any) -> None:
        await send(ctx, device, samples, mask)  # one a clock, without a gap

    async def driver(ctx: Any) -> None:
        await command(ctx, device, Op.RUN, 1)  # offered from the first clock on
        found.append(await read_all(ctx, device))

    simulate(device, driver, sensor)
    np.testing.assert_array_equal(found, [rule.step(rule.initial_state(2, 2), samples, mask)])


@pytest.mark.parametrize("inputs", [INPUTS, ("sample", "trace")])
def test_samples_belong_to_their_frame_only(inputs: tuple[str, ...], tiny_rule: Make) -> None:
    rule = tiny_rule(inputs=inputs)
    device = Retina(Program.compile(rule), 2, 2)
    samples, mask = np.array([[3, -4], [5, -6]]), np.array([[True, False], [False, True]])
    found = []

    async def bench(ctx: Any) -> None:
        await send(ctx, device, samples, mask)
        await command(ctx, device, Op.FORGET)
        await command(ctx, device, Op.RUN, 1)
        found.append(await read_all(ctx, device))

    simulate(device, bench)
    state = rule.initial_state(2, 2)  # the first step of a frame takes samples, none was done
    np.testing.assert_array_equal(found, [rule.step(state, samples, mask & False)])


def test_busy_is_low_while_idle_only(tiny_rule: Make) -> None:
    program = Program.compile(tiny_rule())
    device = Retina(program, 2, 2)
    busy: list[int] = []

    async def bench(ctx: Any) -> None:
        ready = (device.samples.ready, device.commands.ready)
        for number in range(len(program.words)):  # a word a clock is cleared after reset
            assert ctx.get(device.busy), f"idle at clock {number}"
            assert not any(map(ctx.get, ready))
            await ctx.tick()
        assert not ctx.get(device.busy)
        assert all(map(ctx.get, ready))
        await stream_put(ctx, device.samples, {"x": 0, "y": 0, "code": 1})
        assert not ctx.get(device.busy)
        await command(ctx, device, Op.RUN, 2)
        while ctx.get(device.busy):
            assert not any(map(ctx.get, ready))
            busy.append(1)
            await ctx.tick()

    simulate(device, bench)
    # An operation a clock, and two more until the last one has been executed.
    assert len(busy) == 2 * program.cycles_per_step + 2


def test_reset_brings_the_state_to_zeros(tiny_rule: Make, random_stimulus: Make) -> None:
    rule = tiny_rule(inputs=INPUTS)
    stimulus = random_stimulus(rule, 5, 1, 2, 2)
    device, reset = Retina(Program.compile(rule), 2, 2), Signal()
    found = []

    async def bench(ctx: Any) -> None:
        for clocks in (0, 7, 50):  # reset while idle, and in the midst of a step
            await send(ctx, device, stimulus.samples[0] | 1, stimulus.mask[0] | True)
            await command(ctx, device, Op.RUN, 2)
            if clocks == 0:
                before = await read_all(ctx, device)
                assert (before != 0).any(axis=(1, 2)).all()
            await ctx.tick().repeat(clocks + 1)
            ctx.set(reset, 1)
            await ctx.tick()
            ctx.set(reset, 0)
            found.append(await read_all(ctx, device))
            await command(ctx, device, Op.RUN, 1)  # the valid flags are cleared too
            found.append(await read_all(ctx, device))

    simulate(ResetInserter(reset)(device), bench)
    zeros = rule.initial_state(2, 2)
    expected = [zeros, rule.step(zeros, zeros[0], zeros[0] > 0)] * 3
    np.testing.assert_array_equal(found, expected)
