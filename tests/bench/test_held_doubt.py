"""The bench that holds a rule's doubt."""

import sys
from pathlib import Path

import held_doubt
import numpy as np
import pytest
import torch

from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule
from scotopia.model.scotopic.training import validate
from scotopia.model.video import Clip


@pytest.fixture
def rule(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made = Rule(RuleConfig(channels=2, hidden=3, steps_per_frame=2))
    with torch.no_grad():  # a doubt that jumps to 0.3 and stays
        made.update.weight[[1, 3]] = 0
        made.update.bias[1], made.update.bias[3] = 0.3, 2  # type: ignore[index]
    made.save(tmp_path / "rule.safetensors")
    return tmp_path / "rule.safetensors"


@pytest.fixture
def clip() -> Clip:
    return Clip("noise", np.random.default_rng(0).random((30, 8, 8), dtype=np.float32))


def test_a_doubt_held_where_it_is_changes_nothing(rule: Path, clip: Clip) -> None:
    own, held = Rule.load(rule), Rule.load(rule)
    held_doubt.hold_doubt(held, 0.3)
    assert validate(held, [clip]) == validate(own, [clip])
    held_doubt.hold_doubt(held, 0.2)
    assert validate(held, [clip]) != pytest.approx(validate(own, [clip]), abs=1e-5)
    assert held.perceive.weight.equal(own.perceive.weight)


def test_table(
    rule: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (40, 128, 128), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", frames=frames)
    arguments = ["--rule", rule, "--clips", tmp_path / "noise.npz", "--frames", 24, "--doubts", 0.3]
    monkeypatch.setattr(sys, "argv", ["held_doubt", *map(str, arguments)])
    held_doubt.main()
    *_, heads, line = capsys.readouterr().out.splitlines()
    assert heads.split() == ["clip", "fixed", "own", "0.3"]
    name, *numbers = line.split()
    assert (name, len(numbers)) == ("noise", 3)
    assert numbers[1] == numbers[2]  # the warm-up is not scored
