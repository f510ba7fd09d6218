import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cocotb_tools.runner
import numpy as np
import pytest

from scotopia.graph.errors import InputError
from scotopia.hdl.emit import MANIFEST, emit
from scotopia.hdl.program import Program
from scotopia.model.config import INPUTS
from scotopia.quantize.formats import Precision
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim import simulators
from scotopia.sim.compare import Comparison, compare
from scotopia.sim.simulators import Bench
from scotopia.sim.stimulus import Stimulus

Make = Callable[..., Any]  # a fixture of conftest.py

HEIGHT, WIDTH = 3, 4


@pytest.fixture(scope="module")
def make(small_config: Make, random_rule: Make) -> Callable[..., IntegerRule]:
    def make(kind: str = "gated", border: str = "replicate") -> IntegerRule:
        config = small_config(
            kind=kind, border=border, channels=2, hidden=2, steps_per_frame=2, inputs=INPUTS
        )
        rule: IntegerRule = random_rule(0, config, Precision(3, 5, 4, 3))
        return rule

    return make


@pytest.fixture(scope="module")
def rule(make: Make) -> IntegerRule:
    made: IntegerRule = make()
    return made


@pytest.fixture(scope="module")
def stimulus(rule: IntegerRule, random_stimulus: Make) -> Stimulus:
    made: Stimulus = random_stimulus(rule, 1, 3, HEIGHT, WIDTH)
    return made


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """All tests share one."""
    with Bench("verilator") as bench:
        yield bench


@pytest.fixture
def folder(rule: IntegerRule, tmp_path: Path) -> Path:
    emit(Program.compile(rule), HEIGHT, WIDTH, tmp_path / "verilog")
    return tmp_path / "verilog"


def run(bench: Bench, rule: IntegerRule, folder: Path, stimulus: Stimulus) -> Comparison:
    states, _cycles = bench.run(rule, folder, stimulus)
    return compare(stimulus.expected, states, rule.config.channel_names)


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1, f"{path.name} has nothing like {pattern}"
    path.write_text(text)


def test_verilog_is_the_golden_model(
    bench: Bench, rule: IntegerRule, folder: Path, stimulus: Stimulus
) -> None:
    states, cycles = bench.run(rule, folder, stimulus)
    np.testing.assert_array_equal(states, stimulus.expected)
    steps = len(stimulus.expected)
    manifest = json.loads((folder / MANIFEST).read_text())
    # 4 channels; two clocks a pixel, and as many a row as a word has bits.
    reading = 4 * HEIGHT * (2 * WIDTH + manifest["word_bits"])
    assert (
        steps * (manifest["cycles_per_step"] + reading)
        < cycles
        < 2 * steps * (manifest["cycles_per_step"] + reading)
    )


def test_a_wrong_neighbour_of_one_row_is_caught(
    bench: Bench, rule: IntegerRule, folder: Path, stimulus: Stimulus
) -> None:
    # Row 1 sees its southern neighbours in the north, too.
    pattern = r"(pixel_row row_1 \([\s\S]*?\.north\()north_edge"
    edit(folder / "pixel_array.v", pattern, r"\1shown_2")
    result = run(bench, rule, folder, stimulus)
    assert result.first is not None
    assert re.fullmatch(
        r"step \d+, cell \(x \d, y \d\), channel x\d: expected -?\d+, got -?\d+", str(result.first)
    )
    # What row 1 sees wrongly in the first step is wrong in it, and in no other row.
    assert (result.first.step, result.first.y) == (0, 1)


@pytest.mark.slow
def test_device_that_never_answers_is_a_mismatch_and_no_hang(
    bench: Bench, rule: IntegerRule, folder: Path, stimulus: Stimulus
) -> None:
    edit(folder / "retina.v", r"\.pixels__valid\(pixels__valid\)", ".pixels__valid()")
    edit(folder / "retina.v", r"^endmodule", "  assign pixels__valid = 1'b0;\nendmodule")
    result = run(bench, rule, folder, stimulus)
    assert result.mismatches == stimulus.expected.size
    assert str(result.first).endswith("no answer")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gated", "residual"])
@pytest.mark.parametrize("border", ["zero", "replicate", "wrap"])
def test_verilog_of_every_kind_and_border_is_the_golden_model(
    kind: str, border: str, bench: Bench, make: Make, random_stimulus: Make, tmp_path: Path
) -> None:
    rule = make(kind, border)
    stimulus = random_stimulus(rule, 2, 2, HEIGHT, WIDTH)
    emit(Program.compile(rule), HEIGHT, WIDTH, tmp_path)
    assert run(bench, rule, tmp_path, stimulus).mismatches == 0


@pytest.mark.slow
def test_single_cell_is_the_golden_model(
    bench: Bench, rule: IntegerRule, random_stimulus: Make, tmp_path: Path
) -> None:
    stimulus = random_stimulus(rule, 3, 3, 1, 1)
    emit(Program.compile(rule), 1, 1, tmp_path)
    assert run(bench, rule, tmp_path, stimulus).mismatches == 0


@pytest.mark.slow
def test_verilog_draws_the_rules_random_bits(
    bench: Bench, small_config: Make, random_rule: Make, random_stimulus: Make, tmp_path: Path
) -> None:
    config = small_config(channels=2, hidden=2, inputs=("valid",), fire_rate=0.5)
    rule = replace(random_rule(0, config, Precision(3, 5, 4, 3)), dither=3)
    stimulus = random_stimulus(rule, 4, 2, HEIGHT, WIDTH)
    emit(Program.compile(rule), HEIGHT, WIDTH, tmp_path)
    assert run(bench, rule, tmp_path, stimulus).mismatches == 0


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
def test_icarus_agrees_with_the_golden_model(
    rule: IntegerRule, folder: Path, stimulus: Stimulus
) -> None:
    with Bench("icarus") as bench:
        assert run(bench, rule, folder, stimulus).mismatches == 0


def test_verilog_that_does_not_compile_is_refused(
    bench: Bench, rule: IntegerRule, folder: Path, stimulus: Stimulus
) -> None:
    edit(folder / "pixel_row.v", r"^endmodule", "  assign = ;\nendmodule")
    with pytest.raises(InputError) as caught:
        bench.run(rule, folder, stimulus)
    complaint = r"%Error: [^\n]*pixel_row\.v:\d+[^\n]*syntax error[^\n]*"
    assert re.fullmatch(
        rf"verilator cannot compile {re.escape(str(folder))} \({complaint}\): "
        "mend or emit it again",
        str(caught.value),
    )


def test_simulators_library_is_compiled_by_one_build_and_given_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, first, second = (tmp_path / name for name in ("library", "first", "second"))
    for folder in (library, first, second):
        folder.mkdir()
    monkeypatch.setattr(simulators, "verilated", lambda: library)
    built = lambda self: [["verilator", "--public-flat-rw"], ["make"]]  # noqa: E731
    monkeypatch.setattr(cocotb_tools.runner.Verilator, "_build_command", built)
    for name in ("verilated.o", "verilated_vpi.o", "verilator.o", "Vtop__ALL.o"):
        (first / name).write_text(name)
    simulators._keep(first)
    runner = simulators._Verilator()
    runner.build_dir = second
    assert runner._build_command() == [
        ["verilator"],
        ["make", "--assume-old", "verilated.o", "--assume-old", "verilated_vpi.o"],
    ]
    # What includes the design's files is not of the library.
    assert {path.name: path.read_text() for path in second.iterdir()} == {
        name: name for name in ("verilated.o", "verilated_vpi.o")
    }


@pytest.mark.parametrize(
    ("field", "found", "asked"),
    [("height", 9, HEIGHT), ("width", 9, WIDTH), ("code_bits", 9, 5), ("channels", ["x0"], None)],
)
def test_folder_of_another_device_is_refused(
    bench: Bench,
    rule: IntegerRule,
    folder: Path,
    stimulus: Stimulus,
    field: str,
    found: object,
    asked: object,
) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {field: found}))
    with pytest.raises(InputError) as caught:
        bench.run(rule, folder, stimulus)
    asked = asked or list(rule.config.channel_names)
    assert str(caught.value) == (
        f"{folder} has {field} {found}, the verification {asked}: "
        "emit the Verilog again, or give its own rule and size"
    )


def test_unknown_simulator_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        Bench("modelsim")
    assert str(caught.value) == "simulator 'modelsim' is unknown: choose verilator or icarus"


def test_missing_icarus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError) as caught:
        Bench("icarus").__enter__()
    assert str(caught.value) == (
        "iverilog is not on the path: install Icarus Verilog, or choose --simulator verilator"
    )


@pytest.mark.parametrize("tool", ["c++", "make", "perl"])
def test_missing_compiler_is_named(
    tool: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for other in {"c++", "make", "perl"} - {tool}:
        (tmp_path / other).write_text("#!/bin/sh\n")
        (tmp_path / other).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as caught:
        Bench("verilator").__enter__()
    assert str(caught.value) == (
        f"{tool} is not on the path: Verilator needs a C++ compiler, make and perl; install them"
    )
