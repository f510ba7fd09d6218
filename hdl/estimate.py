"""What a rule costs, before anything is synthesized.

The counts of a rule, the cycles of its program and a cell's flip-flops are exact. LUT4 are
estimated from the structure of `cell.py` and `sequencer.py`, for Lattice ECP5, with factors set by
synthesis: for 22 cells (Yosys 0.70, `synth_ecp5 -nowidelut`) the sum was off by 12 % at the most,
and by 5 % for the six of them that are cells of rules. Not counted is what place and route adds.
"""

import dataclasses
from dataclasses import dataclass
from functools import reduce
from math import ceil, inf
from operator import and_, or_
from typing import Any

import numpy as np

from scotopia.model.errors import InputError
from scotopia.quantize.integer_rule import IntegerLayer, IntegerRule
from scotopia.quantize.qformat import required_bits

from .program import Program, signed_digits
from .retina import check_size
from .sequencer import OperationLayout

#: A guess; `scotopia fpga` finds out.
ASSUMED_CLOCK_MHZ = 60.0

#: Words of a TRELLIS_DPR16X4, their bits, and its LUT4 sites: four hold them, two write them.
_RAM_WORDS, _RAM_BITS, _RAM_SITES = 16, 4, 6

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
        Weights and biases.
    nonzero_weights
        Weights that are not 0.
    distinct_weights
        Different values of weights, summed over both layers.
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
        Clocks of a step.
    cycles_per_frame
        Clocks of the command FRAME, until the next one is taken: all steps, and the readout to a
        receiver that never waits. Beside these, every sample takes one.
    words_per_cell, word_bits
        A cell's memory.
    accumulator_bits
        Width of a cell's adder.
    flip_flops_per_cell
        Exact.
    lut4_parts
        LUT4 sites of a cell, by part.
    lut4_per_cell
        Their sum.
    lut4
        Sites of the array, sequencer and row buffer included.
    program_bits
        Of the sequencer's program memory.
    block_rams
        18-kbit block RAMs that hold it; Yosys has found fewer, where bits repeat each other.
    clock_mhz
        Assumed, not estimated.
    frames_per_second
        At that clock, without the clocks that samples take.
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
    words_per_cell: int | None = None
    word_bits: int | None = None
    accumulator_bits: int | None = None
    flip_flops_per_cell: int | None = None
    lut4_parts: dict[str, int] | None = None
    lut4_per_cell: int | None = None
    lut4: int | None = None
    program_bits: int | None = None
    block_rams: int | None = None
    frames_per_second: float | None = None

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
    config = rule.config
    layers = (rule.perceive, rule.update)
    magnitudes = [abs(int(code)) for layer in layers for code in layer.weight.flat]
    counted = Estimate(
        height=height,
        width=width,
        macs=len(magnitudes),
        macs_per_frame=len(magnitudes) * height * width * config.steps_per_frame,
        parameters=len(magnitudes) + sum(len(layer.bias) for layer in layers),
        nonzero_weights=sum(magnitude > 0 for magnitude in magnitudes),
        distinct_weights=sum(map(_distinct, layers)),
        signed_digits=sum(sum(1 for _ in signed_digits(m)) for m in magnitudes),
        weight_bits=sum(map(_stored_bits, layers)),
        mantissa_bits=sum(map(_mantissa_bits, magnitudes)),
        state_bits=rule.state_bits,
        clock_mhz=clock_mhz,
    )
    try:
        program = Program.compile(rule)
    except InputError as error:
        return dataclasses.replace(counted, refusal=str(error))
    parts = cell_lut4(program)
    cycles = cycles_per_frame(program, height, width)
    return dataclasses.replace(
        counted,
        cycles_per_step=program.cycles_per_step,
        cycles_per_frame=cycles,
        words_per_cell=len(program.words),
        word_bits=program.word_bits,
        accumulator_bits=program.accumulator_bits,
        # The operand, which has one bit more than a word, the gate, the accumulator, valid.
        flip_flops_per_cell=2 * program.word_bits + program.accumulator_bits + 2,
        lut4_parts=parts,
        lut4_per_cell=sum(parts.values()),
        lut4=sum(parts.values()) * height * width + shared_lut4(program, height, width),
        program_bits=OperationLayout(program).size * program.cycles_per_step,
        block_rams=block_rams(program.cycles_per_step, _varying_bits(program)),
        frames_per_second=clock_mhz * 1e6 / cycles,
    )


def cell_lut4(program: Program) -> dict[str, int]:
    """LUT4 sites of a `PixelCell`, part by part in the order of `PixelCell.elaborate`."""
    word, accumulator = program.word_bits, program.accumulator_bits
    banks = ceil(len(program.words) / _RAM_WORDS)
    limits = program.limits
    # With each limit's highest code, and the lowest one of signed ones; below 0 is what has a sign.
    comparisons = sum(1 + limit.signed for limit in limits)
    return {
        # RAM in LUTs: banks of words, each of as many slices as a word needs.
        "memory": banks * ceil(word / _RAM_BITS) * _RAM_SITES,
        # For each bit: the operand, or the word of one of the banks. For each bank: write it?
        "shown word": banks * (word + 1) + 1,
        # For each bit: one of nine words, or of the number 1.
        "neighbours": 8 * word,
        # For each bit: shift or load. Once: or hold?
        "gate": word + 1,
        # For each bit: the accumulator, twice it, or 0.
        "base": accumulator,
        # For each bit of the operand, which has one more: add, subtract, or 0. Once: does it count?
        "term": word + 2,
        # A carry chain, in pairs of bits.
        "adder": 2 * ceil(accumulator / 2),
        # Carry chains, too. Of all their bits some 60 % outlive Yosys's optimizer, now more, now
        # less: this is what makes an estimate wrong.
        "comparisons": ceil(0.6 * comparisons * (accumulator - program.tap)),
        # For each bit: a sample? For each limit: each of its bits, and which of three cases.
        "stored word": word + sum(limit.bits for limit in limits) + 4 * (len(limits) - 1),
    }


def cycles_per_frame(program: Program, height: int, width: int) -> int:
    """Clocks from one command FRAME to the next, state by state of the sequencer."""
    run = program.rule.config.steps_per_frame * program.cycles_per_step
    drain, forget, read, idle = 2, 1, 1, 1
    capture_and_send = height * (1 + width)
    return run + drain + forget + read + capture_and_send + idle


def block_rams(words: int, bits: int) -> int:
    """Fewest block RAMs, of any shapes, that hold words of so many bits."""
    fewest = [0]  # by bits
    for count in range(1, bits + 1):
        fewest.append(
            min(ceil(words / depth) + fewest[max(0, count - width)] for depth, width in _BLOCK_RAMS)
        )
    return fewest[bits]


def shared_lut4(program: Program, height: int, width: int) -> int:
    """LUT4 sites of the sequencer and the row buffer: next to nothing, beside an array."""
    address = (len(program.words) - 1).bit_length()
    counter = (program.cycles_per_step - 1).bit_length()
    # The program counter, and the three addresses with all that they are loaded from.
    sequencer = 10 * counter + 8 * address
    # The decoders of a sample's row and column.
    selects = ceil(1.25 * (height + width))
    # For each bit: take the array's word, or that of the cell to the east.
    row_buffer = program.word_bits * width
    return sequencer + selects + row_buffer


def _varying_bits(program: Program) -> int:
    """Bits of an operation that are not the same in all of them: others take no memory."""
    layout = OperationLayout(program)
    codes = [layout.encode(operation) for operation in program.operations]
    return (reduce(or_, codes) & ~reduce(and_, codes)).bit_count()


def _distinct(layer: IntegerLayer) -> int:
    return len(np.unique(np.ldexp(layer.weight, -layer.weight_frac[:, None, None])))


def _stored_bits(layer: IntegerLayer) -> int:
    lowest, highest = int(layer.weight.min()), int(layer.weight.max())
    return layer.weight.size * required_bits(lowest, highest)


def _mantissa_bits(magnitude: int) -> int:
    return (magnitude // (magnitude & -magnitude)).bit_length() if magnitude else 0
