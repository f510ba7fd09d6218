"""Frames in images: a folder of them, one a frame, or one file with many."""

import re
import stat
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from scotopia.graph.errors import InputError

from .clip_files import UNREADABLE, check_frame_size, uneven_times
from .files import file_mode

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# What those suffixes name: of other formats, Pillow hands PostScript to an interpreter.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# Of these, one file may hold many frames. FFmpeg reads no animated WebP, and one page of a TIFF.
_MANY = re.compile(rb"GIF8|\x89PNG\r\n|RIFF....WEBP|II[*+]\0|MM\0[*+]", re.DOTALL)

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SUBFILE_TYPE = 258, 262, 254  # tags of TIFF
_WHITE_IS_ZERO = 0


def holds_pictures(path: Path) -> bool:
    """Whether a file is an image of a format that may hold many."""
    with path.open("rb") as file:
        return _MANY.match(file.read(12)) is not None


def picture_frames(path: Path, notes: list[str]) -> Iterator[NDArray[Any]]:
    """Yield all frames (H, W) of one image file; say in `notes` what is odd about them."""
    begin, shown = 0.0, []
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_FORMATS) as image:
        for page in _pages(image):
            check_frame_size(f"frames of clip {path} have", page.width, page.height)
            yield _gray(page, f"clip {path}", notes)
            shown.append(begin)
            begin += page.info.get("duration", 0) / 1000
        if image.format == "GIF" and not path.read_bytes().rstrip(b"\0").endswith(b";"):
            notes.append("its file has no end mark: frames may be missing")
    uneven = uneven_times(shown)
    if uneven is not None:
        notes.append(uneven)


def folder_frames(folder: Path, notes: list[str]) -> Iterator[NDArray[Any]]:
    """Yield the images (H, W) of a folder, in the order of the numbers in their names."""
    visible = [file for file in folder.iterdir() if not file.name.startswith(".")]
    files = sorted(
        (file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES), key=_natural_order
    )
    if not files:
        raise InputError(f"clip {folder} is a folder without images: put .png or .jpg files in it")
    if len(files) < len(visible):
        others = sorted({file.name for file in visible} - {file.name for file in files})
        notes.append(f"{len(others)} of its entries are no images and left out ({others[0]})")
    notes += _gaps(files)
    for file in files:
        try:
            if not stat.S_ISREG(file_mode(file)):
                raise OSError("no file")
            with (
                warnings.catch_warnings(action="ignore"),
                Image.open(file, formats=_FORMATS) as image,
            ):
                pages = _pages(image)
                page = next(pages)
                check_frame_size(f"image {file} has", page.width, page.height)
                frame = _gray(page, f"image {file}", notes)
                if next(pages, None) is not None:
                    raise InputError(
                        f"image {file} holds more than one frame: give this file as a clip of its "
                        "own, or split it into one image a frame"
                    )
        except InputError:
            raise
        except UNREADABLE as error:
            raise InputError(f"image {file} cannot be decoded: replace it or remove it") from error
        yield frame


def _natural_order(file: Path) -> tuple[list[str | int], str]:
    """Key by which f2 comes before f10."""
    return _split(file), file.name


def _split(file: Path) -> list[str | int]:
    """Texts and numbers of a name in turn."""
    parts = re.split("([0-9]+)", file.stem)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _gaps(files: list[Path]) -> list[str]:
    """Tell where a number is left out or twice, of names that differ in one number alone."""
    steps = []
    for before, after in pairwise(files):
        first, second = _split(before), _split(after)
        differ = [(a, b) for a, b in zip(first, second, strict=False) if a != b]
        numbers = [b - a for a, b in differ if isinstance(a, int) and isinstance(b, int)]
        if len(first) == len(second) and len(differ) == len(numbers) <= 1:
            steps.append((sum(numbers), before.name, after.name))
    usual = max(min((step for step, *_ in steps), default=1), 1)
    return [
        f"its images are not numbered evenly ({before}, then {after}): frames may be missing or "
        "twice"
        for step, before, after in steps
        if step != usual
    ][:1]


def _pages(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the frames of an image file, one at a time; `image` is each of them in turn."""
    number = 0
    while True:
        # A TIFF may hold copies of a page at a smaller size.
        if not _tag(image, _SUBFILE_TYPE) & 1:
            yield image
        number += 1
        # Photographs of phones hold more than the photograph: depth, or gains.
        if image.format in ("JPEG", "MPO") or number >= getattr(image, "n_frames", 1):
            return
        image.seek(number)


def _tag(image: Image.Image, number: int) -> int:
    """Tag of a TIFF, the first of its values; 0, if it has none."""
    value = getattr(image, "tag_v2", {}).get(number, 0)
    return int(value[0] if isinstance(value, tuple) else value)


def _gray(page: Image.Image, what: str, notes: list[str]) -> NDArray[Any]:
    """Convert a page to uint8, uint16, or floats of unchecked range (H, W)."""
    deep = ";16" in str(getattr(page, "tile", ""))  # empty once the page is loaded
    upright = ImageOps.exif_transpose(page)
    assert upright is not None
    if page.mode.startswith("I;16") or (page.mode == "I" and page.format in ("PNG", "PPM")):
        codes = np.asarray(upright).astype(np.uint16)
        bits = _tag(page, _BITS_PER_SAMPLE) or 16
        if page.format == "TIFF" and _tag(page, _PHOTOMETRIC) == _WHITE_IS_ZERO:
            codes = 2**bits - 1 - codes  # of eight bits, Pillow sees to it
        return codes if bits == 16 else codes / (2**bits - 1)
    if page.mode == "F":
        return np.asarray(upright)
    if page.mode == "I":
        raise InputError(f"{what} has 32 bits a channel, whose white is not known: save it with 16")
    note = "its colours have 16 bits a channel: 8 of them are read"
    if deep and note not in notes:
        notes.append(note)
    return np.asarray(upright.convert("L"))
