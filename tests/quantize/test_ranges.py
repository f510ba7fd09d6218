import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from scotopia.graph.errors import InputError
from scotopia.graph.intervals import Interval, OutOfRange
from scotopia.graph.qformat import Overflow, QFormat, Rounding, required_bits, shift_right
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.quantize import ranges
from scotopia.quantize.layered_rule import IntArray, IntegerLayer, LayeredRule, update_formats
from scotopia.quantize.ranges import (
    PATIENCE,
    PRODUCT_BITS,
    RangeProof,
    Result,
    check,
    derive,
    monitor,
    prove,
    with_proof,
)

Make = Callable[..., Any]  # a fixture of conftest.py

KINDS = ["gated", "residual"]
BORDERS = ["zero", "replicate", "wrap"]
SATURATING = [Overflow.SAT, Overflow.SAT_SYM]
SIGNED, UNSIGNED = QFormat(1, 2), QFormat(0, 3, signed=False)
SHIPPED = Path(__file__).parents[2] / "quantize" / "rules" / "retina-int.safetensors"


def layer_of(
    weight: Any, bias: Any, shift: Any, inputs: Sequence[QFormat], outputs: Sequence[QFormat]
) -> IntegerLayer:
    """A layer of O outputs from (O, I, K) weights, by the shift to the right of its sums."""
    out_frac = np.array([format.frac_bits for format in outputs])
    return IntegerLayer(
        weight=np.array(weight),
        weight_frac=shift + out_frac - max(format.frac_bits for format in inputs),
        bias=np.array(bias),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )


def tiny_rule(
    perceive: tuple[Sequence[int], int, int] = ([0] * 9, 0, 0),
    candidate: tuple[int, int, int] = (0, 0, 0),
    gate: tuple[int, int, int] = (0, 7, 0),
    state: QFormat = SIGNED,
    hidden: QFormat = UNSIGNED,
    gate_format: QFormat = UNSIGNED,
    border: str = "replicate",
    **fields: Any,
) -> LayeredRule:
    """A rule of one channel, one hidden neuron, no inputs: of each output weight, bias, shift."""
    config = RuleConfig(channels=1, hidden=1, inputs=(), trace_bits=2, border=border)  # type: ignore[arg-type]
    both = [np.array(numbers) for numbers in zip(candidate, gate, strict=True)]
    return LayeredRule(
        config=config,
        state_formats=(state,),
        sample_format=state,
        input_formats=(),
        gate_format=gate_format,
        perceive=layer_of([[perceive[0]]], [perceive[1]], perceive[2], [state], [hidden]),
        update=layer_of(
            both[0][:, None, None],
            both[1],
            both[2],
            [hidden],
            update_formats(config, (state,), gate_format),
        ),
        **fields,
    )


def formats_box(rule: LayeredRule) -> dict[str, Interval]:
    formats = zip(rule.config.channel_names, rule.channel_formats, strict=True)
    return {name: Interval.of(format) for name, format in formats}


def every(*held: Interval) -> list[IntArray]:
    """All combinations of numbers out of some intervals, flat."""
    codes = [np.arange(interval.lowest, interval.highest + 1) for interval in held]
    return [grid.ravel() for grid in np.meshgrid(*codes, indexing="ij")]


def hull(numbers: IntArray) -> Interval:
    return Interval(int(numbers.min()), int(numbers.max()))


def sums_of_some(summands: Sequence[IntArray]) -> Interval:
    """Ends of the sums of all subsets, the empty one included."""
    subsets = itertools.product([0, 1], repeat=len(summands))
    sums = [sum(s * keep for s, keep in zip(summands, kept, strict=True)) for kept in subsets]
    return hull(np.array(sums))


def rounding_term(rounding: Rounding, shift: int) -> int:
    if rounding is Rounding.TRN:
        return 0
    return (1 << shift) - 1 if rounding is Rounding.TRN_ZERO else (1 << shift) // 2 * (shift > 0)


def random_box(rule: LayeredRule, seed: int) -> dict[str, Interval]:
    rng = np.random.default_rng(seed)
    return {
        name: Interval.hull(rng.integers(held.lowest, held.highest + 1, 2))
        for name, held in formats_box(rule).items()
    }


def random_noise(rule: LayeredRule, rng: np.random.Generator, *shape: int) -> IntArray:
    noise = rng.integers(0, 2, (*shape[:-2], rule.noise_planes, *shape[-2:]))
    return np.where(rng.random((*shape[:-2], 1, 1, 1)) < 0.5, noise, rng.integers(0, 2))


# Soundness


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    border=st.sampled_from(BORDERS),
    rounding=st.sampled_from(Rounding),
    overflow=st.sampled_from(SATURATING),
    fire_rate=st.sampled_from([1.0, 0.5]),
    dither=st.integers(0, 8),
    coarse=st.booleans(),
)
def test_nothing_that_a_random_rule_computes_leaves_its_range(
    seed: int,
    kind: str,
    border: str,
    rounding: Rounding,
    overflow: Overflow,
    fire_rate: float,
    dither: int,
    coarse: bool,
    small_config: Make,
    mixed_rule: Make,
    extreme_state: Make,
) -> None:
    config = small_config(kind=kind, border=border, fire_rate=fire_rate)
    rule = mixed_rule(seed, config, rounding, coarse)
    dither = 0 if kind == "residual" else min(dither, rule.gate_format.frac_bits)
    rule = dataclasses.replace(rule, overflow=overflow, dither=dither)
    rng = np.random.default_rng(seed)
    shape = 8, 3, 4
    proof = prove(rule)
    check(rule, proof)
    # What one step can reach from the initial state, and from any state of the formats.
    for start, held in (
        (np.zeros((8, len(config.channel_names), 3, 4), np.int64), proof),
        (extreme_state(rule, seed, *shape), derive(rule, formats_box(rule))),
    ):
        watched, state = monitor(rule, held), start
        for i in range(6):
            sample = extreme_state(rule, seed + i, *shape)[:, config.channels]
            valid = rng.random(shape) < rng.random()
            noise = random_noise(rule, rng, *shape)
            after = watched.step(state, watched.given(sample, valid), noise)
            np.testing.assert_array_equal(after, rule.step(state, rule.given(sample, valid), noise))
            state = after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overflow", SATURATING)
@pytest.mark.parametrize("seed", range(4))
def test_no_state_that_a_cell_can_reach_leaves_the_invariant(
    seed: int, overflow: Overflow, kind: str, small_config: Make, mixed_rule: Make
) -> None:
    # Alone on its array, a cell with the border wrapped is all its neighbours.
    inputs = ("sample", "flicker")
    config = small_config(kind=kind, border="wrap", channels=2, trace_bits=1, inputs=inputs)
    rule = dataclasses.replace(mixed_rule(seed, config), overflow=overflow)
    narrow = QFormat(1, 2)
    rule = dataclasses.replace(
        rule,
        state_formats=(narrow,) * 2,
        sample_format=narrow,
        input_formats=(narrow, QFormat(1, 2)),
        perceive=dataclasses.replace(rule.perceive, inputs=(narrow,) * 4),
        update=dataclasses.replace(
            rule.update, outputs=update_formats(config, (narrow,) * 2, rule.gate_format)
        ),
    )
    proof = prove(rule)
    reached: set[tuple[int, ...]] = {(0,) * 4}
    frontier = reached
    while frontier:
        states = np.array(sorted(frontier))
        samples = np.arange(narrow.lowest, narrow.highest + 1)
        state = np.repeat(states, len(samples) + 1, axis=0)[..., None, None]
        sample = np.tile([*samples, 0], len(states))[:, None, None]
        valid = np.tile([True] * len(samples) + [False], len(states))[:, None, None]
        after = rule.step(state, rule.given(sample, valid))[..., 0, 0]
        frontier = set(map(tuple, after.tolist())) - reached
        reached = reached | frontier
    for codes, held in zip(np.array(sorted(reached)).T, proof.channels.values(), strict=True):
        assert held.holds(hull(codes))


# Tightness


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("box", [Interval(-4, 3), Interval(1, 3), Interval(-3, -2)])
def test_ends_of_a_neuron_are_those_of_all_its_neighbourhoods(
    box: Interval, rounding: Rounding, border: str
) -> None:
    weights = [0, -5, 0, 0, 7, 0, 3, 0, 0]
    rule = tiny_rule((weights, -11, 2), rounding=rounding, border=border)
    found = derive(rule, formats_box(rule) | {"x0": box}).results["hidden neuron h0"]
    around = box | Interval(0, 0) if border == "zero" else box
    codes = every(around, box, around)
    if border == "zero":  # a neighbour is inside the box, or the border's 0
        codes = [c[_allowed(codes, box)] for c in codes]
    taps = np.zeros((1, 9, len(codes[0])), np.int64)
    taps[0, [1, 4, 6]] = codes
    assert found.total == hull(rule.perceive.totals(taps))
    assert found.rounded == hull(shift_right(rule.perceive.totals(taps), 2, rounding))
    assert found.fitted == hull(rule.perceive(taps, rounding))


def _allowed(codes: list[IntArray], box: Interval) -> IntArray:
    inside = [(c == 0) | ((box.lowest <= c) & (c <= box.highest)) for c in (codes[0], codes[2])]
    return np.flatnonzero(inside[0] & inside[1])


@pytest.mark.parametrize(
    ("rounding", "added"),
    [(Rounding.TRN, 0), (Rounding.TRN_ZERO, 7), (Rounding.RND, 4), (Rounding.RND_CONV, 4)],
)
@pytest.mark.parametrize("box", [Interval(-2, 3), Interval(1, 3), Interval(-3, -2)])
def test_partial_sums_are_all_sums_of_some_summands(
    box: Interval, rounding: Rounding, added: int
) -> None:
    weights = np.array([0, -5, 0, 0, 7, 0, 3, 0, 0])
    rule = tiny_rule((weights, -11, 3), rounding=rounding)
    found = derive(rule, formats_box(rule) | {"x0": box}).results["hidden neuron h0"]
    codes = every(box, box, box)
    summands = [weight * code for weight, code in zip((-5, 7, 3), codes, strict=True)]
    summands += [np.full_like(summands[0], constant) for constant in (-11, added)]
    sums = sums_of_some(summands)
    assert found.partial == sums
    assert found.accumulator_bits == required_bits(*sums.ends)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("coarse", [False, True])
def test_worst_inputs_reach_the_ends_of_every_accumulator(
    border: str, coarse: bool, small_config: Make, mixed_rule: Make
) -> None:
    for seed in range(5):
        rule = mixed_rule(seed, small_config(border=border), coarse=coarse)
        box = random_box(rule, seed)
        results = derive(rule, box).results
        seen = [box[f"x{i}"] for i in range(3)]
        seen += [results[f"input {name}"].fitted for name in INPUTS]
        hidden = [results[f"hidden neuron h{i}"] for i in range(3)]
        updates = [results[f"{kind} x{i}"] for kind in ("candidate", "gate") for i in range(3)]
        for layer, shown, found in (
            (rule.perceive, seen, hidden),
            (rule.update, [h.fitted for h in hidden], updates),
        ):
            count = layer.weight.shape[2]
            taps = np.array([held.ends for held in shown])[:, None].repeat(count, 1)
            if border == "zero" and count == 9:
                here = np.arange(9) == 4
                taps[..., 0] = np.where(here, taps[..., 0], np.minimum(taps[..., 0], 0))
                taps[..., 1] = np.where(here, taps[..., 1], np.maximum(taps[..., 1], 0))
            for output, result in enumerate(found):
                rises = (layer.weight[output] > 0).astype(int)
                worst = np.stack(
                    [np.take_along_axis(taps, end[..., None], 2) for end in (1 - rises, rises)], -1
                )[:, :, 0]
                totals = layer.totals(worst)[output]
                assert result.total == Interval(*totals.tolist())


def test_update_has_the_ends_of_all_states_candidates_and_gates() -> None:
    rng = np.random.default_rng(0)
    for rounding, dither in [*((r, 0) for r in Rounding), (Rounding.RND, 1), (Rounding.RND, 3)]:
        for _ in range(20):
            rule = tiny_rule(
                ([1, 0, 0, 0, 1, 0, 0, 0, 0], 3, 0),
                tuple(rng.integers([-4, -6, 0], [5, 7, 2])),
                tuple(rng.integers([-4, -2, 0], [5, 9, 2])),
                rounding=rounding,
                dither=dither,
            )
            box = random_box(rule, int(rng.integers(1000)))
            results = derive(rule, box).results
            candidate, gate = results["candidate x0"].fitted, results["gate x0"].fitted
            below = Interval(0, (1 << dither) - 1)
            x, c, z, bits = every(box["x0"], candidate, gate, below)
            noise = None
            if dither:
                noise = ((bits >> np.arange(dither)[::-1, None]) & 1)[:, :, None]
            update = np.stack([c, z])[:, :, None]
            after = rule.apply_update(x[None, :, None], update, noise)
            assert results["channel x0"].rounded == hull(after)
            assert results["channel x0"].fitted == hull(after)
            total = z * (c - x) + (bits << (3 - dither))
            assert results["channel x0"].total == hull(total)
            half = 0 if dither else rounding_term(rounding, 3)
            summands = [z * c, -z * x, bits << (3 - dither), np.full_like(x, half)]
            assert results["channel x0"].partial == sums_of_some(summands)


@pytest.mark.parametrize("overflow", SATURATING)
@pytest.mark.parametrize("rounding", [Rounding.TRN, Rounding.RND_CONV])
@pytest.mark.parametrize("seed", range(4))
def test_inputs_have_the_ends_of_all_states_and_samples(
    seed: int, rounding: Rounding, overflow: Overflow, small_config: Make, mixed_rule: Make
) -> None:
    rule = mixed_rule(seed, small_config(channels=2, trace_bits=2), rounding)
    formats = (QFormat(1, 2), QFormat(1, 3))
    by_name = dict(zip(INPUTS, rule.input_formats, strict=True)) | {"sample": formats[0]}
    inputs = tuple(by_name.values())
    rule = dataclasses.replace(
        rule,
        overflow=overflow,
        state_formats=formats,
        sample_format=formats[0],
        input_formats=inputs,
        perceive=dataclasses.replace(rule.perceive, inputs=formats + inputs),
        update=dataclasses.replace(
            rule.update, outputs=update_formats(rule.config, formats, rule.gate_format)
        ),
    )
    for box in (formats_box(rule), *(random_box(rule, i) for i in range(5))):
        results = derive(rule, box).results
        arriving = formats_box(rule)["sample"]
        x0, x1, old, age, sample, arrives = every(*box.values(), arriving, Interval(0, 1))
        valid = arrives == 1
        last = np.where(valid, sample, old)
        trace = np.where(valid, rule.trace_format.highest, np.maximum(age - 1, 0))
        flicker = np.where(age > 0, last - old, 0)
        fresh = valid & (age < rule.trace_format.highest)
        x = np.stack([x0, x1])[:, :, None]
        register = (last, trace, valid, fresh, flicker)
        shown = rule.inputs(x, *(part[:, None] for part in register))
        for name, codes in zip(INPUTS, shown, strict=True):
            found = results[f"input {name}"]
            # Without a trace nothing flickers, and what is recalled is the older the less it is
            # trusted: the intervals know neither.
            if name in ("flicker", "recall") and box != formats_box(rule):
                assert found.fitted.holds(hull(codes)), name
            else:
                assert found.fitted == hull(codes), name
            assert found.partial.holds(found.total), name
        steep = 64 * trace - (63 << rule.trace_format.frac_bits), 64 * trace
        assert results["input trust"].partial.holds(hull(np.array(steep)))
        trust, any_last, any_x0 = every(results["input trust"].fitted, arriving, box["x0"])
        recency, trust_frac = rule.trust(x1, trace)
        recall_frac = formats[0].frac_bits + rule.trust_format.frac_bits
        for name, summands, frac in (
            ("flicker", [sample, -old], formats[0].frac_bits),
            ("innovation", [sample, -x0], formats[0].frac_bits),
            ("trust", [recency], trust_frac),
            ("recall", [trust * any_last, -trust * any_x0], recall_frac),
        ):
            left = max(by_name[name].frac_bits - frac, 0)
            found = results[f"input {name}"]
            assert found.total == hull(sum(summands) << left), name
            if name != "trust":  # whose summands are sums themselves
                half = rounding_term(rounding, max(frac - by_name[name].frac_bits, 0))
                summands = [*(s << left for s in summands), np.full_like(summands[0], half)]
                assert found.partial == sums_of_some(summands), name


def test_channel_reaches_its_candidate_and_no_further() -> None:
    proof = prove(tiny_rule(candidate=(0, 2, 0)))
    assert proof.channels["x0"] == Interval(0, 2)
    assert proof.channels["sample"] == Interval(-4, 3)
    assert proof.channels["trace"] == Interval(0, 3)
    # A gate of 2/8 rounds away what is left once the candidate is one code away.
    stuck = tiny_rule(candidate=(0, 2, 0), gate=(0, 2, 0))
    assert prove(stuck).channels["x0"] == Interval(0, 1)


def test_slow_channels_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(ranges, "derive", lambda rule, box: steps.append(box) or derive(rule, box))
    # 2**-8 of the way in each step, in 16 bits: thousands of steps, but no further than c.
    slow = tiny_rule(
        candidate=(0, 20000, 0),
        gate=(0, 1, 0),
        gate_format=QFormat(0, 8, signed=False),
        state=QFormat(1, 15),
    )
    proof = prove(slow)
    check(slow, proof)
    assert proof.channels["x0"] == Interval(0, 20000)
    # One code more in each step, until it saturates.
    config = RuleConfig("residual", channels=1, hidden=1, inputs=())
    state, hidden = QFormat(1, 15), QFormat(0, 3, signed=False)
    counting = LayeredRule(
        config=config,
        state_formats=(state,),
        sample_format=state,
        input_formats=(),
        gate_format=QFormat(0, 8, signed=False),
        perceive=layer_of(np.zeros((1, 1, 9), np.int64), [0], 0, [state], [hidden]),
        update=layer_of([[[0]]], [1], 0, [hidden], update_formats(config, (state,), hidden)),
    )
    proof = prove(counting)
    check(counting, proof)
    assert proof.channels["x0"].highest == 32767
    assert proof.results["channel x0"].clips_above
    assert proof.results["channel x0"].partial == Interval(0, 32768)
    assert len(steps) < 4 * PATIENCE


def test_shipped_rule_is_proven() -> None:
    rule = LayeredRule.load(SHIPPED)
    proof = prove(rule)
    check(rule, proof)
    widest = proof.results[proof.widest_accumulator]
    print(f"{proof.widest_accumulator}: {widest.partial}, {widest.accumulator_bits} bits")
    assert proof.accumulator_bits <= 32


# Reports


def test_proof_tells_what_saturates() -> None:
    rule = tiny_rule(([0] * 9, 8, 0), candidate=(0, -5, 0), gate=(0, 7, 0))
    proof = prove(rule)
    assert proof.clips == ("hidden neuron h0", "candidate x0")
    assert proof.results["hidden neuron h0"].clips_above
    assert proof.results["candidate x0"].clips_below
    # At 0, a hidden neuron rests.
    proof = prove(tiny_rule(([0] * 9, -8, 0)))
    assert proof.results["hidden neuron h0"].clips_below
    assert proof.clips == ()


def test_proof_tells_what_could_be_narrower() -> None:
    rule = tiny_rule(([0] * 9, 3, 0), candidate=(0, 1, 0))
    assert prove(rule).narrower(rule) == {"x0": 2, "hidden neuron h0": 2}
    rule = tiny_rule(([0] * 9, 4, 0), candidate=(0, 2, 0))
    assert prove(rule).narrower(rule) == {}


# Refusals


@pytest.mark.parametrize(
    ("bias", "sentence"),
    [
        (517, "hidden neuron h0 can reach 517, beyond UQ1.7's 255"),
        (-1, "hidden neuron h0 can reach -1, beyond UQ1.7's 0"),
    ],
)
def test_result_that_would_wrap_is_refused(bias: int, sentence: str) -> None:
    rule = tiny_rule(([0] * 9, bias, 0), hidden=QFormat(1, 7, signed=False), overflow=Overflow.WRAP)
    with pytest.raises(InputError) as caught:
        prove(rule)
    assert str(caught.value) == f"{sentence}: choose overflow SAT or a wider format"
    assert prove(dataclasses.replace(rule, overflow=Overflow.SAT)).results


def test_channel_that_wraps_in_the_end_is_refused(small_config: Make, mixed_rule: Make) -> None:
    config = small_config(kind="residual", inputs=(), channels=1, hidden=1)
    rule = dataclasses.replace(mixed_rule(0, config), overflow=Overflow.WRAP)
    format = rule.state_formats[0]
    rule = dataclasses.replace(
        rule,
        perceive=layer_of(np.zeros((1, 1, 9), np.int64), [0], 0, [format], rule.perceive.outputs),
        update=layer_of([[[0]]], [1], 0, rule.update.inputs, rule.update.outputs),
    )
    with pytest.raises(InputError) as caught:
        prove(rule)
    assert str(caught.value) == (
        f"channel x0 can reach {format.highest + 1}, beyond {format}'s {format.highest}: "
        "choose overflow SAT or a wider format"
    )


def made_to_fit(rule: LayeredRule, seed: int) -> LayeredRule:
    """Give a gated rule weights with which no result can leave its format, and overflow WRAP."""

    def fitting(layer: IntegerLayer, taps: int) -> IntegerLayer:
        rng = np.random.default_rng(seed)
        weight = rng.integers(-9, 10, (len(layer.outputs), len(layer.inputs), taps))
        scale = [max(f.frac_bits for f in layer.inputs) - f.frac_bits for f in layer.inputs]
        ends = np.array([[f.lowest, f.highest] for f in layer.inputs]) << np.array(scale)[:, None]
        products = weight[..., None] * ends[:, None]
        low, high = products.min(3).sum((1, 2)), products.max(3).sum((1, 2))
        signed = np.array([format.signed for format in layer.outputs])
        bias = np.where(signed, 0, -low)
        largest = np.where(signed, np.maximum(-low, high), high - low)
        most = np.array([format.highest for format in layer.outputs])
        shift = np.zeros(len(most), np.int64)
        while (much := (largest >> shift) + 1 > most).any():
            shift += much
        return layer_of(weight, bias, shift, layer.inputs, layer.outputs)

    return dataclasses.replace(
        rule,
        overflow=Overflow.WRAP,
        perceive=fitting(rule.perceive, 9),
        update=fitting(rule.update, 1),
    )


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("seed", range(5))
def test_proven_rule_never_wraps(
    seed: int, border: str, small_config: Make, mixed_rule: Make, extreme_state: Make
) -> None:
    config = small_config(border=border, inputs=("sample", "trace"))
    rule = made_to_fit(mixed_rule(seed, config), seed)
    proof = prove(rule)
    assert proof.clips == ()
    check(rule, proof)
    saturating = dataclasses.replace(rule, overflow=Overflow.SAT)
    state = rule.initial_state(5, 5)
    for i in range(8):
        sample = extreme_state(rule, seed + i, 5, 5)[config.channels]
        valid = np.random.default_rng(i).random((5, 5)) < 0.5
        inputs = rule.given(sample, valid)
        after = monitor(rule, proof).step(state, inputs)
        np.testing.assert_array_equal(
            after, saturating.step(state, saturating.given(sample, valid))
        )
        state = after


def test_accumulator_that_is_too_narrow_is_refused() -> None:
    rule = tiny_rule((([100] * 9), 0, 9), candidate=(0, 3, 0))
    # 9 * 100 * 3, and 256 to round with
    assert prove(rule, accumulator_bits=13).results["hidden neuron h0"].partial.highest == 2956
    with pytest.raises(InputError) as caught:
        prove(rule, accumulator_bits=12)
    assert str(caught.value) == (
        "accumulator of hidden neuron h0 can reach 2956, beyond 12 bits' 2047: "
        "quantize with fewer bits"
    )
    with pytest.raises(InputError) as caught:
        check(rule, prove(rule), accumulator_bits=12)
    assert "beyond 12 bits" in str(caught.value)


def test_layer_is_given_32_bits_unless_told_otherwise() -> None:
    rule = tiny_rule()
    proof = prove(rule)
    wide = dataclasses.replace(proof.results["gate x0"], partial=Interval(-(2**31) - 1, 7))
    claimed = RangeProof(proof.channels, proof.results | {"gate x0": wide})
    with pytest.raises(InputError) as caught:
        check(rule, claimed)
    assert str(caught.value) == (
        "accumulator of gate x0 can reach -2147483649, beyond 32 bits' -2147483648: "
        "quantize with fewer bits"
    )


def test_product_that_the_golden_model_cannot_hold_is_refused(
    small_config: Make, mixed_rule: Make
) -> None:
    # A trust of 32 bits, since doubt is below 0, times a sample of 32 bits plus 2**30.
    config = small_config(channels=2, hidden=1, inputs=("trust", "recall"))
    rule = mixed_rule(0, config, Rounding.TRN)
    state = (QFormat(1, 31), QFormat(1, 2))
    inputs = (QFormat(1, 31, signed=False), QFormat(1, 7))
    rule = dataclasses.replace(
        rule,
        state_formats=state,
        sample_format=state[0],
        input_formats=inputs,
        perceive=layer_of(
            np.zeros((1, 4, 9), np.int64), [0], 0, state + inputs, rule.perceive.outputs
        ),
        update=layer_of(
            np.zeros((4, 1, 1), np.int64),
            [-(2**30), -4, 3, 3],
            0,
            rule.perceive.outputs,
            update_formats(config, state, rule.gate_format),
        ),
    )
    with pytest.raises(InputError) as caught:
        prove(rule)
    assert re.fullmatch(
        rf"accumulator of input recall can reach \d+, beyond {PRODUCT_BITS} bits' "
        rf"{2**63 - 1}: quantize with fewer bits",
        str(caught.value),
    )


# Checking


@pytest.fixture(scope="module")
def proven(small_config: Make, mixed_rule: Make) -> LayeredRule:
    """A rule whose state stays well inside its formats."""
    rule: LayeredRule = mixed_rule(3, small_config(border="zero"))
    weight = rule.update.weight // 8
    update = dataclasses.replace(rule.update, weight=weight, bias=rule.update.bias // 8)
    return with_proof(dataclasses.replace(rule, update=update))


def refusal(rule: LayeredRule, proof: RangeProof) -> str:
    with pytest.raises(InputError) as caught:
        check(rule, proof)
    return str(caught.value)


def shrunk(held: Interval) -> list[Interval]:
    return [Interval(held.lowest + 1, held.highest), Interval(held.lowest, held.highest - 1)]


def test_channel_narrower_by_one_code_is_no_invariant(proven: LayeredRule) -> None:
    proof = prove(proven)
    for name, held in proof.channels.items():
        for less in shrunk(held):
            channels = proof.channels | {name: less}
            try:
                results = derive(proven, channels).results
            except ValueError:  # an interval without any code
                continue
            # Whatever follows from it is claimed as it is: the step itself betrays it.
            claimed = RangeProof(channels, results)
            assert refusal(proven, claimed).startswith(
                f"range proof is wrong: range of channel {name} is {less}, which does not hold "
            )


def test_result_narrower_by_one_code_is_refused(proven: LayeredRule) -> None:
    proof = prove(proven)
    for name, result in proof.results.items():
        for field in ("total", "partial", "rounded", "fitted"):
            for less in shrunk(getattr(result, field)):
                claimed = dataclasses.replace(result, **{field: less})
                sentence = refusal(
                    proven, RangeProof(proof.channels, proof.results | {name: claimed})
                )
                assert sentence == (
                    f"range proof is wrong: {field} range of {name} is {less}, which does not hold "
                    f"{getattr(result, field)}: prove it again"
                )


@pytest.mark.parametrize("overflow", SATURATING)
def test_wider_proof_than_necessary_is_one(overflow: Overflow, proven: LayeredRule) -> None:
    rule = dataclasses.replace(proven, overflow=overflow)
    wide = derive(rule, formats_box(rule))
    assert wide != prove(rule)
    check(rule, wide)


@pytest.mark.parametrize(
    ("channels", "results", "sentence"),
    [
        (
            {"trace": Interval(0, 8)},
            {},
            "channel trace's format is 0..7, which does not hold 0..8: prove it again",
        ),
        (
            {"x1": Interval(1, 2)},
            {},
            "range of channel x1 is 1..2, which does not hold",
        ),
        (
            {},
            {"input valid": Result(*[Interval(-9, 99)] * 4)},
            "input valid's format is 0..",
        ),
    ],
)
def test_range_that_leaves_a_format_or_the_initial_state_out_is_refused(
    channels: dict[str, Interval],
    results: dict[str, Result],
    sentence: str,
    proven: LayeredRule,
) -> None:
    proof = prove(proven)
    claimed = RangeProof(proof.channels | channels, proof.results | results)
    assert refusal(proven, claimed).startswith(f"range proof is wrong: {sentence}")


def test_proof_of_another_shape_of_rule_is_refused(proven: LayeredRule) -> None:
    assert refusal(proven, prove(tiny_rule())) == (
        "range proof is of other channels than the rule's (x1): prove it again"
    )
    proof = prove(proven)
    assert refusal(proven, RangeProof(proof.channels, {})) == (
        "range proof is of other results than the rule's (candidate x0): prove it again"
    )


def test_proof_of_other_weights_is_refused(proven: LayeredRule) -> None:
    bias = proven.perceive.bias + np.array([1 << 12, 0, 0])
    changed = dataclasses.replace(proven, perceive=dataclasses.replace(proven.perceive, bias=bias))
    assert changed.proof is not None
    assert refusal(changed, changed.proof).startswith(
        "range proof is wrong: total range of hidden neuron h0 is "
    )


# Files


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description of a rule file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    description = json.loads(metadata["description"])
    change(description)
    save_file(load_file(path), path, metadata | {"description": json.dumps(description)})


@pytest.fixture
def path(proven: LayeredRule, tmp_path: Path) -> Path:
    path = tmp_path / "rule.safetensors"
    proven.save(path)
    return path


def test_proof_is_saved_with_its_rule(proven: LayeredRule, path: Path) -> None:
    loaded = LayeredRule.load(path)
    assert loaded.proof is not None
    assert loaded.proof == proven.proof == prove(proven)
    assert list(loaded.proof.results) == list(prove(proven).results)


def test_rule_without_proof_is_proven_on_loading(proven: LayeredRule, path: Path) -> None:
    edit(path, lambda description: description.pop("proof"))
    assert LayeredRule.load(path).proof == proven.proof
    dataclasses.replace(proven, proof=None).save(path)
    assert LayeredRule.load(path).proof == proven.proof


def test_rule_that_cannot_be_proven_is_refused_on_loading(proven: LayeredRule, path: Path) -> None:
    dataclasses.replace(proven, proof=None, overflow=Overflow.WRAP).save(path)
    with pytest.raises(InputError, match=r"^rule .*: .* can reach \d+, beyond .*"):
        LayeredRule.load(path)


def test_tampered_proof_is_refused_on_loading(path: Path) -> None:
    held = prove(LayeredRule.load(path)).results["hidden neuron h1"].total

    def shrink(description: dict[str, Any]) -> None:
        entries = {entry["name"]: entry for entry in description["proof"]["results"]}
        entries["hidden neuron h1"]["total"][1] -= 1

    edit(path, shrink)
    with pytest.raises(InputError) as caught:
        LayeredRule.load(path)
    assert str(caught.value) == (
        f"rule {path}: range proof is wrong: total range of hidden neuron h1 is {held.lowest}.."
        f"{held.highest - 1}, which does not hold {held}: prove it again"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda proof: proof.pop("channels"),
        lambda proof: proof["channels"].append({"name": "x0"}),
        lambda proof: proof["channels"][0].update(range=[1]),
        lambda proof: proof["channels"][0].update(range=[1, 0]),
        lambda proof: proof["channels"][0].update(range=["0", "1"]),
        lambda proof: proof["channels"][0].update(range=[0.5, 1]),
        lambda proof: proof["channels"][0].update(range=[-(10**40), 10**40]),
        lambda proof: proof["channels"][0].update(name=["x0"]),
        lambda proof: proof["channels"][0].update(name=None),
        lambda proof: proof.update(channels=None),
        lambda proof: proof.update(results=[]),
        lambda proof: proof.update(results=7),
        lambda proof: proof["results"][0].pop("total"),
        lambda proof: proof["results"][0].update(total=[-1e6, 1e6]),
        lambda proof: proof["results"][0].update(partial=[-(10**40), 10**40]),
    ],
)
def test_malformed_proof_is_refused_on_loading(
    path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(path, lambda description: change(description["proof"]))
    with pytest.raises(InputError) as caught:
        LayeredRule.load(path)
    assert re.fullmatch(rf"rule {re.escape(str(path))}(:| has no valid) [^\n]+", str(caught.value))


@pytest.mark.parametrize("proof", [[], 7, "x", {}, True])
def test_proof_that_is_no_object_is_refused_on_loading(path: Path, proof: object) -> None:
    edit(path, lambda description: description.update(proof=proof))
    with pytest.raises(InputError, match="has no valid description"):
        LayeredRule.load(path)


# The golden model, watched


def violation(rule: LayeredRule, proof: RangeProof, steps: int = 1) -> str:
    """What the watched model says on a 2 x 3 array, where a sample of 3 is at x 1, y 1."""
    watched, state = monitor(rule, proof), rule.initial_state(2, 3)
    valid = np.array([[False] * 3, [False, True, False]])
    with pytest.raises(OutOfRange) as caught:
        for _ in range(steps):
            state = watched.step(state, watched.given(np.full((2, 3), 3), valid))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "field", "sentence"),
    [
        ("hidden neuron h0", "total", "cell (x 0, y 0): accumulator of hidden neuron h0 is 3"),
        ("hidden neuron h0", "fitted", "cell (x 0, y 0): hidden neuron h0 is 3"),
        ("candidate x0", "total", "cell (x 0, y 0): accumulator of candidate x0 is 2"),
        ("candidate x0", "fitted", "cell (x 0, y 0): candidate x0 is 2"),
        ("gate x0", "total", "cell (x 0, y 0): accumulator of gate x0 is 7"),
        ("gate x0", "fitted", "cell (x 0, y 0): gate x0 is 7"),
        ("channel x0", "fitted", "cell (x 0, y 0): updated channel x0 is 2"),
    ],
)
def test_watched_model_names_the_number_that_left_its_range(
    name: str, field: str, sentence: str
) -> None:
    rule = tiny_rule(([0] * 9, 3, 0), candidate=(0, 2, 0))
    proof = prove(rule)
    below = dataclasses.replace(proof.results[name], **{field: Interval(-1, 0)})
    wrong = RangeProof(proof.channels, proof.results | {name: below})
    assert violation(rule, wrong) == f"step 0, {sentence}, outside -1..0"


def test_watched_model_names_the_cell_and_the_step() -> None:
    rule = tiny_rule()
    proof = prove(rule)
    wrong = RangeProof(proof.channels | {"sample": Interval(-4, 2)}, proof.results)
    assert violation(rule, wrong) == "step 0, cell (x 1, y 1): channel sample is 3, outside -4..2"
    # x0 doubles its way to 2: it is there in the second step.
    rule = tiny_rule(candidate=(0, 3, 0), gate=(0, 4, 0))
    proof = prove(rule)
    wrong = RangeProof(proof.channels | {"x0": Interval(0, 2)}, proof.results)
    assert violation(rule, wrong, 2) == "step 1, cell (x 0, y 0): channel x0 is 3, outside 0..2"


def test_watched_model_sees_the_inputs(small_config: Make, mixed_rule: Make) -> None:
    rule = mixed_rule(0, small_config())
    proof = prove(rule)
    for name in INPUTS:
        wrong = {
            f"input {name}": dataclasses.replace(
                proof.results[f"input {name}"], fitted=Interval(-1000, -999)
            )
        }
        assert f": input {name} is " in violation(
            rule, RangeProof(proof.channels, proof.results | wrong)
        )


def test_watched_rule_uses_its_own_proof(proven: LayeredRule) -> None:
    assert monitor(proven).proof is proven.proof
    unproven = dataclasses.replace(proven, proof=None)
    assert monitor(unproven).proof == proven.proof
