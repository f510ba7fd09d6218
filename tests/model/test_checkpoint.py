import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.graph.errors import InputError
from scotopia.model import native
from scotopia.model.checkpoint import Checkpoint, digest, digests
from scotopia.model.config import RuleConfig
from scotopia.model.files import read_rule_file, write_rule_file
from scotopia.model.losses import dense_loss
from scotopia.model.options import TrainOptions
from scotopia.model.rule import Rule
from scotopia.model.scotopic.training import new_trainer
from scotopia.model.sensor import Sensor
from scotopia.model.train import Trainer
from scotopia.model.video import Clip

Change = Callable[[dict[str, Any], dict[str, Any]], None]

NOISE = Clip("noise", np.random.default_rng(0).random((10, 14, 12), dtype=np.float32))
OTHER = Clip("other", NOISE.frames[:, ::-1])
CONFIG = RuleConfig(channels=3, hidden=3, steps_per_frame=2, fire_rate=0.5, perception="depthwise")
#: Everything that a checkpoint must carry happens within six iterations.
OPTIONS = TrainOptions(
    iterations=6,
    batch=3,
    crop=8,
    chunk=3,
    densities=(0.2, 0.3, 0.5),
    restart=0.3,
    cut=0.4,
    blackout=0.3,
    sensor=Sensor(photons=10.0),
    sensor_share=0.5,
)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """These rules train in less time than the compiler takes."""
    monkeypatch.setattr(native, "available", lambda: False)


def trainer(
    steps: int = 0, options: TrainOptions = OPTIONS, config: RuleConfig = CONFIG, seed: int = 0
) -> Trainer:
    torch.manual_seed(seed)
    rule = Rule(config)
    torch.manual_seed(99)
    teacher = Rule(CONFIG)
    found = new_trainer(rule, [NOISE], options, synthetic=[OTHER], teacher=teacher)
    for _ in range(steps):
        found.step()
    return found


def bits(of: Trainer) -> list[bytes]:
    rules = (of.rule, of.average)
    return [p.detach().numpy().tobytes() for rule in rules for p in rule.parameters()]


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_resumed_training_is_the_same_bit_for_bit(steps: int, tmp_path: Path) -> None:
    path = tmp_path / "rule.checkpoint"
    stopped = trainer(steps)
    stopped.checkpoint().write(path)
    while stopped.iteration < 5:  # a kill loses what came after the checkpoint
        stopped.step()
    resumed = trainer(seed=1)  # other weights, which the checkpoint replaces
    resumed.resume(Checkpoint.read(path), path)
    assert resumed.iteration == steps
    while resumed.iteration < 6:
        resumed.step()
    assert bits(resumed) == bits(trainer(6))


def test_a_checkpoint_does_not_change_with_the_training() -> None:
    trained = trainer(2)
    checkpoint = trained.checkpoint()
    before = {name: array.copy() for name, array in checkpoint.tensors.items()}
    slots = list(checkpoint.slots)
    trained.step()
    assert all(np.array_equal(before[name], a) for name, a in checkpoint.tensors.items())
    assert checkpoint.slots == slots


def test_notes_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "rule.checkpoint"
    trainer(1).checkpoint(seconds=1.5, psnr=None).write(path)
    assert Checkpoint.read(path).notes == {"seconds": 1.5, "psnr": None}


def other_loss(*tensors: torch.Tensor) -> torch.Tensor:
    return dense_loss(*tensors)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (
            {"densities": (0.1, 0.3, 0.5)},
            "densities 0.2, 0.3, 0.5, not 0.1, 0.3, 0.5: ask for 0.2, 0.3, 0.5",
        ),
        ({"loss": other_loss}, "loss dense, not other_loss: ask for dense"),
        (
            {"sensor": Sensor(photons=9.0)},
            "sensor photons 10.0, read_noise 0.0, dead 0.0, stuck 0.0, gain_mismatch 0.0, not "
            "photons 9.0, read_noise 0.0, dead 0.0, stuck 0.0, gain_mismatch 0.0: ask for "
            "photons 10.0, read_noise 0.0, dead 0.0, stuck 0.0, gain_mismatch 0.0",
        ),
        ({"hidden": 4}, "hidden 3, not 4: ask for 3"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(fields: dict[str, Any], what: str) -> None:
    options, config = OPTIONS, CONFIG
    if "hidden" in fields:
        config = dataclasses.replace(config, **fields)
    else:
        options = dataclasses.replace(options, **fields)
    with pytest.raises(InputError) as caught:
        trainer(0, options, config).resume(trainer(1).checkpoint(), Path("a.checkpoint"))
    assert str(caught.value) == (
        f"checkpoint a.checkpoint was made with {what}, or remove it to start anew"
    )


def test_more_iterations_may_be_asked_for_but_not_fewer() -> None:
    more, fewer = (dataclasses.replace(OPTIONS, iterations=count) for count in (8, 3))
    going_on = trainer(0, more)
    going_on.resume(trainer(6).checkpoint(), Path("a.checkpoint"))
    going_on.step()
    assert going_on.iteration == 7
    with pytest.raises(InputError) as caught:
        trainer(0, fewer).resume(trainer(3).checkpoint(), Path("a.checkpoint"))
    assert str(caught.value) == (
        "checkpoint a.checkpoint has done 3 iterations, and 3 are asked for: ask for more, "
        "or remove it to start anew"
    )


def test_a_checkpoint_from_before_an_option_is_refused() -> None:
    checkpoint = trainer(1).checkpoint()
    del checkpoint.options["zoom"]
    with pytest.raises(InputError) as caught:
        trainer(0).resume(checkpoint, Path("a.checkpoint"))
    assert str(caught.value) == (
        "checkpoint a.checkpoint is from before there was zoom: remove it to start anew"
    )


@pytest.mark.parametrize(
    ("clips", "what"),
    [
        ([NOISE], "with clip other"),
        ([NOISE, OTHER, Clip("third", NOISE.frames)], "without clip third"),
        ([NOISE, Clip("other", NOISE.frames)], "with other frames of clip other"),
    ],
)
def test_a_checkpoint_of_other_clips_is_refused(clips: list[Clip], what: str) -> None:
    with pytest.raises(InputError) as caught:
        new_trainer(Rule(CONFIG), clips, OPTIONS).resume(
            trainer(1).checkpoint(), Path("a.checkpoint")
        )
    assert str(caught.value) == (
        f"checkpoint a.checkpoint was made {what}: give the same clips, or remove it to start anew"
    )


def lose_a_tensor(_: dict[str, Any], tensors: dict[str, Any]) -> None:
    del tensors["exp_avg0/update.bias"]


def cut_a_tensor(_: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["state"] = tensors["state"][1:]


def widen_a_tensor(_: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["state"] = tensors["state"].astype(np.float64)


def lose_a_video(description: dict[str, Any], _: dict[str, Any]) -> None:
    description["slots"].pop()


def go_too_far(description: dict[str, Any], _: dict[str, Any]) -> None:
    description["iteration"] = 7


def lose_a_field(description: dict[str, Any], _: dict[str, Any]) -> None:
    del description["clips"]


def add_a_field(description: dict[str, Any], _: dict[str, Any]) -> None:
    description["pickle"] = "cos\nsystem\n"


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_tensor,
        cut_a_tensor,
        widen_a_tensor,
        lose_a_video,
        go_too_far,
        lose_a_field,
        add_a_field,
    ],
)
def test_a_damaged_checkpoint_is_refused(damage: Change, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    whole = trainer(1).checkpoint()
    description = {name: value for name, value in vars(whole).items() if name != "tensors"}
    description["slots"] = [list(vars(slot).values()) for slot in whole.slots]
    tensors = dict(whole.tensors)
    write_rule_file(path, "checkpoint", description, tensors)
    trainer().resume(Checkpoint.read(path), path)  # as long as it is whole
    damage(description, tensors)
    write_rule_file(path, "checkpoint", description, tensors)
    with pytest.raises(InputError) as caught:
        trainer().resume(Checkpoint.read(path), path)
    assert str(caught.value).startswith(f"checkpoint {path} ")
    assert str(caught.value).endswith(": remove it to start anew")


@pytest.mark.parametrize("length", [0, 4, 100, 3000])
def test_a_truncated_checkpoint_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    trainer(1).checkpoint().write(path)
    assert path.stat().st_size > length
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError) as caught:
        Checkpoint.read(path)
    assert str(caught.value).endswith("): remove it to start anew")


def test_a_rule_is_no_checkpoint_and_a_checkpoint_no_rule(tmp_path: Path) -> None:
    path = tmp_path / "a.checkpoint"
    Rule(CONFIG).save(path)
    with pytest.raises(InputError) as caught:
        Checkpoint.read(path)
    assert str(caught.value) == f"{path} is no checkpoint of this version of Scotopia: remove it"
    trainer(1).checkpoint().write(path)
    with pytest.raises(InputError) as caught:
        read_rule_file(path, "float rule")
    assert "no Scotopia rule" in str(caught.value)


def test_a_digest_tells_frames_and_shapes_apart() -> None:
    frames = np.zeros((2, 3, 4), np.float32)
    changed = frames.copy()
    changed[1, 2, 3] = 1e-7
    shapes = frames, changed, frames.reshape(2, 4, 3)
    assert len({digest(Clip("", f)) for f in shapes}) == 3
    assert digest(Clip("a", frames)) == digest(Clip("b", frames[:, ::-1]))


def test_two_clips_of_one_name_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        digests([NOISE, Clip("noise", OTHER.frames)])
    assert str(caught.value) == "two clips are called noise: rename one, or name it once"
