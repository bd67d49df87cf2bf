"""calibrate: statistics of norms are those of the batches, and nothing else changes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swnet
from swcompile.modules import RewiredModule
from tests import zoo


def trained() -> tuple[nn.Module, Tensor]:
    model, x = zoo.build("resnet_basic")
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn_like(x) + 1)
    return model, x


def norms(module: nn.Module) -> dict[str, Any]:
    return {name: inner for name, inner in module.named_modules() if isinstance(inner, nn.BatchNorm2d)}


def statistics_of(module: RewiredModule, batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Average the mean and variance of what each norm is given, counted by hooks, in train mode."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    probe = copy.deepcopy(module).eval()
    for name, norm in norms(probe).items():
        norm.train()

        def note(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
            seen.setdefault(name, []).append((given[0].mean((0, 2, 3)), given[0].var((0, 2, 3))))

        norm.register_forward_pre_hook(note)
    for batch in batches:
        probe(batch)
    return {
        name: (torch.stack([m for m, _ in all_]).mean(0), torch.stack([v for _, v in all_]).mean(0)) for name, all_ in seen.items()
    }


@pytest.mark.parametrize("labels", [False, True])
def test_norms_take_the_average_over_the_batches(labels: bool) -> None:
    model, x = trained()
    state = copy.deepcopy(model.state_dict())
    batches = [torch.randn_like(x), torch.randn_like(x) * 2]
    given: list[Any] = [(batch, torch.zeros(len(batch))) for batch in batches] if labels else list(batches)
    small = swnet.transform(model, x, p=0.3, density=0.5, calibrate=given)
    plain = swnet.transform(model, x, p=0.3, density=0.5)
    wanted = statistics_of(plain, batches)
    assert wanted.keys() == norms(small).keys()
    for name, norm in norms(small).items():
        torch.testing.assert_close(norm.running_mean, wanted[name][0])
        torch.testing.assert_close(norm.running_var, wanted[name][1])
        assert norm.momentum == 0.1
        assert norm.training == norms(plain)[name].training
    for (name, one), (_, other) in zip(small.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert any("took their statistics anew from 2 batches" in note.reason for note in swnet.ledger(small).notes)


def test_a_trained_model_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    model, x = trained()
    with caplog.at_level(logging.WARNING):
        rewired = swnet.transform(model, x, p=0.3)
    assert "the model has been trained" in caplog.text
    assert any("calibrate=" in note.reason for note in swnet.ledger(rewired).notes)


def test_a_fresh_or_unchanged_model_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        swnet.transform(*zoo.build("resnet_basic"), p=0.3)
        swnet.transform(*trained(), p=0.0)
    assert "trained" not in caplog.text


@pytest.mark.parametrize("batches", [[], [()], ["text"], [(1, 2)]])
def test_batches_that_are_none_are_refused(batches: list[Any]) -> None:
    model, x = trained()
    with pytest.raises(swnet.SwnetError, match=r"^calibrate="):
        swnet.transform(model, x, p=0.3, calibrate=batches)


def test_an_error_in_the_batches_comes_through() -> None:
    def broken() -> Iterator[Tensor]:
        yield trained()[1]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        swnet.transform(*trained(), p=0.3, calibrate=broken())
