"""Both ways of counting triangles give the same, and so do classes and single nodes."""

from __future__ import annotations

import numpy as np
import pytest

from swcompile.metrics import channel_graph
from swcompile.metrics.clustering import _by_bits, _by_product, clustering, expand
from swcompile.metrics.paths import paths
from swcompile.metrics.reference import random_graph
from swcompile.metrics.sampling import Stream
from tests.graphs import by_algorithm_1, dense


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
