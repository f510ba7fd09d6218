"""What all readers of clips share: limits, what damaged files raise, and files of another kind."""

import lzma
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
from PIL import Image

from scotopia.graph.errors import InputError

from .files import file_mode

MAX_PIXELS = 2**29
"""Most pixels a clip may hold, an array as stored, every clip as returned (2 GiB of float32)."""

MAX_FRAME_PIXELS = 2**25
"""Most pixels of a frame as stored: 8K video has 33 million."""

MAX_FRAMES = 2**17
"""Most frames of a clip: 87 minutes at 25 a second."""

FREE_BYTES = 2**26
BYTES_PER_BYTE = 200
"""Most bytes that a file may unpack to: so many, and so many more for each byte of the file.

Videos keep far below one returned pixel, arrays below twenty bytes, for each. Only a file that is
made to fill the memory, and a long clip of nothing, keep more.
"""

UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # zipfile: an encrypted member, an unknown compression
    MemoryError,  # NumPy: a header that nests too deep for Python's parser
    SyntaxError,  # Pillow: a broken PNG
    TypeError,  # Pillow: a TIFF whose tags have wrong types
    LookupError,  # Pillow: a GIF that is cut off within a frame
    tokenize.TokenError,  # NumPy: a header that does not parse
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    av.FFmpegError,
    Image.DecompressionBombError,
)
"""What the zip, NumPy, FFmpeg and Pillow readers raise when their input is damaged."""

# How recordings of events begin, and what they are.
_EVENTS = (
    (re.compile(rb"#!AER-DAT4"), "AEDAT4"),
    (re.compile(rb"#!AER-DAT"), "AEDAT"),
    (re.compile(rb"Event Stream"), "Event Stream"),
    (re.compile(rb"(% .*\n)*% (evt|format EVT)"), "EVT"),
    (re.compile(rb"(% .*\n)*% (Version [12]\n|Data file containing)"), "DAT"),
)
_N_MNIST_SIDE = 34


def most_bytes(path: Path) -> int:
    """Most bytes that the clip at `path` may unpack to; a folder is as large as it looks."""
    return MAX_PIXELS if path.is_dir() else FREE_BYTES + BYTES_PER_BYTE * path.stat().st_size


def check_frame_size(what: str, width: int, height: int) -> None:
    """Raise InputError if `what` has frames of more than `MAX_FRAME_PIXELS`."""
    if width * height > MAX_FRAME_PIXELS:
        raise InputError(
            f"{what} {width} x {height} pixels, more than {MAX_FRAME_PIXELS}: "
            "scale to 7680 x 4320 at most"
        )


def check_file(path: Path, embedded: str) -> None:
    """Raise InputError if `path` is no file with bytes and no folder, or a recording of events.

    `embedded` is the name of the built-in clip.
    """
    mode = file_mode(path)
    if not mode:
        raise InputError(
            f"clip {path} does not exist: give a video, an .npz or .npy file, a folder of images, "
            f"or {embedded} for the built-in clip"
        )
    if stat.S_ISDIR(mode):
        return
    if not stat.S_ISREG(mode):  # a pipe would never end
        raise InputError(
            f"clip {path} is no file and no folder but {stat.filemode(mode)}: copy it to a file"
        )
    if path.stat().st_size == 0:
        raise InputError(f"clip {path} is empty (0 bytes): copy or record it again")
    kind = _event_format(path)
    if kind is not None:
        raise InputError(
            f"clip {path} is a recording of events ({kind}), not of frames: save frames of it as "
            ".npy or as a video, as docs/clips.md shows"
        )


def undecodable(path: Path) -> str:
    """Tell that nothing of a clip can be decoded."""
    return (
        f"clip {path} cannot be decoded, it is damaged or no clip: give a video, an .npz or .npy "
        "file, or a folder of images"
    )


def damaged_frame(path: Path, number: int) -> str:
    """Tell that a clip can be decoded up to frame `number`, counted from 0."""
    return f"clip {path} cannot be decoded at frame {number}: repair it or cut it before that frame"


def uneven_times(times: list[float], tick: float = 0.0) -> str | None:
    """Tell that the times of frames, in seconds, are not evenly spaced; None if they are.

    Times are rounded to multiples of `tick` in their file. Order is none of our business: in AVI,
    frames that are decoded ahead have the times at which they are decoded.
    """
    gaps = np.diff(np.sort(times))
    if not gaps.size or np.ptp(gaps) <= max(2.001 * tick, 0.1 * np.median(gaps)):
        return None
    return (
        f"its frames are {1000 * gaps.min():.4g} to {1000 * gaps.max():.4g} ms apart, each counts "
        "alike: its frame rate varies, or frames are missing"
    )


def _event_format(path: Path) -> str | None:
    """Format of a recording of events, None for any other file."""
    with path.open("rb") as file:
        head = file.read(5 * 2**12)
        for magic, kind in _EVENTS:
            if magic.match(head):
                return kind
        # N-MNIST has no magic: 5 bytes an event, of which the last 23 bits are its time.
        if path.suffix.lower() != ".bin" or path.stat().st_size % 5:
            return None
    events = np.frombuffer(head, np.uint8).reshape(-1, 5)
    x, y, *time = events.T.astype(np.int64)
    steps = np.diff((time[0] & 0x7F) << 16 | time[1] << 8 | time[2])
    inside = (x < _N_MNIST_SIDE) & (y < _N_MNIST_SIDE)
    return "N-MNIST" if inside.all() and (steps >= 0).all() else None
