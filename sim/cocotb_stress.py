"""Runs inside the simulator: drives the device's ports in every clock, and writes down all.

Each scenario is a way to be hard on the interfaces. It begins with a reset, draws from a seed of
its own, and keeps to what a device may ask of those around it: an offer stays until it is taken.
Nothing is compared here; the parent process holds what was written against `DeviceModel`.

A step of a rule that someone uses takes 100,000 clocks. While it runs, and nobody waits for
anything, inputs stay as they are, and the simulator goes on alone until an output changes.
"""

import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge, Timer

from scotopia.hdl.sequencer import Op, Register

from .cocotb_bench import FOLDER, RESULT
from .device_model import Inputs, Outputs

PLAN = "plan.json"

#: Port of each field of `Outputs`, but for the parts of the pixel.
READ = {
    "samples_ready": "samples__ready",
    "commands_ready": "commands__ready",
    "pixels_valid": "pixels__valid",
    "busy": "busy",
    "frames": "frames",
    "dropped": "dropped",
    "error": "error",
    "read_data": "registers__read_data",
}

WRITTEN = (
    "rst",
    "samples__valid",
    "samples__payload",
    "commands__valid",
    "commands__payload",
    "pixels__ready",
    "registers__address",
    "registers__write",
    "registers__write_data",
)

#: More signals of ports.v, by which its clocks are made.
BESIDE = ("clk", "pixels__payload", "go", "done", "quiet")

#: What `frames` is set to from behind, for FRAME 65,536 times would take hours.
FRAMES_BEFORE = 2**16 - 2

#: No scenario takes as many, but on a device that goes round in circles. Those in which nothing
#: changed count as one.
MOST_CLOCKS = 200_000

#: Clocks more for each word of the program: a scenario may load it several times over.
LOADS = 64

#: An array of more cells is driven less, for its raster alone takes as many clocks.
MANY = 256

#: A step that takes more clocks is long: the simulator goes on alone.
LONG_STEP = 600

#: x, y, code and target.
Sample = tuple[int, int, int, int]

#: A write to a register, and what the device answered in that clock.
Writes = Generator[tuple[int, int] | None, Outputs, None]


class HungError(Exception):
    """The device did nothing for longer than any command could take, or never came to an end."""


class Driver:
    """Offers samples and commands, takes pixels, reads and writes registers, a clock at a time.

    Attributes
    ----------
    samples, commands
        What is to be offered, in this order: (x, y, code, target) and (op, argument).
    sample_rate, command_rate, ready_rate
        How likely each is offered, or the pixel stream ready, in a clock.
    writes
        What is written to registers; an address is drawn and read in all other clocks.
    rst
        Whether reset is high.
    offered
        What is offered now.
    last
        What the device answered in the clock before.
    trace
        `Inputs` and `Outputs`, and for how many clocks in turn they were these.
    presets
        Entries of `trace` before which `frames` was set from behind, and to what.
    """

    def __init__(self, dut: Any, plan: dict[str, Any]) -> None:
        self.dut, self.plan = dut, plan
        self.width, self.height = plan["width"], plan["height"]
        self.channels, self.step = plan["channels"], plan["step"]
        self.span = min(self.step, LONG_STEP)  # of a step, in which something is offered
        self.written = [(getattr(dut, name), name) for name in WRITTEN]
        self.values: list[int | None] = [None] * len(WRITTEN)
        self.outputs = {field: getattr(dut, name) for field, name in READ.items()}
        self.payload = dut.pixels__payload
        self.trace: list[tuple[int, ...]] = []
        self.presets: list[tuple[int, int]] = []
        self.half = Timer(1, "ns")
        self.awake = RisingEdge(dut.done)
        #: the most clocks for which the simulator goes on alone
        self.alone = self.step // 3 if self.step > LONG_STEP else 0
        self.begin(Random(0))

    def begin(self, rng: Random) -> None:
        """Forget what a scenario left."""
        self.rng = rng
        self.samples: deque[Sample] = deque()
        self.commands: deque[tuple[int, int]] = deque()
        self.sample: Sample | None = None
        self.command: tuple[int, int] | None = None
        self.sample_rate = self.command_rate = self.ready_rate = 1.0
        self.writes: Writes | None = None
        self.write: tuple[int, int] | None = None
        self.rst = 0
        self.patience = 16 * self.step + 5000
        self.quiet = 0  # clocks in which nothing was taken
        self.limit = len(self.trace) + MOST_CLOCKS * max(1, self.width * self.height // 64)
        self.limit += LOADS * len(self.plan["words"][0])

    async def clock(self) -> Outputs:
        """Do one clock.

        Raises
        ------
        HungError
            If the device did nothing for long, though it was asked to, or does not come to an end.
        """
        i, plan = self._inputs(), self.plan
        sample = i.target << plan["code_bits"] | i.code & (1 << plan["code_bits"]) - 1
        sample = (sample << plan["y_bits"] | i.y) << plan["x_bits"] | i.x
        values = [
            *(i.rst, i.samples_valid, sample),
            *(i.commands_valid, i.argument << 2 | i.op),
            *(i.pixels_ready, i.address, i.write, i.write_data),
        ]
        for index, (value, before) in enumerate(zip(values, self.values, strict=True)):
            if value != before:
                self.written[index][0].value = value
        self.values = list(values)
        self.dut.clk.value = 0
        await self.half
        return await self._end_clock(i)

    async def _end_clock(self, i: Inputs, turns: int = 1) -> Outputs:
        """Write down what the clock shows, and end it."""
        o = self._outputs()
        self.trace.append((*i, *o, turns))
        self.dut.clk.value = 1
        await self.half
        self.last, self.inputs = o, i
        self._follow(i, o)
        return o

    async def rest(self, most: int) -> int:
        """Let clocks pass while nothing changes; return how many, 0 if there is no rest here.

        One in which an output changed is the last one.
        """
        i, o = self.inputs, self.last
        taken = (i.samples_valid and o.samples_ready) or (i.commands_valid and o.commands_ready)
        if not self.alone or taken or self.rst or self.write or i.write:
            return 0
        if not o.busy and self.waiting:
            return 0
        if o.pixels_valid and self.ready_rate:  # it waits for what is drawn in every clock
            return 0
        dut, asked = self.dut, self.rng.randrange(1, 1 + min(most, self.alone))
        dut.quiet.value = asked
        dut.go.value = 1
        await self.awake
        dut.go.value = 0
        passed = asked - int(dut.quiet.value)
        if passed:
            self.trace.append((*self.inputs, *self.last, passed))
            self.quiet += passed
        if passed < asked:
            await self._end_clock(self.inputs)
        else:
            await self.half  # for `go` to fall
        return min(asked, passed + 1)

    def _inputs(self) -> Inputs:
        rng = self.rng
        if self.sample is None and self.samples and rng.random() < self.sample_rate:
            self.sample = self.samples.popleft()
        if self.command is None and self.commands and rng.random() < self.command_rate:
            self.command = self.commands.popleft()
        # What is not valid is anything, so that nothing can depend on it.
        x, y, code, target = self.sample or self.any_sample(everywhere=True)
        op, argument = self.command or (rng.randrange(4), rng.randrange(256))
        address, data = self.write or (rng.randrange(8), rng.getrandbits(32))
        return Inputs(
            self.rst,
            int(self.sample is not None),
            *(x, y, code, target),
            int(self.command is not None),
            *(op, argument),
            int(rng.random() < self.ready_rate),
            *(address, int(self.write is not None), data),
        )

    def _outputs(self) -> Outputs:
        numbers = {field: number(handle) for field, handle in self.outputs.items()}
        word, bits = number(self.payload), self.plan["word_bits"]
        parts = (word & (1 << bits) - 1, word >> bits & 1, word >> bits + 1)
        code, tuser, tlast = parts if word >= 0 else (-1, -1, -1)
        return Outputs(pixels_code=code, pixels_tuser=tuser, pixels_tlast=tlast, **numbers)

    def _follow(self, i: Inputs, o: Outputs) -> None:
        """Drop what was taken; get the next write."""
        self.quiet += 1
        if i.rst:
            self.quiet = 0
        else:
            if self.sample is not None and o.samples_ready == 1:
                self.sample, self.quiet = None, 0
            if self.command is not None and o.commands_ready == 1:
                self.command, self.quiet = None, 0
            if i.pixels_ready and o.pixels_valid == 1:
                self.quiet = 0
        if self.writes is not None:
            try:
                self.write = self.writes.send(o)
            except StopIteration:
                self.write = self.writes = None
        if self.quiet > self.patience or len(self.trace) > self.limit:
            raise HungError

    # For scenarios.

    def any_sample(self, everywhere: bool = False) -> Sample:
        """Draw a sample, inside the array or at any address that can be expressed.

        One in four, of a rule without events all, is for a channel of the state.
        """
        rng, plan = self.rng, self.plan
        width = 1 << plan["x_bits"] if everywhere else self.width
        height = 1 << plan["y_bits"] if everywhere else self.height
        half = 1 << (plan["code_bits"] - 1)
        code, target = rng.randrange(-half, half), rng.randrange(plan["events"] or 1)
        if everywhere and rng.random() < 0.2:
            target = rng.randrange(1 << max(1, (plan["targets"] - 1).bit_length()))
        elif not plan["events"] or rng.random() < 0.25:
            target = rng.randrange(plan["events"], plan["targets"])
        return rng.randrange(width), rng.randrange(height), code, target

    def frame_of_samples(self, density: float = 0.5) -> None:
        """Offer a sample to some of the cells."""
        cells = [(x, y) for y in range(self.height) for x in range(self.width)]
        for x, y in cells if len(cells) <= MANY else self.rng.sample(cells, MANY):
            if self.rng.random() < density:
                self.samples.append((x, y, *self.any_sample()[2:]))

    def start_writes(self, writes: Writes) -> None:
        """Begin to write registers."""
        self.writes = writes
        self.write = next(writes)

    async def clocks(self, count: int) -> None:
        """Do some clocks."""
        while count > 0:
            await self.clock()
            count -= 1
            if count > 0:
                count -= await self.rest(count)

    async def until(self, condition: Callable[[Outputs], bool]) -> None:
        """Go on until a clock in which something was so."""
        self.quiet = 0
        while not condition(await self.clock()):
            if await self.rest(self.alone) and condition(self.last):
                return

    @property
    def waiting(self) -> bool:
        """Whether something is offered, to be offered, or to be written."""
        return bool(self.samples or self.commands or self.sample or self.command or self.writes)

    async def finish(self) -> None:
        """Go on until all was taken and written, and the device is idle."""
        self.quiet = 0
        while True:
            busy = (await self.clock()).busy
            # A command that is taken now makes it busy.
            if not (busy or self.waiting) and self.quiet:
                return
            await self.rest(self.alone)

    async def reset(self, clocks: int = 1, keep: bool = False) -> None:
        """Reset the device; forget what is offered to it, or keep on offering that."""
        self.write = self.writes = None
        if not keep:
            self.sample = self.command = None
            self.samples.clear()
            self.commands.clear()
        self.rst = 1
        await self.clocks(clocks)
        self.rst = 0

    async def do(self, op: Op, argument: int = 0) -> None:
        """Have a command taken."""
        self.commands.append((op, argument))
        self.quiet = 0
        while self.commands or self.command is not None:
            await self.clock()
            await self.rest(self.alone)

    async def observe(self) -> None:
        """Read all channels; of many cells, the prediction and one other."""
        channels = list(range(self.channels))
        if self.width * self.height > MANY:
            channels = [0, self.rng.choice(channels)]
        self.commands.extend((Op.READ, channel) for channel in channels)
        await self.finish()


def number(handle: Any) -> int:
    """What a port has, -1 if it is no number."""
    try:
        return int(handle.value)
    except ValueError:
        return -1


Scenario = Callable[[Driver], Awaitable[None]]

#: All scenarios by their names. Those that load programs come last.
SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str) -> Callable[[Scenario], Scenario]:
    """Give a scenario its name."""

    def add(function: Scenario) -> Scenario:
        SCENARIOS[name] = function
        return function

    return add


def random_command(d: Driver) -> tuple[int, int]:
    """Draw a command, of those that do nothing some, too."""
    op = d.rng.choice(list(Op))
    argument = d.rng.randrange(256)
    if op is Op.RUN:
        argument = d.rng.choice((0, 1, 1, 2, 3))
    elif op is Op.READ and d.rng.random() < 0.9:
        argument = d.rng.randrange(d.channels)
    return op, argument


@scenario("random stalls on every stream")
async def random_stalls(d: Driver) -> None:
    """Offer and take at random, at several densities."""
    for rate in (0.03, 0.2, 0.5, 0.9, 1.0):
        d.sample_rate, d.command_rate = rate, d.rng.choice((0.05, 0.5, 1.0))
        d.ready_rate = d.rng.choice((0.1, 0.5, 1.0)) if rate > 0.1 else rate
        d.frame_of_samples()
        await d.finish()
        d.commands.extend([(Op.FRAME, 0), (Op.READ, d.rng.randrange(d.channels))])
        await d.finish()
    d.ready_rate = 0.5
    await d.observe()


@scenario("pixels taken late, or never")
async def late_pixels(d: Driver) -> None:
    """Hold words back for long, at each word, and in the end reset a device that waits."""
    d.frame_of_samples(1)
    d.commands.append((Op.FRAME, 0))
    await d.finish()
    d.ready_rate = 0.0
    await d.do(Op.READ, d.rng.randrange(d.channels))
    await d.clocks(4 * d.step)
    for _ in range(d.width * d.height):
        d.ready_rate = 1.0
        await d.until(lambda o: o.pixels_valid == 1)
        d.ready_rate = 0.0
        await d.clocks(d.rng.randrange(60))
    d.ready_rate = 1.0
    await d.finish()
    d.ready_rate = 0.0
    await d.do(Op.FRAME)
    await d.clocks((d.plan["steps_per_frame"] + 2) * d.step + 300)
    await d.reset()
    d.ready_rate = 1.0
    await d.observe()


@scenario("samples in every clock")
async def samples_in_every_clock(d: Driver) -> None:
    """Never stop to offer samples, before, during and after steps."""
    for _ in range(3):
        d.samples.extend(d.any_sample() for _ in range(12))
        await d.finish()
        d.samples.append(d.any_sample())
        await d.do(d.rng.choice((Op.FRAME, Op.RUN)), 2)
        d.samples.extend(d.any_sample(everywhere=True) for _ in range(3 * d.span))
        await d.clocks(2 * d.span)
        while len(d.samples) > 6:
            d.samples.pop()
        await d.finish()
        await d.observe()


@scenario("samples that repeat a pixel")
async def samples_that_repeat(d: Driver) -> None:
    """Send several samples to one pixel: the last one counts, whatever its bits."""
    for _ in range(3):
        x, y, _code, target = d.any_sample()
        codes = [d.any_sample()[2] for _ in range(4)]
        d.samples.extend((x, y, code, target) for code in (*codes, -1, 0))
        d.samples.extend((d.any_sample()[0], y, code, target) for code in codes)
        d.samples.extend((x, y, code, target) for code in (*codes[::-1], 0, -1, codes[0]))
        await d.finish()
        await d.do(Op.RUN, 1)
        await d.observe()
        await d.do(Op.FORGET)


@scenario("no samples")
async def no_samples(d: Driver) -> None:
    """Run a cleared device, and one that has seen a frame, without any."""
    d.commands.extend([(Op.FRAME, 0), (Op.RUN, 1)])
    await d.observe()
    d.frame_of_samples(1)
    await d.finish()
    for _ in range(3):
        d.commands.append((Op.FRAME, 0))
        await d.observe()


@scenario("every channel loaded")
async def every_channel_loaded(d: Driver) -> None:
    """Load the rule's first state, then any codes, and run from there; load again in between.

    Samples for events come among them, so that none is taken for another word.
    """
    d.samples.extend((x, y, code, target) for target, y, x, code in d.plan["loads"])
    for steps in (2, 1, 1):
        d.commands.append((Op.RUN, steps))
        await d.observe()
        for target in range(d.plan["targets"]):
            for _ in range(min(d.width * d.height, 64)):
                x, y, code, _target = d.any_sample()
                d.samples.append((x, y, code, target))
        await d.observe()


@scenario("samples outside the array")
async def samples_outside(d: Driver) -> None:
    """Send to each address that can be expressed, at several times."""
    addresses = [(x, y) for y in range(1 << d.plan["y_bits"]) for x in range(1 << d.plan["x_bits"])]
    for rate in (1.0, 0.3):
        d.sample_rate = rate
        d.rng.shuffle(addresses)
        d.samples.extend((x, y, *d.any_sample(everywhere=True)[2:]) for x, y in addresses)
        d.commands.append((Op.RUN, 1))
        await d.finish()
        await d.observe()
    # One alone, with a command behind it: dropped, and the command is taken in the next clock.
    few = d.width * d.height <= 64  # a raster of many cells takes as many clocks
    for x, y in addresses[:64]:
        d.samples.append((x, y, *d.any_sample()[2:]))
        d.commands.append((Op.READ, d.rng.randrange(d.channels)) if few else (Op.FORGET, 0))
        await d.finish()


@scenario("a sample at each clock of a step")
async def sample_at_each_clock(d: Driver) -> None:
    """Offer one at so many clocks after RUN was taken: dropped in steps, waiting between them."""
    offsets = list(range(d.step + 24))
    if len(offsets) > d.plan["effort"]:
        edges = [*range(6), *range(d.step - 2, d.step + 24)]
        middle = d.rng.sample(offsets[6:-26], max(0, d.plan["effort"] - len(edges)))
        offsets = sorted({*edges, *middle})
    for offset in offsets:
        await d.do(Op.RUN, 1)
        await d.clocks(offset)
        d.samples.append(d.any_sample())
        await d.finish()
        d.commands.append((Op.FORGET, 0))
    await d.observe()
    for _ in range(4):
        await d.do(Op.RUN, 3)
        d.sample_rate = 0.5
        d.samples.extend(d.any_sample() for _ in range(d.span))
        await d.finish()
        d.samples.append(d.any_sample())
    await d.do(Op.RUN, 1)
    await d.observe()


@scenario("samples during a readout")
async def samples_during_readout(d: Driver) -> None:
    """Offer samples while words are sent: they wait, and then count."""
    for offset in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55):
        d.ready_rate = d.rng.choice((0.2, 0.6, 1.0))
        await d.do(Op.READ, d.rng.randrange(d.channels))
        await d.clocks(offset)
        d.samples.extend(d.any_sample() for _ in range(3))
        await d.finish()
        d.commands.append((Op.RUN, 1))
        await d.finish()
        await d.do(Op.FORGET)
        d.samples.append(d.any_sample())
        await d.finish()
    await d.do(Op.RUN, 1)
    await d.observe()


@scenario("samples and commands while the memory is cleared")
async def during_clear(d: Driver) -> None:
    """Offer them at once after a reset, at each clock of it, and with it."""
    clear = d.plan["clear"]
    middle = (d.rng.randrange(clear) for _ in range(8))
    for offset in (*range(4), *middle, *range(max(0, clear - 14), clear + 16, 3)):
        await d.reset()
        await d.clocks(offset)
        d.samples.extend(d.any_sample() for _ in range(2))
        d.commands.extend([(Op.RUN, 1), (Op.READ, d.rng.randrange(d.channels))])
        await d.finish()
    d.frame_of_samples()
    await d.do(Op.FRAME)
    await d.reset()
    d.commands.append((Op.RUN, 1))
    await d.observe()


@scenario("commands back to back")
async def back_to_back(d: Driver) -> None:
    """Offer a command in every clock."""
    d.frame_of_samples()
    await d.finish()
    d.commands.extend(random_command(d) for _ in range(20))
    await d.finish()
    for first in Op:  # each after each
        for second in Op:
            d.commands.extend([(first, 1), (second, 1)])
            if d.rng.random() < 0.5:
                d.samples.append(d.any_sample())
    await d.finish()
    await d.observe()


@scenario("RUN of 0 to 255 steps")
async def runs(d: Driver) -> None:
    """Do no step, and many."""
    d.frame_of_samples(1)
    await d.finish()
    d.commands.extend([(Op.RUN, 0), (Op.RUN, 0), (Op.RUN, 1), (Op.RUN, 0)])
    await d.observe()
    counts = [5, 255] if d.plan["long"] else [5, 8]
    d.patience = 256 * (d.step + 20)
    for count in counts:
        d.commands.append((Op.RUN, count))
        await d.observe()


@scenario("READ of a channel that is not there")
async def read_nothing(d: Driver) -> None:
    """Read beyond the last channel, among reads of others."""
    d.frame_of_samples(1)
    d.commands.append((Op.RUN, 1))
    await d.finish()
    none = [d.channels, d.channels + 1, d.channels | 64, d.channels | 128, 127, 128, 254, 255]
    for channel in none:
        d.commands.extend([(Op.READ, channel), (Op.READ, channel % d.channels)])
        if d.rng.random() < 0.5:
            await d.finish()
    await d.observe()


@scenario("FORGET ends the frame")
async def forget(d: Driver) -> None:
    """Step with and without FORGET in between, and send samples that count after it only."""
    for _ in range(3):
        d.frame_of_samples(0.7)
        await d.finish()
        d.commands.append((Op.RUN, 2))
        await d.observe()
        d.commands.extend([(Op.FORGET, 0), (Op.RUN, 1)])
        await d.observe()
        d.samples.append(d.any_sample())
        await d.finish()
        d.commands.append((Op.RUN, 1))
        await d.observe()
        d.commands.append((Op.FRAME, 0))
        await d.observe()


@scenario("random traffic")
async def random_traffic(d: Driver) -> None:
    """Do anything, at any time."""
    for _ in range(d.plan["effort"] // 6 + 3):
        d.sample_rate = d.rng.choice((0.01, 0.1, 1.0))
        d.command_rate = d.rng.choice((0.02, 0.3, 1.0))
        d.ready_rate = d.rng.choice((0.1, 0.5, 0.9, 1.0))
        d.samples.extend(
            d.any_sample(everywhere=d.rng.random() < 0.2) for _ in range(d.rng.randrange(12))
        )
        d.commands.extend(random_command(d) for _ in range(3))
        await d.clocks(d.rng.randrange(2 * d.step))
    await d.finish()
    d.ready_rate = 1.0
    await d.observe()


@scenario("reset at any time")
async def resets(d: Driver) -> None:
    """Reset in steps, frames, streams and samples, for one clock and for several."""
    for _ in range(d.plan["effort"] // 4 + 6):
        d.ready_rate = d.rng.choice((0.0, 0.3, 1.0))
        d.frame_of_samples(0.3)
        d.samples.append(d.any_sample(everywhere=True))
        d.commands.extend(random_command(d) for _ in range(3))
        d.sample_rate = d.command_rate = d.rng.choice((0.2, 1.0))
        await d.clocks(d.rng.choice((d.rng.randrange(120), d.rng.randrange(3 * d.step))))
        await d.reset(d.rng.choice((1, 1, 2, 3, 7)), keep=d.rng.random() < 0.3)
        if d.rng.random() < 0.4:
            d.ready_rate = 1.0
            if d.rng.random() < 0.5:
                d.samples.append(d.any_sample())
                d.commands.append((Op.RUN, 1))
            await d.observe()
    # In a sample, in a frame and in a stream, at each clock of some.
    read = d.plan["read"]  # clocks until the first word, or so
    for op, first, end in (
        (None, 0, 24),
        (Op.READ, max(0, read - 10), read + 30),
        (Op.FORGET, 0, 14),
    ):
        for offset in range(first, end, 1 if d.plan["long"] else 3):
            d.ready_rate = 0.5
            d.frame_of_samples(0.5)
            await d.finish()
            if op is None:
                d.samples.append(d.any_sample())
            else:
                d.commands.append((op, d.channels - 1))
            await d.clocks(offset)
            await d.reset()
    d.ready_rate = 1.0
    d.commands.append((Op.FRAME, 0))
    await d.observe()


@scenario("counters restart with a reset")
async def counters_restart(d: Driver) -> None:
    """Count frames and drops, reset, and count again."""
    for _ in range(2):
        d.commands.extend([(Op.FRAME, 0)] * 2)
        await d.do(Op.RUN, 1)
        d.samples.extend(d.any_sample() for _ in range(5))
        await d.finish()
        await d.reset(2)
        await d.finish()


def once(address: int, data: int) -> Writes:
    """Write a register."""
    yield address, data


@scenario("status cleared at the clock of a drop")
async def clear_and_drop(d: Driver) -> None:
    """Clear at each clock around a drop; write STATUS without the bit, too."""
    for delay in range(-2, 4):  # clocks from the drop to the write
        await d.do(Op.RUN, 1)
        await d.clocks(10)
        d.samples.extend(d.any_sample() for _ in range(2))
        await d.clocks(6)
        if delay < 0:
            d.start_writes(once(Register.STATUS, d.rng.getrandbits(32) | 2))
            await d.clocks(-delay)
        d.samples.append(d.any_sample())
        if delay >= 0:
            await d.clocks(delay)
            d.start_writes(once(Register.STATUS, d.rng.getrandbits(32) | 2))
        await d.clocks(3)
        d.samples.append(d.any_sample())
        await d.clocks(3)
        d.start_writes(once(Register.STATUS, d.rng.getrandbits(32) & ~2))
        await d.finish()
    d.start_writes(once(Register.STATUS, 2))
    await d.finish()
    for _ in range(60):  # drops and clears in any clock
        if d.sample is None:
            d.sample_rate = 0.5
            d.samples.append(d.any_sample())
        if d.writes is None and d.rng.random() < 0.4:
            d.start_writes(once(Register.STATUS, d.rng.getrandbits(32)))
        if not d.last.busy and d.command is None:
            d.commands.append((Op.RUN, 1))
        await d.clock()
    await d.finish()


@scenario("writes to registers that only tell")
async def writes_to_readable(d: Driver) -> None:
    """Write anything to what cannot be written, in any clock."""
    readable = (Register.FRAMES, Register.DROPPED, Register.SHAPE, 7)

    def writes(count: int) -> Writes:
        for _ in range(count):
            if d.rng.random() < 0.5:
                yield None
            yield d.rng.choice(readable), d.rng.getrandbits(32)

    d.commands.extend([(Op.FRAME, 0), (Op.RUN, 1)])
    d.start_writes(writes(2 * d.span))
    await d.clocks(d.span // 2)
    d.samples.extend(d.any_sample(everywhere=True) for _ in range(5))
    await d.finish()
    await d.observe()


@scenario("frames begin again at 65,536")
async def frames_wrap(d: Driver) -> None:
    """Set the counter from behind, and count on."""
    await d.finish()
    d.dut.dut.sequencer.frames.value = FRAMES_BEFORE
    d.presets.append((len(d.trace), FRAMES_BEFORE))
    for _ in range(4):
        await d.do(Op.FRAME)
        await d.finish()


@scenario("dropped stops at 65,535")
async def dropped_stops(d: Driver) -> None:
    """Drop more, all of them counted one by one, then clear and drop again."""
    outside = [
        (x, y)
        for y in range(1 << d.plan["y_bits"])
        for x in range(1 << d.plan["x_bits"])
        if x >= d.width or y >= d.height
    ]
    await d.finish()
    x, y = d.rng.choice(outside)
    d.samples.extend([(x, y, 0, 0)] * (2**16 + 40))
    await d.finish()
    d.start_writes(once(Register.STATUS, 2))
    await d.clocks(3)
    d.samples.extend([(x, y, 0, 0)] * 3)
    await d.finish()


# Those that load programs. Each begins by loading the first one, whatever the one before it left.


def load(
    d: Driver, words: list[int], start: int = 0, rash: float = 0.0, *, pauses: bool = True
) -> Writes:
    """Write words one by one, while idle, and again what was written while busy.

    Parameters
    ----------
    rash
        How likely it does not wait for the device to be idle.
    pauses
        Whether it sometimes waits between two writes.
    """
    index, known, o = start, False, d.last
    while index < start + len(words):
        while o.busy and d.rng.random() >= rash:
            o = yield None
        word = words[index - start]
        writes = [(Register.PROGRAM_LOW, word & 2**32 - 1), (Register.PROGRAM_HIGH, word >> 32)]
        if not known:
            writes.insert(0, (Register.PROGRAM_ADDRESS, index))
        for write in writes:
            # Time for what is not written to be taken for a write.
            if pauses and d.rng.random() < 0.03:
                for _ in range(d.rng.randrange(1, 16)):
                    o = yield None
            o = yield write
            known = not o.busy
            if not known:
                break
        index += known


def load_other(d: Driver, number: int, rash: float = 0.0) -> Writes:
    """Make the program in the memory, which is the other one, into this one.

    Of long programs only what differs: all else is there, and was written by `load_first`.
    """
    words = d.plan["words"][number]
    if not d.alone:
        return load(d, words, rash=rash)
    places = differences(d)
    return load(d, words[places[0] : places[-1] + 1], places[0], rash)


def differences(d: Driver) -> list[int]:
    """Where both programs differ."""
    return [i for i, (a, b) in enumerate(zip(*d.plan["words"], strict=False)) if a != b]


async def load_first(d: Driver) -> None:
    """Load the first program into an idle device."""
    await d.finish()
    d.start_writes(load(d, d.plan["words"][0]))
    await d.finish()


@scenario("another rule loaded under traffic")
async def swap(d: Driver) -> None:
    """Load word by word, in any order of parts, while samples are taken and pixels sent."""
    await load_first(d)
    for number, rash in ((1, 0.0), (0, 0.2)):
        d.frame_of_samples()
        d.commands.append((Op.RUN, 1))
        await d.observe()
        d.start_writes(load_other(d, number, rash))
        d.sample_rate, d.command_rate, d.ready_rate = 0.02, 0.02, 0.7
        while d.writes is not None:
            if not d.samples:
                d.samples.append(d.any_sample(everywhere=True))
            if not d.commands:
                command = d.rng.choice((Op.READ, Op.READ, Op.FORGET))
                d.commands.append((command, d.rng.randrange(d.channels)))
            await d.clock()
        d.sample_rate = d.command_rate = d.ready_rate = 1.0
        await d.finish()
        d.frame_of_samples()
        d.commands.extend([(Op.RUN, 1), (Op.FRAME, 0)])
        await d.observe()
    # A reset leaves the program.
    d.start_writes(load_other(d, 1))
    await d.finish()
    await d.reset()
    d.frame_of_samples()
    d.commands.append((Op.RUN, 2))
    await d.observe()


@scenario("words written while busy")
async def words_while_busy(d: Driver) -> None:
    """Write wrong words over those that count, once the device is busy: nothing changes."""
    await load_first(d)
    words = d.plan["words"][0]
    kinds = ("run", "frame", "read", "sample", "forget", "clear")
    for kind in kinds * 2:
        index = d.rng.choice((d.plan["step_entry"] + d.rng.randrange(40), d.rng.randrange(12)))
        wrong = ~words[index] & d.plan["word_mask"]

        def aim(index: int = index, wrong: int = wrong) -> Writes:
            yield Register.PROGRAM_ADDRESS, index
            yield Register.PROGRAM_LOW, wrong & 2**32 - 1

        d.start_writes(aim())
        await d.finish()
        if kind == "sample":
            d.samples.append(d.any_sample())
            await d.until(lambda o: d.sample is None and not d.samples)
        elif kind == "clear":
            await d.reset()
        else:
            op = {"run": Op.RUN, "frame": Op.FRAME, "read": Op.READ, "forget": Op.FORGET}[kind]
            await d.do(op, int(op is Op.RUN))  # a step, or the first channel
        await d.clocks(d.rng.randrange(3))
        for _ in range(2):
            d.start_writes(once(Register.PROGRAM_HIGH, wrong >> 32))
            await d.clocks(1)
        await d.finish()
        d.frame_of_samples()
        d.commands.append((Op.RUN, 1))
        await d.observe()


@scenario("reset while a program is loaded")
async def reset_in_load(d: Driver) -> None:
    """Stop half-way, reset, then load another one whole."""
    for turn in range(2 if d.alone else 3):
        await load_first(d)
        words = d.plan["words"][1]
        d.start_writes(load(d, words))
        await d.clocks(d.rng.randrange(20, 2 * len(words)))
        await d.reset(d.rng.choice((1, 3)))
        await d.finish()
        d.start_writes(load(d, d.plan["words"][turn % 2]))
        await d.finish()
        d.frame_of_samples()
        d.commands.append((Op.RUN, 2))
        await d.observe()


@scenario("last word written as a command is taken")
async def word_with_command(d: Driver) -> None:
    """Write while the device is idle still, in the clock in which RUN is offered."""
    ways = ((1, 0), (0, 1), (1, 2), (0, 0))
    for which, after in ways[:2] if d.alone else ways:  # a long program takes long to load
        await load_first(d)
        words = d.plan["words"][which]
        # The last one that differs, or there would be nothing to see.
        differ = differences(d)
        late = d.rng.choice((differ[0], differ[-1]))
        d.start_writes(load_other(d, which) if which else load(d, words))
        await d.finish()
        d.frame_of_samples()
        await d.finish()
        d.start_writes(load(d, [~words[late] & d.plan["word_mask"]], late))
        await d.finish()
        d.start_writes(load(d, [words[late]], late, pauses=False))
        await d.clocks(2)  # ADDRESS and LOW
        if after:
            d.writes, waiting = None, d.write
            d.write = None
            await d.clocks(after)
            d.write = waiting
        d.commands.append((Op.RUN, 1))
        await d.clock()
        d.write = d.writes = None
        await d.observe()


@cocotb.test()
async def run_scenarios(dut: Any) -> None:
    """Write `trace`, int64 (entries, fields of Inputs, of Outputs, turns), and where each ends."""
    folder = Path(os.environ[FOLDER])
    plan = json.loads((folder / PLAN).read_text())
    dut.clk.value = 1
    driver = Driver(dut, plan)
    ends, seconds, hung = [], [], False
    for name in plan["scenarios"]:
        started = time.perf_counter()
        driver.begin(Random(f"{plan['seed']} {plan['device']} {name}"))
        try:
            await driver.reset(driver.rng.choice((1, 2, 5)))
            await SCENARIOS[name](driver)
        except HungError:
            hung = True
        ends.append(len(driver.trace))
        seconds.append(time.perf_counter() - started)
        if hung:
            break
    trace = np.array(driver.trace, np.int64)
    presets = np.array(driver.presets, np.int64).reshape(-1, 2)
    np.savez(folder / RESULT, trace=trace, ends=ends, seconds=seconds, hung=hung, presets=presets)
