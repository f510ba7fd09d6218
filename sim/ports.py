"""The ports of a device that someone uses or has changed: driven, compared, and accounted for.

The scenarios are those of `stress`; what they are held against is `DeviceModel`, whose states are
the golden model's. A step takes as many clocks as the rule's program has, so they repeat less.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.operations import Linear
from scotopia.hdl.emit import read_manifest
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import Register, shape_code

from .cocotb_stress import MANY, READ, WRITTEN
from .device_model import Inputs, Outputs
from .stress import INSIDE, Driven, Trace

#: They load another program, and need one.
LOADING = (
    "another rule loaded under traffic",
    "reset while a program is loaded",
    "last word written as a command is taken",
)

#: What an array of more than `MANY` cells is driven through: all commands, stalls, resets, drops.
OF_MANY = (
    "random stalls on every stream",
    "samples outside the array",
    "FORGET ends the frame",
    "counters restart with a reset",
    "status cleared at the clock of a drop",
    "words written while busy",
)


#: What an array is driven through in a simulator that does some 10,000 clocks a second.
OF_SLOW = (
    "samples that repeat a pixel",
    "samples outside the array",
    "samples during a readout",
    "READ of a channel that is not there",
    "counters restart with a reset",
    "status cleared at the clock of a drop",
)


class RuleDevice(Driven):
    """An array of a rule that someone uses.

    The other program is that of the same rule with one weight turned round.

    Parameters
    ----------
    slow
        Whether the simulator is slow, as Icarus Verilog is.
    """

    def __init__(self, program: Program, height: int, width: int, slow: bool = False) -> None:
        self.height, self.width, self.effort, self.long = height, width, 10, False
        self.slow = slow
        self.programs = (program, *other_programs(program))

    def __str__(self) -> str:
        return f"{self.height} x {self.width} cells"

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Which make sense on Verilog that may have been changed by hand, and end in minutes."""
        if self.slow:
            return OF_SLOW
        if self.height * self.width > MANY:
            return OF_MANY
        left_out = (INSIDE, *(LOADING if len(self.programs) == 1 else ()))
        return tuple(name for name in super().scenarios if name not in left_out)


def other_programs(program: Program) -> Iterator[Program]:
    """Yield a program of the same shape whose rule has one weight of the other sign, if any."""
    graph = program.rule.graph
    shape = shape_code(program, 1, 1)
    places = [
        (abs(one.weight[place]), index, place)
        for index, one in graph.of_kind(Linear)
        if isinstance(one, Linear)
        for place in map(tuple, np.argwhere(one.weight).tolist())
    ]
    # The largest weights first, for a small one might not show.
    for _, index, place in sorted(places, key=lambda entry: -entry[0])[:64]:
        linear = graph.operations[index]
        assert isinstance(linear, Linear)
        weight = linear.weight.copy()
        weight[place] *= -1
        rule = program.rule.with_graph(graph.changed({index: replace(linear, weight=weight)}))
        try:
            other = Program.compile(rule, program.planes)
        except InputError:  # it takes more memory
            continue
        if shape_code(other, 1, 1) == shape and other.instructions != program.instructions:
            yield other
            return


@dataclass(frozen=True)
class Use:
    """How far a port, or a register behind one, was exercised.

    Attributes
    ----------
    name
        As in the Verilog; of a register, `registers: STATUS`.
    exercised
        Whether the scenarios gave it, or saw it have, more than one value; of a register, whether
        it was read, and written if it can be.
    detail
        How far: "24 of 24 bits were 0 and 1".
    """

    name: str
    exercised: bool
    detail: str


def uses(device: Driven, trace: Trace, folder: Path) -> tuple[Use, ...]:
    """Account for every port of module `retina` in `folder`, and for every register."""
    fields = {
        name: trace.clocks[:, column]
        for column, name in enumerate((*Inputs._fields, *Outputs._fields))
    }
    values = _ports(device, fields)
    found = [Use("clk", True, f"{trace.clocks[:, -1].sum():,} clocks")]
    for name in top_ports(folder):
        if name in values:
            found.append(_use(name, *values[name]))
        elif name != "clk":
            found.append(Use(name, False, "not of the contract: left open"))
    for register in Register:
        here = fields["address"] == register
        read, written = (
            int((here & (fields["rst"] == 0)).sum()),
            int((here & fields["write"]).sum()),
        )
        found.append(
            Use(
                f"registers: {register.name}",
                read > 0 and written > 0,
                f"read {read:,} times, written {written:,} times",
            )
        )
    return tuple(found)


def _ports(
    device: Driven, fields: dict[str, NDArray[np.int64]]
) -> dict[str, tuple[NDArray[np.int64], int]]:
    """Values of every port in the contract, and its bits."""
    plan = device.plan(0, ())
    x_bits, y_bits, word = plan["x_bits"], plan["y_bits"], plan["word_bits"]
    code_bits = plan["code_bits"]
    mask = (1 << code_bits) - 1
    bits = {
        "registers__address": 3,
        **dict.fromkeys(("registers__write_data", "registers__read_data"), 32),
        **dict.fromkeys(("frames", "dropped"), 16),
    }
    found = {
        name: (fields[field], bits.get(name, 1))
        for field, name in (
            *((name, name) for name in ("rst", "pixels_ready", "samples_valid", "commands_valid")),
            *((name, f"registers__{name}") for name in ("address", "write", "write_data")),
            *READ.items(),
        )
    }
    for name in ("pixels_ready", "samples_valid", "commands_valid"):
        found[name.replace("_", "__")] = found.pop(name)
    sample = fields["target"] << code_bits | fields["code"] & mask
    sample = (sample << y_bits | fields["y"]) << x_bits | fields["x"]
    pixel = fields["pixels_tlast"] << word + 1 | fields["pixels_tuser"] << word
    targets = max(1, (plan["targets"] - 1).bit_length())
    found["samples__payload"] = sample, x_bits + y_bits + code_bits + targets
    found["commands__payload"] = fields["argument"] << 2 | fields["op"], 10
    found["pixels__payload"] = pixel | fields["pixels_code"], word + 2
    assert set(found) == {*WRITTEN, *READ.values(), "pixels__payload"}
    return found


def _use(name: str, values: NDArray[np.int64], bits: int) -> Use:
    known = values[values >= 0]
    high = int(np.bitwise_or.reduce(known, initial=0))
    low = int(np.bitwise_or.reduce(~known & (1 << bits) - 1, initial=0))
    count = (high & low).bit_count()
    return Use(name, count > 0, f"{count} of {bits} bits were 0 and 1")


def top_ports(folder: Path) -> list[str]:
    """Names of the ports of module `retina`, in their order."""
    for source in read_manifest(folder)["sources"]:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", (folder / source).read_text(), flags=re.DOTALL)
        if found := re.search(
            r"\bmodule\s+retina\b\s*(?:#\s*\(.*?\)\s*)?\((.*?)\)\s*;", text, re.S
        ):
            names: Sequence[str] = re.findall(r"(\\\S+|\w+)\s*(?:\[[^\]]*\]\s*)?(?:,|$)", found[1])
            return list(names)
    return []
