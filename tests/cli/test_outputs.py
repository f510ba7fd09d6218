import inspect
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import pytest

from scotopia.cli import main as cli
from scotopia.cli.outputs import Reads, Writes, check_outputs
from scotopia.cli.rules import rule_path
from scotopia.graph.errors import InputError
from scotopia.model.files import locked

Run = Callable[..., tuple[int, str, str]]

#: Parameters that name rules or clips, wherever they stand.
INPUTS = {
    *("rule", "rules", "float_rule", "start", "teacher"),
    *("clip", "clips", "validate", "calibrate"),
}


def command(
    rule: Annotated[str, Reads()] = "retina",
    clips: Annotated[list[str] | None, Reads()] = None,
    verilog: Annotated[Path | None, Reads(("*.v",))] = None,
    out: Annotated[Path | None, Writes(suffix=".checkpoint")] = None,
    folder: Annotated[Path | None, Writes(folder=True, files=("proof.html",))] = None,
    json_file: Annotated[Path | None, Writes()] = None,
) -> None:
    """A command of all kinds of parameters."""


def refusal(**given: Any) -> str:
    """What is wrong with these arguments; empty if nothing is."""
    defaults = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    try:
        check_outputs(command, defaults | given)
    except InputError as error:
        return str(error)
    return ""


def test_every_path_of_every_command_is_marked() -> None:
    for info in cli.app.registered_commands:
        assert info.callback is not None
        for name, parameter in inspect.signature(info.callback).parameters.items():
            kind, *marks = get_args(parameter.annotation)
            found = [mark for mark in marks if isinstance(mark, Reads | Writes)]
            is_path = kind is Path or Path in get_args(kind) or list[Path] in get_args(kind)
            is_input = kind is not int and name in INPUTS
            assert len(found) == (is_path or is_input or bool(found)), (info.callback, name)


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    clip, link = tmp_path / "clips" / "a.npy", tmp_path / "link"
    clip.parent.mkdir()
    clip.touch()
    link.symlink_to(clip)
    said = f"would replace {clip}, which is read: choose another path"
    for out in (clip, tmp_path / "clips" / ".." / "clips" / "a.npy", link):
        assert refusal(clips=[str(clip)], out=out) == f"--out {out} {said}"
        assert refusal(clips=[str(clip.parent)], json_file=out) == f"--json {out} {said}"
    other = tmp_path / "hard"
    os.link(clip, other)
    assert refusal(clips=["davis_road", str(clip)], out=other) == f"--out {other} {said}"


def test_a_shipped_rule_is_an_input() -> None:
    path = rule_path("retina")
    assert refusal(out=path) == (
        f"--out {path} would replace {path}, which is read: choose another path"
    )


def test_what_a_command_does_not_read_of_a_folder_may_be_replaced(tmp_path: Path) -> None:
    for name in ("a.npy", "retina.v", "scores.json"):
        (tmp_path / name).touch()
    for name in ("scores.json", "retina.v"):
        assert refusal(clips=[str(tmp_path)], out=tmp_path / name) == ""
    assert "would replace" in refusal(verilog=tmp_path, out=tmp_path / "retina.v")
    assert refusal(verilog=tmp_path, folder=tmp_path) == ""


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ({"out": "a"}, {"json_file": "b/../a"}, "b/../a"),
        ({"out": "a.rule"}, {"json_file": "a.checkpoint"}, "a.checkpoint"),
        ({"folder": "a"}, {"json_file": "a/proof.html"}, "a/proof.html"),
        ({"folder": "a"}, {"json_file": "a"}, "a"),
        ({"out": "a"}, {"json_file": "a/b"}, "a/b"),
        ({"folder": "a"}, {"json_file": "a/b"}, ""),
        ({"out": "a"}, {"json_file": "c"}, ""),
    ],
)
def test_two_outputs_that_are_one_file_are_refused(
    tmp_path: Path, one: dict[str, str], other: dict[str, str], clash: str
) -> None:
    (tmp_path / "b").mkdir()
    given = {name: tmp_path / path for name, path in {**one, **other}.items()}
    (first, a), (second, b) = ((n.removesuffix("_file"), p) for n, p in given.items())
    sentence = f"--{first} {a} and --{second} {b} would both write {tmp_path / clash}: "
    assert refusal(**given) == (sentence + "choose two paths" if clash else "")


def test_two_outputs_may_be_one_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refusal(out=pipe, json_file=pipe) == ""


@pytest.mark.parametrize("name", ["demo", "inspect", "train", "evaluate", "quantize", "verify"])
def test_an_output_that_cannot_be_written_is_told_before_anything_else(
    run: Run, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    option = {"evaluate": "--json", "verify": "--report"}.get(name, "--out")
    rest = {"demo": [], "train": [], "verify": []}.get(name, ["nowhere"])
    status, out, err = run(name, *rest, option, file / "below")
    assert (status, out) == (2, "")
    assert err == f"scotopia: {file / 'below'}: Not a directory: choose a folder\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_second_training_into_one_file_is_refused(run: Run, clip: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "rule.safetensors", tmp_path / "log.csv"
    for path in (tmp_path / "rule.checkpoint", log):
        with locked(path):
            assert run("train", clip, "--out", out, "--log", log) == (
                2,
                "",
                f"scotopia: {path} belongs to a command that is running: wait for it, or choose "
                "another path\n",
            )
    assert not list(tmp_path.iterdir())


def test_standard_output_that_is_full_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli.console, "print", full)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    assert run("export", "retina-int", "--out", tmp_path / "step.h") == (
        2,
        "",
        "scotopia: standard output, or a file in /tmp: No space left on device: "
        "free some space, or choose another folder\n",
    )


def test_a_log_can_be_a_pipe(run: Run, clip: Path, tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    np.save(tmp_path / "held.npy", np.zeros((21, 128, 128), np.uint8))
    shape = ("--channels", 2, "--hidden", 2, "--steps-per-frame", 1, "--trace-bits", 4)
    effort = ("--synthetic", 0, "--iterations", 2, "--batch", 2, "--crop", 8, "--chunk", 2)
    held = ("--validate", tmp_path / "held.npy")
    out = tmp_path / "rule.safetensors"
    assert run("train", clip, *shape, *effort, *held, "--out", out, "--log", pipe)[0] == 0
    reader.join(10)
    assert [line.split(",")[0] for line in received[0].splitlines()] == ["iteration", "1", "2"]
