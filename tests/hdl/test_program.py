import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scotopia.hdl.program import (
    HERE,
    ONE,
    Base,
    Condition,
    Gate,
    Operation,
    Program,
    Term,
    signed_digits,
)
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.model.errors import InputError
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.qformat import Rounding

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


def assert_program_is_the_rule(rule: IntegerRule, extreme_state: Make, seed: int) -> None:
    """Two steps, from a random state with many codes at the ends of their formats."""
    program = Program.compile(rule)
    rng = np.random.default_rng(seed)
    state = extreme_state(rule, seed, 3, 4)
    for _ in range(2):
        sample = extreme_state(rule, int(rng.integers(99)), 3, 4)[rule.config.channels]
        valid = rng.random((3, 4)) < 0.5
        expected = rule.step(state, sample, valid)
        np.testing.assert_array_equal(program.run(state, sample, valid), expected)
        state = expected


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounding", [Rounding.TRN, Rounding.RND])
@pytest.mark.parametrize("precision", [(8, 8, 8, 8), (2, 4, 3, 5), (9, 6, 10, 4)])
def test_program_is_the_rule(
    kind: str,
    border: str,
    rounding: Rounding,
    precision: tuple[int, ...],
    small_config: Make,
    random_rule: Make,
    extreme_state: Make,
) -> None:
    rule = random_rule(1, small_config(kind=kind, border=border), Precision(*precision), rounding)
    assert_program_is_the_rule(rule, extreme_state, 2)


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


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    border=st.sampled_from(BORDERS),
    rounding=st.sampled_from([Rounding.TRN, Rounding.RND]),
    inputs=st.sets(st.sampled_from(INPUTS)).map(
        lambda names: names | {"trust"} if "recall" in names else names
    ),
    channels=st.integers(2, 3),
    hidden=st.integers(1, 3),
    coarse=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_program_is_the_rule_for_any_formats(
    mixed_rule: Make,
    extreme_state: Make,
    seed: int,
    kind: str,
    border: str,
    rounding: Rounding,
    inputs: set[str],
    channels: int,
    hidden: int,
    coarse: bool,
) -> None:
    config = RuleConfig(
        kind=kind,  # type: ignore[arg-type]
        channels=channels,
        hidden=hidden,
        inputs=tuple(name for name in INPUTS if name in inputs),
        border=border,  # type: ignore[arg-type]
        trace_bits=4,
    )
    assert_program_is_the_rule(mixed_rule(seed, config, rounding, coarse), extreme_state, seed)


def test_rule_of_zeros_has_a_program(small_config: Make, random_rule: Make) -> None:
    rule = random_rule(0, small_config())
    nothing = dataclasses.replace(
        rule.perceive, weight=0 * rule.perceive.weight, bias=0 * rule.perceive.bias
    )
    rule = dataclasses.replace(rule, perceive=nothing)
    state = rule.initial_state(2, 2)
    valid = np.ones((2, 2), bool)
    np.testing.assert_array_equal(
        Program.compile(rule).run(state, state[0], valid), rule.step(state, state[0], valid)
    )


@given(st.integers(-(2**31), 2**31))
def test_signed_digits_sum_to_the_number(number: int) -> None:
    digits = list(signed_digits(number))
    assert sum(digit * 2**position for position, digit in digits) == number
    assert {digit for _, digit in digits} <= {-1, 1}


@given(st.integers(-(2**31), 2**31))
def test_no_two_signed_digits_are_adjacent(number: int) -> None:
    positions = [position for position, _ in signed_digits(number)]
    assert all(above - below >= 2 for below, above in itertools.pairwise(positions))


# What the cell relies on, checked on the operations themselves.


@pytest.fixture(params=itertools.product(KINDS, ["8 bits", "mixed", "mixed and coarse"]))
def program(
    request: pytest.FixtureRequest, small_config: Make, random_rule: Make, mixed_rule: Make
) -> Program:
    kind, formats = request.param
    config = small_config(kind=kind)
    if formats == "8 bits":
        return Program.compile(random_rule(7, config))
    return Program.compile(mixed_rule(7, config, coarse="coarse" in formats))


def test_accumulator_holds_every_partial_sum(program: Program) -> None:
    # Bounds of the accumulator for any words within their formats.
    lowest = highest = reached = 0
    for operation in program.operations:
        if operation.base is Base.CLEAR:
            lowest = highest = 0
        elif operation.base is Base.DOUBLE:
            lowest, highest = 2 * lowest, 2 * highest
        if operation.term is not Term.NONE:
            low = high = 1
            if operation.source != ONE:
                format = program.words[operation.address]
                low, high = min(0, format.lowest), format.highest
            if operation.term is Term.SUBTRACT:
                low, high = -high, -low
            if operation.condition is not Condition.ALWAYS:
                low, high = min(0, low), max(0, high)
            lowest, highest = lowest + low, highest + high
        reached = max(reached, -lowest, highest)
    assert reached < 2 ** (program.accumulator_bits - 1)
    assert 4 * reached > 2 ** (program.accumulator_bits - 1)  # no wider than it needs to be


def test_no_word_is_read_in_the_clock_after_it_is_stored(program: Program) -> None:
    # The last operation of a step is followed by the first of the next.
    following = [*program.operations[1:], program.operations[0]]
    for operation, later in zip(program.operations, following, strict=True):
        assert not (operation.store and later.reads and later.address == operation.address)


def test_stored_words_fit_their_formats(program: Program) -> None:
    stores = [operation for operation in program.operations if operation.store]
    assert stores
    for operation in stores:
        limit, format = program.limits[operation.limit], program.words[operation.address]
        assert format.lowest <= limit.lowest
        assert limit.highest <= format.highest
        assert operation.term is Term.NONE
        assert operation.base is Base.KEEP


def test_operands_are_signed_as_their_words_are(program: Program) -> None:
    for operation in program.operations:
        if operation.reads and operation.gate is not Gate.LOAD:
            assert operation.signed == program.words[operation.address].signed


def test_neighbours_show_nothing_that_is_half_done(program: Program) -> None:
    # Within a step a cell reads its neighbours' old channels: none is stored before the last read.
    channels = program.rule.config.channels
    stored = [i for i, op in enumerate(program.operations) if op.store and op.address < channels]
    from_neighbours = [
        i for i, op in enumerate(program.operations) if op.reads and op.source != HERE
    ]
    assert len(stored) == channels
    assert max(from_neighbours) < min(stored)


def test_cycles_are_operations(program: Program) -> None:
    assert program.cycles_per_step == len(program.operations)
    assert program.word_bits == max(format.bits for format in program.words)


@pytest.mark.parametrize(
    ("wrong", "by"),
    [
        (lambda op: op.source == 0, {"source": 8}),
        (lambda op: op.base is Base.DOUBLE, {"base": Base.KEEP}),
        (lambda op: op.condition is Condition.GATE_SET, {"condition": Condition.GATE_CLEAR}),
        (lambda op: op.gate is Gate.SHIFT, {"gate": Gate.HOLD}),
        (lambda op: op.term is Term.SUBTRACT, {"term": Term.ADD}),
    ],
)
def test_wrong_operations_are_interpreted_as_they_are(
    wrong: Callable[[Operation], bool],
    by: dict[str, Any],
    small_config: Make,
    random_rule: Make,
    extreme_state: Make,
) -> None:
    rule = random_rule(8, small_config())
    program = Program.compile(rule)
    program.operations = [
        dataclasses.replace(op, **by) if wrong(op) else op for op in program.operations
    ]
    state, valid = extreme_state(rule, 9, 8, 8), np.eye(8, dtype=bool)
    assert (program.run(state, state[0], valid) != rule.step(state, state[0], valid)).any()


def test_listing_has_a_line_for_each_operation_and_word(program: Program) -> None:
    lines = program.listing().splitlines()
    words, operations = len(program.words), len(program.operations)
    assert lines[0] == f"; {operations} operations, tap {program.tap}, {words} words"
    for i, (name, format) in enumerate(zip(program.names, program.words, strict=True)):
        assert lines[1 + i].split() == [";", "word", str(i), name, str(format)]
    assert len(lines) == 1 + words + operations
    for i, line in enumerate(lines[1 + words :]):
        assert re.match(rf" *{i}  \S", line)


def test_listing_reads_like_arithmetic(small_config: Make, random_rule: Make) -> None:
    program = Program.compile(random_rule(0, small_config(inputs=("trust", "recall"))))
    text = [line[7:] for line in program.listing().splitlines() if not line.startswith(";")]
    assert text[:3] == [
        "acc = 0 + sample[here]",
        "acc = acc + arrival[here] if valid",
        "acc = acc - sample[here] if valid",
    ]
    assert text[3 : text.index("acc = acc - 1")][-4:] == [
        "acc = 0 + 1 if valid",
        "acc = 2 acc",
        "acc = 2 acc",
        "acc = 2 acc + trace[here]",
    ]
    assert f"trace = clip(acc >> {program.tap}) to 0..7" in text
    assert "gate = trust[here]" in text
    assert any(line.endswith("if gate_set; gate <<= 1") for line in text)
    assert any(line.endswith("[NW]") for line in text)


@pytest.mark.parametrize("rounding", sorted(set(Rounding) - {Rounding.TRN, Rounding.RND}))
def test_rounding_that_is_no_addition_is_refused(
    rounding: Rounding, small_config: Make, random_rule: Make
) -> None:
    with pytest.raises(InputError) as caught:
        Program.compile(random_rule(0, small_config(), None, rounding))
    assert str(caught.value) == (
        f"rounding {rounding} is not supported by the cell: quantize with --rounding RND or TRN"
    )


def test_an_operation_that_does_nothing_reads_nothing() -> None:
    assert not Operation().reads
    assert not Operation(source=HERE).reads
    assert Operation(source=HERE, term=Term.ADD).reads
    assert Operation(source=HERE, gate=Gate.LOAD).reads
    assert not Operation(source=ONE, term=Term.ADD).reads
