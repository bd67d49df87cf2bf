"""Wiring `block`: each layer keeps most of its own input and reads long-range blocks in the slots of the others.

    before   conv3 reads relu2[0:64]
    after    conv3 reads relu2[0:16] x[0:3] relu1[8:21] relu2[32:64]      the same width, the same weights

All output channels of a layer share one wiring, so the layer stays an ordinary dense convolution over a gathered input. The
stages: find the sites and cut them into slots (eligible, blocks), choose how many slots each keeps and how many of these move
(apportion), draw what they read (sources), give unread maps a reader (repair), and write it all down as a Plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import LayerGraph, Tap, ungrowable
from swcompile.plan import LayerWiring, Note, Options, Plan, Promise, own_taps, promised_change, without_unread
from swcompile.rows import Rows
from swcompile.shrink import kept_channels
from swcompile.wiring.alive import Watch, live_layers
from swcompile.wiring.apportion import apportion
from swcompile.wiring.blocks import Atlas, Maps
from swcompile.wiring.budget import Budget, as_they_act
from swcompile.wiring.draw import Draw
from swcompile.wiring.eligible import Site, find_sites, narrowed
from swcompile.wiring.prune import Pruning
from swcompile.wiring.readers import Readers, tally
from swcompile.wiring.repair import Move, Repair
from swcompile.wiring.score import NO_SCORES, Scores
from swcompile.wiring.sources import draw_pieces, fill, weights_of


def wire_block(graph: LayerGraph, options: Options, scores: Scores = NO_SCORES) -> Plan:
    """Decide which blocks of which layers become long-range taps. Pure: the same arguments give the same plan, byte for byte.

    `options.p` is a number. Raises SwnetError where `options.block` fits no layer. See wiring.md 3.2 for the rules.
    """
    return BlockWiring(graph, options, scores).plan(options.number)


@dataclass(frozen=True)
class Kept:
    """The slots that a site keeps at p = 0, group by group, those first that are the last to move."""

    groups: tuple[tuple[int, ...], ...]

    @cached_property
    def slots(self) -> list[int]:
        return sorted(slot for group in self.groups for slot in group)

    @property
    def count(self) -> int:
        return sum(map(len, self.groups))

    def movable(self, count: int) -> list[int]:
        """Return the `count` slots that move first, the same number from each group."""
        each = count // len(self.groups)
        return [slot for group in self.groups for slot in group[len(group) - each :]]


class BlockWiring:
    """Everything about a wiring that does not depend on p, so that a sweep over p pays for it once."""

    def __init__(self, graph: LayerGraph, options: Options, scores: Scores = NO_SCORES) -> None:
        self.graph, self.asked = graph, options
        self.options = as_they_act(graph, options)
        self.atlas = Atlas(graph)
        self.found, self.refused = find_sites(self.atlas, self.options)
        self.scores = {
            site.layer.name: scores[site.layer.name].of([(slot.start, slot.stop) for slot in site.slots])
            for site in self.found
            if site.layer.name in scores
        }
        changeable = {site.layer.name for site in self.found}
        live = live_layers(graph)
        self.fixed = [layer for layer in graph.layers if layer.name in live and layer.name not in changeable]
        self.watch = Watch(self.atlas, [site.layer for site in self.found], self.fixed)
        own = [slot.maps for site in self.found for slot in site.slots]
        self._read = tally(self.atlas, [*own, *self._fixed_maps()])
        self.before = Readers(self.atlas, self._read)
        self._drawn = [self._shuffled(site) for site in self.found]
        self.kept: list[Kept]
        self.notes: list[Note] = []
        self.budget = Budget(graph, self.options, self.found, self._in_order(), self._ranked)
        if self.options.prunes:
            self.budget.counts(self)
            gone = self._gone()
            found = zip(self.found, self.kept, strict=True)
            self.sites = [narrowed(self.atlas, site, kept.slots, gone) for site, kept in found]
        else:
            self.kept = [Kept(tuple(map(tuple, drawn))) for drawn in self._drawn]
            self.needed, self.sites = self.before.needed, self.found
        self.direct = tally(self.atlas, self._pieces_at_zero())

    def settle(self, counts: Sequence[int]) -> None:
        """Keep so many slots of each site, the nearest ones, the most read dropped first."""
        readers = Readers(self.atlas, self._read)
        self.kept, self.notes = self._keep(readers, counts)
        self.needed = readers.count > 0

    def kept_slots(self) -> list[list[int]]:
        """Return the slots that each site keeps."""
        return [kept.slots for kept in self.kept]

    def change(self, kept: Sequence[Sequence[int]], moves: Sequence[Move] = ()) -> tuple[int, int]:
        """Return by how many parameters and multiply-accumulates the model changes where sites keep these slots."""
        return promised_change(self._wirings(kept, moves), self.graph, self._rows)

    def plan(self, p: float, *, fill: bool = True) -> Plan:
        """Return the plan for one p; without `fill` it may stay further below a budget, as is enough for a curve."""
        if self.options.grow:
            return self._grown(p)
        wanted = self.wanted(p)
        drawn = self._draw(wanted)
        moves, readers, allowed = self._repaired(drawn)
        kept = self.kept_slots()
        if self.options.prunes and fill:
            kept = self.budget.filled(_Moved(self, moves), kept, self._read_through_moves(moves))
        wirings = tuple(self._wirings(kept, moves))
        units = sum(len(site.slots) for site in self.sites)
        change = promised_change(wirings, self.graph, self._rows)
        promise = Promise(units, len(moves), units - sum(map(len, kept)), *change)
        notes = [*self.refused, *self.notes, *self._shortfalls(wanted, drawn, moves)]
        notes += self._summary(p, promise, readers, allowed)
        notes += self._pruned(wirings, change) if self.asked.prunes else []
        return Plan(self.graph.fingerprint, replace(self.asked, p=float(p)), self.asked.p, wirings, promise, tuple(notes))

    def wanted(self, p: float) -> list[int]:
        """Return how many of the slots that each site keeps are to move: the share p of all of them, the same in each site."""
        return apportion(p, [kept.count for kept in self.kept], [site.layer.groups for site in self.sites])

    def _grown(self, p: float) -> Plan:
        """Return the plan that adds blocks on top of all that layers read."""
        barred = [ungrowable(self.graph, site.layer) for site in self.sites]
        sizes = [0 if why else len(site.slots) for site, why in zip(self.sites, barred, strict=True)]
        wanted = apportion(self.options.grow, sizes, [1] * len(sizes))
        drawn = self._draw(wanted)
        wirings = tuple(self._growing(place, drawn) for place in sorted({move.site for move in drawn}))
        notes = [Note(site.layer.name, why) for site, why in zip(self.sites, barred, strict=True) if why]
        for place, count in enumerate(np.bincount([move.site for move in drawn], minlength=len(wanted)).tolist()):
            if count < wanted[place]:
                text = f"{count} of {wanted[place]} blocks can be added: earlier maps fill no more"
                notes.append(Note(self.sites[place].layer.name, text))
        params, macs = promised_change(wirings, self.graph, self._rows)
        promise = Promise(units=sum(len(site.slots) for site in self.sites), grown=len(drawn), params=params, macs=macs)
        options = replace(self.asked, p=float(p))
        return Plan(self.graph.fingerprint, options, self.asked.p, wirings, promise, (*self.refused, *self.notes, *notes))

    def _growing(self, place: int, drawn: Sequence[Move]) -> LayerWiring:
        site, whole = self.sites[place], ((0, self.sites[place].layer.in_channels),)
        pieces = [piece for move in drawn if move.site == place for piece in move.pieces]
        grown = self._taps([self.atlas.best_view(piece, site.kind, site.layer) for piece in pieces])
        return LayerWiring(site.layer.name, own_taps(site.layer, whole, self.options.resample), whole, grown=grown)

    def _read_through_moves(self, moves: Sequence[Move]) -> list[set[int]]:
        """Return the slots of each site whose maps it reads through a move already, as a dense layer may its far ones."""
        read: list[set[int]] = [set() for _ in self.sites]
        for place in {move.site for move in moves if self.sites[move.site].far}:
            moved = [span for move in moves if move.site == place for piece in move.pieces for span in piece.maps]
            for at, slot in enumerate(self.sites[place].slots):
                if any(low < end and start < high for low, high in slot.maps for start, end in moved):
                    read[place].add(at)
        return read

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.graph)

    def _gone(self) -> dict[str, NDArray[np.bool_]]:
        """Return which channels of each feature nobody reads at p = 0, and are to be removed: no block may move to them."""
        live = self._rows.read({wiring.layer: wiring.taps for wiring in self._wirings(self.kept_slots())})
        return {name: ~kept for name, kept in self._rows.channels(live) if not kept.all()}

    def _fixed_maps(self) -> list[Maps]:
        """Return what sinks and the layers that stay as they are read; a layer that nobody reads does not count."""
        maps: list[Maps] = [(self.atlas.span(run),) for run in self.graph.sinks]
        for layer in self.fixed:
            maps += [(self.atlas.span(run),) for run in self.graph.feature_by_name[layer.feature].runs]
        return maps

    def _pieces_at_zero(self) -> list[Maps]:
        chosen = (
            site.slots[slot].maps for site, kept in zip(self.sites, self.kept, strict=True) for g in kept.groups for slot in g
        )
        return [*chosen, *self._fixed_maps()]

    def _keep(self, readers: Readers, counts: Sequence[int]) -> tuple[list[Kept], list[Note]]:
        """Choose the slots that each site keeps, and say where they are more than asked for."""
        pruning = self._pruning(readers)
        chosen: list[Kept] = []
        notes: list[Note] = []
        for site, order, count in zip(self.found, self._drawn, counts, strict=True):
            kept = Kept(tuple(pruning.keep(site, order, count // site.layer.groups)))
            chosen.append(kept)
            if kept.count > count:
                notes.append(
                    Note(site.layer.name, f"{kept.count - count} more blocks stay than {self.options.asked_to_keep} {_STAYS}")
                )
        return chosen, notes

    def _in_order(self) -> list[Sequence[Sequence[int]]]:
        """Return the slots of each site, group by group, in the order in which more of them would stay."""
        if not self.scores:
            return [site.by_group for site in self.found]
        pruning = self._pruning(self.before)
        pairs = zip(self.found, self._drawn, strict=True)
        return [[pruning.ranked(site, group) for group in order] for site, order in pairs]

    def _pruning(self, readers: Readers) -> Pruning:
        return Pruning(self.atlas, self.found, readers, self.watch, self.fixed, self.scores)

    def _ranked(self) -> list[int]:
        """Rank the blocks of all sites together, for Budget.ranked."""
        pruning = self._pruning(self.before)
        keys: list[tuple[tuple[float, int], int]] = []
        for place, (site, drawn) in enumerate(zip(self.found, self._drawn, strict=True)):
            groups = [pruning.ranks(site, group) for group in (drawn if self.scores else drawn[:1])]
            keys += [(_together(ranks), place) for ranks in zip(*groups, strict=True)]
        order = Draw(self.options.seed, " ranking").shuffled(range(len(keys)))
        return [keys[at][1] for at in sorted(order, key=lambda at: keys[at][0])]

    def _shuffled(self, site: Site) -> list[list[int]]:
        draw = Draw(self.options.seed, site.layer.name)
        return [draw.shuffled(slots) for slots in site.by_group]

    def _draw(self, wanted: Sequence[int]) -> list[Move]:
        """Draw what the moved slots of each site read, as far as there is anything to read."""
        moves: list[Move] = []
        distances = self.graph.distances() if self.options.reach != "uniform" else None
        vectors = {} if distances is None else {site.layer.name: place for place, site in enumerate(self.sites)}
        if distances is None:
            for place, count in enumerate(wanted):
                moves += self._draw_at(place, count, None)
            return moves
        for layer, vector in distances:
            if layer.name in vectors:
                place = vectors[layer.name]
                moves += self._draw_at(place, wanted[place], weights_of(self.sites[place], self.options.reach, vector))
        return moves

    def _draw_at(self, place: int, count: int, weights: NDArray[np.float64] | None) -> list[Move]:
        site = self.sites[place]
        slots = self._fitting(site, self.kept[place], count)
        if not slots:
            return []
        stream = draw_pieces(site, Draw(self.options.seed, f"{site.layer.name} sources"), weights)
        filled = fill(self.atlas, [site.slots[slot].width for slot in slots], stream)
        return [Move(place, slot, pieces) for slot, pieces in zip(slots, filled, strict=True)]

    @staticmethod
    def _fitting(site: Site, kept: Kept, count: int) -> list[int]:
        """Return the slots to move, no more than the candidates can fill."""
        while count:
            slots = kept.movable(count)
            if sum(site.slots[slot].width for slot in slots) <= site.room:
                return slots
            count -= site.layer.groups
        return []

    def _repaired(self, drawn: Sequence[Move]) -> tuple[list[Move], Readers, bool]:
        """Repair what the moves leave unread. Returns the moves, the readers, and whether dead channels were allowed."""
        if self.options.dead != "allow":
            repair = self._repair(drawn)
            repair.hand_over(last_first=True)
            most = len(drawn) if self.options.dead == "forbid" else len(drawn) * 3 // 4
            while repair.forbid(exchange=not self.options.prunes, most=most):
                if not repair.revive(strict=True):
                    return repair.moves, repair.readers, False
        repair = self._repair(drawn)
        repair.hand_over(last_first=False)
        repair.revive(strict=False)
        return repair.moves, repair.readers, True

    def _repair(self, drawn: Sequence[Move]) -> Repair:
        moves = [replace(move, pieces=list(move.pieces)) for move in drawn]
        taken = tally(self.atlas, [piece.maps for move in moves for piece in move.pieces])
        given = tally(self.atlas, [self.sites[move.site].slots[move.slot].maps for move in moves])
        readers = Readers(self.atlas, self.direct + taken - given, self.needed)
        kept = [kept.slots for kept in self.kept]
        draw = Draw(self.options.seed, " repair")
        return Repair(self.atlas, self.sites, kept, moves, readers, self.watch, draw, self.options.reach)

    def _wirings(self, kept: Sequence[Sequence[int]], moves: Sequence[Move] = ()) -> list[LayerWiring]:
        by_site: list[dict[int, Move]] = [{} for _ in self.found]
        for move in moves:
            by_site[move.site][move.slot] = move
        wirings: list[LayerWiring] = []
        for site, slots, moved in zip(self.found, kept, by_site, strict=True):
            if moved or len(slots) < len(site.slots):
                wirings.append(self._wiring(site, slots, moved))
        return without_unread(wirings, self.graph, self._rows) if self.options.prunes else wirings

    def _wiring(self, site: Site, kept: Sequence[int], moved: dict[int, Move]) -> LayerWiring:
        taps: list[tuple[int, int, int]] = []
        columns: list[tuple[int, int]] = []
        for slot in kept:
            own = site.slots[slot]
            if slot in moved:
                taps += [self.atlas.best_view(piece, site.kind, site.layer) for piece in moved[slot].pieces]
            else:
                taps.append(own[:3])
            columns.append((own.start, own.stop))
        return LayerWiring(
            site.layer.name, self._taps(taps), tuple((start, stop) for _, start, stop in _joined([(0, *c) for c in columns]))
        )

    def _taps(self, columns: Sequence[tuple[int, int, int]]) -> tuple[Tap, ...]:
        names, resample = self.atlas.names, self.options.resample
        return tuple(Tap(names[feature], start, stop, resample) for feature, start, stop in _joined(columns))

    def _shortfalls(self, wanted: Sequence[int], drawn: Sequence[Move], moves: Sequence[Move]) -> list[Note]:
        """Say of each layer that moves less than its share why it does."""
        notes: list[Note] = []
        could, did = (np.bincount([move.site for move in some], minlength=len(wanted)) for some in (drawn, moves))
        for place, site in enumerate(self.sites):
            asked, filled, done = wanted[place], int(could[place]), int(did[place])
            if filled < asked:
                notes.append(Note(site.layer.name, f"{filled} of {asked} blocks can move: earlier maps fill no more"))
            if done < filled:
                back = "went back: their maps would have had no reader left"
                notes.append(Note(site.layer.name, f"{filled - done} of {filled} moved blocks {back}"))
        return notes

    def _summary(self, p: float, promise: Promise, readers: Readers, allowed: bool) -> list[Note]:
        notes: list[Note] = []
        left = promise.units - promise.pruned
        wanted = round(p * left)
        if promise.moved != wanted:
            notes.append(Note("*", f"p = {promise.p:.4f} instead of {p:g}: {promise.moved} of {wanted} blocks moved"))
        if unread := readers.unread() if allowed else 0:
            notes.append(Note("*", f"{unread} channels are unread: {_WHY_DEAD[self.options.dead]}"))
        return notes

    def _pruned(self, wirings: Sequence[LayerWiring], change: tuple[int, int]) -> list[Note]:
        """Say which channels nobody reads any more, and what a budget came to."""
        if not self.options.prunes:
            return [_WITHIN]
        taps = {site.layer.name: self.graph.reads(site.layer) for site in self.found}
        taps |= {wiring.layer: wiring.taps for wiring in wirings}
        read = [(self.atlas.span(run),) for name in taps for run in self.graph.runs_of(taps[name])]
        unread = self.before.needed & (Readers(self.atlas, tally(self.atlas, [*read, *self._fixed_maps()])).count == 0)
        outputs = {wiring.layer: wiring.outputs for wiring in wirings if wiring.outputs}
        stay = np.concatenate(kept_channels(self.graph, outputs))
        layers = self.graph.layer_by_name
        removed = sum(layers[wiring.layer].out_channels - wiring.out(layers[wiring.layer]) for wiring in wirings)
        left = int((unread & stay).sum())
        notes = [Note("*", f"{removed} unread output channels were removed")] if removed else []
        notes += [Note("*", f"{left} unread channels {_STAY}")] if left else []
        met = self.budget.note(change)
        return notes if met is None else [*notes, met]


@dataclass(frozen=True)
class _Moved:
    """A wiring whose moves are decided, as a budget sees it."""

    wiring: BlockWiring
    moves: Sequence[Move]

    def settle(self, counts: Sequence[int]) -> None:
        raise AssertionError("its slots are settled")

    def kept_slots(self) -> list[list[int]]:
        return self.wiring.kept_slots()

    def change(self, kept: Sequence[Sequence[int]]) -> tuple[int, int]:
        return self.wiring.change(kept, self.moves)


def _together(ranks: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Return the rank of blocks that go together, one of each group."""
    return sum(rank for rank, _ in ranks) / len(ranks), ranks[0][1]


_STAY = "stay: they are part of a sum that is read, or an operation in between needs their place"

_WITHIN = Note("*", "the model is within its budget as it is: no block had to go")

_STAYS = "asks for: a layer would have had no reader left"

_WHY_DEAD = {
    "allow": "later layers have no slot left for them (dead='forbid' moves fewer blocks instead)",
    "auto": "most maps have a single reader, so that a long tap leaves one block behind it unread "
    "(dead='forbid' would undo more than three quarters of the moves)",
}


def _joined(parts: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Merge neighbours that continue each other in one feature."""
    merged: list[tuple[int, int, int]] = []
    for feature, start, stop in parts:
        if merged and merged[-1][0] == feature and merged[-1][2] == start:
            merged[-1] = (feature, merged[-1][1], stop)
        else:
            merged.append((feature, start, stop))
    return merged
