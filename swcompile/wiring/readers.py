"""Count who reads each map, so that a map which loses its last reader is noticed at once and exactly.

A map's readers are the layers' slots that hold it, whatever else consumes it (the graph's sinks), and the sums that it is part
of while they are read themselves: reference counts on a directed graph without cycles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Run
from swcompile.wiring.blocks import Atlas, Maps


class Readers:
    """The number of readers of every map, kept while layers take up maps and drop them.

    `direct` counts slots and sinks, `count` also sums that are alive. `needed` marks the maps that had a reader to begin with:
    only those can die. Maps that do are appended to `died`, for whoever repairs.
    """

    def __init__(self, atlas: Atlas, direct: NDArray[np.int32], needed: NDArray[np.bool_] | None = None) -> None:
        self._atlas = atlas
        self._sums = np.zeros(atlas.size, np.bool_)
        for index, producer in enumerate(atlas.graph.producers):
            if producer.kind == "sum":
                self._sums[atlas.offsets[index] : atlas.offsets[index + 1]] = True
        self.count = self._with_sums(direct.copy())
        self.needed = self.count > 0 if needed is None else needed
        self.died: list[NDArray[np.int64]] = []

    def _with_sums(self, count: NDArray[np.int32]) -> NDArray[np.int32]:
        """Add to each map the live sums that it is part of, later sums first."""
        atlas = self._atlas
        for index in range(len(atlas.graph.producers) - 1, -1, -1):
            producer = atlas.graph.producers[index]
            if producer.kind == "sum":
                alive = count[atlas.offsets[index] : atlas.offsets[index + 1]] > 0
                for run in (run for part in producer.parts for run in part):
                    low, high = atlas.span(run)
                    inside = alive[run.start : run.stop]
                    count[low:high] += inside if run.step else inside.sum(dtype=np.int32)
        return count

    def read(self, maps: Maps) -> None:
        """Note one more reader of each map."""
        for low, high in maps:
            part = self.count[low:high]
            part += 1
            if self._sums[low]:
                self._spread(low + np.flatnonzero(part == 1), 1)

    def drop(self, maps: Maps) -> None:
        """Note one reader less of each map, and which of the needed ones have none left."""
        for low, high in maps:
            part = self.count[low:high]
            part -= 1
            gone = np.flatnonzero(part == 0)
            if len(gone):
                self._bury(low + gone)

    def _bury(self, gone: NDArray[np.int64]) -> None:
        lost = gone[self.needed[gone]]
        if len(lost):
            self.died.append(lost)
        if self._sums[gone[0]]:
            self._spread(gone, -1)

    def _spread(self, channels: NDArray[np.int64], change: int) -> None:
        """Let the parts of sums that came alive (change 1) or died (-1) know. All channels are of one sum."""
        if not len(channels):
            return
        index = self._atlas.producer(int(channels[0]))
        local = channels - self._atlas.offsets[index]
        for run in (run for part in self._atlas.graph.producers[index].parts for run in part):
            inside = local[(local >= run.start) & (local < run.stop)]
            if len(inside):
                self._change(run, inside, change)

    def _change(self, run: Run, local: NDArray[np.int64], change: int) -> None:
        low = self._atlas.offsets[run.producer] + run.first
        channels = low + (local - run.start) if run.step else np.array([low], np.int64)
        before = self.count[channels] > 0
        self.count[channels] += change if run.step else change * len(local)
        turned = channels[before != (self.count[channels] > 0)]
        if len(turned) and change < 0:
            self._bury(turned)
        elif len(turned) and self._sums[turned[0]]:
            self._spread(turned, change)

    def spare(self, maps: Maps) -> bool:
        """Return whether nobody would miss one reader less of these maps."""
        for low, high in maps:
            part = self.count[low:high]
            if part.min() <= 1 and bool((self.needed[low:high] & (part <= 1)).any()):
                return False
        return True

    def dead(self, low: int, high: int) -> list[tuple[int, int]]:
        """Return the ranges of needed maps in [low, high) that nobody reads."""
        gone = self.needed[low:high] & (self.count[low:high] == 0)
        if not gone.any():
            return []
        edges = (low + np.flatnonzero(np.diff(np.concatenate([[False], gone, [False]])))).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))

    def any_dead(self, pieces: Sequence[Maps]) -> list[int]:
        """Return the places of those among `pieces` that hold a needed map without a reader."""
        gone = np.concatenate([[0], np.cumsum(self.needed & (self.count == 0))])
        return [place for place, maps in enumerate(pieces) if any(gone[high] > gone[low] for low, high in maps)]

    def unread(self) -> int:
        """Return how many channels made by layers, inputs and opaque operations have lost their last reader."""
        return int((self.needed & (self.count == 0) & ~self._sums).sum())


def tally(atlas: Atlas, pieces: Iterable[Maps]) -> NDArray[np.int32]:
    """Return how often each map is in one of `pieces`."""
    spans = [span for maps in pieces for span in maps]
    steps = np.zeros(atlas.size + 1, np.int32)
    if spans:
        borders = np.array(spans, np.int64)
        steps += np.bincount(borders[:, 0], minlength=atlas.size + 1).astype(np.int32)
        steps -= np.bincount(borders[:, 1], minlength=atlas.size + 1).astype(np.int32)
    return np.cumsum(steps[:-1], dtype=np.int32)
