"""How many blocks each layer keeps, so that the model meets a budget: from above, to within one block.

    density=.5                 half of all blocks
    params=98_000              as many as leave the whole model at most 98,000 parameters; macs= alike
    keep={"stage3.*": .25}     a quarter of the blocks of the layers with such names

`spread` says how layers share what is kept: "uniform" gives all the same share; "erk" gives wide layers a smaller one, in
proportion to (in + out + kernel sides) / (in * out * kernel area) as in RigL (Evci et al., arXiv 1911.11134, section 3);
"global" ranks the blocks of all layers together and keeps the first, nearest ones before farther ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph
from swcompile.plan import BUDGETS, Note, Options, weight_of
from swcompile.wiring.apportion import share_out

if TYPE_CHECKING:
    from swcompile.wiring.eligible import Site

BLOCKS, PARAMS, MACS = "blocks", "parameters", "multiply-accumulates"
"""What a budget counts."""
Counts = list[int]
"""The number of slots that each site keeps."""
Slots = list[list[int]]
"""The slots that each site keeps."""


class Trial(Protocol):
    """What a budget asks of a wiring: keep so many slots, and say what is left."""

    def settle(self, counts: Sequence[int]) -> None:
        """Keep so many slots of each site, or more where one would lose the last reader of something."""

    def kept_slots(self) -> Slots:
        """Return the slots that each site keeps."""

    def change(self, kept: Slots) -> tuple[int, int]:
        """Return by how many parameters and multiply-accumulates the model changes where sites keep these slots."""


def is_loose(graph: LayerGraph, options: Options) -> bool:
    """Whether the model is within its budget as it stands."""
    return (options.params is not None and graph.params <= options.params) or (
        options.macs is not None and graph.macs <= options.macs
    )


def as_they_act(graph: LayerGraph, options: Options) -> Options:
    """Return the options without a budget that the model meets as it stands: then nothing need go."""
    return replace(options, **BUDGETS, score="distance") if is_loose(graph, options) else options


class Budget:
    """The counts that the options ask for, over the sites that were found."""

    def __init__(
        self,
        graph: LayerGraph,
        options: Options,
        sites: Sequence[Site],
        order: Sequence[Sequence[Sequence[int]]],
        ranked: Callable[[], list[int]],
    ) -> None:
        self.graph, self.options, self.sites, self.order = graph, options, sites, order
        self.sizes = [len(site.slots) for site in sites]
        self.units = [site.layer.groups for site in sites]
        self._rank = ranked

    @cached_property
    def ranked(self) -> list[int]:
        """The site of each block, or of one block in each group, in the order in which all of them would stay."""
        return self._rank()

    def counts(self, trial: Trial) -> Counts:
        """Return the number of slots that each site keeps; `trial` is settled at them."""
        if self.options.keep:
            made = [self._floor(share, place) for place, share in enumerate(self._named())]
            trial.settle(made)
            return made
        if self._measure != BLOCKS:
            return self._largest(trial)
        made = self.at(self._limit)
        trial.settle(made)
        return made if self.size(trial, trial.kept_slots()) <= self._limit else self._largest(trial)

    def at(self, total: int) -> Counts:
        """Return the counts that add up to `total`, by the spread that was asked for."""
        if self.options.spread == "global":
            return self._first(total)
        share = total / max(sum(self.sizes), 1)
        shares = [share] * len(self.sizes) if self.options.spread == "uniform" else self._erk(share)
        return share_out(total, [each * size for each, size in zip(shares, self.sizes, strict=True)], self.sizes, self.units, 1)

    def _floor(self, share: float, place: int) -> int:
        unit = self.units[place]
        return max(1, math.floor(share * self.sizes[place] / unit + 1e-9)) * unit

    def _named(self) -> list[float]:
        """Return the share that each site keeps by its name: that of the first pattern it matches, or all."""
        for pattern, _ in self.options.keep:
            if not any(fnmatchcase(site.layer.name, pattern) for site in self.sites):
                matching = [layer.name for layer in self.graph.layers if fnmatchcase(layer.name, pattern)]
                why = f"{matching[0]} cannot be changed (`swcompile check` says why)" if matching else "no layer has such a name"
                raise SwnetError(
                    f"keep names {pattern!r}, but {why}. Take the names of layers, such as 'features.3' or 'stage2.*'."
                )
        return [
            next((share for pattern, share in self.options.keep if fnmatchcase(site.layer.name, pattern)), 1.0)
            for site in self.sites
        ]

    def _erk(self, share: float) -> list[float]:
        """Return min(1, s * raw) for each site, with s such that the shares average to `share` over all blocks."""
        raw = [_erdos_renyi(site.layer) for site in self.sites]
        left, whole = share * sum(self.sizes), 0
        order = sorted(range(len(raw)), key=lambda place: -raw[place])
        weight = sum(size * each for size, each in zip(self.sizes, raw, strict=True))
        for place in order:  # those capped at 1 come first
            if weight <= 0 or raw[place] * (left - whole) / weight < 1:
                break
            whole += self.sizes[place]
            weight -= self.sizes[place] * raw[place]
        scale = (left - whole) / weight if weight > 0 else math.inf
        return [min(1.0, scale * each) for each in raw]

    def _first(self, total: int) -> Counts:
        """Keep one block per layer and group, and of the others the first in the ranking of all."""
        counts = list(self.units)
        seen = [0] * len(self.sizes)
        left = total - sum(counts)
        for place in self.ranked:
            seen[place] += self.units[place]
            if seen[place] > self.units[place] and self.units[place] <= left:
                counts[place] += self.units[place]
                left -= self.units[place]
        return counts

    def _largest(self, trial: Trial) -> Counts:
        """Return the largest counts within the budget on the way from one block per layer to all of them; `trial` is at them."""
        limit, counts = self._limit, self.at(0)
        trial.settle(counts)
        least = self.size(trial, trial.kept_slots())
        if least > limit and self._measure == BLOCKS:
            return counts
        if least > limit:
            head = "" if self.options.head else ", or head=True, which prunes the last layer, too"
            raise SwnetError(
                f"A budget of {limit:,} {self._measure} was asked for; with one block per layer the model still has "
                f"{least:,} of {self._total:,}. Take a larger budget, a smaller block{head}."
            )
        low, high = sum(counts), sum(self.sizes)
        while low < high:
            middle = (low + high + 1) // 2
            tried = self.at(middle)
            trial.settle(tried)
            if self.size(trial, trial.kept_slots()) <= limit:
                low, counts = middle, tried
            else:
                high = middle - 1
        trial.settle(counts)
        return counts

    def filled(self, trial: Trial, kept: Slots, barred: Sequence[Collection[int]]) -> Slots:
        """Return the slots with every further block that still fits, but for `barred` ones, one of each group at a time.

        The layers come first that are farthest behind their share, and in a layer the slots in `order`, group by group.
        """
        made = [list(slots) for slots in kept]
        if self.options.keep or not self.options.prunes:
            return made
        ideal = self.at(sum(map(len, made)) + 1)
        waiting = {place: self._units(place, {*slots, *barred[place]}) for place, slots in enumerate(made)}
        size = self.size(trial, made)
        while waiting:
            place = min(waiting, key=lambda place: (len(made[place]) - ideal[place], place))
            more = next((unit for unit in waiting[place] if self._least(place, unit) <= self._limit - size), None)
            if more is None:
                del waiting[place]
                continue
            waiting[place].remove(more)
            tried = [sorted([*slots, *more]) if place == at else slots for at, slots in enumerate(made)]
            larger = self.size(trial, tried)
            if larger <= self._limit:
                made, size = tried, larger
        return made

    def _units(self, place: int, taken: Collection[int]) -> list[list[int]]:
        """Return the slots of a site that are not taken, one of each group at a time."""
        gone = ([slot for slot in group if slot not in taken] for group in self.order[place])
        return list(map(list, zip(*gone, strict=False)))

    def _least(self, place: int, unit: Sequence[int]) -> int:
        """Return the least that these slots can cost: without the channels that nobody else reads, for one output per group."""
        site = self.sites[place]
        if self._measure == BLOCKS:
            return len(unit)
        width = sum(site.slots[slot].width for slot in unit)
        one, none = (weight_of(site.layer, wide, site.layer.groups)[self._measure == MACS] for wide in (width, 0))
        return one - none

    def size(self, trial: Trial, kept: Slots) -> int:
        """Return the blocks, or the parameters or multiply-accumulates of the whole model, with the slots that are kept."""
        if self._measure == BLOCKS:
            return sum(map(len, kept))
        return self._total + trial.change(kept)[self._measure == MACS]

    @property
    def _measure(self) -> str:
        return PARAMS if self.options.params is not None else MACS if self.options.macs is not None else BLOCKS

    @property
    def _limit(self) -> int:
        given = self.options.params if self._measure == PARAMS else self.options.macs
        return math.floor(self.options.density * self._total + 1e-9) if given is None else given

    @property
    def _total(self) -> int:
        if self._measure == BLOCKS:
            return sum(self.sizes)
        return self.graph.params if self._measure == PARAMS else self.graph.macs

    def is_met(self, change: tuple[int, int]) -> bool:
        """Whether the model is within its parameters or multiply-accumulates where they change so; blocks are counted already."""
        return self._measure == BLOCKS or self._total + change[self._measure == MACS] <= self._limit

    def note(self, change: tuple[int, int]) -> Note | None:
        """Say what a budget came to."""
        if self._measure == BLOCKS:
            return None
        asked = f"at most {self._limit:,} {self._measure} were asked for, of {self._total:,}"
        return Note("*", f"{asked}; {self._total + change[self._measure == MACS]:,} are left")


def _erdos_renyi(layer: Layer) -> float:
    width = layer.in_channels // layer.groups
    return (width + layer.out_channels + sum(layer.kernel_size)) / (width * layer.out_channels * layer.kernel_area)
