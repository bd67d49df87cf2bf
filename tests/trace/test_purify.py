"""swcompile.trace.purify: in-place operations become pure, and who read the overwritten tensor reads the new value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # as users write it

import swnet
from swcompile.trace.purify import SHARED_MEMORY, is_view, purify, purify_graph
from swcompile.trace.tracer import LayerTracer

X = torch.linspace(-2, 2, 24).view(2, 3, 4)


def relu_(x: Tensor) -> Tensor:
    y = x + 0
    torch.relu_(y)
    return y * 2


def relu_method(x: Tensor) -> Tensor:
    y = x + 0
    y.relu_()
    return y * 2


def functional_flag(x: Tensor) -> Tensor:
    y = x + 0
    F.relu(y, inplace=True)
    return y * 2


def flag_by_name(x: Tensor) -> Tensor:
    y = x + 0
    F.leaky_relu(input=y, negative_slope=0.2, inplace=True)
    return y * 2


def operators(x: Tensor) -> Tensor:
    y = x + 0
    z = y
    y += 1
    y -= 0.5
    y *= x
    y /= 2
    return z + y


def methods(x: Tensor) -> Tensor:
    y = x + 0
    y.add_(x, alpha=0.5).mul_(2).clamp_(min=-1, max=1)
    return y - x


def twice(x: Tensor) -> Tensor:
    y = x + 0
    z = y * 3
    y.relu_()
    w = y * 3
    y.neg_()
    return z + w + y


def functional_with_underscore(x: Tensor) -> Tensor:
    y = x + 0
    F.elu_(y, 0.3)
    return y


def view_nobody_else_reads(x: Tensor) -> Tensor:
    y = (x + 0).flatten(1).unsqueeze(0)
    y += 1
    return y * 2


def view_made_afterwards(x: Tensor) -> Tensor:
    y = x + 0
    F.relu(y, inplace=True)
    return y.flatten(1) * 2


def pieces_of_a_split(x: Tensor) -> Tensor:
    first, second = (x + 0).chunk(2, 2)
    second += first
    return torch.cat([first, second], 2)


def sizes(x: Tensor) -> Tensor:
    rows = count = x.shape[1]
    count *= x.size(2)
    return (x + 0).reshape(-1, count) * rows


def through_a_slice(x: Tensor) -> Tensor:
    y = x + 0
    y[:, :1] = x[:, 1:2]
    return y + 1


def through_a_view(x: Tensor) -> Tensor:
    y = x + 0
    y.view(2, 12)[:, 3:].relu_()
    return y * 2


def through_a_chunk(x: Tensor) -> Tensor:
    y = x + 0
    first, _ = y.chunk(2, 2)
    first.mul_(3)
    return y


def of_what_was_split(x: Tensor) -> Tensor:
    y = x + 0
    first, second = y.chunk(2, 2)
    y += 1
    return first * second


PROGRAMS = [
    relu_,
    relu_method,
    functional_flag,
    flag_by_name,
    operators,
    methods,
    twice,
    functional_with_underscore,
    view_nobody_else_reads,
    view_made_afterwards,
    pieces_of_a_split,
    sizes,
    through_a_slice,
    through_a_view,
    through_a_chunk,
    of_what_was_split,
]


def pure(program: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    graph = LayerTracer(nn.Module()).trace(program)
    purify_graph(graph)
    graph.lint()
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_result_is_that_of_the_users_code(program: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(pure(program)(X.clone()), program(X.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("program", PROGRAMS[:12], ids=lambda program: program.__name__)
def test_nothing_is_overwritten_any_more(program: Callable[[Tensor], Tensor]) -> None:
    names = [str(getattr(node.target, "__name__", node.target)) for node in pure(program).graph.nodes if node.op.startswith("call")]
    assert not [name for name in names if name.endswith("_") or (name.startswith("i") and name != "input")]


@pytest.mark.parametrize("program", PROGRAMS[12:], ids=lambda program: program.__name__)
def test_a_write_into_a_view_stays_and_marks_all_that_share_the_memory(program: Callable[[Tensor], Tensor]) -> None:
    graph = pure(program).graph
    assert any(SHARED_MEMORY in node.meta for node in graph.nodes if node.name == "add")


def test_modules_lose_their_flag() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Sequential(nn.Dropout(inplace=True), nn.SiLU()))
    assert purify(model, [fx.symbolic_trace(model).graph]) == {"0", "1.0"}
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_only_what_shares_memory_is_a_view() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.view(2, 12)[:, :4].t()
            return (y + x.shape[0]).clone()

    nodes = {node.name: is_view(node) for node in fx.symbolic_trace(Views()).graph.nodes}
    assert [name for name, found in nodes.items() if found] == ["view", "getitem", "t", "getitem_1"]
    # getitem_1 takes a number from a shape, which has no memory to share; calling it a view is harmless


def test_a_tap_of_a_value_that_the_user_overwrites_sees_it_as_it_was() -> None:
    """The trap of architecture: relu_ overwrites conv's output, and a later layer taps it after that."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3 if not place else 8, 8, 3, padding=1) for place in range(6))
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = conv(x)
                x = x + x.relu_().mean()
            return x

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    same = swnet.transform(model, x, p=0)
    torch.testing.assert_close(same(x), model(x), rtol=0, atol=0)


def test_the_users_model_keeps_its_in_place_modules() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)) for _ in range(4)])
    swnet.transform(model, torch.randn(2, 4, 8, 8), p=0)
    assert all(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
