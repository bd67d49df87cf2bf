"""swcompile.trace.capture: graphs of a copy, with the user's names and lines, and nothing of the user's touched."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # as users write it
from torch.utils.checkpoint import checkpoint_sequential

import swnet
from swcompile.errors import SwnetError
from swcompile.trace import trace, trace_structure
from swcompile.trace.capture import Capture, Subject, capture
from swcompile.trace.copies import copy_model, skeleton
from swcompile.trace.lines import WHERE
from swcompile.trace.shapes import describe_inputs


class Net(nn.Module):
    """Holds a block, a module without layers that contains control flow, and a functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.odd = Odd()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.odd(self.block(x))
        return F.dropout(self.conv(x), 0.5, self.training)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[1] > 3 else -x  # fx cannot trace this, and need not: no layer lies inside


X = torch.randn(2, 3, 8, 8)


def captures(net: nn.Module, inputs: object = X) -> Capture:
    """Return the graphs of a copy of a network."""
    root, mode = copy_model(net), FakeTensorMode(allow_non_fake_inputs=True)
    return capture(Subject(root, skeleton(root, mode), mode, describe_inputs(inputs)))


def test_modules_keep_their_names_and_only_those_with_layers_are_entered() -> None:
    graph = captures(Net()).train_graph
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["block.0", "block.1", "block.2", "odd", "conv"]


class Scale(nn.Module):
    """Holds a parameter, which pruning could not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Concat(nn.Module):
    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, 1)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class AsModules(nn.Module):
    """Shortcut, concat and activation are modules of the user's, as object detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if not at else 64, 64, 3, padding=1) for at in range(4))
        self.norm, self.last = nn.BatchNorm2d(128), nn.Conv2d(128, 8, 1)
        self.sum, self.concat, self.act = Sum(), Concat(), Swish()

    def forward(self, x: Tensor) -> Tensor:
        stem, *others = self.layers
        first = x = self.act(stem(x))
        for layer in others:
            x = self.sum(x, self.act(layer(x)))
        return self.act(self.last(torch.relu(self.norm(self.concat(first, x)))))


def test_what_is_written_as_a_module_is_rewired_pruned_and_lowered() -> None:
    model, x = AsModules(), torch.randn(2, 3, 8, 8)
    rewired = swnet.transform(model, x, p=0.3)
    assert swnet.ledger(rewired).links_moved > 0
    swnet.transform(model, x, p=0.2, density=0.5, verify=True)
    lowered = swnet.lower(model.eval(), x, backend="torch")
    with torch.no_grad():
        torch.testing.assert_close(lowered(x), model(x), rtol=1e-4, atol=1e-5)


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        COUNTED["calls"] = COUNTED.get("calls", 0) + 1
        return x


COUNTED: dict[str, int] = {}


class Align(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1)) if x.shape[-1] % 2 else x


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class Divide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x / self.by


class Halved(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training)


class Axis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.axis = 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], self.axis)


def helped(x: Tensor) -> Tensor:
    return x if x.shape[0] > 1 else -x


class Sets(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        setattr(x, "seen", True)  # noqa: B010  # a write that is a call
        return x * 1


class Helped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return helped(x)


@pytest.mark.parametrize(
    ("module", "followed"),
    [
        *((made, True) for made in (Swish(), Axis())),
        *((made, False) for made in (Counts(), Align(), Noise(), Divide(), Halved(), Helped(), Sets(), Odd())),
    ],
)
def test_only_plain_functions_are_followed(module: nn.Module, followed: bool) -> None:
    """What may count, decide, or be set later stays one call, and goes on doing so."""
    width = 64 * (1 + isinstance(module, Axis))
    model = nn.Sequential(nn.Conv2d(3, 64, 1), module, nn.Conv2d(width, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1)).eval()
    same = swnet.transform(model, torch.randn(2, 3, 8, 8), p=0.0)
    assert ("1" in {node.target for node in same.graph.nodes if node.op == "call_module"}) != followed
    COUNTED.clear()
    for shape in ((1, 3, 8, 8), (2, 3, 9, 9)):
        x = torch.randn(shape)
        assert torch.equal(same(x), model(x))
    assert COUNTED.get("calls", 4) == 4


def test_a_module_with_a_parameter_and_no_layer_stays_one_call() -> None:
    graph = captures(nn.Sequential(nn.Conv2d(3, 4, 1), Scale(), nn.Conv2d(4, 4, 1))).train_graph
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0", "1", "2"]


def test_each_node_knows_its_line_in_the_users_code() -> None:
    graph = captures(Net()).train_graph
    where = {node.name: node.meta[WHERE] for node in graph.nodes}
    path, line = where["conv"].rsplit(":", 1)
    assert path == __file__
    assert "F.dropout(self.conv(x)" in Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert where["dropout"] == where["conv"]
    assert where["block_0"] == where["odd"] != where["conv"]


def test_both_modes_are_traced_where_their_code_differs() -> None:
    captured = captures(Net())
    assert captured.eval_graph is not None
    (train,), (evaluation,) = ([node for node in graph.nodes if node.name == "dropout"]
                               for graph in (captured.train_graph, captured.eval_graph))  # fmt: skip
    assert (train.kwargs["training"], evaluation.kwargs["training"]) == (True, False)


def test_a_model_that_ignores_the_mode_has_one_graph() -> None:
    assert captures(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout())).eval_graph is None


def test_the_users_model_mode_buffers_and_random_state_are_untouched() -> None:
    model = Net()
    model.block.eval()
    modes = [module.training for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    trace(model, X)
    trace_structure(model, X)
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.block[2].inplace is True


def test_a_model_on_meta_can_be_analysed() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4096, 3), nn.ReLU(), nn.Conv2d(4096, 4096, 3), nn.ReLU(), nn.Conv2d(4096, 4, 3))
    graph = trace_structure(model, X).graph
    assert [layer.links for layer in graph.layers] == [3 * 4096, 4096 * 4096, 4 * 4096]


class ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.mean() > 0:
            return y
        return -y


def test_control_flow_over_values_is_one_error_with_the_line() -> None:
    with pytest.raises(SwnetError, match=r"ByValue cannot be traced: it decides by values, .* \(at .*test_capture\.py:\d+\)\."):
        trace(ByValue(), X)


def test_a_lazy_model_is_refused_with_what_to_do() -> None:
    with pytest.raises(SwnetError, match=r"0\.weight has no shape yet .* run the model once on an example"):
        trace(nn.Sequential(nn.LazyConv2d(4, 3)), X)
    with pytest.raises(SwnetError, match="run the model once"):
        trace_structure(nn.Sequential(nn.LazyConv2d(4, 3)), X)


def test_a_model_that_cannot_be_copied_is_refused_with_what_to_do() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.lock = threading.Lock()
    with pytest.raises(SwnetError, match=r"Sequential cannot be copied \(TypeError: .*out of the model's attributes"):
        trace(model, X)


def test_a_module_whose_result_nobody_reads_still_runs() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.count = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            self.count(y)
            return y

    graph = captures(Counting()).train_graph
    assert "count" in [node.target for node in graph.nodes]


class AllInPlace(nn.Module):
    """Two names for one tensor: what is written under one is read under the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = kept = self.conv(x)
        y += 1
        y[:, 0] = 0
        return kept * 2


def test_augmented_and_item_assignment_reach_every_name_of_a_tensor() -> None:
    model = AllInPlace()
    traced = trace(model, X)
    found = torch.fx.GraphModule(traced.root, traced.train_graph)(X)
    torch.testing.assert_close(found, model(X), rtol=0, atol=0)


class ValuesInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_looks_at_values_is_one_opaque_call() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 1), ValuesInside(), nn.Conv2d(4, 4, 1)), X)
    assert [name for name, _ in traced.graph.opaque] == ["_1 (ValuesInside)"]


# Models whose own code misbehaves when it is asked something


def small(**methods: object) -> nn.Module:
    """Return a model of two layers with these methods in place of nn.Module's."""

    def build(self: nn.Module) -> None:
        nn.Module.__init__(self)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    made: nn.Module = type("Small", (nn.Module,), {"__init__": build, "forward": forward, **methods})()
    return made


def raising(error: BaseException) -> object:
    def method(self: nn.Module, *_: object, **__: object) -> None:
        raise error

    return method


@pytest.mark.parametrize("how", [trace, trace_structure])
@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), KeyError("x"), type("OddError", (BaseException,), {})("x")])
@pytest.mark.parametrize("name", ["forward", "train", "__deepcopy__", "named_parameters"])
def test_whatever_the_models_code_raises_is_one_error(how, error, name) -> None:
    with pytest.raises(SwnetError, match=type(error).__name__):
        how(small(**{name: raising(error)}), torch.zeros(2, 4))


def test_an_interrupt_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        trace(small(forward=raising(KeyboardInterrupt())), torch.zeros(2, 4))


def test_an_exception_without_words() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            return 1 // 0 * ""

    with pytest.raises(SwnetError, match=r"The inputs \(2x4\) do not fit Small: OddError \(at .*test_capture\.py:\d+\)"):
        trace(small(forward=raising(OddError())), torch.zeros(2, 4))


@pytest.mark.parametrize("name", ["named_parameters", "named_buffers", "named_modules", "parameters", "modules"])
@pytest.mark.parametrize("answer", [None, 3, [3], ["xy"], [("x", 3)]])
def test_a_model_that_does_not_tell_what_it_holds(name, answer) -> None:
    model = small(**{name: lambda self, *_, **__: answer})
    with pytest.raises(SwnetError, match="Small does not tell which modules, parameters and buffers it has, and their mode"):
        trace(model, torch.zeros(2, 4))


def test_a_model_that_was_not_initialised_or_holds_itself() -> None:
    with pytest.raises(SwnetError, match=r"mode \(AttributeError: .*\)\. Call super\(\)\.__init__\(\) first"):
        trace(small(__init__=lambda self: None), torch.zeros(2, 4))
    model = small()
    del model.__dict__["training"]
    with pytest.raises(SwnetError, match=r"and their mode \(AttributeError: .*training"):
        trace(model, torch.zeros(2, 4))
    model = small()
    model.second = model
    with pytest.raises(SwnetError, match=r"does not tell which modules.*RecursionError"):
        trace(model, torch.zeros(2, 4))


@pytest.mark.parametrize("method", ["__setstate__", "__deepcopy__"])
def test_a_copy_that_is_not_like_the_model(method) -> None:
    with pytest.raises(SwnetError, match=r"Small cannot be copied .TypeError: its copy is no such module, "):
        trace(small(**{method: lambda self, _: None}), torch.zeros(2, 4))


def test_a_forward_that_does_not_say_what_it_takes() -> None:
    model = small()
    type(model).forward.__signature__ = 3  # type: ignore[attr-defined]
    for inputs in (torch.zeros(2, 4), None):
        with pytest.raises(
            SwnetError, match=r"The forward of Small does not say what it takes .*Write it as def forward\(self, x\)\."
        ):
            trace(model, inputs)


def test_what_forward_takes_away_is_there_again() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        self.first.bias = None
        del self.second
        return x

    model = small(forward=forward)
    traced = trace(model, torch.zeros(2, 4))
    assert {"first.bias", "second.bias"} <= set(dict(traced.root.named_parameters()))
    assert [layer.name for layer in traced.graph.layers] == ["first", "second"]


@pytest.mark.parametrize("name", ["train", "children", "named_children"])
@pytest.mark.parametrize("answer", [None, lambda self, *_: [()], lambda self, *_: 3])
def test_a_model_that_cannot_change_its_mode(name, answer) -> None:
    if (name, answer) == ("train", answer) and answer is not None:
        return  # which may give back anything
    with pytest.raises(
        SwnetError, match=r"Small cannot be put into train mode .*Leave train, eval and children as nn.Module has them"
    ):
        trace(small(**{name: answer}), torch.zeros(2, 4))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_no_example() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(4), torch.zeros(4)])
    with pytest.raises(SwnetError, match="An example input is a nested tensor, which has no shape to trace with; give a plain one"):
        trace(small(), nested)


def test_torch_logs_no_traceback_of_what_becomes_an_error(caplog: pytest.LogCaptureFixture) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.first(x) + torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(SwnetError, match="do not fit Small: RuntimeError"):
        trace(small(forward=forward), torch.zeros(2, 4))
    assert not caplog.records


class Raising(nn.Module):
    """Has no batch of two images in mind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 2:
            raise ValueError("not two")
        return self.conv(x)


def test_what_the_forward_itself_raises_is_told_with_the_inputs_that_made_it() -> None:
    with pytest.raises(SwnetError, match=r"\(2x3x8x8\) do not fit Raising: ValueError: not two \(at .*test_capture.py:\d+\)"):
        trace(Raising(), X)
    with pytest.raises(SwnetError, match=r"The inputs \(\{'x': \[2x3x8x8\]\}\) do not fit"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), ({"x": [X]},))


def test_modules_nested_deeper_than_the_stack_are_refused_with_what_to_do() -> None:
    model: nn.Module = nn.Conv2d(3, 4, 1)
    for _ in range(2000):
        model = nn.Sequential(model)
    for how in (trace, trace_structure):
        with pytest.raises(SwnetError, match=r"nested too deeply .*sys\.setrecursionlimit"):
            how(model, X)


def test_attributes_that_forward_assigns_are_told() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        self.calls += 1
        self.size = x.shape[1]
        self.first.seen.append(self.calls)
        return self.second(self.first(x))

    model = small(forward=forward)
    model.calls, model.size, model.first.seen = 0, 4, []
    assert trace(model, torch.zeros(2, 4)).steps.assigned == ("calls", "first.seen", "size")
    assert (model.calls, model.first.seen) == (0, [])
    assert trace(small(), torch.zeros(2, 4)).steps.assigned == ()


class MadeOnTheWay(nn.Module):
    """Calls modules that it makes in forward, as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if not place else 16, 16, 3, padding=1) for place in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = nn.Dropout(0.1)(nn.ReLU(inplace=True)(conv(x)))
        return nn.Softmax(1)(x) if x.shape[1] > 8 else x


@pytest.mark.parametrize("training", [True, False])
def test_modules_made_in_forward_are_followed_as_functions(training: bool) -> None:
    model = MadeOnTheWay()
    same, rewired = (swnet.transform(model, X, p=p, dead="allow").train(training) for p in (0.0, 0.5))
    outs = []
    for module in (model.train(training), same):
        torch.manual_seed(0)
        outs.append(module(X))
    assert torch.equal(*outs)
    assert swnet.ledger(rewired).links_moved
    assert [name for name, _ in swnet.analyze(model, X, points=2).opaque] == []


def test_layers_in_a_plain_list_are_refused_with_what_to_do() -> None:
    model = small(forward=lambda self, x: self.second(self.hidden[0](x)))
    model.hidden = [nn.Linear(4, 4)]
    with pytest.raises(SwnetError, match=r"it calls a Linear that it does not hold.*test_capture\.py:\d+.*nn\.ModuleList"):
        trace(model, torch.zeros(2, 4))


def test_a_model_of_torchs_modules_alone_has_no_lines() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert {layer.where for layer in trace(model, torch.zeros(2, 4)).graph.layers} == {""}


class Caller(nn.Module):
    """Calls a container of torch's, which runs the layers inside."""

    def __init__(self, container: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.container, self.call = container, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.container, x)  # the user's, too, but further out than the call itself


class Named(nn.Sequential):
    """A class of the user's that has no forward of its own."""


CONTAINERS: dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]] = {
    "a sequential": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), lambda container, x: container(x)),
    "nested": (nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(4, 4)))), lambda container, x: container(x)),
    "of a class without forward": (nn.Sequential(Named(nn.Linear(4, 4))), lambda container, x: container(x)),
    "from a list": (nn.ModuleList([nn.Sequential(nn.Linear(4, 4))]), lambda container, x: container[0](x)),
    "from a dictionary": (nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4))}), lambda container, x: container["a"](x)),
    "in steps": (
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        lambda container, x: checkpoint_sequential(container, 2, x, use_reentrant=False),
    ),
    "that decides by shapes": (nn.Sequential(nn.Linear(4, 4)), lambda container, x: container(x) if len(x) > 1 else x),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_layer_in_a_container_of_torchs_has_the_line_that_calls_the_container(name: str) -> None:
    container, call = CONTAINERS[name]
    layers = trace(nn.Sequential(Caller(container, call)), torch.zeros(2, 4)).graph.layers
    assert layers
    assert {layer.where for layer in layers} == {f"{__file__}:{call.__code__.co_firstlineno}"}


def test_a_layer_that_the_model_itself_runs_has_none_where_the_model_is_a_sequential() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Caller(nn.Sequential(nn.Linear(4, 4)), lambda container, x: container(x)))
    assert [bool(layer.where) for layer in trace(model, torch.zeros(2, 4)).graph.layers] == [False, True]
