"""Symbolic simulation: the gates of emitted Verilog, clock by clock, on formulas for bits.

Yosys reads the Verilog of a whole device and takes it apart into gates of two inputs, D flip-flops
and memories. A bit is a constant, a symbol that stands for both of its values, or a formula of
symbols. What follows from constants stays constant, as all that a sequencer does; so thousands of
clocks fold to small formulas, where bounded model checking of the same device takes minutes.
(C.-J. H. Seger, R. E. Bryant, "Formal Verification by Symbolic Evaluation of Partially-Ordered
Trajectories", Formal Methods in System Design 6, 1995.)
"""

import heapq
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.hdl.fpga import find_tool, run

#: Literals of the two constants. A literal is twice a node's number, plus 1 if it is inverted.
FALSE, TRUE = 0, 1


class Graph:
    """Formulas as AND gates and inverters, each only once; constants fold away."""

    def __init__(self) -> None:
        self.operands: list[tuple[int, int] | None] = [None]  # by node; None: constant or symbol
        self.names: dict[int, str] = {}  # of symbols, by node
        self._known: dict[tuple[int, int], int] = {}
        self._formulas: dict[int, Any] = {}

    def symbol(self, name: str) -> int:
        """Literal of a new symbol."""
        self.operands.append(None)
        self.names[len(self.operands) - 1] = name
        return 2 * (len(self.operands) - 1)

    def symbols(self, name: str, bits: int) -> list[int]:
        """Literals of new symbols."""
        return [self.symbol(f"{name}[{bit}]") for bit in range(bits)]

    def conjunction(self, a: int, b: int) -> int:
        """Literal of a AND b."""
        if a > b:
            a, b = b, a
        if a == FALSE or a == b ^ 1:
            return FALSE
        if a in (TRUE, b):
            return b
        found = self._known.get((a, b))
        if found is None:
            self.operands.append((a, b))
            found = self._known[a, b] = 2 * (len(self.operands) - 1)
        return found

    def disjunction(self, a: int, b: int) -> int:
        """Literal of a OR b."""
        return self.conjunction(a ^ 1, b ^ 1) ^ 1

    def difference(self, a: int, b: int) -> int:
        """Literal of a XOR b."""
        if a <= TRUE or b <= TRUE or a >> 1 == b >> 1:
            return a ^ b
        return self.disjunction(self.conjunction(a, b ^ 1), self.conjunction(a ^ 1, b))

    def choice(self, condition: int, yes: int, no: int) -> int:
        """Literal of yes where the condition holds, else no."""
        if condition <= TRUE:
            return yes if condition else no
        if yes == no:
            return yes
        return self.disjunction(
            self.conjunction(condition, yes), self.conjunction(condition ^ 1, no)
        )

    def support(self, literals: Collection[int]) -> set[int]:
        """Nodes of all symbols that some literals are made of."""
        waiting, seen = [literal >> 1 for literal in literals], set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if operands := self.operands[node]:
                waiting += [operands[0] >> 1, operands[1] >> 1]
        return seen & self.names.keys()

    def formula(self, literal: int) -> Any:
        """Truth value in z3."""
        import z3

        waiting = [literal >> 1]
        while waiting:
            node = waiting[-1]
            operands = self.operands[node]
            if node in self._formulas:
                waiting.pop()
            elif operands is None:
                name = self.names.get(node)
                self._formulas[node] = z3.Bool(f"{name} #{node}") if name else z3.BoolVal(False)
            elif lacking := [a >> 1 for a in operands if a >> 1 not in self._formulas]:
                waiting += lacking
            else:
                made = [
                    z3.Not(self._formulas[a >> 1]) if a & 1 else self._formulas[a >> 1]
                    for a in operands
                ]
                self._formulas[node] = z3.And(*made)
        found = self._formulas[literal >> 1]
        return z3.Not(found) if literal & 1 else found

    def number(self, literals: Sequence[int], bits: int, *, signed: bool = False) -> Any:
        """Bit vector of some literals, the lowest first, extended to so many bits."""
        import z3

        one, zero = z3.BitVecVal(1, 1), z3.BitVecVal(0, 1)
        parts = [z3.If(self.formula(literal), one, zero) for literal in reversed(literals)]
        value = z3.Concat(*parts) if len(parts) > 1 else parts[0]
        extend = z3.SignExt if signed else z3.ZeroExt
        return extend(bits - len(parts), value)


@dataclass
class State:
    """What is in a device: literals of its flip-flops by net, and of its memories by word."""

    registers: dict[int, int]
    memories: dict[str, list[list[int]]]

    def copy(self) -> "State":
        """Return one that can be changed."""
        words = {name: [list(word) for word in words] for name, words in self.memories.items()}
        return State(dict(self.registers), words)


@dataclass(frozen=True)
class _Memory:
    """A memory's one reading and one writing port; reading takes no clock."""

    name: str
    words: list[list[int]]
    read: list[int]
    data: list[int]
    write: list[int] = field(default_factory=list)
    enable: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)


#: What becomes of the operands of each of Yosys's gates.
_GATES: dict[str, Callable[..., int]] = {
    "$_NOT_": lambda g, a: a ^ 1,
    "$_MUX_": lambda g, s, b, a: g.choice(s, b, a),
    "$_AND_": lambda g, a, b: g.conjunction(a, b),
    "$_OR_": lambda g, a, b: g.disjunction(a, b),
    "$_XOR_": lambda g, a, b: g.difference(a, b),
    "$_XNOR_": lambda g, a, b: g.difference(a, b) ^ 1,
    "$_NAND_": lambda g, a, b: g.conjunction(a, b) ^ 1,
    "$_NOR_": lambda g, a, b: g.disjunction(a, b) ^ 1,
    "$_ANDNOT_": lambda g, a, b: g.conjunction(a, b ^ 1),
    "$_ORNOT_": lambda g, a, b: g.disjunction(a, b ^ 1),
}


#: A gate: kind, nets of its inputs, net of its output.
_Gate = tuple[str, list[int], int]


class Device:
    """The gates of emitted Verilog, as Yosys reads it.

    Attributes
    ----------
    graph
        Of all its formulas.
    inputs, outputs, nets
        Nets of its ports, and of all that has a name, the lowest bit first.
    flops
        Nets of its flip-flops: output and input.

    Raises
    ------
    InputError
        If Yosys is missing or refuses the Verilog, or there is something else than clocked logic.
    """

    def __init__(self, modules: Mapping[str, str], top: str = "retina") -> None:
        self.graph = Graph()
        netlist = _netlist(modules, top)
        self.inputs: dict[str, list[int]] = {}
        self.outputs: dict[str, list[int]] = {}
        for name, port in netlist["ports"].items():
            ports = self.inputs if port["direction"] == "input" else self.outputs
            ports[name] = [_net(bit) for bit in port["bits"]]
        self.nets: dict[str, list[Any]] = {}
        self._start: dict[int, int] = {}
        for name, wire in netlist["netnames"].items():
            self.nets[name] = wire["bits"]
            start = reversed(wire["attributes"].get("init", ""))
            self._start |= {
                net: int(value)
                for net, value in zip(wire["bits"], start, strict=False)
                if value in "01"
            }
        self.flops: list[tuple[int, int]] = []
        self._memories: list[_Memory] = []
        self._order: list[_Gate | _Memory] = []
        undefined = _define(netlist)
        self._sort(netlist["cells"])
        # What was in each net in the last clock that was simulated, and who reads it: gates are
        # tried again only where something has changed.
        nets = [net for item in self._order for net in _pins(item)]
        nets += [net for pair in self.flops for net in pair]
        nets += [net for bits in (*self.inputs.values(), *self.outputs.values()) for net in bits]
        self._values = [-1] * (max([*nets, *undefined]) + 1)
        self._values[:2] = FALSE, TRUE
        for net in undefined:
            self._values[net] = self.graph.symbol("undefined")
        self._readers: list[list[int]] = [[] for _ in self._values]
        for index, item in enumerate(self._order):
            for net in item.read if isinstance(item, _Memory) else item[1]:
                self._readers[net].append(index)
        self._waiting = list(range(len(self._order)))  # a heap
        self._waits = [True] * len(self._order)
        self._readings = [i for i, item in enumerate(self._order) if isinstance(item, _Memory)]

    @property
    def memory_names(self) -> list[str]:
        """Names of all memories that can be written."""
        return [memory.name for memory in self._memories if memory.write]

    def _sort(self, cells: Mapping[str, Any]) -> None:
        """Bring gates and reading ports into an order in which each has its inputs."""
        nodes: list[tuple[list[int], list[int], _Gate | _Memory]] = []
        for cell in cells.values():
            kind, pins = cell["type"], cell["connections"]
            if kind == "$_DFF_P_":
                self.flops.append((pins["Q"][0], _net(pins["D"][0])))
            elif kind == "$mem_v2":
                memory = _read_memory(cell)
                self._memories.append(memory)
                nodes.append((memory.read, memory.data, memory))
            elif kind in _GATES:
                names = {"$_NOT_": "A", "$_MUX_": "SBA"}.get(kind, "AB")
                wires = [_net(pins[pin][0]) for pin in names]
                nodes.append((wires, pins["Y"], (kind, wires, pins["Y"][0])))
            elif kind != "$scopeinfo":
                raise InputError(f"gate {kind} is unknown: install another version of Yosys")
        makers = {net: index for index, (_, outputs, _) in enumerate(nodes) for net in outputs}
        done: set[int] = set()
        for root in range(len(nodes)):
            waiting = [root]
            while waiting:
                index = waiting[-1]
                makes = [makers[net] for net in nodes[index][0] if net in makers]
                lacking = [] if index in done else [other for other in makes if other not in done]
                if len(waiting) > len(nodes):
                    raise InputError("gates form a loop: only clocked logic can be proven")
                if lacking:
                    waiting += lacking
                    continue
                waiting.pop()
                if index not in done:
                    done.add(index)
                    self._order.append(nodes[index][2])

    def power_up(self) -> State:
        """State before the first clock; what has no initial value is a symbol."""
        registers = {
            q: self._start[q] if q in self._start else self.graph.symbol(f"register {q}")
            for q, _ in self.flops
        }
        return State(registers, {m.name: [list(w) for w in m.words] for m in self._memories})

    def anything(self) -> State:
        """State of a symbol in every bit."""
        registers = {q: self.graph.symbol(f"register {q}") for q, _ in self.flops}
        memories = {
            m.name: [
                self.graph.symbols(f"{m.name}[{i}]", len(m.data)) if m.write else list(word)
                for i, word in enumerate(m.words)
            ]
            for m in self._memories
        }
        return State(registers, memories)

    def clock(
        self, state: State, inputs: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, list[int]], State]:
        """Return all outputs in a clock, and the state after it: see `settle` and `advance`."""
        return self.settle(state, inputs), self.advance(state)

    def settle(self, state: State, inputs: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Return all outputs in a clock.

        Inputs that are not given are symbols; reset is low.
        """
        values, waiting, waits = self._values, self._waiting, self._waits

        def put(net: int, literal: int) -> None:
            if values[net] != literal:
                values[net] = literal
                for index in self._readers[net]:
                    if not waits[index]:
                        waits[index] = True
                        heapq.heappush(waiting, index)

        for net, literal in state.registers.items():
            put(net, literal)
        for name, nets in self.inputs.items():
            given = inputs.get(name)
            if given is None:
                fixed = name in ("rst", "clk")
                given = [FALSE] * len(nets) if fixed else self.graph.symbols(name, len(nets))
            for net, literal in zip(nets, given, strict=True):
                put(net, literal)
        for index in self._readings:  # for what they hold may have changed
            if not waits[index]:
                waits[index] = True
                heapq.heappush(waiting, index)
        while waiting:
            index = heapq.heappop(waiting)
            waits[index] = False
            item = self._order[index]
            if isinstance(item, _Memory):
                word = self._read(state.memories[item.name], [values[net] for net in item.read])
                for net, literal in zip(item.data, word, strict=True):
                    put(net, literal)
            else:
                kind, wires, output = item
                put(output, _GATES[kind](self.graph, *(values[net] for net in wires)))
        return {name: [values[net] for net in nets] for name, nets in self.outputs.items()}

    def advance(self, state: State) -> State:
        """Return the state after the clock that has just settled from `state`."""
        memories = {
            memory.name: self._write(memory, state.memories[memory.name])
            for memory in self._memories
        }
        return State({q: self._values[d] for q, d in self.flops}, memories)

    def _is(self, address: Sequence[int], number: int) -> int:
        same = TRUE
        for bit, literal in enumerate(address):
            same = self.graph.conjunction(same, literal ^ 1 ^ (number >> bit & 1))
        return same

    def _read(self, words: list[list[int]], address: list[int]) -> list[int]:
        if all(literal <= TRUE for literal in address):
            return words[sum(literal << bit for bit, literal in enumerate(address))]
        for literal in reversed(address):  # halve, by the highest bit first
            half = len(words) // 2
            words = [
                [self.graph.choice(literal, *bits) for bits in zip(high, low, strict=True)]
                for low, high in zip(words[:half], words[half:], strict=True)
            ]
        return words[0]

    def _write(self, memory: _Memory, words: list[list[int]]) -> list[list[int]]:
        values = self._values
        enable = [values[net] for net in memory.enable]
        if not any(enable):
            return words
        address = [values[net] for net in memory.write]
        written = list(words)
        numbers = range(len(words))
        if all(literal <= TRUE for literal in address):
            here = sum(literal << bit for bit, literal in enumerate(address))
            numbers = range(here, here + 1)
        for number in numbers:
            chosen = self._is(address, number)
            written[number] = [
                self.graph.choice(self.graph.conjunction(chosen, on), values[net], old)
                for on, net, old in zip(enable, memory.value, words[number], strict=True)
            ]
        return written


def _define(netlist: Any) -> list[int]:
    """Give every undefined input of a gate a net of its own; return these."""
    last = max(
        bit for wire in netlist["netnames"].values() for bit in wire["bits"] if isinstance(bit, int)
    )
    made: list[int] = []
    for cell in netlist["cells"].values():
        for bits in cell["connections"].values():
            for place, bit in enumerate(bits):
                if bit == "x":
                    made.append(last + 1 + len(made))
                    bits[place] = made[-1]
    return made


def _net(bit: Any) -> int:
    """Return a net's number; Yosys has none below 2, which leaves two for the constants."""
    return {"0": 0, "1": 1}[bit] if isinstance(bit, str) else int(bit)


def _pins(item: _Gate | _Memory) -> Iterable[int]:
    """Return all nets of a gate or memory."""
    if isinstance(item, _Memory):
        return [*item.read, *item.data, *item.write, *item.enable, *item.value]
    return [*item[1], item[2]]


def _read_memory(cell: Mapping[str, Any]) -> _Memory:
    """Take Yosys's memory apart, which has one port of each kind at most."""
    parameters, pins = cell["parameters"], cell["connections"]
    size, width = (int(parameters[name], 2) for name in ("SIZE", "WIDTH"))
    bits = [_net(bit) for bit in reversed(parameters["INIT"])]  # 0 and 1 are FALSE and TRUE
    words = [bits[i * width : (i + 1) * width] for i in range(size)]
    nets = {name: [_net(bit) for bit in pins[name]] for name in pins}
    name = parameters["MEMID"].lstrip("\\")
    if int(parameters["WR_PORTS"], 2) == 0:
        return _Memory(name, words, nets["RD_ADDR"], nets["RD_DATA"])
    return _Memory(
        name,
        words,
        nets["RD_ADDR"],
        nets["RD_DATA"],
        nets["WR_ADDR"],
        nets["WR_EN"],
        nets["WR_DATA"],
    )


def _netlist(modules: Mapping[str, str], top: str) -> Any:
    """Have Yosys read Verilog; return its gates, D flip-flops and memories."""
    with processes.temporary_folder() as name:
        folder = Path(name)
        for module, text in modules.items():
            (folder / f"{module}.v").write_text(text)
        (folder / "read.ys").write_text(
            f"read_verilog {' '.join(f'{module}.v' for module in modules)}\n"
            f"hierarchy -check -top {top}\n"
            # Nothing that would conclude from initial values what the cells can hold.
            "proc -norom\nflatten\nmemory_nordff\nmemory_collect\ndffunmap\nopt_expr\n"
            "techmap t:$mem_v2 %n\nsimplemap\ndffunmap\nopt_clean\nwrite_json netlist.json\n"
        )
        run([find_tool("yosys"), "-q", "read.ys"], folder / "yosys.log", "read.ys", 300)
        return json.loads((folder / "netlist.json").read_text())["modules"][top]
