"""Programs whose values share memory, or whose forward keeps state: at p = 0 every bit stays, whoever overwrites what."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import swnet


class Net(nn.Module):
    """Layers to write programs with; `body` is the program."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3 if not place else 8, 8, 3, padding=1) for place in range(4))
        self.relu, self.hardtanh = nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.dropout, self.identity, self.flatten = nn.Dropout(0.3), nn.Identity(), nn.Flatten(2)
        self.fc = nn.Linear(8, 4)
        self.factor = torch.tensor(2.0)
        self.register_buffer("count", torch.zeros(()))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.d(self.body(self, self.a(x))).mean((2, 3)))
        return y


def module_read_later(net: Net, y: Tensor) -> Tensor:
    z = net.relu(y)
    return net.b(z) + y


def module_result_ignored(net: Net, y: Tensor) -> Tensor:
    net.hardtanh(y)
    return net.b(y) + y


def block_around_a_shortcut(net: Net, y: Tensor) -> Tensor:
    return net.block(y) + y


def identity_is_an_alias(net: Net, y: Tensor) -> Tensor:
    z = net.identity(y)
    z += 1
    return net.b(y)


def dropout_is_an_alias_in_eval_mode(net: Net, y: Tensor) -> Tensor:
    z = net.dropout(y)
    z.relu_()
    return net.b(y) + net.c(z)


def flatten_is_an_alias(net: Net, y: Tensor) -> Tensor:
    F.relu_(net.flatten(y))
    return net.b(y)


def cast_to_the_same_type_is_an_alias(net: Net, y: Tensor) -> Tensor:
    y.float().relu_()
    return net.b(y)


def constants(net: Net, y: Tensor) -> Tensor:
    return net.b(y * torch.tensor(3.0))[:, torch.arange(8)] * net.factor


def constants_by_mode(net: Net, y: Tensor) -> Tensor:
    return net.b(y * torch.tensor(1.5) + torch.tensor(0.25)) if net.training else net.b(y * torch.tensor(0.5))


def counter(net: Net, y: Tensor) -> Tensor:
    net.count += 1
    return net.b(y) + net.count


def running_mean(net: Net, y: Tensor) -> Tensor:
    if net.training:
        net.count = net.count * 0.5 + y.detach().mean()
    return net.b(y) + net.count


PROGRAMS = [
    module_read_later,
    module_result_ignored,
    block_around_a_shortcut,
    identity_is_an_alias,
    dropout_is_an_alias_in_eval_mode,
    flatten_is_an_alias,
    cast_to_the_same_type_is_an_alias,
    constants,
    constants_by_mode,
    counter,
    running_mean,
]


def run(net: nn.Module, x: Tensor) -> list[Tensor | None]:
    """Return outputs, gradients and buffers of two passes."""
    torch.manual_seed(3)
    outputs = [net(x) for _ in range(2)]
    torch.stack(outputs).sum().backward()
    return [*outputs, *(parameter.grad for parameter in net.parameters()), *net.state_dict().values()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_at_p_0_programs_that_share_memory_give_the_same_bits(program: Callable[[Net, Tensor], Tensor], training: bool) -> None:
    torch.manual_seed(0)
    net, x = Net(program), torch.randn(2, 3, 8, 8)
    rewired = swnet.transform(net, x, p=0.0)
    ours, theirs = run(rewired.train(training), x), run(net.train(training), x)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("program", PROGRAMS)
def test_such_programs_are_rewired_and_train(program: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net, x = Net(program), torch.randn(2, 3, 8, 8)
    rewired = swnet.transform(net, x, p=0.5, dead="allow", block=2)
    assert all(value is None or value.isfinite().all() for value in run(copy.deepcopy(rewired), x))
    assert list(rewired.state_dict()) == list(net.state_dict())


def test_numbers_drawn_without_the_input_are_drawn_again_in_every_run() -> None:
    def scale_at_random(net: Net, y: Tensor) -> Tensor:
        return net.b(y * torch.rand(1) + torch.randn(y.shape[0], 1, 1, 1))

    net, x = Net(scale_at_random), torch.randn(2, 3, 8, 8)
    rewired = swnet.transform(net, x, p=0.0)
    for ours, theirs in zip(run(rewired, x), run(net, x), strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)
    assert not torch.equal(rewired(x), rewired(x))


def test_decisions_by_random_numbers_are_refused_and_the_random_state_stays() -> None:
    def skip_at_random(net: Net, y: Tensor) -> Tensor:
        return net.b(y) if net.training and torch.rand(1).item() < 0.5 else y

    torch.manual_seed(0)
    random.seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = Net(skip_at_random)
    state = torch.get_rng_state(), random.getstate()
    with pytest.raises(swnet.SwnetError, match="decides by values, which tracing does not have"):
        swnet.transform(net, x, p=0.3)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]


def test_arguments_that_the_example_leaves_out_keep_their_defaults() -> None:
    class Masked(Net):
        def forward(self, x: Tensor, mask: Tensor | None = None, *, flag: bool = False) -> Tensor:  # type: ignore[override]
            y = self.a(x)
            y = y if mask is None else y * mask
            return super().forward(x) if flag else self.fc(self.d(self.b(y)).mean((2, 3)))

    torch.manual_seed(0)
    net, x = Masked(module_read_later), torch.randn(2, 3, 8, 8)
    assert torch.equal(swnet.transform(net, x, p=0.0)(x), net(x))


def test_branches_that_round_sizes_differently_run_at_odd_sizes() -> None:
    """A strided convolution rounds up, a pool down; at 16 both give 8, at 17 they give 9 and 8."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)
            self.left, self.right = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.last, self.pool = nn.Conv2d(16, 16, 3, padding=1), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            up = F.relu(self.left(F.relu(self.down(x))))
            down = F.relu(self.last(F.relu(self.right(self.pool(x)))))
            return up.mean((2, 3)) + down.mean((2, 3))

    rewired = swnet.transform(Branches(), torch.randn(2, 3, 16, 16), p=0.5, seed=2, dead="allow")
    for size in (16, 17, 33):
        assert rewired(torch.randn(2, 3, size, size)).isfinite().all()
