import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scotopia.cli.rules import rule_path
from scotopia.graph.errors import InputError
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.model.onnx_export import _digest, export_onnx, load_onnx
from scotopia.quantize.layered_rule import IntegerLayer, LayeredRule
from scotopia.quantize.qonnx_export import (
    EXACT,
    RULE_FIELDS,
    export_qonnx,
    fine_bits,
    import_qonnx,
)

onnx: Any = pytest.importorskip("onnx", reason="the extra onnx is optional")
pytest.importorskip("qonnx", reason="the extra onnx is optional")
onnxruntime: Any = pytest.importorskip("onnxruntime", reason="the extra onnx is optional")

from qonnx.core.modelwrapper import ModelWrapper  # type: ignore[import-untyped]  # noqa: E402
from qonnx.core.onnx_exec import execute_onnx  # type: ignore[import-untyped]  # noqa: E402

Make = Callable[..., Any]  # a fixture of conftest.py

KINDS = ["gated", "residual"]
BORDERS = ["zero", "replicate", "wrap"]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """QONNX's executor makes a session of every node: the threads of each would wait in turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = partial(onnxruntime.InferenceSession, sess_options=options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)


@pytest.fixture
def check_steps(one_thread: None, tmp_path: Path, extreme_state: Make) -> Callable[..., None]:
    """Compare QONNX's executor with the golden model, from a state of extreme codes on."""

    def check(
        rule: LayeredRule,
        seed: int = 0,
        height: int = 5,
        width: int = 6,
        state: IntArray | None = None,
    ) -> None:
        path = tmp_path / "rule.onnx"
        export_qonnx(rule, path, height, width)
        model = ModelWrapper(str(path))
        rng = np.random.default_rng(seed)
        state = extreme_state(rule, seed, height, width) if state is None else state
        units = np.ldexp(1.0, [-format.frac_bits for format in rule.channel_formats])
        units = units[:, None, None].astype(np.float32)
        for step in range(2):
            lowest, highest = rule.sample_format.lowest, rule.sample_format.highest
            sample = rng.choice([lowest, highest, 0, 1], (height, width))
            valid = rng.random((height, width)) < (0.5 if step == 0 else 0)
            feeds = {
                "state": (state * units)[None],
                "sample": (sample * units[rule.config.channels])[None, None],
                "valid": valid[None, None],
            }
            feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
            found = execute_onnx(model, feeds)["next_state"][0] / units
            state = rule.step(state, rule.given(sample, valid))
            np.testing.assert_array_equal(found, state)

    return check


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("border", BORDERS)
def test_qonnx_steps_as_the_golden_model(
    kind: str, border: str, small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    # A trace so long that every part of the recency counts.
    check_steps(mixed_rule(0, small_config(kind=kind, border=border, trace_bits=8)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounding", Rounding)
def test_every_rounding_is_the_golden_models(
    kind: str, rounding: Rounding, small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    check_steps(mixed_rule(1, small_config(kind=kind), rounding))


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_saturation_is_a_narrow_quant(
    kind: str, small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    rule = mixed_rule(2, small_config(kind=kind))
    check_steps(dataclasses.replace(rule, overflow=Overflow.SAT_SYM))


@pytest.mark.parametrize("seed", [3, 9])
def test_layers_coarser_than_their_outputs(
    seed: int, small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    check_steps(mixed_rule(seed, small_config(), coarse=True))


@pytest.mark.parametrize("inputs", [(), ("valid",), ("trust",), ("sample", "innovation")])
def test_rules_of_other_inputs(
    inputs: tuple[str, ...], small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    check_steps(mixed_rule(4, small_config(inputs=inputs)), height=1, width=7)


def test_sums_that_fill_the_24_bits_are_exact(
    small_config: Make, random_rule: Make, check_steps: Make
) -> None:
    """Halves of sums come near 2**23, and cancel to what an output shows to its last bit."""
    rule = random_rule(0, small_config(kind="residual", channels=4, hidden=4, inputs=()))
    hidden = (QFormat(9, 7, signed=False),) * 4
    largest = EXACT // (128 * 36) - 1
    odd = np.random.default_rng(0).integers(largest // 2 * 0.95, largest // 2, (4, 2, 9)) * 2 + 1
    weight = np.concatenate([odd, -np.roll(odd, 4, 2)], 1)
    weight[:, 3, 8] -= [3, 2, 1, 2]  # what is left of the sum
    perceive = dataclasses.replace(
        rule.perceive,
        weight=weight,
        weight_frac=np.ones(4, np.int64),
        bias=np.array([-127, -127, 127, 128]),
        outputs=hidden,
    )
    update = dataclasses.replace(
        rule.update,
        weight=np.eye(4, dtype=np.int64)[:, :, None],
        weight_frac=np.zeros(4, np.int64),
        bias=np.zeros(4, np.int64),
        inputs=hidden,
    )
    assert 0.9 * EXACT < perceive.accumulator_bound < EXACT
    state = np.full((6, 5, 6), -127)
    state[5] = 0  # no trace
    check_steps(dataclasses.replace(rule, perceive=perceive, update=update), state=state)


@pytest.mark.parametrize("rounding", Rounding)
def test_sums_of_more_than_24_bits_are_stated_as_two(
    rounding: Rounding, small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    """One output has ties, as in a smaller unit; one rests of all sizes; one needs no two."""
    rule = mixed_rule(1, small_config(kind="residual", inputs=("sample", "flicker")), rounding)
    rng = np.random.default_rng(0)
    layers, size = {}, np.array([10, 10, 0])
    for name in ("perceive", "update"):
        layer: IntegerLayer = getattr(rule, name)
        odd = rng.integers(0, [[[1]], [[1 << 10]], [[1]]], layer.weight.shape)
        layers[name] = dataclasses.replace(
            layer,
            weight=(layer.weight << size[:, None, None]) + odd,
            weight_frac=layer.weight_frac + size,
            bias=(layer.bias << size) + [0, 77, 0],
        )
        assert (fine_bits(layers[name]) > 0).tolist() == [True, True, False]
    wide = dataclasses.replace(rule, **layers)
    for seed in range(2):
        check_steps(wide, seed=seed)


@pytest.mark.parametrize("name", ["retina-int", "retina-shift"])
def test_shipped_rules_are_stated(name: str, tmp_path: Path, check_steps: Make) -> None:
    rule = LayeredRule.load(rule_path(name))
    check_steps(rule, height=3, width=4)
    export_qonnx(rule, tmp_path / "shipped.onnx")
    assert_same(import_qonnx(tmp_path / "shipped.onnx"), rule)


def test_formats_as_wide_as_float32_allows_are_exact(
    small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    rule = mixed_rule(6, small_config(kind="residual", inputs=()))
    state = (QFormat(1, 21),) * 3
    perceive = dataclasses.replace(
        rule.perceive,
        weight=np.where(rule.perceive.weight > 90, 1, 0),
        inputs=state,
        bias=np.zeros(3, np.int64),
    )
    hidden = (QFormat(1, 21, signed=False),) * 3
    perceive = dataclasses.replace(perceive, outputs=hidden, weight_frac=np.array([0, 0, 1]))
    update = dataclasses.replace(
        rule.update,
        weight=np.sign(rule.update.weight),
        weight_frac=np.array([0, 0, 1]),
        bias=np.zeros(3, np.int64),
        inputs=hidden,
        outputs=(QFormat(2, 21),) * 3,
    )
    check_steps(
        dataclasses.replace(
            rule, state_formats=state, sample_format=state[0], perceive=perceive, update=update
        )
    )


def test_gated_updates_that_fill_the_24_bits_are_exact(
    small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    rule = mixed_rule(4, small_config(kind="gated", inputs=()))
    rule = with_state(rule, QFormat(1, 15), QFormat(0, 8, signed=False))
    check_steps(rule)


def assert_same(found: Any, expected: Any) -> None:
    for field in dataclasses.fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, IntegerLayer):
            assert_same(one, other)
        elif isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        else:
            assert (field.name, one) == (field.name, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("overflow", [Overflow.SAT, Overflow.SAT_SYM])
def test_rule_comes_back_in_every_field(
    kind: str,
    rounding: Rounding,
    overflow: Overflow,
    tmp_path: Path,
    small_config: Make,
    mixed_rule: Make,
) -> None:
    config = small_config(kind=kind, border="wrap", steps_per_frame=5)
    rule = dataclasses.replace(
        mixed_rule(7, config, rounding),
        overflow=overflow,
        noise_seed=2**32 - 1,
        training={"clips": ["ä"], "psnr": 25.5},
    )
    path = tmp_path / "rule.onnx"
    for made in (rule, rule.with_proof()):
        export_qonnx(made, path, 3, 9)
        assert_same(import_qonnx(path), made)


def with_formats(rule: LayeredRule, **formats: QFormat) -> LayeredRule:
    """Give inputs other formats, and all that are perceived no weight."""
    inputs = tuple(
        formats.get(name, format)
        for name, format in zip(rule.config.inputs, rule.input_formats, strict=True)
    )
    perceive = dataclasses.replace(
        rule.perceive,
        weight=0 * rule.perceive.weight,
        bias=0 * rule.perceive.bias,
        inputs=rule.state_formats + inputs,
    )
    return dataclasses.replace(rule, input_formats=inputs, perceive=perceive)


def test_rule_of_zeros_comes_back(tmp_path: Path, small_config: Make, mixed_rule: Make) -> None:
    rule = mixed_rule(8, small_config())
    update = dataclasses.replace(
        rule.update, weight=0 * rule.update.weight, bias=0 * rule.update.bias
    )
    rule = dataclasses.replace(with_formats(rule), update=update)
    export_qonnx(rule, tmp_path / "rule.onnx")
    assert_same(import_qonnx(tmp_path / "rule.onnx"), rule)


def test_tensors_of_one_width_have_one_quant_node(
    tmp_path: Path, small_config: Make, random_rule: Make
) -> None:
    path = tmp_path / "rule.onnx"
    export_qonnx(random_rule(0, small_config(kind="residual")), path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [
        ("", 13),
        ("qonnx.custom_op.general", 1),
    ]
    quants = [node.name for node in model.graph.node if node.op_type == "Quant"]
    assert [name for name in quants if not name.startswith("input.")] == [
        *("x", "old_sample", "old_trace", "arriving_sample", "arrives"),
        *("perceive.weight.quant", "perceive.bias.quant", "hidden"),
        *("update.weight.quant", "update.bias.quant", "update", "new_x"),
    ]


def with_state(rule: LayeredRule, format: QFormat, gate: QFormat) -> LayeredRule:
    """Give a gated rule without inputs another format of its state and of its gate."""
    state = (format,) * rule.config.channels
    return dataclasses.replace(
        rule,
        state_formats=state,
        sample_format=format,
        gate_format=gate,
        perceive=dataclasses.replace(rule.perceive, inputs=state),
        update=dataclasses.replace(rule.update, outputs=state + (gate,) * len(state)),
    )


def test_what_quant_nodes_cannot_state_is_refused(
    tmp_path: Path, small_config: Make, mixed_rule: Make
) -> None:
    path = tmp_path / "rule.onnx"
    rule = mixed_rule(0, small_config(trace_bits=8))
    blind = mixed_rule(0, small_config(inputs=()))
    random = mixed_rule(0, small_config(fire_rate=0.5))
    gate, frac = QFormat(0, 8, signed=False), rule.sample_format.frac_bits
    wide = dataclasses.replace(
        rule.update, weight=rule.update.weight << 9, weight_frac=0 * rule.update.weight_frac
    )
    for refused, message in (
        (
            dataclasses.replace(rule, overflow=Overflow.WRAP),
            "overflow WRAP has no Quant node, which clamps: choose SAT or SAT_SYM",
        ),
        (
            random,
            "fire_rate 0.5 cannot be stated in ONNX: export a rule with fire_rate 1.0",
        ),
        (
            dataclasses.replace(rule, dither=2),
            "dither 2 cannot be stated in ONNX: export a rule with dither 0",
        ),
        (
            dataclasses.replace(rule, update=wide),
            "update: output 0 can sum up to 30082902, which is more than two sums in float32, "
            "exact below 16777216, can hold: quantize with fewer bits",
        ),
        (
            with_state(blind, QFormat(1, 13), QFormat(0, 11, signed=False)),
            "a gated update can reach 33554431, float32 is exact below 16777216: quantize with "
            "fewer bits",
        ),
        (
            with_formats(rule, trust=QFormat(-1, 18, signed=False)),
            f"input recall can reach {(1 << frac + 18) + (1 << frac + 12)}, float32 is exact below "
            "16777216: quantize with fewer bits",
        ),
        (
            with_state(blind, QFormat(1, 0), gate),
            "state format Q1.0 has 1 bits, QONNX in float32 holds 2 to 23 signed and 1 to 23 "
            "unsigned: choose others",
        ),
        (
            with_formats(rule, valid=QFormat(0, 24, signed=False)),
            "input format UQ0.24 has 24 bits, QONNX in float32 holds 2 to 23 signed and 1 to 23 "
            "unsigned: choose others",
        ),
    ):
        with pytest.raises(InputError) as error:
            export_qonnx(refused, path)
        assert str(error.value) == message
    for size, message in (
        ((0, 4), "height 0 is outside 1 to 1024: choose one inside"),
        ((4, 1025), "width 1025 is outside 1 to 1024: choose one inside"),
    ):
        with pytest.raises(InputError) as error:
            export_qonnx(rule, path, *size)
        assert str(error.value) == message
    assert not path.exists()


def test_every_field_of_the_rule_is_stated_or_refused(small_config: Make, mixed_rule: Make) -> None:
    """A new field must be thought of here: it is refused until then, if it is not the default."""
    fields = {field.name for field in dataclasses.fields(mixed_rule(0, small_config()))}
    assert fields == RULE_FIELDS | {"dither"}


def metadata(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def describe(model: Any, **fields: Any) -> None:
    description = json.loads(metadata(model)["description"]) | fields
    onnx.helper.set_model_props(model, metadata(model) | {"description": json.dumps(description)})


def set_tensor(model: Any, name: str, index: int, number: float) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[index] = number
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def scale_tensor(model: Any, name: str, factor: float) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def set_attribute(model: Any, node_name: str, name: str, value: Any) -> None:
    node = next(node for node in model.graph.node if node.name == node_name)
    attribute = next(attribute for attribute in node.attribute if attribute.name == name)
    attribute.CopyFrom(onnx.helper.make_attribute(name, value))


def rename_quant(model: Any) -> None:
    next(node for node in model.graph.node if node.name == "old_sample").name = "sampled"


def resize(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0


OTHERWISE = "model FILE computes something else than the rule that it holds: export it again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: set_tensor(m, "perceive.weight", 4, 0.3), OTHERWISE),
        (lambda m: set_tensor(m, "update.bias", 0, 1e30), "model FILE holds no rule (bias reaches"),
        (lambda m: scale_tensor(m, "hidden.scale", 1.25), OTHERWISE),
        (lambda m: scale_tensor(m, "perceive.weight.quant.scale", 1.25), OTHERWISE),
        (lambda m: scale_tensor(m, "perceive.bias.quant.scale", 0.5), OTHERWISE),
        (lambda m: scale_tensor(m, "x.scale", 0), "model FILE holds no rule (update outputs diff"),
        (lambda m: set_tensor(m, "update.half", 1, 0.0), OTHERWISE),
        (lambda m: set_tensor(m, "hidden.bits", 0, 7.5), OTHERWISE),
        (
            lambda m: set_tensor(m, "x.bits", 0, 9),
            "model FILE holds no rule (update outputs differ from the state's formats: write the "
            "rule again): export it again",
        ),
        (
            lambda m: set_tensor(m, "x.bits", 0, np.inf),
            "model FILE holds no rule (x.bits is not finite): export it again",
        ),
        (lambda m: set_attribute(m, "hidden", "narrow", 1), OTHERWISE),
        (lambda m: set_attribute(m, "hidden", "rounding_mode", "CEIL"), OTHERWISE),
        (lambda m: set_attribute(m, "hidden", "signed", 1), "model FILE holds no rule (format Q"),
        (rename_quant, "model FILE holds no rule ('old_sample'): export it again"),
        (
            resize,
            "model FILE holds no rule (height 0 is outside 1 to 1024: choose one inside): export "
            "it again",
        ),
        (lambda m: describe(m, rounding="TRN"), OTHERWISE),
        (lambda m: describe(m, overflow="SAT_SYM"), OTHERWISE),
        (lambda m: describe(m, overflow="WRAP"), "model FILE holds no rule (overflow WRAP has"),
        (lambda m: describe(m, gate_format=[0, 7, False]), "model FILE holds no rule (update ou"),
        (
            lambda m: describe(m, proof={"channels": [], "results": []}),
            "model FILE holds no rule (",
        ),
        (lambda m: describe(m, rounding=3), "model FILE holds no rule (3 is not a valid Rounding"),
    ],
)
def test_changed_models_are_refused(
    change: Callable[[Any], None],
    message: str,
    tmp_path: Path,
    small_config: Make,
    random_rule: Make,
) -> None:
    path = tmp_path / "rule.onnx"
    export_qonnx(random_rule(0, small_config()), path, 2, 3)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError) as error:
        import_qonnx(path)
    assert str(error.value) == f"model {path} was changed after its export: export it again"
    # The digest made right again, as someone would who means harm.
    digest = _digest(model.graph, metadata(model)["description"])
    onnx.helper.set_model_props(model, metadata(model) | {"sha256": digest})
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError) as error:
        import_qonnx(path)
    assert str(error.value).replace(str(path), "FILE").startswith(message)
    assert "\n" not in str(error.value)


def test_the_two_kinds_of_model_are_told_apart(
    tmp_path: Path, small_config: Make, random_rule: Make, float_rule: Make
) -> None:
    floats, integers = tmp_path / "float.onnx", tmp_path / "integer.onnx"
    export_onnx(float_rule(0, small_config()), floats)
    export_qonnx(random_rule(0, small_config()), integers)
    with pytest.raises(InputError) as error:
        import_qonnx(floats)
    assert str(error.value) == (
        f"{floats} is a Scotopia float rule, not a Scotopia integer rule: read it with load_onnx"
    )
    with pytest.raises(InputError) as error:
        load_onnx(integers)
    assert str(error.value) == (
        f"{integers} is a Scotopia integer rule, not a Scotopia float rule: read it with "
        "import_qonnx"
    )
