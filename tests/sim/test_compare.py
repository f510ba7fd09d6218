import numpy as np

from scotopia.graph.qformat import IntArray
from scotopia.sim.compare import Mismatch, compare

NAMES = ("x0", "sample", "trace")


def states() -> IntArray:
    return np.arange(4 * 3 * 2 * 5).reshape(4, 3, 2, 5)  # steps, channels, height, width


def test_equal_runs_have_no_mismatch() -> None:
    result = compare(states(), states(), NAMES)
    assert (result.cell_updates, result.mismatches, result.first) == (4 * 2 * 5, 0, None)


def test_first_mismatch_is_named() -> None:
    found = states()
    found[2, 1, 0, 4] = -7
    found[2, 1, 1, 0] = -8
    found[2, 2, 0, 0] = -9
    found[3, 0, 0, 0] = -10
    result = compare(states(), found, NAMES)
    expected = int(states()[2, 1, 0, 4])
    assert result.mismatches == 4
    assert result.first == Mismatch(2, "sample", 0, 4, expected, -7)
    assert str(result.first) == (
        f"step 2, cell (x 4, y 0), channel sample: expected {expected}, got -7"
    )


def test_missing_steps_are_mismatches() -> None:
    result = compare(states(), states()[:3], NAMES)
    assert result.cell_updates == 4 * 2 * 5
    assert result.mismatches == 3 * 2 * 5
    assert str(result.first) == "step 3, cell (x 0, y 0), channel x0: expected 90, no answer"


def test_no_answer_at_all_is_a_mismatch_everywhere() -> None:
    result = compare(states(), states()[:0], NAMES)
    assert result.mismatches == states().size
    assert result.first == Mismatch(0, "x0", 0, 0, 0, None)


def test_mismatch_before_the_answers_stop_is_named_first() -> None:
    found = states()[:3]
    found[1, 2, 1, 3] += 1
    first = compare(states(), found, NAMES).first
    assert first is not None
    assert (first.step, first.channel, first.y, first.x) == (1, "trace", 1, 3)
