"""The sequencer: holds the program, takes samples and commands, and drives the cells."""

from enum import IntEnum

from amaranth import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .program import LATENCY, Addend, Carry, Flag, Instruction, Program, Shift
from .row import ControlLayout

#: Words of the program memory come in portions of this size, for another rule to be loaded into.
PORTION = 512


class Op(IntEnum):
    """What a command asks for."""

    FRAME = 0  #: RUN the rule's steps per frame, then FORGET, then READ the prediction
    RUN = 1  #: do `argument` steps; 0 does none
    FORGET = 2  #: end the frame: clear the valid flags
    READ = 3  #: send channel `argument` of the state, row by row; one that is not there: nothing


class CommandLayout(data.StructLayout):
    """A command: `op` and its `argument`, a number of steps or a channel."""

    def __init__(self) -> None:
        super().__init__({"op": Op, "argument": 8})


class EventLayout(data.StructLayout):
    """A sample: the cell's address, the code, and which word of the cell it is for.

    `target` counts `IntegerRule.targets`: the rule's events, then the channels of its state. A word
    of fewer bits takes the lowest ones of `code`.
    """

    def __init__(self, program: Program, height: int, width: int) -> None:
        super().__init__(
            {
                "x": max(1, (width - 1).bit_length()),
                "y": max(1, (height - 1).bit_length()),
                "code": signed(program.rule.code_bits),
                "target": max(1, (len(program.rule.targets) - 1).bit_length()),
            }
        )


class Register(IntEnum):
    """Addresses of `Sequencer.registers`, and what lies there."""

    STATUS = 0  #: bit 0: busy; bit 1: a sample was dropped; writing bit 1 clears that, and DROPPED
    FRAMES = 1  #: commands FRAME done since reset, modulo 2**16
    DROPPED = 2  #: samples dropped, 65,535 at most
    PROGRAM_ADDRESS = 3  #: where the next instruction goes
    PROGRAM_LOW = 4  #: its bits 0 to 31
    PROGRAM_HIGH = 5  #: its bits from 32 on; writing it writes the instruction, and counts on
    SHAPE = 6  #: `shape_code` of the program: only one of the same can be loaded


class RegisterSignature(wiring.Signature):
    """A port of 32-bit registers.

    address : Out(3)
    write : Out(1)
        Whether `write_data` is written at this clock.
    write_data : Out(32)
    read_data : In(32)
        What `address` had at the clock before.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "address": Out(3),
                "write": Out(1),
                "write_data": Out(32),
                "read_data": In(32),
            }
        )


class InstructionLayout(data.StructLayout):
    """An instruction as it lies in the program memory; `last` is its count less one."""

    def __init__(self, program: Program) -> None:
        planes = range(program.planes)
        super().__init__(
            {
                "last": 6,
                "read": planes,
                "read_bits": 6,
                "signed": 1,
                "write": planes,
                "write_bits": 6,
                "addend": Addend,
                "select": 1,
                "subtract": 1,
                "carry": Carry,
                "flag": Flag,
                "shift": Shift,
                **({"border": range(len(program.borders))} if len(program.borders) > 1 else {}),
                "end": 1,
            }
        )

    def encode(self, instruction: Instruction) -> int:
        """Bits of one instruction. (Amaranth's own `const` takes seconds for a whole program.)"""
        values = vars(instruction) | {"last": instruction.count - 1}
        return sum(int(values[name]) << field.offset for name, field in self)


def shape_code(program: Program, height: int, width: int) -> int:
    """Name all that the gates take for granted of a program, in 32 bits (FNV-1a).

    Instructions may differ between programs of one shape, as long as they fit the memory.
    """
    rule, code = program.rule, 0x811C9DC5
    facts = (
        f"{height} {width} {program.planes} {program.operand_bits} {program_depth(program)} "
        f"{rule.code_bits} {' '.join(program.borders)} {rule.steps_per_frame} {program.senses} "
        f"{sorted(program.entries.items())} {program.lanes_take_noise} {rule.noise_seed}"
    )
    for byte in facts.encode():
        code = (code ^ byte) * 0x01000193 & 0xFFFFFFFF
    return code


def program_depth(program: Program) -> int:
    """Words of the program memory."""
    return -(-len(program.instructions) // PORTION) * PORTION


class Sequencer(wiring.Component):
    """Run the program on the array.

    After reset it clears the cells' memory, then is idle. While idle it takes a sample, or else a
    command. A sample outside the array or for a word that is not there, and one that is offered
    while steps run, is taken and dropped, and counted; while another one is taken, a sample waits.

    Attributes
    ----------
    samples : In(stream)
        `EventLayout`.
    commands : In(stream)
        `CommandLayout`. Ready while idle and no sample is offered.
    registers : In
        `RegisterSignature`, at the addresses of `Register`. Of the program, write while idle.
    control : Out
        To all cells.
    rows, columns : Out(height), Out(width)
        Select the cell that takes a sample.
    capture : Out(1)
        High while the north edge shows a row that is to be sent, a bit a clock.
    send : Out(1)
        High for one clock when all of the row was shown.
    sent : In(1)
        High in the clock in which the last word of that row is taken.
    first_row : Out(1)
        High while the row captured is the first one.
    busy : Out(1)
        Low while idle.
    frames : Out(16)
        Commands FRAME done since reset.
    dropped : Out(16)
        Samples dropped.
    error : Out(1)
        High after a sample was dropped.
    """

    def __init__(self, program: Program, height: int, width: int) -> None:
        self.program, self.height, self.width = program, height, width
        super().__init__(
            {
                "samples": In(stream.Signature(EventLayout(program, height, width))),
                "commands": In(stream.Signature(CommandLayout())),
                "registers": In(RegisterSignature()),
                "control": Out(ControlLayout(program)),
                "rows": Out(height),
                "columns": Out(width),
                "capture": Out(1),
                "send": Out(1),
                "sent": In(1),
                "first_row": Out(1),
                "busy": Out(1),
                "frames": Out(16),
                "dropped": Out(16),
                "error": Out(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Build the sequencer."""
        m = Module()
        program = self.program
        layout = InstructionLayout(program)
        depth = program_depth(program)
        m.submodules.memory = memory = Memory(
            shape=unsigned(layout.size),
            depth=depth,
            init=[layout.encode(instruction) for instruction in program.instructions],
        )
        self._registers(m, memory, depth)

        port = memory.read_port()
        counter = Signal(range(depth))
        m.d.comb += port.addr.eq(counter)

        # A routine: two clocks to fetch, then bit by bit, then until the last bit is written.
        start, entry = Signal(), Signal(range(depth))
        fetch, running, drain = Signal(2), Signal(), Signal(range(LATENCY + 2))
        done = Signal()
        instruction = Signal(layout)
        index = Signal(range(max(64, self.width + 1)))
        noise = instruction.flag == Flag.NOISE
        last_bit = Mux(noise, self.width - 1, instruction.last)
        active, last = Signal(), Signal()
        m.d.comb += [
            active.eq(running & (index <= last_bit)),
            last.eq(index >= Mux(last_bit == 0, 1, last_bit)),
        ]
        following = Signal()  # take the instruction that was fetched
        m.d.sync += fetch.eq(fetch << 1)
        with m.If(start):
            m.d.sync += counter.eq(entry), fetch.eq(1)
        with m.If(running):
            m.d.sync += index.eq(index + 1)
            with m.If(last):
                with m.If(instruction.end):
                    m.d.sync += running.eq(0), drain.eq(LATENCY + 1)
                with m.Else():
                    m.d.comb += following.eq(1)
        with m.If(fetch[1]):
            m.d.comb += following.eq(1)
        with m.If(following):
            m.d.sync += [
                running.eq(1),
                index.eq(0),
                instruction.eq(port.data),
                counter.eq(counter + 1),
            ]
        with m.If(drain != 0):
            m.d.sync += drain.eq(drain - 1)
        m.d.comb += done.eq(drain == 1)

        code = Signal(signed(program.rule.code_bits))
        self._drive(m, instruction, index, active, active & (index == last_bit), code)
        self._commands(m, start, entry, done, code)
        return m

    def _drive(
        self,
        m: Module,
        instruction: data.View,
        index: Signal,
        active: Signal,
        last: Signal,
        code: Signal,
    ) -> None:
        """Turn a bit of an instruction into what the cells do in three clocks."""
        program = self.program
        first = index == 0
        reads = index < instruction.read_bits
        addend = instruction.addend
        sample = code.as_unsigned().bit_select(index[: (len(code) - 1).bit_length()], 1)
        one = (
            (addend == Addend.ONE)
            | (addend == Addend.FLAG)
            | ((addend == Addend.UNIT) & first)
            | ((addend == Addend.SAMPLE) & sample)
        )
        word = (addend == Addend.WORD) | (addend == Addend.FLAG) | (addend == Addend.UNIT)
        turning = (index < program.operand_bits - 1) | last
        # Fields, by the clock in which a row's register needs them.
        stages = {
            "read": (1, instruction.read + index),
            "take": (2, active & reads),
            "zero": (2, ~active | (~reads & ~instruction.signed) | (instruction.read_bits == 0)),
            "start": (2, active & first & (instruction.carry == Carry.START)),
            "x_word": (3, word & ((addend != Addend.UNIT) | first)),
            "x_one": (3, one),
            "select": (3, instruction.select),
            "subtract": (3, instruction.subtract),
            "carry": (3, active & (instruction.carry != Carry.HOLD)),
            "flag": (3, active & (instruction.flag != Flag.HOLD)),
            "sense": (3, instruction.flag == Flag.SENSE),
            "noise": (3, instruction.flag == Flag.NOISE),
            "shift": (3, active & (instruction.shift != Shift.HOLD) & turning),
            "enter": (3, Cat(*(instruction.shift == way for way in list(Shift)[1:]))),
            **({"border": (3, instruction.border)} if len(program.borders) > 1 else {}),
            "write": (3, instruction.write + index),
            "store": (3, active & (index < instruction.write_bits)),
        }
        for name, (stage, value) in stages.items():
            field = self.control[name]
            for clock in range(1, stage):
                delayed = Signal.like(field, name=f"{name}_{clock}")
                m.d.sync += delayed.eq(value)
                value = delayed
            m.d.sync += field.eq(value)

    def _commands(
        self, m: Module, start: Signal, entry: Signal, done: Signal, code: Signal
    ) -> None:
        """Take samples and commands."""
        program, entries = self.program, self.program.entries
        event, command = self.samples.payload, self.commands.payload
        channels = len(program.rule.channel_names)
        steps, channel = Signal(8), Signal(8)
        whole_frame, reading = Signal(), Signal()
        rows_left = Signal(range(self.height + 1))
        targets = len(program.senses)
        inside = (event.x < self.width) & (event.y < self.height) & (event.target < targets)
        routine = Array(program.senses)[event.target]
        dropping = Signal()
        # The rows take a control word in the clock in which this takes it, too.
        moves = self.control.shift & self.control.enter[Shift.SOUTH - 1]
        m.d.sync += self.capture.eq(reading & moves)
        m.d.comb += [
            self.busy.eq(1),
            self.first_row.eq(rows_left == self.height),
        ]
        m.d.sync += self.control.reseed.eq(0)

        def run(m: Module, routine: str, offset: Value | int = 0) -> None:
            m.d.comb += start.eq(1), entry.eq(entries[routine] + offset)

        with m.FSM():
            with m.State("RESET"):
                m.d.sync += self.control.reseed.eq(1)
                run(m, "clear")
                m.next = "CLEAR"
            with m.State("CLEAR"), m.If(done):
                m.next = "IDLE"
            with m.State("IDLE"):
                m.d.comb += [
                    self.busy.eq(0),
                    self.samples.ready.eq(1),
                    self.commands.ready.eq(~self.samples.valid),
                ]
                m.d.sync += [
                    rows_left.eq(self.height),
                    steps.eq(command.argument),
                    channel.eq(command.argument),
                    whole_frame.eq(0),
                ]
                with m.If(self.samples.valid):
                    m.d.sync += code.eq(event.code)
                    m.d.sync += self.rows.eq(1 << event.y), self.columns.eq(1 << event.x)
                    with m.If(inside):
                        run(m, "sense", routine)
                        m.next = "SENSE"
                    with m.Else():
                        m.d.comb += dropping.eq(1)
                with m.Elif(self.commands.valid), m.Switch(command.op):
                    with m.Case(Op.FRAME):
                        m.d.sync += [
                            steps.eq(program.rule.steps_per_frame),
                            channel.eq(0),
                            whole_frame.eq(1),
                        ]
                        m.next = "RUN"
                    with m.Case(Op.RUN):
                        m.next = "RUN"
                    with m.Case(Op.FORGET):
                        m.next = "FORGET"
                    with m.Case(Op.READ):
                        m.next = "READ"
            with m.State("SENSE"), m.If(done):
                m.next = "IDLE"
            with m.State("RUN"):
                with m.If(steps == 0):
                    m.next = "IDLE"
                with m.Else():
                    run(m, "step")
                    m.next = "STEP"
            with m.State("STEP"):
                m.d.comb += self.samples.ready.eq(1), dropping.eq(self.samples.valid)
                with m.If(done):
                    m.d.sync += steps.eq(steps - 1)
                    with m.If((steps == 1) & whole_frame):
                        m.next = "FORGET"
                    with m.Else():
                        m.next = "RUN"
            with m.State("FORGET"):
                run(m, "forget")
                m.next = "FORGETTING"
            with m.State("FORGETTING"), m.If(done):
                with m.If(whole_frame):
                    m.d.sync += self.frames.eq(self.frames + 1)
                    m.next = "READ"
                with m.Else():
                    m.next = "IDLE"
            with m.State("READ"):  # every cell takes its own word of the channel
                with m.If(channel >= channels):
                    m.next = "IDLE"
                with m.Else():
                    run(m, "read", channel)
                    m.next = "LOAD"
            with m.State("LOAD"), m.If(done):
                m.next = "ROW"
            with m.State("ROW"):  # the row buffer takes the northernmost row, all rows move up
                run(m, "move")
                m.next = "MOVE"
            with m.State("MOVE"):
                m.d.comb += reading.eq(1)
                with m.If(done):
                    m.d.comb += self.send.eq(1)
                    m.d.sync += rows_left.eq(rows_left - 1)
                    m.next = "SEND"
            with m.State("SEND"), m.If(self.sent):
                with m.If(rows_left == 0):
                    m.next = "IDLE"
                with m.Else():
                    m.next = "ROW"

        with m.If(dropping):
            m.d.sync += self.error.eq(1)
            with m.If(~self.dropped.all()):
                m.d.sync += self.dropped.eq(self.dropped + 1)
        with m.Elif(self._forgiven):
            m.d.sync += self.error.eq(0), self.dropped.eq(0)

    def _registers(self, m: Module, memory: Memory, depth: int) -> None:
        """Answer the register port."""
        bus = self.registers
        writing = memory.write_port()
        address, low = Signal(range(depth)), Signal(32)
        self._forgiven = Signal()
        m.d.comb += [
            writing.addr.eq(address),
            writing.data.eq(Cat(low, bus.write_data)),
            writing.en.eq(bus.write & (bus.address == Register.PROGRAM_HIGH) & ~self.busy),
            self._forgiven.eq(bus.write & (bus.address == Register.STATUS) & bus.write_data[1]),
        ]
        with m.If(bus.write), m.Switch(bus.address):
            with m.Case(Register.PROGRAM_ADDRESS):
                m.d.sync += address.eq(bus.write_data)
            with m.Case(Register.PROGRAM_LOW):
                m.d.sync += low.eq(bus.write_data)
            with m.Case(Register.PROGRAM_HIGH):
                m.d.sync += address.eq(address + 1)
        shape = shape_code(self.program, self.height, self.width)
        with m.Switch(bus.address):
            for register, value in (
                (Register.STATUS, Cat(self.busy, self.error)),
                (Register.FRAMES, self.frames),
                (Register.DROPPED, self.dropped),
                (Register.PROGRAM_ADDRESS, address),
                (Register.SHAPE, shape),
            ):
                with m.Case(register):
                    m.d.sync += bus.read_data.eq(value)
            with m.Default():
                m.d.sync += bus.read_data.eq(0)


class PixelLayout(data.StructLayout):
    """A word of the raster: its code, and AXI4-Stream video's marks.

    The code is extended to the operand's bits, by its sign if it has one. `tuser` marks the first
    pixel of the frame, `tlast` the last one of each row.
    """

    def __init__(self, program: Program) -> None:
        super().__init__({"code": program.operand_bits, "tuser": 1, "tlast": 1})


class RowBuffer(wiring.Component):
    """Take a row of words, a bit of all at once, and send them one by one, west first.

    Attributes
    ----------
    bits : In(width)
        The array's north edge.
    capture, send, first_row : In(1)
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
                "bits": In(width),
                "capture": In(1),
                "send": In(1),
                "first_row": In(1),
                "sent": Out(1),
                "pixels": Out(stream.Signature(PixelLayout(program))),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Build the row buffer."""
        m = Module()
        bits = self.program.operand_bits
        words = Signal(unsigned(bits * self.width), reset_less=True)
        left = Signal(range(self.width + 1))
        first = Signal()
        # Between words there is a clock in which they move: what moves a row of them across the
        # chip is a register, and not a receiver's `ready`.
        moving = Signal()
        pixels = self.pixels
        taken = pixels.valid & pixels.ready
        m.d.comb += [
            pixels.payload.code.eq(words[:bits]),
            pixels.payload.tuser.eq(first),
            pixels.payload.tlast.eq(left == 1),
            pixels.valid.eq((left != 0) & ~moving),
            self.sent.eq(taken & pixels.payload.tlast),
        ]
        m.d.sync += moving.eq(taken)
        with m.If(self.send):
            m.d.sync += left.eq(self.width), first.eq(self.first_row)
        with m.Elif(taken):
            m.d.sync += left.eq(left - 1), first.eq(0)
        with m.If(self.capture):
            # Every word goes down by one bit; the lowest bit, which comes first, ends lowest.
            columns = [words.word_select(x, bits) for x in range(self.width)]
            m.d.sync += words.eq(
                Cat(*(Cat(word[1:], self.bits[x]) for x, word in enumerate(columns)))
            )
        with m.Elif(moving):
            m.d.sync += words.eq(words >> bits)
        return m
