"""Null models and indices."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from swcompile.metrics import channel_graph, measure, reference
from swcompile.metrics.clustering import clustering
from swcompile.metrics.paths import paths
from swcompile.metrics.sampling import Stream
from tests.graphs import by_algorithm_1, dense


def test_a_random_graph_has_the_asked_size_and_the_expected_figures() -> None:
    made = reference.random_graph(300, 4_000, Stream(0, "test"))
    assert int(made.degrees.sum()) == 8_000
    clustered, path = clustering(made).C, paths(made).L
    assert clustered == pytest.approx(reference.density(300, 4_000), rel=0.1)
    assert path == pytest.approx(reference.expected_path(300, reference.density(300, 4_000)), rel=0.01)


def test_the_path_of_a_dense_random_graph_is_two_minus_its_density() -> None:
    assert reference.random_path(4_227, 1_634_496) == pytest.approx(2 - reference.density(4_227, 1_634_496))
    assert reference.random_path(10, 45) == 1
    assert reference.random_path(1, 0) == 0
    drawn = reference.random_path(160, 1_776)
    assert drawn == pytest.approx(reference.expected_path(160, reference.density(160, 1_776)), rel=0.01)
    assert drawn == reference.random_path(160, 1_776)


def test_swapping_keeps_every_degree_and_makes_no_parallel_links() -> None:
    graph = by_algorithm_1([3, 12, 12, 20, 20], 0.5).classes
    null = reference.same_degrees(graph, Stream(0, "test"))
    assert null.degrees.tolist() == graph.degrees.tolist()
    assert not np.array_equal(null.rows, graph.rows)


@pytest.mark.parametrize(("nodes", "degree"), [(60, 4), (60, 10), (30, 28)])
def test_the_lattice_is_the_ring_of_watts_and_strogatz(nodes: int, degree: int) -> None:
    ring = nx.watts_strogatz_graph(nodes, degree, 0)
    assert reference.lattice(nodes, nodes * degree // 2) == pytest.approx(_figures(ring))


def test_a_lattice_lies_between_the_whole_degrees_next_to_it() -> None:
    low, middle, high = (reference.lattice(50, edges) for edges in (100, 125, 150))
    assert middle == pytest.approx(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2))


def test_the_indices_tell_rings_from_random_graphs() -> None:
    ring = reference.extended(_classes(nx.watts_strogatz_graph(100, 8, 0)), *_figures(nx.watts_strogatz_graph(100, 8, 0)), 400)
    small = nx.watts_strogatz_graph(100, 8, 0.1, seed=1)
    both = reference.extended(_classes(small), *_figures(small), 400)
    assert ring is not None
    assert both is not None
    assert ring.omega < -0.3
    assert both.omega > ring.omega
    assert both.propensity > ring.propensity


def _classes(graph: nx.Graph) -> reference.Classes:
    edges = np.array(graph.edges, np.int64)
    return reference.from_edges(edges[:, 0], edges[:, 1], graph.number_of_nodes())


def _figures(graph: nx.Graph) -> tuple[float, float]:
    return nx.average_clustering(graph), nx.average_shortest_path_length(graph)


def test_extended_figures_come_when_asked_for() -> None:
    made = measure(channel_graph(dense(6)), extended=True)
    assert made.propensity is not None
    assert 0 <= made.propensity <= 1
    assert measure(channel_graph(dense(6))).omega is None


def test_degenerate_graphs_have_figures() -> None:
    assert reference.small_world(0.1, 1.5, 0.0, 0.0) == 0
    assert reference.density(1, 0) == 0
    assert reference.lattice(2, 1) == (0.0, 1.0)
