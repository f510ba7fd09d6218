"""Runs inside the simulator: feeds the harness one step at a time and keeps what comes out.

The parent process hands over a folder in the environment. This process compares nothing, so that
the verdict is made where the golden model is.
"""

import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import LogicArrayObject, LogicObject, PackedObject
from cocotb.triggers import FallingEdge, First, RisingEdge, Timer
from numpy.typing import NDArray
from vcd import VCDWriter

FOLDER = "SCOTOPIA_BENCH"
STIMULUS, RESULT, WAVES = "stimulus.npz", "result.npz", "waves.vcd"
NEVER = 2**32 - 1
LOGIC = (LogicObject, LogicArrayObject, PackedObject)
NS_PER_CLOCK = 2  #: of the harness


@cocotb.test()
async def run_stimulus(dut: Any) -> None:
    """Write `words`, uint8 (states, bytes of the harness's `state`), `cycles` and `marks_wrong`."""
    folder = Path(os.environ[FOLDER])
    stimulus = np.load(folder / STIMULUS, allow_pickle=False)
    steps_per_frame, patience = int(stimulus["steps_per_frame"]), int(stimulus["patience"])
    every, steps = int(stimulus["every"]), 0
    out_bytes = (len(dut.state) + 7) // 8
    words: list[NDArray[np.uint8]] = []

    dut.start.value = dut.load.value = 0
    dut.watch_from.value = NEVER
    await Timer(20, "ns")  # the harness resets the device
    if program := int.from_bytes(stimulus["words"].tobytes(), "little"):
        dut.words.value = program
        dut.load.value = 1
    watched_step, first, last, row = (int(number) for number in stimulus["window"])
    frames = [packed(stimulus[name]) for name in ("samples", "mask")]
    # The first state of the channels goes with the first frame's samples, behind them.
    (codes,), (loaded,) = (packed(stimulus[name]) for name in ("first_codes", "first_mask"))
    events, channels = (int(number) for number in stimulus["targets"])
    frames[0][0] |= codes << stimulus["samples"].shape[1]
    frames[1][0] |= loaded << stimulus["mask"].shape[1]
    for sample, mask in zip(*frames, strict=True):
        if mask:
            dut.samples.value = sample
            dut.mask.value = mask
            dut.targets.value = events + (channels if loaded and steps == 0 else 0)
        for step in range(steps_per_frame):
            if steps == watched_step:
                dut.watch_from.value = first
            steps += 1
            dut.sense.value = int(step == 0 and mask > 0)
            dut.fetch.value = int(steps % every == 0)
            dut.forget.value = int(step == steps_per_frame - 1)
            dut.start.value = 1
            await First(FallingEdge(dut.done), Timer(100, "ns"))
            dut.start.value = dut.load.value = 0
            watched, done = RisingEdge(dut.watched), RisingEdge(dut.done)
            answer = await First(done, watched, Timer(patience, "ns"))
            if answer is watched:
                await write_waveform(dut, folder / WAVES, row, last - first + 1)
            if answer is not done:
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


async def write_waveform(dut: Any, path: Path, row: int, clocks: int) -> None:
    """Write the next clocks of the sequencer and of a row of cells as a VCD file."""
    parts = {"sequencer": dut.dut.sequencer, f"row_{row}": getattr(dut.dut.array, f"row_{row}")}
    with path.open("w") as file, VCDWriter(file, timescale="1 ns") as writer:
        signals = []
        for scope, part in parts.items():
            for signal in part:
                name = signal._name.lstrip("\\")
                if isinstance(signal, LOGIC) and "$" not in name:
                    bits = 1 if isinstance(signal, LogicObject) else len(signal)
                    variable = writer.register_var(scope, name, "wire", size=bits)
                    signals.append((signal, variable))
        for clock in range(clocks):
            await FallingEdge(dut.clk)
            for signal, variable in signals:
                writer.change(variable, clock * NS_PER_CLOCK, str(signal.value))


def packed(rows: NDArray[np.uint8]) -> list[int]:
    """One integer a row of bits, the first bit lowest."""
    return [int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little") for row in rows]
