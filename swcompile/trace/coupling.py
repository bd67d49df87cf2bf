"""Find what must go together where a layer loses output channels, by following each of them to where it is read.

Where a chain of operations works on each channel by itself, a channel can be taken out of all of them at once. Whatever else reads
a channel (an operation that mixes channels, a view to sizes that the code spells out, the model's output) holds it: it stays.
The rules here are stricter than those of swcompile.trace.rules, which ask only where a channel comes from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from swcompile.graph import NOBODY, Carrier, Coupling, Feature, Layer, LayerGraph, Run
from swcompile.trace import rules
from swcompile.trace.layers import LEFT
from swcompile.trace.names import name_of
from swcompile.trace.purify import SHARED_MEMORY, WRITES
from swcompile.trace.shapes import spec_of
from swcompile.trace.values import SHIFT, to_runs

Rows = NDArray[np.int64]

_MIXING = frozenset(
    "softmin softmax log_softmax normalize batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm".split()
)
_ALONE = frozenset(rules.ELEMENTWISE) - _MIXING
"""Functions and methods of one tensor that work on each channel by itself, whatever its axis."""
_SPATIAL = frozenset(rules.POOLING) - {"pad"}
"""Those that also work over the axes behind axis 1."""
_TOGETHER = frozenset((*rules.SUMS, *rules.PRODUCTS, "iadd", "isub", "imul")) - {"max", "min"}
"""Elementwise functions of several tensors, or of a tensor and a number."""
_MODULES_ALONE: tuple[type[nn.Module], ...] = (*rules.ACTIVATION_MODULES, *rules.DROPOUT_MODULES, nn.Identity)
_MODULES_SPATIAL: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._NormBase, *rules.POOLING_MODULES)


@dataclass(frozen=True)
class Carried:
    """The rows of a value along its channel axis."""

    rows: Rows
    axis: int


@dataclass
class Followed:
    """What was found in one graph: rows by node, the modules that carry rows on by path, depthwise layers by name.

    `called` are the paths of all modules that the graph calls.
    """

    carried: dict[fx.Node, Carried] = field(default_factory=dict)
    modules: dict[str, Rows] = field(default_factory=dict)
    depthwise: dict[str, Rows] = field(default_factory=dict)
    bonds: list[tuple[Rows, Rows]] = field(default_factory=list)
    held: list[tuple[Rows, str]] = field(default_factory=list)
    called: frozenset[str] = frozenset()

    def hold(self, rows: Rows, why: str) -> None:
        mine = np.unique(rows[rows >= 0])
        if len(mine):
            self.held.append((mine, why))


def couple(
    graph: LayerGraph, root: nn.Module, modes: Sequence[tuple[fx.Graph, LayerGraph]], names: Mapping[str, str]
) -> LayerGraph:
    """Return the layer graph with its coupling, and its features with their rows.

    Args:
        graph: the layer graph of the network, which describes train mode.
        root: the module whose graphs these are.
        modes: what each mode runs.
        names: what eval mode calls the features of train mode.
    """
    found = [follow(graph, root, fx_graph, layers) for fx_graph, layers in modes]
    for one, (_, layers) in zip(found[1:], modes[1:], strict=True):
        _hold_what_is_read_elsewhere(one, graph, layers, names)
    one, *others = found
    for other in others:
        _hold_at_odds(one, other)
        one.modules = other.modules | one.modules
        one.bonds += other.bonds
        one.held += other.held
    nodes = {node.name: node for node in modes[0][0].nodes}
    return replace(
        graph,
        features=tuple(replace(feature, rows=_rows_of(one, nodes, feature)) for feature in graph.features),
        coupling=_coupling(one, graph, root),
    )


def _coupling(found: Followed, graph: LayerGraph, root: nn.Module) -> Coupling:
    weights = {layer.name: layer.kernel_area + layer.bias for layer in graph.layers}
    norms = (Carrier(path, to_runs(rows), len(_state(root.get_submodule(path))[0])) for path, rows in found.modules.items())
    filters = (Carrier(name, to_runs(rows), weights[name], depthwise=True) for name, rows in found.depthwise.items())
    return Coupling(
        carriers=(*norms, *filters),
        bonds=tuple(dict.fromkeys((to_runs(left), to_runs(right)) for left, right in found.bonds)),
        held=tuple(dict.fromkeys((to_runs(rows), why) for rows, why in found.held)),
    )


def _rows_of(found: Followed, nodes: Mapping[str, fx.Node], feature: Feature) -> tuple[Run, ...]:
    carried = found.carried.get(nodes[feature.name.partition(".")[0]])
    return () if carried is None or carried.axis != feature.axis else to_runs(carried.rows)


def _hold_what_is_read_elsewhere(found: Followed, graph: LayerGraph, layers: LayerGraph, names: Mapping[str, str]) -> None:
    """Hold what a layer reads in eval mode only: a plan knows what train mode reads."""
    nodes = {node.name: carried for node, carried in found.carried.items()}
    for layer in layers.layers:
        known = graph.layer_by_name.get(layer.name)
        carried = nodes.get(layer.feature.partition(".")[0])
        if carried is not None and (known is None or names.get(known.feature) != layer.feature):
            found.hold(carried.rows, f"{layer.name}, which reads something else in eval mode")


def _hold_at_odds(one: Followed, other: Followed) -> None:
    """Hold the rows of modules that carry other rows in the other mode."""
    for ours, theirs in ((one.modules, other.modules), (one.depthwise, other.depthwise)):
        for name in ours.keys() & other.called | theirs.keys() & one.called:
            rows = [found[name] for found in (ours, theirs) if name in found]
            if len(rows) < 2 or not np.array_equal(rows[0], rows[1]):
                one.hold(np.concatenate(rows), f"{name}, which eval mode runs elsewhere")


def follow(graph: LayerGraph, root: nn.Module, fx_graph: fx.Graph, layers: LayerGraph) -> Followed:
    """Follow the rows of the layers of `graph` through an fx graph, which `layers` describes."""
    return _Follower(graph, root, fx_graph, layers).run()


class _Follower:
    """One pass over an fx graph in topological order."""

    def __init__(self, graph: LayerGraph, root: nn.Module, fx_graph: fx.Graph, layers: LayerGraph) -> None:
        self.fx_graph = fx_graph
        self.nodes = {node.name: node for node in fx_graph.nodes}
        self.modules = dict(root.named_modules(remove_duplicate=False))
        called = [str(node.target) for node in fx_graph.nodes if node.op == "call_module"]
        self.calls = Counter(id(self.modules[path]) for path in called)
        self.found = Followed(called=frozenset(called))
        self.producer = {layer.name: layer.producer for layer in graph.layers}
        self.layers = {layer.node: layer for layer in layers.layers}
        self.read = {str(node.target) for node in fx_graph.nodes if node.op == "get_attr"}
        self.owners = Counter(id(parameter) for _, parameter in root.named_parameters(remove_duplicate=False))
        self.depthwise = {layer.node for layer in layers.layers if self._is_filter(layer)}
        self.chains = {link for layer in layers.layers if layer.node not in self.depthwise for link in layer.chain}

    def run(self) -> Followed:
        for node in self.fx_graph.nodes:
            if node.op in ("placeholder", "get_attr") or node.name in self.chains:
                continue
            carried = self._layer(node, self.layers[node.name]) if node.name in self.layers else self._carried(node)
            if carried is not None:
                self.found.carried[node] = carried
        return self.found

    # Layers.

    def _layer(self, node: fx.Node, layer: Layer) -> Carried | None:
        spec = spec_of(node)
        if spec is None or layer.name not in self.producer:
            self._hold(node, f"{layer.name}, whose place is not known")
            return None
        axis = len(spec.shape) - 1 if not layer.kernel_size else 1
        read = self.found.carried.get(self.nodes[layer.feature.partition(".")[0]])
        if node.name in self.depthwise:
            source = self.found.carried.get(self._source(node))
            if source is not None and source.axis == axis:
                self.found.depthwise[layer.name] = source.rows
                return source
        if read is not None and read.axis != axis:
            self.found.hold(read.rows, f"{layer.name}, which mixes another axis")
        rows = (np.int64(self.producer[layer.name]) << SHIFT) + np.arange(layer.out_channels, dtype=np.int64)
        if why := self._cannot_lose(node, layer):
            self.found.hold(rows, why)
        return Carried(rows, axis)

    def _is_filter(self, layer: Layer) -> bool:
        """Whether a layer filters each channel by itself, and can lose one."""
        same = layer.depthwise and layer.out_channels == layer.groups and not layer.transposed
        return same and not self._fixed(self.nodes[layer.node], layer)

    def _cannot_lose(self, node: fx.Node, layer: Layer) -> str:
        if layer.groups > 1:
            return f"{layer.name}, which has groups"
        return self._fixed(node, layer)

    def _fixed(self, node: fx.Node, layer: Layer) -> str:
        """Say why the layer's weight and bias must keep their shapes, or "" where they need not."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if module is None:
            return f"{layer.name}, whose weight is given to a function"
        if layer.rigid:
            return f"{layer.name}: {layer.rigid}"
        if LEFT in node.meta:
            return f"{layer.name}, named as a leaf"
        return f"{layer.name}, whose parameters are not its own alone" if self._is_shared(node, module) else ""

    def _is_shared(self, node: fx.Node, module: nn.Module) -> bool:
        """Whether somebody else would notice that a module's parameters change their shapes."""
        own = module._parameters
        return (
            self.calls[id(module)] > 1
            or not type(module).__module__.startswith("torch.")
            or bool(module._forward_hooks or module._forward_pre_hooks or module._modules)
            or any(f"{node.target}.{name}" in self.read for name in (*own, *module._buffers))
            or any(parameter is not None and self.owners[id(parameter)] > 1 for parameter in own.values())
        )

    # Everything else.

    def _carried(self, node: fx.Node) -> Carried | None:
        sources = [source for source in node.all_input_nodes if source in self.found.carried]
        if not sources:
            return None
        if rules.is_query(node):
            if not self._asks_no_width(node):
                self._hold(node, _named(node))
            return None
        made = None
        if SHARED_MEMORY not in node.meta and WRITES not in node.meta and spec_of(node) is not None:
            made = self._through_module(node) if node.op == "call_module" else self._through_function(node)
        if made is None:
            self._hold(node, _named(node))
        return made

    def _hold(self, node: fx.Node, why: str) -> None:
        for source in node.all_input_nodes:
            if source in self.found.carried:
                self.found.hold(self.found.carried[source].rows, why)

    def _through_module(self, node: fx.Node) -> Carried | None:
        module, source = self.modules[str(node.target)], self._source(node)
        carried = self.found.carried.get(source)
        if carried is None or len(node.all_input_nodes) > 1:
            return None
        if isinstance(module, nn.Flatten):
            return self._flattened(node, source) if (module.start_dim, module.end_dim) == (1, -1) else None
        if not (isinstance(module, _MODULES_ALONE) or (isinstance(module, _MODULES_SPATIAL) and carried.axis == 1)):
            return None
        parameters, buffers, others = _state(module)
        own = parameters or buffers or isinstance(module, nn.modules.batchnorm._NormBase)
        if others or (own and (carried.axis != 1 or self._is_shared(node, module))):
            return None
        if own:
            self.found.modules[str(node.target)] = carried.rows
        return carried

    def _through_function(self, node: fx.Node) -> Carried | None:
        name, tensors = name_of(node.target), [source for source in node.all_input_nodes if spec_of(source) is not None]
        if rules.rule_of(node) is rules.concatenated:
            return self._concatenated(node)
        if name in _TOGETHER:
            return self._together(node, tensors)
        source = self._source(node)
        carried = self.found.carried.get(source)
        if carried is None or len(tensors) > 1 or rules.rule_of(node) is None:
            return None
        if name in _ALONE or (name in _SPATIAL and carried.axis == 1):
            return carried
        if name in ("mean", "sum", "amax", "amin"):
            return self._reduced(node, source, carried)
        return self._flattened(node, source) if name in ("flatten", "view", "reshape") else None

    def _concatenated(self, node: fx.Node) -> Carried | None:
        parts, axis = rules.joined(node)
        rows: list[Rows] = []
        for part in parts if axis >= 0 else ():
            spec, carried = spec_of(part), self.found.carried.get(part)
            assert spec is not None
            if carried is not None and carried.axis == axis:
                rows.append(carried.rows)
                continue
            if carried is not None:
                self.found.hold(carried.rows, _named(node))
            rows.append((np.int64(NOBODY) << SHIFT) + np.arange(spec.shape[axis], dtype=np.int64))
        return Carried(np.concatenate(rows), axis) if rows else None

    def _together(self, node: fx.Node, tensors: Sequence[fx.Node]) -> Carried | None:
        """Carry rows through an elementwise operation: where two values have them, they go together channel by channel."""
        first = next(tensor for tensor in tensors if tensor in self.found.carried)
        behind = len(_shape(first)) - self.found.carried[first].axis  # axes are lined up from the last one
        width = _shape(node)[-behind]
        wide: list[Rows] = []
        for tensor in tensors:
            shape, mine = _shape(tensor), self.found.carried.get(tensor)
            extent = shape[-behind] if len(shape) >= behind else 1
            if extent == 1 < width:
                if mine is not None:
                    self.found.hold(mine.rows, _named(node))
            elif mine is None or len(shape) - mine.axis != behind:
                return None
            else:
                wide.append(mine.rows)
        for other in wide[1:]:
            if not np.array_equal(wide[0], other):
                self.found.bonds.append((wide[0], other))
        return Carried(wide[0], len(_shape(node)) - behind) if wide else None

    def _reduced(self, node: fx.Node, source: fx.Node, carried: Carried) -> Carried | None:
        old, new = _shape(source), _shape(node)
        given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        dims = [given] if isinstance(given, int) else list(given) if isinstance(given, tuple | list) else []
        if not dims or not all(isinstance(dim, int) for dim in dims):
            return None
        gone = {dim % len(old) for dim in dims}
        if carried.axis in gone:
            return None
        return carried if len(new) == len(old) else Carried(carried.rows, carried.axis - sum(dim < carried.axis for dim in gone))

    def _flattened(self, node: fx.Node, source: fx.Node) -> Carried | None:
        """Carry rows through a flatten of all axes but the first, which repeats each; sizes in the code must not name the width."""
        old, new, carried = _shape(source), _shape(node), self.found.carried[source]
        if carried.axis != 1 or len(new) != 2 or new[0] != old[0]:
            return None
        given = (
            [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")] if node.op != "call_module" else []
        )
        sizes = list(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else given
        if name_of(node.target) == "flatten" and tuple(sizes) not in ((1,), (1, -1)):
            return None
        if name_of(node.target) in ("view", "reshape") and (len(sizes) != 2 or sizes[1] != -1):
            return None
        return Carried(np.repeat(carried.rows, math.prod(old[2:])), 1)

    def _asks_no_width(self, node: fx.Node) -> bool:
        """Whether a query asks for other sizes than the number of channels, or for none."""
        source, name = self._source(node), name_of(node.target)
        axis, rank = self.found.carried[source].axis, len(_shape(source))
        if name == "size" and len(node.args) > 1:
            return isinstance(node.args[1], int) and node.args[1] % rank != axis
        if name == "size" or (name == "getattr" and node.args[1] == "shape"):
            return all(
                name_of(user.target) == "getitem" and isinstance(user.args[1], int) and user.args[1] % rank != axis
                for user in node.users
            )
        return name in ("dim", "ndimension", "is_floating_point") or (
            name == "getattr" and node.args[1] in ("dtype", "device", "ndim", "requires_grad", "is_cuda", "training")
        )

    @staticmethod
    def _source(node: fx.Node) -> fx.Node:
        found = rules.source(node)
        return found if isinstance(found, fx.Node) else node


def _state(module: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Return the names of a module's parameters with a number per channel, of its buffers of that kind, and of all others."""
    made: tuple[list[str], list[str], list[str]] = ([], [], [])
    for kind, tensors in enumerate((module.named_parameters(), module.named_buffers())):
        for name, tensor in tensors:
            if tensor.numel() > 1:
                made[kind if tensor.dim() == 1 else 2].append(name)
    return made


def _shape(node: fx.Node) -> tuple[int, ...]:
    spec = spec_of(node)
    return () if spec is None else spec.shape


def _named(node: fx.Node) -> str:
    return f"{node.name} ({name_of(node.target) or node.op})"
