"""What a written network calls its arguments, values and classes hides nothing that its statements call."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swnet
from swcompile.errors import SwnetError
from tests.export.test_python_source import Small, source_of, twin_of


class Returning(Small):
    """Returns its result by a function of two values."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, F: Tensor, math: Any = None) -> Any:  # the name is what is tested
        y = super().forward(nn.functional.relu(F))
        return self.returned(y, torch.relu(y + 1))


PAIRS = [namedtuple(name, ["one", "two"]) for name in ("Model", "F", "head", "Group", "Pair")]  # type: ignore[misc]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.__name__)
def test_named_tuples_and_arguments_of_any_name(pair: Any) -> None:
    module, x = swnet.transform(Returning(pair), torch.randn(2, 3, 8, 8), p=0.5, seed=3).eval(), torch.randn(2, 3, 8, 8)
    found, wanted = twin_of(module).eval()(x), module(x)
    assert found._fields == wanted._fields
    assert all(map(torch.equal, found, wanted))
    assert "def forward(self, F_: Tensor, math_: Any = None) -> Any:" in source_of(module)


def test_two_classes_of_one_name_are_refused() -> None:
    one, other = namedtuple("Pair", ["a", "b"]), namedtuple("Pair", ["c", "d"])
    module = swnet.transform(Returning(lambda *given: [one(*given), other(*given)]), torch.randn(2, 3, 8, 8), p=0.5)
    with pytest.raises(SwnetError, match="Two classes of named tuples are called Pair"):
        source_of(module)


def test_ordered_dictionaries_stay_what_they_are() -> None:
    made = Returning(lambda one, two: OrderedDict(one=one, two=two, said="both"))
    module, x = swnet.transform(made, torch.randn(2, 3, 8, 8), p=0.5).eval(), torch.randn(2, 3, 8, 8)
    found, wanted = twin_of(module).eval()(x), module(x)
    assert type(found) is type(wanted) is OrderedDict
    assert found["said"] == "both"
    assert torch.equal(found["two"], wanted["two"])
