"""Faults planted on purpose: a verification that cannot fail proves nothing.

They are made by operators, as in mutation testing (DeMillo, Lipton, Sayward: "Hints on Test Data
Selection", IEEE Computer 11, 1978): each changes one thing in the rule, in an instruction of its
program, or in a line of the emitted Verilog. All of the last go into the text at once, and the
simulator is told which one is awake: `+fault=N`, counted from 1.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from scotopia.graph.errors import InputError
from scotopia.graph.operations import (
    Add,
    Constant,
    Fit,
    Less,
    Linear,
    Maximum,
    Minimum,
    Multiply,
    Operation,
    Select,
    Subtract,
    Window,
    fraction,
    fractions,
)
from scotopia.graph.qformat import Overflow, Rounding
from scotopia.graph.step import StepGraph
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Addend, Carry, Flag, Instruction, Program, Shift
from scotopia.hdl.sequencer import program_depth


class Area(StrEnum):
    """Where a fault lies."""

    RULE = "rule"
    ROUNDING = "rounding"
    SATURATION = "saturation"
    SCHEDULE = "schedule"
    CELL = "cell"
    BORDER = "border"
    WIRING = "wiring"
    SEQUENCER = "sequencer"
    SAMPLES = "sample input"
    READOUT = "readout"


@dataclass(frozen=True)
class Edit:
    """An expression in a Verilog file, and what stands there instead.

    Attributes
    ----------
    file, line
        Which; the first line is 1.
    start, end
        Columns of the expression.
    after
        The other one.
    """

    file: str
    line: int
    start: int
    end: int
    after: str

    def plant(self, folder: Path) -> None:
        """Make it in the files of `folder`."""
        path = folder / self.file
        lines = path.read_text().split("\n")
        text = lines[self.line - 1]
        lines[self.line - 1] = text[: self.start] + f"({self.after})" + text[self.end :]
        path.write_text("\n".join(lines))


@dataclass(frozen=True)
class Fault:
    """One fault, in the program or in the Verilog.

    Attributes
    ----------
    area, name
        Where it lies, and what is wrong.
    program
        A program that has it.
    edits
        Or edits that make it.
    """

    area: Area
    name: str
    program: Program | None = None
    edits: tuple[Edit, ...] = ()

    def emit(self, program: Program, height: int, width: int, folder: Path) -> None:
        """Write Verilog that has the fault."""
        emit(self.program or program, height, width, folder)
        for edit in self.edits:
            edit.plant(folder)


def every_fault(program: Program, folder: Path) -> list[Fault]:
    """Make all faults that the operators know.

    Parameters
    ----------
    program
        Without a fault.
    folder
        Verilog that was emitted of it.
    """
    return [
        *rule_faults(program),
        *program_faults(program),
        *verilog_faults(folder),
    ]


def draw(faults: Sequence[Fault], each: int, seed: int = 0) -> list[Fault]:
    """Draw at most so many of each area, in their order."""
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for area in Area:
        members = [i for i, fault in enumerate(faults) if fault.area is area]
        chosen |= set(rng.permutation(members)[:each].tolist())
    return [faults[i] for i in sorted(chosen)]


def sure_faults(program: Program, folder: Path) -> list[Fault]:
    """Make up to three that show in almost any run, for a quick check of the verification.

    Raises
    ------
    InputError
        If no row of the array lies inside the borders.
    """
    exchanged = [
        fault
        for fault in verilog_faults(folder)
        if fault.area is Area.WIRING and "what lies in the south" in fault.name
    ]
    if not exchanged:
        raise InputError(
            f"{folder} has no row inside the borders: plant faults in an array of 3 rows or more"
        )
    changed = [
        Fault(Area.RULE, "sign of one digit turned", program=flip_digit(program)),
        Fault(Area.ROUNDING, "rounding of one update dropped", program=drop_rounding(program)),
    ]
    return [*(fault for fault in changed if fault.program), exchanged[0]]


def flip_digit(program: Program) -> Program | None:
    """Turn the sign of the highest digit that is added to the first channel, or last before it.

    None, if no word is added.
    """
    name = next(iter(program.words))
    starts = [i for i, text in program.comments.items() if name in text.split(", ")]
    start = starts[0] if starts else program.entries["step"]
    end = min((index for index in program.comments if index > start), default=None)
    adds = [
        (op.count, index)
        for index, op in enumerate(program.instructions[:end])
        if index >= program.entries["step"] and op.addend is Addend.WORD and not op.select
    ]
    if not adds:
        return None
    # The fewest bits are left above it.
    _, highest = min((one for one in adds if one[1] >= start), default=adds[-1])
    op = program.instructions[highest]
    return _with(program, highest, replace(op, subtract=not op.subtract))


def drop_rounding(program: Program) -> Program | None:
    """Forget the half unit that rounds the last gated update, so that it truncates.

    None, if nothing is rounded so.
    """
    halves = [
        i
        for i, instruction in enumerate(program.instructions)
        if instruction.addend is Addend.ONE
        and instruction.write_bits
        and not instruction.read_bits
        and not instruction.select
    ]
    if not halves:
        return None
    op = program.instructions[halves[-1]]
    return _with(program, halves[-1], replace(op, addend=Addend.ZERO))


def _with(program: Program, index: int, instruction: Instruction) -> Program:
    instructions = list(program.instructions)
    instructions[index] = instruction
    return replace(program, instructions=instructions)


# Faults of the rule: another one is compiled.


def rule_faults(program: Program) -> Iterator[Fault]:
    """Change a number of the rule, an operation, or how it rounds and what it does on overflow.

    Only where the device can load the program: those that need other gates are left to
    `verilog_faults`.
    """
    rule, graph = program.rule, program.rule.graph

    def compiled(area: Area, name: str, other: StepGraph) -> Iterator[Fault]:
        try:
            found = Program.compile(rule.with_graph(other), program.planes)
        except InputError:  # it takes more memory
            return
        if (
            found.entries == program.entries
            and found.operand_bits == program.operand_bits
            and len(found.instructions) <= program_depth(program)
            and found.instructions != program.instructions
        ):
            # It stays the program of the rule that it should compute.
            yield Fault(area, name, program=replace(found, rule=rule))

    rng = np.random.default_rng(0)
    for index, linear in graph.of_kind(Linear):
        assert isinstance(linear, Linear)
        words = graph.words(index)
        places = rng.permutation(np.argwhere(linear.weight))[:12]
        for number, (output, source, tap) in enumerate(places.tolist()):
            weight = linear.weight.copy()
            old = float(weight[output, source, tap])
            unit = 2.0 ** -int(fractions(weight[output]).max())
            weight[output, source, tap] = new = -old if number % 2 else old + unit
            name = (
                f"{graph.name(words[output])}: weight of {graph.name(linear.a[source])} at tap "
                f"{tap} is {new:g} and not {old:g}"
            )
            other = graph.changed({index: replace(linear, weight=weight)})
            yield from compiled(Area.RULE, name, other)
        for output in rng.permutation(linear.count)[:4].tolist():
            bias = linear.bias.copy()
            # The least that a sum can show, for its last bits are rounded away.
            bias[output] += 2.0 ** -(_kept_fraction(graph, words[output]) + 2)
            name = f"{graph.name(words[output])}: bias is {bias[output]:g}"
            other = graph.changed({index: replace(linear, bias=bias)})
            yield from compiled(Area.RULE, name, other)
    for index, operation in enumerate(graph.operations):
        for area, what, wrong in _others(graph, operation):
            name = f"{graph.name(graph.words(index)[0])}: {what}"
            yield from compiled(area, name, graph.changed({index: wrong}))


def _others(graph: StepGraph, operation: Operation) -> Iterator[tuple[Area, str, Operation]]:
    """Yield what an operation could be by mistake, of as many words."""
    match operation:
        case Fit():
            for rounding in Rounding:
                what = f"rounds by {rounding.name}"
                yield Area.ROUNDING, what, replace(operation, rounding=rounding)
            for overflow in Overflow:
                what = f"overflows by {overflow.name}"
                yield Area.SATURATION, what, replace(operation, overflow=overflow)
        case Window(largest=largest):
            what = "the other end of nine cells"
            yield Area.RULE, what, replace(operation, largest=not largest)
        case Add(a=a, b=b):
            yield Area.RULE, "subtracts and does not add", Subtract(a, b)
        case Subtract(a=a, b=b):
            yield Area.RULE, "adds and does not subtract", Add(a, b)
        case Multiply(a=a):
            yield Area.RULE, "squares and does not multiply", Multiply(a, a)
        case Minimum(a=a, b=b):
            yield Area.RULE, "the larger and not the smaller", Maximum(a, b)
        case Maximum(a=a, b=b):
            yield Area.RULE, "the smaller and not the larger", Minimum(a, b)
        case Less(a=a, b=b):
            yield Area.RULE, "compared the other way", Less(b, a)
        case Select(condition=condition, a=a, b=b):
            yield Area.RULE, "choices exchanged", Select(condition, b, a)
        case Constant(values=values):
            units = [2.0 ** -fraction(value) for value in values]
            larger = tuple(value + unit for value, unit in zip(values, units, strict=True))
            yield Area.RULE, f"{larger[0]:g} and not {values[0]:g}", Constant(larger)
    if isinstance(operation, Window | Linear):
        for border in graph.borders:
            if border != operation.border:
                yield Area.RULE, f"{border} border", replace(operation, border=border)


def _kept_fraction(graph: StepGraph, word: int) -> int:
    """Fraction bits that are left of a word where it is brought to a format."""
    for reader in graph.readers[word]:
        operation = graph.operations[reader]
        if isinstance(operation, Fit):
            return operation.formats[operation.a.index(word)].frac_bits
    return graph.fractions[word] - 2


# Faults of the schedule: one instruction is changed.


def program_faults(program: Program) -> Iterator[Fault]:
    """Change an instruction, or skip it."""
    borders = len(program.borders)
    for index, op in enumerate(program.instructions):
        changes = list(_changed(op))
        if borders > 1 and op.shift >= Shift.NORTH:
            other = replace(op, border=(op.border + 1) % borders)
            changes.append(("moves by another border", other))
        for what, other in changes:
            area = Area.SCHEDULE
            if op.select:
                area = Area.SATURATION
            elif op.addend is Addend.ONE and op.write_bits and not op.read_bits:
                area = Area.ROUNDING
            yield Fault(
                area,
                f"instruction {index}: {what}",
                program=_with(program, index, other),
            )


def _changed(op: Instruction) -> Iterator[tuple[str, Instruction]]:
    computes = op.write_bits or op.flag is Flag.TAKE or op.shift is Shift.LOAD
    if op.addend is Addend.WORD and not op.select and op.carry is not Carry.HOLD:
        yield "subtract turned", replace(op, subtract=not op.subtract)
    if op.addend in (Addend.WORD, Addend.ONE, Addend.UNIT, Addend.FLAG, Addend.SAMPLE):
        yield f"adds 0 and not {op.addend.name}", replace(op, addend=Addend.ZERO)
    if op.read_bits and (computes or op.carry is not Carry.HOLD):
        yield "reads one plane too low", replace(op, read=max(op.read - 1, 0))
        yield "reads one bit less", replace(op, read_bits=op.read_bits - 1)
        if op.read_bits < op.count:
            yield "extends the sign if it had none", replace(op, signed=not op.signed)
    if op.write_bits:
        yield "writes one plane too high", replace(op, write=op.write + 1)
        yield "writes one bit less", replace(op, write_bits=op.write_bits - 1)
        yield "writes nothing", replace(op, write_bits=0)
    if op.carry is Carry.START and op.count > 1 and computes:
        yield "does not clear the carry", replace(op, carry=Carry.CONTINUE)
    if op.carry is Carry.CONTINUE:
        yield "clears the carry", replace(op, carry=Carry.START)
    if op.flag is not Flag.HOLD:
        yield "leaves the flag", replace(op, flag=Flag.HOLD)
    if op.shift is not Shift.HOLD:
        yield "leaves the operand", replace(op, shift=Shift.HOLD)
    if op.shift >= Shift.NORTH:
        opposite = {
            Shift.NORTH: Shift.SOUTH,
            Shift.SOUTH: Shift.NORTH,
            Shift.EAST: Shift.WEST,
            Shift.WEST: Shift.EAST,
        }[op.shift]
        name = f"takes from {opposite.name.lower()}"
        yield name, replace(op, shift=opposite)
    if op.select:
        yield "adds and does not select", replace(op, select=False)
    if op.end:
        yield "the routine does not end", replace(op, end=False)


# Faults of the Verilog: an expression is another one.

_SWAPS = {
    **{"&": "|", "|": "&", "^": "|", "+": "-", "-": "+", "<<": ">>", ">>": "<<"},
    **{"==": "!=", "!=": "==", "<": "<=", "<=": "<", ">=": ">", ">": ">="},
}
_ASSIGN = re.compile(r"^  assign (\\\S+|\w+) *(\[[\d:]+\])? = (.*);$")
_INSIDE = re.compile(r"^      +(\\\S+|\w+) *(\[[\d:]+\])? = (.*);$")
_STATEMENT = re.compile(r"^ +(?:assign )?(?:\\\S+|\w+) *(?:\[[\d:]+\])? = (.*);$")
_IF = re.compile(r"if \((.*)\)(?: begin(?: end)?)?$")
_PORT = re.compile(r"^    \.(\w+)\((.*)\),?$")
_INSTANCE = re.compile(r"^  (\w+) (\w+) \($")
_BINARY = re.compile(r"^([^?{}]+?) (&|\||\^|\+|-|==|!=|<=|>=|<<|>>|<|>) ([^?{}]+|\{.*\})$")
_TERNARY = re.compile(r"^([^?]+) \? (.+?) : (.+)$")
_UNARY = re.compile(r"^([~!|&]) (.+)$")
_CONSTANT = re.compile(r"^(\d+)'h([0-9a-f]+)$")


def verilog_faults(folder: Path) -> Iterator[Fault]:
    """Change an expression in the Verilog: an operator, a constant, a condition, a port."""
    for path in sorted(folder.glob("*.v")):
        instance, module, resetting = "", "", False
        text = path.read_text()
        alive = _read_names(text)
        south = dict(re.findall(r"pixel_row (\w+) \([^;]*?\.south\((.*?)\)", text))
        for number, line in enumerate(text.split("\n"), 1):
            if found := _INSTANCE.match(line):
                module, instance = found.groups()
            changes: list[tuple[int, int, str, str]] = []
            if found := _ASSIGN.match(line):
                if found[1] in alive:
                    changes = [(*found.span(3), *c) for c in _expressions(found[3])]
            elif found := _INSIDE.match(line):
                changes = [(*found.span(3), *c) for c in _values(found[1], found[3])]
            elif (found := _IF.search(line)) and "verilog_backend" not in line:
                resetting = found[1] == "rst"
                changes = [(*found.span(1), "condition turned", f"!({found[1]})")]
            elif instance and (found := _PORT.match(line)):
                changes = [
                    (*found.span(2), f"port {found[1]} of {instance}: {what}", after)
                    for what, after in _wires(module, found[1], found[2], south.get(instance, ""))
                ]
            for start, end, what, after in changes:
                short = " ".join(line[start:end].split())
                short = short if len(short) < 40 else short[:37] + "..."
                yield Fault(
                    _area(path.name, line, instance, resetting),
                    f"{path.name}:{number}: {what} in `{short}`",
                    edits=(Edit(path.name, number, start, end, after),),
                )
            if line.startswith("  always") or line == "  );":
                instance, resetting = "", False


def expression(line: str) -> tuple[int, int]:
    """Return where in a line of Verilog its expression begins and ends.

    Raises
    ------
    ValueError
        If it is no assignment, condition or port.
    """
    for kind in (_STATEMENT, _IF, _PORT):
        if found := kind.search(line):
            return found.span(found.re.groups)
    raise ValueError(f"no expression in {line!r}")


_NAME = re.compile(r"\\\S+|[A-Za-z_]\w*")


def _read_names(text: str) -> set[str]:
    """Names that something reads: a fault in any other could not matter."""
    assigned: dict[str, set[str]] = {}
    alive: set[str] = set()
    for line in text.split("\n"):
        if found := _ASSIGN.match(line):
            assigned.setdefault(found[1], set()).update(_NAME.findall(found[3]))
        elif not line.startswith(("  wire ", "  reg ", "  input ")):  # outputs are alive
            alive.update(_NAME.findall(line))
    waiting = list(alive)
    while waiting:
        for name in assigned.pop(waiting.pop(), set()) - alive:
            alive.add(name)
            waiting.append(name)
    return alive


def _expressions(text: str) -> Iterator[tuple[str, str]]:
    text = text.strip()
    if found := _TERNARY.match(text):
        condition, yes, no = found.groups()
        yield "choices exchanged", f"{condition} ? {no} : {yes}"
    elif found := _BINARY.match(text):
        a, operator, b = found.groups()
        yield f"{_SWAPS[operator]} for {operator}", f"{a} {_SWAPS[operator]} {b}"
        if operator in "&|^":
            yield f"{operator} without its right side", a
            yield f"{operator} without its left side", b
    elif found := _UNARY.match(text):
        operator, a = found.groups()
        yield f"{operator} undone", f"~({operator} {a} )"
    elif "_0_" not in text:  # what the memory read
        yield "turned", f"~({text} )"


def _values(target: str, text: str) -> Iterator[tuple[str, str]]:
    text = text.strip()
    if found := _CONSTANT.match(text):
        bits, digits = found.groups()
        yield "another number", f"{bits}'h{int(digits, 16) ^ 1:x}"
    else:
        yield "not taken over", f"{target} "


def _wires(module: str, port: str, text: str, south: str) -> Iterator[tuple[str, str]]:
    # Outputs are no expressions: what takes them is changed instead.
    if module == "pixel_row" and port in ("north", "south", "columns", "row"):
        yield "turned", f"~({text} )"
        if port in ("north", "south"):
            yield "nothing there", f"{text} & 1'b0"
        if port == "north":
            yield "what lies in the south", south


def _area(file: str, line: str, instance: str, resetting: bool) -> Area:
    if file == "row_buffer.v":
        return Area.READOUT
    if file == "pixel_row.v":
        return Area.BORDER if re.search(r"\{ ?shown\[|shown\[0\] \}", line) else Area.CELL
    if file == "pixel_array.v":
        edge = re.search(r"\.(north|south)\(", line) and instance == "row_0"
        return Area.BORDER if edge else Area.WIRING
    if re.search(r"samples__|dropp|\brows\b|columns", line):
        return Area.SAMPLES
    if re.search(r"capture|\bsend\b|sent|reading|rows_left|channel", line):
        return Area.READOUT
    return Area.SEQUENCER


#: How a module knows which fault is awake: `+fault=N` tells the simulator.
AWAKE = '  integer fault = 0;\n  initial if (!$value$plusargs("fault=%d", fault)) fault = 0;'


def instrument(folder: Path, faults: Iterable[Fault], declaration: str = AWAKE) -> None:
    """Write all edits into a folder of Verilog; fault N, from 1, is awake if `fault` is N.

    Parameters
    ----------
    declaration
        Of `fault`, in each module.
    """
    edits: dict[str, dict[int, list[tuple[int, Edit]]]] = {}
    for number, fault in enumerate(faults, 1):
        for edit in fault.edits:
            edits.setdefault(edit.file, {}).setdefault(edit.line, []).append((number, edit))
    for file, by_line in edits.items():
        lines = (folder / file).read_text().split("\n")
        for line, here in by_line.items():
            text = lines[line - 1]
            (start, end), *others = {(edit.start, edit.end) for _, edit in here}
            assert not others, f"{file}:{line}: faults of two expressions"
            choices = "".join(f"fault == {number} ? ({edit.after} ) : " for number, edit in here)
            lines[line - 1] = f"{text[:start]}({choices}({text[start:end]} )){text[end:]}"
        top = next(i for i, text in enumerate(lines) if text.endswith(");"))  # of the port list
        lines.insert(top + 1, declaration)
        (folder / file).write_text("\n".join(lines))
