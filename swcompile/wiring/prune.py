"""Choose the blocks that a layer keeps below density 1: the nearest, and of those the least read, or those that score highest.

    density .5 in a dense block    cat(x, y1, y2, y3) -> y2 y3: a lattice, which a moved block may leave to read x or y1, far

Near is what no other part of the input was computed from: the last map of a dense block, and every branch of an Inception block;
the others are the farther the fewer layers lie in front of them. Scores say of a trained model what its layers need, and then
distance does not count; a block scores the mean of its channels. No layer, sum or gate loses its last reader: where every block
that is left is the last reader of something, the layer keeps more than its share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swcompile.graph import Layer
from swcompile.wiring.alive import Watch
from swcompile.wiring.blocks import Atlas, Piece
from swcompile.wiring.eligible import Site
from swcompile.wiring.readers import Readers
from swcompile.wiring.score import Floats


class Pruning:
    """Drop blocks of one site after another, and keep count of who reads what."""

    def __init__(
        self,
        atlas: Atlas,
        sites: Sequence[Site],
        readers: Readers,
        watch: Watch,
        fixed: Sequence[Layer],
        scores: Mapping[str, Floats],
    ) -> None:
        self.atlas, self.readers, self.watch, self.scores = atlas, readers, watch, scores
        self.behind: dict[int, int] = {}
        """How many blocks read each producer behind a gate."""
        for piece in (slot for site in sites for slot in site.slots):
            self._count(piece, 1)
        for layer in fixed:
            place = atlas.place[layer.feature]
            self._count(atlas.piece(place, 0, atlas.graph.features[place].channels), 1)

    def keep(self, site: Site, order: Sequence[Sequence[int]], each: int) -> list[tuple[int, ...]]:
        """Return for each group the slots that stay, at least `each` and as many in all, those first that are the last to move."""
        dropped: list[list[int]] = []
        ranked = [self.ranked(site, group) for group in order]
        for group in ranked:
            gone: list[int] = []
            for slot in reversed(group):
                if len(group) - len(gone) > each and self._drop(site.slots[slot]):
                    gone.append(slot)
            dropped.append(gone)
        fewest = min(map(len, dropped))
        for gone in dropped:
            while len(gone) > fewest:
                piece = site.slots[gone.pop()]
                self.readers.read(piece.maps)
                self._count(piece, 1)
        return [tuple(slot for slot in group if slot not in gone) for group, gone in zip(ranked, map(set, dropped), strict=True)]

    def ranked(self, site: Site, slots: Sequence[int]) -> list[int]:
        """Return slots by rank, those first that are the last to go; equal ones in the order given."""
        return sorted(slots, key=lambda slot: self._rank(site, slot))

    def ranks(self, site: Site, order: Sequence[int]) -> list[tuple[float, int]]:
        """Return the ranks of the blocks of one group, in ascending order: the first are the last to go."""
        return sorted(self._rank(site, slot) for slot in order)

    def _rank(self, site: Site, slot: int) -> tuple[float, int]:
        """Return how far and how much read a block is, or how little needed where there are scores."""
        piece = site.slots[slot]
        if site.layer.name in self.scores:
            return -float(self.scores[site.layer.name][slot]), 0
        readers = min(int(self.readers.count[low:high].min()) for low, high in piece.maps)
        return min(site.far.get(self.atlas.producer(low), 1) for low, _ in piece.maps), readers

    def _drop(self, piece: Piece) -> bool:
        """Drop a block, unless it is the last reader of what makes or gates its maps. Return whether it is gone."""
        if any(self.behind[producer] == 1 for producer in self._gated(piece)):
            return False
        self.readers.died.clear()
        self.readers.drop(piece.maps)
        for producer in {self.atlas.producer(int(channels[0])) for channels in self.readers.died}:
            if not self.readers.count[self.atlas.offsets[producer] : self.atlas.offsets[producer + 1]].any():
                self.readers.read(piece.maps)
                return False
        self._count(piece, -1)
        return True

    def _count(self, piece: Piece, change: int) -> None:
        for producer in self._gated(piece):
            self.behind[producer] = self.behind.get(producer, 0) + change

    def _gated(self, piece: Piece) -> set[int]:
        """Return the producers of those maps of a block that it reads behind their gates."""
        if not self.watch.gated:
            return set()
        position = self.atlas.graph.features[piece.feature].position
        spans = [(low, self.watch.gate[low:high]) for low, high in piece.maps]
        return {self.atlas.producer(low) for low, gate in spans if bool(((gate >= 0) & (gate < position)).any())}
