from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.qformat import QFormat
from scotopia.hdl.board import RetinaBoard
from scotopia.hdl.program import Program
from scotopia.hdl.serial_protocol import (
    EVENT,
    FRAME,
    QUEUE,
    READ,
    RESYNC,
    STATUS,
    STATUS_BYTES,
    WRITE,
    Status,
    baud_divisor,
    check_board,
    decode_channel,
    encode_samples,
    encode_writes,
)
from scotopia.model.config import INPUTS
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import GraphRule, IntegerRule

Make = Callable[..., Any]  # a fixture of conftest.py

HEIGHT, WIDTH, DIVISOR = 2, 3, 4


@pytest.fixture(scope="module")
def rule(small_config: Make, random_rule: Make) -> IntegerRule:
    config = small_config(channels=2, hidden=2, inputs=INPUTS)
    made: IntegerRule = random_rule(0, config, Precision(3, 10, 6, 3))
    return made


class Line:
    """A host at the board's pins: bits in, bits out."""

    def __init__(self, ctx: Any, board: RetinaBoard) -> None:
        self.ctx, self.board = ctx, board

    async def send(self, data: bytes, stop: int = 1) -> None:
        for byte in data:
            for bit in (0, *(byte >> i & 1 for i in range(8)), stop):
                self.ctx.set(self.board.rx, bit)
                await self.ctx.tick().repeat(DIVISOR)
            self.ctx.set(self.board.rx, 1)
            await self.ctx.tick().repeat(DIVISOR)

    async def receive(self, count: int) -> bytes:
        data = []
        for _ in range(count):
            while self.ctx.get(self.board.tx):
                await self.ctx.tick()
            await self.ctx.tick().repeat(DIVISOR + DIVISOR // 2)
            byte = 0
            for bit in range(8):
                byte |= self.ctx.get(self.board.tx) << bit
                await self.ctx.tick().repeat(DIVISOR)
            assert self.ctx.get(self.board.tx) == 1  # the stop bit
            data.append(byte)
        return bytes(data)

    async def status(self) -> Status:
        await self.send(bytes([STATUS]))
        return Status.decode(await self.receive(STATUS_BYTES))


def simulate(rule: IntegerRule, host: Callable[[Line], Any]) -> None:
    board = RetinaBoard(Program.compile(rule), HEIGHT, WIDTH, DIVISOR)

    async def bench(ctx: Any) -> None:
        ctx.set(board.rx, 1)
        await ctx.tick().repeat(10)
        await host(Line(ctx, board))

    async def patience(ctx: Any) -> None:
        clocks = 0
        async for _ in ctx.tick():
            clocks += 1
            assert clocks < 80_000, "the board does not answer"

    simulator = Simulator(board)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.add_testbench(patience, background=True)
    simulator.run()


def test_frames_through_the_pins_are_the_golden_models(
    rule: IntegerRule, random_stimulus: Make
) -> None:
    stimulus = random_stimulus(rule, 2, 2, HEIGHT, WIDTH)
    channels = len(rule.channel_formats)
    predictions, states = [], []

    async def host(line: Line) -> None:
        for samples, mask in zip(stimulus.samples, stimulus.mask, strict=True):
            await line.send(encode_samples(samples, mask) + bytes([FRAME]))
            answer = await line.receive(2 * HEIGHT * WIDTH)
            predictions.append(decode_channel(answer, HEIGHT, WIDTH, rule.channel_formats[0]))
        for channel, format in enumerate(rule.channel_formats):
            await line.send(bytes([READ, channel]))
            answer = await line.receive(2 * HEIGHT * WIDTH)
            states.append(decode_channel(answer, HEIGHT, WIDTH, format))
        assert await line.status() == Status(2, 0, 0, False)

    simulate(rule, host)
    steps = rule.config.steps_per_frame
    np.testing.assert_array_equal(predictions, stimulus.expected[steps - 1 :: steps, 0])
    assert len(states) == channels
    np.testing.assert_array_equal(states, stimulus.expected[-1])


def test_samples_that_come_while_steps_run_wait_for_the_next_frame(
    rule: IntegerRule, random_stimulus: Make
) -> None:
    stimulus = random_stimulus(rule, 3, 2, HEIGHT, WIDTH)
    predictions = []

    async def host(line: Line) -> None:
        first, second = (
            encode_samples(samples, mask) + bytes([FRAME])
            for samples, mask in zip(stimulus.samples, stimulus.mask, strict=True)
        )
        await line.send(first + second)  # the second frame is here long before the first is done
        for _ in range(2):
            answer = await line.receive(2 * HEIGHT * WIDTH)
            predictions.append(decode_channel(answer, HEIGHT, WIDTH, rule.channel_formats[0]))
        assert await line.status() == Status(2, 0, 0, False)

    simulate(rule, host)
    steps = rule.config.steps_per_frame
    np.testing.assert_array_equal(predictions, stimulus.expected[steps - 1 :: steps, 0])


def test_what_is_no_command_is_counted_and_skipped(rule: IntegerRule) -> None:
    async def host(line: Line) -> None:
        await line.send(b"xyz")
        assert await line.status() == Status(0, 0, 3, False)
        await line.send(
            bytes([EVENT, WIDTH, 0, 1, 0, EVENT, 0, HEIGHT, 1, 0, EVENT, 255, 255, 1, 0])
        )
        assert await line.status() == Status(0, 3, 3, False)
        await line.send(bytes([READ, 99]))  # a channel that is not there: no answer
        await line.send(bytes([EVENT, 0]) + RESYNC)  # an event that was cut short, two zeros more
        assert await line.status() == Status(0, 3, 5, False)
        await line.send(bytes([WRITE]) + RESYNC)  # a write that was cut short
        assert await line.status() == Status(0, 3, 5, False)

    simulate(rule, host)


def test_words_are_written_into_cells(rule: IntegerRule) -> None:
    format = rule.channel_formats[0]
    words = [(1, 0, 2, format.lowest), (1, 1, 0, 3), (1, 0, 2, 5)]  # for channel 0, behind an event
    absent = len(rule.targets), 0, 0, 7
    found = []

    async def host(line: Line) -> None:
        await line.send(encode_writes([*words, absent]) + bytes([READ, 0]))
        answer = await line.receive(2 * HEIGHT * WIDTH)
        found.append(decode_channel(answer, HEIGHT, WIDTH, format))
        assert await line.status() == Status(0, 1, 0, False)

    simulate(rule, host)
    expected = np.zeros((HEIGHT, WIDTH), np.int64)
    for _, y, x, code in words:
        expected[y, x] = code
    np.testing.assert_array_equal(found, [expected])


def test_byte_without_stop_bit_is_lost_and_told(rule: IntegerRule) -> None:
    async def host(line: Line) -> None:
        await line.send(b"\x00", stop=0)
        await line.ctx.tick().repeat(20 * DIVISOR)
        status = await line.status()
        assert (status.skipped, status.overrun) == (0, True)

    simulate(rule, host)


@pytest.mark.parametrize(
    ("height", "width", "sentence"),
    [
        (257, 4, "height 257 is outside 1 to 256, which fit a byte: choose 64"),
        (4, 0, "width 0 is outside 1 to 256, which fit a byte: choose 64"),
    ],
)
def test_board_that_the_protocol_cannot_address_is_refused(
    height: int, width: int, sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_board(height, width)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("baud", "sentence"),
    [
        (
            baud,
            f"baud {baud} is outside 1 to 15625000, which a clock of 62.5 MHz can make: choose "
            "3000000",
        )
        for baud in (-1, 0, 100_000_000)
    ]
    + [
        (
            14_000_000,
            "baud 14000000 is more than 2% off all that a clock of 62.5 MHz can make: choose "
            "12500000 or 15625000",
        )
    ],
)
def test_baud_rate_that_the_clock_cannot_make_is_refused(baud: int, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        baud_divisor(62_500_000, baud)
    assert str(caught.value) == sentence


def test_baud_rate_is_that_of_the_nearest_divisor() -> None:
    found = [baud_divisor(62_500_000, baud) for baud in (3_000_000, 12_500_000, 15_625_000, 9600)]
    assert found == [21, 5, 4, 6510]


def test_samples_are_five_bytes_each() -> None:
    codes, mask = np.array([[0, -2], [0x105, 0]]), np.array([[False, True], [True, False]])
    assert encode_samples(codes, mask) == bytes([EVENT, 1, 0, 254, 255, EVENT, 0, 1, 5, 1])
    assert QUEUE >= 5 * 41 * 4  # several frames of 1 % of 64 x 64


def test_rule_whose_words_do_not_fit_the_line_is_refused() -> None:
    for bits in (16, 17):
        build = Builder()
        (x,) = build.channels({"x": QFormat(1, bits - 1)})
        program = Program.compile(GraphRule(build.graph({"x": x})))
        if bits == 16:
            RetinaBoard(program, 2, 2, DIVISOR)
            continue
        with pytest.raises(InputError, match="up to 17 bits, a code on the line has 16"):
            RetinaBoard(program, 2, 2, DIVISOR)
