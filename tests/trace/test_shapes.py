"""swcompile.trace.shapes: shapes without computing, and inputs inferred from the first layer."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import swnet
from swcompile.errors import SwnetError
from swcompile.trace import trace, trace_structure
from swcompile.trace.shapes import Spec, describe_inputs, infer_example, spec_of


def convs(inputs: int, depth: int, *, stride: int = 1, first: int = 1) -> list[nn.Module]:
    widths = [inputs] + [8] * depth
    return [nn.Conv2d(widths[at], 8, 3, first if at == 0 else stride, 1) for at in range(depth)]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(*convs(3, 3)), "2x3x32x32"),
        (nn.Sequential(*convs(1, 3)), "2x1x32x32"),
        (nn.Sequential(*convs(3, 4, stride=2)), "2x3x32x32"),
        (nn.Sequential(*convs(3, 6, stride=2)), "2x3x224x224"),  # at 32 the last layers would see pixels
        (nn.Sequential(*convs(3, 3, first=2)), "2x3x224x224"),  # a strided stem was made for large images
        (nn.Sequential(*convs(3, 2), nn.Flatten(), nn.Linear(8 * 28 * 28, 5)), "2x3x28x28"),
        (nn.Sequential(*convs(3, 2), nn.Flatten(), nn.Linear(8 * 64 * 64, 5)), "2x3x64x64"),
        (nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3)), "2x12"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), "2x784"),
        (nn.Sequential(nn.Conv1d(6, 8, 9), nn.Conv1d(8, 8, 9)), "2x6x1024"),
        (nn.Sequential(nn.Conv3d(3, 8, 3), nn.Conv3d(8, 8, 3)), "2x3x16x112x112"),
        (nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 4)), "2x16:int64"),
        (nn.Sequential(*convs(3, 3)).double(), "2x3x32x32:float64"),
    ],
)
def test_the_input_is_inferred_from_the_first_layer(model: nn.Module, shape: str) -> None:
    assert [str(spec) for spec in infer_example(model)] == [shape]


def test_where_no_usual_size_fits_the_error_says_what_to_pass() -> None:
    model = nn.Sequential(*convs(3, 2), nn.Flatten(), nn.Linear(8 * 77 * 77, 5))
    with pytest.raises(SwnetError, match=r"No input was given and none could be inferred for Sequential: .*Conv2d.*example_inputs"):
        infer_example(model)


def test_a_model_without_layers_has_nothing_to_rewire() -> None:
    with pytest.raises(SwnetError, match="Sequential has no convolution, linear or embedding layer: there is nothing to rewire"):
        infer_example(nn.Sequential(nn.ReLU()))


def test_the_choice_is_announced_and_noted(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(*convs(3, 5))
    with caplog.at_level(logging.WARNING, logger="swcompile"):
        plan = swnet.plan(model, p=0.3)
    assert "no example input was given; traced with 2x3x32x32, inferred from the first layer" in caplog.text
    assert any("2x3x32x32 was inferred" in note.reason for note in plan.notes)


def test_inference_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(*convs(3, 2), nn.BatchNorm2d(8)).eval()
    random = torch.get_rng_state()
    infer_example(model)
    assert not model.training
    assert int(model[2].num_batches_tracked) == 0
    assert not model[0]._forward_hooks
    assert torch.equal(torch.get_rng_state(), random)


def test_inputs_of_any_nesting_become_specs() -> None:
    spec = Spec((2, 3))
    x = torch.ones(2, 3)
    assert describe_inputs(x) == (spec,)
    assert describe_inputs((x, 2, [x], {"a": x, "b": "text"})) == (spec, 2, [spec], {"a": spec, "b": "text"})
    assert str(Spec((4, 1), torch.int64)) == "4x1:int64"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor, scale: Tensor, bias: float = 0.0) -> Tensor:
        return self.conv(image) * scale + bias


def test_every_value_gets_its_shape_and_nothing_is_computed() -> None:
    traced = trace(Two(), (torch.randn(2, 3, 5, 7), torch.ones(())))
    found = {node.name: spec_of(node) for node in traced.train_graph.nodes}
    assert found["conv"] == Spec((2, 4, 5, 7))
    assert found["scale"] == Spec(())
    assert found["bias"] is None


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (torch.randn(2, 3, 5, 7), r"The model takes 2 to 3 inputs \(image, scale, bias\); 1 were given\."),
        ((torch.randn(2, 9, 5, 7), torch.ones(())), r"The inputs \(2x9x5x7, \) do not fit Two: .*9 channels.* Pass example_inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_one_error(inputs: object, says: str) -> None:
    with pytest.raises(SwnetError, match=says):
        trace(Two(), inputs)


def test_a_large_model_is_analysed_without_being_run() -> None:
    """600 million parameters: only shapes are followed."""
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Sequential(nn.Linear(8192, 8192, bias=False), nn.ReLU()) for _ in range(9)])
    graph = trace_structure(model, torch.empty(2, 8192, device="meta")).graph
    assert sum(layer.links for layer in graph.layers) == 9 * 8192**2
