"""Steps a second of the shipped rule's Verilog under Verilator: python bench/simulation_speed.py

One run is short, one is long; what they differ by is simulation, without compiling.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from scotopia.cli.rules import rule_path
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.sim.simulators import Bench
from scotopia.sim.stimulus import Stimulus

SIDE = 16
SHORT, LONG = 1, 11  #: frames


def main() -> None:
    """Print steps, cell updates and clocks a second, every channel compared after every step."""
    rule = IntegerRule.load(rule_path("retina-int"))
    rng = np.random.default_rng(0)
    frames = rng.random((LONG, SIDE, SIDE))
    mask = rng.random(frames.shape) < 0.01
    seconds, clocks = [], []
    with Bench() as bench, tempfile.TemporaryDirectory() as folder:
        emit(Program.compile(rule), SIDE, SIDE, Path(folder))
        # The first run also compiles the simulator's library.
        for count in (SHORT, SHORT, LONG):
            stimulus = Stimulus.of(rule, frames[:count], mask[:count])
            start = time.perf_counter()
            states, cycles = bench.run(rule, Path(folder), stimulus)
            seconds.append(time.perf_counter() - start)
            clocks.append(cycles)
            assert np.array_equal(states, stimulus.expected)
    steps = (LONG - SHORT) * rule.config.steps_per_frame
    taken = seconds[2] - seconds[1]
    print(f"{SIDE} x {SIDE} cells, {steps} steps, compiling apart ({seconds[1]:.1f} s):")
    print(f"{steps / taken:.1f} steps a second, {steps * SIDE**2 / taken:,.0f} cell updates,")
    print(f"{(clocks[2] - clocks[1]) / taken:,.0f} clocks")


if __name__ == "__main__":
    main()
