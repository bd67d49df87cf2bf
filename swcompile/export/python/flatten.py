"""Flatten what tracing left as one call: the graph of a module in calls of torch.nn's modules and torch's functions alone.

before: y = features_0_1(x)                     # a LayerNorm2d of torchvision's
after:  permute = torch.permute(x, ...); layer_norm = F.layer_norm(permute, (96,), weight, bias); ...

and one graph for both modes where they differ in truth values alone: functional dropout, for one, reads `self.training` again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from swcompile.errors import SwnetError, first_line
from swcompile.modules import MASKED, RewiredModule

_MASKED = tuple(MASKED.values())


class Written(str):
    """An expression that stands in a graph as it is to be written."""

    __slots__ = ()


TRAINING = Written("self.training")
NOT_TRAINING = Written("not self.training")


def flattened(module: RewiredModule) -> tuple[fx.Graph, fx.Graph | None]:
    """Return the graph for both modes; or the one for train mode and that for eval mode, where they have other operations.

    Raises SwnetError for a module of the model's own that cannot be taken apart.
    """
    in_training, in_eval = (_flat(module, graph, training) for graph, training in _modes(module))
    merged = _merged(in_training, in_eval)
    return (in_training, in_eval) if merged is None else (merged, None)


def _modes(module: RewiredModule) -> Iterator[tuple[fx.Graph, bool]]:
    yield copy.deepcopy(module.graphs[0]), True
    yield copy.deepcopy(module.graphs[-1]), False


def is_known(module: nn.Module) -> bool:
    """Whether a call of a module can be written as it is: of torch.nn's or masked, and so whatever lies inside."""
    if getattr(nn, type(module).__name__, None) is type(module):
        holds_any = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        return not holds_any or all(map(is_known, module.children()))
    return type(module) in _MASKED


def _flat(module: RewiredModule, graph: fx.Graph, training: bool) -> fx.Graph:
    """Put the operations of a module in the place of its call, for each one that is not known."""
    for node in [node for node in graph.nodes if node.op == "call_module"]:
        called = module.get_submodule(str(node.target))
        if not is_known(called):
            _graft(graph, node, _inside(str(node.target), called, training))
    graph.lint()
    return graph


class _Inside(fx.Tracer):
    """Traces into everything but torch.nn's own modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_known(m)


def _inside(path: str, module: nn.Module, training: bool) -> fx.Graph:
    """Return the graph of a module's forward in one mode, by tracing a copy: fx keeps constants on what it traces."""
    copied = copy.deepcopy(module).train(training)
    held = dict((*copied.named_parameters(), *copied.named_buffers()))
    versions = [tensor._version for tensor in held.values()]
    try:
        graph = _Inside().trace(copied)
    except Exception as error:  # whatever its forward makes of a proxy
        raise _opaque(path, module, first_line(error)) from error
    if any(node.op == "get_attr" and node.target not in held for node in graph.nodes):
        raise _opaque(path, module, "it computes with tensors of its own before it comes to its input")
    if [tensor._version for tensor in held.values()] != versions:
        raise _opaque(path, module, "it writes into a buffer of its own")
    return graph


def _opaque(path: str, module: nn.Module, why: str) -> SwnetError:
    return SwnetError(
        f"{path} is a {type(module).__name__}, of a class that only its own code can run, and tracing does not get through it "
        f"({why}). Replace it by modules of torch.nn, or export to torch-export or onnx."
    )


def _graft(graph: fx.Graph, call: fx.Node, inside: fx.Graph) -> None:
    """Replace a call by the nodes of a graph, whose modules and parameters lie under the path called."""
    given = list(call.args)
    values: dict[fx.Node, Any] = {}
    with graph.inserting_before(call):
        for node in inside.nodes:
            if node.op == "placeholder":
                values[node] = _argument(node, given, call)
            elif node.op == "output":
                result = map_arg(node.args[0], values.__getitem__)
            else:
                made = values[node] = graph.node_copy(node, values.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    made.target = f"{call.target}.{node.target}"
    if not isinstance(result, fx.Node):
        raise SwnetError(f"{call.target} returns no single tensor, and cannot be taken apart. Export to torch-export or onnx.")
    call.replace_all_uses_with(result)
    graph.erase_node(call)


def _argument(node: fx.Node, given: list[Any], call: fx.Node) -> Any:
    """Return what a call gives for a parameter of the module's forward."""
    if given:
        return given.pop(0)
    return call.kwargs.get(str(node.target), node.args[0] if node.args else None)


def _merged(one: fx.Graph, other: fx.Graph) -> fx.Graph | None:
    """Return the graph of train mode with `self.training` where that of eval mode has another truth value; None if more differs."""
    twins: dict[fx.Node, fx.Node] = {}
    if len(one.nodes) != len(other.nodes):
        return None
    flags: list[tuple[fx.Node, Any]] = []
    for ours, theirs in zip(one.nodes, other.nodes, strict=True):
        if (ours.op, ours.target) != (theirs.op, theirs.target):
            return None
        try:
            flags.append((ours, _both((ours.args, ours.kwargs), (theirs.args, theirs.kwargs), twins)))
        except _DifferentError:
            return None
        twins[ours] = theirs
    for node, (args, kwargs) in flags:
        node.args, node.kwargs = args, kwargs
    return one


class _DifferentError(Exception):
    """Raised where two graphs differ in more than truth values."""


def _both(ours: Any, theirs: Any, twins: dict[fx.Node, fx.Node]) -> Any:
    """Return arguments that hold in both modes."""
    if isinstance(ours, fx.Node):
        if twins.get(ours) is theirs:
            return ours
    elif isinstance(ours, bool) and isinstance(theirs, bool):
        return ours if ours == theirs else TRAINING if ours else NOT_TRAINING
    elif isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return {key: _both(value, theirs[key], twins) for key, value in ours.items()}
    elif isinstance(ours, tuple | list) and isinstance(theirs, tuple | list) and len(ours) == len(theirs):
        return type(ours)(_both(one, other, twins) for one, other in zip(ours, theirs, strict=True))
    elif type(ours) is type(theirs) and ours == theirs:
        return ours
    raise _DifferentError
