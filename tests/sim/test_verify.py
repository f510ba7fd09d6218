from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.model.errors import InputError
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.ranges import Interval, RangeProof, prove
from scotopia.sim import verify as verification
from scotopia.sim.faults import FAULTS, drop_rounding, flip_weight_digit, swap_rows
from scotopia.sim.stimulus import Stimulus
from scotopia.sim.verify import Extent, Stage, run_program, verify

Make = Callable[..., IntegerRule]


@pytest.fixture
def frames() -> NDArray[np.float32]:
    """Two frames of noise, 6 x 6."""
    return np.random.default_rng(3).random((2, 6, 6)).astype(np.float32)


@pytest.fixture
def rule(small_config: Make, random_rule: Make) -> IntegerRule:
    """A small rule, whose arrays compile fast."""
    return random_rule(5, small_config())


def test_every_stage_agrees_and_every_fault_is_found(
    rule: IntegerRule, frames: NDArray[np.float32]
) -> None:
    names: list[str] = []
    stages = verify(
        rule, frames, Extent(4, 5, 2), density=0.3, faults=FAULTS, on_stage=names.append
    )
    assert [stage.name for stage in stages] == names
    assert [stage.expect_mismatch for stage in stages] == [False] * 4 + [True] * len(FAULTS)
    assert all(stage.passed for stage in stages)
    assert stages[3].cell_updates == 4 * 5 * 2 * rule.config.steps_per_frame
    assert stages[3].cycles > 0
    assert all("first at step" in stage.detail for stage in stages[4:])


def test_verilog_on_disk_is_what_is_checked(
    rule: IntegerRule, frames: NDArray[np.float32], tmp_path: Path
) -> None:
    emit(flip_weight_digit(Program.compile(rule)), 3, 3, tmp_path)
    *before, verilog = verify(rule, frames, Extent(3, 3, 2), density=0.5, verilog=tmp_path)
    assert all(stage.passed for stage in before)
    assert not verilog.passed
    assert verilog.mismatches > 0


def test_a_number_outside_its_proven_range_is_a_mismatch(
    rule: IntegerRule, frames: NDArray[np.float32]
) -> None:
    proof = prove(rule)
    channels = proof.channels | {"x0": Interval(0, 1)}
    shrunk = replace(rule, proof=RangeProof(channels, proof.results))
    first, *others = verify(shrunk, frames, Extent(3, 3, 2), density=0.5)
    assert first.name == "golden model in its proven ranges"
    assert not first.passed and "x0" in first.detail
    assert all(stage.passed for stage in others)


@pytest.mark.parametrize("fault", [flip_weight_digit, drop_rounding])
def test_a_program_fault_changes_one_instruction(
    rule: IntegerRule, fault: Callable[[Program], Program]
) -> None:
    program = Program.compile(rule)
    changed = fault(program)
    pairs = zip(program.instructions, changed.instructions, strict=True)
    assert sum(before != after for before, after in pairs) == 1


def test_the_wiring_fault_changes_one_row(rule: IntegerRule, tmp_path: Path) -> None:
    emit(Program.compile(rule), 3, 3, tmp_path)
    before = (tmp_path / "pixel_array.v").read_text().splitlines()
    swap_rows(tmp_path)
    after = (tmp_path / "pixel_array.v").read_text().splitlines()
    changed = [(a.strip(), b.strip()) for a, b in zip(before, after, strict=True) if a != b]
    assert changed == [
        (".north(north_edge),", ".north(shown_2),"),
        (".south(shown_2)", ".south(north_edge)"),
    ]


def test_the_wiring_fault_needs_a_row_inside(rule: IntegerRule, tmp_path: Path) -> None:
    emit(Program.compile(rule), 2, 2, tmp_path)
    with pytest.raises(InputError) as error:
        swap_rows(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'pixel_array.v'} has no row inside the borders: "
        "plant faults in an array of 3 rows or more"
    )


def test_the_interpreter_runs_all_frames_with_the_state_carried(
    rule: IntegerRule, frames: NDArray[np.float32]
) -> None:
    mask = np.random.default_rng(4).random(frames.shape) < 0.5
    stimulus = Stimulus.of(rule, frames, mask)
    assert np.array_equal(run_program(Program.compile(rule), stimulus), stimulus.expected)


def test_a_stage_that_compared_nothing_has_not_passed() -> None:
    assert not Stage("empty", "nothing", 0, 0, 0.0).passed
    assert not Stage("empty", "nothing", 0, 0, 0.0, expect_mismatch=True).passed


def test_a_crop_larger_than_the_clip_is_refused_before_anything_is_built(
    rule: IntegerRule, frames: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "Bench", None)
    with pytest.raises(InputError) as error:
        verify(rule, frames, Extent(7, 3, 1), clip_name="noise")
    assert str(error.value) == (
        "clip noise has 6 x 6 pixels, the array 3 x 7 cells: "
        "choose a larger clip or a smaller array"
    )
