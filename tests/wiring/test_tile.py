"""Wiring `tile`: clusters of outputs read blocks of their own choice, at most half of all, and every map keeps a reader."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import swnet
from benchmarks.models import densenet
from swcompile.errors import SwnetError
from swcompile.graph import LayerGraph
from swcompile.modules import MaskedConv2d
from swcompile.plan import LayerWiring, Options, Plan
from swcompile.verify import verify
from swcompile.wiring.blocks import Atlas
from swcompile.wiring.eligible import find_sites
from swcompile.wiring.tile import clusters_of, wire_tile
from tests import zoo

GRAPHS: dict[str, LayerGraph] = {name: swnet.analyze(*zoo.build(name), points=2, density=0.5).graph for name in sorted(zoo.ZOO)}


def tile(p: float = 0.25, **asked: Any) -> Options:
    return Options(wiring="tile", p=p, **asked)


def own_columns(wiring: LayerWiring, graph: LayerGraph) -> list[int]:
    """Return for each column of a mask the channel of the layer's own input that it is, or -1."""
    feature = graph.layer_by_name[wiring.layer].feature
    return [place if tap.feature == feature else -1 for tap in wiring.taps for place in range(tap.start, tap.stop)]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("reach", ["uniform", "near", "far"])
def test_clusters_read_blocks_of_their_own_choice(name: str, p: float, reach: str) -> None:
    graph = GRAPHS[name]
    options = tile(p, reach=reach, seed=2)
    plan = wire_tile(graph, options)
    verify(plan, graph)
    sites = {site.layer.name: site for site in find_sites(Atlas(graph), options)[0]}
    assert plan.layers
    for wiring in plan.layers:
        layer, mask = graph.layer_by_name[wiring.layer], wiring.mask
        assert mask is not None
        own = np.array(own_columns(wiring, graph))
        for low, high in clusters_of(layer):
            assert (mask[low:high] == mask[low]).all()
            for slot in sites[layer.name].slots:  # a block is read as a whole, or not at all
                inside = mask[low, (own >= slot.start) & (own < slot.stop)]
                assert not inside.any() or inside.sum() == slot.width
        assert set(range(layer.in_channels)) <= set(own.tolist()), "a map lost its reader"
        assert mask.any(0).all()
        width = max(slot.width for slot in sites[layer.name].slots)
        assert mask.sum() <= layer.links / 2 + width * layer.out_channels
        if p == 0:
            assert (own >= 0).all()
    assert plan.promise.moved > 0 or p == 0


@pytest.mark.parametrize("spread", ["uniform", "erk"])
@pytest.mark.parametrize("measured", ["params", "macs"])
def test_budgets_are_met_to_within_one_tile(measured: str, spread: str) -> None:
    for name in ("vgg", "resnet_bottleneck", "densenet"):
        model, x = zoo.build(name)
        whole = getattr(GRAPHS[name], measured)
        budget = int(0.35 * whole)
        rewired = swnet.transform(model, x, wiring="tile", p=0.2, spread=spread, **{measured: budget})
        left = getattr(swnet.ledger(rewired).after, measured)
        areas = {layer.name: layer.kernel_area * (layer.positions if measured == "macs" else 1) for layer in GRAPHS[name].layers}
        tiles = [
            max(slot.width for slot in site.slots)
            * max(high - low for low, high in clusters_of(site.layer))
            * areas[site.layer.name]
            for site in find_sites(Atlas(GRAPHS[name]), tile())[0]
        ]
        assert left <= budget < left + max(tiles)


def test_densities_and_shares_by_name_hold_for_all_tiles() -> None:
    model, x = zoo.build("vgg")
    whole = {layer.name: layer.links for layer in GRAPHS["vgg"].layers}
    quarter = swnet.plan(model, x, wiring="tile", p=0.0, density=0.25)
    for wiring in quarter.layers:
        assert wiring.mask is not None
        assert wiring.mask.sum() / whole[wiring.layer] == pytest.approx(0.25, abs=0.07)
    first = quarter.layers[0].layer
    named = swnet.plan(model, x, wiring="tile", p=0.0, keep={first: 0.25})
    shares = {wiring.layer: int(wiring.mask.sum()) / whole[wiring.layer] for wiring in named.layers if wiring.mask is not None}
    assert shares.pop(first) == pytest.approx(0.25, abs=0.07)
    assert all(share == pytest.approx(0.5, abs=0.07) for share in shares.values())


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_masked_equals_the_live_links_alone(name: str) -> None:
    model, x = zoo.build(name)
    ledger = swnet.ledger(swnet.transform(model, x, wiring="tile", p=0.3, verify=True))
    assert ledger.certificate is not None
    assert ledger.certificate.masks
    assert "masked equals the live links alone" in str(ledger)
    assert ledger.after.params < ledger.before.params < ledger.after.stored_params
    assert ledger.links_kept + ledger.links_moved + ledger.links_pruned == ledger.before.links


def test_a_layer_that_ignores_its_mask_gets_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskedConv2d, "forward", lambda self, x: self._conv_forward(x, self.weight + 1e-6, self.bias))
    with pytest.raises(AssertionError, match="what was removed or masked still counts"):
        swnet.transform(*zoo.build("vgg"), wiring="tile", p=0.3, verify=True)


def test_links_that_stay_keep_their_weights() -> None:
    model, x = zoo.build("vgg")
    rewired = swnet.transform(model, x, wiring="tile", p=0.3)
    graph = GRAPHS["vgg"]
    for wiring in rewired.swcompile.plan.layers:
        own = torch.tensor(own_columns(wiring, graph))
        layer, before = rewired.get_submodule(wiring.layer), model.get_submodule(wiring.layer).weight
        live = layer.mask.reshape(layer.mask.shape[:2])
        kept = live & (own >= 0)
        assert torch.equal(layer.weight[kept], before[:, own.clamp_min(0)][kept])
        drawn = layer.weight[live & (own < 0)]
        assert not drawn.numel() or drawn.std() > 0


def test_it_is_saved_and_applied_and_the_same_everywhere(tmp_path: Any) -> None:
    model, x = zoo.build("resnet_basic")
    rewired = swnet.transform(model, x, wiring="tile", p=0.3, seed=5)
    plan = rewired.swcompile.plan
    assert Plan.from_json(plan.to_json()) == plan
    assert swnet.plan(model, x, wiring="tile", p=0.3, seed=5).to_json() == plan.to_json()
    assert swnet.plan(model, x, wiring="tile", p=0.3, seed=6).layers != plan.layers
    swnet.save(rewired, tmp_path / "saved")
    again = swnet.load(tmp_path / "saved", zoo.build("resnet_basic")[0])
    assert torch.equal(again.eval()(x), rewired.eval()(x))
    assert hashlib.sha256(plan.to_json().encode()).hexdigest() == PINNED


PINNED = "0bedffb7ae7cd2d1b03997d4909da53037075d6b47be84928a79aa47caf15a1a"


def test_a_densenet_of_forty_layers_falls_to_half() -> None:
    ledger = swnet.ledger(swnet.transform(densenet(), torch.randn(2, 3, 32, 32), wiring="tile", p=0.2))
    assert ledger.after.params == pytest.approx(0.5 * ledger.before.params, rel=0.02)


@pytest.mark.parametrize("policy", ["auto", "max_S"])
def test_policies_choose_p_from_the_plans_themselves(policy: str) -> None:
    model, x = zoo.build("resnet_basic")
    ledger = swnet.ledger(swnet.transform(model, x, wiring="tile", p=policy))
    assert ledger.after.p_achieved > 0
    assert any(f"p={policy!r} chose" in note.reason for note in ledger.notes)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"density": 0.8}, "keeps at most 0.5 of a layer's tiles, and density 0.8 is more"),
        ({"keep": {"a": 0.8}}, "keeps at most 0.5"),
        ({"density": 0.5, "score": "weight"}, "score='weight' does not apply to wiring='tile'"),
        ({"grow": 0.1, "p": 0.0}, "grow=0.1 does not apply|which density would change"),
        ({"spread": "global"}, "spread='global' does not apply to wiring='tile'"),
        ({"params": 1}, "with one block per layer the model still has"),
    ],
)
def test_what_does_not_fit_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SwnetError, match=message):
        swnet.transform(*zoo.build("vgg"), **{"wiring": "tile", "p": 0.25, **asked})


def test_a_mask_in_a_plan_of_blocks_is_refused() -> None:
    model, x = zoo.build("vgg")
    plan = swnet.plan(model, x, wiring="tile", p=0.3)
    with pytest.raises(SwnetError, match="has a mask"):
        swnet.apply(model, dataclasses.replace(plan, options=dataclasses.replace(plan.options, wiring="block")), x)


def test_layers_of_other_kinds_are_told() -> None:
    model, x = zoo.build("unet_transposed")
    notes = {note.layer: note.reason for note in swnet.plan(model, x, wiring="tile", p=0.3).notes}
    transposed = [name for name, module in model.named_modules() if isinstance(module, nn.ConvTranspose2d)]
    assert any("ConvTranspose2d" in notes.get(name, "") for name in transposed)
