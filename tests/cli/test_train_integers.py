"""`scotopia train --task --quantize`: an integer rule's weights are trained in their formats."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scotopia.graph.operations import Linear
from scotopia.model import native
from scotopia.quantize.integer_rule import GraphRule

Run = Callable[..., tuple[int, str, str]]

SMALL = "padding=1, channels=6, hidden=8, pool=8, steps=(4, 6), damage_from=0"
GROWING = ("train", "--task", "growing", "--target", "red.png", "--args", SMALL, "--batch", 4)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """These rules train in less time than the compiler takes."""
    monkeypatch.setattr(native, "available", lambda: False)


@pytest.fixture
def rules(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A float rule that grew, and what `scotopia quantize` made of it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (5, 5), "red").save("red.png")
    assert run(*GROWING, "--out", "red.safetensors", "--iterations", 8)[0] == 0
    assert run("quantize", "red.safetensors", "--out", "int.safetensors")[0] == 0
    return tmp_path / "red.safetensors", tmp_path / "int.safetensors"


def test_an_integer_rule_goes_on_growing(run: Run, rules: tuple[Path, Path]) -> None:
    before = GraphRule.load(rules[1])
    assert sum(int(mask.sum()) for masks in before.trained.values() for mask in masks) == 200
    status, out, _ = run(
        *(*GROWING, "--quantize", "int.safetensors", "--out", "again.safetensors"),
        *("--iterations", 4, "--learning-rate", 0.05),
    )
    assert status == 0 and "200 parameters, validation " in out
    after = GraphRule.load(rules[1].with_name("again.safetensors"))
    assert after.proof is not None
    assert after.training["task"]["name"] == "growing"
    assert after.graph.formats == before.graph.formats
    moved = {
        index: np.array_equal(old.weight, new.weight)
        for (index, old), (_, new) in zip(
            before.graph.of_kind(Linear), after.graph.of_kind(Linear), strict=True
        )
        if isinstance(old, Linear) and isinstance(new, Linear)
    }
    assert {index for index, same in moved.items() if not same} == before.trained.keys()
    assert len(moved) == 3  # the filters are not trained


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--quantize", "red.safetensors"),
            "rule red.safetensors is a Scotopia float graph, and a task trains integer rules in "
            "their formats: name what `scotopia quantize red.safetensors` writes",
        ),
        (
            ("--quantize", "int.safetensors", "--start", "red.safetensors"),
            "start red.safetensors is given beside --quantize int.safetensors: leave one out",
        ),
        (
            ("--quantize", "retina-int"),
            "rule retina-int is one of two layers: leave out --task",
        ),
        (
            ("--quantize", "int.safetensors", "--weight-bits", 4),
            "--weight-bits is for task scotopic: leave it out for growing",
        ),
    ],
    ids=["float", "start", "layered", "bits"],
)
def test_what_cannot_be_trained_so_is_refused(
    arguments: tuple[object, ...], said: str, run: Run, rules: tuple[Path, Path]
) -> None:
    status, _, error = run(*GROWING, "--out", "again.safetensors", *arguments)
    assert status == 2
    assert said in " ".join(error.split())
