"""Clips: gray videos as arrays, read from a file, from a folder or from the package."""

import lzma
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError
from .files import file_mode

EMBEDDED = "davis_road"
"""Name of the clip that is packaged; `model/clips/NOTICE` has its source and licence."""

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

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# What those suffixes name: of other formats, Pillow hands PostScript to an interpreter.
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# FFmpeg draws any .txt or .bin file as a screen of characters: its formats for text art.
_TEXT_ART = frozenset({"adf", "bin", "idf", "tty", "xbin"})

# What the zip, NumPy, FFmpeg and Pillow readers raise when their input is damaged.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # zipfile: an encrypted member, an unknown compression
    MemoryError,  # NumPy: a header that nests too deep for Python's parser
    SyntaxError,  # Pillow: a broken PNG
    TypeError,  # Pillow: a TIFF whose tags have wrong types
    tokenize.TokenError,  # NumPy: a header that does not parse
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    av.FFmpegError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, eq=False)
class Clip:
    """Gray video.

    Attributes
    ----------
    name : str
        The file's stem, the folder's name, or `davis_road`.
    frames : array (T, H, W), float32
        Brightness in [0, 1].
    """

    name: str
    frames: NDArray[np.float32]


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


def load_clip(path: str | Path, size: int | None = 128, max_frames: int | None = None) -> Clip:
    """Read a clip.

    Parameters
    ----------
    path : str or Path
        One of: .npz (key `frames`) or .npy, an array (T, H, W) of uint8, or of floats in [0, 1];
        a video that PyAV decodes; a folder of images with 8 bits a channel, sorted by name.
        Colour is converted to gray. Nothing is ever unpickled.
    size : int or None
        The central square is box-averaged to size x size pixels; None keeps the frames as they
        are.
    max_frames : int or None
        Read no more than the first `max_frames` frames.

    Raises
    ------
    InputError
        If the clip is missing, empty, damaged, larger than `MAX_PIXELS` or smaller than `size`,
        or holds something else than such frames. Frames, rows and columns count from 0.
    """
    path = Path(path)
    for option, value in (("size", size), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}: give 1 or more")

    frames = bytearray()  # a list of arrays would take more, and twice, for its array at the end
    shape: tuple[int, ...] | None = None
    for number, stored in enumerate(islice(_stored_frames(path), max_frames)):
        height, width = stored.shape
        if shape is None:
            shape = stored.shape
            most = min(MAX_PIXELS, most_bytes(path))
        if stored.shape != shape:
            raise InputError(
                f"clip {path}: frame {number} is {width} x {height} pixels, the first is "
                f"{shape[1]} x {shape[0]}: make all frames one size"
            )
        if size is not None and min(shape) < size:
            raise InputError(
                f"clip {path}: its frames of {width} x {height} pixels are smaller than "
                f"{size} x {size}: choose a smaller size or a larger clip"
            )
        frame = _to_unit_range(stored, path, number)
        if size is not None:
            frame = box_average(central_square(frame), size)
        if (number + 1) * frame.size > most or number >= MAX_FRAMES:
            limit = f"{MAX_FRAMES} frames" if number >= MAX_FRAMES else f"{most} pixels"
            raise InputError(f"clip {path} has more than {limit}: shorten it or make it smaller")
        frame = np.ascontiguousarray(frame, np.float32)
        frames += frame.data
    if not frames:
        raise InputError(f"clip {path} holds no frames: give a clip with at least one")
    return Clip(path.stem, np.frombuffer(frames, np.float32).reshape(-1, *frame.shape))


def most_bytes(path: Path) -> int:
    """Most bytes that the clip at `path` may unpack to; a folder is as large as it looks."""
    return MAX_PIXELS if path.is_dir() else FREE_BYTES + BYTES_PER_BYTE * path.stat().st_size


def embedded_clip(size: int | None = 128) -> Clip:
    """Load the packaged clip `davis_road`: 59 frames of 128 x 128 played forward and back.

    It was recorded by a silicon retina (DAVIS346) above a road; the camera stands still and cars
    pass. Has 118 frames. `size` shrinks it as in `load_clip`, 128 being its full size.
    """
    clip = load_clip(Path(__file__).parent / "clips" / f"{EMBEDDED}.npz", size)
    return Clip(EMBEDDED, np.concatenate([clip.frames, clip.frames[::-1]]))


def resolve_clip(text: str, size: int | None = 128) -> Clip:
    """Load the clip that a user named: `davis_road` for the packaged one, else a path.

    A file of that very name is reached as `./davis_road`.
    """
    return embedded_clip(size) if text == EMBEDDED else load_clip(text, size)


def _to_unit_range(stored: NDArray[Any], path: Path, number: int) -> NDArray[np.float64]:
    """Convert a stored frame to values in [0, 1]; raise InputError if its floats are not."""
    if stored.dtype == np.uint8:
        return stored / 255.0
    with np.errstate(over="ignore", invalid="ignore"):  # of NaN that signals, too
        frame = stored.astype(np.float64)
    outside = ~((frame >= 0) & (frame <= 1))  # not written as "< 0 or > 1": NaN is outside, too
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise InputError(
            f"clip {path} holds {frame[row, column]:g} at frame {number}, row {row}, "
            f"column {column}: scale its values to [0, 1] or store uint8"
        )
    return frame


def _stored_frames(path: Path) -> Iterator[NDArray[Any]]:
    """Yield the frames (H, W) as stored, uint8 or floats of unchecked range, one at a time."""
    mode = file_mode(path)
    if not mode:
        raise InputError(
            f"clip {path} does not exist: give a video, an .npz or .npy file, a folder of images, "
            f"or {EMBEDDED} for the built-in clip"
        )
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would never end
        raise InputError(
            f"clip {path} is no file and no folder but {stat.filemode(mode)}: copy it to a file"
        )
    if stat.S_ISREG(mode) and path.stat().st_size == 0:
        raise InputError(f"clip {path} is empty (0 bytes): copy or record it again")
    number = 0
    try:
        for frame in _open_frames(path):
            yield frame
            number += 1
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(_damaged(path, number) if number else _undecodable(path)) from error


def _undecodable(path: Path) -> str:
    return (
        f"clip {path} cannot be decoded, it is damaged or no clip: give a video, an .npz or .npy "
        "file, or a folder of images"
    )


def _damaged(path: Path, number: int) -> str:
    return f"clip {path} cannot be decoded at frame {number}: repair it or cut it before that frame"


def _open_frames(path: Path) -> Iterator[NDArray[Any]]:
    if path.is_dir():
        return _image_frames(path)
    match path.suffix.lower():
        case ".npy":
            with path.open("rb") as file:
                return iter(_read_array(file, path.stat().st_size, path))
        case ".npz":
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
                    return iter(_read_array(member, entry.file_size, path))
        case _:
            return _video_frames(path)


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
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
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
    _check_frame_size(f"frames of clip {path} have", shape[2], shape[1])
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


def _check_frame_size(what: str, width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise InputError(
            f"{what} {width} x {height} pixels, more than {MAX_FRAME_PIXELS}: "
            "scale to 7680 x 4320 at most"
        )


def _video_frames(path: Path) -> Iterator[NDArray[Any]]:
    # Given a file and not its name, FFmpeg takes no name for a URL and follows no playlist.
    options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # before a decoder allocates a frame
    with (
        path.open("rb") as file,
        av.open(file, "r", metadata_errors="ignore", options=options) as container,
    ):
        if container.format.name in _TEXT_ART:
            raise InputError(_undecodable(path))
        if not container.streams.video:
            raise InputError(f"clip {path} has no video stream: give a file with pictures")
        decoder = container.streams.video[0].codec_context
        if decoder is None:  # FFmpeg has none for such a stream
            raise InputError(_undecodable(path))
        decoder.options = options
        for number, frame in enumerate(container.decode(video=0)):
            _check_frame_size(f"frames of clip {path} have", frame.width, frame.height)
            if frame.is_corrupt:  # FFmpeg has painted over what it could not decode
                raise InputError(_damaged(path, number))
            yield frame.to_ndarray(format="gray")


def _image_frames(folder: Path) -> Iterator[NDArray[np.uint8]]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"clip {folder} is a folder without images: put .png or .jpg files in it")
    for file in files:
        try:
            if not stat.S_ISREG(file_mode(file)):
                raise OSError("no file")
            with (
                warnings.catch_warnings(action="ignore"),
                Image.open(file, formats=_IMAGE_FORMATS) as image,
            ):
                _check_frame_size(f"image {file} has", image.width, image.height)
                if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255
                    raise InputError(
                        f"image {file} has more than 8 bits a channel (mode {image.mode}): "
                        "save it with 8"
                    )
                gray = np.asarray(image.convert("L"))
        except InputError:
            raise
        except _UNREADABLE as error:
            raise InputError(f"image {file} cannot be decoded: replace it or remove it") from error
        yield gray
