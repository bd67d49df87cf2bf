"""Sampling: random draws that are the same everywhere, and the intervals that sampled figures are stated with.

Draws are raw PCG64 integers keyed by a seed and a name, since a Generator's methods may change between numpy versions.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swcompile.metrics.cells import Ints

CONFIDENCE = 0.95
PRECISION = 0.01
"""Half the width of the interval of a sampled clustering coefficient, at CONFIDENCE: 18,445 wedges."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a sampled figure."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True)
class Intervals:
    """What a sampled C and L are stated with."""

    C: Interval
    L: Interval

    def __str__(self) -> str:
        return f"C {self.C}, L {self.L} ({CONFIDENCE:.0%} each)"


class Stream:
    """A stream of random numbers for one purpose."""

    def __init__(self, seed: int, name: str) -> None:
        key = hashlib.sha256(f"metrics:{seed}:{name}".encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(key, "little"))

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers in [0, 1), multiples of 2**-53."""
        return (self._bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, bound: int, count: int) -> Ints:
        """Return `count` integers in [0, bound)."""
        return (self.uniforms(count) * bound).astype(np.int64)

    def order(self, count: int) -> Ints:
        """Return 0 .. count - 1 in random order."""
        return np.argsort(self._bits.random_raw(count), kind="stable").astype(np.int64)


def wedges_for(precision: float = PRECISION, confidence: float = CONFIDENCE) -> int:
    """Return how many wedges bound the error of a clustering coefficient: k = ln(2/delta) / (2 eps^2).

    Hoeffding's inequality; see Seshadhri, Pinar and Kolda, Wedge sampling for computing clustering coefficients (2014).
    """
    return math.ceil(math.log(2 / (1 - confidence)) / (2 * precision**2))


def around(mean: float, half: float, low: float = 0.0, high: float = math.inf) -> Interval:
    """Return the interval of `half` to each side of `mean`, inside [low, high]."""
    return Interval(max(low, mean - half), min(high, mean + half))
