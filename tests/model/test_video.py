import io
import pickle
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scotopia.graph.errors import InputError
from scotopia.model.video import (
    MAX_PIXELS,
    box_average,
    central_square,
    embedded_clip,
    load_clip,
    resolve_clip,
)

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 12, 16), dtype=np.uint8)


def refusal(path: Path, size: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_clip(path, size)
    return str(caught.value)


def write_video(
    path: Path,
    frames: NDArray[np.uint8],
    codec: str = "ffv1",
    pix_fmt: str = "gray",
    damage: Callable[[int, bytes], bytes] = lambda number, packet: packet,
) -> None:
    """Encode gray frames with an intra-only codec: one packet a frame, each through `damage`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = pix_fmt
        stream.gop_size = 1
        number = 0
        for frame in [*frames, None]:
            image = None if frame is None else av.VideoFrame.from_ndarray(frame, format="gray")
            for packet in stream.encode(image and image.reformat(format=pix_fmt)):
                damaged = av.Packet(damage(number, bytes(packet)))
                damaged.stream, damaged.time_base = stream, Fraction(1, 25)
                damaged.pts = damaged.dts = number
                container.mux(damaged)
                number += 1


def write_images(folder: Path, frames: NDArray[np.uint8]) -> None:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:03}.png")


def test_box_average_is_the_mean_of_blocks() -> None:
    frame = np.array([[1, 3, 0, 0], [5, 7, 0, 4], [0, 0, 8, 8], [0, 0, 8, 8]])
    np.testing.assert_array_equal(box_average(frame, 2), [[4, 1], [0, 8]])


def test_box_average_gives_a_centre_on_an_edge_to_the_area_before_it() -> None:
    # The areas are 1.5 pixels wide, the middle pixel's centre lies at 1.5.
    frame = np.array([[0, 2, 8]] * 3)
    np.testing.assert_array_equal(box_average(frame, 2), [[1, 8], [1, 8]])


@pytest.mark.parametrize("side", [128, 144, 256, 260, 405])
def test_box_average_is_pillows_box_filter(side: int) -> None:
    frame = np.random.default_rng(side).random((side, side), dtype=np.float32)
    pillow = Image.fromarray(frame).resize((128, 128), Image.Resampling.BOX)
    np.testing.assert_allclose(box_average(frame, 128), np.asarray(pillow), atol=1e-6)


def test_central_square_cuts_the_smaller_half_of_an_odd_margin_first() -> None:
    frames = np.arange(14).reshape(1, 2, 7)
    np.testing.assert_array_equal(central_square(frames), [[[2, 3], [9, 10]]])


@pytest.mark.parametrize("kind", ["npz", "npy", "NPY", "float", "fortran", "video", "folder"])
def test_every_kind_of_clip_reads_the_same(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"clip.{kind}"
    match kind:
        case "npz":
            np.savez_compressed(path, frames=FRAMES)
        case "npy" | "NPY":
            with path.open("wb") as file:
                np.save(file, FRAMES)
        case "float":
            path = path.with_suffix(".npy")
            np.save(path, FRAMES / np.float32(255))
        case "fortran":
            path = path.with_suffix(".npy")
            np.save(path, np.asfortranarray(FRAMES))
        case "video":
            path = path.with_suffix(".mkv")
            write_video(path, FRAMES)
        case "folder":
            path = path.with_suffix("")
            write_images(path, FRAMES)
    clip = load_clip(path, size=None)
    assert clip.name == "clip"
    assert clip.frames.dtype == np.float32
    np.testing.assert_array_equal(clip.frames, (FRAMES / 255).astype(np.float32))


def test_colour_becomes_gray(tmp_path: Path) -> None:
    folder = tmp_path / "colour"
    folder.mkdir()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "red.png")
    # Luma of ITU-R BT.601
    assert load_clip(folder, 8).frames == pytest.approx(0.299, abs=0.5 / 255)


def test_size_averages_the_central_square(tmp_path: Path) -> None:
    path = tmp_path / "clip.npy"
    np.save(path, FRAMES)
    blocks = FRAMES[:, :, 2:14].reshape(5, 4, 3, 4, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(load_clip(path, 4).frames, blocks, rtol=1e-6)


def test_max_frames_reads_the_first(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mkv", FRAMES)
    clip = load_clip(tmp_path / "clip.mkv", None, max_frames=2)
    np.testing.assert_array_equal(clip.frames, (FRAMES[:2] / 255).astype(np.float32))


def test_embedded_clip_plays_forward_and_back() -> None:
    clip = embedded_clip()
    assert clip.name == "davis_road"
    assert clip.frames.shape == (118, 128, 128)
    np.testing.assert_array_equal(clip.frames, clip.frames[::-1])


def test_embedded_clip_is_small_enough_to_package() -> None:
    import scotopia.model.video as video

    clips = Path(video.__file__).parent / "clips"
    assert (clips / "davis_road.npz").stat().st_size < 1_500_000
    assert "Copyright (c) 2020 International Centre for Neuromorphic Systems" in (
        clips / "NOTICE"
    ).read_text(encoding="utf-8")


def test_resolve_clip_takes_the_embedded_name_or_a_path(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", FRAMES)
    assert resolve_clip("davis_road", 32).frames.shape == (118, 32, 32)
    assert resolve_clip(str(tmp_path / "clip.npy"), 8).name == "clip"


# Bad input: the whole sentence, which names the thing, the value and the remedy.


def test_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nothing.mp4"
    assert refusal(path) == (
        f"clip {path} does not exist: give a video, an .npz or .npy file, a folder of images, or "
        "davis_road for the built-in clip"
    )


@pytest.mark.parametrize("suffix", ["npz", "npy", "mp4"])
def test_file_without_bytes_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    path.touch()
    assert refusal(path) == f"clip {path} is empty (0 bytes): copy or record it again"


@pytest.mark.parametrize("name", ["clip.npz", "clip.npy", "clip.mp4", "clip.txt", "clip.bin"])
def test_file_that_is_no_clip_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("Dear reader, these are letters.\n" * 50)
    assert refusal(path) == (
        f"clip {path} cannot be decoded, it is damaged or no clip: give a video, an .npz or .npy "
        "file, or a folder of images"
    )


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_array_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"clip.{suffix}"
    if suffix == "npz":
        np.savez_compressed(path, frames=FRAMES)
    else:
        np.save(path, FRAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(path) == (
        f"clip {path} cannot be decoded, it is damaged or no clip: give a video, an .npz or .npy "
        "file, or a folder of images"
    )


def test_npz_without_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.npz"
    np.savez(path, video=FRAMES)
    assert refusal(path) == (
        f"clip {path} has no key 'frames': save it with numpy.savez_compressed(path, frames=frames)"
    )


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (
            FRAMES.astype(np.complex64),
            "holds complex64: convert it to uint8, or to floats from 0 to 1",
        ),
        (
            np.zeros((5, 12, 16, 3), np.uint8),
            "has shape (5, 12, 16, 3): convert it to gray frames of shape (frames, height, width)",
        ),
        (
            np.zeros((0, 12, 16), np.uint8),
            "is empty, of shape (0, 12, 16): give at least one frame",
        ),
    ],
    ids=["dtype", "colour", "empty"],
)
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_array_of_another_kind_is_refused(
    tmp_path: Path, array: NDArray[Any], sentence: str, suffix: str
) -> None:
    path = tmp_path / f"clip.{suffix}"
    if suffix == "npz":
        np.savez(path, frames=array)
    else:
        np.save(path, array)
    assert refusal(path) == f"clip {path} {sentence}"


@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (1.5, "1.5"), (-0.25, "-0.25")]
)
def test_value_outside_the_unit_range_is_refused(tmp_path: Path, value: float, text: str) -> None:
    path = tmp_path / "clip.npy"
    frames = np.zeros((5, 12, 16))
    frames[3, 7, 2] = frames[3, 9, 0] = frames[4, 0, 0] = value
    np.save(path, frames)
    remedy = "scale its values to [0, 1] or store uint8"
    if np.isnan(value):
        remedy = "replace what is no number"
    assert refusal(path) == f"clip {path} holds {text} at frame 3, row 7, column 2: {remedy}"


class Trap:
    """Fails the test if it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_pickle_is_refused_and_not_loaded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    array = np.array([Trap()], dtype=object)
    if suffix == "npz":
        np.savez(path, frames=array)
    else:
        np.save(path, array)
    assert refusal(path) == (
        f"clip {path} holds pickled objects, which are never loaded: save its frames as uint8"
    )


def test_bare_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.npy"
    path.write_bytes(pickle.dumps(Trap()))
    assert "cannot be decoded" in refusal(path)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_absurd_header_is_refused_before_memory_is_taken(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    shape = (10**6, 10**6, 10**6)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    if suffix == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("frames.npy", header.getvalue())
    else:
        path.write_bytes(header.getvalue())
    assert refusal(path) == (
        f"clip {path} has shape (1000000, 1000000, 1000000), more than {MAX_PIXELS} pixels: "
        "shorten it or make it smaller"
    )


def test_clip_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scotopia.model.video.MAX_PIXELS", 2 * 12 * 16)
    path = tmp_path / "clip.mkv"
    write_video(path, FRAMES)
    assert refusal(path) == (f"clip {path} has more than 384 pixels: shorten it or make it smaller")


def zero(packet: bytes) -> bytes:
    return bytes(len(packet))


def zero_tail(packet: bytes) -> bytes:
    return packet[: len(packet) // 2] + bytes(len(packet) - len(packet) // 2)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix", "harm"),
    [("mjpeg", "yuvj420p", "avi", zero), ("mpeg2video", "yuv420p", "mkv", zero_tail)],
    ids=["decoder raises", "decoder paints over"],
)
def test_unreadable_frame_is_named(
    tmp_path: Path, codec: str, pix_fmt: str, suffix: str, harm: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"clip.{suffix}"
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64), dtype=np.uint8)
    write_video(path, frames, codec, pix_fmt, lambda n, packet: harm(packet) if n == 3 else packet)
    assert load_clip(path, None, max_frames=3).frames.shape == (3, 48, 64)
    assert refusal(path) == (
        f"clip {path} cannot be decoded at frame 3: repair it or cut it before that frame"
    )


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    assert refusal(path) == f"clip {path} has no video stream: give a video"


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert refusal(tmp_path) == (
        f"clip {tmp_path} is a folder without images: put .png or .jpg files in it"
    )


def test_broken_image_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    write_images(folder, FRAMES)
    broken = folder / "003.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    assert refusal(folder) == f"image {broken} cannot be decoded: replace it or remove it"


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    write_images(folder, FRAMES)
    Image.new("L", (20, 12)).save(folder / "004.png")
    assert refusal(folder) == (
        f"clip {folder}: frame 4 is 20 x 12 pixels, the first is 16 x 12: make all frames one size"
    )


def test_clip_smaller_than_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.npy"
    np.save(path, FRAMES)
    assert load_clip(path, 12).frames.shape == (5, 12, 12)
    assert refusal(path, size=13) == (
        f"clip {path}: its frames of 16 x 12 pixels are smaller than 13 x 13: choose a smaller "
        "size or a larger clip"
    )


def test_at_most_keeps_the_central_square_of_a_smaller_clip(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", FRAMES)
    clip = load_clip(tmp_path / "clip.npy", 128, at_most=True)
    np.testing.assert_array_equal(clip.frames, (FRAMES[:, :, 2:14] / 255).astype(np.float32))
    assert load_clip(tmp_path / "clip.npy", 4, at_most=True).frames.shape == (5, 4, 4)


def test_size_below_one_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, size=0) == "size is 0: give 1 or more"
