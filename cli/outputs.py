"""What a command reads and writes, which is checked in one place, before anything is computed."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from scotopia.graph.errors import InputError
from scotopia.model.files import check_writable, file_id, is_special

from .rules import rule_path

#: Suffix of what a training keeps beside its rule.
CHECKPOINT = ".checkpoint"

#: Files in the folder of `emit`, of a proof, of `sweep` and of `demo`.
EMITTED_FILES = (
    *("retina.v", "pixel_array.v", "pixel_row.v", "row_buffer.v", "sequencer.v"),
    *("program.txt", "retina.core", "manifest.json"),
)
PROOF_FILES = ("proof.html", "proof.json", "junit.xml")
SWEEP_FILES = ("results.jsonl", "sweep.csv", "drift.csv", "index.html")
DEMO_FILES = (
    *("report.html", "side_by_side.mp4", "side_by_side.png", "verify.json"),
    *("retina.safetensors", "retina-int.safetensors"),
    *(f"verilog/{name}" for name in EMITTED_FILES),
)


@dataclass(frozen=True)
class Reads:
    """Marks a parameter that names what is read: a rule, a clip, a file, or a folder of them.

    Attributes
    ----------
    patterns
        Of files in a folder that are read; those of clips if there is none.
    """

    patterns: tuple[str, ...] = ()

    def paths(self, path: Path) -> Iterator[Path]:
        """Yield all files that are read."""
        if not path.is_dir():
            yield path
        elif self.patterns:
            for pattern in self.patterns:
                yield from path.glob(pattern)
        else:
            from scotopia.model.clip_images import IMAGE_SUFFIXES

            from .clips import CLIP_SUFFIXES

            suffixes = IMAGE_SUFFIXES | CLIP_SUFFIXES
            yield from (file for file in path.iterdir() if file.suffix.lower() in suffixes)


@dataclass(frozen=True)
class Writes:
    """Marks a parameter that names what is written.

    Attributes
    ----------
    folder
        Whether that is a folder.
    files
        What is written into the folder, as far as its names are known beforehand.
    suffix
        Of one more file beside it; none if empty.
    """

    folder: bool = False
    files: tuple[str, ...] = ()
    suffix: str = ""

    def paths(self, path: Path) -> Iterator[tuple[Path, bool]]:
        """Yield all that is written, and whether it is a folder."""
        yield path, self.folder
        for name in self.files:
            yield path / name, False
        if self.suffix:
            yield path.with_suffix(self.suffix), False


@dataclass(frozen=True)
class _Output:
    option: str
    named: Path
    path: Path
    folder: bool

    def clashes(self, other: "_Output") -> bool:
        """Whether the two cannot both be there."""
        if self.folder and other.folder:
            return False
        mine, its = self.path.resolve(), other.path.resolve()
        return (
            (mine == its or _same(self.path, other.path))
            or (not self.folder and mine in its.parents)
            or (not other.folder and its in mine.parents)
        )


def check_outputs(function: Callable[..., object], given: Mapping[str, Any]) -> None:
    """Check that a command can write its outputs, to different files that it does not read.

    Parameters
    ----------
    function
        Its parameters are marked by `Reads` and `Writes`.
    given
        Arguments by name.

    Raises
    ------
    InputError, OSError
        If it cannot.
    """
    outputs: list[_Output] = []
    inputs: list[Path] = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = given[name]
        values = value if isinstance(value, list) else [value] if value is not None else []
        for mark in get_args(parameter.annotation)[1:]:
            if isinstance(mark, Reads):
                inputs += [file for one in values for file in mark.paths(rule_path(str(one)))]
            if isinstance(mark, Writes):
                option = "--" + name.removesuffix("_file")
                for named in values:
                    outputs += [_Output(option, named, *one) for one in mark.paths(named)]
    for output in outputs:
        check_writable(output.path, folder=output.folder)
    files = [output for output in outputs if not is_special(output.path)]
    for output in files:
        for read in inputs:
            if _same(output.path, read):
                raise InputError(
                    f"{output.option} {output.named} would replace {read}, which is read: "
                    "choose another path"
                )
    for one, other in combinations(files, 2):
        if one.option != other.option and one.clashes(other):
            raise InputError(
                f"{one.option} {one.named} and {other.option} {other.named} would both write "
                f"{other.path}: choose two paths"
            )


def _same(one: Path, other: Path) -> bool:
    found = file_id(one)
    return found is not None and found == file_id(other)
