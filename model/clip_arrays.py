"""Frames in NumPy's .npy and .npz files."""

import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from scotopia.graph.errors import InputError

from .clip_files import MAX_PIXELS, check_frame_size, most_bytes


def read_npy(path: Path) -> NDArray[Any]:
    """Read frames (T, H, W) of bool, uint8, uint16 or floats of unchecked range.

    Raises
    ------
    InputError
        If the file holds something else; what NumPy raises if it is damaged.
    """
    with path.open("rb") as file:
        return _read_array(file, path.stat().st_size, path)


def read_npz(path: Path) -> NDArray[Any]:
    """Read frames as `read_npy` does, from key `frames` of an archive."""
    with zipfile.ZipFile(path) as archive:
        if "frames.npy" not in archive.namelist():
            raise InputError(
                f"clip {path} has no key 'frames': save it with "
                "numpy.savez_compressed(path, frames=frames)"
            )
        entry = archive.getinfo("frames.npy")
        # Others unpack whole, whatever is asked of them.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"clip {path} is compressed by method {entry.compress_type}, not by "
                "deflate: save it with numpy.savez_compressed(path, frames=frames)"
            )
        with archive.open(entry) as member:
            return _read_array(member, entry.file_size, path)


def _read_array(file: IO[bytes], size: int, path: Path) -> NDArray[Any]:
    """Read frames (T, H, W) from a file of `size` bytes in npy format.

    NumPy allocates what the header claims: it is believed only once it has been checked.
    """
    with warnings.catch_warnings(action="ignore"):  # of a header that Python 2 wrote
        if npy_format.read_magic(file) == (1, 0):
            shape, _, dtype = npy_format.read_array_header_1_0(file)
        else:  # 2.0 has a longer header; 3.0 adds Unicode field names, which frames do not have
            shape, _, dtype = npy_format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise InputError(
            f"clip {path} holds pickled objects, which are never loaded: save its frames as uint8"
        )
    if dtype.kind in "iu" and dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        # Whether 255, 65535 or 1 is white, its type does not tell.
        raise InputError(
            f"clip {path} holds {dtype}, whose white is not known: save numpy.uint8(frames) if "
            "it is 255, numpy.uint16(frames) if it is 65535, frames / white if it is another"
        )
    if dtype.kind not in "buf":
        raise InputError(
            f"clip {path} holds {dtype}: convert it to uint8, or to floats from 0 to 1"
        )
    if len(shape) != 3:
        raise InputError(
            f"clip {path} has shape {shape}: convert it to gray frames of shape "
            "(frames, height, width)"
        )
    if min(shape) < 1:
        raise InputError(f"clip {path} is empty, of shape {shape}: give at least one frame")
    pixels = shape[0] * shape[1] * shape[2]
    if pixels > MAX_PIXELS:
        raise InputError(
            f"clip {path} has shape {shape}, more than {MAX_PIXELS} pixels: shorten it or make it "
            "smaller"
        )
    check_frame_size(f"frames of clip {path} have", shape[2], shape[1])
    claimed = pixels * dtype.itemsize
    if claimed > size:
        raise ValueError(f"{claimed} bytes of numbers in {size}")
    if claimed > most_bytes(path):
        raise InputError(
            f"clip {path} unpacks to {claimed} bytes, more than {most_bytes(path)}: "
            "save it with numpy.savez"
        )
    file.seek(0)
    with warnings.catch_warnings(action="ignore"):
        frames: NDArray[Any] = npy_format.read_array(file, allow_pickle=False)
    return frames
