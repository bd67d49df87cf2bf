"""Shortest paths of a graph of classes: the characteristic path length and how many pairs no path joins.

The ball of radius d + 1 about a node is the union of the balls of radius d about its neighbours. Balls are rows of bits; a union
stops as soon as it covers the node's component, which in a rewired network some dozen neighbours do. Two nodes of one class
have the same neighbours: they are at distance 2, or apart for good where they have none.

With matched classes (depthwise layers) node i of a class reaches, of each class that matches lead to, first node i alone. Its ball
is then two rows: the classes whose node i it holds, and those whose other nodes it holds. Elsewhere the two agree.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from swcompile.metrics.bits import TILE, Words, unpack, weigh
from swcompile.metrics.cells import Ints
from swcompile.metrics.channels import Classes
from swcompile.metrics.threads import for_each

MANY = 8_192
"""From so many nodes at a time on the work is shared between threads."""
FAN = 64
"""Neighbours united at a time: at the density of VGG16's graph, one or two rounds leave hardly a node out."""
PROBE = 4
"""How many neighbours could be united in the time in which one missing class is tried (measured)."""
GATHER = 1 << 17
"""Words gathered at a time: 1 MB stays in the second-level cache."""


class Paths(NamedTuple):
    """The mean distance over connected pairs of nodes, and the share of pairs that no path joins."""

    L: float
    unreachable: float


def paths(graph: Classes) -> Paths:
    """Return the path lengths of a graph of classes, exactly."""
    weight = graph.weight
    nodes = int(weight.sum())
    if nodes < 2:
        return Paths(0.0, 0.0)
    total, joined = _distances_by_index(graph) if len(graph.matches) else _distances(graph)
    pairs = nodes * (nodes - 1)
    return Paths(total / joined if joined else 0.0, 1 - joined / pairs)


def _distances(graph: Classes) -> tuple[int, int]:
    """Return the sum of the distances over ordered connected pairs, and how many such pairs there are."""
    weight, degree = graph.weight, graph.degrees
    component, label = components(graph)
    inside = weigh(component, weight)[label]  # nodes of each class's component
    ball = graph.rows.copy()
    own = np.arange(graph.count)
    ball[own, own >> 6] |= np.uint64(1) << (own & 63).astype(np.uint64)
    reached = degree + weight
    total = int(weight @ (degree + 2 * (weight - 1) * (degree > 0)))
    joined = int(weight @ np.where(degree > 0, inside - 1, 0))
    pending = np.flatnonzero(reached < inside)
    neighbours = Neighbours(graph) if len(pending) else None
    radius = 1
    while len(pending):
        assert neighbours is not None
        radius += 1
        grown = ball[pending]
        neighbours.grow(ball, pending, component[label[pending]], grown)
        full = np.all(grown == component[label[pending]], axis=1)
        now = inside[pending].copy()
        now[~full] = weigh(grown[~full], weight)
        total += radius * int(weight[pending] @ (now - reached[pending]))
        ball[pending], reached[pending] = grown, now
        pending = pending[~full]
    return total, joined


def _distances_by_index(graph: Classes) -> tuple[int, int]:
    """Return the same as `_distances` for a graph with matched classes.

    A neighbour of a class that is linked all to all lends what any of its nodes reaches, a matched one what node i of it reaches.
    """
    left, right = graph.matches.T
    owner, begin = np.unique(left, return_index=True)
    own = np.arange(graph.count)
    same = np.zeros_like(graph.rows)
    same[own, own >> 6] = np.uint64(1) << (own & 63).astype(np.uint64)
    rest = np.zeros_like(same)
    neighbours = Neighbours(graph, probing=False)
    everything = np.bitwise_or.reduce(graph.rows | same, axis=0)
    reached, total, radius = np.ones(graph.count, np.int64), 0, 0
    pending = own
    while len(pending):
        radius += 1
        made = np.zeros_like(same)
        neighbours.grow(same | rest, own, np.broadcast_to(everything, made.shape), made)
        for ball in (same, rest):
            lent = np.bitwise_or.reduceat(ball[right], begin, axis=0)
            ball |= made
            ball[owner] |= lent
        now = weigh(same, np.ones_like(graph.weight)) + weigh(rest, graph.weight - 1)
        total += radius * int(graph.weight @ (now - reached))
        pending = np.flatnonzero(now > reached)
        reached = now
    return total, int(graph.weight @ (reached - 1))


def components(graph: Classes) -> tuple[Words, Ints]:
    """Return the connected components as rows of bits, and the component of each class."""
    label = np.full(graph.count, -1, np.int64)
    found: list[Words] = []
    for seed in range(graph.count):
        if label[seed] < 0:
            members = _flood(graph, seed)
            label[unpack(members[None], graph.count)[0]] = len(found)
            found.append(members)
    return np.array(found, np.uint64).reshape(len(found), graph.rows.shape[1]), label


def _flood(graph: Classes, seed: int) -> Words:
    members: Words = graph.rows[seed].copy()
    members[seed >> 6] |= np.uint64(1) << np.uint64(seed & 63)
    frontier: Words = members.copy()
    while frontier.any():
        near = np.flatnonzero(unpack(frontier[None], graph.count)[0])
        frontier = np.bitwise_or.reduce(graph.rows[near], axis=0) & ~members
        members |= frontier
    return members


class Neighbours:
    """The neighbours of every class as lists, to grow balls over them; `probing` looks up what only few classes miss."""

    def __init__(self, graph: Classes, *, probing: bool = True) -> None:
        self.rows, self.count, self.probing = graph.rows, graph.count, probing
        size = np.bitwise_count(graph.rows).sum(axis=1, dtype=np.int64)
        self.pointer = np.concatenate([[0], np.cumsum(size)])
        self.member = np.empty(self.pointer[-1], np.int32)
        for start in range(0, self.count, TILE):
            flat = np.flatnonzero(unpack(self.rows[start : start + TILE], self.count))
            own = size[start : start + TILE]
            self.member[self.pointer[start] :][: len(flat)] = flat - np.repeat(np.arange(len(own)) * self.count, own)

    def grow(self, ball: Words, nodes: Ints, enough: Words, made: Words) -> None:
        """Unite in `made` the balls about the neighbours of each of `nodes`; what is in none of `enough` is not looked for."""
        step = max(1, GATHER // (FAN * ball.shape[1]))
        parts = [slice(start, start + step) for start in range(0, len(nodes), step)]
        for_each(lambda part: self._grow(ball, nodes[part], enough[part], made[part]), parts, heavy=len(nodes) > MANY)

    def _grow(self, ball: Words, nodes: Ints, enough: Words, made: Words) -> None:
        """Unite balls of neighbours, FAN at a time, until trying what is missing is cheaper than the rest."""
        begin, size = self.pointer[nodes], self.pointer[nodes + 1] - self.pointer[nodes]
        rounds = -(-size // FAN)
        left = np.flatnonzero(size)
        place = np.arange(FAN)
        for turn in range(int(rounds.max(initial=0))):
            # Every round takes neighbours from all over the list: those of one layer alone would not cover the others.
            take = np.minimum(place * rounds[left, None] + turn, size[left, None] - 1)
            near = self.member[begin[left, None] + take]
            made[left] |= np.bitwise_or.reduce(ball[near], axis=1)
            missing = np.bitwise_count(enough[left] & ~made[left]).sum(axis=1, dtype=np.int64)
            rest = np.maximum(size[left] - (turn + 1) * FAN, 0)
            few = (missing > 0) & (PROBE * missing <= rest) & self.probing
            if few.any():
                self._probe(ball, nodes, enough, made, left[few])
            left = left[(missing > 0) & ~few & (rounds[left] > turn + 1)]
            if not len(left):
                return

    def _probe(self, ball: Words, nodes: Ints, enough: Words, made: Words, chosen: Ints) -> None:
        """Try each class that is still missing: it belongs to the wider ball where the ball holds a neighbour of it."""
        which, candidate = np.divmod(np.flatnonzero(unpack(enough[chosen] & ~made[chosen], self.count)), self.count)
        step = max(1, GATHER // ball.shape[1])
        for start in range(0, len(which), step):
            owner, member = chosen[which[start : start + step]], candidate[start : start + step]
            near = np.bitwise_or.reduce(self.rows[member] & ball[nodes[owner]], axis=1) != 0
            owner, member = owner[near], member[near]
            np.bitwise_or.at(made, (owner, member >> 6), np.uint64(1) << (member & 63).astype(np.uint64))
