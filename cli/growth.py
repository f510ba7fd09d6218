"""Rules that are given nothing: they run from their first state, floats and integers side by side.

Both draw the same random bits, so that what differs between them is what rounding did.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scotopia.model import running
from scotopia.model.float_rule import FloatRule
from scotopia.model.growing.running import advance as advance_floats
from scotopia.model.growing.task import GrowingTask
from scotopia.model.score import MAX_PSNR
from scotopia.quantize import task as integer_task
from scotopia.quantize.growing import advance as advance_integers
from scotopia.quantize.integer_rule import IntegerRule

from .contact_sheet import caption
from .page import finite, gray
from .pictures import is_rgba, on_white
from .report import BACKGROUND, METHODS, MUTED, TEXT

Values = NDArray[np.float64]

#: Frames that a rule runs, and cells each way.
FRAMES, SIDE = 100, 64

#: Moments of a run that a picture shows, its beginning among them.
MOMENTS = 8

PANEL, MARGIN, GAP, LABEL = 160, 24, 8, 110


@dataclass(frozen=True, eq=False)
class Growth:
    """Runs of a rule, by "nca" for floats and "nca-int" for integers.

    Attributes
    ----------
    channel_names, steps_per_frame
        Of the rule.
    values
        (T + 1, C, H, W) of each run: the first state, then that after each frame.
    units
        (C,) what a code of the integer rule is worth; None without one.
    """

    channel_names: tuple[str, ...]
    steps_per_frame: int
    values: dict[str, Values]
    units: Values | None

    @property
    def difference(self) -> Values | None:
        """How far the integers are from the floats, (T + 1, C, H, W); None if one is missing."""
        if len(self.values) < 2:
            return None
        return self.values["nca-int"] - self.values["nca"]

    @property
    def rgba(self) -> bool:
        """Whether the first four channels are a picture, in all runs."""
        return all(map(is_rgba, self.values.values()))

    def psnr(self) -> Values | None:
        """Distance of the integers from the floats in dB, (T + 1, C).

        The peak of a channel is the span of the floats' numbers in the whole run.
        """
        difference = self.difference
        if difference is None:
            return None
        span = np.ptp(self.values["nca"], axis=(0, 2, 3))
        error = np.square(difference).mean((2, 3))
        least = np.maximum(np.square(span), np.finfo(float).tiny) * 10 ** (-MAX_PSNR / 10)
        with np.errstate(divide="ignore"):
            found: Values = 10 * np.log10(np.square(span) / np.maximum(error, least))
        return found

    def codes(self) -> tuple[Values, Values] | None:
        """Root mean square and largest distance of the integers from the floats, (T + 1, C) both.

        Counted in codes.
        """
        if self.difference is None or self.units is None:
            return None
        codes = self.difference / self.units[:, None, None]
        return np.sqrt(np.square(codes).mean((2, 3))), np.abs(codes).max((2, 3))


def grow(
    rules: Mapping[str, FloatRule | IntegerRule],
    frames: int = FRAMES,
    height: int = SIDE,
    width: int = SIDE,
    on_progress: Callable[[str], object] = lambda name: None,
) -> Growth:
    """Run rules for some frames.

    Parameters
    ----------
    rules
        One, or a float rule "nca" and the integer rule "nca-int" of the same channels.
    on_progress
        Called with the name of the rule after each frame.
    """
    integer = next((rule for rule in rules.values() if isinstance(rule, IntegerRule)), None)
    seed = _noise_seed(rules)
    found: dict[str, Values] = {}
    for name, rule in rules.items():
        nothing: list[dict[str, Any]] = [{}] * frames
        states = []
        if isinstance(rule, IntegerRule):
            states.append(rule.values(rule.initial_state(height, width)))
            for codes in integer_task.states(rule, height, width, nothing):
                states.append(rule.values(codes))
                on_progress(name)
        else:
            states.append(rule.initial.state(height, width))
            for state in running.states(rule, height, width, nothing, seed):
                states.append(state.astype(np.float64))
                on_progress(name)
        found[name] = np.stack(states)
    one = next(iter(rules.values()))
    units = None if integer is None else integer.units
    return Growth(one.channel_names, one.steps_per_frame, found, units)


def task_figures(
    task: GrowingTask,
    rules: Mapping[str, FloatRule | IntegerRule],
    on_progress: Callable[[str], object] = lambda name: None,
) -> dict[str, Any]:
    """Return what the growing task finds of rules, by "nca" or "nca-int", in dB to its target.

    How they grow, stay and heal, each from its own first state. Random bits go on where they were.
    """
    found: dict[str, Any] = {}
    height, width = task.target.shape[1:]
    for name, rule in rules.items():
        run = (
            advance_integers(rule, height, width)
            if isinstance(rule, IntegerRule)
            else advance_floats(rule, height, width, _noise_seed(rules))
        )
        grown = task.grow(run, rule.initial)
        on_progress(name)
        found[name] = {
            "steps": grown.steps,
            "psnr": finite(grown.psnr),
            **{what: round(getattr(grown, what), 3) for what in TASK_FIGURES},
        }
    return {"size": [height, width], **found}


def _noise_seed(rules: Mapping[str, FloatRule | IntegerRule]) -> int:
    """Seed of the random bits that all rules see: the integer rule's, if there is one."""
    seeds = [rule.noise_seed for rule in rules.values() if isinstance(rule, IntegerRule)]
    return seeds[0] if seeds else running.NOISE_SEED


#: What of a rule's growth is told, in the order in which it happens.
TASK_FIGURES = ("grown", "stayed", "healed")


def growth_table(growth: Growth) -> Table:
    """Table of the last frame: what each channel is, and how far integers are from floats."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("channel")
    for name in growth.values:
        for what in ("lowest", "mean", "highest"):
            table.add_column(f"{name}\n{what}", justify="right", no_wrap=True)
    psnr, codes = growth.psnr(), growth.codes()
    if psnr is not None:
        for title in ("distance\ndB", "codes\nrms", "codes\nlargest"):
            table.add_column(title, justify="right", no_wrap=True)
    for c, channel in enumerate(growth.channel_names):
        cells = []
        for values in growth.values.values():
            last = values[-1, c]
            cells += [f"{value:.3f}" for value in (last.min(), last.mean(), last.max())]
        if psnr is not None and codes is not None:
            cells += [f"{psnr[-1, c]:.2f}", f"{codes[0][-1, c]:.2f}", f"{codes[1][-1, c]:.1f}"]
        table.add_row(escape(channel), *cells)
    return table


def growth_json(growth: Growth) -> dict[str, Any]:
    """Value of the runs for machines, frame by frame from the first state on."""
    psnr, codes = growth.psnr(), growth.codes()
    any_run = next(iter(growth.values.values()))
    channels: dict[str, Any] = {}
    for c, channel in enumerate(growth.channel_names):
        channels[channel] = {
            name: {
                "lowest": finite(values[:, c].min((1, 2)), 5),
                "mean": finite(values[:, c].mean((1, 2)), 5),
                "highest": finite(values[:, c].max((1, 2)), 5),
            }
            for name, values in growth.values.items()
        }
        if psnr is not None and codes is not None:
            channels[channel]["difference"] = {
                "psnr": finite(psnr[:, c]),
                "codes_rms": finite(codes[0][:, c]),
                "codes_largest": finite(codes[1][:, c]),
            }
    return {
        "frames": len(any_run) - 1,
        "steps_per_frame": growth.steps_per_frame,
        "size": list(any_run.shape[2:]),
        "rgba": growth.rgba,
        "channels": channels,
    }


def growth_sheet(growth: Growth, title: str) -> Image.Image:
    """Draw the runs at some moments, one below the other: as a picture, or channel by channel."""
    count = len(next(iter(growth.values.values())))
    moments = np.unique(np.linspace(0, count - 1, MOMENTS).astype(int))
    rows: list[tuple[str, NDArray[np.uint8]]] = []  # (moments, H, W) or (moments, H, W, 3)
    if growth.rgba:
        for name, values in growth.values.items():
            rows.append((METHODS[name].short, gray(on_white(values[moments]))))
    for c, channel in enumerate(growth.channel_names):
        if growth.rgba and c < 4:
            continue
        low = min(values[:, c].min() for values in growth.values.values())
        high = max(values[:, c].max() for values in growth.values.values())
        for name, values in growth.values.items():
            shown = (values[moments, c] - low) / ((high - low) or 1)
            rows.append((f"{channel}, {METHODS[name].short}", gray(shown)))
    height, width = rows[0][1].shape[1:3]
    scale = max(1, PANEL // max(height, width))
    across, down = width * scale + GAP, height * scale + GAP
    top = MARGIN + 64
    image = Image.new(
        "RGB",
        (2 * MARGIN + LABEL + len(moments) * across - GAP, top + len(rows) * down + MARGIN),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(image)
    caption(draw, (MARGIN, MARGIN), title, image.width - 2 * MARGIN, TEXT)
    for column, moment in enumerate(moments):
        place = MARGIN + LABEL + column * across, top - 26
        caption(draw, place, f"frame {moment}", across, MUTED)
    for row, (label, pictures) in enumerate(rows):
        y = top + row * down
        caption(draw, (MARGIN, y), label, LABEL - GAP, MUTED)
        for column, pixels in enumerate(pictures):
            panel = Image.fromarray(pixels).convert("RGB")
            panel = panel.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            image.paste(panel, (MARGIN + LABEL + column * across, y))
    return image
