from typing import Any

import numpy as np
import pytest
from amaranth import Value
from amaranth.sim import Simulator

from scotopia.hdl.emit import verilog_modules
from scotopia.hdl.retina import Retina
from scotopia.sim import formal
from scotopia.sim.exploration import bits_of
from scotopia.sim.stress import Device as Shape
from scotopia.sim.symbolic import Device

INPUTS = {
    "samples__valid": lambda d: d.samples.valid,
    "samples__payload": lambda d: d.samples.payload,
    "commands__valid": lambda d: d.commands.valid,
    "commands__payload": lambda d: d.commands.payload,
    "pixels__ready": lambda d: d.pixels.ready,
    "registers__address": lambda d: d.registers.address,
}
OUTPUTS = {
    "samples__ready": lambda d: d.samples.ready,
    "commands__ready": lambda d: d.commands.ready,
    "pixels__valid": lambda d: d.pixels.valid,
    "pixels__payload": lambda d: d.pixels.payload,
    "busy": lambda d: d.busy,
    "frames": lambda d: d.frames,
    "dropped": lambda d: d.dropped,
    "registers__read_data": lambda d: d.registers.read_data,
}


@pytest.mark.skipif(bool(formal.missing()), reason=formal.missing())
def test_device_on_constants_equals_amaranths_simulation() -> None:
    shape = Shape(2, 3, "residual", "zero", (71, 7))
    program, rng = shape.programs[0], np.random.default_rng(1)
    device = Device(verilog_modules(program, 2, 3))
    quiet = {"registers__write": [0], "registers__write_data": [0] * 32}
    given = []
    for _ in range(1500):
        drawn = {n: int(rng.integers(1 << len(device.inputs[n]))) for n in INPUTS}
        drawn["samples__valid"] &= int(rng.random() < 0.1)
        drawn["commands__payload"] &= 0b1111  # few steps, and channels that are there
        given.append(drawn)
    state, found = device.power_up(), []
    state.registers = {q: bit if bit <= 1 else 0 for q, bit in state.registers.items()}
    for drawn in given:
        inputs = {n: bits_of(v, len(device.inputs[n])) for n, v in drawn.items()}
        outputs, state = device.clock(state, {**inputs, **quiet})
        found.append([sum(bit << i for i, bit in enumerate(outputs[n])) for n in OUTPUTS])
    retina, due = Retina(program, 2, 3), []

    async def bench(ctx: Any) -> None:
        for drawn in given:
            for name, value in drawn.items():
                ctx.set(Value.cast(INPUTS[name](retina)), value)
            due.append([ctx.get(Value.cast(port(retina))) for port in OUTPUTS.values()])
            await ctx.tick()

    simulator = Simulator(retina)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == due
    assert np.array(due)[:, list(OUTPUTS).index("pixels__valid")].any()
