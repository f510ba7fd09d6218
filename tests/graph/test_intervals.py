import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from scotopia.graph import golden, intervals
from scotopia.graph.build import Builder, Value
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import (
    PATIENCE,
    Interval,
    OutOfRange,
    check,
    compare_with,
    derive,
    prove,
)
from scotopia.graph.operations import Border, Fit
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding, required_bits
from scotopia.graph.step import StepGraph
from scotopia.sim.random_graphs import BORDERS, any_graph

UNIT = QFormat(0, 8, signed=False)
SIGNED, WIDER, SMALL = QFormat(1, 2), QFormat(2, 1), QFormat(0, 3, signed=False)
SATURATING = [Overflow.SAT, Overflow.SAT_SYM]


def hull(codes: IntArray) -> Interval:
    return Interval.hull((codes.min(), codes.max()))


def every(*held: Interval) -> list[IntArray]:
    """All combinations of numbers out of some intervals, as cells in a row, (1, N) each."""
    codes = [np.arange(interval.lowest, interval.highest + 1) for interval in held]
    return [grid.reshape(1, -1) for grid in np.meshgrid(*codes, indexing="ij")]


def computed(
    graph: StepGraph,
    state: IntArray,
    inputs: Mapping[str, IntArray] = {},
    noise: IntArray | None = None,
) -> dict[int, IntArray]:
    """What the golden model computes: codes (..., H, W) of each word."""
    found: dict[int, IntArray] = {}

    def watch(index: int, codes: IntArray) -> None:
        found.update(zip(graph.words(index), np.moveaxis(codes, -3, 0), strict=True))

    golden.step(graph, state, inputs, noise, watch)
    return found


def random_boxes(graph: StepGraph, count: int) -> list[dict[str, Interval]]:
    """All codes of the channels' formats, and some of them."""
    rng = np.random.default_rng(0)
    formats = dict(zip(graph.channels, graph.channel_formats, strict=True))
    drawn = [
        {n: Interval.hull(rng.integers(f.lowest, f.highest + 1, 2)) for n, f in formats.items()}
        for _ in range(count)
    ]
    return [{name: Interval.of(format) for name, format in formats.items()}, *drawn]


def saturating(graph: StepGraph) -> StepGraph:
    """Have all that wraps saturate."""
    operations = tuple(
        dataclasses.replace(one, overflow=Overflow.SAT)
        if isinstance(one, Fit) and one.overflow is Overflow.WRAP
        else one
        for one in graph.operations
    )
    return StepGraph(operations, graph.outputs, graph.names)


# Soundness


@pytest.mark.parametrize("seed", range(40))
def test_no_word_leaves_its_interval(seed: int, moment: Any) -> None:
    graph = any_graph(seed)
    ranges = derive(graph)
    lowest = np.array([format.lowest for format in graph.channel_formats])[:, None, None]
    highest = np.array([format.highest for format in graph.channel_formats])[:, None, None]
    for again in range(4):
        now = moment(graph, 1000 * again + seed)
        state = now.state
        if again % 2:  # ends of the formats
            state = np.where(state < (lowest + highest) / 2, lowest, highest)
        for word, found in computed(graph, state, now.inputs, now.noise).items():
            assert ranges.words[word].holds(hull(found)), graph.name(word)


def reachable(graph: StepGraph, most: int = 1 << 16) -> list[Interval] | None:
    """Hull of each channel over all states that one cell comes to from 0, its border wrapped.

    Of every input and random number in every state; None if these are more than `most`.
    """
    formats = [graph.formats[word] for word in graph.inputs.values()]
    given = every(
        *(Interval.of(format) for format in formats), *[Interval(0, 1)] * graph.random_bits
    )
    count = given[0].size if given else 1
    if count << sum(format.bits for format in graph.channel_formats) > most:
        return None
    reached = {(0,) * len(graph.channels)}
    frontier = reached
    while frontier:
        states = np.array(sorted(frontier))
        state = np.repeat(states, count, axis=0)[..., None, None]
        rows = [np.tile(codes.ravel(), len(states))[:, None, None] for codes in given]
        inputs = dict(zip(graph.inputs, rows, strict=False))
        noise = np.stack(rows[len(formats) :], 1) if graph.random_bits else None
        after = golden.step(graph, state, inputs, noise)[..., 0, 0]
        frontier = set(map(tuple, after.tolist())) - reached
        reached = reached | frontier
    return [hull(codes) for codes in np.array(sorted(reached)).T]


def test_no_state_that_a_cell_can_reach_leaves_the_invariant() -> None:
    tried = 0
    for seed in range(80):
        graph = saturating(any_graph(seed, one_border=True, most_bits=4))
        found = reachable(graph) if graph.borders in ((), ("wrap",)) else None
        if found is None:
            continue
        tried += 1
        for held, codes in zip(prove(graph).channels.values(), found, strict=True):
            assert held.holds(codes), seed
    assert tried >= 10


@pytest.mark.parametrize("overflow", SATURATING)
def test_a_closed_state_is_just_what_can_be_reached(overflow: Overflow) -> None:
    build = Builder()
    x, age = build.channels({"x": SIGNED, "age": SMALL})
    c, valid = build.inputs({"c": SIGNED, "valid": QFormat(1, 0, signed=False)})
    older = build.where(valid, 0.0, (age + 0.125).minimum(0.5))
    moved = build.where(valid, c + x * 0.5, x).fit(SIGNED, Rounding.RND, overflow)
    graph = build.graph({"x": moved, "age": older})
    assert [*prove(graph).channels.values()] == reachable(graph)


# Ends of intervals


@pytest.mark.parametrize("overflow", SATURATING)
@pytest.mark.parametrize("rounding", Rounding)
def test_each_operation_has_the_ends_of_all_that_it_computes(
    rounding: Rounding, overflow: Overflow
) -> None:
    build = Builder()
    x, y, z = state = build.channels({"x": SIGNED, "y": WIDER, "z": SMALL})
    some = [x + y, y - x, x * y, x.minimum(y), x.maximum(y), x < y, y < x, x * y - 0.3125]
    some += [build.where(z < 0.5, x, y), build.where(z < 2.0, x, y), build.where(z < 0, x, y)]
    some.append(build.linear(state, [[[3], [-0.75], [0]], [[-1], [0.5], [5]]], [-0.625, 7]))
    fits = [QFormat(2, 1), QFormat(1, 3), QFormat(3, -1), QFormat(1, 0, signed=False)]
    for value in list(some):
        for format in fits:
            some.append(value.fit(format, rounding, overflow))
    graph = build.graph({"x": x, "y": y, "z": z})
    for box in random_boxes(graph, 12):
        ranges = derive(graph, box)
        for word, codes in computed(graph, np.stack(every(*box.values()))).items():
            assert ranges.words[word] == hull(codes), graph.name(word)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("box", [Interval(-4, 3), Interval(1, 3), Interval(-3, -2)])
def test_what_is_seen_around_has_the_ends_of_all_neighbourhoods(
    box: Interval, border: Border
) -> None:
    build = Builder()
    x = build.channels({"x": SIGNED})
    weight = np.array([[0, -5, 0, 0, 7, 0, 3, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]])
    build.linear(x, weight[:, None], [-11.25, 0.5], border)
    for largest in (False, True):
        build.window(x, largest=largest, border=border)
    graph = build.graph({"x": x})
    # Three neighbours of eight codes each in twenty thousand arrays, and all neighbours alike.
    state = np.random.default_rng(0).integers(box.lowest, box.highest + 1, (20000, 1, 3, 3))
    alike = np.arange(box.lowest, box.highest + 1)[:, None, None, None]
    state = np.concatenate([state, np.broadcast_to(alike, (len(alike), 1, 3, 3))])
    ranges = derive(graph, {"x": box})
    for word, codes in computed(graph, state).items():
        assert ranges.words[word] == hull(codes), graph.name(word)


def gated(rounding: Rounding, dither: int = 0, bits: int = 7) -> StepGraph:
    """x moves a share of the way to c."""
    build = Builder()
    format = QFormat(1, bits)
    x, c, share = build.channels({"x": format, "c": format, "share": QFormat(0, 4, signed=False)})
    way = share * (c - x)
    if dither:
        way, rounding = way + build.random(dither) * 2.0**-bits, Rounding.TRN
    return build.graph({"x": x + way.fit(QFormat(2, bits), rounding), "c": c, "share": share})


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("dither", [0, 3])
def test_a_share_of_the_way_ends_between_its_ends_and_at_none_else(
    rounding: Rounding, dither: int
) -> None:
    graph = gated(rounding, dither, bits=3)
    for box in random_boxes(graph, 12):
        *state, draw = every(*box.values(), Interval(0, (1 << dither) - 1))
        noise = np.stack([draw >> bit & 1 for bit in reversed(range(dither))]) if dither else None
        after = golden.step(graph, np.stack(state), {}, noise)[0]
        assert (np.minimum(state[0], state[1]) <= after).all()
        assert (after <= np.maximum(state[0], state[1])).all()
        assert derive(graph, box).words[graph.outputs[0]] == hull(after)


@pytest.mark.parametrize(
    ("share", "way", "rounding", "noise"),
    [
        (QFormat(2, 2, signed=False), QFormat(5, 3), Rounding.RND, 0),  # more than all of the way
        (SMALL, QFormat(-1, 3), Rounding.RND, 0),  # saturates
        (SMALL, QFormat(2, 1), Rounding.RND, 0),  # coarser than its ends
        (SMALL, QFormat(2, 3), Rounding.TRN, 2.0**-1),  # noise of more than the last bit
        (SMALL, QFormat(2, 3), Rounding.TRN, 2.0**-6),  # noise that is finer than the product
        (SMALL, QFormat(2, 3), Rounding.RND, 2.0**-3),  # noise, and rounding as well
    ],
)
def test_what_is_almost_a_share_of_the_way_may_end_elsewhere(
    share: QFormat, way: QFormat, rounding: Rounding, noise: float
) -> None:
    build = Builder()
    x, c, z = build.channels({"x": QFormat(1, 3), "c": QFormat(1, 3), "z": share})
    product = z * (c - x)
    if noise:
        product = product + build.random(2) * noise
    graph = build.graph({"x": x + product.fit(way, rounding), "c": c, "z": z})
    for box in random_boxes(graph, 12):
        *state, draw = every(*box.values(), Interval(0, 3))
        planes = np.stack([draw >> 1, draw & 1]) if noise else None
        after = golden.step(graph, np.stack(state), {}, planes)[0]
        assert derive(graph, box).words[graph.outputs[0]].holds(hull(after))


@pytest.mark.parametrize(
    ("rounding", "added"),
    [(Rounding.TRN, 0), (Rounding.TRN_ZERO, 7), (Rounding.RND, 4), (Rounding.RND_CONV, 4)],
)
@pytest.mark.parametrize("bias", [-11, 11])
@pytest.mark.parametrize("box", [Interval(-2, 3), Interval(1, 3), Interval(-3, -2)])
def test_an_accumulator_holds_all_sums_of_some_summands(
    box: Interval, bias: int, rounding: Rounding, added: int
) -> None:
    build = Builder()
    state = build.channels({"x": QFormat(3, 0), "y": QFormat(3, 0), "z": QFormat(3, 0)})
    total = build.linear(state, [[[-5], [7], [3]]], [bias])
    total.fit(QFormat(8, -3), rounding)
    graph = build.graph(dict(zip("xyz", state, strict=True)))
    summands = [w * codes for w, codes in zip((-5, 7, 3), every(box, box, box), strict=True)]
    summands += [np.full_like(summands[0], constant) for constant in (bias, added)]
    subsets = itertools.product([0, 1], repeat=len(summands))
    sums = [sum(s * keep for s, keep in zip(summands, kept, strict=True)) for kept in subsets]
    ranges = derive(graph, dict.fromkeys("xyz", box))
    assert ranges.accumulator(total.words[0]) == hull(np.array(sums))
    assert ranges.accumulator_bits == required_bits(*hull(np.array(sums)).ends)


# The invariant


def towards(goal: float, share: float, bits: int = 7) -> StepGraph:
    """x moves a share of the way to a goal."""
    build = Builder()
    x = build.channels({"x": QFormat(1, bits)})
    way = build.constant(share) * (goal - x)
    return build.graph({"x": x + way.fit(QFormat(2, bits))})


def test_a_channel_reaches_its_goal_and_no_further() -> None:
    assert prove(towards(0.5, 0.875)).channels["x"] == Interval(0, 64)
    # A quarter of one code is rounded away.
    assert prove(towards(2.0**-6, 0.25)).channels["x"] == Interval(0, 1)


def counter(overflow: Overflow, format: QFormat = UNIT) -> StepGraph:
    build = Builder()
    n = build.channels({"n": format})
    more = n + 2.0**-format.frac_bits
    return build.graph({"n": build.name(more.fit(format, Rounding.TRN, overflow), ["count"])})


def test_slow_channels_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def counted(*args: Any, **options: Any) -> intervals.Ranges:
        steps.append(args)
        return derive(*args, **options)

    monkeypatch.setattr(intervals, "derive", counted)
    # 2**-8 of the way in each step, in 16 bits: thousands of steps, but no further than the goal.
    assert prove(towards(20000 * 2.0**-15, 2.0**-8, 15)).channels["x"] == Interval(0, 20000)
    # One code more in each step, until it saturates.
    assert prove(counter(Overflow.SAT, QFormat(1, 15))).channels["n"] == Interval(0, 32767)
    assert len(steps) < 5 * PATIENCE


def test_a_state_that_saturates_is_closed() -> None:
    ranges = prove(counter(Overflow.SAT))
    assert ranges.channels["n"] == Interval(0, 255)
    assert ranges.clips == ("count",)


def test_the_proof_starts_from_the_initial_state() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(1, 7)})
    graph = build.graph({"x": x})
    assert prove(graph).channels["x"] == Interval(0, 0)
    assert prove(graph, {"x": Interval(3, 5)}).channels["x"] == Interval(3, 5)


def shrunk(held: Interval) -> list[Interval]:
    return [Interval(held.lowest + 1, held.highest), Interval(held.lowest, held.highest - 1)]


@pytest.mark.parametrize("seed", range(20))
def test_a_wider_invariant_is_one_and_one_without_an_end_is_none(seed: int) -> None:
    graph = saturating(any_graph(seed, most_bits=6))
    formats = zip(graph.channels, graph.channel_formats, strict=True)
    check(graph, {name: Interval.of(format) for name, format in formats})
    proof = prove(graph).channels
    for name, held in proof.items():
        for less in shrunk(held):
            with pytest.raises(InputError) as caught:
                check(graph, proof | {name: less})
            sentence = (
                f"range proof is wrong: range of channel {name} is {less}, which does not hold"
            )
            assert str(caught.value).startswith(sentence)


def test_a_wrong_invariant_is_refused() -> None:
    graph = counter(Overflow.SAT)
    check(graph, {"n": Interval(0, 255)})
    with pytest.raises(InputError, match=r"channel n is 0\.\.9, which does not hold 1\.\.10"):
        check(graph, {"n": Interval(0, 9)})
    with pytest.raises(InputError, match=r"which does not hold 0\.\.0"):
        check(graph, {"n": Interval(1, 255)})
    with pytest.raises(InputError, match=r"channel n can reach 256, beyond UQ0\.8's 255"):
        check(graph, {"n": Interval(0, 256)})
    for other in ({"m": Interval(0, 255)}, {}, {"n": Interval(0, 255), "m": Interval(0, 0)}):
        with pytest.raises(InputError, match=r"of other channels than the rule's \([mn]\)"):
            check(graph, other)


# Refusals


def test_a_state_that_wraps_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        prove(counter(Overflow.WRAP))
    sentence = "count can reach 256, beyond UQ0.8's 255: choose overflow SAT or a wider format"
    assert str(caught.value) == sentence
    with pytest.raises(InputError, match="count can reach 256"):
        check(counter(Overflow.WRAP), {"n": Interval(0, 255)})


def test_a_state_that_nothing_holds_is_refused() -> None:
    build = Builder()
    n = build.channels({"n": UNIT})
    graph = build.graph({"n": n + 2.0**-8})
    with pytest.raises(InputError, match=r"channel n can reach 256, beyond UQ0\.8's 255: let the"):
        prove(graph)


@pytest.mark.parametrize("seed", range(14))
def test_what_just_fits_never_wraps_and_one_bit_less_is_refused(seed: int, moment: Any) -> None:
    def made(overflow: Overflow, less: int = 0) -> StepGraph:
        rng, rounding = np.random.default_rng(seed), list(Rounding)[seed % len(Rounding)]
        build = Builder()
        state = build.channels({"x": QFormat(1, 5), "y": QFormat(1, 3)})
        border = BORDERS[seed % len(BORDERS)]
        total = build.linear(
            state, rng.integers(-9, 10, (2, 2, 9)), rng.integers(-99, 100, 2), border
        )
        probe = total.fit(QFormat(20, 2), rounding)
        wide = derive(build.graph(dict(zip("xy", state, strict=True))))
        formats = [QFormat(wide.words[word].bits - 2 - less, 2) for word in probe.words]
        after = total.fit(formats, rounding, overflow).fit([QFormat(1, 5), QFormat(1, 3)])
        return build.graph(dict(zip("xy", after, strict=True)))

    graph = made(Overflow.WRAP)
    formats = {name: Interval.of(graph.formats[word]) for name, word in graph.channels.items()}
    check(graph, formats)
    for again in range(3):
        state = moment(graph, again).state
        expected = golden.step(made(Overflow.SAT), state, {})
        np.testing.assert_array_equal(golden.step(graph, state, {}), expected)
    with pytest.raises(
        InputError, match=r"^fit 3\.\d can reach .*: choose overflow SAT or a wider"
    ):
        check(made(Overflow.WRAP, less=1), formats)


@pytest.mark.parametrize(
    ("format", "weight", "bias", "reach"),
    [
        (QFormat(8, 0), 1, 2**31 - 128, None),
        (QFormat(8, 0), 1, 2**31 - 127, 2**31),
        (QFormat(8, 0), 1, -(2**31) + 127, -(2**31) - 1),
        # In the end it has 32 bits, but not without its bias.
        (QFormat(8, 0, signed=False), 2**24 + 1, -(2**31), 255 * (2**24 + 1)),
    ],
)
def test_an_accumulator_of_more_than_32_bits_is_refused(
    format: QFormat, weight: float, bias: float, reach: int | None
) -> None:
    build = Builder()
    x = build.channels({"x": format})
    total = build.linear(x, [[[weight]]], [bias])
    graph = build.graph({"x": build.name(total.fit(format), ["neuron 0"])})
    if reach is None:
        assert prove(graph).accumulator_bits == 32
        return
    most = 2**31 - 1 if reach > 0 else -(2**31)
    with pytest.raises(InputError) as caught:
        check(graph, {"x": Interval.of(format)})
    assert str(caught.value) == (
        f"accumulator of neuron 0 can reach {reach}, beyond 32 bits' {most}: "
        "quantize with fewer bits"
    )


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda fine, coarse: fine * fine, f"multiply 2.0 can reach {2**124}"),
        # What is computed has few bits here, but not what it is computed of.
        (lambda fine, coarse: fine < coarse, "coarse with 62 fraction bits can reach"),
        (lambda fine, coarse: fine.minimum(coarse), "coarse with 62 fraction bits can reach"),
        (lambda fine, coarse: coarse.fit(QFormat(-30, 62)), "coarse with 62 fraction bits can"),
    ],
)
def test_what_the_golden_model_cannot_hold_is_refused(
    made: Callable[..., Value], sentence: str
) -> None:
    build = Builder()
    x, coarse = build.channels({"x": QFormat(1, 31), "coarse": QFormat(32, 0)})
    made(x * x, coarse)
    with pytest.raises(InputError) as caught:
        derive(build.graph({"x": x, "coarse": coarse}))
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(f", beyond 64 bits' {2**63 - 1}: quantize with fewer bits")


def test_an_accumulator_is_called_by_what_it_computes() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(1, 31)})
    build.name((x * x * x).fit(QFormat(1, 7)), ["cube"])
    with pytest.raises(InputError, match=r"^accumulator of cube can reach \d+, beyond 64 bits' "):
        derive(build.graph({"x": x}))


# Reports


def neuron(bias: float, weight: float = 0.0) -> StepGraph:
    """A channel x and what a neuron sees of it, which is its next code."""
    build = Builder()
    x = build.channels({"x": SIGNED})
    total = build.linear(x, [[[weight]]], [bias])
    seen = build.name(total.fit(SMALL), ["neuron"])
    return build.graph({"x": build.name(seen.fit(SIGNED), ["moved"])})


def test_ranges_tell_what_saturates() -> None:
    assert prove(neuron(1.0)).clips == ("neuron", "moved")
    assert prove(neuron(0.75)).clips == ()
    assert prove(neuron(-1.0)).clips == ()  # an unsigned word rests at 0, as after a ReLU
    assert derive(neuron(0, 0.5)).clips == ()
    build = Builder()
    x = build.channels({"x": SIGNED})
    build.name((x - 0.25).fit(SIGNED), ["less"])
    assert derive(build.graph({"x": x})).clips == ("less",)


def test_ranges_tell_what_could_be_narrower() -> None:
    assert prove(neuron(0.375)).narrower == {"neuron": 2}
    assert prove(neuron(0.25)).narrower == {"x": 2, "neuron": 2}
    assert prove(neuron(0.0)).narrower == {"x": 1, "neuron": 1}
    assert prove(neuron(0.5)).narrower == {}


def test_ranges_tell_the_widest_accumulator() -> None:
    ranges = derive(neuron(100.0, 3.0))
    # 3 * -4..3 and 400 codes, and half of what is dropped.
    assert (ranges.widest_accumulator, ranges.accumulator_bits) == ("neuron", 10)


# The golden model, watched


@pytest.mark.parametrize("name", ["x", "add 2.0", "accumulator of moved", "moved"])
@pytest.mark.parametrize(
    ("held", "cell", "code"),
    [(Interval(-4, 2), "cell (x 1, y 1)", 3), (Interval(-3, 3), "cell (x 0, y 0)", -4)],
)
def test_a_watched_model_names_the_cell_and_the_word(
    held: Interval, cell: str, code: int, name: str
) -> None:
    build = Builder()
    x = build.channels({"x": SIGNED})
    more = x + 0.0
    build.window(more)
    graph = build.graph({"x": build.name((more - 0.0).fit(SIGNED), ["moved"])})
    ranges = derive(graph)
    state = np.array([[[-4, 2, 2], [2, 3, 2]]])
    golden.step(graph, state, {}, watch=compare_with(ranges))
    ranges.words[[graph.name(word) for word in range(graph.count)].index(name)] = held
    with pytest.raises(OutOfRange) as caught:
        golden.step(graph, state, {}, watch=compare_with(ranges))
    assert str(caught.value) == f"{cell}: {name} is {code}, outside {held}"


def test_a_fit_that_shifts_beyond_64_bits_is_refused() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(20, 0)})
    graph = build.graph({"x": x.fit(QFormat(-20, 52)).fit(QFormat(20, 0))})
    with pytest.raises(InputError, match=r"can reach .* 64 bits"):
        derive(graph)
