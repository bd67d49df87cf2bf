"""Look inside what fx left as one call: a module without layers, or a function that somebody wrapped.

Their channels are followed by tracing them on their own, in eval mode, where stochastic depth and its like are the identity. The
graph of the network keeps the call as it is; this is for provenance only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swcompile.trace import rules
from swcompile.trace.attributes import attributes
from swcompile.trace.copies import skeleton
from swcompile.trace.random_state import random_state
from swcompile.trace.shapes import fakes, follow_shapes, spec_of
from swcompile.trace.valued import ValuedTracer
from swcompile.trace.values import CONSTANT, Value, opaque

DEPTH = 3
"""How many calls within calls are looked into."""


class _NotSeenError(Exception):
    """Raised where the inside of a call makes a value of its own, so that the call is opaque."""


def look_inside(node: fx.Node, module: nn.Module | None, outside: rules.Context, depth: int = DEPTH) -> Value | None:
    """Return the value that a call makes of its inputs, or None where its channels cannot be followed."""
    inputs = [source for source in node.all_input_nodes if spec_of(source) is not None]
    if depth == 0 or not inputs or len(inputs) < len(node.all_input_nodes):
        return None
    for trace in (_trace, _trace_with_values):
        with suppress(Exception):  # whatever a user's code raises on proxies only means that we cannot see through it
            return _seen(trace, node, inputs, module, outside, depth)
    return None


def inside_of(node: fx.Node, module: nn.Module, *, training: bool) -> fx.Graph | None:
    """Return the graph of what a call of a module does in one mode, with shapes; None where it cannot be traced on its own."""
    inputs = [source for source in node.all_input_nodes if spec_of(source) is not None]
    if not inputs or len(inputs) < len(node.all_input_nodes):
        return None
    for trace in (_trace, _trace_with_values):
        # whatever a user's code raises on proxies only means that we cannot see through it
        with suppress(Exception), attributes(module), random_state() as drawn:
            graph = trace(node, inputs, module, training)
            if drawn():
                return None
            follow_shapes(graph, module, [spec_of(source) for source in inputs])
            return graph
    return None


def _seen(
    trace: Callable[..., fx.Graph],
    node: fx.Node,
    inputs: list[fx.Node],
    module: nn.Module | None,
    outside: rules.Context,
    depth: int,
) -> Value | None:
    owner = module if module is not None else nn.Module()
    with attributes(owner), random_state() as drawn:  # a trace leaves constants among the attributes
        graph = trace(node, inputs, module)
        if drawn():  # the next call may go another way
            raise _NotSeenError
        follow_shapes(graph, owner, [spec_of(source) for source in inputs])
        return _Inside(graph, module, [outside.value(source) for source in inputs], outside, depth).run()


def _trace(node: fx.Node, inputs: list[fx.Node], module: nn.Module | None, training: bool = False) -> fx.Graph:
    if module is not None:
        if list(node.args) != inputs or node.kwargs:
            raise _NotSeenError
        return _in_mode(module, training, lambda: fx.Tracer().trace(module))
    function: Any = node.target
    if not inspect.isfunction(function) or len(inputs) > 2:
        raise _NotSeenError

    def call(*proxies: Any) -> Any:
        by_node = dict(zip(inputs, proxies, strict=True))
        return function(*fx.map_arg(node.args, by_node.__getitem__), **fx.map_arg(node.kwargs, by_node.__getitem__))

    return fx.Tracer().trace((lambda a: call(a)) if len(inputs) == 1 else (lambda a, b: call(a, b)))  # fx reads the arity


def _trace_with_values(node: fx.Node, inputs: list[fx.Node], module: nn.Module | None, training: bool = False) -> fx.Graph:
    """Trace a module of a user's whose code asks for sizes and types."""
    if module is None or type(module).__module__.startswith("torch.") or list(node.args) != inputs or node.kwargs:
        raise _NotSeenError
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    bare = skeleton(module, mode).train(training)
    given = fakes(tuple(map(spec_of, inputs)), mode)
    return _in_mode(module, training, lambda: ValuedTracer(module, bare, given, mode, {}).trace(module))


def _in_mode(root: nn.Module, training: bool, trace: Callable[[], fx.Graph]) -> fx.Graph:
    modes = {module: module.training for module in root.modules()}
    root.train(training)
    try:
        return trace()
    finally:
        for module, training in modes.items():
            module.training = training


class _Inside:
    """One pass over the inside of a call; implements rules.Context, but makes no producers."""

    def __init__(
        self, graph: fx.Graph, module: nn.Module | None, inputs: Sequence[Value], outside: rules.Context, depth: int
    ) -> None:
        self.graph = graph
        self.modules = dict(module.named_modules()) if module is not None else {}
        self.inputs = iter(inputs)
        self.outside = outside
        self.depth = depth
        self.values: dict[fx.Node, rules.Result] = {}
        self.consumed: list[Value] = []

    def run(self) -> Value | None:
        result: object = None
        for node in self.graph.nodes:
            if node.op == "output":
                result = node.args[0]
            else:
                self.values[node] = self._visit(node)
        made = self.value(result) if isinstance(result, fx.Node) else None
        if made is None or not made.known:
            return None
        for value in self.consumed:
            self.outside.consume(value)
        return made

    def _visit(self, node: fx.Node) -> rules.Result:
        if node.op == "placeholder":
            return next(self.inputs, CONSTANT)
        if node.op == "get_attr" or rules.is_query(node) or not node.all_input_nodes:
            return CONSTANT
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        rule = rules.module_rule(module) if module is not None else rules.rule_of(node)
        if rule is not None:
            return rule(node, self)
        sources = [self.value(source) for source in node.all_input_nodes]
        if all(source.constant for source in sources):
            return CONSTANT
        seen = look_inside(node, module, self, self.depth - 1)
        return seen if seen is not None else opaque(*sources)

    def value(self, node: object) -> Value:
        if isinstance(node, tuple):
            base, index = node
            pieces = self.values.get(base)
            return pieces[index] if isinstance(pieces, list) and isinstance(index, int) else opaque()
        found = self.values.get(node, CONSTANT) if isinstance(node, fx.Node) else CONSTANT
        return opaque(*found) if isinstance(found, list) else found

    def union(self, name: str, nodes: Sequence[fx.Node]) -> Value:
        raise _NotSeenError

    def concatenate(self, node: fx.Node, parts: Sequence[fx.Node], axis: int) -> Value:
        raise _NotSeenError

    def merge(self, name: str, values: Sequence[Value]) -> Value:
        raise _NotSeenError

    def consume(self, value: Value) -> None:
        self.consumed.append(value)
