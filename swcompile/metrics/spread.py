"""The neighbours of many nodes at once, without an adjacency matrix: for graphs too large to hold one.

A row of bits per cell says which of the sources are at the cell. One step carries the bits along every link and back again:
through sums to readers and on to their outputs, and from outputs to readers and back through sums. A sum is passed once in each
direction, so a step is linear in runs, where the adjacency of a residual stack is quadratic in its depth.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from swcompile.metrics.bits import Words
from swcompile.metrics.cells import Ints, pointers
from swcompile.metrics.channels import ChannelGraph
from swcompile.metrics.directed import masked_slots

CHUNK = 1 << 21
"""Words gathered at a time: 16 MB."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Unions to be taken: the rows `source[pointer[i]:pointer[i + 1]]` into row `target[i]`; every union has a source."""

    target: Ints
    pointer: Ints
    source: Ints

    @staticmethod
    def of(target: Ints, source: Ints) -> Bundle:
        """Group pairs (target, source) by target."""
        order = np.argsort(target, kind="stable")
        distinct, begin = np.unique(target[order], return_index=True)
        return Bundle(distinct, np.append(begin, len(target)).astype(np.int64), source[order])

    def add(self, into: Words, values: Words) -> None:
        """Unite the rows of `values` into those of `into`, which may be the same matrix."""
        step = max(1, CHUNK // max(values.shape[1], 1))
        start = 0
        while start < len(self.target):
            stop = int(np.searchsorted(self.pointer, self.pointer[start] + step, "right")) - 1
            stop = min(max(stop, start + 1), len(self.target))
            low, high = self.pointer[start], self.pointer[stop]
            united = np.bitwise_or.reduceat(values[self.source[low:high]], self.pointer[start:stop] - low, axis=0)
            into[self.target[start:stop]] |= united
            start = stop


class Spread:
    """Steps through a channel graph for up to 64 sources to the word."""

    def __init__(self, made: ChannelGraph) -> None:
        cells, readers = made.cells, made.readers
        self.cells, self.readers = len(cells.size), len(readers.layer)
        self.origin = np.flatnonzero(cells.number >= 0)  # the cell of each class
        fed = np.flatnonzero(readers.of >= 0)
        self.read = Bundle.of(readers.owner, readers.cell)
        self.read_back = Bundle.of(readers.cell, readers.owner)
        self.made, self.by = fed, readers.of[fed]
        self.made_back = Bundle.of(readers.of[fed], fed)
        up, down = _live_links(made)
        self.masked, self.masked_back = Bundle.of(up, down), Bundle.of(down, up)
        levels = _levels(cells.child_of, cells.child, len(cells.size))
        self.sums = [Bundle.of(cells.child_of[at], cells.child[at]) for at in levels]
        self.sums_back = [Bundle.of(cells.child[at], cells.child_of[at]) for at in reversed(levels)]

    def step(self, at: Words) -> Words:
        """Return which sources are at a neighbour of each class: (classes, words) to (classes, words)."""
        forth = np.zeros((self.cells, at.shape[1]), np.uint64)
        forth[self.origin] = at
        reader = np.zeros((self.readers, at.shape[1]), np.uint64)
        back = np.zeros_like(forth)
        self.made_back.add(reader, forth)
        self.read_back.add(back, reader)
        self.masked_back.add(back, forth)
        for bundle in self.sums_back:
            bundle.add(back, back)
        for bundle in self.sums:
            bundle.add(forth, forth)
        reader[:] = 0
        self.read.add(reader, forth)
        back[self.made] |= reader[self.by]
        self.masked.add(back, forth)
        return back[self.origin]


def _live_links(made: ChannelGraph) -> tuple[Ints, Ints]:
    """Return the links of masked layers as pairs (cell of the output, cell as read)."""
    ups, downs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for index, slots in masked_slots(made).items():
        own = made.cells.of_producer(made.graph.layers[index].producer)
        out, slot = np.nonzero(made.masks[index])
        ups.append(own.start + out)
        downs.append(made.cells.of[slots[slot]])
    return np.concatenate(ups), np.concatenate(downs)


def _levels(above: Ints, below: Ints, count: int) -> list[Ints]:
    """Return the pairs (sum, addend) in groups whose sums can be taken together, addends that are sums themselves first."""
    level = [0] * count
    for sum_, addend in zip(above.tolist(), below.tolist(), strict=True):
        level[sum_] = max(level[sum_], level[addend] + 1)
    of_pair = np.array(level, np.int64)[above]
    order = np.argsort(of_pair, kind="stable")
    ends = pointers(of_pair[order], int(of_pair.max(initial=0)) + 1)
    return [order[low:high] for low, high in itertools.pairwise(ends) if high > low]
