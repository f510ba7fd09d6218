"""Frames of videos, as FFmpeg decodes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from numpy.typing import NDArray

from scotopia.graph.errors import InputError

from .clip_containers import check_container
from .clip_files import (
    MAX_FRAME_PIXELS,
    check_frame_size,
    damaged_frame,
    undecodable,
    uneven_times,
)

# FFmpeg draws any .txt or .bin file as a screen of characters: its formats for text art.
_TEXT_ART = frozenset({"adf", "bin", "idf", "tty", "xbin"})

# Photographs in a container of videos: FFmpeg gives a tile of them.
_PHOTOGRAPHS = frozenset({"avif", "heic", "heix", "mif1"})

# Pictures beside the video: covers, thumbnails, parts of a photograph.
_NO_VIDEO = (
    Disposition.attached_pic
    | Disposition.timed_thumbnails
    | Disposition.still_image
    | Disposition.dependent
)

# Before a decoder allocates a frame.
_OPTIONS = {"max_pixels": str(MAX_FRAME_PIXELS)}
# What a decoder doubts is an error, and no reason to paint something.
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}


def video_frames(path: Path, notes: list[str]) -> Iterator[NDArray[Any]]:
    """Yield the frames (H, W) of a video, upright; say in `notes` what is odd about them.

    uint8; uint16 where the video has more than 8 bits.

    Raises
    ------
    InputError
        If there is no video, or damage is found. What FFmpeg raises, else.
    """
    check_container(path, notes)
    number = 0
    try:
        for frame in _decoded(path, notes, _OPTIONS | _STRICT):
            yield frame
            number += 1
    except av.FFmpegError:
        if number:
            raise
        # Some encoders break the rules of their codec from the first frame on.
        notes.append("its stream breaks the rules of its codec: it may be damaged")
        yield from _decoded(path, notes, _OPTIONS)


def _decoded(path: Path, notes: list[str], options: dict[str, str]) -> Iterator[NDArray[Any]]:
    # Given a file and not its name, FFmpeg takes no name for a URL and follows no playlist.
    with (
        path.open("rb") as file,
        av.open(file, "r", metadata_errors="ignore", options=_OPTIONS) as container,
    ):
        if container.format.name in _TEXT_ART:
            raise InputError(undecodable(path))
        brand = container.metadata.get("major_brand")
        if brand in _PHOTOGRAPHS:
            raise InputError(f"clip {path} is a photograph ({brand}), no video: save it as .png")
        streams = [
            stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO
        ]
        if not streams:
            if not container.streams:
                raise InputError(
                    f"clip {path} holds nothing that plays, or is cut off: copy it again"
                )
            what = "no pictures but a cover" if container.streams.video else "no video stream"
            raise InputError(f"clip {path} has {what}: give a video")
        stream = streams[0]
        if stream.codec_context is None:  # FFmpeg has none for such a stream
            raise InputError(undecodable(path))
        stream.codec_context.options = options
        number, packets, times = 0, 0, []
        for packet in container.demux(stream):
            if packet.is_corrupt:  # a part is missing
                raise InputError(damaged_frame(path, number))
            packets += packet.size > 0
            if packet.size == 0 and packet.dts is not None:
                continue  # the frame before is shown again; to a decoder it would mean the end
            for frame in _frames(packet, stream.codec_context):
                check_frame_size(f"frames of clip {path} have", frame.width, frame.height)
                if frame.is_corrupt:  # FFmpeg has painted over what it could not decode
                    raise InputError(damaged_frame(path, number))
                if frame.time is not None:
                    times.append(frame.time)
                wide = frame.format.components[0].bits > 8
                image = frame.to_ndarray(format="gray16le" if wide else "gray")
                yield _upright(image, frame)
                number += 1
    if len(streams) > 1:
        notes.append(f"it has {len(streams)} video streams: the first is read")
    if stream.frames not in (0, packets):
        notes.append(f"its header counts {stream.frames} frames, {number} are there")
    uneven = uneven_times(times, float(stream.time_base or 0))
    if uneven is not None:
        notes.append(uneven)


def _frames(
    packet: "av.Packet[av.VideoStream]", decoder: av.VideoCodecContext
) -> Iterator[av.VideoFrame]:
    """Decode a packet; if it is damaged, yield those that the decoder still held before raising."""
    try:
        yield from packet.decode()
    except av.FFmpegError:
        yield from decoder.decode(None)
        raise


def _upright(image: NDArray[Any], frame: av.VideoFrame) -> NDArray[Any]:
    """Turn and mirror an image as its display matrix says."""
    # `frame.side_data` is a cycle, which would keep the decoder and its threads until it is found.
    beside: Any = SideDataContainer(frame)  # type: ignore[call-arg]
    matrix = beside.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return image
    # A pixel goes from (x, y) to (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if abs(b) > abs(a):
        image, a, d = image.T, c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
