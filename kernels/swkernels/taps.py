"""Which channels of which maps a layer reads, as the kernels want it: one number for each group of neighbours.

    a layer of 24 inputs reads channels 32-48 and 0-8 of one map    Taps(((0, 32, 48), (0, 0, 8)))
    in groups of 8, which lie side by side in the map and inside    group 8, starts (32, 40, 0)

A group is as many channels as one 16-byte load can bring (8 of a 16-bit type), or fewer where the taps force it. So a kernel's
address of input k is `starts[k // group] + k % group`, the loads stay whole and asynchronous, and the layer's own vectors (weight,
norm) are read in order. Compiled for sm_90, this takes fewer registers than one offset for each 64 channels (a product of
128x128x64: 173 against 254), and needs no alignment but that of a group.

Taps of several maps go by a table of addresses, written on the device at each launch by a kernel that takes the maps as arguments:
a captured graph so keeps where they lie, without memory of the host. The addresses are kept as distances from the first map, in
elements: what is computed from one pointer keeps its vector loads, and what is computed from an integer made a pointer does not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from swkernels import launch
from swkernels._triton import jit, tl

WIDEST = 8
"""The most channels of a group."""
Tap = tuple[int, int, int]


@dataclass(frozen=True)
class Taps:
    """Runs of channels, each (map, start, stop), in the order in which a layer reads them; maps count from 0.

    >>> Taps.of((32, 48), (0, 8)).starts
    (32, 40, 0)
    >>> Taps.of((0, 12), (12, 24)), Taps.of((3, 5)).group
    (Taps(runs=((0, 0, 24),)), 1)
    >>> Taps(((0, 0, 8), (1, 4, 8))).group
    4
    """

    runs: tuple[Tap, ...]
    group: int = field(init=False, repr=False, compare=False)
    """How many neighbours go together: a power of two that divides every run's start, and its place among the inputs."""
    stops: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """For each map one more than the last of its channels that is read, 0 where none is."""

    def __post_init__(self) -> None:
        if not self.runs or any(not (source >= 0 and 0 <= start < stop) for source, start, stop in self.runs):
            raise ValueError(f"Taps are (map, start, stop) with 0 <= map and 0 <= start < stop, at least one; got {self.runs}.")
        runs = _joined(self.runs)
        for name, value in (("runs", runs), ("group", _group(runs)), ("stops", _stops(runs))):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, *runs: tuple[int, int]) -> Taps:
        """Return taps (start, stop) of one map."""
        return cls(tuple((0, start, stop) for start, stop in runs))

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.runs)

    @property
    def starts(self) -> tuple[int, ...]:
        """The channel, of its map, that each group starts at."""
        return self.starts_of(self.group)

    def starts_of(self, group: int) -> tuple[int, ...]:
        """Return the channel that each group starts at, for groups of so many channels."""
        return tuple(place for _, start, stop in self.runs for place in range(start, stop, group))

    def owners_of(self, group: int) -> tuple[int, ...]:
        """Return the map that each group lies in, for groups of so many channels."""
        return tuple(source for source, start, stop in self.runs for _ in range(start, stop, group))

    def flat(self) -> list[int]:
        """Return the runs in one list, as operators take them."""
        return [number for run in self.runs for number in run]

    @staticmethod
    def of_flat(numbers: Sequence[int]) -> Taps:
        """Return what `flat` was taken from."""
        return Taps(tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)))

    def within(self, reads: Sequence[tuple[int, int]]) -> tuple[Tap, ...]:
        """Return the runs of maps in which runs [start, stop) of the inputs lie.

        >>> Taps(((0, 32, 48), (1, 0, 8))).within(((4, 6), (14, 20)))
        ((0, 36, 38), (0, 46, 48), (1, 0, 4))
        """
        found: list[Tap] = []
        for low, high in reads:
            place = 0
            for source, start, stop in self.runs:
                first, last = max(low, place), min(high, place + stop - start)
                if first < last:
                    found.append((source, start + first - place, start + last - place))
                place += stop - start
        return _joined(found)

    def take(self, sources: Sequence[Tensor]) -> Tensor:
        """Return the channels, side by side: maps (..., C) to (..., len(self)); one run is a view."""
        runs = [_channels(sources[source], start, stop) for source, start, stop in self.runs]
        return runs[0] if len(runs) == 1 else torch.cat(runs, -1)

    @functools.cached_property
    def reads_twice(self) -> bool:
        """Whether there is a channel that is read more than once."""
        return len({(owner, channel) for owner, start, stop in self.runs for channel in range(start, stop)}) < len(self)

    def unread(self, widths: Sequence[int]) -> Iterator[Tap]:
        """Yield the runs of channels that are not read, of maps of these widths."""
        for owner, width in enumerate(widths):
            place = 0
            for start, stop in sorted((start, stop) for source, start, stop in self.runs if source == owner):
                if place < start:
                    yield owner, place, start
                place = max(place, stop)
            if place < width:
                yield owner, place, width

    def shifted(self, starts: Sequence[int]) -> Taps:
        """Return taps that read the same of one map, in which each of these starts at its channel.

        >>> Taps(((1, 2, 4), (0, 0, 8))).shifted((0, 8))
        Taps(runs=((0, 10, 12), (0, 0, 8)))
        """
        return self.of(*((starts[owner] + start, starts[owner] + stop) for owner, start, stop in self.runs))


def _channels(x: Tensor, start: int, stop: int) -> Tensor:
    """Return a slice of a map's channels; all of them are the map itself, whose gradient then needs no copy."""
    return x if stop - start == x.shape[-1] else x[..., start:stop]


@functools.cache
def known(numbers: tuple[int, ...]) -> Taps:
    """Return `Taps.of_flat`, remembered: an operator gets the same numbers at every call."""
    return Taps.of_flat(numbers)


def maps(source: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return one map, or several, as a list."""
    return [source] if isinstance(source, Tensor) else list(source)


def _joined(runs: Sequence[Tap]) -> tuple[Tap, ...]:
    """Join runs where one goes on from the other."""
    joined: list[Tap] = []
    for source, start, stop in runs:
        if joined and joined[-1][0] == source and joined[-1][2] == start:
            joined[-1] = (source, joined[-1][1], stop)
        else:
            joined.append((source, start, stop))
    return tuple(joined)


def _group(runs: Sequence[Tap]) -> int:
    place, group = 0, WIDEST
    for _, start, stop in runs:
        group = math.gcd(group, start, place)
        place += stop - start
    return group


def _stops(runs: Sequence[Tap]) -> tuple[int, ...]:
    last = [0] * (1 + max(source for source, _, _ in runs))
    for source, _, stop in runs:
        last[source] = max(last[source], stop)
    return tuple(last)


@dataclass(frozen=True)
class Places:
    """Where a kernel finds the groups: `starts` from `base` on; with maps of their own row strides, `strides` too."""

    base: Tensor
    starts: Tensor
    strides: Tensor | None
    stride: int
    group: int

    @property
    def maps(self) -> tuple[Tensor | None, Tensor | None]:
        """The kernels' arguments `source` and `apart`, of which one is None.

        Several maps go by `apart` where torch runs on AMD's GPUs. Its compiler takes what a small tensor's pointer leads to to lie
        within 2 GiB of it, unless the pointer is left unspecialised, and other maps need not; but that costs the vector loads.
        """
        return (self.base, None) if self.strides is None or torch.version.hip is None else (None, self.base)


def places(sources: Sequence[Tensor], taps: Taps) -> Places:
    """Return where the groups of taps lie in maps that are given as views (rows, channels)."""
    base, group = sources[0], taps.group
    if len(sources) == 1:
        return Places(base, _starts(taps, group, base.device), None, base.stride(0), group)
    if (one := as_one(sources)) is not None:
        return places([one[0]], taps.shifted(one[1]))
    for source in sources:
        distance, rest = divmod(source.data_ptr() - base.data_ptr(), source.element_size())
        if rest:
            raise ValueError("The maps lie at no whole number of elements from each other.")
        group = math.gcd(group, distance, source.stride(0), base.data_ptr() // base.element_size())
    owners, starts = _owners(taps, group, base.device), _starts(taps, group, base.device)
    offsets = torch.empty(len(starts), dtype=torch.int64, device=base.device)
    strides = torch.empty(len(starts), dtype=torch.int32, device=base.device)
    groups = launch.power_of_two(len(starts), 16, 1024)
    for first in range(0, len(sources), AT_ONCE):
        some = [*sources[first : first + AT_ONCE]]
        some += [base] * (AT_ONCE - len(some))
        launch.run(
            _write_places, launch.ceil_div(len(starts), groups),
            base, owners, starts, offsets, strides, len(starts), first, *some, *(map_.stride(0) for map_ in some),
            GROUPS=groups, num_warps=4,
        )  # fmt: skip
    return Places(base, offsets, strides, 0, group)


def as_one(sources: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]] | None:
    """Return the map (..., W) that maps are slices of, and the channel each starts at; None where they lie apart, or are none."""
    if not sources:
        return None
    first = min(sources, key=Tensor.data_ptr)
    memory = {(source.untyped_storage().data_ptr(), source.stride(), source.shape[:-1]) for source in sources}
    if len(memory) > 1 or first.dim() < 2:
        return None
    starts = tuple((source.data_ptr() - first.data_ptr()) // first.element_size() for source in sources)
    width = max(start + source.shape[-1] for start, source in zip(starts, sources, strict=True))
    if width > first.stride(-2) or first.stride(-1) != 1:
        return None
    return first.as_strided((*first.shape[:-1], width), first.stride()), starts


AT_ONCE = 4
"""How many maps one launch of `_write_places` takes."""


@jit(do_not_specialize_on_alignment=["a", "b", "c", "d"], do_not_specialize=["groups", "first", "of_a", "of_b", "of_c", "of_d"])
def _write_places(
    base, owners, starts, offsets, strides, groups, first, a, b, c, d, of_a, of_b, of_c, of_d, GROUPS: tl.constexpr
):  # fmt: skip
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    live = group < groups
    owner = tl.load(owners + group, mask=live, other=-1) - first
    size: tl.constexpr = base.dtype.element_ty.primitive_bitwidth // 8
    zero = base.to(tl.int64)
    address = tl.where(
        owner < 2, tl.where(owner == 0, a.to(tl.int64), b.to(tl.int64)), tl.where(owner == 2, c.to(tl.int64), d.to(tl.int64))
    )
    stride = tl.where(owner < 2, tl.where(owner == 0, of_a, of_b), tl.where(owner == 2, of_c, of_d))
    mine = live & (owner >= 0) & (owner < 4)
    tl.store(offsets + group, (address - zero) // size + tl.load(starts + group, mask=live, other=0), mask=mine)
    tl.store(strides + group, stride, mask=mine)


# Tables are kept, each time the same tensor: a captured graph must find it where it was.


@functools.cache
def _starts(taps: Taps, group: int, device: torch.device) -> Tensor:
    return torch.tensor(taps.starts_of(group), dtype=torch.int32, device=device)


@functools.cache
def _owners(taps: Taps, group: int, device: torch.device) -> Tensor:
    return torch.tensor(taps.owners_of(group), dtype=torch.int32, device=device)


@jit
def pointers(source, apart, starts, strides, row, channel, live, stride, GROUP: tl.constexpr, SCATTERED: tl.constexpr):
    """Return pointers (rows, channels) to what taps read; `channel` counts the layer's inputs, `live` says which there are."""
    start = tl.multiple_of(tl.load(starts + channel // GROUP, mask=live, other=0), GROUP) + channel % GROUP
    if SCATTERED:
        if source is None:
            source = apart
        stride = tl.multiple_of(tl.load(strides + channel // GROUP, mask=live, other=0), GROUP)
        return source + start[None, :] + row[:, None] * stride[None, :]
    return source + row[:, None] * stride + start[None, :]
