"""Cells: consecutive channels of one producer that every reader treats alike.

Every producer's channels, those of sums included, are numbered through (`offset[producer] + channel`), so that a run is an
interval of integers. A border is put wherever a reader's interval begins or ends, wherever the groups of a layer cut its
outputs, and around every channel that a mask touches; borders of a sum are carried on to its addends. Between two borders all
channels have the same neighbours by construction, but for depthwise layers: there channel i of a cell is linked with channel i
of another cell of the same size. Everything here is linear in runs and channels: sums are not expanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import LayerGraph, Run, Tap

MOST_ROUNDS = 16
"""Rounds in which the cells of depthwise layers are aligned: two or three do for the networks that people write."""

Ints = NDArray[np.int64]
Integer = TypeVar("Integer", np.int32, np.int64)


def spans(lengths: Ints) -> tuple[Ints, Ints]:
    """Return, for intervals of these lengths laid end to end, the interval and the place inside it of every element."""
    owner = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    begin = np.cumsum(lengths) - lengths
    return owner, np.arange(len(owner), dtype=np.int64) - begin[owner]


def distinct(values: NDArray[Integer]) -> NDArray[Integer]:
    """Return the different values in ascending order.

    By sorting: numpy.unique hashes since 2.3, which takes 280 ms for 240,000 integers where sorting takes 4.
    """
    ordered = np.sort(values)
    fresh = np.ones(len(ordered), np.bool_)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return ordered[fresh]


def pointers(owners: Ints, count: int) -> Ints:
    """Return where the entries of each of `count` owners begin in a list sorted by owner, and its length at the end."""
    return np.searchsorted(owners, np.arange(count + 1, dtype=np.int64)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Runs that layers read: slots slot, slot + 1, ... of a layer are channels first, first + step, ... numbered through."""

    layer: Ints
    slot: Ints
    width: Ints
    first: Ints
    step: Ints

    def split(self, group_width: Ints) -> tuple[Pieces, Ints]:
        """Cut the runs where a group of `group_width[layer]` slots ends; return them with the group of each."""
        each = group_width[self.layer]
        low, high = self.slot // each, (self.slot + self.width - 1) // each
        if np.array_equal(low, high):
            return self, low
        owner, place = spans(high - low + 1)
        group = low[owner] + place
        start = np.maximum(self.slot[owner], group * each[owner])
        stop = np.minimum((self.slot + self.width)[owner], (group + 1) * each[owner])
        first = self.first[owner] + (start - self.slot[owner]) * self.step[owner]
        return Pieces(self.layer[owner], start, stop - start, first, self.step[owner]), group

    @property
    def extent(self) -> Ints:
        """How many different channels each run is."""
        return np.where(self.step == 0, np.minimum(self.width, 1), self.width)


def run_array(runs: Iterable[Run], offset: Ints) -> Ints:
    """Return runs as rows of start, stop, first channel numbered through, step."""
    table = np.array([(run.start, run.stop, run.producer, run.first, run.step) for run in runs], np.int64).reshape(-1, 5)
    return np.column_stack([table[:, 0], table[:, 1], offset[table[:, 2]] + table[:, 3], table[:, 4]])


def pieces_of(graph: LayerGraph, reads: Sequence[Sequence[Tap]], offset: Ints) -> Pieces:
    """Return what each layer reads, `reads[layer]`, as runs of channels numbered through."""
    place = {feature.name: index for index, feature in enumerate(graph.features)}
    base = np.concatenate([[0], np.cumsum([feature.channels for feature in graph.features], dtype=np.int64)])
    tables = [run_array(feature.runs, offset) for feature in graph.features]
    runs = np.concatenate(tables) if tables else np.zeros((0, 4), np.int64)
    shift = np.repeat(base[:-1], [len(table) for table in tables])
    begin, end = runs[:, 0] + shift, runs[:, 1] + shift  # ascending: features laid end to end
    rows = [(number, place[tap.feature], tap.start, tap.stop) for number, taps in enumerate(reads) for tap in taps]
    layer, feature, start, stop = np.array(rows, np.int64).reshape(-1, 4).T
    slot = _slots(layer, stop - start)
    start, stop = start + base[feature], stop + base[feature]
    low, high = np.searchsorted(end, start, "right"), np.searchsorted(begin, stop, "left")
    owner, inside = spans(high - low)
    run = low[owner] + inside
    left, right = np.maximum(begin[run], start[owner]), np.minimum(end[run], stop[owner])
    first = runs[run, 2] + (left - begin[run]) * runs[run, 3]
    return Pieces(layer[owner], slot[owner] + left - start[owner], right - left, first, runs[run, 3])


def _slots(layer: Ints, width: Ints) -> Ints:
    """Return the first slot of each tap, counted from 0 in every layer."""
    before = np.cumsum(width) - width
    return before - before[np.searchsorted(layer, layer)] if len(layer) else before


def merged(owner: Ints, first: Ints, extent: Ints, bound: int) -> tuple[Ints, Ints, Ints]:
    """Merge intervals of one owner that touch or overlap; return owner, first and stop, sorted."""
    if not len(owner):
        return owner, owner, owner
    key = owner * bound
    order = np.argsort(key + first, kind="stable")
    start, stop = (key + first)[order], (key + first + extent)[order]
    reach = np.maximum.accumulate(stop)
    fresh = np.ones(len(start), np.bool_)
    fresh[1:] = (start[1:] > reach[:-1]) | (owner[order][1:] != owner[order][:-1])
    heads = np.flatnonzero(fresh)
    who = owner[order][heads]
    tails = np.append(heads[1:], len(start)) - 1
    return who, start[heads] - who * bound, reach[tails] - who * bound


@dataclass(frozen=True, eq=False)
class Cells:
    """A partition of all channels, producer by producer.

    `offset` (producers + 1) numbers channels through; `begin`, `size`, `producer` (cells) describe the cells; `of` (channels)
    is the cell of a channel; `number` (cells) is the cell's place among those of inputs and layers, -1 for sums and opaque
    operations. `child_of`, `child` are pairs (cell of a sum, cell that is added into it), sorted.
    """

    offset: Ints
    begin: Ints
    size: Ints
    producer: Ints
    of: Ints
    number: Ints
    child_of: Ints
    child: Ints

    def of_producer(self, producer: int) -> slice:
        """Return the cells of a producer."""
        low, high = self.offset[producer], self.offset[producer + 1]
        return slice(int(self.of[low]), int(self.of[high - 1]) + 1) if high > low else slice(0, 0)


def make_cells(graph: LayerGraph, offset: Ints, borders: NDArray[np.bool_], matches: Ints) -> Cells:
    """Return the cells between `borders` (channels + 1), which are carried on from sums to addends in place.

    `matches` (matches, 3) are intervals of outputs of depthwise layers and of what they read, channel by channel: first output,
    first channel read, length. They are cut alike.
    """
    borders[offset] = True
    sums = [(index, producer) for index, producer in enumerate(graph.producers) if producer.kind == "sum"]
    tables = {index: run_array((run for part in made.parts for run in part), offset) for index, made in sums}
    if len(matches):
        _align(borders, graph, offset, tables, matches)
    else:
        _carry_sums(borders, offset, tables)
    begin = np.flatnonzero(borders[:-1])
    of = np.cumsum(borders[:-1]) - 1
    producer = np.searchsorted(offset, begin, "right") - 1
    origin = np.array([made.kind in ("input", "layer") for made in graph.producers], np.bool_)[producer]
    number = np.where(origin, np.cumsum(origin) - 1, -1)
    pairs = _children(borders, of, tables, offset)
    return Cells(offset, begin, np.diff(np.append(begin, offset[-1])), producer, of, number, pairs[0], pairs[1])


def _carry_sums(borders: NDArray[np.bool_], offset: Ints, tables: dict[int, Ints]) -> None:
    for index in reversed(tables):
        _carry(borders, tables[index], int(offset[index]))


def _align(borders: NDArray[np.bool_], graph: LayerGraph, offset: Ints, tables: dict[int, Ints], matches: Ints) -> None:
    """Cut matched intervals alike, and with them the sums that they read and whatever is added up there.

    A cut on one side is one on the other, so this goes round until nothing changes. Inputs are cut into channels, since paths
    begin there; and so is everything matched where one channel is added to many, or where the rounds do not end soon: a sum of
    a map and itself moved by one channel cuts one channel more in every round.
    """
    alike, once = _alike(offset, tables, matches)
    for index, producer in enumerate(graph.producers):
        if producer.kind == "input":
            borders[offset[index] : offset[index + 1]] = True
    for one, other, length in alike:
        borders[[one, one + length, other, other + length]] = True
    for _ in range(MOST_ROUNDS if once else 0):
        before = np.count_nonzero(borders)
        _carry_sums(borders, offset, tables)
        for one, other, length in (*alike, *reversed(alike)):  # cuts go down to what was computed first, and up again
            left, right = borders[one : one + length + 1], borders[other : other + length + 1]
            left[:] = right[:] = left | right
        if np.count_nonzero(borders) == before:
            return
    for one, other, length in alike:
        borders[one : one + length + 1] = borders[other : other + length + 1] = True
    _carry_sums(borders, offset, tables)


def _alike(offset: Ints, tables: dict[int, Ints], matches: Ints) -> tuple[list[tuple[int, int, int]], bool]:
    """Return the intervals to be cut alike, and whether no channel stands for several in any of them."""
    found = [(int(one), int(other), int(length)) for one, other, length in matches]
    producer = np.searchsorted(offset, matches[:, 1], "right") - 1
    read = set(producer.tolist())
    once = True
    for index in reversed(tables):
        if index in read:
            for start, stop, first, step in tables[index].tolist():
                once = once and (step == 1 or stop - start == 1)
                found.append((int(offset[index]) + start, first, (stop - start) if step else 1))
                read.add(int(np.searchsorted(offset, first, "right")) - 1)
    return sorted(found, reverse=True), once


def _carry(borders: NDArray[np.bool_], table: Ints, base: int) -> None:
    for start, stop, first, step in table.tolist():
        borders[first] = True
        if step == 0:
            borders[first + 1] = True
            continue
        borders[first + stop - start] = True
        borders[first : first + stop - start] |= borders[base + start : base + stop]


def _children(borders: NDArray[np.bool_], of: Ints, tables: dict[int, Ints], offset: Ints) -> tuple[Ints, Ints]:
    if not tables:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    table = np.concatenate(list(tables.values()))
    base = np.repeat(offset[list(tables)], [len(runs) for runs in tables.values()])
    owner, place = spans(table[:, 1] - table[:, 0])
    above = base[owner] + table[owner, 0] + place
    below = table[owner, 2] + place * table[owner, 3]
    shown = borders[above] | borders[below] | (place == 0)  # a pair of cells shows itself where either of them begins
    key = distinct(of[above[shown]] * len(of) + of[below[shown]])
    return key // len(of), key % len(of)
