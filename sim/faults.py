"""Faults planted on purpose: a verification that cannot fail proves nothing."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scotopia.hdl.emit import emit
from scotopia.hdl.program import Addend, Instruction, Program
from scotopia.model.errors import InputError


@dataclass(frozen=True)
class Fault:
    """One fault, in the program or in the Verilog text.

    Attributes
    ----------
    name
        What is wrong, in a few words.
    program
        Returns a program with the fault; by default the program as it is.
    edit
        Breaks a folder of emitted Verilog; by default does nothing.
    """

    name: str
    program: Callable[[Program], Program] = lambda program: program
    edit: Callable[[Path], None] = lambda folder: None

    def emit(self, program: Program, height: int, width: int, folder: Path) -> None:
        """Write Verilog that has the fault."""
        emit(self.program(program), height, width, folder)
        self.edit(folder)


def flip_weight_digit(program: Program) -> Program:
    """Turn the sign of the highest digit among the weights of the prediction's update."""
    name = program.rule.config.channel_names[0]
    start = next(index for index, comment in program.comments.items() if comment == name)
    end = min((index for index in program.comments if index > start), default=None)
    digits = [
        (instruction.count, index)
        for index, instruction in enumerate(program.instructions[:end])
        if index >= start and instruction.addend is Addend.WORD and not instruction.select
    ]
    _, highest = min(digits)  # the fewest bits are left above it
    return _change(program, highest, lambda add: replace(add, subtract=not add.subtract))


def drop_rounding(program: Program) -> Program:
    """Forget the half unit that rounds the last gated update, so that it truncates."""
    halves = [
        i
        for i, instruction in enumerate(program.instructions)
        if instruction.addend is Addend.ONE
        and instruction.write_bits
        and not instruction.read_bits
        and not instruction.select
    ]
    return _change(program, halves[-1], lambda half: replace(half, addend=Addend.ZERO))


def swap_rows(folder: Path) -> None:
    """Exchange what one row sees in the north and in the south.

    Raises
    ------
    InputError
        If no row lies inside the borders.
    """
    path = folder / "pixel_array.v"
    text, count = re.subn(
        r"(pixel_row row_1 \(.*?\.north\()(.*?)(\).*?\.south\()(.*?)(\))",
        r"\1\4\3\2\5",
        path.read_text(),
        count=1,
        flags=re.DOTALL,
    )
    if count != 1 or "row_2" not in text:
        raise InputError(
            f"{path} has no row inside the borders: plant faults in an array of 3 rows or more"
        )
    path.write_text(text)


FAULTS = (
    Fault("sign of one weight digit turned", program=flip_weight_digit),
    Fault("rounding of one update dropped", program=drop_rounding),
    Fault("north and south of one row exchanged", edit=swap_rows),
)


def _change(program: Program, index: int, change: Callable[[Instruction], Instruction]) -> Program:
    instructions = list(program.instructions)
    instructions[index] = change(instructions[index])
    return replace(program, instructions=instructions)
