"""What a rewired module remembers, as far as a manifest can hold it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import swnet
from swcompile.record import record
from tests import zoo


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = zoo.mlp()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.body(x) * scale


def test_the_shapes_of_example_inputs_are_known() -> None:
    made = swnet.transform(Scaled(), torch.zeros(4, 20), p=0.5)
    assert record(made).example_shapes == (((4, 20), torch.float32),)


def test_inputs_that_a_manifest_cannot_hold_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = swnet.transform(Scaled(), (torch.zeros(4, 20), 2.0), p=0.5)
    with pytest.raises(swnet.SwnetError, match="inputs other than plain tensors, which a manifest cannot hold; save its"):
        swnet.save(made, tmp_path / "out")
    assert not list(tmp_path.iterdir())
