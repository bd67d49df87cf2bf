"""Write a graph as the body of a forward: one plain statement an operation, a name for what is read again, `y` for what is not.

y = torch.cat([layer1_relu_c0, layer1_relu_c16, max_pooled(stem_c8, layer1_relu)], 1)
y = self.layer2.conv(y)
layer2_relu = self.layer2.relu(y)
layer2_relu_c0, layer2_relu_c32 = layer2_relu.split([32, 32], 1)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import fx, nn

from swcompile.errors import SwnetError
from swcompile.export.python import layout
from swcompile.export.python.expressions import (
    AUGMENTED,
    INFIX,
    PREFIX,
    Expression,
    arguments,
    function,
    index,
    literal,
    without_defaults,
)
from swcompile.export.python.names import Names, class_name, is_named_tuple
from swcompile.export.python.nodes import gathers, is_cut, is_inlined, parts_of, sizes_of
from swcompile.modules import resample
from swcompile.trace.purify import WRITES
from swcompile.trace.shapes import spec_of

RESAMPLERS = {"max": "max_pooled", "avg": "average_pooled", "stride": "subsampled"}
"""The functions of the written module that bring a map to another one's size."""


class Statements:
    """The statements of one graph. `helpers` are the functions and classes of ours that they call, each once."""

    def __init__(self, graph: fx.Graph, root: nn.Module, reach: Callable[[str], str]) -> None:
        self._root, self._reach = root, reach
        self._nodes = [node for node in graph.nodes if node.op != "output"]
        self._output = next(node for node in graph.nodes if node.op == "output")
        self._names = Names(self._nodes, root)
        self._inlined = {node for node in self._nodes if is_inlined(node)}
        self._unpacked = {node: parts for node in self._nodes if (parts := parts_of(node)) is not None}
        self._parts = {part for parts in self._unpacked.values() for part in parts if part is not None}
        self._own = [node for node in self._nodes if self._is_statement(node)]
        self.helpers: dict[str, Any] = {}

    def _is_statement(self, node: fx.Node) -> bool:
        return node.op != "placeholder" and node not in self._inlined and node not in self._parts

    def lines(self, indent: int = 8) -> list[str]:
        """Return the statements, with a comment where another part of the original begins."""
        made: list[str] = []
        last: list[str] = []
        part = ""
        for place, node in enumerate(self._own):
            begun = self._part(place)
            if begun != part:
                named = [f"{' ' * indent}# {begun} ({type(self._root.get_submodule(begun)).__name__})"] if begun else []
                made += [*([""] if made else []), *named]
                part = begun
            last = self._statement(node, self._own[place + 1] if place + 1 < len(self._own) else self._output, indent)
            made += last
        if not last or not last[0].lstrip().startswith("return "):
            made += layout.statement(f"return {literal(self._output.args[0], self._look)}", indent)
        return made

    def _part(self, place: int) -> str:
        """Return the path of the part of the original that a statement belongs to; a gather belongs to its reader's."""
        node = self._own[place]
        if node.op == "call_module":
            return self._around(str(node.target))
        around = range(place, len(self._own)) if gathers(node) else range(place, -1, -1)
        calls = (str(self._own[other].target) for other in around if self._own[other].op == "call_module")
        found = next(calls, None)
        return "" if found is None else self._around(found)

    def _around(self, path: str) -> str:
        """Return the path of the block that a layer lies in: of its innermost parts the plain sequences do not count."""
        while "." in path:
            path = path.rpartition(".")[0]
            if not isinstance(self._root.get_submodule(path), nn.Sequential | nn.ModuleList):
                return path
        return path if isinstance(self._root.get_submodule(path), nn.Sequential) else ""

    def _statement(self, node: fx.Node, following: fx.Node, indent: int) -> list[str]:
        """Return the lines that compute a node's value and give it a name."""
        assigned = _assignment(node)
        if assigned is not None:
            return layout.statement(assigned(node, self._look), indent)
        value = self._call(node).text
        if node in self._unpacked:
            return layout.unpacking(self._targets(node), value, indent)
        if not node.users:
            return layout.statement(value, indent)
        symbol = AUGMENTED.get(node.target) if callable(node.target) else None
        if symbol and WRITES in node.meta:
            written = self._operand(node.args[0])  # a name, or self.steps
            self._names.same(node, written)
            return layout.statement(f"{written} {symbol}= {self._operand(node.args[1])}", indent)
        if following is self._output and following.args[0] is node:
            return layout.statement(f"return {value}", indent)
        if set(self._readers(node)) == {following} and not self._lends_name(node):
            self._names.passing(node)
        return layout.statement(f"{self._names[node]} = {value}", indent)

    def _lends_name(self, node: fx.Node) -> bool:
        """Whether other values are called after this one: its pieces, or what is written into it."""
        return any(user in self._unpacked or (user.target in AUGMENTED and WRITES in user.meta) for user in node.users)

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the statements in which a value is written."""
        for user in node.users:
            if user in self._inlined:
                yield from self._readers(user)
            else:
                yield user

    def _targets(self, node: fx.Node) -> list[str]:
        """Return what the pieces of a split are assigned to."""
        sizes = node.args[1] if is_cut(node) else None
        starts = list(accumulate(sizes[:-1], initial=0)) if isinstance(sizes, tuple | list) else []
        names: list[str] = []
        for place, part in enumerate(self._unpacked[node]):
            if part is None:
                names.append("_")
                continue
            if starts:
                self._names.piece(part, node.args[0], starts[place])
            names.append(self._names[part])
        return names

    def _look(self, node: fx.Node) -> Expression:
        return self._call(node) if node in self._inlined else Expression(self._names[node])

    def _call(self, node: fx.Node) -> Expression:
        """Return what computes a node's value."""
        if node.op == "get_attr":
            return Expression(self._reach(str(node.target)))
        if node.op == "call_module":
            return Expression(f"{self._reach(str(node.target))}({arguments(node.args, node.kwargs, self._look)})")
        if node.op == "call_method":
            owner, *rest = node.args
            text = literal(owner, self._look) if not isinstance(owner, fx.Node) else self._look(owner).operand
            return Expression(f"{text}.{node.target}({arguments(tuple(rest), node.kwargs, self._look)})")
        return self._function(node)

    def _function(self, node: fx.Node) -> Expression:
        target: Any = node.target
        args = node.args
        if target is resample:
            return self._resampled(node)
        if is_cut(node) and isinstance(args[0], fx.Node):
            return Expression(f"{self._look(args[0]).operand}.split({literal(sizes_of(args[1]), self._look)}, dim={args[2]})")
        symbol = INFIX.get(target) or AUGMENTED.get(target)
        if symbol and len(args) == 2 and not node.kwargs:
            left, right = (self._operand(value) for value in args)
            return Expression(f"{left} {symbol} {right}", atomic=False)
        if target in PREFIX:
            return Expression(f"{PREFIX[target]}{self._operand(args[0])}", atomic=False)
        if target is operator.getitem:
            return Expression(f"{self._operand(args[0])}[{index(args[1], self._look)}]")
        if target is getattr and len(args) == 2:
            return Expression(f"{self._operand(args[0])}.{args[1]}")
        return Expression(f"{self._named(target)}({arguments(args, without_defaults(target, node.kwargs), self._look)})")

    def _operand(self, value: Any) -> str:
        return self._look(value).operand if isinstance(value, fx.Node) else literal(value, self._look)

    def _named(self, target: Any) -> str:
        """Return the name of a function: of torch's, or of one that is written beside the module."""
        qualified = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
        if qualified in KNOWN:
            self.helpers[KNOWN[qualified]] = None
            return KNOWN[qualified]
        if is_named_tuple(target):
            name = class_name(target)
            if self.helpers.setdefault(name, target) is not target:
                raise SwnetError(f"Two classes of named tuples are called {name}. Rename one, or export to torch-export or onnx.")
            return name
        return function(target)

    def _resampled(self, node: fx.Node) -> Expression:
        source, like, kind = node.args
        name = RESAMPLERS[str(kind)]
        spec, wanted = (spec_of(one) if isinstance(one, fx.Node) else None for one in (source, like))
        assert spec is not None, "shapes were written into the graph"
        assert wanted is not None, "shapes were written into the graph"
        self.helpers.setdefault(name, set()).add((len(spec.shape) - 2, len(wanted.shape) < len(spec.shape)))
        return Expression(f"{name}({literal(source, self._look)}, {literal(like, self._look)})")


KNOWN = {"torchvision.ops.stochastic_depth.stochastic_depth": "stochastic_depth"}
"""Functions of torchvision's that networks call, by the names of those written in their place."""


def _assignment(node: fx.Node) -> Callable[[fx.Node, Callable[[fx.Node], Expression]], str] | None:
    """Return how to write what is a statement in Python: an assignment to places, or to an attribute."""
    if node.op != "call_function":
        return None
    if node.target is operator.setitem:
        return lambda node, look: f"{literal(node.args[0], look)}[{index(node.args[1], look)}] = {literal(node.args[2], look)}"
    if node.target is torch._assert:
        return _asserted
    if node.target is setattr:
        return lambda node, look: f"{literal(node.args[0], look)}.{node.args[1]} = {literal(node.args[2], look)}"
    return None


def _asserted(node: fx.Node, look: Callable[[fx.Node], Expression]) -> str:
    """Write a check that the user's code makes; its message where tracing has not put a proxy into it."""
    said = node.args[1] if len(node.args) > 1 else ""
    message = f", {literal(said, look)}" if isinstance(said, str) and said and "Proxy(" not in said else ""
    return f"assert {literal(node.args[0], look)}{message}"


def refuse_modes(graph: fx.Graph) -> None:
    """Refuse a graph that switches gradients or autocast on its way. Raises SwnetError."""
    for node in graph.nodes:
        name = str(getattr(node.target, "__name__", ""))
        if name in ("enter_grad_mode", "leave_grad_mode", "_enter_autocast", "_exit_autocast"):
            raise SwnetError(
                "The model's forward switches gradients or autocast (torch.no_grad, torch.autocast), which is not written as "
                "Python source yet. Switch them around the call of the model, or export to torch-export."
            )
