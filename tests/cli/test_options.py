"""Every option of every command, at its ends, empty and absurd; nothing heavy may begin."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from scotopia.cli import main as cli

Run = Callable[..., tuple[int, str, str]]

APP: Any = typer.main.get_command(cli.app)
COMMANDS: dict[str, Any] = APP.commands

#: What each command cannot do without.
NEEDED: dict[str, tuple[str, ...]] = {
    "demo": ("--out", "o"),
    "train": ("--out", "o", "--synthetic", "0", "CLIP", "--validate", "CLIP"),
    "evaluate": ("CLIP",),
    "quantize": ("retina", "--out", "o", "--calibrate", "CLIP"),
    "sweep": ("retina", "--out", "o", "--clip", "CLIP", "--calibrate", "CLIP"),
    "export": ("retina-int", "--out", "o"),
    "emit": ("retina-int", "--out", "o"),
    "fpga": (),
    "verify": (),
    "prove": (),
    "board": ("--out", "o"),
    "play": ("davis_road", "--port", "nowhere"),
    "inspect": ("retina", "--out", "o"),
}

#: What each command computes; nothing refused may get so far.
HEAVY = {
    "demo": ("scotopia.cli.demo.methods",),
    "train": ("scotopia.cli.train._Loop.run",),
    "evaluate": ("scotopia.cli.evaluate._try_method",),
    "quantize": ("scotopia.quantize.post_training.run", "scotopia.cli.quantize.reconstruct"),
    "sweep": ("scotopia.cli.sweep.connect",),
    "export": ("scotopia.quantize.qonnx_export.write_model",),
    "emit": ("scotopia.hdl.program.Program.compile",),
    "fpga": ("scotopia.cli.fpga.Program.compile",),
    "verify": ("scotopia.cli.verify.float_stages", "scotopia.sim.verify.Stimulus.of"),
    "prove": tuple(
        f"scotopia.cli.prove.{part}.prove"
        for part in ("random_rules", "automata", "stress", "formal", "mutation")
    ),
    "board": ("scotopia.cli.board.Program.compile",),
    "play": ("scotopia.cli.board.open_port",),
    "inspect": ("scotopia.cli.inspect.watch",),
}

SIDE, SHARE, BITS = ("0", "1025"), ("-0.1", "1.5"), ("1", "17")

#: Values of options that are beyond their ends, or name nothing: those of all commands, unless a
#: command has its own.
BEYOND: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("height", "width"), SIDE),
    **dict.fromkeys(
        (
            *("real_share", "moving_share", "zoom", "blend", "restart", "cut", "blackout"),
            *("drift", "flutter", "sensor_share", "dead", "stuck", "gain_mismatch"),
        ),
        SHARE,
    ),
    **dict.fromkeys(("weight_bits", "update_bits", "state_bits", "hidden_bits", "gate_bits"), BITS),
    "density": ("0", "1.5"),
    "seed": ("-1",),
    "seeds": ("0",),
    "size": ("0", "1000000"),
    "frames": ("-1",),
    "clip": ("not/a/path",),
    "clips": ("not/a/path",),
    "rule": ("not/a/path",),
    "rules": ("not/a/path",),
    "calibrate": ("not/a/path",),
    "validate": ("not/a/path",),
    "validate_every": ("-1",),
    "synthetic": ("-1", "100001"),
    "crop": ("0", "129"),  # of a clip of 128 x 128
    "batch": ("0", "4097"),
    "chunk": ("0", "4097"),
    "iterations": ("0",),
    "densities": (",", "0,0.1,0.2", "nan,nan,nan", "0.1,0.2,0.3,0.4"),
    "contrast": ("0", "1.5"),
    "photons": ("0", "1e10"),
    "read_noise": ("-1", "1"),  # without photons
    "kind": ("x",),
    "channels": ("0", "33"),
    "hidden": ("0", "129"),
    "inputs": (",", "x", "valid"),
    "steps_per_frame": ("0", "65"),
    "border": ("x",),
    "trace_bits": ("0", "17"),
    "perception": ("x",),
    "fire_rate": ("0", "1.5"),
    "block": ("0", "5"),
    "start": ("not/a/path",),
    "teacher": ("not/a/path",),
    "quantize": ("not/a/path",),
    "preset": ("x",),
    "device": ("x",),
    "loss": ("x",),
    "optimizer": ("x",),
    "learning_rate": ("0", "2"),
    "average": ("-0.1", "1"),
    "scales": ("x",),
    "dither": ("-1", "9"),
    "rounding": ("x", ","),
    "baselines": (",", "x"),
    "method": ("x",),
    "max_loss": ("0", "-1"),
    "cells": ("0",),
    "cost": ("x",),
    "drift_steps": ("0",),
    "workers": ("0",),
    "to": ("x",),
    "name": ("x",),
    "stage": ("x",),
    "frequency": ("0", "-1"),
    "timeout": ("0",),
    "simulator": ("x",),
    "verilog": ("not/a/path",),
    "row": ("not/a/path",),
    "netlist": ("not/a/path",),
    "library": ("not/a/path",),
    "float_rule": ("not/a/path",),
    "parts": ("x",),
    "faults": ("0",),
    "baud": ("0", "100000000"),
    "at": ("x", "1", "-1,0", "128,0", "1,2,3"),
    # Texts that may be anything, and outputs, which test_outputs.py is about.
    **dict.fromkeys(("port", "scheduler", "out", "log", "json_file", "picture", "markdown"), ()),
    "report": (),
}
OWN: dict[tuple[str, str], tuple[str, ...]] = {
    ("demo", "frames"): ("0", "119"),
    ("play", "frames"): ("0", "119"),
    ("verify", "frames"): ("-1", "119"),
    ("inspect", "frames"): ("0", "49", "119"),
    ("sweep", "frames"): ("20", "-1"),
    ("sweep", "seeds"): (",", "-1", "x"),
    ("sweep", "weight_bits"): (",", "1", "17", "x"),
    ("sweep", "state_bits"): (",", "1", "17", "x"),
    ("prove", "rules"): ("0",),
    ("export", "name"): ("2x", "a-b"),
    ("fpga", "size"): ("0x4", "4", "4x1025", "x"),
}


def parameters() -> Iterator[tuple[str, Any]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False) and parameter.name != "help":
                yield name, parameter


def absurd(parameter: Any) -> Iterator[str]:
    """Values that no option of this type can mean."""
    yield ""
    kind = str(parameter.type_descriptor.annotation)
    if "float" in kind:
        yield from ("nan", "inf", "-inf", "1e99", "x")
    elif "int" in kind:
        yield from ("1.5", "x", "1" + "0" * 30)


CASES = [
    pytest.param(command, parameter, value, id=f"{command}-{parameter.name}-{value[:12]}")
    for command, parameter in parameters()
    for value in (
        *absurd(parameter),
        *OWN.get((command, parameter.name), BEYOND.get(parameter.name, ())),
    )
]


def test_every_option_has_values_to_be_refused() -> None:
    missing = [
        f"{command} {parameter.name}"
        for command, parameter in parameters()
        if (command, parameter.name) not in OWN and parameter.name not in BEYOND
    ]
    assert not missing and set(NEEDED) == set(HEAVY) == set(COMMANDS)


class BeganError(Exception):
    """Work has begun."""


@pytest.fixture
def attempt(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command in an empty folder: `BeganError` where work begins, which nothing is left by."""

    def begin(*_arguments: object, **_options: object) -> None:
        raise BeganError

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "app", APP)  # which Typer would make anew for each call

    def attempt(command: str, *words: object) -> tuple[int, str, str]:
        for name in HEAVY[command]:
            monkeypatch.setattr(name, begin)
        status, out, error = run(command, *words)
        assert status == 2 and not list(folder.iterdir())
        assert error.startswith("scotopia: ") and error.count("\n") == 1 and len(error) < 400
        return status, out, error

    return attempt


@pytest.mark.parametrize(("command", "parameter", "value"), CASES)
def test_a_value_that_means_nothing_is_one_line_and_leaves_nothing(
    command: str, parameter: Any, value: str, attempt: Run, clip: Path
) -> None:
    needed = [str(clip) if word == "CLIP" else word for word in NEEDED[command]]
    if parameter.param_type_name == "argument":
        given = [value, *needed[needed.index("--out") if "--out" in needed else len(needed) :]]
    else:
        given = [*needed, parameter.opts[0], value]
    _, _, error = attempt(command, *given)
    assert "Error" not in error.split("(")[0]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("emit", "retina-int", "--out", ""), "--out is empty: give it a value"),
        (("fpga", "--out", ""), "--out is empty: give it a value, or leave it out"),
    ],
)
def test_only_what_is_not_required_may_be_left_out(
    words: tuple[str, ...], remedy: str, attempt: Run
) -> None:
    assert attempt(*words)[2] == f"scotopia: {remedy}\n"


# A verdict over nothing.


@pytest.fixture(scope="session")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames: all of them warm-up."""
    path = tmp_path_factory.mktemp("clip") / "short.npy"
    np.save(path, np.full((20, 16, 16), 99, np.uint8))
    return path


JUDGES = [
    pytest.param(words, id=words[0] + ("-search" if "--max-loss" in words else ""))
    for words in (
        ("evaluate", "CLIP"),
        ("sweep", "retina", "--out", "o", "--clip", "CLIP", "--calibrate", "CLIP"),
        ("quantize", "retina", "--out", "o", "--calibrate", "CLIP"),
        ("quantize", "retina-int", "--out", "o", "--max-loss", "1", "--calibrate", "CLIP"),
        ("inspect", "retina", "--clip", "CLIP"),
        ("play", "CLIP", "--port", "nowhere", "--frames", "20"),
        ("demo", "--clip", "CLIP"),
        ("verify", "--clip", "CLIP", "--frames", "20"),
    )
]


@pytest.mark.parametrize("words", JUDGES)
def test_a_clip_of_which_no_pixel_arrives_is_refused(
    words: tuple[str, ...], attempt: Run, tmp_path: Path
) -> None:
    path = tmp_path / "dim.npy"
    np.save(path, np.full((60, 16, 16), 99, np.uint8))
    given = [str(path) if word == "CLIP" else word for word in words]
    extent = "20 frame(s) of 16 x 16" if "20" in words else "60 frame(s) of 16 x 16"
    _, _, error = attempt(*given, "--density", "1e-9")
    assert error == (
        f"scotopia: clip dim: no pixel of {extent} arrives at density 1e-09 and seed 0, so that "
        "nothing would be seen: raise the density, or show more or larger frames\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        *(one for one in JUDGES if one.id in ("evaluate", "sweep", "quantize-search", "demo")),
        pytest.param(("train", "--out", "o", "--validate", "CLIP"), id="train"),
    ],
)
def test_a_clip_that_is_all_warm_up_is_refused_before_it_is_judged(
    words: tuple[str, ...], attempt: Run, short_clip: Path
) -> None:
    _, _, error = attempt(*(str(short_clip) if word == "CLIP" else word for word in words))
    assert error == (
        "scotopia: clip short: a clip of 20 frames cannot be scored, the first 20 are warm-up: "
        "give at least 21 frames\n"
    )
