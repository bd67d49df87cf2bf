"""metrics.closed_form: expected figures against those of graphs that were really drawn, and against exact ones at p = 0."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from swcompile.graph import GraphBuilder, LayerGraph, Run, Tap
from swcompile.metrics import channel_graph
from swcompile.metrics.closed_form import ClosedForm, block_densities, closed_form, closed_forms, clustering, path_length
from swcompile.metrics.clustering import clustering as exact_clustering
from swcompile.metrics.paths import paths
from swcompile.plan import Options
from swcompile.wiring.kernel import wire_kernel

VGG16 = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
RESNET18 = (3, 64, *[64] * 4, *[128] * 4, *[256] * 4, *[512] * 4, 1000)
SHORT_DENSE = (16, *[12] * 12)
SWEEP = tuple(step / 20 for step in range(1, 21))


def chain(widths: tuple[int, ...]) -> LayerGraph:
    build = GraphBuilder("chain")
    value = build.input("x", widths[0])
    for number, width in enumerate(widths[1:]):
        value = build.layer(f"conv{number}", build.feature(f"f{number}", value, (1, widths[number], 8, 8)), width)
    build.sink(value)
    return build.finish()


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> LayerGraph:
    """Return a residual network of bottlenecks with projections, of 53 layers and a classifier by default."""
    build = GraphBuilder("resnet")

    def conv(name: str, value: tuple[Run, ...], out: int) -> tuple[Run, ...]:
        feature = build.feature(f"v{value[0].producer}", value, (1, value[-1].stop, 8, 8))
        return build.layer(name, feature, out)

    value = conv("stem", build.input("x", 3), width)
    for stage, repeats in enumerate(blocks):
        inner = width << stage
        for block in range(repeats):
            name = f"{stage}.{block}"
            made = conv(f"{name}.c", conv(f"{name}.b", conv(f"{name}.a", value, inner), inner), 4 * inner)
            value = build.add(f"{name}.add", made, value if block else conv(f"{name}.d", value, 4 * inner))
    build.sink(build.layer("fc", build.feature("pool", value, (1, value[-1].stop)), 100, kind="Linear"))
    return build.finish()


def densenet(blocks: tuple[int, ...], growth: int, start: int) -> LayerGraph:
    """Return a DenseNet-BC: bottlenecks of 4 growth channels, transitions that halve the width."""
    build = GraphBuilder("densenet")
    value = build.layer("stem", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), start)
    for block, repeats in enumerate(blocks):
        for number in range(repeats):
            name = f"{block}.{number}"
            inner = build.layer(f"{name}.a", build.feature(f"{name} cat", value, (1, value[-1].stop, 8, 8)), 4 * growth)
            made = build.layer(f"{name}.b", build.feature(f"{name} inner", inner, (1, 4 * growth, 8, 8)), growth)
            value = build.cat(value, made)
        value = build.layer(f"{block}.t", build.feature(f"{block} cat", value, (1, value[-1].stop, 8, 8)), value[-1].stop // 2)
    build.sink(value)
    return build.finish()


def drawn(graph: LayerGraph, p: float, seed: int = 0) -> tuple[int, int, float, float]:
    plan = wire_kernel(graph, Options(wiring="kernel", p=p, seed=seed))
    made = channel_graph(graph, plan.taps(), plan.masks())
    return made.nodes, made.edges, exact_clustering(made.classes).C, paths(made.classes).L


@pytest.mark.parametrize("p", [0.1, 0.5, 0.85])
def test_vgg16_agrees_with_the_drawn_graph_to_three_digits(p: float) -> None:
    graph = chain(VGG16)
    expected = closed_form(graph, p)
    V, E, C, L = drawn(graph, p)
    assert (expected.V, round(expected.E)) == (V, E) == (4227, 1_634_496)
    assert abs(expected.C - C) < 5e-4
    assert abs(expected.L - L) < 5e-4
    assert expected.unreachable == pytest.approx(0, abs=1e-6)


def test_published_small_world_figures() -> None:
    assert pytest.approx(1.25, abs=5e-3) == closed_form(chain(VGG16), 0.85).S
    assert pytest.approx(1.18, abs=5e-3) == closed_form(chain(RESNET18), 0.85).S
    assert pytest.approx(1.16, abs=1e-2) == closed_form(chain(SHORT_DENSE), 0.9).S


@pytest.mark.parametrize("graph", [chain(VGG16), resnet(), densenet((6, 12, 8), 12, 24)], ids=lambda graph: graph.name)
def test_p_0_is_exact(graph: LayerGraph) -> None:
    expected = closed_form(graph, 0.0)
    channels = channel_graph(graph)
    assert (channels.nodes, channels.edges) == (expected.V, expected.E)
    assert pytest.approx(exact_clustering(channels.classes).C, abs=1e-12) == expected.C
    assert pytest.approx(paths(channels.classes).L, abs=1e-9) == expected.L


@pytest.mark.parametrize(
    ("graph", "C_error", "L_error"),
    [
        (resnet((2, 2), 16), 6e-3, 2e-2),
        (densenet((4, 6), 12, 24), 6e-3, 1e-2),
        (chain((3, 16, 16, 24, 24, 32, 32)), 8e-3, 2e-2),
    ],
    ids=("resnet", "densenet", "narrow chain"),
)
@pytest.mark.parametrize("p", [0.2, 0.6])
def test_small_networks_agree_to_two_digits(graph: LayerGraph, C_error: float, L_error: float, p: float) -> None:
    expected = closed_form(graph, p)
    found = np.mean([drawn(graph, p, seed) for seed in range(6)], axis=0)
    assert found[0] == expected.V
    assert pytest.approx(found[1], rel=5e-3) == expected.E
    assert abs(expected.C - found[2]) < C_error
    assert abs(expected.L - found[3]) < L_error


def test_densities_of_a_chain_are_those_of_algorithm_1() -> None:
    widths, p = (3, 8, 10, 12, 6), 0.4
    sizes, made = block_densities(chain(widths), np.array([p]), {})
    assert sizes.tolist() == list(widths)
    density = made[0]
    assert (density == density.T).all()
    assert np.diag(density).tolist() == [0] * 5
    for at in range(3):
        later = sum(widths[at + 2 :])
        assert density[at, at + 1] == pytest.approx(1 - min(p * widths[at + 1], later) / widths[at + 1])
        assert density[at, at + 2 :] == pytest.approx(min(1, p * widths[at + 1] / later))
    assert density[3, 4] == 1, "the last layer keeps its own links"
    assert sizes @ density @ sizes / 2 == pytest.approx(sum(a * b for a, b in pairwise(widths)))


def test_links_without_a_free_node_stay() -> None:
    _, made = block_densities(chain((16, 512, 512, 10)), np.array([0.5]), {})
    assert made[0, 1, 3] == 1
    assert made[0, 1, 2] == pytest.approx(1 - 10 / 512)


def test_refused_layers_keep_their_links_and_take_none() -> None:
    build = GraphBuilder("refused")
    shape = (1, 8, 8, 8)
    value = build.layer("a", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 8)
    value = build.layer("depthwise", build.feature("f1", value, shape), 8, groups=8)
    value = build.layer("shared", build.feature("f2", value, shape), 8, refused="called at two sites")
    build.sink(build.layer("gate", build.feature("squeezed", value, (1, 8, 1, 1)), 8))
    build.sink(build.layer("last", build.feature("f3", value, shape), 8))
    _, made = block_densities(build.finish(), np.array([0.5]), {})
    assert made[0, 0].tolist() == [0, 0.5, 0, 0, 0, 0.5]
    assert made[0, 2].tolist() == [0, 1 / 8, 0, 1, 0, 0]


def test_a_flattened_map_is_linked_by_each_of_its_slots() -> None:
    build = GraphBuilder("flat")
    value = build.layer("conv", build.feature("x", build.input("x", 3), (1, 3, 2, 2)), 4)
    slots = tuple(Run(4 * at, 4 * at + 4, value[0].producer, at, 0) for at in range(4))
    value = build.layer("fc1", build.feature("flat", slots, (1, 16)), 10, kind="Linear")
    build.sink(build.layer("fc2", build.feature("fc1", value, (1, 10)), 10, kind="Linear"))
    _, made = block_densities(build.finish(), np.array([0.3]), {})
    assert made[0, 1, 2] == pytest.approx(1 - 0.3**4)
    assert made[0, 1, 3] == pytest.approx(1 - 0.7**4)


def test_reads_say_what_a_layer_reads_before_the_moves() -> None:
    graph = densenet((5,), 4, 8)
    latest = {f"0.{number}.a": [Tap(f"0.{number} cat", 4 + 4 * number, 8 + 4 * number)] for number in range(1, 5)}
    whole, short = closed_form(graph, 0.0), closed_form(graph, 0.0, reads=latest)
    taps = {name: tuple(taps) for name, taps in latest.items()}
    assert short.E == channel_graph(graph, taps).edges < whole.E
    assert pytest.approx(exact_clustering(channel_graph(graph, taps).classes).C) == short.C


def test_clustering_and_paths_of_a_random_graph() -> None:
    size, d = np.array([300.0]), np.array([[0.2]])
    assert clustering(size, d) == pytest.approx(0.2, rel=0.01)
    L, unreachable = path_length(size, d)
    assert pytest.approx(2 - 0.2, abs=1e-3) == L
    assert unreachable == 0


def test_pairs_that_no_path_joins_are_left_out_of_the_mean() -> None:
    sizes = np.array([2.0, 3.0, 4.0])
    density = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    L, unreachable = path_length(sizes, density)
    assert pytest.approx((6 * 1 + (1 + 3) * 2) / 10) == L
    assert unreachable == pytest.approx(26 / 36)


def test_networks_without_links_have_no_figures() -> None:
    build = GraphBuilder("empty")
    build.input("x", 3)
    assert closed_form(build.finish(), 0.5) == ClosedForm(0.5, 3, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert closed_form(GraphBuilder("nothing").finish(), 0.5) == ClosedForm(0.5, 0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_sweep_is_its_points() -> None:
    graph = resnet((2, 2), 8)
    assert closed_forms(graph, (0.0, 0.3, 1.0)) == tuple(closed_form(graph, p) for p in (0.0, 0.3, 1.0))
    assert closed_forms(graph, ()) == ()


@pytest.mark.parametrize(
    ("graph", "seconds"),
    [(chain(VGG16), 5), (densenet((6, 12, 48, 32), 32, 64), 5), (resnet(), 20)],
    ids=("vgg16", "densenet201", "resnet50"),
)
def test_a_sweep_is_quick(graph: LayerGraph, seconds: float) -> None:
    began = time.process_time()
    made = closed_forms(graph, SWEEP)
    assert time.process_time() - began < seconds
    assert all(0 <= one.C <= 1 <= one.L for one in made)
