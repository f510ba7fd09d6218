import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.model.config import INPUTS
from scotopia.model.files import MAX_BYTES
from scotopia.model.onnx_export import STATED, _digest, export_onnx, load_onnx
from scotopia.model.rule import Grids, Rule

onnx: Any = pytest.importorskip("onnx", reason="the extra onnx is optional")
runtime: Any = pytest.importorskip("onnxruntime", reason="the extra onnx is optional")

Make = Callable[..., Any]  # a fixture of conftest.py

KINDS = ["gated", "residual"]
BORDERS = ["zero", "replicate", "wrap"]


def start(path: Path) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare(rule: Rule, path: Path, batch: int, height: int, width: int) -> None:
    """Run five steps of a random state, of which the first three see samples."""
    session, generator = start(path), torch.Generator().manual_seed(height)

    def draw(channels: int) -> Tensor:
        return torch.rand(batch, channels, height, width, generator=generator)

    config = rule.config
    newest = 1 - 2**-config.trace_bits
    trace = newest * (2 * draw(config.pixels) - 0.5).clamp(0, 1)  # none, some, or the newest
    state = torch.cat([draw(config.channels) * 2 - 1, draw(config.pixels) * 2 - 1, trace], 1)
    for t in range(5):
        sample = draw(config.pixels) * 2 - 1
        valid = (draw(config.pixels) < (0.3 if t < 3 else 0)).float()
        feeds = {"state": state, "sample": sample, "valid": valid}
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
        with torch.no_grad():
            state = rule(state, sample, valid)
        np.testing.assert_allclose(found, state.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("perception", ["full", "depthwise", "sobel"])
def test_model_steps_as_the_rule(
    kind: str, border: str, perception: str, tmp_path: Path, small_config: Make, float_rule: Make
) -> None:
    config = small_config(kind=kind, border=border, perception=perception, trace_bits=8)
    rule = float_rule(0, config)
    path = tmp_path / "rule.onnx"
    export_onnx(rule, path)
    for batch, height, width in ((1, 5, 7), (2, 1, 3)):  # one model for every size
        compare(rule, path, batch, height, width)


@pytest.mark.parametrize("name", INPUTS[:-1])
def test_model_perceives_each_input_alone(
    name: str, tmp_path: Path, small_config: Make, float_rule: Make
) -> None:
    rule = float_rule(1, small_config(inputs=(name,)))
    path = tmp_path / "rule.onnx"
    export_onnx(rule, path)
    compare(rule, path, 1, 4, 4)


@pytest.mark.parametrize("inputs", [(), INPUTS])
def test_model_of_a_block_or_without_inputs_steps_as_the_rule(
    inputs: tuple[str, ...], tmp_path: Path, small_config: Make, float_rule: Make
) -> None:
    rule = float_rule(2, small_config(block=2, channels=6, inputs=inputs))
    path = tmp_path / "rule.onnx"
    export_onnx(rule, path)
    compare(rule, path, 1, 4, 5)


@pytest.mark.parametrize(("border", "opset"), [("zero", 13), ("replicate", 13), ("wrap", 19)])
def test_model_states_the_oldest_operator_set_that_has_its_border(
    border: str, opset: int, tmp_path: Path, small_config: Make
) -> None:
    path = tmp_path / "rule.onnx"
    export_onnx(Rule(small_config(border=border)), path)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        port.name: [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
        for port in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        name: ["batch", channels, "height", "width"]
        for name, channels in (("state", 5), ("sample", 1), ("valid", 1), ("next_state", 5))
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("perception", ["full", "depthwise", "sobel"])
def test_rule_comes_back_bit_for_bit(
    kind: str, perception: str, tmp_path: Path, small_config: Make, float_rule: Make
) -> None:
    config = small_config(kind=kind, perception=perception, border="wrap", steps_per_frame=7)
    rule = float_rule(3, config)
    rule.training_record = {"clips": ["ä", "b"], "psnr": 25.5}
    with torch.no_grad():  # what a detour over text would lose
        rule.update.bias[0], rule.update.bias[1] = 1e-42, -0.0
    path = tmp_path / "rule.onnx"
    export_onnx(rule, path)
    found = load_onnx(path)
    assert found.config == config
    assert found.training_record == rule.training_record
    assert found.state_dict().keys() == rule.state_dict().keys()
    for name, tensor in rule.state_dict().items():
        assert found.state_dict()[name].numpy().tobytes() == tensor.numpy().tobytes()
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["description"])["config"]["steps_per_frame"] == 7


class Coarse(Rule):
    pass


def test_what_onnx_cannot_state_is_refused(tmp_path: Path, small_config: Make) -> None:
    path = tmp_path / "rule.onnx"
    with pytest.raises(InputError) as error:
        export_onnx(Rule(small_config(fire_rate=0.5)), path)
    assert str(error.value) == (
        "fire_rate 0.5 cannot be stated in ONNX: export a rule with fire_rate 1.0"
    )
    quantized = Rule(small_config())
    quantized.grids = Grids(torch.zeros(1, 4), 0.5)
    for rule in (Coarse(small_config()), quantized):
        with pytest.raises(InputError) as error:
            export_onnx(rule, path)
        assert str(error.value) == (
            f"{type(rule).__name__} computes on quantized numbers: export the float rule, or "
            "quantize it and export that with export_qonnx"
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


def test_missing_package_is_named(
    tmp_path: Path, small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (
        lambda: export_onnx(Rule(small_config()), tmp_path / "rule.onnx"),
        lambda: load_onnx(tmp_path / "rule.onnx"),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == (
            "ONNX models need the package onnx, which is not installed: "
            "run `pip install 'scotopia[onnx]'`"
        )


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_onnx(path)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "FILE")


def test_files_of_other_origin_are_refused(tmp_path: Path, small_config: Make) -> None:
    path = tmp_path / "rule.onnx"
    assert refusal(path) == "model FILE does not exist: give the path of an .onnx file"
    export_onnx(Rule(small_config()), path)
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    truncated = "model FILE cannot be read: it is truncated or no ONNX model; export it again"
    assert refusal(path) == truncated
    path.write_bytes(b"\x80\x04cposix\nsystem\n.")  # a pickle
    assert refusal(path) == truncated
    path.write_bytes(b"")
    foreign = (
        "FILE is no ONNX model of a Scotopia rule: give one written by export_onnx or export_qonnx"
    )
    assert refusal(path) == foreign
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert refusal(path) == (
        f"model FILE has {MAX_BYTES + 1} bytes, more than {MAX_BYTES}: "
        "give a model written by Scotopia"
    )


def set_metadata(model: Any, **entries: str) -> None:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, metadata | entries)


def forge(model: Any) -> None:
    """Make the digest right again, as someone would who means harm."""
    description = next(e.value for e in model.metadata_props if e.key == "description")
    set_metadata(model, sha256=_digest(model.graph, description))


def tensor(model: Any, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def flip_weight(model: Any) -> None:
    weight = tensor(model, "perceive.weight")
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]


def describe(model: Any, **fields: Any) -> None:
    description = next(e.value for e in model.metadata_props if e.key == "description")
    config = json.loads(description)["config"] | fields
    set_metadata(model, description=json.dumps({"config": config, "training": {}}))


CHANGED = "model FILE was changed after its export: export it again"
OTHERWISE = "model FILE computes something else than the rule that it holds: export it again"


def set_border(model: Any) -> None:
    pad = next(node for node in model.graph.node if node.op_type == "Pad")
    pad.attribute[0].s = b"reflect"


def override_relu(model: Any) -> None:
    """Let Relu mean something else in this model."""
    twice = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    opset = onnx.helper.make_opsetid("", 13)
    model.functions.append(onnx.helper.make_function("", "Relu", ["x"], ["y"], [twice], [opset]))


def point_elsewhere(model: Any) -> None:
    weight = tensor(model, "perceive.weight")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")


def not_finite(model: Any) -> None:
    bias = tensor(model, "update.bias")
    bias.raw_data = np.full(6, np.nan, "<f4").tobytes()


def add_tick(model: Any) -> None:
    tick = tensor(model, "tick")
    tick.raw_data = np.float32(0.25).tobytes()


@pytest.mark.parametrize(
    ("change", "forged", "message"),
    [
        (flip_weight, False, CHANGED),
        (lambda model: describe(model, steps_per_frame=9), False, CHANGED),
        (set_border, False, CHANGED),
        (set_border, True, OTHERWISE),
        (add_tick, True, OTHERWISE),
        (override_relu, False, OTHERWISE),
        (lambda model: describe(model, trace_bits=4), True, OTHERWISE),
        (lambda model: describe(model, border="wrap"), True, OTHERWISE),
        (
            point_elsewhere,
            True,
            "model FILE holds no rule (perceive.weight has 0 bytes for (3, 11, 3, 3)): "
            "export it again",
        ),
        (
            not_finite,
            True,
            "model FILE holds no rule (update.bias is not finite): export it again",
        ),
        (
            lambda model: describe(model, hidden=129),
            True,
            "model FILE holds no rule (hidden 129 is outside 1 to 128: choose one inside): "
            "export it again",
        ),
        (
            lambda model: describe(model, colour=1),
            True,
            "model FILE holds no rule (RuleConfig.__init__() got an unexpected keyword argument "
            "'colour'): export it again",
        ),
        (
            lambda model: set_metadata(model, description="[1"),
            True,
            "model FILE has no valid description (Expecting ',' delimiter: line 1 column 3 (char "
            "2)): export it again",
        ),
        (
            lambda model: set_metadata(model, version="2"),
            False,
            "model FILE has version 2, this Scotopia reads version 1: export it again with this "
            "Scotopia",
        ),
        (
            lambda model: set_metadata(model, scotopia="integer rule"),
            False,
            "FILE is a Scotopia integer rule, not a Scotopia float rule: read it with import_qonnx",
        ),
    ],
)
def test_changed_models_are_refused(
    change: Callable[[Any], None], forged: bool, message: str, tmp_path: Path, small_config: Make
) -> None:
    path = tmp_path / "rule.onnx"
    export_onnx(Rule(small_config()), path)
    model = onnx.load(path)
    change(model)
    if forged:
        forge(model)
    path.write_bytes(model.SerializeToString())
    assert refusal(path) == message


def test_every_field_of_the_shape_is_stated_or_refused(small_config: Make) -> None:
    """A new field must be thought of here: it is refused until then, if it is not the default."""
    fields = {field.name for field in dataclasses.fields(small_config())}
    assert fields == STATED | {"fire_rate"}
