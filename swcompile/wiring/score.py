"""What says how much a layer needs each block of its input: numbers by channel, or what the other channels do not explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RIDGE = 1e-9
"""Added to each channel's variance, in units of the mean one: channels that are always zero have none of their own."""


class Score(Protocol):
    """How much a layer needs what it reads."""

    def of(self, spans: Sequence[tuple[int, int]]) -> Floats:
        """Return a number for each block of input channels [start, stop), a mean over its channels: the higher the more needed."""


Scores = Mapping[str, Score]
"""Scores by layer."""
NO_SCORES: Scores = MappingProxyType({})


@dataclass(frozen=True)
class ByChannel:
    """A number for each input channel."""

    values: Floats

    def of(self, spans: Sequence[tuple[int, int]]) -> Floats:
        return np.array([self.values[start:stop].mean() for start, stop in spans])


@dataclass(frozen=True)
class Unexplained:
    """The variance of channels, times the square of their weights, that the blocks which stay do not explain.

    Blocks go one by one, each time the one that costs least; what it costs then is its score, at least that of the one before. So
    of two blocks with the same maps one scores next to nothing, and the other what it is worth. `covariances` are those of
    consecutive parts of the input; a block that lies in two is scored by the one in which it starts.

    >>> copies = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> Unexplained(np.ones(3), (copies,)).of([(0, 1), (1, 2), (2, 3)]).round(3)
    array([0., 1., 1.])
    """

    weight: Floats
    covariances: tuple[Floats, ...]
    scale: float = 1.0

    def of(self, spans: Sequence[tuple[int, int]]) -> Floats:
        made = np.zeros(len(spans))
        place = 0
        for covariance in self.covariances:
            stop = place + len(covariance)
            inside = [at for at, span in enumerate(spans) if place <= span[0] < stop]
            local = [np.arange(spans[at][0], min(spans[at][1], stop)) - place for at in inside]
            made[inside] = _eliminated(covariance, self.weight[place:stop], local)
            place = stop
        return made * self.scale


def _eliminated(covariance: Floats, weight: Floats, blocks: Sequence[NDArray[np.int64]]) -> Floats:
    made, least = np.zeros(len(blocks)), 0.0
    mean = float(np.trace(covariance)) / len(covariance)
    if mean <= 0:
        return made
    precision: NDArray[Any] = np.linalg.inv(covariance + RIDGE * mean * np.eye(len(covariance)))
    waiting = set(range(len(blocks)))
    while waiting:
        costs = {at: _cost(precision, weight, blocks[at]) for at in sorted(waiting)}
        chosen = min(costs, key=lambda at: costs[at])
        least = made[chosen] = max(least, costs[chosen])
        waiting.remove(chosen)
        gone = blocks[chosen]
        column = precision[:, gone]
        precision -= column @ np.linalg.solve(precision[np.ix_(gone, gone)], column.T)
        precision[gone] = precision[:, gone] = 0.0  # they are not part of it any more
        precision[gone, gone] = 1.0
    return made


def _cost(precision: NDArray[Any], weight: Floats, block: NDArray[np.int64]) -> float:
    """Return what a layer loses with a block, the others fitted anew: Hassibi and Stork's Optimal Brain Surgeon, for a block."""
    left = np.diag(np.linalg.inv(precision[np.ix_(block, block)]))
    return float((np.maximum(left, 0.0) * weight[block]).mean())
