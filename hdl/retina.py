"""The whole device: pixel array, sequencer and row buffer."""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from scotopia.model.errors import InputError

from .array import PixelArray, place
from .cell import ExecuteLayout, FetchLayout
from .program import Program
from .sequencer import CommandLayout, EventLayout, PixelLayout, RowBuffer, Sequencer


class Retina(wiring.Component):
    """An array of height x width cells that runs an integer rule.

    A frame is: its samples, then the command FRAME; then the prediction comes out as a raster.

    Attributes
    ----------
    samples : In(stream)
        `EventLayout`: x, y, code. Ready while idle.
    commands : In(stream)
        `CommandLayout`. Ready while idle and no sample is offered.
    pixels : Out(stream)
        `PixelLayout`: the channel that was asked for, row by row.
    busy : Out(1)
        Low while idle.

    Raises
    ------
    InputError
        If a side is outside 1 to 1024.
    """

    def __init__(self, program: Program, height: int, width: int, *, by_name: bool = False) -> None:
        check_size(height, width)
        self.program, self.height, self.width, self.by_name = program, height, width, by_name
        super().__init__(
            {
                "samples": In(stream.Signature(EventLayout(program, height, width))),
                "commands": In(stream.Signature(CommandLayout())),
                "pixels": Out(stream.Signature(PixelLayout(program))),
                "busy": Out(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Wire the parts; with `by_name`, place Verilog modules instead of building them."""
        m = Module()
        program, height, width = self.program, self.height, self.width
        fetch = Signal(FetchLayout(program).size)
        execute = Signal(ExecuteLayout(program).size)
        rows, columns = Signal(height), Signal(width)
        north_edge = Signal(width * program.word_bits)
        capture, first_row, sent = Signal(), Signal(), Signal()
        place(
            m,
            "sequencer",
            "sequencer" if self.by_name else Sequencer(program, height, width),
            inputs={
                "samples__payload": self.samples.payload,
                "samples__valid": self.samples.valid,
                "commands__payload": self.commands.payload,
                "commands__valid": self.commands.valid,
                "sent": sent,
            },
            outputs={
                "samples__ready": self.samples.ready,
                "commands__ready": self.commands.ready,
                "fetch": fetch,
                "execute": execute,
                "rows": rows,
                "columns": columns,
                "capture": capture,
                "first_row": first_row,
                "busy": self.busy,
            },
        )
        place(
            m,
            "array",
            "pixel_array" if self.by_name else PixelArray(program, height, width),
            inputs={"fetch": fetch, "execute": execute, "rows": rows, "columns": columns},
            outputs={"north_edge": north_edge},
        )
        place(
            m,
            "row_buffer",
            "row_buffer" if self.by_name else RowBuffer(program, width),
            inputs={
                "words": north_edge,
                "capture": capture,
                "first_row": first_row,
                "pixels__ready": self.pixels.ready,
            },
            outputs={
                "sent": sent,
                "pixels__payload": self.pixels.payload,
                "pixels__valid": self.pixels.valid,
            },
        )
        return m


def check_size(height: int, width: int) -> None:
    """Refuse an array that cannot be built.

    Raises
    ------
    InputError
        If a side is outside 1 to 1024.
    """
    for name, side in (("height", height), ("width", width)):
        if not 1 <= side <= 1024:
            raise InputError(f"{name} {side} is outside 1 to 1024: choose 16, for instance")
