"""The sequencer: holds the program, takes samples and commands, and broadcasts operations."""

from enum import IntEnum

from amaranth import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .cell import ExecuteLayout, FetchLayout, address_bits, execute_fields
from .program import HERE, Operation, Program

SOUTH = 7  # reading order


class Op(IntEnum):
    """What a command asks for."""

    FRAME = 0  #: RUN the rule's steps per frame, then FORGET, then READ the prediction
    RUN = 1  #: do `argument` steps
    FORGET = 2  #: end the frame: clear the valid flags
    READ = 3  #: send channel `argument` of the state, row by row


class CommandLayout(data.StructLayout):
    """A command: `op` and its `argument`, a number of steps (at least 1) or a channel."""

    def __init__(self) -> None:
        super().__init__({"op": Op, "argument": 8})


class EventLayout(data.StructLayout):
    """A sample: its address and its code. One outside the array changes nothing."""

    def __init__(self, program: Program, height: int, width: int) -> None:
        super().__init__(
            {
                "x": max(1, (width - 1).bit_length()),
                "y": max(1, (height - 1).bit_length()),
                "code": signed(program.rule.sample_format.bits),
            }
        )


class OperationLayout(data.StructLayout):
    """An operation as it lies in the program memory."""

    def __init__(self, program: Program) -> None:
        super().__init__(
            {
                "address": address_bits(program),
                "source": 4,
                "signed": 1,
                **execute_fields(program),
            }
        )

    def encode(self, operation: Operation) -> int:
        """Bits of one operation. (Amaranth's own `const` takes seconds for a whole program.)"""
        return sum(int(getattr(operation, name)) << field.offset for name, field in self)


class Sequencer(wiring.Component):
    """Run the program on the array.

    After reset it sets every word of every cell to 0, then is idle. While idle it takes samples,
    one a clock, and commands; a sample that is offered together with a command goes first, so it
    belongs to the frame that the command runs.

    Attributes
    ----------
    samples : In(stream)
        `EventLayout`. Ready while idle.
    commands : In(stream)
        `CommandLayout`. Ready while idle and no sample is offered.
    fetch, execute : Out
        To all cells.
    rows, columns : Out(height), Out(width)
        Select the cell that takes a sample, along with `execute.sense`.
    capture : Out(1)
        High for one clock while the array's north edge shows a row to be sent.
    sent : In(1)
        High in the clock in which the last word of that row is taken.
    first_row : Out(1)
        High while the row captured is the first one.
    busy : Out(1)
        Low while idle.
    """

    def __init__(self, program: Program, height: int, width: int) -> None:
        self.program, self.height, self.width = program, height, width
        super().__init__(
            {
                "samples": In(stream.Signature(EventLayout(program, height, width))),
                "commands": In(stream.Signature(CommandLayout())),
                "fetch": Out(FetchLayout(program)),
                "execute": Out(ExecuteLayout(program)),
                "rows": Out(height),
                "columns": Out(width),
                "capture": Out(1),
                "sent": In(1),
                "first_row": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Build the sequencer."""
        m = Module()
        program = self.program
        sample_word = program.sensor_word
        last_pc = program.cycles_per_step - 1

        layout = OperationLayout(program)
        m.submodules.memory = memory = Memory(
            shape=unsigned(layout.size),
            depth=program.cycles_per_step,
            init=[layout.encode(operation) for operation in program.operations],
        )
        port = memory.read_port()
        operation = data.View(layout, port.data)

        # An operation is read in one clock, fetches its operand in the next, executes in a third.
        running, fetching = Signal(), Signal()
        program_counter = Signal(range(program.cycles_per_step))
        m.d.comb += port.addr.eq(program_counter)
        m.d.sync += fetching.eq(running)

        execute = Signal(ExecuteLayout(program))
        m.d.comb += self.execute.eq(execute)
        m.d.sync += execute.eq(0)  # keep, no term, hold: does nothing
        with m.If(fetching):
            m.d.comb += [
                self.fetch.address.eq(operation.address),
                self.fetch.source.eq(operation.source),
                self.fetch.signed.eq(operation.signed),
            ]
            m.d.sync += [
                getattr(execute, name).eq(getattr(operation, name))
                for name in ("address", *execute_fields(program))
            ]

        steps = Signal(8)
        whole_frame = Signal()
        channel = Signal(address_bits(program))
        rows_left = Signal(range(self.height + 1))
        word = Signal(address_bits(program))

        event, command = self.samples.payload, self.commands.payload
        m.d.comb += self.busy.eq(1)
        with m.FSM():
            with m.State("CLEAR"):  # the accumulator is 0 after reset
                m.d.sync += [
                    execute.address.eq(word),
                    execute.store.eq(1),
                    execute.forget.eq(1),
                    word.eq(word + 1),
                ]
                with m.If(word == len(program.words) - 1):
                    m.next = "IDLE"
            with m.State("IDLE"):
                m.d.comb += [
                    self.busy.eq(0),
                    self.samples.ready.eq(1),
                    self.commands.ready.eq(~self.samples.valid),
                ]
                with m.If(self.samples.valid):
                    m.d.sync += [
                        execute.sense.eq(1),
                        execute.address.eq(sample_word),
                        execute.sample.eq(event.code),
                    ]
                    m.d.sync += self.rows.eq(1 << event.y), self.columns.eq(1 << event.x)
                with m.Elif(self.commands.valid):
                    m.d.sync += [
                        whole_frame.eq(command.op == Op.FRAME),
                        steps.eq(command.argument),
                        channel.eq(command.argument),
                        program_counter.eq(0),
                    ]
                    with m.Switch(command.op):
                        with m.Case(Op.FRAME):
                            m.d.sync += steps.eq(program.rule.config.steps_per_frame)
                            m.d.sync += channel.eq(0)
                            m.next = "RUN"
                        with m.Case(Op.RUN):
                            m.next = "RUN"
                        with m.Case(Op.FORGET):
                            m.next = "FORGET"
                        with m.Case(Op.READ):
                            m.next = "READ"
            with m.State("RUN"):
                m.d.comb += running.eq(1)
                m.d.sync += program_counter.eq(program_counter + 1)
                with m.If(program_counter == last_pc):
                    m.d.sync += program_counter.eq(0), steps.eq(steps - 1)
                    with m.If(steps == 1):
                        m.next = "DRAIN"
            with m.State("DRAIN"):  # the last operation is fetched here, and executed in the next
                m.next = "DRAIN2"
            with m.State("DRAIN2"):
                with m.If(whole_frame):
                    m.next = "FORGET"
                with m.Else():
                    m.next = "IDLE"
            with m.State("FORGET"):
                m.d.sync += execute.forget.eq(1)
                with m.If(whole_frame):
                    m.next = "READ"
                with m.Else():
                    m.next = "IDLE"
            with m.State("READ"):  # every cell takes its own word of the channel
                m.d.comb += self.fetch.address.eq(channel), self.fetch.source.eq(HERE)
                m.d.sync += rows_left.eq(self.height)
                m.next = "CAPTURE"
            with m.State("CAPTURE"):  # the row buffer takes the northernmost row, all rows move up
                m.d.comb += [
                    self.fetch.shift_out.eq(1),
                    self.fetch.source.eq(SOUTH),
                    self.capture.eq(1),
                    self.first_row.eq(rows_left == self.height),
                ]
                m.d.sync += rows_left.eq(rows_left - 1)
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += self.fetch.shift_out.eq(1), self.fetch.source.eq(HERE)
                with m.If(self.sent & (rows_left == 0)):
                    m.next = "IDLE"
                with m.Elif(self.sent):
                    m.next = "CAPTURE"
        return m


class PixelLayout(data.StructLayout):
    """A word of the raster: its code, and AXI4-Stream video's marks.

    `tuser` marks the first pixel of the frame, `tlast` the last one of each row.
    """

    def __init__(self, program: Program) -> None:
        super().__init__({"code": program.word_bits, "tuser": 1, "tlast": 1})


class RowBuffer(wiring.Component):
    """Take a row of words at once and send them one by one, west first.

    Attributes
    ----------
    words : In
        The array's north edge.
    capture, first_row : In(1)
        From the sequencer; `capture` only after `sent`.
    sent : Out(1)
        High in the clock in which the row's last word is taken.
    pixels : Out(stream)
        `PixelLayout`.
    """

    def __init__(self, program: Program, width: int) -> None:
        self.program, self.width = program, width
        super().__init__(
            {
                "words": In(width * program.word_bits),
                "capture": In(1),
                "first_row": In(1),
                "sent": Out(1),
                "pixels": Out(stream.Signature(PixelLayout(program))),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Build the row buffer."""
        m = Module()
        bits = self.program.word_bits
        buffer = Signal(unsigned(bits * self.width))
        left = Signal(range(self.width + 1))
        first = Signal()
        pixels = self.pixels
        m.d.comb += [
            pixels.payload.code.eq(buffer[:bits]),
            pixels.payload.tuser.eq(first),
            pixels.payload.tlast.eq(left == 1),
            pixels.valid.eq(left != 0),
            self.sent.eq(pixels.valid & pixels.ready & pixels.payload.tlast),
        ]
        with m.If(self.capture):
            m.d.sync += buffer.eq(self.words), left.eq(self.width), first.eq(self.first_row)
        with m.Elif(pixels.valid & pixels.ready):
            m.d.sync += buffer.eq(buffer >> bits), left.eq(left - 1), first.eq(0)
        return m
