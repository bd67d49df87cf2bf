"""swcompile.rewrite: gathers go in front of layers and chains; weights, norms and activations are cut to what is read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import weight_norm

import swnet
from swcompile.errors import SwnetError
from swcompile.graph import Tap
from swcompile.modules import MaskedConv2d, gather
from swcompile.plan import LayerWiring, Options, Plan, Promise, promised_change
from swcompile.rewrite import rewrite
from swcompile.trace import Traced, trace

X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """stem, then pre-activated layers: a reads norm_a(stem + ...), b reads norm_b(...), and so on."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.slopes = nn.ModuleList(nn.PReLU(8) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=groups) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, slope, conv in zip(self.norms, self.slopes, self.convs, strict=True):
            x = x + conv(slope(norm(x)))
        return x


def plan_of(traced: Traced, *wirings: LayerWiring, wiring: str = "block") -> Plan:
    params, macs = promised_change(wirings, traced.graph)
    options = Options(p=0.3, wiring=wiring)
    return Plan(traced.graph.fingerprint, options, 0.3, wirings, Promise(params=params, macs=macs))


def carried_out(model: nn.Module, *wirings: LayerWiring) -> tuple[Traced, nn.Module]:
    traced = trace(model, X)
    rewrite(traced, plan_of(traced, *wirings))
    return traced, traced.root


def gathers(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is gather]


def test_a_gather_stands_in_front_of_the_chain_that_belongs_to_the_reader() -> None:
    wiring = LayerWiring("convs.2", (Tap("stem", 0, 4), Tap("add_1", 4, 8)), ((0, 8),))
    traced, _ = carried_out(Net(), wiring)
    (gathered,) = gathers(traced.train_graph)
    nodes = {node.name: node for node in traced.train_graph.nodes}
    assert gathered.args == (nodes["add_1"], (nodes["stem"], nodes["add_1"]), ((0, 0, 4, "max"), (1, 4, 8, "max")), 1)
    assert [str(user.target) for user in gathered.users] == ["norms.2"]
    assert nodes["add_1"] in nodes["add_2"].args  # the shortcut still reads the sum itself


def test_other_readers_of_the_feature_are_left_alone() -> None:
    wiring = LayerWiring("convs.1", (Tap("stem", 0, 8),), ((0, 8),))
    traced, _ = carried_out(Net(), wiring)
    readers = {node.name: node.all_input_nodes[0].name for node in traced.train_graph.nodes if str(node.target).startswith("norms")}
    assert readers == {"norms_0": "stem", "norms_1": "gather", "norms_2": "add_1"}


def test_a_wiring_that_reads_the_whole_feature_inserts_nothing() -> None:
    traced, _ = carried_out(Net(), LayerWiring("convs.1", (Tap("add", 0, 8),), ((0, 8),)))
    assert not gathers(traced.train_graph)


def test_pruned_channels_leave_the_weight_the_norm_and_the_activation() -> None:
    model = Net()
    with torch.no_grad():
        for tensor in (
            *model.norms[2].parameters(),
            model.norms[2].running_mean,
            model.norms[2].running_var,
            model.slopes[2].weight,
        ):
            tensor.copy_(torch.arange(8.0))
    wiring = LayerWiring("convs.2", (Tap("add_1", 1, 3), Tap("stem", 0, 2)), ((1, 3), (5, 7)))
    _, root = carried_out(model, wiring)
    kept = torch.tensor([1, 2, 5, 6])
    torch.testing.assert_close(root.convs[2].weight, model.convs[2].weight[:, kept], rtol=0, atol=0)
    assert root.convs[2].in_channels == root.norms[2].num_features == root.slopes[2].num_parameters == 4
    for tensor in (root.norms[2].weight, root.norms[2].bias, root.norms[2].running_mean, root.norms[2].running_var,
                   root.slopes[2].weight):  # fmt: skip
        assert tensor.tolist() == [1, 2, 5, 6]
    assert model.norms[2].num_features == 8  # the user's own


def test_grouped_layers_lose_as_many_channels_in_each_group() -> None:
    model = Net(groups=2)
    wiring = LayerWiring("convs.2", (Tap("add_1", 0, 2), Tap("stem", 4, 6)), ((0, 2), (6, 8)))
    _, root = carried_out(model, wiring)
    weight = model.convs[2].weight  # 8 outputs, 4 inputs a group
    wanted = torch.cat([weight[:4, :2], weight[4:, 2:]])
    torch.testing.assert_close(root.convs[2].weight, wanted, rtol=0, atol=0)
    assert (root.convs[2].in_channels, root.convs[2].groups) == (4, 2)


def test_memory_format_and_frozen_parameters_stay() -> None:
    model = Net().to(memory_format=torch.channels_last)
    model.convs[2].weight.requires_grad_(False)
    _, root = carried_out(model, LayerWiring("convs.2", (Tap("stem", 0, 4),), ((0, 4),)))
    assert root.convs[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert not root.convs[2].weight.requires_grad


def test_transposed_layers_lose_rows() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2))
    _, root = carried_out(model, LayerWiring("2", (Tap("_1", 2, 6),), ((2, 6),)))
    torch.testing.assert_close(root[2].weight, model[2].weight[2:6], rtol=0, atol=0)
    assert root[2].in_channels == 4


def test_a_computed_weight_cannot_be_cut() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), weight_norm(nn.Conv2d(8, 6, 1)))
    with pytest.raises(SwnetError, match=r"2 cannot lose channels: its weight is computed \(weight norm, .*Use density=1"):
        carried_out(model, LayerWiring("2", (Tap("_1", 0, 4),), ((0, 4),)))


def test_a_shared_weight_cannot_be_cut() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    model[4].weight = model[2].weight
    with pytest.raises(SwnetError, match=r"4 cannot lose channels: it shares its weight with 2\.weight\. Use density=1"):
        carried_out(model, LayerWiring("4", (Tap("_3", 0, 4),), ((0, 4),)))


# Masks.


def masked(model: nn.Module, p: float = 0.5, init: str = "he", seed: int = 0) -> nn.Module:
    return swnet.transform(model, X, p=p, wiring="kernel", init=init, seed=seed)


class Plain(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if at == 0 else width, width, 3, padding=1, stride=1 + at % 2) for at in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        return x


def test_a_masked_layer_keeps_the_users_settings() -> None:
    layer = masked(Plain()).get_submodule("convs.3")
    assert isinstance(layer, MaskedConv2d)
    assert (layer.stride, layer.padding, layer.kernel_size) == ((2, 2), (1, 1), (3, 3))
    assert layer.weight.shape[:2] == layer.mask.shape[:2] == (16, layer.in_channels)


def test_the_fan_in_of_each_output_channel_sets_its_scale() -> None:
    """He et al.: variance 2 / (live links * kernel area), for each neuron by itself."""
    layer = masked(Plain(64), p=0.6).get_submodule("convs.2")
    live = layer.mask.flatten(1).sum(1)
    assert live.min() < live.max()
    variance = torch.stack([row[mask.expand_as(row)].var() for row, mask in zip(layer.weight.detach(), layer.mask, strict=True)])
    ratio = variance * live * 9 / 2
    assert abs(float(ratio.mean()) - 1) < 0.05


def test_dense_initialisation_scales_by_the_whole_union() -> None:
    dense, he = (masked(Plain(32), init=init).get_submodule("convs.2").weight for init in ("dense", "he"))
    assert float(dense.detach().std()) < float(he.detach().std())


def test_the_same_seed_draws_the_same_weights() -> None:
    model = Plain()
    first, again, other = (masked(model, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(name not in other or not torch.equal(first[name], other[name]) for name in first if name.endswith("weight"))


def test_output_channels_whose_links_did_not_change_keep_their_weights() -> None:
    model = Plain()
    rewired = masked(model, p=0.01)
    kept = 0
    for name, layer in rewired.named_modules():
        if isinstance(layer, MaskedConv2d):
            old = model.get_submodule(name).weight
            live = (layer.weight * layer.mask).flatten(1).sum(1)
            kept += int(torch.isclose(live, old.flatten(1).sum(1), rtol=1e-4).sum())
    assert kept > 16


def test_kinds_that_cannot_be_masked_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2))
    traced = trace(model, X)
    mask = torch.eye(8).bool().numpy()
    plan = plan_of(traced, LayerWiring("2", (Tap("_1", 0, 8),), (), mask), wiring="kernel")
    with pytest.raises(SwnetError, match=r"2 is a ConvTranspose2d; wiring='kernel' masks Conv1d, Conv2d, Conv3d and Linear only"):
        rewrite(traced, plan)


def test_masks_are_the_modules_own_and_not_the_plans() -> None:
    rewired = masked(Plain())
    before = rewired.swcompile.plan.digest
    rewired.load_state_dict({name: torch.zeros_like(value) for name, value in rewired.state_dict().items()})
    assert rewired.swcompile.plan.digest == before


class Narrow(nn.Module):
    """A map of one channel, and a layer behind a norm and an activation of its own that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.waist = nn.Conv2d(8, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.last = nn.Conv2d(9, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.waist(self.stem(x))
        return self.last(torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1))


def test_the_norm_of_a_single_channel_grows_with_what_its_reader_reads() -> None:
    rewired = swnet.transform(Narrow(), X, p=1.0, wiring="kernel", min_in_degree=0)
    assert rewired.norm.num_features == len(rewired.norm.weight) == len(rewired.norm.running_mean) > 1
    rewired(X).sum().backward()


class _NamedAlike(nn.Module):
    """A layer that has the name of the model's input."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.x = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.d, self.e = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.e(torch.relu(self.d(torch.relu(self.c(x) + self.x(x)))))
        return out


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_layer_may_have_the_name_of_an_input(p: float) -> None:
    model, x = _NamedAlike(), torch.randn(2, 3, 8, 8)
    made = swnet.transform(model, x, p=p)
    assert p or torch.equal(made(x), model(x))
    graph = swnet.analyze(model, x).graph.to_networkx()
    assert {"x", "x (input)"} <= set(graph.nodes)
    assert set(graph.predecessors("c")) == {"x (input)"}
