"""Damage to files: to bytes, to JSON, and inside safetensors, npy, zip and PNG files.

Every function draws from the generator it is given and from nothing else: the same generator, the
same file.
"""

import copy
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

#: Integers at the edges of their types.
EDGES = (
    *(0, 1, -1, 2, 7, 8, 31, 32, 33, 64, 65, 127, 128, 255, 256, 32767, 65535, 65536, 100_000),
    *(
        2**24,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**53,
        2**62,
        2**63 - 1,
        2**63,
        2**64 - 1,
        -(2**31),
    ),
)

#: JSON that no writer writes, as text, because Python could not hold some of it.
JSON_EXTREMES = (
    *("null", "true", "false", '""', '"0"', '"nan"', "[]", "{}", "[[]]", '[{"":null}]'),
    *(str(edge) for edge in EDGES),
    *("0.5", "1.0", "1.5", "-0.0", "1e-320", "1e308", "1e999", "-1e999", "NaN", "Infinity"),
    *("1" * 4000, "1" * 5000, f'"{"x" * 5000}"', '{"a":1,"a":2}', '{"__class__":"os.system"}'),
    *(r'"\u0000"', r'"\n"', r'"\u001b[2J"', r'"\ud800"', r'"\u2028"', '"../../etc/passwd"'),
    *("[" * depth + "]" * depth for depth in (40, 200, 960, 100_000)),
    *('{"a":' * depth + "0" + "}" * depth for depth in (40, 200, 960, 100_000)),
)

#: What a placeholder of an extreme, and the second of two keys, look like once JSON is text.
_EXTREME = re.compile(r'"\\u0001(\d+)"')
_SECOND = re.compile(r'\\u0002+"')

_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U8", "BOOL", "F8_E4M3")

_NUMPY_TYPES = (
    *(np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, np.uint64, np.uint8),
    *(np.bool_, np.complex64),
)


def damage(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Edit bytes in one to eight places, most often near the start; `other` is to splice from."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        size = len(data)
        start = rng.randrange(min(size, 512) if rng.random() < 0.5 else size) if size else 0
        length = min(rng.choice((1, 2, 4, 8, 64, 1000)), size - start)
        match rng.randrange(9):
            case 0 if size:
                data[start] ^= 1 << rng.randrange(8)
            case 1 if size:
                data[start] = rng.randrange(256)
            case 2:
                width = rng.choice((1, 2, 4, 8))
                edge = rng.choice(EDGES) % (1 << 8 * width)
                data[start : start + width] = edge.to_bytes(width, rng.choice(("little", "big")))  # type: ignore[arg-type]
            case 3:
                del data[start:]
            case 4:
                del data[start : start + length]
            case 5:
                data[start:start] = data[start : start + length] * rng.choice((1, 2, 50))
            case 6:
                data[start:start] = rng.randbytes(length)
            case 7:
                data[start : start + length] = bytes(length)
            case _:
                begin = rng.randrange(len(other) + 1)
                data[start : start + length] = other[begin : begin + length]
    return bytes(data)


def dump_json(value: Any) -> str:
    """Text of JSON that `mutate_json` made."""
    text = json.dumps(value)
    text = _EXTREME.sub(lambda match: JSON_EXTREMES[int(match[1])], text)
    return _SECOND.sub('"', text)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Drop, duplicate, rename, retype or exchange entries, in one to three places."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return _extreme(rng)
        holder, key = rng.choice(places)
        match rng.randrange(7):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[f"{key}\x02"] = rng.choice((_extreme(rng), holder[key]))
            case 1:
                holder.append(copy.deepcopy(holder[key]))
            case 2 if isinstance(holder, dict):
                holder[rng.choice(("", "x", "\n", f"{key} ", str(key).upper()))] = holder.pop(key)
            case 3:
                source, name = rng.choice(places)
                if name in source if isinstance(source, dict) else name < len(source):
                    holder[key] = copy.deepcopy(source[name])
            case 4:
                holder[key] = _neighbour(rng, holder[key])
            case _:
                holder[key] = _extreme(rng)
    return value


def sort_header(content: bytes) -> bytes:
    """Return a safetensors file with its header in order: the library writes it in any."""
    size = int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def mutate_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Edit the description, the header, the tensors or their numbers."""
    size = int.from_bytes(content[:8], "little")
    header, blob = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header["__metadata__"]
    way = rng.randrange(8)
    if way < 4:
        description = mutate_json(rng, json.loads(metadata["description"]))
        metadata["description"] = dump_json(description)
    elif way == 4:
        return sort_header(save(_mutate_arrays(rng, load(content)), metadata))
    elif way == 5:
        blob = _mutate_numbers(rng, blob)
    elif way == 6:
        name = rng.choice([name for name in header if name != "__metadata__"])
        header[name] = _mutate_entry(rng, header[name], len(blob))
    else:
        header = mutate_json(rng, header)
    text = dump_json(header).encode()
    length = len(text)
    if rng.random() < 0.03:
        length = rng.choice((*EDGES, length - 1, length + 1)) % (1 << 64)
    return length.to_bytes(8, "little") + text + blob


def mutate_npy(rng: random.Random, content: bytes) -> bytes:
    """Edit the header of an npy file, or its numbers."""
    size = int.from_bytes(content[8:10], "little")
    header, numbers = content[10 : 10 + size].decode(), content[10 + size :]
    version = (1, 0)
    match rng.randrange(8):
        case 0:
            header = re.sub(r"'descr': '[^']*'", f"'descr': {rng.choice(_DESCRS)}", header)
        case 1 | 2:
            shape = re.search(r"\(([^)]*)\)", header)
            sides = [int(side) for side in shape[1].split(",") if side.strip()] if shape else []
            for _ in range(rng.randrange(1, 4)):
                sides[rng.randrange(len(sides))] = rng.choice((*EDGES, 3, 10**6, 10**12))
            sides = rng.choice((sides, sides[:2], [*sides, 3], [], sides[::-1]))
            text = f"({', '.join(map(str, sides))}{',' * (len(sides) == 1)})"
            header = re.sub(r"\([^)]*\)", text, header)
        case 3:
            header = header.replace("False", rng.choice(("True", "None", "1", "'x'")))
        case 4:
            header = rng.choice(_LITERALS)
        case 5:
            version = rng.choice(((2, 0), (3, 0), (4, 0), (0, 0), (255, 255), (1, 1)))
        case 6:
            numbers = _mutate_numbers(rng, numbers)
        case _:
            numbers = numbers[: rng.randrange(len(numbers) + 1)]
    if version[0] == 1 and rng.random() < 0.8:  # as NumPy pads it
        header = header.rstrip() + " " * (-(11 + len(header.rstrip())) % 64) + "\n"
    text = header.encode("latin1")
    width = 2 if version[0] == 1 else 4
    length = len(text) if rng.random() < 0.95 else rng.choice(EDGES)
    length %= 1 << 8 * width
    return b"\x93NUMPY" + bytes(version) + length.to_bytes(width, "little") + text + numbers


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Zip archive of these members, with no clock in it."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            archive.writestr(info, content)
    return file.getvalue()


def mutate_npz(rng: random.Random, member: bytes) -> bytes:
    """Pack an npy file as an npz file, and edit one of the two."""
    if rng.random() < 0.6:
        member = mutate_npy(rng, member)
    name = rng.choice(("frames.npy",) * 9 + ("frames", "/frames.npy", "x.npy", "\x00.npy"))
    compression = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    data = bytearray(zip_of({name: member, "other.npy": b"x"}, compression))
    if rng.random() < 0.6:  # a field of a local header, of the directory or of its end
        sign = rng.choice((b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"))
        place = data.find(sign) + rng.randrange(4, 44)
        width = rng.choice((2, 4))
        edge = rng.choice(EDGES) % (1 << 8 * width)
        data[place : place + width] = edge.to_bytes(width, "little")
    return bytes(data)


def mutate_png(rng: random.Random, content: bytes) -> bytes:
    """Edit, drop, double or exchange chunks of a PNG; their checksums stay right."""
    chunks, place = [], 8
    while place < len(content):
        (size,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += size + 12
    at = rng.randrange(len(chunks))
    name, data = chunks[at]
    match rng.randrange(7):
        case 0 | 1:  # width, height, bits, colour, filter, interlace
            name, data = chunks[0]
            field, width = rng.choice(((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)))
            edge = rng.choice((*EDGES, 3, 4, 6, 16)) % (1 << 8 * width)
            chunks[0] = name, data[:field] + edge.to_bytes(width, "big") + data[field + width :]
        case 2:
            del chunks[at]
        case 3:
            chunks.insert(at, chunks[at])
        case 4:
            other = rng.randrange(len(chunks))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        case 5:
            chunks[at] = name, damage(rng, data, content)
        case _:
            kind = rng.choice(
                (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"tRNS")
            )
            text = zlib.compress(bytes(rng.choice((10, 10**6, 2 * 10**7))), 1)
            chunks.insert(1, (kind, b"a\x00\x00" + rng.choice((text, data, b""))))
    return content[:8] + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every entry of every list and object inside `value`, as its holder and its key."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            found += [(holder, key) for key in keys]
            waiting += [holder[key] for key in keys]
    return found


def _extreme(rng: random.Random) -> str:
    return f"\x01{rng.randrange(len(JSON_EXTREMES))}"


def _neighbour(rng: random.Random, value: Any) -> Any:
    """Return something like `value`: of another type, or a little more or less."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return rng.choice(([value], {"a": value}, str(value), f"{value}\n", not value))
    change: Callable[[], Any] = rng.choice(
        (
            lambda: value + 1,
            lambda: value - 1,
            lambda: -value,
            lambda: 2 * value,
            lambda: float(value),
            lambda: bool(value),
            lambda: str(value),
            lambda: [value],
        )
    )
    return change()


def _mutate_numbers(rng: random.Random, blob: bytes) -> bytes:
    """Overwrite numbers by NaN, infinities and edges."""
    data = bytearray(blob)
    for _ in range(rng.choice((1, 1, 5))):
        form = rng.choice(("<f", "<d", "<i", "<q", "<e"))
        size = struct.calcsize(form)
        place = rng.randrange(len(data) // size) * size if len(data) >= size else 0
        if form[1] in "fde":
            number = struct.pack(form, rng.choice((np.nan, np.inf, -np.inf, -0.0, 1.5, 6e4)))
        else:
            number = (rng.choice(EDGES) % (1 << 8 * size)).to_bytes(size, "little")
        data[place : place + size] = number
    return bytes(data)


def _mutate_arrays(rng: random.Random, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Drop, rename, convert or reshape a tensor, in a file that stays whole."""
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    match rng.randrange(6):
        case 0:
            del arrays[name]
        case 1:
            arrays[rng.choice(("", "x", "perceive.weight", f"{name}\n\x1b[2J"))] = arrays.pop(name)
        case 2:
            with np.errstate(all="ignore"):
                arrays[name] = array.astype(rng.choice(_NUMPY_TYPES))
        case 3:
            shape = rng.choice(((-1,), (1, -1), (-1, 1, 1, 1, 1), array.shape[::-1]))
            arrays[name] = array.reshape(shape)
        case 4:
            arrays[name] = rng.choice((array[:0], array[:1], np.array(0, array.dtype)))
        case _:
            arrays[f"{name}2"] = array
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _mutate_entry(rng: random.Random, entry: Any, size: int) -> Any:
    """Edit type, shape or offsets of one tensor in a header."""
    match rng.randrange(4):
        case 0:
            entry["dtype"] = rng.choice(_DTYPES)
        case 1:
            entry["shape"] = [rng.choice((*EDGES, *entry["shape"])) for _ in entry["shape"]]
        case 2:
            entry["shape"] = rng.choice(([], [0], [0, 2**63], [1] * 1000, entry["shape"][::-1]))
        case _:
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = rng.choice(
                ([end, begin], [begin, size + 1], [0, size], [begin, begin], [-1, end], [2**64, 0])
            )
    return entry


#: Types as an npy header writes them.
_DESCRS = (
    *("'|u1'", "'<f4'", "'>f8'", "'<f2'", "'<f16'", "'|b1'", "'<i4'", "'<c8'", "'|O'", "'<M8[s]'"),
    *("'|S5'", "'<U5'", "'|V0'", "'|S0'", "'|V2147483647'", "'|u1,|u1'", "''", "'x'", "'8'"),
    *("[('a', '<f4')]", "('<f4', (1000000, 1000))", "[('a', '|O')]", "None", "1", "[]", "{}"),
    *("'os.system'", "'float'", "'uint8'", "'u1' 'x'", "b'|u1'"),
)

#: Whole headers of an npy file.
_LITERALS = (
    *("", " ", "\n", "{}", "None", "[]", "'a'", "{'descr': '|u1'}", "\x00", "é", "0x", "1L"),
    *("-" * 9000 + "1", "~" * 9000 + "1", "(" * 9000, "[" * 150 + "]" * 150, "1+" * 4000 + "1"),
    *("{" * 90 + "}" * 90, "1" * 5000, "a" + ".a" * 4000, "'" + "a" * 9000, "not " * 2000 + "1"),
    "__import__('os').system('true')",
    "{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (1, 2, 3)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 2, 3)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1L, 2L, 3L)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (True, True, True), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2, 3), 'x': 0}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (33554432, 1, 1)}",
)
