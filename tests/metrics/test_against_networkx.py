"""Every figure of random small networks, against a networkx graph that is built link by link from the definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swcompile.graph import GraphBuilder, LayerGraph, Run, Tap
from swcompile.metrics import Figures, channel_graph, measure

Channel = tuple[int, int]


@dataclass
class Case:
    """A random network and a random wiring of it."""

    graph: LayerGraph
    taps: dict[str, list[Tap]] = field(default_factory=dict)
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    bypassed: dict[str, int] = field(default_factory=dict)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    build = GraphBuilder("random")
    values = [build.input("x", int(rng.integers(1, 5)))]
    features: list[tuple[str, int]] = []
    case = Case(build.finish())
    for number in range(draw(st.integers(1, 8))):
        value = _value(build, values, rng, f"v{number}", case)
        width = value[-1].stop
        feature = build.feature(f"f{number}", value, (1, width, 4, 4))
        name, out, groups = f"layer{number}", int(rng.integers(1, 7)), 1
        if rng.random() < 0.3:
            groups = int(rng.choice([g for g in range(1, width + 1) if width % g == 0]))
            out = groups * int(rng.integers(1, 3))
        elif rng.random() < 0.3:
            groups = out = width
        values.append(build.layer(name, feature, out, groups=groups))
        features.append((f"f{number}", width))
        if rng.random() < 0.5:
            case.taps[name] = _taps(features, rng, groups)
        if groups == 1 and rng.random() < 0.4:
            taken = sum(tap.width for tap in case.taps.get(name, [Tap(f"f{number}", 0, width)]))
            case.masks[name] = rng.random((out, taken)) < rng.random()
    build.sink(values[-1])
    case.graph = build.finish()
    return case


def _value(
    build: GraphBuilder, values: Sequence[tuple[Run, ...]], rng: np.random.Generator, name: str, case: Case
) -> tuple[Run, ...]:
    value = values[-1] if rng.random() < 0.6 else values[int(rng.integers(len(values)))]
    kind = rng.random()
    if kind < 0.25:
        value = build.cat(value, values[int(rng.integers(len(values)))])
    elif kind < 0.5:
        width = value[-1].stop
        others = [other for other in values if other[-1].stop >= width]
        other = others[int(rng.integers(len(others)))]
        start = int(rng.integers(other[-1].stop - width + 1))
        value = build.add(f"add_{name}", value, _cut(other, start, start + width))
        if rng.random() < 0.15:
            case.bypassed[f"add_{name}"] = int(rng.integers(2))
        values.append(value) if isinstance(values, list) else None
    elif kind < 0.6:
        value = build.produce(f"opaque_{name}", "opaque", 3, (value,))
    elif kind < 0.7:
        value = tuple(Run(2 * at, 2 * at + 2, run.producer, run.first + place * run.step, 0) for at, run, place in _each(value))
    elif kind < 0.8:
        value = _cut(value, 0, int(rng.integers(1, value[-1].stop + 1)))
    return value


def _each(value: tuple[Run, ...]) -> Iterator[tuple[int, Run, int]]:
    for run in value:
        for place in range(run.width):
            yield run.start + place, run, place


def _cut(value: tuple[Run, ...], start: int, stop: int) -> tuple[Run, ...]:
    return tuple(run.cut(start, stop, -start) for run in value if run.start < stop and run.stop > start)


def _taps(features: Sequence[tuple[str, int]], rng: np.random.Generator, groups: int) -> list[Tap]:
    taps = []
    for _ in range(int(rng.integers(1, 4))):
        name, width = features[int(rng.integers(len(features)))]
        start = int(rng.integers(width))
        taps.append(Tap(name, start, int(rng.integers(start, width)) + 1))
    short = -sum(tap.width for tap in taps) % groups
    name, width = features[-1]
    return taps + [Tap(name, 0, 1)] * short


def origins(case: Case, producer: int, channel: int) -> set[Channel]:
    """Return the origin channels of one channel."""
    made = case.graph.producers[producer]
    if made.kind in ("input", "layer"):
        return {(producer, channel)}
    parts = made.parts if made.kind == "sum" else ()
    if made.name in case.bypassed:
        parts = (parts[case.bypassed[made.name]],)
    found: set[Channel] = set()
    for part in parts:
        for run in part:
            if run.start <= channel < run.stop:
                found |= origins(case, run.producer, run.first + (channel - run.start) * run.step)
    return found


def links(case: Case) -> nx.DiGraph:
    """Return the directed channel graph, link by link."""
    made = nx.DiGraph()
    for index, producer in enumerate(case.graph.producers):
        if producer.kind in ("input", "layer"):
            made.add_nodes_from((index, channel) for channel in range(producer.channels))
    for layer in case.graph.layers:
        taps = case.taps.get(layer.name, [Tap(layer.feature, 0, layer.in_channels)])
        slots = [_slot(case, tap.feature, at) for tap in taps for at in range(tap.start, tap.stop)]
        mask = case.masks.get(layer.name)
        for out in range(layer.out_channels):
            for slot, (producer, channel) in enumerate(slots):
                same = slot // (len(slots) // layer.groups) == out // (layer.out_channels // layer.groups)
                if same and (mask is None or mask[out, slot]):
                    made.add_edges_from((origin, (layer.producer, out)) for origin in origins(case, producer, channel))
    return made


def _slot(case: Case, feature: str, at: int) -> Channel:
    for run in case.graph.feature_by_name[feature].runs:
        if run.start <= at < run.stop:
            return run.producer, run.first + (at - run.start) * run.step
    raise AssertionError(f"{feature} has no channel {at}")


@settings(max_examples=400, deadline=None)
@given(cases())
def test_figures_are_those_of_the_graph_built_link_by_link(case: Case) -> None:
    straight = links(case)
    graph = straight.to_undirected()
    made = measure(channel_graph(case.graph, case.taps, case.masks, bypassed=case.bypassed.items()))
    figures = made.as_dict()
    assert figures["V"] == graph.number_of_nodes()
    assert figures["E"] == graph.number_of_edges()
    assert figures["C"] == pytest.approx(nx.average_clustering(graph))
    assert made.transitivity == pytest.approx(nx.transitivity(graph))
    lengths = [d for _, row in nx.all_pairs_shortest_path_length(graph) for d in row.values() if d]
    assert figures["L"] == pytest.approx(np.mean(lengths) if lengths else 0.0)
    pairs = made.V * (made.V - 1)
    assert made.unreachable == pytest.approx(1 - len(lengths) / pairs if pairs else 0.0)
    _check_directed(case, straight, made)


def _check_directed(case: Case, graph: nx.DiGraph, made: Figures) -> None:
    heads = {layer.producer for layer in case.graph.layers if layer.name in case.graph.heads}
    assert made.in_degree.greatest == max(degree for _, degree in graph.in_degree())
    assert made.out_degree.greatest == max((degree for node, degree in graph.out_degree() if node[0] not in heads), default=0)
    sunk = {(run.producer, run.first + at * run.step) for run in case.graph.sinks for at in range(run.width)}
    used = set().union(*(origins(case, *channel) for channel in sunk))
    assert made.dead_channels == sum(degree == 0 and node not in used for node, degree in graph.out_degree())
    if all(producer.kind != "opaque" for producer in case.graph.producers):  # paths lead through opaque operations, links do not
        inputs, outputs = ([node for node in graph if node[0] in made] for made in ({0}, heads))
        away = dict(nx.all_pairs_shortest_path_length(graph))
        found = [away[start][end] for start in inputs for end in outputs if end in away[start]]
        assert made.mean_path == pytest.approx(np.mean(found) if found else 0.0)
