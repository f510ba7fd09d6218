from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scotopia.graph.errors import InputError
from scotopia.model.video import load_clip

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 10, 14), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (10, 14), dtype=np.uint16)


def save(folder: Path, names: list[str], frames: NDArray[Any] = FRAMES) -> Path:
    folder.mkdir()
    for name, frame in zip(names, frames, strict=False):
        Image.fromarray(frame).save(folder / name)
    return folder


def pages(path: Path, frames: NDArray[Any] = FRAMES, **options: Any) -> Path:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_clip(path, None)
    return str(caught.value)


def codes(path: Path) -> NDArray[np.uint8]:
    return np.rint(load_clip(path, None).frames * 255).astype(np.uint8)


def test_images_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    folder = save(tmp_path / "clip", [f"f{number}.png" for number in range(12)])
    np.testing.assert_array_equal(codes(folder), FRAMES)
    assert load_clip(folder, None).notes == ()


@pytest.mark.parametrize(
    ("names", "gap"),
    [
        (["f1.png", "f2.png", "f4.png"], "f2.png, then f4.png"),
        (["f7.png", "f9.png", "f10.png"], "f7.png, then f9.png"),
        (["a_01.png", "a_1.png", "a_2.png"], "a_01.png, then a_1.png"),
        (["0.png", "10.png", "20.png"], None),
        (["left1.png", "left2.png", "right8.png", "right9.png"], None),
        (["dawn.png", "dusk.png"], None),
    ],
)
def test_gap_in_the_numbers_is_told(tmp_path: Path, names: list[str], gap: str | None) -> None:
    folder = save(tmp_path / "clip", names)
    note = (
        f"clip {folder}: its images are not numbered evenly ({gap}): frames may be missing or twice"
    )
    assert load_clip(folder, None).notes == ((note,) if gap else ())


def test_what_is_no_image_is_left_out_and_told(tmp_path: Path) -> None:
    folder = save(tmp_path / "clip", ["0.png", "1.png"])
    for name in ("2.exr", "times.txt", ".thumbs"):
        (folder / name).touch()
    clip = load_clip(folder, None)
    assert len(clip.frames) == 2
    assert clip.notes == (f"clip {folder}: 2 of its entries are no images and left out (2.exr)",)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.tif", {}),
        ("clip.tiff", {"compression": "tiff_lzw"}),
        ("clip.png", {}),
        ("clip.webp", {"lossless": True}),
        ("clip.gif", {}),
    ],
)
def test_all_pages_are_read_in_order(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = pages(tmp_path / name, **options)
    np.testing.assert_array_equal(codes(path), FRAMES)
    assert load_clip(path, None).notes == ()


def test_pages_of_a_smaller_size_are_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.tif"
    small = Image.fromarray(FRAMES[1, :5, :7])
    small.encoderinfo = {"tiffinfo": {254: 1}}  # NewSubfileType: of reduced resolution
    Image.fromarray(FRAMES[0]).save(path, save_all=True, append_images=[small])
    np.testing.assert_array_equal(codes(path), FRAMES[:1])


@pytest.mark.parametrize("name", ["b.tif", "b.gif", "b.webp", "b.png"])
def test_image_of_many_frames_in_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "clip", ["a.png"])
    path = pages(folder / name)
    assert refusal(folder) == (
        f"image {path} holds more than one frame: give this file as a clip of its own, or split it "
        "into one image a frame"
    )


@pytest.mark.parametrize("name", ["clip.gif", "clip.png", "clip.webp", "clip.tif"])
def test_cut_off_pictures_are_told(tmp_path: Path, name: str) -> None:
    path = pages(tmp_path / name)
    content = path.read_bytes()
    for left in np.linspace(60, 0.95 * len(content), 40).astype(int):
        path.write_bytes(content[:left])
        try:
            assert load_clip(path, None).notes
        except InputError as error:
            assert "cannot be decoded" in str(error)


def test_gif_whose_last_frames_are_missing_is_told(tmp_path: Path) -> None:
    path = pages(tmp_path / "clip.gif")
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\x21\xf9")])  # up to the control of the last frame
    clip = load_clip(path, None)
    assert len(clip.frames) == 11
    assert clip.notes == (f"clip {path}: its file has no end mark: frames may be missing",)


def test_uneven_times_of_pictures_are_told(tmp_path: Path) -> None:
    path = pages(tmp_path / "clip.gif", duration=[40] * 5 + [200] * 7)
    assert load_clip(path, None).notes == (
        f"clip {path}: its frames are 40 to 200 ms apart, each counts alike: its frame rate "
        "varies, or frames are missing",
    )


@pytest.mark.parametrize("name", ["0.png", "0.tif", "0.pgm"])
def test_sixteen_bits_are_read_exactly(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "clip", [name], DEEP[None])
    np.testing.assert_array_equal(
        load_clip(folder, None).frames[0], (DEEP / 65535).astype(np.float32)
    )


def test_white_of_a_tiff_is_as_its_tags_say(tmp_path: Path) -> None:
    twelve, zero = tmp_path / "inverted.tif", tmp_path / "clip.tif"
    Image.fromarray(DEEP).save(twelve, tiffinfo={262: 0})  # WhiteIsZero
    content = twelve.read_bytes()
    tag = content.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")
    zero.write_bytes(content[: tag + 8] + b"\0\0" + content[tag + 10 :])
    np.testing.assert_array_equal(
        load_clip(zero, None).frames[0], ((65535 - DEEP) / 65535).astype(np.float32)
    )


def test_floats_of_a_tiff_are_read_and_their_range_checked(tmp_path: Path) -> None:
    folder = save(tmp_path / "clip", ["0.tif"], np.full((1, 4, 4), 0.25, np.float32))
    assert (load_clip(folder, None).frames == 0.25).all()
    Image.fromarray(np.full((4, 4), 2, np.float32)).save(folder / "0.tif")
    assert "holds 2 at frame 0, row 0, column 0" in refusal(folder)


def test_image_of_32_bits_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "clip", ["0.tif"], np.zeros((1, 4, 4), np.int32))
    assert refusal(folder) == (
        f"image {folder / '0.tif'} has 32 bits a channel, whose white is not known: save it with 16"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path: Path, orientation: int) -> None:
    turned = {
        1: FRAMES[0],
        2: FRAMES[0][:, ::-1],
        3: FRAMES[0][::-1, ::-1],
        4: FRAMES[0][::-1],
        5: FRAMES[0].T,
        6: np.rot90(FRAMES[0]),
        7: FRAMES[0][::-1, ::-1].T,
        8: np.rot90(FRAMES[0], -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder = tmp_path / "clip"
    folder.mkdir()
    Image.fromarray(turned[orientation].copy()).save(folder / "0.png", exif=exif)
    np.testing.assert_array_equal(codes(folder)[0], FRAMES[0])
