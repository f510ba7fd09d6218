from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scotopia.cli import board as boards
from scotopia.graph.errors import InputError
from scotopia.model.sampling import sample_mask
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import IntegerRule

Make = Callable[..., Any]  # a fixture of conftest.py

HEIGHT, WIDTH = 5, 6


@pytest.fixture
def rule(small_config: Make, random_rule: Make) -> IntegerRule:
    made: IntegerRule = random_rule(1, small_config(), Precision(state=10))
    return made


@pytest.fixture
def frames() -> Any:
    return np.random.default_rng(2).random((4, HEIGHT, WIDTH)).astype(np.float32)


@pytest.fixture
def shown(frames: Any) -> Any:
    return sample_mask(frames.shape, 0.3, 5)


def test_board_sees_what_the_golden_model_sees(
    fake_board: Make, rule: IntegerRule, frames: Any, shown: Any
) -> None:
    board = fake_board(rule, HEIGHT, WIDTH)
    played = list(boards.play(rule, frames, shown, board, compare=True))
    assert [frame.wrong for frame in played] == [0] * 4
    state = rule.initial_state(HEIGHT, WIDTH)
    for frame, visible, seen in zip(frames, shown, played, strict=True):
        for _ in range(rule.config.steps_per_frame):
            state = rule.step(state, rule.given(rule.sample_codes(frame), visible))
        np.testing.assert_array_equal(seen.prediction, rule.pixels(state[0]))
        error = np.mean((seen.prediction - frame) ** 2)
        assert seen.psnr == pytest.approx(-10 * np.log10(error), abs=1e-4)


def test_wrong_codes_are_counted(
    fake_board: Make, rule: IntegerRule, frames: Any, shown: Any
) -> None:
    played = boards.play(
        rule, frames, shown, fake_board(rule, HEIGHT, WIDTH, wrong=3), compare=True
    )
    assert [frame.wrong for frame in played] == [3] * 4


def test_board_that_has_run_is_not_compared(
    fake_board: Make, rule: IntegerRule, frames: Any, shown: Any
) -> None:
    board = fake_board(rule, HEIGHT, WIDTH, frames=7)
    with pytest.raises(InputError) as caught:
        next(boards.play(rule, frames, shown, board, compare=True))
    assert str(caught.value) == (
        "the board has run 7 frames already, so its state is not the golden model's: load the "
        "bitstream again"
    )
    assert next(boards.play(rule, frames, shown, board, compare=False)).wrong is None


def test_board_that_does_not_answer_is_named(fake_board: Make, rule: IntegerRule) -> None:
    board = fake_board(rule, HEIGHT, WIDTH)
    board.write = lambda data: len(data)
    with pytest.raises(InputError) as caught:
        boards.status(board)
    assert str(caught.value) == (
        "the board answered 0 of 6 bytes: check port, rule and size, and load the bitstream again"
    )


def test_unknown_board_is_refused(rule: IntegerRule, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        boards.build(rule, 4, 4, "icebreaker", tmp_path / "out", 115200)
    assert str(caught.value) == "board 'icebreaker' is unknown: choose one of ulx3s-85f"
    assert not (tmp_path / "out").exists()


#: Of nextpnr on a board whose clock was set to 200 MHz, in part.
FAILED = """
Info: Max frequency for clock '$glbnet$array_clock': 61.02 MHz (FAIL at 200.00 MHz)
Info: Routing..
Info: Max frequency for clock '$glbnet$array_clock': 71.35 MHz (FAIL at 200.00 MHz)
ERROR: Timing failed
"""


def test_array_that_is_too_slow_for_the_clock_is_told(tmp_path: Path) -> None:
    assert boards.why_failed(FAILED) == (
        "the array would run at 71.35 MHz, and the board's clock has 200.00 MHz, so there is no "
        "bitstream: choose a smaller array, or a rule of fewer bits"
    )
    assert boards.why_failed(FAILED.replace("FAIL", "PASS")) == ""


def test_design_of_which_a_tool_fails_leaves_no_bitstream(
    rule: IntegerRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("amaranth_boards")
    (tmp_path / "retina.bit").write_text("of another array")
    nextpnr = tmp_path / "nextpnr"
    nextpnr.write_text(f"#!/bin/sh\ncat <<'END'\n{FAILED}END\nexit 1\n")
    nextpnr.chmod(0o755)
    tools = {"yosys": "true", "nextpnr-ecp5": str(nextpnr), "ecppack": "touch"}
    monkeypatch.setattr(boards, "find_tool", tools.__getitem__)
    with pytest.raises(InputError, match=r"^the array would run at 71\.35 MHz, and "):
        boards.build(rule, 4, 4, "ulx3s-85f", tmp_path, 3_000_000)
    assert not (tmp_path / "retina.bit").exists()
    assert "timing-allow-fail" not in (tmp_path / "build_retina.sh").read_text()


def test_picture_is_two_rows_a_line() -> None:
    text = boards.as_blocks(np.array([[0, 1], [1, 0], [0.5, 0.5]], np.float32))
    upper, lower = text.splitlines()
    assert upper == "\x1b[38;5;232;48;5;255m▀\x1b[38;5;255;48;5;232m▀\x1b[0m"
    assert lower.count("▀") == 2


def test_frames_are_named_as_they_come(
    fake_board: Make, rule: IntegerRule, frames: Any, shown: Any
) -> None:
    said: list[str] = []
    played = boards.play(
        rule, frames, shown, fake_board(rule, HEIGHT, WIDTH, wrong=2), compare=True
    )
    done = boards.show(played, said.append, live=False)
    assert said[1] == f"frame 1: {done[1].psnr:.2f} dB, 2 codes wrong"
    assert len(said) == len(done) == 4
