import dataclasses
import json
import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import QFormat
from scotopia.hdl.estimate import (
    ASSUMED_CLOCK_MHZ,
    block_rams,
    cell_lut4,
    cycles_per_frame,
    estimate,
    shared_lut4,
)
from scotopia.hdl.program import Program
from scotopia.hdl.retina import Retina
from scotopia.hdl.sequencer import InstructionLayout, program_depth
from scotopia.model.config import RuleConfig
from scotopia.quantize.formats import Precision
from scotopia.quantize.layered_rule import IntegerLayer, LayeredRule

Make = Callable[..., Any]  # a fixture of conftest.py


@pytest.fixture(scope="module")
def tiny_rule() -> LayeredRule:
    """One channel, one neuron, ten weights: all that is counted, can be counted by hand."""
    state, hidden = QFormat(1, 7), QFormat(0, 8, signed=False)
    return LayeredRule(
        config=RuleConfig(
            kind="residual", channels=1, hidden=1, inputs=(), steps_per_frame=3, trace_bits=4
        ),
        state_formats=(state,),
        sample_format=state,
        input_formats=(),
        gate_format=hidden,
        perceive=IntegerLayer(
            weight=np.array([[[3, 0, -7, 1, 0, 0, 0, 0, 12]]]),
            weight_frac=np.array([3]),
            bias=np.array([1]),
            inputs=(state,),
            outputs=(hidden,),
        ),
        update=IntegerLayer(
            weight=np.array([[[5]]]),
            weight_frac=np.array([2]),
            bias=np.array([4]),
            inputs=(hidden,),
            outputs=(QFormat(2, 7),),
        ),
    )


def test_counts_are_those_of_a_hand(tiny_rule: LayeredRule) -> None:
    found = estimate(tiny_rule, 2, 5)
    assert (found.height, found.width) == (2, 5)
    assert found.macs == 9 + 1
    assert found.macs_per_frame == 10 * (2 * 5) * 3
    assert found.parameters == 10 + 2
    assert found.nonzero_weights == 4 + 1
    assert found.distinct_weights == 5 + 1
    # 3 = 4 - 1, 7 = 8 - 1, 1, 12 = 16 - 4; 5 = 4 + 1
    assert found.signed_digits == (2 + 2 + 1 + 2) + 2
    # -7 to 12 is 5 bits; 5 is 4
    assert found.weight_bits == 9 * 5 + 4
    # 3 = 11, 7 = 111, 1, 12 = 11 and two zeros; 5 = 101
    assert found.mantissa_bits == (2 + 3 + 1 + 2) + 3
    # x0, sample, trace, valid
    assert found.state_bits == 8 + 8 + 4 + 1
    # h0 has 8 bits and no sign: 9 as an operand; a, carry and flag beside it
    assert found.operand_bits == 9
    assert found.flip_flops_per_cell == 9 + 3


def test_weights_of_one_value_are_not_distinct_whatever_their_codes(
    tiny_rule: LayeredRule, small_config: Make, random_rule: Make
) -> None:
    rule = random_rule(0, small_config(inputs=()))
    codes = np.repeat([1, 2, 4], 27).reshape(3, 3, 9)
    layer = dataclasses.replace(rule.perceive, weight=codes, weight_frac=np.array([3, 4, 5]))
    update = dataclasses.replace(rule.update, weight=0 * rule.update.weight)
    found = estimate(dataclasses.replace(rule, perceive=layer, update=update), 4, 4)
    assert found.distinct_weights == 1 + 1
    assert found.mantissa_bits == 81


def test_parameters_are_those_of_the_config(small_config: Make, random_rule: Make) -> None:
    for kind in ("gated", "residual"):
        rule = random_rule(0, small_config(kind=kind))
        found = estimate(rule, 4, 4)
        assert (found.parameters, found.macs) == (rule.config.parameters, rule.config.macs)


def test_cycles_are_the_programs(small_config: Make, random_rule: Make) -> None:
    rule = random_rule(1, small_config())
    program, found = Program.compile(rule), estimate(rule, 4, 8, clock_mhz=30)
    assert found.cycles_per_step == program.cycles("step", 8)
    assert (found.planes, found.operand_bits) == (program.planes, program.operand_bits)
    assert found.instructions == len(program.instructions)
    assert found.program_bits == InstructionLayout(program).size * program_depth(program)
    assert found.cycles_per_frame == cycles_per_frame(program, 4, 8)
    assert found.clock_mhz == 30
    assert found.frames_per_second == 30e6 / cycles_per_frame(program, 4, 8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (3, 2)])
def test_frame_takes_its_cycles_in_the_array(
    tiny_rule: LayeredRule, height: int, width: int
) -> None:
    program = Program.compile(tiny_rule)
    device = Retina(program, height, width)
    taken: list[int] = []  # clocks in which a command FRAME is taken; op FRAME is 0

    async def bench(ctx: Any) -> None:
        ctx.set(device.commands.valid, 1)
        ctx.set(device.pixels.ready, 1)
        for clock in range(40_000):
            if ctx.get(device.commands.ready):
                taken.append(clock)
            if len(taken) == 3:
                return
            await ctx.tick()

    simulator = Simulator(device)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert np.diff(taken).tolist() == [cycles_per_frame(program, height, width)] * 2


def test_sample_takes_its_cycles_in_the_array(tiny_rule: LayeredRule) -> None:
    device = Retina(Program.compile(tiny_rule), 2, 2)
    taken: list[int] = []

    async def bench(ctx: Any) -> None:
        ctx.set(device.samples.valid, 1)
        for clock in range(1000):
            if ctx.get(device.samples.ready):
                taken.append(clock)
            await ctx.tick()

    simulator = Simulator(device)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert set(np.diff(taken).tolist()) == {estimate(tiny_rule, 2, 2).cycles_per_sample}


def test_more_weight_bits_cost_more(small_config: Make, random_rule: Make) -> None:
    found = [
        estimate(random_rule(2, small_config(), Precision(weight=bits)), 4, 4)
        for bits in (3, 5, 7, 9, 12)
    ]
    for name in ("weight_bits", "mantissa_bits", "signed_digits", "cycles_per_step"):
        numbers = [getattr(each, name) for each in found]
        assert all(np.diff(numbers) > 0), name
    assert len({each.macs for each in found}) == 1


def test_more_state_bits_cost_more(small_config: Make, random_rule: Make) -> None:
    found = [
        estimate(random_rule(3, small_config(), Precision(8, bits, bits, bits)), 4, 4)
        for bits in (6, 8, 10, 12)
    ]
    for name in ("state_bits", "cycles_per_step", "flip_flops", "flip_flops_per_cell"):
        numbers = [getattr(each, name) for each in found]
        assert all(np.diff(numbers) > 0), name


def test_array_costs_its_cells_and_what_they_share(tiny_rule: LayeredRule) -> None:
    program, found = Program.compile(tiny_rule), estimate(tiny_rule, 6, 7)
    assert found.lut4_parts == cell_lut4(program)
    assert found.lut4_per_cell == sum(cell_lut4(program).values()) == 8
    assert found.cycles_per_step is not None
    updates = 1e6 * found.clock_mhz / found.cycles_per_step  # of one cell, a second
    assert found.lut4_per_thousand_updates == pytest.approx(8 * 1000 / updates)
    assert found.lut4 == 42 * 8 + shared_lut4(program, 6, 7)
    # A row of 7 bits fits one block RAM, and so does the program.
    assert found.block_rams == 6 * block_rams(program.planes, 7) + block_rams(
        program_depth(program), InstructionLayout(program).size
    )


#: LUT4 and flip-flops of sequencer, row buffer, and one row of cells, for n x n cells of the
#: shipped rule (Yosys 0.70, synth_ecp5 -nowidelut).
SYNTHESIZED = {
    8: ((722, 432), (120, 126), (64, 181)),
    16: ((740, 449), (239, 247), (135, 325)),
    32: ((806, 482), (479, 488), (271, 613)),
    64: ((856, 548), (961, 969), (512, 1189)),
}


@pytest.mark.parametrize("side", SYNTHESIZED)
def test_estimates_are_near_what_synthesis_finds(side: int) -> None:
    path = files("scotopia.quantize") / "rules" / "retina-int.safetensors"
    found = estimate(LayeredRule.load(Path(str(path))), side, side)
    sequencer, row_buffer, row = SYNTHESIZED[side]
    lut4, flip_flops = (sequencer[i] + row_buffer[i] + side * row[i] for i in range(2))
    assert found.lut4 == pytest.approx(lut4, rel=0.09)
    assert found.flip_flops == pytest.approx(flip_flops, rel=0.01)


def test_cells_that_draw_random_bits_cost_a_lut4_more(
    small_config: Make, random_rule: Make
) -> None:
    found = estimate(random_rule(0, small_config(fire_rate=0.5)), 4, 4)
    assert found.lut4_per_cell == 9


@pytest.mark.parametrize(
    ("words", "bits", "expected"),
    [
        (1, 1, 1),
        (512, 36, 1),
        (512, 37, 2),
        (513, 36, 2),
        (1024, 18, 1),
        (2049, 9, 2),
        (8079, 22, 10),  # 18 bits in eight of 2048 x 9, 4 in two of 8192 x 2
    ],
)
def test_program_memory_fills_block_rams(words: int, bits: int, expected: int) -> None:
    assert block_rams(words, bits) == expected


def test_rule_that_does_not_fit_is_counted_all_the_same(
    tiny_rule: LayeredRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scotopia.hdl.compiler.PLANES", (16,))
    found = estimate(tiny_rule, 4, 4)
    assert found.refusal == (
        "the rule does not fit a memory of 16 planes: choose more planes, or a rule of fewer "
        "channels, neurons or bits"
    )
    monkeypatch.undo()
    accepted = estimate(tiny_rule, 4, 4)
    assert accepted.refusal is None
    for field in dataclasses.fields(accepted):
        value = getattr(found, field.name)
        if field.default is None and field.name != "refusal":
            assert value is None, field.name
            assert getattr(accepted, field.name) is not None, field.name
        elif field.name != "refusal":
            assert value == getattr(accepted, field.name), field.name


def test_estimate_is_json(tiny_rule: LayeredRule) -> None:
    found = estimate(tiny_rule, 4, 4)
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert found.as_dict()["clock_mhz"] == ASSUMED_CLOCK_MHZ == 60
    assert list(found.as_dict()) == [field.name for field in dataclasses.fields(found)]


@pytest.mark.parametrize("clock", [0, -1, math.nan, math.inf])
def test_clock_that_is_no_frequency_is_refused(clock: float, tiny_rule: LayeredRule) -> None:
    with pytest.raises(InputError) as caught:
        estimate(tiny_rule, 4, 4, clock)
    assert str(caught.value) == f"clock {clock} MHz is no frequency: choose 60, for instance"


def test_side_out_of_range_is_refused(tiny_rule: LayeredRule) -> None:
    with pytest.raises(InputError) as caught:
        estimate(tiny_rule, 0, 4)
    assert str(caught.value) == "height 0 is outside 1 to 1024: choose 16, for instance"
