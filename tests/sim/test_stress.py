import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from amaranth.back import verilog

from scotopia.graph.errors import InputError
from scotopia.graph.lfsr import RowRegisters
from scotopia.hdl import sequencer
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.hdl.sequencer import Op, Register
from scotopia.sim import mutation
from scotopia.sim.check import Verdict
from scotopia.sim.cocotb_stress import SCENARIOS
from scotopia.sim.device_model import DeviceModel, Inputs, Mismatch, Outputs
from scotopia.sim.simulators import Bench
from scotopia.sim.stress import DEVICES, Device, StressBench, Trace, check_trace, prove

#: Three rows, so that there are addresses outside; it draws random bits.
DEVICE = Device(3, 2, "residual", "wrap", (71, 7), fire_rate=0.5, effort=4)


@pytest.fixture(scope="module")
def bench() -> Iterator[StressBench]:
    """The one that builds faster, if it is there."""
    with StressBench("icarus" if shutil.which("iverilog") else "verilator") as bench:
        yield bench


@pytest.fixture(scope="module")
def trace(bench: StressBench, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """All scenarios on one device."""
    folder = tmp_path_factory.mktemp("verilog")
    emit(DEVICE.programs[0], DEVICE.height, DEVICE.width, folder)
    # Seed 8 draws a pause where a word is to be written with a command.
    return bench.trace(DEVICE, folder, 8, DEVICE.scenarios)


def test_device_keeps_its_contract_in_every_clock_of_every_scenario(trace: Trace) -> None:
    findings = check_trace(DEVICE, trace)
    assert [finding.detail for finding in findings] == [""] * len(DEVICE.scenarios)
    assert sum(finding.clocks for finding in findings) == len(trace.clocks) > 40_000


@pytest.mark.parametrize("device", [*DEVICES, mutation._DEVICE], ids=str)
def test_channels_of_a_device_differ_so_that_one_cannot_stand_for_another(device: Device) -> None:
    rng = np.random.default_rng(0)
    for program in device.programs:
        rule, shape = program.rule, (device.height, device.width)
        state, registers = rule.initial_state(*shape), RowRegisters(*shape, rule.noise_seed)
        for _ in range(20):
            valid = rng.random(shape) < 0.5
            noise = registers.planes(rule.noise_planes) if rule.noise_planes else None
            state = rule.step(state, rule.given(rng.integers(-8, 8, shape), valid), noise)
        assert len({channel.tobytes() for channel in state[: device.channels]}) == device.channels


def test_scenarios_make_happen_what_they_are_for(trace: Trace) -> None:
    column = {name: i for i, name in enumerate((*Inputs._fields, *Outputs._fields))}
    seen = {name: trace.clocks[:, i] for name, i in column.items()}
    offered, taken = seen["samples_valid"] == 1, seen["samples_ready"] == 1
    busy, stalled = seen["busy"] == 1, (seen["pixels_valid"] == 1) & (seen["pixels_ready"] == 0)
    drops = offered & taken & (busy | (seen["y"] >= DEVICE.height))
    writes = seen["write"] == 1
    clears = writes & (seen["address"] == Register.STATUS) & (seen["write_data"] & 2 > 0)
    words = writes & (seen["address"] == Register.PROGRAM_HIGH)
    commands = (seen["commands_valid"] == 1) & (seen["commands_ready"] == 1) & (seen["rst"] == 0)
    for what, times in {
        "a sample waits": offered & ~taken,
        "a drop in steps": drops & busy,
        "a drop outside": drops & ~busy,
        "a clear and a drop": clears & drops,
        "a word written while busy": words & busy,
        "a word written with a command": words & ~busy & commands,
        "a stall": stalled,
        "a reset while a word is held back": (seen["rst"] == 1) & stalled,
        "a reset while idle": (seen["rst"] == 1) & ~busy,
    }.items():
        assert times.sum() > 0, what
    for op in Op:
        assert (commands & (seen["op"] == op)).sum() > 10
    sent = seen["pixels_code"][(seen["pixels_valid"] == 1) & ~stalled]
    assert len(np.unique(sent)) == 16  # every code there is


@pytest.mark.parametrize(
    ("signal", "when"),
    [
        ("commands_ready", "always"),
        ("dropped", "always"),
        ("error", "always"),
        ("frames", "idle"),
        ("busy", "idle"),
        ("samples_ready", "idle"),
        ("pixels_valid", "idle"),
        ("pixels_valid", "stalled"),
        ("pixels_code", "sent"),
        ("pixels_tuser", "sent"),
        ("pixels_tlast", "sent"),
        ("read_data", "told"),
    ],
)
def test_model_sees_a_wrong_bit_in_its_clock(trace: Trace, signal: str, when: str) -> None:
    name = "random stalls on every stream"
    number = trace.scenarios.index(name)
    start, end = int(trace.ends[number - 1]) if number else 0, int(trace.ends[number])
    alone = replace(trace, scenarios=(name,), ends=np.array([end - start]))
    clocks = trace.clocks[start:end]
    column = {field: i for i, field in enumerate((*Inputs._fields, *Outputs._fields))}
    sent = clocks[:, column["pixels_valid"]] == 1
    told = np.isin(clocks[:, column["address"]], (0, 1, 2, 6))
    where = {
        "always": clocks[:, column["rst"]] == 0,
        "idle": (np.convolve(clocks[:, column["busy"]], [1, 1, 1], "same") == 0),
        "sent": sent,
        "stalled": np.roll(sent & (clocks[:, column["pixels_ready"]] == 0), 1),
        "told": np.roll(told & (clocks[:, column["rst"]] == 0), 1),
    }[when]
    places = np.flatnonzero(where)
    for place in np.random.default_rng(0).choice(places, 5, replace=False):
        wrong = clocks.copy()
        wrong[place, column[signal]] ^= 1
        (finding,) = check_trace(DEVICE, replace(alone, clocks=wrong))
        assert finding.detail.startswith(f"clock {place}, {signal}: expected"), when


def quiet(**fields: int) -> Inputs:
    no_register = {"address": 7}
    return Inputs(**{**dict.fromkeys(Inputs._fields, 0), **no_register, **fields})


def answer(**fields: int) -> Outputs:
    return Outputs(**{**dict.fromkeys(Outputs._fields, 0), **fields})


@pytest.fixture
def idle() -> DeviceModel:
    """A model of a device that was reset, and is idle now."""
    model = DEVICE.model()
    model.clock(quiet(rst=1), answer())
    clearing = model.programs[0].clocks.clear
    for _ in range(clearing):
        model.clock(quiet(), answer(busy=1))
    model.clock(quiet(), answer(samples_ready=1, commands_ready=1))
    return model


IDLE = {"samples_ready": 1, "commands_ready": 1}


@pytest.mark.parametrize("dropped", [1, 2])
def test_drop_as_drops_are_cleared_is_not_lost(idle: DeviceModel, dropped: int) -> None:
    outside = {"samples_valid": 1, "y": 3}
    idle.clock(quiet(**outside), answer(samples_ready=1))
    clear = {"write": 1, "address": Register.STATUS, "write_data": 2}
    idle.clock(quiet(**outside, **clear), answer(samples_ready=1, dropped=1, error=1))
    with pytest.raises(Mismatch, match=r"^dropped: expected 2 or 1, found 0$"):
        idle.clock(quiet(), answer(**IDLE, error=1))
    told = {"read_data": 2}  # by STATUS, in the clock before
    idle.clock(quiet(), answer(**IDLE, dropped=dropped, error=1, **told))


def test_step_that_never_ends_is_a_mismatch(idle: DeviceModel) -> None:
    idle.clock(quiet(commands_valid=1, op=Op.RUN, argument=1), answer(**IDLE))
    step = idle.programs[0].clocks.step
    with pytest.raises(Mismatch, match=r"^samples_ready: expected 0, found 1$"):
        for _ in range(step + 1000):
            idle.clock(quiet(), answer(busy=1, samples_ready=1))
    assert step < idle.elapsed < step + 64


def test_step_that_ends_too_early_is_a_mismatch(idle: DeviceModel) -> None:
    idle.clock(quiet(commands_valid=1, op=Op.RUN, argument=1), answer(**IDLE))
    idle.clock(quiet(), answer(busy=1))
    with pytest.raises(Mismatch, match=r"^busy: expected 1, found 0$"):
        idle.clock(quiet(), answer(**IDLE))


def test_model_does_not_guess_what_an_unknown_program_does(idle: DeviceModel) -> None:
    for address, data in ((Register.PROGRAM_ADDRESS, 20), (4, 1), (Register.PROGRAM_HIGH, 0)):
        idle.clock(quiet(write=1, address=address, write_data=data), answer(**IDLE))
        idle.read_data = None
    with pytest.raises(ValueError, match=r"^no whole program is loaded: load one before a step$"):
        idle.clock(quiet(commands_valid=1, op=Op.FRAME), answer(**IDLE))


# Faults: the device is built of another source, changed in one place.

Plant = Callable[[str, str], Path]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Write Verilog of a sequencer and a row buffer in whose source one text is another."""

    def make(old: str, new: str) -> Path:
        program, height, width = DEVICE.programs[0], DEVICE.height, DEVICE.width
        emit(program, height, width, tmp_path)
        source = Path(str(sequencer.__file__)).read_text()
        assert source.count(old) == 1, f"{old!r} is there {source.count(old)} times"
        planted = ModuleType("scotopia.hdl.planted")
        exec(compile(source.replace(old, new), "planted", "exec"), vars(planted))
        for name, part in (
            ("sequencer", planted.Sequencer(program, height, width)),
            ("row_buffer", planted.RowBuffer(program, width)),
        ):
            (tmp_path / f"{name}.v").write_text(verilog.convert(part, name=name))
        return tmp_path

    return make


def details(bench: StressBench, folder: Path, scenarios: tuple[str, ...]) -> dict[str, str]:
    """Run scenarios; what was found in those that failed."""
    findings = check_trace(DEVICE, bench.trace(DEVICE, folder, 0, scenarios))
    assert [finding.scenario for finding in findings] == list(scenarios)
    return {finding.scenario: finding.detail for finding in findings if finding.detail}


def test_device_that_hangs_fails_and_what_comes_after_did_not_begin(
    bench: StressBench, plant: Plant
) -> None:
    ends = 'with m.If(channel >= channels):\n                    m.next = "IDLE"'
    folder = plant(ends, ends.replace("IDLE", "READ"))
    names = ("FORGET ends the frame", "READ of a channel that is not there", "random traffic")
    found = details(bench, folder, names)
    assert set(found) == set(names[1:])


FAULTS: dict[str, tuple[str, str, str]] = {
    # name: what is to find it, what stands there, what shall
    "a sample waits in steps": (
        "a sample at each clock of a step",
        "self.samples.ready.eq(1), dropping.eq(self.samples.valid)",
        "dropping.eq(0)",
    ),
    "a sample is taken while a row is sent": (
        "samples during a readout",
        'with m.State("SEND"), m.If(self.sent):',
        'with m.State("SEND"):\n              m.d.comb += self.samples.ready.eq(1)\n'
        "              with m.If(self.sent):",
    ),
    "a row too many is inside": (
        "samples outside the array",
        "(event.y < self.height)",
        "(event.y <= self.height)",
    ),
    "a clear undoes a drop": (
        "status cleared at the clock of a drop",
        "        with m.If(dropping):\n            m.d.sync += self.error",
        "        with m.If(dropping & ~self._forgiven):\n            m.d.sync += self.error",
    ),
    "drops are kept in a reset": (
        "counters restart with a reset",
        "        m = Module()\n        program = self.program\n",
        "        m = Module()\n        self.dropped = Signal(16, reset_less=True)\n"
        "        program = self.program\n",
    ),
    "the frame ends with the argument's channel": (
        "commands back to back",
        "                            channel.eq(0),\n",
        "",
    ),
    "the random bits are not begun again": (
        "reset at any time",
        "m.d.sync += self.control.reseed.eq(1)",
        "pass",
    ),
    "RUN counts seven bits of READ's argument": (
        "READ of a channel that is not there",
        "channel.eq(command.argument)",
        "channel.eq(command.argument[:7])",
    ),
    "words move on while they are held back": (
        "pixels taken late, or never",
        "moving.eq(taken)",
        "moving.eq(pixels.valid)",
    ),
    "a word waits for whoever takes it": (
        "pixels taken late, or never",
        "pixels.valid.eq((left != 0) & ~moving)",
        "pixels.valid.eq((left != 0) & ~moving & pixels.ready)",
    ),
    "the program is written while busy": (
        "words written while busy",
        "& (bus.address == Register.PROGRAM_HIGH) & ~self.busy)",
        "& (bus.address == Register.PROGRAM_HIGH))",
    ),
    "frames saturate": (
        "frames begin again at 65,536",
        "self.frames.eq(self.frames + 1)",
        "self.frames.eq(self.frames + ~self.frames.all())",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(bench: StressBench, plant: Plant, fault: str) -> None:
    scenario, old, new = FAULTS[fault]
    assert scenario in details(bench, plant(old, new), (scenario,))


@pytest.mark.slow
def test_every_device_passes_every_scenario() -> None:
    names: list[str] = []
    checks = prove(on_check=names.append)
    assert [check.name for check in checks] == list(SCENARIOS)
    assert [check.detail for check in checks if check.verdict is not Verdict.PASSED] == []
    assert names == [str(device) for device in DEVICES]


def test_verilog_of_the_caller_is_what_is_checked() -> None:
    def other_start(program: Program, height: int, width: int, folder: Path) -> None:
        emit(program, height, width, folder)
        path = folder / "row_buffer.v"
        path.write_text(path.read_text().replace("[4] = first;", "[4] = ~first;"))

    if why := Bench("icarus").missing():
        pytest.skip(why)
    names = ["FORGET ends the frame", "counters restart with a reset"]
    checks = prove("icarus", verilog=other_start, devices=[DEVICE], scenarios=names)
    assert [(check.name, check.verdict) for check in checks] == [
        (names[0], Verdict.FAILED),
        (names[1], Verdict.FAILED),
    ]
    assert re.fullmatch(
        r"2 x 3 cells, residual, wrap, stochastic: clock \d+, "
        r"pixels_tuser: expected 1, found 0 \(seed 0\)",
        checks[0].detail,
    )


def test_missing_icarus_skips_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    checks = prove("icarus", devices=DEVICES[:1])
    assert [check.name for check in checks] == list(SCENARIOS)
    assert {check.verdict for check in checks} == {Verdict.SKIPPED}
    assert checks[0].detail.startswith("iverilog is not on the path: install Icarus Verilog")


def test_unknown_scenario_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        prove(scenarios=["rain"])
    assert str(caught.value).startswith("scenario 'rain' is unknown: choose out of random stalls")
