import dataclasses
import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_optimizer import SOAP
from torch import Tensor

from scotopia.graph.errors import InputError
from scotopia.model import memory, native, score
from scotopia.model.checkpoint import digest
from scotopia.model.config import RuleConfig
from scotopia.model.losses import dense_loss
from scotopia.model.options import TrainOptions
from scotopia.model.presets import PRESETS, find_preset
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.scotopic.training import (
    BYTES_PER_VIDEO,
    check_options,
    least_bytes,
    new_trainer,
    train,
    validate,
)
from scotopia.model.sensor import Sensor
from scotopia.model.task import reconstruct
from scotopia.model.train import average_decay, choose_device, learning_rate_factor
from scotopia.model.video import Clip

Make = Callable[..., Any]  # a fixture of conftest.py

NOISE = Clip("noise", np.random.default_rng(0).random((10, 14, 12), dtype=np.float32))
#: A vertical edge that moves to the right.
EDGE = Clip("edge", (np.arange(12) > np.arange(9)[:, None, None]).repeat(12, 1).astype(np.float32))
TINY = TrainOptions(iterations=3, batch=2, crop=8, chunk=3, densities=(0.2, 0.3, 0.5))


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These rules train in less time than the compiler takes."""
    monkeypatch.setattr(native, "available", lambda: False)
    yield


def weights(rule: Rule) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in rule.parameters()]


def test_same_seed_gives_the_same_weights(small_config: Make, float_rule: Make) -> None:
    rules = [float_rule(0, small_config(fire_rate=0.5)) for _ in range(3)]
    for rule, seed in zip(rules, (0, 0, 1), strict=True):
        train(rule, [NOISE], dataclasses.replace(TINY, seed=seed))
    first, same, other = map(weights, rules)
    assert all(map(torch.equal, first, same))
    assert not any(map(torch.equal, first, other))


def test_the_record_is_written_where_training_happens(small_config: Make, tmp_path: Path) -> None:
    rule, teacher = Rule(small_config()), Rule(small_config())
    rule.training_record = {"clips": ["begun"], "digests": {"begun": "1"}, "seconds": 7}
    teacher.training_record = {"clips": ["taught"]}
    trainer = new_trainer(rule, [NOISE], TINY, synthetic=[EDGE], teacher=teacher)
    trainer.step()
    assert trainer.result().training_record == {
        "clips": ["begun", "taught", "noise"],
        "digests": {"begun": "1", "noise": digest(NOISE)},
        "synthetic_clips": 1,
        "options": TINY.describe(),
        "device": "cpu",
        "scotopia": version("scotopia"),
        "iterations": 1,
    }
    train(rule, [EDGE], TINY)
    rule.save(tmp_path / "rule.safetensors")
    record = Rule.load(tmp_path / "rule.safetensors").training_record
    assert (record["clips"], record["iterations"]) == (["begun", "edge"], 3)


def test_a_rule_has_nothing_to_learn_from_itself(small_config: Make, float_rule: Make) -> None:
    config = small_config(fire_rate=0.5)
    rule = float_rule(0, config)
    trainer = new_trainer(rule, [NOISE], TINY, teacher=rule)
    before = weights(rule)
    losses = [trainer.step() for _ in range(TINY.iterations)]
    assert losses == [0] * TINY.iterations
    assert all(map(torch.equal, weights(rule), before))
    assert new_trainer(rule, [NOISE], TINY, teacher=float_rule(1, config)).step() > 0


def test_teachers_that_teach_nothing_are_refused(small_config: Make) -> None:
    rule, wide = Rule(small_config()), Rule(small_config(block=2, channels=5))
    with pytest.raises(InputError, match=r"^the teacher's cells stand for 2 x 2 pixels, the rule"):
        new_trainer(rule, [NOISE], TINY, teacher=wide)
    options = dataclasses.replace(TINY, loss="observed")
    with pytest.raises(InputError, match=r"^loss observed reads no teacher: choose dense, or"):
        new_trainer(rule, [NOISE], options, teacher=rule)


@pytest.mark.parametrize(
    ("loss", "block", "optimizer"),
    [
        ("dense", 1, "soap"),
        ("log-dense", 1, "soap"),
        ("log-dense", 1, "adam"),
        ("observed", 1, "soap"),
        ("log-dense", 2, "soap"),
    ],
)
def test_training_lowers_the_error(loss: str, block: int, optimizer: str) -> None:
    torch.manual_seed(0)
    rule = Rule(RuleConfig(channels=4 + block**2, hidden=8, steps_per_frame=2, block=block))

    def error() -> float:
        mask = np.random.default_rng(1).random(EDGE.frames.shape) < 0.3
        estimates = reconstruct(rule, EDGE.frames, mask)
        return float(np.square(estimates - EDGE.frames).mean())

    before = error()
    options = TrainOptions(
        iterations=40,
        batch=4,
        crop=12,
        chunk=4,
        optimizer=optimizer,
        learning_rate=0.02,
        densities=(0.3, 0.3, 0.3),
        average=0.9,
        loss=loss,
    )
    reported: list[int] = []
    train(rule, [EDGE], options, lambda iteration, _loss: reported.append(iteration))
    assert reported == list(range(1, 41))
    assert error() < 0.7 * before


def test_a_loss_gets_the_scene_and_what_arrives_next(small_config: Make) -> None:
    got: list[list[Tensor]] = []

    def loss(*tensors: Tensor) -> Tensor:
        got.append(list(tensors))
        return dense_loss(*tensors)

    options = dataclasses.replace(TINY, loss=loss, restart=0, cut=0, blackout=0)
    train(Rule(small_config(channels=5, block=2)), [NOISE], options)
    assert {tensor.shape for tensors in got for tensor in tensors} == {(2, 3, 4, 4, 4)}
    frames, samples = (torch.cat([tensors[i] for tensors in got], 1) for i in (1, 2))
    assert torch.equal(frames[:, 1:], samples[:, :-1])
    assert frames.min() >= -1 and frames.max() < 1


def test_a_video_that_begins_finds_a_state_of_zero(
    small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def unroll(rule: Rule, state: Tensor, samples: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        found.append([video.abs().sum().item() for video in state])
        weight: Tensor = next(rule.parameters())
        return samples * 0 + weight.sum(), torch.ones_like(state)

    monkeypatch.setattr("scotopia.model.scotopic.training.unroll", unroll)
    for restart in (0, 1):
        train(Rule(small_config()), [NOISE], dataclasses.replace(TINY, restart=restart))
    cells = 5 * 8 * 8
    assert found == [[0, 0], [cells, cells], [cells, cells], [0, 0], [0, 0], [0, 0]]


def test_loss_that_is_not_finite_keeps_the_average(small_config: Make, float_rule: Make) -> None:
    calls = iter((1, 1, math.nan))

    def loss(*tensors: Tensor) -> Tensor:
        return dense_loss(*tensors) * next(calls, 1)

    stopped, rule = float_rule(0, small_config()), float_rule(0, small_config())
    options = dataclasses.replace(TINY, iterations=5, loss=loss)
    with pytest.raises(FloatingPointError) as caught:
        train(rule, [NOISE], options)
    assert str(caught.value) == "the loss is nan at iteration 3"
    trainer = new_trainer(stopped, [NOISE], options)
    for _ in range(2):
        trainer.step()
    assert all(map(torch.equal, weights(rule), weights(trainer.average)))


def test_gradient_that_is_not_finite_keeps_the_weights(
    small_config: Make, float_rule: Make
) -> None:
    rule = float_rule(0, small_config())
    before = weights(rule)

    def loss(predictions: Tensor, *_: Tensor) -> Tensor:
        return (predictions - predictions.detach()).abs().sqrt().mean()  # 0, of infinite slope

    with pytest.raises(FloatingPointError) as caught:
        train(rule, [NOISE], dataclasses.replace(TINY, loss=loss))
    assert str(caught.value) == "the gradient is nan at iteration 1"
    assert all(map(torch.equal, weights(rule), before))


def test_step_to_a_weight_that_is_not_finite_keeps_the_average(
    small_config: Make, float_rule: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = float_rule(0, small_config())
    before = weights(rule)

    def overflow(_: object) -> None:
        with torch.no_grad():
            rule.update.weight[0] = math.inf

    trainer = new_trainer(rule, [NOISE], TINY)
    monkeypatch.setattr(SOAP, "step", overflow)
    with pytest.raises(FloatingPointError) as caught:
        trainer.step()
    assert str(caught.value) == "the sum of the weights is inf at iteration 1"
    assert all(map(torch.equal, weights(trainer.average), before))


def test_weight_that_is_not_finite_is_noticed_at_once(small_config: Make) -> None:
    rule = Rule(small_config())
    with torch.no_grad():
        rule.update.bias[0] = math.nan
    with pytest.raises(FloatingPointError) as caught:
        train(rule, [NOISE], TINY)
    assert str(caught.value) == "the loss is nan at iteration 1"


def test_crop_that_does_not_divide_into_cells_is_refused(small_config: Make) -> None:
    with pytest.raises(InputError) as caught:
        train(Rule(small_config(channels=10, block=3)), [NOISE], TINY)
    assert str(caught.value) == (
        "crop 8 does not divide into cells of 3 x 3 pixels: choose a multiple of 3"
    )


def test_an_iteration_that_does_not_fit_the_memory_is_refused(
    small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(channels=10, hidden=5, block=2)
    # Three arrays of four frames of 8 x 8 pixels; ten channels, four registers of two, five hidden
    # neurons of 4 x 4 cells in six steps; what is kept besides: of two videos.
    least = 2 * (4 * (3 * 4 * 64 + (10 + 8 + 5) * 6 * 16) + BYTES_PER_VIDEO)
    assert least_bytes(config, TINY, "cpu") == least
    assert least_bytes(config, TINY, "cuda:1") == 2 * (4 * 3 * 4 * 64 + BYTES_PER_VIDEO)
    monkeypatch.setattr(memory, "installed", lambda: least)
    check_options(config, TINY, "cpu")
    monkeypatch.setattr(memory, "installed", lambda: least - 1)
    check_options(config, TINY, "cuda")
    with pytest.raises(InputError) as caught:
        new_trainer(Rule(config), [NOISE], TINY)
    assert str(caught.value) == (
        "batch 2, chunk 3 and crop 8: that needs 0.0 GB of memory, and this machine has 0.0: "
        "choose smaller ones"
    )


@pytest.mark.parametrize("iterations", [1, 10**9])
def test_densities_at_which_no_pixel_arrives_are_refused(
    iterations: int, small_config: Make
) -> None:
    options = dataclasses.replace(TINY, iterations=iterations, densities=(1e-9, 1e-9, 2e-9))
    with pytest.raises(InputError) as caught:
        new_trainer(Rule(small_config()), [NOISE], options)
    frames = 6 if iterations == 1 else 2**22 // 64
    assert str(caught.value) == (
        f"densities 1e-09, 1e-09, 2e-09: no pixel of {frames} frame(s) of 8 x 8 arrives at density "
        "2e-09 and seed 0, so that nothing would be seen: raise the density, or show more or "
        "larger frames"
    )
    new_trainer(Rule(small_config(inputs=())), [NOISE], options)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"iterations": 0}, "iterations 0 is below 1: choose at least 1"),
        ({"chunk": -1}, "chunk -1 is below 1: choose at least 1"),
        ({"seed": -1}, "seed -1 is below 0: choose 0 or more"),
        (
            {"densities": (0.1, 0.05, 0.2)},
            "densities 0.1, 0.05, 0.2 do not rise inside (0, 1]: choose 0.005,0.01,0.04",
        ),
        (
            {"densities": (0.0, 0.5, 1.0)},
            "densities 0.0, 0.5, 1.0 do not rise inside (0, 1]: choose 0.005,0.01,0.04",
        ),
        ({"zoom": 0.5, "crop": 9}, "crop 9 is odd, which zoom cannot halve: choose it even"),
        ({"cut": 1.5}, "cut 1.5 is outside [0, 1]: give 0.1 for 10 %"),
        ({"restart": math.nan}, "restart nan is outside [0, 1]: give 0.1 for 10 %"),
        ({"optimizer": "sgd"}, "optimizer 'sgd' is unknown: choose one of soap, adam"),
        ({"learning_rate": math.nan}, "learning_rate nan is outside (0, 1]: choose 0.002"),
        ({"contrast": 0}, "contrast 0 is outside (0, 1]: choose 0.3"),
        ({"contrast": math.nan}, "contrast nan is outside (0, 1]: choose 0.3"),
        ({"average": 1}, "average 1 is outside [0, 1): choose 0.998"),
        (
            {"sensor_share": 0.5},
            "sensor_share 0.5 with no sensor: give both, for instance photons 10 and a share of "
            "0.5, or neither",
        ),
        (
            {"sensor": Sensor(photons=10)},
            "sensor_share 0 with a sensor: give both, for instance photons 10 and a share of "
            "0.5, or neither",
        ),
        ({"loss": "l1"}, "loss 'l1' is unknown: choose one of dense, log-dense, observed"),
    ],
)
def test_options_outside_their_range_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainOptions(**fields)
    assert str(caught.value) == sentence


def test_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    factors = [learning_rate_factor(i, 1000) for i in range(1001)]
    assert factors[0] == 1 / 20
    assert max(factors) == factors[20] == 1
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[1000] == pytest.approx(0.01)


def test_each_iteration_has_its_learning_rate(
    small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    step = SOAP.step

    def note(optimizer: SOAP) -> None:
        found.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(SOAP, "step", note)
    options = dataclasses.replace(TINY, iterations=200, learning_rate=0.4)
    trainer = new_trainer(Rule(small_config()), [NOISE], options)
    for iteration in range(6):
        expected = 0.4 * learning_rate_factor(iteration, 200)
        assert trainer.learning_rate == expected
        trainer.step()
        assert found[-1] == expected


def test_running_average_forgets_the_first_weights_then_moves_slowly() -> None:
    assert average_decay(1, 0.998) == pytest.approx(2 / 11)
    assert average_decay(10**6, 0.998) == 0.998


def test_training_ends_with_the_average_of_its_weights(
    small_config: Make, float_rule: Make
) -> None:
    path: list[list[Tensor]] = []
    averaged = float_rule(0, small_config())
    expected = weights(averaged)
    train(averaged, [NOISE], TINY, lambda *_: path.append(weights(averaged)))
    for i, step in enumerate(path, 1):
        for old, new in zip(expected, step, strict=True):
            old.mul_((1 + i) / (10 + i)).add_(new, alpha=9 / (10 + i))
    for ours, theirs in zip(weights(averaged), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    last = float_rule(0, small_config())
    train(last, [NOISE], dataclasses.replace(TINY, average=0.0))
    assert all(map(torch.equal, weights(last), path[-1]))


def test_validation_is_the_protocol(small_config: Make, float_rule: Make) -> None:
    rng = np.random.default_rng(0)
    first, second = (Clip("", rng.random((22, 10, 13), dtype=np.float32)) for _ in range(2))
    rule = float_rule(0, small_config())
    expected = []
    for clip in (first, second):
        mask = sample_mask(clip.frames.shape, 0.01, 0)
        expected.append(score.psnr(clip.frames, reconstruct(rule, clip.frames, mask)))
    assert validate(rule, [first, second]) == pytest.approx(np.mean(expected))


def test_validation_leaves_out_what_fills_no_cell(small_config: Make, float_rule: Make) -> None:
    rule = float_rule(0, small_config(channels=10, block=3))
    frames = np.random.default_rng(0).random((22, 10, 13), dtype=np.float32)
    whole, cut = Clip("", frames), Clip("", frames[:, :9, :12])
    assert validate(rule, [whole]) == validate(rule, [cut])


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_device_is_the_best_that_is_there(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == expected
    assert choose_device("cpu") == "cpu"
    if not cuda:
        with pytest.raises(InputError) as caught:
            choose_device("cuda")
        assert str(caught.value) == "device cuda is not there: choose auto or cpu"


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:one", "cuda:-1", "mps:0", "cpu:0"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_device(name)
    assert str(caught.value) == f"device {name!r} is unknown: choose one of auto, cuda, mps, cpu"


def test_one_of_several_devices_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(InputError) as caught:
        choose_device("cuda:2")
    assert str(caught.value) == "device cuda:2 is not there: choose auto or cpu"


def test_the_library_trains_where_it_is_told(small_config: Make) -> None:
    with pytest.raises(InputError) as caught:
        train(Rule(small_config()), [], TrainOptions(), device="tpu")
    assert str(caught.value) == "device 'tpu' is unknown: choose one of auto, cuda, mps, cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that CUDA can use")
def test_training_on_a_gpu_follows_that_on_a_cpu(small_config: Make) -> None:
    frames = np.random.default_rng(0).random((10, 16, 16), dtype=np.float32)
    options = TrainOptions(iterations=3, batch=2, crop=8, chunk=2, optimizer="adam")
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        rule = Rule(small_config())
        train(rule, [Clip("noise", frames)], options, device=device)
        found.append(torch.cat([weight.detach().cpu().ravel() for weight in rule.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_presets_are_found_by_name() -> None:
    assert {"retina", "retina-tiny", "retina-small", "retina-medium", "quick"} <= set(PRESETS)
    assert find_preset("retina").config.parameters <= 2500
    with pytest.raises(InputError) as caught:
        find_preset("cornea")
    assert str(caught.value).startswith("preset 'cornea' is unknown: choose one of retina, ")
