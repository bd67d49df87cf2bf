"""Mutations of bytes, whatever they mean."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Mutation = Callable[[Random, bytes], bytes]

HUGE = 8 << 20
"""How many bytes the huge ones add."""


def _span(draw: Random, raw: bytes, longest: int = 64) -> tuple[int, int]:
    start = draw.randrange(len(raw) + 1)
    return start, min(len(raw), start + draw.randint(1, longest))


def flip(draw: Random, raw: bytes) -> bytes:
    """Turn over one to four bits."""
    changed = bytearray(raw)
    for _ in range(draw.randint(1, 4) if raw else 0):
        changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def overwrite(draw: Random, raw: bytes) -> bytes:
    """Put other bytes over some."""
    start, stop = _span(draw, raw)
    return raw[:start] + draw.randbytes(stop - start) + raw[stop:]


def insert(draw: Random, raw: bytes) -> bytes:
    """Put bytes between others."""
    start, _ = _span(draw, raw)
    new = draw.choice(
        [draw.randbytes(draw.randint(1, 8)), b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"]", b'"', b"\\u0000", b"-", b"9"]
    )
    return raw[:start] + new + raw[start:]


def delete(draw: Random, raw: bytes) -> bytes:
    """Leave some bytes out."""
    start, stop = _span(draw, raw)
    return raw[:start] + raw[stop:]


def truncate(draw: Random, raw: bytes) -> bytes:
    """Keep the front only, or nothing."""
    return raw[: draw.choice([0, 1, 7, 8, 9, len(raw) - 1, draw.randrange(len(raw) + 1)])]


def behead(draw: Random, raw: bytes) -> bytes:
    """Keep the end only."""
    return raw[draw.randrange(len(raw) + 1) :]


def duplicate(draw: Random, raw: bytes) -> bytes:
    """Write a part twice."""
    start, stop = _span(draw, raw, 256)
    return raw[:stop] + raw[start:]


def splice(draw: Random, raw: bytes) -> bytes:
    """Write a part over another place."""
    start, stop = _span(draw, raw, 256)
    at, _ = _span(draw, raw)
    return raw[:at] + raw[start:stop] + raw[at + stop - start :]


def double(draw: Random, raw: bytes) -> bytes:
    """Write all of it twice."""
    return raw + draw.choice([b"", b"\n", b"\0"]) + raw


def fill(draw: Random, raw: bytes) -> bytes:
    """Write one byte over a part, or over all."""
    start, stop = draw.choice([(0, len(raw)), _span(draw, raw, 1024)])
    return raw[:start] + draw.choice([b"\0", b" ", b"\xff", b"[", b'"']) * (stop - start) + raw[stop:]


def enlarge(draw: Random, raw: bytes) -> bytes:
    """Add megabytes."""
    start, _ = _span(draw, raw)
    return raw[:start] + draw.choice([b"\0", b" ", b"[", b"9", b"a", b"\n"]) * HUGE + raw[start:]


MUTATIONS: tuple[Mutation, ...] = (flip, overwrite, insert, delete, truncate, behead, duplicate, splice, double, fill)
RARE: tuple[Mutation, ...] = (enlarge,)


def mutate(draw: Random, raw: bytes) -> tuple[bytes, str]:
    """Change bytes once to three times, and say how."""
    done = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        mutation = draw.choice(RARE) if draw.random() < 0.02 else draw.choice(MUTATIONS)
        raw = mutation(draw, raw)
        done.append(mutation.__name__)
    return raw, "bytes: " + ", ".join(done)
