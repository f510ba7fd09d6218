"""The whole device: pixel array, sequencer and row buffer."""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from scotopia.graph.errors import InputError

from .array import PixelArray, place
from .program import Program
from .row import ControlLayout
from .sequencer import (
    CommandLayout,
    EventLayout,
    PixelLayout,
    RegisterSignature,
    RowBuffer,
    Sequencer,
)


class Retina(wiring.Component):
    """An array of height x width cells that runs an integer rule.

    A frame is: its samples, then the command FRAME; then the prediction comes out as a raster.

    Attributes
    ----------
    samples : In(stream)
        `EventLayout`: x, y, code. A sample outside the array, or offered while steps run, is
        dropped.
    commands : In(stream)
        `CommandLayout`. Ready while idle and no sample is offered.
    pixels : Out(stream)
        `PixelLayout`: the channel that was asked for, row by row.
    registers : In
        `RegisterSignature`: status, and another program.
    busy : Out(1)
        Low while idle.
    frames, dropped, error : Out(16), Out(16), Out(1)
        As in `Sequencer`.

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
                "registers": In(RegisterSignature()),
                "busy": Out(1),
                "frames": Out(16),
                "dropped": Out(16),
                "error": Out(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Wire the parts; with `by_name`, place Verilog modules instead of building them."""
        m = Module()
        program, height, width = self.program, self.height, self.width
        control = Signal(ControlLayout(program).size)
        rows, columns, north_edge = Signal(height), Signal(width), Signal(width)
        capture, send, first_row, sent = Signal(), Signal(), Signal(), Signal()
        place(
            m,
            "sequencer",
            "sequencer" if self.by_name else Sequencer(program, height, width),
            inputs={
                "samples__payload": self.samples.payload,
                "samples__valid": self.samples.valid,
                "commands__payload": self.commands.payload,
                "commands__valid": self.commands.valid,
                "registers__address": self.registers.address,
                "registers__write": self.registers.write,
                "registers__write_data": self.registers.write_data,
                "sent": sent,
            },
            outputs={
                "samples__ready": self.samples.ready,
                "commands__ready": self.commands.ready,
                "registers__read_data": self.registers.read_data,
                "control": control,
                "rows": rows,
                "columns": columns,
                "capture": capture,
                "send": send,
                "first_row": first_row,
                "busy": self.busy,
                "frames": self.frames,
                "dropped": self.dropped,
                "error": self.error,
            },
        )
        place(
            m,
            "array",
            "pixel_array" if self.by_name else PixelArray(program, height, width),
            inputs={"control": control, "rows": rows, "columns": columns},
            outputs={"north_edge": north_edge},
        )
        place(
            m,
            "row_buffer",
            "row_buffer" if self.by_name else RowBuffer(program, width),
            inputs={
                "bits": north_edge,
                "capture": capture,
                "send": send,
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
