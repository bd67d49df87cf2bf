"""Pruning: what was removed is what a mask would have silenced, and budgets hold on real modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import swnet
from benchmarks.models import densenet, parameters
from swcompile import rewrite
from swcompile.graph import LayerGraph
from swcompile.modules import RewiredModule
from swcompile.plan import LayerWiring, Plan
from swcompile.rows import Rows, mask_of
from tests import zoo
from tests.trace.test_coupling import CARRIED


def columns_of(wiring: LayerWiring) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in wiring.columns])


class Cut:
    """Which parts of which parameters a plan for p = 0 keeps, found from the plan and the user's model alone."""

    def __init__(self, pruned: RewiredModule, graph: LayerGraph) -> None:
        plan = pruned.swcompile.plan
        self.wirings: Mapping[str, LayerWiring] = {wiring.layer: wiring for wiring in plan.layers}
        self.layers = graph.layer_by_name
        calls = {node.name: str(node.target) for graph in pruned.graphs for node in graph.nodes if node.op == "call_module"}
        self.own = {calls[node]: layer.name for layer in self.layers.values() for node in layer.chain if node in calls}
        """The layer that each norm belongs to that it reads through."""
        stays = Rows(graph).stay(plan.outputs()) if plan.outputs() else ()
        self.carried = {carrier.name: torch.from_numpy(kept) for carrier, kept in stays}

    def silence(self, model: nn.Module) -> None:
        """Zero the weights of the dropped input channels in the user's own model."""
        for name, wiring in self.wirings.items():
            weight, layer = model.get_submodule(name).weight, self.layers[name]
            gone = torch.ones(layer.in_channels, dtype=torch.bool)
            gone[columns_of(wiring)] = False
            with torch.no_grad():
                if layer.transposed:
                    weight[gone] = 0
                    continue
                width, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
                for group in range(layer.groups):
                    weight[group * outs : (group + 1) * outs, gone[group * width : (group + 1) * width]] = 0

    def of(self, name: str, value: Tensor, like: Tensor) -> Tensor:
        """Return the part of a tensor of the user's model that the pruned one has."""
        path = name.rpartition(".")[0]
        if value.shape == like.shape:
            return value
        if path in self.carried:
            return value[self.carried[path]]
        if path in self.own:
            return value[columns_of(self.wirings[self.own[path]])]
        layer, wiring = self.layers[path], self.wirings[path]
        kept = torch.from_numpy(mask_of(wiring.outputs or ((0, layer.out_channels),), layer.out_channels))
        if value.dim() == 1:
            return value[kept]
        columns = columns_of(wiring)
        if layer.transposed:
            return value[columns][:, kept]
        width, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        parts = []
        for group in range(layer.groups):
            mine = columns[(columns >= group * width) & (columns < (group + 1) * width)] - group * width
            rows = slice(group * outs, (group + 1) * outs)
            parts.append(value[rows][kept[rows]][:, mine])
        return torch.cat(parts)


def loss_of(made: Any) -> Tensor:
    floats = [value for value in pytree.tree_leaves(made) if isinstance(value, Tensor) and value.requires_grad]
    return torch.stack(
        [(value * torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)).sum() for value in floats]
    ).sum()


def run(model: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    model.train(training).zero_grad()
    torch.manual_seed(3)
    made = model(x)
    loss_of(made).backward()
    return [value for value in pytree.tree_leaves(made) if isinstance(value, Tensor)]


class Excited(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation (by convolutions or by linear layers), projection, shortcut."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.SiLU())
        self.filter = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.BatchNorm2d(64), nn.SiLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten() if linear else nn.Identity())
        make = nn.Linear if linear else partial(nn.Conv2d, kernel_size=1)
        self.gate = nn.Sequential(make(64, 16), nn.ReLU(), make(16, 64), nn.Sigmoid())
        self.project = nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.filter(self.expand(x))
        gate = self.gate(self.pool(inside))
        return x + self.project(inside * (gate if gate.dim() == 4 else gate[:, :, None, None]))


class Net(nn.Module):
    """Blocks between a stem and a head."""

    def __init__(self, *blocks: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.head = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def excited() -> nn.Module:
    return Net(Excited(False), Excited(False))


POOLED = ("a mean over places", "an index")
"""Models whose last layer works at 1x1 resolution, and is never pruned."""
MORE: dict[str, Callable[[], nn.Module]] = {"excited": excited}
MORE |= {name: partial(copy.deepcopy, model) for name, model in CARRIED.items() if name not in POOLED}
"""Models beside those of the zoo, on small images."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    if name in MORE:
        torch.manual_seed(5)
        return MORE[name](), torch.rand(2, 3, 6, 6)
    return zoo.build(name)


DRAWS = "stochastic_depth"
"""A model that draws random numbers in train mode: over fewer channels it draws others."""
MODES = [(name, training) for name in sorted([*zoo.ZOO, *MORE]) for training in (True, False) if not (training and name == DRAWS)]


@pytest.mark.parametrize(("name", "training", "density"), [(*mode, (0.5, 0.2)[place // 2 % 2]) for place, mode in enumerate(MODES)])
def test_masked_equals_removed(name: str, training: bool, density: float) -> None:
    """Outputs and gradients of the pruned module are those of the user's model with the same channels masked, to 1e-10."""
    model, x = build(name)
    model, x = model.double(), x.double()
    for module in model.modules():  # over fewer channels dropout draws other numbers
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones would hide a norm's channel taken for another
            parameter.add_(torch.rand_like(parameter) * 0.1)
    pruned = swnet.transform(model, x, p=0.0, density=density, head=name in MORE)
    cut = Cut(pruned, swnet.analyze(model, x, points=2, density=density, head=name in MORE).graph)
    assert cut.wirings
    masked = copy.deepcopy(model)
    cut.silence(masked)
    ours, theirs = run(pruned, x, training), run(masked, x, training)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    wanted_grads = {key: parameter.grad for key, parameter in masked.named_parameters()}
    for key, parameter in pruned.named_parameters():
        wanted = wanted_grads[key]
        if parameter.grad is None or wanted is None:
            assert parameter.grad is None or not parameter.grad.any()
            assert wanted is None or not wanted.any()
            continue
        kept = cut.of(key, wanted, parameter.grad)
        torch.testing.assert_close(parameter.grad, kept, rtol=1e-10, atol=1e-10 * max(1.0, float(kept.abs().max())))
    for key, buffer in pruned.named_buffers():
        torch.testing.assert_close(buffer, cut.of(key, dict(masked.named_buffers())[key], buffer), rtol=1e-10, atol=1e-10)


DENSENET = 1_019_722


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("name", ["densenet", "resnext", "unet_transposed", "vit", "stochastic_depth", "mlp", "excited"])
def test_a_model_is_verified_on_demand(name: str, p: float) -> None:
    model, x = build(name)
    state, mode = copy.deepcopy(model.state_dict()), model.training
    found = swnet.ledger(swnet.transform(model, x, p=p, density=0.4, verify=True)).certificate
    assert found is not None
    assert found.modes == (("eval",) if name == "stochastic_depth" else ("eval", "train"))
    assert max(found.outputs, found.gradients, found.buffers) <= 1e-10
    assert model.training == mode
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_what_was_removed_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    drop = rewrite._drop_rows
    monkeypatch.setattr(rewrite, "_drop_rows", lambda root, layer, rows: drop(root, layer, rows.roll(1)))
    with pytest.raises(AssertionError, match="what was removed or masked still counts"):
        swnet.transform(*build("densenet"), p=0.0, density=0.4, verify=True)


@pytest.mark.parametrize("name", ["excited", "densenet"])
def test_a_pruned_model_is_saved_loaded_copied_and_made_again(name: str, tmp_path: Path) -> None:
    model, x = build(name)
    small = swnet.transform(model, x, p=0.2, density=0.4).eval()
    plan = small.swcompile.plan
    assert plan.outputs()
    swnet.save(small, tmp_path / "out")
    others = (
        swnet.load(tmp_path / "out", build(name)[0]).eval(),
        swnet.apply(model, Plan.from_json(plan.to_json()), x).eval(),
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
    )
    for other in others:
        assert torch.equal(other(x), small(x))


def test_a_plan_may_not_remove_what_something_needs() -> None:
    model, x = build("excited")
    plan = swnet.plan(model, x, p=0.0, density=0.4)
    places = [place for place, wiring in enumerate(plan.layers) if wiring.outputs]
    assert len(places) > 4, "expansions, depthwise convolutions and gates"
    for place in places:
        wiring = plan.layers[place]
        for outputs in (wiring.outputs[:-1] or ((0, 1),), ()):
            layers = (*plan.layers[:place], replace(wiring, outputs=outputs), *plan.layers[place + 1 :])
            with pytest.raises(swnet.SwnetError, match=r"removes output channels|cannot be rewired|promises a change"):
                swnet.apply(model, replace(plan, layers=layers), x)
    stem = replace(plan.layers[0], outputs=((0, 99),))
    with pytest.raises(swnet.SwnetError, match="are not ascending parts of its"):
        swnet.apply(model, replace(plan, layers=(stem, *plan.layers[1:])), x)


def test_a_model_without_memory_is_pruned_too() -> None:
    with torch.device("meta"):
        model = Net(Excited(False), Excited(True))
    small = swnet.transform(model, torch.zeros(2, 3, 12, 12, device="meta"), p=0.2, density=0.4)
    assert sum(parameter.numel() for parameter in small.parameters()) == swnet.ledger(small).after.params
    with pytest.raises(swnet.SwnetError, match="meta device"):
        swnet.transform(model, torch.zeros(2, 3, 12, 12, device="meta"), p=0.2, density=0.4, verify=True)


def test_a_model_that_cannot_run_in_float64_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), Single(), nn.Conv2d(32, 8, 3))
    with pytest.raises(swnet.SwnetError, match="verify=True runs the model in float64, where it raised"):
        swnet.transform(model, torch.rand(2, 3, 12, 12), p=0.0, density=0.4, verify=True)


def test_a_fault_of_the_pruned_model_is_not_laid_at_the_users_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no SwnetError, which asks the user to change something."""
    drop = rewrite._drop_rows
    monkeypatch.setattr(rewrite, "_drop_rows", lambda root, layer, rows: drop(root, layer, rows[:-1]))
    with pytest.raises((AssertionError, RuntimeError)):
        swnet.transform(*build("densenet"), p=0.0, density=0.4, verify=True)


class Single(nn.Module):
    """Insists on float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def test_there_must_be_something_to_verify() -> None:
    with pytest.raises(swnet.SwnetError, match="none were removed"):
        swnet.transform(*build("densenet"), p=0.3, verify=True)


@pytest.mark.parametrize("linear", [False, True])
def test_a_gate_loses_what_its_map_loses(linear: bool) -> None:
    model = Net(Excited(linear), Excited(linear))
    x = torch.rand(2, 3, 12, 12)
    small = swnet.transform(model, x, p=0.0, density=0.25)
    block = small.get_submodule("blocks.1")
    wide = {name: module.weight.shape[:2] for name, module in block.named_modules() if hasattr(module, "weight")}
    assert wide["expand.0"][0] == wide["filter.0"][0] == wide["gate.2"][0] == wide["gate.0"][1] == wide["project.0"][1] < 64


@pytest.mark.parametrize("spread", ["uniform", "erk", "global"])
def test_a_densenet_shrinks_to_a_tenth_and_trains(spread: str) -> None:
    model, x = densenet(), torch.rand(4, 3, 32, 32)
    assert parameters(model) == DENSENET
    small = swnet.transform(model, x, p=0.3, params=98_000, spread=spread)
    after = swnet.ledger(small).after
    assert parameters(small) == after.params
    assert 98_000 - 440 < after.params <= 98_000, "a block of 4 channels of a 3x3 layer to 12, and of its norm, is 440"
    assert after.macs <= 85.5e6
    assert any(f"{after.params:,} are left" in note.reason for note in swnet.ledger(small).notes)
    optimizer = torch.optim.SGD(small.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(small(x), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_densenet_is_held_to_its_multiplications() -> None:
    small = swnet.transform(densenet(), torch.zeros(2, 3, 32, 32), p=0.3, macs=85.5e6)
    assert 85e6 < swnet.ledger(small).after.macs <= 85.5e6


def test_keep_prunes_the_layers_it_names_only() -> None:
    model, x = zoo.build("resnet_basic")
    names = swnet.analyze(model, x, points=2).eligible
    small = swnet.transform(model, x, p=0.0, keep={names[0]: 0.5})
    assert [wiring.layer for wiring in small.swcompile.plan.layers] == [names[0]]
