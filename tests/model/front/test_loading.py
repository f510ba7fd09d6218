from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scotopia.graph.errors import InputError
from scotopia.model.front import load_module

TEXT = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, channels, hidden=8):
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 1)
        if hidden > 90:
            raise RuntimeError("too wide")

class Other:
    pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TEXT)
    return path


def refusal(*arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_module(*arguments)
    return str(caught.value)


def test_makes_a_module_with_its_weights(file: Path, tmp_path: Path) -> None:
    module = load_module(f"{file}:Mine", {"channels": 4})
    state = {name: torch.randn(tensor.shape) for name, tensor in module.state_dict().items()}
    for number, saved in enumerate([state, {"model_state_dict": state, "epoch": 3}]):
        path = tmp_path / f"{number}.pt"
        torch.save(saved, path)
        again = load_module(f"{file}:Mine", {"channels": 4}, path)
        assert torch.equal(again.state_dict()["first.weight"], state["first.weight"])


def test_a_file_may_import_from_its_folder(file: Path) -> None:
    (file.parent / "beside_mine.py").write_text("NUMBER = 3\n")
    file.write_text("from beside_mine import NUMBER\n" + TEXT.replace("hidden=8", "hidden=NUMBER"))
    assert load_module(f"{file}:Mine", {"channels": 4}).state_dict()["first.weight"].shape[0] == 3


@pytest.mark.parametrize(
    ("where", "arguments", "said"),
    [
        ("{}", None, "module '{}' names no class: write file.py:Class"),
        ("{}x:Mine", None, "module {}x is no file: name a Python file"),
        ("{}:Yours", None, "module {} has no class Yours: it has Mine"),
        (
            "{}:Mine",
            None,
            "Mine cannot be made with arguments of none (missing a required argument: 'channels'): "
            "it takes (channels, hidden=8)",
        ),
        (
            "{}:Mine",
            {"channels": 4, "width": 1},
            "Mine cannot be made with arguments {{'channels': 4, 'width': 1}} (got an unexpected "
            "keyword argument 'width'): it takes (channels, hidden=8)",
        ),
        (
            "{}:Mine",
            {"channels": 4, "hidden": 99},
            "{}:10: Mine cannot be made (RuntimeError: too wide): give other arguments",
        ),
        ("{}:Other", None, "{}:Other is a Other, no nn.Module: name one"),
    ],
)
def test_classes(file: Path, where: str, arguments: dict[str, Any] | None, said: str) -> None:
    assert refusal(where.format(file), arguments) == said.format(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def :", "{}:1: this is no Python (invalid syntax): mend it"),
        (
            "import torch\nimport no_such_thing",
            "{0}:2: {0} cannot be imported (ModuleNotFoundError: No module named 'no_such_thing'): "
            "install what it needs",
        ),
        (
            "1 / 0",
            "{0}:1: {0} cannot be imported (ZeroDivisionError: division by zero): mend it",
        ),
        ("x = 1", "module {} has no class Mine: it has none that is an nn.Module"),
        ("\0", "{}:1: this is no Python (source code string cannot contain null bytes): mend it"),
    ],
)
def test_files(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    assert refusal(f"{file}:Mine").startswith(said.format(file)[:-6])


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(TEXT)
    assert refusal(f"{path}:Mine") == f"module {path} is no Python file: its name ends in .py"


def bytes_of(path: Path) -> None:
    path.write_bytes(b"no checkpoint")


SHAPES: list[tuple[Callable[[Path], None], str]] = [
    (lambda path: None, "weights {} is no file: name a checkpoint"),
    (bytes_of, "weights {} cannot be read as tensors alone ("),
    (lambda path: torch.save(Path("x"), path), "weights {} cannot be read as tensors alone ("),
    (lambda path: torch.save([1], path), "weights {} holds no state dict: save it by torch.save("),
    (
        lambda path: torch.save(
            {"first.weight": torch.zeros(8, 4, 1, 1), "b": torch.ones(1)}, path
        ),
        "weights {} are not those of Mine: missing first.bias, extra b: give the arguments with "
        "which it was trained",
    ),
    (
        lambda path: torch.save(
            {"first.weight": torch.zeros(8, 5, 1, 1), "first.bias": torch.zeros(8)}, path
        ),
        "weights {} have first.weight of 8x5x1x1, Mine has 8x4x1x1: give the arguments with which "
        "it was trained",
    ),
]


@pytest.mark.parametrize(("make", "said"), SHAPES)
def test_checkpoints(file: Path, tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "weights.pt"
    make(path)
    assert refusal(f"{file}:Mine", {"channels": 4}, path).startswith(said.format(path))
