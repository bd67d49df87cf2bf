"""Make in-place operations pure, so that a value read later is still the value that the graph shows.

A tap may read a feature long after the user's code has overwritten it: `nn.ReLU(inplace=True)` would hand it the activated map.
So the copy's modules lose `inplace`, and in-place functions and methods become their pure forms; whoever read the overwritten
tensor afterwards reads the new value. What writes into a *view* of another value (a slice, a reshape) or into a buffer of the
model stays as it is, and every value that shares its memory is marked, so that no tap reads it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.nn import functional

from swcompile.trace.names import name_of

PURE_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
}
_VIEW_METHODS = frozenset(
    "view reshape flatten unflatten transpose permute squeeze unsqueeze narrow chunk split tensor_split unbind select expand "
    "expand_as view_as swapaxes movedim diagonal unfold t contiguous detach".split()
)
_VIEW_FUNCTIONS = frozenset(
    [getattr(torch, name) for name in sorted(_VIEW_METHODS) if hasattr(torch, name)] + [operator.getitem, getattr]
)
_NOT_WRITING = frozenset(["requires_grad_", "share_memory_"])
_FILLING = frozenset(["bernoulli_", "random_", "set_", "resize_"])
"""In-place methods whose namesakes without the underscore do something else."""

AUGMENTED = "swcompile_augmented"
"""The key in `node.meta` of the operator that an augmented assignment (x += y) was written with, before it was made pure."""
SHARED_MEMORY = "swcompile_shared_memory"
"""The key in `node.meta` of values that an in-place operation writes into by way of a view."""
WRITES = "swcompile_writes"
"""The key in `node.meta` of operations that stayed in-place, and so are no dead code when nobody reads them."""
MEMORY = "swcompile_memory"
"""The key in `node.meta` of the storages that a value lives in, as observed in a run on fake tensors."""
WRITTEN = "swcompile_written"
"""The key in `node.meta` of the inputs whose version a call was observed to raise."""

NARROWS = "swcompile_narrows"
"""The key in `node.meta` of whether a call writes a result into a tensor of another dtype: half += float stays half."""


def purify(root: nn.Module, graphs: Sequence[fx.Graph]) -> frozenset[str]:
    """Make the graphs of a module pure, and return the paths of modules that worked in place and no longer do."""
    names = root.named_modules(remove_duplicate=False)
    in_place = {name for name, module in names if getattr(module, "inplace", False) is True}
    kept = set().union(*(purify_graph(graph, in_place) for graph in graphs))
    for graph in graphs:
        keep_in_place(graph, kept)
        for node in graph.nodes:
            node.meta.pop(MEMORY, None)
            node.meta.pop(WRITTEN, None)
            node.meta.pop(NARROWS, None)
    stay = {root.get_submodule(path) for path in kept}
    pure = frozenset(name for name in in_place if root.get_submodule(name) not in stay)
    for name in pure:
        root.get_submodule(name).inplace = False  # type: ignore[assignment]  # a plain attribute, for which nn.Module has no type
    return pure


def purify_graph(graph: fx.Graph, in_place: Container[str] = ()) -> set[str]:
    """Replace in-place functions, methods and operators by pure ones.

    before: y = relu_(x); z = x + 1          after: y = relu(x); z = y + 1

    `in_place` are the paths of modules that worked in place; returned are those that must go on doing so. What shares memory with
    what is known from MEMORY where a run was observed, else from the names of views.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    memory = _Memory(graph)
    kept: set[str] = set()
    for node in list(graph.nodes):
        for target in _overwritten(node, in_place):
            family = _aliases(target, memory)
            if not _has_pure_form(node, in_place) or target.op == "get_attr" or _seen_elsewhere(node, target, family, order):
                _leave_in_place(node, family)
                kept.update([str(node.target)] if node.op == "call_module" else [])
                continue
            _make_pure(node)
            memory.move(node, target, order)
            for user in [user for user in target.users if order[user] > order[node]]:
                user.replace_input_with(target, node)
    return kept


def keep_in_place(graph: fx.Graph, paths: Container[str]) -> None:
    """Mark what modules that stay in-place overwrite, at all of their sites: nobody may tap it."""
    for node in graph.nodes:
        if node.op == "call_module" and node.target in paths and node.all_input_nodes:
            _leave_in_place(node, {node.all_input_nodes[0]})


def _leave_in_place(node: fx.Node, family: Iterable[fx.Node]) -> None:
    for member in family:
        member.meta[SHARED_MEMORY] = True
    node.meta[WRITES] = True


class _Memory:
    """Which values live in which storage, as a run showed it and purifying changes it."""

    def __init__(self, graph: fx.Graph) -> None:
        self._tenants: dict[object, set[fx.Node]] = {}
        for node in graph.nodes:
            for storage in node.meta.get(MEMORY, ()):
                self._tenants.setdefault(storage, set()).add(node)

    def sharing(self, node: fx.Node) -> set[fx.Node]:
        """Return the values that share memory with one, itself included."""
        return {node}.union(*(self._tenants[storage] for storage in node.meta[MEMORY]))

    def move(self, node: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> None:
        """Give what a pure operation makes, and all later views of it, memory apart from its input's."""
        for storage in target.meta.get(MEMORY, ()):
            later = {tenant for tenant in self._tenants[storage] if order[tenant] >= order[node]}
            apart = object()
            self._tenants[storage] -= later
            self._tenants[apart] = later
            for tenant in later:
                tenant.meta[MEMORY] = (tenant.meta[MEMORY] - {storage}) | {apart}


def _seen_elsewhere(node: fx.Node, target: fx.Node, family: set[fx.Node], order: dict[fx.Node, int]) -> bool:
    """Whether somebody reads what `node` writes by way of another value than `target`: a view made of it before, or its base."""
    later = {member for member in family if order[member] >= order[node]}
    others = family - later - {target}
    return any(other.op == "get_attr" or any(order[user] > order[node] for user in other.users) for other in others)


def _has_pure_form(node: fx.Node, in_place: Container[str]) -> bool:
    if node.op == "call_module":
        return node.target in in_place
    if node.meta.get(NARROWS):
        return False
    if _in_place_flag(node) or node.target in PURE_OPERATORS:
        return True
    return (_pure_method(str(node.target)) if node.op == "call_method" else _pure_function(node.target)) is not None


def _overwritten(node: fx.Node, in_place: Container[str]) -> list[fx.Node]:
    """Return the values that a node writes into."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    if node.op == "call_module" and node.target in in_place:
        return node.all_input_nodes[:1]
    if _in_place_flag(node) or node.target is operator.setitem or named_in_place(node):
        return [given] if isinstance(given, fx.Node) else []
    return list(node.meta.get(WRITTEN, ()))


def named_in_place(node: fx.Node) -> bool:
    """Whether a call overwrites its first argument by its name: an augmented assignment, or one underscore at the end."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in PURE_OPERATORS:
        return True
    if getattr(node.target, "__module__", None) == "_operator":  # is_, not_, and_, or_: no Python keyword may be a name
        return False
    name = name_of(node.target)
    return name.endswith("_") and not name.endswith("__") and name not in _NOT_WRITING


def _in_place_flag(node: fx.Node) -> bool:
    return node.op == "call_function" and node.kwargs.get("inplace") is True


def _pure_function(function: Any) -> Callable[..., Any] | None:
    """Return torch.relu for torch.relu_, functional.elu for functional.elu_, and so on."""
    name = name_of(function)
    if not name.endswith("_") or name.startswith("_"):
        return None
    if isinstance(function, OpOverload):
        return getattr(getattr(torch.ops.aten, name[:-1], None), function._overloadname, None)
    for home in (torch, functional):
        if getattr(home, name, None) is function:
            return getattr(home, name[:-1], None) or getattr(functional, name[:-1], None)
    return None


def _pure_method(name: str) -> str | None:
    """Return relu for relu_; None for what only fills a tensor, such as normal_ and bernoulli_, which has no pure form."""
    pure = name[:-1]
    return pure if name not in _FILLING and callable(getattr(torch.Tensor, pure, None)) else None


def _aliases(node: fx.Node, memory: _Memory) -> set[fx.Node]:
    """Return every value that shares memory with `node` through views, `node` included.

    The pieces of one split lie side by side: they share memory with what was split, not with each other.
    """
    if MEMORY in node.meta:
        return {other for other in memory.sharing(node) if other is node or not _side_by_side(other, node)}
    family, pending = {node}, [node]
    siblings: set[fx.Node] = set()
    while pending:
        member = pending.pop()
        relatives: Iterable[fx.Node] = [] if member in siblings else [user for user in member.users if _shares(user)]
        if _shares(member):
            above = member.all_input_nodes[:1]
            relatives = [*relatives, *above]
            siblings.update(split for split in above if split not in family and _is_split(split))
        for relative in relatives:
            if relative not in family:
                family.add(relative)
                pending.append(relative)
    return family


def _side_by_side(left: fx.Node, right: fx.Node) -> bool:
    """Whether two values lie in different pieces of one split."""
    pieces = [_piece(left), _piece(right)]
    return None not in pieces and pieces[0] is not pieces[1] and len({piece.args[0] for piece in pieces if piece}) == 1


def _piece(node: fx.Node) -> fx.Node | None:
    """Return the piece of a split that a value is a view of."""
    while _shares(node) and node.all_input_nodes:
        above = node.all_input_nodes[0]
        if _is_split(above):
            return node
        node = above
    return None


def _is_split(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and name_of(node.target) in ("chunk", "split", "tensor_split", "unbind")


def _shares(node: fx.Node) -> bool:
    """Whether a node's result is its first input's memory: a view, or an operation that stayed in-place."""
    return WRITES in node.meta or is_view(node)


def is_view(node: fx.Node) -> bool:
    if node.op == "call_method" or isinstance(node.target, OpOverload):
        return name_of(node.target) in _VIEW_METHODS
    return (
        node.op == "call_function"
        and node.target in _VIEW_FUNCTIONS
        and node.args[1:2] not in (("shape",), ("dtype",), ("device",))
    )


def _make_pure(node: fx.Node) -> None:
    if node.op == "call_method":
        node.target = str(_pure_method(str(node.target)))
    elif node.target in PURE_OPERATORS:
        node.meta[AUGMENTED] = node.target
        node.target = PURE_OPERATORS[node.target]
    elif (pure := _pure_function(node.target)) is not None:
        node.target = pure
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
