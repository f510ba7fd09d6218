"""Clips that a user names: files, folders of clips, or the built-in one."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from scotopia.model.video import SIZE, Clip, resolve_clip

# A folder that holds one of these is many clips; else it is one, of images. The rest that PyAV
# decodes can be named one by one.
CLIP_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".npy", ".npz", ".ogv", ".ts", ".webm", ".wmv", ".y4m"}
)


def clip_names(arguments: Iterable[str]) -> list[str]:
    """Clips that a user named, each folder of clips replaced by the clips in it."""
    return [name for argument in arguments for name in _clips_in(argument)]


def read_clip(name: str, size: int | None = None, array: tuple[int, int] = (1, 1)) -> Clip:
    """Read the clip that a user named, and print its notes as lines on standard error.

    Parameters
    ----------
    size
        Side of its frames. By default 128, by PROTOCOL, or more for an array of cells that is
        larger; a clip that is smaller keeps its central square as it is.
    array
        Height and width of the array.
    """
    clip = resolve_clip(name, size or max(SIZE, *array), at_most=size is None)
    for note in clip.notes:
        tell(note)
    return clip


def read_clips(arguments: Iterable[str], size: int | None = None) -> list[Clip]:
    """Read clips and all clips of folders as `read_clip` does."""
    return [read_clip(name, size) for name in clip_names(arguments)]


def sizes_of(clips: Sequence[Clip]) -> dict[str, list[int]]:
    """Height and width of the frames by clip, for machines."""
    return {clip.name: list(clip.frames.shape[1:]) for clip in clips}


def tell(note: str) -> None:
    """Print a line on standard error."""
    print(f"scotopia: {note}", file=sys.stderr)


def _clips_in(argument: str) -> list[str]:
    folder = Path(argument)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    clips: list[Path] = []
    others: list[Path] = []
    for file in files:
        if not file.name.startswith("."):
            (clips if file.suffix.lower() in CLIP_SUFFIXES else others).append(file)
    if clips and others:
        tell(
            f"folder {folder}: {len(others)} of its entries are no clips and left out "
            f"({others[0].name})"
        )
    return [str(file) for file in clips] or [argument]
