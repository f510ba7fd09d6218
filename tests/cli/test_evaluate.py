import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scotopia.cli.contact_sheet import HEAD, MARGIN
from scotopia.cli.evaluate import (
    BASELINES,
    Shown,
    baseline_names,
    cost,
    evaluate,
    methods,
    score_table,
    to_json,
)
from scotopia.graph.errors import InputError
from scotopia.graph.operations import Linear
from scotopia.model import baselines, score
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule
from scotopia.model.sampling import sample_mask
from scotopia.model.sensor import Sensor
from scotopia.model.video import Clip

Run = Callable[..., tuple[int, str, str]]

STILL = Clip("still", np.tile(np.random.default_rng(0).random((1, 16, 16), np.float32), (30, 1, 1)))
BUSY = Clip("busy", np.random.default_rng(1).random((25, 16, 16), np.float32))
LEARNT = Clip("learnt", np.random.default_rng(2).random((25, 16, 16), np.float32))
FAKES = {
    "perfect": lambda shown: shown.clip.frames,
    "readings": lambda shown: shown.readings,
    "black": lambda shown: np.zeros_like(shown.clip.frames),
}


def show(clip: Clip, seed: int) -> Shown:
    return Shown.by_protocol(clip, 0.1, seed)


def save(clip: Clip, folder: Path) -> Path:
    path = folder / f"{clip.name}.npy"
    np.save(path, clip.frames)
    return path


def test_sensor_stands_between_the_truth_and_the_samples() -> None:
    sensor = Sensor(stuck=0.5)
    shown = Shown.by_protocol(STILL, 0.1, 3, sensor)
    np.testing.assert_array_equal(shown.mask, sample_mask(STILL.frames.shape, 0.1, 3))
    expected = sensor.expose(STILL.frames, np.random.default_rng([3, 1]))
    np.testing.assert_array_equal(shown.readings, expected)
    assert shown.clip is STILL
    assert shown.score(shown.readings)["psnr"] == score.psnr(STILL.frames, expected)
    masked = shown.mask * expected
    chosen = methods([], BASELINES)
    for name, baseline in baselines.BASELINES.items():
        seen = baselines.reconstruct(baseline, shown.mask, masked)
        np.testing.assert_array_equal(chosen[name](shown), seen)
    oracle, _ = baselines.reconstruct_oracle(STILL.frames, shown.mask, masked)
    np.testing.assert_array_equal(chosen["normalized-convolution-oracle"](shown), oracle)


def test_rules_see_the_readings(
    small_config: Callable[..., RuleConfig], float_rule: Callable[..., Rule]
) -> None:
    rule = float_rule(0, small_config())
    estimate = methods([rule], ())["nca"]
    shown = Shown.by_protocol(BUSY, 0.1, 0)
    other = Shown(BUSY, shown.mask, np.where(shown.mask, BUSY.frames, 1 - BUSY.frames))
    np.testing.assert_array_equal(estimate(shown), estimate(other))
    noisy = Shown(BUSY, shown.mask, 1 - BUSY.frames)
    assert (estimate(shown) != estimate(noisy)).any()


def test_scores_are_means_over_the_seeds() -> None:
    estimators = methods([], ["last-seen"])
    both = evaluate([BUSY], estimators, show, [4, 5]).clips["busy"]["last-seen"]
    for figure in ("psnr", "ssim"):
        single = [
            evaluate([BUSY], estimators, show, [seed]).clips["busy"]["last-seen"][figure]
            for seed in (4, 5)
        ]
        assert single[0] != single[1]
        assert both[figure] == pytest.approx(np.mean(single))


def test_unseen_clips_come_first_and_the_static_ones_before_the_moving() -> None:
    result = evaluate([LEARNT, BUSY, STILL], FAKES, show, [0], trained_on={"learnt", "another"})
    assert list(result.clips) == list(result.motion) == ["still", "busy", "learnt"]
    assert result.trained_on == ["learnt"]
    assert result.motion["still"] == 0
    assert result.motion["busy"] == score.motion(BUSY.frames) > 0.02


def test_clips_trained_on_count_for_no_mean() -> None:
    result = to_json(evaluate([LEARNT, BUSY, STILL], FAKES, show, [0], trained_on={"learnt"}))
    psnr = {name: row["black"]["psnr"] for name, row in result["clips"].items()}
    assert result["mean"]["black"]["psnr"] == (psnr["still"] + psnr["busy"]) / 2
    assert result["static"]["black"]["psnr"] == psnr["still"]
    assert result["moving"]["black"]["psnr"] == psnr["busy"]
    unseen = evaluate([BUSY, STILL], FAKES, show, [0])
    assert result["warm_up"] == unseen.warm_up


def test_there_is_no_mean_of_clips_that_were_all_trained_on() -> None:
    result = to_json(evaluate([LEARNT], FAKES, show, [0], trained_on={"learnt"}))
    assert (result["mean"], result["static"], result["moving"]) == ({}, {}, {})
    assert len(result["warm_up"]["black"]) == 25


def test_warm_up_is_the_mean_over_the_seeds_and_the_longest_clips() -> None:
    other = Clip("other", 1 - STILL.frames)
    estimators = methods([], ["last-seen"])
    warm_up = evaluate([BUSY, STILL, other], estimators, show, [0, 1]).warm_up["last-seen"]
    curves = []
    for clip in (STILL, other):
        for seed in (0, 1):
            shown = show(clip, seed)
            curves.append(score.psnr_curve(clip.frames, estimators["last-seen"](shown)))
    np.testing.assert_allclose(warm_up, np.mean(curves, axis=0))


def test_warm_up_has_sixty_frames() -> None:
    long = Clip("long", np.zeros((70, 16, 16), np.float32))
    assert len(evaluate([long], FAKES, show, [0]).warm_up["black"]) == 60


def test_table_marks_clips_that_were_trained_on_and_the_best_method() -> None:
    result = evaluate([LEARNT, BUSY, STILL], FAKES, show, [0], trained_on={"learnt"})
    table = score_table(result, "psnr")
    labels, pixels, perfect, black = (list(table.columns[i].cells) for i in (0, 1, 3, 5))
    assert labels == [
        "still",
        "busy",
        "mean, static (1)",
        "mean, moving (1)",
        "mean, unseen (2)",
        "learnt, trained on",
    ]
    assert pixels == ["16 x 16", "16 x 16", "", "", "", "16 x 16"]
    assert perfect == ["[bold]100.00[/bold]"] * 6
    assert not any("bold" in str(cell) for cell in black)


def test_progress_has_every_clip_method_and_seed() -> None:
    seen: list[tuple[str, str]] = []
    evaluate([BUSY], FAKES, show, [0, 1], on_progress=lambda *names: seen.append(names))
    assert seen == [("busy", name) for name in FAKES] * 2


def test_bad_clips_are_refused_before_anything_is_scored() -> None:
    def unexpected(clip: Clip, seed: int) -> Shown:
        raise AssertionError

    with pytest.raises(InputError) as caught:
        evaluate([BUSY, BUSY], FAKES, unexpected, [0])
    assert str(caught.value) == "two clips are called busy: rename one, or name it once"
    for name, frames, sentence in (
        ("short", BUSY.frames[:20], "a clip of 20 frames cannot be scored"),
        ("small", BUSY.frames[:, :6], "frames of 16 x 6 pixels are too small for SSIM"),
    ):
        with pytest.raises(InputError, match=sentence):
            evaluate([BUSY, Clip(name, frames)], FAKES, unexpected, [0])


def test_baselines_are_chosen_by_name() -> None:
    assert baseline_names("none") == ()
    assert baseline_names("all") == BASELINES
    assert baseline_names("kalman, last-seen") == ("kalman", "last-seen")
    with pytest.raises(InputError) as caught:
        baseline_names("kalman,magic")
    assert str(caught.value) == (
        "baseline 'magic' is unknown: choose all, none, or out of last-seen, "
        "normalized-convolution, kalman, diffusion, griddata-linear, normalized-convolution-oracle"
    )


def test_evaluate_writes_the_protocol_as_json(run: Run, clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    status, out, _ = run("evaluate", clip, "--size", 32, "--json", target)
    result = json.loads(target.read_text())
    assert status == 0
    assert list(result["clips"]["ramp"]) == [
        "last-seen",
        "normalized-convolution",
        "normalized-convolution-oracle",
        "nca",
        "nca-int",
    ]
    assert result["mean"] == result["moving"] == result["clips"]["ramp"]
    assert set(result["mean"]["nca-int"]) == {"psnr", "ssim"}
    assert f"{result['mean']['nca-int']['psnr']:.2f}" in out
    assert f"{result['mean']['nca-int']['ssim']:.3f}" in out
    assert result["static"] == {}
    assert result["motion"]["ramp"] > 0.02
    assert result["trained_on"] == []
    assert {len(curve) for curve in result["warm_up"].values()} == {25}
    assert result["cost"]["nca-int"]["parameters"] <= 2500
    assert result["cost"]["nca-int"]["state_bits_per_cell"] > 0
    assert (result["density"], result["seed"], result["seeds"]) == (0.01, 0, 1)
    assert set(result["training"]) == {"nca", "nca-int"}


def test_clips_in_a_rules_record_are_shown_apart(
    run: Run,
    tmp_path: Path,
    small_config: Callable[..., RuleConfig],
    float_rule: Callable[..., Rule],
) -> None:
    rule = float_rule(0, small_config())
    rule.training_record = {"clips": ["learnt"]}
    rule.save(tmp_path / "rule.safetensors")
    folder, target = tmp_path / "clips", tmp_path / "scores.json"
    folder.mkdir()
    for clip in (LEARNT, BUSY):
        save(clip, folder)
    options = ("--rule", tmp_path / "rule.safetensors", "--size", 16, "--baselines", "none")
    sensor = ("--photons", 10, "--read-noise", 1, "--dead", 0.1)
    status, out, _ = run("evaluate", folder, *options, *sensor, "--seeds", 2, "--json", target)
    result = json.loads(target.read_text())
    assert status == 0
    assert list(result["clips"]) == ["busy", "learnt"]
    assert list(result["clips"]["busy"]) == ["nca"]
    assert result["trained_on"] == ["learnt"]
    assert result["mean"] == result["clips"]["busy"]
    assert "learnt, trained on" in out
    assert "PSNR in dB, density 0.01, seeds 0 to 1, photons 10, read noise 1, dead 0.1\n" in out
    assert result["sensor"] == {
        "photons": 10,
        "read_noise": 1,
        "dead": 0.1,
        "stuck": 0,
        "gain_mismatch": 0,
    }


def test_picture_shows_the_truth_enlarged(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "sheet.png"
    options = ("--size", 16, "--picture", target, "--baselines", "all")
    assert run("evaluate", save(STILL, tmp_path), save(BUSY, tmp_path), *options)[0] == 0
    sheet = np.asarray(Image.open(target))
    scale = 16  # 256 / 16
    for row, clip in enumerate((STILL, BUSY)):
        top = HEAD + row * (256 + 30 + 12) + scale // 2
        left = MARGIN + scale // 2
        shown = sheet[top : top + 256 : scale, left : left + 256 : scale, 0]
        late = clip.frames[len(clip.frames) * 3 // 4]
        np.testing.assert_array_equal(shown, np.rint(late * 255))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--rule", "retina", "--rule", "retina-207"),
            "there are two float rules: evaluate at most one float and one integer rule",
        ),
        (("--picture", "sheet.jpg"), "picture sheet.jpg is not named .png: choose such a name"),
        (
            ("--read-noise", "2"),
            "read noise 2 is counted in electrons, which mean nothing without a photon count: "
            "give photons as well",
        ),
        (("--dead", "1"), "share 1 of dead pixels is not in [0, 1): give 0.01 for 1 %"),
        (
            ("--size", "6"),
            "clip busy: frames of 6 x 6 pixels are too small for SSIM: give a clip of at least "
            "7 x 7",
        ),
    ],
)
def test_a_bad_option_is_one_line(
    run: Run, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    target = tmp_path / "scores.json"
    status, _, err = run("evaluate", save(BUSY, tmp_path), *options, "--json", target)
    assert (status, err) == (2, f"scotopia: {sentence}\n")
    assert not target.exists()


def test_a_bad_frame_in_the_middle_is_one_line_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    frames = BUSY.frames.copy()
    frames[13, 5, 7] = np.nan
    bad = save(Clip("bad", frames), tmp_path)
    outputs = (tmp_path / "scores.json", tmp_path / "sheet.png")
    targets = ("--json", outputs[0], "--picture", outputs[1])
    status, _, err = run("evaluate", save(BUSY, tmp_path), bad, "--size", 16, *targets)
    assert (status, err) == (
        2,
        f"scotopia: clip {bad} holds nan at frame 13, row 5, column 7: replace what is no number\n",
    )
    assert not any(path.exists() for path in outputs)


def test_each_clip_is_told_when_it_is_done() -> None:
    told: list[str] = []
    evaluate(
        [BUSY, STILL],
        FAKES,
        show,
        [0],
        on_progress=lambda clip, _method: told.append(clip),
        on_clip=lambda clip, scores: told.append(f"{clip}: {scores['perfect']['ssim']:g}"),
    )
    assert told == [*3 * ["still"], "still: 1", *3 * ["busy"], "busy: 1"]


def test_without_a_terminal_each_clip_is_a_line(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    options = ("--rule", "retina-207", "--baselines", "last-seen", "--size", 16, "--json", target)
    _, printed, _ = run("evaluate", save(STILL, tmp_path), save(BUSY, tmp_path), *options)
    scores = json.loads(target.read_text())["clips"]
    lines = [
        f"{clip}: "
        + ", ".join(f"{name} {one['psnr']:.2f} dB" for name, one in scores[clip].items())
        for clip in ("still", "busy")
    ]
    assert printed.startswith("\n".join(lines))


def test_trained_numbers_are_counted_where_they_are_known(fill_in: Any) -> None:
    rule = fill_in[0]
    assert cost(rule)["parameters"] == 9  # all weights
    index = next(index for index, _ in rule.graph.of_kind(Linear))
    masks = np.zeros((1, 1, 9), bool), np.ones(1, bool)
    masks[0][0, 0, :4] = True
    assert cost(replace(rule, trained={index: masks}))["parameters"] == 5
    assert cost(rule)["state_bits_per_cell"] == 2 * 32 + 1
