"""A plan that changes nothing is refused where a change was asked for, and carried out where none was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import swnet
from swcompile.errors import NothingToDoError


def too_short() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


ASKED: list[tuple[dict[str, Any], str]] = [
    ({"p": 0.5}, "p=0.5"),
    ({"p": "auto"}, "p=auto"),
    ({"p": "max_S"}, "p=max_S"),  # which takes 0, since nothing moves
    ({"grow": 0.5}, "grow=0.5"),
]


@pytest.mark.parametrize(("options", "asked"), ASKED)
def test_nothing_to_do_is_an_error_whether_p_is_a_number_or_a_policy(options: dict[str, Any], asked: str) -> None:
    with pytest.raises(NothingToDoError, match=rf"Nothing can be rewired as asked \({asked}(.|\n)*the stem"):
        swnet.transform(too_short(), torch.zeros(2, 8), **options)


def test_with_p_0_nothing_is_asked_for() -> None:
    assert not swnet.ledger(swnet.transform(too_short(), torch.zeros(2, 8), p=0.0)).changed
