from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from scotopia.graph.errors import InputError
from scotopia.model.config import INPUTS, RuleConfig
from scotopia.model.rule import Rule, hard_sigmoid, recency, to_pixel, to_state

Make = Callable[..., Any]  # a fixture of conftest.py

NOTHING = torch.zeros(1, 1, 7, 7)


def random_state(rule: Rule) -> torch.Tensor:
    state = rule.initial_state(1, 7, 7)
    return torch.rand(state.shape, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.parametrize(("gate", "moved"), [(-2.0, 0.0), (2.0, 1.0), (0.0, 0.5), (-1.0, 0.25)])
def test_gate_says_how_far_x_moves_to_the_candidate(
    gate: float, moved: float, small_config: Make
) -> None:
    rule = Rule(small_config(channels=2))
    with torch.no_grad():
        rule.update.weight.zero_()
        rule.update.bias[:] = torch.tensor([0.75, -0.5, gate, gate])  # candidates, then gates
    state = random_state(rule)
    candidate = torch.tensor([0.75, -0.5])[:, None, None]
    expected = state[:, :2] + moved * (candidate - state[:, :2])
    found = rule(state, NOTHING, NOTHING)[:, :2]
    if moved == 0:
        assert torch.equal(found, state[:, :2])
    torch.testing.assert_close(found, expected)


def test_residual_adds_and_stays_in_range(small_config: Make) -> None:
    rule = Rule(small_config(kind="residual", channels=2))
    with torch.no_grad():
        rule.update.weight.zero_()
        rule.update.bias[:] = torch.tensor([0.75, -0.75])
    state = random_state(rule)
    change = torch.tensor([0.75, -0.75])[:, None, None]
    expected = (state[:, :2] + change).clamp(-1, 1)
    torch.testing.assert_close(rule(state, NOTHING, NOTHING)[:, :2], expected)
    assert rule(state, NOTHING, NOTHING).abs().max() == 1


def test_hard_sigmoid_by_hand() -> None:
    found = hard_sigmoid(torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]))
    assert found.tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("kind", ["gated", "residual"])
@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
@pytest.mark.parametrize("cell", [(3, 3), (0, 0), (6, 2)])
def test_information_travels_one_pixel_a_step(
    kind: str, border: str, cell: tuple[int, int], small_config: Make
) -> None:
    torch.manual_seed(0)
    rule = Rule(small_config(kind=kind, border=border, hidden=16))  # none of it saturates
    state = random_state(rule)
    other = state.clone()
    other[0, :, cell[0], cell[1]] += 0.1
    for distance in (1, 2):
        with torch.no_grad():
            state, other = rule(state, NOTHING, NOTHING), rule(other, NOTHING, NOTHING)
        changed = {(y, x) for y, x in (state != other)[0].any(0).nonzero().tolist()}
        reach = range(-distance, distance + 1)
        square = {(cell[0] + dy, cell[1] + dx) for dy in reach for dx in reach}
        if border == "wrap":
            expected = {(y % 7, x % 7) for y, x in square}
        else:
            expected = {(y, x) for y, x in square if 0 <= y < 7 and 0 <= x < 7}
        assert changed == expected


@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_border_is_what_lies_beyond(border: str, small_config: Make) -> None:
    rule = Rule(small_config(border=border, inputs=()))
    x = random_state(rule)[:, :3]
    seen = rule.show(x, rule.look(random_state(rule), NOTHING, NOTHING))[0]
    assert torch.equal(seen[:, 1:-1, 1:-1], x[0])
    expected = {"zero": 0 * x[0, :, 0, 0], "replicate": x[0, :, 0, 0], "wrap": x[0, :, 6, 6]}
    assert torch.equal(seen[:, 0, 0], expected[border])


def test_sample_is_latched_and_its_trace_falls_to_zero(small_config: Make) -> None:
    rule = Rule(small_config(trace_bits=2))
    sample, valid = torch.full((1, 1, 7, 7), 0.5), NOTHING.clone()
    valid[0, 0, 2, 3] = 1
    state = rule(rule.initial_state(1, 7, 7), sample, valid)
    expected = torch.zeros(2, 7, 7)
    expected[:, 2, 3] = torch.tensor([0.5, 0.75])
    assert torch.equal(state[0, -2:], expected)
    for trace in (0.5, 0.25, 0, 0):
        state = rule(state, -sample, NOTHING)  # what is offered but not valid is not read
        expected[1, 2, 3] = trace
        assert torch.equal(state[0, -2:], expected)


def test_a_sample_is_fresh_in_the_step_that_takes_it(small_config: Make) -> None:
    rule = Rule(small_config(inputs=("fresh",), trace_bits=2))
    seen: list[float] = []
    rule.perceive.register_forward_hook(
        lambda _, shown, __: seen.append(shown[0][0, -1, 4, 4].item())
    )
    state = rule.initial_state(1, 7, 7)
    for valid in (1, 1, 0, 1):
        state = rule(state, NOTHING, NOTHING + valid)
    assert seen == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("valid", "age", "expected"),
    [
        # innovation and recall, 1.25, are clipped
        (1, 0.25, [0.5, 1 - 1 / 256, 1, 1, -0.25, 1, 1, 1]),
        (1, 1 - 1 / 256, [0.5, 1 - 1 / 256, 1, 0, -0.25, 1, 1, 1]),
        (1, 0, [0.5, 1 - 1 / 256, 1, 1, 0, 1, 1, 1]),
        (0, 0.25 + 1 / 256, [0.75, 0.25, 0, 0, 0, 0, 0.25, 0.375]),
    ],
)
def test_inputs_are_what_the_config_says(
    valid: float, age: float, expected: list[float], small_config: Make
) -> None:
    rule = Rule(small_config(channels=2, inputs=INPUTS, trace_bits=8))
    numbers = torch.tensor([-0.75, 0.0, 0.75, age])
    state = numbers[:, None, None].expand(1, 4, 7, 7)
    given = torch.full((1, 1, 7, 7), 0.5)
    look = rule.look(state, given, torch.full_like(given, valid))
    seen = rule.show(state[:, :2], look)[0, :, 3, 3]
    assert seen.tolist() == [-0.75, 0.0, *expected]


def test_recency_is_linear_between_its_corners() -> None:
    trace = torch.tensor([0, 0.5, 7 / 8, 15 / 16, 63 / 64, 127 / 128, 1])
    assert recency(trace).tolist() == [0, 0.5, 0.875, 1.4375, 1.859375, 2.9296875, 4]


@pytest.mark.parametrize(("doubt", "trust"), [(-1.0, 1.0), (0.0, 1.0), (0.25, 0.859375), (0.5, 0)])
def test_doubt_takes_from_the_trust(doubt: float, trust: float, small_config: Make) -> None:
    rule = Rule(small_config(channels=2, inputs=("trust",), trace_bits=8))
    numbers = torch.tensor([0.0, doubt, 0.0, 63 / 64 + 1 / 256])
    state = numbers[:, None, None].expand(1, 4, 7, 7)
    (seen,) = rule.look(state, NOTHING, NOTHING).inputs
    assert seen[0, 0, 3, 3] == trust


def test_recall_needs_trust() -> None:
    with pytest.raises(InputError) as caught:
        RuleConfig(inputs=("recall",))
    assert str(caught.value) == "input recall needs input trust: name both or neither"


def test_pixel_p_of_255_is_p_over_128_minus_1() -> None:
    p = torch.arange(256)
    torch.testing.assert_close(to_state(p / 255), p / 128 - 1, atol=2e-7, rtol=0)


def test_to_pixel_undoes_to_state_and_clips() -> None:
    pixels = torch.linspace(0, 1, 1001)
    torch.testing.assert_close(to_pixel(to_state(pixels)), pixels, atol=1e-7, rtol=0)
    assert to_pixel(torch.tensor([-1.5, 1.0])).tolist() == [0, 1]


def test_cost_of_the_default_rule() -> None:
    config = RuleConfig()
    assert Rule(config).parameter_count == 16 * (12 * 9) + 16 + 16 * 16 + 16
    assert config.macs == 16 * (12 * 9) + 16 * 16
    assert config.channel_names == (*(f"x{i}" for i in range(8)), "sample", "trace")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"channels": 0}, "channels 0 is outside 1 to 32: choose one inside"),
        ({"hidden": 129}, "hidden 129 is outside 1 to 128: choose one inside"),
        ({"hidden": 2.5}, "hidden 2.5 is outside 1 to 128: choose one inside"),
        ({"steps_per_frame": 65}, "steps_per_frame 65 is outside 1 to 64: choose one inside"),
        ({"trace_bits": 17}, "trace_bits 17 is outside 1 to 16: choose one inside"),
        ({"kind": "gru"}, "kind 'gru' is unknown: choose gated or residual"),
        ({"border": "mirror"}, "border 'mirror' is unknown: choose zero, replicate or wrap"),
        (
            {"inputs": ("trace", "sample")},
            "inputs trace, sample are not a part of sample, trace, valid, fresh, flicker, "
            "innovation, trust, recall in that order: name each once, in that order",
        ),
        (
            {"inputs": ("sample", "flow")},
            "inputs sample, flow are not a part of sample, trace, valid, fresh, flicker, "
            "innovation, trust, recall in that order: name each once, in that order",
        ),
    ],
)
def test_config_outside_its_range_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        RuleConfig(**fields)
    assert str(caught.value) == sentence


def test_saved_rule_loads_as_it_was(tmp_path: Path, small_config: Make, float_rule: Make) -> None:
    rule = float_rule(0, small_config(kind="residual", border="wrap", inputs=("trace",)))
    rule.training_record = {"clips": ["a", "b"], "seed": 1}
    rule.save(tmp_path / "rule.safetensors")
    loaded = Rule.load(tmp_path / "rule.safetensors")
    assert (loaded.config, loaded.training_record) == (rule.config, rule.training_record)
    for name, tensor in rule.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.fixture
def path(tmp_path: Path, small_config: Make) -> Path:
    path = tmp_path / "rule.safetensors"
    Rule(small_config(channels=2, hidden=2)).save(path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Rule.load(path)
    return str(caught.value)


def rewrite(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (["a"], "training is a list"),
        ({"clips": "a"}, "clips of the training are no list of names"),
        ({"digests": None}, "digests of the training are no texts by name"),
        ({"digests": {"a": None}}, "digests of the training are no texts by name"),
        ({"quantized_by": "me"}, "quantized_by of the training is no list"),
    ],
)
def test_a_record_of_something_else_is_refused(path: Path, record: Any, reason: str) -> None:
    rule = Rule.load(path)
    rule.training_record = record
    rule.save(path)
    assert reason in refusal(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_refused(path: Path, value: float) -> None:
    tensors = load_file(path)
    tensors["update.bias"][1] = value
    rewrite(path, tensors)
    assert refusal(path) == (f"rule {path} has a update.bias that is not finite: train it again")


def test_weights_of_another_shape_are_refused(path: Path) -> None:
    tensors = load_file(path)
    tensors["update.bias"] = tensors["update.bias"][:1]
    expected = {name: tensor.shape for name, tensor in load_file(path).items()}
    rewrite(path, tensors)
    message = refusal(path)
    assert message.startswith(f"rule {path} holds tensors {{")
    assert "'update.bias': (1,)" in message
    assert f"'update.bias': {expected['update.bias']}" in message
    assert message.endswith(": write it again")


def test_missing_weight_is_refused(path: Path) -> None:
    tensors = load_file(path)
    del tensors["perceive.bias"]
    rewrite(path, tensors)
    assert refusal(path).startswith(f"rule {path} holds tensors {{")
