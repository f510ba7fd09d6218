"""The whole device as its contract describes it, at its ports, clock by clock.

It is written from the docstrings of `hdl.retina` and `hdl.sequencer` and shares nothing with the
gates: states are the golden model's, random bits `RowRegisters`'. It does not foretell when a
routine ends, for the contract does not. It follows what the device does at its ports, allows all
that the contract allows there, and nothing else.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from scotopia.graph.lfsr import RowRegisters
from scotopia.hdl.sequencer import Op, Register
from scotopia.quantize.integer_rule import IntegerRule

#: Clocks that the device may take for each routine beyond the routine's own: to fetch, to end, to
#: decide what is next. The contract names none; a device that takes more is said to hang.
SLACK = 16

#: Where `Sequencer.dropped` stops.
MOST_DROPPED = 2**16 - 1


class Inputs(NamedTuple):
    """What drives the device in a clock; numbers as their ports have them, `code` signed."""

    rst: int
    samples_valid: int
    x: int
    y: int
    code: int
    target: int
    commands_valid: int
    op: int
    argument: int
    pixels_ready: int
    address: int
    write: int
    write_data: int


class Outputs(NamedTuple):
    """What the device answers before that clock's edge; -1 for what is no number (X or Z)."""

    samples_ready: int
    commands_ready: int
    pixels_valid: int
    pixels_code: int
    pixels_tuser: int
    pixels_tlast: int
    busy: int
    frames: int
    dropped: int
    error: int
    read_data: int


def _moves(i: Inputs, o: Outputs) -> bool:
    """Whether something is taken or written in a clock."""
    return bool(
        (i.rst or i.write)
        or (i.samples_valid and o.samples_ready)
        or (i.commands_valid and o.commands_ready)
        or (i.pixels_ready and o.pixels_valid)
    )


class Mismatch(Exception):
    """The device did what its contract does not allow.

    Attributes
    ----------
    signal
        Field of `Outputs`.
    expected, found
        What it may be, and what it was.
    """

    def __init__(self, signal: str, expected: str, found: int) -> None:
        super().__init__(f"{signal}: expected {expected}, found {found}")
        self.signal, self.expected, self.found = signal, expected, found


@dataclass(frozen=True)
class Clocks:
    """How many clocks each routine takes on a device, from its first bit to its last.

    `sense` has those of each target.
    """

    clear: int
    sense: tuple[int, ...]
    step: int
    forget: int
    read: int
    move: int


@dataclass(frozen=True, eq=False)
class Loadable:
    """A rule that the device can compute.

    Attributes
    ----------
    rule
        Which.
    words
        Its program, as it lies in the memory from address 0 on.
    clocks
        What its routines take.
    """

    rule: IntegerRule
    words: Sequence[int]
    clocks: Clocks


class Phase(Enum):
    """What the device is doing."""

    UNKNOWN = auto()  #: it was never reset
    RESET = auto()  #: reset was high in the clock before
    IDLE = auto()
    BUSY = auto()  #: clears its memory, takes a sample, or does a command


@dataclass
class Task:
    """What keeps the device busy, and what it may do meanwhile.

    Attributes
    ----------
    earliest, latest
        Clocks, since it began or since its last word was taken, in which its next word may come
        first, and must come at last; of a task that sends nothing more, in which it may end first,
        and must.
    stepping, stepped
        Clocks from its beginning for which it does steps at least, and at most.
    words
        That it has yet to send: code, tuser, tlast.
    frame
        Whether it is a FRAME, which counts.
    """

    earliest: int
    latest: int
    stepping: int = 0
    stepped: int = 0
    words: deque[tuple[int, int, int]] | None = None
    frame: bool = False


class DeviceModel:
    """A device of height x width cells.

    Where the contract is silent, anything goes: what is read from PROGRAM_LOW, PROGRAM_HIGH and an
    address that has no register; PROGRAM_ADDRESS after a reset, beyond the memory, and once a
    register of the program was written while busy; outputs in a reset's first clock, and
    `read_data` after one. A drop in the clock in which STATUS clears the drops must not be lost,
    but whether those before it are is open. A reset leaves the program.

    Parameters
    ----------
    programs
        What can be loaded, all of one shape. The first one is there from the start.
    word_bits
        Of a pixel.
    word_mask
        Ones, as many as an instruction has bits.
    shape
        What SHAPE holds.
    depth
        Words of the program memory.
    """

    def __init__(
        self,
        programs: Sequence[Loadable],
        height: int,
        width: int,
        *,
        word_bits: int,
        word_mask: int,
        shape: int,
        depth: int,
    ) -> None:
        self.programs, self.height, self.width = programs, height, width
        self.word_bits, self.word_mask, self.shape = word_bits, word_mask, shape
        self.clocks = programs[0].clocks  # which they share, but for those of a step
        first = list(programs[0].words)
        self.memory: list[int] = first + [0] * (depth - len(first))
        self.address: int | None = None
        self.low: int | None = None
        self.phase = Phase.UNKNOWN
        self.read_data: int | None = None
        #: of the steps done, for whoever wants to know that something was computed
        self.steps = 0
        self._reset()

    def _reset(self) -> None:
        rule = self.programs[0].rule  # a seed and formats that all programs of one shape share
        self.state = rule.cleared_state(self.height, self.width)
        shape = self.height, self.width
        self.inputs = {name: np.zeros(shape, np.int64) for name in rule.input_words}
        self.targets = rule.targets
        self.events = rule.events
        self.noise = RowRegisters(self.height, self.width, rule.noise_seed)
        self.task = Task(self.clocks.clear, self.clocks.clear + SLACK)
        self.waited = 0  # clocks, as in `Task`
        self.elapsed = 0  # clocks since the task began
        self.refused = False  # to take a sample, in the clock before
        self.stalled = False  # a word was offered in the clock before, and not taken
        self.frames: tuple[int, ...] = (0,)  # what it can be
        self.dropped: tuple[int, ...] = (0,)
        self.error = 0

    @property
    def loaded(self) -> Loadable:
        """The one whose program is in the memory.

        Raises
        ------
        ValueError
            If there is none, so that nothing is known of a step.
        """
        for program in self.programs:
            if self.memory[: len(program.words)] == list(program.words):
                return program
        raise ValueError("no whole program is loaded: load one before a step")

    def clock(self, i: Inputs, o: Outputs, turns: int = 1) -> None:
        """Compare one clock, and go on to the next; or so many in turn, which are all alike.

        Raises
        ------
        Mismatch
            If the device may not do that.
        """
        for _ in range(min(turns, 2)):
            self._clock(i, o)
        left = turns - 2
        if left > 1 and not _moves(i, o):
            # With time the device may do what it might not before, and in the end has to: what is
            # right in the first two of these clocks and in the last one is so between them.
            self.waited += left - 1
            self.elapsed += left - 1
            left = 1
        for _ in range(left):
            self._clock(i, o)

    def _clock(self, i: Inputs, o: Outputs) -> None:
        if i.rst:
            if self.phase is Phase.RESET:
                self._compare_reset(o)
            self._reset()
            self.phase, self.read_data, self.address, self.low = Phase.RESET, None, None, None
            return
        if self.phase is Phase.UNKNOWN:
            return
        if self.phase is Phase.RESET:
            self.phase = Phase.BUSY
        self._compare(i, o)
        self._read(i, o)
        drop = bool(i.samples_valid and o.samples_ready)
        if self.phase is Phase.IDLE:
            self._write(i, idle=True)
            if i.samples_valid:
                there = i.x < self.width and i.y < self.height and i.target < len(self.targets)
                drop = not there
                if not drop:
                    self._take(i)
            elif i.commands_valid:
                self._obey(Op(i.op), i.argument)
        else:
            self._write(i, idle=False)
            if o.pixels_valid:
                self._send(bool(i.pixels_ready))
        clears = i.write and i.address == Register.STATUS and i.write_data & 2
        (dropped,) = self.dropped
        if drop:
            more = min(dropped + 1, MOST_DROPPED)
            self.dropped, self.error = ((more, 1) if clears else (more,)), 1
        elif clears:
            self.dropped, self.error = (0,), 0

    # What may be seen.

    def _compare_reset(self, o: Outputs) -> None:
        for signal in ("samples_ready", "commands_ready", "pixels_valid"):
            self._expect(o, signal, 0)
        self._expect(o, "busy", 1)
        for signal in ("frames", "dropped", "error"):
            self._expect(o, signal, 0)

    def _compare(self, i: Inputs, o: Outputs) -> None:
        self.waited += 1
        self.elapsed += 1
        task = self.task
        if self.phase is not Phase.IDLE:
            ends = not task.words and self.waited > task.earliest
            if o.busy == 0 and ends:
                self._end()
            else:
                self._expect(o, "busy", 1)
        if self.phase is Phase.IDLE:
            self._expect(o, "busy", 0)
            self._expect(o, "samples_ready", 1)
            self._expect(o, "commands_ready", int(not i.samples_valid))
            self._expect(o, "pixels_valid", 0)
        else:
            self._compare_busy(o, task)
        counted = self.phase is Phase.BUSY and task.frame and self.elapsed > task.stepping
        self._expect(o, "frames", *self.frames, *([self._one_more()] if counted else []))
        if task.frame and counted and o.frames != self.frames[0]:
            task.frame, self.frames = False, (o.frames,)
        self._expect(o, "dropped", *self.dropped)
        self.dropped = (o.dropped,)
        self._expect(o, "error", self.error)
        if self.read_data is not None:
            self._expect(o, "read_data", self.read_data)

    def _compare_busy(self, o: Outputs, task: Task) -> None:
        self._expect(o, "commands_ready", 0)
        if self.elapsed > task.stepped or self.stalled or o.pixels_valid:
            self._expect(o, "samples_ready", 0)
        elif self.refused and self.elapsed <= task.stepping:
            self._expect(o, "samples_ready", 1)  # between two steps it may wait, for one clock
        else:
            self._expect(o, "samples_ready", 0, 1)
        self.refused = o.samples_ready == 0
        if not task.words:
            self._expect(o, "pixels_valid", 0)
            if self.waited > task.latest:
                self._expect(o, "busy", 0)
            return
        if self.stalled or self.waited > task.latest:
            self._expect(o, "pixels_valid", 1)
        elif self.waited <= task.earliest:
            self._expect(o, "pixels_valid", 0)
        else:
            self._expect(o, "pixels_valid", 0, 1)
        if o.pixels_valid:
            code, tuser, tlast = task.words[0]
            self._expect(o, "pixels_code", code)
            self._expect(o, "pixels_tuser", tuser)
            self._expect(o, "pixels_tlast", tlast)

    def _expect(self, o: Outputs, signal: str, *allowed: int) -> None:
        found: int = getattr(o, signal)
        if found not in allowed:
            raise Mismatch(signal, " or ".join(map(str, allowed)), found)

    # What follows.

    def _end(self) -> None:
        if self.task.frame:
            self.frames = (self._one_more(),)
        self._idle()

    def _idle(self) -> None:
        self.phase, self.task = Phase.IDLE, Task(0, 0)

    def _one_more(self) -> int:
        return (self.frames[0] + 1) % 2**16

    def _begin(self, task: Task) -> None:
        self.phase, self.task = Phase.BUSY, task
        self.waited = self.elapsed = 0
        self.refused = self.stalled = False

    def _take(self, i: Inputs) -> None:
        _, format = self.targets[i.target]
        code = i.code & (1 << format.bits) - 1
        if format.signed and code > format.highest:
            code -= 1 << format.bits
        if i.target < len(self.events):
            event = self.events[i.target]
            self.inputs[event.value][i.y, i.x] = code
            if event.flag:
                self.inputs[event.flag][i.y, i.x] = 1
        else:
            self.state[i.target - len(self.events), i.y, i.x] = code
        clocks = self.clocks.sense[i.target]
        self._begin(Task(clocks, clocks + SLACK))

    def _obey(self, op: Op, argument: int) -> None:
        clocks = self.clocks
        match op:
            case Op.RUN:
                self._begin(self._steps(argument))
            case Op.FORGET:
                self._forget()
                self._begin(Task(clocks.forget, clocks.forget + SLACK))
            case Op.READ:
                self._begin(self._reads(argument))
            case Op.FRAME:
                task = self._steps(self.loaded.rule.steps_per_frame)
                self._forget()
                raster = self._reads(0)
                task.earliest += clocks.forget + raster.earliest
                task.latest += clocks.forget + SLACK + raster.latest
                task.words, task.frame = raster.words, True
                self._begin(task)

    def _forget(self) -> None:
        for event in self.events:
            if event.flag:
                self.inputs[event.flag][:] = 0

    def _steps(self, count: int) -> Task:
        program = self.loaded if count else self.programs[0]
        rule = program.rule
        for _ in range(count):
            noise = self.noise.planes(rule.noise_planes) if rule.noise_planes else None
            self.state = rule.step(self.state, self.inputs, noise)
        self.steps += count
        least, most = count * program.clocks.step, count * (program.clocks.step + SLACK)
        # One that does nothing need not be busy, nor for long.
        return Task(least, most + SLACK, stepping=least, stepped=most)

    def _reads(self, channel: int) -> Task:
        if channel >= len(self.state):
            return Task(0, SLACK)
        mask = (1 << self.word_bits) - 1
        words = deque(
            (int(code) & mask, int(x == y == 0), int(x == self.width - 1))
            for (y, x), code in np.ndenumerate(self.state[channel])
        )
        least = self.clocks.read + self.clocks.move
        return Task(least, least + 2 * SLACK, words=words)

    def _send(self, taken: bool) -> None:
        words = self.task.words
        assert words  # or it would not have been allowed
        self.stalled = not taken
        if taken:
            last_of_row = words.popleft()[2]
            move = self.clocks.move if last_of_row and words else 0
            self.task.earliest, self.task.latest = move, move + SLACK
            self.task.stepped = self.waited = 0

    # Registers.

    def _read(self, i: Inputs, o: Outputs) -> None:
        """Keep what the register that is addressed has now, None where that is open."""
        values: dict[int, int | None] = {
            Register.STATUS: o.busy | o.error << 1,
            Register.FRAMES: o.frames,
            Register.DROPPED: o.dropped,
            Register.PROGRAM_ADDRESS: self.address,
            Register.SHAPE: self.shape,
        }
        self.read_data = values.get(i.address)

    def _write(self, i: Inputs, idle: bool) -> None:
        """Write a register of the program; while busy that is not to be done, and does nothing."""
        registers = (Register.PROGRAM_ADDRESS, Register.PROGRAM_LOW, Register.PROGRAM_HIGH)
        if not i.write or i.address not in registers:
            return
        if i.address == Register.PROGRAM_LOW:
            self.low = i.write_data if idle else None
        elif not idle:
            self.address = None
        elif i.address == Register.PROGRAM_ADDRESS:
            self.address = i.write_data if i.write_data < len(self.memory) else None
        elif self.address is None or self.low is None:
            raise ValueError("the bench writes an instruction without saying where, or without LOW")
        else:
            self.memory[self.address] = (self.low | i.write_data << 32) & self.word_mask
            following = self.address + 1
            self.address = following if following < len(self.memory) else None
