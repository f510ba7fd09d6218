"""Clips: gray videos as arrays, read from a file, from a folder or from the package."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scotopia.graph.errors import InputError

from .clip_arrays import read_npy, read_npz
from .clip_files import (
    MAX_FRAMES,
    MAX_PIXELS,
    UNREADABLE,
    check_file,
    damaged_frame,
    most_bytes,
    undecodable,
)
from .clip_images import folder_frames, holds_pictures, picture_frames
from .clip_videos import video_frames

EMBEDDED = "davis_road"
"""Name of the clip that is packaged; `model/clips/NOTICE` has its source and licence."""

SIZE = 128
"""Side of the frames by PROTOCOL."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Gray video.

    Attributes
    ----------
    name : str
        The file's stem, the folder's name, or `davis_road`.
    frames : array (T, H, W), float32
        Brightness in [0, 1].
    notes : tuple of str
        What is odd about how it was read, a line each: frames that seem to be missing, uneven
        times.
    """

    name: str
    frames: NDArray[np.float32]
    notes: tuple[str, ...] = ()


def central_square(frames: NDArray[Any]) -> NDArray[Any]:
    """Cut the central square out of frames (..., H, W): (..., S, S) with S = min(H, W).

    If the margin is odd, its smaller half is cut at the top and at the left.
    """
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side]


def box_average(frames: NDArray[Any], size: int) -> NDArray[np.float64]:
    """Shrink square frames (..., S, S) to (..., size, size), 1 <= size <= S.

    Each new pixel is the mean of the whole source pixels whose centres lie in its area; a centre
    on an edge belongs to the area above or to the left. This is Pillow's BOX filter, without its
    rounding: where S / size is not an integer, areas of unequal numbers of pixels take turns.
    """
    side = frames.shape[-1]
    # Source pixel j's centre, j + 1/2, is (2j + 1) size / 2S in new pixels: take the ceiling, - 1.
    area = (np.arange(1, 2 * side, 2) * size - 1) // (2 * side)
    average = (np.arange(size)[:, None] == area).astype(np.float64)  # (size, S)
    average /= average.sum(axis=1, keepdims=True)
    shrunk: NDArray[np.float64] = average @ frames @ average.T
    return shrunk


def load_clip(
    path: str | Path,
    size: int | None = SIZE,
    max_frames: int | None = None,
    *,
    at_most: bool = False,
) -> Clip:
    """Read a clip.

    Parameters
    ----------
    path : str or Path
        One of: .npz (key `frames`) or .npy, an array (T, H, W) of uint8, uint16, bool, or floats
        in [0, 1]; a video that PyAV decodes; an animated GIF, PNG or WebP, or a TIFF of many pages;
        a folder of images in the order of the numbers in their names. Colour is converted to gray,
        pictures are turned upright. Nothing is ever unpickled.
    size : int or None
        The central square is box-averaged to size x size pixels; None keeps the frames as they
        are.
    max_frames : int or None
        Read no more than the first `max_frames` frames.
    at_most : bool
        Of frames smaller than `size`, keep the central square as it is.

    Raises
    ------
    InputError
        If the clip is missing, empty, larger than `MAX_PIXELS` or smaller than `size`, holds
        something else than such frames, or is seen to be damaged. Frames, rows and columns count
        from 0.
    """
    path = Path(path)
    for option, value in (("size", size), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}: give 1 or more")

    frames = bytearray()  # a list of arrays would take more, and twice, for its array at the end
    shape: tuple[int, ...] | None = None
    notes: list[str] = []
    white = 0  # the largest code of 16 bits
    for number, stored in enumerate(islice(_stored_frames(path, notes), max_frames)):
        height, width = stored.shape
        if shape is None:
            shape = stored.shape
            most = min(MAX_PIXELS, most_bytes(path))
        if stored.shape != shape:
            raise InputError(
                f"clip {path}: frame {number} is {width} x {height} pixels, the first is "
                f"{shape[1]} x {shape[0]}: make all frames one size"
            )
        if size is not None and min(shape) < size and not at_most:
            raise InputError(
                f"clip {path}: its frames of {width} x {height} pixels are smaller than "
                f"{size} x {size}: choose a smaller size or a larger clip"
            )
        if stored.dtype.newbyteorder("=") == np.uint16:
            white = max(white, int(stored.max()))
        frame = _to_unit_range(stored, path, number)
        if size is not None:
            frame = box_average(central_square(frame), min(size, *shape))
        if (number + 1) * frame.size > most or number >= MAX_FRAMES:
            limit = f"{MAX_FRAMES} frames" if number >= MAX_FRAMES else f"{most} pixels"
            raise InputError(f"clip {path} has more than {limit}: shorten it or make it smaller")
        frame = np.ascontiguousarray(frame, np.float32)
        frames += frame.data
    if not frames:
        raise InputError(f"clip {path} holds no frames: give a clip with at least one")
    if 0 < white < 2**12:
        notes.append(
            f"none of its codes of 16 bits is above {white}: if that is white, divide by it and "
            "save floats"
        )
    return Clip(
        path.stem,
        np.frombuffer(frames, np.float32).reshape(-1, *frame.shape),
        tuple(f"clip {path}: {note}" for note in notes),
    )


def embedded_clip(size: int | None = SIZE, *, at_most: bool = False) -> Clip:
    """Load the packaged clip `davis_road`: 59 frames of 128 x 128 played forward and back.

    It was recorded by a silicon retina (DAVIS346) above a road; the camera stands still and cars
    pass. Has 118 frames. Its size is as in `load_clip`, 128 being its full size.
    """
    path = Path(__file__).parent / "clips" / f"{EMBEDDED}.npz"
    clip = load_clip(path, size, at_most=at_most)
    return Clip(EMBEDDED, np.concatenate([clip.frames, clip.frames[::-1]]))


def resolve_clip(text: str, size: int | None = SIZE, *, at_most: bool = False) -> Clip:
    """Load the clip that a user named: `davis_road` for the packaged one, else a path.

    A file of that very name is reached as `./davis_road`.
    """
    load = embedded_clip if text == EMBEDDED else partial(load_clip, text)
    return load(size, at_most=at_most)


def _to_unit_range(stored: NDArray[Any], path: Path, number: int) -> NDArray[np.float64]:
    """Convert a stored frame to values in [0, 1]; raise InputError if its floats are not."""
    if stored.dtype.kind in "bu":
        return stored / (1.0 if stored.dtype == bool else float(np.iinfo(stored.dtype).max))
    with np.errstate(over="ignore", invalid="ignore"):  # of NaN that signals, too
        frame = stored.astype(np.float64)
    outside = ~((frame >= 0) & (frame <= 1))  # not written as "< 0 or > 1": NaN is outside, too
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise InputError(
            f"clip {path} holds {frame[row, column]:g} at frame {number}, row {row}, "
            f"column {column}: "
            + (
                "replace what is no number"
                if np.isnan(frame[row, column])
                else "scale its values to [0, 1] or store uint8"
            )
        )
    return frame


def _stored_frames(path: Path, notes: list[str]) -> Iterator[NDArray[Any]]:
    """Yield the frames (H, W) as stored, codes or floats of unchecked range, one at a time."""
    check_file(path, EMBEDDED)
    number = 0
    try:
        for frame in _open_frames(path, notes):
            yield frame
            number += 1
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(damaged_frame(path, number) if number else undecodable(path)) from error


def _open_frames(path: Path, notes: list[str]) -> Iterator[NDArray[Any]]:
    if path.is_dir():
        return folder_frames(path, notes)
    match path.suffix.lower():
        case ".npy":
            return iter(read_npy(path))
        case ".npz":
            return iter(read_npz(path))
        case _:
            return (picture_frames if holds_pictures(path) else video_frames)(path, notes)
