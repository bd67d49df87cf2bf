"""One slab for the maps of a resolution: each producer owns a slice of its channels, and readers take theirs from where it lies.

    time     0    1    2    3          slab of 24 channels
    a, 16    w---------r               0-16
    b, 8          w----r               16-24
    c, 8                    w          0-8: a is no longer read

Slots are packed in the order in which they are written, so that a layer that reads the last few maps, or all, reads one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swkernels.taps import WIDEST


@dataclass(frozen=True)
class Lifetime:
    """A map of `channels`: the step that writes it, and the last that reads it."""

    channels: int
    written: int
    read: int


@dataclass(frozen=True)
class Slab:
    """Where maps start among the channels of a slab, and how wide it is: a multiple of WIDEST, so that its rows stay aligned."""

    starts: tuple[int, ...]
    width: int


def lay_out(maps: Sequence[Lifetime]) -> Slab:
    """Give each map the first slot that is free for all its life. A slot is free from the step behind its last read.

    Slots are aligned to the largest power of two, up to WIDEST, that divides their map's channels: so maps of equal widths leave
    no gaps, and 16-byte loads stay whole where the widths allow them.

    >>> lay_out([Lifetime(16, 0, 2), Lifetime(8, 1, 2), Lifetime(8, 3, 4)])
    Slab(starts=(0, 16, 0), width=24)
    >>> lay_out([Lifetime(12, 0, 9), Lifetime(12, 1, 9), Lifetime(12, 2, 9)]).starts
    (0, 12, 24)
    """
    starts: dict[int, int] = {}
    for place in sorted(range(len(maps)), key=lambda place: (maps[place].written, place)):
        starts[place] = _first_free(place, maps, starts)
    width = max((start + maps[place].channels for place, start in starts.items()), default=0)
    return Slab(tuple(starts[place] for place in range(len(maps))), -(-width // WIDEST) * WIDEST)


def _first_free(place: int, maps: Sequence[Lifetime], starts: dict[int, int]) -> int:
    """Return the first slot for a map beside those that were placed before it and are still alive when it is written."""
    mine = maps[place]
    alignment = min(WIDEST, mine.channels & -mine.channels)
    taken = sorted((start, start + maps[other].channels) for other, start in starts.items() if maps[other].read >= mine.written)
    free = 0
    for start, stop in taken:
        if free + mine.channels <= start:
            break
        free = max(free, -(-stop // alignment) * alignment)
    return free
