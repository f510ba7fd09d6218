import getpass
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scotopia.graph.errors import InputError
from scotopia.hdl.emit import MANIFEST, emit, read_manifest, verilog_modules
from scotopia.hdl.program import Program
from scotopia.model.files import write_atomically
from scotopia.quantize.formats import Precision

Make = Callable[..., Any]  # a fixture of conftest.py

KINDS = ["pixel_row", "pixel_array", "sequencer", "row_buffer", "retina"]


@pytest.fixture(scope="module")
def program(small_config: Make, random_rule: Make) -> Program:
    config = small_config(channels=2, hidden=2, inputs=("valid",))
    return Program.compile(random_rule(0, config, Precision(3, 5, 4, 3)))


@pytest.fixture(scope="module")
def emitted(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emitted")
    emit(program, 3, 5, folder)
    return folder


@pytest.fixture
def folder(emitted: Path, tmp_path: Path) -> Path:
    """A copy, which a test may break."""
    return Path(shutil.copytree(emitted, tmp_path / "verilog"))


def test_every_kind_of_module_is_emitted_once(folder: Path) -> None:
    names = {
        path.name: re.findall(r"^module (\S+)\(", path.read_text(), re.MULTILINE)
        for path in folder.glob("*.v")
    }
    assert {name: modules[:1] for name, modules in names.items()} == {
        f"{kind}.v": [kind] for kind in KINDS
    }
    every = [module for modules in names.values() for module in modules]
    assert len(every) == len(set(every))


def test_text_hardly_grows_with_the_array(program: Program) -> None:
    small, large = verilog_modules(program, 8, 8), verilog_modules(program, 32, 32)
    lines = {name: (len(small[name].splitlines()), len(large[name].splitlines())) for name in KINDS}
    # 16 times the cells: an array's text grows with a side, all others stay.
    for name in ("pixel_row", "sequencer", "row_buffer", "retina"):
        assert lines[name][1] <= lines[name][0] + 8, name
    assert lines["pixel_array"][1] <= 4 * lines["pixel_array"][0] + 8


def test_array_has_a_row_for_each_line_and_each_row_its_memory(folder: Path) -> None:
    rows = re.findall(
        r"^  pixel_row (\S+) \(", (folder / "pixel_array.v").read_text(), re.MULTILINE
    )
    assert rows == [f"row_{y}" for y in range(3)]
    row = (folder / "pixel_row.v").read_text()
    assert re.findall(r"^  reg \[4:0\] memory \[(\d+):0\];", row, re.MULTILINE) == ["63"]


def test_manifest_describes_the_device(program: Program, tmp_path: Path) -> None:
    expected = {
        "top": "retina",
        "sources": [f"{kind}.v" for kind in KINDS],
        "height": 3,
        "width": 5,
        "channels": ["x0", "x1", "sample", "trace"],
        "steps_per_frame": 2,
        "cycles_per_step": program.cycles("step", 5),
        "word_bits": program.operand_bits,
        "planes": 64,
        "instructions": len(program.instructions),
        "code_bits": 5,
        "targets": [
            {"kind": "event", "name": "sample", "format": "Q1.4"},
            {"kind": "channel", "name": "x0", "format": "Q1.4"},
            {"kind": "channel", "name": "x1", "format": "Q1.4"},
            {"kind": "channel", "name": "sample", "format": "Q1.4"},
            {"kind": "channel", "name": "trace", "format": "UQ0.3"},
        ],
    }
    assert emit(program, 3, 5, tmp_path) == expected
    assert json.loads((tmp_path / MANIFEST).read_text()) == expected
    assert read_manifest(tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*expected["sources"], MANIFEST, "program.txt", "retina.core"]
    )


def test_program_is_listed_beside_the_verilog(program: Program, folder: Path) -> None:
    assert (folder / "program.txt").read_text() == program.listing()


def test_same_program_gives_the_same_files(program: Program, folder: Path, tmp_path: Path) -> None:
    emit(program, 3, 5, tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_files_tell_nothing_of_the_machine(emitted: Path) -> None:
    root = str(Path(__file__).parents[2])
    for path in emitted.iterdir():
        text = path.read_text()
        for secret in (root, str(emitted), str(Path.home()), "site-packages", ".py"):
            assert secret not in text, path.name
        assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text), path.name


@pytest.mark.parametrize(
    ("height", "width", "sentence"),
    [
        (0, 4, "height 0 is outside 1 to 1024: choose 16, for instance"),
        (4, 0, "width 0 is outside 1 to 1024: choose 16, for instance"),
        (-1, 4, "height -1 is outside 1 to 1024: choose 16, for instance"),
        (4, 1025, "width 1025 is outside 1 to 1024: choose 16, for instance"),
    ],
)
def test_side_out_of_range_is_refused_before_anything_is_written(
    program: Program, tmp_path: Path, height: int, width: int, sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        emit(program, height, width, tmp_path / "verilog")
    assert str(caught.value) == sentence
    assert not (tmp_path / "verilog").exists()


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_manifest(folder)
    return str(caught.value)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path}/manifest.json cannot be read (FileNotFoundError): "
        "give a folder written by `scotopia emit`"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "JSONDecodeError"),
        ('{"top": "retina"', "JSONDecodeError"),
        ("{}", "KeyError"),
        ("[]", "TypeError"),
        ('{"sources": 5}', "TypeError"),
        ('{"sources": [5]}', "TypeError"),
    ],
)
def test_broken_manifest_is_refused(folder: Path, text: str, error: str) -> None:
    (folder / MANIFEST).write_text(text)
    assert refusal(folder) == (
        f"{folder}/manifest.json cannot be read ({error}): give a folder written by `scotopia emit`"
    )


def test_missing_source_is_named(folder: Path) -> None:
    (folder / "row_buffer.v").unlink()
    assert refusal(folder) == f"{folder}/row_buffer.v is missing: emit the Verilog again"


def test_full_disk_leaves_no_manifest(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest vouches for the other files: it is written last."""

    def fail_late(path: Path, text: str) -> None:
        if path.name == "retina.v":
            raise OSError(28, "No space left on device")
        write_atomically(path, text)

    monkeypatch.setattr("scotopia.hdl.emit.write_atomically", fail_late)
    with pytest.raises(OSError, match="No space left"):
        emit(program, 3, 5, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "pixel_row.v" in names
    assert names.isdisjoint({"retina.v", MANIFEST})
