"""An evaluation as one picture: a row a clip, a column a method, and how fast they warm up."""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scotopia.model.score import WARM_UP

from .evaluate import Evaluation, Glimpse
from .report import BACKGROUND, METHODS, MUTED, NO_SAMPLE, TEXT

PANEL = 256  # pixels on a panel's side, at least; small clips are enlarged by a whole factor
MARGIN, GAP, CAPTION, HEAD = 32, 12, 30, 104
PLOT_HEIGHT = 380
GRID = (38, 43, 54)
OVERSAMPLING = 3  # of the curves, for Pillow's lines have no smooth edges


def contact_sheet(evaluation: Evaluation, title: str) -> Image.Image:
    """Draw truth, samples and estimates of every clip, and below them the warm-up curves.

    Names are `report.METHODS`'. A caption's PSNR is the clip's, not the frame's.
    """
    side = max(len(glimpse.truth) for glimpse in evaluation.glimpses.values())
    panel = side * max(1, PANEL // side)
    columns = 2 + len(evaluation.warm_up)
    width = 2 * MARGIN + columns * (panel + GAP) - GAP
    pitch = panel + CAPTION + GAP
    plot_top = HEAD + len(evaluation.glimpses) * pitch + GAP
    image = Image.new("RGB", (width, plot_top + PLOT_HEIGHT + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 22), title, TEXT, _font(26))
    heads = ["Truth", "What arrives", *(METHODS[name].label for name in evaluation.warm_up)]
    for column, head in enumerate(heads):
        x = MARGIN + column * (panel + GAP)
        draw.text((x, HEAD - 12), head, MUTED, _fitting(head, panel), anchor="ls")
    for row, (name, glimpse) in enumerate(evaluation.glimpses.items()):
        y = HEAD + row * pitch
        panels = [_rgb(glimpse.truth), _samples(glimpse), *map(_rgb, glimpse.estimates.values())]
        trained = ", trained on" if name in evaluation.trained_on else ""
        scores = {key: value["psnr"] for key, value in evaluation.clips[name].items()}
        best = max(scores.values())
        captions = [
            (f"{name}{trained}, frame {glimpse.frame}", TEXT),
            (f"{glimpse.mask.sum()} of {glimpse.mask.size} pixels", MUTED),
            *((f"{value:.2f} dB", TEXT if value == best else MUTED) for value in scores.values()),
        ]
        for column, (pixels, (caption, colour)) in enumerate(zip(panels, captions, strict=True)):
            x = MARGIN + column * (panel + GAP)
            enlarged = Image.fromarray(pixels).resize((panel, panel), Image.Resampling.NEAREST)
            image.paste(enlarged, (x, y))
            draw.text((x, y + panel + 6), caption, colour, _fitting(caption, panel))
    plot = _warm_up_plot(evaluation.warm_up, min(width - 2 * MARGIN, 1600))
    image.paste(plot, (MARGIN, plot_top))
    return image


def _warm_up_plot(curves: dict[str, list[float]], width: int) -> Image.Image:
    """Draw PSNR over the first frames; the part that scores leave out is shaded."""
    scale = OVERSAMPLING
    image = Image.new("RGB", (width * scale, PLOT_HEIGHT * scale), BACKGROUND)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 56, 44, width - 290, PLOT_HEIGHT - 40
    values = [value for curve in curves.values() for value in curve]
    low, high = math.floor(min(values)), math.ceil(max(values))
    high = max(high, low + 1)
    frames = max(len(curve) for curve in curves.values())

    def at(frame: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * frame / (frames - 1)
        y = bottom - (bottom - top) * (value - low) / (high - low)
        return x * scale, y * scale

    font = _font(15 * scale)
    draw.rectangle([at(0, high), at(WARM_UP, low)], (19, 22, 30))
    draw.text(
        (left * scale, 6 * scale),
        "Warming up: PSNR of each frame in dB, mean over the clips",
        TEXT,
        font,
    )
    step = max(1, math.ceil((high - low) / 6))
    for value in range(low, high + 1, step):
        draw.line([at(0, value), at(frames - 1, value)], GRID, scale)
        x, y = at(0, value)
        draw.text((x - 10 * scale, y), str(value), MUTED, font, anchor="rm")
    for frame in range(0, frames, 10):
        x, y = at(frame, low)
        draw.text((x, y + 8 * scale), str(frame), MUTED, font, anchor="ma")
    x, y = at(WARM_UP / 2, low)
    draw.text((x, y - 8 * scale), "not scored", MUTED, font, anchor="mb")
    draw.text((right * scale + 10 * scale, y + 8 * scale), "frame", MUTED, font, anchor="la")
    for name, curve in curves.items():
        method = METHODS[name]
        pieces = [[at(frame, value) for frame, value in enumerate(curve)]]
        if method.dash:  # Pillow has none: the first half of every frame's way to the next
            steps = enumerate(pairwise(curve))
            pieces = [
                [at(frame, here), at(frame + 0.5, (here + there) / 2)]
                for frame, (here, there) in steps
            ]
        for piece in pieces:
            draw.line(piece, method.colour, round(method.width * scale), "curve")
    # Labels stand at the lines' ends, moved apart where they would touch.
    label_y = -math.inf
    for name, curve in sorted(curves.items(), key=lambda item: -item[1][-1]):
        label_y = max(at(0, curve[-1])[1], label_y + 19 * scale)
        place = ((right + 10) * scale, label_y)
        draw.text(place, METHODS[name].label, METHODS[name].colour, font, anchor="lm")
    return image.reduce(scale)


def _rgb(frame: NDArray[np.float32]) -> NDArray[np.uint8]:
    gray = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def _samples(glimpse: Glimpse) -> NDArray[np.uint8]:
    empty = np.array(NO_SAMPLE, np.uint8)
    return np.where(glimpse.mask[..., None], _rgb(glimpse.readings), empty)


def caption(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    width: int,
    colour: tuple[int, int, int],
) -> None:
    """Write a line, smaller if it is wider than so many pixels."""
    draw.text(place, text, colour, _fitting(text, width))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitting(text: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    size = 17
    while size > 9 and _font(size).getlength(text) > width:
        size -= 1
    return _font(size)
