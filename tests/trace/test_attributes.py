"""swcompile.trace.attributes: caches that a forward fills while it is traced are as they were afterwards."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import swnet
from swcompile.trace import trace
from swcompile.trace.attributes import attributes

X = torch.randn(2, 3, 8, 8)


@functools.lru_cache
def grid(height: int, width: int) -> Tensor:
    return torch.linspace(0, 1, height).view(height, 1).expand(height, width)


class Caching(nn.Module):
    """Keeps what it computes of sizes and parameters: in a dictionary in eval mode, and in a function's cache."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.kept: dict[str, Tensor] = {}
        self.register_buffer("relative", torch.zeros(1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 100:
            raise ValueError
        if self.relative.shape[0] != x.shape[2]:
            self.relative = grid(x.shape[2], x.shape[3]).clone()
        scale = self.scale
        if not self.training:
            if "scale" not in self.kept:
                self.kept["scale"] = self.scale * 2
            scale = self.kept["scale"]
        return self.c(self.b(self.a(x * scale + self.relative)))

    def train(self, mode: bool = True) -> Caching:
        self.kept = {}
        super().train(mode)
        return self


def test_nothing_of_the_trace_stays_in_caches() -> None:
    net = Caching()
    traced = trace(net, X)
    assert traced.steps.step == "values"
    assert not traced.steps.islands
    assert not grid.cache_info().currsize
    rewired = swnet.transform(net, X, p=0.0)
    for training in (True, False):
        assert torch.equal(rewired.train(training)(X), net.train(training)(X))


def test_attributes_of_a_users_class_are_put_back() -> None:
    net = nn.Sequential(nn.ReLU())
    net.counts, net.names, net.seen = {"a": 1}, ["x"], {1}
    with attributes(net):
        net.counts["b"], net.late = 2, True
        net.names.append("y")
        net.seen.clear()
    assert (net.counts, net.names, net.seen) == ({"a": 1}, ["x"], {1})
    assert not hasattr(net, "late")
