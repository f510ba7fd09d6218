"""The bench that one would write first: runs inside the simulator for simulation_speed.py.

Python makes the clock, and in each looks at the port that it waits for, pixel by pixel.
"""

import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge, Timer

from scotopia.hdl.sequencer import Op

FOLDER = "SCOTOPIA_PLAIN"
STIMULUS, RESULT = "stimulus.npz", "result.npz"


@cocotb.test()
async def run_plainly(dut: Any) -> None:
    """Do some steps of one frame, and read every channel after each."""
    folder = Path(os.environ[FOLDER])
    stimulus = np.load(folder / STIMULUS, allow_pickle=False)
    samples, mask, steps = stimulus["samples"], stimulus["mask"], int(stimulus["steps"])
    channels, sample_bits = int(stimulus["channels"]), int(stimulus["sample_bits"])
    height, width = mask.shape
    x_bits, y_bits = (max(1, (side - 1).bit_length()) for side in (width, height))
    Clock(dut.clk, 2, "ns", impl="py").start(start_high=False)
    for port in ("samples__valid", "commands__valid", "pixels__ready", "registers__write"):
        getattr(dut, port).value = 0
    dut.rst.value = 1
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0

    async def offer(port: str, payload: int) -> None:
        getattr(dut, f"{port}__payload").value = payload
        getattr(dut, f"{port}__valid").value = 1
        while True:
            await RisingEdge(dut.clk)
            if int(getattr(dut, f"{port}__ready").value):
                break
        getattr(dut, f"{port}__valid").value = 0

    while True:  # it clears its memory first
        await RisingEdge(dut.clk)
        if not int(dut.busy.value):
            break
    for y, x in np.argwhere(mask):
        code = int(samples[y, x]) & (1 << sample_bits) - 1
        await offer("samples", code << x_bits + y_bits | int(y) << x_bits | int(x))
    words = np.zeros((steps, channels, height, width), np.int64)
    for step in range(steps):
        await offer("commands", 1 << 2 | Op.RUN)
        for channel in range(channels):
            await offer("commands", channel << 2 | Op.READ)
            dut.pixels__ready.value = 1
            for y in range(height):
                for x in range(width):
                    while True:
                        await RisingEdge(dut.clk)
                        if int(dut.pixels__valid.value):
                            break
                    words[step, channel, y, x] = int(dut.pixels__payload.value)
            dut.pixels__ready.value = 0
    await Timer(2, "ns")
    np.savez(folder / RESULT, words=words)
