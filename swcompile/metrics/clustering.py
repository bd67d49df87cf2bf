"""Clustering: how many of a node's neighbours are neighbours of each other.

    C = mean over nodes of E_i / (k_i (k_i - 1) / 2), nodes with k_i < 2 counting 0        (Watts and Strogatz, Nature 393, 1998)
    transitivity = 3 triangles / connected triples

Both are exact, for classes with multiplicities. Each triangle is found at its earliest node a, as a pair b, c of later neighbours
of a that are joined: by bitwise and over the rows of a's later neighbours, or, for few classes, by a matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from swcompile.metrics.bits import TILE, from_pairs, take_columns, unpack, weigh
from swcompile.metrics.cells import Ints, spans
from swcompile.metrics.channels import Classes
from swcompile.metrics.threads import for_each

STRIP = 2048
"""Columns of a matrix product at a time: 10,000 classes take 80 MB."""
ROWS = 128
"""Rows of a matrix product at a time, a multiple of the 64 in a word: few enough to skip most of what is below the diagonal."""
ABOVE = np.triu(np.ones((ROWS, ROWS), np.float32), 1)
MATCHES = 1 << 12
"""Matches whose matches are looked up at a time."""
MANY = 8_192
"""From so many classes on the work is shared between threads."""
PRODUCT_RATE, BITS_RATE = 8e10, 1e9
"""Operations and words per second on one core, which decide between the two ways (measured on an EPYC of 2024)."""


class Clustering(NamedTuple):
    """The mean local clustering coefficient, the transitivity, and the triangles through a node of each class."""

    C: float
    transitivity: float
    triangles: NDArray[np.float64]


def clustering(graph: Classes) -> Clustering:
    """Return the clustering of a graph of classes, exactly."""
    degree = graph.degrees.astype(np.float64)
    triangles = count_triangles(graph)
    pairs = degree * (degree - 1) / 2
    local = np.divide(triangles, pairs, out=np.zeros_like(pairs), where=pairs > 0)
    weight = graph.weight.astype(np.float64)
    nodes, triples = weight.sum(), float(pairs @ weight)
    return Clustering(
        C=float(local @ weight / nodes) if nodes else 0.0,
        transitivity=float(triangles @ weight / triples) if triples else 0.0,
        triangles=triangles,
    )


def count_triangles(graph: Classes) -> NDArray[np.float64]:
    """Return how many triangles a node of each class is in."""
    nodes = int(graph.weight.sum())
    edges = int(graph.degrees @ graph.weight) // 2
    if 2 * graph.count**3 / 3 / PRODUCT_RATE <= edges * nodes / 128 / BITS_RATE:
        return _by_product(graph) + (triangles_of_matches(graph) if len(graph.matches) else 0.0)
    if nodes == graph.count:
        return _by_bits(graph)
    wide, owner = expand(graph)
    made = np.zeros(graph.count)
    made[owner] = _by_bits(wide)
    return made


def expand(graph: Classes) -> tuple[Classes, Ints]:
    """Return the same graph with a class for every node, and the former class of each."""
    owner = np.repeat(np.arange(graph.count, dtype=np.int64), graph.weight)
    rows = take_columns(graph.rows, owner, graph.count)[owner]
    if len(graph.matches):
        begin = np.cumsum(graph.weight) - graph.weight
        pair, place = spans(graph.weight[graph.matches[:, 0]])
        left, right = (begin[side][pair] + place for side in graph.matches.T)
        rows |= from_pairs(left, right, (len(owner), len(owner)))
    return Classes(rows, np.ones(len(owner), np.int64)), owner


def triangles_of_matches(graph: Classes) -> NDArray[np.float64]:
    """Return in how many triangles with a matched side a node of each class is.

    With F for "all are linked", M for matched and n for the size of a class, the pairs of neighbours of a node of class a are:
    b, c in F(a), matched: n; b in F(a), c in M(a): n_b where F(b, c), 1 where matched; b, c in M(a): 1 where either holds.
    """
    left, right = graph.matches.T
    made = np.zeros(graph.count)
    for start in range(0, len(left), TILE):
        part = slice(start, start + TILE)
        shared = graph.rows[left[part]] & graph.rows[right[part]]
        made += unpack(shared, graph.count).T @ (graph.weight[left[part]] / 2)
        np.add.at(made, left[part], weigh(shared, graph.weight).astype(np.float64))
    first = np.searchsorted(left, np.arange(graph.count + 1))
    key = left * graph.count + right
    for start in range(0, len(left), MATCHES):  # walks a - b - c over two matches
        a, b = left[start : start + MATCHES], right[start : start + MATCHES]
        owner, place = spans(first[b + 1] - first[b])
        a, c = a[owner], right[first[b][owner] + place]
        full = graph.rows[a, c >> 6] >> (c & 63).astype(np.uint64) & np.uint64(1)
        matched = key[np.minimum(np.searchsorted(key, a * graph.count + c), len(key) - 1)] == a * graph.count + c
        # Where a and c are linked all to all, this is a triangle of a, and one of b; where they are matched, one of a.
        np.add.at(made, a, full.astype(np.float64))
        np.add.at(made, b[owner], full / 2)
        np.add.at(made, a, matched / 2)
    return made


def _by_bits(graph: Classes) -> NDArray[np.float64]:
    """Count triangles where every class is a single node."""
    starts = range(0, graph.count, TILE)
    made = np.zeros(graph.count)
    found = for_each(lambda start: _triangles_from(graph, start), starts, heavy=graph.count > MANY)
    for start, counts in zip(starts, found, strict=True):
        made[start:] += counts
    return made


def _triangles_from(graph: Classes, start: int) -> NDArray[np.float64]:
    """Count the triangles whose earliest node is one of the TILE from `start`, for the nodes from there on."""
    rows = np.ascontiguousarray(graph.rows[start:, start // 64 :])  # what nodes from `start` on have beyond it
    made = np.zeros(len(rows))
    ones = np.ones(rows.shape[1], np.float32)
    for node in range(min(TILE, len(rows))):
        later = rows[node].copy()
        later[: node >> 6] = 0
        later[node >> 6] &= ~np.uint64(0) << np.uint64(node & 63)
        found = np.flatnonzero(unpack(later[None], len(rows))[0])
        if len(found) < 2:
            continue
        joined = rows.take(found, axis=0)
        joined &= later
        # A product with ones adds the counts three times as fast as a sum of bytes, and exactly below 2**24.
        shared = np.bitwise_count(joined).astype(np.float32) @ ones
        made[found] += shared
        made[node] += float(shared.sum(dtype=np.float64)) / 2
    return made


def _by_product(graph: Classes) -> NDArray[np.float64]:
    """Count triangles by products of 0-1 matrices in single precision, exact below 2**24 nodes.

    T[a, c] = sum over b > a of U[a, b] m[b] A[b, c], where U[a, c]: the triangles of a and c whose third node is later than a.
    """
    count, weight = graph.count, graph.weight.astype(np.float32)
    made = np.zeros(count)
    for left in range(0, count, STRIP):
        right = min(left + STRIP, count)
        columns = np.ascontiguousarray(graph.rows[:, left // 64 : -(-right // 64)])
        strip = unpack(columns, right - left).astype(np.float32)  # (count, right - left)
        strip *= weight[:, None]
        for start in range(0, right, ROWS):
            stop, low = min(start + ROWS, count), max(start, left)
            later = unpack(np.ascontiguousarray(graph.rows[start:stop, start // 64 :]), count - start).astype(np.float32)
            later[:, : stop - start] *= ABOVE[: stop - start, : stop - start]
            shared = later @ strip[start:, low - left :]
            shared *= later[:, low - start : right - start]
            made[start:stop] += shared @ weight[low:right].astype(np.float64) / 2
            made[low:right] += weight[start:stop].astype(np.float64) @ shared
    return made
