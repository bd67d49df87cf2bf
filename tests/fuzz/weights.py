"""Mutations of safetensors files: the length in front, the header, the tensors it describes, and the bytes behind it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from . import documents, raw

DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "U16",
    "U32",
    "U64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "C64",
    "F4",
    "F8_E8M0",
    "F6_E2M3",
    "f32",
    "",
    "F33",
)

Header = dict[str, Any]


def split(content: bytes) -> tuple[Header, bytes]:
    """Return the header and the bytes of a good file."""
    (length,) = struct.unpack("<Q", content[:8])
    header: Header = json.loads(content[8 : 8 + length])
    return header, content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    """Return a file with the right length in front."""
    text = documents.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def _tensor(draw: Random, header: Header) -> dict[str, Any]:
    found: dict[str, Any] = header[draw.choice([name for name in sorted(header) if name != "__metadata__"])]
    return found


def redescribe(draw: Random, header: Header, data: bytes) -> bytes:
    """Give a tensor another dtype, shape or place."""
    entry = _tensor(draw, header)
    start, stop = entry["data_offsets"]
    shape = entry["shape"]
    draw.choice(
        [
            lambda: entry.update(dtype=draw.choice(DTYPES)),
            lambda: entry.update(shape=shape[::-1]),
            lambda: entry.update(shape=[*shape, 1]),
            lambda: entry.update(shape=[1 << 32, 1 << 32]),
            lambda: entry.update(shape=[0, *shape], data_offsets=[start, start]),
            lambda: entry.update(shape=[]),
            lambda: entry.update(shape=[-1, *shape[1:]]),
            lambda: entry.update(shape=[1] * draw.choice([20, 65, 1_000, 100_000])),
            lambda: entry.update(shape=[float(size) for size in shape]),
            lambda: entry.update(data_offsets=[stop, start]),
            lambda: entry.update(data_offsets=[start + 1, stop + 1]),
            lambda: entry.update(data_offsets=[0, stop - start]),
            lambda: entry.update(data_offsets=[start, stop + draw.choice([-1, 1, 4, 1 << 40])]),
            lambda: entry.update(data_offsets=[1 << 64, (1 << 64) + stop - start]),
            lambda: entry.update(data_offsets=[-4, stop]),
            lambda: entry.update(data_offsets=[start]),
            lambda: entry.update(dtype="U8", shape=[stop - start]),
            lambda: entry.update(dtype="F64", shape=[(stop - start) // 8]),
        ]
    )()
    return joined(header, data)


def rename(draw: Random, header: Header, data: bytes) -> bytes:
    """Give a tensor another name, or two the other's."""
    one, other = (draw.choice([name for name in sorted(header) if name != "__metadata__"]) for _ in range(2))
    if draw.random() < 0.4:
        header[one], header[other] = header[other], header[one]
    else:
        new = draw.choice(["", " ", "../x", "a" * 10_000, "\0", "\ud800", "__metadata__", one + ".mask", one.upper(), "training"])
        header[new] = header.pop(one)
    return joined(header, data)


def lose(draw: Random, header: Header, data: bytes) -> bytes:
    """Leave a tensor out, and its bytes there or not."""
    name = draw.choice([name for name in sorted(header) if name != "__metadata__"])
    start, stop = header.pop(name)["data_offsets"]
    return joined(header, data) if draw.random() < 0.3 else joined(_closed(header, start, stop), data[:start] + data[stop:])


def _closed(header: Header, start: int, stop: int) -> Header:
    """Move what lies behind a hole to its front."""
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= stop:
            entry["data_offsets"] = [offset - (stop - start) for offset in entry["data_offsets"]]
    return header


def extend(draw: Random, header: Header, data: bytes) -> bytes:
    """Add tensors: one, empty ones, or a great many."""
    end = len(data)
    if draw.random() < 0.5:
        header["more"] = {"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]}
        return joined(header, data + bytes(8))
    for number in range(draw.choice([1, 100, 50_000])):
        header[f"empty{number}"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    return joined(header, data)


def annotate(draw: Random, header: Header, data: bytes) -> bytes:
    """Put something into the metadata."""
    header["__metadata__"] = draw.choice([{}, {"a": 1}, [], None, "x", {"format": "pt", "a": "b" * 1_000_000}, {"a": {"b": "c"}}])
    return joined(header, data)


def measure(draw: Random, header: Header, data: bytes) -> bytes:
    """Say that the header is longer or shorter, or that it is in another byte order."""
    content = joined(header, data)
    (length,) = struct.unpack("<Q", content[:8])
    said = draw.choice(
        [
            0,
            1,
            2,
            length - 1,
            length + 1,
            length * 2,
            len(content),
            len(content) - 8,
            1 << 31,
            100_000_000,
            100_000_001,
            1 << 60,
            (1 << 64) - 1,
        ]
    )
    return (struct.pack(">Q", length) if draw.random() < 0.15 else struct.pack("<Q", said)) + content[8:]


def pad(draw: Random, header: Header, data: bytes) -> bytes:
    """Put blanks around the header, or bytes behind the tensors."""
    text = json.dumps(header).encode()
    text = draw.choice(
        [b" " + text, text + b" " * draw.choice([1, 8, 1 << 20]), b"\n" + text, text + b"\0", b"\xef\xbb\xbf" + text, text]
    )
    return struct.pack("<Q", len(text)) + text + data + draw.choice([b"", b"\0", bytes(1 << 20)])


def poison(draw: Random, header: Header, data: bytes) -> bytes:
    """Fill the tensors with NaN, infinities, or noise."""
    kind = draw.choice([b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff"])
    return joined(header, draw.choice([(kind * (len(data) // len(kind) + 1))[: len(data)], draw.randbytes(len(data))]))


def header_json(draw: Random, header: Header, data: bytes) -> bytes:
    """Mutate the header as JSON."""
    text, _ = documents.mutate(draw, header)
    return struct.pack("<Q", len(text)) + text + data


def any_bytes(draw: Random, header: Header, data: bytes) -> bytes:
    """Mutate the file as bytes."""
    return raw.mutate(draw, joined(header, data))[0]


MUTATIONS: tuple[Callable[[Random, Header, bytes], bytes], ...] = (
    redescribe,
    redescribe,
    redescribe,
    rename,
    lose,
    extend,
    annotate,
    measure,
    pad,
    poison,
    header_json,
    header_json,
    any_bytes,
    any_bytes,
)


def mutate(draw: Random, content: bytes) -> tuple[bytes, str]:
    """Change a good file, and say how."""
    mutation = draw.choice(MUTATIONS)
    header, data = split(content)
    return mutation(draw, header, data), f"safetensors: {mutation.__name__}"
