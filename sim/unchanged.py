"""Whether a fault planted in the Verilog changes anything that can be seen: by symbolic simulation.

The right device and the wrong one make the same journeys side by side: every command and sample,
from every state in which they idle, and reset from any state at all (`sim.exploration`). They start
with the same words in the cells, the same random bits and the same counters; what else the cells
hold is anything, and not the same in both. Both must show the same at all ports in every clock,
whether a pixel is taken or held back, and must end with the same words, random bits and counters.
Then no order of journeys tells them apart.
"""

from collections.abc import Mapping, Sequence

from scotopia.hdl.program import Program

from .equivalence import word_planes
from .exploration import ALIKE, Journey, Machine, Passage
from .symbolic import FALSE, TRUE, State

#: How a module knows which fault is awake, in place of `faults.AWAKE`, which only simulators take.
REGISTER = "  reg [31:0] fault = 0;\n  always @(posedge clk) fault <= fault;"

#: What is seen in one clock.
Seen = tuple[Sequence[int], ...]


class _Device(Machine):
    """An instrumented device, in which one fault is awake, or none."""

    def __init__(
        self, program: Program, height: int, width: int, modules: Mapping[str, str]
    ) -> None:
        super().__init__(program, height, width, modules=modules)
        self._switches = [
            nets for name, nets in self.device.nets.items() if name.split(".")[-1] == "fault"
        ]
        for nets in self._switches:
            for net in nets:
                self.registers.pop(net, None)
        self.unknown = self.device.anything()
        self._inputs: dict[int, dict[str, list[int]]] = {}

    def wake(self, state: State, number: int) -> State:
        """Have fault `number` awake; 0 for none."""
        for nets in self._switches:
            state.registers |= {net: number >> bit & 1 for bit, net in enumerate(nets)}
        return state

    def after_reset(self, before: State | None = None) -> State:
        """State of the clock after reset, with the program there."""
        before = before or self.wake(self.unknown.copy(), 0)
        _, state = self.device.clock(before, {**self.inputs(0), "rst": [TRUE]})
        self.load(state, self.program)
        return state

    def inputs(self, clock: int) -> dict[str, list[int]]:
        """Value of all inputs in a clock of any journey: anything, but always the same."""
        if clock not in self._inputs:
            graph = self.device.graph
            known = {
                name: graph.symbols(name, len(nets))
                for name, nets in self.device.inputs.items()
                if name not in ("clk", "rst")
            }
            self._inputs[clock] = {**known, "pixels__ready": [TRUE]}
        return self._inputs[clock]

    def name_of(self, net: int) -> str:
        """Name of a register."""
        return next((n for n, nets in self.device.nets.items() if net in nets), str(net))

    def trace(self, journey: Journey, start: State) -> tuple[list[Seen], State]:
        """Make a journey; return what is seen in each of its clocks, and how it ends."""
        seen: list[Seen] = []
        state = start
        for clock in range(journey.clocks):
            inputs = self.inputs(clock)
            if clock == 0:
                inputs = {**inputs, **journey.offer}  # type: ignore[dict-item]
                # The program is not written while the device idles.
                inputs["registers__address"] = [*inputs["registers__address"][:2], FALSE]
            outputs, after = self.device.clock(state, inputs)
            now = _shown(outputs)
            if outputs["pixels__valid"] != [FALSE]:
                held = {**inputs, "pixels__ready": [FALSE]}
                kept, waited = self.device.clock(state, held)
                again, _ = self.device.clock(waited, held)
                now += _shown(kept) + _shown(again)
            seen.append(tuple(now))
            state = after
        return seen, state


def _shown(outputs: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
    """Literals of all ports, but for a pixel that is not offered."""
    offered = outputs["pixels__valid"] != [FALSE]
    return [tuple(bits) for name, bits in outputs.items() if offered or name != "pixels__payload"]


class Comparison:
    """A device of so many faults, and all that it does while none is awake.

    Parameters
    ----------
    modules
        Its Verilog, instrumented with `REGISTER`.
    """

    def __init__(
        self, program: Program, height: int, width: int, modules: Mapping[str, str]
    ) -> None:
        self._device = device = _Device(program, height, width, modules)
        device.explore()
        self._passages: list[Passage] = sorted(
            device.passages, key=lambda p: ALIKE.match(p.journey.name) is not None
        )
        self._right = {p.journey.name: device.trace(p.journey, p.start) for p in device.passages}
        self._words = set(word_planes(program))
        self._steps = device.steps
        answers = [self._answer(end) for _, end in self._right.values()]
        literals = [bit for answer in answers for bit in answer]
        literals += [
            bit for seen, _ in self._right.values() for now in seen for bits in now for bit in bits
        ]
        #: Nodes of all that what is seen depends on, now or later.
        self._used: set[int] = set()
        while more := device.device.graph.support(literals) - self._used:
            self._used |= more
            literals = [
                self._right[passage.journey.name][1].registers[net]
                for passage in self._passages
                for net, literal in passage.start.registers.items()
                if literal >> 1 in more
            ]

    def _answer(self, state: State) -> list[int]:
        """Literals of all words."""
        return [
            bit
            for row in self._device.rows
            for plane, word in enumerate(state.memories[row])
            if plane in self._words
            for bit in word
        ]

    def difference(self, number: int) -> str:
        """Say where fault `number` shows, or nothing if it never can."""
        device = self._device
        others: dict[str, dict[int, int]] = {}  # by where a journey starts: what is another there
        grown = True
        while grown:
            grown = False
            for passage in self._passages:
                journey = passage.journey
                if grown and ALIKE.match(journey.name):
                    continue
                if journey.start == "reset":
                    start = device.after_reset(self._apart(device.unknown, number))
                else:
                    start = self._apart(passage.start, number)
                    start.registers |= others.get(journey.start, {})
                seen, end = device.trace(journey, start)
                right, right_end = self._right[journey.name]
                for clock, (ours, theirs) in enumerate(zip(right, seen, strict=True)):
                    if ours != theirs:
                        return f"{journey.name}: a port, in clock {clock}"
                if self._answer(end) != self._answer(right_end):
                    return f"{journey.name}: a word"
                grown |= self._join(journey.end, right_end, end, others)
                if "" in others:
                    return f"{journey.name}: {device.name_of(*others[''])}"
        return ""

    def _apart(self, right: State, number: int) -> State:
        """Return a state with other things between the words, and in the cells' registers."""
        device, graph = self._device, self._device.device.graph
        state = right.copy()
        for net, literal in right.registers.items():
            if self._is_idle_talk(net, literal):
                state.registers[net] = graph.symbol("apart")
        for row in device.rows:
            for plane, word in enumerate(state.memories[row]):
                if plane not in self._words:
                    word[:] = graph.symbols("apart", len(word))
        return device.wake(state, number)

    def _is_idle_talk(self, net: int, literal: int) -> bool:
        """Whether a register may hold anything, and nothing that is seen depends on it."""
        # The steps that are left decide which journey comes next.
        return literal > TRUE and literal >> 1 not in self._used and net not in self._steps

    def _join(
        self, hub: str, right: State, wrong: State, others: dict[str, dict[int, int]]
    ) -> bool:
        """Note what may be another at a hub; say whether there is anything new."""
        device = self._device
        known = next(p.start for p in self._passages if p.journey.start == hub)
        switches = {net for nets in device._switches for net in nets}
        here, grown = others.setdefault(hub, {}), False
        for net, literal in wrong.registers.items():
            if self._is_idle_talk(net, known.registers[net]) or net in here or net in switches:
                continue
            if literal == right.registers[net]:
                continue
            if known.registers[net] > TRUE or (
                hub == "run" and net in self._steps
            ):  # it may be anything, and both have to have the same
                others[""] = {net: literal}
            here[net], grown = device.device.graph.symbol("apart"), True
        return grown
