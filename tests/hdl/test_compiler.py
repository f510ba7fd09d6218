import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amaranth.lib import data
from hypothesis import given, settings
from hypothesis import strategies as st

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Overflow, Rounding
from scotopia.hdl.compiler import compile_rule, signed_digits
from scotopia.hdl.program import LATENCY, Addend, Carry, Flag, Instruction, Program, Shift
from scotopia.hdl.sequencer import InstructionLayout
from scotopia.hdl.twin import ArrayTwin
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.quantize.formats import Formats, Precision, unsigned_format
from scotopia.quantize.layered_rule import LayeredRule

Make = Callable[..., Any]  # a fixture of conftest.py

KINDS = ["gated", "residual"]
BORDERS = ["zero", "replicate", "wrap"]
PARTS = [
    (),
    ("sample",),
    ("trace",),
    ("valid",),
    ("flicker",),
    ("innovation",),
    ("trust",),
    ("trust", "recall"),
]


def assert_program_is_the_rule(
    rule: LayeredRule,
    extreme_state: Make,
    seed: int,
    planes: int | None = None,
    shape: tuple[int, int] = (3, 4),
) -> None:
    """Two steps, from a random state with many codes at the ends of their formats."""
    twin = ArrayTwin(compile_rule(rule, planes), *shape)
    rng = np.random.default_rng(seed)
    state = extreme_state(rule, seed, *shape)
    for _ in range(2):
        sample = extreme_state(rule, int(rng.integers(99)), *shape)[rule.config.channels]
        valid = rng.random(shape) < 0.5
        noise = rng.integers(0, 2, (rule.noise_planes, *shape)) if rule.noise_planes else None
        inputs = rule.given(sample, valid)
        expected = rule.step(state, inputs, noise)
        np.testing.assert_array_equal(twin.step(state, inputs, noise), expected)
        state = expected


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [(8, 8, 8, 8), (2, 4, 3, 5), (9, 6, 10, 4)])
def test_program_is_the_rule(
    kind: str,
    border: str,
    precision: tuple[int, ...],
    small_config: Make,
    random_rule: Make,
    extreme_state: Make,
) -> None:
    rule = random_rule(1, small_config(kind=kind, border=border), Precision(*precision))
    assert_program_is_the_rule(rule, extreme_state, 2)


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("overflow", list(Overflow))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coarse", [False, True])
def test_program_rounds_and_overflows_as_the_rule_does(
    kind: str,
    rounding: Rounding,
    overflow: Overflow,
    coarse: bool,
    small_config: Make,
    mixed_rule: Make,
    extreme_state: Make,
) -> None:
    rule = mixed_rule(8 + coarse, small_config(kind=kind), rounding, coarse)
    assert_program_is_the_rule(dataclasses.replace(rule, overflow=overflow), extreme_state, 3)


@pytest.mark.parametrize("inputs", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_program_is_the_rule_for_any_inputs(
    kind: str, inputs: tuple[str, ...], small_config: Make, random_rule: Make, extreme_state: Make
) -> None:
    rule = random_rule(3, small_config(kind=kind, inputs=inputs))
    assert_program_is_the_rule(rule, extreme_state, 4)


@pytest.mark.parametrize("trace_bits", [1, 5, 16])
def test_program_is_the_rule_for_any_trace(
    trace_bits: int, small_config: Make, random_rule: Make, extreme_state: Make
) -> None:
    rule = random_rule(5, small_config(trace_bits=trace_bits), Precision(8))
    assert_program_is_the_rule(rule, extreme_state, 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fire_rate", [0.004, 0.5, 0.998])
def test_cells_fire_as_the_rule_says(
    kind: str, fire_rate: float, small_config: Make, random_rule: Make, extreme_state: Make
) -> None:
    rule = random_rule(6, small_config(kind=kind, fire_rate=fire_rate))
    assert_program_is_the_rule(rule, extreme_state, 7, shape=(6, 7))


def test_program_knows_scales_by_kernel(
    small_config: Make, float_rule: Make, extreme_state: Make
) -> None:
    made = float_rule(0, small_config())
    for output, kernels in enumerate(made.perceive.weight.data):
        for i, kernel in enumerate(kernels):
            kernel *= 2.0 ** -((3 * output + 2 * i) % 7)
    hidden = [unsigned_format(2.0, 8)] * 3
    formats = Formats.choose(made, hidden, Precision(weight=4), scales="kernel")
    rule = formats.integer_rule(made)
    assert np.abs(rule.perceive.weight).max() > 64  # four bits, far apart
    assert_program_is_the_rule(rule, extreme_state, 9)
    # A scale costs no addition: they are as many as the four bits have digits.
    digits = [len(list(signed_digits(int(code)))) for code in rule.perceive.weight.ravel()]
    assert max(digits) <= 2


@pytest.mark.parametrize("dither", [1, 5, 8])
@pytest.mark.parametrize("fire_rate", [0.5, 1.0])
@pytest.mark.parametrize("rounding", [Rounding.RND, Rounding.RND_CONV])
def test_updates_are_dithered_as_the_rule_says(
    dither: int,
    fire_rate: float,
    rounding: Rounding,
    small_config: Make,
    random_rule: Make,
    extreme_state: Make,
) -> None:
    rule = random_rule(7, small_config(fire_rate=fire_rate), None, rounding)
    assert_program_is_the_rule(dataclasses.replace(rule, dither=dither), extreme_state, 8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (2, 2)])
@pytest.mark.parametrize("border", BORDERS)
def test_program_is_the_rule_on_any_array(
    border: str, shape: tuple[int, int], small_config: Make, random_rule: Make, extreme_state: Make
) -> None:
    rule = random_rule(9, small_config(border=border))
    assert_program_is_the_rule(rule, extreme_state, 10, shape=shape)


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_that_do_not_fit_at_once_are_computed_in_passes(
    kind: str, small_config: Make, random_rule: Make, extreme_state: Make
) -> None:
    rule = random_rule(11, small_config(kind=kind, hidden=9))
    whole, parts = compile_rule(rule), compile_rule(rule, 256)
    assert (whole.planes, parts.planes) == (512, 256)
    # Each pass moves every word again; nothing else takes longer.
    assert parts.cycles("step", 1) > whole.cycles("step", 1)
    assert_program_is_the_rule(rule, extreme_state, 12, planes=256)


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    border=st.sampled_from(BORDERS),
    rounding=st.sampled_from(Rounding),
    overflow=st.sampled_from(Overflow),
    inputs=st.sets(st.sampled_from(INPUTS)).map(
        lambda names: names | {"trust"} if "recall" in names else names
    ),
    channels=st.integers(2, 3),
    hidden=st.integers(1, 3),
    coarse=st.booleans(),
    fire_rate=st.sampled_from([0.3, 1.0]),
    dither=st.integers(0, 2),
)
@settings(max_examples=40, deadline=None)
def test_program_is_the_rule_for_any_formats(
    mixed_rule: Make,
    extreme_state: Make,
    seed: int,
    kind: str,
    border: str,
    rounding: Rounding,
    overflow: Overflow,
    inputs: set[str],
    channels: int,
    hidden: int,
    coarse: bool,
    fire_rate: float,
    dither: int,
) -> None:
    config = RuleConfig(
        kind=kind,  # type: ignore[arg-type]
        channels=channels,
        hidden=hidden,
        inputs=tuple(name for name in INPUTS if name in inputs),
        border=border,  # type: ignore[arg-type]
        trace_bits=4,
        fire_rate=fire_rate,
    )
    rule = mixed_rule(seed, config, rounding, coarse)
    rule = dataclasses.replace(rule, overflow=overflow, dither=dither if kind == "gated" else 0)
    assert_program_is_the_rule(rule, extreme_state, seed)


def test_rule_of_zeros_has_a_program(
    small_config: Make, random_rule: Make, extreme_state: Make
) -> None:
    rule = random_rule(0, small_config())
    nothing = dataclasses.replace(
        rule.perceive, weight=0 * rule.perceive.weight, bias=0 * rule.perceive.bias
    )
    assert_program_is_the_rule(dataclasses.replace(rule, perceive=nothing), extreme_state, 1)


def test_rule_that_does_not_fit_is_refused(small_config: Make, random_rule: Make) -> None:
    with pytest.raises(InputError) as caught:
        compile_rule(random_rule(0, small_config()), 64)
    assert str(caught.value) == (
        "the rule does not fit a memory of 64 planes: choose more planes, or a rule of fewer "
        "channels, neurons or bits"
    )


def test_odd_number_of_planes_is_refused(small_config: Make, random_rule: Make) -> None:
    with pytest.raises(InputError, match="planes 100 is not supported: choose one of"):
        compile_rule(random_rule(0, small_config()), 100)


@given(st.integers(-(2**31), 2**31))
def test_signed_digits_sum_to_the_number(number: int) -> None:
    digits = list(signed_digits(number))
    assert sum(digit * 2**position for position, digit in digits) == number
    assert {digit for _, digit in digits} <= {-1, 1}


@given(st.integers(-(2**31), 2**31))
def test_no_two_signed_digits_are_adjacent(number: int) -> None:
    positions = [position for position, _ in signed_digits(number)]
    assert all(above - below >= 2 for below, above in itertools.pairwise(positions))


# What the gates rely on, checked on the instructions themselves.


@pytest.fixture(params=itertools.product(KINDS, ["8 bits", "mixed", "mixed and coarse"], [1, 0.5]))
def program(
    request: pytest.FixtureRequest, small_config: Make, random_rule: Make, mixed_rule: Make
) -> Program:
    kind, formats, fire_rate = request.param
    config = small_config(kind=kind, fire_rate=fire_rate)
    if formats == "8 bits":
        return compile_rule(random_rule(7, config, None, Rounding.RND_CONV))
    return compile_rule(mixed_rule(7, config, Rounding.RND_INF, coarse="coarse" in formats))


def test_no_bit_is_read_before_it_is_there(program: Program) -> None:
    for name in program.entries:
        offsets = range(len(program.rule.config.channel_names)) if name == "read" else (0,)
        for offset in offsets:
            clock, made = 0, {}
            for instruction in program.routine(name, offset):
                for bit in range(instruction.count):
                    if bit < instruction.read_bits:
                        plane = instruction.read + bit
                        assert clock + bit >= made.get(plane, -LATENCY) + LATENCY, name
                    if bit < instruction.write_bits:
                        made[instruction.write + bit] = clock + bit
                clock += max(instruction.count, 2)


def test_instructions_stay_in_their_fields(program: Program) -> None:
    layout = InstructionLayout(program)
    for instruction in program.instructions:
        assert 1 <= instruction.count <= 64
        assert 0 <= instruction.read_bits <= instruction.count
        assert 0 <= instruction.write_bits <= instruction.count
        assert instruction.read + instruction.read_bits <= program.planes
        assert instruction.write + instruction.write_bits <= program.planes
        code = layout.encode(instruction)
        fields = data.Const(layout, code)
        assert fields.last == instruction.count - 1
        for name in ("read", "read_bits", "signed", "write", "write_bits", "select", "end"):
            assert fields[name] == getattr(instruction, name), name
        for name in ("addend", "carry", "flag", "shift"):
            assert int(fields[name]) == getattr(instruction, name), name


def test_operands_turn_round_whole(program: Program) -> None:
    for instruction in program.instructions:
        if instruction.shift is not Shift.HOLD:
            assert instruction.count >= program.operand_bits
        if instruction.shift is Shift.LOAD or instruction.shift >= Shift.NORTH:
            assert instruction.count == program.operand_bits


def test_cells_show_nothing_that_is_half_done(program: Program) -> None:
    # A cell sees its neighbours' old channels: none is written before the last operand has moved.
    learned = [word for name, word in program.words.items() if name.startswith("x")]
    planes = {word.plane + bit for word in learned for bit in range(word.bits)}
    steps = list(program.routine("step"))
    moves = [i for i, op in enumerate(steps) if op.shift >= Shift.NORTH]
    stores = [
        i for i, op in enumerate(steps) if planes & set(range(op.write, op.write + op.write_bits))
    ]
    assert max(moves) < min(stores)


def test_routines_end_where_the_next_one_starts(program: Program) -> None:
    starts = sorted(program.entries.values())
    for start in starts[1:]:
        assert program.instructions[start - 1].end
    assert program.instructions[-1].end
    channels = len(program.words)
    ends = [instruction.end for instruction in program.instructions]
    # `read` has one a channel, `sense` one a word that can be written.
    assert sum(ends) == len(program.entries) + channels - 1 + len(program.senses) - 1


def test_words_of_the_state_overlap_nothing(program: Program) -> None:
    words = (*program.words.values(), *program.inputs.values())
    planes = [word.plane + bit for word in words for bit in range(word.bits)]
    assert len(planes) == len(set(planes))
    graph = program.rule.graph
    known = (*graph.channels.values(), *graph.inputs.values())
    formats = [graph.formats[word] for word in known]
    assert [(word.bits, word.signed) for word in words] == [(f.bits, f.signed) for f in formats]


@pytest.mark.parametrize(
    ("wrong", "by"),
    [
        (lambda op: op.shift is Shift.WEST, {"shift": Shift.EAST}),
        (lambda op: op.shift is Shift.NORTH, {"shift": Shift.SOUTH}),
        (lambda op: op.addend is Addend.WORD and op.subtract, {"subtract": False}),
        (lambda op: op.select, {"select": False}),
        (lambda op: op.flag is Flag.TAKE, {"flag": Flag.HOLD}),
        (lambda op: op.addend is Addend.FLAG, {"addend": Addend.ZERO}),
        (lambda op: op.carry is Carry.HOLD and op.select, {"carry": Carry.START}),
        (lambda op: op.signed and op.read_bits < op.count, {"signed": False}),
        (lambda op: op.shift is Shift.ROTATE, {"shift": Shift.HOLD}),
    ],
)
def test_wrong_instructions_are_run_as_they_are(
    wrong: Callable[[Instruction], bool],
    by: dict[str, Any],
    small_config: Make,
    random_rule: Make,
    extreme_state: Make,
) -> None:
    rule = random_rule(8, small_config())
    program = compile_rule(rule)
    assert any(map(wrong, program.instructions))
    program.instructions = [
        dataclasses.replace(op, **by) if wrong(op) else op for op in program.instructions
    ]
    state, valid = extreme_state(rule, 9, 8, 8), np.eye(8, dtype=bool)
    inputs = rule.given(state[3], valid)
    found = ArrayTwin(program, 8, 8).step(state, inputs)
    assert (found != rule.step(state, inputs)).any()


def test_listing_has_a_line_for_each_instruction_word_and_routine(program: Program) -> None:
    lines = program.listing().splitlines()
    assert lines[0] == (
        f"; {len(program.instructions)} instructions, {program.planes} planes, "
        f"operands of {program.operand_bits} bits"
    )
    names = [*program.words, *program.inputs]
    found = [line.split()[2] for line in lines[1 : 1 + len(names)]]
    assert found == [f"{name}," for name in names]
    rest = lines[1 + len(names) :]
    assert [line[:-1] for line in rest if line.endswith(":")] == list(program.entries)
    numbered = [line for line in rest if not line.endswith(":")]
    assert len(numbered) == len(program.instructions)
    for number, line in enumerate(numbered):
        assert re.match(rf" *{number}  \S", line)


def test_listing_reads_like_arithmetic(small_config: Make, random_rule: Make) -> None:
    text = compile_rule(random_rule(0, small_config(inputs=("trust", "recall")))).listing()
    for line in (
        "flag = sensed  x1",
        "carry = 0 - flag  x1",
        "operand = operand of south",
        "operand = operand of north",
        "flag = 0 + ~0  x1",
        "; input trust",
    ):
        assert line in text
    assert re.search(r"\[\d+\.\.\d+\] = \[\d+\.\.\d+\] - operand  x\d+", text)
    assert re.search(r"\[\d+\.\.\d+\] = carry \? sample : \[\d+\.\.\d+\]  x\d+", text)
