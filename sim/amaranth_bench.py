"""The array in Amaranth's own simulator: slow, but with nothing between Python and the design."""

from itertools import chain
from typing import Any

import numpy as np
from amaranth.lib import stream
from amaranth.sim import Simulator

from scotopia.graph.qformat import IntArray, QFormat
from scotopia.hdl.program import Program
from scotopia.hdl.retina import Retina
from scotopia.hdl.sequencer import Op

from .stimulus import Stimulus


async def stream_put(ctx: Any, port: stream.Interface, payload: dict[str, Any]) -> None:
    """Offer a payload until it is taken."""
    ctx.set(port.payload, payload)
    ctx.set(port.valid, 1)
    await ctx.tick().until(port.ready)
    ctx.set(port.valid, 0)


async def stream_get(ctx: Any, port: stream.Interface) -> Any:
    """Take a payload."""
    ctx.set(port.ready, 1)
    (payload,) = await ctx.tick().sample(port.payload).until(port.valid)
    ctx.set(port.ready, 0)
    return payload


def run_amaranth(program: Program, stimulus: Stimulus) -> tuple[IntArray, int]:
    """Run a stimulus through the simulated device, reading every channel.

    Returns
    -------
    states, cycles
        As `Stimulus.expected`, and the clock cycles of all that.
    """
    rule, (height, width) = program.rule, stimulus.shape
    device = Retina(program, height, width)
    formats = rule.channel_formats
    states = np.zeros_like(stimulus.expected)
    cycles = 0

    async def bench(ctx: Any) -> None:
        steps = 0
        written = rule.loads(height, width)
        for frame in range(len(stimulus.mask)):
            for target, y, x, code in chain(written, stimulus.arrivals(frame)):
                event = {"x": x, "y": y, "code": code, "target": target}
                await stream_put(ctx, device.samples, event)
            for _ in range(rule.steps_per_frame):
                await stream_put(ctx, device.commands, {"op": Op.RUN, "argument": 1})
                steps += 1
                if steps % stimulus.every:
                    continue
                for channel, format in enumerate(formats):
                    command = {"op": Op.READ, "argument": channel}
                    await stream_put(ctx, device.commands, command)
                    for y, x in np.ndindex(height, width):
                        pixel = await stream_get(ctx, device.pixels)
                        states[steps // stimulus.every - 1, channel, y, x] = decode(
                            pixel.code, format
                        )
                        assert (pixel.tuser, pixel.tlast) == (y == x == 0, x == width - 1)
            await stream_put(ctx, device.commands, {"op": Op.FORGET, "argument": 0})

    async def count(ctx: Any) -> None:
        nonlocal cycles
        async for _ in ctx.tick():
            cycles += 1

    simulator = Simulator(device)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.add_testbench(count, background=True)
    simulator.run()
    return states, cycles


def decode(word: int, format: QFormat) -> int:
    """Code of a word as it lies in memory: two's complement if the format is signed."""
    if format.signed and word >> (format.bits - 1) & 1:
        return (word & ((1 << format.bits) - 1)) - (1 << format.bits)
    return word
