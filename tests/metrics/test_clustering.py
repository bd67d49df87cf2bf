"""Both ways of counting triangles give the same, and so do classes and single nodes."""

from __future__ import annotations

import numpy as np
import pytest

from swcompile.metrics import channel_graph, measure
from swcompile.metrics.clustering import _by_bits, _by_product, clustering, expand, triangles_of_matches
from swcompile.metrics.paths import paths
from swcompile.metrics.reference import random_graph
from swcompile.metrics.sampling import Stream
from tests.graphs import by_algorithm_1, dense, inverted


@pytest.mark.parametrize("nodes", [3, 64, 65, 513, 1_100])
def test_products_and_bits_count_the_same_triangles(nodes: int) -> None:
    graph = random_graph(nodes, nodes * (nodes - 1) // 5, Stream(0, "triangles"))
    assert np.array_equal(_by_product(graph), _by_bits(graph))


def test_strips_of_a_product_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swcompile.metrics.clustering.STRIP", 128)
    graph = random_graph(450, 20_000, Stream(0, "strips"))
    assert np.array_equal(_by_product(graph), _by_bits(graph))


def test_classes_stand_for_their_nodes() -> None:
    for graph in (channel_graph(dense(6)).classes, by_algorithm_1([3, 8, 8, 8], 0.5).classes):
        wide, owner = expand(graph)
        assert np.array_equal(np.bincount(owner), graph.weight)
        assert clustering(wide)[:2] == pytest.approx(clustering(graph)[:2])
        assert paths(wide) == pytest.approx(paths(graph))
        assert np.array_equal(_by_bits(wide), _by_product(graph)[owner])


def test_matched_classes_count_as_their_nodes_do() -> None:
    made = channel_graph(inverted(4, 16))
    graph, wide = made.classes, expand(made.by_channel().classes)[0]
    assert (graph.count, len(graph.matches), wide.count) == (20, 48, made.nodes)
    assert np.array_equal(np.repeat(_by_product(graph) + triangles_of_matches(graph), graph.weight), _by_bits(wide))
    assert np.array_equal(expand(graph)[0].rows, wide.rows)
    assert paths(graph) == pytest.approx(paths(wide))
    for name, value in measure(made).as_dict().items():
        assert measure(made.by_channel()).as_dict()[name] == (pytest.approx(value) if value is not None else None), name
