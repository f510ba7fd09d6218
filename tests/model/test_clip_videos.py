import gc
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scotopia.graph.errors import InputError
from scotopia.model.video import load_clip

Frames = NDArray[np.uint8]

# Container, codec and pixel format.
KINDS = {
    "Matroska": ("mkv", "libx264", "yuv420p"),
    "WebM": ("webm", "libvpx-vp9", "yuv420p"),
    "MP4": ("mp4", "libx264", "yuv420p"),
    "MJPEG": ("avi", "mjpeg", "yuvj420p"),
    "FFV1": ("mkv", "ffv1", "gray"),
    "transport stream": ("ts", "mpeg2video", "yuv420p"),
}


def scene(count: int = 40) -> Frames:
    """Waves over noise that stands still, 96 x 64."""
    y, x = np.mgrid[:64, :96]
    noise = np.random.default_rng(0).integers(0, 60, (64, 96))
    waves = [60 * np.sin((x + 3 * t) / 9) + 30 * np.cos((y - 2 * t) / 7) for t in range(count)]
    return np.clip(100 + noise + np.stack(waves), 0, 255).astype(np.uint8)


def write(
    path: Path,
    frames: Frames,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Callable[[int], int] = lambda number: number,
    setup: Callable[[av.VideoStream], object] = lambda stream: None,
) -> Path:
    """Encode frames of 25 a second, frame n at `times(n)`."""
    if codec.startswith("lib") and codec not in av.codecs_available:
        pytest.skip(f"PyAV without {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt, stream.gop_size = pix_fmt, 12
        setup(stream)
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="gray").reformat(format=pix_fmt)
            image.pts, image.time_base = times(number), Fraction(1, 25)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path


def harm(content: bytes, how: str, seed: int) -> bytes:
    size, rng = len(content), np.random.default_rng(seed)
    if how == "cut":
        return content[: int(size * (0.6, 0.9)[seed])]
    harmed = bytearray(content)
    if how == "zeroed":
        place = int(size * (0.4, 0.7)[seed])
        harmed[place : place + 2000] = bytes(2000)
    for place in rng.choice(np.arange(size // 10, size * 9 // 10), 30) if how == "flipped" else ():
        harmed[place] ^= 1 << int(rng.integers(8))
    return bytes(harmed)


def told(path: Path) -> bool:
    """Whether damage is refused or noted."""
    try:
        return bool(load_clip(path, None).notes)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_where_container_or_codec_can_tell(tmp_path: Path, kind: str) -> None:
    suffix, codec, pix_fmt = KINDS[kind]
    whole = write(tmp_path / f"whole.{suffix}", scene(), codec, pix_fmt)
    clip = load_clip(whole, None)
    assert clip.notes == () and len(clip.frames) == 40
    silent = set()
    for how in ("zeroed", "flipped", "cut"):
        for seed in (0, 1):
            path = tmp_path / f"harmed.{suffix}"
            path.write_bytes(harm(whole.read_bytes(), how, seed))
            if not told(path):
                silent.add(how)
    # A WebM of VP9 has no checksums, and VP9 no codes that are wrong.
    assert silent <= ({"flipped"} if kind == "WebM" else set())


def test_what_cannot_be_told_is_as_the_documents_say(tmp_path: Path) -> None:
    # AVI has no checksums, and FFmpeg heeds none of FFV1's own.
    path = write(tmp_path / "clip.avi", scene(8), "ffv1", "gray")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    clip = load_clip(path, None)
    assert clip.notes == ()
    assert not np.array_equal(clip.frames, (scene(8) / 255).astype(np.float32))


def test_place_of_damage_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.ts", scene(), "mpeg2video")
    content = bytearray(path.read_bytes())
    content[40 * 188] = 0
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_clip(path, None)
    assert str(caught.value) == f"clip {path} is damaged at byte 7520: copy or record it again"


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_frames_before_a_missing_end_are_read(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"clip.{suffix}", scene(), "mpeg2video")
    whole = load_clip(path, None).frames
    os.truncate(path, 7500)  # 39 packets of 188 bytes, and a part of one
    clip = load_clip(path, None)
    count = len(clip.frames)
    assert 5 < count < 40
    np.testing.assert_array_equal(clip.frames[:-1], whole[: count - 1])
    assert clip.notes == (
        f"clip {path}: its file is cut off: what followed its last frame is missing",
    )


def test_frames_that_a_header_counts_are_missed(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.avi", scene(8), "ffv1", "gray")
    content = path.read_bytes()
    header = content.index(b"strh") + 40  # dwLength of the stream's header
    path.write_bytes(content[:header] + (9).to_bytes(4, "little") + content[header + 4 :])
    assert load_clip(path, None).notes == (f"clip {path}: its header counts 9 frames, 8 are there",)


def test_uneven_times_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mkv", scene(8), times=lambda n: n + 2 * (n > 4))
    assert load_clip(path, None).notes == (
        f"clip {path}: its frames are 40 to 120 ms apart, each counts alike: its frame rate "
        "varies, or frames are missing",
    )


@pytest.mark.parametrize(
    ("suffix", "codec", "options", "start"),
    [
        ("mp4", "libx264", {"bf": "2", "x264-params": "open-gop=1:keyint=6"}, 0),
        ("ts", "mpeg2video", {"bf": "2"}, 1000),
        ("mkv", "libx264", {"bf": "3"}, 77),
        ("avi", "mpeg4", {"bf": "2"}, 0),
        ("mp4", "libx264", {"movflags": "frag_keyframe"}, 0),
        ("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}, 0),
        ("mkv", "libx265", {"x265-params": "log-level=none"}, 0),
        ("ogv", "libtheora", {}, 0),
        ("mov", "prores", {}, 0),
    ],
)
def test_whole_videos_are_read_whole(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], start: int
) -> None:
    pix_fmt = "yuv422p10le" if codec == "prores" else "yuv420p"
    path = write(tmp_path / f"clip.{suffix}", scene(), codec, pix_fmt, options, lambda n: n + start)
    clip = load_clip(path, None)
    assert clip.notes == () and len(clip.frames) == 40
    # In order: each is most like the frame that it was made from.
    errors = np.abs(clip.frames[:, None] - scene()[None] / 255).mean(axis=(2, 3))
    assert (errors.argmin(axis=1) == np.arange(40)).all()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_videos_of_phones_are_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    frames = np.full((3, 64, 96), 20, np.uint8)
    frames[:, :32, :32] = 220  # top left

    def turn(stream: av.VideoStream) -> None:
        stream.set_display_rotation(degrees, hflip=mirrored)  # type: ignore[attr-defined]

    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("PyAV writes no display matrix")
    path = write(tmp_path / "clip.mp4", frames, "mpeg4", setup=turn)
    expected = np.rot90(frames[0], degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    found = load_clip(path, None).frames[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected / 255).mean() < 0.02


def test_a_decoder_ends_with_its_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mkv", scene(3))
    gc.collect()
    load_clip(path, None)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = [thing for thing in gc.garbage if type(thing).__module__.startswith("av.")]
    gc.garbage.clear()
    assert not found


def test_more_than_eight_bits_are_kept(tmp_path: Path) -> None:
    codes = np.arange(0, 65536, 256 * 256 // (48 * 64) + 1, dtype=np.uint16)[: 48 * 64 // 2]
    frame = np.resize(codes, (48, 64))
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "gray16le"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray16le")))
        container.mux(stream.encode(None))
    found = load_clip(path, None).frames[0]
    np.testing.assert_array_equal(found, (frame / 65535).astype(np.float32))


def test_cover_of_a_sound_is_no_clip(tmp_path: Path) -> None:
    cover, path = tmp_path / "cover.png", tmp_path / "song.mp3"
    Image.new("L", (16, 16)).save(cover)
    picture = cover.read_bytes()
    tag = b"\0image/png\0\x03\0" + picture  # ID3v2.3, frame APIC: a front cover
    frame = b"APIC" + len(tag).to_bytes(4, "big") + b"\0\0" + tag
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    silence = (b"\xff\xfb\x90\xc4" + bytes(413)) * 20  # MPEG-1 layer 3, 128 kbit/s, 44.1 kHz
    path.write_bytes(b"ID3\x03\0\0" + size + frame + silence)
    with pytest.raises(InputError) as caught:
        load_clip(path, None)
    assert str(caught.value) == f"clip {path} has no pictures but a cover: give a video"
