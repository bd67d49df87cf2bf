"""wiring.policy and wiring.wire: curves over p, and what is chosen from them."""

from __future__ import annotations

import time

import block_nets as nets
import pytest

from swcompile.errors import SwnetError
from swcompile.metrics import channel_graph, measure
from swcompile.plan import Options, Plan
from swcompile.verify import verify
from swcompile.wiring import Curve, choose_p, explain, resolve, sweep, wire, wire_block

P = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
SMALL_WORLD = Curve(P, (0.0,) * 6, (5.0, 4.0, 3.1, 3.01, 3.0, 3.2), (0.0, 0.5, 1.0, 1.3, 1.2, 1.3))
NONE = Curve(P, (0.0,) * 6, (5.0, 3.1, 3.0, 3.0, 3.0, 3.0), (0.0, 0.2, 0.6, 0.6, 0.5, 0.4))


def test_max_S_takes_the_first_of_the_largest() -> None:
    assert choose_p(SMALL_WORLD, "max_S") == 0.3
    assert choose_p(NONE, "max_S") == 0.2


def test_boundary_falls_back_on_the_largest_S_and_says_so() -> None:
    assert choose_p(SMALL_WORLD, "boundary") == 0.2
    assert choose_p(NONE, "boundary") == 0.2
    assert "S stays below 1" in explain(NONE, "boundary")
    assert "at least 1" in explain(SMALL_WORLD, "boundary")


def test_auto_is_the_knee_but_not_below_a_fifth() -> None:
    assert choose_p(SMALL_WORLD, "auto") == 0.2
    late = Curve(P, (0.0,) * 6, (5.0, 4.8, 4.5, 4.0, 3.1, 3.0), (0.0,) * 6)
    assert choose_p(late, "auto") == 0.5
    assert choose_p(NONE, "auto") == 0.2
    flat = Curve(P, (0.0,) * 6, (3.0,) * 6, (0.0,) * 6)
    assert choose_p(flat, "auto") == 0.2
    assert explain(late, "auto") == "p='auto' chose 0.5: the knee of L, at p = 0.5"


def test_an_unknown_policy_and_a_curve_of_one_point_are_refused() -> None:
    with pytest.raises(SwnetError, match="not a policy"):
        choose_p(NONE, "best")
    with pytest.raises(SwnetError, match="points=1"):
        sweep(nets.chain(4), Options(), points=1)


def test_the_sweep_of_blocks_measures_the_plans_themselves() -> None:
    graph = nets.resnet50()
    curve = sweep(graph, Options(seed=2), points=5)
    assert curve.p == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert curve.exact
    figures = measure(channel_graph(graph, wire_block(graph, Options(p=0.5, seed=2)).taps()), seed=2)
    assert (curve.C[2], curve.L[2], curve.S[2]) == (figures.C, figures.L, figures.S)
    assert curve.L[0] > curve.L[-1]


@pytest.mark.parametrize("skips", ["keep", "remove"])
def test_the_sweep_of_links_is_the_closed_form(skips: str) -> None:
    for graph in (nets.residual(8, 16), nets.densenet((4,), growth=8, size=32)):
        curve = sweep(graph, Options(wiring="kernel", skips=skips), points=4)
        assert not curve.exact
        assert curve.C[-1] > curve.C[0]


@pytest.mark.parametrize("wiring", ["block", "kernel"])
def test_a_policy_is_resolved_and_remembered(wiring: str) -> None:
    graph = nets.residual(8, 16)
    asked = Options(wiring=wiring, p="auto")
    options, curve = resolve(graph, asked)
    assert curve is not None
    assert options.p == choose_p(curve, "auto")
    plan = wire(graph, asked)
    verify(plan, graph)
    assert plan.requested_p == "auto"
    assert plan.options == options
    assert plan.notes[-1].reason.startswith("p='auto' chose")
    assert Plan.from_json(plan.to_json()) == plan
    assert resolve(graph, Options(p=0.3)) == (Options(p=0.3), None)


def test_dead_channels_agree_with_the_metrics() -> None:
    graph = nets.vgg16()
    plan = wire(graph, Options(p=0.3))
    unread = measure(channel_graph(graph, plan.taps())).dead_channels
    assert any(note.reason.startswith(f"{unread} channels are unread: ") for note in plan.notes)


def test_a_sweep_of_a_large_network_takes_seconds() -> None:
    for graph in (nets.vgg16(), nets.resnet50(), nets.densenet()):
        began = time.process_time()
        sweep(graph, Options())
        assert time.process_time() - began < 10  # 0.3, 0.5 and 1.2 s on an idle core
