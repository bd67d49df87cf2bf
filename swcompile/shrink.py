"""The layer graph of a network that has lost output channels: what is left, numbered anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Coupling, Feature, LayerGraph, Producer, Run, Tap, join_runs
from swcompile.rows import Mask, Spans, mask_of, spans_of

Reads = Mapping[str, Sequence[Tap]]


def shrink(graph: LayerGraph, outputs: Mapping[str, Spans], taps: Reads) -> tuple[LayerGraph, dict[str, tuple[Tap, ...]]]:
    """Return the graph in which layers keep only `outputs`, and the taps in its numbers. Taps must read nothing that is gone."""
    if not outputs:
        return graph, {name: tuple(read) for name, read in taps.items()}
    return _Shrinking(graph, outputs).run(taps)


def kept_channels(graph: LayerGraph, outputs: Mapping[str, Spans]) -> list[Mask]:
    """Return which channels of each producer stay where layers keep only `outputs`; of a sum those that stay in its addends."""
    return _Shrinking(graph, outputs).kept


class _Shrinking:
    def __init__(self, graph: LayerGraph, outputs: Mapping[str, Spans]) -> None:
        self.graph = graph
        self.kept: list[Mask] = []
        """Which channels of each producer stay; of a sum those that stay in all of its addends."""
        by_name = {layer.producer: outputs.get(layer.name) for layer in graph.layers}
        for index, producer in enumerate(graph.producers):
            spans = by_name.get(index)
            self.kept.append(mask_of(spans, producer.channels) if spans else self._of_sum(producer))
        self.places = [_places(kept) for kept in self.kept]
        self.features = {feature.name: self._of_runs(feature.runs, feature.channels) for feature in graph.features}

    def _of_sum(self, producer: Producer) -> Mask:
        kept = np.ones(producer.channels, np.bool_)
        for part in producer.parts if producer.kind == "sum" else ():
            kept &= self._of_runs(part, producer.channels)
        return kept

    def _of_runs(self, runs: Iterable[Run], width: int) -> Mask:
        kept = np.ones(width, np.bool_)
        for run in runs:
            kept[run.start : run.stop] = self._of_run(run)
        return kept

    def _of_run(self, run: Run) -> Mask:
        return self.kept[run.producer][run.first + run.step * np.arange(run.width)]

    def run(self, taps: Reads) -> tuple[LayerGraph, dict[str, tuple[Tap, ...]]]:
        places = {name: _places(kept) for name, kept in self.features.items()}
        moved = {name: tuple(self._tap(tap, places[tap.feature]) for tap in read) for name, read in taps.items()}
        features = tuple(map(self._feature, self.graph.features))
        width = {feature.name: feature.channels for feature in features}
        layers = tuple(
            replace(
                layer,
                in_channels=width[layer.feature],
                out_channels=int(self.kept[layer.producer].sum()),
                groups=width[layer.feature] if layer.depthwise else layer.groups,
            )
            for layer in self.graph.layers
        )
        producers = tuple(
            replace(made, channels=int(kept.sum()), parts=tuple(self._runs(part) for part in made.parts))
            for made, kept in zip(self.graph.producers, self.kept, strict=True)
        )
        sinks = self._runs(self.graph.sinks, joined=False)
        left = replace(
            self.graph,
            producers=producers,
            features=features,
            layers=layers,
            sinks=tuple(dict.fromkeys(sinks)),
            coupling=Coupling(),
        )
        return left, moved

    def _tap(self, tap: Tap, places: NDArray[np.int64]) -> Tap:
        assert self.features[tap.feature][tap.start : tap.stop].all(), f"{tap} is read, and some of it is gone"
        return replace(tap, start=int(places[tap.start]), stop=int(places[tap.stop]))

    def _feature(self, feature: Feature) -> Feature:
        width = int(self.features[feature.name].sum())
        shape = (*feature.shape[: feature.axis], width, *feature.shape[feature.axis + 1 :])
        return replace(feature, shape=shape, runs=self._runs(feature.runs), rows=())

    def _runs(self, runs: Iterable[Run], *, joined: bool = True) -> tuple[Run, ...]:
        """Return what is left of the runs of a value, closed up."""
        made: list[Run] = []
        offset = 0
        for run in runs:
            found = list(self._left(run))
            made += [replace(part, start=part.start + offset, stop=part.stop + offset) for part in found]
            offset += sum(part.width for part in found)
        return join_runs(made) if joined else tuple(made)

    def _left(self, run: Run) -> Iterator[Run]:
        offset = 0
        for start, stop in spans_of(self._of_run(run)):
            first = int(self.places[run.producer][run.first + run.step * start])
            yield Run(offset, offset + stop - start, run.producer, first, run.step)
            offset += stop - start


def _places(kept: Mask) -> NDArray[np.int64]:
    """Return where each border between channels is once others are gone."""
    return np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
