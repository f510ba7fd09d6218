import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scotopia.model.config import RuleConfig
from scotopia.model.errors import InputError
from scotopia.model.rule import Rule, to_state
from scotopia.model.task import run
from scotopia.model.train import (
    TrainOptions,
    Videos,
    dense_loss,
    learning_rate_factor,
    log_dense_loss,
    observed_loss,
    running_average,
    train,
)
from scotopia.model.video import Clip

Make = Callable[..., Any]  # a fixture of conftest.py

NOISE = Clip("noise", np.random.default_rng(0).random((10, 14, 12), dtype=np.float32))
#: A vertical edge that moves to the right.
EDGE = Clip("edge", (np.arange(12) > np.arange(9)[:, None, None]).repeat(12, 1).astype(np.float32))
TINY = TrainOptions(iterations=3, batch=2, crop=8, chunk=3, densities=(0.2, 0.5))


def weights(rule: Rule) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in rule.parameters()]


def test_same_seed_gives_the_same_weights(small_config: Make, float_rule: Make) -> None:
    rules = [float_rule(0, small_config()) for _ in range(3)]
    for rule, seed in zip(rules, (0, 0, 1), strict=True):
        train(rule, [NOISE], dataclasses.replace(TINY, seed=seed))
    first, same, other = map(weights, rules)
    assert all(map(torch.equal, first, same))
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("loss", ["dense", "log-dense", "observed"])
def test_training_lowers_the_error(loss: str) -> None:
    torch.manual_seed(0)
    rule = Rule(RuleConfig(channels=4, hidden=8, steps_per_frame=2))

    def error() -> float:
        mask = np.random.default_rng(1).random(EDGE.frames.shape) < 0.3
        states = torch.stack(list(run(rule, EDGE.frames, mask)))
        return (states[:, 0] - to_state(torch.from_numpy(EDGE.frames))).square().mean().item()

    before = error()
    options = TrainOptions(
        iterations=40,
        batch=4,
        crop=12,
        chunk=4,
        learning_rate=0.02,
        densities=(0.3, 0.3),
        loss=loss,
    )
    reported: list[int] = []
    train(rule, [EDGE], options, lambda iteration, _loss: reported.append(iteration))
    assert reported == list(range(1, 41))
    assert error() < 0.7 * before


def test_observed_loss_reads_nothing_but_the_pixels_that_arrive() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, frame, sample = torch.rand(3, 2, 1, 5, 5, generator=generator)
    valid = (torch.rand(2, 1, 5, 5, generator=generator) < 0.3).float()
    prediction.requires_grad_()
    loss = observed_loss(prediction, frame, sample, valid)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert torch.equal(gradient != 0, valid > 0)
    arrived = valid > 0
    expected = (prediction[arrived] - sample[arrived]).square().mean()
    torch.testing.assert_close(loss, expected)
    assert observed_loss(prediction, 1 - frame, sample * valid, valid) == loss


def test_observed_loss_of_nothing_is_zero() -> None:
    nothing = torch.zeros(1, 1, 3, 3)
    assert observed_loss(nothing + 1, nothing, nothing, nothing) == 0


def test_dense_losses_by_hand() -> None:
    prediction = torch.tensor([0.5, 0.1])[:, None, None, None].expand(2, 1, 3, 3)
    frame = torch.zeros(2, 1, 3, 3)
    assert dense_loss(prediction, frame, frame, frame).item() == pytest.approx(0.13)
    expected = (math.log(0.25 + 2e-3) + math.log(0.01 + 2e-3)) / 2
    assert log_dense_loss(prediction, frame, frame, frame).item() == pytest.approx(expected)


def test_loss_that_is_not_finite_keeps_the_weights(small_config: Make, float_rule: Make) -> None:
    rule = float_rule(0, small_config())
    kept: list[list[Tensor]] = []

    def loss(prediction: Tensor, frame: Tensor, sample: Tensor, valid: Tensor) -> Tensor:
        broken = math.nan if len(kept) == 2 else 1
        return dense_loss(prediction, frame, sample, valid) * broken

    options = dataclasses.replace(TINY, iterations=5, loss=loss)
    with pytest.raises(FloatingPointError) as caught:
        train(rule, [NOISE], options, lambda _iteration, _loss: kept.append(weights(rule)))
    assert str(caught.value) == "the loss is nan at iteration 3"
    assert all(map(torch.equal, weights(rule), kept[-1]))


def test_gradient_that_is_not_finite_keeps_the_weights(
    small_config: Make, float_rule: Make
) -> None:
    rule = float_rule(0, small_config())
    before = weights(rule)

    def loss(prediction: Tensor, frame: Tensor, _sample: Tensor, _valid: Tensor) -> Tensor:
        return (prediction - prediction.detach()).abs().sqrt().mean()  # 0, of infinite slope

    with pytest.raises(FloatingPointError):
        train(rule, [NOISE], dataclasses.replace(TINY, loss=loss))
    assert all(map(torch.equal, weights(rule), before))


def test_weight_that_is_not_finite_is_noticed_at_once(small_config: Make) -> None:
    rule = Rule(small_config())
    with torch.no_grad():
        rule.update.bias[0] = math.nan
    with pytest.raises(FloatingPointError) as caught:
        train(rule, [NOISE], TINY)
    assert str(caught.value) == "the loss is nan at iteration 1"


def test_clip_smaller_than_the_crop_is_refused(small_config: Make) -> None:
    with pytest.raises(InputError) as caught:
        train(Rule(small_config()), [NOISE], dataclasses.replace(TINY, crop=13))
    assert str(caught.value) == (
        "clip noise has 12 x 14 pixels, the crop 13: choose a smaller crop"
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"iterations": 0}, "iterations 0 is below 1: choose at least 1"),
        ({"chunk": -1}, "chunk -1 is below 1: choose at least 1"),
        (
            {"densities": (0.1, 0.05)},
            "densities 0.1 to 0.05 are outside (0, 1]: choose 0.005 to 0.04",
        ),
        (
            {"densities": (0.0, 1.0)},
            "densities 0.0 to 1.0 are outside (0, 1]: choose 0.005 to 0.04",
        ),
        ({"loss": "l1"}, "loss 'l1' is unknown: choose one of dense, log-dense, observed"),
    ],
)
def test_options_outside_their_range_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainOptions(**fields)
    assert str(caught.value) == sentence


def test_chunks_share_their_last_and_first_frame() -> None:
    videos = Videos([NOISE], dataclasses.replace(TINY, batch=6, restart=0.0))
    frames, masks, new = videos.next_chunk()
    assert frames.shape == masks.shape == (3 + 1, 6, 1, 8, 8)
    for _ in range(8):
        next_frames, next_masks, new = videos.next_chunk()
        assert new == []
        assert torch.equal(next_frames[0], frames[-1])
        assert torch.equal(next_masks[0], masks[-1])
        frames, masks = next_frames, next_masks


def test_every_video_is_replaced_when_restart_is_certain() -> None:
    videos = Videos([NOISE], dataclasses.replace(TINY, batch=3, restart=1.0))
    before = copy.copy(videos.videos)
    assert videos.next_chunk()[2] == [0, 1, 2]
    assert not any(old is new for old, new in zip(before, videos.videos, strict=True))


def test_videos_keep_to_their_range_and_density() -> None:
    videos = Videos([NOISE], dataclasses.replace(TINY, batch=32, densities=(0.3, 0.3)))
    frames, masks, _ = videos.next_chunk()
    assert frames.min() >= 0 and frames.max() <= 1
    # 8,192 draws: 0.3 within five standard deviations
    assert masks.mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 8192))


def test_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    factors = [learning_rate_factor(i, 1000) for i in range(1001)]
    assert factors[0] == 1 / 20
    assert max(factors) == factors[20] == 1
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[1000] == pytest.approx(0.01)


def test_running_average_forgets_the_first_weights_then_moves_slowly() -> None:
    update = running_average(0.998)
    assert update(torch.tensor(5.0), torch.tensor(1.0), 0).item() == pytest.approx(1.4)
    assert update(torch.tensor(5.0), torch.tensor(1.0), 10**6).item() == pytest.approx(4.992)


def test_training_ends_with_the_average_of_its_weights(
    small_config: Make, float_rule: Make
) -> None:
    last, averaged = float_rule(0, small_config()), float_rule(0, small_config())
    train(last, [NOISE], dataclasses.replace(TINY, average=0.0))
    train(averaged, [NOISE], dataclasses.replace(TINY, average=0.998))
    assert not any(map(torch.equal, weights(last), weights(averaged)))
