"""swnet.lower(training=True): the same gradients, parameters and running statistics; nothing wide is kept for the backward pass."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import swnet
from benchmarks.bench_training import kept_bytes
from benchmarks.models import densenet, resnet20, seeded
from swcompile.errors import NothingToDoError
from swcompile.lower.rates import Rates, device_name, known
from swcompile.modules import TRAINING, RewiredModule
from tests.lower.test_lower import LOWERED, X
from tests.zoo import ZOO, image
from tests.zoo import densenet as bottlenecked


def in_training(model: nn.Module, x: Tensor, backend: str = "torch") -> RewiredModule:
    """Return a model lowered for training, in train mode and without dropout: its draws fall elsewhere in other layouts."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return swnet.lower(copy.deepcopy(model), x, backend=backend, training=True).train()


def runs_lowered(module: RewiredModule) -> list[Any]:
    """Return what the program for train mode calls."""
    graph = module._programs[TRAINING].lowered.graph
    return [] if graph is None else [node.target.__name__ for node in graph.nodes if node.op == "call_function"]


def step(module: nn.Module, *inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """Return a module's result in train mode, and all gradients and buffers behind it."""
    module.zero_grad()
    torch.manual_seed(1)  # dropout written as a function
    made = module(*inputs)
    made = made if isinstance(made, Tensor) else torch.cat([value for value in made if value is not None], 1)  # auxiliary heads
    made.square().sum().backward()
    found = {f"gradient of {name}": value.grad for name, value in module.named_parameters() if value.grad is not None}
    return made.detach(), found | dict(module.named_buffers())


def same(ours: nn.Module, model: nn.Module, *inputs: Tensor, tolerance: float = 1e-9) -> None:
    (found, behind), (expected, wanted) = (step(one.train(), *inputs) for one in (ours, model))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert behind.keys() == wanted.keys()
    scale = max(float(value.abs().max()) for name, value in wanted.items() if "gradient" in name)
    for name, value in wanted.items():
        size = scale if "gradient" in name else 1.0
        torch.testing.assert_close(
            behind[name], value, rtol=tolerance, atol=tolerance * size, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", sorted(LOWERED - {"shufflenet"}))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_every_architecture_trains_alike(backend: str, name: str, layout: torch.memory_format) -> None:
    """In float64, which no kernel takes: what is checked of "triton" is its graph."""
    torch.manual_seed(0)
    build, example = ZOO[name]
    model, x = build().double().to(memory_format=layout), example().double().contiguous(memory_format=layout)
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.bias.data.normal_()
    ours = in_training(model, x, backend)
    assert bool(runs_lowered(ours)) == (not name.startswith("unet")), "a unet's concats meet a 3x3 convolution at once"
    for _ in range(2):
        same(ours, model, x)
    ours.eval(), model.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_ten_steps_of_a_dense_net_end_where_they_did(backend: str) -> None:
    """And of a rewired ResNet, whose gathers end in 3x3 convolutions and are left alone."""
    rewired = swnet.transform(seeded(resnet20, 0), torch.zeros(1, 3, 16, 16), p=0.3)
    for model, does in ((seeded(densenet, 0), True), (rewired, False)):
        ours = in_training(model, torch.zeros(2, 3, 16, 16), backend).double()
        assert bool(runs_lowered(ours)) == does
        end_alike(ours, copy.deepcopy(model).double())


def end_alike(ours: nn.Module, model: nn.Module, steps: int = 10) -> None:
    """Train two models on the same images, and compare their parameters and buffers."""
    arms = [(one.train(), torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)) for one in (model, ours)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x, labels = torch.randn(4, 3, 16, 16, generator=generator).double(), torch.randint(0, 10, (4,), generator=generator)
        for one, optimizer in arms:
            optimizer.zero_grad()
            functional.cross_entropy(one(x), labels).backward()
            optimizer.step()
    found = ours.state_dict()
    assert list(found) == list(model.state_dict())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)


def test_a_training_step_goes_through_the_kernels(launched: list[str]) -> None:
    """Of a DenseNet of three blocks, each layer a bottleneck behind a concat: forward and backward, none left out."""
    torch.manual_seed(0)
    model = nn.Sequential(*bottlenecked()[:5], *_block(24), nn.AvgPool2d(2), *_block(24), nn.Flatten(), nn.LazyLinear(10))
    model(X)
    ours = in_training(model, X, "triton")
    (count,) = {len(one.gathers) for one in swnet.ledger(ours).lowered}
    assert count == 15
    assert {gather.form for one in swnet.ledger(ours).lowered for gather in one.gathers} == {"triton"}
    launched.clear()
    same(ours, model, X, tolerance=2e-3)
    forward = sum(launched.count(name) for name in ("_gather_mm", "_gather"))
    behind = 12  # the norms behind the bottlenecks' products, each with its activation
    assert forward == launched.count("_data_gradient") == count + behind
    assert launched.count("_weight_gradient") == launched.count("_gather_mm") == count
    assert launched.count("_joined") == launched.count("_centered") == 15 + behind  # once a map that a norm reads, however many do
    assert launched.count("_partial") == 14  # of those, the maps that no product makes: it takes what it makes along


def _block(channels: int) -> list[nn.Module]:
    """Return a block of four layers, with a norm, an activation and a convolution to as many channels behind it."""
    block = bottlenecked()[5:][1]
    wide = channels + 4 * 8
    return [block, nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, channels, 1)]


@pytest.mark.parametrize("kind", ["densenet121 block 3", "densenet40"])
def test_less_is_kept_for_the_backward_pass(kind: str) -> None:
    """At most a quarter, in bytes of distinct memory, of what eager keeps of a dense block of DenseNet-121 at 14x14."""
    torch.manual_seed(0)
    model, x = (_dense_block(), torch.randn(2, 256, 14, 14)) if "121" in kind else (seeded(densenet, 0), torch.randn(2, 3, 32, 32))
    ours = in_training(model, x)
    assert kept_bytes(ours, x) <= (0.25 if "121" in kind else 0.7) * kept_bytes(model.train(), x.requires_grad_())


class _Dense(nn.Module):
    """Block 3 of DenseNet-121: 24 layers of growth 32 over 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        widths = [256 + 32 * number for number in range(24)]
        self.layers = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, 128, 1, bias=False)),
                *(nn.BatchNorm2d(128), nn.ReLU(inplace=True), nn.Conv2d(128, 32, 3, padding=1, bias=False)),
            )
            for width in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return maps[-1]


def _dense_block() -> nn.Module:
    return _Dense()


def frozen(norm: Any) -> None:
    norm.eval()


def cumulative(norm: Any) -> None:
    norm.momentum = None


def untracked(norm: Any) -> None:
    norm.track_running_stats = False


def plain_scale(norm: Any) -> None:
    norm.weight.requires_grad_(False)


@pytest.mark.parametrize("change", [frozen, cumulative, untracked, plain_scale])
@pytest.mark.parametrize(("backend", "name"), [("torch", "norm1"), ("triton", "norm1"), ("triton", "norm2")])
def test_what_is_set_on_a_norm_later_counts(backend: str, name: str, change: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    model = bottlenecked().double()
    ours = in_training(model, X.double(), backend)
    for one in (ours, model.train()):
        change(one.get_submodule(f"1.layer2.{name}"))
    for _ in range(3):
        found, expected = (step(one, X.double()) for one in (ours, model))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_norm_that_averages_over_all_batches_is_lowered_too() -> None:
    """Its share of a batch is a number that only the device knows."""
    torch.manual_seed(0)
    model = bottlenecked().double()
    cumulative(model.get_submodule("1.layer2.norm1"))
    ours = in_training(model, X.double())
    assert runs_lowered(ours)
    for _ in range(3):
        same(ours, model, X.double())


@pytest.mark.parametrize("activation", [None, nn.ReLU(inplace=True), nn.SiLU(), nn.Tanh()])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_norm_behind_a_product_is_one_pass(
    dtype: torch.dtype, options: dict[str, Any], activation: nn.Module | None, launched: list[str]
) -> None:
    """With an activation or without, or with one that kernels have not; its buffers move once a step."""
    model = _Joined(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(11), nn.Conv2d(11, 5, 1), nn.BatchNorm2d(5, **options)).to(dtype)
    model.behind.extend([] if activation is None else [activation])
    x = (torch.randn(2, 3, 5, 7) + 10).to(dtype)
    ours = in_training(model, x, "triton")
    assert runs_lowered(ours).count("train") == 2
    for _ in range(3):
        launched.clear()
        same(ours, model, x, tolerance=1e-9 if dtype == torch.float64 else 1e-4)
    assert int(ours.get_buffer("behind.0.num_batches_tracked")) == 3
    names = ("_gather_mm", "_gather", "_partial", "_joined", "_data_gradient", "_centered")
    assert [launched.count(name) for name in names] == ([1, 1, 2, 3, 2, 2] if dtype == torch.float32 else [0] * 6)


def test_plain_torch_keeps_its_own_norm_behind_a_product() -> None:
    model, x = _Joined(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(11), nn.Conv2d(11, 5, 1), nn.BatchNorm2d(5)), torch.randn(2, 3, 5, 7)
    assert runs_lowered(in_training(model, x)).count("train") == 1


def test_a_norm_over_processes_behind_a_product_is_left_alone() -> None:
    model = _Joined(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(11), nn.Conv2d(11, 5, 1), nn.SyncBatchNorm(5))
    assert runs_lowered(in_training(model, torch.randn(2, 3, 5, 7), "triton")).count("train") == 1


def test_a_product_that_a_concat_takes_up_takes_its_statistics_along(launched: list[str]) -> None:
    """Its readers are a norm of a later concat, and others beside."""
    model, x = _Chained(), torch.randn(2, 3, 5, 7)
    ours = in_training(model, x, "triton")
    launched.clear()
    same(ours, model, x, tolerance=1e-4)
    assert launched.count("_gather_mm") == 2
    assert (launched.count("_partial"), launched.count("_joined")) == (2, 3)
    same(in_training(model.double(), x.double(), "triton"), model, x.double())


def test_no_more_is_kept_for_the_norm_behind_a_product() -> None:
    torch.manual_seed(0)
    model, x = _dense_block(), torch.randn(2, 256, 14, 14)
    assert kept_bytes(in_training(model, x, "triton"), x) <= 1.01 * kept_bytes(in_training(model, x), x)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_accumulated_gradients_and_checkpoints(backend: str) -> None:
    torch.manual_seed(0)
    model = bottlenecked().double()
    ours = in_training(model, X.double(), backend)
    for one in (ours, model.train()):
        for scale in (1.0, 2.0):
            checkpoint(one, scale * X.double(), use_reentrant=False).square().sum().backward()
    for (name, mine), (_, theirs) in zip(ours.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name)
    for mine, theirs in zip(ours.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def calls(module: RewiredModule, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with every gather that a call trains lowered."""
    from swcompile.lower import run_training

    seen: list[int] = []
    plain = run_training.trained_gather_mm

    def noted(*arguments: Any, **options: Any) -> Tensor:
        seen.append(1)
        return plain(*arguments, **options)

    monkeypatch.setattr(run_training, "trained_gather_mm", noted)
    return seen


def test_what_it_cannot_do_runs_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bottlenecked()
    ours = in_training(model, X)
    seen = calls(ours, monkeypatch)
    ours(input=X)
    torch.func.functional_call(ours, dict(ours.named_parameters()), (X,))
    assert len(seen) == 10
    seen.clear()
    with pytest.raises(RuntimeError, match="in-place operation"):  # as the model itself
        torch.func.grad(lambda x: ours(x).sum())(X)
    ours.eval()(X)
    handle = ours.train().get_submodule("1.layer0.conv1").register_full_backward_hook(lambda *_: None)
    ours(X)
    handle.remove()
    assert seen == []
    ours(X)
    assert len(seen) == 10


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.bfloat16), ("torch", torch.float16), ("triton", torch.float16)])
def test_under_autocast_gradients_are_as_good_as_the_models_own(backend: str, dtype: torch.dtype, launched: list[str]) -> None:
    torch.manual_seed(0)
    model = bottlenecked()
    ours = in_training(model, X, backend)
    made, exact = step(copy.deepcopy(model).double().train(), X.double())
    off = []
    for one in (ours, model.train()):
        with torch.autocast("cpu", dtype):
            found, behind = step(one, X)
        assert found.dtype == dtype
        assert behind.keys() == exact.keys()
        kinds = [[name for name in exact if ("gradient" in name) == gradients] for gradients in (True, False)]
        apart = [torch.cat([(behind[name] - exact[name]).flatten() for name in names]).norm() for names in kinds]
        off.append([(found - made).norm(), *apart])
    for mine, theirs in zip(*off, strict=True):
        assert 0 < mine <= 2 * theirs
    if backend == "triton":
        behind = 8  # the norms behind the bottlenecks' products
        assert launched.count("_data_gradient") == launched.count("_gather_mm") + launched.count("_gather") == 10 + behind
    program = ours._programs[TRAINING, ("cpu", dtype)].lowered
    assert f"8x8 on {device_name(torch.device('cpu'))} under autocast to {str(dtype)[6:]}: 10 gathers" in str(program.choices)


def test_a_scaler_of_gradients_steps_as_it_does_with_the_model_itself() -> None:
    torch.manual_seed(0)
    model = bottlenecked()
    ends = []
    for one in (in_training(model, X), model.train()):
        optimizer, scaler = (
            torch.optim.SGD(one.parameters(), lr=0.05),
            torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2),
        )
        for _ in range(32):  # the first of which overflow, and are skipped
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = one(X).float().square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(one.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        ends.append((loss.item(), scaler.get_scale()))
    (mine, scale), (theirs, other) = ends
    assert abs(mine - theirs) < 0.05 * theirs
    assert 1 <= scale < 2.0**40
    assert 0.25 <= scale / other <= 4


@pytest.mark.parametrize(("backend", "count"), [("torch", 10), ("triton", 18)])
def test_compiles_copies_and_pickles(backend: str, count: int) -> None:
    torch.manual_seed(0)
    model = bottlenecked().double()
    ours = in_training(model, X.double(), backend)
    again = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    assert runs_lowered(again)
    compiled, seen = copy.deepcopy(ours), []

    def noting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    found = torch.compile(compiled, backend=noting, fullgraph=True)(X.double())
    assert sum("trained_gather_mm" in target for target in seen) == count
    found.square().sum().backward()
    same(again, model, X.double())
    for mine, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(compiled.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def _patched(model: nn.Module) -> None:
    conv = model.get_submodule("1.layer2.conv1")
    plain = conv.forward
    conv.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]


def _replaced(model: nn.Module) -> None:
    model.get_submodule("1.layer2").norm1 = nn.GroupNorm(4, 32).double()  # type: ignore[assignment]


def _converted(model: nn.Module) -> None:
    model.get_submodule("1.layer2.norm1").__class__ = Doubling


class Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _without_statistics(model: nn.Module) -> None:
    norm: Any = model.get_submodule("1.layer2.norm1")
    norm.running_mean = norm.running_var = None


@pytest.mark.parametrize("change", [_patched, _replaced, _converted, _without_statistics])
def test_a_module_that_is_changed_after_lowering_is_not_bypassed(change: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(0)
    model = bottlenecked().double()
    ours = in_training(model, X.double())
    torch.manual_seed(0)
    change(ours)
    torch.manual_seed(0)
    change(model)
    ours.load_state_dict(model.state_dict())
    same(ours, model, X.double())


class Viewed(nn.Module):
    """Goes by strides, in code that stays one call where it is named as a leaf."""

    def forward(self, y: Tensor) -> Tensor:
        return y.view(y.size(0), -1)


class ViewedLater(nn.Module):
    """Goes by strides two steps behind a site."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.c = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(11), nn.Conv2d(11, 4, 1)
        self.viewed = Viewed()

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(torch.relu(self.n(torch.cat([x, self.a(x)], 1))))
        return self.viewed(torch.tanh(y))


def test_what_goes_by_strides_further_on_finds_them() -> None:
    model, x = ViewedLater().double(), torch.randn(4, 3, 5, 6).double()
    ours = in_training(model, x)
    same(ours, model, x)
    assert "1 by torch; as asked" in str(swnet.ledger(ours).lowered[-1])


def test_what_goes_by_strides_inside_a_module_finds_them() -> None:
    model, x = ViewedLater().double(), torch.randn(4, 3, 5, 6).double()
    rewired = swnet.transform(model, x, p=0.0, leaf_modules=("viewed",))
    ours = swnet.lower(rewired, backend="torch", training=True)
    same(ours, model, x)
    with torch.no_grad():
        assert ours.eval()._lowered_run((x,), {}) is not None
        torch.testing.assert_close(ours(x), model.eval()(x), rtol=1e-9, atol=1e-9)


def test_many_modules_compile_in_one_process() -> None:
    """Torch compiles one code eight times at most, and makes dynamic what differs between its calls, so each has its own."""
    sizes: list[Any] = []

    def noting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        sizes.extend(size for value in inputs for size in (value.shape if isinstance(value, Tensor) else [value]))
        return graph.forward

    for width in range(10):
        layers = [nn.Linear(4, 4 + width), nn.BatchNorm1d(8 + width), nn.Linear(8 + width, 3)]
        module = in_training(_Joined(*layers), torch.randn(5, 4))
        torch.compile(module, backend=noting, fullgraph=True)(torch.randn(5 + width, 4))
    assert {type(size) for size in sizes} == {int}


class _Joined(nn.Module):
    def __init__(self, first: nn.Module, norm: nn.Module, last: nn.Module, *behind: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = first, norm, last
        self.behind = nn.ModuleList(behind)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.norm(torch.cat([x, self.first(x)], 1))))
        for module in self.behind:
            out = module(out)
        return torch.tanh(out) if self.behind else out


class _Chained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (6, 7))
        self.layers = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in (6, 7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](torch.relu(self.norms[0](torch.cat([x, 2 * x], 1))))
        z = self.layers[1](torch.relu(self.norms[1](torch.cat([x, y], 1))))
        return torch.tanh(y) + z


class Crossed(nn.Module):
    """Makes a concat first that it reads last; both read the same maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norms = nn.Conv2d(3, 8, 1), nn.ModuleList(nn.BatchNorm2d(11, eps=eps) for eps in (1e-5, 0.1))
        self.convs = nn.ModuleList(nn.Conv2d(11, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        late, early = torch.cat([x, y], 1), torch.cat([y, x], 1)
        z = self.convs[1](torch.relu(self.norms[1](early)))
        return self.convs[0](torch.relu(self.norms[0](late))) * z + y.mean(1, keepdim=True)


def test_a_reader_may_come_before_one_whose_concat_is_older() -> None:
    model, x = Crossed().double(), torch.randn(4, 3, 5, 6).double()
    ours = in_training(model, x)
    assert runs_lowered(ours).count("train") == 2
    same(ours, model, x)


def test_auto_leaves_training_alone_where_it_has_not_been_timed_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    found = known(torch.device("cpu"))
    assert isinstance(found, Rates)
    without = replace(found, dtypes={})
    monkeypatch.setattr("swcompile.lower.lowering.known", lambda _: without)
    ours = swnet.lower(bottlenecked(), X, training=True)
    told = str(swnet.ledger(ours))
    assert "lowered for training, 2x3x8x8 on" in told
    assert "10 left alone; the timings of" in told
    assert "hold nothing for training in this dtype" in told
    assert runs_lowered(ours) == []


def test_without_training_train_mode_is_as_it_was() -> None:
    ours = swnet.lower(bottlenecked(), X, backend="torch")
    assert TRAINING not in ours._programs
    assert len(swnet.ledger(ours).lowered) == 1


def test_norms_over_processes_train_alike_where_there_is_one() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(bottlenecked()).double()
    ours = in_training(model, X.double())
    assert runs_lowered(ours).count("synchronised") == 10
    same(ours, model, X.double())
    for one in (ours, model):
        one.get_submodule("1.layer2.norm1").eval()
    same(ours, model, X.double())


def test_one_value_a_channel_is_refused_as_torch_does() -> None:
    block = nn.Sequential(nn.Flatten(), _Twice(), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    ours = in_training(block, torch.randn(3, 4))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        ours(torch.randn(1, 4))


class _Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, 2 * x], 1)


def test_a_model_without_a_concat_has_nothing_to_lower() -> None:
    with pytest.raises(NothingToDoError, match="nothing to lower"):
        swnet.lower(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), image()(), training=True)


# --- what a user may do beside it --------------------------------------------------------------------------------------------


class _Adapted(nn.Module):
    """A layer with something of its own beside it, which shows the layer's weight and bias."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.beside = layer, nn.Conv2d(layer.in_channels, layer.out_channels, 1).double()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.beside(x)
        return out


@pytest.mark.parametrize("is_training", [True, False])
def test_a_layer_put_in_its_place_runs_inside_a_compiler_too(is_training: bool) -> None:
    model = Crossed().double()
    ours = swnet.lower(model, X.double(), backend="torch", training=True).train(is_training)
    adapted: Any = _Adapted(ours.get_submodule("convs.0"))  # type: ignore[arg-type]
    ours.set_submodule("convs.0", adapted)
    expected = copy.deepcopy(model).train(is_training)
    expected.set_submodule("convs.0", copy.deepcopy(adapted))
    with torch.set_grad_enabled(is_training):
        for run in (ours, torch.compile(ours, backend="eager", fullgraph=True)):
            torch.testing.assert_close(run(X.double()), copy.deepcopy(expected)(X.double()), rtol=1e-9, atol=1e-9)


def test_values_in_the_place_of_parameters_are_what_runs() -> None:
    model = bottlenecked().double().eval()
    values = {name: value.detach().clone() + 0.01 for name, value in model.named_parameters()}
    for backend in ("auto", "torch"):
        ours = swnet.lower(model, X.double(), backend=backend, training=True)
        for one, other in ((ours.eval(), model.eval()),):
            with torch.no_grad():
                found, expected = (torch.func.functional_call(it, values, (X.double(),)) for it in (one, other))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        torch.func.functional_call(ours.train(), values, (X.double(),))


def test_what_has_been_lowered_can_be_planned_and_transformed() -> None:
    ours = swnet.lower(bottlenecked(), X, backend="torch", training=True)
    assert swnet.plan(ours, X, p=0.3).layers
    again = swnet.transform(ours, X, p=0.0).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(X), ours.eval()(X), rtol=1e-4, atol=1e-5)


def test_a_call_in_eval_mode_and_one_in_train_mode_in_one_backward_pass() -> None:
    model = Crossed().double()
    found = []
    for one in (model, in_training(model, X.double())):
        first = one.eval()(X.double()).square().sum()
        (first + one.train()(X.double()).sum()).backward()
        found.append({name: value.grad for name, value in one.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-9)


class _Shown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.c = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(11), nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(x)
        return a, self.c(torch.relu(self.norm(torch.cat([x, a], 1))))


def test_a_returned_map_may_be_written_to() -> None:
    grads = []
    model = _Shown().double()
    for one in (model, in_training(model, X.double())):
        a, z = one.train()(X.double())
        functional.relu_(a)
        (a.sum() + z.square().sum()).backward()
        grads.append([value.grad for value in one.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-9)


def test_settings_that_are_changed_count() -> None:
    model = _Shown().double()
    ours = in_training(model, X.double())
    for one in (model, ours):
        layer: Any = one.get_submodule("c")
        layer.stride = (2, 2)
        norm: Any = one.get_submodule("norm")
        norm.eps = 0.3
    for training in (True, False):
        found, expected = (one.train(training)(X.double())[1] for one in (ours, model))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            found, expected = (one(X.double())[1] for one in (ours, model))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of its rules for tangents
def test_tangents_and_hooks_of_all_modules_get_what_the_model_gives() -> None:
    model = _Shown().double()
    ours = in_training(model, X.double())
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        tangents = []
        for one in (model, ours):
            dual = torch.autograd.forward_ad.make_dual(X.double(), torch.ones_like(X.double()))
            tangents.append(torch.autograd.forward_ad.unpack_dual(one.train()(dual)[1]).tangent)
    torch.testing.assert_close(tangents[1], tangents[0], rtol=1e-9, atol=1e-9)
    for one in (model, ours):
        seen: list[str] = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_, to=seen: to.append(type(module).__name__))
        one(X.double())
        handle.remove()
        assert seen[:3] == ["Conv2d", "BatchNorm2d", "Conv2d"]


class _ShownBehind(_Chained):
    """Returns a map that a site made and another one reads."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # of what it shares, only the layers
        y = self.layers[0](torch.relu(self.norms[0](torch.cat([x, 2 * x], 1)))) * 2
        return y, self.layers[1](torch.relu(self.norms[1](torch.cat([x, y], 1))))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_returned_map_behind_a_site_may_be_written_to(layout: torch.memory_format) -> None:
    grads = []
    model, x = _ShownBehind().double().to(memory_format=layout), X.double().contiguous(memory_format=layout)
    for one in (model, in_training(model, x)):
        y, z = one.train()(x)
        functional.relu_(y)
        (y.sum() + z.square().sum()).backward()
        grads.append([value.grad for value in one.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-9)
