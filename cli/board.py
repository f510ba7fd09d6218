"""What `scotopia board` and `scotopia play` do: an array on a board, and a host that uses it."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scotopia.graph import processes
from scotopia.graph.errors import InputError
from scotopia.graph.qformat import IntArray
from scotopia.hdl.fpga import find_tool
from scotopia.hdl.program import Program
from scotopia.hdl.serial_protocol import (
    FRAME,
    RESYNC,
    STATUS,
    STATUS_BYTES,
    Status,
    baud_divisor,
    check_board,
    decode_channel,
    encode_samples,
    encode_writes,
)
from scotopia.model.score import psnr_curve
from scotopia.quantize.integer_rule import IntegerRule

BOARDS = ("ulx3s-85f",)

#: Bits a second of the serial line; what the ULX3S's USB converter does at most.
BAUD = 3_000_000


class Port(Protocol):
    """What a serial port has to do; `serial.Serial` does."""

    def write(self, data: bytes, /) -> int | None:
        """Send bytes."""

    def read(self, size: int, /) -> bytes:
        """Receive so many bytes, or fewer if they do not come in time."""


def build(rule: IntegerRule, height: int, width: int, board: str, out: Path, baud: int) -> Path:
    """Build a bitstream.

    Raises
    ------
    InputError
        If the board is unknown, a tool is missing or fails, the array does not fit the line, the
        clock does not make the baud rate, or the array is too slow for the clock.
    """
    if board not in BOARDS:
        raise InputError(f"board {board!r} is unknown: choose one of {', '.join(BOARDS)}")
    check_board(height, width)
    check_baud(baud)
    try:
        from amaranth_boards.ulx3s import ULX3S_85F_Platform
    except ImportError as error:
        raise InputError(
            "amaranth-boards is not installed: pip install 'scotopia[board]'"
        ) from error
    from scotopia.hdl.board import Ulx3sTop

    tools = {"YOSYS": "yosys", "NEXTPNR_ECP5": "nextpnr-ecp5", "ECPPACK": "ecppack"}
    found = {variable: find_tool(tool) for variable, tool in tools.items()}
    top = Ulx3sTop(Program.compile(rule), height, width, baud)
    out.mkdir(parents=True, exist_ok=True)
    bitstream, log = out / "retina.bit", out / "build.log"
    bitstream.unlink(missing_ok=True)  # there is none of another array, should this fail
    with processes.in_environment(**found):  # where Amaranth looks for the tools
        # Not `build`, which asks for a programmer, too.
        plan = ULX3S_85F_Platform().prepare(top, name="retina", synth_opts="-nowidelut")
        plan.extract(str(out))
        with log.open("w") as output:
            status = processes.run(
                ["sh", f"{plan.script}.sh"], output, folder=out, env=dict(os.environ)
            )
    if status:
        raise InputError(why_failed(log.read_text(errors="replace")) or failure(log))
    return bitstream


def failure(log: Path) -> str:
    """Say that a tool failed, and with which words."""
    what = processes.complaint(log)
    mend = processes.remedy(what, f"see the logs in {log.parent}")
    return f"the tools failed on the board's design ({what}): {mend}"


_TOO_SLOW = re.compile(r"Max frequency for clock '(.+)': ([\d.]+) MHz \(FAIL at ([\d.]+) MHz\)")


def why_failed(log: str) -> str:
    """Say how far nextpnr's log has a clock from what it must be; nothing if it is fast enough."""
    # The last line on a clock counts: those before are guesses of the placer.
    slow = {name: (reached, needed) for name, reached, needed in _TOO_SLOW.findall(log)}
    for reached, needed in slow.values():
        return (
            f"the array would run at {reached} MHz, and the board's clock has {needed} MHz, so "
            "there is no bitstream: choose a smaller array, or a rule of fewer bits"
        )
    return ""


def check_baud(baud: int) -> None:
    """Raise InputError unless the board's clock makes that many bits a second."""
    from scotopia.hdl.board import ULX3S_CLOCK

    baud_divisor(ULX3S_CLOCK, baud)


@dataclass(frozen=True)
class Played:
    """A frame that went through a board.

    Attributes
    ----------
    prediction
        (H, W) in [0, 1].
    psnr
        Of it, against the clip's frame, in dB.
    wrong
        Codes that differ from the golden model's; None if that was not run.
    """

    prediction: NDArray[np.float32]
    psnr: float
    wrong: int | None


def play(
    rule: IntegerRule,
    frames: NDArray[np.float32],
    mask: NDArray[np.bool_],
    port: Port,
    *,
    compare: bool,
) -> Iterator[Played]:
    """Show a board the pixels of `frames` (T, H, W) that `mask` lets through.

    Raises
    ------
    InputError
        If the board does not answer, or holds other frames already and is to be compared.
    """
    _, height, width = frames.shape
    before = status(port)
    if compare and before.frames:
        raise InputError(
            f"the board has run {before.frames} frames already, so its state is not the golden "
            "model's: load the bitstream again"
        )
    state = rule.initial_state(height, width)
    if not before.frames:
        port.write(encode_writes(rule.loads(height, width)))
    for frame, visible in zip(frames, mask, strict=True):
        codes = rule.sample_codes(frame)
        port.write(encode_samples(codes, visible) + bytes([FRAME]))
        answer = receive(port, 2 * height * width)
        found = decode_channel(answer, height, width, rule.channel_formats[0])
        wrong = None
        if compare:
            state = golden_frame(rule, state, codes, visible)
            wrong = int((found != state[0]).sum())
        prediction = rule.pixels(found)
        yield Played(prediction, float(psnr_curve(frame[None], prediction[None])[0]), wrong)


def golden_frame(
    rule: IntegerRule, state: IntArray, codes: IntArray, visible: NDArray[np.bool_]
) -> IntArray:
    """State after a frame, by the golden model."""
    if rule.noise_planes:
        raise InputError("the rule draws random bits: play it without --compare")
    for _ in range(rule.steps_per_frame):
        state = rule.step(state, rule.given(codes, visible))
    return state


def status(port: Port) -> Status:
    """Bring both sides together, and ask for the status."""
    port.write(RESYNC + bytes([STATUS]))
    return Status.decode(receive(port, STATUS_BYTES))


def receive(port: Port, count: int) -> bytes:
    """Read bytes.

    Raises
    ------
    InputError
        If not all of them come.
    """
    answer = port.read(count)
    if len(answer) != count:
        raise InputError(
            f"the board answered {len(answer)} of {count} bytes: check port, rule and size, and "
            "load the bitstream again"
        )
    return answer


def open_port(name: str, baud: int) -> Port:
    """Open a serial port.

    Raises
    ------
    InputError
        If there is none of that name, or pyserial is not installed.
    """
    try:
        import serial
    except ImportError as error:
        raise InputError("pyserial is not installed: pip install 'scotopia[board]'") from error
    try:
        port: Port = serial.Serial(name, baud, timeout=5)
    except (OSError, ValueError) as error:
        raise InputError(f"port {name} cannot be opened ({error}): name the board's") from error
    return port


def as_blocks(picture: NDArray[np.float32]) -> str:
    """A picture (H, W) in [0, 1] as text, two rows a line, in shades that any terminal has."""
    shades = np.rint(np.clip(picture, 0, 1) * 23).astype(int) + 232
    if len(shades) % 2:
        shades = np.vstack([shades, shades[-1:]])
    lines = []
    for upper, lower in zip(shades[::2], shades[1::2], strict=True):
        cells = (f"\x1b[38;5;{u};48;5;{d}m▀" for u, d in zip(upper, lower, strict=True))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def show(played: Iterator[Played], say: Callable[[str], None], *, live: bool) -> list[Played]:
    """Show each frame over the one before, if `live`, and return them all."""
    done = []
    for number, frame in enumerate(played):
        done.append(frame)
        wrong = "" if frame.wrong is None else f", {frame.wrong} codes wrong"
        if live:
            home = "\x1b[H" if number else "\x1b[2J\x1b[H"
            sys.stdout.write(f"{home}{as_blocks(frame.prediction)}\n")
            sys.stdout.flush()
        say(f"frame {number}: {frame.psnr:.2f} dB{wrong}")
    return done
