"""Capture a model's forward as fx graphs: one for train mode, and one for eval mode where it differs."""

from __future__ import annotations

import copy
import inspect
import operator
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from swcompile.errors import SwnetError
from swcompile.trace.purify import PURE_OPERATORS, WRITES, named_in_place

LAYER_TYPES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
WHERE = "swcompile_where"
"""The key in `node.meta` of the user's file and line."""
UNREAD = "swcompile_unread"
"""The key in `node.meta` of calls whose result the user's own code ignores: they may count something, and stay."""

_OURS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep)


@dataclass
class Capture:
    """A copy of the user's model with its graphs. `eval_graph` is None where both modes run the same code."""

    root: nn.Module
    train_graph: fx.Graph
    eval_graph: fx.Graph | None


class _Proxy(fx.Proxy):
    """A proxy that can be written into: x[:, 0] = y and x += y become nodes, which purification then treats as in-place operations.

    fx alone turns x += y into x = x + y, and another name for the same tensor would keep the old value.
    """

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _augmented(in_place: Callable[[Any, Any], Any], pure: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    def assign(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", pure if _is_number(self.node) else in_place, (self, other), {})

    return assign


for _in_place, _pure in PURE_OPERATORS.items():
    setattr(_Proxy, f"__{_in_place.__name__}__", _augmented(_in_place, _pure))


def _is_number(node: fx.Node) -> bool:
    """Whether a node computes with sizes only, which nothing can overwrite."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim"):
        return True
    return node.op == "call_function" and bool(node.all_input_nodes) and all(map(_is_number, node.all_input_nodes))


class LayerTracer(fx.Tracer):
    """Enter a module only if a layer lies inside.

    Everything else stays a call: fewer models fail to trace, norms keep their buffers, and modules go on following `.train()`.
    """

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self._holders = _modules_with_layers(root)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, LAYER_TYPES) or id(m) not in self._holders:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta[WHERE] = _user_line()
        return node


def _modules_with_layers(root: nn.Module) -> set[int]:
    """Return the ids of modules that hold a layer somewhere below them."""
    parents: dict[int, list[nn.Module]] = {}
    for module in root.modules():
        for child in module.children():
            parents.setdefault(id(child), []).append(module)
    pending: list[nn.Module] = [module for module in root.modules() if isinstance(module, LAYER_TYPES)]
    found: set[int] = set()
    while pending:
        for parent in parents.get(id(pending.pop()), ()):
            if id(parent) not in found:
                found.add(id(parent))
                pending.append(parent)
    return found


def _user_line() -> str:
    """Return file:line of the innermost frame that is neither torch's nor ours.

    A walk over frames, not a formatted stack: 10,000 layers cost 20 ms instead of many seconds.
    """
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_OURS) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]  # the outermost frame ends the loop
    return ""


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model, parameters included. Raises SwnetError where it cannot be copied."""
    return _deepcopy(model, {})


def skeleton(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Copy a model with fake parameters and buffers: its structure at no memory, whatever device it is on.

    Fake tensors live on the CPU even for a model on `meta`, so that constants made in `forward` can meet them.
    """
    memo: dict[int, Any] = {}
    with mode:
        for tensor in (*model.parameters(), *model.buffers()):
            fake: torch.Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    return _deepcopy(model, memo)


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    _refuse_lazy(model)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise SwnetError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); swcompile works on a copy. "
            "Keep tensors that are results of computations out of the model's attributes, or detach them."
        ) from error


def _refuse_lazy(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
            raise SwnetError(f"{name} has no shape yet (a lazy module); run the model once on an example before transforming it.")


def capture(root: nn.Module, arguments: int) -> Capture:
    """Trace `root`, which must be ours to change, in train and in eval mode. The graphs are as the user wrote them, not yet pure.

    fx bakes `self.training` into its graphs: functional dropout, stochastic depth and auxiliary heads would stay in the mode of
    the trace. So both are traced, and only models whose code is the same in both get by with one graph. `arguments` is how many
    inputs the example has; what it leaves out keeps its default.
    """
    modes = {module: module.training for module in root.modules()}
    try:
        train_graph, train_constants = _trace(root.train(), arguments)
        eval_graph, eval_constants = _trace(root.eval(), arguments)
        same = _code(train_graph) == _code(eval_graph) and _equal(train_constants, eval_constants)
        _register(root, train_graph, train_constants)
        if not same:
            eval_graph, eval_constants = _trace(root, arguments)
            _register(root, eval_graph, eval_constants)
    finally:
        for module, training in modes.items():
            module.training = training
    return Capture(root, train_graph, None if same else eval_graph)


Constants = dict[str, torch.Tensor]


def _trace(root: nn.Module, arguments: int) -> tuple[fx.Graph, Constants]:
    """Return the graph of the present mode, and the tensors that forward made without looking at its input."""
    had = set(root.__dict__)
    state = {module: (dict(module.__dict__), dict(module._buffers)) for module in root.modules()}
    try:
        with _random_state() as drawn:
            omitted = _omitted(root, arguments)
            graph = LayerTracer(root).trace(root, omitted)
            _restore_names(graph, omitted)
            _write_back(root, graph, state)
    except SwnetError:
        raise
    except Exception as error:
        raise SwnetError(
            f"{type(root).__name__} cannot be traced: {type(error).__name__}: {error} "
            f"(at {_last_user_line(error) or 'an unknown line'}). torch.fx follows the forward without values; make that line "
            "independent of tensor values and of control flow over them."
        ) from error
    if drawn():
        raise SwnetError(
            f"The forward of {type(root).__name__} draws random numbers that do not depend on its input, and tracing would freeze "
            "them. Draw them with a shape taken from the input, as in torch.rand(x.shape[0], 1), or in a module of their own."
        )
    fresh = [name for name in root.__dict__ if name not in had and isinstance(root.__dict__[name], torch.Tensor)]
    return graph, {name: root.__dict__.pop(name) for name in fresh}


def _write_back(root: nn.Module, graph: fx.Graph, state: dict[nn.Module, tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Turn what forward assigned to buffers into writes, and put the real buffers and attributes back.

    self.n = self.n + 1 leaves a proxy where the buffer was, and would count no further; it becomes self.n.copy_(self.n + 1).
    """
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    for path, module in root.named_modules():
        attributes, buffers = state[module]
        for name, value in module._buffers.items():
            if isinstance(value, fx.Proxy) and not _writes_to(value.node, f"{path}.{name}".lstrip(".")):
                with graph.inserting_before(output):
                    buffer = graph.get_attr(f"{path}.{name}".lstrip("."))
                    graph.call_method("copy_", (buffer, value.node))
        module._buffers.update(buffers)
        for name, value in list(module.__dict__.items()):
            if isinstance(value, fx.Proxy):
                module.__dict__.pop(name)
                module.__dict__.update({name: attributes[name]} if name in attributes else {})


def _writes_to(node: fx.Node, path: str) -> bool:
    """Whether a node's result is the buffer at `path` itself, written in place."""
    while node.op != "get_attr" and node.args and isinstance(node.args[0], fx.Node) and named_in_place(node):
        node = node.args[0]
    return node.op == "get_attr" and node.target == path


def _omitted(root: nn.Module, arguments: int) -> dict[str, Any] | None:
    """Return the arguments that the example leaves out and whose default decides control flow: None, True and False.

    Tracing takes them as they are, and the result refuses other values; numbers stay arguments.
    """
    given = list(inspect.signature(root.forward).parameters.values())
    positional = [place for place in given if place.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    left_out = [*positional[arguments:], *(place for place in given if place.kind is inspect.Parameter.KEYWORD_ONLY)]
    return {place.name: place.default for place in left_out if place.default is None or isinstance(place.default, bool)} or None


def _restore_names(graph: fx.Graph, omitted: dict[str, Any] | None) -> None:
    """Give arguments that were fixed their names back: fx numbers them."""
    for node in graph.nodes:
        name = str(node.target).removesuffix("_1")
        if node.op == "placeholder" and omitted is not None and name in omitted:
            node.target = name
            node._rename(name)


@contextmanager
def _random_state() -> Iterator[Callable[[], bool]]:
    """Leave the caller's random state as it was. Yields a function that tells whether anything was drawn inside."""
    before, drawn = _states(), False
    try:
        yield lambda: drawn
    finally:
        drawn = _told(_states()) != _told(before)
        with _disable_current_modes():
            torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


_States = tuple[torch.Tensor, Any, Any]


def _states() -> _States:
    with _disable_current_modes():  # under fake tensors the state would be one, and hold nothing
        return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _told(states: _States) -> tuple[bytes, str, str]:
    with _disable_current_modes():
        return states[0].numpy().tobytes(), str(states[1]), str(states[2])


def _code(graph: fx.Graph) -> str:
    return graph.python_code("self").src


def _equal(left: Constants, right: Constants) -> bool:
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and (left[name].device.type == "meta" or bool(torch.equal(left[name], right[name])))
        for name in left
    )


def _register(root: nn.Module, graph: fx.Graph, constants: Constants) -> None:
    """Make tensors that are neither parameters nor buffers into buffers, so that they move with the model; they are not saved."""
    root.__dict__.update(constants)
    for node in graph.nodes:
        path, _, name = str(node.target).rpartition(".")
        owner = root.get_submodule(path) if node.op == "get_attr" else None
        if owner is not None and isinstance(owner.__dict__.get(name), torch.Tensor):
            owner.register_buffer(name, owner.__dict__.pop(name), persistent=False)


def tidy(graph: fx.Graph) -> None:
    """Drop what does nothing, and mark what the user's own code ignores."""
    graph.eliminate_dead_code(is_impure_node=_keeps)
    for node in graph.nodes:
        if not node.users:
            node.meta[UNREAD] = True
    graph.lint()


def _keeps(node: fx.Node) -> bool:
    """Keep calls of modules and whatever fx calls impure: a module nobody reads may still count something."""
    return node.op in ("call_module", "placeholder", "output") or WRITES in node.meta or bool(node.is_impure())


def _last_user_line(error: BaseException) -> str:
    line = ""
    step = error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if not name.startswith(_OURS) and not name.startswith("<"):
            line = f"{name}:{step.tb_lineno}"
        step = step.tb_next
    return line
