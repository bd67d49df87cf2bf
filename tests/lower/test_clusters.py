"""Layers whose outputs read in clusters (wiring "tile"): lowered, they compute what masked layers do, over what is live alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import swnet
from benchmarks.models import resnet20, seeded
from swcompile.lower import run_clusters
from swcompile.lower.clusters import support_of
from swcompile.lower.lowering import Lowering
from swcompile.modules import MASKED, MaskedConv2d, MaskedLinear, RewiredModule
from swcompile.record import record
from swkernels import Cluster, Support
from tests.lower.test_lower import targets, used
from tests.zoo import densenet

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BY = {"torch": run_clusters.cluster_products, "triton": run_clusters.cluster_products_by_kernel}


def masked(kind: type[nn.Module], support: Support, inputs: int, *size: int, **options: Any) -> Any:
    """Return a layer of the masked kind that reads what a support says; what it does not read has weights."""
    layer: Any = MASKED[kind](inputs, support.outputs, *size, **options)
    shape = (*layer.weight.shape[:2], *(1 for _ in layer.weight.shape[2:]))
    layer.register_buffer("mask", support.mask(inputs).view(shape))
    return layer


HALVES = Support((Cluster(0, 8, ((0, 5), (9, 12))), Cluster(8, 20, ((3, 10),))))


class Reads(nn.Module):
    """A layer over two maps, one of them also read by itself, with norms and activations around it where asked for.

    Of the first map `skipped` channels are not read, and so many are.
    """

    def __init__(
        self, layer: nn.Module, before: nn.Module, behind: nn.Module, axis: int, skipped: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.layer, self.before, self.behind, self.axis, self.skipped = layer, before, behind, axis, skipped

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.split(a, self.skipped, self.axis)[1] if self.skipped[0] else a
        made = _through(self.behind, self.layer(_through(self.before, torch.cat([a, b], self.axis))))
        return torch.tanh(made), torch.relu(b)  # what leaves a model is left as it lies


def _through(module: nn.Module, x: Tensor) -> Tensor:
    """Call the parts of a sequence one by one: as a whole, in which no layer is, it would stay one call of the traced model."""
    for one in module if isinstance(module, nn.Sequential) else (module,):
        x = one(x)
    return x


def lower_with(
    layer: nn.Module, model: Reads, maps: tuple[Tensor, ...], backend: str, *, training: bool = False
) -> tuple[RewiredModule, RewiredModule]:
    """Return a model with a masked layer in place of its own, which transform alone may make; in eval mode, plain and lowered."""
    rewired = swnet.transform(model, maps, p=0.0).eval()
    rewired.set_submodule("layer", layer.eval())
    return rewired, rewired.with_lowering(Lowering(backend, record(rewired).example, training))


def norms(channels: int, rank: int) -> nn.Module:
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[max(rank - 3, 0)](channels)
    for value in (norm.running_mean, norm.weight, norm.bias):
        assert isinstance(value, Tensor)
        nn.init.normal_(value)
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


# --- what is found -----------------------------------------------------------------------------------------------------------


def test_a_mask_gives_back_the_support_that_it_was_made_from() -> None:
    assert support_of(masked(nn.Linear, HALVES, 12)) == HALVES
    assert support_of(masked(nn.Conv2d, HALVES, 12, 3, padding="same")) == HALVES


def _watched() -> nn.Module:
    layer = masked(nn.Conv2d, HALVES, 12, 3)
    layer.watch = torch.zeros(1)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(12, 20, 1),
        masked(nn.Linear, Support((Cluster(0, 20, ((0, 12),)),)), 12),  # nothing is masked
        masked(nn.Linear, Support(tuple(Cluster(k, k + 3, ((k, k + 2),)) for k in range(0, 18, 3))), 20),  # too narrow
        masked(nn.Conv2d, HALVES, 12, 3, padding=(1, 0)),
        masked(nn.Conv2d, HALVES, 12, (3, 1), padding="same"),
        masked(nn.Conv2d, HALVES, 12, 3, stride=(1, 2)),
        masked(nn.Conv2d, HALVES, 12, 3, dilation=2),
        masked(nn.Conv2d, HALVES, 12, 3, padding=1, padding_mode="circular"),
        masked(nn.Conv1d, HALVES, 12, 3),
        _watched(),
    ],
)
def test_other_layers_have_no_clusters(layer: nn.Module) -> None:
    assert support_of(layer) is None


def test_outputs_that_read_nothing_make_no_cluster() -> None:
    layer = masked(nn.Linear, HALVES, 12)
    layer.mask[3] = False
    assert support_of(layer) is None


# --- what comes out is what came out before ----------------------------------------------------------------------------------


KINDS: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "linear": (nn.Linear, (), {}, (3,)),
    "tokens": (nn.Linear, (), {"bias": False}, (2, 5)),
    "pixels": (nn.Conv2d, (1,), {}, (2, 5, 4)),
    "lines": (nn.Conv1d, (1,), {}, (2, 7)),
    "cubes": (nn.Conv3d, (1,), {"bias": False}, (2, 3, 2, 4)),
    "3x3": (nn.Conv2d, (3,), {"padding": 1, "bias": False}, (2, 5, 4)),
    "strided": (nn.Conv2d, (3,), {"padding": "valid", "stride": 2}, (2, 7, 6)),
    "same": (nn.Conv2d, (5,), {"padding": "same"}, (1, 5, 4)),
    "1x3": (nn.Conv2d, ((1, 3),), {"padding": 0}, (1, 5, 4)),
}


def drawn(name: str, data: st.DataObject) -> tuple[Any, Reads, tuple[Tensor, ...]]:
    """Draw a masked layer of a kind, a model for it, and two maps that this reads."""
    kind, size, options, around = KINDS[name]
    inputs = data.draw(st.integers(2, 40))
    ends = sorted(data.draw(st.sets(st.integers(4, 40), min_size=1, max_size=4)))
    clusters, start = [], 0
    for stop in ends:
        live = data.draw(st.lists(st.booleans(), min_size=inputs, max_size=inputs))
        reads = tuple((k, k + 1) for k, on in enumerate(live) if on) or ((0, 1),)
        clusters.append(Cluster(start, stop, reads))
        start = stop
    layer = masked(kind, Support(tuple(clusters)), inputs, *size, **options)
    axis, rank = (-1, len(around) + 1) if kind is nn.Linear else (1, len(around) + 1)
    before: list[nn.Module] = [norms(inputs, rank)] if data.draw(st.booleans()) and name != "tokens" else []
    before += [nn.SiLU()] if data.draw(st.booleans()) else []
    behind: list[nn.Module] = [norms(start, rank)] if data.draw(st.booleans()) and name != "tokens" else []
    behind += [nn.ReLU()] if data.draw(st.booleans()) else []
    plain = kind(inputs, start, *size, **options)
    cut, skipped = data.draw(st.integers(1, inputs - 1)), data.draw(st.integers(0, 3))
    model = Reads(plain, nn.Sequential(*before), nn.Sequential(*behind), axis, (skipped, cut)).double().eval()
    shapes = [(*around, width) if axis == -1 else (around[0], width, *around[1:]) for width in (skipped + cut, inputs - cut)]
    maps = tuple(torch.randn(*shape).double() for shape in shapes)
    return layer.double(), model, maps


@settings(max_examples=8, deadline=None)
@given(st.data())
def check(backend: str, name: str, data: st.DataObject) -> None:
    layer, model, maps = drawn(name, data)
    rewired, lowered = lower_with(layer, model, maps, backend)
    with torch.no_grad():
        if support_of(layer) is not None:  # None where all of it is live
            assert targets(lowered).count(BY[backend]) == 1
            assert lowered._lowered_run(maps, {}) is not None
        torch.testing.assert_close(lowered(*maps), rewired(*maps), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_layer(name: str, backend: str) -> None:
    check(backend, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["tokens", "pixels", "3x3", "strided", "1x3"])
def test_every_kind_through_the_kernel(name: str, dtype: torch.dtype, launched: list[str]) -> None:
    kind, size, options, around = KINDS[name]
    axis = -1 if kind is nn.Linear else 1
    wrap = nn.ReLU() if axis == -1 else nn.Sequential(norms(20, len(around) + 1), nn.ReLU())
    layer = masked(kind, HALVES, 12, *size, **options)
    model = Reads(kind(12, 20, *size, **options), nn.Identity(), wrap, axis).eval()
    maps = tuple(torch.randn(*around, 6) if axis == -1 else torch.randn(around[0], 6, *around[1:]) for _ in range(2))
    rewired, lowered = lower_with(layer, model, maps, "triton")
    with torch.no_grad():
        found = lowered.to(dtype)(*(x.to(dtype) for x in maps))
        expected = rewired.double()(*(x.double() for x in maps))
    assert launched.count("_block_sparse_conv2d") == 1
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(tuple(x.double() for x in found), expected, rtol=tolerance, atol=tolerance)


def test_a_norm_in_front_belongs_to_the_layers_site() -> None:
    model = Reads(nn.Conv2d(12, 20, 3), nn.Sequential(norms(12, 4), nn.ReLU()), nn.Identity(), 1).eval()
    maps = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 5, 4)
    _, lowered = lower_with(masked(nn.Conv2d, HALVES, 12, 3), model, maps, "torch")
    (choices,) = swnet.ledger(lowered).lowered
    assert len(choices.gathers) == 1
    assert {type(lowered.get_submodule(path)) for path in lowered.programs[0].bypassed} == {MaskedConv2d, nn.BatchNorm2d, nn.ReLU}


def tiled(model: nn.Module) -> RewiredModule:
    return swnet.transform(used(model, X), X, p=0.3, wiring="tile", density=0.3).eval()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("build", [resnet20, densenet])
def test_whole_networks(build: Any, backend: str, launched: list[str]) -> None:
    rewired = tiled(seeded(build, 0))
    layers = [module for module in rewired.modules() if support_of(module) is not None]
    lowered = swnet.lower(rewired, backend=backend)
    assert targets(lowered).count(BY[backend]) == len(layers) > 7
    assert not any(isinstance(lowered.get_submodule(path), (MaskedConv2d, MaskedLinear)) for path in _called(lowered))
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), rewired(X), rtol=1e-4, atol=1e-5)
    assert launched.count("_block_sparse_conv2d") == (len(layers) if backend == "triton" else 0)
    assert lowered.state_dict().keys() == rewired.state_dict().keys()


def _called(lowered: RewiredModule) -> list[str]:
    graph = lowered.programs[0].graph
    assert graph is not None
    return [str(node.target) for node in graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.bfloat16), ("triton", torch.float16)])
def test_under_autocast(backend: str, dtype: torch.dtype, launched: list[str]) -> None:
    rewired = tiled(seeded(resnet20, 0))
    lowered = swnet.lower(rewired, backend=backend)
    with torch.no_grad():
        with torch.autocast("cpu", dtype):
            found, plain = lowered(X), rewired(X)
        expected = rewired.double()(X.double())
    graph = lowered.programs[-1].graph
    assert graph is not None
    made = [node.target for node in graph.nodes].count(BY[backend])
    assert made == 18  # two read the images, too, which are of another type
    assert launched.count("_block_sparse_conv2d") == (made if backend == "triton" else 0)
    assert found.dtype == plain.dtype == dtype
    assert (found - expected).abs().max() <= 2 * (plain - expected).abs().max()


def test_kernels_own_masks_are_left_to_the_dense_layer() -> None:
    rewired = swnet.transform(used(seeded(resnet20, 0), X), X, p=0.3, wiring="kernel").eval()
    assert run_clusters.cluster_products not in targets(swnet.lower(rewired, backend="torch"))


# --- masks that change -------------------------------------------------------------------------------------------------------


def _other_masks(module: nn.Module) -> dict[str, Tensor]:
    """Return a state dict whose masks let other inputs through."""
    return {name: value.roll(3, 1) if name.endswith("mask") else value for name, value in module.state_dict().items()}


def test_a_mask_written_to_is_noticed() -> None:
    rewired = tiled(seeded(resnet20, 0))
    lowered = swnet.lower(rewired, backend="torch")
    other = _other_masks(rewired)
    for name, mask in lowered.named_buffers():
        if name.endswith("mask"):
            mask.copy_(other[name])
    assert run_clusters.cluster_products not in {node.target for node in lowered.graph.nodes}  # what export would take
    rewired.load_state_dict(other)
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), rewired(X), rtol=1e-4, atol=1e-5)
    assert runs_clusters(lowered)


def runs_clusters(lowered: RewiredModule) -> bool:
    """Say whether a call runs a program, made for the masks of now."""
    with torch.no_grad():
        return lowered._lowered_run((X,), {}) is not None and targets(lowered).count(run_clusters.cluster_products) > 7


def test_other_values_than_live_and_not_are_no_mask() -> None:
    layer = masked(nn.Linear, HALVES, 12)
    layer.mask = layer.mask * 0.5
    assert support_of(layer) is None


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_masks_that_are_loaded_are_lowered_anew(compiled: bool, assign: bool) -> None:
    rewired = tiled(seeded(resnet20, 0))
    lowered: Any = swnet.lower(rewired, backend="torch")
    call = torch.compile(lowered, backend="eager", fullgraph=True) if compiled else lowered
    with torch.no_grad():
        torch.testing.assert_close(call(X), rewired(X), rtol=1e-4, atol=1e-5)
        lowered.load_state_dict(_other_masks(rewired), assign=assign)
        rewired.load_state_dict(_other_masks(rewired))
        torch.testing.assert_close(call(X), rewired(X), rtol=1e-4, atol=1e-5)
    assert targets(lowered).count(run_clusters.cluster_products) > 7
    assert all(program.stands(lowered) for program in lowered._programs.values())


def test_a_module_that_moves_takes_its_masks_along(launched: list[str]) -> None:
    lowered = swnet.lower(tiled(seeded(resnet20, 0)), backend="triton").to("meta")
    assert BY["triton"] not in targets(lowered)
    lowered.to_empty(device="cpu").load_state_dict(tiled(seeded(resnet20, 0)).state_dict())
    with torch.no_grad():
        lowered(X)
    assert "_block_sparse_conv2d" in launched


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_masks_loaded_through_a_module_around_it_are_lowered_anew(compiled: bool, assign: bool) -> None:
    rewired = tiled(seeded(resnet20, 0))
    lowered = swnet.lower(rewired, backend="torch")
    around: Any = nn.Sequential(pickle.loads(pickle.dumps(copy.deepcopy(lowered))))
    call = torch.compile(around, backend="eager", fullgraph=True) if compiled else around
    with torch.no_grad():
        torch.testing.assert_close(call(X), rewired(X), rtol=1e-4, atol=1e-5)
        around.load_state_dict({f"0.{name}": value for name, value in _other_masks(rewired).items()}, assign=assign)
        rewired.load_state_dict(_other_masks(rewired))
        torch.testing.assert_close(call(X), rewired(X), rtol=1e-4, atol=1e-5)
    assert runs_clusters(around[0])


def test_what_moves_nowhere_is_not_lowered_anew() -> None:
    lowered = swnet.lower(tiled(seeded(resnet20, 0)), backend="torch")
    before = lowered._programs
    assert lowered.to("cpu")._programs is before


# --- what it costs -----------------------------------------------------------------------------------------------------------


def test_clusters_are_chosen_where_they_save_time() -> None:
    x = torch.randn(8, 3, 56, 56)
    model = nn.Sequential(*(layer for width in (3, *[128] * 5) for layer in (nn.Conv2d(width, 128, 3, padding=1), nn.ReLU())))
    rewired = swnet.transform(model, x, p=0.3, wiring="tile", density=0.25).eval()
    lowered = swnet.lower(rewired, backend="auto")
    (choices,) = swnet.ledger(lowered).lowered
    assert [choice.form for choice in choices.gathers] == ["torch"] * 4
    for choice in choices.gathers:
        assert choice.seconds is not None
        assert choice.plain_seconds is not None
        assert 0.1 < choice.seconds / choice.plain_seconds < 0.6
