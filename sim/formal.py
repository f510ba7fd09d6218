"""Properties of the hardware, proven for all inputs and states that they speak of.

Three ways, all of which end at formulas without a counterexample:

- **Words**: the arithmetic of `graph.qformat` runs on bit vectors in place of integers, and the
  solver z3 looks for a code that it rounds or fits otherwise than defined (`sim.definitions`).
- **Symbolic simulation**: what the emitted Verilog does with a command or a sample, from all states
  in which it can be idle (`sim.exploration`).
- **One clock from any state**: a symbol in every register, reachable or not.

Every claim is also tried on devices or definitions that are wrong on purpose; it has to fail on
each of them, and for the reason that was planted.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Overflow, Rounding
from scotopia.hdl.fpga import find_tool
from scotopia.hdl.program import Program, Word
from scotopia.hdl.sequencer import Op, Register, shape_code

from .check import Check, Verdict
from .definitions import prove_overflow, prove_rounding, prove_step
from .exploration import TELLING, Journey, Look, Machine, Passage, bits_of
from .port_faults import PORT_FAULTS
from .proof import Bug, Proof, Refuted, Undecided, must_fail, satisfiable
from .stress import Device as Shape
from .symbolic import FALSE, TRUE, State

PART = "formal"


@dataclass(frozen=True)
class Property:
    """A claim, and the function that proves it within so many seconds for each question.

    Attributes
    ----------
    gates
        Whether it speaks of the Verilog, which Yosys has to read.
    """

    name: str
    proof: Callable[[float], Proof]
    gates: bool = True


def missing(gates: bool = True) -> str:
    """Say what to install, if a tool is missing; else nothing."""
    if find_spec("z3") is None:
        return "z3 is not installed: pip install 'scotopia[formal]'"
    if gates:
        try:
            find_tool("yosys")
        except InputError:
            return "Yosys is not installed: pip install 'scotopia[formal]'"
    return ""


def prove(
    *,
    on_check: Callable[[str], None] = lambda name: None,
    only: Collection[str] | None = None,
    timeout: float = 120.0,
) -> list[Check]:
    """Prove all properties, or those named.

    Parameters
    ----------
    on_check
        Called with the name of each property before it is tried.
    only
        Names out of `properties()`.
    timeout
        Seconds that the solver has for each question. A property with a question that it does not
        answer has failed.

    Raises
    ------
    InputError
        If a name is unknown.
    """
    known = properties()
    if unknown := sorted(set(only or ()) - {claim.name for claim in known}):
        raise InputError(
            f"property {unknown[0]!r} is unknown: choose from {', '.join(p.name for p in known)}"
        )
    checks = []
    for claim in known:
        if only is not None and claim.name not in only:
            continue
        on_check(claim.name)
        if lacking := missing(claim.gates):
            checks.append(Check(PART, claim.name, Verdict.SKIPPED, 0, "cases", 0.0, lacking))
            continue
        start = perf_counter()
        try:
            proof = claim.proof(timeout)
        except (Refuted, Undecided) as error:
            verdict, cases, unit, detail = Verdict.FAILED, 0, "cases", str(error)
        else:
            verdict, cases, unit = Verdict.PASSED, proof.cases, proof.unit
            detail = f"holds; fails on {len(proof.bugs)} planted bugs: {'; '.join(proof.bugs)}"
        seconds = perf_counter() - start
        checks.append(Check(PART, claim.name, verdict, cases, unit, seconds, detail))
    return checks


def properties() -> list[Property]:
    """Return all claims, in the order in which they are proven."""
    claims = [
        Property(f"a code of 64 bits rounds by {m} as defined", partial(prove_rounding, m), False)
        for m in Rounding
    ]
    claims += [
        Property(
            f"a code of 64 bits overflows by {m} as defined", partial(prove_overflow, m), False
        )
        for m in Overflow
    ]
    for kind, overflows in (("residual", tuple(Overflow)), ("gated", (Overflow.SAT,))):
        claims += [
            Property(
                f"a {kind} cell's step equals its definition with {rounding} and {overflow}",
                partial(prove_step, kind, rounding, overflow),
            )
            for rounding in Rounding
            for overflow in overflows
        ]
    claims += [
        Property("the device is idle again after the stated clocks, always", _prove_clocks),
        Property("cells depend on themselves and on accepted samples alone", _prove_isolation),
        Property("a pixel waits unchanged until it is taken", _prove_waiting),
        Property("a raster has each cell's word, tuser and tlast in place", _prove_raster),
        Property("no command is taken while a sample is offered", _prove_priority),
        Property("dropped samples are counted, up to 65,535", _prove_dropped),
        Property("FRAMES counts the commands FRAME", _prove_frames),
        Property("registers read what they held a clock before", _prove_registers),
        Property("no program is written while the device is busy", _prove_program_kept),
    ]
    return claims


#: The array of all proofs below: with addresses outside in both directions.
_SHAPE = Shape(3, 3, "residual", "zero", (71, 7))


def _machine(bug: Bug | None = None) -> Machine:
    return Machine(_SHAPE.programs[0], _SHAPE.height, _SHAPE.width, bug)


@cache
def _explored() -> Machine:
    return _machine().explore()


def _refute(machine: Machine, wrong: Any, timeout: float, what: str) -> None:
    """Refute a claim if there is a case in which a z3 formula, its opposite, is true."""
    if satisfiable([wrong], timeout, what) is not None:
        raise Refuted(what)


def _all_fail(check: Callable[[Machine], object], bugs: Sequence[Bug]) -> tuple[str, ...]:
    """Return the names of bugs, after a check has refuted the device with each of them."""

    def try_on(bug: Bug) -> None:
        check(_machine(bug))

    return tuple(must_fail(partial(try_on, bug), bug.name, bug.symptom) for bug in bugs)


def _port_bug(name: str, symptom: str) -> Bug:
    """One of `PORT_FAULTS` as a bug of that symptom."""
    (fault,) = (fault for fault in PORT_FAULTS if fault.name == name)
    return Bug(name, fault.module, fault.pattern, fault.text, symptom)


def _over_journeys(look: Look, unit: str, bugs: Sequence[Bug]) -> Proof:
    """Look at all journeys; and with each bug, at one after the other until it shows."""
    machine = _explored()
    cases = sum(look(machine, passage) for passage in machine.passages)
    return Proof(cases, unit, _all_fail(lambda faulty: faulty.explore(look), bugs))


# From all states in which it can be idle.


def _prove_clocks(timeout: float) -> Proof:
    def look(machine: Machine, passage: Passage) -> int:
        telling = {net for name in TELLING for net in machine.nets(name)}
        journey = passage.journey
        for pixel in passage.pixels:
            for net, literal in pixel.waited.registers.items():
                if net not in telling and literal != pixel.state.registers[net]:
                    raise Refuted(f"{journey.name}: a stall does more than to wait")
        if journey.start == journey.end == "run":
            number = machine.device.graph.number
            left, due = number(machine.steps_left(passage.end), 8), number(journey.argument, 8) - 1
            _refute(machine, left != due, timeout, f"{journey.name}: not one step fewer")
        return 1

    bugs = (
        Bug(
            "a routine ends a clock too early",
            "sequencer",
            r"drain == 1'h1;",
            "drain == 2'h2;",
            r"takes \d+ clocks, not",
        ),
        Bug(
            "a raster never ends",
            "sequencer",
            r"! rows_left;",
            "1'h0;",
            "busy for more than the stated",
        ),
        Bug(
            "a sample that is dropped ends a step",
            "sequencer",
            r"assign done = drain == 1'h1;",
            "assign done = drain == 1'h1 | (fsm_state == 4'h7 & samples__valid);",
            "depends on data",
        ),
        Bug(
            "a step is not counted",
            "sequencer",
            r"(\\\$signal\$\d+)  - 1'h1;",
            r"\1  - 1'h0;",
            "not one step fewer|as stated|more than",
        ),
    )
    return _over_journeys(look, "journeys of 3 x 3 cells from any idle state", bugs)


def _prove_isolation(timeout: float) -> Proof:
    def look(machine: Machine, passage: Passage) -> int:
        graph = machine.device.graph
        journey, start, end = passage.journey, passage.start, passage.end
        if journey.start == "reset":
            if any(b for row in machine.rows for word in end.memories[row] for b in word):
                raise Refuted("reset does not clear the cells")
            return 1
        owned = {
            (y, x): [word[x] for word in start.memories[row]]
            for y, row in enumerate(machine.rows)
            for x in range(machine.width)
        }
        for (y, x), before in owned.items():
            after = [word[x] for word in end.memories[machine.rows[y]]]
            if journey.op is Op.RUN and journey.start == "run" and any(journey.argument):
                near = [
                    bit
                    for (v, u), bits in owned.items()
                    if abs(u - x) <= 1 and abs(v - y) <= 1
                    for bit in bits
                ]
            elif journey.op in (Op.FRAME, Op.FORGET):
                near = [bit for bits in owned.values() for bit in bits]
            elif journey.place == (x, y):
                if after != _written(machine.program, journey, before):
                    raise Refuted(f"{journey.name} is not what its cell takes")
                continue
            else:
                if after != before:
                    raise Refuted(f"{journey.name} changes cell ({x}, {y})")
                continue
            foreign = graph.support(after) - graph.support(near)
            if foreign:
                names = sorted({graph.names[node] for node in foreign})
                raise Refuted(f"{journey.name}: cell ({x}, {y}) depends on {names[0]}")
        return 1

    bugs = (
        Bug(
            "a sample that waits moves the one that is taken",
            "sequencer",
            r"(\\\$\d+)  = columns;",
            r"\1  = samples__valid ? 3'h1 << samples__payload[1:0] : columns;",
            "a sample for",
        ),
        Bug(
            "a sample that waits replaces the code of the one that is taken",
            "sequencer",
            r"(\\\$\d+)  = code;",
            r"\1  = samples__valid ? samples__payload[7:4] : code;",
            "is not what its cell takes",
        ),
        Bug(
            "all cells of a column take its samples",
            "pixel_row",
            r"(assign selected = columns) [^;]*;",
            r"\1;",
            "changes cell",
        ),
        Bug(
            "a column outside is taken for one inside",
            "sequencer",
            r"samples__payload\[1:0\] < 2'h3",
            "1'h1",
            "a sample outside",
        ),
        Bug(
            "the row never clears its carries",
            "pixel_row",
            r"if \(\\control\$8 \[8\]\)",
            "if (1'b0)",
            "^reset does not clear the cells$",  # for a carry from before the reset stays
        ),
    )
    return _over_journeys(look, "journeys of 3 x 3 cells from any idle state", bugs)


def _written(program: Program, journey: Journey, before: Sequence[int]) -> list[int]:
    """Bits of a cell after it took a sample."""
    rule, target, due = program.rule, journey.target, list(before)
    inputs = [program.inputs[event.value] for event in rule.events]
    word = [*inputs, *program.words.values()][target]
    behind = max(1, (len(rule.targets) - 1).bit_length())
    code = journey.offer["samples__payload"][-behind - rule.code_bits :]
    due[word.plane : word.plane + word.bits] = code[: word.bits]
    if target < len(rule.events) and (flag := rule.events[target].flag):
        due[program.inputs[flag].plane] = TRUE
    return due


def _prove_waiting(timeout: float) -> Proof:
    def look(_machine: Machine, passage: Passage) -> int:
        for pixel in passage.pixels:
            for outputs in (pixel.waiting, pixel.later):
                for name in ("pixels__valid", "pixels__payload"):
                    if outputs[name] != pixel.outputs[name]:
                        raise Refuted(f"a pixel that is not taken: {name} is another")
        return len(passage.pixels)

    bugs = (
        _port_bug("a word goes on without being taken", "a pixel that is not taken"),
        _port_bug(
            "a word is valid only to a ready receiver", "a pixel that is not taken: pixels__valid"
        ),
    )
    return _over_journeys(look, "pixels offered by 3 x 3 cells", bugs)


def _prove_raster(timeout: float) -> Proof:
    def look(machine: Machine, passage: Passage) -> int:
        height, width = machine.height, machine.width
        names = machine.program.rule.channel_names
        journey, pixels, channel = passage.journey, passage.pixels, passage.journey.channel
        if len(pixels) != (0 if channel is None else height * width):
            raise Refuted(f"{journey.name} sends {len(pixels)} pixels")
        for index, pixel in enumerate(pixels):
            assert channel is not None
            y, x = divmod(index, width)
            word: Word = machine.program.words[names[channel]]
            planes = pixel.state.memories[machine.rows[y]][word.plane :][: word.bits]
            code = [plane[x] for plane in planes]
            above = code[-1] if word.signed else FALSE
            code += [above] * (machine.program.operand_bits - word.bits)
            sent = pixel.outputs["pixels__payload"]
            for what, found, due in (
                ("code", sent[:-2], code),
                ("tuser", sent[-2], int(index == 0)),
                ("tlast", sent[-1], int(x == width - 1)),
            ):
                if found != due:
                    raise Refuted(f"{journey.name}: {what} of pixel ({x}, {y}) is wrong")
        return len(pixels)

    bugs = (
        _port_bug("every row starts a frame", r"tuser of pixel \(0, 1\)"),
        _port_bug("tlast comes a pixel too early", r"tlast of pixel \(1, 0\)"),
        Bug(
            "a row is sent east first",
            "row_buffer",
            r"bits\[2\](.*?)bits\[0\]",
            r"bits[0]\1bits[2]",
            r"code of pixel \(0, 0\)",
        ),
        Bug(
            "READ sends the next channel",
            "sequencer",
            r"= 2'h3 \+ channel;",
            "= 3'h4 + channel;",
            "code of pixel",
        ),
    )
    return _over_journeys(look, "pixels", bugs)


def _prove_frames(timeout: float) -> Proof:
    def look(machine: Machine, passage: Passage) -> int:
        graph, nets = machine.device.graph, machine.nets("frames")
        before, after = (
            graph.number([state.registers[net] for net in nets], 16)
            for state in (passage.start, passage.end)
        )
        due = before + 1 if passage.journey.op is Op.FRAME else before
        if passage.journey.start == "reset":
            due = graph.number([FALSE] * 16, 16)
        _refute(machine, after != due, timeout, f"{passage.journey.name} miscounts")
        return 1

    bugs = (
        _port_bug("frames counts by two", "^FRAME mis"),
        _port_bug("FORGET counts as a frame", "^FORGET mis"),
    )
    return _over_journeys(look, "journeys of 3 x 3 cells from any idle state", bugs)


# One clock from any state.


def _prove_priority(timeout: float) -> Proof:
    def check(machine: Machine) -> None:
        device = machine.device
        graph, state = device.graph, device.anything()
        outputs = device.settle(state, {"samples__valid": [TRUE]})
        _refute(
            machine,
            graph.formula(outputs["commands__ready"][0]),
            timeout,
            "a command is taken while a sample is offered",
        )
        after = device.advance(state)
        for name in ("sequencer.fsm_state", "sequencer.fetch", "sequencer.counter"):
            nets = device.nets.get(name, [])
            support = graph.support(
                [after.registers[net] for net in nets if net in after.registers]
            )
            if any("commands" in graph.names[node] for node in support):
                raise Refuted("a command does something while a sample is offered")
        outputs = device.settle(state, {})
        ready, busy = outputs["commands__ready"][0], outputs["busy"][0]
        both = graph.formula(graph.conjunction(ready, busy))
        _refute(machine, both, timeout, "a command is taken while busy")

    check(_machine())
    bugs = (
        _port_bug(
            "commands are taken while a sample is offered", "taken while a sample is offered"
        ),
        Bug(
            "a command goes before a sample",
            "sequencer",
            r"if \(samples__valid\) begin(\s+if \(\\\$\d+ \) begin\s+\\\$\d+  = 4'h3;)",
            r"if (samples__valid & ~commands__valid) begin\1",
            "does something while a sample",
        ),
        _port_bug("commands are taken while busy", "taken while busy"),
    )
    return Proof(1, "clock of 3 x 3 cells from any state", _all_fail(check, bugs))


def _prove_dropped(timeout: float) -> Proof:
    import z3

    def check(machine: Machine) -> None:
        device = machine.device
        graph, state = device.graph, device.anything()
        payload = graph.symbols("payload", len(device.inputs["samples__payload"]))
        given = {
            name: graph.symbols(name, len(device.inputs[name]))
            for name in (
                "samples__valid",
                "registers__address",
                "registers__write",
                "registers__write_data",
            )
        }
        outputs = device.settle(state, {**given, "samples__payload": payload})
        after = device.advance(state)
        (valid,), (ready,), (busy,), (error,) = (
            [graph.formula(bits[0])]
            for bits in (
                given["samples__valid"],
                outputs["samples__ready"],
                outputs["busy"],
                outputs["error"],
            )
        )
        columns = max(1, (machine.width - 1).bit_length())
        rows = max(1, (machine.height - 1).bit_length())
        x, y = graph.number(payload[:columns], 8), graph.number(payload[columns:][:rows], 8)
        target = graph.number(payload[columns + rows + machine.program.rule.code_bits :], 8)
        outside = z3.Not(
            z3.And(
                z3.ULT(x, machine.width),
                z3.ULT(y, machine.height),
                z3.ULT(target, len(machine.program.rule.targets)),
            )
        )
        drops = z3.And(valid, ready, z3.Or(busy, outside))
        clears = z3.And(
            graph.formula(given["registers__write"][0]),
            graph.number(given["registers__address"], 8) == int(Register.STATUS),
            graph.formula(given["registers__write_data"][1]),
        )
        before = graph.number(outputs["dropped"], 16)
        more = z3.If(before == 0xFFFF, before, before + 1)
        due = z3.If(drops, more, z3.If(clears, z3.BitVecVal(0, 16), before))
        nets = device.outputs
        now = graph.number([after.registers[net] for net in nets["dropped"]], 16)
        flag = graph.formula(after.registers[nets["error"][0]])
        _refute(machine, now != due, timeout, "DROPPED miscounts")
        due_flag = z3.Or(drops, z3.And(error, z3.Not(clears)))
        _refute(machine, flag != due_flag, timeout, "ERROR is wrong")
        later = device.settle(after, {})
        accepted = z3.And(valid, ready, z3.Not(drops))
        idle = z3.Not(graph.formula(later["busy"][0]))
        _refute(machine, z3.And(accepted, idle), timeout, "a sample is lost, not counted")

    check(_machine())
    bugs = (
        Bug("the count turns over", "sequencer", r"& dropped;", "1'h0;", "DROPPED miscounts"),
        _port_bug("samples outside are not counted", "DROPPED miscounts"),
        _port_bug("samples in steps are not counted", "DROPPED miscounts"),
    )
    return Proof(1, "clock of 3 x 3 cells from any state", _all_fail(check, bugs))


def _prove_registers(timeout: float) -> Proof:
    def check(machine: Machine) -> None:
        device = machine.device
        graph, state = device.graph, device.anything()
        pointer = [state.registers[net] for net in device.nets["sequencer.writing__addr"]]
        shape = shape_code(machine.program, machine.height, machine.width)
        for address in range(8):
            given = {"registers__address": bits_of(address, 3)}
            outputs = device.settle(state, given)
            due = {
                Register.STATUS: outputs["busy"] + outputs["error"],
                Register.FRAMES: outputs["frames"],
                Register.DROPPED: outputs["dropped"],
                Register.PROGRAM_ADDRESS: pointer,
                Register.SHAPE: bits_of(shape, 32),
            }.get(Register(address) if address < len(Register) else Register.PROGRAM_LOW, [])
            after = device.advance(state)
            found = [after.registers[net] for net in device.outputs["registers__read_data"]]
            wide = [*due, *[FALSE] * (32 - len(due))]
            differ = graph.number(found, 32) != graph.number(wide, 32)
            _refute(machine, differ, timeout, f"register {address} reads wrong")

    check(_machine())
    bugs = (
        _port_bug("busy and error change places in STATUS", "register 0 reads"),
        _port_bug("DROPPED reads FRAMES", "register 2 reads"),
    )
    return Proof(8, "addresses in any state", _all_fail(check, bugs))


def _prove_program_kept(timeout: float) -> Proof:
    def check(machine: Machine) -> int:
        device = machine.device
        state, name = device.anything(), "sequencer.memory"
        busy = 0
        for code in range(1 << len(device.nets["sequencer.fsm_state"])):
            now = state.copy()
            bits = bits_of(code, len(device.nets["sequencer.fsm_state"]))
            now.registers |= zip(device.nets["sequencer.fsm_state"], bits, strict=True)
            outputs = device.settle(now, {})
            if outputs["busy"] == [FALSE]:
                continue
            busy += 1
            if device.advance(now).memories[name] != now.memories[name]:
                raise Refuted("a program is written while the device is busy")
        _check_writing(machine, state)
        return busy

    bugs = (
        _port_bug("the program is written while busy", "written while the device is busy"),
        Bug(
            "it is written where the sequencer reads",
            "sequencer",
            r"memory\[writing__addr\] <=",
            "memory[port__addr] <=",
            "another word",
        ),
    )
    busy = check(_machine())
    return Proof(busy, "busy states of the sequencer", _all_fail(check, bugs))


def _check_writing(machine: Machine, state: State) -> None:
    """Refute that PROGRAM_HIGH writes the addressed word while idle, and no other."""
    device, name = machine.device, "sequencer.memory"
    nets, graph = device.nets, device.graph
    idle = next(p.registers for p in [_idle(machine)])
    for address in (0, 5, 511):
        now = state.copy()
        for net in nets["sequencer.fsm_state"]:
            now.registers[net] = idle[net]
        where = nets["sequencer.writing__addr"]
        now.registers |= zip(where, bits_of(address, len(where)), strict=True)
        data = graph.symbols("data", 32)
        after = device.clock(
            now,
            {
                "registers__address": bits_of(Register.PROGRAM_HIGH, 3),
                "registers__write": [TRUE],
                "registers__write_data": data,
            },
        )[1]
        words = list(now.memories[name])
        low = [now.registers[net] for net in nets["sequencer.low"]]
        words[address] = [*low, *data][: len(words[address])]
        if after.memories[name] != words:
            raise Refuted(f"PROGRAM_HIGH writes another word than {address}")


def _idle(machine: Machine) -> State:
    """Return the state in which it idles after reset."""
    program: Program = machine.program
    limit = program.cycles("clear", machine.width) + 8
    return machine.trip(machine.after_reset(), {}, limit)[1]
