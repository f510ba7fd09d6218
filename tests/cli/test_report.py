import base64
import io
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scotopia.cli.report import (
    NO_SAMPLE,
    DemoResult,
    SideBySide,
    render_page,
    render_picture,
    render_video,
    write_report,
)
from scotopia.cli.rules import rule_path
from scotopia.model.rule import Rule
from scotopia.model.scotopic.titles import channel_titles
from scotopia.sim.verify import Stage

T, C, H, W = 5, 3, 12, 16
NAMES = ["report.html", "side_by_side.mp4", "side_by_side.png"]


@pytest.fixture
def result() -> DemoResult:
    random = np.random.default_rng(7)
    clip = (random.integers(0, 256, (T, H, W)) / 255).astype(np.float32)
    methods = ["normalized-convolution", "nca", "nca-int"]
    estimates = {name: random.random((T, H, W)).astype(np.float32) for name in methods}
    return DemoResult(
        clip_name="blobs",
        clip=clip,
        mask=random.random((T, H, W)) < 0.1,
        density=0.1,
        seed=7,
        estimates=estimates,
        scores={name: {"psnr": 20.0 + i, "ssim": 0.5} for i, name in enumerate(methods)}
        | {"last-seen": {"psnr": 15.5, "ssim": 0.25}},
        curves={name: random.uniform(15, 25, T) for name in methods},
        channels=random.integers(-128, 128, (T, C, H, W)).astype(np.int16),
        channel_names=["x0 (prediction)", "x1 (doubt)", "trace"],
        cost={"parameters": 2160, "weight bits": "8, one scale per channel"},
        stages=[
            Stage("golden model == Verilog", "every channel and step", 7680, 0, 1.5),
            Stage("flipped weight bit", "one frame", 960, 3, 0.5, True, "first at step 0"),
        ],
        files=[("a folder/rule.safetensors", "the integer rule")],
        trained_on=["road", "<tower>"],
        synthetic_clips=1000,
        warm_up=2,
    )


@pytest.fixture
def page(result: DemoResult) -> str:
    return render_page(result, b"PNG")


def page_data(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def sheet_frames(sheet: dict[str, Any], count: int) -> NDArray[np.uint8]:
    """Value of a sheet's frames, read the way the page's script reads them."""
    image = np.array(Image.open(io.BytesIO(base64.b64decode(sheet["sheet"].split(",")[1]))))
    places = [divmod(index, sheet["columns"]) for index in range(count)]
    return np.stack(
        [image[row * H : (row + 1) * H, col * W : (col + 1) * W] for row, col in places]
    )


def sheet_codes(sheet: dict[str, Any], count: int) -> NDArray[np.float64]:
    """Value of a state channel's codes, told from the grays the way the page's script does."""
    low, high = float(sheet["low"]), float(sheet["high"])
    codes: NDArray[np.float64] = np.rint(low + sheet_frames(sheet, count) * ((high - low) / 255))
    return codes


def test_page_refers_to_nothing_outside_itself(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[\w+/=]+", "", page))
    assert all(src.startswith("data:") for src in re.findall(r'src="([^"]*)', page))
    assert "default-src 'none'" in page


def test_page_escapes_names(result: DemoResult) -> None:
    hostile = "</script><script>alert(1)</script>"
    curves = {**result.curves, hostile: np.zeros(T)}
    page = render_page(replace(result, clip_name=hostile, curves=curves), b"PNG")
    assert hostile not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert page_data(page)["curves"][-1]["label"] == hostile


def test_page_holds_the_pictures_without_loss(result: DemoResult, page: str) -> None:
    source, samples, *estimates = page_data(page)["panels"]
    gray = np.rint(result.clip * 255)
    assert np.array_equal(sheet_frames(source, T), gray)
    assert np.array_equal(sheet_frames(samples, T)[..., 0], gray * result.mask)
    assert np.array_equal(sheet_frames(samples, T)[..., 1] == 255, result.mask)
    for panel, estimate in zip(estimates, result.estimates.values(), strict=True):
        assert np.array_equal(sheet_frames(panel, T), np.rint(estimate * 255))


@pytest.mark.parametrize(("low", "high"), [(-128, 128), (0, 256), (-1024, -800), (9, 10)])
def test_page_can_tell_every_code_of_the_state(result: DemoResult, low: int, high: int) -> None:
    codes = np.random.default_rng(1).integers(low, high, (T, C, H, W)).astype(np.int16)
    for c, sheet in enumerate(
        page_data(render_page(replace(result, channels=codes), b""))["channels"]
    ):
        assert np.array_equal(sheet_codes(sheet, T), codes[:, c])


def test_page_tells_the_codes_of_a_channel_of_eleven_bits(result: DemoResult) -> None:
    codes = np.linspace(-1024, 1023, result.channels.size).reshape(result.channels.shape)
    page = render_page(replace(result, channels=codes.astype(np.int16)), b"")
    assert "<b>x0 (prediction)</b>codes −1024 to" in page
    assert re.search(r"<b>trace</b>codes −?\d+ to 1023<", page)
    first, *_ = page_data(page)["channels"]
    assert abs(sheet_codes(first, T) - codes[:, 0]).max() <= (first["high"] - first["low"]) / 255


def test_page_lists_what_the_rule_has_seen_at_its_end(result: DemoResult, page: str) -> None:
    assert "It was trained on other clips, which stand below." in page
    summary = "<summary>2 clips and 1,000 synthetic ones</summary>\n<p>road, &lt;tower&gt;</p>"
    assert page.index('id="panels"') < page.index("<h2>Proof</h2>") < page.index(summary)
    page = render_page(replace(result, trained_on=["blobs"]), b"")
    assert "It has seen this very clip in training." in page


def test_page_thins_out_channels_that_would_make_it_too_large(
    result: DemoResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scotopia.cli.report.CHANNEL_BYTES", 1500)
    page = render_page(result, b"")
    data = page_data(page)
    stride = data["channelStride"]
    assert stride > 1
    assert f"one frame in {stride}, to keep this page small" in page
    kept = result.channels[::stride, 0]
    read = sheet_codes(data["channels"][0], len(kept))
    assert np.array_equal(read, kept)


def test_page_draws_a_perfect_frame_as_a_gap(result: DemoResult) -> None:
    curves = {name: np.array([np.inf, np.nan, 20, 21, 22]) for name in result.curves}
    data = page_data(render_page(replace(result, curves=curves), b""))
    assert data["curves"][0]["psnr"] == [None, None, 20, 21, 22]


def test_page_says_what_was_proved(page: str) -> None:
    assert "in 7,680 cell updates compared; 1 of 1 planted faults caught" in page
    assert page.count("✓ equal") == page.count("✓ caught") == 1
    assert 'href="a%20folder/rule.safetensors"' in page


@pytest.mark.parametrize(
    ("stage", "verdict"),
    [
        (Stage("rule", "", 10, 1, 0), "✗ differs"),
        (Stage("fault", "", 10, 0, 0, expect_mismatch=True), "✗ missed"),
        (Stage("empty", "", 0, 0, 0), "✗ nothing compared"),
        (Stage("empty", "", 0, 0, 0, expect_mismatch=True), "✗ nothing compared"),
    ],
)
def test_page_says_what_failed(result: DemoResult, stage: Stage, verdict: str) -> None:
    page = render_page(replace(result, stages=[*result.stages, stage]), b"")
    assert not stage.passed
    assert verdict in page
    assert '<div class="bad">' in page


def test_scores_are_ranked_with_their_gain_over_last_seen(page: str) -> None:
    rows = re.findall(
        r'<th scope="row">([\w ]+)<small>.*?"n">([\d.]+)</td><td class="n">(.*?)<', page
    )
    assert rows == [
        ("Integer rule", "22.00", "+6.50"),
        ("Float rule", "21.00", "+5.50"),
        ("Normalized convolution", "20.00", "+4.50"),
        ("Last seen", "15.50", "–"),
    ]


def test_picture_holds_exactly_the_pixels_that_went_in(result: DemoResult) -> None:
    picture = np.array(Image.open(io.BytesIO(render_picture(result))))
    canvas, t = SideBySide(result), 2 * T // 3
    assert picture.shape == (canvas.height, canvas.width, 3)
    scale = canvas.scale
    # Every enlarged pixel is one colour, so the top left corners say it all.
    panels = [picture[box][::scale, ::scale] for box in canvas.boxes()]
    for box, panel in zip(canvas.boxes(), panels, strict=True):
        assert np.array_equal(picture[box], panel.repeat(scale, axis=0).repeat(scale, axis=1))
    source, samples, *estimates = panels
    gray = np.rint(result.clip[t] * 255)[:, :, None].repeat(3, axis=2)
    assert np.array_equal(source, gray)
    assert np.array_equal(samples, np.where(result.mask[t][:, :, None], gray, NO_SAMPLE))
    for panel, estimate in zip(estimates, result.estimates.values(), strict=True):
        assert np.array_equal(panel, np.rint(estimate[t] * 255)[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("encoders", [{"libx264"}, set()])
def test_video_has_every_frame(
    result: DemoResult, encoders: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("av.codecs_available", encoders & av.codecs_available)
    canvas = SideBySide(result)
    with av.open(io.BytesIO(render_video(result)), "r") as container:
        assert container.streams.video[0].average_rate == 25
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == T * [(canvas.height, canvas.width, 3)]
    assert canvas.height % 2 == canvas.width % 2 == 0
    # Lossy, but the frames are in their order.
    box = canvas.boxes()[0]
    for t, frame in enumerate(frames):
        assert abs(frame[box].astype(int) - canvas.frame(t)[box]).mean() < 8


def test_channels_have_the_names_that_their_meaning_gives_them() -> None:
    titles = channel_titles(Rule.load(rule_path("retina")))
    assert titles[:4] == ["x0 (prediction)", "x1 (doubt)", "x2 (verdict)", "x3"]
    assert channel_titles(Rule.load(rule_path("retina-207")))[1] == "x1 (doubt)"


def test_report_is_three_files(result: DemoResult, tmp_path: Path) -> None:
    assert write_report(result, tmp_path) == [tmp_path / name for name in NAMES]
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


def test_failed_report_leaves_the_earlier_one(
    result: DemoResult, tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    (tmp_path / "report.html").write_text("earlier")
    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        write_report(result, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "earlier"
