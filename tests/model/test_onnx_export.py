import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scotopia.cli.rules import rule_path
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.operations import OPERATIONS, Border, Fit
from scotopia.graph.surroundings import Event, Initial
from scotopia.model.float_rule import FloatRule
from scotopia.model.front import trace
from scotopia.model.growing.module import GrowingNCA
from scotopia.model.interpret import Interpreter
from scotopia.model.onnx_export import export_onnx
from scotopia.model.rule import Rule

onnx: Any = pytest.importorskip("onnx", reason="the extra onnx is optional")
runtime: Any = pytest.importorskip("onnxruntime", reason="the extra onnx is optional")
pytest.importorskip("onnxscript", reason="the extra onnx is optional")

Make = Callable[..., Any]  # a fixture of conftest.py

BORDERS: list[Border] = ["zero", "replicate", "wrap"]


def start(path: Path) -> Callable[[Mapping[str, Tensor]], Tensor]:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(given: Mapping[str, Tensor]) -> Tensor:
        (found,) = session.run(None, {name: one.numpy() for name, one in given.items()})
        return torch.from_numpy(found)

    return run


def assert_steps_as_the_rule(
    rule: Rule, path: Path, batch: int = 2, height: int = 4, width: int = 5
) -> None:
    """Run five steps of a random state, of which the first three see samples."""
    run, generator = start(path), torch.Generator().manual_seed(height)

    def draw(channels: int) -> Tensor:
        return torch.rand(batch, channels, height, width, generator=generator)

    config = rule.config
    newest = 1 - 2**-config.trace_bits
    trace = newest * (2 * draw(config.pixels) - 0.5).clamp(0, 1)  # none, some, or the newest
    state = torch.cat([draw(config.channels) * 2 - 1, draw(config.pixels) * 2 - 1, trace], 1)
    for t in range(5):
        given = {
            "state": state,
            "sample": draw(config.pixels) * 2 - 1,
            "valid": (draw(config.pixels) < (0.3 if t < 3 else 0)).float(),
        }
        if config.fire_rate < 1:
            given["fired"] = (draw(1) < config.fire_rate).float()
        found = run(given)
        with torch.no_grad():
            state = rule(*given.values())
        np.testing.assert_allclose(found, state.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("border", "shape"),
    [
        ("zero", {"kind": "gated", "perception": "full", "fire_rate": 0.5}),
        ("replicate", {"kind": "residual", "perception": "depthwise"}),
        ("wrap", {"kind": "gated", "perception": "sobel", "inputs": ()}),
        ("zero", {"kind": "residual", "block": 2, "channels": 6}),
    ],
)
def test_one_model_steps_as_the_rule_on_grids_of_every_size(
    border: Border, shape: dict[str, Any], tmp_path: Path, small_config: Make, float_rule: Make
) -> None:
    rule = float_rule(0, small_config(border=border, trace_bits=8, **shape))
    path = tmp_path / "rule.onnx"
    export_onnx(rule, path)
    for size in ((1, 5, 7), (2, 1, 3), (3, 8, 8)):
        assert_steps_as_the_rule(rule, path, *size)


@pytest.mark.parametrize("name", [pytest.param("retina", marks=pytest.mark.slow), "retina-207"])
def test_shipped_rules_are_exported(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rule, path = Rule.load(rule_path(name)), tmp_path / "rule.onnx"
    export_onnx(rule, path)
    assert capfd.readouterr() == ("", "")
    assert b".py" not in path.read_bytes()  # nothing of the machine that wrote it
    assert_steps_as_the_rule(rule, path)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    shapes = {
        port.name: [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
        for port in (*model.graph.input, *model.graph.output)
    }
    count = len(rule.config.channel_names)
    assert shapes == {
        name: ["batch", channels, "height", "width"]
        for name, channels in (("state", count), ("sample", 1), ("valid", 1), ("next_state", count))
    }
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["scotopia"], metadata["version"]) == ("float rule", "2")
    description = json.loads(metadata["description"])
    assert description["config"]["border"] == rule.config.border
    assert description["steps_per_frame"] == rule.config.steps_per_frame
    assert description["events"] == [["sample", "valid"]]
    assert description["training"] == rule.training_record


@pytest.mark.slow
def test_a_rule_is_always_the_same_model(tmp_path: Path) -> None:
    rule, paths = Rule.load(rule_path("retina-207")), (tmp_path / "a.onnx", tmp_path / "b.onnx")
    for path in paths:
        export_onnx(rule, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def every_operation(border: Border) -> FloatRule:
    """Use each kind of operation, but those of integer rules."""
    build, rng = Builder(), np.random.default_rng(3)
    x = build.channels({"a": None, "b": None})
    light, dark = build.inputs({"light": None, "dark": None})
    chance = build.random(8, 24)
    seen = build.linear(x, rng.normal(size=(3, 2, 9)), rng.normal(size=3), border)
    largest = build.window(seen, border=border)
    smallest = build.window(seen, largest=False, border=border)
    mixed = build.linear(
        build.concatenate([largest, smallest, light]), rng.normal(size=(2, 7, 1)) / 5, (0.1, -0.1)
    )
    moved = build.where(chance < build.constant(0.5, 0.25), mixed * x, x - mixed)
    bounded = moved.maximum(-1).minimum(build.concatenate([dark, build.constant(1)]))
    after = bounded + build.constant(0.125, 0.25)
    assert {type(one) for one in build.operations} == {*OPERATIONS} - {Fit}
    graph = build.graph({"a": after[0], "b": after[1]})
    return FloatRule(graph, 3, (Event("light"), Event("dark")), Initial.cell(np.array([1.0, 0.5])))


def assert_steps_as_the_graph(rule: FloatRule, path: Path, batch: int, *size: int) -> None:
    run, step = start(path), Interpreter(rule.graph)
    generator = torch.Generator().manual_seed(1)
    state = torch.rand(batch, len(rule.graph.channels), *size, generator=generator)
    for _ in range(3):
        given = {
            name: torch.rand(batch, 1, *size, generator=generator) for name in rule.graph.inputs
        }
        noise = step.draw(state, generator)
        after = step(state, {name: one[:, 0] for name, one in given.items()}, noise)
        found = run({"state": state} | given | ({"noise": noise} if noise.shape[1] else {}))
        np.testing.assert_allclose(found, after.numpy(), rtol=0, atol=1e-5)
        assert after.std() > 0.01
        state = after


@pytest.mark.parametrize(
    "border", [*(pytest.param(one, marks=pytest.mark.slow) for one in BORDERS), "reflect"]
)
def test_every_operation_of_a_graph_is_exported(border: Border, tmp_path: Path) -> None:
    rule, path = every_operation(border), tmp_path / "rule.onnx"
    export_onnx(rule, path)
    for size in ((1, 5, 7), (2, 2, 3)):
        assert_steps_as_the_graph(rule, path, *size)
    model = onnx.load(path)
    assert [port.name for port in model.graph.input] == ["state", "light", "dark", "noise"]
    description = json.loads({e.key: e.value for e in model.metadata_props}["description"])
    assert description["steps_per_frame"] == 3
    assert description["events"] == [["light", None], ["dark", None]]
    assert description["channels"] == ["a", "b"]
    assert description["initial"]["patch"] == [[[1.0]], [[0.5]]]


def test_a_module_of_a_users_own_becomes_a_model(tmp_path: Path) -> None:
    rule, path = FloatRule(trace(GrowingNCA(6, 10), 6).graph), tmp_path / "rule.onnx"
    export_onnx(rule, path)
    assert_steps_as_the_graph(rule, path, 2, 6, 5)


class Coarse(Rule):
    pass


def test_what_is_no_float_rule_is_refused(tmp_path: Path, small_config: Make) -> None:
    path = tmp_path / "rule.onnx"
    with pytest.raises(InputError) as error:
        export_onnx(Coarse(small_config()), path)
    assert str(error.value) == (
        "Coarse computes on quantized numbers: export the float rule, or quantize it and export "
        "that with export_qonnx"
    )
    broken = Rule(small_config())
    with torch.no_grad():
        broken.perceive.weight[0, 1, 2, 0] = torch.inf
    for rule, name in ((broken, "perceive.weight"), (Rule(small_config()).double(), "perceive.w")):
        with pytest.raises(InputError) as error:
            export_onnx(rule, path)
        assert str(error.value).startswith(name)
        assert str(error.value).endswith(" of the rule is not finite in float32: train it again")
    assert not path.exists()


def test_an_input_with_a_name_of_the_models_own_is_refused(tmp_path: Path) -> None:
    build = Builder()
    x, noise = build.channels({"x": None}), build.inputs({"noise": None})
    rule = FloatRule(build.graph({"x": x + noise}), events=(Event("noise"),))
    with pytest.raises(InputError) as error:
        export_onnx(rule, tmp_path / "rule.onnx")
    assert str(error.value) == (
        "input noise has a name that the model uses itself: import the rule with another name "
        "for it"
    )


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_missing_package_is_named(
    name: str, tmp_path: Path, small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError) as error:
        export_onnx(Rule(small_config()), tmp_path / "rule.onnx")
    assert str(error.value) == (
        f"ONNX models need the package {name}, which is not installed: "
        "run `pip install 'scotopia[onnx]'`"
    )
