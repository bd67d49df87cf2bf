"""The control arms: what they change, and above all what they do not."""

import operator
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import swnet
from benchmarks import controls
from benchmarks.controls import CONTROLS, Swapped, random_residual, swap, with_shortcut
from benchmarks.models import BasicBlock, densenet, seeded, unit
from swcompile.errors import SwnetError
from swcompile.metrics import channel_graph
from swcompile.modules import RewiredModule
from swcompile.plan import Plan
from swcompile.survey import survey
from swcompile.wiring.draw import Draw

EXAMPLE = torch.zeros(2, 3, 16, 16)


def plain() -> nn.Sequential:
    widths = [3, 12, 12, 12, 16, 16, 16]
    body = [unit(a, b, stride=2 if place == 3 else 1) for place, (a, b) in enumerate(pairwise(widths))]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def residual() -> nn.Sequential:
    body = [unit(3, 12), BasicBlock(12, 12, 1), BasicBlock(12, 16, 2), BasicBlock(16, 16, 1), BasicBlock(16, 16, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def dense() -> nn.Sequential:
    return densenet(13, 8)


NETWORKS = {"plain": plain, "residual": residual, "dense": dense}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return seeded(NETWORKS[request.param], 0)


def macs(model: nn.Module) -> int:
    return swnet.ledger(swnet.transform(model, EXAMPLE, p=0.0)).before.macs


# --- shortcuts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_a_network_that_trains(name: str, network: nn.Module) -> None:
    made = CONTROLS[name](network, EXAMPLE, 0, 0.5)
    made(torch.randn(5, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in made.parameters())


def test_random_shortcuts_cost_nothing(network: nn.Module) -> None:
    made = random_residual(network, EXAMPLE, 0, 0.5)
    x = torch.randn(2, 3, 16, 16)
    before, after = network.state_dict(), made.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert macs(made) == macs(network)
    assert not torch.allclose(made.eval()(x), network.eval()(x))


def test_without_shortcuts_it_is_the_original(network: nn.Module) -> None:
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(random_residual(network, EXAMPLE, 0, 0.0)(x), network(x))


def test_shortcuts_are_long_and_as_many_as_asked_for() -> None:
    found = survey(plain(), EXAMPLE)
    chosen = controls.draw_shortcuts(found.graph, found.eligible, 0, 0.5)
    layers = {layer.node: (layer, distance) for layer, distance in found.graph.distances()}
    sources = {layer.name: features for layer, features in controls._sources(found.graph)}
    assert len(chosen) == round(0.5 * sum(bool(sources[name]) for name in found.eligible)) > 1
    for each in chosen:
        layer, distance = layers[each.reader]
        assert layer.feature == each.reads
        assert all(distance[run.producer] >= 2 for run in found.graph.feature_by_name[each.source].runs)


def test_shortcuts_are_the_seeds() -> None:
    found = survey(residual(), EXAMPLE)
    drawn = [controls.draw_shortcuts(found.graph, found.eligible, seed, 0.5) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_network_of_one_layer_has_no_shortcut() -> None:
    with pytest.raises(SwnetError, match="no shortcut to draw"):
        random_residual(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), EXAMPLE, 0, 0.5)


def test_a_shortcut_is_added_to_the_channels_that_both_have() -> None:
    x, narrow, wide = torch.randn(2, 6, 4, 4), torch.randn(2, 4, 8, 8), torch.randn(2, 9, 4, 4)
    pooled = nn.functional.max_pool2d(narrow, 2)
    assert torch.equal(with_shortcut(x, narrow, 1), torch.cat([x[:, :4] + pooled, x[:, 4:]], 1))
    assert torch.equal(with_shortcut(x, wide, 1), x + wide[:, :6])
    tokens = torch.randn(2, 5, 3)
    assert torch.equal(with_shortcut(tokens, tokens, 2), 2 * tokens)


class Overwriting(nn.Module):
    """Adds in place to what a shortcut reads later on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if place == 0 else 8, 8, 3, padding=1) for place in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for layer in list(self.layers)[1:]:
            y = layer(x)
            y += x
            x = nn.functional.relu(y, inplace=True)
        return x


def test_a_shortcut_reads_what_was_there() -> None:
    model = seeded(Overwriting, 0)
    made = random_residual(model, EXAMPLE, 0, 1.0)
    assert isinstance(made, RewiredModule)
    assert not any(node.kwargs.get("inplace") or node.target is operator.iadd for node in made.graph.nodes)


# --- clustering --------------------------------------------------------------------------------------------------------------


def swapped(model: nn.Module, *, up: bool, seed: int = 0) -> tuple[Plan, Swapped]:
    plan = swnet.plan(model, EXAMPLE, p=0.5, wiring="kernel", seed=seed)
    return plan, swap(plan, survey(model, EXAMPLE).graph, seed, up=up)


def test_clustering_moves_as_asked_and_nothing_else(network: nn.Module) -> None:
    plan, higher = swapped(network, up=True)
    _, lower = swapped(network, up=False)
    assert lower.after.C < lower.before.C == higher.before.C < higher.after.C
    for made in (higher, lower):
        assert (made.after.V, made.after.E) == (made.before.V, made.before.E)
        assert made.plan.promise == plan.promise
        for old, new in zip(plan.layers, made.plan.layers, strict=True):
            assert old.mask is not None
            assert new.mask is not None
            assert (old.taps, old.mask.sum(0).tolist(), old.mask.sum(1).tolist()) == (
                new.taps,
                new.mask.sum(0).tolist(),
                new.mask.sum(1).tolist(),
            )
        assert made.plan.layers != plan.layers


def test_links_stay_between_the_layers_they_join(network: nn.Module) -> None:
    plan, made = swapped(network, up=True)
    graph = survey(network, EXAMPLE).graph
    for old, new in zip(plan.layers, made.plan.layers, strict=True):
        assert old.mask is not None
        assert new.mask is not None
        runs = graph.runs_of(old.taps)
        producer = np.repeat([run.producer for run in runs], [run.width for run in runs])
        for one in set(producer.tolist()):
            assert old.mask[:, producer == one].sum(1).tolist() == new.mask[:, producer == one].sum(1).tolist()


def test_a_plan_stays_what_it_was(network: nn.Module) -> None:
    plan = swnet.plan(network, EXAMPLE, p=0.5, wiring="kernel")
    text = plan.to_json()
    swap(plan, survey(network, EXAMPLE).graph, 0, up=True)
    assert plan.to_json() == text


def test_the_ledger_tells_c_and_l_before_and_after() -> None:
    made = CONTROLS["clustering-up"](seeded(plain, 0), EXAMPLE, 0, 0.5)
    _, expected = swapped(plain(), up=True)
    ledger = swnet.ledger(made)
    assert ledger.after.C == expected.after.C
    said = f"C from {expected.before.C:.4f} to {expected.after.C:.4f} and L from {expected.before.L:.4f} to {expected.after.L:.4f}"
    assert any(said in str(note) for note in ledger.notes)


def test_the_gain_of_a_swap_is_exact() -> None:
    """Against networkx, on the channel graph of a network with sums."""
    plan = swnet.plan(seeded(residual, 0), EXAMPLE, p=0.5, wiring="kernel")
    graph = survey(residual(), EXAMPLE).graph
    channels = channel_graph(graph, plan.taps(), plan.masks()).by_channel()
    state = controls._State.of(channels)
    first = np.cumsum(channels.weight) - channels.weight  # the last layer's outputs are one class
    rows = np.repeat(np.repeat(state.joined > 0, channels.weight, 0), channels.weight, 1)
    before = nx.average_clustering(nx.from_numpy_array(rows))
    tried = 0
    for wiring in plan.layers:
        assert wiring.mask is not None
        for pair in controls._pairs(channels, wiring, wiring.mask):
            live = wiring.mask[:, pair.columns]
            outs, sources = first[pair.outs], first[pair.sources]
            assert np.array_equal(rows[np.ix_(outs, sources)], live | pair.doubled)
            gain = state.gains(pair.outs, pair.sources)
            made = live.copy()
            tried += controls._trade(made, pair.doubled, gain, Draw(0, wiring.layer))
            other = rows.copy()
            other[np.ix_(outs, sources)] = made | pair.doubled
            other[np.ix_(sources, outs)] = (made | pair.doubled).T
            after = nx.average_clustering(nx.from_numpy_array(other))
            assert after - before == pytest.approx((gain[made].sum() - gain[live].sum()) / len(rows), abs=1e-6)
            assert after >= before
    assert tried > 10


def test_swaps_are_the_seeds() -> None:
    plans = [swapped(plain(), up=True, seed=seed)[1].plan for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_where_nothing_moved_there_is_nothing_to_swap() -> None:
    plan = swnet.plan(plain(), EXAMPLE, p=0.0, wiring="kernel")
    with pytest.raises(SwnetError, match="No swap inside a pair of layers moves C at p=0"):
        swap(plan, survey(plain(), EXAMPLE).graph, 0, up=True)
