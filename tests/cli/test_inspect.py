import base64
import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scotopia.cli.automaton import Automaton, Mask, State, Video, automaton
from scotopia.cli.inspect import (
    DAMAGES,
    Inspection,
    central_region,
    half_life,
    inspect,
    nearest_shown,
    parse_pixel,
    perturb,
    recover,
    region_psnr,
    set_to_random,
    set_to_zero,
    statistics,
    watch,
)
from scotopia.cli.inspect_page import figures_of, render_page
from scotopia.graph.errors import InputError
from scotopia.model import task as float_task
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule, to_pixel
from scotopia.quantize import task as integer_task
from scotopia.quantize.integer_rule import IntegerRule

T, H, W = 33, 12, 13
WARM_UP = 3
COST = {
    "parameters": 10,
    "macs_per_cell_and_step": 20,
    "steps_per_frame": 2,
    "state_bits_per_cell": 30,
}
Make = Callable[..., Any]
Run = Callable[..., tuple[int, str, str]]
BOTH = pytest.mark.parametrize("kind", ["float", "integer"])


@pytest.fixture(scope="module")
def frames() -> Video:
    return np.random.default_rng(1).random((T, H, W)).astype(np.float32)


@pytest.fixture(scope="module")
def mask() -> Mask:
    return np.random.default_rng(2).random((T, H, W)) < 0.1


@pytest.fixture(scope="module")
def make(float_rule: Make, random_rule: Make, small_config: Make) -> Make:
    """A rule of random weights, of either kind."""

    def make(numbers: str, **fields: object) -> Any:
        return (float_rule if numbers == "float" else random_rule)(5, small_config(**fields))

    return make


@pytest.fixture(scope="module")
def found(make: Make, frames: Video, mask: Mask) -> Inspection:
    return inspect(make("integer"), frames, mask, warm_up=WARM_UP)


def toy(step: Callable[[State, State, Mask], State], steps: int = 1) -> Automaton:
    """An automaton of one learned channel, whose step a test chooses."""
    return Automaton(
        RuleConfig(channels=1, inputs=("valid", "innovation"), hidden=1, steps_per_frame=steps),
        start=lambda height, width: np.zeros((3, height, width)),
        step=lambda state, sample, valid, _number: step(state, sample, valid),
        samples=lambda pixels: pixels * (255 / 128) - 1,
        values=lambda state: state,
        scramble=lambda random, state: random.uniform(-1, 1, state.shape),
    )


def leaky(state: State, sample: State, valid: Mask) -> State:
    moved: State = state.copy()
    moved[0] += 0.2 * valid * (sample - moved[0])
    return moved


# An automaton is the rule


@BOTH
@pytest.mark.parametrize("fire_rate", [1, 0.5])
@pytest.mark.parametrize("dither", [0, 3])
def test_automaton_computes_what_the_task_computes(
    make: Make, frames: Video, mask: Mask, kind: str, fire_rate: float, dither: int
) -> None:
    rule = make(kind, fire_rate=fire_rate)
    if kind == "integer":
        rule = dataclasses.replace(rule, dither=dither)
    subject = automaton(rule)
    task: Any = float_task if kind == "float" else integer_task
    states = list(subject.run_frames(subject.start(H, W), frames, mask))
    for state, expected in zip(states, task.run(rule, frames, mask), strict=True):
        assert np.array_equal(state, np.asarray(expected))
    history = watch(subject, frames, mask)
    assert all(map(np.array_equal, history.states, states))
    first = torch.from_numpy(states[9][:1]) if kind == "float" else rule.pixels(states[9][:1])
    expected = to_pixel(first).numpy() if kind == "float" else first
    assert np.allclose(history.predictions[9], expected[0], atol=1e-6)


def test_statistics_are_those_of_the_cells() -> None:
    values = np.zeros((1, 3, 2, 2), np.float32)
    values[0, 0] = [[-1, 1], [0.5, 127 / 128]]
    found = statistics(values)
    assert found["min"][0].tolist() == [-1, 0, 0]
    assert found["max"][0].tolist() == [1, 0, 0]
    assert found["mean"][0, 0] == pytest.approx(values[0, 0].mean())
    assert found["std"][0, 0] == pytest.approx(values[0, 0].std())
    assert found["saturated"][0, :2].tolist() == [0.75, 0]
    assert np.isnan(found["saturated"][0, 2])  # a trace's ends are no saturation


def test_gates_are_those_that_the_rule_opens(make: Make, frames: Video, mask: Mask) -> None:
    rule: Rule = make("float")
    with torch.no_grad():
        rule.update.weight.zero_()
        rule.update.bias.copy_(torch.tensor([0.0, 0, 0, -2, -1, 1]))  # candidates, then gates
    history = watch(automaton(rule), frames[:4], mask[:4])
    assert history.gates is not None and history.gates_at_samples is not None
    assert np.array_equal(history.gates, np.tile([0, 0.25, 0.75], (4, 1)))
    assert np.array_equal(history.gates_at_samples, history.gates)


def test_a_residual_rule_and_an_integer_rule_show_no_gates(make: Make) -> None:
    assert automaton(make("float", kind="residual")).gates is None
    assert automaton(make("integer")).gates is None


# The receptive field of one sample


@BOTH
@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_a_sample_is_heard_inside_the_light_cone_alone(
    make: Make, frames: Video, mask: Mask, kind: str, border: str
) -> None:
    subject = automaton(make(kind, border=border))
    x, y = 2, 7
    ripple = perturb(subject, subject.start(H, W), frames[:3], mask[:3], (x, y))
    assert len(ripple.difference) == 6
    for step, difference in enumerate(ripple.difference, start=1):
        for (row, column), value in np.ndenumerate(difference):
            rows, columns = abs(row - y), abs(column - x)
            if border == "wrap":
                rows, columns = min(rows, H - rows), min(columns, W - columns)
            if max(rows, columns) > step:
                assert value == 0
    assert (ripple.difference.max(axis=(1, 2)) > 0).any()
    assert ripple.violations == 0
    assert ripple.front.max() > 1
    assert abs(ripple.after - ripple.before) == pytest.approx(0.5)
    assert 0 <= ripple.after <= 1


def test_a_rule_that_reaches_farther_is_caught() -> None:
    def leap(state: State, sample: State, valid: Mask) -> State:
        told = np.where(valid, sample, state[0])
        return np.stack([np.maximum(told, np.roll(told, 2, axis=1)), *state[1:]])

    frames = np.zeros((3, H, W), np.float32)
    ripple = perturb(toy(leap), np.full((3, H, W), -1.0), frames, frames > 1, (3, 3))
    assert ripple.front.tolist() == [2, 4, 6]
    assert ripple.violations == 3
    assert ripple.speed == 2


def test_a_ripple_is_measured_in_brightness_and_pixels() -> None:
    frames = np.full((2, H, W), 0.75, np.float32)
    none = frames > 1
    ripple = perturb(toy(leaky), np.zeros((3, H, W)), frames, none, (4, 5), frame=9)
    assert (ripple.frame, ripple.x, ripple.y, ripple.added) == (9, 4, 5, True)
    assert (ripple.before, ripple.after) == (0.75, 0.25)
    assert ripple.total.tolist() == pytest.approx([0.1, 0.1])  # a fifth of a half, and it stays
    assert ripple.visible.tolist() == ripple.largest.tolist() == pytest.approx([0.1, 0.1])
    assert ripple.radius.tolist() == [0, 0]
    assert ripple.farthest.tolist() == ripple.front.tolist() == [0, 0]
    assert ripple.half_life is None
    assert ripple.renewed is None
    again = none.copy()
    again[:, 5, 4] = True
    ripple = perturb(toy(leaky), np.zeros((3, H, W)), frames, again, (4, 5))
    assert not ripple.added
    assert ripple.renewed == 1


def test_a_difference_of_one_code_is_not_above_what_a_pixel_shows() -> None:
    def one_code(state: State, sample: State, valid: Mask) -> State:
        return np.stack([np.where(valid & (sample > 0), 1 / 128, 0), *state[1:]])

    frames = np.full((1, H, W), 0.25, np.float32)
    ripple = perturb(toy(one_code), np.zeros((3, H, W)), frames, frames < 1, (4, 5))
    assert ripple.largest[0] == pytest.approx(1 / 255)
    assert ripple.visible[0] == 0
    assert ripple.farthest[0] == -1
    assert ripple.front[0] == 0


def test_half_life_counts_from_the_peak() -> None:
    assert half_life(np.array([1.0, 3, 8, 7, 4, 5])) == 2
    assert half_life(np.array([1.0, 2, 3])) is None
    assert half_life(np.zeros(4)) is None


def test_the_changed_sample_is_the_shown_one_nearest_the_centre() -> None:
    shown = np.zeros((H, W), bool)
    assert nearest_shown(shown) == (W // 2, H // 2)
    shown[0, 0] = shown[4, 8] = shown[11, 6] = True
    assert nearest_shown(shown) == (8, 4)


# Damage


@BOTH
def test_without_damage_nothing_differs(make: Make, frames: Video, mask: Mask, kind: str) -> None:
    subject = automaton(make(kind))
    history = watch(subject, frames, mask)
    region = central_region(H, W)
    undamaged = history.predictions[5:]
    same = recover(subject, history.states[4], frames[5:], mask[5:], region, undamaged)
    assert np.array_equal(same.predictions, undamaged)
    assert np.array_equal(same.psnr, region_psnr(frames[5:], undamaged, region))
    assert same.first == same.lasting == 1


def test_a_rule_that_never_updates_never_recovers(frames: Video, mask: Mask) -> None:
    subject, region = toy(lambda state, sample, valid: state), central_region(H, W)
    state = np.zeros((3, H, W))
    state[0] = frames[0] * (255 / 128) - 1
    still = np.repeat(frames[:1], 5, axis=0)
    damaged = set_to_random(subject, state, region, 0)
    found = recover(subject, damaged, still, mask[:5], region, still)
    assert found.first is found.lasting is None


def test_a_rule_that_sees_every_pixel_anew_recovers_at_once(frames: Video) -> None:
    subject = toy(lambda state, sample, valid: np.stack([sample, *state[1:]]))
    region, everything = central_region(H, W), np.ones((5, H, W), bool)
    damaged = set_to_random(subject, np.zeros((3, H, W)), region, 0)
    found = recover(subject, damaged, frames[:5], everything, region, frames[:5])
    assert found.first == found.lasting == 1
    assert not np.array_equal(found.damaged, frames[0])


def test_recovery_is_counted_in_frames_and_may_not_last(frames: Video) -> None:
    subject, region = toy(leaky), central_region(H, W)
    still, everything = np.repeat(frames[:1], 40, axis=0), np.ones((40, H, W), bool)
    undamaged = np.clip(still + 0.05, 0, 1)  # a constant error of 26 dB
    found = recover(subject, np.zeros((3, H, W)), still, everything, region, undamaged)
    near = found.psnr >= region_psnr(still, undamaged, region) - 0.5
    assert found.first == found.lasting == int(np.argmax(near)) + 1 > 2
    undamaged[-1] = still[-1]  # perfect: the last frame is missed again
    found = recover(subject, np.zeros((3, H, W)), still, everything, region, undamaged)
    assert found.first == int(np.argmax(near)) + 1
    assert found.lasting is None


@BOTH
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_stays_in_its_region_and_in_the_formats(
    make: Make, frames: Video, mask: Mask, kind: str, name: str
) -> None:
    rule = make(kind)
    subject = automaton(rule)
    state = watch(subject, frames[:5], mask[:5]).states[-1]
    region = central_region(H, W)
    damaged = DAMAGES[name](subject, state, region, 0)
    outside = np.ones((H, W), bool)
    outside[region] = False
    assert np.array_equal(damaged[:, outside], state[:, outside])
    assert damaged.dtype == state.dtype
    inside = damaged[:, *region]
    values = subject.values(damaged)
    assert values[:-1].min() >= -1 and values.max() <= 1 and values[-1].min() >= 0
    assert (inside[:3] != state[:3, *region]).any()
    if name == "zero":
        assert not inside.any()
    if name == "learned":
        assert np.array_equal(damaged[3:], state[3:])
    if isinstance(rule, IntegerRule):
        for codes, format in zip(damaged, rule.channel_formats, strict=True):
            assert format.lowest <= codes.min() and codes.max() <= format.highest


# The page


def page_data(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def sheet_frame(sheet: dict[str, Any], index: int, height: int, width: int) -> np.ndarray:
    """Value of one frame, found the way the page's script finds it."""
    image = np.array(Image.open(io.BytesIO(base64.b64decode(sheet["sheet"].split(",")[1]))))
    row, column = divmod(index, sheet["columns"])
    return image[row * height : (row + 1) * height, column * width : (column + 1) * width]


def figures(found: Inspection, rule: str = "toy", kind: str = "integer rule") -> dict[str, Any]:
    return figures_of(found, rule, kind, COST, "noise", 0.1, 0)


def test_page_refers_to_nothing_outside_itself(found: Inspection) -> None:
    page = render_page(found, figures(found))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[\w+/=]+", "", page))
    assert "default-src 'none'" in page


def test_page_escapes_names(found: Inspection) -> None:
    hostile = "</script><script>alert(1)</script>"
    page = render_page(found, figures(found, rule=hostile))
    assert hostile not in page
    assert page_data(page)["figures"]["rule"] == hostile


def test_page_holds_the_pictures(found: Inspection, frames: Video, mask: Mask) -> None:
    data = page_data(render_page(found, figures(found)))
    box = data["damage"]
    for t in (0, WARM_UP, T - 1):
        truth = np.rint(frames[t] * 255)
        assert np.array_equal(sheet_frame(data["truth"], t, H, W), truth)
        assert np.array_equal(sheet_frame(data["samples"], t, H, W)[..., 1] == 255, mask[t])
        codes = np.rint(found.history.values[t, 0] * 128) + 128
        assert np.array_equal(sheet_frame(data["channels"][0], t, H, W), codes)
    kept = (
        slice(box["top"], box["top"] + box["side"]),
        slice(box["left"], box["left"] + box["side"]),
    )
    for sheet in box["kinds"]:
        recovery = found.recoveries[sheet["name"]]
        for t, picture in ((0, recovery.damaged), (7, recovery.predictions[6])):
            expected = np.rint(picture[kept] * 255)
            assert np.array_equal(sheet_frame(sheet, t, box["side"], box["side"]), expected)
    steps = data["ripple"]["steps"]
    assert steps[:8] == [1, 2, 3, 4, 5, 6, 8, 10]
    assert steps[-1] == len(found.ripple.difference) == (T - WARM_UP) * 2
    for i, step in enumerate(steps):
        codes = sheet_frame(data["ripple"], i, H, W)
        assert np.array_equal(codes > 0, found.ripple.difference[step - 1] > 0)


def test_page_thins_out_channels_that_would_make_it_too_large(
    found: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scotopia.cli.inspect_page.CHANNEL_BYTES", 3000)
    page = render_page(found, figures(found))
    strides = [channel["stride"] for channel in page_data(page)["channels"]]
    assert strides[0] == strides[-1] == 1
    assert strides[1] > 1
    assert f"one frame in {strides[1]} is kept" in page


def test_page_says_when_the_light_cone_is_broken(found: Inspection) -> None:
    assert "the light cone was broken" not in render_page(found, figures(found))
    ripple = dataclasses.replace(found.ripple, front=found.ripple.front + 3)
    broken = dataclasses.replace(found, ripple=ripple)
    page = render_page(broken, figures(broken))
    assert "the light cone was broken" in page
    assert f"after {ripple.violations} of {(T - WARM_UP) * 2} steps" in page


# The command


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "long.npz"
    ramp = np.arange(128, dtype=np.uint8)
    np.savez(path, frames=np.stack([np.add.outer(ramp, np.roll(ramp, t)) for t in range(52)]))
    return path


@BOTH
def test_page_and_json_have_the_same_figures(
    run: Run, make: Make, long_clip: Path, tmp_path: Path, kind: str
) -> None:
    rule, page, target = (tmp_path / name for name in ("r.safetensors", "p.html", "f.json"))
    make(kind, channels=2, hidden=1, steps_per_frame=1).save(rule)
    options = ("--frames", 50, "--at", "30,40", "-o", page, "--json", target)
    status, out, err = run("inspect", rule, "--clip", long_clip, *options)
    assert (status, err) == (0, "")
    assert "0 light cone violations in 30 steps" in " ".join(out.split())
    result = json.loads(target.read_text())
    assert page_data(page.read_text("utf-8"))["figures"] == result
    assert (result["rule"], result["kind"]) == ("r", f"{kind} rule")
    assert (result["clip"], result["frames"], result["warm_up"]) == ("long", 50, 20)
    assert (result["sample"]["x"], result["sample"]["y"]) == (30, 40)
    assert list(result["channels"]) == ["x0", "x1", "sample", "trace"]
    assert (result["gates"] is None) == (kind == "integer")
    assert all(len(kind["psnr"]) == 30 for kind in result["damage"]["kinds"].values())
    html = page.read_text("utf-8")
    assert f"{result['psnr']:.2f} dB" in html
    assert f"{result['cost']['parameters']:,}</dt>" in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--frames", 49),
            "49 frames are too few to inspect, 20 warm up and 30 are watched: give a clip of at "
            "least 50, and --frames no less",
        ),
        (
            ("--frames", 53),
            "--frames 53 is not from 1 to the 52 frames of long: give fewer, or leave it out",
        ),
        (
            ("--at", "128,0"),
            "--at 128,0 is outside the frames of 128 x 128 pixels: give X from 0 to 127 and Y "
            "from 0 to 127",
        ),
        (("--at", "middle"), "--at middle is no pixel: give X,Y such as 64,64"),
        (("--density", "nan"), "density nan is not above 0 and up to 1: give 0.01 for 1 %"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, long_clip: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    page = tmp_path / "page.html"
    status, _, err = run("inspect", "retina", "--clip", long_clip, "-o", page, *arguments)
    assert (status, err) == (2, f"scotopia: {message}\n")
    assert not page.exists()


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "1.5,2", "x,y"])
def test_a_pixel_is_two_integers(text: str) -> None:
    with pytest.raises(InputError, match="is no pixel"):
        parse_pixel(text)


def test_a_rule_that_is_not_finite_is_refused(make: Make, frames: Video, mask: Mask) -> None:
    rule: Rule = make("float")
    with torch.no_grad():
        rule.update.bias[0] = torch.nan
    with pytest.raises(InputError, match="state is not finite at frame 0: its weights"):
        inspect(rule, frames, mask, warm_up=WARM_UP)


# Cells of several pixels

SIDE = 12  # pixels


@pytest.fixture
def pairs(make: Make) -> Rule:
    """A rule whose cells stand for 2 x 2 pixels each."""
    rule: Rule = make("float", channels=6, block=2)
    return rule


def test_a_rule_of_several_pixels_a_cell_computes_what_the_task_computes(
    pairs: Rule, frames: Video, mask: Mask
) -> None:
    frames, mask = frames[:9, :, :SIDE], mask[:9, :, :SIDE]
    history = watch(automaton(pairs), frames, mask)
    estimates = float_task.reconstruct(pairs, frames, mask)
    assert np.allclose(history.predictions, estimates, atol=1e-6)
    for values, state in zip(history.values, float_task.run(pairs, frames, mask), strict=True):
        assert values.shape == (5, SIDE, SIDE)  # a prediction, two channels, sample and trace
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            place = 2 * row + column
            of_cells = state[[place, 4, 5, 6 + place, 10 + place]].numpy()
            assert np.array_equal(values[:, row::2, column::2], of_cells)


def test_what_several_pixels_a_cell_hear_and_how_they_mend(
    pairs: Rule, frames: Video, mask: Mask
) -> None:
    found = inspect(pairs, frames[:, :, :SIDE], mask[:, :, :SIDE], (5, 8), warm_up=WARM_UP)
    ripple = found.ripple
    assert ripple.violations == 0
    assert ripple.front[0] == 1  # cells: columns 2 to 7, rows 6 to 11
    assert ripple.difference[0, 6:12, 2:8].any()
    assert not ripple.difference[0, :6].any() and not ripple.difference[0, :, 8:].any()
    assert found.history.gates is not None and found.history.gates.shape == (T, 3)
    rows, columns = found.region
    assert all(edge % 2 == 0 for edge in (rows.start, rows.stop, columns.start, columns.stop))
    subject = automaton(pairs)
    damaged = set_to_random(subject, found.history.states[4], found.region, 0)
    assert np.array_equal(damaged[1:3, ::2, ::2], damaged[1:3, 1::2, 1::2])  # what a cell has once
    page = render_page(found, figures(found, kind="float rule"))
    assert "one cell, 2 pixels, a step" in page
    assert figures(found)["sample"]["by_step"]["front"][0] == 2


def test_frames_that_do_not_divide_into_cells_are_refused(
    pairs: Rule, frames: Video, mask: Mask
) -> None:
    with pytest.raises(InputError, match="13 x 12 pixels do not divide into cells of 2 x 2"):
        inspect(pairs, frames, mask, warm_up=WARM_UP)


@BOTH
def test_chance_is_the_same_in_both_runs_of_an_experiment(
    make: Make, frames: Video, mask: Mask, kind: str
) -> None:
    subject = automaton(make(kind, fire_rate=0.5))
    found = inspect(make(kind, fire_rate=0.5), frames, mask, warm_up=WARM_UP)
    state, rest = found.history.states[WARM_UP - 1], slice(WARM_UP, None)
    again = list(subject.run_frames(state, frames[rest], mask[rest], WARM_UP))
    assert all(map(np.array_equal, again, found.history.states[WARM_UP:]))
    assert found.ripple.violations == 0


def test_zero_is_the_state_before_the_first_sample(make: Make) -> None:
    subject = automaton(make("integer"))
    state = np.full((5, H, W), 3)
    everywhere = slice(0, H), slice(0, W)
    assert np.array_equal(set_to_zero(subject, state, everywhere, 0), subject.start(H, W))
