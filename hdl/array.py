"""The pixel array: rows of cells, each wired to its nearest neighbours and nothing further."""

from collections.abc import Mapping
from functools import reduce

from amaranth import Cat, ClockSignal, Const, Instance, Module, ResetSignal, Signal, Value
from amaranth.hdl import ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .cell import ExecuteLayout, FetchLayout, PixelCell
from .program import Program


def place(
    m: Module,
    name: str,
    part: wiring.Component | str,
    inputs: Mapping[str, ValueLike],
    outputs: Mapping[str, ValueLike],
) -> None:
    """Add a clocked part to `m` and wire its ports.

    A part given as a string is a Verilog module that is emitted elsewhere, once: Amaranth emits
    one module for every instance, and an array of 16,384 cells must not.

    Parameters
    ----------
    inputs, outputs
        By port name; "samples__valid" is port valid of interface samples.
    """
    if isinstance(part, str):
        ports: dict[str, ValueLike] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        ports |= {f"i_{port}": Value.cast(value) for port, value in inputs.items()}
        ports |= {f"o_{port}": Value.cast(value) for port, value in outputs.items()}
        m.submodules[name] = Instance(part, **ports)
        return
    m.submodules[name] = part
    for port, value in inputs.items():
        m.d.comb += Value.cast(reduce(getattr, port.split("__"), part)).eq(value)
    for port, value in outputs.items():
        m.d.comb += Value.cast(value).eq(reduce(getattr, port.split("__"), part))


def beyond(index: int, count: int, border: str) -> int | None:
    """Return which cell is seen at `index` of `count`, inside or beyond the border; None: zeros."""
    if 0 <= index < count:
        return index
    if border == "zero":
        return None
    return index % count if border == "wrap" else min(max(index, 0), count - 1)


class PixelRow(wiring.Component):
    """One row of cells. Vectors of words have the west cell's word lowest.

    Attributes
    ----------
    fetch, execute, row : In
        As in `PixelCell`, for all cells of the row.
    columns : In(width)
        One bit a cell.
    north, south : In(width * word_bits)
        Words of the rows above and below.
    words : Out(width * word_bits)
        What the cells of this row show their neighbours. Combinational from `fetch`.
    """

    def __init__(self, program: Program, width: int, *, by_name: bool = False) -> None:
        self.program, self.width, self.by_name = program, width, by_name
        # Plain vectors: a layout would give every word a wire of its own in the Verilog.
        super().__init__(
            {
                "fetch": In(FetchLayout(program).size),
                "execute": In(ExecuteLayout(program).size),
                "row": In(1),
                "columns": In(width),
                "north": In(width * program.word_bits),
                "south": In(width * program.word_bits),
                "words": Out(width * program.word_bits),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Wire the cells; with `by_name`, place the module "pixel_cell" instead of building it."""
        m = Module()
        bits, border = self.program.word_bits, self.program.rule.config.border

        def word(row: Value, x: int) -> Value:
            index = beyond(x, self.width, border)
            return Const(0, bits) if index is None else row.word_select(index, bits)

        for x in range(self.width):
            neighbours = [
                word(row, x + dx)
                for row in (self.north, self.words, self.south)
                for dx in (-1, 0, 1)
                if row is not self.words or dx != 0
            ]
            place(
                m,
                f"cell_{x}",
                "pixel_cell" if self.by_name else PixelCell(self.program),
                inputs={
                    "fetch": self.fetch,
                    "execute": self.execute,
                    "row": self.row,
                    "column": self.columns[x],
                    "neighbours": Cat(*neighbours),
                },
                outputs={"word": self.words.word_select(x, bits)},
            )
        return m


class PixelArray(wiring.Component):
    """All rows.

    Attributes
    ----------
    fetch, execute : In
        As in `PixelCell`, for all cells.
    rows, columns : In(height), In(width)
        One bit each; a cell is selected where both are high.
    north_edge : Out(width * word_bits)
        Words of the northernmost row. Combinational from `fetch`.
    """

    def __init__(self, program: Program, height: int, width: int, *, by_name: bool = False) -> None:
        self.program, self.height, self.width, self.by_name = program, height, width, by_name
        super().__init__(
            {
                "fetch": In(FetchLayout(program).size),
                "execute": In(ExecuteLayout(program).size),
                "rows": In(height),
                "columns": In(width),
                "north_edge": Out(width * program.word_bits),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Wire the rows; with `by_name`, place the module "pixel_row" instead of building it."""
        m = Module()
        border = self.program.rule.config.border
        size = self.width * self.program.word_bits
        words = [Signal(size, name=f"words_{y}") for y in range(self.height)]

        def row(y: int) -> Value:
            index = beyond(y, self.height, border)
            return Const(0, size) if index is None else words[index]

        for y in range(self.height):
            place(
                m,
                f"row_{y}",
                "pixel_row" if self.by_name else PixelRow(self.program, self.width),
                inputs={
                    "fetch": self.fetch,
                    "execute": self.execute,
                    "row": self.rows[y],
                    "columns": self.columns,
                    "north": row(y - 1),
                    "south": row(y + 1),
                },
                outputs={"words": words[y]},
            )
        m.d.comb += self.north_edge.eq(words[0])
        return m
