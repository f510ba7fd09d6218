"""That the demo proves the Verilog which it leaves; the whole of it is run by `make demo`."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scotopia.cli import demo
from scotopia.graph.qformat import IntArray
from scotopia.hdl.emit import emit, read_manifest
from scotopia.hdl.program import Program
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim import verify as verification
from scotopia.sim.stimulus import Stimulus
from scotopia.sim.verify import PORTS_SHAPE, Stage

Run = Callable[..., tuple[int, str, str]]
SIDE = 5


@pytest.fixture
def short_clip(tmp_path: Path) -> Path:
    """21 frames of noise: one more than the warm-up."""
    path = tmp_path / "noise.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (21, 16, 16), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def rules(
    tmp_path_factory: pytest.TempPathFactory,
    small_config: Callable[..., RuleConfig],
    float_rule: Callable[..., Rule],
    random_rule: Callable[..., IntegerRule],
) -> Path:
    """Folder of rules of few numbers, in place of those that are shipped, and their Verilog."""
    folder = tmp_path_factory.mktemp("rules")
    float_rule(5, small_config()).save(folder / "retina")
    rule = random_rule(5, small_config())
    rule.save(folder / "retina-int")
    emit(Program.compile(rule), SIDE, SIDE, folder / "verilog")
    return folder


@pytest.fixture
def driven(rules: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes of arrays whose ports were driven.

    Nothing is compiled: a simulator computes what the rule does if it is given the Verilog of the
    rule, text by text, and zeros if it is given any other.
    """
    shapes: list[tuple[int, int]] = []

    def run(
        _bench: Any, _rule: Any, folder: Path, stimulus: Stimulus, library: Sequence[Path]
    ) -> tuple[IntArray, int]:
        texts = sorted((rules / "verilog").glob("*.v"))
        same = all((folder / one.name).read_bytes() == one.read_bytes() for one in texts)
        return stimulus.expected * same, 1

    def ports(_bench: Any, device: Any, *_given: Any) -> Stage:
        shapes.append((device.height, device.width))
        return Stage("ports", "", 1, 0, 0.0)

    def without_faults(*given: Any, **options: Any) -> list[Stage]:
        return verification.verify(*given, **{**options, "faults": False})

    monkeypatch.setattr(demo, "rule_path", rules.joinpath)
    monkeypatch.setattr(demo, "verify", without_faults)  # which test_verify.py is about
    monkeypatch.setattr(verification, "run_amaranth", lambda _, stimulus: (stimulus.expected, 1))
    monkeypatch.setattr(verification.StressBench, "run", run)
    monkeypatch.setattr(verification, "_emitted", lambda _program, _shape, folder: folder)
    monkeypatch.setattr(verification, "_ports", ports)
    return shapes


@pytest.mark.parametrize("edited", [False, True])
def test_the_demo_proves_the_folder_that_it_leaves(
    edited: bool,
    run: Run,
    short_clip: Path,
    rules: Path,
    driven: list[tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def emit(_program: Program, height: int, width: int, folder: Path) -> dict[str, Any]:
        assert height == width == SIDE
        shutil.copytree(rules / "verilog", folder)
        if edited:
            (folder / "pixel_row.v").write_text("module pixel_row; endmodule\n")
        return read_manifest(folder)

    monkeypatch.setattr(demo, "emit", emit)
    size = ("--height", SIDE, "--width", SIDE, "--frames", 1)
    out = tmp_path / "out"
    status, _, _ = run("demo", "--clip", short_clip, "--density", 0.5, *size, "--out", out)
    passed = {
        stage["name"]: stage["passed"]
        for stage in json.loads((out / "verify.json").read_text())["stages"]
    }
    assert passed.pop("golden model = Verilog (Verilator)") is not edited
    assert all(passed.values()) and status == edited
    assert driven == [PORTS_SHAPE]  # those of SIDE x SIDE cells would be slow
