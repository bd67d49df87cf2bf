"""swnet.lower(training=True) of layers masked in tiles: they train over what is live alone, to the same end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import swnet
from benchmarks.bench_training import kept_bytes
from benchmarks.models import BasicBlock, densenet, resnet20, seeded, unit
from swcompile.lower import run_clusters
from swcompile.lower.clusters import support_of
from swcompile.modules import TRAINING, RewiredModule
from tests.lower.test_clusters import HALVES, KINDS, Reads, _other_masks, drawn, lower_with, masked, norms
from tests.lower.test_training import end_alike, in_training, runs_lowered, same, step

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def small() -> nn.Sequential:
    """Return a ResNet of two blocks, the second with a stride: ResNet-20 takes Triton's interpreter a minute."""
    body = [unit(3, 16), BasicBlock(16, 16, 1), BasicBlock(16, 32, 2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def tiled(build: Any) -> RewiredModule:
    return swnet.transform(seeded(build, 0), torch.zeros(1, 3, 16, 16), p=0.3, wiring="tile", density=0.3)


def masks(module: nn.Module) -> list[Any]:
    """Return the layers whose outputs read in clusters."""
    return [one for one in module.modules() if support_of(one) is not None]


def clusters(module: RewiredModule) -> int:
    """Return how many layers the program for train mode runs in clusters."""
    return runs_lowered(module).count("train_clusters")


def trains_alike(ours: nn.Module, model: nn.Module, maps: tuple[Tensor, ...], tolerance: float) -> None:
    """Compare all that a step makes: the result, gradients of parameters and maps, and buffers."""
    found = []
    for one in (ours.train(), model.train()):
        leaves = [value.clone().requires_grad_() for value in maps]
        one.zero_grad()
        made = one(*leaves)
        grads = torch.autograd.grad(
            sum(value.double().square().sum() for value in made), [*leaves, *(one.parameters())], allow_unused=True
        )
        found.append((made, grads, list(one.buffers())))
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


@settings(max_examples=15, deadline=None)
@given(st.data())
def check(backend: str, name: str, data: st.DataObject) -> None:
    layer, model, maps = drawn(name, data)
    rewired, lowered = lower_with(layer, model, maps, backend, training=True)
    if maps[0].dim() == 4 and data.draw(st.booleans()):
        maps = tuple(x.contiguous(memory_format=torch.channels_last) for x in maps)
    assert clusters(lowered) == (support_of(layer) is not None)  # None where all of it is live
    trains_alike(lowered, rewired, maps, 1e-10)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_layer(name: str, backend: str) -> None:
    check(backend, name)


@pytest.mark.parametrize("name", ["linear", "tokens", "pixels", "lines", "cubes", "3x3", "strided", "1x3"])
def test_every_kind_through_the_kernels(name: str, launched: list[str]) -> None:
    kind, size, options, around = KINDS[name]
    axis = -1 if kind is nn.Linear else 1
    layer = masked(kind, HALVES, 12, *size, **options)
    before = nn.Identity() if axis == -1 else nn.Sequential(norms(12, len(around) + 1), nn.ReLU())
    model = Reads(kind(12, 20, *size, **options), before, nn.Identity(), axis)
    maps = tuple(torch.randn(*around, 6) if axis == -1 else torch.randn(around[0], 6, *around[1:]) for _ in range(2))
    rewired, lowered = lower_with(layer, model, maps, "triton", training=True)
    trains_alike(lowered, rewired, maps, 1e-4)
    kernels = ("_block_sparse_conv2d", "_block_sparse_data_gradient", "_block_sparse_weight_gradient")
    assert [launched.count(kernel) for kernel in kernels] == [1, 1, 1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ten_steps_of_a_tiled_resnet_end_where_they_did(layout: torch.memory_format) -> None:
    model = tiled(resnet20).double().to(memory_format=layout)
    ours = in_training(model, X.double())
    assert clusters(ours) == len(masks(model)) == 20
    end_alike(ours, model)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_tiled_dense_net_trains_alike(layout: torch.memory_format) -> None:
    """Its layers have a norm and an activation in front, which are a gather of their own then."""
    model = tiled(densenet).double().to(memory_format=layout)
    ours = in_training(model, X.double())
    assert clusters(ours) == len(masks(model)) == 38
    assert runs_lowered(ours).count("train") == 39
    same(ours, model, X.double().contiguous(memory_format=layout))


def test_a_training_step_goes_through_the_kernels(launched: list[str]) -> None:
    model, x = tiled(small), X[:2, :, :7, :8]
    ours = in_training(model, x, "triton")
    launched.clear()
    same(ours, model, x, tolerance=2e-3)
    kernels = ("_block_sparse_conv2d", "_block_sparse_data_gradient", "_block_sparse_weight_gradient")
    assert [launched.count(kernel) for kernel in kernels] == [len(masks(model))] * 3 == [5] * 3


def test_masked_weights_have_gradients_of_zero() -> None:
    ours = in_training(tiled(resnet20), X)
    step(ours, X)
    for layer in masks(ours):
        dead = (layer.mask == 0).expand_as(layer.weight)
        assert not layer.weight.grad[dead].any()
        assert layer.weight.grad[~dead].all()


def test_no_more_is_kept_for_the_backward_pass_than_before() -> None:
    """Neither what clusters gather nor products of weights and masks; concats are not made."""
    model = tiled(resnet20)
    assert kept_bytes(in_training(model, X), X) < 0.9 * kept_bytes(model.train(), X)


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.bfloat16), ("triton", torch.float16)])
def test_under_autocast_gradients_are_as_good_as_the_models_own(backend: str, dtype: torch.dtype, launched: list[str]) -> None:
    model, x = tiled(small), X[:2, :, :8, :8]
    ours = in_training(model, x, backend)
    _, exact = step(copy.deepcopy(model).double().train(), x.double())
    off = []
    for one in (ours, model.train()):
        with torch.autocast("cpu", dtype):
            _, behind = step(one, x)
        off.append(torch.cat([(behind[name] - exact[name]).flatten() for name in exact if "gradient" in name]).norm())
    assert 0 < off[0] <= 2 * off[1]
    graph = ours._programs[TRAINING, ("cpu", dtype)].lowered.graph
    assert graph is not None
    made = [node.target for node in graph.nodes].count(run_clusters.train_clusters)
    assert made == 2  # the others read the images, too, which are of another type
    assert launched.count("_block_sparse_data_gradient") == (made if backend == "triton" else 0)


def test_compiles() -> None:
    model = tiled(resnet20).double()
    ours = in_training(model, X.double())
    seen: list[str] = []

    def noting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    torch.compile(ours, backend=noting, fullgraph=True)(X.double()).square().sum().backward()
    assert sum("trained_block_sparse_conv2d" in target for target in seen) == 20
    model.train()(X.double()).square().sum().backward()
    for mine, theirs in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)


# --- masks that change -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loads", [True, False])
def test_a_mask_that_changes_in_training_is_noticed(loads: bool) -> None:
    model = tiled(resnet20).double()
    ours = in_training(model, X.double())
    other = _other_masks(model)
    if loads:
        ours.load_state_dict(other)
    else:
        for name, mask in ours.named_buffers():
            if name.endswith("mask"):
                mask.copy_(other[name])
    model.load_state_dict(other)
    same(ours, model, X.double())
    assert clusters(ours) > 7
    assert all(program.stands(ours) for program in ours._programs.values())


def test_a_layer_that_is_watched_runs_as_it_is() -> None:
    """The gradient of its product, which is what growing links goes by, has values at masked places."""
    ours = in_training(tiled(resnet20), X)
    layer, seen = masks(ours)[3], []
    layer.watch = seen.append
    step(ours, X)
    (grad,) = seen
    assert grad[(layer.mask == 0).expand_as(grad)].all()
    layer.watch = None
    step(ours, X)
    assert len(seen) == 1
