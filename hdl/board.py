"""A whole board: the array, and a serial line to a host. Its words are in `serial_protocol`."""

from amaranth import Cat, ClockDomain, ClockSignal, Instance, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from scotopia.graph.errors import InputError

from .program import Program
from .retina import Retina
from .sequencer import Op
from .serial_protocol import (
    CODE_BITS,
    EVENT,
    FRAME,
    QUEUE,
    READ,
    STATUS,
    STATUS_BYTES,
    WRITE,
    baud_divisor,
    check_board,
)
from .uart import UartReceiver, UartTransmitter


class RetinaBoard(wiring.Component):
    """The array behind two pins.

    Attributes
    ----------
    rx, tx : In(1), Out(1)
        The serial line.

    Raises
    ------
    InputError
        If a side does not fit a byte, or a word two of them.
    """

    def __init__(self, program: Program, height: int, width: int, divisor: int) -> None:
        check_board(height, width)
        bits = max(program.operand_bits, program.rule.code_bits)
        if bits > CODE_BITS:
            raise InputError(
                f"the rule's words have up to {bits} bits, a code on the line has {CODE_BITS}: "
                "quantize with fewer bits"
            )
        self.program, self.height, self.width = program, height, width
        self.divisor = divisor  #: clocks a bit of the serial line
        super().__init__({"rx": In(1), "tx": Out(1, init=1)})

    def elaborate(self, _platform: object) -> Module:
        """Wire array, queue and line, and decode commands."""
        m = Module()
        m.submodules.retina = retina = Retina(self.program, self.height, self.width)
        m.submodules.receiver = receiver = UartReceiver(self.divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self.divisor)
        m.submodules.queue = queue = SyncFIFOBuffered(width=8, depth=QUEUE)
        overrun = Signal()
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            queue.w_data.eq(receiver.data),
            queue.w_en.eq(receiver.valid),
        ]
        with m.If(receiver.broken | (receiver.valid & ~queue.w_rdy)):
            m.d.sync += overrun.eq(1)

        event, command, pixels = retina.samples, retina.commands, retina.pixels
        reply = transmitter.bytes
        skipped, beyond_array = Signal(8), Signal(16)
        status = Signal(8 * STATUS_BYTES)
        bytes_left = Signal(range(STATUS_BYTES + 1))
        pixels_left = Signal(range(self.height * self.width + 1))
        high = Signal()  # the second byte of a pixel
        code = Signal(16)
        low = Signal(8)  # the first byte of a sample
        absent = Signal()  # no word of a cell has that number
        sum_of_both, dropped = Signal(17), Signal(16)
        m.d.comb += [
            code.eq(pixels.payload.code.as_signed()),
            sum_of_both.eq(retina.dropped + beyond_array),
            dropped.eq(Mux(sum_of_both[16], 0xFFFF, sum_of_both)),
        ]

        with m.FSM():
            with m.State("COMMAND"):
                m.d.comb += queue.r_en.eq(1)
                m.d.sync += high.eq(0), pixels_left.eq(self.height * self.width)
                with m.If(queue.r_rdy), m.Switch(queue.r_data):
                    with m.Case(EVENT):
                        m.d.sync += event.payload.target.eq(0), absent.eq(0)
                        m.next = "X"
                    with m.Case(WRITE):
                        m.next = "TARGET"
                    with m.Case(FRAME):
                        m.d.sync += command.payload.op.eq(Op.FRAME)
                        m.next = "ASK"
                    with m.Case(READ):
                        m.d.sync += command.payload.op.eq(Op.READ)
                        m.next = "CHANNEL"
                    with m.Case(STATUS):
                        m.d.sync += [
                            status.eq(Cat(retina.frames, dropped, skipped, overrun)),
                            bytes_left.eq(STATUS_BYTES),
                        ]
                        m.next = "STATUS"
                    with m.Default(), m.If(~skipped.all()):
                        m.d.sync += skipped.eq(skipped + 1)
            with m.State("TARGET"):
                m.d.comb += queue.r_en.eq(1)
                with m.If(queue.r_rdy):
                    m.d.sync += [
                        event.payload.target.eq(queue.r_data),
                        absent.eq(queue.r_data >= len(self.program.rule.targets)),
                    ]
                    m.next = "X"
            # A coordinate of a smaller array is cut to fewer bits: what does not fit, is dropped.
            outside = Signal()
            for state, following, field, size in (
                ("X", "Y", event.payload.x, self.width),
                ("Y", "LOW", event.payload.y, self.height),
            ):
                with m.State(state):
                    m.d.comb += queue.r_en.eq(1)
                    with m.If(queue.r_rdy):
                        beyond = queue.r_data >= size
                        m.d.sync += [
                            field.eq(queue.r_data),
                            outside.eq((absent if state == "X" else outside) | beyond),
                        ]
                        m.next = following
            with m.State("LOW"):
                m.d.comb += queue.r_en.eq(1)
                with m.If(queue.r_rdy):
                    m.d.sync += low.eq(queue.r_data)
                    m.next = "HIGH"
            with m.State("HIGH"):
                m.d.comb += queue.r_en.eq(1)
                with m.If(queue.r_rdy):
                    m.d.sync += event.payload.code.eq(Cat(low, queue.r_data).as_signed())
                    m.next = "EVENT"
            with m.State("EVENT"):
                with m.If(outside):
                    with m.If(~beyond_array.all()):
                        m.d.sync += beyond_array.eq(beyond_array + 1)
                    m.next = "COMMAND"
                with m.Else():
                    # While steps run, the array would drop it.
                    m.d.comb += event.valid.eq(~retina.busy)
                    with m.If(event.valid & event.ready):
                        m.next = "COMMAND"
            with m.State("CHANNEL"):
                m.d.comb += queue.r_en.eq(1)
                with m.If(queue.r_rdy):
                    m.d.sync += command.payload.argument.eq(queue.r_data)
                    channels = len(self.program.rule.channel_names)
                    with m.If(queue.r_data < channels):
                        m.next = "ASK"
                    with m.Else():
                        m.next = "COMMAND"
            with m.State("ASK"):
                m.d.comb += command.valid.eq(1)
                with m.If(command.ready):
                    m.next = "PIXELS"
            with m.State("PIXELS"):
                m.d.comb += [
                    reply.payload.eq(code.word_select(high, 8)),
                    reply.valid.eq(pixels.valid),
                    pixels.ready.eq(reply.ready & high),
                ]
                with m.If(reply.valid & reply.ready):
                    m.d.sync += high.eq(~high)
                with m.If(pixels.valid & pixels.ready):
                    m.d.sync += pixels_left.eq(pixels_left - 1)
                    with m.If(pixels_left == 1):
                        m.next = "COMMAND"
            with m.State("STATUS"):
                m.d.comb += reply.payload.eq(status[:8]), reply.valid.eq(1)
                with m.If(reply.ready):
                    m.d.sync += status.eq(status >> 8), bytes_left.eq(bytes_left - 1)
                    with m.If(bytes_left == 1):
                        m.next = "COMMAND"
        return m


#: Clock of the array on the ULX3S, in Hz: 2.5 times that of the board's crystal.
ULX3S_CLOCK = 62_500_000


class Ulx3sTop(wiring.Component):
    """`RetinaBoard` on a ULX3S: its USB serial port, and a PLL for its clock."""

    def __init__(self, program: Program, height: int, width: int, baud: int) -> None:
        divisor = baud_divisor(ULX3S_CLOCK, baud)
        self.board = RetinaBoard(program, height, width, divisor)
        super().__init__({})

    def elaborate(self, platform: object) -> Module:
        """Wire the board's pins."""
        m = Module()
        m.domains.sync = ClockDomain()
        crystal, locked = Signal(), Signal()
        clock = Signal(name="array_clock", attrs={"keep": 1})
        m.submodules += ResetSynchronizer(~locked)
        m.d.comb += crystal.eq(platform.request("clk25").i)  # type: ignore[attr-defined]
        # 25 MHz / 2 * 5 = 62.5 MHz, from an oscillator of 625 MHz.
        m.submodules.pll = Instance(
            "EHXPLLL",
            p_CLKI_DIV=2,
            p_CLKFB_DIV=5,
            p_CLKOP_DIV=10,
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_CPHASE=9,
            p_FEEDBK_PATH="CLKOP",
            a_FREQUENCY_PIN_CLKI="25",
            a_FREQUENCY_PIN_CLKOP="62.5",
            i_CLKI=crystal,
            i_CLKFB=clock,
            i_RST=0,
            i_STDBY=0,
            o_CLKOP=clock,
            o_LOCK=locked,
        )
        m.d.comb += ClockSignal().eq(clock)
        platform.add_clock_constraint(clock, ULX3S_CLOCK)  # type: ignore[attr-defined]
        uart = platform.request("uart")  # type: ignore[attr-defined]
        m.submodules.board = board = self.board
        m.d.comb += board.rx.eq(uart.rx.i), uart.tx.o.eq(board.tx)
        return m
