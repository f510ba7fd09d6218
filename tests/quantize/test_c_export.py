import dataclasses
import itertools
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scotopia.cli.rules import rule_path
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.graph.surroundings import Event, Initial
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.quantize.c_export import c_header, export_c
from scotopia.quantize.integer_rule import GraphRule
from scotopia.quantize.layered_rule import IntegerLayer, LayeredRule

Make = Callable[..., Any]  # a fixture of conftest.py

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

#: The sensor's converter, and back: codes of 256 pixels, pixels of all codes.
CONVERT = """
        for (int pixel = 0; pixel < 256; pixel++) {{
            const int32_t code = {n}_sample((uint8_t)pixel);
            fwrite(&code, 4, 1, stdout);
        }}
        for (int32_t code = -{codes}; code < {codes}; code++) {{
            const int32_t pixel = {n}_pixel(code);
            fwrite(&pixel, 4, 1, stdout);
        }}
"""


def compile_all(c_program: Any, rules: list[LayeredRule], folder: Path) -> Any:
    """Export every rule, each under a name of its own, into a program that runs any."""
    headers = [(rule.graph, c_header(rule, f"rule_{i}")) for i, rule in enumerate(rules)]
    program = c_program(headers, folder)
    for i, rule in enumerate(rules):
        codes = rule.state_formats[0].highest + 1
        program.add(1000 + i, CONVERT.format(n=f"rule_{i}", codes=codes))
    return program.compiled()


def assert_c_is_the_rule(
    program: Any, number: int, rule: LayeredRule, state: IntArray, samples: IntArray, valid: Any
) -> None:
    """Compare as many steps as there are samples (T, H, W)."""
    inputs = [
        {"sample": sample, "valid": arrived} for sample, arrived in zip(samples, valid, strict=True)
    ]
    found = program.steps(number, state, inputs, drawn=rule.noise_planes > 0)
    registers = RowRegisters(*state.shape[1:], rule.noise_seed)
    for step, (sample, arrived) in enumerate(zip(samples, valid, strict=True)):
        noise = registers.planes(rule.noise_planes) if rule.noise_planes else None
        state = rule.step(state, rule.given(sample, arrived), noise)
        np.testing.assert_array_equal(found[step], state, f"after step {step}")


KINDS = ["gated", "residual"]
BORDERS = ["zero", "replicate", "wrap"]
SETS = [
    INPUTS,
    (),
    ("sample",),
    ("trace",),
    ("valid",),
    ("fresh",),
    ("flicker",),
    ("innovation",),
    ("trust",),
]
SETS += [("trust", "recall"), ("valid", "trust"), ("sample", "trace")]

#: Every rounding with every overflow; all else changes along with periods that share no factor.
MODES = list(itertools.product(Rounding, Overflow))
SIZES = [(3, 4), (1, 1), (2, 5), (5, 1), (1, 3)]


@pytest.fixture(scope="module")
def rules(small_config: Make, mixed_rule: Make) -> list[LayeredRule]:
    made = []
    for i, (rounding, overflow) in enumerate(MODES):
        config = small_config(
            kind=KINDS[i % 2],
            border=BORDERS[i // 2 % 3],
            inputs=SETS[i % len(SETS)],
            trace_bits=(3, 1, 16, 10)[i % 4],
            fire_rate=(1, 0.3, 1, 0.999, 0.01)[i % 5],
        )
        rule = mixed_rule(i, config, rounding, coarse=i % 7 == 0)
        # A dither may be as wide as the gate; a residual rule has none.
        dither = min((0, 8, 1)[i % 3], rule.gate_format.frac_bits) * (config.kind == "gated")
        made.append(
            dataclasses.replace(
                rule, overflow=overflow, dither=dither, noise_seed=(2**32 - 1) // (i + 1)
            )
        )
    return made


@pytest.fixture(scope="module")
def program(
    rules: list[LayeredRule], c_program: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    return compile_all(c_program, rules, tmp_path_factory.mktemp("c"))


@needs_compiler
@pytest.mark.parametrize("number", range(len(MODES)))
def test_c_is_the_rule(
    number: int, rules: list[LayeredRule], program: Any, extreme_state: Make
) -> None:
    rule, (height, width) = rules[number], SIZES[number % len(SIZES)]
    state = extreme_state(rule, number, height, width)
    samples = extreme_state(rule, number + 1, 4, height, width)[:, rule.config.channels]
    valid = np.random.default_rng(number).random(samples.shape) < 0.5
    assert_c_is_the_rule(program, number, rule, state, samples, valid)


def test_the_rules_here_have_every_part(rules: list[LayeredRule]) -> None:
    def found(of: Callable[[LayeredRule], Any]) -> set[Any]:
        return {of(rule) for rule in rules}

    assert found(lambda r: (r.rounding, r.overflow)) == set(MODES)
    assert found(lambda r: (r.overflow, r.config.kind)) == set(itertools.product(Overflow, KINDS))
    assert found(lambda r: (r.config.border, r.config.kind)) == set(
        itertools.product(BORDERS, KINDS)
    )
    assert found(lambda r: r.config.inputs) == set(SETS)
    assert found(lambda r: (r.config.fire_rate < 1, r.dither > 0)) == set(
        itertools.product([False, True], repeat=2)
    )
    assert found(lambda r: r.dither == r.gate_format.frac_bits) == {False, True}


@needs_compiler
@pytest.mark.parametrize("number", range(6))
def test_pixels_become_codes_and_codes_pixels(
    number: int, rules: list[LayeredRule], program: Any
) -> None:
    # The first rules' predictions have 2 to 8 fraction bits; an 8-bit pixel has 7.
    rule = rules[number]
    found = np.frombuffer(program.run(1000 + number, b"", 0, 0, 0, 0), np.int32).astype(np.int64)
    codes, pixels = found[:256], found[256:]
    np.testing.assert_array_equal(codes, rule.sample_codes(np.arange(256) / 255))
    format = rule.state_formats[0]
    exact = 255.0 * rule.pixels(np.arange(format.lowest, format.highest + 1))
    assert np.abs(pixels - exact).max() < 0.501
    if format.frac_bits >= 7:
        np.testing.assert_array_equal(pixels[codes - format.lowest], np.arange(256))


def full_accumulators(rule: LayeredRule) -> LayeredRule:
    """The rule with weights and biases so large that sums nearly fill 32 bits."""

    def fill(layer: IntegerLayer) -> IntegerLayer:
        factor = (2**31 - 1) // layer.accumulator_bound
        return dataclasses.replace(layer, weight=factor * layer.weight, bias=factor * layer.bias)

    return dataclasses.replace(rule, perceive=fill(rule.perceive), update=fill(rule.update))


def widest_formats(rounding: Rounding) -> LayeredRule:
    """A rule of the widest formats that fit, those of trust and recall as far apart as they can."""
    inputs = {
        "sample": QFormat(1, 27),
        "trace": QFormat(0, 16, signed=False),
        "valid": QFormat(1, 27, signed=False),
        "fresh": QFormat(1, 27, signed=False),
        "flicker": QFormat(-3, 27),
        "innovation": QFormat(28, -27),
        "trust": QFormat(28, -10, signed=False),
        "recall": QFormat(-16, 27),
    }
    config = RuleConfig(channels=2, hidden=1, inputs=INPUTS, trace_bits=16)
    state, hidden, gate = (QFormat(1, 27),) * 2, QFormat(1, 20, False), QFormat(0, 28, False)
    weight = np.zeros((1, 10, 9), np.int64)
    weight[0, 0, 0] = weight[0, 9, 4] = 1  # formats so far apart leave room for hardly any weight
    return LayeredRule(
        config=config,
        state_formats=state,
        sample_format=state[0],
        input_formats=tuple(inputs.values()),
        gate_format=gate,
        perceive=IntegerLayer(
            weight=weight,
            weight_frac=np.array([3]),
            bias=np.array([0]),
            inputs=(*state, *inputs.values()),
            outputs=(hidden,),
        ),
        update=IntegerLayer(
            weight=np.array([[[5]], [[-3]], [[7]], [[1]]]),
            weight_frac=np.array([6, 7, 8, 9]),
            bias=np.array([1, 2, 3, 4]),
            inputs=(hidden,),
            outputs=(*state, gate, gate),
        ),
        rounding=rounding,
    )


@needs_compiler
def test_no_sum_leaves_its_type(
    rules: list[LayeredRule], c_program: Any, extreme_state: Make, tmp_path: Path
) -> None:
    extremes = [full_accumulators(rule) for rule in rules[:4]]
    extremes += [widest_formats(Rounding.RND_CONV), widest_formats(Rounding.RND)]
    program = compile_all(c_program, extremes, tmp_path)
    for number, rule in enumerate(extremes):
        state = extreme_state(rule, number, 4, 5)
        samples = extreme_state(rule, number + 9, 3, 4, 5)[:, rule.config.channels]
        valid = np.random.default_rng(number).random(samples.shape) < 0.5
        assert_c_is_the_rule(program, number, rule, state, samples, valid)


@needs_compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_header_is_c_plus_plus_too(program: Any) -> None:
    done = program.compile("g++", "-x", "c++", "-fsyntax-only")
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_shipped_rules_are_the_same_in_c(
    c_program: Any, extreme_state: Make, tmp_path: Path
) -> None:
    names = ("retina-int", "retina-shift")
    rules = [LayeredRule.load(rule_path(name)) for name in names]
    program = compile_all(c_program, rules, tmp_path)
    for number, rule in enumerate(rules):
        state = extreme_state(rule, number, 9, 7)
        samples = extreme_state(rule, number + 1, 4, 9, 7)[:, rule.config.channels]
        valid = np.random.default_rng(number).random(samples.shape) < 0.2
        assert_c_is_the_rule(program, number, rule, state, samples, valid)


# The text


@pytest.fixture
def rule(small_config: Make, random_rule: Make) -> LayeredRule:
    made: LayeredRule = random_rule(1, small_config(fire_rate=0.5))
    return dataclasses.replace(made, dither=3)


def test_header_has_no_other_file_and_no_memory(rule: LayeredRule) -> None:
    text = c_header(rule)
    assert re.findall(r"#include (\S+)", text) == ["<stddef.h>", "<stdint.h>"]
    assert "malloc" not in text
    statics = re.findall(r"^static (\w+)", text, re.MULTILINE)
    assert set(statics) == {"const", "inline"}


def test_every_name_starts_with_the_one_given(rule: LayeredRule) -> None:
    text = c_header(rule, "night_2")
    names = re.findall(r"^(?:#define|static \w+ \w+) (\w+)", text, re.MULTILINE)
    assert {"NIGHT_2_CHANNELS", "night_2_weight_1", "night_2_step"} <= set(names)
    assert all(name.lower().startswith("night_2_") for name in names), names
    assert "scotopia" not in text


def test_header_is_easy_on_the_eye(rules: list[LayeredRule]) -> None:
    for rule in rules:
        text = c_header(rule)
        assert "{{" not in text.replace("{ {", "")
        assert [line for line in text.splitlines() if len(line) > 100] == []
        assert not re.search(r"[ \t]$|\n\n\n|\t", text, re.MULTILINE)


def test_header_tells_what_codes_mean(small_config: Make, random_rule: Make) -> None:
    text = c_header(random_rule(0, small_config()))
    assert (
        " *   channel  name    codes        value       meaning\n"
        " *   0        x0      -128 to 127  code / 128  prediction: pixel = (value + 1) * 128\n"
        " *   1        x1      -128 to 127  code / 128\n"
        " *   2        x2      -128 to 127  code / 128\n"
        " *   3        sample  -128 to 127  code / 128\n"
        " *   4        trace   0 to 7       code / 8\n"
    ) in text


def graph_rule(formats: Sequence[QFormat] = (), **surroundings: Any) -> GraphRule:
    """A rule that is no layered one, with the inputs of its events, all of Q1.7 by default."""
    build, unit = Builder(), QFormat(1, 7)
    x = build.channels({"light": unit})
    for event, format in itertools.zip_longest(
        surroundings.get("events", ()), formats, fillvalue=unit
    ):
        x = x + build.inputs({event.value: format})
        if event.flag:
            x = build.where(build.inputs({event.flag: QFormat(1, 0, signed=False)}), x, 0.0)
    return GraphRule(build.graph({"light": x.fit(unit)}), **surroundings)


def test_a_rule_without_events_sees_no_pixels() -> None:
    text = c_header(graph_rule(initial=Initial.cell(np.array([0.5]))), "eye")
    assert " *   eye_start(state, height, width);\n *   for each frame {\n" in text
    assert (
        " *       EYE_STEPS_PER_FRAME times {\n *           eye_step(state, NULL, NULL,\n" in text
    )
    assert "pixel" not in text and "valid" not in text


def test_events_have_the_names_of_their_rule() -> None:
    text = c_header(graph_rule(events=(Event("int"), Event("touch", "is touched"))), "eye")
    assert (
        " *       where a pixel (0 to 255) arrived: int_2[cell] = eye_sample(pixel);\n"
        " *       where a pixel (0 to 255) arrived: touch[cell] = eye_sample(pixel), "
        "is_touched[cell] = 1;\n"
        " *       elsewhere: is_touched[cell] = 0;\n"
    ) in text
    assert "int32_t *int_2, const int32_t *touch, const uint8_t *is_touched," in text


def test_pixels_are_shown_in_any_format_that_holds_them() -> None:
    events = Event("a"), Event("b")
    text = c_header(graph_rule([QFormat(2, 8), QFormat(2, 8)], events=events), "eye")
    assert "return (pixel - 128) * 2;" in text and "b[cell] = eye_sample(pixel)" in text
    for formats in ([QFormat(2, 8), QFormat(1, 8)], [QFormat(0, 8, signed=False)] * 2):
        text = c_header(graph_rule(formats, events=events), "eye")
        assert "eye_sample" not in text and "where a code arrived: a[cell] = code;" in text


def test_same_rule_gives_the_same_file(rule: LayeredRule, tmp_path: Path) -> None:
    export_c(rule, tmp_path / "a.h")
    export_c(rule, tmp_path / "b.h")
    assert (tmp_path / "a.h").read_bytes() == (tmp_path / "b.h").read_bytes()


@pytest.mark.parametrize("name", ["", "3d", "my-rule", "rule.h", "_rule", "a__b", "a_", "é", "a b"])
def test_name_that_is_no_identifier_is_refused(
    rule: LayeredRule, name: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        export_c(rule, tmp_path / "rule.h", name)
    assert str(caught.value) == (
        f"name {name!r} cannot start C identifiers: choose letters, digits and single "
        "underscores, a letter first, such as scotopia"
    )
    assert list(tmp_path.iterdir()) == []


def fail_to_write(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_full_disk_leaves_nothing_under_the_name(
    rule: LayeredRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", fail_to_write)
    with pytest.raises(OSError, match="No space left"):
        export_c(rule, tmp_path / "rule.h")
    assert list(tmp_path.iterdir()) == []
