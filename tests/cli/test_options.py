"""Every option of every command: at its ends it is taken, empty, absurd and beyond them refused."""

import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import typer
from PIL import Image

from scotopia.cli import main as cli
from scotopia.cli.board import BOARDS
from scotopia.cli.evaluate import BASELINES
from scotopia.cli.prove import PARTS
from scotopia.cli.quantize import COSTS
from scotopia.cli.rules import SHIPPED
from scotopia.cli.train_scotopic import SYNTHETIC_FRAMES, SYNTHETIC_SIDE
from scotopia.graph.qformat import Rounding
from scotopia.hdl.emit import emit
from scotopia.hdl.fpga import DEVICES, STAGES
from scotopia.hdl.program import Program
from scotopia.model import memory
from scotopia.model.checkpoint import Checkpoint
from scotopia.model.config import INPUTS, Border, Kind, Perception
from scotopia.model.growing.picture import LARGEST
from scotopia.model.losses import LOSSES
from scotopia.model.memory import BYTES_PER_WORKER
from scotopia.model.options import OPTIMIZERS
from scotopia.model.presets import PRESETS
from scotopia.model.score import SSIM_WINDOW
from scotopia.model.scotopic.training import least_bytes
from scotopia.quantize.formats import SCALES
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.post_training import METHODS

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., Any]

APP: Any = typer.main.get_command(cli.app)
COMMANDS: dict[str, Any] = APP.commands

#: A module of a user's.
MODULE = f"{Path(__file__).parents[2] / 'model/growing/module.py'}:GrowingNCA"

#: What each command cannot do without.
NEEDED: dict[str, tuple[str, ...]] = {
    "demo": ("--out", "o"),
    "train": ("--out", "o", "--synthetic", "0", "CLIP", "--validate", "CLIP"),
    "evaluate": ("CLIP",),
    "import": (MODULE, "--out", "o"),
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

#: What each command computes: nothing refused may get so far, and what is taken does.
HEAVY = {
    "demo": ("scotopia.cli.demo.methods",),
    "train": ("scotopia.cli.train._train",),
    "evaluate": ("scotopia.cli.evaluate._try_method",),
    "quantize": ("scotopia.quantize.post_training.run", "scotopia.cli.quantize.reconstruct"),
    "import": ("scotopia.cli.importing.trace",),
    "sweep": ("scotopia.cli.sweep.connect",),
    "export": (
        *("scotopia.cli.export.export_onnx", "scotopia.cli.export.export_qonnx"),
        "scotopia.quantize.c_export.write_atomically",
    ),
    "emit": ("scotopia.hdl.program.Program.compile",),
    "fpga": ("scotopia.cli.fpga.Program.compile",),
    "verify": (
        *("scotopia.cli.verify.float_stages", "scotopia.sim.verify.Stimulus.of"),
        *("scotopia.cli.verify.emit", "scotopia.cli.verify.as_device"),
    ),
    "prove": tuple(
        f"scotopia.cli.prove.{part}.prove"
        for part in ("random_rules", "automata", "stress", "formal", "mutation")
    ),
    "board": ("scotopia.cli.board.Program.compile",),
    "play": ("scotopia.cli.board.open_port",),
    "inspect": ("scotopia.cli.inspect.watch",),
}

SIDE, SHARE, BITS = ("0", "1025"), ("-0.1", "1.5"), ("1", "17")
MOST = cli.MOST

FLAGS = ("_list_presets", "resume", "feedback", "gates", "compare")

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
    "seeds": ("0", "1001"),
    "size": ("0", "1000000"),
    "frames": ("-1",),
    "clip": ("not/a/path",),
    "clips": ("not/a/path",),
    "rule": ("not/a/path",),
    "rules": ("not/a/path",),
    "calibrate": ("not/a/path",),
    "validate": ("not/a/path",),
    "validate_every": ("-1",),
    "synthetic": ("-1", f"{MOST}"),
    "crop": ("0", "129"),  # of a clip of 128 x 128
    "batch": ("0", f"{MOST}"),
    "chunk": ("0", f"{MOST}"),
    "iterations": ("0",),
    "densities": (",", "0,0.1,0.2", "nan,nan,nan", "0.1,0.2,0.3,0.4", "1e-9,1e-9,1e-9"),
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
    "workers": ("0", f"{MOST}"),
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
    **dict.fromkeys(("port", "scheduler", "out", "log", "json_file", "markdown", "report"), ()),
    "picture": ("o.gif",),
    **dict.fromkeys(FLAGS, ()),
}
OWN: dict[tuple[str, str], tuple[str, ...]] = {
    ("train", "task"): ("x", "growing", "not/a/path.py:Class"),
    ("train", "target"): ("not/a/path",),
    ("train", "args"): ("padding=1",),
    ("train", "loss"): ("x", "not/a/path.py:loss"),
    ("import", "module"): ("not/a/path", "not/a/path.py:Class", f"{MODULE}X"),
    ("import", "weights"): ("not/a/path",),
    ("import", "args"): ("1", "x", "x=y"),
    ("import", "method"): (),
    ("import", "channels"): ("0", "x"),
    ("import", "layout"): (),  # which `trace` refuses
    ("import", "event"): (),
    ("import", "random"): ("x=0", "x=1.5", "x=y"),
    ("import", "constant"): ("x", "x=y"),
    ("import", "start"): ("x", "not/a/path.npy"),
    ("import", "lines"): ("1", "65"),
    ("demo", "frames"): ("0", "119"),
    ("play", "frames"): ("0", "119"),
    ("verify", "frames"): ("-1", "119"),
    ("inspect", "frames"): ("0", "49", "119"),
    ("evaluate", "frames"): ("0", "-1"),
    ("sweep", "frames"): ("20", "-1"),
    ("sweep", "seeds"): (",", "-1", "x"),
    ("sweep", "weight_bits"): (",", "1", "17", "x"),
    ("sweep", "state_bits"): (",", "1", "17", "x"),
    ("prove", "rules"): ("0",),
    ("export", "name"): ("2x", "a-b"),
    ("verify", "faults"): (),
    ("fpga", "size"): ("0x4", "4", "4x1025", "x"),
}


#: The machine's memory, as far as the tests go: of it come the highest `batch` and the like.
MEMORY = 2**34
VIDEO = least_bytes(PRESETS["retina"].config, replace(PRESETS["retina"].options, batch=1), "cpu")
CLIP = 4 * SYNTHETIC_FRAMES * SYNTHETIC_SIDE**2


INTEGER = ("retina-int", "retina-shift")
#: That see clips, as most commands' rules have to.
FLOAT = tuple(name for name in SHIPPED if name not in INTEGER and "lizard" not in name)


def at_ends(low: object, high: object, also: str = "") -> tuple[str, ...]:
    return f"{low} {also}", f"{high} {also}"


def with_each(choices: Iterable[str], also: str = "") -> tuple[str, ...]:
    return tuple(f"{choice} {also}" for choice in choices)


#: The lowest and the highest value that each option takes, and each of its choices; behind it what
#: else is needed. A tuple in place of a text is all of a command's words.
ENDS: dict[str, tuple[str | tuple[str, ...], ...]] = {
    **dict.fromkeys(("height", "width"), at_ends(1, 1024)),
    **dict.fromkeys(
        ("real_share", "moving_share", "zoom", "blend", "restart", "cut", "blackout", "drift"),
        at_ends(0, 1),
    ),
    "flutter": at_ends(0, 1),
    "sensor_share": ("0", "1 --dead 0.1"),
    "dead": at_ends(0, 0.999),
    "stuck": at_ends(0, 0.999),
    "gain_mismatch": at_ends(0, 1),
    "photons": at_ends(1e-9, 1e9),
    "read_noise": at_ends(0, MOST, "--photons 1"),
    **dict.fromkeys(
        ("weight_bits", "update_bits", "state_bits", "hidden_bits", "gate_bits"), at_ends(2, 16)
    ),
    "density": at_ends(0.001, 1),
    "seed": at_ends(0, MOST),
    "seeds": at_ends(1, 1000, "--size 16"),
    "size": at_ends(1, 128, "--density 1"),
    "frames": at_ends(1, 118),
    "clip": ("davis_road", "CLIP"),
    "clips": ("davis_road", "CLIP"),
    "rule": (*FLOAT, *INTEGER),
    "rules": FLOAT,
    "calibrate": ("davis_road", "CLIP"),
    "validate": ("davis_road", "CLIP"),
    "validate_every": at_ends(0, MOST),
    "synthetic": at_ends(0, MEMORY // CLIP),
    "crop": at_ends(1, 128, "--zoom 0"),
    "batch": at_ends(1, MEMORY // VIDEO),
    "chunk": at_ends(1, 4096, "--batch 1"),
    "iterations": at_ends(1, MOST),
    "densities": ("1e-5,1e-5,1e-5", "1,1,1"),
    "contrast": at_ends(0.001, 1),
    "kind": with_each(get_args(Kind)),
    "channels": at_ends(2, 32),
    "hidden": at_ends(1, 128),
    "inputs": ("sample", ",".join(INPUTS)),
    "steps_per_frame": at_ends(1, 64),
    "border": with_each(get_args(Border)),
    "trace_bits": at_ends(1, 16),
    "perception": with_each(get_args(Perception)),
    "fire_rate": at_ends(0.001, 1),
    "block": ("1", "4 --channels 17"),
    "start": ("filter", "random", "retina"),
    "teacher": ("retina", "retina-207"),
    "quantize": ("retina", "retina-int"),
    "preset": with_each(PRESETS),
    "device": ("auto", "cpu"),
    "loss": with_each(LOSSES),
    "optimizer": with_each(OPTIMIZERS),
    "learning_rate": at_ends(1e-9, 1),
    "average": at_ends(0, 0.999999),
    "scales": with_each(SCALES),
    "dither": at_ends(0, 8),
    "rounding": with_each(Rounding),
    "baselines": ("all", "none", *BASELINES),
    "method": with_each(METHODS),
    "max_loss": at_ends(1e-9, MOST),
    "cells": at_ends(1, MOST),
    "cost": with_each(COSTS, "--max-loss 1"),
    "drift_steps": at_ends(9, MOST),  # of a rule with 8 steps a frame
    "workers": at_ends(1, MEMORY // BYTES_PER_WORKER),
    "to": ("c", "qonnx", ("export", "retina", "--out", "o", "--to", "onnx")),
    "name": ("a", "Z_9"),
    "stage": ("estimate", *STAGES),
    "frequency": at_ends(1e-6, MOST),
    "timeout": at_ends(1, MOST),
    "simulator": ("verilator", "icarus"),
    "row": ("CLIP",),
    "netlist": ("CLIP",),
    "library": ("CLIP --netlist CLIP",),
    "float_rule": ("retina",),
    "parts": with_each(PARTS),
    "faults": at_ends(1, MOST),
    "baud": at_ends(1, 15_625_000),
    "at": ("0,0", "127,127"),
    "port": ("nowhere",),
    "scheduler": ("tcp://127.0.0.1:1",),
    **dict.fromkeys(("out", "log", "json_file", "markdown", "report"), ("path",)),
    "picture": ("path.png",),
    **dict.fromkeys(FLAGS, ("",)),
}
EXTENT = ("--height", "2", "--width", "2", "--density", "1")
GROWING = ("train", "--out", "o", "--task", "growing", "--target", "lizard")
OWN_ENDS: dict[tuple[str, str], tuple[str | tuple[str, ...], ...]] = {
    ("train", "task"): ("scotopic", GROWING),
    ("train", "target"): (GROWING, (*GROWING[:-1], "PICTURE")),
    ("train", "args"): tuple(
        (*GROWING, "--args", args) for args in ("padding=0", "pool=8, steps=(1, 1)")
    ),
    ("import", "module"): (MODULE,),
    ("import", "weights"): (),
    ("import", "args"): (("import", *NEEDED["import"], "--args", "channels=5, hidden=3"),),
    ("import", "method"): ("forward",),
    ("import", "channels"): at_ends(1, 32),
    ("import", "layout"): ("BCHW", "BHWC"),
    ("import", "event"): ("x", "x:y"),
    ("import", "random"): ("x", "x=0.001", "x=1"),
    ("import", "constant"): ("x=0",),
    ("import", "start"): ("zeros", "cell"),
    ("import", "lines"): at_ends(2, 64),
    # A clip has 128 x 128 pixels, and of one pixel little arrives.
    **dict.fromkeys(
        [(command, side) for command in ("demo", "play") for side in ("height", "width")],
        at_ends(1, 128, "--density 1"),
    ),
    ("verify", "height"): ("1 --density 1", "1024 --clip LARGE --frames 1"),
    ("verify", "width"): ("1 --density 1", "1024 --clip LARGE --frames 1"),
    ("board", "height"): at_ends(1, 256),
    ("board", "width"): at_ends(1, 256),
    ("verify", "frames"): at_ends(0, 118),
    ("inspect", "frames"): at_ends(50, 118),
    ("evaluate", "frames"): at_ends(21, MOST),
    ("sweep", "frames"): at_ends(21, MOST),
    ("sweep", "seeds"): ("0", f"{MOST},0"),
    ("sweep", "rounding"): (*Rounding, ",".join(Rounding)),
    ("fpga", "size"): ("1x1", "1024x1024"),
    ("fpga", "device"): with_each(DEVICES),
    ("prove", "rules"): at_ends(1, MOST),
    ("verify", "faults"): ("",),
    ("quantize", "feedback"): ("", ("quantize", *NEEDED["quantize"], "--no-feedback")),
    **{(command, "rule"): INTEGER for command in ("fpga", "verify", "board", "play")},
    ("quantize", "rule"): (*FLOAT, "retina-int --max-loss 1"),
    ("emit", "rule"): (*INTEGER, "lizard-int"),
    ("export", "rule"): (*INTEGER, ("export", "retina", "--out", "o", "--to", "onnx")),
    ("inspect", "clip"): ("davis_road",),
    ("play", "clip"): ("davis_road", "CLIP --frames 25"),
    ("verify", "verilog"): ((*("verify", "RULE", "--verilog", "VERILOG"), *EXTENT),),
    ("sweep", "clips"): ("davis_road",),
    ("sweep", "calibrate"): ("davis_road",),
    ("train", "size"): at_ends(SSIM_WINDOW, 128, "--crop 6"),
    **{
        (command, "size"): at_ends(1, 128, "--height 1 --width 1 --density 1")
        for command in ("verify", "play")
    },
    ("demo", "size"): at_ends(SSIM_WINDOW, 128, "--height 1 --width 1 --density 1"),
    **{(command, "size"): at_ends(SSIM_WINDOW, 128) for command in ("evaluate", "sweep")},
    ("board", "name"): BOARDS,
    ("train", "dead"): at_ends(0, 0.999, "--sensor-share 1 --gain-mismatch 0.1"),
    ("train", "stuck"): at_ends(0, 0.999, "--sensor-share 1 --gain-mismatch 0.1"),
    ("train", "gain_mismatch"): at_ends(0, 1, "--sensor-share 1 --dead 0.1"),
    ("train", "photons"): at_ends(1e-9, 1e9, "--sensor-share 1"),
    ("train", "read_noise"): at_ends(0, MOST, "--photons 1 --sensor-share 1"),
    **{
        ("train", f"{part}_bits"): at_ends(2, 16, "--quantize retina")
        for part in ("weight", "update", "state", "hidden", "gate")
    },
    ("train", "scales"): with_each(SCALES, "--quantize retina"),
    ("train", "dither"): at_ends(0, 8, "--quantize retina"),
    ("train", "rounding"): with_each(Rounding, "--quantize retina"),
}


def parameters() -> Iterator[tuple[str, Any]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.name != "help":
                yield name, parameter


def is_flag(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def absurd(parameter: Any) -> Iterator[str]:
    """Values that no option of this type can mean; a flag can have none."""
    yield ""
    if is_flag(parameter):
        yield "1"
        return
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
TAKEN = [
    pytest.param(command, parameter, value, id=f"{command}-{parameter.name}-{number}")
    for command, parameter in parameters()
    for number, value in enumerate(
        OWN_ENDS.get((command, parameter.name), ENDS.get(parameter.name, ()))
    )
]


@pytest.mark.parametrize(
    ("of_all", "own"), [(BEYOND, OWN), (ENDS, OWN_ENDS)], ids=["refused", "taken"]
)
def test_every_option_has_values_to_be_tried(of_all: Any, own: Any) -> None:
    there = [(command, parameter.name) for command, parameter in parameters()]
    assert [one for one in there if one not in own and one[1] not in of_all] == []
    assert set(own) <= set(there) and set(of_all) <= {name for _, name in there}
    assert set(NEEDED) == set(HEAVY) == set(COMMANDS)


def test_every_flag_is_told_from_options_that_have_a_value() -> None:
    flags = {parameter.name for _, parameter in parameters() if is_flag(parameter)}
    assert flags == {*FLAGS, "faults"}


class BeganError(Exception):
    """Work has begun."""


@pytest.fixture
def command(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command in an empty folder: `BeganError` where work begins."""

    def begin(*_arguments: object, **_options: object) -> None:
        raise BeganError

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "app", APP)  # which Typer would make anew for each call
    monkeypatch.setattr(memory, "installed", lambda: MEMORY)
    # As if all of the extras were there.
    for users in ("scotopia.hdl.fpga", "scotopia.cli.board"):
        monkeypatch.setattr(f"{users}.find_tool", lambda name: name)
    for name in ("amaranth_boards", "amaranth_boards.ulx3s"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(ULX3S_85F_Platform=None))

    def command(name: str, *words: object) -> tuple[int, str, str]:
        for heavy in HEAVY[name]:
            pkgutil.resolve_name(heavy)  # imported before another that would keep what is set here
        for heavy in HEAVY[name]:
            monkeypatch.setattr(heavy, begin)
        return run(name, *words)

    return command


@pytest.fixture
def attempt(command: Run) -> Run:
    """A command that is refused: one line, and nothing is left by it."""

    def attempt(name: str, *words: object) -> tuple[int, str, str]:
        status, out, error = command(name, *words)
        assert status == 2 and not list(Path().iterdir())
        assert error.startswith("scotopia: ") and error.count("\n") == 1 and len(error) < 400
        return status, out, error

    return attempt


def words_of(command: str, parameter: Any, value: str) -> list[str]:
    """A command's words, with `value` for one of its parameters."""
    needed = list(NEEDED[command])
    if is_flag(parameter):
        return [*needed, f"{parameter.opts[0]}={value}"]
    if parameter.param_type_name == "argument":
        options = (number for number, word in enumerate(needed) if word.startswith("--"))
        return [value, *needed[next(options, len(needed)) :]]
    return [*needed, parameter.opts[0], value]


def names_of(parameter: Any, value: str) -> str:
    """A pattern of what may name an option or its value in a refusal."""
    name = parameter.name.strip("_").removesuffix("_file")
    names = {*parameter.opts, *(name.replace("_", between) for between in "_- ")}
    names |= {one.removesuffix("s") for one in names}
    names -= {"to", "at", "out", "name"}  # which stand in many a sentence
    # A digit alone may stand for anything, and a number may be told in other digits.
    quoted = {value} if len(value) > 3 else {repr(value)}
    return "|".join(re.escape(one) for one in sorted(names | quoted))


@pytest.mark.parametrize(("name", "parameter", "value"), CASES)
def test_a_value_that_means_nothing_is_one_line_and_leaves_nothing(
    name: str, parameter: Any, value: str, attempt: Run, clip: Path
) -> None:
    given = words_of(name, parameter, value)
    _, _, error = attempt(name, *(str(clip) if word == "CLIP" else word for word in given))
    assert "Error" not in error.split("(")[0]
    assert re.search(rf"(?<!\w)({names_of(parameter, value)})(?!\w)", error)


@pytest.fixture(scope="session")
def small_rule(
    tmp_path_factory: pytest.TempPathFactory, random_rule: Make, small_config: Make
) -> Path:
    path = tmp_path_factory.mktemp("rule") / "small.safetensors"
    random_rule(0, small_config()).save(path)
    return path


@pytest.fixture(scope="session")
def verilog(tmp_path_factory: pytest.TempPathFactory, small_rule: Path) -> Path:
    """An array of 2 x 2 cells for that rule, but for the text of its modules."""
    folder = tmp_path_factory.mktemp("verilog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scotopia.hdl.emit.verilog_modules", lambda *_: {})
        emit(Program.compile(IntegerRule.load(small_rule)), 2, 2, folder)
    return folder


@pytest.fixture(scope="session")
def large_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame for an array of 1024 x 1024 cells."""
    path = tmp_path_factory.mktemp("clip") / "large.npy"
    np.save(path, np.full((1, 1024, 1024), 99, np.uint8))
    return path


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, as large as targets may be."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.new("RGBA", (LARGEST, LARGEST), "red").save(path)
    return path


@pytest.fixture
def begun() -> None:
    """A training that can be resumed, in the folder that one is in."""
    preset = PRESETS["retina"]
    options, start = preset.options.describe(), {"start": "filter"}
    Checkpoint(1, [], vars(preset.config), options, {}, start, {}).write(Path("o.checkpoint"))


#: What a word of a command stands for.
FIXTURES = {"LARGE": "large_clip", "PICTURE": "picture", "VERILOG": "verilog", "RULE": "small_rule"}


@pytest.mark.parametrize(("name", "parameter", "value"), TAKEN)
def test_the_ends_of_an_option_and_its_choices_are_taken(
    name: str,
    parameter: Any,
    value: str | tuple[str, ...],
    command: Run,
    request: pytest.FixtureRequest,
    clip: Path,
) -> None:
    if isinstance(value, tuple):
        given = list(value)
    else:
        first, *more = value.split() or [""]
        given = [name, *words_of(name, parameter, first), *more]
    if is_flag(parameter):
        given[-1] = given[-1].removesuffix("=")
    if "--resume" in given:
        request.getfixturevalue("begun")
    paths = {"CLIP": clip}
    for word, fixture in FIXTURES.items():
        if word in given:
            paths[word] = request.getfixturevalue(fixture)
    try:
        status, _, error = command(*(paths.get(word, word) for word in given))
    except BeganError:
        return
    assert "--list-presets" in given and status == 0, error


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
