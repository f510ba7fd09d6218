"""The commands that README.md and docs/ show exist, with their options, and the Python runs.

All commands are parsed, each with its options and values; those that take seconds are run. Only
parsed are those that train, route, prove or verify, which take minutes to hours, those that need
the user's own clip or a board, and `scotopia demo`, which `make demo` runs.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from scotopia.cli import main as cli
from scotopia.cli.rules import rule_path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
OPTIONS = {
    option for command in COMMANDS.values() for one in command.params for option in one.opts
} | {
    option
    for command in COMMANDS.values()
    for one in command.params
    for option in one.secondary_opts
}


def shown() -> Iterator[tuple[str, list[str]]]:
    """Yield where a command of Scotopia's stands, and its words."""
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", prose)]
        for line in lines:
            if line.startswith("scotopia "):
                words = shlex.split(line, comments=True)[1:]
                yield path.name, ["--calibrate x" if word == "$CLIPS" else word for word in words]


SHOWN = [pytest.param(words, id=f"{name}: {' '.join(words)}") for name, words in shown()]


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_that_a_document_shows_is_parsed(words: list[str]) -> None:
    words = " ".join(words).split()
    name, *arguments = words
    if not arguments:  # the command is named, not shown
        assert name in COMMANDS
        return
    command = COMMANDS[name]
    if any(
        arguments[-1] in one.opts and not getattr(one, "is_flag", False) for one in command.params
    ):
        arguments = arguments[:-1]  # prose names an option without a value
    # In prose, what is not said of a command is left out: its rule, or where it writes to.
    for parameter in command.params:
        parameter.required = False
    with command.make_context(name, arguments) as context:
        assert context.params


QUICK = [
    words
    for _, words in shown()
    if len(words) > 1
    and (words[0] in ("emit", "export") or "estimate" in words)
    and "RULE" not in words
]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scotopia", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_a_quick_command_that_a_document_shows_succeeds(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(words, monkeypatch)
    assert "--out" not in words or (tmp_path / words[words.index("--out") + 1]).exists()


def test_qonnx_which_the_readme_names_beside_c_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="the extra onnx is optional")
    run(["export", "retina-int", "--to", "qonnx", "--out", str(tmp_path / "o")], monkeypatch)


@pytest.mark.slow  # by the whole clip, in 30 seconds
def test_the_readme_has_the_scores_that_evaluate_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "scores.json"
    run(["evaluate", "davis_road", "--json", str(target)], monkeypatch)
    scores = json.loads(target.read_text())["clips"]["davis_road"]
    table = (ROOT / "README.md").read_text().split("| method | PSNR, dB | SSIM |")[1]
    rows = re.findall(r"^\|[* ]*([a-z-]+)[^|]*\|[* ]*([\d.]+)[* ]*\|[* ]*([\d.]+)", table, re.M)
    assert {name: (f"{s['psnr']:.2f}", f"{s['ssim']:.3f}") for name, s in scores.items()} == {
        name: figures for name, *pair in rows[:5] for figures in [tuple(pair)]
    }


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    demo = tmp_path / "out" / "demo" / "retina-int.safetensors"  # which `make demo` leaves
    demo.parent.mkdir(parents=True)
    demo.write_bytes(rule_path("retina-int").read_bytes())
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
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
