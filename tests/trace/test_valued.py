"""swcompile.trace.valued: forwards that plain torch.fx cannot follow, or follows wrongly, are traced as they were meant."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # as users write it
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import swnet
from swcompile.trace import Traced, trace

X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions and a classifier around a program of the test's."""

    def __init__(self, program: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.program = program
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("shift", torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        return self.program(self, x)


def same(net: nn.Module, traced: Traced, *inputs: Tensor) -> None:
    """Compare the traced graphs with the network itself, to the bit, in both modes, gradients included."""
    for training, graph in ((True, traced.graphs[0]), (False, traced.graphs[-1])):
        module = fx.GraphModule(traced.root.train(training), graph)
        results = []
        for one in (net.train(training), module):
            torch.manual_seed(1)
            one.zero_grad()
            made = one(*inputs)
            tensors = [tensor for tensor in torch.utils._pytree.tree_leaves(made) if isinstance(tensor, Tensor)]
            if tensors[0].requires_grad:
                tensors[0].sum().backward()
            results.append((tensors, {name: p.grad for name, p in one.named_parameters()}))
        (ours, grads), (theirs, others) = results
        assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))
        for name, grad in grads.items():
            other = others[name]
            assert (grad is None) == (other is None), name
            assert grad is None or (other is not None and torch.equal(grad, other)), name


def by_shape(net: Net, x: Tensor) -> Tensor:
    if x.shape[1] == 3 and len(x.shape) == 4 and x.dim() > 3:
        x = net.a(x)
    batch, channels, height, _ = x.shape
    if height % 2:
        x = F.pad(x, (0, 1, 0, 1))
    return net.b(x).view(batch, channels, -1).mean(int(x.ndim) - 2)


def by_type(net: Net, x: Tensor) -> Tensor:
    parts = [x] if isinstance(x, Tensor) else list(x)
    y = net.a(parts[0])
    return net.b(y if y.dtype == torch.float32 and y.device.type == "cpu" else y.float())


def with_factories(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    batch, _, height, width = y.size()
    grid = torch.arange(height * width, device=y.device, dtype=y.dtype).view(1, 1, height, width)
    return net.b(y + grid + torch.zeros(batch, 1, height, width).to(y) + torch.full((batch, 1, 1, 1), torch.finfo(y.dtype).eps))


def with_a_mask(net: Net, x: Tensor) -> Tensor:
    y, mask = net.a(x), torch.zeros(x.shape[0], 1, *x.shape[2:])
    mask[:, :, : x.shape[2] // 2] = 1
    return net.b(y * mask)


def over_the_parts(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    parts = y.chunk(2, 1)
    assert isinstance(parts, tuple)
    return net.b(torch.cat([part * (place + 1) for place, part in enumerate(reversed(parts))], 1))


def frozen(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.a(x)
        with torch.enable_grad():
            z = net.a(x) * 2
    return net.b(y + z)


def with_attributes(net: Net, x: Tensor) -> Tensor:
    net.size = x.shape[2:]  # type: ignore[assignment]  # as users do
    y = net.a(x)
    return net.b(F.interpolate(F.max_pool2d(y, 2), size=net.size))  # type: ignore[arg-type]


def reductions(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    best = y.max(1)
    return net.b(y * best.values.unsqueeze(1)) + best[1].unsqueeze(1) * (y.T.shape[0] + y.mT.shape[-1])


def within_try(net: Net, x: Tensor) -> Tensor:
    try:
        y = net.a(x.flatten(1, 2))
    except RuntimeError:
        y = net.a(x)
    return net.b(y)


def in_other_precision(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = net.a(x)
        with torch.autocast("cpu", enabled=False):
            y = y.float() + net.a(x)
    return net.b(y)


def with_numpy(net: Net, x: Tensor) -> Tensor:
    y = net.a(x) * torch.from_numpy(np.linspace(0, 1, 8, dtype=np.float32)).view(1, 8, 1, 1)
    return net.b(y * np.float32(0.5))


def assigning_data(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    net.shift.data = net.shift.data * 0.5 + y.detach().mean()
    return net.b(y + net.shift)


PROGRAMS = [
    within_try,
    in_other_precision,
    with_numpy,
    assigning_data,
    by_shape,
    by_type,
    with_factories,
    with_a_mask,
    over_the_parts,
    frozen,
    with_attributes,
    reductions,
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_graph_computes_what_the_forward_does_at_other_sizes_too(program: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Net(program)
    traced = trace(net, X)
    assert not traced.steps.islands
    assert [layer.name for layer in traced.graph.layers][-1] == "b"
    same(net, traced, X)
    same(net, traced, torch.randn(5, 3, 12, 8))


def test_plain_tracing_is_enough_where_nothing_asks_for_a_value() -> None:
    assert trace(Net(lambda net, x: net.b(net.a(x))), X).steps.step == "plain"
    steps = trace(Net(by_shape), X).steps
    assert steps.step == "values"
    assert "test_valued.py" in steps.where
    assert steps.why == "the code decides by a value or its shape"


class ByValue(nn.Module):
    """Decides by the mean of what its layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.mean() > 0 else -y


class AtRandom(ByValue):
    """Draws in Python, as layer drop does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if random.random() < 0.5 else x


@pytest.mark.parametrize(
    ("kind", "path", "reason"),
    [(ByValue, "middle.0", "decides by values"), (AtRandom, "middle.0", "draws random numbers")],
)
def test_the_smallest_module_that_cannot_be_traced_stays_a_call(kind: type[nn.Module], path: str, reason: str) -> None:
    net = Net(lambda net, x: net.b(net.middle(net.a(x))))  # type: ignore[operator]  # a submodule
    net.middle = nn.Sequential(kind(), nn.ReLU())
    traced = trace(net, X)
    (island,) = traced.steps.islands
    assert island.path == path
    assert reason in island.reason
    assert [layer.name for layer in traced.graph.layers] == ["a", "b"]
    random.seed(0)
    rewired = swnet.transform(net, X, p=0.0)
    assert list(rewired.state_dict()) == list(net.state_dict())
    random.seed(1)
    ours = rewired(X)
    random.seed(1)
    assert torch.equal(ours, net(X))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_modules_stay_calls() -> None:
    scripted: Any = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1)))
    net = nn.Sequential(nn.Conv2d(3, 8, 1), scripted, nn.Conv2d(8, 8, 1))
    traced = trace(net, X)
    assert [layer.name for layer in traced.graph.layers] == ["0", "2"]
    assert torch.equal(swnet.transform(net, X, p=0.0)(X), net(X))


def test_named_leaves_stay_calls_and_misspelt_ones_are_refused() -> None:
    net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 8, 1), stage=nn.Sequential(nn.Conv2d(8, 8, 1)), b=nn.Conv2d(8, 8, 1)))
    traced = trace(net, X, ["stage"])
    assert [(island.path, island.reason) for island in traced.steps.islands] == [("stage", "named as a leaf")]
    assert [layer.name for layer in traced.graph.layers] == ["a", "b"]
    assert [layer.refused for layer in trace(net, X, ["b"]).graph.layers] == [None, None, "named as a leaf"]
    rewired = swnet.transform(net, X, p=0.0, leaf_modules=[nn.Sequential])
    assert swnet.apply(net, rewired.swcompile.plan, X).swcompile.plan.leaves == ("stage",)
    with pytest.raises(swnet.SwnetError, match="holds no module of that class"):
        swnet.transform(net, X, leaf_modules=[nn.Linear])
    with pytest.raises(swnet.SwnetError, match="no such module; did you mean stage"):
        trace(net, X, ["stag"])


def test_modules_with_hooks_stay_calls_and_keep_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 8, 1))
    net[1].register_forward_hook(lambda module, inputs, output: output * 2)
    traced = trace(net, X)
    assert [island.reason for island in traced.steps.islands] == ["it has hooks"]
    same(net, traced, X)


class Rounded(torch.autograd.Function):
    """A straight-through estimator: the backward is not that of what the forward does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def test_an_autograd_function_keeps_its_backward() -> None:
    net = Net(lambda net, x: net.b(Rounded.apply(net.a(x))))
    same(net, trace(net, X), X)


def test_autograd_functions_of_torch_are_followed_or_kept() -> None:
    net = Net(lambda net, x: net.b(checkpoint(net.a, x, use_reentrant=True)))
    assert [layer.name for layer in trace(net, X).graph.layers] == ["a", "b"]
    x = X.clone().requires_grad_()
    assert torch.equal(swnet.transform(net, X, p=0.0)(x), net(x))


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Output:
    logits: Tensor
    aux: Tensor | None = None


class Both(OrderedDict[str, Tensor]):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: (a, [b, {"a": a}]),
        lambda a, b: Pair(a, b),
        lambda a, b: Output(a, b),
        lambda a, b: Output(a),
        lambda a, b: OrderedDict(out=a, aux=b),
        lambda a, b: Both(out=a, aux=b),
        lambda a, b: {"out": a, 1: b},
        lambda a, b: defaultdict(list, out=[a, b]),
    ],
)
@pytest.mark.parametrize("step", ["plain", "values"])
def test_outputs_keep_their_structure(make: Callable[[Tensor, Tensor], Any], step: str) -> None:
    def program(net: Net, x: Tensor) -> Any:
        if step == "values" and len(x) == 0:
            raise ValueError
        y = net.a(x)
        return make(net.b(y), y)

    net = Net(program)
    rewired = swnet.transform(net, X, p=0.0)
    ours, theirs = rewired(X), net(X)
    assert type(ours) is type(theirs)
    if dataclasses.is_dataclass(theirs):
        ours, theirs = vars(ours), vars(theirs)
    if isinstance(theirs, dict):
        ours, theirs = dict(ours), dict(theirs)
    leaves, spec = torch.utils._pytree.tree_flatten(ours)
    others, other = torch.utils._pytree.tree_flatten(theirs)
    assert spec == other
    assert all(left is right is None or torch.equal(left, right) for left, right in zip(leaves, others, strict=True))


@fx.wrap
def wrapped_by_its_author(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.flatten(2).mean(2) if x.shape[1] > 1 else x.flatten(1), weight)


class Functional(nn.Module):
    """Layers as functions, of parameters of its own, one of them standardised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.standard = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.regular = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.matrix = nn.Parameter(torch.randn(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.stem(x), self.kernel, padding=1)
        standard = (self.standard - self.standard.mean((1, 2, 3), keepdim=True)) / self.standard.std((1, 2, 3), keepdim=True)
        y = F.conv2d(y, standard, padding=1)
        y = F.conv2d(y, bias=None, weight=self.regular * self.regular.norm(), padding=1) + self.regular.mean()
        return wrapped_by_its_author(y, self.matrix)


def test_functions_with_weights_are_layers() -> None:
    net = Functional()
    traced = trace(net, X)
    found = {layer.name: layer for layer in traced.graph.layers}
    assert list(found) == ["stem", "kernel", "standard", "regular", "matrix"]
    assert [layer.weight for layer in found.values()] == ["stem.weight", "kernel", "", "", "matrix"]
    assert ["computed" in layer.rigid for layer in found.values()] == [False, False, True, True, False]
    same(net, traced, X)
    rewired = swnet.transform(net, X, p=0.5, dead="allow", block=2)
    moved = {count.layer for count in swnet.ledger(rewired).layers if count.moved}
    assert moved >= {"standard", "regular"}
    assert list(rewired.state_dict()) == list(net.state_dict())


class Reading(nn.Module):
    """Pulls at its first layer's weight, as a penalty in the forward does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.b(self.a(x)), self.b.weight.square().sum()


def test_a_weight_that_the_forward_reads_is_known() -> None:
    found = trace(Reading(), X).graph.layer_by_name
    assert [found[name].rigid for name in "ab"] == ["", "the forward reads its weight elsewhere, too"]


def test_parametrized_layers_can_be_rewired_but_keep_their_width() -> None:
    class Symmetric(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.triu() + weight.triu(1).transpose(-1, -2)

    net = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)])
    parametrize.register_parametrization(net[2], "weight", Symmetric())
    traced = trace(net, torch.randn(2, 16))
    assert "parametrization" in traced.graph.layer_by_name["2"].rigid
    assert traced.graph.layer_by_name["2"].refused is None


def test_tied_weights_are_known_and_stay_tied() -> None:
    net = nn.Sequential(*[nn.Linear(16, 16) for _ in range(5)])
    net[2].weight = net[1].weight
    x = torch.randn(2, 16)
    assert trace(net, x).graph.layer_by_name["1"].rigid == "it shares its weight with 2.weight"
    options: list[dict[str, Any]] = [{"wiring": "kernel"}, {"density": 0.5, "block": 4}, {"dead": "allow", "block": 4}]
    for asked in options:
        rewired = swnet.transform(net, x, p=0.5, head=True, **asked)
        assert rewired.get_parameter("1.weight") is rewired.get_parameter("2.weight")
        counts = {count.layer: count for count in swnet.ledger(rewired).layers}
        assert counts["3"].moved or counts["3"].pruned
        assert "density" not in asked or not counts["2"].pruned


def test_an_argument_that_was_traced_with_a_value_refuses_others() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor, mode: str = "near", scale: float = 1.0) -> Tensor:
            y = self.a(x)
            return self.b(y * scale if mode == "near" else -y)

    rewired = swnet.transform(Choosing(), X, p=0.0)
    rewired(X, "near", 1.0)
    with pytest.raises(AssertionError, match="mode was traced as 'near'"):
        rewired(X, "far")


def test_sizes_that_python_decides_by_are_reported_as_fixed() -> None:
    assert trace(Net(by_shape), X).steps.fixed == ()
    assert trace(Net(lambda net, x: net.b(torch.stack([net.a(one[None])[0] for one in x]))), X).steps.fixed == ("batch size",)
    assert trace(Net(lambda net, x: net.b(net.a(x)).view(len(x), -1, int(x.shape[2]) ** 2)), X).steps.fixed == ("image size",)


def by_length(net: Net, x: Tensor) -> Tensor:
    y = net.b(net.a(x))
    return torch.stack([y.view(len(x), 1, -1), y.reshape(1, int(x.shape[0]) * 2, -1).view(len(x), 1, -1)])


def test_the_batch_size_is_free_even_where_python_has_made_it_a_number() -> None:
    net = Net(by_length)
    traced = trace(net, X)
    assert traced.steps.fixed == ()
    same(net, traced, torch.randn(7, 3, 8, 8))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, as it copies an exported program
def test_an_exported_program_is_rewired() -> None:
    net = nn.Sequential(*[nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), nn.ReLU()) for i in range(5)])
    exported = torch.export.export(net, (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    traced = trace(exported.module(), X)
    assert not traced.graph.opaque
    assert [layer.weight for layer in traced.graph.layers] == [f"{place}.0.weight" for place in range(5)]
    assert torch.equal(swnet.transform(exported, X, p=0.0)(X), net(X))
    rewired = swnet.transform(exported, X, p=0.5, dead="allow", block=2)
    assert swnet.ledger(rewired).links_moved
    assert rewired(torch.randn(5, 3, 8, 8)).shape == (5, 8, 8, 8)


def test_a_graph_module_is_rewired() -> None:
    net = nn.Sequential(*[nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), nn.ReLU()) for i in range(5)])
    assert torch.equal(swnet.transform(fx.symbolic_trace(net), X, p=0.0)(X), net(X))
    assert torch.equal(swnet.transform(torch.compile(net, backend="eager"), X, p=0.0)(X), net(X))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_wrappers_that_hide_the_model_are_refused_with_what_to_do() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    with pytest.raises(swnet.SwnetError, match=r"pass the model inside, model\.module"):
        swnet.transform(nn.DataParallel(net), X)
    with pytest.raises(swnet.SwnetError, match=r"pass the nn\.Module it was made from"):
        swnet.transform(torch.jit.script(net), X)


def test_a_compiled_part_is_followed_as_if_it_were_not() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), torch.compile(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), backend="eager"))
    assert [layer.name for layer in trace(net, X).graph.layers] == ["0", "1._orig_mod.0"]
    rewired = swnet.transform(net, X, p=0.0)
    with torch.no_grad():
        assert torch.equal(rewired(X), net(X))
    assert list(rewired.state_dict()) == list(net.state_dict())


class Inputs(nn.Module):
    """Takes inputs of any kind: nested ones, none at all, and as many more as are given."""

    def __init__(self, take: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self.take = Net(lambda net, x: net.b(net.a(x))), take

    def forward(self, x: Any, mask: Tensor | None = None, flag: bool = False, *more: Tensor, **named: Any) -> Tensor:
        x = self.take(x) if mask is None else self.take(x) * mask
        return self.net(sum(more, -x if flag else x), **named)


@pytest.mark.parametrize(
    ("take", "inputs"),
    [
        (lambda x: x, (X,)),
        (lambda x: x, (X, None, True)),
        (lambda x: x, (X, X > 0, False, X, X)),
        (lambda x: x["image"][0] if len(x) == 1 else None, ({"image": [X]},)),
        (lambda x: torch.stack(list(x[0])).sum(0) + x[1], (([X, X], X), None, True, X)),
    ],
)
def test_inputs_of_any_kind(take: Callable[..., Tensor], inputs: tuple[Any, ...]) -> None:
    net = Inputs(take)
    assert torch.equal(swnet.transform(net, inputs, p=0.0)(*inputs), net(*inputs))


class Kept(nn.Module):
    """Hangs a hook on its first layer as it runs for the first time, and reads what the hook has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), nn.Conv2d(8, 8, 1)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.a._forward_hooks and x.shape[0] > 0:
            self.a.register_forward_hook(lambda module, inputs, output: self.kept.append(output))
        y = self.b(self.a(x))
        return y + self.kept.pop()


def test_hooks_that_the_forward_itself_hangs_on_are_followed() -> None:
    net = Kept()
    rewired = swnet.transform(net, X, p=0.0)
    assert [layer.name for layer in trace(net, X).graph.layers] == ["a.0", "b"]
    assert not net.a._forward_hooks
    assert torch.equal(rewired(X), net(X))
    with pytest.raises(swnet.SwnetError, match="pop from empty list"):  # a hook that was there before stays a secret of its module
        trace(net, X)


def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Add an argument unless it is given, as output classes of some libraries are chosen."""

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        flag = kwargs.pop("flag", None)
        return forward(self, *args, **kwargs, flag=bool(flag))

    return wrapper


@dataclasses.dataclass
class Fixed(OrderedDict[str, Any]):
    """An output class that is a dictionary, and lets nobody update it."""

    logits: Tensor | None = None
    maps: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                super().__setitem__(field.name, getattr(self, field.name))

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError


class Decorated(nn.Module):
    """Has a decorated forward, an output class of its own, and a part that stays a call and returns one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.part, self.b = nn.Conv2d(3, 8, 1), Part(), nn.Conv2d(8, 8, 1)

    @decorated
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool | None = None, **more: Any) -> Fixed:
        y = self.part(self.a(x if mask is None else x * mask)).logits
        return Fixed(self.b(y), (y, -y) if flag else (y,))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Fixed:
        y = self.conv(x)
        return Fixed(y if y.mean() > 0 else -y)


def test_a_decorated_forward_is_called_as_the_user_calls_it() -> None:
    net = Decorated()
    rewired = swnet.transform(net, X, p=0.0)
    ours, theirs = rewired(X), net(X)
    assert type(ours) is type(theirs)
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours.logits, theirs.logits)
    with pytest.raises(AssertionError, match="can be no others"):
        rewired(X, other=1)


class Straying(nn.Module):
    """Without weights, and now the identity, now not: what a look inside shows once need not hold the next time."""

    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.5 else x.flip(0) @ x.mT @ x


def test_a_module_that_draws_in_python_is_not_looked_into() -> None:
    net = Net(lambda net, x: net.b(net.middle(net.a(x))))  # type: ignore[operator]  # a submodule
    net.middle = Straying()
    for seed in range(6):
        random.seed(seed)
        graph = trace(net, X).graph
        feature = graph.feature_by_name[graph.layer_by_name["b"].feature]
        assert {graph.producers[run.producer].kind for run in feature.runs} == {"opaque"}
