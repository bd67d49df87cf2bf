"""Read the layer graph off an fx graph with shapes: follow every channel from where it is made to where it is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from swcompile.graph import Feature, GraphBuilder, LayerGraph, ProducerKind, Run
from swcompile.trace import rules
from swcompile.trace.inside import look_inside
from swcompile.trace.layers import LEFT, LayerCall, layer_call
from swcompile.trace.lines import WHERE
from swcompile.trace.names import name_of
from swcompile.trace.purify import SHARED_MEMORY
from swcompile.trace.shapes import Spec, spec_of
from swcompile.trace.values import CONSTANT, Value, from_runs, opaque, to_runs

WHOLE = "swcompile_whole"
"""The key in `node.meta` of concatenations with parts (constants) whose channels have a name in the concatenation only."""


def extract(graph: fx.Graph, root: nn.Module, name: str, like: LayerGraph | None = None) -> LayerGraph:
    """Return the LayerGraph of a traced graph whose nodes carry shapes (swcompile.trace.shapes.propagate).

    An opaque value becomes a producer where somebody reads its channels, and whoever comes later must find the same one. So a
    first pass finds those values and their channel axes, and the next lets each be a producer from the start, until no further
    one turns up: a value seen through now may show that another one is read. `like` is the graph of the same network before it
    was rewritten, whose inputs, opaque values and layers keep their identity: of a module called twice the first call may be gone,
    and a Linear may now be nearer to an input than a convolution.
    """
    axes = _axes(like, "input", "opaque") if like is not None else {}
    names = {layer.node: layer.name for layer in like.layers} if like is not None else {}
    while True:
        made = _Extraction(graph, root, name, axes, names).run()
        found = _axes(made, "opaque")
        if like is not None or found.keys() <= axes.keys():
            return made
        axes = found | axes


def _axes(graph: LayerGraph, *kinds: ProducerKind) -> dict[str, int]:
    """Return the channel axes of inputs or opaque values, by name."""
    return {made.name: made.axis for made in graph.producers if made.kind in kinds and made.axis is not None}


class _Extraction:
    """One pass over the nodes in topological order; implements rules.Context."""

    def __init__(
        self, graph: fx.Graph, root: nn.Module, name: str, axes: Mapping[str, int], layer_names: Mapping[str, str]
    ) -> None:
        self.graph = graph
        self.axes, self.layer_names = axes, layer_names
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.build = GraphBuilder(name)
        self.values: dict[fx.Node, rules.Result] = {}
        self.order = {node: place for place, node in enumerate(graph.nodes)}
        self.sites: dict[str, int] = {}
        self.buffers = {name for name, _ in root.named_buffers(remove_duplicate=False)}
        calls = ((node, layer_call(node, self.modules, _shape)) for node in graph.nodes)
        self.layers = {node: call for node, call in calls if call is not None and not self._blurs(call)}
        self.calls = Counter(id(self.modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
        self.layer_calls = Counter(call.path for call in self.layers.values())
        self.weights = _Weights(graph, root, self.layers)
        self.params = sum(parameter.numel() for parameter in root.parameters())

    def run(self) -> LayerGraph:
        for node in self.graph.nodes:
            made = self._visit(node)
            if isinstance(made, Value) and not made.known and not made.constant and node.name in self.axes:
                made = self._materialise(node, made, self.axes[node.name])
            self.values[node] = made
        return self.build.finish(self.params)

    def _materialise(self, node: fx.Node, value: Value, axis: int) -> Value:
        """Give an opaque value channels of its own along `axis`, under the node's name; a concatenation those of its parts.

        A gather that reads a concatenation is later made to read the parts.
        """
        spec = spec_of(node)
        assert spec is not None
        if rules.rule_of(node) is rules.concatenated and rules.joined(node)[1] == axis:
            self.values[node] = whole = self.concatenate(node, rules.joined(node)[0], axis)
            return whole
        self.consume(value)
        made = self._opaque_producer(node.name, spec.shape[axis], value, axis)
        self.values[node] = made
        return made

    # What rules ask for.

    def value(self, node: object) -> Value:
        if isinstance(node, tuple):
            base, index = node
            pieces = self.values.get(base)
            return pieces[index] if isinstance(pieces, list) and isinstance(index, int) else opaque()
        found = self.values.get(node, CONSTANT) if isinstance(node, fx.Node) else CONSTANT
        return opaque(*found) if isinstance(found, list) else found

    def union(self, name: str, nodes: Sequence[fx.Node]) -> Value:
        values = [self.value(node) for node in nodes]
        known = next((value for value in values if value.known), None)
        if known is None or known.ids is None:
            return opaque(*values)
        parts = [self._fitted(f"{name}.{place}", node, known) for place, node in enumerate(nodes)]
        size = known.ids.size
        runs = self.build.produce(name, "sum", size, [to_runs(part) for part in parts])
        made = from_runs(runs, 0).ids
        assert made is not None
        return Value(made.reshape(known.ids.shape), known.axes)

    def merge(self, name: str, values: Sequence[Value]) -> Value:
        shape = values[0].ids.shape if values[0].ids is not None else ()
        parts = [to_runs(value.ids) for value in values if value.ids is not None]
        made = from_runs(self.build.produce(name, "sum", math.prod(shape), parts), 0).ids
        assert made is not None
        return Value(made.reshape(shape), values[0].axes)

    def _fitted(self, name: str, node: fx.Node, known: Value) -> Any:
        """Return a value's ids in the order of `known`, as an opaque producer where it has none that match."""
        assert known.ids is not None
        value, spec = self.value(node), spec_of(node)
        if not value.known and not value.constant and len(known.axes) == 1 and spec is not None:
            axis = known.axes[0]
            if axis < len(spec.shape) and spec.shape[axis] == known.ids.size:
                value = self._materialise(node, value, axis)
        if value.ids is not None and value.axes == known.axes and value.ids.shape == known.ids.shape:
            return value.ids.reshape(-1)
        self.consume(value)
        return self._opaque_producer(name, known.ids.size, value).ids

    def _opaque_producer(self, name: str, channels: int, source: Value, axis: int | None = None) -> Value:
        parts = [(Run(0, self.build.producers[parent].channels, parent, 0),) for parent in sorted(source.producers())]
        return from_runs(self.build.produce(name, "opaque", channels, parts, axis), axis or 0)

    def concatenate(self, node: fx.Node, parts: Sequence[fx.Node], axis: int) -> Value:
        ids: list[NDArray[np.int64]] = []
        for place, part in enumerate(parts):
            value, spec = self.value(part), spec_of(part)
            assert spec is not None
            if not value.known and not value.constant:
                value = self._materialise(part, value, axis)
            if value.axes != (axis,):
                node.meta[WHOLE] = True
                self.consume(value)
                value = self._opaque_producer(f"{node.name}.{place}", spec.shape[axis], value)
            assert value.ids is not None
            ids.append(value.ids)
        return Value(np.concatenate(ids), (axis,))

    def consume(self, value: Value) -> None:
        if value.ids is not None:
            self.build.sink(to_runs(value.ids))

    # Nodes.

    def _visit(self, node: fx.Node) -> rules.Result:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return CONSTANT
        if node.op == "output":
            for source in node.all_input_nodes:
                self._consume_result(source)
            return CONSTANT
        if rules.is_query(node) or all(map(self._constant, node.all_input_nodes)):
            return CONSTANT
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if node in self.layers and spec_of(node) is not None and spec_of(self.layers[node].source) is not None:
            return self._layer(node, self.layers[node])
        rule = rules.module_rule(module) if module is not None else rules.rule_of(node)
        if rule is None or SHARED_MEMORY in node.meta:
            return self._unknown(node, module)
        made = rule(node, self)
        lost = isinstance(made, Value) and not made.known and not made.constant
        return self._opaque(node, module) if lost and any(self._known(source) for source in node.all_input_nodes) else made

    def _blurs(self, call: LayerCall) -> bool:
        """Whether a layer is none: a fixed filter of each channel by itself, as in front of a subsampling."""
        source = spec_of(call.source)
        return call.weight in self.buffers and source is not None and call.groups == source.shape[1]

    def _constant(self, node: fx.Node) -> bool:
        found = self.values.get(node)
        return isinstance(found, Value) and found.constant

    def _known(self, node: fx.Node) -> bool:
        found = self.values.get(node, CONSTANT)
        return any(value.known for value in found) if isinstance(found, list) else found.known

    def _consume_result(self, node: fx.Node) -> None:
        found = self.values.get(node, CONSTANT)
        for value in found if isinstance(found, list) else [found]:
            self.consume(value)

    def _input(self, node: fx.Node) -> Value:
        spec = spec_of(node)
        if spec is None or len(spec.shape) < 2 or not spec.dtype.is_floating_point:
            return opaque()
        name = str(node.target)
        axis = self.axes.get(name, 1 if self._reads_as_map(node) else len(spec.shape) - 1)
        return from_runs(self.build.input(name, spec.shape[axis], axis), axis)

    def _reads_as_map(self, node: fx.Node) -> bool:
        """Whether a convolution is the first layer that an input reaches: its channels are then axis 1."""
        pending, seen = [node], {node}
        while pending:
            user = pending.pop(0)
            if user in self.layers:
                return not self.layers[user].linear
            pending.extend(other for other in user.users if other not in seen)
            seen.update(user.users)
        return False

    def _unknown(self, node: fx.Node, module: nn.Module | None) -> Value:
        if SHARED_MEMORY not in node.meta and (seen := look_inside(node, module, self)) is not None:
            return seen
        return self._opaque(node, module)

    def _opaque(self, node: fx.Node, module: nn.Module | None) -> Value:
        """Report an operation that channels cannot be followed through, unless it makes an output class; what it reads is read."""
        sources = [self.value(source) for source in node.all_input_nodes]
        for source in node.all_input_nodes:
            self._consume_result(source)
        if not rules.is_query(node) and not isinstance(node.target, type) and not all(source.constant for source in sources):
            what = type(module).__name__ if module is not None else name_of(node.target) or str(node.target)
            self.build.opaque.append((f"{node.name} ({what})", str(node.meta.get(WHERE, ""))))
        return opaque(*sources)

    # Layers.

    def _layer(self, node: fx.Node, call: LayerCall) -> rules.Result:
        source, spec = call.source, spec_of(node)
        assert spec is not None
        axis = len(spec.shape) - 1 if call.linear else 1
        value = self.value(source)
        refused = "named as a leaf" if LEFT in node.meta else self._refusal(call, value, axis)
        point, chain = self._reading_point(node, source)
        chain_params = sum(_params_per_channel(self.modules[str(link.target)]) for link in chain if link.op == "call_module")
        feature = self._feature(point, axis)
        made = self.build.layer(
            self.layer_names.get(node.name) or self._site(call.path),
            feature,
            spec.shape[axis],
            node=node.name,
            kind=call.kind,
            position=self.order[node],
            reads_at=self.order[chain[0] if chain else node],
            kernel_size=call.kernel_size,
            groups=call.groups,
            positions=_positions(call, spec),
            bias=call.bias,
            chain=tuple(link.name for link in chain),
            chain_params=chain_params,
            transposed=call.transposed,
            refused=refused,
            where=str(node.meta.get(WHERE, "")),
            weight=call.weight,
            rigid=self.weights.why_rigid(call),
        )
        return from_runs(made, axis)

    def _site(self, path: str) -> str:
        visit = self.sites.get(path, 0)
        self.sites[path] = visit + 1
        return path if visit == 0 else f"{path}@{visit}"

    def _refusal(self, call: LayerCall, value: Value, axis: int) -> str | None:
        if call.weight in self.buffers:
            return "a fixed filter: its weight is no parameter"
        if self.layer_calls[call.path] > 1:
            return "called at several sites, which would need different wirings"
        source = spec_of(call.source)
        assert source is not None
        if not call.linear and len(source.shape) < len(call.kernel_size) + 2:
            return "its input has no batch axis (give an example with one)"
        if call.groups > 1 and call.groups == source.shape[axis]:
            return "depthwise: each channel's identity is the point"
        if value.ids is None or value.constant:
            return "its input channels cannot be traced: an opaque operation lies in front of it"
        if value.axes != (axis,):
            return f"it mixes axis {axis}, but the channels are on axis {', '.join(map(str, value.axes))}"
        if SHARED_MEMORY in call.source.meta:
            return "an in-place operation writes into a view of its input"
        return None

    def _reading_point(self, node: fx.Node, source: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
        """Return the value that the layer reads, and the chain from there to the layer that belongs to it.

        A private chain of norm, activation and dropout belongs to the reader where it starts at a value that others read too,
        or at a concatenation or a sum; else to the producer, and the reading point is behind it.
        """
        chain: list[fx.Node] = []
        start = source
        while self._private(start) and self._single_site(start):
            chain.append(start)
            start = start.all_input_nodes[0] if start.op != "call_module" else start.args[0]  # type: ignore[assignment]
        if chain and (self._readers(start) > 1 or self._is_join(start)):
            return start, tuple(reversed(chain))
        return source, ()

    def _private(self, node: fx.Node) -> bool:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return self._readers(node) == 1 and SHARED_MEMORY not in node.meta and rules.in_chain(node, module)

    def _single_site(self, node: fx.Node) -> bool:
        """Whether nothing but this call would notice a change of the node's module: one without state belongs to every call."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        return module is None or self.calls[id(module)] == 1 or not [*module.parameters(), *module.buffers()]

    @staticmethod
    def _readers(node: fx.Node) -> int:
        return sum(not rules.is_query(user) for user in node.users)

    @staticmethod
    def _is_join(node: fx.Node) -> bool:
        rule = rules.rule_of(node)
        return rule in (rules.concatenated, rules.summed) and len(node.all_input_nodes) > 1

    def _feature(self, node: fx.Node, axis: int) -> Feature:
        spec, value = spec_of(node), self.value(node)
        assert spec is not None
        name = node.name
        if name in self.build.features and self.build.features[name].axis != axis:
            name = f"{name}.axis{axis}"
        mixed = value.known and value.axes != (axis,)
        if name not in self.build.features and (value.ids is None or value.axes != (axis,)):
            if name == node.name and not value.known and not value.constant:
                value = self._materialise(node, value, axis)
            else:
                self.consume(value)
                value = self._opaque_producer(name, spec.shape[axis], value)
        runs = to_runs(value.ids) if value.ids is not None else ()
        return self.build.feature(
            name,
            runs,
            spec.shape,
            axis=axis,
            position=self.order[node],
            dtype=str(spec.dtype)[6:],
            written=SHARED_MEMORY in node.meta,
            mixed=mixed,
        )


def _positions(call: LayerCall, out: Spec) -> int:
    """Return how often per sample the layer's kernel is applied."""
    if call.linear:
        return math.prod(out.shape[1:-1])
    source = spec_of(call.source)
    assert source is not None
    return math.prod((source if call.transposed else out).shape[2:])


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    spec = spec_of(node)
    return None if spec is None else spec.shape


class _Weights:
    """Who uses which parameter: a weight that somebody else relies on must keep its shape."""

    def __init__(self, graph: fx.Graph, root: nn.Module, layers: Mapping[fx.Node, LayerCall]) -> None:
        self.parameters = dict(root.named_parameters(remove_duplicate=False))
        self.names: dict[int, list[str]] = {}
        for name, parameter in self.parameters.items():
            self.names.setdefault(id(parameter), []).append(name)
        taken = {node: call for node, call in layers.items() if call.weight}
        self.read = {
            str(node.target)
            for node in graph.nodes
            if node.op == "get_attr" and any(user not in taken or node is not _weight_node(user) for user in node.users)
        }

    def why_rigid(self, call: LayerCall) -> str:
        """Say why the layer's weight cannot lose columns or be masked; "" where it can."""
        if call.weight not in self.parameters:
            return "its weight is computed (weight norm, weight standardisation or another parametrization)"
        names = self.names[id(self.parameters[call.weight])]
        if len(names) > 1:
            return f"it shares its weight with {', '.join(name for name in names if name != call.weight)}"
        if call.weight in self.read:
            return "the forward reads its weight elsewhere, too"
        return ""


def _weight_node(node: fx.Node) -> object:
    return node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)


def _params_per_channel(module: nn.Module) -> int:
    """Return how many parameters a module carries for each of its channels."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return 2 if module.affine else 0
    return 1 if isinstance(module, nn.PReLU) and module.num_parameters > 1 else 0
