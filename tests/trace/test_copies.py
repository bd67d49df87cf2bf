"""swcompile.trace.copies: a copy trains as the original does."""

from __future__ import annotations

from collections.abc import Callable

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
