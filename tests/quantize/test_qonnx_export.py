import dataclasses
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scotopia.cli.rules import rule_path
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.operations import OPERATIONS, Random
from scotopia.graph.qformat import IntArray, Overflow, QFormat, Rounding
from scotopia.graph.surroundings import Event
from scotopia.quantize.integer_rule import GraphRule, IntegerRule
from scotopia.quantize.layered_rule import LayeredRule
from scotopia.quantize.qonnx_export import export_qonnx, import_qonnx
from scotopia.quantize.qonnx_nodes import EXACT, QonnxGraph
from scotopia.sim.random_graphs import BORDERS, any_graph

onnx: Any = pytest.importorskip("onnx", reason="the extra onnx is optional")
pytest.importorskip("qonnx", reason="the extra onnx is optional")
onnxruntime: Any = pytest.importorskip("onnxruntime", reason="the extra onnx is optional")

from qonnx.core.modelwrapper import ModelWrapper  # type: ignore[import-untyped]  # noqa: E402
from qonnx.core.onnx_exec import execute_onnx  # type: ignore[import-untyped]  # noqa: E402

Make = Callable[..., Any]  # a fixture of conftest.py


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """QONNX's executor makes a session of every node: the threads of each would wait in turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = partial(onnxruntime.InferenceSession, sess_options=options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)


def extremes(rng: np.random.Generator, format: QFormat, shape: tuple[int, ...]) -> IntArray:
    """Codes, of which half are the lowest, the highest or close to 0."""
    ends = np.clip([format.lowest, format.highest, -1, 0, 1], format.lowest, format.highest)
    drawn = rng.integers(format.lowest, format.highest + 1, shape)
    return np.where(rng.random(shape) < 0.5, rng.choice(ends, shape), drawn)


@pytest.fixture
def check_steps(one_thread: None, tmp_path: Path) -> Callable[..., None]:
    """Compare QONNX's executor with the golden model, from a state of extreme codes on."""

    def check(
        rule: IntegerRule,
        seed: int = 0,
        height: int = 5,
        width: int = 6,
        state: IntArray | None = None,
    ) -> None:
        path = tmp_path / "rule.onnx"
        export_qonnx(rule, path, height, width)
        model = ModelWrapper(str(path))
        rng, size = np.random.default_rng(seed), (height, width)
        formats = rule.channel_formats
        if state is None:
            state = np.stack([extremes(rng, format, size) for format in formats])
        for _ in range(2):
            given = {n: extremes(rng, format, size) for n, format in rule.input_words.items()}
            noise = rng.integers(0, 2, (rule.noise_planes, *size)) if rule.noise_planes else None
            feeds = {
                "state": np.stack([f.values(one) for f, one in zip(formats, state, strict=True)]),
                **{name: rule.input_words[name].values(one)[None] for name, one in given.items()},
            }
            if noise is not None:
                feeds["noise"] = numbers_of(rule, noise)
            found = execute_onnx(model, {n: one[None].astype("f4") for n, one in feeds.items()})
            state = rule.step(state, given, noise)
            values = [f.values(one) for f, one in zip(formats, state, strict=True)]
            np.testing.assert_array_equal(found["next_state"][0], values)

    return check


def numbers_of(rule: IntegerRule, noise: IntArray) -> IntArray:
    """Numbers that the planes of random bits are, highest bit first."""
    counts = [
        count
        for _, one in rule.graph.of_kind(Random)
        if isinstance(one, Random)
        for count in one.bits
    ]
    each = np.split(noise, np.cumsum(counts)[:-1])
    return np.stack([np.tensordot(0.5 ** (1 + np.arange(len(one))), one, 1) for one in each])


def rule_of(graph: Any) -> GraphRule:
    return GraphRule(graph, events=tuple(Event(name) for name in graph.inputs))


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_step_as_the_golden_model(seed: int, check_steps: Make) -> None:
    check_steps(rule_of(any_graph(seed)), seed, 3, 2 + seed % 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 100))
def test_more_random_graphs(seed: int, check_steps: Make) -> None:
    check_steps(rule_of(any_graph(seed)), seed, 2 + seed % 4, 3)


def test_random_graphs_have_every_operation_and_border() -> None:
    graphs = [any_graph(seed) for seed in range(12)]
    assert {type(one) for graph in graphs for one in graph.operations} == {*OPERATIONS}
    assert {border for graph in graphs for border in graph.borders} == {*BORDERS}


@pytest.mark.parametrize("overflow", Overflow)
def test_every_rounding_of_every_tie_is_the_golden_models(
    overflow: Overflow, check_steps: Make
) -> None:
    """All codes of eight bits lose two, or win two; so that half of them overflow."""
    build = Builder()
    x = build.channels({f"x{i}": QFormat(3, 5) for i in range(14)})
    after = [
        one.fit(format, rounding, overflow).fit(QFormat(3, 5))
        for one, (rounding, format) in zip(
            x, itertools.product(Rounding, (QFormat(2, 3), QFormat(1, 7))), strict=True
        )
    ]
    rule = rule_of(build.graph({f"x{i}": one for i, one in enumerate(after)}))
    state = np.tile(np.arange(-128, 128).reshape(16, 16), (14, 1, 1))
    check_steps(rule, height=16, width=16, state=state)


@pytest.mark.parametrize("kind", ["gated", "residual"])
def test_rules_of_two_layers_step_as_the_golden_model(
    kind: str, small_config: Make, mixed_rule: Make, check_steps: Make
) -> None:
    # A trace so long that every part of the recency counts.
    rule = mixed_rule(0, small_config(kind=kind, border="wrap", trace_bits=8, fire_rate=0.5))
    check_steps(rule if kind == "residual" else dataclasses.replace(rule, dither=2))


@pytest.mark.parametrize("name", ["retina-int", "retina-shift"])
def test_shipped_rules_are_stated(name: str, tmp_path: Path, check_steps: Make) -> None:
    rule = IntegerRule.load(rule_path(name))
    check_steps(rule, height=3, width=4)
    export_qonnx(rule, tmp_path / "shipped.onnx")
    assert_same(import_qonnx(tmp_path / "shipped.onnx"), rule)


def sums(weight: IntArray, bias: IntArray, rounding: Rounding, format: QFormat) -> GraphRule:
    """Sum eight-bit codes up by weights (O, I), round the sums, and keep their lowest bits."""
    build, names = Builder(), [f"x{i}" for i in range(weight.shape[1])]
    x = build.channels(dict.fromkeys(names, QFormat(8, 0)))
    total = build.linear(x, weight[:, :, None], bias).fit(format, rounding)
    kept = total * 2.0**format.frac_bits
    fitted = kept.fit(QFormat(8, 0), overflow=Overflow.WRAP)
    after = [fitted[i % len(total)] for i in range(len(names))]
    return rule_of(build.graph(dict(zip(names, after, strict=True))))


def test_sums_that_fill_the_24_bits_are_exact(check_steps: Make) -> None:
    """Halves of sums come near 2**23, and cancel to what an output shows to its last bit."""
    largest = (EXACT - 1) // (128 * 36)
    odd = np.random.default_rng(0).integers(largest // 2 * 0.95, largest // 2, (4, 18)) * 2 + 1
    weight = np.concatenate([odd, -np.roll(odd, 4, 1)], 1)
    weight[:, -1] -= [3, 2, 1, 2]  # what is left of the sum
    rule = sums(weight, np.array([-127, -127, 127, 128]), Rounding.RND, QFormat(9, -1))
    words = rule.graph.words(1)
    assert 0.9 * EXACT < max(rule.ranges.words[word].highest for word in words) < EXACT
    check_steps(rule, state=np.full((36, 2, 2), -127), height=2, width=2)


@pytest.mark.parametrize("rounding", Rounding)
def test_sums_of_more_than_24_bits_are_stated_as_two(rounding: Rounding, check_steps: Make) -> None:
    """One output often has ties; one has rests of all sizes; one needs no two."""
    rng = np.random.default_rng(0)
    large = rng.integers(-100, 101, (3, 8)) << [[14], [14], [0]]
    small = rng.integers(0, [[2], [1 << 10], [1]], (3, 8)) << [[12], [0], [0]]
    small[0, 0] = 1
    bias = rng.integers(-9, 10, 3) << [14, 14, 0]
    rule = sums(large + small, bias + np.array([0, 77, 0]), rounding, QFormat(34, -13))
    written = QonnxGraph(rule.graph, 1, 1)
    written.model()
    assert [bool(fine) for fine in written.fine.values()] == [True, True, False]
    for seed in range(2):
        check_steps(rule, seed)


def assert_same(found: IntegerRule, expected: IntegerRule) -> None:
    """Compare rules by what their files hold."""
    contents = []
    for rule in (found, expected):
        description, tensors = rule.pack()
        contents.append((description, {name: (t.dtype, t.tolist()) for name, t in tensors.items()}))
    assert type(found) is type(expected) and contents[0] == contents[1]


def test_rules_come_back_in_every_field(tmp_path: Path) -> None:
    path, proven = tmp_path / "rule.onnx", 0
    for seed in range(60):
        fields = {"steps_per_frame": 5, "noise_seed": 2**32 - 1, "training": {"clips": ["ä"]}}
        try:
            rule = dataclasses.replace(rule_of(any_graph(seed)), **fields).with_proof()
        except InputError:  # a word may wrap: no file holds such a rule
            continue
        export_qonnx(rule, path, 3, 9)
        assert_same(import_qonnx(path), rule)
        proven += 1
    assert proven > 5


def test_a_layered_rule_comes_back_as_one(
    tmp_path: Path, small_config: Make, random_rule: Make
) -> None:
    rule = random_rule(0, small_config()).with_proof()
    export_qonnx(rule, tmp_path / "rule.onnx")
    found = import_qonnx(tmp_path / "rule.onnx")
    assert isinstance(found, LayeredRule) and found.config == rule.config
    assert_same(found, rule)


def test_a_model_reads_as_the_graph(tmp_path: Path) -> None:
    build = Builder()
    x = build.channels({"x": QFormat(1, 7), "y": QFormat(1, 7)})
    seen = build.linear(x, np.full((2, 2, 9), 0.25), np.zeros(2)).maximum(0)
    after = (x + seen).fit(QFormat(1, 7))
    rule = rule_of(build.graph({"x": after[0], "y": after[1]}))
    export_qonnx(rule, tmp_path / "rule.onnx")
    model = onnx.load(tmp_path / "rule.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [
        ("", 13),
        ("qonnx.custom_op.general", 1),
    ]
    assert [(node.op_type, node.name) for node in model.graph.node] == [
        ("Quant", "0.channel"),
        ("Pad", "1.linear.padded"),
        ("Quant", "1.linear.weight.quant"),
        ("Quant", "1.linear.bias.quant"),
        ("Conv", "1.linear"),
        ("Relu", "3.maximum"),
        ("Add", "4.add"),
        ("Add", "5.fit.to_round"),
        ("Quant", "5.fit"),
        ("Identity", "next_state"),
    ]


def product(bits: int, name: str = "y") -> GraphRule:
    build, format = Builder(), QFormat(1, bits - 1)
    x, y = build.channels({"x": format}), build.inputs({name: format})
    return rule_of(build.graph({"x": (x * y).fit(format, Rounding.TRN)}))


def test_products_that_fill_the_24_bits_are_exact(check_steps: Make) -> None:
    check_steps(product(12), height=16, width=16)


def test_what_float32_or_quant_nodes_cannot_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rule.onnx"
    thin = Builder()
    x = thin.channels({"x": QFormat(1, 0)})
    wide = sums(np.array([[(1 << 24) - 1] * 2]), np.array([0]), Rounding.RND, QFormat(25, -6))
    for refused, message in (
        (
            product(13),
            "multiply 2.0 can reach 16777216, float32 is exact below 16777216: quantize "
            "with fewer bits",
        ),
        (
            rule_of(thin.graph({"x": x})),
            "format Q1.0 has 1 bit, which QONNX takes for -1 and 1: choose others",
        ),
        (
            wide,
            "linear 1.0 can sum up to 4294967072, which is more than two sums in "
            "float32, exact below 16777216, can hold: quantize with fewer bits",
        ),
        (
            product(8, "noise"),
            "input noise has a name that the model uses itself: import the rule with another name "
            "for it",
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
            export_qonnx(product(8), path, *size)
        assert str(error.value) == message
    assert not path.exists()


def metadata(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def set_metadata(model: Any, **entries: str) -> None:
    onnx.helper.set_model_props(model, metadata(model) | entries)


def set_tensor(model: Any, name: str, index: int, number: float) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[index] = number
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def set_attribute(model: Any, node_name: str, name: str, value: Any) -> None:
    node = next(node for node in model.graph.node if node.name == node_name)
    attribute = next(attribute for attribute in node.attribute if attribute.name == name)
    attribute.CopyFrom(onnx.helper.make_attribute(name, value))


def override_mul(model: Any) -> None:
    """Let Mul mean something else in this model."""
    twice = onnx.helper.make_node("Add", ["x", "x"], ["z"])
    opset = onnx.helper.make_opsetid("", 13)
    model.functions.append(
        onnx.helper.make_function("", "Mul", ["x", "y"], ["z"], [twice], [opset])
    )


def resize(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0


def swap_rule(model: Any) -> None:
    """Put another rule into the file."""
    packed = json.loads(metadata(model)["rule"])
    packed["description"]["graph"]["operations"][3]["rounding"] = "RND"
    set_metadata(model, rule=json.dumps(packed))


OTHERWISE = "model FILE computes something else than the rule that it holds: export it again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: set_tensor(m, "3.fit.scale", 0, 0.3), OTHERWISE),
        (lambda m: set_tensor(m, "bits.8", 0, 7.5), OTHERWISE),
        (lambda m: set_attribute(m, "3.fit", "narrow", 1), OTHERWISE),
        (lambda m: set_attribute(m, "3.fit", "rounding_mode", "CEIL"), OTHERWISE),
        (lambda m: m.graph.node.pop(), OTHERWISE),
        (override_mul, OTHERWISE),
        (swap_rule, OTHERWISE),
        (lambda m: set_metadata(m, description="{}"), OTHERWISE),
        (lambda m: set_metadata(m, rule=""), "model FILE holds no rule (Expecting value: "),
        (lambda m: set_metadata(m, rule="{}"), "model FILE holds no rule ('tensors'): export it"),
        (
            resize,
            "model FILE holds no rule (height 0 is outside 1 to 1024: choose one inside): export "
            "it again",
        ),
        (lambda m: m.graph.ClearField("input"), "model FILE holds no rule ("),
        (
            lambda m: set_metadata(m, version="1"),
            "model FILE has version 1, this Scotopia reads version 2: export it again with this "
            "Scotopia",
        ),
        (
            lambda m: set_metadata(m, scotopia="float rule"),
            "FILE is no QONNX model of an integer rule: give one written by export_qonnx",
        ),
    ],
)
def test_changed_models_are_refused(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rule.onnx"
    export_qonnx(product(8).with_proof(), path, 2, 3)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError) as error:
        import_qonnx(path)
    assert str(error.value).replace(str(path), "FILE").startswith(message)
    assert "\n" not in str(error.value)


def test_files_of_other_origin_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rule.onnx"
    truncated = "model FILE cannot be read: it is truncated or no ONNX model; export it again"
    export_qonnx(product(8), path)
    for content, message in (
        (path.read_bytes()[:-30], truncated),
        (b"\x80\x04cposix\nsystem\n.", truncated),  # a pickle
        (b"", "FILE is no QONNX model of an integer rule: give one written by export_qonnx"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            import_qonnx(path)
        assert str(error.value).replace(str(path), "FILE") == message
    with pytest.raises(InputError) as error:
        import_qonnx(tmp_path / "none")
    assert str(error.value).endswith("none does not exist: give the path of an .onnx file")
