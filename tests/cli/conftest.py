"""The command in this process, and a clip for it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from scotopia.cli import main as cli
from scotopia.graph.build import Builder
from scotopia.graph.surroundings import Event, Initial
from scotopia.model.float_rule import FloatRule
from scotopia.quantize.integer_rule import GraphRule
from scotopia.quantize.measure import Episode, episodes, measure
from scotopia.quantize.quantizer import Choice, quantize


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command as a user types it, but in this process: exit status, output, errors."""

    here, end = os.getpid(), os._exit

    def leave(status: int) -> NoReturn:
        if os.getpid() == here:  # a signal ends the command, not the tests
            sys.exit(status)
        end(status)  # a worker that was forked ends, and runs no tests

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scotopia", *map(str, arguments)])
        monkeypatch.setattr(os, "_exit", leave)
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 frames of a moving gradient, 128 x 128."""
    ramp = np.arange(128) * 2
    frames = np.stack([np.tile(np.roll(ramp, t), (128, 1)) for t in range(25)])
    path = tmp_path_factory.mktemp("clip") / "ramp.npz"
    np.savez_compressed(path, frames=frames.astype(np.uint8))
    return path


@pytest.fixture(scope="session")
def fill_in() -> tuple[FloatRule, GraphRule]:
    """A rule of one's own that sees video: pixels move towards their neighbours."""
    build = Builder()
    x, held = build.channels({"light": None, "held": None})
    sample, valid = build.inputs({"sample": None, "valid": None})
    now = build.where(valid, 1.0, (held - 1 / 64).maximum(0))
    blur = np.array([1.0, 2, 1, 2, 4, 2, 1, 2, 1]).reshape(1, 1, 9) / 16
    around = build.linear(x, blur, [0.0], "replicate")
    light = build.where(valid, sample, x + (1 - now) * (around - x))
    graph = build.graph({"light": light, "held": now})
    rule = FloatRule(graph, 4, (Event("sample", "valid"),), training={"clips": ["seen"]})
    rng = np.random.default_rng(0)
    frames = [
        rule.given(rng.uniform(-1, 1, (12, 12)), rng.random((12, 12)) < 0.1) for _ in range(20)
    ]
    return rule, quantize(rule, measure(rule, [Episode(12, 12, frames)]), Choice())


@pytest.fixture(scope="session")
def growing() -> tuple[FloatRule, GraphRule]:
    """A rule that is given nothing: from one cell it grows, by chance, a coloured square."""
    build = Builder()
    names = "red", "green", "blue", "alpha", "hidden"
    state = build.channels(dict.fromkeys(names))
    alpha = state[3]
    near = build.window(alpha) > 0.125
    fires = build.random(1) < 0.5
    grown = build.where(near, (alpha + 0.25).minimum(1), alpha)
    after = build.where(fires, grown, alpha)
    hidden = build.linear(state[3:], np.full((1, 2, 9), 0.04), [0.0]).maximum(0).minimum(1)
    colours = [build.constant(share) * after for share in (0.75, 0.5, 0.25)]
    graph = build.graph(dict(zip(names, (*colours, after, hidden), strict=True)))
    rule = FloatRule(graph, 2, initial=Initial.cell(np.array([0.0, 0, 0, 1, 0])))
    return rule, quantize(rule, measure(rule, episodes(1, 12, 12)), Choice())
