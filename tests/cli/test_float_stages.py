"""Float rule, fake-quantized rule and golden model side by side, of any rule."""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.cli.float_stages import distances, float_stages, states
from scotopia.cli.rules import check_alike, load_float_rule
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.operations import Fit
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.surroundings import Initial
from scotopia.model.interpret import Interpreter
from scotopia.model.scotopic.float_graph import as_float_rule
from scotopia.quantize.integer_rule import GraphRule, IntegerRule
from scotopia.sim.verify import Extent, Material

Make = Callable[..., Any]
Run = Callable[..., tuple[int, str, str]]


def material(rule: IntegerRule, frames: int = 3) -> Material:
    clip = np.random.default_rng(0).random((frames, 8, 9), np.float32)
    return Material(rule, clip, Extent(8, 9, frames), density=0.4)


@pytest.mark.parametrize("which", ["fill_in", "growing"])
def test_rules_of_ones_own_are_what_they_are_fake_quantized(
    which: str, request: pytest.FixtureRequest
) -> None:
    floats, integers = request.getfixturevalue(which)
    distance, equal = float_stages(material(integers), floats)
    assert distance.measured and not distance.skipped
    assert f"distance of {integers.channel_names[0]}: " in distance.detail
    assert equal.passed and equal.mismatches == 0
    assert equal.cell_updates == 8 * 9 * 3 * integers.steps_per_frame


@pytest.mark.parametrize("rounding", [Rounding.TRN, Rounding.RND_CONV])
@pytest.mark.parametrize("fields", [{"fire_rate": 0.5}, {"kind": "residual", "border": "wrap"}])
def test_rules_of_two_layers_are_what_they_are_fake_quantized(
    random_rule: Make, small_config: Make, rounding: Rounding, fields: dict[str, Any]
) -> None:
    rule = random_rule(3, small_config(**fields), rounding=rounding)
    if "kind" not in fields:
        rule = dataclasses.replace(rule, dither=3)
    assert all(stage.passed for stage in float_stages(material(rule)))


def test_another_rule_is_found_out(fill_in: Any) -> None:
    graph = fill_in[1].graph
    other = {i: replace(fit, rounding=Rounding.TRN) for i, fit in graph.of_kind(Fit)}
    golden = replace(fill_in[1], graph=graph.changed(other))
    shown = material(golden)
    found = np.stack([*states(golden, Interpreter(graph), shown.stimulus())])
    assert (golden.values(shown.stimulus().expected) != found).any()


def test_a_float_rule_of_the_same_weights_rounds_nothing() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(2, 3)})
    graph = build.graph({"x": (x * 0.625 + 0.25).fit(QFormat(2, 3))})
    rule = GraphRule(graph, initial=Initial.cell(np.array([1.5])))
    shown = material(rule, 2).stimulus()
    found = np.stack([*states(rule, Interpreter(graph, rounds=False), shown)])[:, 0, 4, 4]
    assert found.tolist() == [1.5 * 0.625 + 0.25, (1.5 * 0.625 + 0.25) * 0.625 + 0.25]


def test_without_rounding_words_stay_in_range(fill_in: Any) -> None:
    rule: GraphRule = fill_in[1]
    assert all(fit.overflow is Overflow.SAT for _, fit in rule.graph.of_kind(Fit))
    run = Interpreter(rule.graph, rounds=False)
    values = np.stack([*states(rule, run, material(rule).stimulus())])
    for channel, format in zip(np.moveaxis(values, 1, 0), rule.channel_formats, strict=True):
        assert format.values(np.array(format.lowest)) <= channel.min()
        assert channel.max() <= format.values(np.array(format.highest))


def test_distances_are_those_of_the_first_channel_and_of_the_worst(fill_in: Any) -> None:
    rule: GraphRule = fill_in[1]
    zeros = np.zeros((2, 2, 3, 3))
    others = zeros.copy()
    others[:, 0] = 2.0 ** rule.channel_formats[0].int_bits / 100  # of its whole range
    others[1, 1, 2, 0] = 0.25
    said = distances(rule, zeros, others)
    assert said.startswith("distance of light: 40.0 dB below its range; largest of any channel ")
    assert said.endswith("in held")
    assert "distance of light: none" in distances(rule, zeros, zeros)


def test_a_float_rule_of_other_channels_is_refused(
    fill_in: Any, growing: Any, tmp_path: Path, run: Run
) -> None:
    with pytest.raises(InputError) as caught:
        check_alike("it", growing[0], fill_in[1])
    assert str(caught.value) == (
        "rule it has channels red, green, blue, alpha, hidden, the integer rule has light, held: "
        "give what was quantized"
    )
    with pytest.raises(InputError, match="rule it has steps a frame 3, the integer rule has 4"):
        check_alike("it", replace(fill_in[0], steps_per_frame=3), fill_in[1])
    fill_in[1].save(tmp_path / "int.safetensors")
    status, _, error = run("verify", tmp_path / "int.safetensors", "--float", "retina")
    assert status == 2 and "rule retina has channels x0, x1" in error


def test_a_float_rule_is_loaded_as_its_graph(
    fill_in: Any, float_rule: Make, small_config: Make, tmp_path: Path
) -> None:
    fill_in[0].save(tmp_path / "graph")
    assert load_float_rule(str(tmp_path / "graph")).channel_names == ("light", "held")
    rule = float_rule(0, small_config())
    rule.save(tmp_path / "rule")
    loaded = load_float_rule(str(tmp_path / "rule"))
    assert loaded.channel_names == as_float_rule(rule).channel_names == rule.config.channel_names


def test_what_the_quantizer_scaled_is_undone(
    float_rule: Make, small_config: Make, tmp_path: Path, run: Run
) -> None:
    rule = float_rule(2, small_config(trace_bits=6))
    with torch.no_grad():  # two channels that stay small: the quantizer fills their range
        rule.update.weight[1:3] /= 32
        rule.update.bias[1:3] /= 32
    rule.save(tmp_path / "float")
    names = (tmp_path / name for name in ("float", "int", "q.json"))
    floats, integers, found = (str(name) for name in names)
    bits = ("--weight-bits", 10, "--state-bits", 12, "--hidden-bits", 10)
    status, out, error = run("quantize", floats, "--out", integers, *bits, "--json", found)
    assert (status, error) == (0, "")
    scales = json.loads(Path(found).read_text())["channel_scales"]
    assert "channels scaled to fill their range, by: x2 " in out
    assert scales and all(scale >= 2 for scale in scales.values())
    integer = IntegerRule.load(Path(integers))
    assert integer.training["channel_scales"] == scales
    number = integer.channel_names.index("x2")
    format = integer.channel_formats[number]
    assert integer.units[number] == 2.0**-format.frac_bits / scales["x2"]
    graph = load_float_rule(floats)
    shown = material(integer, 2).stimulus()
    codes = shown.expected[-1]
    assert np.array_equal(integer.codes(integer.values(codes)), codes)
    exact = [*states(integer, Interpreter(graph.graph), shown, graph)][-1]
    assert np.abs(integer.values(codes)[number] - exact[number]).max() < 0.01
    assert np.abs(codes[number] * 2.0**-format.frac_bits - exact[number]).max() > 0.02
    distance, equal = float_stages(material(integer, 2), graph)
    assert equal.passed
    assert float(re.search(r"channel ([\d.e-]+) of", distance.detail)[1]) < 0.02  # type: ignore[index]
