import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scotopia.model import compiled, fused, native
from scotopia.model.config import INPUTS
from scotopia.model.rule import Rule
from scotopia.model.unroll import draw_fired, unroll, unroll_plainly

Make = Callable[..., Any]  # a fixture of conftest.py

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def chunk(rule: Rule, videos: int = 2, frames: int = 3, height: int = 9, width: int = 37) -> Any:
    """A state in mid-flight, samples, and where they are valid."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    channels, pixels = len(rule.config.channel_names), rule.config.pixels
    state = random(videos, channels, height, width)
    samples = 2 * random(videos, frames, pixels, height, width) - 1
    return state, samples, (random(*samples.shape) < 0.3).float()


def gradients(rule: Rule, predictions: Tensor) -> list[Tensor]:
    target = torch.linspace(-1, 1, predictions.numel()).reshape(predictions.shape)
    loss = (predictions - target).square().mean()
    return list(torch.autograd.grad(loss, list(rule.parameters())))


@needs_compiler
@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": INPUTS, "trace_bits": 8},
        {"inputs": INPUTS, "block": 2, "channels": 6, "border": "wrap"},
        {"inputs": INPUTS, "border": "zero"},
        {"inputs": (), "kind": "residual", "border": "zero"},
        {"inputs": ("sample", "trust"), "fire_rate": 0.5, "perception": "depthwise"},
        {"inputs": ("valid", "innovation"), "fire_rate": 0.5, "kind": "residual"},
        # blocks of outputs that are not full, and of one
        {"inputs": ("trust", "recall"), "hidden": 19, "channels": 9, "perception": "sobel"},
        {"inputs": ("innovation",), "channels": 1, "hidden": 1},
    ],
    ids=str,
)
def test_fused_agrees_with_pytorch(fields: dict[str, Any], small_config: Make) -> None:
    torch.manual_seed(0)
    rule = Rule(small_config(**fields))
    with torch.no_grad():  # far enough for gates, candidates and states to saturate
        for parameter in rule.parameters():
            parameter.mul_(2)
    state, samples, valids = chunk(rule)
    fired = draw_fired(rule, samples, torch.Generator().manual_seed(1))
    expected, expected_state = unroll_plainly(rule, state, samples, valids, fired)
    found, found_state = fused.unroll(rule, state, samples, valids, fired)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_state, expected_state, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(rule, found), gradients(rule, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@needs_compiler
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 31, 32, 33, 64])
def test_fused_is_right_at_every_width(width: int, small_config: Make) -> None:
    torch.manual_seed(1)
    rule = Rule(small_config())
    state, samples, valids = chunk(rule, videos=1, frames=2, height=3, width=width)
    found, _ = fused.unroll(rule, state, samples, valids, None)
    expected, _ = unroll_plainly(rule, state, samples, valids)
    for ours, theirs in zip(gradients(rule, found), gradients(rule, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@needs_compiler
def test_threads_do_not_change_the_gradient(small_config: Make) -> None:
    torch.manual_seed(2)
    rule = Rule(small_config())
    state, samples, valids = chunk(rule, videos=5)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(gradients(rule, fused.unroll(rule, state, samples, valids, None)[0]))
    torch.set_num_threads(1)
    assert all(map(torch.equal, *found))


@needs_compiler
def test_a_chunk_begun_while_another_waits_does_not_disturb_it(small_config: Make) -> None:
    torch.manual_seed(3)
    rule = Rule(small_config())
    first, second = chunk(rule), chunk(rule)
    expected = gradients(rule, unroll_plainly(rule, *first)[0])
    fused.unroll(rule, *second, None)[0].sum().backward()  # leaves its arrays for the next
    waiting = fused.unroll(rule, *first, None)[0]
    fused.unroll(rule, *second, None)[0].sum().backward()
    for ours, theirs in zip(gradients(rule, waiting), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("there", [True, False])
def test_the_compiler_is_used_where_it_is(
    there: bool, small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(native, "available", lambda: there)
    monkeypatch.setattr(compiled, "unroll", lambda *given, **named: called.append(given))
    rule = Rule(small_config())
    unroll(rule, *chunk(rule))
    assert bool(called) is there


def test_cells_that_do_not_fire_keep_their_state_and_take_samples(small_config: Make) -> None:
    rule = Rule(small_config())
    state, samples, valids = chunk(rule)
    fired = torch.zeros(2, 1, 9, 37)
    after = rule(state, samples[:, 0], valids[:, 0], fired)
    assert torch.equal(after[:, :3], state[:, :3])
    arrived = valids[:, 0] > 0
    torch.testing.assert_close(after[:, 3:4][arrived], samples[:, 0][arrived])


def test_share_of_cells_that_fire(small_config: Make) -> None:
    rule = Rule(small_config(fire_rate=0.25, steps_per_frame=3))
    _, samples, _ = chunk(rule, height=40)
    fired = draw_fired(rule, samples, torch.Generator().manual_seed(0))
    assert fired is not None and fired.shape == (2, 3 * 3, 1, 40, 37)
    # 26,640 draws: within five standard deviations
    assert fired.mean().item() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 26640) ** 0.5)


@pytest.mark.parametrize("perception", ["depthwise", "sobel"])
def test_filtered_layer_equals_its_full_layer(perception: str, small_config: Make) -> None:
    torch.manual_seed(0)
    rule = Rule(small_config(perception=perception))
    assert rule.parameter_count == rule.config.parameters
    layer, channels = rule.perceive, rule.config.perceived
    padded = torch.rand(2, channels, 9, 11)
    # Each channel through each of its filters on its own, then the sums.
    count = layer.filters.shape[1]
    filters = layer.filters.reshape(channels * count, 1, 3, 3)
    responses = F.conv2d(padded, filters, groups=channels)
    mix = layer.mix.reshape(rule.config.hidden, channels * count, 1, 1)
    expected = F.conv2d(responses, mix, layer.bias)
    torch.testing.assert_close(layer(padded), expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_rules_of_two_shapes_may_be_compiled_at_once(small_config: Make) -> None:
    rules = [Rule(small_config(hidden=hidden, inputs=())) for hidden in (1, 2)]
    native._compile.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda rule: fused.unroll(rule, *chunk(rule), None)[0], rules))
    for rule, predictions in zip(rules, found, strict=True):
        expected, _ = unroll_plainly(rule, *chunk(rule))
        torch.testing.assert_close(predictions, expected, rtol=1e-5, atol=1e-5)
