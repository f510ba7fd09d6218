"""From a module of a user's to an integer rule, by the commands that the documents name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scotopia.graph.lfsr import RowRegisters
from scotopia.model.float_rule import FloatRule
from scotopia.model.front import load_module
from scotopia.quantize.integer_rule import GraphRule, IntegerRule

Run = Callable[..., tuple[int, str, str]]

MODULE = f"{Path(__file__).parents[2] / 'model/growing/module.py'}:GrowingNCA"

GrowingNCA = type(load_module(MODULE))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights of an automaton that grows, into anything."""
    torch.manual_seed(5)
    weights = GrowingNCA().state_dict()
    weights["update.weight"] *= 2
    torch.save(weights, tmp_path / "growing.pt")
    return tmp_path / "growing.pt"


def test_a_growing_nca_is_imported_and_quantized(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    floats, integers = tmp_path / "float.safetensors", tmp_path / "int.safetensors"
    words = ("--weights", checkpoint, "--start", "cell", "--out", floats)
    status, out, _ = run("import", MODULE, *words)
    assert status == 0 and "6 channels" in out
    rule = FloatRule.load(floats)
    assert rule.training["source"] == "module.py"
    assert run("quantize", floats, "--out", integers)[0] == 0
    made = IntegerRule.load(integers)
    assert isinstance(made, GraphRule) and made.proof is not None and made.noise_planes == 1
    state, registers = made.initial_state(12, 12), RowRegisters(12, 12, 1)
    assert (state[3:, 6, 6] > 0).all() and not state[:, 0, 0].any()
    for _ in range(6):
        state = made.step(state, {}, registers.planes(1))
    assert (state != 0).any((1, 2)).all()  # it grows, in all channels


def test_a_checkpoint_fills_the_module(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = GrowingNCA(channels=4, hidden=3)
    torch.save(module.state_dict(), tmp_path / "my.pt")
    out = tmp_path / "float.safetensors"
    words = ("--weights", tmp_path / "my.pt", "--args", "channels=4, hidden=3", "--out", out)
    assert run("import", MODULE, *words)[0] == 0
    linears = [one for one in FloatRule.load(out).graph.operations if hasattr(one, "weight")]
    found = max(linears, key=lambda one: one.count)
    weights = [one.weight for one in linears if one.count == 4]
    expected = module.update.weight.detach().numpy().reshape(4, 3, 1)
    assert found.count == 12 and np.allclose(weights[0], expected)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--args", "channels=4, sizes=3"), "GrowingNCA cannot be made with arguments"),
        (("--method", "grow"), "GrowingNCA has no method grow: name the one that does a step"),
        (("--channels", "5"), "module.py:"),
        (("--event", "x"), "inputs names x, which is no argument of GrowingNCA.forward"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    words: tuple[str, ...], line: str, run: Run, tmp_path: Path
) -> None:
    status, _, error = run("import", MODULE, *words, "--out", tmp_path / "o")
    assert status == 2 and line in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_rule_that_stays_zero_is_refused_with_its_remedy(run: Run, tmp_path: Path) -> None:
    floats = tmp_path / "float.safetensors"
    assert run("import", MODULE, "--out", floats)[0] == 0
    status, _, error = run("quantize", floats, "--out", tmp_path / "o")
    assert status == 2 and "its state stays 0. Import it with --start cell" in error


def test_the_module_is_not_replaced(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "growing.py"
    file.write_text(Path(MODULE.rpartition(":")[0]).read_text())
    status, _, error = run("import", f"{file}:GrowingNCA", "--out", file)
    assert status == 2 and "which is read: choose another path" in error
    assert "class GrowingNCA" in file.read_text()


def test_a_start_of_ones_own_is_taken(run: Run, tmp_path: Path) -> None:
    patch = np.zeros((6, 2, 3))
    patch[:, 0, 1] = 0.75
    np.save(tmp_path / "start.npy", patch)
    out = tmp_path / "float.safetensors"
    assert run("import", MODULE, "--start", tmp_path / "start.npy", "--out", out)[0] == 0
    assert (FloatRule.load(out).initial.state(2, 3) == patch).all()
    np.save(tmp_path / "start.npy", patch[:5])
    status, _, error = run("import", MODULE, "--start", tmp_path / "start.npy", "--out", out)
    assert status == 2 and "holds 5 channels, the module has 6: give a value for each" in error


def test_a_rule_without_events_is_verified_from_its_first_state(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floats, made = tmp_path / "float.safetensors", tmp_path / "int.safetensors"
    assert run("import", MODULE, "--start", "cell", "--out", floats)[0] == 0
    assert run("quantize", floats, "--out", made)[0] == 0
    seen: list[Any] = []

    def stages(_rule: Any, frames: Any, extent: Any, **_options: Any) -> list[Any]:
        seen.append((frames, extent))
        return []

    monkeypatch.setattr("scotopia.cli.verify.run_verification", stages)
    run("verify", made, "--height", "300", "--width", "7", "--frames", "90")  # larger than the clip
    ((frames, extent),) = seen
    assert frames.shape == (90, 300, 7) and not frames.any()
    assert (extent.height, extent.width, extent.frames) == (300, 7, 90)
    status, _, error = run("verify", made, "--frames", "0")
    assert status == 2 and "frames 0 is a whole clip, the rule sees none: give --frames" in error
