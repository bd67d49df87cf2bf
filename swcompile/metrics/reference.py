"""What a graph is compared with: random graphs, graphs with the same degrees, ring lattices, and the indices made from them.

    S     = (C / C_rand) / (L / L_rand)            Humphries and Gurney, PLoS ONE 3(4), 2008; C_rand = d, L_rand as below
    omega = L_rand / L - C / C_latt                Telesford et al., Brain Connectivity 1(5), 2011
    phi   = 1 - sqrt((D_C^2 + D_L^2) / 2)          small-world propensity, Muldoon, Bridgeford and Bassett, Sci. Rep. 6, 2016
            D_C = (C_latt - C) / (C_latt - C_rand), D_L = (L - L_rand) / (L_latt - L_rand), each cut to [0, 1]

The lattice is the ring in which every node is joined to its nearest ones, of the same V and E.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from swcompile.metrics.bits import TILE, from_pairs, unpack
from swcompile.metrics.cells import Ints, distinct
from swcompile.metrics.channels import Classes
from swcompile.metrics.clustering import clustering, expand
from swcompile.metrics.paths import paths
from swcompile.metrics.sampling import Stream

NEGLIGIBLE = 1e-4
"""The share of pairs farther apart than 2 below which L_rand = 2 - d: the fourth digit."""
MOST_NODES, MOST_EDGES = 5_000, 2_000_000
"""The largest random graph that is drawn; beyond, its growth is computed level by level, which is then accurate."""
SWAPS_PER_EDGE = 10
"""Swaps tried for each edge of the degree-preserving null. C of chains of density .4 settles after 3; nearly complete graphs
reject most swaps and still move in the third digit at 20."""


def density(nodes: int, edges: int) -> float:
    """Return d = 2E / (V (V - 1)), which is also the clustering of a random graph."""
    return 2 * edges / (nodes * (nodes - 1)) if nodes > 1 else 0.0


def random_path(nodes: int, edges: int, seed: int = 0) -> float:
    """Return the mean path length of an Erdos-Renyi graph of `nodes` nodes and `edges` edges.

    2 - d where practically every pair has a common neighbour; else measured on one seeded draw, or, for a graph too large to be
    drawn in passing, from the expected size of every level of a breadth-first search.
    """
    d = density(nodes, edges)
    if not d:
        return 0.0
    if d == 1 or nodes * math.log1p(-(d**2)) < math.log(NEGLIGIBLE):
        return 2 - d
    if nodes <= MOST_NODES and edges <= MOST_EDGES:
        return paths(random_graph(nodes, edges, Stream(seed, f"random {nodes} {edges}"))).L
    return expected_path(nodes, d)


def random_graph(nodes: int, edges: int, stream: Stream) -> Classes:
    """Draw a simple graph of exactly `edges` edges, every one equally likely."""
    pairs = nodes * (nodes - 1) // 2
    chosen = np.zeros(0, np.int64)
    while len(chosen) < edges:
        chosen = distinct(np.concatenate([chosen, stream.integers(pairs, edges - len(chosen) + 16)]))
    key = chosen[stream.order(len(chosen))[:edges]]
    high = ((1 + np.sqrt(1 + 8 * key.astype(np.float64))) / 2).astype(np.int64)
    high -= high * (high - 1) // 2 > key  # a root that was rounded up
    return from_edges(key - high * (high - 1) // 2, high, nodes)


def from_edges(left: Ints, right: Ints, nodes: int) -> Classes:
    """Return the graph of these edges, a class for each node; no edge may occur twice."""
    row, column = np.concatenate([left, right]), np.concatenate([right, left])
    return Classes(from_pairs(row, column, (nodes, nodes)), np.ones(nodes, np.int64))


def expected_path(nodes: int, d: float) -> float:
    """Return the mean path length of a random graph from the expected growth of a breadth-first search."""
    level, reached, total, radius = 1.0, 1.0, 0.0, 0
    while level > 1e-9 and nodes - reached > 1e-9:
        radius += 1
        level = (nodes - reached) * -math.expm1(level * math.log1p(-d))
        total, reached = total + radius * level, reached + level
    return total / (reached - 1) if reached > 1 else 0.0


def small_world(C: float, L: float, C_rand: float, L_rand: float) -> float:
    """Return S = (C / C_rand) / (L / L_rand), 0 where it is not defined."""
    return C / C_rand / (L / L_rand) if C_rand and L and L_rand else 0.0


def lattice(nodes: int, edges: int) -> tuple[float, float]:
    """Return C and L of the ring lattice of mean degree 2E/V, between the two whole degrees next to it."""
    half = edges / nodes if nodes else 0.0
    low = math.floor(half)
    (C0, L0), (C1, L1) = _ring(nodes, low), _ring(nodes, low + 1)
    return C0 + (half - low) * (C1 - C0), L0 + (half - low) * (L1 - L0)


def _ring(nodes: int, half: int) -> tuple[float, float]:
    """Return C and L of the ring in which every node is joined to the `half` nearest on either side."""
    if nodes < 3:
        return 0.0, float(nodes == 2)
    half = min(max(half, 1), nodes // 2)
    apart = np.arange(1, nodes)
    away = np.minimum(apart, nodes - apart)
    near = np.concatenate([[0.0], away <= half]).astype(np.float64)  # the first node's neighbours
    spectrum = np.fft.rfft(near)
    joined = np.rint(np.fft.irfft(spectrum * spectrum, nodes)) @ near  # neighbours of neighbours that are neighbours
    degree = near.sum()
    C = joined / (degree * (degree - 1)) if degree > 1 else 0.0
    return float(C), float(np.mean(-(-away // half)))


class Extended(NamedTuple):
    """Figures that take longer than the rest: those of the degree-preserving null, and the two indices."""

    C_degree: float
    L_degree: float
    omega: float
    propensity: float


def extended(graph: Classes, C: float, L: float, edges: int, seed: int = 0) -> Extended | None:
    """Return the figures that need a degree-preserving null, or None where the graph is too large to draw one."""
    nodes = int(graph.weight.sum())
    if edges > MOST_EDGES or edges < 2:
        return None
    null = same_degrees(graph, Stream(seed, f"degrees {nodes} {edges}"))
    C_degree, L_degree = clustering(null).C, paths(null).L
    C_latt, L_latt = lattice(nodes, edges)
    C_rand, L_rand = density(nodes, edges), random_path(nodes, edges, seed)
    lost, gained = _share(C_latt - C, C_latt - C_rand), _share(L - L_rand, L_latt - L_rand)
    omega = (L_degree / L if L else 0.0) - (C / C_latt if C_latt else 0.0)
    return Extended(C_degree, L_degree, omega, 1 - math.sqrt((lost**2 + gained**2) / 2))


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else float(part > 0)


def same_degrees(graph: Classes, stream: Stream) -> Classes:
    """Draw a graph with the same degrees by swapping the ends of pairs of edges (Maslov and Sneppen, Science 296, 2002).

    Every round pairs all edges at random and swaps where the two new edges are new, loop-free and asked for once.
    """
    wide, _ = expand(graph)
    nodes = wide.count
    edges = np.column_stack(_pairs(wide))
    for _ in range(2 * SWAPS_PER_EDGE):
        edges = _swap(edges, nodes, stream)
    return from_edges(edges[:, 0], edges[:, 1], nodes)


def _pairs(graph: Classes) -> tuple[Ints, Ints]:
    """Return every edge once, the earlier node first."""
    tiles = [
        np.flatnonzero(unpack(graph.rows[at : at + TILE], graph.count)) + at * graph.count for at in range(0, graph.count, TILE)
    ]
    left, right = np.divmod(np.concatenate(tiles), graph.count)
    return left[left < right], right[left < right]


def _swap(edges: NDArray[np.int64], nodes: int, stream: Stream) -> NDArray[np.int64]:
    half = len(edges) // 2
    order = stream.order(len(edges))
    first, second = edges[order[:half]], edges[order[half : 2 * half]]
    turned = stream.uniforms(half) < 0.5
    second = np.where(turned[:, None], second[:, ::-1], second)
    left, right = np.concatenate([first[:, 0], second[:, 0]]), np.concatenate([second[:, 1], first[:, 1]])
    new = np.column_stack([np.minimum(left, right), np.maximum(left, right)])
    key = new[:, 0] * nodes + new[:, 1]
    old = np.sort(edges[:, 0] * nodes + edges[:, 1])
    place = np.minimum(np.searchsorted(old, key), len(old) - 1)
    _, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    free = (new[:, 0] != new[:, 1]) & (old[place] != key) & (count[inverse] == 1)
    swapped = free[:half] & free[half:]
    made = edges.copy()
    made[order[:half][swapped]] = new[:half][swapped]
    made[order[half : 2 * half][swapped]] = new[half:][swapped]
    return made
