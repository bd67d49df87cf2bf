"""swnet.lower under torch.autocast: programs of their own, as near to double precision as the model itself under autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import swnet
from benchmarks.models import densenet, seeded
from swcompile.lower import run
from swcompile.modules import Lowered, RewiredModule
from swcompile.trace import shaped
from swcompile.trace.shapes import spec_of
from tests.lower.test_costs import table
from tests.lower.test_lower import CATS, X, used
from tests.zoo import conv3x3
from tests.zoo import densenet as bottlenecked

LOW = [torch.bfloat16, torch.float16]
INPUTS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def body() -> nn.Module:
    """Return a net with bottlenecks up to its last map: a head's own rounding would hide what is in front of it."""
    return used(bottlenecked()[:-3], X)


def program_of(lowered: RewiredModule, dtype: torch.dtype) -> Lowered:
    """Return the one program for autocast to a dtype."""
    said = f"under autocast to {str(dtype).removeprefix('torch.')}"
    (found,) = (one for one in lowered.programs if one.choices is not None and one.choices.call.endswith(said))
    return found


def called(lowered: RewiredModule, dtype: torch.dtype) -> list[Any]:
    graph = program_of(lowered, dtype).graph
    assert graph is not None
    return [node.target for node in graph.nodes]


def is_as_good(lowered: Callable[..., Tensor], model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    """Assert that autocast makes of a lowered module the same dtype, at no more than twice the error that it makes of the model."""
    exact = copy.deepcopy(model).double()(x.double())
    with torch.autocast("cpu", dtype):
        expected, found = model(x), lowered(x)
    assert found.dtype == expected.dtype

    def error(of: Tensor) -> float:
        return float((of.double() - exact).norm() / exact.norm())

    assert 0 < error(found) <= 2 * error(expected)


# --- what comes out ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("build", [body, lambda: used(seeded(densenet, 0, 16, 12)[:-3], X)])
def test_as_good_as_the_model_itself(build: Callable[[], nn.Module], backend: str, dtype: torch.dtype) -> None:
    model = build()
    lowered = swnet.lower(model, X, backend=backend)
    with torch.no_grad():
        is_as_good(lowered, model, INPUTS, dtype)
    assert called(lowered, dtype) == called_without(lowered)


def called_without(lowered: RewiredModule) -> list[Any]:
    graph = lowered.programs[0].graph
    assert graph is not None
    return [node.target for node in graph.nodes]


def test_bottlenecks_run_through_one_kernel_each(launched: list[str]) -> None:
    """A norm behind a layer among them. In float16, whose products Triton's interpreter gets right."""
    model = used(bottlenecked(), X)
    lowered = swnet.lower(model, X, backend="triton")
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        lowered(X)
    assert launched.count("_gather_mm") == 8 + 1
    assert not set(CATS) & set(called(lowered, torch.float16))


class Tail(nn.Module):
    """Two maps, and a tail that reads their concat."""

    def __init__(self, tail: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), tail
        self.norm, self.one, self.three = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1), conv3x3(16, 4)
        self.behind, self.wide, self.linear = nn.BatchNorm2d(4), nn.Conv2d(19, 4, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.tail(self, torch.cat([a, self.b(a)], 1), x) + 0


def _in_full_precision(m: Any, _: Tensor, x: Tensor) -> Tensor:
    return m.one(functional.relu(m.norm(torch.cat([x, x, x, x, x, x[:, :1]], 1))))


TAILS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], list[Any]]] = {
    "conv": (lambda m, y, _: m.one(y), [run.product]),
    "norm, relu, conv, norm, relu": (lambda m, y, _: m.behind(m.one(m.norm(y).relu())).relu(), [run.product]),
    "silu, conv, norm": (lambda m, y, _: m.behind(m.one(functional.silu(y))), [run.product]),
    "norm, silu, 3x3": (lambda m, y, _: m.three(functional.silu(m.norm(y))), [run.read_map]),
    "nothing but the concat": (lambda m, y, _: m.three(y) + m.one(functional.relu(y)), [run.read_map, run.product]),
    "linear": (
        lambda m, y, _: m.linear(functional.relu(torch.cat([y.mean((2, 3))[:, 8:], y.amax((2, 3))[:, 8:]], -1))),
        [run.product, run.read_map],  # the concat that is reduced, whose maps are made by layers
    ),
    "maps in two types": (lambda m, y, x: m.wide(torch.cat([x, y], 1)), []),
    "maps in full precision": (_in_full_precision, [run.read_map]),  # the layer casts what it reads: it is left alone
}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_what_may_follow_a_gather(name: str, backend: str, dtype: torch.dtype) -> None:
    tail, sites = TAILS[name]
    model = used(Tail(tail), X)
    lowered = swnet.lower(model, X, backend=backend)
    with torch.no_grad():
        is_as_good(lowered, model, INPUTS, dtype)
    graph = program_of(lowered, dtype).graph
    found = [] if graph is None else [node.target for node in graph.nodes]
    forms = {run.product_by_kernel: run.product, run.read_map_by_kernel: run.read_map}
    assert sorted(str(forms.get(one, one)) for one in found if forms.get(one, one) in forms.values()) == sorted(map(str, sites))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_constant_cancels_in_the_norm_behind(backend: str, dtype: torch.dtype) -> None:
    """Weights that are multiplied by the norm's scale of 316 would be rounded, and leave the range of float16."""
    model = Tail(TAILS["norm, relu, conv, norm, relu"][0]).eval()
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.fill_(300.0)
        model.one.weight.fill_(1 / 16)
        model.one.bias.zero_()
        model.behind.running_mean.fill_(300.0)
        model.behind.running_var.zero_()
        model.behind.bias.fill_(0.5)
        lowered = swnet.lower(model, X, backend=backend)
        with torch.autocast("cpu", dtype):
            for made in (model, lowered):
                torch.testing.assert_close(made(X).float(), torch.full((2, 4, 8, 8), 0.5), rtol=0, atol=0.02)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_inputs_in_low_precision_and_then_in_full(backend: str) -> None:
    """Only the first are read together with maps that autocast made."""
    model = used(Tail(TAILS["maps in two types"][0]), X)
    lowered = swnet.lower(model, X, backend=backend)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        for x in (X.half(), X):
            torch.testing.assert_close(lowered(x), model(x), rtol=1e-2, atol=1e-3)
    assert [one.graph is None for one in lowered.programs] == [False, False, True]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_model_in_low_precision_itself(backend: str) -> None:
    model = body()
    lowered = swnet.lower(model, X, backend=backend).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = lowered(X.bfloat16()), model.bfloat16()(X.bfloat16())
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05)


# --- which program runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_each_state_has_its_program(backend: str, cache: bool) -> None:
    lowered = swnet.lower(body(), X, backend=backend)
    with torch.no_grad():
        full = lowered(X)
        assert len(lowered.programs) == 1
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            low = lowered(X)
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(lowered(X), full)
            assert torch.equal(lowered(X), low)
        with torch.autocast("cpu", torch.float16):
            assert lowered(X).dtype == torch.float16
        assert torch.equal(lowered(X), full)
    assert (full.dtype, low.dtype, len(lowered.programs)) == (torch.float32, torch.bfloat16, 3)
    calls = [choices.call.partition(" under ")[2] for choices in swnet.ledger(lowered).lowered]
    assert calls == ["", "autocast to bfloat16", "autocast to float16"]


def test_weights_that_change_count_and_train_afterwards() -> None:
    """Nothing is kept of a weight that was cast, and nothing of a call without gradients hinders one with."""
    lowered = swnet.lower(body(), X, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            before = lowered(X)
            lowered.get_parameter("1.layer0.conv1.weight").mul_(3)
            assert not torch.equal(lowered(X), before)
        lowered(X).sum().backward()
    assert all(parameter.grad is not None for parameter in lowered.parameters())


@pytest.mark.parametrize("made", [lambda model: swnet.lower(model, X, backend="triton"), copy.deepcopy])
def test_what_is_made_under_autocast_is_for_calls_without(made: Callable[[nn.Module], Any], launched: list[str]) -> None:
    model = body()
    given = model if made is not copy.deepcopy else swnet.lower(model, X, backend="triton")
    with torch.autocast("cpu", torch.float16):
        lowered = made(given)
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), model(X), rtol=1e-4, atol=1e-5)
    assert launched.count("_gather_mm") == 8 + 1
    assert len(lowered.programs) == 1


def test_autocast_of_other_devices_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    model = body()
    lowered = swnet.lower(model, X, backend="torch")
    torch.set_autocast_enabled("cuda", True)  # torch.autocast itself leaves it off where there is no such device
    try:
        with torch.no_grad():
            lowered(X)
            assert len(lowered.programs) == 1
            lowered.register_parameter("far", nn.Parameter(torch.empty(2, device="meta")))
            lowered.recompile()
            assert lowered._lowered_run((X,), {}) is not None
            with torch.autocast("cpu", torch.bfloat16):  # which maps lie where, nobody knows
                assert lowered._lowered_run((X,), {}) is None
                assert torch.equal(lowered(X), model(X))
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_shapes_go_by_the_devices_own_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's leaves layer norm in full precision, that of CPUs does not."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    module = swnet.transform(nn.Sequential(nn.Conv2d(3, 16, 3), nn.LayerNorm(6), nn.Conv2d(16, 4, 1)), X, p=0.0)
    found = []
    for autocast in (None, ("cpu", torch.float16), ("cuda", torch.float16)):
        graph = copy.deepcopy(module.graphs[0])
        shaped(graph, module.shell(), module.swcompile.example, autocast)
        specs = [spec_of(node) for node in graph.nodes if node.op == "call_module"]
        found.append([spec.dtype for spec in specs if spec is not None])
    full, low = torch.float32, torch.float16
    assert found == [[full, full, full], [low, low, low], [low, full, low]]


def test_auto_says_that_nothing_is_known_of_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swcompile.lower.lowering.known", lambda _: table(plain=10))
    model = used(bottlenecked(), X)
    lowered = swnet.lower(model, X)
    assert run.product in called_without(lowered)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lowered(X), model(X))
    choices = program_of(lowered, torch.bfloat16).choices
    assert choices is not None
    assert "nothing for this dtype" in choices.why
    assert {one.form for one in choices.gathers} == {"plain"}


# --- where no program can be made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("has_run", [False, True])
def test_compiles_without_a_break(has_run: bool, backend: str) -> None:
    """With the program of an earlier call like the example, where there was one."""
    model = body()
    lowered = swnet.lower(model, X, backend=backend)
    seen: list[list[str]] = []

    def noted(graph: Any, _: Any) -> Any:
        seen.append([str(node.target) for node in graph.graph.nodes])
        return graph

    compiled = torch.compile(lowered, backend=noted, fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if has_run:
            lowered(X)
        is_as_good(compiled, model, X, torch.bfloat16)
        with torch.autocast("cpu", enabled=False):
            torch.testing.assert_close(compiled(X), model(X), rtol=1e-4, atol=1e-5)
    assert ["new_empty" in targets for targets in seen] == [has_run, True]


def test_compiles_with_autocast_inside() -> None:
    model = body()
    lowered = swnet.lower(model, X, backend="torch")

    def cast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return lowered(x)

    compiled = torch.compile(cast, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            is_as_good(compiled, model, X, torch.bfloat16)
            is_as_good(cast, model, X, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's advice on vmap
def test_many_models_at_once_run_as_they_are() -> None:
    model, xs = body(), torch.randn(3, 2, 3, 8, 8)
    lowered = swnet.lower(model, X, backend="torch")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        lowered(X)
        assert torch.equal(torch.func.vmap(lowered)(xs), torch.func.vmap(model)(xs))
    assert len(lowered.programs) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_a_traced_call_runs_as_it_is() -> None:
    model = body()
    lowered = swnet.lower(model, X, backend="torch")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        lowered(X)
        traced = torch.jit.trace(lowered, X, check_trace=False)
        assert torch.equal(traced(X), model(X))
