"""From an integer rule's step graph to the array's program.

`plan` takes the graph apart into jobs, each of which makes a word that is stored; `schedule` puts
them in order; `step` does them, its sums in `sums` and `results` and all else in `choices`, and
`cells` writes their instructions. Whatever does not fit the cells' memory is done in more passes.
"""

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import QFormat
from scotopia.quantize.integer_rule import IntegerRule

from ..program import Addend, Flag, Instruction, Program, Shift, Word
from .cells import Cells, OutOfPlanesError
from .expression import signed_digits
from .jobs import Plan
from .plan import plan_step
from .schedule import Layer, Schedule
from .step import Step

__all__ = ["compile_rule", "signed_digits"]

#: Sizes of a cell's memory that are tried, in planes.
PLANES = (64, 128, 256, 512, 1024, 2048)

#: From this size on, rather compute what comes from neighbours in several passes than take a larger
#: memory: a block RAM of 18 kbit has 512 words of 36 bits at most.
DEEP = 512


def compile_rule(rule: IntegerRule, planes: int | None = None) -> Program:
    """Compile a rule, for a memory of so many planes or for the smallest that serves.

    Raises
    ------
    InputError
        If it does not fit.
    """
    if planes is not None and planes not in PLANES:
        raise InputError(f"planes {planes} is not supported: choose one of {PLANES}")
    plan = plan_step(rule.graph)
    schedule = Schedule(plan)
    largest = planes or PLANES[-1]
    for size in [planes] if planes else PLANES:
        passes: dict[Layer, int] = {}
        while True:
            program = Program(rule, size, operand_bits(plan))
            compiler = _Compiler(program, plan, schedule)
            try:
                compiler.compile(passes)
                return program
            except OutOfPlanesError:
                layer = compiler.to_be_cut(passes, everything=size >= DEEP or planes is not None)
            if layer is None:
                break
            passes[layer] = min(2 * passes.get(layer, 1), len(schedule.layers[layer]))
    raise InputError(
        f"the rule does not fit a memory of {largest} planes: choose more planes, or a rule of "
        "fewer channels, neurons or bits"
    )


class _Compiler:
    def __init__(self, program: Program, plan: Plan, schedule: Schedule) -> None:
        self.program, self.plan, self.schedule = program, plan, schedule
        self.cells = Cells(program)
        self.begun: list[Layer] = []

    def compile(self, passes: dict[Layer, int]) -> None:
        """Compile all routines, those of fixed length first."""
        graph, program = self.program.rule.graph, self.program
        for words, known in ((program.words, graph.channels), (program.inputs, graph.inputs)):
            for name, word in known.items():
                words[name] = self._word(graph.formats[word])
        self._clear()
        self._forget()
        self._read()
        self._move()
        self._sense()
        self.cells.begin("step")
        step = Step(self.cells, self.plan, self.schedule)
        self.begun = step.begun
        step.compute(passes)
        if len(program.instructions) == program.entries["step"]:  # nothing ever changes
            self.cells.emit(Instruction(1))
        self.cells.end()

    def to_be_cut(self, passes: dict[Layer, int], *, everything: bool) -> Layer | None:
        """Return the layer that should be computed in more passes, or None if none can.

        Of cells alone, a pass more costs next to nothing; where words come from neighbours, it
        moves them again.
        """
        for layer in reversed(self.begun):
            if passes.get(layer, 1) < len(self.schedule.layers[layer]) and (
                everything or not self.schedule.moves(layer)
            ):
                return layer
        return None

    def _word(self, format: QFormat) -> Word:
        return Word(self.cells.allocate(format.bits), format.bits, format.signed)

    def _clear(self) -> None:
        self.cells.begin("clear")
        for start in range(0, self.program.planes, 32):
            self.cells.emit(Instruction(32, write=start, write_bits=32))
        state = self.program.rule.cleared_state(1, 1)
        for word, code in zip(self.program.words.values(), state.flat, strict=True):
            if code:
                self.cells.write(word.plane, int(code), word.bits)
        self.cells.end()

    def _forget(self) -> None:
        self.cells.begin("forget")
        flags = [event.flag for event in self.program.rule.events if event.flag]
        for flag in flags:
            self.cells.write(self.program.inputs[flag].plane, 0, 1)
        if not flags:
            self.cells.emit(Instruction(1))
        self.cells.end()

    def _read(self) -> None:
        self.cells.begin("read")
        for word in self.program.words.values():
            self.cells.loaded = None
            self.cells.load(word)
            self.cells.end()

    def _move(self) -> None:
        self.cells.begin("move")
        self.cells.move(Shift.SOUTH, self.program.borders[0])
        self.cells.end()

    def _sense(self) -> None:
        program = self.program
        self.cells.begin("sense")
        inputs = [(program.inputs[e.value], e.flag) for e in program.rule.events]
        for word, flag in (*inputs, *((word, None) for word in program.words.values())):
            program.senses.append(len(program.instructions) - program.entries["sense"])
            self.cells.emit(Instruction(1, flag=Flag.SENSE))
            self.cells.emit(Instruction(1, addend=Addend.FLAG, subtract=True))  # carry = flag
            self.cells.select(word, word, Addend.SAMPLE)
            if flag is not None:
                self.cells.select(program.inputs[flag], program.inputs[flag], Addend.ONE)
            self.cells.end()


def operand_bits(plan: Plan) -> int:
    """Bits of the operand: those of the widest word that comes from a neighbour or is read out.

    Others, if they are wider, are added in parts.
    """
    moved = [plan.held[word] for word in plan.moved]
    return max(
        2,
        *(word.bits + (not word.signed) for word in moved),
        *(format.bits for format in plan.graph.channel_formats),
    )
