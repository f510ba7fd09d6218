"""Runs inside the simulator: feeds the harness one step at a time and keeps what comes out.

The parent process hands over a folder in the environment. This process compares nothing, so that
the verdict is made where the golden model is.
"""

import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, First, RisingEdge, Timer
from numpy.typing import NDArray

FOLDER = "SCOTOPIA_BENCH"
RESULT = "result.npz"


@cocotb.test()
async def run_stimulus(dut: Any) -> None:
    """Write `words`, uint8 (states, bytes of the harness's `state`), `cycles` and `marks_wrong`."""
    folder = Path(os.environ[FOLDER])
    stimulus = np.load(folder / "stimulus.npz", allow_pickle=False)
    steps_per_frame, patience = int(stimulus["steps_per_frame"]), int(stimulus["patience"])
    every, steps = int(stimulus["every"]), 0
    out_bytes = (len(dut.state) + 7) // 8
    words: list[NDArray[np.uint8]] = []

    dut.start.value = dut.load.value = 0
    await Timer(20, "ns")  # the harness resets the device
    if program := int.from_bytes(stimulus["program"].tobytes(), "little"):
        dut.words.value = program
        dut.load.value = 1
    frames = [packed(stimulus[name]) for name in ("samples", "mask")]
    for sample, mask in zip(*frames, strict=True):
        if mask:
            dut.samples.value = sample
            dut.mask.value = mask
        for step in range(steps_per_frame):
            steps += 1
            dut.sense.value = int(step == 0 and mask > 0)
            dut.fetch.value = int(steps % every == 0)
            dut.forget.value = int(step == steps_per_frame - 1)
            dut.start.value = 1
            await First(FallingEdge(dut.done), Timer(100, "ns"))
            dut.start.value = dut.load.value = 0
            answer = await First(RisingEdge(dut.done), late := Timer(patience, "ns"))
            if answer is late:
                break
            if steps % every == 0:
                word = dut.state.value.to_unsigned().to_bytes(out_bytes, "little")
                words.append(np.frombuffer(word, np.uint8))
        else:
            continue
        break
    np.savez(
        folder / RESULT,
        words=np.array(words, np.uint8).reshape(-1, out_bytes),
        cycles=dut.cycles.value.to_unsigned(),
        marks_wrong=int(dut.marks_wrong.value),
    )


def packed(rows: NDArray[np.uint8]) -> list[int]:
    """One integer a row of bits, the first bit lowest."""
    return [int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little") for row in rows]
