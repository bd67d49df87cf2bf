"""Capture a model's forward as fx graphs: one for train mode, and one for eval mode where it differs."""

from __future__ import annotations

import copy
import operator
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swcompile.errors import SwnetError
from swcompile.trace.purify import PURE_OPERATORS, WRITES, purify_graph, purify_modules

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
    """A pure copy of the user's model with its graphs.

    `eval_graph` is None where both modes run the same code; `in_place` are the paths of modules that worked in place.
    """

    root: nn.Module
    train_graph: fx.Graph
    eval_graph: fx.Graph | None
    in_place: frozenset[str]


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


def capture(root: nn.Module) -> Capture:
    """Trace `root`, which must be ours to change, in train and in eval mode.

    fx bakes `self.training` into its graphs: functional dropout, stochastic depth and auxiliary heads would stay in the mode of
    the trace. So both are traced, and only models whose code is the same in both get by with one graph.
    """
    in_place = purify_modules(root)
    modes = {module: module.training for module in root.modules()}
    try:
        train_graph = _trace(root.train())
        eval_graph = _trace(root.eval())
    finally:
        for module, training in modes.items():
            module.training = training
    same = train_graph.python_code("self").src == eval_graph.python_code("self").src
    return Capture(root, train_graph, None if same else eval_graph, in_place)


def _trace(root: nn.Module) -> fx.Graph:
    try:
        graph = LayerTracer(root).trace(root)
    except SwnetError:
        raise
    except Exception as error:
        raise SwnetError(
            f"{type(root).__name__} cannot be traced: {type(error).__name__}: {error} "
            f"(at {_last_user_line(error) or 'an unknown line'}). torch.fx follows the forward without values; make that line "
            "independent of tensor values and of control flow over them."
        ) from error
    purify_graph(graph)
    graph.eliminate_dead_code(is_impure_node=_keeps)
    for node in graph.nodes:
        if not node.users:
            node.meta[UNREAD] = True
    graph.lint()
    return graph


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
