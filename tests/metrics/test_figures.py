"""All figures at once: the published ones, those of plain chains, and how they are shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from swcompile.metrics import channel_graph, figures, measure
from swcompile.metrics.sampling import Interval
from tests.graphs import VGG16, by_algorithm_1, chain, dense, residual


@pytest.mark.parametrize(("p", "C", "L"), [(0.1, 0.053, 1.828), (0.5, 0.176, 1.817), (0.85, 0.229, 1.817)])
def test_vgg16_link_by_link_has_the_published_figures(p: float, C: float, L: float) -> None:
    made = measure(by_algorithm_1(VGG16, p)).as_dict()
    assert (made["V"], made["E"]) == (4_227, 1_634_496)
    assert made["C"] == pytest.approx(C, abs=1.2e-3)
    assert made["L"] == pytest.approx(L, abs=1.2e-3)
    if p == 0.85:
        assert made["S"] == pytest.approx(1.25, abs=0.01)


def test_a_plain_chain_has_no_triangles_and_its_distances_are_layers() -> None:
    widths = [3, 5, 7, 4]
    made = measure(channel_graph(chain(widths))).as_dict()
    layer = np.repeat(np.arange(4), widths)
    away = np.abs(layer[:, None] - layer)
    away[away == 0] = 2
    np.fill_diagonal(away, 0)
    assert made["C"] == made["transitivity"] == made["S"] == made["unreachable"] == 0
    assert made["L"] == pytest.approx(away.sum() / (19 * 18))
    assert made["mean_path"] == made["effective_depth"] == 3


def test_figures_can_be_printed_and_saved() -> None:
    made = measure(channel_graph(dense(12, 12, start=16)))
    assert json.loads(json.dumps(made.as_dict()))["exact"] is True
    shown = str(made)
    assert "V               160\n" in shown
    assert "omega" not in shown
    assert "omega" in str(measure(channel_graph(dense(3)), extended=True))


def test_large_graphs_are_sampled_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = channel_graph(residual(20, 4))
    exact = measure(graph)
    monkeypatch.setattr(figures, "MOST_NODES", 10)
    assert measure(graph).exact, "few classes are computed exactly however many nodes they stand for"
    monkeypatch.setattr(figures, "MOST_CLASSES", 10)
    sampled = measure(graph)
    assert exact.exact
    assert exact.interval is None
    assert not sampled.exact
    assert sampled.interval is not None
    for name in ("C", "L"):
        interval: Interval = getattr(sampled.interval, name)
        assert interval.low <= exact.as_dict()[name] <= interval.high  # type: ignore[operator]
    for name in ("V", "E", "in_degree", "out_degree", "mean_path", "effective_depth", "dead_channels"):
        assert sampled.as_dict()[name] == pytest.approx(exact.as_dict()[name])
    assert "95% each" in str(sampled)


def test_thousands_of_layers_are_not_expanded() -> None:
    made = measure(channel_graph(residual(2_100, 16))).as_dict()
    assert (made["V"], made["exact"]) == (67_229, False)
    assert made["mean_path"] == 2
