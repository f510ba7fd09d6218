"""Faults planted on purpose: a verification that cannot fail proves nothing."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scotopia.hdl.emit import emit
from scotopia.hdl.program import ONE, Operation, Program, Term
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
    """Turn the sign of the leading digit of the weights that make the prediction."""
    stored = [i for i, op in enumerate(program.operations) if op.store]
    first_candidate = program.names.index("candidate")
    end = next(i for i in stored if program.operations[i].address == first_candidate)
    digit = max((i for i in stored if i < end), default=-1) + 1
    turned = {Term.NONE: Term.ADD, Term.ADD: Term.SUBTRACT, Term.SUBTRACT: Term.ADD}
    return _change(program, digit, lambda leading: replace(leading, term=turned[leading.term]))


def drop_rounding(program: Program) -> Program:
    """Forget the half unit that rounds the last gated update, so that it truncates."""

    halves = [
        i
        for i, operation in enumerate(program.operations)
        if operation.source == ONE and operation.term is not Term.NONE
    ]
    return _change(program, halves[-1], lambda half: replace(half, term=Term.NONE))


def swap_rows(folder: Path) -> None:
    """Exchange what one cell sees in the north and in the south.

    Raises
    ------
    InputError
        If no cell lies inside the borders.
    """
    path = folder / "pixel_row.v"
    text, count = re.subn(
        r"\.neighbours\(\{ south((?:\[\d+:\d+\])?)(,.*?)north\1 \}\)",
        r".neighbours({ north\1\2south\1 })",
        path.read_text(),
        count=1,
    )
    if count != 1:
        raise InputError(
            f"{path} has no cell inside the borders: plant faults in 3 x 3 cells or more"
        )
    path.write_text(text)


FAULTS = (
    Fault("sign of one weight digit turned", program=flip_weight_digit),
    Fault("rounding of one update dropped", program=drop_rounding),
    Fault("north and south of one cell exchanged", edit=swap_rows),
)


def _change(program: Program, index: int, change: Callable[[Operation], Operation]) -> Program:
    operations = list(program.operations)
    operations[index] = change(operations[index])
    return replace(program, operations=operations)
