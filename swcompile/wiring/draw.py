"""Random draws that are the same on every machine, for every version of numpy.

A Generator's methods may change their streams between numpy versions; a bit generator's raw output may not. So draws are made
from raw PCG64 integers, keyed by the user's seed and a name (a layer's), and layers draw independently of each other's order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


class Draw:
    """A stream of random numbers for one purpose.

    >>> Draw(0, "layer1.conv1").integers(10, 5).tolist() == Draw(0, "layer1.conv1").integers(10, 5).tolist()
    True
    """

    def __init__(self, seed: int, name: str) -> None:
        key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(key, "little"))

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers in [0, 1), multiples of 2**-53."""
        return (self._bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, bound: int, count: int) -> NDArray[np.int64]:
        """Return `count` integers in [0, bound), uniform to within 2**-53 of each other."""
        return (self.uniforms(count) * bound).astype(np.int64)

    def integer(self, bound: int) -> int:
        """Return one integer in [0, bound)."""
        return int(self.integers(bound, 1)[0])

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Return the items in random order."""
        order = np.argsort(self._bits.random_raw(len(items)), kind="stable") if items else ()
        return [items[place] for place in order]

    def normals(self, count: int) -> NDArray[np.float64]:
        """Return `count` standard normal numbers (Box and Muller, 1958)."""
        half = -(-count // 2)
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniforms(half)))
        angle = 2.0 * np.pi * self.uniforms(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
