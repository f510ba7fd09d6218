"""Plots of the experiments: labelled points, what pays, and the baselines as lines."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from scotopia.model.files import write_atomically

#: Ink and paper of a light page, and what a browser in dark mode shows instead.
INK, PAPER = "#1f2328", "#ffffff"
DARK = {INK: "#e6edf3", PAPER: "#0d1117"}

#: A series' colour and marker, of one lightness, so that they show on both papers.
STYLES = {
    "filter": ("#2f81f7", "o"),
    "random": ("#d97a00", "s"),
}
FRONT, BASELINE = "#8b949e", "#8b949e"


@dataclass(frozen=True)
class Point:
    """A trained rule in a plot: where, and what it is called; `start` decides its colour."""

    x: float
    psnr: float
    label: str
    start: str


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no cheaper one, and none of the same cost, equals in PSNR; cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.psnr)):
        if not front or point.psnr > front[-1].psnr:
            front.append(point)
    return front


def draw(
    path: Path,
    title: str,
    x_label: str,
    points: Sequence[Point],
    baselines: Mapping[str, float],
    *,
    log: bool = True,
    front: bool = True,
    ticks: Sequence[str] = (),
) -> None:
    """Write a plot of PSNR against `x_label` as SVG.

    Parameters
    ----------
    baselines
        PSNR by name.
    log
        Whether x is logarithmic.
    front
        Whether to draw the Pareto front; else the points of one start are joined.
    ticks
        Names of x = 0, 1, 2 and so on; an empty one is not written.
    """
    plt.rcParams.update({"svg.hashsalt": "scotopia", "font.size": 9, "svg.fonttype": "path"})
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    figure.patch.set_facecolor(PAPER)
    axes.set_facecolor(PAPER)
    if log:
        axes.set_xscale("log")
    if ticks:
        named = {place: name for place, name in enumerate(ticks) if name}
        axes.set_xticks(list(named), list(named.values()))
    axes.set_title(title, color=INK, loc="left")
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel("PSNR of clips never trained on, dB", color=INK)
    axes.tick_params(colors=INK, which="both")
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)

    for start, (colour, marker) in STYLES.items():
        chosen = sorted((p for p in points if p.start == start), key=lambda point: point.x)
        if chosen:
            axes.plot(
                [point.x for point in chosen],
                [point.psnr for point in chosen],
                linestyle="none" if front else "-",
                marker=marker,
                color=colour,
                linewidth=1,
                label=f"starts {'as a filter' if start == 'filter' else 'at random'}",
                zorder=3,
            )
    if front:
        best = pareto_front(points)
        axes.step(
            [point.x for point in best],
            [point.psnr for point in best],
            where="post",
            color=FRONT,
            linewidth=1,
            label="Pareto front",
            zorder=2,
        )
    # What lies far below what is compared would flatten it: named at the edge, with its number.
    values = [point.psnr for point in points] + sorted(baselines.values())[-2:]
    margin = 0.08 * (max(values) - min(values)) + 0.05
    low, high = min(values) - 2 * margin, max(values) + margin
    axes.set_ylim(low, high)
    axes.margins(x=0.12)
    below = [f"{name} {value:.2f}" for name, value in baselines.items() if value < low]
    shown = {name: value for name, value in baselines.items() if value >= low}
    for name, height in spread(shown, 0.032 * (high - low)).items():
        axes.axhline(shown[name], color=BASELINE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{name} {shown[name]:.2f}",
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=7.5,
        )
    if below:
        axes.text(
            0.99,
            0.01,
            "below: " + ", ".join(below),
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            color=INK,
            fontsize=7.5,
        )
    axes.legend(
        frameon=False,
        labelcolor=INK,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        borderaxespad=0.2,
        fontsize=8,
    )
    figure.draw_without_rendering()
    _label(axes, points, above=not front)

    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    write_atomically(path, adapt_to_dark(file.getvalue()))


def adapt_to_dark(svg: str) -> str:
    """Let a browser in dark mode exchange ink and paper; other viewers show the light ones."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda match: match.group(1) + style, svg, count=1)


def spread(heights: Mapping[str, float], distance: float) -> dict[str, float]:
    """Move heights apart, up and down alike, until each two are `distance` apart; lowest first."""
    groups: list[list[str]] = []
    middles: list[float] = []
    for name in sorted(heights, key=lambda name: heights[name]):
        groups.append([name])
        middles.append(heights[name])
        # A group that reaches into the one below joins it, around the mean of all its heights.
        while (
            len(groups) > 1
            and middles[-1] - middles[-2] < distance * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            upper = groups.pop()
            middles.pop()
            groups[-1] += upper
            middles[-1] = sum(heights[member] for member in groups[-1]) / len(groups[-1])
    return {
        name: middle + (place - (len(group) - 1) / 2) * distance
        for group, middle in zip(groups, middles, strict=True)
        for place, name in enumerate(group)
    }


def _label(axes: Axes, points: Sequence[Point], above: bool) -> None:
    """Write each label where none lies yet: beside, above or below its point."""
    taken = [
        Bbox.from_bounds(x - 4, y - 4, 8, 8)
        for x, y in axes.transData.transform([(point.x, point.psnr) for point in points])
    ]
    rows = (9, -9, 17, -17, 25, -25) if above else (0, 9, -9, 17, -17, 25, -25)
    columns = (0, 1, -1) if above else (1, -1, 0)
    places = [(7 * dx, dy) for dy in rows for dx in columns if dx or dy]
    for point in points:
        best = None
        for dx, dy in places:
            text = axes.annotate(
                point.label,
                (point.x, point.psnr),
                xytext=(dx, dy),
                textcoords="offset points",
                ha={-1: "right", 0: "center", 1: "left"}[(dx > 0) - (dx < 0)],
                va="center",
                color=INK,
                fontsize=7.5,
                zorder=4,
            )
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 + 4
            overlaps = sum(box.overlaps(other) for other in taken) + (0 if inside else 5)
            if best is None or overlaps < best[0]:
                if best is not None:
                    best[1].remove()
                best = (overlaps, text, box)
            else:
                text.remove()
            if overlaps == 0:
                break
        assert best is not None
        taken.append(best[2])
