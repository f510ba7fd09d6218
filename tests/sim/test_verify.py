import re
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.graph.intervals import Interval
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import Register
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim import verify as verification
from scotopia.sim.anywhere import COUNT, SIDE
from scotopia.sim.faults import drop_rounding, flip_digit
from scotopia.sim.port_faults import PORT_FAULTS
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
    rule: IntegerRule, frames: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []

    class Pool(ProcessPoolExecutor):
        def submit(self, call: Any, *arguments: Any) -> Any:  # type: ignore[override]
            sent.extend(arguments)
            return super().submit(call, *arguments)

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Pool)
    names: list[str] = []
    kept = tuple(fault for fault in PORT_FAULTS if fault.name == "a reset leaves error")
    monkeypatch.setattr(verification, "PORT_FAULTS", kept)
    stages = verify(rule, frames, Extent(4, 5, 2), density=0.3, faults=True, on_stage=names.append)
    assert sorted(stage.name for stage in stages) == sorted(names)
    assert [stage.name.removeprefix("golden model = ") for stage in stages[1:5]] == [
        *("program", "program, from any state", "Amaranth", "Verilog (Verilator)")
    ]
    assert [stage.expect_mismatch for stage in stages] == [False] * 6 + [True] * 4
    assert all(stage.passed for stage in stages)
    # No object that this thread uses is pickled by another.
    assert {type(argument) for argument in sent} == {bytes, int}
    assert stages[2].cell_updates == COUNT * SIDE**2
    assert stages[4].cell_updates == 4 * 5 * 2 * rule.config.steps_per_frame
    assert stages[4].cycles > 0
    assert all("first at step" in stage.detail for stage in stages[6:9])
    ports, fault = stages[5], stages[9]
    assert ports.name == "contract of the ports = Verilog (Verilator)"
    assert ports.compared.startswith("3 x 4 cells, 23 scenarios of ")
    assert ports.cell_updates > 200 * 3 * 4 and ports.cycles > 100_000
    assert ports.detail == "every port and register exercised"
    assert {f"registers: {register.name}" for register in Register} < {
        use.name for use in ports.ports
    }
    assert fault.name == "sequencer.v: a reset leaves error"
    assert re.fullmatch(r"clock \d+, error: expected 0, found 1", fault.detail)


def test_verilog_on_disk_is_what_is_checked(
    rule: IntegerRule, frames: NDArray[np.float32], tmp_path: Path
) -> None:
    emit(flip_digit(Program.compile(rule)), 3, 3, tmp_path)
    *before, verilog = verify(
        *(rule, frames, Extent(3, 3, 2)),
        **{"density": 0.5, "verilog": tmp_path, "waveforms": tmp_path, "ports": False},
    )
    assert all(stage.passed for stage in before)
    assert not verilog.passed
    assert verilog.mismatches > 0
    assert verilog.waveform == tmp_path / "mismatch.vcd"
    waveform = verilog.waveform.read_text()
    row = verilog.evidence.mismatch.y if verilog.evidence else None
    assert f"$scope module row_{row} $end" in waveform
    assert "instruction" in waveform and "operand_0" in waveform


@pytest.mark.parametrize(
    ("extent", "given", "shape", "driven"),
    [
        (Extent(5, 2, 1), False, None, (3, 2)),
        (Extent(5, 2, 1), True, None, (5, 2)),
        (Extent(5, 2, 1), True, (2, 3), (2, 3)),
        (Extent(5, 2, 1), False, (6, 1), (6, 1)),
    ],
)
def test_the_ports_are_those_of_the_given_verilog_unless_a_shape_is_asked_for(
    extent: Extent,
    given: bool,
    shape: tuple[int, int] | None,
    driven: tuple[int, int],
    rule: IntegerRule,
    frames: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[object, ...]] = []

    def ports(_bench: object, device: Any, folder: Path, library: object, _seed: int) -> Stage:
        seen.append(((device.height, device.width), folder, library))
        return Stage("ports", "", 1, 0, 0.0)

    monkeypatch.setattr(verification, "manifest_for", lambda *_: {})
    monkeypatch.setattr(verification, "_emitted", lambda _program, shape, folder: (shape, folder))
    monkeypatch.setattr(verification, "_ports", ports)
    agrees = lambda *given, **_: (given[-1].expected, 1)  # noqa: E731
    monkeypatch.setattr(verification, "run_amaranth", agrees)
    monkeypatch.setattr(verification.StressBench, "run", agrees)
    verilog, library = (tmp_path, [tmp_path / "cells.v"]) if given else (None, [])
    verify(
        *(rule, frames, extent),
        **{"density": 0.5, "verilog": verilog, "library": library, "ports_shape": shape},
    )
    ((found, folder, models),) = seen
    assert found == driven
    if given and shape is None:
        assert folder == verilog and models == library
    else:
        assert isinstance(folder, tuple) and folder[0] == driven and not models


def test_a_number_outside_its_proven_range_is_a_mismatch(
    rule: IntegerRule, frames: NDArray[np.float32]
) -> None:
    shrunk = replace(rule, proof=rule.with_proof().ranges.channels | {"x0": Interval(0, 1)})
    first, *others = verify(shrunk, frames, Extent(3, 3, 2), density=0.5, ports=False)
    assert first.name == "golden model in its proven ranges"
    assert not first.passed and "x0" in first.detail
    assert all(stage.passed for stage in others)


@pytest.mark.parametrize("fault", [flip_digit, drop_rounding])
def test_a_program_fault_changes_one_instruction(
    rule: IntegerRule, fault: Callable[[Program], Program]
) -> None:
    program = Program.compile(rule)
    changed = fault(program)
    pairs = zip(program.instructions, changed.instructions, strict=True)
    assert sum(before != after for before, after in pairs) == 1


def test_the_interpreter_runs_all_frames_with_the_state_carried(
    rule: IntegerRule, frames: NDArray[np.float32]
) -> None:
    mask = np.random.default_rng(4).random(frames.shape) < 0.5
    stimulus = Stimulus.of(rule, frames, mask)
    assert np.array_equal(run_program(Program.compile(rule), stimulus), stimulus.expected)


def test_what_is_not_installed_is_skipped_and_seen(
    rule: IntegerRule, frames: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda tool: None if "verilog" in tool else found(tool))
    monkeypatch.setattr(verification, "no_yosys", lambda: "yosys is not installed")
    # The claim is of the last two stages; that these slow ones agree, test_every_stage_agrees says.
    slow = lambda *given, **_: (given[-1].expected, 1)  # noqa: E731
    monkeypatch.setattr(verification, "run_amaranth", slow)
    monkeypatch.setattr(verification.StressBench, "run", slow)
    *stages, icarus, netlist = verify(
        rule, frames, Extent(2, 2, 1), density=0.5, gates=True, ports=False
    )
    assert all(stage.passed for stage in stages)
    assert not icarus.passed and not netlist.passed
    assert icarus.skipped and icarus.detail.startswith("iverilog is not on the path")
    assert netlist.skipped and netlist.detail == "yosys is not installed"
    assert icarus.cell_updates == netlist.cell_updates == 0


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


def test_wrong_program_fails_from_states_that_no_clip_leads_to(rule: IntegerRule) -> None:
    stage = verification._steps_from_anywhere(flip_digit(Program.compile(rule)))
    assert not stage.passed
    assert stage.detail.startswith("of state step 0, cell")
