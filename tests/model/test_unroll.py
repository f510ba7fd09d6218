import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scotopia.model import compiled, native
from scotopia.model.rule import Rule
from scotopia.model.unroll import draw_fired, unroll, unroll_compiled, unroll_plainly

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
@pytest.mark.usefixtures("compiler")
def test_rules_of_two_shapes_may_be_compiled_at_once(small_config: Make) -> None:
    rules = [Rule(small_config(hidden=hidden, inputs=())) for hidden in (1, 2)]
    native._compiled.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda rule: unroll_compiled(rule, *chunk(rule))[0], rules))
    for rule, predictions in zip(rules, found, strict=True):
        expected, _ = unroll_plainly(rule, *chunk(rule))
        torch.testing.assert_close(predictions, expected, rtol=1e-5, atol=1e-5)
