import csv
import json
import os
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from scotopia.cli import main as cli
from scotopia.cli import train as command
from scotopia.cli import train_scotopic as scotopic
from scotopia.graph.qformat import Rounding
from scotopia.model import memory, native, score
from scotopia.model.checkpoint import Checkpoint, digest
from scotopia.model.config import RuleConfig
from scotopia.model.presets import find_preset
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.scotopic.training import validate
from scotopia.model.start import (
    NEURONS,
    NEURONS_OF_VERDICT,
    PRESS,
    held_weights,
    settle,
    start_as_filter,
)
from scotopia.model.train import Trainer
from scotopia.model.video import Clip, load_clip
from scotopia.quantize import task as integer_task
from scotopia.quantize.fake import FakeQuantRule
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.post_training import fill_range

Run = Callable[..., tuple[int, str, str]]

SHAPE = ("--channels", 3, "--hidden", 2, "--steps-per-frame", 1, "--trace-bits", 4)
EFFORT = ("--synthetic", 0, "--iterations", 6, "--batch", 2, "--crop", 8, "--chunk", 2)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """These rules train in less time than the compiler takes."""
    monkeypatch.setattr(native, "available", lambda: False)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """A clip to validate on: small and just long enough."""
    path = tmp_path / "held_out.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (21, 128, 128)).astype(np.uint8))
    return path


@pytest.fixture
def train(run: Run, clip: Path, held_out: Path, tmp_path: Path) -> Run:
    """`scotopia train` on little, into rule.safetensors."""

    def train(*arguments: object) -> tuple[int, str, str]:
        out = ("--out", tmp_path / "rule.safetensors", "--validate", held_out)
        return run("train", clip, *out, *SHAPE, *EFFORT, *arguments)

    return train


@pytest.fixture
def at_iteration(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Have something happen once, when an iteration is done."""
    step = Trainer.step

    def arrange(iteration: int, happen: Callable[[], object]) -> None:
        def step_and_happen(trainer: Trainer) -> float:
            loss = step(trainer)
            if trainer.iteration == iteration:
                monkeypatch.setattr(Trainer, "step", step)
                happen()
            return loss

        monkeypatch.setattr(Trainer, "step", step_and_happen)

    return arrange


AtIteration = Callable[[int, Callable[[], object]], None]


class PowerCut(BaseException):
    """Ends the process where it stands."""


def cut_power() -> None:
    raise PowerCut


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_rule_is_trained_and_its_record_says_how(
    train: Run, clip: Path, held_out: Path, tmp_path: Path
) -> None:
    out, target = tmp_path / "rule.safetensors", tmp_path / "record.json"
    status, printed, _ = train("--json", target, "--seed", 3)
    rule = Rule.load(out)
    assert status == 0
    record = rule.training_record
    assert json.loads(target.read_text()) == record
    psnr = validate(rule, [load_clip(held_out)])
    assert f"{rule.parameter_count} parameters, validation {psnr:.2f} dB" in printed
    preset = find_preset("retina").options
    assert record["options"]["learning_rate"] == preset.learning_rate
    assert {name: record["options"][name] for name in ("crop", "iterations", "seed")} == {
        "crop": 8,
        "iterations": 6,
        "seed": 3,
    }
    assert 0 <= record.pop("seconds") < 60
    assert record.pop("command").startswith(f"scotopia train {clip} --out {out} --validate ")
    del record["options"]
    assert record == {
        "clips": ["ramp"],
        "digests": {"ramp": digest(load_clip(clip))},
        "synthetic_clips": 0,
        "validation_clips": ["held_out"],
        "start": "filter",
        "device": "cpu",
        "scotopia": version("scotopia"),
        "iterations": 6,
        "validation_psnr": psnr,
        "best_validation": {"psnr": psnr, "iteration": 6},
    }
    assert Checkpoint.read(tmp_path / "rule.checkpoint").finished
    assert train()[0] == 0  # which may be begun anew


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    number: signal.Signals, train: Run, at_iteration: AtIteration, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "rule.safetensors", tmp_path / "rule.checkpoint"
    train("--log", tmp_path / "through.csv")
    through = Rule.load(out).state_dict()
    handler = signal.getsignal(number)
    at_iteration(2, lambda: os.kill(os.getpid(), number))
    status, printed, _ = train("--log", tmp_path / "log.csv")
    assert status == 128 + number
    assert f"stopped after iteration 2: go on with --resume from {checkpoint}" in "".join(
        printed.split("\n")
    )
    assert Rule.load(out).training_record["iterations"] == 2  # of use already
    assert Checkpoint.read(checkpoint).iteration == 2
    assert signal.getsignal(number) == handler
    status, printed, _ = train("--log", tmp_path / "log.csv", "--resume")
    assert status == 0
    assert "from iteration 2 on" in printed
    assert signal.getsignal(number) == handler
    found = Rule.load(out).state_dict()
    assert all(found[name].equal(through[name]) for name in through)
    assert Checkpoint.read(checkpoint).finished
    assert [row[2:4] for row in rows(tmp_path / "log.csv")] == [
        row[2:4] for row in rows(tmp_path / "through.csv")
    ]


def test_rules_with_a_verdict_are_written_settled_and_trained_on_unsettled(
    train: Run, at_iteration: AtIteration, tmp_path: Path
) -> None:
    out = tmp_path / "rule.safetensors"
    shape = ("--inputs", "fresh,flicker,innovation,trust,recall", "--hidden", NEURONS_OF_VERDICT)
    shape += ("--validate-every", 1e-9)  # scored settled, too
    train(*shape)
    through = Rule.load(out)
    at_iteration(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(*shape)
    for rule in (through, Rule.load(out)):
        assert rule.update.weight[1, NEURONS + 1] == -PRESS
    kept = Checkpoint.read(tmp_path / "rule.checkpoint").tensors
    assert {kept[f"{of}/update.weight"][1, NEURONS + 1, 0, 0] for of in ("weight", "average")} == {
        0
    }
    train(*shape, "--resume")
    found = Rule.load(out).state_dict()
    assert all(found[name].equal(weight) for name, weight in through.state_dict().items())


def test_a_killed_training_loses_no_more_than_what_came_after_the_checkpoint(
    train: Run, at_iteration: AtIteration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, checkpoint, log = (
        tmp_path / f"rule.{end}" for end in ("safetensors", "checkpoint", "csv")
    )
    train("--log", log)
    through, lines = Rule.load(out).state_dict(), rows(log)
    out.unlink()
    monkeypatch.setattr(command, "CHECKPOINT_EVERY", 0)

    def lose_sight_of_the_clock() -> None:
        monkeypatch.setattr(command, "CHECKPOINT_EVERY", 60)
        at_iteration(5, cut_power)

    at_iteration(3, lose_sight_of_the_clock)
    with pytest.raises(PowerCut):
        train("--log", log)
    assert Checkpoint.read(checkpoint).iteration == 2
    with log.open("a") as file:
        file.write("1")  # of 10, cut short
    assert train("--log", log, "--resume")[0] == 0
    found = Rule.load(out).state_dict()
    assert all(found[name].equal(through[name]) for name in through)
    assert [row[2:4] for row in rows(log)] == [row[2:4] for row in lines]


def test_the_log_has_a_row_for_each_iteration(train: Run, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log.csv"
    train("--log", log, "--validate-every", 1e-9)
    heading, *found = rows(log)
    assert heading == ["iteration", "seconds", "loss", "learning_rate", "validation_psnr"]
    assert [int(row[0]) for row in found] == list(range(1, 7))
    times = [float(row[1]) for row in found]
    assert times == sorted(times)
    assert float(found[0][3]) == pytest.approx(find_preset("retina").options.learning_rate)
    assert all(5 < float(row[4]) < 50 for row in found)
    train("--log", log, "--validate-every", 0)  # a new training begins a new log
    assert [row[4] != "" for row in rows(log)[1:]] == [False] * 5 + [True]


def test_a_log_of_something_else_is_not_appended_to(
    train: Run, at_iteration: AtIteration, tmp_path: Path
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("name,value\n")
    at_iteration(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    train()
    status, _, err = train("--resume", "--log", log)
    sentence = f"scotopia: log {log} is no log of a training: choose another file\n"
    assert (status, err) == (2, sentence)
    assert log.read_text() == "name,value\n"


def test_a_diverged_training_keeps_the_last_good_rule(
    train: Run, at_iteration: AtIteration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, checkpoint = tmp_path / "rule.safetensors", tmp_path / "rule.checkpoint"
    monkeypatch.setattr(command, "CHECKPOINT_EVERY", 0)
    at_iteration(2, lambda: monkeypatch.setattr(Trainer, "step", diverge))
    status, _, err = train()
    assert (status, err) == (
        2,
        "scotopia: training diverged, the loss is nan at iteration 3: "
        f"{out} holds the average of the weights before it, {checkpoint} the last checkpoint; "
        "try a smaller --learning-rate or another --seed\n",
    )
    assert Rule.load(out).training_record["iterations"] == 2


def diverge(trainer: Trainer) -> float:
    raise FloatingPointError(f"the loss is nan at iteration {trainer.iteration + 1}")


def test_a_training_that_diverges_at_once_has_no_checkpoint(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", diverge)
    status, _, err = train()
    assert status == 2
    assert "before it; try a smaller" in err
    assert err.count("\n") == 1


def test_a_checkpoint_in_the_way_is_not_overwritten(train: Run, tmp_path: Path) -> None:
    checkpoint = tmp_path / "rule.checkpoint"
    checkpoint.write_text("precious")
    assert train() == (
        2,
        "",
        f"scotopia: checkpoint {checkpoint} exists: add --resume, or remove it to start anew\n",
    )
    assert checkpoint.read_text() == "precious"


def test_resuming_what_is_not_there_is_one_line(train: Run, tmp_path: Path) -> None:
    assert train("--resume") == (
        2,
        "",
        f"scotopia: checkpoint {tmp_path / 'rule.checkpoint'} does not exist, the training "
        "has not lasted a minute: start it without --resume\n",
    )


def test_resuming_with_other_options_names_them_before_anything_is_loaded(
    train: Run, at_iteration: AtIteration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_iteration(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    train()
    monkeypatch.delattr(scotopic, "read_clips")
    assert "was made with start filter, not random" in train("--resume", "--start", "random")[2]
    assert train("--resume", "--batch", 9) == (
        2,
        "",
        f"scotopia: checkpoint {tmp_path / 'rule.checkpoint'} was made with batch 2, not 9: "
        "ask for 2, or remove it to start anew\n",
    )
    assert train("--resume", "--iterations", 1) == (
        2,
        "",
        f"scotopia: checkpoint {tmp_path / 'rule.checkpoint'} has done 1 iterations, and 1 "
        "are asked for: ask for more, or remove it to start anew\n",
    )


def test_a_training_goes_on_with_more_iterations(train: Run, tmp_path: Path) -> None:
    assert train()[0] == 0
    status, printed, _ = train("--resume", "--iterations", 8)
    assert status == 0 and "from iteration 6 on" in printed
    record = Rule.load(tmp_path / "rule.safetensors").training_record
    assert record["iterations"] == 8 and record["options"]["iterations"] == 8


@pytest.mark.parametrize("stopped", [False, True])
def test_the_rule_that_scored_best_is_kept_and_both_scores_are_said(
    stopped: bool,
    train: Run,
    at_iteration: AtIteration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "rule.safetensors"
    scored = []

    def score_of(rule: Rule, _clips: object) -> float:
        scored.append([weight.clone() for weight in rule.parameters()])
        return [20.0, 21.5, 21.0, 19.0, 20.5, 20.25][len(scored) - 1]

    monkeypatch.setattr("scotopia.model.scotopic.training.validate", score_of)
    if stopped:
        at_iteration(4, lambda: os.kill(os.getpid(), signal.SIGINT))
        train("--validate-every", 1e-9)
    status, printed, _ = train("--validate-every", 1e-9, *["--resume"] * stopped)
    assert status == 0
    assert (
        f"{out} keeps the rule of iteration 2, validation 21.50 dB: the last, of 6, has 20.25 dB"
    ) in printed
    rule = Rule.load(out)
    assert all(map(torch.equal, rule.parameters(), scored[1]))
    record = rule.training_record
    assert (record["iterations"], record["validation_psnr"]) == (2, 21.5)
    assert record["best_validation"] == {"psnr": 21.5, "iteration": 2}
    assert record["last_validation"] == {"psnr": 20.25, "iteration": 6}


def test_a_training_starts_as_a_rule_that_is_no_larger(
    run: Run, train: Run, tmp_path: Path, clip: Path
) -> None:
    train()
    small = tmp_path / "rule.safetensors"
    out = tmp_path / "larger.safetensors"
    shape = ("--channels", 9, "--hidden", 20, *SHAPE[4:])
    options = (
        "--start",
        small,
        "--teacher",
        small,
        "--crop",
        8,
        "--batch",
        2,
        "--chunk",
        2,
        "--iterations",
        1,
    )
    status, _, error = run("train", clip, "--out", out, "--synthetic", 0, *shape, *options)
    assert (status, error) == (0, "")
    start = str(Rule.load(out).training_record["start"])
    assert start.startswith(f"{small} (") and f", taught by {small} (" in start


def test_options_override_the_preset(run: Run, tmp_path: Path, clip: Path) -> None:
    out = tmp_path / "rule.safetensors"
    status, _, err = run(
        *("train", clip, "--out", out, "--preset", "retina-tiny", "--validate", clip, *EFFORT),
        *("--inputs", "sample, trust", "--block", 2, "--channels", 7, "--fire-rate", 0.5),
        *("--perception", "sobel", "--densities", "0.1,0.2,0.3", "--border", "wrap"),
        *("--photons", 20, "--dead", 0.1, "--sensor-share", 0.5, "--cut", 0),
        *("--zoom", 0.25, "--flutter", 0.75, "--blend", 0.5, "--contrast", 0.2),
    )
    assert (status, err) == (0, "")
    rule = Rule.load(out)
    assert rule.config.inputs == ("sample", "trust")
    assert (rule.config.block, rule.config.channels, rule.config.fire_rate) == (2, 7, 0.5)
    assert (rule.config.perception, rule.config.border) == ("sobel", "wrap")
    assert rule.config.hidden == find_preset("retina-tiny").config.hidden
    options = rule.training_record["options"]
    assert (options["densities"], options["cut"], options["loss"]) == (
        [0.1, 0.2, 0.3],
        0,
        "log-dense",
    )
    assert (options["zoom"], options["flutter"], options["blend"]) == (0.25, 0.75, 0.5)
    assert options["contrast"] == 0.2
    assert (options["sensor"]["photons"], options["sensor"]["dead"]) == (20, 0.1)


def test_a_folder_of_clips_and_synthetic_ones(
    run: Run, clip: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "clips", tmp_path / "rule.safetensors"
    folder.mkdir()
    for name in ("b", "a"):
        (folder / f"{name}.npz").write_bytes(clip.read_bytes())
    rendered: list[int] = []

    def render(count: int, frames: int, size: int, seed: int, *, first: int) -> list[object]:
        rendered.append(first)
        return [Clip(f"synthetic_{first}", np.zeros((frames, size, size), np.float32))]

    monkeypatch.setattr(scotopic, "synthetic_clips", render)
    effort = (*EFFORT, "--synthetic", 2)
    assert run("train", folder, "-o", out, *SHAPE, *effort, "--validate", held_out)[0] == 0
    record = Rule.load(out).training_record
    assert record["clips"] == ["a", "b"]
    assert record["synthetic_clips"] == 2
    assert sorted(rendered) == [0, 1]
    rendered.clear()
    assert run("train", folder, "-o", out, *SHAPE, *EFFORT)[0] == 0
    # Those to validate on are none of those that anybody trains on.
    assert sorted(rendered) == [1_000_000 + i for i in range(4)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--crop", 129),
            "clip synthetic_000 has 128 x 128 pixels, the crop 129: choose a smaller",
        ),
        (("--densities", "1e-9,1e-9,1e-9"), "densities 1e-09, 1e-09, 1e-09: no pixel of 1820 "),
        (("--batch", 10**6), "batch 1000000, chunk 8 and crop 48: that needs 16,"),
        (
            ("--synthetic", 2185),
            "synthetic 2185: that needs 17.2 GB of memory, and this machine has 17.2: give fewer",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_clip_is_rendered(
    options: tuple[object, ...],
    sentence: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "installed", lambda: 2**34)
    monkeypatch.setattr(scotopic, "synthetic_clips", lambda *_, **__: pytest.fail("rendered"))
    status, _, error = run("train", "--zoom", 0, "--out", tmp_path / "o", *options)
    assert status == 2 and error.startswith(f"scotopia: {sentence}")


def test_without_a_terminal_scores_are_lines(train: Run) -> None:
    _, printed, _ = train("--validate-every", 1e-9)
    lines = [line for line in printed.splitlines() if line.startswith("iteration ")]
    assert len(lines) == 6
    assert lines[3].startswith("iteration 4 of 6, ")


def test_presets_are_listed_with_their_cost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "console", Console(width=200))
    status, printed, _ = run("train", "--list-presets")
    assert status == 0
    (line,) = (line.split() for line in printed.splitlines() if line.startswith("  retina "))
    config = find_preset("retina").config
    assert line[:3] == ["retina", f"{config.parameters:,}", f"{config.macs:,}"]
    for name in ("retina-tiny", "retina-small", "retina-medium", "quick"):
        assert f"  {name} " in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--start", "again"), "start 'again' is neither filter nor random, and rule again "),
        (("--preset", "fovea"), "preset 'fovea' is unknown: choose one of retina, retina-tiny"),
        (("--device", "tpu"), "device 'tpu' is unknown: choose one of auto, cuda, mps, cpu"),
        (("--densities", "0.1"), "densities '0.1' are not three numbers: give "),
        (("--photons", 10), "sensor_share 0 with a sensor: give both, for instance photons 10"),
        (("--block", 3, "--channels", 10), "crop 8 does not divide into cells of 3 x 3 pixels"),
        (("--learning-rate", 2), "learning_rate 2 is outside (0, 1]: choose 0.002"),
        (("--inputs", "sight"), "inputs sight are not a part of "),
        (
            ("--inputs", "trace,valid"),
            "inputs 'trace, valid' show a cell no sample: name sample, flicker, innovation, recall "
            "or several of these",
        ),
        (("--inputs", " , "), "inputs '' show a cell no sample: "),
        (("--validate", "nowhere.npz"), "clip nowhere.npz does not exist: "),
    ],
)
def test_a_bad_option_is_one_line(
    train: Run, tmp_path: Path, arguments: tuple[object, ...], sentence: str
) -> None:
    status, _, err = train(*arguments)
    assert status == 2
    assert err.startswith(f"scotopia: {sentence}")
    assert err.count("\n") == 1
    assert not (tmp_path / "rule.safetensors").exists()


def test_a_clip_too_short_to_validate_on_is_named(train: Run, tmp_path: Path) -> None:
    short = tmp_path / "short.npy"
    np.save(short, np.zeros((20, 128, 128), np.uint8))
    status, _, err = train("--validate", short)
    assert status == 2
    assert err.startswith("scotopia: clip short: a clip of 20 frames cannot be scored")


def test_a_rule_named_like_a_checkpoint_is_refused(run: Run, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.checkpoint"
    assert run("train", clip, "--out", out, *EFFORT) == (
        2,
        "",
        f"scotopia: out {out} is named like a checkpoint: choose a .safetensors file\n",
    )


@pytest.fixture
def retrain(run: Run, train: Run, clip: Path, held_out: Path, tmp_path: Path) -> Run:
    """`scotopia train --quantize` on little, from what `train` made, into int.safetensors."""
    assert train()[0] == 0

    def retrain(*arguments: object) -> tuple[int, str, str]:
        source = ("--quantize", tmp_path / "rule.safetensors")
        out = ("--out", tmp_path / "int.safetensors", "--validate", held_out)
        return run("train", clip, *source, *out, *EFFORT, *arguments)

    return retrain


def test_quantization_aware_training_writes_the_integer_rule_that_was_trained(
    retrain: Run, held_out: Path, tmp_path: Path
) -> None:
    status, _, _ = retrain("--weight-bits", 5, "--state-bits", 6, "--scales", "output")
    assert status == 0
    rule = IntegerRule.load(tmp_path / "int.safetensors")
    assert {format.bits for format in rule.state_formats} == {6}
    assert np.abs(rule.perceive.weight).max() <= 16
    # The score is that of the integers themselves.
    clip = load_clip(held_out)
    mask = sample_mask(clip.frames.shape, 0.01, 0)
    psnr = score.psnr(clip.frames, integer_task.reconstruct(rule, clip.frames, mask))
    assert rule.training["validation_psnr"] == pytest.approx(psnr, abs=1e-3)
    assert rule.training["start"].endswith(
        "5-bit weight, 6-bit state, 8-bit hidden, 8-bit gate, RND, scales by output, dither 0"
    )


def test_a_rule_is_trained_with_the_dither_that_it_gets(retrain: Run, tmp_path: Path) -> None:
    assert retrain("--dither", 3)[0] == 0
    rule = IntegerRule.load(tmp_path / "int.safetensors")
    assert rule.dither == 3
    assert rule.training["start"].endswith("scales by kernel, dither 3")
    status, _, error = retrain("--dither", 9)
    assert status == 2
    assert error.endswith("scotopia: dither 9 is outside 0 to 8: choose one inside\n")


def test_an_integer_rule_is_trained_in_its_own_formats(
    run: Run, retrain: Run, clip: Path, held_out: Path, tmp_path: Path
) -> None:
    assert retrain("--weight-bits", 5, "--update-bits", 7)[0] == 0
    source, out = tmp_path / "int.safetensors", tmp_path / "again.safetensors"
    arguments = ("--quantize", source, "--out", out, "--validate", held_out, *EFFORT)
    assert run("train", clip, *arguments, "--learning-rate", 0.1)[0] == 0
    before, after = IntegerRule.load(source), IntegerRule.load(out)
    assert after.channel_formats == before.channel_formats
    widths = "5-bit weight, 10-bit state, 8-bit hidden, 8-bit gate, 7-bit update, RND"
    assert widths in before.training["start"]
    codes = np.abs(before.update.weight)  # each with a scale of its own: the zeros that it ends in
    assert 16 < (codes // np.maximum(codes & -codes, 1)).max() < 64
    assert after.perceive.weight_frac.tolist() == before.perceive.weight_frac.tolist()
    assert not np.array_equal(after.perceive.weight, before.perceive.weight)


@pytest.mark.parametrize("option", ["start", "teacher", "quantize"])
def test_a_rule_has_seen_what_the_rule_has_that_it_learns_from(
    option: str, run: Run, train: Run, clip: Path, held_out: Path, tmp_path: Path
) -> None:
    train()
    source, out = tmp_path / "rule.safetensors", tmp_path / "second.safetensors"
    shape = () if option == "quantize" else SHAPE
    assert run("train", held_out, f"--{option}", source, "--out", out, *EFFORT, *shape)[0] == 0
    rule = IntegerRule.load(out) if option == "quantize" else Rule.load(out)
    record = rule.training if isinstance(rule, IntegerRule) else rule.training_record
    assert record["clips"] == ["ramp", "held_out"]
    assert record["digests"] == {path.stem: digest(load_clip(path)) for path in (clip, held_out)}


@pytest.mark.parametrize("perception", ["full", "sobel"])
def test_quantization_aware_training_that_was_stopped_goes_on(
    perception: str,
    train: Run,
    retrain: Run,
    tmp_path: Path,
    at_iteration: AtIteration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert train("--perception", perception)[0] == 0
    assert retrain()[0] == 0
    whole = (tmp_path / "int.safetensors").read_bytes()
    monkeypatch.setattr(command, "CHECKPOINT_EVERY", 0)
    at_iteration(4, cut_power)
    with pytest.raises(PowerCut):
        retrain()
    status, _, error = retrain("--resume", "--weight-bits", 7)
    assert status == 2 and "was made with start" in error
    assert retrain("--resume")[0] == 0
    again = IntegerRule.load(tmp_path / "int.safetensors")
    (tmp_path / "whole.safetensors").write_bytes(whole)
    expected = IntegerRule.load(tmp_path / "whole.safetensors")
    np.testing.assert_array_equal(again.perceive.weight, expected.perceive.weight)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--weight-bits", 4),
            "weight_bits 4 is for an integer rule: add --quantize RULE, or leave it out",
        ),
        (
            ("--quantize", "retina", "--channels", 4),
            "channels 4 is given beside rule retina, which has a shape: leave it out",
        ),
        (
            ("--quantize", "retina-int", "--rounding", "TRN"),
            "rounding TRN is given beside integer rule retina-int, which has formats: leave it out",
        ),
        (
            ("--quantize", "retina-int", "--dither", 2),
            "dither 2 is given beside integer rule retina-int, which has formats: leave it out",
        ),
        (
            ("--quantize", "retina", "--scales", "cell"),
            "scales 'cell' are unknown: choose one of output, kernel, weight",
        ),
        (
            ("--quantize", "retina", "--weight-bits", 1),
            "weight bits 1 are outside 2 to 16: choose 8, for instance",
        ),
        (
            ("--quantize", "retina", "--rounding", "UP"),
            "rounding 'UP' is unknown: choose one of TRN, TRN_ZERO, RND, RND_ZERO, RND_INF, "
            "RND_MIN_INF, RND_CONV",
        ),
    ],
)
def test_quantization_that_makes_no_sense_is_refused(
    arguments: tuple[object, ...], sentence: str, run: Run, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rule.safetensors"
    answer = run("train", clip, "--out", out, *EFFORT, *arguments)
    assert answer == (2, "", f"scotopia: {sentence}\n")
    assert not out.exists()


@pytest.mark.parametrize(("bits", "scales"), [(7, "kernel"), (2, "weight")])
def test_integers_hold_the_verdict_as_it_was_written(bits: int, scales: str) -> None:
    inputs = ("fresh", "flicker", "innovation", "trust", "recall")
    rule = Rule(RuleConfig(channels=3, hidden=13, inputs=inputs, steps_per_frame=8, trace_bits=11))
    start_as_filter(rule)
    settle(rule)
    clip = Clip("noise", np.random.default_rng(0).random((6, 16, 16), np.float32))
    filled = fill_range(rule, np.array([1.0, 1, 2]))  # as where verdicts are small
    start = scotopic.Quantization("start", filled, Precision(bits), Rounding.RND, scales)
    twin = start.new_rule([clip], density=0.1)
    assert len(held_weights(twin)) == 4
    again = FakeQuantRule.of(twin.integer_rule()).float()
    assert len(held_weights(again)) == 4
    before = again.update.weight.clone()
    settle(again)  # so that the integers are settled, too
    assert again.update.weight.equal(before)
