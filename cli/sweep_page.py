"""A sweep as one page that stands alone: the front by name, plots, losses and drift."""

import io
import re
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from scotopia.model.score import WARM_UP
from scotopia.quantize.sweep import Summary

from .page import environment
from .sweep import COST_TITLES, Outcome, rule_path_of

#: Colours that stand for the page's own, light or dark: matplotlib writes these, `_inline` replaces
#: them.
INK, MUTED, LINE = "#010203", "#010204", "#010205"
SERIES = tuple(f"#01021{i}" for i in range(6))
_VARIABLES = {
    INK: "var(--text)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)},
}

#: A rounding's marker.
MARKERS = {
    "RND": "o",
    "TRN": "v",
    "TRN_ZERO": "^",
    "RND_ZERO": "s",
    "RND_INF": "D",
    "RND_MIN_INF": "P",
    "RND_CONV": "X",
}

SPAN = 6.0  # dB below the best design that a plot shows; what lies below stands at its edge
CLOSE = 0.1  # dB of loss that count as none
RED_AT = 2.0  # dB of loss that the table of losses shows in full red
LINES = 6  # drift runs that have a colour


def render_page(outcome: Outcome) -> str:
    """Value of a sweep as one HTML page that refers to nothing outside itself."""
    grid = outcome.grid
    best = max(outcome.summaries, key=lambda one: one.psnr, default=None)
    close = [one for one in outcome.summaries if one.loss <= CLOSE]
    slope = {run.design: run.slope for run in outcome.drifts}
    return (
        environment()
        .get_template("sweep.html")
        .render(
            outcome=outcome,
            grid=grid,
            names=", ".join(rule.name for rule in grid.rules),
            roundings=", ".join(grid.roundings),
            percent=f"{100 * grid.density:g}",
            steps=max((int(run.step[-1]) for run in outcome.drifts), default=grid.drift_steps),
            best=best,
            cheapest=min(close, key=lambda one: one.total_bits, default=None),
            close=CLOSE,
            costs=COST_TITLES,
            warm_up=WARM_UP,
            front=[(one, rule_path_of(one, Path()).as_posix()) for one in outcome.front],
            plots=[
                (title, _inline(_cost_plot(outcome, cost), cost))
                for cost, title in COST_TITLES.items()
                if outcome.fronts[cost]
            ],
            heat=_heat(outcome),
            red_at=RED_AT,
            drift=_inline(_drift_plot(outcome), "drift") if outcome.drifts else "",
            drift_clip=grid.clips[0].name,
            slope=slope,
            designs=sorted(outcome.summaries, key=lambda one: (-one.psnr, one.total_bits)),
            trained_on=sorted({clip.name for clip in grid.clips} - set(grid.counted)),
        )
    )


def _heat(outcome: Outcome) -> list[dict[str, Any]]:
    """Tables of the mean loss, one for each rule and rounding: weight bits by state bits."""
    loss = {one.design: one.loss for one in outcome.summaries}
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for design in outcome.grid.designs:
        found = tables.setdefault(
            (design.rule, design.rounding),
            {"rule": design.rule, "rounding": str(design.rounding), "rows": {}},
        )
        value = loss.get(design)
        heat = 0.0 if value is None else round(min(max(value / RED_AT, 0), 1), 3)
        found["rows"].setdefault(design.weight_bits, {})[design.state_bits] = (value, heat)
    return list(tables.values())


def _axes(figure: Figure, *heights: int) -> list[Axes]:
    """Axes above one another that look like the page."""
    drawn = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes in drawn[:, 0]:
        axes.set_facecolor("none")
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=MUTED, length=0)
        axes.xaxis.label.set_color(MUTED)
        axes.yaxis.label.set_color(MUTED)
        axes.spines[:].set_visible(False)
    return list(drawn[:, 0])


def _cost_plot(outcome: Outcome, cost: str) -> Figure:
    """PSNR against a cost: all designs, the front joined and called by its bits."""
    known = [one for one in outcome.summaries if getattr(one, cost) is not None]
    front = outcome.fronts[cost]
    low = max(one.psnr for one in known) - SPAN

    def place(one: Summary) -> tuple[float, float]:
        return getattr(one, cost), max(one.psnr, low)

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    (axes,) = _axes(figure, 1)
    axes.set_xlabel(COST_TITLES[cost])
    axes.set_ylabel("PSNR, dB")
    axes.xaxis.set_major_formatter("{x:,.8g}")
    axes.margins(x=0.1, y=0.1)
    rules = list(dict.fromkeys(one.design.rule for one in known))
    roundings = [str(rounding) for rounding in outcome.grid.roundings]
    several = len(rules) > 1
    colours = dict(zip(rules if several else roundings, cycle(SERIES), strict=False))
    for rule, rounding in product(rules, roundings):
        series = [
            one for one in known if (one.design.rule, one.design.rounding) == (rule, rounding)
        ]
        style: dict[str, Any] = {
            "marker": MARKERS[rounding],
            "color": colours[rule if several else rounding],
            "linewidths": 0,
            "zorder": 3,
        }
        for on_front in (False, True):
            places = [place(one) for one in series if (one in front) == on_front]
            x, y = np.reshape(places, (-1, 2)).T
            size, alpha = (48, 1.0) if on_front else (24, 0.5)
            axes.scatter(x, y, s=size, alpha=alpha, **style)
        if series:
            label = _plain(f"{rule}, {rounding}" if several else rounding)
            axes.scatter([], [], s=36, label=label, **style)
    axes.step(
        *np.transpose([place(one) for one in front]),
        where="post",
        color=MUTED,
        linewidth=1,
        label="Pareto front",
        zorder=2,
    )
    below = sum(one.psnr < low for one in known)
    if below:
        designs = "1 design" if below == 1 else f"{below} designs"
        axes.set_xlabel(f"{COST_TITLES[cost]}\nat the lower edge: {designs} below {low:.1f} dB")
    axes.legend(
        frameon=False,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        fontsize=8,
        handletextpad=0.3,
        columnspacing=1.2,
    )
    levels = {one.design.rule: one.float_psnr for one in known if one.float_psnr >= low}
    notes = _float_lines(axes, levels, several)
    figure.draw_without_rendering()
    names = [f"w{one.design.weight_bits} s{one.design.state_bits}" for one in front]
    taken = [note.get_window_extent() for note in notes]
    _label(axes, [place(one) for one in known], [place(one) for one in front], names, taken)
    return figure


def _float_lines(axes: Axes, levels: dict[str, float], several: bool) -> list[Annotation]:
    """Draw a line at each float rule's PSNR, and name those together that are close together."""
    close = 0.04 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    groups: list[list[str]] = []
    for rule in sorted(levels, key=lambda rule: levels[rule]):
        axes.axhline(levels[rule], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        if groups and levels[rule] - levels[groups[-1][-1]] < close:
            groups[-1].append(rule)
        else:
            groups.append([rule])
    return [
        axes.annotate(
            _plain(f"{', '.join(group)}, float" if several else "float"),
            (0.01, levels[group[-1]]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            va="bottom",
            color=MUTED,
            fontsize=7.5,
        )
        for group in groups
    ]


def _drift_plot(outcome: Outcome) -> Figure:
    """PSNR of float and fixed frame by frame, and below the loss, against the step.

    Designs on a front have a colour, the others are lines of the background.
    """
    best = max((one.psnr for one in outcome.front), default=0.0)
    front = [one.design for one in outcome.front if one.psnr > best - SPAN][:LINES]
    runs = sorted(outcome.drifts, key=lambda run: run.design not in front, reverse=True)
    colours = dict(zip(front, SERIES, strict=False))
    figure = Figure(figsize=(12.2, 5.6), layout="constrained")
    FigureCanvasSVG(figure)
    above, below = _axes(figure, 3, 2)
    above.set_ylabel("PSNR of the frame, dB")
    below.set_ylabel("loss, dB")
    below.set_xlabel("step")
    below.xaxis.set_major_formatter("{x:,.8g}")
    below.axhline(0, color=MUTED, linewidth=0.8)
    several = len({run.design.rule for run in runs}) > 1
    exact = {run.design.rule: run for run in runs}
    for (rule, run), dashes in zip(exact.items(), cycle(("-", "--", "-.", ":")), strict=False):
        text = _plain(f"{rule}, float" if several else "float")
        above.plot(
            run.step,
            run.float_psnr,
            color=INK,
            linewidth=2.2,
            linestyle=dashes,
            label=text,
            zorder=2,
        )
    for run in runs:
        colour = colours.get(run.design)
        style: dict[str, Any] = (
            {"color": MUTED, "alpha": 0.3, "linewidth": 0.8, "zorder": 1}
            if colour is None
            else {"color": colour, "linewidth": 1, "zorder": 3}
        )
        below.plot(run.step, run.loss, **style)
        if colour is not None:
            above.plot(run.step, run.psnr, label=_plain(str(run.design)), **style)
    shown = [run.loss[run.settled] for run in runs if run.design in colours or not colours]
    low, high = min(map(np.min, shown)), max(map(np.max, shown))
    margin = 0.1 * (high - low) + 0.05
    below.set_ylim(min(low - margin, 0), max(high + margin, 0))
    below.margins(x=0.01)
    above.legend(
        frameon=False,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        fontsize=8,
    )
    return figure


def _plain(text: str) -> str:
    """Value of a text with a user's names in it, in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _label(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    named: Sequence[tuple[float, float]],
    names: Sequence[str],
    taken: Sequence[Bbox],
) -> None:
    """Write names beside points, each where it hides least, none where another stands."""
    taken = [*taken] + [
        Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(np.array(points))
    ]
    written: list[Bbox] = []
    for point, name in zip(named, names, strict=True):
        choices: list[tuple[int, int, Annotation, Bbox]] = []
        for dx, dy in ((0, 10), (-18, 8), (-20, 0), (18, -8), (20, 0), (0, -11), (0, 20), (0, -21)):
            text = axes.annotate(
                name,
                point,
                xytext=(dx, dy),
                textcoords="offset points",
                ha="center",
                va="center",
                color=INK,
                fontsize=8,
                zorder=4,
            )
            box = text.get_window_extent()
            hidden = sum(box.overlaps(other) for other in (*taken, *written, *written))
            choices.append((hidden, len(choices), text, box))
        chosen: Annotation | None
        *_, chosen, box = min(choices, key=lambda choice: choice[:2])
        if any(box.overlaps(other) for other in written):
            chosen = None  # the table has all of them
        else:
            written.append(box)
        for *_, text, _ in choices:
            if text is not chosen:
                text.remove()


def _inline(figure: Figure, name: str) -> Markup:
    """Value of a figure as SVG for inside of the page, in the page's colours.

    `name` tells its parts from those of the other figures.
    """
    file = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.patch.set_alpha(0)
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    # Parts that nothing refers to, and whose ids all figures share.
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    return Markup(svg)
