"""What a rule costs, before anything is synthesized.

The counts of a rule, the clocks of its program and its cells' flip-flops are exact. LUT4 are those
of Yosys 0.70 (`synth_ecp5 -nowidelut`): exact for a cell, and for what the cells share a straight
line through what it took for arrays of 8 x 8 to 64 x 64 cells. Not counted is what place and route
adds.
"""

import dataclasses
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scotopia.graph import counts
from scotopia.graph.errors import InputError
from scotopia.graph.lfsr import BITS as REGISTER_BITS
from scotopia.graph.operations import fractions
from scotopia.graph.qformat import IntArray, required_bits
from scotopia.quantize.integer_rule import IntegerRule

from .compiler import signed_digits
from .program import LATENCY, Program
from .retina import check_size
from .row import ControlLayout
from .sequencer import InstructionLayout, program_depth

#: A guess; `scotopia fpga` finds out.
ASSUMED_CLOCK_MHZ = 60.0

#: Of the sequencer, without what grows with the array. LUT4 differ by what it takes to choose among
#: the program's block RAMs: 540 for `retina-shift`, 700 for `retina-int`.
SEQUENCER_LUT4, SEQUENCER_FF = 620, 412

#: Clocks of a routine beside its own: two to fetch, and as many until its last bit is written.
_AROUND = 2 + LATENCY + 1

#: Depth by width of a DP16KD, the block RAM of 18 kbit.
_BLOCK_RAMS = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))


@dataclass(frozen=True)
class Estimate:
    """What a rule costs on an array of height x width cells.

    What follows from the program is None if the cell cannot run the rule; `refusal` says why.

    Attributes
    ----------
    height, width
        Of the array, in cells.
    macs
        Multiply-accumulates of a cell in a step, those with weights of 0 included.
    macs_per_frame
        Of all cells in all steps of a frame.
    parameters
        Weights and biases, see `graph.counts`.
    nonzero_weights
        Weights that are not 0.
    distinct_weights
        Different values of weights, summed over the layers.
    signed_digits
        Digits of all weights that are not 0, in canonical signed-digit form: as many additions
        does a cell need for them in a step.
    weight_bits
        Of all weights, as stored: each as wide as its layer's widest code, sign included.
    mantissa_bits
        Of all weights, without sign: those from the highest to the lowest 1 of a code's magnitude.
        (So weights count in HGQ's effective bit operations: C. Sun et al., "Gradient-based
        Automatic Mixed Precision Quantization for Neural Networks On-Chip", 2024.)
    state_bits
        That a cell keeps from frame to frame.
    refusal
        Why the cell cannot run the rule, or None.
    cycles_per_step
        Clocks of a step's program.
    cycles_per_frame
        Clocks of the command FRAME, until the next one is taken: all steps, and the readout to a
        receiver that never waits.
    cycles_per_sample
        Clocks that a sample takes, beside these.
    planes
        Bits of a cell's memory.
    operand_bits
        Of a cell's operand.
    instructions
        Of the program.
    flip_flops_per_cell
        Exact.
    lut4_parts
        LUT4 of a cell, by part.
    lut4_per_cell
        Their sum.
    lut4, flip_flops
        Of the array, sequencer and row buffer included.
    program_bits
        Of the sequencer's program memory.
    block_rams
        Fewest 18-kbit block RAMs for the cells' memory and the program's. Yosys takes some more for
        the program.
    clock_mhz
        Assumed, not estimated.
    frames_per_second
        At that clock, without the clocks that samples take.
    lut4_per_thousand_updates
        LUT4 of as many cells as do 1,000 cell updates a second at that clock. A bit-serial cell has
        the same LUT4 whatever it computes; what it computes takes its time, and this counts both.
    """

    height: int
    width: int
    macs: int
    macs_per_frame: int
    parameters: int
    nonzero_weights: int
    distinct_weights: int
    signed_digits: int
    weight_bits: int
    mantissa_bits: int
    state_bits: int
    clock_mhz: float
    refusal: str | None = None
    cycles_per_step: int | None = None
    cycles_per_frame: int | None = None
    cycles_per_sample: int | None = None
    planes: int | None = None
    operand_bits: int | None = None
    instructions: int | None = None
    flip_flops_per_cell: int | None = None
    lut4_parts: dict[str, int] | None = None
    lut4_per_cell: int | None = None
    lut4: int | None = None
    flip_flops: int | None = None
    program_bits: int | None = None
    block_rams: int | None = None
    frames_per_second: float | None = None
    lut4_per_thousand_updates: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name, for JSON."""
        return dataclasses.asdict(self)


def estimate(
    rule: IntegerRule, height: int, width: int, clock_mhz: float = ASSUMED_CLOCK_MHZ
) -> Estimate:
    """Estimate what a rule costs on an array of height x width cells.

    Raises
    ------
    InputError
        If a side is outside 1 to 1024, or the clock is no frequency.
    """
    check_size(height, width)
    if not 0 < clock_mhz < inf:
        raise InputError(f"clock {clock_mhz} MHz is no frequency: choose 60, for instance")
    layers = [counts.weights(layer) for layer in counts.layers(rule.graph)]
    codes = [_codes(weights) for weights in layers]
    magnitudes = [abs(int(code)) for layer in codes for code in layer.flat]
    macs = counts.macs(rule.graph)
    counted = Estimate(
        height=height,
        width=width,
        macs=macs,
        macs_per_frame=macs * height * width * rule.steps_per_frame,
        parameters=counts.parameters(rule.graph),
        nonzero_weights=sum(magnitude > 0 for magnitude in magnitudes),
        distinct_weights=sum(len(np.unique(weights)) for weights in layers),
        signed_digits=sum(sum(1 for _ in signed_digits(m)) for m in magnitudes),
        weight_bits=sum(map(_stored_bits, codes)),
        mantissa_bits=sum(map(_mantissa_bits, magnitudes)),
        state_bits=rule.state_bits,
        clock_mhz=clock_mhz,
    )
    try:
        program = Program.compile(rule)
    except InputError as error:
        return dataclasses.replace(counted, refusal=str(error))
    parts = cell_lut4(program)
    step, cycles = program.cycles("step", width), cycles_per_frame(program, height, width)
    flip_flops = program.operand_bits + 3  # a, carry, flag
    return dataclasses.replace(
        counted,
        cycles_per_step=step,
        cycles_per_frame=cycles,
        cycles_per_sample=1 + program.cycles("sense", width) + _AROUND,
        planes=program.planes,
        operand_bits=program.operand_bits,
        instructions=len(program.instructions),
        flip_flops_per_cell=flip_flops,
        lut4_parts=parts,
        lut4_per_cell=sum(parts.values()),
        lut4=sum(parts.values()) * height * width + shared_lut4(program, height, width),
        flip_flops=flip_flops * height * width + shared_flip_flops(program, height, width),
        program_bits=InstructionLayout(program).size * program_depth(program),
        block_rams=height * block_rams(program.planes, width)
        + block_rams(program_depth(program), InstructionLayout(program).size),
        frames_per_second=clock_mhz * 1e6 / cycles,
        lut4_per_thousand_updates=sum(parts.values()) * step / (1e3 * clock_mhz),
    )


def costs_of_array(rule: IntegerRule) -> tuple[int, float]:
    """Return `cycles_per_step` and `lut4_per_thousand_updates` of an array of 64 x 64 cells.

    Only where bits are random do they depend on its width.

    Raises
    ------
    InputError
        If no cell can run the rule.
    """
    found = estimate(rule, 64, 64)
    if found.cycles_per_step is None or found.lut4_per_thousand_updates is None:
        raise InputError(found.refusal or "no cell can run the rule")
    return found.cycles_per_step, found.lut4_per_thousand_updates


def cell_lut4(program: Program) -> dict[str, int]:
    """LUT4 of a cell, part by part in the order of `PixelRow.elaborate`."""
    return {
        "addend": 1,
        "result": 1,
        "carry": 1,
        # The result, or whether the cell is selected; or the western neighbour's flag.
        "flag": 1 + program.lanes_take_noise,
        # Three pairs of six ways, then one of the three.
        "operand": 4,
    }


def cycles_per_frame(program: Program, height: int, width: int) -> int:
    """Clocks from one command FRAME to the next, state by state of the sequencer."""

    def routine(name: str) -> int:
        return 1 + program.cycles(name, width) + _AROUND

    steps = program.rule.steps_per_frame
    send = 2 * width - 1  # a clock a pixel, and one between two of them
    idle = 1
    return (
        idle
        + steps * routine("step")
        + routine("forget")
        + routine("read")
        + height * (routine("move") + send)
    )


def block_rams(words: int, bits: int) -> int:
    """Fewest block RAMs, of any shapes, that hold words of so many bits."""
    fewest = [0]  # by bits
    for count in range(1, bits + 1):
        fewest.append(
            min(ceil(words / depth) + fewest[max(0, count - width)] for depth, width in _BLOCK_RAMS)
        )
    return fewest[bits]


def shared_lut4(program: Program, height: int, width: int) -> int:
    """LUT4 of the sequencer and the row buffer: next to nothing, beside a large array."""
    # For each bit: take the one above, or that of the cell to the east.
    row_buffer = program.operand_bits * width + 10
    # The decoders of a sample's row and column.
    return SEQUENCER_LUT4 + ceil(1.5 * (height + width)) + row_buffer


def shared_flip_flops(program: Program, height: int, width: int) -> int:
    """Flip-flops of the sequencer, the row buffer, and each row's register of control words.

    Two control bits are for random bits alone, and gone where there are none.
    """
    size: int = ControlLayout(program).size
    rows = height * (size + 1 - 2 * (not program.lanes_take_noise))
    random = height * REGISTER_BITS * program.lanes_take_noise
    row_buffer = program.operand_bits * width + 7
    return SEQUENCER_FF + height + width + row_buffer + rows + random


def _codes(weights: NDArray[np.float64]) -> IntArray:
    """Weights (O, I, K) as the integers that they are times a power of two of their output."""
    of_output = fractions(weights).max((1, 2), initial=-64, where=weights != 0)
    codes: IntArray = np.ldexp(weights, of_output[:, None, None]).astype(np.int64)
    return codes


def _stored_bits(codes: IntArray) -> int:
    return codes.size * required_bits(int(codes.min()), int(codes.max()))


def _mantissa_bits(magnitude: int) -> int:
    return (magnitude // (magnitude & -magnitude)).bit_length() if magnitude else 0
