"""From float graphs to integer rules."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import Interval
from scotopia.graph.operations import Fit, Maximum, Minimum
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import Event, Initial
from scotopia.model.float_rule import FloatRule
from scotopia.model.interpret import Interpreter
from scotopia.model.rule import Rule
from scotopia.model.scotopic.float_graph import as_float_rule
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import GraphRule, IntegerRule
from scotopia.quantize.measure import Episode, episodes, measure
from scotopia.quantize.quantizer import Choice, quantize


def layered(seed: int = 0) -> FloatRule:
    """A rule of two layers and a gate, as one writes it, that sees what arrives."""
    rng = np.random.default_rng(seed)
    build = Builder()
    x = build.channels({"a": None, "b": None})
    shown, arrived = build.inputs({"shown": None, "arrived": None})
    seen = build.concatenate([x, build.where(arrived, shown - x[0], 0.0)])
    weight, bias = rng.normal(0, 0.3, (5, 3, 9)), rng.normal(0, 0.1, 5)
    hidden = build.linear(seen, weight, bias, "replicate").maximum(0)
    update = build.linear(hidden, rng.normal(0, 0.5, (4, 5, 1)), np.full(4, 0.2))
    candidate, gate = update[:2].maximum(-1).minimum(1), update[2:].maximum(0).minimum(1)
    moved = x + gate * (candidate - x)
    graph = build.graph({"a": moved[0], "b": moved[1]})
    return FloatRule(graph, 2, (Event("shown", "arrived"),))


def runs(count: int = 6, side: int = 12) -> list[Episode]:
    rng = np.random.default_rng(1)
    frames = [
        {"shown": rng.uniform(-1, 1, (side, side)), "arrived": rng.random((side, side)) < 0.3}
        for _ in range(count)
    ]
    return [Episode(side, side, frames)]


def difference(rule: FloatRule, made: GraphRule, episode: Episode) -> float:
    """Largest distance of any channel, relative to what it can hold."""
    run = Interpreter(rule.graph)
    state = torch.from_numpy(rule.initial.state(episode.height, episode.width))[None]
    codes = made.initial_state(episode.height, episode.width)
    format = made.event_format
    for frame in episode.frames:
        given = {
            name: torch.from_numpy(np.asarray(one, float))[None] for name, one in frame.items()
        }
        shown = format.quantize(np.asarray(frame["shown"]))
        inputs = made.given(shown, np.asarray(frame["arrived"]))
        for _ in range(rule.steps_per_frame):
            state, codes = run(state, given), made.step(codes, inputs)
    formats = zip(made.channel_formats, codes, state[0].numpy(), strict=True)
    return max(float(np.abs(f.values(c) - s).max()) for f, c, s in formats)


@pytest.mark.parametrize("rounding", [Rounding.RND, Rounding.TRN, Rounding.RND_CONV])
def test_more_bits_come_closer(rounding: Rounding) -> None:
    rule, episode = layered(), runs()
    seen = measure(rule, episode)
    errors = [
        difference(rule, quantize(rule, seen, Choice(Precision(*[bits] * 4), rounding)), episode[0])
        for bits in (6, 10, 14)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 0.01


def test_clips_become_the_saturation_of_formats() -> None:
    rule = layered()
    graph = quantize(rule, measure(rule, runs()), Choice()).graph
    assert not any(isinstance(one, Minimum | Maximum) for one in graph.operations)


def test_without_saturation_clips_stay() -> None:
    rule = layered()
    graph = quantize(rule, measure(rule, runs()), Choice(overflow=Overflow.SAT_SYM)).graph
    assert any(isinstance(one, Minimum | Maximum) for one in graph.operations)


def test_a_gated_channel_stays_between_its_ends() -> None:
    rule = layered()
    made = quantize(rule, measure(rule, runs()), Choice())
    for word, format in zip(made.graph.outputs, made.channel_formats, strict=True):
        # The candidate is clipped to -1 to 1; a sum of intervals alone would go far beyond.
        assert Interval(-1 << format.frac_bits, 1 << format.frac_bits).holds(
            made.ranges.rounded[word]
        )


def test_a_channel_holds_what_was_seen_of_it() -> None:
    build = Builder()
    x = build.channels({"x": None})
    rule = FloatRule(build.graph({"x": x * 0.5 + 10.5}), 1)
    made = quantize(rule, measure(rule, episodes(1, 30, 4)), Choice(Precision(state=10)))
    assert made.channel_formats == (QFormat(6, 4),)  # it comes to 21
    state = made.initial_state(2, 2)
    for _ in range(30):
        state = made.step(state, {})
    assert np.abs(made.channel_formats[0].values(state) - 21).max() < 0.2


def test_a_channel_that_cannot_leave_a_clip_needs_no_margin() -> None:
    """What was seen of it comes so close to 1 that another bit would be kept for more."""
    build = Builder()
    x, light = build.channels({"x": None, "free": None}), build.inputs({"light": None})
    share = (light * 2).maximum(0).minimum(1)
    moved = x[0] + share * ((light * 9).maximum(-1).minimum(1) - x[0])
    kept = build.where(light < 0, x[0], moved)
    graph = build.graph({"x": kept, "free": build.where(light < 0, x[1], light * 0.97)})
    rule = FloatRule(graph, events=(Event("light"),))
    frames = [{"light": np.full((2, 2), value)} for value in (0.99, 0.99, 0.99)]
    made = quantize(rule, measure(rule, [Episode(2, 2, frames)]), Choice(Precision(state=10)))
    assert made.channel_formats == (QFormat(1, 9), QFormat(2, 8))


def test_what_hardly_ever_leaves_0_is_seen_all_the_same() -> None:
    build = Builder()
    x, light = build.channels({"x": None}), build.inputs({"light": None})
    rule = FloatRule(build.graph({"x": light.maximum(0) + x * 0}), events=(Event("light"),))
    flash, dark = np.zeros((30, 30)), np.zeros((30, 30))
    flash[0, 0] = 1
    seen = measure(rule, [Episode(30, 30, [{"light": one} for one in (flash, *[dark] * 99)])])
    assert seen.highest[rule.graph.outputs[0]] == pytest.approx(1, abs=1e-3)


def test_every_pixel_has_a_code_however_dark_the_clips_were() -> None:
    build = Builder()
    x, light = build.channels({"x": None}), build.inputs({"light": None})
    rule = FloatRule(build.graph({"x": x * 0.5 + light * 0.5}), events=(Event("light"),))
    dark = [{"light": np.full((2, 2), 0.1)}] * 3
    made = quantize(rule, measure(rule, [Episode(2, 2, dark)]), Choice())
    codes = made.sample_codes(np.array([0.0, 1.0]))
    assert made.event_format.lowest <= codes.min() < codes.max() <= made.event_format.highest


def test_the_scotopic_rules_trace_counts_every_step(small_config: Any) -> None:
    torch.manual_seed(0)
    rule = as_float_rule(Rule(small_config(trace_bits=12)))
    frame = {"sample": np.full((4, 4), 0.5), "valid": np.eye(4)}
    made = quantize(rule, measure(rule, [Episode(4, 4, [frame] * 4)]), Choice(Precision(state=6)))
    assert made.channel_formats[-1] == QFormat(0, 12, signed=False)
    state = made.initial_state(1, 1)
    state[-1] = 9
    after = made.step(state, made.given(np.zeros((1, 1), int), np.zeros((1, 1), bool)))
    assert after[-1] == 8


def test_formats_that_a_module_declares_are_kept() -> None:
    build = Builder()
    byte = QFormat(0, 8, signed=False)
    x, age = build.channels({"x": None, "age": byte})
    older = (age - 2.0**-8).maximum(0)
    rule = FloatRule(build.graph({"x": x * 0.5 + age * 0.25, "age": older}), 1)
    made = quantize(rule, measure(rule, episodes(1, 5, 4)), Choice())
    assert made.channel_formats[1] == byte
    found = made.step(np.full((2, 1, 1), 7), {})
    assert found[1, 0, 0] == 6


@pytest.mark.parametrize("threshold", [0.1, -0.1, 0.25])
def test_comparisons_with_any_number_are_exact(threshold: float) -> None:
    build = Builder()
    x = build.channels({"x": QFormat(1, 5)})
    above, below = x > threshold, x < threshold
    kept = build.where(above.maximum(below), x, 0.0)
    rule = FloatRule(build.graph({"x": kept}), 1)
    made = quantize(rule, measure(rule, episodes(1, 2, 4)), Choice())
    codes = np.arange(-32, 32).reshape(1, 8, 8)
    values = codes / 32
    np.testing.assert_array_equal(made.step(codes, {}), np.where(values != threshold, codes, 0))


def test_it_is_measured_from_its_initial_state() -> None:
    build = Builder()
    x = build.channels({"x": None})
    grown = (build.window(x) * 1.5).minimum(2)
    rule = FloatRule(build.graph({"x": grown}), 1, initial=Initial.cell(np.array([0.5])))
    seen = measure(rule, episodes(1, 8, 9))
    assert seen.highest[0] == 2
    made = quantize(rule, seen, Choice())
    assert made.initial_state(9, 9)[0, 4, 4] == made.channel_formats[0].quantize(np.array(0.5))
    state = made.initial_state(9, 9)
    for _ in range(8):
        state = made.step(state, {})
    assert (made.channel_formats[0].values(state) > 1.9).all()


def test_a_rule_that_explodes_is_refused() -> None:
    build = Builder()
    x = build.channels({"x": None})
    rule = FloatRule(build.graph({"x": x * 1e9}), 1, initial=Initial.cell(np.array([1.0])))
    with pytest.raises(InputError, match="is not finite after 9 steps: train the rule again"):
        measure(rule, episodes(1, 9, 3))


def test_weight_that_is_not_finite_is_refused() -> None:
    rule = layered()
    seen = measure(rule, runs())
    operations = list(rule.graph.operations)
    index = next(i for i, one in enumerate(operations) if hasattr(one, "weight"))
    weight: NDArray[Any] = operations[index].weight.copy()  # type: ignore[attr-defined]
    weight[0, 0, 0] = np.nan
    operations[index] = replace(operations[index], weight=weight)  # type: ignore[call-arg]
    broken = replace(rule, graph=StepGraph(tuple(operations), rule.graph.outputs))
    with pytest.raises(InputError, match="is not finite: train the rule again"):
        quantize(broken, seen, Choice())


def test_files_keep_all(tmp_path: Path) -> None:
    rule = replace(layered(), initial=Initial.cell(np.array([0.5, 0.25])), training={"by": "hand"})
    rule.save(tmp_path / "float.safetensors")
    again = FloatRule.load(tmp_path / "float.safetensors")
    made = quantize(again, measure(again, runs()), Choice())
    assert made.training == {"by": "hand"}
    made.save(tmp_path / "int.safetensors")
    loaded = IntegerRule.load(tmp_path / "int.safetensors")
    assert isinstance(loaded, GraphRule)
    assert loaded.proof == made.proof and loaded.events == rule.events
    assert (loaded.initial_state(3, 3) == made.initial_state(3, 3)).all()
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(f.lowest, f.highest + 1, (4, 4)) for f in made.channel_formats])
    inputs = made.given(rng.integers(-99, 99, (4, 4)), rng.random((4, 4)) < 0.5)
    assert (loaded.step(codes, inputs) == made.step(codes, inputs)).all()
    kinds = [type(one) for one in loaded.graph.operations]
    assert kinds == [type(one) for one in made.graph.operations] and Fit in kinds


def test_every_input_is_written_by_an_event() -> None:
    rule = layered()
    with pytest.raises(InputError, match="events write nothing, the inputs are shown, arrived"):
        FloatRule(rule.graph, 1)


def test_kernels_of_all_sizes_keep_their_sum_within_32_bits() -> None:
    build, rng = Builder(), np.random.default_rng(0)
    x = build.channels({f"x{i}": QFormat(6, 11) for i in range(24)})
    weight = rng.choice([1.9, 2.0**-7, 2.0**-9], (3, 24, 1)) * rng.uniform(0.5, 1, (3, 24, 1))
    total = build.linear(x, weight, [0.1, 0.2, 0.3])
    other = build.linear(total.maximum(0), rng.uniform(-0.01, 0.01, (24, 3, 1)), np.zeros(24))
    after = {f"x{i}": (one + x[i] * 0.5) for i, one in enumerate(other)}
    rule = FloatRule(
        build.graph(after),
        initial=Initial(np.full(24, 18.0), np.zeros((24, 0, 0)), np.full(24, 8.0)),
    )
    seen = measure(rule, episodes(1, 5, 4))
    made = quantize(rule, seen, Choice(Precision(weight=10, hidden=12), scales="kernel"))
    assert 28 <= made.ranges.accumulator_bits <= 32
    state = rule.initial.state(3, 3)
    exact = Interpreter(rule.graph)(torch.from_numpy(state)[None], {})[0].numpy()
    found = made.values(made.step(made.initial_state(3, 3), {}))
    assert np.abs(found - exact).max() < 0.05
