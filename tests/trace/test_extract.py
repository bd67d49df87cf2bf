"""swcompile.trace.extract: where each channel that a layer reads was made, through every operation of wiring.md section 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # as users write it

import swnet
from swcompile.graph import LayerGraph, Run
from swcompile.trace import Example, layer_graph, trace

X = torch.randn(2, 3, 8, 8)


class Between(nn.Module):
    """Two layers `a` and `b` of six channels each, an operation between them, and a layer `c` that reads its result."""

    def __init__(self, between: Callable[[Between, Tensor, Tensor], Tensor], width: int, linear: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.norm, self.group, self.pool = nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.MaxPool2d(2)
        self.prelu, self.drop, self.up = nn.PReLU(6), nn.Dropout2d(), nn.Upsample(scale_factor=2)
        self.gate, self.deep = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.shortcut, self.attention = nn.Identity(), nn.MultiheadAttention(6, 2, batch_first=True)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.c: nn.Module = nn.Linear(width, 4) if linear else nn.Conv2d(width, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between(self, self.a(x), self.b(x)))


def graph_of(between: Callable[[Between, Tensor, Tensor], Tensor], width: int = 6, linear: bool = False) -> LayerGraph:
    return trace(Between(between, width, linear), X).graph


def origins(graph: LayerGraph, name: str = "c") -> list[tuple[int, int, str, int, int]]:
    """Return what a layer reads, as (start, stop, producer, first channel, step)."""
    runs = graph.feature_by_name[graph.layer_by_name[name].feature].runs
    return [(run.start, run.stop, graph.producers[run.producer].name, run.first, run.step) for run in runs]


WHOLE_A = [(0, 6, "a", 0, 1)]


@pytest.mark.parametrize(
    "between",
    [
        lambda net, a, b: net.norm(a),
        lambda net, a, b: net.group(a),
        lambda net, a, b: torch.relu(a),
        lambda net, a, b: F.relu(a, inplace=True),
        lambda net, a, b: a.clamp_(0, 6),
        lambda net, a, b: net.prelu(a),
        lambda net, a, b: F.gelu(a),
        lambda net, a, b: net.drop(a),
        lambda net, a, b: F.dropout(a, 0.5, net.training),
        lambda net, a, b: net.pool(a),
        lambda net, a, b: F.avg_pool2d(a, 2),
        lambda net, a, b: F.adaptive_avg_pool2d(a, 3),
        lambda net, a, b: net.up(a),
        lambda net, a, b: F.interpolate(a, size=(5, 7), mode="bilinear"),
        lambda net, a, b: F.pad(a, (1, 1, 1, 1)),
        lambda net, a, b: net.shortcut(a),
        lambda net, a, b: a * net.scale,
        lambda net, a, b: a * 0.5 + 1,
        lambda net, a, b: -a / 2,
        lambda net, a, b: a.mean((2, 3), keepdim=True),
        lambda net, a, b: a.contiguous().clone(),
        lambda net, a, b: a.transpose(2, 3),
        lambda net, a, b: a.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda net, a, b: a.flatten(2).unflatten(2, (8, 8)),
        lambda net, a, b: a * torch.sigmoid(a.mean((2, 3), keepdim=True)),
        lambda net, a, b: a * torch.sigmoid(net.gate(F.adaptive_avg_pool2d(a, 1))),
        lambda net, a, b: torch.sigmoid(net.gate(a.mean((2, 3), keepdim=True))).mul(a),
        lambda net, a, b: torch.cat([a[:, :, :4], a[:, :, 4:]], dim=2),
    ],
)  # fmt: skip
def test_channels_are_followed_through_channelwise_operations(between: Callable[[Between, Tensor, Tensor], Tensor]) -> None:
    assert origins(graph_of(between)) == WHOLE_A


@pytest.mark.parametrize(
    ("between", "width", "reads"),
    [
        (lambda net, a, b: torch.cat([a, b], 1), 12, [(0, 6, "a", 0, 1), (6, 12, "b", 0, 1)]),
        (lambda net, a, b: torch.cat((b, net.norm(a)), dim=-3), 12, [(0, 6, "b", 0, 1), (6, 12, "a", 0, 1)]),
        (lambda net, a, b: a.split([1, 5], dim=1)[1], 5, [(0, 5, "a", 1, 1)]),
        (lambda net, a, b: torch.tensor_split(a, 2, dim=1)[1], 3, [(0, 3, "a", 3, 1)]),
        (lambda net, a, b: a[:, 1:5], 4, [(0, 4, "a", 1, 1)]),
        (lambda net, a, b: a[:, -2:, ::2], 2, [(0, 2, "a", 4, 1)]),
        (lambda net, a, b: a[..., 1:], 6, WHOLE_A),
        (lambda net, a, b: a[:, a.shape[1] // 3 :], 4, [(0, 4, "a", 2, 1)]),
        (lambda net, a, b: a.narrow(1, a.size(1) // 2, 3), 3, [(0, 3, "a", 3, 1)]),
        (lambda net, a, b: a.split(a.shape[1] // 2, 1)[1], 3, [(0, 3, "a", 3, 1)]),
        (lambda net, a, b: a.narrow(1, 2, 3), 3, [(0, 3, "a", 2, 1)]),
        (lambda net, a, b: torch.cat([a[:, :2], b[:, 2:4], a[:, 4:]], 1), 6,
         [(0, 2, "a", 0, 1), (2, 4, "b", 2, 1), (4, 6, "a", 4, 1)]),
        (lambda net, a, b: a[:, ::2], 3, [(0, 1, "a", 0, 1), (1, 2, "a", 2, 1), (2, 3, "a", 4, 1)]),
        (lambda net, a, b: a.view(2, 2, 3, 8, 8).transpose(1, 2).reshape(2, 6, 8, 8), 6,
         [(at, at + 1, "a", first, 1) for at, first in enumerate([0, 3, 1, 4, 2, 5])]),
    ],
)  # fmt: skip
def test_cat_split_slices_and_shuffles_are_followed_exactly(
    between: Callable[[Between, Tensor, Tensor], Tensor], width: int, reads: list[tuple[int, int, str, int, int]]
) -> None:
    assert origins(graph_of(between, width)) == reads


@pytest.mark.parametrize(
    "between",
    [
        lambda net, a, b: a + b,
        lambda net, a, b: torch.add(a, b, alpha=2),
        lambda net, a, b: net.norm(a).add_(b),
        lambda net, a, b: a - b,
        lambda net, a, b: torch.maximum(a, b),
        lambda net, a, b: a * b,
    ],
)
def test_a_sum_is_the_union_of_both_sides(between: Callable[[Between, Tensor, Tensor], Tensor]) -> None:
    graph = graph_of(between)
    (run,) = graph.feature_by_name[graph.layer_by_name["c"].feature].runs
    assert graph.producers[run.producer].kind == "sum"
    names = {graph.producers[base.producer].name for base in graph.origins([run])}
    assert names == {"a", "b"}


def test_a_value_added_to_itself_is_no_sum() -> None:
    assert origins(graph_of(lambda net, a, b: a + a)) == WHOLE_A


def test_flatten_repeats_each_channel_once_for_each_place() -> None:
    flat = origins(graph_of(lambda net, a, b: F.avg_pool2d(a, 4).flatten(1), 24, linear=True))
    assert flat == [(4 * channel, 4 * channel + 4, "a", channel, 0) for channel in range(6)]


def test_a_linear_layer_may_read_maps_with_channels_last() -> None:
    graph = graph_of(lambda net, a, b: a.permute(0, 2, 3, 1), 6, linear=True)
    assert origins(graph) == WHOLE_A
    assert graph.feature_by_name[graph.layer_by_name["c"].feature].axis == 3


def test_a_gate_is_a_sink_and_no_origin() -> None:
    graph = graph_of(lambda net, a, b: a * torch.sigmoid(b.mean((2, 3), keepdim=True)))
    assert origins(graph) == WHOLE_A
    index = [producer.name for producer in graph.producers].index("b")
    assert Run(0, 6, index, 0) in graph.sinks


@pytest.mark.parametrize(
    ("between", "what"),
    [
        (lambda net, a, b: torch.fft.fft(a, dim=1).real, "fft_fft"),
        (lambda net, a, b: torch.einsum("nchw,cd->ndhw", a, torch.eye(6)), "einsum"),
        (lambda net, a, b: a.roll(1, 1), "roll"),
        (lambda net, a, b: a.mean(1, keepdim=True).expand(2, 6, 8, 8), "mean"),
        (lambda net, a, b: a[torch.tensor([1, 0])], "getitem"),
    ],
)
def test_an_unknown_operation_is_opaque_and_reported_with_its_line(
    between: Callable[[Between, Tensor, Tensor], Tensor], what: str
) -> None:
    graph = graph_of(between)
    ((_, _, producer, _, _),) = origins(graph)
    found = next(made for made in graph.producers if made.name == producer)
    assert found.kind == "opaque"
    assert {graph.producers[run.producer].name for part in found.parts for run in part} == {"a"}  # for paths
    (name, where) = graph.opaque[0]
    assert what in name
    assert Path(where.rsplit(":", 1)[0]).name == "test_extract.py"


def test_an_opaque_value_is_one_producer_for_all_of_its_readers_however_late_they_turn_up() -> None:
    """That the rolled map itself is read shows only once the shuffled one is known, and then that is no value of its own."""

    def between(net: Between, a: Tensor, b: Tensor) -> Tensor:
        rolled = a.roll(1, 1)
        shuffled = (rolled * 2).view(2, 2, 3, 8, 8).transpose(1, 2).reshape(2, 6, 8, 8)
        joined = torch.cat([shuffled, rolled], 1)
        net.gate(shuffled)
        return joined

    graph = graph_of(between, 12)
    assert [made.name for made in graph.producers if made.kind == "opaque"] == ["roll"]
    again = layer_graph(*_traced(between))
    assert again.fingerprint == graph.fingerprint


def _traced(between: Callable[[Between, Tensor, Tensor], Tensor]) -> tuple[fx.Graph, nn.Module, Example, LayerGraph]:
    traced = trace(Between(between, 12), X)
    return traced.train_graph, traced.root, traced.example, traced.graph


def test_what_an_opaque_operation_reads_is_not_dead() -> None:
    """The attention map of CBAM: conv b is read by nothing but a mean over its channels."""
    graph = graph_of(lambda net, a, b: a * torch.sigmoid(b.mean(1, keepdim=True)))
    index = [producer.name for producer in graph.producers].index("b")
    assert Run(0, 6, index, 0) in graph.sinks
    assert [name for name, _ in graph.opaque] == ["mean (mean)"]


# Reasons.


def test_depthwise_layers_are_refused() -> None:
    graph = graph_of(lambda net, a, b: net.deep(a))
    assert graph.layer_by_name["deep"].refused == "depthwise: each channel's identity is the point"
    assert graph.layer_by_name["deep"].depthwise


def test_a_layer_called_twice_is_refused_at_both_sites() -> None:
    graph = graph_of(lambda net, a, b: net.gate(net.gate(a)))
    assert [layer.name for layer in graph.layers] == ["a", "b", "gate", "gate@1", "c"]
    assert {graph.layer_by_name[name].refused for name in ("gate", "gate@1")} == {
        "called at several sites, which would need different wirings"
    }


def test_a_layer_behind_a_write_into_a_view_is_refused() -> None:
    def between(net: Between, a: Tensor, b: Tensor) -> Tensor:
        a = a * 1
        a[:, :2] = b[:, :2]
        return a

    refused = graph_of(between).layer_by_name["c"].refused
    assert refused is not None


# Reading points.


def reading(between: Callable[[Between, Tensor, Tensor], Tensor], width: int = 6) -> tuple[str, tuple[str, ...]]:
    layer = graph_of(between, width).layer_by_name["c"]
    return layer.feature, layer.chain


def test_a_chain_behind_a_layer_that_nobody_else_reads_belongs_to_the_producer() -> None:
    assert reading(lambda net, a, b: torch.relu(net.norm(a))) == ("relu", ())


def test_a_chain_behind_a_sum_or_a_concatenation_belongs_to_the_reader() -> None:
    assert reading(lambda net, a, b: torch.relu(net.norm(a + b))) == ("add", ("norm", "relu"))
    assert reading(lambda net, a, b: net.drop(torch.relu(torch.cat([a, b], 1))), 12) == ("cat", ("relu", "drop"))


def test_a_chain_behind_a_value_that_others_read_belongs_to_the_reader() -> None:
    def between(net: Between, a: Tensor, b: Tensor) -> Tensor:
        net.gate(a)
        return torch.relu(net.norm(a))

    assert reading(between) == ("a", ("norm", "relu"))


def test_group_norm_is_a_barrier() -> None:
    assert reading(lambda net, a, b: torch.relu(net.group(a + b))) == ("relu", ())


def test_the_readers_norm_counts_its_parameters_per_channel() -> None:
    layer = graph_of(lambda net, a, b: net.prelu(net.norm(a + b))).layer_by_name["c"]
    assert layer.chain_params == 3  # scale, shift and slope


# What a layer is.


def test_a_layer_knows_its_geometry_and_line() -> None:
    layer = graph_of(lambda net, a, b: F.relu(a)).layer_by_name["a"]
    assert (layer.kind, layer.in_channels, layer.out_channels, layer.kernel_size, layer.positions, layer.bias) == (
        "Conv2d", 3, 6, (3, 3), 64, True,
    )  # fmt: skip
    path, line = layer.where.rsplit(":", 1)
    assert "self.c(self.between(self, self.a(x), self.b(x)))" in Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def test_transposed_grouped_and_one_dimensional_layers_are_counted() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 3, groups=2), nn.ConvTranspose1d(8, 4, 2, stride=2), nn.Conv1d(4, 2, 1))
    layers = trace(model, torch.randn(2, 4, 10)).graph.layers
    assert [layer.links for layer in layers] == [16, 32, 8]
    assert [layer.positions for layer in layers] == [8, 8, 16]  # a transposed layer is applied once for each input place
    assert [layer.transposed for layer in layers] == [False, True, False]


def test_inputs_are_producers_of_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(5, 4, 1)

        def forward(self, image: Tensor, depth: Tensor) -> Tensor:
            return self.conv(torch.cat([image, depth], 1))

    graph = trace(Two(), (X, torch.randn(2, 2, 8, 8))).graph
    assert [(producer.name, producer.kind, producer.channels) for producer in graph.producers[:2]] == [
        ("image", "input", 3), ("depth", "input", 2),
    ]  # fmt: skip
    assert origins(graph, "conv") == [(0, 3, "image", 0, 1), (3, 5, "depth", 0, 1)]


def test_the_second_call_of_a_layer_keeps_its_name_where_the_first_is_gone() -> None:
    traced = trace(Between(lambda net, a, b: net.gate(net.gate(a)), 6), X)
    assert [layer.name for layer in traced.graph.layers] == ["a", "b", "gate", "gate@1", "c"]
    first, second = (node for node in traced.train_graph.nodes if node.target == "gate")
    second.replace_input_with(first, first.args[0])
    traced.train_graph.erase_node(first)
    left = layer_graph(traced.train_graph, traced.root, traced.example, like=traced.graph)
    assert [layer.name for layer in left.layers] == ["a", "b", "gate@1", "c"]


def test_an_input_keeps_its_channel_axis_where_a_linear_layer_has_come_nearer() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), self.fc(torch.relu(x))

    traced = trace(Late(), X)
    assert origins(traced.graph, "conv") == [(0, 3, "x", 0, 1)]
    conv = next(node for node in traced.train_graph.nodes if node.target == "conv")
    with traced.train_graph.inserting_before(conv):
        farther = traced.train_graph.call_function(torch.cat, (list(conv.args), 1))
        farther = traced.train_graph.call_function(torch.cat, ([farther], 1))
    conv.args = (farther,)
    assert origins(layer_graph(traced.train_graph, traced.root, traced.example), "conv") != [(0, 3, "x", 0, 1)]
    assert origins(layer_graph(traced.train_graph, traced.root, traced.example, like=traced.graph), "conv") == [(0, 3, "x", 0, 1)]


def test_an_input_without_a_batch_axis_has_its_channels_elsewhere() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1))
    layers = trace(net, torch.randn(3, 16, 16)).graph.layers
    assert all("no batch axis" in str(layer.refused) for layer in layers)


class OpaqueJoin(nn.Module):
    """Reads a concatenation of maps without origin, one of them a constant, so that taps reach into its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.constant = nn.Parameter(torch.randn(1, 8, 8, 8))
        self.convs = nn.ModuleList(nn.Conv2d(24, 24, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x.cumsum(1), x.cumsum(1) * 2, self.constant.expand(len(x), -1, -1, -1)], 1)
        for conv in self.convs:
            x = conv(x).relu()
        return x


@pytest.mark.parametrize("seed", range(5))
def test_taps_of_a_concatenation_without_origin_read_its_parts(seed: int) -> None:
    net, x = OpaqueJoin(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x).graph
    assert {made.name for made in graph.producers if made.kind == "opaque"} == {"cumsum", "mul", "cat.2"}
    rewired = swnet.transform(net, x, p=0.5, block=4, dead="allow", seed=seed)
    assert rewired(x).shape == net(x).shape
    assert {tap.feature for layer in rewired.swcompile.plan.layers for tap in layer.taps} >= {"cat"}


class Wrapping(nn.Module):
    """An operation of the test's between two layers."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation
        self.stem, self.reader = nn.Conv2d(3, 8, 1), nn.LazyConv2d(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.operation(self.stem(x)))


class Asking(nn.Module):
    """Asks for sizes, so that plain fx cannot look inside."""

    def forward(self, x: Tensor) -> Tensor:
        return x if len(x) == 0 else x.flip(1)


BLUR = torch.ones(8, 1, 3, 3)
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "an empty vector among the parts": lambda x: torch.cat([x.new_empty(0), x[:, 4:], x[:, :4]], 1),
    "stack": lambda x: torch.stack([x[:, :4], x[:, 4:]], 1).sum(1),
    "stack and flatten": lambda x: torch.stack([x[:, :4], x[:, 4:]], 2).flatten(1, 2),
    "stack the same": lambda x: torch.stack([x, -x, x**2], 0).mean(0),
    "one of several channel axes": lambda x: x.reshape(len(x), 2, 4, 8, 8).mean(1),
    "the other of several": lambda x: x.reshape(len(x), 2, 4, 8, 8).amax(2),
    "gates of halves": lambda x: F.glu(x, 1),
    "gates of width": lambda x: F.glu(x, 3),
    "a module's gates of halves": nn.GLU(1),
    "roll": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "flip": lambda x: x.flip(1, 3),
    "flip by a list": lambda x: torch.flip(x, [1]),
    "select rows": lambda x: torch.index_select(x, 2, torch.tensor([1, 0])),
    "new axes in front": lambda x: x.expand(8, *x.shape)[0],
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "compare": lambda x: torch.where(x > 0, x, 0.1 * x),
    "add a product": lambda x: torch.addcmul(x, x, x.mean((2, 3), keepdim=True)),
    "response norm": lambda x: x * x.norm(2, (2, 3), keepdim=True),
    "sample": lambda x: F.grid_sample(x, torch.zeros(len(x), 4, 4, 2), align_corners=False),
    "channel shuffle": lambda x: F.channel_shuffle(x, 4),
    "a module's channel shuffle": nn.ChannelShuffle(2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "a module's pixel shuffle": nn.PixelShuffle(2),
    "a module's pixel unshuffle": nn.PixelUnshuffle(2),
    "blur": lambda x: F.conv2d(x, BLUR, padding=1, groups=8),
    "pick one of a stack": lambda x: torch.stack([x[:, :4], x[:, 4:]], 1)[:, 1],
    "what a module asks for": Asking(),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("name", OPERATIONS)
def test_channels_depend_on_just_those_that_they_are_followed_to(name: str) -> None:
    torch.manual_seed(0)
    net, x = Wrapping(OPERATIONS[name]), torch.randn(2, 8, 8, 8)
    net(torch.randn(2, 3, 8, 8))
    graph = trace(net, torch.randn(2, 3, 8, 8)).graph
    reader = graph.layer_by_name["reader"]
    stem = graph.layer_by_name["stem"].producer
    runs = graph.origins(graph.feature_by_name[reader.feature].runs)
    assert {run.producer for run in runs} == {stem}, graph.opaque
    found = {(slot, run.first + (slot - run.start) * run.step) for run in runs for slot in range(run.start, run.stop)}
    wanted = set()
    for channel in range(8):
        other = x.clone()
        other[:, channel] = torch.randn(2, 8, 8)
        differs = (net.operation(other) != net.operation(x)).transpose(0, 1).flatten(1).any(1)
        wanted |= {(slot, channel) for slot in differs.nonzero()[:, 0].tolist()}
    assert found == wanted


def test_a_sum_over_slices_can_not_be_bypassed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.GLU(1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    with pytest.raises(swnet.SwnetError, match=r"skips='remove' cannot leave one map .* Use skips='keep'"):
        swnet.transform(net, torch.randn(2, 3, 8, 8), p=0.3, wiring="kernel", skips="remove")


class Fixed(nn.Module):
    """Filters with constants: each channel by itself, and across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.register_buffer("blur", torch.ones(8, 1, 3, 3))
        self.register_buffer("mix", torch.randn(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.conv2d(self.b(F.conv2d(self.a(x), self.blur, padding=1, groups=8)), self.mix))


def test_fixed_filters_are_no_layers_to_rewire() -> None:
    graph = trace(Fixed(), torch.randn(2, 3, 8, 8)).graph
    assert {layer.name: layer.refused for layer in graph.layers} == {
        "a": None,
        "b": None,
        "mix": "a fixed filter: its weight is no parameter",
        "c": None,
    }


class Halves(nn.Module):
    """Reads halves of its input by slicing and by splitting."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(width, 8, 1) for width in (3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)[:, 4:])
        return self.third(x.split([4, 4], 1)[0])


def test_slices_and_splits_of_an_exported_program_are_followed() -> None:
    program = torch.export.export(Halves(), (X,))
    graph = swnet.analyze(program, points=2).graph  # with the inputs that the program has kept
    assert origins(graph, "second") == [(0, 4, "first", 4, 1)]
    assert origins(graph, "third") == [(0, 4, "second", 0, 1)]
