"""swcompile.graph: runs, origins, distances, fingerprints, and the ways out to other tools."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from swcompile.graph import UNREACHABLE, GraphBuilder, LayerGraph, Run, Tap, join_runs, slice_runs, unreadable
from tests.graphs import chain, dense, residual


def channels(runs: tuple[Run, ...]) -> list[tuple[int, int]]:
    """Return (producer, channel) of each slot."""
    return [(run.producer, run.first + offset * run.step) for run in runs for offset in range(run.width)]


RUNS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(1, 4), st.sampled_from([0, 1])), max_size=6).map(
    lambda parts: _laid_out(parts)
)


def _laid_out(parts: list[tuple[int, int, int, int]]) -> tuple[Run, ...]:
    runs, at = [], 0
    for producer, first, width, step in parts:
        runs.append(Run(at, at + width, producer, first, step))
        at += width
    return tuple(runs)


@given(runs=RUNS)
def test_joined_runs_are_the_same_channels_in_fewer_runs(runs: tuple[Run, ...]) -> None:
    joined = join_runs(runs)
    assert channels(joined) == channels(runs)
    assert len(joined) <= len(runs)
    assert join_runs(joined) == joined


@given(runs=RUNS, start=st.integers(0, 12), width=st.integers(0, 12))
def test_sliced_runs_are_a_slice_of_the_channels(runs: tuple[Run, ...], start: int, width: int) -> None:
    cut = slice_runs(runs, start, start + width)
    assert channels(cut) == channels(runs)[start : start + width]
    assert [run.start for run in cut] == [0, *(run.stop for run in cut[:-1])][: len(cut)]


def test_cat_lays_values_side_by_side_and_merges_what_continues() -> None:
    build = GraphBuilder("cat")
    x, y = build.input("x", 8), build.input("y", 4)
    left, right = slice_runs(x, 0, 3), slice_runs(x, 3, 8)
    assert build.cat(left, right) == x
    assert build.cat(right, y, left) == (Run(0, 5, 0, 3), Run(5, 9, 1, 0), Run(9, 12, 0, 0))


def test_origins_of_a_sum_are_all_of_its_addends_also_through_sums_of_sums() -> None:
    graph = residual(3, 8)
    index = {producer.name: place for place, producer in enumerate(graph.producers)}
    runs = graph.origins([Run(0, 2, index["add3"], 4)])
    assert {(graph.producers[run.producer].name, run.first, run.width) for run in runs} == {
        (name, 4, 2) for name in ("stem", "b1", "b2", "b3")
    }


def test_origins_of_thousands_of_nested_sums_need_no_recursion() -> None:
    graph = residual(1_200, 4)
    last = next(place for place in range(len(graph.producers) - 1, -1, -1) if graph.producers[place].kind == "sum")
    assert len(graph.base_runs(last)) == 1_201


def test_runs_of_taps_are_what_a_reader_of_them_would_read() -> None:
    graph = dense(3, 4, start=6)
    runs = graph.runs_of([Tap("cat1", 4, 8), Tap("x", 0, 2)])
    assert [(graph.producers[run.producer].name, run.first, run.width) for run in runs] == [
        ("x", 4, 2),
        ("conv1", 0, 2),
        ("x", 0, 2),
    ]
    assert [(run.start, run.stop) for run in runs] == [(0, 2), (2, 4), (4, 6)]


def test_distances_are_those_of_the_shortest_path_in_networkx() -> None:
    for graph in (chain([3, 4, 4, 4, 4]), residual(3, 4), dense(4)):
        made = graph.to_networkx()
        weighted = nx.DiGraph()
        weighted.add_nodes_from(made)
        weighted.add_edges_from((a, b, {"weight": int(made.nodes[b]["kind"] == "layer")}) for a, b in made.edges)
        for layer, vector in graph.distances():
            lengths = nx.single_source_dijkstra_path_length(weighted.reverse(), layer.name)
            for index, producer in enumerate(graph.producers):
                if producer.name != layer.name:
                    assert vector[index] == lengths.get(producer.name, UNREACHABLE), (layer.name, producer.name)


def test_heads_are_layers_that_no_layer_reads_directly_or_in_a_sum() -> None:
    assert chain([3, 4, 4]).heads == {"conv2"}
    assert residual(2).heads == {"head"}
    build = GraphBuilder("two heads")
    x = build.layer("body", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 4)
    for name in ("main", "aux"):
        build.sink(build.layer(name, build.feature("body", x, (1, 4, 8, 8)), 2))
    assert build.finish().heads == {"main", "aux"}


def test_the_fingerprint_sees_topology_and_size_but_not_the_batch() -> None:
    def one(batch: int = 1, size: int = 8, width: int = 4, name: str = "conv", kernel: int = 3) -> str:
        build = GraphBuilder("net")
        feature = build.feature("x", build.input("x", 3), (batch, 3, size, size))
        build.sink(build.layer(name, feature, width, kernel_size=(kernel, kernel)))
        return build.finish().fingerprint

    assert one() == one(batch=7)
    assert len({one(), one(size=9), one(width=5), one(name="other"), one(kernel=5)}) == 5
    assert len(one()) == 64


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    assert residual(2).fingerprint == residual(2).fingerprint
    assert json.dumps([run.first for run in chain([2, 2]).features[0].runs]) == "[0]"  # plain ints, not numpy's


def test_every_producer_is_a_node_and_every_read_an_edge_in_networkx() -> None:
    made = residual(1, 8).to_networkx()
    assert list(made) == ["x", "stem", "a1", "b1", "add1", "head"]
    assert set(made.edges) == {("x", "stem"), ("stem", "a1"), ("a1", "b1"), ("stem", "add1"), ("b1", "add1"), ("add1", "head")}
    assert made.edges["x", "stem"]["channels"] == 3
    assert made.nodes["a1"]["kernel_size"] == "3x3"
    assert nx.is_directed_acyclic_graph(made)


def test_graphml_comes_back_as_the_same_graph() -> None:
    graph = dense(3)
    again = nx.parse_graphml(graph.to_graphml())
    assert nx.utils.graphs_equal(nx.DiGraph(again.edges), nx.DiGraph(graph.to_networkx().edges))
    assert again.nodes["conv2"]["in_channels"] == 10


def test_dot_names_every_node_and_quotes_odd_names() -> None:
    build = GraphBuilder('a "net"')
    x = build.layer('conv "one"', build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 4)
    build.sink(x)
    text = build.finish().to_dot()
    assert text.startswith('digraph "a \\"net\\"" {')
    assert '"x" -> "conv \\"one\\"" [label=3];' in text
    assert text.endswith("}\n")


def test_a_layer_counts_its_links_by_group() -> None:
    build = GraphBuilder("groups")
    build.layer("conv", build.feature("x", build.input("x", 8), (1, 8, 4, 4)), 12, groups=4, kernel_size=(3, 5))
    (layer,) = build.finish().layers
    assert (layer.links, layer.kernel_area, layer.depthwise) == (24, 15, False)


def _readable(graph: LayerGraph, feature: str, layer: str, *, conv_to_linear: bool = False) -> str | None:
    return unreadable(graph, graph.feature_by_name[feature], graph.layer_by_name[layer], conv_to_linear=conv_to_linear)


def test_who_may_read_what() -> None:
    build = GraphBuilder("mixed")
    x = build.input("x", 4)
    large = build.feature("large", x, (1, 4, 16, 16))
    y = build.layer("first", large, 4)
    small = build.feature("small", y, (1, 4, 7, 7))
    z = build.layer("second", small, 4)
    vector = build.feature("vector", z, (1, 4))
    build.sink(build.layer("third", vector, 4))
    graph = build.finish()
    assert _readable(graph, "large", "second") is None  # resampled
    assert "computed after" in str(_readable(graph, "small", "first"))
    assert "has shape (1, 4, 16, 16)" in str(_readable(graph, "large", "third"))
    assert _readable(graph, "large", "third", conv_to_linear=True) is None  # pooled globally


def test_tokens_are_read_at_the_same_length_only() -> None:
    build = GraphBuilder("tokens")
    x = build.input("x", 4)
    long = build.feature("long", x, (1, 9, 4), axis=2)
    y = build.layer("first", long, 4)
    build.sink(build.layer("second", build.feature("short", y, (1, 5, 4), axis=2), 4))
    assert _readable(build.finish(), "long", "second") == "long has tokens (9,), short (5,)"


def test_features_know_their_channels_and_places() -> None:
    feature = GraphBuilder("f").feature("x", (), (2, 9, 4), axis=2)
    assert (feature.channels, feature.spatial, feature.is_map) == (4, (9,), False)
    assert np.prod(chain([3, 4]).features[0].spatial) == 64
