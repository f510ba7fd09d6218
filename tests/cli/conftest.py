"""The command in this process, and a clip for it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from scotopia.cli import main as cli


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
