"""The pixel array: rows of cells, each wired to its nearest neighbours and nothing further."""

from collections.abc import Mapping
from functools import reduce

from amaranth import ClockSignal, Const, Instance, Module, ResetSignal, Signal, Value
from amaranth.hdl import ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from scotopia.graph.lfsr import row_seeds

from .program import Program
from .row import ControlLayout, PixelRow, beyond, chosen_border


def place(
    m: Module,
    name: str,
    part: wiring.Component | str,
    inputs: Mapping[str, ValueLike],
    outputs: Mapping[str, ValueLike],
) -> None:
    """Add a clocked part to `m` and wire its ports.

    A part given as a string is a Verilog module that is emitted elsewhere, once: Amaranth emits
    one module for every instance, and an array of many rows must not.

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


class PixelArray(wiring.Component):
    """All rows.

    Attributes
    ----------
    control : In
        As in `PixelRow`, for all cells.
    rows, columns : In(height), In(width)
        One bit each; a sample that arrives is for the cell where both are high.
    north_edge : Out(width)
        What the northernmost row shows.
    """

    def __init__(self, program: Program, height: int, width: int, *, by_name: bool = False) -> None:
        self.program, self.height, self.width, self.by_name = program, height, width, by_name
        super().__init__(
            {
                "control": In(ControlLayout(program).size),
                "rows": In(height),
                "columns": In(width),
                "north_edge": Out(width),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Wire the rows; with `by_name`, place the module "pixel_row" instead of building it."""
        m = Module()
        program, height, width = self.program, self.height, self.width
        shown = [Signal(width, name=f"shown_{y}") for y in range(height)]
        control = Signal(ControlLayout(program), reset_less=True)  # in step with the rows
        if len(program.borders) > 1:
            m.d.sync += control.eq(self.control)

        def row(y: int) -> Value:
            if 0 <= y < height:
                return shown[y]
            return chosen_border(program, control, lambda border: beyond(border, shown, y))

        seeds = row_seeds(height, program.rule.noise_seed)
        for y in range(height):
            inputs = {
                "control": self.control,
                "row": self.rows[y],
                "columns": self.columns,
                "north": row(y - 1),
                "south": row(y + 1),
            }
            if program.lanes_take_noise:
                inputs["seed"] = Const(int(seeds[y]), 32)
            place(
                m,
                f"row_{y}",
                "pixel_row" if self.by_name else PixelRow(program, width),
                inputs=inputs,
                outputs={"shown": shown[y]},
            )
        m.d.comb += self.north_edge.eq(shown[0])
        return m
