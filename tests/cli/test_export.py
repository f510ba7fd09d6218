from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scotopia.graph.build import Builder
from scotopia.graph.surroundings import Event
from scotopia.model.float_rule import FloatRule
from scotopia.quantize.c_export import c_header
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.qonnx_export import import_qonnx

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., Any]


@pytest.fixture
def integer(random_rule: Make, small_config: Make, tmp_path: Path) -> Path:
    path = tmp_path / "int.safetensors"
    random_rule(0, small_config(), Precision()).save(path)
    return path


def test_an_integer_rule_becomes_a_c_header(run: Run, integer: Path) -> None:
    out = integer.with_name("rule.h")
    assert run("export", integer, "--to", "c", "--name", "eye", "--out", out)[0] == 0
    assert out.read_text() == c_header(IntegerRule.load(integer), "eye")


def test_an_integer_rule_becomes_qonnx_and_comes_back(run: Run, integer: Path) -> None:
    out = integer.with_name("rule.onnx")
    status, printed, _ = run("export", integer, "--to", "qonnx", "--height", 3, "--out", out)
    assert status == 0 and "as qonnx" in " ".join(printed.split())
    weight = import_qonnx(out).perceive.weight
    np.testing.assert_array_equal(weight, IntegerRule.load(integer).perceive.weight)


@pytest.mark.parametrize("kind", ["float rule", "float graph"])
def test_a_float_rule_becomes_onnx(
    kind: str, run: Run, float_rule: Make, small_config: Make, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is optional")
    pytest.importorskip("onnxscript", reason="the extra onnx is optional")
    source, out = tmp_path / "rule.safetensors", tmp_path / "rule.onnx"
    if kind == "float rule":
        float_rule(0, small_config()).save(source)
    else:
        build = Builder()
        x, sample = build.channels({"x": None}), build.inputs({"sample": None})
        FloatRule(build.graph({"x": x + sample}), events=(Event("sample"),)).save(source)
    assert run("export", source, "--to", "onnx", "--out", out)[0] == 0
    names = [port.name for port in onnx.load(out).graph.input]
    assert names == ["state", "sample", *(["valid"] if kind == "float rule" else [])]


@pytest.mark.parametrize(
    ("rule", "arguments", "sentence"),
    [
        ("retina", ("--to", "svg"), "format 'svg' is unknown: choose one of onnx, qonnx, c"),
        (
            "retina",
            ("--to", "c"),
            "rule retina is a float rule, and c states integer rules: choose onnx",
        ),
        (
            "retina-int",
            ("--to", "onnx"),
            "rule retina-int is an integer rule, and onnx states float rules: choose qonnx, c",
        ),
    ],
)
def test_a_format_that_cannot_state_the_rule_is_refused(
    rule: str, arguments: tuple[str, ...], sentence: str, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("export", rule, *arguments, "--out", out) == (2, "", f"scotopia: {sentence}\n")
    assert not out.exists()
