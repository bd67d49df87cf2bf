"""trace.coupling: which layers can lose output channels, told by what lies behind them, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swcompile.graph import Coupling, Tap
from swcompile.rows import Rows
from swcompile.trace import coupled, trace

WIDE = 8


class Middle(nn.Module):
    """Two layers with something between them, and whatever the test hangs on."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor], width: int = WIDE, **modules: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDE, 3, padding=1)
        self.last = nn.Conv2d(width, 5, 1)
        self.between = between
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Noisy(nn.Module):
    """Mixes channels in train mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(1, keepdim=True) if self.training else x


class Told(nn.Module):
    """Squeeze and excitation as it is often written: the view is told how many channels there are by the map itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDE, 4), nn.Linear(4, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).view(b, c))))
        return x * torch.sigmoid(gate).view(b, c, 1, 1)


def held(model: nn.Module, x: Tensor | None = None) -> set[str]:
    """Return the layers that cannot lose a single output channel."""
    graph = coupled(trace(model, torch.zeros(2, 3, 6, 6) if x is None else x)).graph
    rows = Rows(graph)
    live = rows.read({layer.name: (Tap(layer.feature, 0, 1),) for layer in graph.layers})
    return {layer.name for layer in graph.layers} - set(rows.outputs(live))


CARRIED: Mapping[str, nn.Module] = {
    "nothing": Middle(lambda net, x: x),
    "an activation": Middle(lambda net, x: F.gelu(x)),
    "a method": Middle(lambda net, x: x.clamp(0, 6).relu()),
    "a norm": Middle(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(WIDE)),
    "a norm without parameters": Middle(lambda net, x: net.norm(x), norm=nn.InstanceNorm2d(WIDE)),
    "slopes": Middle(lambda net, x: net.act(x), act=nn.PReLU(WIDE)),
    "dropout and pooling": Middle(lambda net, x: net.pool(net.drop(x)), drop=nn.Dropout2d(), pool=nn.AvgPool2d(2)),
    "a module of the user's": Middle(lambda net, x: net.act(x), act=Swish()),
    "modules called as one": Middle(lambda net, x: net.block(x), block=nn.Sequential(nn.BatchNorm2d(WIDE), Swish(), nn.Dropout())),
    "a depthwise convolution": Middle(lambda net, x: net.filter(x), filter=nn.Conv2d(WIDE, WIDE, 3, padding=1, groups=WIDE)),
    "a sum with a number": Middle(lambda net, x: 2 * x + 1),
    "a sum with itself": Middle(lambda net, x: x + F.relu(x)),
    "a gate for places": Middle(lambda net, x: x * torch.sigmoid(net.spot(x)), spot=nn.Conv2d(WIDE, 1, 1)),
    "a concatenation": Middle(lambda net, x: torch.cat([x, net.other(x)], 1), 2 * WIDE, other=nn.Conv2d(WIDE, WIDE, 1)),
    "a resize to a size that it asks for": Middle(lambda net, x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:])),
    "a mean over places": Middle(lambda net, x: x.mean((2, 3), keepdim=True)),
    "an index": Middle(lambda net, x: x.mean((2, 3))[:, :, None, None]),
    "an ellipsis": Middle(lambda net, x: x[..., 1:, :]),
    "a view that asks": Middle(lambda net, x: x.view(x.size(0), x.size(1), -1, 1)),
    "squeeze and excitation": Middle(lambda net, x: net.gate(x), gate=Told()),
}
HELD: Mapping[str, nn.Module] = {
    "a view to sizes in the code": Middle(lambda net, x: x.view(-1, WIDE, 36, 1)),
    "a norm over channels": Middle(lambda net, x: net.norm(x), norm=nn.GroupNorm(2, WIDE)),
    "softmax": Middle(lambda net, x: F.softmax(x, 1)),
    "a mean over channels": Middle(lambda net, x: x - x.mean(1, keepdim=True)),
    "a shift of channels": Middle(lambda net, x: x.roll(1, 1)),
    "halves": Middle(lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "a slice of channels": Middle(lambda net, x: x[:, 1:], WIDE - 1),
    "a parameter for each channel": Middle(lambda net, x: x * net.scale.weight.view(1, WIDE, 1, 1), scale=nn.Linear(WIDE, 1)),
    "a norm that is called twice": Middle(lambda net, x: net.norm(net.norm(x)), norm=nn.BatchNorm2d(WIDE)),
    "the number of channels": Middle(lambda net, x: x / x.size(1)),
    "a module that mixes channels in train mode": Middle(lambda net, x: net.noise(x), noise=Noisy()),
    "an extremum over channels": Middle(lambda net, x: x - x.amax(1, keepdim=True)),
    "a permutation": Middle(lambda net, x: x.permute(0, 2, 1, 3).permute(0, 2, 1, 3)),
    "a grouped convolution's own outputs": Middle(lambda net, x: net.grouped(x), grouped=nn.Conv2d(WIDE, WIDE, 1, groups=2)),
}


@pytest.mark.parametrize("what", CARRIED)
def test_channels_are_taken_out_of_what_works_on_each_by_itself(what: str) -> None:
    assert "first" not in held(CARRIED[what])


@pytest.mark.parametrize("what", HELD)
def test_channels_stay_where_something_needs_them(what: str) -> None:
    assert ("grouped" if "grouped" in what else "first") in held(HELD[what])


def test_outputs_of_the_model_stay() -> None:
    assert "last" in held(CARRIED["nothing"])


def test_what_is_added_up_goes_together_or_stays() -> None:
    model = Middle(lambda net, x: x + net.other(x), other=nn.Conv2d(WIDE, WIDE, 1))
    graph = coupled(trace(model, torch.zeros(2, 3, 6, 6))).graph
    rows = Rows(graph)
    summed = graph.layer_by_name["last"].feature
    live = rows.read({"other": (Tap("first", 0, 2),), "last": (Tap(summed, 4, 6),)})
    assert rows.outputs(live) == {"first": ((0, 2), (4, 6)), "other": ((0, 2), (4, 6))}


def test_a_flattened_map_goes_as_a_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    graph = coupled(trace(model, torch.zeros(2, 3, 6, 6))).graph
    rows = Rows(graph)
    live = rows.read({"3": (Tap(graph.layer_by_name["3"].feature, 9, 19),)})
    assert rows.outputs(live) == {"0": ((1, 3),)}


def test_a_squeeze_keeps_no_channel_alive_that_nobody_else_reads() -> None:
    graph = coupled(trace(CARRIED["squeeze and excitation"], torch.zeros(2, 3, 6, 6))).graph
    assert graph.coupling.squeezes == ("gate.fc1",)
    rows = Rows(graph)
    live = rows.read({"last": (Tap(graph.layer_by_name["last"].feature, 2, 5),)})
    assert rows.outputs(live) == {"first": ((2, 5),), "gate.fc2": ((2, 5),)}
    assert rows.columns(live) == {"gate.fc1": ((2, 5),)}


class OtherInEval(nn.Module):
    """Eval mode reads a map that train mode does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, WIDE, 1), nn.Conv2d(WIDE, WIDE, 1)
        self.last = nn.Conv2d(WIDE, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        return self.last(second if self.training else first)


def test_what_eval_mode_alone_reads_stays() -> None:
    assert "first" in held(OtherInEval())


def test_nothing_is_said_of_what_goes_together_until_somebody_prunes() -> None:
    assert trace(CARRIED["a norm"], torch.zeros(2, 3, 6, 6)).graph.coupling == Coupling()
