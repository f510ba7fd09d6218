"""A row of pixel cells: all that is local.

Every signal of a cell is one bit wide, so a row of cells is written with vectors, bit x of each
belonging to the cell in column x. No bit of a vector meets another one, except where an operand
moves to a neighbour.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_, xor

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from scotopia.graph.lfsr import BITS as REGISTER_BITS
from scotopia.graph.lfsr import TAPS

from .program import Program, Shift


class ControlLayout(data.StructLayout):
    """What all cells do in a clock, broadcast by the sequencer.

    A bit passes through a cell in three clocks; each field is for that bit which needs it now, so
    that rows need no registers to delay it.

    First clock
        `read`: plane of the bit that is read.
    Second clock
        `take`, `zero`: the memory's bit becomes `a`, or 0 does; else `a` stays.
        `start`: the carry becomes 0.
    Third clock
        `x_word`, `x_one`: the addend is the operand's lowest bit and the flag (`x_word` alone),
        ones (`x_one` alone), the flag (both), or zeros.
        `select`, `subtract`, `carry`: as in `program.Instruction`, and whether the carry changes.
        `flag`: the flag becomes the result; with `sense`, whether the cell is selected; with
        `noise`, the west neighbour's.
        `shift`: the operand moves down; its top becomes what `enter` names, one bit for each
        `program.Shift` from ROTATE on. `border`: which of the program's borders it moves through,
        if there are more than one. `write`: plane that takes the result, if `store`.

    `reseed` loads the row's register of random bits with its seed.
    """

    def __init__(self, program: Program) -> None:
        planes = range(program.planes)
        super().__init__(
            {
                "read": planes,
                "take": 1,
                "zero": 1,
                "start": 1,
                "x_word": 1,
                "x_one": 1,
                "select": 1,
                "subtract": 1,
                "carry": 1,
                "flag": 1,
                "sense": 1,
                "noise": 1,
                "shift": 1,
                "enter": len(Shift) - 1,
                **({"border": range(len(program.borders))} if len(program.borders) > 1 else {}),
                "write": planes,
                "store": 1,
                "reseed": 1,
            }
        )


def beyond(border: str, line: Sequence[Value] | Value, place: int) -> Value:
    """Return what lies in a place of a line of cells, or of rows, beyond one of its ends."""
    last = len(line) - 1
    match border:
        case "wrap":
            return line[place % len(line)]
        case "replicate":
            return line[min(max(place, 0), last)]
        case "reflect":  # a line of one has no other to show
            return line[min(abs(place), last, abs(2 * last - place))]
    return Const(0, len(line[0]))


def chosen_border(program: Program, control: data.View, found: Callable[[str], Value]) -> Value:
    """Return what is found beyond the border that an operand moves through."""
    if len(program.borders) == 1:
        return found(program.borders[0])
    chosen: Value = Array(map(found, program.borders))[control.border]
    return chosen


class PixelRow(wiring.Component):
    """A row of cells, and their memory: a word of `width` bits for each plane.

    Attributes
    ----------
    control : In
        `ControlLayout`, one clock ahead of what is said there.
    row : In(1)
        Whether this is the row of the sample that arrives. In step with `control`.
    columns : In(width)
        One bit a cell: its column. Stable while a sample is taken.
    north, south : In(width)
        What the rows above and below show.
    shown : Out(width)
        Lowest bits of the operands.
    seed : In(32)
        Of the row's random bits; only in a program that draws some.
    """

    def __init__(self, program: Program, width: int) -> None:
        self.program, self.width = program, width
        # Plain vectors: a layout would give every field a wire of its own in the Verilog.
        ports = {
            "control": In(ControlLayout(program).size),
            "row": In(1),
            "columns": In(width),
            "north": In(width),
            "south": In(width),
            "shown": Out(width),
        }
        if program.lanes_take_noise:
            ports["seed"] = In(REGISTER_BITS)
        super().__init__(ports)

    def elaborate(self, _platform: object) -> Module:
        """Build the row."""
        m = Module()
        program, width = self.program, self.width

        def all_cells(bit: Value) -> Value:
            return bit.replicate(width)

        # One register a row, or the sequencer would drive each of its signals across the chip.
        control = Signal(ControlLayout(program), reset_less=True)
        m.d.sync += control.eq(self.control)
        row = Signal(reset_less=True)
        m.d.sync += row.eq(self.row)

        m.submodules.memory = memory = Memory(
            shape=unsigned(width),
            depth=program.planes,
            init=[],
            # No program reads a plane in the clock in which it is written (`program.LATENCY`), so
            # Yosys need not add the gates that would define what is read then. However few the
            # cells, a plane is no job for their LUTs.
            attrs={"no_rw_check": 1, "ram_style": "block"},
        )
        reading, writing = memory.read_port(), memory.write_port()
        m.d.comb += reading.addr.eq(control.read)

        # Nothing here is reset: the program clears the memory, and sets the rest before it is used.
        a = Signal(width, reset_less=True)
        with m.If(control.zero):
            m.d.sync += a.eq(0)
        with m.Elif(control.take):
            m.d.sync += a.eq(reading.data)

        operand = [
            Signal(width, name=f"operand_{i}", reset_less=True) for i in range(program.operand_bits)
        ]
        carry, flag = Signal(width, reset_less=True), Signal(width, reset_less=True)
        x, result = Signal(width), Signal(width)
        m.d.comb += [
            self.shown.eq(operand[0]),
            x.eq(
                Mux(
                    control.x_word,
                    flag & (operand[0] | all_cells(control.x_one)),
                    all_cells(control.x_one),
                )
            ),
            result.eq(Mux(control.select, (a & ~carry) | (x & carry), a ^ x ^ carry)),
        ]

        minuend = Signal(width)
        m.d.comb += minuend.eq(a ^ all_cells(control.subtract))
        with m.If(control.start):
            m.d.sync += carry.eq(0)
        with m.Elif(control.carry):
            m.d.sync += carry.eq((minuend & x) | (carry & (minuend | x)))

        selected = Signal(width)
        m.d.comb += selected.eq(self.columns & all_cells(row))
        becomes = Mux(control.sense, selected, result)
        if program.lanes_take_noise:
            becomes = Mux(control.noise, self._random(m, control, flag), becomes)
        with m.If(control.flag):
            m.d.sync += flag.eq(becomes)

        shown = operand[0]
        west_end = chosen_border(program, control, lambda border: beyond(border, shown, -1))
        east_end = chosen_border(program, control, lambda border: beyond(border, shown, width))
        entering = {
            Shift.ROTATE: shown,
            Shift.LOAD: result,
            Shift.NORTH: self.north,
            Shift.EAST: Cat(shown[1:], east_end),
            Shift.SOUTH: self.south,
            Shift.WEST: Cat(west_end, shown[:-1]),
        }
        # One-hot, for an AND and an OR need fewer gates than a decoder in each cell.
        top = Signal(width)
        gated = [bits & all_cells(control.enter[way - 1]) for way, bits in entering.items()]
        m.d.comb += top.eq(reduce(or_, gated))
        with m.If(control.shift):
            above = [*operand[1:], top]
            m.d.sync += [bit.eq(next) for bit, next in zip(operand, above, strict=True)]

        m.d.comb += [
            writing.addr.eq(control.write),
            writing.data.eq(result),
            writing.en.eq(control.store),
        ]
        return m

    def _random(self, m: Module, control: data.View, flag: Signal) -> Value:
        """Flags that move east, as the row's next random bit enters in the west."""
        register = Signal(REGISTER_BITS, reset_less=True)
        with m.If(control.reseed):
            m.d.sync += register.eq(self.seed)
        with m.Elif(control.flag & control.noise):
            fed_back = reduce(xor, (register[tap] for tap in TAPS))
            m.d.sync += register.eq(Cat(register[1:], fed_back))
        return Cat(register[0], flag[:-1])
