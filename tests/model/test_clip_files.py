from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scotopia.graph.errors import InputError
from scotopia.model.video import load_clip

EVENTS = {
    "road.aedat4": (b"#!AER-DAT4.0\r\n", "AEDAT4"),
    "old.aedat": (b"#!AER-DAT2.0\r\n# text\r\n", "AEDAT"),
    "two.raw": (b"% Date 2020-09-25 07:48:31\n% system_ID 21\n% evt 2.0\n", "EVT"),
    "three.raw": (b"% date 2023-10-19 03:51:23\n% format EVT3\n% end\n", "EVT"),
    "cd.dat": (b"% Height 720\n% Version 2\n% Width 1280\n", "DAT"),
    "dvs.es": (b"Event Stream\x02\0\0\x01", "Event Stream"),
}


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_clip(path)
    return str(caught.value)


def events_sentence(path: Path, kind: str) -> str:
    return (
        f"clip {path} is a recording of events ({kind}), not of frames: save frames of it as .npy "
        "or as a video, as docs/clips.md shows"
    )


@pytest.mark.parametrize("name", EVENTS)
def test_recording_of_events_is_told_for_what_it_is(tmp_path: Path, name: str) -> None:
    head, kind = EVENTS[name]
    path = tmp_path / name
    path.write_bytes(head + bytes(range(256)))
    assert refusal(path) == events_sentence(path, kind)


def test_recording_of_n_mnist_is_told_by_its_events(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = np.zeros((500, 5), np.uint8)
    events[:, :2] = rng.integers(0, 34, (500, 2))
    time = np.sort(rng.integers(0, 300_000, 500))
    events[:, 2] = time >> 16 | rng.integers(0, 2, 500) << 7  # polarity
    events[:, 3:] = np.stack([time >> 8 & 255, time & 255], axis=1)
    path = tmp_path / "00002.bin"
    path.write_bytes(events.tobytes())
    assert refusal(path) == events_sentence(path, "N-MNIST")
    path.write_bytes(events[::-1].tobytes())  # time runs back: something else
    assert "cannot be decoded" in refusal(path)


@pytest.mark.parametrize(
    ("stored", "white"),
    [
        (np.array([[[0, 40000, 65535]]], np.uint16), 65535),
        (np.array([[[0, 40000, 65535]]], ">u2"), 65535),
        (np.array([[[False, True]]]), 1),
        (np.array([[[0, 0.25, 1]]], np.float16), 1),
    ],
)
def test_type_of_an_array_tells_its_white(
    tmp_path: Path, stored: NDArray[np.generic], white: int
) -> None:
    np.save(tmp_path / "clip.npy", stored)
    clip = load_clip(tmp_path / "clip.npy", None)
    np.testing.assert_array_equal(clip.frames, (stored / white).astype(np.float32))
    assert clip.notes == ()


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int64"])
def test_integers_of_unknown_white_are_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "clip.npy"
    np.save(path, np.zeros((2, 3, 4), dtype))
    assert refusal(path) == (
        f"clip {path} holds {dtype}, whose white is not known: save numpy.uint8(frames) if it is "
        "255, numpy.uint16(frames) if it is 65535, frames / white if it is another"
    )


def test_codes_of_fewer_bits_than_their_type_are_told(tmp_path: Path) -> None:
    path = tmp_path / "clip.npy"
    np.save(path, np.full((2, 3, 4), 1023, np.uint16))
    assert load_clip(path, None).notes == (
        f"clip {path}: none of its codes of 16 bits is above 1023: if that is white, divide by it "
        "and save floats",
    )
