"""Rules that are given nothing: `scotopia evaluate` of what grows by itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scotopia.cli.growth import GAP, LABEL, MARGIN, PANEL, grow, growth_json, growth_sheet
from scotopia.cli.pictures import is_rgba, on_white
from scotopia.graph.surroundings import Initial
from scotopia.model import running
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.task import states

Run = Callable[..., tuple[int, str, str]]
Rules = tuple[Any, Any]


def test_both_run_from_their_first_state(growing: Rules) -> None:
    floats, integers = growing
    found = grow({"nca": floats, "nca-int": integers}, 6, 10, 11)
    assert found.values["nca"].shape == found.values["nca-int"].shape == (7, 5, 10, 11)
    assert np.array_equal(found.values["nca"][0], floats.initial.state(10, 11))
    expected = [integers.values(codes) for codes in states(integers, 10, 11, [{}] * 6)]
    assert np.array_equal(found.values["nca-int"][1:], expected)
    assert np.array_equal(found.values["nca"][1:], [*running.states(floats, 10, 11, [{}] * 6)])
    assert found.values["nca"][-1, 3].sum() > 4 * found.values["nca"][0, 3].sum()


def test_integers_see_the_random_bits_that_floats_see(growing: Rules) -> None:
    floats, integers = growing
    rules = {"nca": floats, "nca-int": replace(integers, noise_seed=9)}
    found = grow(rules, 8, 12, 12)
    fired = found.values["nca"][:, 3]
    assert np.allclose(fired, found.values["nca-int"][:, 3], atol=0.01)
    other = grow({"nca": floats}, 8, 12, 12)
    assert not np.allclose(fired, other.values["nca"][:, 3], atol=0.01)


def test_differences_are_told_in_decibels_and_in_codes(growing: Rules) -> None:
    floats, integers = growing
    found = grow({"nca": floats, "nca-int": integers}, 8, 12, 12)
    psnr, codes = found.psnr(), found.codes()
    assert psnr is not None and codes is not None
    names = found.channel_names
    blue = names.index("blue")
    error = found.values["nca-int"][5, blue] - found.values["nca"][5, blue]
    assert (psnr[0] == 100).all()  # the first state is exact
    span = np.ptp(found.values["nca"][:, blue])
    assert psnr[5, blue] == pytest.approx(20 * np.log10(span / np.sqrt((error**2).mean())))
    unit = 2.0 ** -integers.channel_formats[blue].frac_bits
    assert codes[1][5, blue] == np.abs(error).max() / unit
    assert codes[0][5, blue] == pytest.approx(np.sqrt((error**2).mean()) / unit)
    alone = grow({"nca-int": integers}, 2, 5, 5)
    assert alone.psnr() is None and alone.codes() is None
    assert "difference" not in growth_json(alone)["channels"]["blue"]


def test_a_premultiplied_picture_is_told_from_other_channels() -> None:
    rng = np.random.default_rng(0)
    alpha = rng.random((3, 1, 8, 8))
    picture = np.concatenate([alpha * rng.random((3, 3, 8, 8)), alpha], 1)
    assert is_rgba(picture)
    assert not is_rgba(picture[:, :3])
    brighter = picture.copy()
    brighter[:, 1] = 1.5
    assert not is_rgba(brighter)
    assert not is_rgba(np.zeros((3, 4, 8, 8)))
    white = on_white(np.array([[[0.5]], [[0.0]], [[0.25]], [[0.5]]]))
    assert white.tolist() == [[[1.0, 0.5, 0.75]]]


def test_the_command_shows_a_rule_that_grows(run: Run, growing: Rules, tmp_path: Path) -> None:
    floats, integers, target, sheet = (tmp_path / name for name in ("f", "i", "j.json", "s.png"))
    growing[0].save(floats)
    growing[1].save(integers)
    rules = ("--rule", floats, "--rule", integers, "--size", 9, "--frames", 7)
    status, out, err = run("evaluate", *rules, "--json", target, "--picture", sheet)
    assert (status, err) == (0, "")
    assert "9 x 9 cells, 7 frames, 14 steps" in out
    result = json.loads(target.read_text())
    assert list(result) == [
        *("frames", "steps_per_frame", "size", "rgba", "channels", "task", "cost", "training")
    ]
    assert result["task"] is None
    assert (result["frames"], result["size"], result["rgba"]) == (7, [9, 9], True)
    assert list(result["channels"]) == ["red", "green", "blue", "alpha", "hidden"]
    expected = growth_json(grow({"nca": growing[0], "nca-int": growing[1]}, 7, 9, 9))
    assert result["channels"] == expected["channels"]
    assert result["cost"]["nca"]["state_bits_per_cell"] == 5 * 32
    picture = np.asarray(Image.open(sheet))
    # The last moment of the first row: the float rule's picture, enlarged.
    values = grow({"nca": growing[0], "nca-int": growing[1]}, 7, 9, 9).values["nca"]
    scale = PANEL // 9
    left = MARGIN + LABEL + 7 * (9 * scale + GAP)
    seen = picture[MARGIN + 64 :, left:][: 9 * scale : scale, : 9 * scale : scale]
    assert np.array_equal(seen, np.rint(on_white(values[-1]) * 255))


def test_a_picture_shows_what_is_no_colour_channel_by_channel(growing: Rules) -> None:
    found = grow({"nca-int": growing[1]}, 3, 6, 6)
    assert growth_sheet(found, "").height == 2 * MARGIN + 64 + 2 * (6 * (PANEL // 6) + GAP)
    plain = replace(found, values={"nca-int": found.values["nca-int"] * -1})
    assert growth_sheet(plain, "").height == 2 * MARGIN + 64 + 5 * (6 * (PANEL // 6) + GAP)


def test_rules_that_see_and_rules_that_do_not_are_told_apart(
    run: Run, growing: Rules, fill_in: Rules, tmp_path: Path
) -> None:
    grows, sees = tmp_path / "grows", tmp_path / "sees"
    growing[0].save(grows)
    fill_in[1].save(sees)
    refused = "takes no events: evaluate it without clips, and without rules that see any\n"
    assert run("evaluate", "davis_road", "--rule", grows)[2].endswith(refused)
    assert run("evaluate", "--rule", grows, "--rule", sees)[2].endswith(refused)
    status, _, err = run("evaluate", "--rule", sees)
    line = f"scotopia: rule {sees} sees video: name a clip, such as davis_road\n"
    assert (status, err) == (2, line)


def test_what_was_not_quantized_of_it_is_refused(run: Run, growing: Rules, tmp_path: Path) -> None:
    floats, integers = tmp_path / "f", tmp_path / "i"
    replace(growing[0], steps_per_frame=3).save(floats)
    growing[1].save(integers)
    status, _, err = run("evaluate", "--rule", floats, "--rule", integers)
    assert status == 2 and "has steps a frame 3, the integer rule has 2" in err


def test_a_rule_of_ones_own_is_scored_on_clips(run: Run, fill_in: Rules, tmp_path: Path) -> None:
    floats, integers, target = tmp_path / "f", tmp_path / "i", tmp_path / "j.json"
    fill_in[0].save(floats)
    fill_in[1].save(integers)
    clip = np.random.default_rng(0).random((30, 16, 16), np.float32)
    for name in ("seen", "new"):
        np.save(tmp_path / f"{name}.npy", clip if name == "new" else 1 - clip)
    clips = (tmp_path / "seen.npy", tmp_path / "new.npy")
    rules = ("--rule", floats, "--rule", integers, "--size", 16, "--baselines", "none")
    status, _, err = run("evaluate", *clips, *rules, "--density", 0.2, "--json", target)
    assert (status, err) == (0, "")
    result = json.loads(target.read_text())
    scores = result["clips"]["new"]
    assert abs(scores["nca"]["psnr"] - scores["nca-int"]["psnr"]) < 0.2
    assert result["trained_on"] == ["seen"]
    assert result["cost"]["nca-int"] == {
        "parameters": 9,
        "macs_per_cell_and_step": 9,
        "steps_per_frame": 4,
        "state_bits_per_cell": IntegerRule.load(integers).state_bits,
    }


def test_a_seed_that_does_not_fit_is_cut(growing: Rules) -> None:
    patch = np.zeros((5, 4, 4))
    patch[3] = 1
    rule = replace(growing[0], initial=Initial(np.zeros(5), patch, np.zeros(5)))
    assert grow({"nca": rule}, 1, 2, 2).values["nca"][0, 3].all()


def test_the_task_says_how_well_a_rule_grows(run: Run, growing: Rules, tmp_path: Path) -> None:
    # The square that the rule grows is the target: it fills the grid, and heals from its edges.
    picture = np.zeros((9, 9, 4), np.uint8)
    picture[..., :3], picture[..., 3] = np.array([0.75, 0.5, 0.25]) * 255, 255
    Image.fromarray(picture).save(tmp_path / "square.png")
    target = {"name": "growing", "target": str(tmp_path / "square.png"), "padding": 0}
    floats, integers, result = tmp_path / "f", tmp_path / "i", tmp_path / "j.json"
    replace(growing[0], training={"task": target}).save(floats)
    replace(growing[1], training={"task": target}).save(integers)
    rules = ("--rule", floats, "--rule", integers, "--frames", 3, "--json", result)
    status, out, err = run("evaluate", *rules)
    assert (status, err) == (0, "")
    assert "9 x 9 cells, 3 frames" in out and "nca-int, PSNR to its target: grown " in out
    found = json.loads(result.read_text())["task"]
    assert found["size"] == [9, 9]
    for name in ("nca", "nca-int"):
        assert found[name]["psnr"][0] < 10 < 35 < found[name]["grown"]
        assert found[name]["psnr"][-3] < found[name]["stayed"]  # wounded
        assert found[name]["healed"] == pytest.approx(found[name]["stayed"], abs=0.1)
    assert abs(found["nca"]["grown"] - found["nca-int"]["grown"]) < 10
