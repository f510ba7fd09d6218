import re

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is in the optional extra `bench`")

from plots import INK, PAPER, Point, adapt_to_dark, draw, pareto_front, spread


def test_pareto_front_holds_what_no_cheaper_point_equals():
    points = [
        Point(x, psnr, label, "random")
        for x, psnr, label in (
            (3, 21.0, "dear and worse"),
            (1, 20.0, "cheap"),
            (2, 22.0, "best"),
            (2, 21.0, "same cost"),
            (4, 22.0, "no better"),
        )
    ]
    assert [point.label for point in pareto_front(points)] == ["cheap", "best"]


def test_dark_mode_exchanges_ink_and_paper():
    svg = adapt_to_dark(f'<svg width="1"><path style="fill: {INK}"/></svg>')
    assert svg.startswith('<svg width="1"><style>@media (prefers-color-scheme:dark)')
    assert f'[style*="fill: {PAPER}"]{{fill:#0d1117!important}}' in svg


def test_a_plot_is_the_same_each_time(tmp_path):
    points = [Point(1, 20.0, "a", "filter"), Point(2, 21.0, "b", "random")]
    files = [tmp_path / "1.svg", tmp_path / "2.svg"]
    for path in files:
        draw(path, "title", "cost", points, {"reference": 20.5, "far below": 10.0})
    first, second = (path.read_text() for path in files)
    assert first == second
    assert len(re.findall(rf"fill: {PAPER}", first)) > 0  # or dark mode would find nothing


def test_labels_are_spread_around_where_they_belong():
    found = spread({"a": 1.0, "b": 1.0, "far": 9.0, "c": 1.6}, 1.0)
    assert found == pytest.approx({"a": 0.2, "b": 1.2, "c": 2.2, "far": 9.0})
