import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from scotopia.graph import golden
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.lfsr import RowRegisters
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.model.config import INPUTS
from scotopia.model.files import MAX_BYTES
from scotopia.model.rule import Rule
from scotopia.quantize.formats import Formats, Precision, unsigned_format
from scotopia.quantize.layered_graph import gated_update
from scotopia.quantize.layered_rule import IntegerLayer, LayeredRule, check_supported
from scotopia.quantize.task import run

Make = Callable[..., Any]  # a fixture of conftest.py

KINDS = ["gated", "residual"]
BORDERS = ["zero", "replicate", "wrap"]


def fit_exactly(code: int, format: QFormat, overflow: Overflow) -> int:
    """Bring a code into its format's range by the words of UG1399."""
    if overflow is Overflow.WRAP:
        kept = code % 2**format.bits
        return kept - 2**format.bits if kept > format.highest else kept
    symmetric = overflow is Overflow.SAT_SYM and format.signed
    return sorted([-format.highest if symmetric else format.lowest, code, format.highest])[1]


def reference_step(
    rule: LayeredRule,
    state: list[Any],
    sample: list[Any],
    valid: list[Any],
    round_exactly: Callable[[Fraction, Rounding], int],
    noise: Sequence[Any] = (),
) -> list[Any]:
    """One step in rational numbers, cell by cell, from the docstrings alone."""
    config = rule.config
    height, width = len(sample), len(sample[0])
    formats = rule.channel_formats
    S, T = config.channels, config.channels + 1  # sample, trace

    def code(value: Fraction, format: QFormat) -> int:
        rounded = round_exactly(value * Fraction(2) ** format.frac_bits, rule.rounding)
        return fit_exactly(rounded, format, rule.overflow)

    def number(planes: Sequence[Any], y: int, x: int) -> int:
        return int("0" + "".join(str(plane[y][x]) for plane in planes), 2)

    def value(code: int, format: QFormat) -> Fraction:
        return code * Fraction(2) ** -format.frac_bits

    def run(layer: IntegerLayer, output: int, seen: list[list[Fraction]]) -> int:
        frac = int(layer.weight_frac[output])
        total = sum(
            int(weight) * Fraction(2) ** -frac * shown
            for weights, tap in zip(layer.weight[output], seen, strict=True)
            for weight, shown in zip(weights, tap, strict=True)
        )
        bias_frac = frac + max(f.frac_bits for f in layer.inputs)
        total += int(layer.bias[output]) * Fraction(2) ** -bias_frac
        return code(total, layer.outputs[output])

    new = [[[0] * width for _ in range(height)] for _ in formats]
    shown: dict[tuple[int, int], list[Fraction]] = {}
    for y in range(height):
        for x in range(width):
            arrived = bool(valid[y][x])
            last = sample[y][x] if arrived else state[S][y][x]
            trace = 2**config.trace_bits - 1 if arrived else max(0, state[T][y][x] - 1)
            new[S][y][x], new[T][y][x] = last, trace
            surprise = value(last, formats[S]) - value(state[0][y][x], formats[0])
            inputs = {
                "sample": value(last, formats[S]),
                "trace": value(trace, formats[T]),
                "valid": Fraction(arrived),
                "fresh": Fraction(arrived and state[T][y][x] < 2**config.trace_bits - 1),
                "flicker": Fraction(0),
                "innovation": arrived * surprise,
            }
            if state[T][y][x] > 0:
                inputs["flicker"] = value(last - state[S][y][x], formats[S])
            if "trust" in config.inputs:
                t = value(trace, formats[T])
                recency = t + max(Fraction(0), 8 * t - 7) + 2 * max(Fraction(0), 64 * t - 63)
                doubt = value(state[1][y][x], formats[1])
                by_name = dict(zip(config.inputs, rule.input_formats, strict=True))
                # What the cell works on is the trust as it shows it.
                inputs["trust"] = recency - 4 * doubt
                trust = value(code(inputs["trust"], by_name["trust"]), by_name["trust"])
                inputs["recall"] = trust * surprise
            shown[y, x] = [value(state[c][y][x], formats[c]) for c in range(S)] + [
                value(code(inputs[name], format), format)
                for name, format in zip(config.inputs, rule.input_formats, strict=True)
            ]

    def neighbour(y: int, x: int) -> list[Fraction]:
        if config.border == "wrap":
            return shown[y % height, x % width]
        if config.border == "replicate":
            return shown[sorted([0, y, height - 1])[1], sorted([0, x, width - 1])[1]]
        return shown.get((y, x), [Fraction(0)] * config.perceived)

    for y in range(height):
        for x in range(width):
            taps = [neighbour(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            seen = [list(channel) for channel in zip(*taps, strict=True)]
            hidden = [
                [value(run(rule.perceive, i, seen), format)]
                for i, format in enumerate(rule.perceive.outputs)
            ]
            fires = True
            if config.fire_rate < 1:
                rate = round_exactly(Fraction(config.fire_rate) * 256, Rounding.RND_CONV)
                fires = number(noise[:8], y, x) < rate
            below = Fraction(number(noise[-rule.dither :], y, x) if rule.dither else 0)
            for c in range(config.channels):
                new[c][y][x] = state[c][y][x]
                if not fires:
                    continue
                here = value(state[c][y][x], formats[c])
                change = value(run(rule.update, c, hidden), rule.update.outputs[c])
                if config.kind == "residual":
                    new[c][y][x] = code(here + change, formats[c])
                    continue
                gate = value(run(rule.update, config.channels + c, hidden), rule.gate_format)
                # What is rounded is the change, not the sum; nothing can leave the format.
                change = gate * (change - here) * 2 ** formats[c].frac_bits
                if rule.dither:
                    new[c][y][x] += math.floor(change + below / 2**rule.dither)
                else:
                    new[c][y][x] += round_exactly(change, rule.rounding)
    return new


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounding", [Rounding.TRN, Rounding.RND, Rounding.RND_CONV])
@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("formats", ["4 bits", "8 bits", "mixed", "mixed and coarse"])
def test_step_is_the_arithmetic_of_the_docstrings(
    kind: str,
    border: str,
    rounding: Rounding,
    overflow: Overflow,
    formats: str,
    small_config: Make,
    random_rule: Make,
    mixed_rule: Make,
    extreme_state: Make,
    round_exactly: Any,
) -> None:
    config = small_config(kind=kind, border=border, hidden=2)
    if formats.startswith("mixed"):
        rule = mixed_rule(1, config, rounding, coarse="coarse" in formats)
    else:
        bits = int(formats[0])
        rule = random_rule(1, config, Precision(bits, bits, bits, bits), rounding)
    rule = dataclasses.replace(rule, overflow=overflow)
    state, other = extreme_state(rule, 2, 2, 3), extreme_state(rule, 3, 2, 3)
    sample, valid = other[config.channels], np.random.default_rng(4).random((2, 3)) < 0.5
    expected = reference_step(rule, state.tolist(), sample.tolist(), valid.tolist(), round_exactly)
    np.testing.assert_array_equal(rule.step(state, rule.given(sample, valid)), expected)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    border=st.sampled_from(BORDERS),
    rounding=st.sampled_from(Rounding),
    overflow=st.sampled_from(Overflow),
    fire_rate=st.sampled_from([1.0, 0.999, 0.7, 0.5, 0.1]),
    dither=st.integers(0, 8),
    coarse=st.booleans(),
)
def test_step_of_random_rules_is_that_arithmetic(
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
    round_exactly: Any,
) -> None:
    config = small_config(kind=kind, border=border, fire_rate=fire_rate, channels=2, hidden=2)
    rule = mixed_rule(seed, config, rounding, coarse)
    dither = 0 if kind == "residual" else min(dither, rule.gate_format.frac_bits)
    rule = dataclasses.replace(rule, overflow=overflow, dither=dither)
    state, other = extreme_state(rule, seed, 2, 3), extreme_state(rule, seed + 1, 2, 3)
    sample, valid = other[config.channels], np.random.default_rng(seed).random((2, 3)) < 0.5
    noise = RowRegisters(2, 3, seed).planes(rule.noise_planes)
    expected = reference_step(
        rule, state.tolist(), sample.tolist(), valid.tolist(), round_exactly, noise.tolist()
    )
    np.testing.assert_array_equal(rule.step(state, rule.given(sample, valid), noise), expected)


@pytest.mark.parametrize(
    "inputs", [(), ("trace",), ("valid", "trust", "recall"), ("flicker", "innovation")]
)
def test_step_perceives_only_the_inputs_of_its_config(
    inputs: tuple[str, ...],
    small_config: Make,
    random_rule: Make,
    extreme_state: Make,
    round_exactly: Any,
) -> None:
    rule = random_rule(5, small_config(inputs=inputs))
    state = extreme_state(rule, 6, 2, 2)
    sample, valid = extreme_state(rule, 7, 2, 2)[3], np.array([[True, False], [False, True]])
    expected = reference_step(rule, state.tolist(), sample.tolist(), valid.tolist(), round_exactly)
    np.testing.assert_array_equal(rule.step(state, rule.given(sample, valid)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_dimensions_do_not_mix(
    kind: str, small_config: Make, mixed_rule: Make, extreme_state: Make
) -> None:
    rule = mixed_rule(8, small_config(kind=kind, fire_rate=0.5))
    rule = dataclasses.replace(rule, dither=2 if kind == "gated" else 0)
    state = extreme_state(rule, 9, 2, 3, 4, 5)  # (2, 3, C, 4, 5)
    sample = extreme_state(rule, 10, 2, 3, 4, 5)[..., 3, :, :]
    valid = np.random.default_rng(11).random((2, 3, 4, 5)) < 0.5
    noise = random_noise(rule, 12, 2, 3, 4, 5)
    together = rule.step(state, rule.given(sample, valid), noise)
    for i, j in np.ndindex(2, 3):
        alone = rule.step(state[i, j], rule.given(sample[i, j], valid[i, j]), noise[i, j])
        np.testing.assert_array_equal(together[i, j], alone)


@pytest.mark.parametrize("kind", [*KINDS, "dithered"])
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("overflow", Overflow)
def test_no_step_leaves_the_state_formats(
    kind: str,
    rounding: Rounding,
    overflow: Overflow,
    small_config: Make,
    mixed_rule: Make,
    extreme_state: Make,
) -> None:
    for seed in range(5):
        config = small_config(kind="residual" if kind == "residual" else "gated")
        rule = mixed_rule(seed, config, rounding)
        rule = dataclasses.replace(rule, overflow=overflow, dither=2 * (kind == "dithered"))
        state = extreme_state(rule, seed, 16, 6, 6)
        sample = extreme_state(rule, seed + 1, 16, 6, 6)[:, 3]
        valid = np.random.default_rng(seed).random(sample.shape) < 0.5
        state = rule.step(state, rule.given(sample, valid), random_noise(rule, seed, 16, 6, 6))
        for channel, format in enumerate(rule.channel_formats):
            assert format.lowest <= state[:, channel].min()
            assert state[:, channel].max() <= format.highest


# Random bits


def random_noise(rule: LayeredRule, seed: int, *shape: int) -> IntArray:
    """Noise (..., planes, H, W) of a rule, for states of shape (..., C, H, W)."""
    *batch, height, width = shape
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (*batch, rule.noise_planes, height, width))


def bits_of(numbers: IntArray, count: int) -> IntArray:
    """Planes (count, H, W) of numbers (H, W), most significant first."""
    return np.stack([numbers >> place & 1 for place in reversed(range(count))])


@pytest.mark.parametrize(
    ("fire_rate", "fired"),
    [(0.5, 128), (0.002, 1), (0.7, 179), (2.5 / 256, 2), (255 / 256, 255), (0.999, 256)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_cell_holds_its_state_unless_fired_but_takes_samples(
    kind: str,
    fire_rate: float,
    fired: int,
    small_config: Make,
    random_rule: Make,
    extreme_state: Make,
) -> None:
    every = random_rule(3, small_config(kind=kind, channels=8))
    rule = random_rule(3, small_config(kind=kind, channels=8, fire_rate=fire_rate))
    drawn = np.random.default_rng(4).permutation(256).reshape(16, 16)  # each number once
    state, other = extreme_state(rule, 5, 16, 16), extreme_state(rule, 6, 16, 16)
    sample, valid = other[8], np.random.default_rng(7).random((16, 16)) < 0.5
    found = rule.step(state, rule.given(sample, valid), bits_of(drawn, 8))
    expected = every.step(state, every.given(sample, valid))
    assert (expected[:8] != state[:8]).any(0).all()  # so that each cell tells if it fired
    np.testing.assert_array_equal(found[:8], np.where(drawn < fired, expected[:8], state[:8]))
    np.testing.assert_array_equal(found[8:], expected[8:])


def dithered_update(x: IntArray, candidate: IntArray, gate: IntArray, noise: IntArray) -> IntArray:
    """Move (H, W) codes of 8 bits towards a candidate, with a dither of as many bits as planes."""
    build = Builder()
    byte, share = QFormat(1, 7), QFormat(0, 8, signed=False)
    state = build.channels({"x": byte})
    to, much = build.inputs({"candidate": byte, "gate": share})
    dither = build.random(len(noise))
    moved = gated_update(state, to, much, [byte], Rounding.RND, dither)
    inputs = {"candidate": candidate, "gate": gate}
    return golden.step(build.graph({"x": moved}), x[None], inputs, noise)[0]


def test_all_dithers_of_an_update_have_its_exact_mean() -> None:
    rng = np.random.default_rng(10)
    noise = bits_of(np.arange(256).reshape(16, 16), 8)
    for x, candidate in rng.integers(-128, 128, (9, 2)):
        gate = rng.integers(0, 256)
        every = [np.full((16, 16), code) for code in (x, candidate, gate)]
        # Of gate * (c - x) / 256 nothing is lost in the sum over the 256 dithers.
        assert dithered_update(*every, noise).sum() == 256 * x + gate * (candidate - x)


@pytest.mark.parametrize("dither", [4, 8])
def test_dithered_update_is_unbiased(dither: int) -> None:
    rng = np.random.default_rng(11)
    shape = (64, 192)
    x, candidate = rng.integers(-128, 128, (2, *shape))
    # Gates in steps of a dither: below these bits, dropping is what it always was.
    gate = rng.integers(0, 2**dither, shape) << (8 - dither)
    exact = x + gate * (candidate - x) / 256
    registers = RowRegisters(*shape, 1)
    draws = 100
    total = np.zeros(shape)
    for _ in range(draws):
        total += dithered_update(x, candidate, gate, registers.planes(dither))
    error = total / draws - exact
    # A draw errs by less than 1, with a variance of 1/4 at most.
    assert abs(error.mean()) < 4 * 0.5 / np.sqrt(draws * error.size)
    assert abs(error).max() < 5.5 * 0.5 / np.sqrt(draws)
    # Truncation, for comparison, loses half a code on average.
    dropped = x + (gate * (candidate - x) >> 8) - exact
    assert dropped.mean() < -0.4


def test_no_dither_changes_a_closed_gate() -> None:
    x = np.random.default_rng(12).integers(-128, 128, (16, 16))
    noise = bits_of(np.arange(256).reshape(16, 16), 8)
    np.testing.assert_array_equal(dithered_update(x, 127 - x, np.zeros_like(x), noise), x)


@pytest.mark.parametrize(
    ("kind", "fire_rate", "dither", "planes"),
    [
        ("gated", 1.0, 0, 0),
        ("gated", 0.5, 0, 8),
        ("gated", 1.0, 3, 3),
        ("gated", 0.5, 3, 11),
        ("residual", 0.5, 0, 8),
    ],
)
def test_noise_has_the_planes_that_the_rule_takes(
    kind: str,
    fire_rate: float,
    dither: int,
    planes: int,
    small_config: Make,
    random_rule: Make,
    extreme_state: Make,
) -> None:
    config = small_config(kind=kind, fire_rate=fire_rate)
    rule = dataclasses.replace(random_rule(0, config), dither=dither)
    assert rule.noise_planes == planes
    state = extreme_state(rule, 1, 2, 2)
    nothing = rule.given(state[3], np.zeros((2, 2), bool))
    rule.step(state, nothing, np.zeros((planes, 2, 2), np.int64))
    with pytest.raises(
        ValueError, match=f"^noise has {planes + 1} planes, the rule takes {planes}"
    ):
        rule.step(state, nothing, np.zeros((planes + 1, 2, 2), np.int64))
    if planes:
        with pytest.raises(ValueError, match=f"^noise has 0 planes, the rule takes {planes}$"):
            rule.step(state, nothing)


def test_run_draws_the_planes_of_its_seed(small_config: Make, random_rule: Make) -> None:
    rule = random_rule(2, small_config(fire_rate=0.5))
    rule = dataclasses.replace(rule, dither=3, noise_seed=4)
    rng = np.random.default_rng(3)
    frames, mask = rng.random((3, 4, 5)).astype(np.float32), rng.random((3, 4, 5)) < 0.5
    noise = RowRegisters(4, 5, 4).planes(3 * 2 * 11).reshape(3, 2, 11, 4, 5)
    state, expected = rule.initial_state(4, 5), []
    for t in range(3):
        for step in range(2):
            state = rule.step(
                state, rule.given(rule.sample_codes(frames[t]), mask[t]), noise[t, step]
            )
        expected.append(state)
    np.testing.assert_array_equal(list(run(rule, frames, mask)), expected)
    other = dataclasses.replace(rule, noise_seed=5)
    assert (np.array(list(run(other, frames, mask))) != expected).any()


def test_quantizing_keeps_the_fire_rate(small_config: Make, float_rule: Make) -> None:
    rule = float_rule(0, small_config(fire_rate=0.25))
    hidden = [unsigned_format(2, 8)] * 3
    integer = Formats.choose(rule, hidden, Precision()).integer_rule(rule)
    assert (integer.config.fire_rate, integer.noise_planes) == (0.25, 8)


def test_accumulator_bound_is_reached_by_the_worst_inputs() -> None:
    layer = IntegerLayer(
        weight=np.array([[[3, -5]]]),
        weight_frac=np.array([2]),
        bias=np.array([-7]),
        inputs=(QFormat(1, 3),),
        outputs=(QFormat(1, 3),),
    )
    # 8 * (3 + 5) from the weights, 7 from the bias, 2 from rounding at a shift of 2
    assert layer.accumulator_bound == 8 * 8 + 7 + 2


@pytest.mark.parametrize(
    ("frac_bits", "codes"), [(7, [-128, 0, 127]), (3, [-8, 0, 7]), (9, [-512, 0, 508])]
)
def test_sample_codes_are_the_sensors_bits(
    frac_bits: int, codes: list[int], small_config: Make, random_rule: Make
) -> None:
    rule = random_rule(0, small_config(), Precision(6, frac_bits + 1))
    pixels = np.array([0, 128 / 255, 1])
    assert rule.sample_codes(pixels).tolist() == codes


def test_pixels_undo_sample_codes(small_config: Make, random_rule: Make) -> None:
    rule = random_rule(0, small_config())
    pixels = np.arange(256) / 255
    np.testing.assert_allclose(rule.pixels(rule.sample_codes(pixels)), pixels, atol=1e-6)


# Files


@pytest.fixture
def rule(small_config: Make, mixed_rule: Make) -> LayeredRule:
    made: LayeredRule = mixed_rule(12, small_config(fire_rate=0.3), Rounding.RND_CONV)
    return dataclasses.replace(
        made,
        overflow=Overflow.SAT_SYM,
        dither=2,
        noise_seed=2**32 - 1,
        training={"clips": ["a"], "seed": 3},
    )


@pytest.fixture
def path(rule: LayeredRule, tmp_path: Path) -> Path:
    path = tmp_path / "rule.safetensors"
    rule.save(path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        LayeredRule.load(path)
    return str(caught.value)


def edit(
    path: Path,
    description: Callable[[dict[str, Any]], object] = lambda description: None,
    tensors: Callable[[dict[str, Any]], object] = lambda tensors: None,
    **metadata: str,
) -> None:
    """Write the file again with its description, tensors or metadata changed."""
    held = load_file(path)
    header = (
        json.loads(path.read_bytes()[8:].split(b"\0")[0].partition(b"}}")[0] + b"}}")
        if (False)
        else header_of(path)
    )
    described = json.loads(header["description"])
    description(described)
    tensors(held)
    save_file(held, path, header | {"description": json.dumps(described)} | metadata)


def header_of(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def test_saved_rule_loads_with_every_field(rule: LayeredRule, path: Path) -> None:
    loaded = LayeredRule.load(path)
    for field in dataclasses.fields(LayeredRule):
        found, expected = getattr(loaded, field.name), getattr(rule, field.name)
        if isinstance(expected, IntegerLayer):
            for name in ("weight", "weight_frac", "bias"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
                assert getattr(found, name).dtype == np.int64
            assert (found.inputs, found.outputs) == (expected.inputs, expected.outputs)
        elif field.name != "proof":  # found on loading
            assert found == expected, field.name


def test_saved_rule_steps_as_before(rule: LayeredRule, path: Path, extreme_state: Make) -> None:
    state, sample = extreme_state(rule, 1, 4, 4), extreme_state(rule, 2, 4, 4)[3]
    valid = np.eye(4, dtype=bool)
    loaded, noise = LayeredRule.load(path), random_noise(rule, 3, 4, 4)
    np.testing.assert_array_equal(
        loaded.step(state, loaded.given(sample, valid), noise),
        rule.step(state, rule.given(sample, valid), noise),
    )


def test_older_file_has_neither_dither_nor_seed(path: Path) -> None:
    edit(path, lambda d: (d.pop("dither"), d.pop("noise_seed")))
    loaded = LayeredRule.load(path)
    assert (loaded.dither, loaded.noise_seed) == (0, 1)


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert refusal(path) == (
        f"rule {path} does not exist: give the path of a .safetensors rule file"
    )


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 0.3, 0.9, -1])
def test_truncated_file_is_refused(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    assert re.fullmatch(
        rf"rule {re.escape(str(path))} cannot be read \([^\n]+\): "
        "it is truncated or no rule file; write it again",
        refusal(path),
    )


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_are_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(np.random.default_rng(seed).bytes(5000))
    assert re.fullmatch(
        rf"rule {re.escape(str(path))} cannot be read \([^\n]+\): "
        "it is truncated or no rule file; write it again",
        refusal(path),
    )


def test_file_too_large_to_be_a_rule_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert refusal(path) == (
        f"rule {path} has {MAX_BYTES + 1} bytes, more than {MAX_BYTES}: "
        "give a rule file written by Scotopia"
    )


def test_safetensors_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(3)}, path)
    assert refusal(path) == (
        f"{path} is a safetensors file but no Scotopia rule: "
        "give one written by `scotopia train` or `scotopia quantize`"
    )


def test_other_version_is_refused(path: Path) -> None:
    edit(path, version="9")
    assert refusal(path) == (
        f"rule {path} has version 9, this Scotopia reads version 2: "
        "write it again with this Scotopia"
    )


def test_float_rule_is_not_an_integer_rule(tmp_path: Path, small_config: Make) -> None:
    path = tmp_path / "float.safetensors"
    Rule(small_config()).save(path)
    assert refusal(path) == (
        f"{path} is a Scotopia float rule, not a Scotopia integer rule: "
        "make one with `scotopia quantize`"
    )


def test_integer_rule_is_not_a_float_rule(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Rule.load(path)
    assert str(caught.value) == (
        f"{path} is a Scotopia integer rule, not a Scotopia float rule: name its source"
    )


def set_weight(code: int, dtype: type = np.int64) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        weight = tensors["perceive.weight"].astype(dtype)
        weight.flat[0] = code
        tensors["perceive.weight"] = weight

    return change


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            lambda t: t.update({"perceive.weight": t["perceive.weight"][:2]}),
            "weight has shape (2, 11, 9), its formats ask for (3, 11) and a number of taps: "
            "write the rule again",
        ),
        (
            lambda t: t.update({"perceive.weight": t["perceive.weight"][..., :8].copy()}),
            "perceive taps number 8, the rule asks for 9: write the rule again",
        ),
        (
            lambda t: t.update({"update.bias": t["update.bias"][1:]}),
            "bias has shape (5,), its formats ask for (6,): write the rule again",
        ),
        (
            lambda t: t.update({"update.weight": t["update.weight"].astype(np.float32)}),
            "update.weight holds float32, not integers: write it again",
        ),
        (
            lambda t: t["perceive.weight_frac"].fill(-32),
            "weight_frac reaches 32, the most is 31: quantize the rule again",
        ),
    ],
    ids=["outputs", "taps", "bias", "floats", "scale"],
)
def test_tensors_that_contradict_the_description_are_refused(
    path: Path, tensors: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    edit(path, tensors=tensors)
    assert refusal(path) == f"rule {path}: {sentence}"


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        (
            lambda d: d["config"].update(channels=33),
            "channels 33 is outside 1 to 32: choose one inside",
        ),
        (
            lambda d: d["config"].update(hidden=4),
            "perceive outputs number 3, the rule asks for 4: write the rule again",
        ),
        (
            lambda d: d["config"].update(fire_rate=0.0019),
            "fire_rate 0.0019 rounds to 0/256: choose at least 0.002",
        ),
        (lambda d: d.update(dither=2.5), "dither 2.5 is outside 0 to 8: choose one inside"),
        (
            lambda d: d.update(noise_seed=None),
            "noise_seed None is outside 0 to 4294967295: choose one inside",
        ),
        (
            lambda d: d["formats"].update(sample=[1, 12, True]),
            "input sample has format Q1.6, its register Q1.12: "
            "choose the same, since the cells read the register",
        ),
        (
            lambda d: d["formats"].update(gate=[0, 7, True]),
            "format Q0.7 of gate or hidden is signed: choose UQ0.8",
        ),
        (
            lambda d: d["formats"]["state"].__setitem__(1, [1, 40, True]),
            "format Q1.40 has 41 bits: choose int_bits + frac_bits from 1 to 32",
        ),
    ],
)
def test_description_that_contradicts_itself_is_refused(
    path: Path, description: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    edit(path, description)
    assert refusal(path) == f"rule {path}: {sentence}"


@pytest.mark.parametrize(
    "description",
    [
        lambda d: d.pop("config"),
        lambda d: d["config"].update(depth=3),
        lambda d: d["config"].update(inputs=5),
        lambda d: d["formats"].pop("hidden"),
        lambda d: d["formats"].update(gate=8),
        lambda d: d["formats"].update(gate=[0, "8", False]),
        lambda d: d["formats"].update(hidden=[]),
        lambda d: d.update(rounding="NEAREST"),
        lambda d: d.update(overflow="CLIP"),
        lambda d: d.update(training=5),
    ],
)
def test_description_that_lacks_something_is_refused(
    path: Path, description: Callable[[dict[str, Any]], object]
) -> None:
    edit(path, description)
    assert re.fullmatch(
        rf"rule {re.escape(str(path))}( has no valid description \([^\n]+\): write it again|: .*)",
        refusal(path),
    )


@pytest.mark.parametrize("text", ["{", "[]", "nonsense", "null", "[" * 10**5])
def test_description_that_is_no_object_is_refused(path: Path, text: str) -> None:
    save_file(load_file(path), path, header_of(path) | {"description": text})
    assert refusal(path).startswith(f"rule {path} has no valid description (")


def test_file_without_description_is_refused(path: Path) -> None:
    metadata = header_of(path)
    del metadata["description"]
    save_file(load_file(path), path, metadata)
    assert refusal(path) == (
        f"rule {path} has no valid description (KeyError('description')): write it again"
    )


def test_tensor_of_a_type_that_numpy_has_not_is_refused(path: Path) -> None:
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(path).items()}
    tensors["update.weight"] = tensors["update.weight"].bfloat16()
    safetensors.torch.save_file(tensors, path, header_of(path))
    assert refusal(path).startswith(
        f"rule {path} has a tensor of a type or shape that no rule has ("
    )


def test_missing_tensor_is_refused(path: Path) -> None:
    edit(path, tensors=lambda tensors: tensors.pop("update.bias"))
    assert refusal(path) == (
        f"rule {path} has no valid description (KeyError('update.bias')): write it again"
    )


@pytest.mark.parametrize("code", [2**31 - 1, -(2**31), 2**62, -(2**63)])
def test_absurd_weight_is_refused(path: Path, code: int) -> None:
    edit(path, tensors=set_weight(code))
    assert refusal(path).startswith(f"rule {path}: ")


@pytest.mark.parametrize("frac_bits", [60, 100, 10**6])
def test_absurd_format_is_refused(path: Path, frac_bits: int) -> None:
    edit(path, lambda d: d["formats"]["hidden"].__setitem__(0, [8 - frac_bits, frac_bits, False]))
    assert refusal(path).startswith(f"rule {path}: ")


@pytest.mark.parametrize("int_bits", [4, -1])
def test_gate_that_is_not_between_0_and_1_is_refused(path: Path, int_bits: int) -> None:
    # With a gate above 1, x + z (c - x) leaves the state's format.
    format = [int_bits, 8 - int_bits, False]
    edit(path, lambda description: description["formats"].update(gate=format))
    assert refusal(path) == (
        f"rule {path}: gate format UQ{int_bits}.{8 - int_bits} has int_bits {int_bits}, not 0: "
        "choose UQ0.8"
    )


@pytest.mark.parametrize("name", ["sample", "trace"])
def test_register_is_perceived_in_its_own_format(path: Path, name: str) -> None:
    # The array reads the register's own word; it has no second, rounded one.
    edit(path, lambda d: d["formats"]["inputs"].__setitem__(INPUTS.index(name), [3, 1, True]))
    own = {"sample": "Q1.6", "trace": "UQ0.3"}[name]
    assert refusal(path) == (
        f"rule {path}: input {name} has format Q3.1, its register {own}: "
        "choose the same, since the cells read the register"
    )


def test_prediction_and_sample_have_one_format(small_config: Make, random_rule: Make) -> None:
    rule = random_rule(0, small_config(inputs=()))
    with pytest.raises(InputError) as caught:
        dataclasses.replace(rule, sample_format=QFormat(1, 5))
    assert str(caught.value) == (
        "prediction format Q1.7 differs from sample format Q1.5: "
        "choose the same, since one predicts the other"
    )


@pytest.mark.parametrize(
    ("config", "fields", "sentence"),
    [
        ({}, {"dither": 9}, "dither 9 is outside 0 to 8: choose one inside"),
        ({}, {"dither": -1}, "dither -1 is outside 0 to 8: choose one inside"),
        (
            {},
            {"dither": 5},
            "dither 5 is more than the 4 fraction bits of gate format UQ0.4: choose at most 4",
        ),
        (
            {"kind": "residual"},
            {"dither": 1},
            "dither 1 is not defined in a residual rule, whose update needs no rounding: choose 0",
        ),
        ({}, {"noise_seed": -1}, "noise_seed -1 is outside 0 to 4294967295: choose one inside"),
        (
            {},
            {"noise_seed": 2**32},
            "noise_seed 4294967296 is outside 0 to 4294967295: choose one inside",
        ),
    ],
)
def test_noise_that_no_rule_can_have_is_refused(
    config: dict[str, Any],
    fields: dict[str, int],
    sentence: str,
    small_config: Make,
    random_rule: Make,
) -> None:
    rule = random_rule(0, small_config(**config), Precision(gate=4))
    with pytest.raises(InputError) as caught:
        dataclasses.replace(rule, **fields)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"block": 2, "channels": 5},
            "block 2, perception full are not supported in an integer rule: choose 1, full",
        ),
        (
            {"perception": "sobel"},
            "block 1, perception sobel are not supported in an integer rule: choose 1, full",
        ),
        ({"fire_rate": 1 / 512}, "fire_rate 0.001953125 rounds to 0/256: choose at least 0.002"),
    ],
)
def test_shape_that_no_integer_rule_can_have_is_refused(
    fields: dict[str, Any], sentence: str, small_config: Make
) -> None:
    with pytest.raises(InputError) as caught:
        check_supported(small_config(**fields))
    assert str(caught.value) == sentence


def test_full_disk_keeps_the_rule_that_was_there(
    rule: LayeredRule, path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    before = path.read_bytes()
    with largest_file(100), pytest.raises(OSError, match=f"File too large: '{path}'"):
        dataclasses.replace(rule, training={}).save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_hardware_stages_load_a_rule_without_torch(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import scotopia.hdl.emit, scotopia.sim.stimulus;"
        "from scotopia.quantize.layered_rule import LayeredRule;"
        f"LayeredRule.load(Path({str(path)!r}));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"
