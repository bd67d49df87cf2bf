"""swcompile.optimize: each pass on the smallest graph that shows it, then all of them against the plain gathers."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn

import swnet
from swcompile.modules import RewiredModule, gather, resample
from swcompile.optimize import PASSES, drop_unread, fold_into_cat, optimize, share_taps
from swcompile.rewrite import rewrite
from swcompile.trace import trace
from swcompile.trace.shapes import SHAPE, Spec

Taps = tuple[tuple[int, int, int, str], ...]


class Drawn:
    """An fx graph drawn by hand, every value with a shape."""

    def __init__(self) -> None:
        self.graph = fx.Graph()

    def input(self, name: str, channels: int, size: int = 8) -> fx.Node:
        return self._shaped(self.graph.placeholder(name), channels, size)

    def relu(self, x: fx.Node, channels: int, size: int = 8) -> fx.Node:
        return self._shaped(self.graph.call_function(torch.relu, (x,)), channels, size)

    def pool(self, x: fx.Node, channels: int, size: int) -> fx.Node:
        return self._shaped(self.graph.call_function(torch.max_pool2d, (x, 2)), channels, size)

    def cat(self, parts: Sequence[fx.Node], channels: int) -> fx.Node:
        return self._shaped(self.graph.call_function(torch.cat, (list(parts), 1)), channels, 8)

    def gather(self, like: fx.Node, sources: Sequence[fx.Node], taps: Taps) -> fx.Node:
        return self.graph.call_function(gather, (like, tuple(sources), taps, 1))

    @staticmethod
    def _shaped(node: fx.Node, channels: int, size: int) -> fx.Node:
        node.meta[SHAPE] = Spec((2, channels, size, size))
        return node

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        result = fx.GraphModule(nn.Module(), self.graph)(*inputs)
        return result if isinstance(result, tuple) else (result,)


def calls(graph: fx.Graph, target: object) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is target]


def maps(channels: int, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(channels))


def test_fold_into_cat_reads_the_pieces_and_the_concatenation_dies() -> None:
    drawn = Drawn()
    a, b = drawn.input("a", 4), drawn.input("b", 6)
    joined = drawn.cat([a, b], 10)
    gathered = drawn.gather(joined, [joined], ((0, 2, 8, "max"),))
    drawn.graph.output(gathered)
    x, y = maps(4), maps(6)
    before = drawn.run(x, y)

    fold_into_cat(drawn.graph)
    like, sources, taps, _ = gathered.args
    assert (like, sources) == (a, (a, b))
    assert taps == ((0, 2, 4, "max"), (1, 0, 4, "max"))
    drop_unread(drawn.graph)
    assert not calls(drawn.graph, torch.cat)
    torch.testing.assert_close(drawn.run(x, y), before, rtol=0, atol=0)


def test_fold_into_cat_goes_through_cats_of_cats() -> None:
    drawn = Drawn()
    a, b, c = (drawn.input(name, 4) for name in "abc")
    outer = drawn.cat([drawn.cat([a, b], 8), c], 12)
    gathered = drawn.gather(outer, [outer], ((0, 3, 9, "max"),))
    drawn.graph.output(gathered)
    fold_into_cat(drawn.graph)
    assert gathered.args[1] == (a, b, c)
    assert gathered.args[2] == ((0, 3, 4, "max"), (1, 0, 4, "max"), (2, 0, 1, "max"))


def test_fold_into_cat_leaves_a_concatenation_of_heights_alone() -> None:
    drawn = Drawn()
    a, b = drawn.input("a", 4), drawn.input("b", 4)
    tall = drawn._shaped(drawn.graph.call_function(torch.cat, ([a, b], 2)), 4, 16)
    gathered = drawn.gather(tall, [tall], ((0, 2, 4, "max"),))
    drawn.graph.output(gathered)
    fold_into_cat(drawn.graph)
    assert gathered.args[1] == (tall,)


def test_share_taps_splits_a_feature_once_for_all_of_its_readers() -> None:
    drawn = Drawn()
    x = drawn.relu(drawn.input("x", 12), 12)
    first = drawn.gather(x, [x], ((0, 0, 4, "max"), (0, 8, 12, "max")))
    second = drawn.gather(x, [x], ((0, 2, 8, "max"),))
    drawn.graph.output((first, second))
    before = drawn.run(maps(12))

    share_taps(drawn.graph)
    split = calls(drawn.graph, torch.split)
    assert [node.args[1] for node in split] == [[2, 2, 4, 4]]
    assert not calls(drawn.graph, gather)
    torch.testing.assert_close(drawn.run(maps(12)), before, rtol=0, atol=0)


def test_share_taps_pools_each_piece_once_for_two_readers_of_one_size() -> None:
    drawn = Drawn()
    x = drawn.input("x", 12)
    small = drawn.pool(x, 12, 4)
    first = drawn.gather(small, [x, small], ((0, 0, 4, "max"), (1, 0, 8, "max")))
    second = drawn.gather(small, [x], ((0, 2, 6, "max"),))
    drawn.graph.output((first, second))
    before = drawn.run(maps(12))

    share_taps(drawn.graph)
    assert [node.args[1] for node in calls(drawn.graph, torch.split)] == [[2, 2, 2, 6], [8, 4]]  # x, small
    pooled = calls(drawn.graph, resample)
    assert [node.args[0].args[1] for node in pooled] == [0, 1, 2]  # the pieces of x[0:6]; the second is read twice
    assert [len(node.users) for node in pooled] == [1, 2, 1]
    torch.testing.assert_close(drawn.run(maps(12)), before, rtol=0, atol=0)


def test_share_taps_keeps_different_ways_to_pool_apart() -> None:
    drawn = Drawn()
    x = drawn.input("x", 8)
    small = drawn.pool(x, 8, 4)
    outs = [drawn.gather(small, [x], ((0, 0, 4, kind),)) for kind in ("max", "avg", "stride")]
    drawn.graph.output(tuple(outs))
    before = drawn.run(maps(8))
    share_taps(drawn.graph)
    assert sorted(str(node.args[2]) for node in calls(drawn.graph, resample)) == ["avg", "max", "stride"]
    torch.testing.assert_close(drawn.run(maps(8)), before, rtol=0, atol=0)


def test_share_taps_merges_neighbouring_taps_into_runs() -> None:
    drawn = Drawn()
    x = drawn.input("x", 8)
    gathered = drawn.gather(x, [x], ((0, 0, 2, "max"), (0, 2, 4, "max"), (0, 4, 8, "max")))
    drawn.graph.output(gathered)
    optimize(drawn.graph)
    assert [node.op for node in drawn.graph.nodes] == ["placeholder", "output"]  # the whole feature in order: nothing to do


def test_drop_unread_removes_what_only_a_dropped_link_read() -> None:
    drawn = Drawn()
    x = drawn.input("x", 8)
    drawn.relu(x, 8)
    drawn.graph.output(x)
    drop_unread(drawn.graph)
    assert not calls(drawn.graph, torch.relu)


def test_an_unread_input_stays() -> None:
    drawn = Drawn()
    drawn.input("x", 8)
    drawn.graph.output(drawn.input("y", 8))
    drop_unread(drawn.graph)
    assert [node.name for node in drawn.graph.nodes if node.op == "placeholder"] == ["x", "y"]


def test_the_pipeline_is_one_tuple() -> None:
    assert [step.__name__ for step in PASSES] == ["fold_into_cat", "share_taps", "drop_unread"]


class Pyramid(nn.Module):
    """Three resolutions, odd sizes, a concatenation and a sum: everything that the passes treat."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, 16, 3, stride, 1) for inputs, stride in [(3, 1), (16, 1), (16, 2), (32, 1), (16, 2), (16, 1), (16, 1)]
        )

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.convs[0](x))
        b = torch.relu(self.convs[1](a))
        c = torch.relu(self.convs[2](b))
        d = torch.relu(self.convs[3](torch.cat([c, nn.functional.avg_pool2d(b, 2, ceil_mode=True)], 1)))
        e = torch.relu(self.convs[4](d))
        f = e + torch.relu(self.convs[5](e))
        return self.convs[6](f).mean((2, 3))


@pytest.mark.parametrize("kind", ["max", "avg", "stride"])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_optimized_and_plain_gathers_agree_in_output_and_gradients(kind: str, density: float) -> None:
    torch.manual_seed(0)
    model, x = Pyramid().double(), torch.randn(2, 3, 13, 11, dtype=torch.float64)
    fast = swnet.transform(model, x, p=0.5, density=density, resample=kind, dead="allow")
    traced = trace(model, x)
    rewrite(traced, fast.swcompile.plan)
    plain = RewiredModule.assemble(traced.root, traced.train_graph)
    assert calls(plain.graph, gather)
    out, plain_out = fast(x), plain(x)
    torch.testing.assert_close(out, plain_out, rtol=0, atol=0)
    out.square().sum().backward()
    plain_out.square().sum().backward()
    for (name, parameter), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, other.grad, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_what_is_left_has_no_narrow_and_one_split_per_feature() -> None:
    graph = swnet.transform(Pyramid(), torch.randn(2, 3, 13, 11), p=0.6, dead="allow").graph
    assert not any("narrow" in str(node.target) for node in graph.nodes)
    assert not calls(graph, gather)
    sources = [node.args[0] for node in calls(graph, torch.split)]
    assert len(sources) == len(set(sources)) > 3
    for node in calls(graph, torch.split):
        assert all(user.target is operator.getitem for user in node.users)
    pools = [(node.args[0], node.args[2]) for node in calls(graph, resample)]
    assert len(pools) == len(set(pools)) > 0


class Shared(nn.Module):
    """One ReLU for two sums, one that only an Identity hides from a value read twice, one reached under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if not place else 16, 16, 3, padding=1) for place in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))
        self.often, self.hidden, self.first = (nn.ReLU(inplace=True) for _ in range(3))
        self.second, self.identity = self.first, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.often(self.norms[0](self.convs[0](x)))
        x = self.often(self.norms[1](self.convs[1](x)) + x)
        y = self.convs[2](x)
        x = self.convs[3](self.hidden(self.identity(y.mul(2))) + y)
        x = self.first(x + 1) + self.second(y.view_as(x))
        return self.convs[4](x).mean((2, 3))


def test_a_module_called_twice_works_in_place_again_and_one_behind_an_alias_does_not() -> None:
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(2, 3, 8, 8)
    rewired = swnet.transform(model, x, p=0.5, dead="allow")
    assert (rewired.often.inplace, rewired.hidden.inplace, rewired.first.inplace) == (True, False, False)
    pure = copy.deepcopy(rewired)
    pure.often.inplace = False
    for module in (rewired, pure):
        module(x).square().sum().backward()
    for parameter, other in zip(rewired.parameters(), pure.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, other.grad)


class Augmented(nn.Module):
    """Sums written into a norm's output, which nobody else reads, and into one that a later sum reads again; in two precisions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if place < 3 else 16, 16, 3, padding=1) for place in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x, y, z = (self.norms[place](self.convs[place](x)) for place in range(3))
        x += y.double()
        z -= torch.relu(z)
        for place in (3, 4):
            x = self.norms[place](self.convs[place](torch.relu(x + z)))
        return x.mean((2, 3))


def test_a_sum_works_in_place_again_where_nobody_else_reads_what_it_overwrites() -> None:
    torch.manual_seed(0)
    model, x = Augmented(), torch.randn(2, 3, 8, 8)
    rewired = swnet.transform(model, x, p=0.5, dead="allow")
    targets = [node.target for node in rewired.graph.nodes]
    assert (operator.iadd in targets, operator.isub in targets) == (True, False)  # z's own relu reads it, too
    assert swnet.transform(model, x, p=0)(x).dtype == model(x).dtype == torch.float32  # x + y.double() would be float64
    assert torch.equal(swnet.transform(model, x, p=0)(x), model(x))
    rewired(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in rewired.parameters())
