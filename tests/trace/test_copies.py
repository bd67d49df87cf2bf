"""swcompile.trace.copies: a copy trains as the original does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm

import swnet
from swcompile.trace.copies import copy_model

X = torch.randn(2, 3, 8, 8)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Conv2d(8 if place else 3, 8, 3, padding=1) for place in range(4)])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(X).square().mean().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad for name, grad in found.items() if grad is not None}


def test_hooks_of_parameters_are_copied() -> None:
    model, calls = net(), []
    model[1].weight.register_hook(lambda grad: 2 * grad)
    model[2].weight.register_post_accumulate_grad_hook(lambda parameter: calls.append(tuple(parameter.shape)))
    ours, theirs = gradients(swnet.transform(model, X, p=0.0)), gradients(model)
    assert all(torch.equal(ours[name], grad) for name, grad in theirs.items())
    assert calls == [(8, 8, 3, 3)] * 2


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("change", [weight_norm, lambda layer: prune.random_unstructured(layer, "weight", 0.5)])
def test_weights_that_a_hook_computes_are_no_obstacle(change: Callable[[nn.Module], object]) -> None:
    model = net()
    change(model[1])
    model(X)  # leaves a result of a computation among the attributes
    rewired = swnet.transform(model, X, p=0.0)
    assert list(rewired.state_dict()) == list(model.state_dict())
    ours, theirs = gradients(rewired), gradients(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], grad) for name, grad in theirs.items())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_part_gets_gradients() -> None:
    model = net()
    model[1] = torch.jit.script(model[1])
    copied = copy_model(model)
    ours, theirs = gradients(copied), gradients(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], grad) for name, grad in theirs.items())


class Shared(nn.Module):
    """One layer under two names, a tied weight, a buffer, a hook, and attributes of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.again = self.body[0]
        self.tied = nn.Conv2d(3, 4, 3)
        self.tied.weight = self.again.weight
        self.sizes = (3, 4)
        self.names = ["a", {"b": 1}]
        self.tied.register_forward_pre_hook(print)


def test_copies_made_by_hand_are_what_deepcopy_makes() -> None:
    model = Shared()
    model.body[0].eval()
    ours, theirs = copy_model(model), copy.deepcopy(model)
    for found, wanted, source in zip(ours.modules(), theirs.modules(), model.modules(), strict=True):
        assert found is not source
        assert type(found) is type(wanted)
        assert list(vars(found)) == list(vars(wanted))
        for name, value in vars(wanted).items():
            mine, original = vars(found)[name], vars(source)[name]
            assert type(mine) is type(value)
            assert not isinstance(original, dict | set | list) or mine is not original, f"{name} would be shared"
            if not isinstance(value, dict):
                assert mine == value
    assert ours.again is ours.body[0]
    assert ours.tied.weight is ours.again.weight
    assert ours.names[1] is not model.names[1]
    state, others = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(others)
    assert all(torch.equal(state[key], others[key]) for key in state)
    storages = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert storages.isdisjoint(tensor.data_ptr() for tensor in state.values())


class Counting(nn.Linear):
    """A layer that is copied in a way of its own."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        made = Counting(self.in_features, self.out_features)
        made.copied = True
        return made


def test_modules_with_a_way_of_their_own_are_copied_by_it() -> None:
    assert copy_model(nn.Sequential(Counting(2, 2)))[0].copied  # type: ignore[index]
