"""What host and board say to each other over a serial line: one place for both sides.

To the board, a byte that names the command, then its arguments:

=======  =================  ===========================================================
`E`      x, y, code         a sample; its code in two bytes
`W`      target, x, y,      the same for another word of the cell: see `EventLayout`
         code
`F`                         run a frame; the board answers with the prediction's codes,
                            row by row
`R`      channel            the board answers with the channel's codes, row by row
`S`                         the board answers with its status, `STATUS_BYTES`
=======  =================  ===========================================================

A code is two bytes, the lower one first, in two's complement.

Any other byte is counted and skipped, so five bytes of zeros bring both sides together again after
a broken one. Samples wait on the board while it is busy, `QUEUE` bytes of them: a host that awaits
the answer to each frame before it sends the next one's samples loses none.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import IntArray, QFormat

EVENT, FRAME, READ, STATUS, WRITE = b"EFRSW"

#: Of a code on the line.
CODE_BITS = 16

#: Bytes that wait on the board while it is busy.
QUEUE = 4096

STATUS_BYTES = 6

#: Ends whatever was begun.
RESYNC = bytes(5)


@dataclass(frozen=True)
class Status:
    """What the board counts.

    Attributes
    ----------
    frames, dropped
        Frames done, modulo 2**16, and samples outside the array, 65,535 at most.
    skipped
        Bytes that were no command, 255 at most.
    overrun
        Whether bytes were lost since reset, because the queue was full or a stop bit was missing.
    """

    frames: int
    dropped: int
    skipped: int
    overrun: bool

    @classmethod
    def decode(cls, answer: bytes) -> "Status":
        """Read the answer to `S`."""
        frames, dropped, skipped, flags = struct.unpack("<HHBB", answer)
        return cls(frames, dropped, skipped, bool(flags & 1))


def check_board(height: int, width: int) -> None:
    """Raise InputError unless addresses fit a byte each."""
    for name, side in (("height", height), ("width", width)):
        if not 1 <= side <= 256:
            raise InputError(f"{name} {side} is outside 1 to 256, which fit a byte: choose 64")


#: Fewest clocks of a bit that the receiver finds the middle of, and the largest error of a baud
#: rate that leaves the tenth bit in its place, with a margin for the other side's error.
LEAST_DIVISOR, BAUD_ERROR = 4, 0.02


def baud_divisor(clock: int, baud: int) -> int:
    """Return how many clocks of `clock` Hz a bit takes.

    Raises
    ------
    InputError
        If the clock cannot make the rate within `BAUD_ERROR`.
    """
    most = clock // LEAST_DIVISOR
    if not 1 <= baud <= most:
        raise InputError(
            f"baud {baud} is outside 1 to {most}, which a clock of {clock / 1e6:g} MHz can make: "
            "choose 3000000"
        )
    divisor = round(clock / baud)
    if abs(clock / divisor - baud) > BAUD_ERROR * baud:
        nearest = sorted(clock // count for count in (clock // baud, clock // baud + 1))
        raise InputError(
            f"baud {baud} is more than {BAUD_ERROR:.0%} off all that a clock of {clock / 1e6:g} "
            f"MHz can make: choose {nearest[0]} or {nearest[1]}"
        )
    return divisor


def encode_samples(codes: IntArray, mask: NDArray[np.bool_]) -> bytes:
    """Commands for the samples of a frame: codes (H, W) where the mask is."""
    y, x = np.nonzero(mask)
    code = codes[y, x]
    packed = np.stack([np.full_like(x, EVENT), x, y, code & 0xFF, code >> 8 & 0xFF], axis=1)
    return packed.astype(np.uint8).tobytes()


def encode_writes(writes: Iterable[tuple[int, int, int, int]]) -> bytes:
    """Commands that write words of cells: target, y, x and code of each."""
    return b"".join(
        bytes([WRITE, target, x, y, code & 0xFF, code >> 8 & 0xFF]) for target, y, x, code in writes
    )


def decode_channel(answer: bytes, height: int, width: int, format: QFormat) -> IntArray:
    """Codes (H, W) of the answer to `F`, of the prediction's format, or to `R`."""
    codes = np.frombuffer(answer, "<i2").reshape(height, width).astype(np.int64)
    return codes if format.signed else codes & ((1 << format.bits) - 1)
