import dataclasses
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from amaranth import Elaboratable, ResetInserter, Signal
from amaranth.sim import Simulator

from scotopia.graph.qformat import IntArray
from scotopia.hdl.program import LATENCY, Program
from scotopia.hdl.retina import Retina
from scotopia.hdl.sequencer import InstructionLayout, Op, Register, program_depth, shape_code
from scotopia.model.config import INPUTS
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import IntegerRule
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
    async def patience(ctx: Any) -> None:
        clocks = 0
        async for _ in ctx.tick():
            clocks += 1
            assert clocks < 60_000, "the device hangs"  # far more than any test here takes

    simulator = Simulator(device)
    simulator.add_clock(1e-8)
    for bench in benches:
        simulator.add_testbench(bench)
    simulator.add_testbench(patience, background=True)
    simulator.run()


async def idle(ctx: Any, device: Retina) -> None:
    """Wait until the device is idle."""
    while ctx.get(device.busy):
        await ctx.tick()


async def exchange(ctx: Any, device: Retina, register: Register, value: int | None = None) -> int:
    """Read a register, or write it."""
    bus = device.registers
    ctx.set(bus.address, register)
    ctx.set(bus.write, value is not None)
    ctx.set(bus.write_data, value or 0)
    await ctx.tick()
    ctx.set(bus.write, 0)
    return int(ctx.get(bus.read_data))


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


@pytest.mark.parametrize(("fire_rate", "dither"), [(0.5, 0), (1.0, 2), (0.5, 2)])
def test_device_draws_the_rules_random_bits(
    fire_rate: float, dither: int, small_config: Make, random_rule: Make, random_stimulus: Make
) -> None:
    config = small_config(channels=2, hidden=2, inputs=("valid",), fire_rate=fire_rate)
    rule = random_rule(0, config, Precision(3, 5, 6, 3))
    rule = dataclasses.replace(rule, dither=dither, noise_seed=77)
    stimulus = random_stimulus(rule, 1, 2, 2, 3)
    found, _cycles = run_amaranth(Program.compile(rule), stimulus)
    np.testing.assert_array_equal(found, stimulus.expected)


def test_sample_outside_the_array_is_counted_and_changes_nothing(tiny_rule: Make) -> None:
    rule = tiny_rule()
    device = Retina(Program.compile(rule), 3, 3)
    found, seen = [], []

    async def bench(ctx: Any) -> None:
        await idle(ctx, device)
        seen.append((ctx.get(device.dropped), ctx.get(device.error)))
        for x, y in [(3, 0), (0, 3), (3, 3), (3, 2)]:
            await stream_put(ctx, device.samples, {"x": x, "y": y, "code": 5})
        seen.append((ctx.get(device.dropped), ctx.get(device.error)))
        await command(ctx, device, Op.RUN, 1)
        found.append(await read_all(ctx, device))

    simulate(device, bench)
    nothing = np.zeros((3, 3), np.int64)
    expected = rule.step(rule.initial_state(3, 3), rule.given(nothing, nothing > 0))
    np.testing.assert_array_equal(found, [expected])
    assert seen == [(0, 0), (4, 1)]


def test_samples_during_a_step_are_counted_and_change_nothing(
    tiny_rule: Make, random_stimulus: Make
) -> None:
    rule = tiny_rule(inputs=INPUTS)
    stimulus = random_stimulus(rule, 2, 1, 2, 3)
    device = Retina(Program.compile(rule), 2, 3)
    found = []

    async def bench(ctx: Any) -> None:
        await send(ctx, device, stimulus.samples[0], stimulus.mask[0])
        await command(ctx, device, Op.RUN, 2)
        for _ in range(40):  # a few at a time, all through the first step
            for clock in range(5):
                await stream_put(ctx, device.samples, {"x": clock % 3, "y": 1, "code": -3})
            await ctx.tick().repeat(11)
        found.append(await read_all(ctx, device))
        assert (ctx.get(device.dropped), ctx.get(device.error)) == (200, 1)

    simulate(device, bench)
    np.testing.assert_array_equal(found, stimulus.expected[1:2])


def test_last_of_several_samples_of_a_pixel_counts(tiny_rule: Make) -> None:
    rule = tiny_rule(inputs=INPUTS)
    device = Retina(Program.compile(rule), 2, 2)
    found = []

    async def bench(ctx: Any) -> None:
        for code in (7, -8, 5):
            await stream_put(ctx, device.samples, {"x": 1, "y": 0, "code": code})
        await command(ctx, device, Op.RUN, 1)
        found.append(await read_all(ctx, device))

    simulate(device, bench)
    samples = np.array([[0, 5], [0, 0]])
    np.testing.assert_array_equal(
        found, [rule.step(rule.initial_state(2, 2), rule.given(samples, samples != 0))]
    )


def test_registers_tell_what_happened(tiny_rule: Make) -> None:
    program = Program.compile(tiny_rule())
    device = Retina(program, 2, 3)
    seen: dict[str, int] = {}

    async def bench(ctx: Any) -> None:
        seen["start"] = await exchange(ctx, device, Register.STATUS)
        await stream_put(ctx, device.samples, {"x": 3, "y": 0, "code": 5})
        await command(ctx, device, Op.FRAME)
        await receive(ctx, device, 0)
        await idle(ctx, device)
        for register in Register:
            seen[register.name] = await exchange(ctx, device, register)
        await exchange(ctx, device, Register.STATUS, 2)
        seen["cleared"] = await exchange(ctx, device, Register.STATUS)
        seen["count"] = await exchange(ctx, device, Register.DROPPED)
        assert (ctx.get(device.frames), ctx.get(device.error)) == (1, 0)

    simulate(device, bench)
    assert seen == {
        "start": 1,
        "STATUS": 2,
        "FRAMES": 1,
        "DROPPED": 1,
        "PROGRAM_ADDRESS": 0,
        "PROGRAM_LOW": 0,
        "PROGRAM_HIGH": 0,
        "SHAPE": shape_code(program, 2, 3),
        "cleared": 0,
        "count": 0,
    }


def test_another_rule_of_the_same_shape_can_be_loaded_between_frames(
    small_config: Make, random_rule: Make, random_stimulus: Make
) -> None:
    config = small_config(channels=2, hidden=2, inputs=("valid",))
    first, second = (random_rule(seed, config, Precision(3, 5, 6, 3)) for seed in (0, 1))
    old, new = Program.compile(first), Program.compile(second)
    assert shape_code(old, 2, 2) == shape_code(new, 2, 2)
    assert len(new.instructions) <= program_depth(old)
    device = Retina(old, 2, 2)
    stimulus = random_stimulus(first, 5, 2, 2, 2)
    found = []

    async def bench(ctx: Any) -> None:
        layout = InstructionLayout(new)
        for number, rule in enumerate((first, second)):
            if rule is second:
                await idle(ctx, device)
                await exchange(ctx, device, Register.PROGRAM_ADDRESS, 0)
                for code in map(layout.encode, new.instructions):
                    await exchange(ctx, device, Register.PROGRAM_LOW, code & 0xFFFFFFFF)
                    await exchange(ctx, device, Register.PROGRAM_HIGH, code >> 32)
            await send(ctx, device, stimulus.samples[number], stimulus.mask[number])
            await command(ctx, device, Op.FRAME)
            found.append(await receive(ctx, device, 0))

    simulate(device, bench)
    state = first.initial_state(2, 2)
    for number, rule in enumerate((first, second)):
        for _ in range(config.steps_per_frame):
            state = rule.step(state, rule.given(stimulus.samples[number], stimulus.mask[number]))
        np.testing.assert_array_equal(found[number], state[0])


def test_program_is_not_written_while_it_runs(tiny_rule: Make, random_stimulus: Make) -> None:
    rule = tiny_rule()
    program = Program.compile(rule)
    stimulus = random_stimulus(rule, 6, 1, 2, 2)
    device = Retina(program, 2, 2)
    found = []

    async def bench(ctx: Any) -> None:
        await send(ctx, device, stimulus.samples[0], stimulus.mask[0])
        await command(ctx, device, Op.RUN, 2)
        await exchange(ctx, device, Register.PROGRAM_ADDRESS, program.entries["step"])
        for _ in range(20):
            await exchange(ctx, device, Register.PROGRAM_HIGH, 0)
        found.append(await read_all(ctx, device))

    simulate(device, bench)
    np.testing.assert_array_equal(found, stimulus.expected[1:2])


def test_shapes_that_differ_have_other_codes(tiny_rule: Make) -> None:
    program = Program.compile(tiny_rule())
    others = [Program.compile(tiny_rule(border="wrap")), Program.compile(tiny_rule(), 256)]
    codes = {shape_code(each, 2, 2) for each in (program, *others)}
    assert len(codes | {shape_code(program, 2, 3)}) == 4


def test_channel_that_is_not_there_sends_nothing(tiny_rule: Make) -> None:
    rule = tiny_rule()
    device = Retina(Program.compile(rule), 2, 2)
    sent: list[int] = []

    async def bench(ctx: Any) -> None:
        await idle(ctx, device)
        ctx.set(device.pixels.ready, 1)
        for channel in (4, 255):
            await command(ctx, device, Op.READ, channel)
            for _ in range(100):
                sent.append(ctx.get(device.pixels.valid))
                await ctx.tick()
        assert not ctx.get(device.busy)
        await command(ctx, device, Op.RUN, 0)  # no steps: nothing to wait for
        await ctx.tick().repeat(3)
        assert not ctx.get(device.busy)

    simulate(device, bench)
    assert not any(sent)


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
        state = rule.step(state, rule.given(stimulus.samples[0], stimulus.mask[0]))
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
        await send(ctx, device, samples, mask)  # without a gap

    async def driver(ctx: Any) -> None:
        await command(ctx, device, Op.RUN, 1)  # offered from the first clock on
        found.append(await read_all(ctx, device))

    simulate(device, driver, sensor)
    np.testing.assert_array_equal(
        found, [rule.step(rule.initial_state(2, 2), rule.given(samples, mask))]
    )


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
    np.testing.assert_array_equal(found, [rule.step(state, rule.given(samples, mask & False))])


def test_busy_is_low_while_idle_only(tiny_rule: Make) -> None:
    program = Program.compile(tiny_rule())
    device = Retina(program, 2, 2)
    busy = {"clear": 0, "sense": 0, "steps": 0}

    async def count(ctx: Any, what: str, samples: int) -> None:
        while ctx.get(device.busy):
            assert not ctx.get(device.commands.ready)
            assert ctx.get(device.samples.ready) in (0, samples)
            busy[what] += 1
            await ctx.tick()
        assert ctx.get(device.samples.ready) and ctx.get(device.commands.ready)

    async def bench(ctx: Any) -> None:
        await count(ctx, "clear", 0)
        await stream_put(ctx, device.samples, {"x": 0, "y": 0, "code": 1})
        await count(ctx, "sense", 0)
        await command(ctx, device, Op.RUN, 2)
        await count(ctx, "steps", 1)

    simulate(device, bench)
    # Two clocks to fetch, then the routine, then as many until the last bit has been written.
    around = 2 + LATENCY + 1
    assert busy == {
        "clear": 1 + program.cycles("clear", 2) + around,
        "sense": program.cycles("sense", 2) + around,
        "steps": 2 * (1 + program.cycles("step", 2) + around) + 1,
    }


def test_reset_brings_the_state_to_zeros(tiny_rule: Make, random_stimulus: Make) -> None:
    rule = tiny_rule(inputs=INPUTS)
    stimulus = random_stimulus(rule, 5, 1, 2, 2)
    device, reset = Retina(Program.compile(rule), 2, 2), Signal()
    found = []

    async def bench(ctx: Any) -> None:
        for clocks in (0, 7, 300):  # reset while idle, and in the midst of a step
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
    expected = [zeros, rule.step(zeros, rule.given(zeros[0], zeros[0] > 0))] * 3
    np.testing.assert_array_equal(found, expected)
