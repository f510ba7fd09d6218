"""The demo's result as a page, a video and a picture, each of which stands alone."""

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scotopia.model.files import write_all
from scotopia.model.score import WARM_UP
from scotopia.sim.verify import Stage

from .page import data_uri, environment, finite, gray, png, sheet

FRAMES_PER_SECOND = 25
CHANNEL_BYTES = 4_500_000  # PNG bytes the page spends on state channels before it thins them out

# Colours of the picture and the video. The page's style sheet has the same ones.
BACKGROUND = (11, 13, 18)
TEXT = (232, 234, 239)
MUTED = (163, 171, 184)
NO_SAMPLE = (21, 27, 58)  # tinted, so that a black sample differs from no sample at all

PANEL = 384  # pixels on a panel's longer side in picture and video: 3 x 128
MARGIN, GAP, CAPTION = 28, 20, 100  # pixels


@dataclass(frozen=True)
class DemoResult:
    """All that a demo found out. T frames of H x W pixels, C state channels.

    Values are in [0, 1], PSNR in dB at peak 1. ``estimates`` are shown in their order: the
    classical baseline first, the integer rule last. ``scores`` may name more methods.
    """

    clip_name: str
    clip: NDArray[np.float32]  # (T, H, W)
    mask: NDArray[np.bool_]  # (T, H, W), true where a pixel arrived
    density: float  # probability that a pixel arrives, 0 to 1
    seed: int
    estimates: dict[str, NDArray[np.float32]]  # method -> (T, H, W)
    scores: dict[str, dict[str, float]]  # method -> {"psnr": dB, "ssim": -1 to 1}
    curves: dict[str, NDArray[np.float64]]  # method -> (T,), PSNR of each frame
    channels: NDArray[np.int16]  # (T, C, H, W), the integer rule's codes
    channel_names: list[str]  # C names
    cost: dict[str, int | float | str]  # label -> value
    stages: list[Stage]
    files: list[tuple[str, str]]  # path relative to the report's folder, what it is
    trained_on: list[str]  # names of clips that the rule has seen
    synthetic_clips: int = 0  # that it has seen besides
    warm_up: int = WARM_UP  # leading frames that the scores leave out


@dataclass(frozen=True)
class Method:
    """How a method is called and drawn."""

    label: str
    short: str  # for narrow plots
    note: str
    colour: str = "#8d96a5"
    dash: str = ""  # SVG stroke-dasharray
    width: float = 1.8  # of the line, in pixels


METHODS = {
    "nca-int": Method("Integer rule", "Integer", "what the Verilog computes", "#63e6be"),
    # Wider than the integer rule's line, which would hide it where they agree.
    "nca": Method("Float rule", "Float", "PyTorch, 32-bit floats", "#74b0ff", width=4.5),
    "normalized-convolution": Method(
        "Normalized convolution", "Norm. conv.", "classical baseline", "#f2b45c"
    ),
    "normalized-convolution-oracle": Method(
        "Normalized convolution, oracle",
        "Oracle",
        "tuned on this clip with the ground truth, which no real system has",
        "#f2b45c",
        "5 4",
    ),
    "last-seen": Method("Last seen", "Last seen", "each pixel's last sample", "#9aa3b2", "2 4"),
    "kalman": Method("Kalman filter", "Kalman", "one scalar filter per pixel", "#d79bf0", "5 4"),
    "diffusion": Method("Diffusion", "Diffusion", "homogeneous inpainting", "#e58fb1", "5 4"),
    "griddata-linear": Method(
        "Linear interpolation", "Linear", "this frame's samples alone", "#c9b38c", "2 4"
    ),
}


def write_report(result: DemoResult, folder: Path) -> list[Path]:
    """Write report.html, side_by_side.mp4 and side_by_side.png into a folder, see `write_all`.

    Returns the three paths.
    """
    picture = render_picture(result)
    files = {
        folder / "report.html": render_page(result, picture).encode(),
        folder / "side_by_side.mp4": render_video(result),
        folder / "side_by_side.png": picture,
    }
    write_all(files)
    return list(files)


# The page


def render_page(result: DemoResult, picture: bytes) -> str:
    """Value of the report as one HTML page that refers to nothing outside itself.

    ``picture`` is the PNG that a browser without JavaScript shows in place of the player.
    """
    frames, height, width = result.clip.shape
    source = gray(result.clip)
    samples = np.stack([source * result.mask, result.mask * np.uint8(255)], axis=-1)
    channels, stride = _channel_sheets(result.channels)
    data = {
        "frames": frames,
        "width": width,
        "height": height,
        "warmUp": min(result.warm_up, frames),
        "framesPerSecond": FRAMES_PER_SECOND,
        "arrived": result.mask.sum(axis=(1, 2)).tolist(),
        "panels": [
            {"kind": "source", **sheet(source)},
            {"kind": "samples", **sheet(samples)},
            *(
                {
                    "kind": "estimate",
                    "psnr": finite(result.curves.get(name, ())),
                    **sheet(gray(estimate)),
                }
                for name, estimate in result.estimates.items()
            ),
        ],
        "channels": channels,
        "channelStride": stride,
        "curves": [
            {
                "label": _method(name).label,
                "short": _method(name).short,
                "colour": _method(name).colour,
                "dash": _method(name).dash,
                "width": _method(name).width,
                "psnr": finite(curve),
            }
            for name, curve in result.curves.items()
        ],
    }
    return (
        environment()
        .get_template("report.html")
        .render(
            result=result,
            data=data,
            picture=data_uri(picture),
            percent=f"{100 * result.density:g}",
            removed=f"{100 * (1 - result.density):g}",
            panels=[(_method(name), result.scores[name]["psnr"]) for name in result.estimates],
            facts=_facts(result),
            scores=_score_rows(result),
            agreements=[stage for stage in result.stages if not stage.expect_mismatch],
            faults=[stage for stage in result.stages if stage.expect_mismatch],
            stride=stride,
            ranges=[(channel["low"], channel["high"]) for channel in channels],
        )
    )


def _facts(result: DemoResult) -> list[tuple[str, str, bool]]:
    """Value of the page's headline figures: the figure, what it says, whether it is bad news."""
    psnr = {name: score["psnr"] for name, score in result.scores.items()}
    baseline, *_, rule = result.estimates
    facts = [
        (f"{psnr[rule]:.2f} dB", "the integer rule’s PSNR on this clip", False),
        (
            f"{_signed(psnr[rule] - psnr[baseline])} dB",
            f"over {_method(baseline).label.lower()}, the classical baseline",
            False,
        ),
    ]
    if "nca" in psnr and rule != "nca":
        loss = _signed(psnr[rule] - psnr["nca"])
        facts.append((f"{loss} dB", "from floats to integers", False))
    agreements = [stage for stage in result.stages if not stage.expect_mismatch]
    faults = [stage for stage in result.stages if stage.expect_mismatch]
    if agreements:
        mismatches = sum(stage.mismatches for stage in agreements)
        updates = sum(stage.cell_updates for stage in agreements)
        said = f"in {updates:,} cell updates compared"
        if faults:
            caught = sum(stage.passed for stage in faults)
            said += f"; {caught} of {len(faults)} planted faults caught"
        failed = not all(stage.passed for stage in result.stages)
        plural = "" if mismatches == 1 else "es"
        facts.append((f"{mismatches:,} mismatch{plural}", said, failed))
    return facts


def _score_rows(result: DemoResult) -> list[tuple[Method, dict[str, float], str, bool]]:
    """Value of the score table, best PSNR first: method, score, gain over last-seen, is ours."""
    floor = result.scores.get("last-seen", {}).get("psnr")
    ranked = sorted(result.scores.items(), key=lambda item: -item[1]["psnr"])
    return [
        (
            _method(name),
            score,
            "–" if floor is None or name == "last-seen" else _signed(score["psnr"] - floor),
            name.startswith("nca"),
        )
        for name, score in ranked
    ]


def _method(name: str) -> Method:
    return METHODS.get(name, Method(name, name, ""))


def _signed(value: float) -> str:
    """Value with a sign and a true minus; a value that rounds to zero has no sign."""
    text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text[1:] == "0.00" else text


def _channel_sheets(channels: NDArray[np.int16]) -> tuple[list[dict[str, object]], int]:
    """Value of the state's (T, C, H, W) codes as sheets, and every how many frames.

    Gray runs from the lowest to the highest code that a channel takes. If these are no more than
    256, that merges no two codes, and the page can tell the code from the gray.
    """
    low = channels.min(axis=(0, 2, 3)).astype(int)
    high = channels.max(axis=(0, 2, 3)).astype(int)
    span = np.maximum(high - low, 1)[:, None, None]
    grays = np.rint((channels - low[:, None, None]) * (255 / span)).astype(np.uint8)

    def sheets(stride: int) -> list[dict[str, object]]:
        return [
            {"low": int(low[c]), "high": int(high[c]), **sheet(grays[::stride, c])}
            for c in range(channels.shape[1])
        ]

    every_frame = sheets(1)
    size = sum(len(str(channel["sheet"])) for channel in every_frame) * 3 // 4  # base64
    stride = math.ceil(size / CHANNEL_BYTES)
    return (every_frame if stride == 1 else sheets(stride)), stride


# The picture and the video


def render_picture(result: DemoResult) -> bytes:
    """Value of the frame two thirds through the clip, all panels side by side, as PNG."""
    return png(SideBySide(result).frame(2 * len(result.clip) // 3))


def render_video(result: DemoResult) -> bytes:
    """Value of all frames, panels side by side, as MP4 at 25 frames a second."""
    canvas = SideBySide(result)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        h264 = "libx264" in av.codecs_available
        stream = container.add_stream("libx264" if h264 else "mpeg4", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = canvas.width, canvas.height, "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        stream.options = {"crf": "18", "preset": "veryfast"} if h264 else {"qscale": "2"}
        for t in range(len(result.clip)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(canvas.frame(t), "rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


class SideBySide:
    """Draws frame t of a result: five panels, enlarged by whole pixels, captions below."""

    def __init__(self, result: DemoResult) -> None:
        self.result = result
        _, height, width = result.clip.shape
        self.scale = max(1, PANEL // max(height, width))
        self.panels = [gray(result.clip), *map(gray, result.estimates.values())]
        self.pitch = width * self.scale + GAP
        self.bottom = MARGIN + height * self.scale
        # yuv420p shares a colour between 2 x 2 pixels, so it wants even sides.
        self.width = 2 * MARGIN - GAP + (len(self.panels) + 1) * self.pitch
        self.width += self.width % 2
        self.height = self.bottom + CAPTION
        self.height += self.height % 2

    def boxes(self) -> list[tuple[slice, slice]]:
        """Value of each panel's place: rows and columns of the canvas."""
        return [
            (slice(MARGIN, self.bottom), slice(x, x + self.pitch - GAP))
            for x in range(MARGIN, self.width - self.pitch + GAP, self.pitch)
        ]

    def frame(self, t: int) -> NDArray[np.uint8]:
        """Value of frame t as (height, width, 3) RGB."""
        result = self.result
        source, *estimates = (panel[t] for panel in self.panels)
        mask = result.mask[t]
        gray = [np.repeat(panel[:, :, None], 3, axis=2) for panel in (source, *estimates)]
        gray.insert(1, np.where(mask[:, :, None], gray[0], np.array(NO_SAMPLE, np.uint8)))
        captions = [
            ("Source", TEXT, f"frame {t + 1} of {len(result.clip)}"),
            (f"{100 * result.density:g} % arrives", TEXT, f"{mask.sum()} of {mask.size:,} pixels"),
        ]
        for name in result.estimates:
            here = result.curves[name][t]
            mean = result.scores[name]["psnr"]
            colour = _rgb(_method(name).colour)
            captions.append((_method(name).label, colour, f"{mean:.1f} dB, this frame {here:.1f}"))

        image = Image.new("RGB", (self.width, self.height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        for (_, columns), (title, colour, note) in zip(self.boxes(), captions, strict=True):
            for y, text, fill, size in ((12, title, colour, 34), (56, note, MUTED, 26)):
                font = _fitting(text, size, columns.stop - columns.start)
                draw.text((columns.start, self.bottom + y), text, fill=fill, font=font)
        pixels = np.array(image)
        for box, panel in zip(self.boxes(), gray, strict=True):
            pixels[box] = panel.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        return pixels


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _fitting(text: str, size: int, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Value of Pillow's own font, at most ``size`` pixels high, so that text fits in width."""
    font = ImageFont.load_default(size)
    while size > 8 and font.getlength(text) > width:
        size -= 2
        font = ImageFont.load_default(size)
    return font
