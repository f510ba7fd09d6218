"""`scotopia train --task`: growing, and what a user writes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scotopia.model import native
from scotopia.model.float_rule import FloatRule
from scotopia.model.train import Trainer

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[2]
DENOISING = f"{ROOT / 'examples/denoising.py'}:Denoising"
SMALL = "padding=1, channels=6, hidden=8, pool=8, steps=(4, 6), damage_from=0"


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """These rules train in less time than the compiler takes."""
    monkeypatch.setattr(native, "available", lambda: False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (5, 5), "red").save("red.png")
    return tmp_path


@pytest.fixture
def grow(run: Run) -> Run:
    def grow(*arguments: object) -> tuple[int, str, str]:
        return run(
            *("train", "--task", "growing", "--target", "red.png", "--args", SMALL),
            *("--out", "red.safetensors", "--iterations", 4, "--batch", 4, *arguments),
        )

    return grow


def numbers(path: str) -> list[bytes]:
    rule = FloatRule.load(Path(path))
    return [part.tobytes() for index in rule.trained for part in rule.numbers(index)]


def test_a_picture_grows(grow: Run, here: Path) -> None:
    status, out, _ = grow("--json", "a.json", "--log", "a.csv")
    assert status == 0
    rule = FloatRule.load(here / "red.safetensors")
    record = json.loads((here / "a.json").read_text())
    assert rule.training == record
    assert record["task"]["name"] == "growing" and record["task"]["target"] == "red.png"
    assert record["options"]["iterations"] == 4 and record["options"]["learning_rate"] == 3e-3
    assert f"200 parameters, validation {record['validation_psnr']:.2f} dB" in out
    assert len((here / "a.csv").read_text().splitlines()) == 5


def test_a_growing_goes_on_as_if_nothing_had_happened(
    grow: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert grow("--validate-every", 0)[0] == 0
    whole = numbers("red.safetensors")
    Path("red.checkpoint").unlink()
    step = Trainer.step

    def stop(trainer: Trainer[object]) -> float:  # type: ignore[type-var]
        loss = step(trainer)
        if trainer.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        assert grow("--validate-every", 0)[0] == 128 + signal.SIGINT
    assert numbers("red.safetensors") != whole
    refused = grow("--resume", "--loss", f"{__file__}:brighter")[2]
    assert "was made with loss its own, not " in refused
    status, out, _ = grow("--resume", "--validate-every", 0)
    assert status == 0 and "from iteration 2 on" in out
    assert numbers("red.safetensors") == whole


def brighter(outputs, batch):  # type: ignore[no-untyped-def]
    return (outputs[:, -1, :4] - 1).square().mean()


def test_another_loss_is_lowered(grow: Run) -> None:
    assert grow("--loss", f"{__file__}:brighter")[0] == 0
    rule = FloatRule.load(Path("red.safetensors"))
    assert rule.training["task"]["loss"] == f"{__file__}:brighter"


def test_a_trained_rule_is_trained_further(grow: Run, run: Run) -> None:
    assert grow()[0] == 0
    before = numbers("red.safetensors")
    status, _, _ = grow("--start", "red.safetensors", "--out", "more.safetensors")
    assert status == 0
    after = FloatRule.load(Path("more.safetensors"))
    assert after.training["start"].startswith("red.safetensors (")
    changes = [
        np.abs(np.frombuffer(a) - np.frombuffer(b)).max()
        for a, b in zip(before, numbers("more.safetensors"), strict=True)
    ]
    assert 0 < max(changes) < 0.1


def test_a_denoiser_is_an_example(run: Run) -> None:
    args = "frames=2, crop=8, clips=1"
    status, out, _ = run(
        *("train", "--task", DENOISING, "--args", args, "--iterations", 3, "--batch", 2),
        *("--out", "d.safetensors"),
    )
    assert status == 0 and "1126 parameters, validation " in out
    rule = FloatRule.load(Path("d.safetensors"))
    assert rule.steps_per_frame == 2 and [event.value for event in rule.events] == ["sample"]
    assert rule.training["task"] == {"name": "Denoising", "loss": "its own"}


BAD = """
import torch
from scotopia.model.tasks import Batch, Task

class Nothing(Task):
    pass

class Broken(Task):
    def batch(self, iteration, rng):
        return Batch(self.initial(4, 4)[:, 9])

class Crash(Task):
    def batch(self, iteration, rng):
        return {}["x"]

class Fails(Task):
    def __init__(self, wanted):
        raise RuntimeError("no")

class Other:
    pass

class Odd(Task):
    def start(self):
        return 3

number = 3

def nan(outputs, batch):
    return outputs.mean() * float("nan")

def crash(outputs, batch):
    return outputs @ outputs[:, :, :, 1:]
"""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--task", "grow"), "task 'grow' is unknown: choose scotopic, growing or file.py:Class"),
        (("--task", "growing"), "task growing has no target: add --target PICTURE.png, or lizard"),
        (
            ("--task", "growing", "--target", "red.png", "--crop", 8),
            "--crop is for task scotopic: leave it out for growing",
        ),
        (
            ("davis_road", "--task", "growing", "--target", "red.png"),
            "clips are for task scotopic: leave it out for growing",
        ),
        (("--target", "red.png"), "target red.png is for other tasks: add --task growing"),
        (("--args", "a=1"), "args a=1 is for other tasks: add --task growing"),
        (
            ("--task", "growing", "--target", "red.png", "--args", "size=3"),
            "task growing has no size: it has padding, channels, hidden, pool, steps, "
            "damage_from, overflow",
        ),
        (
            ("--task", "growing", "--target", "red.png", "--start", "retina"),
            "start retina is a Scotopia float rule, and task growing trains float graphs: name one "
            "that `scotopia import` wrote",
        ),
        (
            ("--task", "bad.py:Nothing", "--target", "red.png"),
            "target red.png is for task growing: name it by --args for bad.py:Nothing",
        ),
        (("--task", "no.py:Nothing"), "task no.py is no file: name a Python file"),
        (
            ("--task", "bad.py:None"),
            "task bad.py has no class None: it has Nothing, Broken, Crash, Fails, Odd",
        ),
        (("--task", "bad.py:Nothing"), "task Nothing brings no rule: name one to start from"),
        (("--task", "bad.py:Other"), "bad.py:Other is a Other, no Task: name one"),
        (("--task", "bad.py:Odd"), "start of bad.py:Odd is a int: return a FloatRule"),
        (
            ("--task", "bad.py:Fails", "--args", "wanted=1"),
            "bad.py:18: Fails cannot be made (RuntimeError: no): give other arguments",
        ),
        (
            ("--task", "bad.py:Crash", "--start", "red.safetensors"),
            "bad.py:14: bad.py:Crash.batch failed (KeyError: 'x'): mend it",
        ),
        (
            ("--task", "growing", "--target", "red.png", "--loss", "bad.py:number"),
            "loss bad.py has no function number: name one that it has",
        ),
        (
            ("--task", "growing", "--target", "red.png", "--loss", "bad.py:crash"),
            "bad.py:33: bad.py:crash failed (RuntimeError: ",
        ),
        (
            ("--task", "growing", "--target", "red.png", "--loss", "bad.py:nan"),
            "training diverged, the loss is nan at iteration 1: o.safetensors holds the average of "
            "the weights before it; try a smaller --learning-rate or another --seed",
        ),
        (
            ("--synthetic", 1, "--validate", "CLIP", "--loss", "bad.py:no"),
            "loss bad.py has no function no: name one that it has",
        ),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    arguments: tuple[object, ...], sentence: str, run: Run, grow: Run, here: Path
) -> None:
    (here / "bad.py").write_text(BAD)
    if "red.safetensors" in arguments:
        grow("--iterations", 1)
    small = ("--args", SMALL) if "growing" in arguments and "--args" not in arguments else ()
    status, _, err = run("train", *arguments, *small, "--out", "o.safetensors", "--iterations", 1)
    assert status == 2 and err.count("\n") == 1
    assert err.removeprefix("scotopia: ").replace(f"{here}/", "").startswith(sentence)
