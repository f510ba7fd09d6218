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

from scotopia.cli.automaton import (
    Automaton,
    Mask,
    State,
    Video,
    automaton,
    gates_of,
    own_channels,
)
from scotopia.cli.inspect import (
    DAMAGES,
    Inspection,
    Ripple,
    cells_of,
    central_region,
    damages_of,
    half_life,
    inspect,
    nearest_shown,
    parse_pixel,
    perturb,
    recover,
    region_psnr,
    set_to_random,
    set_to_start,
    statistics,
    watch,
)
from scotopia.cli.inspect_page import figures_of, render_page
from scotopia.cli.pictures import on_white
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.surroundings import Event
from scotopia.model import running
from scotopia.model.float_rule import FloatRule
from scotopia.model.rule import Rule
from scotopia.model.scotopic.float_graph import as_float_rule
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
        config = small_config(**fields)
        if numbers == "float":
            return as_float_rule(float_rule(5, config))
        return random_rule(5, config)

    return make


@pytest.fixture(scope="module")
def found(make: Make, frames: Video, mask: Mask) -> Inspection:
    return inspect(make("integer"), frames, mask, warm_up=WARM_UP)


def toy(step: Callable[[State, State, Mask], State]) -> Automaton:
    """An automaton of a prediction and two channels, whose step a test chooses."""
    return Automaton(
        ("x", "y", "z"),
        1,
        start=lambda height, width: np.zeros((3, height, width)),
        steps=lambda state, given, _number: iter([step(state, given["sample"], given["valid"])]),
        given=lambda pixels, mask, _before: {"sample": pixels * (255 / 128) - 1, "valid": mask},
        all_values=lambda state: state,
        scramble=lambda random, state: random.uniform(-1, 1, state.shape),
    )


def leaky(state: State, sample: State, valid: Mask) -> State:
    moved: State = state.copy()
    moved[0] += 0.2 * valid * (sample - moved[0])
    return moved


def changed(
    subject: Automaton, frames: Video, mask: Mask, at: tuple[int, int], state: State | None = None
) -> Ripple:
    """What a change in the first frame does, from a state or from the first one."""
    before = np.zeros((1, *frames.shape[1:]), np.float32)
    history = watch(subject, np.concatenate([before, frames]), np.concatenate([before > 0, mask]))
    history.states[0] = subject.start(*frames.shape[1:]) if state is None else state
    clip, shown = np.concatenate([before, frames]), np.concatenate([before > 0, mask])
    return perturb(subject, history, clip, shown, at, 1)


# An automaton is the rule


@BOTH
@pytest.mark.parametrize("fire_rate", [1, 0.5])
@pytest.mark.parametrize("dither", [0, 3])
def test_automaton_computes_what_the_rule_computes(
    make: Make, frames: Video, mask: Mask, kind: str, fire_rate: float, dither: int
) -> None:
    rule = make(kind, fire_rate=fire_rate)
    if kind == "integer":
        rule = dataclasses.replace(rule, dither=dither)
    subject = automaton(rule)
    runner: Any = running if kind == "float" else integer_task
    given = subject.inputs(frames, mask)
    states = list(subject.run_frames(subject.start(H, W), given))
    for state, expected in zip(states, runner.run(rule, frames, mask), strict=True):
        assert np.array_equal(state[: len(expected)], expected)
    history = watch(subject, frames, mask)
    assert all(map(np.array_equal, history.states, states))
    estimates = runner.reconstruct(rule, frames, mask)
    assert np.allclose(history.pictures[..., 0], estimates, atol=1e-6)


def test_statistics_are_those_of_the_cells() -> None:
    values = np.zeros((1, 3, 2, 2), np.float32)
    values[0, 0] = [[-1, 1], [0.5, 127 / 128]]
    values[0, 1] = [[0, 0.75], [0.5, 0]]
    found = statistics(values, [(-1, 127 / 128), (0, 0.75), (0, 1)])
    assert found["min"][0].tolist() == [-1, 0, 0]
    assert found["max"][0].tolist() == [1, 0.75, 0]
    assert found["mean"][0, 0] == pytest.approx(values[0, 0].mean())
    assert found["std"][0, 0] == pytest.approx(values[0, 0].std())
    assert found["saturated"][0, :2].tolist() == [0.75, 0.25]  # of what is unsigned, the highest
    assert np.isnan(found["saturated"][0, 2])  # a bit is always at an end
    assert np.isnan(statistics(values)["saturated"]).all()


def test_gates_are_those_that_the_rule_opens(
    float_rule: Make, small_config: Make, frames: Video, mask: Mask
) -> None:
    rule: Rule = float_rule(5, small_config())
    with torch.no_grad():
        rule.update.weight.zero_()
        rule.update.bias.copy_(torch.tensor([0.0, 0, 0, -2, -1, 1]))  # candidates, then gates
    history = watch(automaton(as_float_rule(rule)), frames[:4], mask[:4])
    assert np.array_equal(history.gates, np.tile([0, 0.25, 0.75], (4, 1)))
    assert np.array_equal(history.gates_at_samples, history.gates)


def test_gates_of_integers_are_the_words_that_are_called_so(
    make: Make, frames: Video, mask: Mask
) -> None:
    rule = make("integer")
    subject = automaton(rule)
    assert subject.gated == ("x0", "x1", "x2")
    state, (given, *_) = subject.start(H, W), subject.inputs(frames, mask)
    (after, *_) = subject.steps(state, given, 0)
    x, candidate = subject.values(state)[0], np.zeros((H, W))
    words = {name: word for word, name in rule.graph.names.items()}
    place, lane = rule.graph.origin(words["candidate x0"])

    def keep(index: int, codes: np.ndarray) -> None:
        if index == place:
            candidate[:] = codes[lane] * 2.0 ** -rule.graph.fractions[words["candidate x0"]]

    rule.step(state[: len(rule.channel_names)], given, watch=keep)
    opened = subject.opened(after)
    moved = x + opened[0] * (candidate - x)
    assert (
        np.abs(subject.values(after)[0] - moved).max() <= 2.0 ** -rule.channel_formats[0].frac_bits
    )
    assert 0 <= opened.min() < opened.max() <= 1


def test_a_residual_rule_shows_no_gates(make: Make) -> None:
    assert automaton(make("float", kind="residual")).gated == ()
    assert automaton(make("integer", kind="residual")).gated == ()


def test_channels_of_the_cell_alone_are_found(make: Make, fill_in: Any, growing: Any) -> None:
    rule = make("integer")
    assert [rule.channel_names[c] for c in own_channels(rule.graph)] == ["sample", "trace"]
    assert own_channels(fill_in[1].graph) == own_channels(fill_in[0].graph) == (1,)
    assert own_channels(growing[0].graph) == () and gates_of(growing[0].graph) == {}
    build = Builder()
    a, _, c = build.channels({"a": None, "b": None, "c": None})
    # What is copied of a channel that the neighbours are in, is shared as well.
    graph = build.graph({"a": build.window(a), "b": a, "c": c + 1})
    assert own_channels(graph) == (2,)


def test_an_event_is_held_when_an_experiment_begins_later(frames: Video) -> None:
    build = Builder()
    x = build.channels({"x": None})
    value, _ = build.inputs({"value": None, "flag": None})
    rule = FloatRule(build.graph({"x": x * 0 + value}), 1, (Event("value", "flag"),))
    subject = automaton(rule)
    mask = np.zeros(frames.shape, bool)
    mask[0] = True
    history = watch(subject, frames, mask)
    assert np.array_equal(history.states[-1][0], history.states[0][0])
    given = subject.inputs(frames, mask)
    again = list(subject.run_frames(history.states[4], given[5:], 5))
    assert np.array_equal(again[0], history.states[5])


# How far a change is heard


@BOTH
@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_a_sample_is_heard_inside_the_light_cone_alone(
    make: Make, frames: Video, mask: Mask, kind: str, border: str
) -> None:
    subject = automaton(make(kind, border=border))
    x, y = 2, 7
    ripple = changed(subject, frames[:3], mask[:3], (x, y))
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
    ripple = changed(toy(leap), frames, frames > 1, (3, 3), np.full((3, H, W), -1.0))
    assert ripple.front.tolist() == [2, 4, 6]
    assert ripple.violations == 3
    assert ripple.speed == 2


def test_a_ripple_is_measured_in_brightness_and_pixels() -> None:
    frames = np.full((2, H, W), 0.75, np.float32)
    none = frames > 1
    ripple = changed(toy(leaky), frames, none, (4, 5))
    assert (ripple.frame, ripple.x, ripple.y, ripple.added) == (1, 4, 5, True)
    assert (ripple.before, ripple.after) == (0.75, 0.25)
    assert ripple.total.tolist() == pytest.approx([0.1, 0.1])  # a fifth of a half, and it stays
    assert ripple.visible.tolist() == ripple.largest.tolist() == pytest.approx([0.1, 0.1])
    assert ripple.radius.tolist() == [0, 0]
    assert ripple.farthest.tolist() == ripple.front.tolist() == [0, 0]
    assert ripple.half_life is None
    assert ripple.renewed is None
    again = none.copy()
    again[:, 5, 4] = True
    ripple = changed(toy(leaky), frames, again, (4, 5))
    assert not ripple.added
    assert ripple.renewed == 1


def test_a_difference_of_one_code_is_not_above_what_a_pixel_shows() -> None:
    def one_code(state: State, sample: State, valid: Mask) -> State:
        return np.stack([np.where(valid & (sample > 0), 1 / 128, 0), *state[1:]])

    frames = np.full((1, H, W), 0.25, np.float32)
    ripple = changed(toy(one_code), frames, frames < 1, (4, 5))
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
    same = recover(subject, history, history.states[4], frames, mask, region, 5)
    assert np.array_equal(same.pictures, history.pictures[5:])
    truth = frames[5:, ..., None]
    assert np.array_equal(same.psnr, region_psnr(truth, history.pictures[5:], region))
    assert same.first == same.lasting == 1


def damaged_from(subject: Automaton, state: State, frames: Video, mask: Mask) -> Any:
    """A run, and what becomes of it from another state after the first frame."""
    history = watch(subject, frames, mask)
    return history, recover(subject, history, state, frames, mask, central_region(H, W), 1)


def test_a_rule_that_never_updates_never_recovers(frames: Video, mask: Mask) -> None:
    state = np.zeros((3, H, W))
    state[0] = frames[0] * (255 / 128) - 1
    subject = dataclasses.replace(
        toy(lambda state, sample, valid: state), start=lambda _height, _width: state
    )
    still = np.repeat(frames[:1], 6, axis=0)
    damaged = set_to_random(subject, state, central_region(H, W), 0)
    _, found = damaged_from(subject, damaged, still, mask[:6])
    assert found.first is found.lasting is None


def test_a_rule_that_sees_every_pixel_anew_recovers_at_once(frames: Video) -> None:
    subject = toy(lambda state, sample, valid: np.stack([sample, *state[1:]]))
    everything = np.ones((6, H, W), bool)
    damaged = set_to_random(subject, np.zeros((3, H, W)), central_region(H, W), 0)
    _, found = damaged_from(subject, damaged, frames[:6], everything)
    assert found.first == found.lasting == 1
    assert not np.array_equal(found.damaged[..., 0], frames[1])


def test_recovery_is_counted_in_frames_and_may_not_last(frames: Video) -> None:
    subject, region = toy(leaky), central_region(H, W)
    still, everything = np.repeat(frames[:1], 41, axis=0), np.ones((41, H, W), bool)
    history = watch(subject, still, everything)
    undamaged = np.clip(still + 0.05, 0, 1)[..., None]  # a constant error of 26 dB
    history.pictures[:] = undamaged
    zeros = np.zeros((3, H, W))
    found = recover(subject, history, zeros, still, everything, region, 1)
    truth = still[1:, ..., None]
    near = found.psnr >= region_psnr(truth, undamaged[1:], region) - 0.5
    assert found.first == found.lasting == int(np.argmax(near)) + 1 > 2
    history.pictures[-1] = still[-1, ..., None]  # perfect: the last frame is missed again
    found = recover(subject, history, zeros, still, everything, region, 1)
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
    if name == "shared":
        assert np.array_equal(damaged[3:5], state[3:5])
    if isinstance(rule, IntegerRule):
        for codes, format in zip(damaged[:5], rule.channel_formats, strict=True):
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
        picture = np.rint(found.history.pictures[t, ..., 0] * 255)
        assert np.array_equal(sheet_frame(data["picture"], t, H, W), picture)
        for c, channel in enumerate(data["channels"]):
            codes = sheet_frame(channel, t, H, W).astype(float)
            shown = ((codes - 128) / 128 if channel["signed"] else codes / 255) * channel["scale"]
            near = np.clip(found.history.values[t, c], -channel["scale"], channel["scale"])
            assert np.abs(shown - near).max() <= channel["scale"] / 16
    kept = (
        slice(box["top"], box["top"] + box["side"]),
        slice(box["left"], box["left"] + box["side"]),
    )
    for sheet in box["kinds"]:
        recovery = found.recoveries[sheet["name"]]
        for t, picture in ((0, recovery.damaged), (7, recovery.pictures[6])):
            expected = np.rint(picture[*kept, 0] * 255)
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
    assert len(set(strides)) == 1 and strides[0] > 1
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
    make(kind, channels=2, hidden=1, steps_per_frame=1, inputs=("innovation",)).save(rule)
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
    assert list(result["gates"]) == ["x0", "x1"]
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


def test_a_rule_that_is_not_finite_is_refused(
    float_rule: Make, small_config: Make, frames: Video, mask: Mask
) -> None:
    rule: Rule = float_rule(5, small_config())
    with torch.no_grad():
        rule.update.bias[0] = torch.nan
    with pytest.raises(InputError, match="state is not finite at frame 0: its weights"):
        inspect(as_float_rule(rule), frames, mask, warm_up=WARM_UP)


# Cells of several pixels

SIDE = 12  # pixels


@pytest.fixture
def pairs(make: Make) -> FloatRule:
    """A rule whose cells stand for 2 x 2 pixels each."""
    rule: FloatRule = make("float", channels=6, block=2)
    return rule


def test_a_rule_of_several_pixels_a_cell_computes_what_it_does_on_a_clip(
    pairs: FloatRule, frames: Video, mask: Mask
) -> None:
    frames, mask = frames[:9, :, :SIDE], mask[:9, :, :SIDE]
    history = watch(automaton(pairs), frames, mask)
    estimates = running.reconstruct(pairs, frames, mask)
    assert np.allclose(history.pictures[..., 0], estimates, atol=1e-6)
    for values, state in zip(history.values, running.run(pairs, frames, mask), strict=True):
        assert values.shape == (14, SIDE // 2, SIDE // 2)  # with four samples and four traces
        assert np.allclose(values, state, atol=1e-6)


def test_what_several_pixels_a_cell_hear_and_how_they_mend(
    pairs: FloatRule, frames: Video, mask: Mask
) -> None:
    found = inspect(pairs, frames[:, :, :SIDE], mask[:, :, :SIDE], (5, 8), warm_up=WARM_UP)
    ripple = found.ripple
    assert ripple.violations == 0
    assert ripple.front[0] == 1  # cells: columns 2 to 7, rows 6 to 11
    assert ripple.difference[0, 6:12, 2:8].any()
    assert not ripple.difference[0, :6].any() and not ripple.difference[0, :, 8:].any()
    assert found.history.gates.shape == (T, 6)
    rows, columns = found.region
    assert all(edge % 2 == 0 for edge in (rows.start, rows.stop, columns.start, columns.stop))
    cells = cells_of(found.region, 2)
    damaged = set_to_random(found.subject, found.history.states[4], cells, 0)
    other = (damaged != found.history.states[4]).any(0)
    assert other[cells].all() and other.sum() == other[cells].size
    page = render_page(found, figures(found, kind="float rule"))
    assert "one cell, 2 pixels, a step" in page
    assert figures(found)["sample"]["by_step"]["front"][0] == 2


def test_frames_that_do_not_divide_into_cells_are_refused(
    pairs: FloatRule, frames: Video, mask: Mask
) -> None:
    with pytest.raises(InputError, match="13 x 12 pixels do not divide into cells of 2 x 2"):
        inspect(pairs, frames, mask, warm_up=WARM_UP)


@BOTH
def test_chance_is_the_same_in_both_runs_of_an_experiment(
    make: Make, frames: Video, mask: Mask, kind: str
) -> None:
    subject = automaton(make(kind, fire_rate=0.5))
    found = inspect(make(kind, fire_rate=0.5), frames, mask, warm_up=WARM_UP)
    state, given = found.history.states[WARM_UP - 1], subject.inputs(frames, mask)
    again = list(subject.run_frames(state, given[WARM_UP:], WARM_UP))
    assert all(map(np.array_equal, again, found.history.states[WARM_UP:]))
    assert found.ripple.violations == 0


def test_erased_is_the_state_before_the_first_sample(make: Make) -> None:
    subject = automaton(make("integer"))
    state = np.full((8, H, W), 3)
    everywhere = slice(0, H), slice(0, W)
    assert np.array_equal(set_to_start(subject, state, everywhere, 0), subject.start(H, W))


# Rules that are shown nothing


@pytest.mark.parametrize("which", [0, 1], ids=["float", "integer"])
def test_a_rule_that_grows_is_shown_as_its_picture(growing: Any, which: int) -> None:
    rule = growing[which]
    nothing = np.zeros((40, 15, 15), np.float32)
    found = inspect(rule, nothing, nothing > 0, warm_up=8)
    history, subject = found.history, found.subject
    assert history.picture.kind == "rgba" and history.pictures.shape == (40, 15, 15, 3)
    expected = on_white(subject.values(history.states[5]))
    assert np.allclose(history.pictures[5], expected, atol=1e-6)
    assert damages_of(subject) == ["zero", "random"] == list(found.recoveries)
    # The square is erased, and grows again from its edges.
    erased = found.recoveries["zero"]
    assert (erased.damaged[found.region] == 1).all()
    assert erased.first is not None and 1 < erased.first < 20 and erased.lasting == erased.first
    assert found.ripple.violations == 0 and not found.ripple.added
    assert found.ripple.difference[0, 7, 7] > 0
    page = render_page(found, figures_of(found, "it", "float rule", COST, None, None, 0))
    data = page_data(page)
    assert data["truth"] is data["samples"] is data["figures"]["psnr"] is None
    shown = sheet_frame(data["picture"], 5, 15, 15)
    assert np.array_equal(shown, np.rint(history.pictures[5] * 255))
    assert "They are given nothing" in page and 'data-view="truth"' not in page


def test_a_rule_without_colours_is_shown_by_its_first_channel() -> None:
    build = Builder()
    x = build.channels({"x": None})
    rule = FloatRule(build.graph({"x": x + 0.5}))
    nothing = np.zeros((34, 5, 5), np.float32)
    found = inspect(rule, nothing, nothing > 0, warm_up=3)
    assert found.history.picture.kind == "channel"
    assert np.allclose(found.history.pictures[:, 0, 0, 0], np.arange(34) / 33)


@pytest.mark.parametrize("which", [0, 1], ids=["float", "integer"])
def test_the_command_looks_into_rules_of_ones_own(
    run: Run, growing: Any, fill_in: Any, long_clip: Path, tmp_path: Path, which: int
) -> None:
    rule, page, target = (tmp_path / name for name in ("r.safetensors", "p.html", "f.json"))
    growing[which].save(rule)
    options = ("--frames", 50, "-o", page, "--json", target)
    status, out, err = run("inspect", rule, "--size", 12, *options)
    assert (status, err) == (0, "")
    assert "50 frames, one cell's effect peaks" in " ".join(out.split())
    result = json.loads(target.read_text())
    assert (result["clip"], result["psnr"], result["picture"]) == (None, None, "rgba")
    assert list(result["channels"]) == ["red", "green", "blue", "alpha", "hidden"]
    refused = run("inspect", rule, "--clip", long_clip, "-o", page)[2]
    assert refused == f"scotopia: rule {rule} takes no events, so no clip: leave out --clip\n"
    fill_in[which].save(rule)
    status, out, err = run("inspect", rule, "--clip", long_clip, "--size", 24, *options)
    assert (status, err) == (0, "")
    result = json.loads(target.read_text())
    assert list(result["channels"]) == ["light", "held"]
    assert list(result["damage"]["kinds"]) == ["zero", "random", "shared"]
    assert f"{result['psnr']:.2f} dB" in out
