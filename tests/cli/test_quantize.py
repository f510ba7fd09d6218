import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scotopia.hdl.estimate import estimate
from scotopia.model.checkpoint import digest
from scotopia.model.rule import Rule
from scotopia.model.video import load_clip
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import IntegerRule

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., object]


@pytest.fixture
def rule(float_rule: Make, small_config: Make, tmp_path: Path) -> Path:
    path = tmp_path / "rule.safetensors"
    made = float_rule(0, small_config(inputs=("trust", "recall")))
    assert isinstance(made, Rule)
    made.save(path)
    return path


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    """A clip that is just long enough to be scored."""
    path = tmp_path / "moving.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (21, 128, 128)).astype(np.uint8))
    return path


def test_the_report_tells_what_would_clip(run: Run, rule: Path, moving: Path) -> None:
    out, target = rule.with_name("int.safetensors"), rule.with_name("report.json")
    status, printed, _ = run(
        *("quantize", rule, "--out", out, "--calibrate", moving, "--json", target),
        *("--method", "max"),
    )
    report = json.loads(target.read_text())
    assert status == 0
    assert report["calibration"] == "max"
    assert [row["clipped"] for row in report["hidden"]] == [0, 0, 0]
    formats = [row["format"] for row in report["hidden"]]
    assert formats == [str(format) for format in IntegerRule.load(out).perceive.outputs]
    assert all(format in printed for format in formats)


def test_widths_that_are_not_given_are_those_of_precision(
    run: Run, rule: Path, moving: Path
) -> None:
    out, default = rule.with_name("int.safetensors"), Precision()
    assert run("quantize", rule, "--out", out, "--calibrate", moving)[0] == 0
    made = IntegerRule.load(out)
    assert {format.bits for format in made.state_formats} == {made.sample_format.bits}
    assert {format.bits for format in made.perceive.outputs} == {default.hidden}
    assert (made.sample_format.bits, made.gate_format.bits) == (default.state, default.gate)


def test_the_record_says_how_and_by_which_clips_a_rule_was_quantized(
    run: Run, rule: Path, moving: Path
) -> None:
    out, narrow = rule.with_name("int.safetensors"), rule.with_name("narrow.safetensors")
    first = ("quantize", rule, "--out", out, "--weight-bits", 2)  # little is left to search
    assert run(*first)[0] == 0
    synthetic = [f"synthetic_{number}" for number in range(1000, 1004)]
    assert IntegerRule.load(out).training["clips"] == synthetic  # it was never trained
    command = ("quantize", out, "--out", narrow, "--max-loss", 0.5, "--calibrate", moving)
    assert run(*command)[0] == 0
    record = IntegerRule.load(narrow).training
    assert record["quantized_by"] == [f"scotopia {' '.join(map(str, c))}" for c in (first, command)]
    assert record["clips"] == [*synthetic, "moving"]
    assert record["digests"]["moving"] == digest(load_clip(moving))


def test_a_search_lowers_the_luts_of_an_array(run: Run, rule: Path, moving: Path) -> None:
    out, target = rule.with_name("fast.st"), rule.with_name("report.json")
    search = ("--max-loss", 0.5, "--cost", "luts", "--calibrate", moving, "--json", target)
    assert run("quantize", rule, "--out", out, "--weight-bits", 3, *search)[0] == 0
    found = json.loads(target.read_text())["search"]
    luts = estimate(IntegerRule.load(out), 8, 8).lut4_per_thousand_updates
    assert found["after"]["luts"] == luts < found["before"]["luts"]


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [("scales", "cell", "output, kernel, weight"), ("cost", "gold", "bits, luts")],
)
def test_unknown_ways_are_refused(
    option: str, value: str, choices: str, run: Run, rule: Path, moving: Path
) -> None:
    status, _, error = run(
        *("quantize", rule, "--out", rule.with_name("x.st"), "--calibrate", moving),
        *(f"--{option}", value),
    )
    assert status == 2
    verb = "are" if option == "scales" else "is"
    assert f"{option} '{value}' {verb} unknown: choose one of {choices}" in " ".join(error.split())


def test_a_search_takes_bits_and_tells_what_they_cost(run: Run, rule: Path, moving: Path) -> None:
    whole, narrow, target = (rule.with_name(name) for name in ("a.st", "b.st", "report.json"))
    calibrate = ("--calibrate", moving)
    assert run("quantize", rule, "--out", whole, *calibrate)[0] == 0
    search = ("--max-loss", 0.5, "--json", target, *calibrate)
    assert run("quantize", whole, "--out", narrow, *search)[0] == 0
    found = json.loads(target.read_text())["search"]
    assert found["after"]["bits"] < found["before"]["bits"]
    assert found["after"]["psnr"] >= found["before"]["psnr"] - 0.5
    before, after = IntegerRule.load(whole), IntegerRule.load(narrow)
    assert after.state_bits <= before.state_bits
    assert np.abs(after.perceive.weight).sum() < np.abs(before.perceive.weight).sum()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--max-loss", 0), "max_loss 0 is not above 0: choose 0.1, for instance"),
        (
            ("--max-loss", 1, "--cells", 0),
            "cells 0 is below 1: choose 4096 for an array of 64 x 64",
        ),
        (
            ("--max-loss", 1),
            "a search for fewer bits needs clips like those that the rule is to see: "
            "give --calibrate CLIP",
        ),
        (
            ("--method", "median"),
            "calibration 'median' is unknown: choose one of max, percentile, mse",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[object, ...], sentence: str, run: Run, rule: Path, moving: Path
) -> None:
    out = rule.with_name("int.safetensors")
    calibrate = () if "give --calibrate" in sentence else ("--calibrate", moving)
    status, _, error = run("quantize", rule, "--out", out, *calibrate, *arguments)
    assert (status, error) == (2, f"scotopia: {sentence}\n")
    assert not out.exists()


def test_an_integer_rule_is_only_searched(run: Run, moving: Path, tmp_path: Path) -> None:
    out = tmp_path / "int.safetensors"
    status, _, error = run("quantize", "retina-int", "--out", out, "--calibrate", moving)
    assert status == 2 and "integer rule" in error
