"""swnet.lower: the same model, read from slabs. In float64 to rounding; through the kernels in the interpreter in float32."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import swnet
from benchmarks.models import densenet, resnet20, seeded, unit
from swcompile.errors import NothingToDoError, SwnetError
from swcompile.lower import run
from swcompile.modules import RewiredModule, resample
from tests.test_random_models import QUICK, Random, _input, random_models
from tests.zoo import ZOO, conv3x3
from tests.zoo import densenet as bottlenecked

CATS = (torch.cat, torch.concat, torch.concatenate)


def used(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a model in eval mode whose norms have seen data, so that no statistic is at its default."""
    model.train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(2):
            model(x + torch.randn(x.shape, generator=generator, dtype=x.dtype))
    return model.eval()


def targets(lowered: RewiredModule) -> list[Any]:
    graph = lowered.programs[0].graph
    assert graph is not None
    return [node.target for node in graph.nodes]


def puts(lowered: RewiredModule) -> int:
    """Return how many maps are put into slabs by the kernel."""
    return sum(target in (run.put_by_kernel, run.put_made_by_kernel) for target in targets(lowered))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def dense() -> nn.Module:
    return used(seeded(densenet, 0, 16, 12), X)


# --- what comes out is what came out before ----------------------------------------------------------------------------------


LOWERED = {"densenet", "googlenet", "shufflenet", "squeezenet", "unet_transposed", "unet_upsample"}
"""The architectures of the zoo in which something is lowered."""


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_computes_the_same(name: str, backend: str) -> None:
    build, example = ZOO[name]
    x = example()
    is_float = x.is_floating_point()
    x = x.double() if is_float else x
    model = seeded(build, 0).double()
    model = used(model, x) if is_float else model.eval()
    if name not in LOWERED:
        with pytest.raises(NothingToDoError):
            swnet.lower(model, x, backend=backend)
        return
    if (name, backend) == ("shufflenet", "triton"):  # its second unit reads what was shuffled by views, of whatever size
        with pytest.raises(SwnetError, match="the concat cat_1 stays, as no layer reads it that takes this number of channels"):
            swnet.lower(model, x, backend=backend)
        return
    with torch.no_grad():
        torch.testing.assert_close(swnet.lower(model, x, backend=backend)(x), model(x), rtol=1e-10, atol=1e-10)


def test_random_models_compute_the_same() -> None:
    lowered: list[str] = []

    @settings(QUICK, max_examples=40)
    @given(model=random_models(), backend=st.sampled_from(["torch", "triton"]))
    def check(model: Random, backend: str) -> None:
        x, other = _input(model), _input(model, batch=2)
        try:
            rewired = swnet.transform(used(model, x), x, p=0.5)
            made = swnet.lower(rewired, backend=backend)
        except NothingToDoError:
            return
        lowered.append(backend)
        with torch.no_grad():
            torch.testing.assert_close(made(other), rewired.eval()(other), rtol=1e-10, atol=1e-10)

    check()
    assert lowered.count("torch") > 3
    assert lowered.count("triton") > 8


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_rewired_and_pruned_dense_nets(density: float, launched: list[str]) -> None:
    rewired = swnet.transform(used(bottlenecked(), X), X, p=0.3, density=density).eval()
    lowered = swnet.lower(rewired, backend="triton")
    assert targets(lowered).count(run.product_by_kernel) == 8 + 1
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), rewired(X), rtol=1e-4, atol=1e-5)
    assert launched.count("_gather_mm") == 8 + 1


# --- through the kernels -----------------------------------------------------------------------------------------------------


def test_a_dense_net_of_three_blocks_runs_through_the_kernels(launched: list[str]) -> None:
    model, x = dense().to(memory_format=torch.channels_last), X.contiguous(memory_format=torch.channels_last)
    lowered = swnet.lower(model, X, backend="triton")
    with torch.no_grad():
        torch.testing.assert_close(lowered(x), model(x), rtol=1e-4, atol=1e-5)
    assert not set(CATS) & set(targets(lowered))
    layers = [module for module in model.modules() if type(module).__name__ == "DenseLayer"]
    assert len(layers) == 12
    assert launched.count("_gather_mm") == 2  # the transitions' 1x1 convolutions
    assert targets(lowered).count(run.read_map_by_kernel) == 10  # each later layer of a block, and the last norm
    assert launched.count("_gather") == 10 + puts(lowered)  # no map was copied by torch


def _chain() -> nn.Module:
    """Return a chain of convolutions, norms and activations over three sizes."""
    return nn.Sequential(*(unit(*size) for size in ((3, 16), (16, 16), (16, 16, 3, 2), (16, 16), (16, 16, 3, 2), (16, 16))))


@pytest.mark.parametrize("kind", ["max", "avg", "stride"])
def test_a_put_norms_activates_and_pools_on_the_way(kind: str, launched: list[str]) -> None:
    model = swnet.transform(used(_chain(), X), X, p=0.3, wiring="tile", resample=kind)
    rewired = model.eval().to(memory_format=torch.channels_last)
    lowered = swnet.lower(rewired, backend="triton")
    assert targets(lowered).count(run.put_made_by_kernel) > 5
    assert resample not in targets(lowered)
    for side in (8, 9):  # of 9 pixels, 5 and 3 do not divide
        x = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
        launched.clear()
        with torch.no_grad():
            torch.testing.assert_close(lowered(x), rewired(x), rtol=1e-4, atol=1e-5)
        assert launched.count("_gather") == puts(lowered)
    with torch.no_grad():
        torch.testing.assert_close(lowered.double()(X.double()), rewired.double()(X.double()), rtol=1e-10, atol=1e-10)


def test_a_hook_on_what_a_put_does_runs(launched: list[str]) -> None:
    rewired = swnet.transform(used(_chain(), X), X, p=0.3, wiring="tile").eval()
    lowered = swnet.lower(rewired, backend="triton")
    seen: list[nn.Module] = []
    graph = lowered.programs[0].graph
    assert graph is not None
    left = {str(node.target) for node in graph.nodes}
    steps = {str(node.target) for node in lowered.graph.nodes if node.op == "call_module"} - left
    norm = next(path for path in sorted(steps) if isinstance(lowered.get_submodule(path), nn.BatchNorm2d))
    lowered.get_submodule(norm).register_forward_hook(lambda module, *_: seen.append(module))
    with torch.no_grad():
        lowered(X)
    assert seen == [lowered.get_submodule(norm)]
    assert launched == []


def test_bottlenecks_run_through_one_kernel_each(launched: list[str]) -> None:
    model = used(bottlenecked(), X)
    lowered = swnet.lower(model, X, backend="triton")
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), model(X), rtol=1e-4, atol=1e-5)
    assert launched.count("_gather_mm") == 8 + 1  # the layers of both blocks and the transition
    assert not set(CATS) & set(targets(lowered))


@pytest.mark.parametrize("options", [{"p": 0.3}, {"p": 0.3, "params": 100_000}])
def test_every_gather_of_a_rewired_resnet_runs_through_the_kernels(options: dict[str, Any], launched: list[str]) -> None:
    model = swnet.transform(seeded(resnet20, 0), X, **options)
    rewired = used(model, X.repeat(1, 1, 2, 2))
    gathers = [node for node in model.eval().graph.nodes if node.target in CATS]
    lowered = swnet.lower(rewired, backend="triton")
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), rewired(X), rtol=1e-4, atol=1e-5)
    assert len(gathers) > 15
    assert not set(CATS) & set(targets(lowered))
    reads = targets(lowered).count(run.read_map_by_kernel)
    assert reads == len(gathers)
    assert reads <= launched.count("_gather") <= reads + puts(lowered)


def test_half_precision_through_the_kernels() -> None:
    model = dense()
    lowered = swnet.lower(model, X, backend="triton").half()
    with torch.no_grad():
        expected = model.double()(X.double())
        found = lowered(X.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)


# --- gathers of other kinds --------------------------------------------------------------------------------------------------


class Read(nn.Module):
    """Two maps, and a tail that reads their concat."""

    def __init__(self, tail: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), tail
        self.norm, self.one, self.three = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1), conv3x3(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.tail(self, torch.cat([a, self.b(a)], 1)).mean((2, 3))


TAILS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "conv": (lambda m, x: m.one(x), 1),
    "relu, conv": (lambda m, x: m.one(functional.relu(x)), 1),
    "relu read twice": (lambda m, x: m.one(y := functional.relu(x)) + y[:, :4], 1),
    "norm, conv": (lambda m, x: m.one(m.norm(x)), 1),
    "norm, silu, conv": (lambda m, x: m.one(functional.silu(m.norm(x))), 1),
    "norm, tanh, conv": (lambda m, x: m.one(torch.tanh(m.norm(x))), 1),
    "norm, relu, 3x3": (lambda m, x: m.three(m.norm(x).relu()), 1),
    "norm read twice": (lambda m, x: m.one(y := m.norm(x)) + y[:, :4], 1),
    "two readers": (lambda m, x: m.one(m.norm(x)) + m.three(x), 2),
    "nothing": (lambda m, x: m.three(x), 1),
}


@pytest.mark.parametrize("name", TAILS)
def test_what_may_follow_a_gather(name: str) -> None:
    tail, sites = TAILS[name]
    model = used(Read(tail).double(), X.double())
    found = _sites(model)
    assert found == sites
    if sites:
        with torch.no_grad():
            torch.testing.assert_close(
                swnet.lower(model, X.double(), backend="torch")(X.double()), model(X.double()), rtol=1e-10, atol=1e-10
            )


def _sites(model: nn.Module) -> int:
    try:
        return sum(target in (run.product, run.read_map) for target in targets(swnet.lower(model, X.double(), backend="torch")))
    except NothingToDoError:
        return 0


def test_linear_layers_over_a_concat_of_features(launched: list[str]) -> None:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.BatchNorm1d(16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return functional.gelu(self.c(functional.relu(self.norm(torch.cat([a, self.b(a)], -1)))))

    x = torch.randn(7, 6)
    model = used(Mlp(), x)
    for backend in ("torch", "triton"):
        lowered = swnet.lower(model, x, backend=backend)
        with torch.no_grad():
            torch.testing.assert_close(lowered(x), model(x), rtol=1e-5, atol=1e-6)
    assert launched.count("_gather_mm") == 1


def _conv(m: Any, x: Tensor) -> Tensor:
    return m.one(functional.relu(m.norm(x)))


def _written_before(m: Any, a: Tensor, b: Tensor) -> Tensor:
    view = a[:, :2]
    view.add_(5.0)
    return _conv(m, torch.cat([a, b], 1)) + view.sum() + a.sum()


def _written_after(m: Any, a: Tensor, b: Tensor) -> Tensor:
    whole = torch.cat([a, b], 1)
    a[:, 0] = 0
    return _conv(m, whole) + a[:, :4]


def _of_two_types(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return m.one(m.norm(torch.cat([a.bfloat16(), 1000 * b], 1)))


def _viewed(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return functional.relu(m.norm(torch.cat([a, b], 1))).view(len(a), -1)


def _viewed_further_on(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(_conv(m, torch.cat([a, b], 1))).view(len(a), -1)


def _chunks(m: Any, a: Tensor, b: Tensor) -> Tensor:
    whole = torch.cat([a, b], 1)
    (one, two, three), four = torch.chunk(whole, 3, dim=1), whole.split(5, 1)[-1]
    return _conv(m, torch.cat([two[:, 1:], three, four, one, a[:, -4:-1]], 1)[:, :16])


def _chunks_unlisted(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return _conv(m, torch.cat(torch.chunk(torch.cat([a, b], 1), 2, 1), 1))


def _from_nothing(m: Any, a: Tensor, b: Tensor) -> Tensor:
    grown = a.new_empty(0)
    for part in (a, b):
        grown = torch.cat([grown, part], 1)
    return _conv(m, grown)


def _read_by_a_function(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return functional.conv2d(torch.cat([a, b], 1), m.one.weight, stride=2)


def _with_an_empty_part(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return _conv(m, torch.cat([a, a[:, :0], b], 1))


def _returned(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return functional.relu(m.norm(torch.cat([a, b], 1)))


def _cropped(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return _conv(m, torch.cat([a[:, :, 1:-1, 1:-1], b[:, :, 1:-1, 1:-1]], 1)[:, :, ::2])


def _six_crops(m: Any, a: Tensor, b: Tensor) -> Tensor:
    crops = [x[:, :, 1:-1, 1:-1].relu() for x in (*a.split(4, 1), *b.split(2, 1))]
    return _conv(m, torch.cat([crop[:, :, ::2, ::2] for crop in crops], 1))


AWKWARD = [
    *(_written_before, _written_after, _of_two_types, _viewed, _viewed_further_on, _chunks, _chunks_unlisted, _from_nothing),
    *(_read_by_a_function, _with_an_empty_part, _returned, _cropped, _six_crops),
]


class Awkward(nn.Module):
    def __init__(self, tail: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1), tail
        self.norm, self.one, self.more = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.a(x), self.b(x)
        sure = self.more(functional.relu(torch.cat([a, b], 1))).mean()  # so that there is always something to lower
        made = self.tail(self, a, b)
        return made if self.tail is _returned else 2 * made, sure


class Beside(nn.Module):
    """An input beside a map that is made of another one; read by a function, of maps without a batch too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.one = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.one(functional.relu(self.norm(torch.cat([z, self.conv(x)], 1)))) + 0


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_inputs_of_other_types_are_other_calls(backend: str) -> None:
    model, x = used_beside(), torch.randn(2, 3, 4, 4)
    z = torch.randn(2, 4, 4, 4)
    lowered = swnet.lower(model, (x, z), backend=backend)
    with torch.no_grad():
        for other in (z, z > 0, z.half(), z.bfloat16(), (100 * z).to(torch.uint8), z.double().float()):
            torch.testing.assert_close(lowered(x, other), model(x, other), rtol=1e-4, atol=1e-5)
        compiled = torch.compile(lowered, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, z > 0), model(x, z > 0), rtol=1e-4, atol=1e-5)


def used_beside() -> nn.Module:
    model = Beside()
    for value in (model.norm.running_mean, model.norm.bias):
        assert value is not None
        nn.init.normal_(value)
    return model.eval()


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(5, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        return functional.conv2d(torch.cat([a, a.tanh()], 1), self.weight) + 0


def test_a_function_without_a_batch_reads_rows_not_channels() -> None:
    with pytest.raises(NothingToDoError):
        swnet.lower(Unbatched().eval(), torch.randn(3, 8, 8), backend="torch")


def test_maps_of_another_size_inside_a_compiler() -> None:
    rewired = swnet.transform(used(_chain(), X), X, p=0.3, wiring="tile").eval()
    compiled = torch.compile(swnet.lower(rewired, backend="triton"), backend="eager", fullgraph=True)
    with torch.no_grad():
        for side in (8, 12, 9):
            x = torch.randn(2, 3, side, side)
            torch.testing.assert_close(compiled(x), rewired(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("tail", AWKWARD)
def test_awkward_concats_are_read_rightly_or_left_alone(
    tail: Callable[..., Tensor], backend: str, layout: torch.memory_format
) -> None:
    x = X.contiguous(memory_format=layout)
    model = used(Awkward(tail), X).to(memory_format=layout)
    refused = {
        _chunks_unlisted: "not listed",
        _written_before: "writes",
        _written_after: "writes",
        _of_two_types: "several types",
        _cropped: "no layer reads it",
    }
    if tail in (_written_before, _written_after) or (backend == "triton" and tail in refused):
        with pytest.raises(SwnetError, match=refused[tail]):
            swnet.lower(model, X, backend=backend)
        return
    lowered = swnet.lower(model, X, backend=backend)
    assert targets(lowered).count("contiguous") == (tail in (_viewed, _viewed_further_on))
    assert bool(set(CATS) & set(targets(lowered))) == (tail in (_of_two_types, _cropped, _chunks_unlisted))
    if tail in (_viewed, _viewed_further_on) and layout is torch.channels_last:
        return  # torch refuses this one itself
    with torch.no_grad():
        found, expected = lowered(x), model(x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert one.stride() == other.stride()


def test_concats_of_numbers_are_left_alone() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(8, 5)

        def forward(self, places: Tensor) -> Tensor:
            x = self.embedding(torch.cat([places, places + 1], 1))
            return self.b(torch.cat([self.a(x), x], -1)).mean(1)

    model, places = Embedded().eval(), torch.randint(0, 8, (3, 5))
    lowered = swnet.lower(model, places, backend="triton")
    assert targets(lowered).count(torch.cat) == 1
    with torch.no_grad():
        torch.testing.assert_close(lowered(places), model(places), rtol=1e-4, atol=1e-5)


def test_an_input_inside_a_list_keeps_its_gradient() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.one = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

        def forward(self, inputs: list[Tensor]) -> Tensor:
            return self.one(functional.relu(self.norm(torch.cat([inputs[0], self.a(inputs[0])], 1)))).mean((2, 3))

    lowered = swnet.lower(Nested().eval(), ([X],), backend="triton").requires_grad_(False)
    x = X.clone().requires_grad_()
    lowered([x]).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_without_a_batch_the_second_axis_is_no_channel() -> None:
    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(functional.relu(torch.cat([x, 2 * x], 1))).mean()

    with pytest.raises(NothingToDoError):
        swnet.lower(Unbatched(), torch.randn(8, 4, 4))


def test_a_bare_concat_is_no_view_of_slots_that_are_used_again() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.e = (nn.Conv2d(3, 8, 1) for _ in range(3))
            self.three, self.one = conv3x3(16, 4), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            early = torch.cat([a, self.b(x)], 1)
            other = self.one(functional.relu(torch.cat([a, self.e(x)], 1)))  # e takes the slot of b
            return (self.three(early) + other).mean((2, 3))

    model = Late().eval()
    with torch.no_grad():
        torch.testing.assert_close(swnet.lower(model, X, backend="torch")(X), model(X), rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    """Concats of as many things as the input is large: a class token in front of others, and maps side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 2, stride=2), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.head, self.one = nn.LayerNorm(8), nn.Linear(8, 5), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        read = self.patch(x)
        beside = functional.relu(self.one(torch.cat([read, torch.cat([read[..., :2], read[..., 2:]], -1)], 1)))
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), read.flatten(2).transpose(1, 2)], 1)
        return self.head(self.norm(tokens)).sum(1) + beside.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_places_of_a_sequence_are_no_channels(backend: str) -> None:
    model = Tokens().eval()
    lowered = swnet.lower(model, X, backend=backend)
    with torch.no_grad():
        for side in (8, 6, 12):
            x = torch.randn(2, 3, side, side)
            torch.testing.assert_close(lowered(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_calls_of_other_kinds_run_as_they_are() -> None:
    class Third(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.one = nn.Conv2d(3, 5, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(functional.relu(torch.cat([x, self.a(x)], -3))).mean((-2, -1))

    model = Third().eval()
    lowered = swnet.lower(model, X, backend="torch")
    with torch.no_grad():
        for given in (X, X[0]):
            torch.testing.assert_close(lowered(given), model(given), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(lowered(x=given), model(given), rtol=1e-4, atol=1e-5)
        traced = torch.jit.trace(lowered, X)
        torch.testing.assert_close(traced(X), model(X), rtol=1e-4, atol=1e-5)


def test_what_counts_a_call_does_not_see_it_being_lowered() -> None:
    counts = []
    lowered = swnet.lower(dense(), X, backend="auto")
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            lowered(torch.randn(9, 3, 8, 8))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_inputs_themselves_are_put_into_a_slab() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return _conv_of_two(self, x, y).mean((2, 3))

    def _conv_of_two(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return m.conv(functional.relu(m.norm(torch.cat([x, y], 1))))

    model, inputs = Two().eval(), (torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5))
    for backend in ("torch", "triton"):
        with torch.no_grad():
            torch.testing.assert_close(swnet.lower(model, inputs, backend=backend)(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


class Optional(nn.Module):
    """An argument that may be left out, which is asked for by `is None`, and one with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(11), nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 2.0) -> Tensor:
        read = self.one(functional.relu(self.norm(torch.cat([self.a(x), x], 1)))) * scale
        return read.mean((2, 3)) if y is None else read.mean((2, 3)) + y


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_arguments_that_may_be_left_out(backend: str) -> None:
    model, y = used(Optional(), X), torch.randn(2, 4)
    for example, calls in ((X, [(X,), (X, None), (X, None, 3.0)]), ((X, y), [(X, y), (X, y, 3.0)])):
        lowered = swnet.lower(model, example, backend=backend)
        assert backend == "auto" or run.product in targets(lowered)
        with torch.no_grad():
            for call in calls:
                torch.testing.assert_close(lowered(*call), model(*call), rtol=1e-4, atol=1e-5)
        for wrong in ((X, y, 3.0, 4.0), ()):
            with torch.no_grad(), pytest.raises(TypeError):
                lowered(*wrong)


def test_a_module_with_a_hook_runs_and_its_concat_is_gathered() -> None:
    model = dense()
    seen: list[str] = []
    model[2].norm.register_forward_hook(lambda *_: seen.append("norm"))
    lowered = swnet.lower(model, X, backend="torch")
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), model(X), rtol=1e-4, atol=1e-5)
    assert seen
    assert "2.norm" in targets(lowered)
    assert targets(lowered).count(run.read_map) == 10


# --- it stays the model it was -----------------------------------------------------------------------------------------------


def test_the_argument_the_state_and_training_are_as_they_were() -> None:
    model = dense()
    before = copy.deepcopy(model.state_dict())
    lowered = swnet.lower(model, X, backend="torch")
    assert list(lowered.state_dict()) == list(before)
    assert [name for name, _ in lowered.named_parameters()] == [name for name, _ in model.named_parameters()]
    for module in (model.train(), lowered.train()):
        module(X).sum().backward()
    assert torch.equal(lowered(X), model(X))
    for one, other in zip(lowered.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    torch.testing.assert_close(lowered.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not torch.equal(model.state_dict()["1.norm.running_mean"], before["1.norm.running_mean"])


def test_where_a_gradient_is_asked_for_the_plain_graph_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = swnet.lower(dense(), X, backend="torch")
    puts = _counted(monkeypatch)
    lowered(X).sum().backward()
    assert lowered.get_parameter("0.weight").grad is not None
    assert next(puts) == 0
    with torch.no_grad():
        lowered(X)
    assert next(puts) > 0
    lowered.requires_grad_(False)
    lowered(X)
    assert next(puts) > 0
    assert lowered(X.clone().requires_grad_()).requires_grad
    assert next(puts) == 0


def _counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Yield how many slabs were allocated since the last time it was asked."""
    made: list[int] = []
    empty = Tensor.new_empty

    def counting(like: Tensor, *size: Any, **options: Any) -> Tensor:
        made.append(1)
        return empty(like, *size, **options)

    monkeypatch.setattr(Tensor, "new_empty", counting)
    while True:
        count = len(made)
        made.clear()
        yield count


def test_loaded_weights_count() -> None:
    lowered, other = swnet.lower(dense(), X, backend="torch"), used(seeded(densenet, 5, 16, 12), X)
    lowered.load_state_dict(other.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), other(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 13, 10)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_other_sizes_and_layouts(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    model, x = dense(), torch.randn(shape).contiguous(memory_format=layout)
    with torch.no_grad():
        torch.testing.assert_close(
            swnet.lower(model, X, backend="torch").to(memory_format=layout)(x), model(x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("remade", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_lowered_too(remade: Callable[[nn.Module], nn.Module]) -> None:
    lowered = swnet.lower(dense(), X, backend="torch")
    again = remade(lowered)
    assert targets(again) == targets(lowered)
    with torch.no_grad():
        assert torch.equal(again(X), lowered(X))
    assert swnet.ledger(again).after == swnet.ledger(lowered).after


def test_modules_that_change_afterwards_are_heard() -> None:
    lowered = swnet.lower(dense(), X, backend="torch")
    heard: list[str] = []
    norm = lowered.get_submodule("2.norm")
    handle = norm.register_forward_hook(lambda *_: heard.append("norm"))
    with torch.no_grad():
        lowered(X)
        assert heard == ["norm"]
        handle.remove()
        before = norm.running_mean.clone()
        lowered(X)
        assert heard == ["norm"]
        assert torch.equal(norm.running_mean, before)
        norm.train()
        lowered(X)
        assert not torch.equal(norm.running_mean, before)


def test_a_forward_of_the_users_own_is_run() -> None:
    model = dense()
    model[2].norm.forward = lambda x: 0 * x + 1
    with torch.no_grad():
        torch.testing.assert_close(swnet.lower(model, X, backend="torch")(X), model(X), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's advice on vmap
def test_many_models_at_once() -> None:
    """An ensemble, as torch.func makes one, maps over the inputs."""
    lowered, xs = swnet.lower(dense(), X, backend="torch"), torch.randn(3, 2, 3, 8, 8)
    with torch.no_grad():
        expected = torch.stack([lowered(x) for x in xs])
        torch.testing.assert_close(torch.func.vmap(lowered)(xs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiles_without_a_break(backend: str) -> None:
    lowered = swnet.lower(dense(), X, backend=backend)
    compiled = torch.compile(lowered, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), lowered(X), rtol=1e-5, atol=1e-6)


def test_exports_in_plain_torch_operations() -> None:
    lowered = swnet.lower(dense(), X, backend="torch")
    with torch.no_grad():
        exported = torch.export.export(lowered, (X,), dynamic_shapes={"input": {0: torch.export.Dim("batch", min=1)}})
        other = torch.randn(5, 3, 8, 8)
        torch.testing.assert_close(exported.module()(other), lowered(other), rtol=1e-5, atol=1e-6)
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any("copy_" in target for target in called)
    assert not [target for target in called if "swkernels" in target or "cat" in target]


def test_gives_the_same_bits_twice() -> None:
    for backend in ("torch", "triton"):
        lowered = swnet.lower(dense(), X, backend=backend)
        with torch.no_grad():
            assert torch.equal(lowered(X), lowered(X))


# --- errors ------------------------------------------------------------------------------------------------------------------


def test_errors_say_what_to_do() -> None:
    with pytest.raises(SwnetError, match="There is no backend 'cuda'; there are auto, torch, triton"):
        swnet.lower(dense(), X, backend="cuda")
    with pytest.raises(SwnetError, match="There is nothing to lower: no layer"):
        swnet.lower(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)), X)


def test_strides_that_are_read_far_behind_a_site_keep_it_from_being_lowered() -> None:
    class ByStrides(Awkward):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            made = functional.relu(_conv(self, torch.cat([self.a(x), self.b(x)], 1)) * 2)
            return torch.as_strided(made, (2, 4), (4, 1))

    with pytest.raises(NothingToDoError, match="reads them by their strides"):
        swnet.lower(used(ByStrides(_conv), X), X, backend="torch")
