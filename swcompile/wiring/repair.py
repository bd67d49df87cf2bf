"""Give every map that lost its last reader a reader again.

Three remedies, in this order. *Hand over*: a moved slot further on reads the lost map instead of one that others read too.
*Exchange*: the layer gives up another of its own blocks, one that others read, and keeps this one. *Undo*: the block goes back
into its slot, and the network has one moved block less. Where dead channels are allowed, the first alone is used, and the last
for a layer, norm or gate that would be left without any reader: no parameter loses its gradient altogether (alive).

Where none may stay dead, lost maps are handed over from the last layer to the first: the slots that can take a map are those
behind it, nested sets, so whoever has the fewest choices comes first and no slot is wasted. Which slot takes it is drawn.

What cannot be repaired: in a chain in which every map has one reader, each tap from behind a cut to a map before it leaves one
block behind the cut unread, since there are as many slots behind the cut as maps. The number of dead blocks is then the number
of moved ones per layer times the mean extra distance of their taps (Little's law), and without dead ones nothing can move.
So where dead channels are allowed, lost maps are handed over in random order: fewer dead ones would mean a shorter reach.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from swcompile.wiring.alive import Read, Watch
from swcompile.wiring.blocks import Atlas, Kind, Maps, Piece
from swcompile.wiring.draw import Draw
from swcompile.wiring.eligible import Site
from swcompile.wiring.readers import Readers

TRIES = 48
"""How many slots behind a lost map are asked to take it: all but the crowded cases find one within three."""


@dataclass
class Move:
    """A slot of a site (by places) and what is read in it instead of the layer's own block."""

    site: int
    slot: int
    pieces: list[Piece]


@dataclass
class Takers:
    """The moves of one kind of reader, in the order of the network; `after` skips those that have nothing to give up."""

    moves: list[Move]
    positions: list[int]
    jump: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.jump = list(range(len(self.moves) + 1))

    def after(self, place: int) -> int:
        """Return the first place from `place` on whose slot may still take a map."""
        root = place
        while self.jump[root] != root:
            root = self.jump[root]
        while self.jump[place] != root:
            self.jump[place], place = root, self.jump[place]
        return root

    def remove(self, place: int) -> None:
        self.jump[place] = place + 1


class Repair:
    """The state of a repair: moves and readers, both changed in place."""

    def __init__(
        self,
        atlas: Atlas,
        sites: Sequence[Site],
        kept: Sequence[Sequence[int]],
        moves: Sequence[Move],
        readers: Readers,
        watch: Watch,
        draw: Draw,
        reach: str,
    ) -> None:
        self.atlas, self.sites, self.kept, self.readers, self.watch = atlas, sites, kept, readers, watch
        self.draw, self.reach = draw, reach
        self.moves = list(moves)
        self.undone = 0
        self.by_site: dict[int, list[Move]] = {}
        for move in self.moves:
            self.by_site.setdefault(move.site, []).append(move)
        self.takers: dict[Kind, Takers] = {}
        self._line_up()

    def _line_up(self) -> None:
        by_kind: dict[Kind, list[Move]] = {}
        for move in sorted(self.moves, key=lambda move: self.sites[move.site].layer.reads_at):
            by_kind.setdefault(self.sites[move.site].kind, []).append(move)
        for kind, moves in by_kind.items():
            self.takers[kind] = Takers(moves, [self.sites[move.site].layer.reads_at for move in moves])

    def home(self, move: Move) -> Piece:
        """Return the layer's own block, which the move replaces."""
        return self.sites[move.site].slots[move.slot]

    def hand_over(self, *, last_first: bool) -> None:
        """Let later moved slots read what nobody reads, as far as they can."""
        places = self.readers.any_dead([self.home(move).maps for move in self.moves])
        lost = self.draw.shuffled([self.moves[place] for place in places])
        if last_first:
            lost.sort(key=lambda move: -self.sites[move.site].layer.reads_at)
        for move in lost:
            self._rescue(move)

    def forbid(self, *, exchange: bool, most: int) -> bool:
        """Exchange or undo moves, until no map is without a reader that had one.

        Returns False, with the work half done, where more than `most` moves would have to be undone, those of earlier calls
        counted.
        """
        homes: dict[int, list[Move]] = {}
        for move in self.moves:
            self._index(move, homes)
        places = self.readers.any_dead([self.home(move).maps for move in self.moves])
        queue = [self.moves[place] for place in places]
        queue.sort(key=lambda move: self.sites[move.site].layer.reads_at)
        self.readers.died.clear()
        while queue:
            move = queue.pop()
            if not move.pieces or not self._lost(self.home(move).maps):
                continue
            if not self._rescue(move) and not (exchange and self._exchange(move, homes)):
                self._undo(move)
            if self.undone > most:
                return False
            queue.extend(self._bereft(homes))
        self.moves = [move for move in self.moves if move.pieces]
        return True

    def revive(self, *, strict: bool) -> bool:
        """Undo moves until whatever makes or changes maps has a reader again (see swcompile.wiring.alive).

        With `strict` that holds for each map behind a gate, not for one of them. Returns whether a move was undone.
        """
        before = self.undone
        while True:
            done = self.undone
            self._revive_producers()
            self._revive_features()
            if self.watch.gated:
                self._revive_gates(strict)
            if self.undone == done:
                self.moves = [move for move in self.moves if move.pieces]
                return done > before

    def reads(self, *, moved: bool = True) -> Iterator[Read]:
        """Yield what the sites read in each slot that they keep; their own blocks throughout where `moved` is False."""
        for place, (site, kept) in enumerate(zip(self.sites, self.kept, strict=True)):
            moves = {move.slot: move for move in self.by_site.get(place, ())} if moved else {}
            yield from (site.slots[slot][:3] for slot in kept if slot not in moves)
            for move in moves.values():
                yield from (self.view(move, piece) for piece in move.pieces)

    def view(self, move: Move, piece: Piece) -> Read:
        """Return the feature and columns through which a moved slot reads a piece."""
        site = self.sites[move.site]
        return self.atlas.best_view(piece, site.kind, site.layer)

    def _revive_producers(self) -> None:
        """Give each producer that had a reader at least one again, later ones first: a sum that is read has its parts read."""
        needed, alive = (self._by_producer(maps) for maps in (self.readers.needed, self.readers.count > 0))
        starved = np.flatnonzero((needed > 0) & (alive == 0)).tolist()
        if not starved:
            return
        homes: dict[int, list[Move]] = {}
        for move in self.moves:
            self._index(move, homes)
        for producer in reversed(starved):
            low, high = self.atlas.offsets[producer], self.atlas.offsets[producer + 1]
            if not self.readers.count[low:high].any():
                self._return_one(self._holding(low, high, homes))

    def _by_producer(self, maps: NDArray[np.bool_]) -> NDArray[np.int64]:
        total = np.concatenate([[0], np.cumsum(maps, dtype=np.int64)])[self.atlas.offsets]
        return np.diff(total)

    def _holding(self, low: int, high: int, homes: dict[int, list[Move]]) -> list[Move]:
        """Return the moves whose own blocks hold maps of [low, high), or sums of them where there are none."""
        spans = [(low, high)]
        while spans:
            found = [
                move
                for low, high in spans
                for move in homes.get(self.atlas.producer(low), ())
                if move.pieces and any(start < high and low < stop for start, stop in self.home(move).maps)
            ]
            if found:
                return found
            spans = [above for low, high in spans for above in self.atlas.sums_of(low, high)]
        return []

    def _revive_features(self) -> None:
        """Give each feature that had a layer to read it one again."""
        starved = self.watch.features - {read[0] for read in self.reads()}
        homes: dict[int, list[Move]] = {feature: [] for feature in starved}
        for move in self.moves if starved else ():
            if move.pieces and (feature := self.home(move).feature) in homes:
                homes[feature].append(move)
        for feature in sorted(starved):
            self._return_one(homes[feature])

    def _revive_gates(self, strict: bool) -> None:
        """Give the maps behind a gate a reader behind it again: each of them, or one for each producer."""
        had, has = self.watch.behind(self.reads(moved=False)), self.watch.behind(self.reads())
        lost = had & ~has
        wanted = lost & self.watch.whole if strict else np.zeros_like(lost)
        none_left = (self._by_producer(had) > 0) & (self._by_producer(has) == 0)
        starved = set(np.flatnonzero(none_left).tolist())
        if not starved and not wanted.any():
            return
        homes: dict[int, list[Move]] = {}
        for move in self.moves:
            if move.pieces:
                self._index(move, homes)
        for producer in sorted({*starved, *(self.atlas.producer(channel) for channel in np.flatnonzero(wanted).tolist())}):
            low, high = self.atlas.offsets[producer], self.atlas.offsets[producer + 1]
            mine = np.zeros_like(lost)
            mine[low:high] = lost[low:high]
            behind = [move for move in homes.get(producer, ()) if self._reads_any(move, mine)]
            if wanted[low:high].any():
                for move in behind:
                    if move.pieces and self._reads_any(move, wanted):
                        for start, stop in self.home(move).maps:
                            wanted[start:stop] = False
                        self._undo(move)
            elif producer in starved:
                self._return_one(behind)

    def _reads_any(self, move: Move, maps: NDArray[np.bool_]) -> bool:
        """Return whether the own block of a move holds any of the marked maps, and reads them behind their gates."""
        position = self.atlas.graph.features[self.home(move).feature].position
        return any(bool((maps[low:high] & (self.watch.gate[low:high] < position)).any()) for low, high in self.home(move).maps)

    def _return_one(self, moves: Iterable[Move]) -> None:
        """Undo one of the moves, one whose pieces others read as well if there is any; none where one is undone already."""
        order = self.draw.shuffled([*moves])
        if any(not move.pieces for move in order):  # with another producer's block, or another group's
            return
        assert order, "whatever had a reader and lost it has moves that took it away"
        harmless = (move for move in order[:TRIES] if all(self.readers.spare(piece.maps) for piece in move.pieces))
        self._undo(next(harmless, order[0]))

    def _index(self, move: Move, homes: dict[int, list[Move]]) -> None:
        for producer in {self.atlas.producer(low) for low, _ in self.home(move).maps}:
            homes.setdefault(producer, []).append(move)

    def _bereft(self, homes: dict[int, list[Move]]) -> list[Move]:
        """Return the moves whose own blocks hold a map that has died since the last call."""
        died, self.readers.died = self.readers.died, []
        producers = {self.atlas.producer(int(channels[0])) for channels in died}
        return [move for producer in sorted(producers) for move in homes.get(producer, ()) if self._lost(self.home(move).maps)]

    def _lost(self, maps: Maps) -> bool:
        return any(self.readers.dead(low, high) for low, high in maps)

    def _rescue(self, move: Move) -> bool:
        """Hand the dead maps of a move's own block over. Return whether all of them have a reader again."""
        return all(self._place(piece, self.sites[move.site]) for piece in self._dead_pieces(self.home(move)))

    def _dead_pieces(self, piece: Piece) -> list[Piece]:
        """Return the columns of a piece whose maps have no reader."""
        found: list[Piece] = []
        for run in self.atlas.runs(*piece[:3]):
            low, high = self.atlas.span(run)
            for first, last in self.readers.dead(low, high):
                start = run.start + (first - low if run.step else 0)
                stop = run.start + last - low if run.step else run.stop
                found.append(Piece(piece.feature, start, stop, ((first, last),)))
        return found

    def _place(self, piece: Piece, origin: Site) -> bool:
        """Find slots that take a piece, in parts where one slot does not suffice. Return whether all of it was taken."""
        takers = self.takers.get(origin.kind)
        feature = self.atlas.graph.features[piece.feature]
        if takers is None or feature.train_only or feature.written or feature.mixed:
            return False
        first, end = bisect_right(takers.positions, feature.position), len(takers.moves)
        if first == end:
            return False
        rest = piece
        for step in self._steps(end - first):
            place = takers.after(first + step)
            place = takers.after(first) if place == end else place
            if place == end:
                return False
            move = takers.moves[place]
            if move.pieces and self._reads(move.site, rest):
                continue
            left = self._take(move, rest)
            if left is None:
                return True
            if left is rest:
                takers.remove(place)
            rest = left
        return False

    def _steps(self, count: int) -> list[int]:
        """Draw how far to look among `count` slots, each time anew, by the powers of distance of `sources.weights_of`."""
        shots = self.draw.uniforms(TRIES)
        if self.reach == "far":
            shots = np.sqrt(shots)
        elif self.reach == "near":
            layer = max(1.0, len(self.moves) / len(self.by_site))  # slots to a layer
            layers = count / layer + 1
            shots = (1 / (1 - shots * (1 - 1 / layers)) - 1) * layer / count
        return [min(int(shot * count), count - 1) for shot in shots.tolist()]

    def _reads(self, site: int, piece: Piece) -> bool:
        """Return whether a layer already reads any of the maps of a piece."""
        for low, high in piece.maps:
            if self.sites[site].owns(low, high):
                return True
            for move in self.by_site[site]:
                for other in move.pieces:
                    if any(low < stop and start < high for start, stop in other.maps):
                        return True
        return False

    def _take(self, move: Move, piece: Piece) -> Piece | None:
        """Let a slot read as much of a piece as it can give up of its own reading, and return what is left of the piece."""
        kept: list[Piece] = []
        gained: list[Piece] = []
        rest: Piece | None = piece
        for old in move.pieces:
            if rest is None:
                kept.append(old)
                continue
            stays, leaves = self.atlas.split(old, old.width - rest.width) if old.width > rest.width else (None, old)
            if not self.readers.spare(leaves.maps):
                kept.append(old)
                continue
            part, rest = self.atlas.split(rest, leaves.width) if rest.width > leaves.width else (rest, None)
            self.readers.drop(leaves.maps)
            self.readers.read(part.maps)
            gained.append(part)
            if stays is not None:
                kept.append(stays)
        move.pieces = kept + gained
        return rest

    def _exchange(self, move: Move, homes: dict[int, list[Move]]) -> bool:
        """Let the layer give up another of its own blocks, of the same width and group, that others read too."""
        site = self.sites[move.site]
        taken = {other.slot for other in self.by_site[move.site]}
        home, width = self.home(move), self.home(move).width
        group = move.slot // site.per_group * site.per_group
        turn = self.draw.integer(site.per_group)
        for step in range(site.per_group):
            slot = group + (turn + step) % site.per_group
            other = site.slots[slot]
            if slot not in taken and other.width == width and self.readers.spare(other.maps):
                self.readers.read(home.maps)
                self.readers.drop(other.maps)
                move.slot = slot
                self._index(move, homes)
                return True
        return False

    def _undo(self, move: Move) -> None:
        """Put a block back into its slot, and in a grouped layer one in every other group too."""
        site = self.sites[move.site]
        present = self.by_site[move.site]
        rows: dict[int, Move] = {other.slot // site.per_group: other for other in reversed(present)}
        rows[move.slot // site.per_group] = move
        undone = list(rows.values()) if site.layer.groups > 1 else [move]
        for other in undone:
            self.readers.read(self.home(other).maps)
        for other in undone:
            for piece in other.pieces:
                self.readers.drop(piece.maps)
            other.pieces = []
            present.remove(other)
        self.undone += len(undone)
