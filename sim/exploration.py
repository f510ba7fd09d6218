"""Every way that a small device can go: by any command or sample, from any state that it idles in.

The states between commands are found as a fixed point: first that after reset, but with a symbol
in every bit of the cells and of what only counts or tells; then also in every other bit in which
any command, sample or step leaves another. What holds from there, holds after any number of them,
in any order.

In every clock, all inputs may be anything, with three exceptions: reset is low; while the device
is idle, its program is not written; and the receiver takes every pixel at once. The last two lose
nothing. A program that is written is another program; and of each clock in which a pixel is
offered, it is also tried what happens if it is not taken (`Offered.waited`).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scotopia.hdl.emit import verilog_modules
from scotopia.hdl.estimate import cycles_per_frame
from scotopia.hdl.program import LATENCY, Program
from scotopia.hdl.sequencer import InstructionLayout, Op

from .proof import Bug, Refuted
from .symbolic import FALSE, TRUE, Device, State

#: Clocks of a routine beside its own: one that starts it, two to fetch, and until its last bit is
#: written.
AROUND = 1 + 2 + LATENCY + 1

#: Registers that only tell of the others: what the ports REGISTERS, `dropped` and `error` show, and
#: what is written there.
TELLING = ("registers__read_data", "dropped", "error", "sequencer.low", "sequencer.writing__addr")

#: Looks at a journey that was made, and counts what it found there; `Refuted` if that is wrong.
Look = Callable[["Machine", "Passage"], int]

#: Journeys that are much like another: they hardly ever lead somewhere else, and are made last.
ALIKE = re.compile(r"READ \d+, absent|RUN, a step of (?!1 )")


@dataclass(frozen=True)
class Journey:
    """A command, a sample, or a part of it: what is offered in its first clock, and how it ends.

    Attributes
    ----------
    name
        What it is.
    start, end
        "reset": the clock after reset; "idle"; or "run": before a step of RUN, or after its last.
    offer
        Inputs of the first clock.
    clocks
        How many it takes, as stated.
    op, argument
        Of a command; "run" has the bits of its steps as an argument.
    place, target
        Column and row of a sample inside, and the word that it is for.
    channel
        What is sent.
    """

    name: str
    start: str
    end: str
    offer: Mapping[str, Sequence[int]]
    clocks: int
    op: Op | None = None
    argument: Sequence[int] = ()
    place: tuple[int, int] | None = None
    channel: int | None = None
    target: int = 0


@dataclass(frozen=True)
class Offered:
    """A clock in which a pixel is offered: before it, its outputs, and the same if it waits.

    Attributes
    ----------
    state, outputs
        Of this clock.
    waiting
        Outputs of this clock if the pixel is not taken.
    waited
        State after that.
    later
        Outputs of the next clock, then.
    """

    state: State
    outputs: Mapping[str, Sequence[int]]
    waiting: Mapping[str, Sequence[int]]
    waited: State
    later: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Passage:
    """A journey that was made."""

    journey: Journey
    start: State
    end: State
    pixels: list[Offered] = field(default_factory=list)


class Machine:
    """A device of height x width cells that runs a program.

    Attributes
    ----------
    device
        Its gates.
    rows
        Names of the cells' memories, row by row.
    registers
        Nets of all flip-flops in the cells, by their names.
    steps
        Nets of the registers that count the steps which RUN has yet to do; after `explore`.
    passages
        All journeys from the states that it can be in; after `explore`.
    """

    def __init__(
        self,
        program: Program,
        height: int,
        width: int,
        bug: Bug | None = None,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        self.program, self.height, self.width = program, height, width
        if modules is None:
            modules = verilog_modules(program, height, width)
        self.device = device = Device(bug.plant(modules) if bug else modules)
        names: dict[int, list[str]] = {}
        for name, nets in device.nets.items():
            for net in nets:
                names.setdefault(net, []).append(name)
        flops = {q for q, _ in device.flops}
        # Not what the sequencer drives, nor a row's registers of just that.
        shared = re.compile(r"sequencer\.|array\.row_\d+\.(control|row)\$")
        self.registers = {
            net: min(inside)
            for net, found in names.items()
            if net in flops
            and (inside := [name for name in found if re.match(r"array\.row_\d+\.", name)])
            and not any(map(shared.match, found))
        }
        self.rows = [f"array.row_{y}.memory" for y in range(height)]
        self.passages: list[Passage] = []
        self._hubs: dict[str, State] = {}

    # What it can be asked for.

    def command(self, op: Op, argument: int | Sequence[int]) -> dict[str, Sequence[int]]:
        """Inputs that offer a command, and no sample."""
        bits = len(self.device.inputs["commands__payload"]) - 8
        if isinstance(argument, int):
            argument = bits_of(argument, 8)
        return {
            "samples__valid": [FALSE],
            "commands__valid": [TRUE],
            "commands__payload": [*bits_of(op, bits), *argument],
        }

    def sample(self, x: int | None, y: int | None, target: int | None) -> dict[str, Sequence[int]]:
        """Inputs that offer a sample of any code; None is any coordinate, or any target."""
        graph, rule, payload = self.device.graph, self.program.rule, []
        for name, count, place in (
            ("x", self.width, x),
            ("y", self.height, y),
            ("code", 1 << rule.code_bits, None),
            ("target", len(rule.targets), target),
        ):
            bits = max(1, (count - 1).bit_length())
            payload += graph.symbols(name, bits) if place is None else bits_of(place, bits)
        return {"samples__valid": [TRUE], "samples__payload": payload}

    def journeys(self) -> Iterator[Journey]:
        """Yield all there are."""
        graph, program, height, width = self.device.graph, self.program, self.height, self.width

        def clocks(routine: str) -> int:
            return program.cycles(routine, width) + AROUND

        def idle(
            name: str,
            offer: Mapping[str, Sequence[int]],
            clocks: int,
            op: Op | None = None,
            place: tuple[int, int] | None = None,
            channel: int | None = None,
            target: int = 0,
        ) -> Journey:
            return Journey(name, "idle", "idle", offer, clocks, op, (), place, channel, target)

        yield Journey("reset", "reset", "idle", {}, clocks("clear"))
        yield idle("nothing", {"samples__valid": [FALSE], "commands__valid": [FALSE]}, 1)
        for x in range(width, 1 << (width - 1).bit_length()):
            yield idle(f"a sample outside, in column {x}", self.sample(x, None, None), 1)
        for y in range(height, 1 << (height - 1).bit_length()):
            yield idle(f"a sample outside, in row {y}", self.sample(None, y, None), 1)
        targets = len(program.senses)
        for target in range(targets, 1 << (targets - 1).bit_length()):
            yield idle(f"a sample outside, for word {target}", self.sample(None, None, target), 1)
        for target, y, x in np.ndindex(targets, height, width):
            offer, name = self.sample(x, y, target), f"a sample for word {target} of ({x}, {y})"
            due = program.cycles("sense", width, program.senses[target]) + AROUND
            yield idle(name, offer, due, place=(x, y), target=target)
        yield idle("FORGET", self.command(Op.FORGET, 0), 1 + clocks("forget"), Op.FORGET)
        sending = height * (clocks("move") + 2 * width - 1)
        channels = len(program.rule.channel_names)
        for channel in range(channels):
            offer, due = self.command(Op.READ, channel), 1 + clocks("read") + sending
            yield idle(f"READ {channel}", offer, due, Op.READ, channel=channel)
        for channel in range(channels, 256):
            yield idle(f"READ {channel}, absent", self.command(Op.READ, channel), 2, Op.READ)
        offer = self.command(Op.FRAME, graph.symbols("argument", 8))
        due = cycles_per_frame(program, height, width)
        yield idle("FRAME", offer, due, Op.FRAME, channel=0)
        # RUN n: a clock that takes the command, n times a step, and a clock in which none is left.
        argument = graph.symbols("argument", 8)
        yield Journey("RUN", "idle", "run", self.command(Op.RUN, argument), 1, Op.RUN, argument)
        yield Journey("RUN, done", "run", "idle", {}, 1, Op.RUN, [FALSE] * 8)
        for lowest in range(8):  # every number but 0 has a lowest 1
            left = [FALSE] * lowest + [TRUE] + graph.symbols("left", 7 - lowest)
            name = f"RUN, a step of {1 << lowest} times an odd number"
            yield Journey(name, "run", "run", {}, clocks("step"), Op.RUN, left)

    # Where it can be.

    def explore(self, look: Look = lambda *_: 0) -> "Machine":
        """Find the states that it can be in, and make all journeys from there; return itself.

        Parameters
        ----------
        look
            Called with every journey as soon as it was made: what is wrong from states known so
            far, is wrong from all.

        Raises
        ------
        Refuted
            If a journey does not take the stated clocks, or that depends on what is in the cells or
            on what else is offered.
        """
        self._hubs = {"reset": self.after_reset()}
        journeys = list(self.journeys())
        last = [journey for journey in journeys if ALIKE.match(journey.name)]
        first = [journey for journey in journeys if journey not in last]
        grown = True
        while grown:
            grown, self.passages = False, []
            for journeys in (first, last):
                for journey in journeys:
                    if not grown or journeys is first:
                        passage = self.travel(journey)
                        look(self, passage)
                        self.passages.append(passage)
                        grown |= self._join(journey.end, passage.end)
        assert len(self.passages) == len(first) + len(last)
        return self

    def after_reset(self) -> State:
        """State of the clock after reset, whatever it was before, but that its program is there."""
        _, state = self.device.clock(self.device.anything(), {"rst": [TRUE]})
        self.load(state, self.program)
        return state

    def load(self, state: State, program: Program) -> None:
        """Put a program, of the same shape, into the sequencer's memory."""
        layout = InstructionLayout(program)
        words = [layout.encode(instruction) for instruction in program.instructions]
        depth = len(state.memories["sequencer.memory"])
        words += [0] * (depth - len(words))
        state.memories["sequencer.memory"] = [bits_of(word, layout.size) for word in words]

    def travel(self, journey: Journey) -> Passage:
        """Make a journey from the states known so far."""
        start = self._hubs[journey.start].copy()
        if journey.start == "run":
            start.registers |= zip(self.steps, journey.argument, strict=True)
        pixels: list[Offered] = []

        def watch(state: State, outputs: dict[str, list[int]]) -> None:
            if outputs["pixels__valid"] == [TRUE]:
                inputs = {"pixels__ready": [FALSE]}
                waiting, waited = self.device.clock(state, inputs)
                later, _ = self.device.clock(waited, inputs)
                pixels.append(Offered(state, outputs, waiting, waited, later))

        until = self._is_run if journey.end == "run" else None
        clocks, end = self.trip(start, journey.offer, journey.clocks, watch, until, journey.name)
        if clocks != journey.clocks:
            raise Refuted(f"{journey.name} takes {clocks} clocks, not {journey.clocks} as stated")
        if journey.start == "idle" and journey.end == "run":
            self._learn_run(end, journey.argument)
        return Passage(journey, start, end, pixels)

    def trip(
        self,
        state: State,
        offer: Mapping[str, Sequence[int]],
        limit: int,
        watch: Callable[[State, dict[str, list[int]]], None] = lambda *_: None,
        until: Callable[[State], bool] | None = None,
        name: str = "it",
    ) -> tuple[int, State]:
        """Offer something in one clock; return how many clocks later the device idles, and how.

        Parameters
        ----------
        watch
            Called in each clock with the state and the outputs.
        until
            What ends the trip instead.
        """
        graph = self.device.graph
        inputs: dict[str, Sequence[int]] = {"pixels__ready": [TRUE]}
        # The program's registers have addresses from 4 on. While busy, they may be written, too.
        address = [*graph.symbols("address", 2), FALSE]
        first = {**inputs, "registers__address": address, **offer}
        for clock in range(limit + 1):
            outputs = self.device.settle(state, first if clock == 0 else inputs)
            if outputs["busy"][0] > TRUE or outputs["pixels__valid"][0] > TRUE:
                raise Refuted(f"{name}: what is done after {clock} clocks depends on data")
            if clock and (until(state) if until else outputs["busy"] == [FALSE]):
                return clock, state
            after = self.device.advance(state)
            watch(state, outputs)
            state = after
        raise Refuted(f"{name}: busy for more than the stated {limit} clocks")

    def _join(self, hub: str, end: State) -> bool:
        """Make symbols of all bits that may be another at this hub; say whether there were any."""
        known, grown = self._hubs.get(hub), False
        if known is None:
            known, grown = end.copy(), True
            self._hubs[hub] = known
            # Any state of the cells, and of what only counts: a counter would grow bit by bit.
            telling = {net for name in (*TELLING, "frames") for net in self.nets(name)}
            anything = telling | self.registers.keys()
            for net, literal in known.registers.items():
                if literal > TRUE or net in anything:
                    known.registers[net] = self._symbol(net)
            for name in self.rows:
                known.memories[name] = [
                    self.device.graph.symbols(f"{name}[{plane}]", self.width)
                    for plane in range(self.program.planes)
                ]
        for net, literal in known.registers.items():
            if literal <= TRUE and end.registers[net] != literal:
                known.registers[net], grown = self._symbol(net), True
        return grown

    def nets(self, name: str) -> list[int]:
        """Nets of a port, or of what has this name inside."""
        return self.device.outputs.get(name) or self.device.nets[name]

    def _symbol(self, net: int) -> int:
        return self.device.graph.symbol(f"register {self.registers.get(net, net)}")

    def _learn_run(self, state: State, argument: Sequence[int]) -> None:
        """Find where the steps that are left are counted, and how this state is called."""
        channel = self.device.nets["sequencer.channel"]
        where = {literal: q for q, literal in state.registers.items() if q not in channel}
        self.steps = [where[literal] for literal in argument]
        self._run = [state.registers[net] for net in self.device.nets["sequencer.fsm_state"]]

    def _is_run(self, state: State) -> bool:
        names = self.device.nets["sequencer.fsm_state"]
        now = [state.registers[net] for net in names]
        return not hasattr(self, "_run") or now == self._run

    def steps_left(self, state: State) -> list[int]:
        """Literals of the steps that RUN has yet to do."""
        return [state.registers[net] for net in self.steps]


def bits_of(number: int, bits: int) -> list[int]:
    """Literals of a number's bits, the lowest first."""
    return [number >> bit & 1 for bit in range(bits)]
