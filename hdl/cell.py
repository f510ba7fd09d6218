"""The pixel cell: an accumulator, a few words of memory, and wires to eight neighbours."""

from amaranth import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.hdl import ShapeLike
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .program import HERE, ONE, Base, Condition, Gate, Program, Term


class FetchLayout(data.StructLayout):
    """First half of an operation, broadcast to all cells: which word becomes the operand.

    address, source, signed
        As in `program.Operation`; source 5 counts the neighbours in reading order.
    shift_out
        Show the neighbours the operand register instead of a word of memory, so that words move
        from cell to cell.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(
            {
                "address": address_bits(program),
                "source": 4,
                "signed": 1,
                "shift_out": 1,
            }
        )


class ExecuteLayout(data.StructLayout):
    """Second half of an operation, one clock after its fetch.

    address, base, term, condition, gate, store, limit
        As in `program.Operation`; address is the word stored.
    sample, sense
        While `sense`, the selected cell takes `sample` as its word at `address` and sets its valid
        flag; `store` must be low.
    forget
        Clear all valid flags.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(
            {
                "address": address_bits(program),
                **execute_fields(program),
                "sample": program.word_bits,
                "sense": 1,
                "forget": 1,
            }
        )


def execute_fields(program: Program) -> dict[str, ShapeLike]:
    """Fields of `program.Operation` that the second half of an operation needs."""
    return {
        "base": Base,
        "term": Term,
        "condition": Condition,
        "gate": Gate,
        "store": 1,
        "limit": range(max(2, len(program.limits))),
    }


def address_bits(program: Program) -> int:
    """Width of a word's address."""
    return max(1, (len(program.words) - 1).bit_length())


class PixelCell(wiring.Component):
    """One cell of the array.

    Attributes
    ----------
    fetch : In
        What to read, this clock.
    execute : In
        What to do with what was read the clock before.
    row, column : In(1)
        Both high select the cell for `execute.sense`.
    neighbours : In
        Words of the eight neighbours in reading order, the cell itself left out.
    word : Out
        What the cell shows its neighbours. Combinational from `fetch`.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        super().__init__(
            {
                "fetch": In(FetchLayout(program)),
                "execute": In(ExecuteLayout(program)),
                "row": In(1),
                "column": In(1),
                "neighbours": In(data.ArrayLayout(program.word_bits, 8)),
                "word": Out(program.word_bits),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Build the cell."""
        m = Module()
        program, fetch, execute = self.program, self.fetch, self.execute
        bits = program.word_bits

        m.submodules.memory = memory = Memory(
            shape=unsigned(bits), depth=len(program.words), init=[]
        )
        read, write = memory.read_port(domain="comb"), memory.write_port()
        m.d.comb += read.addr.eq(fetch.address)

        # Fetch: the operand register has one bit more than a word, so that it holds signed and
        # unsigned words alike.
        operand = Signal(signed(bits + 1))
        source = Signal(bits)
        neighbours = [self.neighbours[i] for i in range(8)]
        neighbours.insert(HERE, self.word)
        with m.Switch(fetch.source):
            for index, neighbour in enumerate(neighbours):
                with m.Case(index):
                    m.d.comb += source.eq(neighbour)
            with m.Case(ONE):
                m.d.comb += source.eq(1)
        m.d.sync += operand.eq(Cat(source, fetch.signed & source[-1]))
        m.d.comb += self.word.eq(Mux(fetch.shift_out, operand[:bits], read.data))

        # Execute.
        accumulator = Signal(signed(program.accumulator_bits))
        gate = Signal(bits)
        valid = Signal()
        base = Signal.like(accumulator)
        with m.Switch(execute.base):
            with m.Case(Base.KEEP):
                m.d.comb += base.eq(accumulator)
            with m.Case(Base.DOUBLE):
                m.d.comb += base.eq(accumulator << 1)
        counts = Signal()
        with m.Switch(execute.condition):
            with m.Case(Condition.ALWAYS):
                m.d.comb += counts.eq(1)
            with m.Case(Condition.VALID):
                m.d.comb += counts.eq(valid)
            with m.Case(Condition.GATE_SET):
                m.d.comb += counts.eq(gate[-1])
            with m.Case(Condition.GATE_CLEAR):
                m.d.comb += counts.eq(~gate[-1])
        # One adder: a - b is a + ~b + 1.
        subtract = execute.term == Term.SUBTRACT
        term = Signal(signed(bits + 1))
        carry = Signal()
        with m.If(counts & (execute.term != Term.NONE)):
            m.d.comb += term.eq(Mux(subtract, ~operand, operand)), carry.eq(subtract)
        m.d.sync += accumulator.eq(base + term + carry)

        with m.Switch(execute.gate):
            with m.Case(Gate.SHIFT):
                m.d.sync += gate.eq(gate << 1)
            with m.Case(Gate.LOAD):
                m.d.sync += gate.eq(operand[:bits])

        # Store: the accumulator's upper bits, clipped.
        shifted = accumulator >> program.tap
        clipped = Signal(bits)
        with m.Switch(execute.limit):
            for index, limit in enumerate(program.limits):
                with m.Case(index):
                    with m.If(shifted < limit.lowest):
                        m.d.comb += clipped.eq(limit.lowest)
                    with m.Elif(shifted > limit.highest):
                        m.d.comb += clipped.eq(limit.highest)
                    with m.Else():
                        m.d.comb += clipped.eq(shifted)
        sense = Signal()
        m.d.comb += [
            sense.eq(execute.sense & self.row & self.column),
            write.addr.eq(execute.address),
            write.data.eq(Mux(execute.sense, execute.sample, clipped)),
            write.en.eq(execute.store | sense),
        ]
        with m.If(sense):
            m.d.sync += valid.eq(1)
        with m.Elif(execute.forget):
            m.d.sync += valid.eq(0)
        return m
