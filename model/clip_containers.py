"""Damage that a video's container tells of, and that FFmpeg reads over in silence."""

import zlib
from pathlib import Path
from typing import IO

import numpy as np

from scotopia.graph.errors import InputError

# Elements of Matroska and WebM (RFC 9559), and what those hold that are walked through.
_EBML, _SEGMENT, _CLUSTER, _CRC, _VOID = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xBF, 0xEC
_FILE = 0
_CHILDREN = {
    _FILE: frozenset({_EBML, _SEGMENT, _VOID}),
    _SEGMENT: frozenset(
        {0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
        | {_CLUSTER, _CRC, _VOID}
    ),
    _CLUSTER: frozenset({0xE7, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0x5854, _CRC, _VOID}),
}

_TS_SYNC = 0x47
_TS_PACKETS = {188: 0, 192: 4, 204: 0}  # bytes of a packet, and those before its sync byte

_CUT = "its file is cut off: what followed its last frame is missing"
_CHUNK = 2**20


def check_container(path: Path, notes: list[str]) -> None:
    """Raise InputError if a file contradicts its own checksums, sizes or marks.

    Of Matroska and WebM: checksums, where the writer left any, and the sizes of all elements down
    to the blocks of frames. Of MPEG transport streams: that packet follows packet. An end that is
    missing is only told in `notes`: what is before it can be used.
    """
    with path.open("rb") as file:
        head = file.read(1024)
        if head.startswith(_EBML.to_bytes(4, "big")):
            bad = _walk_matroska(file, path.stat().st_size, notes)
        else:
            bad = None
            for length, offset in _TS_PACKETS.items():
                marks = head[offset::length][:4]
                if len(marks) == 4 and set(marks) == {_TS_SYNC}:
                    bad = _walk_packets(file, length, offset, notes)
    if bad is not None:
        raise InputError(f"clip {path} is damaged at byte {bad}: copy or record it again")


def _walk_packets(file: IO[bytes], length: int, offset: int, notes: list[str]) -> int | None:
    """Return where a transport stream has no packet, None if it has them all."""
    file.seek(position := 0)
    while chunk := file.read(4096 * length):
        whole = len(chunk) // length * length
        marks = np.frombuffer(chunk[:whole], np.uint8).reshape(-1, length)[:, offset]
        if (marks != _TS_SYNC).any():
            return position + length * int(np.argmax(marks != _TS_SYNC))
        position += len(chunk)
        if whole < len(chunk):
            notes.append(_CUT)
    return None


def _walk_matroska(file: IO[bytes], size: int, notes: list[str]) -> int | None:
    """Return where an element of the first segment is damaged, None if none is."""
    position, cut = 0, False
    inside = [(_FILE, size, False)]  # of the elements around: name, end, and whether it is open
    while position < size:
        while position == inside[-1][1]:
            if inside.pop()[0] == _SEGMENT:
                return None
        file.seek(position)
        element = _element(file.read(12))
        if element is None:
            if size - position >= 12:
                return position
            cut = True
            break
        name, length, header = element
        if inside[-1][2] and name not in _CHILDREN[inside[-1][0]]:
            inside.pop()  # an open cluster ends where the next element of the segment begins
        parent, limit, _ = inside[-1]
        start = position + header
        end = limit if length is None else start + length
        walked = name in _CHILDREN
        if name not in _CHILDREN[parent] or (length is None and not walked):
            return position
        if end > limit:
            if limit < size:
                return position
            cut, end = True, size
        elif length is not None and name > 0xFFFFFF and not _checksum_holds(file, start, end):
            return position
        if walked:
            inside.append((name, end, length is None))
        position = start if walked else end
    if cut:
        notes.append(_CUT)
    return None


def _element(head: bytes) -> tuple[int, int | None, int] | None:
    """Read an element's name, its length, None if that is unknown, and its header's length."""
    numbers, at = [], 0
    for longest in (4, 8):
        width = 9 - head[at].bit_length() if at < len(head) else 9
        if width > longest or at + width > len(head):
            return None
        numbers.append((int.from_bytes(head[at : at + width], "big"), 1 << 7 * width))
        at += width
    (name, _), (length, mark) = numbers
    return name, None if length == 2 * mark - 1 else length - mark, at


def _checksum_holds(file: IO[bytes], start: int, end: int) -> bool:
    """Whether an element that begins with a checksum agrees with it."""
    file.seek(start)
    head = file.read(6)
    if end - start < 6 or head[:2] != b"\xbf\x84":
        return True
    checksum, left = 0, end - start - 6
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    return checksum == int.from_bytes(head[2:], "little")
