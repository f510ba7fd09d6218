import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scotopia.cli.clips import clip_names, read_clip, read_clips
from scotopia.graph.errors import InputError

Run = Callable[..., tuple[int, str, str]]


def test_folder_of_clips_is_every_clip_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.npz", "a.MP4", "c.npy", ".hidden.npz", "notes.txt", "cover.png"):
        (tmp_path / name).touch()
    expected = [str(tmp_path / name) for name in ("a.MP4", "b.npz", "c.npy")]
    assert clip_names(["davis_road", str(tmp_path)]) == ["davis_road", *expected]
    assert capsys.readouterr().err == (
        f"scotopia: folder {tmp_path}: 2 of its entries are no clips and left out (cover.png)\n"
    )


def test_folder_of_images_is_one_clip(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    assert clip_names([str(tmp_path)]) == [str(tmp_path)]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """60 frames of noise, 36 x 34 pixels."""
    path = tmp_path / "small.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (60, 34, 36), dtype=np.uint8))
    return path


def test_a_smaller_clip_keeps_its_central_square(small: Path) -> None:
    assert read_clip(str(small)).frames.shape == (60, 34, 34)
    assert read_clip("davis_road").frames.shape == (118, 128, 128)
    with pytest.raises(InputError, match="choose a smaller size or a larger clip"):
        read_clip(str(small), 35)


def test_a_larger_array_sees_more_of_a_clip(tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.zeros((1, 300, 300), np.uint8))
    assert read_clip(str(tmp_path / "large.npy"), array=(40, 200)).frames.shape == (1, 200, 200)


def test_every_command_that_takes_a_clip_has_size(run: Run, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    commands: list[list[object]] = [
        ["evaluate", small],
        ["demo", "--clip", small, "--out", out],
        ["train", small, "--out", out],
        ["train", "davis_road", "--validate", small, "--out", out],
        ["quantize", "retina", "--calibrate", small, "--out", out],
        ["sweep", "retina", "--clip", small, "--out", out],
        ["verify", "--clip", small],
        ["play", small, "--port", "/dev/null"],
        ["inspect", "retina", "--clip", small],
    ]
    for command in commands:
        assert run(*command, "--size", 35)[::2] == (
            2,
            f"scotopia: clip {small}: its frames of 36 x 34 pixels are smaller than 35 x 35: "
            "choose a smaller size or a larger clip\n",
        )
    assert not out.exists()


def test_a_small_clip_is_looked_into_and_its_size_told(
    run: Run, small: Path, tmp_path: Path
) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    arguments = ("--clip", small, "--out", page, "--json", figures)
    assert run("inspect", "retina-207", *arguments)[0] == 0
    found = json.loads(figures.read_text())
    assert (found["width"], found["height"]) == (34, 34)


def test_size_of_clips_is_in_table_and_json(run: Run, small: Path, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    arguments = ("--rule", "retina-207", "--baselines", "none", "--json", target)
    status, out, _ = run("evaluate", small, *arguments)
    assert (status, "34 x 34" in out) == (0, True)
    assert json.loads(target.read_text())["size"] == {"small": [34, 34]}


def test_notes_are_lines_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in (1, 2, 4):
        Image.new("L", (8, 8)).save(folder / f"{number}.png")
    read_clips([str(folder)])
    assert capsys.readouterr().err == (
        f"scotopia: clip {folder}: its images are not numbered evenly (2.png, then 4.png): frames "
        "may be missing or twice\n"
    )
