"""Clustering and path lengths of graphs too large to be computed exactly, with the intervals they are stated with.

C: random nodes, each with a random pair of its neighbours, closed or not. With k = ln(2/delta) / (2 eps^2) such wedges the error
is below eps with probability 1 - delta (Hoeffding). L: distances from random nodes to all others; the interval is that of a
ratio of means over independent sources, by the normal approximation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from swcompile.metrics.bits import Words, from_pairs, unpack
from swcompile.metrics.cells import Ints
from swcompile.metrics.sampling import PRECISION, Interval, Stream, around, wedges_for
from swcompile.metrics.spread import Spread

SOURCES = 512
"""Sources of L: the distances of 512 nodes of a residual net of 10,000 layers fix L to 0.025."""
BATCH = 2048
"""Wedges at a time: a million cells take 256 MB."""
NORMAL = 1.96
"""Standard deviations on either side of the mean that hold 95% of a normal distribution."""


class SampledClustering(NamedTuple):
    """Estimates of C, with its interval, and of the transitivity."""

    C: float
    interval: Interval
    transitivity: float


class SampledPaths(NamedTuple):
    """Estimates of L, with its interval, and of the share of pairs that no path joins."""

    L: float
    interval: Interval
    unreachable: float


def sample_clustering(spread: Spread, weight: Ints, stream: Stream, precision: float = PRECISION) -> SampledClustering:
    """Estimate the clustering from random wedges."""
    count = wedges_for(precision)
    node = random_classes(weight, count, stream)
    closed, pairs = np.zeros(count, np.bool_), np.zeros(count)
    for start in range(0, count, BATCH):
        part = slice(start, start + BATCH)
        near = spread.step(one_hot(node[part], len(weight)))
        left, right, degree = random_pairs(near, weight, len(node[part]), stream)
        pairs[part] = degree * (degree - 1) / 2
        closed[part] = _has(spread.step(one_hot(left, len(weight))), right) & (degree > 1)
    C, triples = float(closed.mean()), float(pairs.sum())
    return SampledClustering(C, around(C, precision, high=1.0), float(closed @ pairs) / triples if triples else 0.0)


def sample_paths(spread: Spread, weight: Ints, stream: Stream, sources: int = SOURCES) -> SampledPaths:
    """Estimate the path length from random sources."""
    source = random_classes(weight, sources, stream)
    seen = one_hot(source, len(weight))
    frontier, twins = seen.copy(), weight[source] - 1
    total, joined, radius = np.zeros(sources), np.zeros(sources), 0
    while True:
        radius += 1
        frontier = spread.step(frontier) & ~seen
        if not frontier.any():
            break
        seen |= frontier
        active = np.flatnonzero(frontier.any(axis=1))  # in a deep network a frontier is a few classes of ten thousand
        found = weigh_columns(frontier[active], weight[active], sources)
        if radius == 1:
            total, joined = np.where(found > 0, 2.0 * twins, 0.0), np.where(found > 0, twins, 0.0)
        total, joined = total + radius * found, joined + found
    if not joined.sum():
        return SampledPaths(0.0, Interval(0.0, 0.0), 1.0)
    L = float(total.sum() / joined.sum())
    error = float(np.std(total - L * joined, ddof=1) / joined.mean() / math.sqrt(sources))
    return SampledPaths(L, around(L, NORMAL * error, low=1.0), 1 - float(joined.mean()) / (int(weight.sum()) - 1))


def random_classes(weight: Ints, count: int, stream: Stream) -> Ints:
    """Return the classes of `count` random nodes."""
    upto = np.cumsum(weight)
    return np.searchsorted(upto, stream.integers(int(upto[-1]), count), "right").astype(np.int64)


def one_hot(node: Ints, count: int) -> Words:
    """Return source i at class node[i]: (count, words)."""
    return from_pairs(node, np.arange(len(node), dtype=np.int64), (count, len(node)))


def _has(at: Words, node: Ints) -> NDArray[np.bool_]:
    """Return whether source i is at class node[i]."""
    source = np.arange(len(node))
    word: Words = at[node, source >> 6]
    here: NDArray[np.bool_] = (word >> (source & 63).astype(np.uint64)) & np.uint64(1) != np.uint64(0)
    return here


def weigh_columns(at: Words, weight: Ints, sources: int) -> NDArray[np.float64]:
    """Return the total weight of the classes at which each source is."""
    made = np.zeros(sources)
    for start in range(0, len(at), 4096):
        made += weight[start : start + 4096].astype(np.float64) @ unpack(at[start : start + 4096], sources)
    return made


def random_pairs(near: Words, weight: Ints, sources: int, stream: Stream) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Return the classes of two different random neighbours of each source, and its degree; class 0 where it has none."""
    left, right = np.zeros(sources, np.int64), np.zeros(sources, np.int64)
    degree = np.zeros(sources)
    first, second = stream.uniforms(sources), stream.uniforms(sources)
    for word in range(near.shape[1]):
        part = slice(64 * word, min(64 * word + 64, sources))
        flags = unpack(near[:, word : word + 1], part.stop - part.start)
        source, member = np.divmod(np.flatnonzero(np.ascontiguousarray(flags.T)), len(weight))
        upto = np.concatenate([[0], np.cumsum(weight[member])])
        ends = np.searchsorted(source, np.arange(part.stop - part.start + 1))
        base, size = upto[ends[:-1]], np.diff(upto[ends])
        one = (first[part] * size).astype(np.int64)
        two = (second[part] * np.maximum(size - 1, 0)).astype(np.int64)
        two += two >= one
        for chosen, place in ((left, one), (right, two)):
            found = np.searchsorted(upto, base + place, "right") - 1
            chosen[part] = np.where(size > 1, member[np.minimum(found, len(member) - 1)] if len(member) else 0, 0)
        degree[part] = size
    return left, right, degree
