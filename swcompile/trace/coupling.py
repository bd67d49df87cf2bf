"""Find what must go together where a layer loses output channels, by following each of them to where it is read.

Where a chain of operations works on each channel by itself, a channel can be taken out of all of them at once. Whatever else reads
a channel (an operation that mixes channels, a view to sizes that the code spells out, the model's output) holds it: it stays.
The rules here are stricter than those of swcompile.trace.rules, which ask only where a channel comes from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from swcompile.graph import NOBODY, Carrier, Coupling, Feature, Layer, LayerGraph, Run
from swcompile.trace import rules
from swcompile.trace.inside import inside_of
from swcompile.trace.layers import LAYER_TYPES, LEFT
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
_HARMLESS = frozenset("dim ndim ndimension dtype device is_floating_point requires_grad is_cuda training".split())
"""Questions about a value that have nothing to do with its shape."""
_RESHAPES = frozenset(("flatten", "view", "reshape"))
_GATING = frozenset((*rules.PRODUCTS, "imul"))
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

    `called` are the paths of all modules that the graph calls, `squeezes` the names of layers.
    """

    carried: dict[fx.Node, Carried] = field(default_factory=dict)
    modules: dict[str, Rows] = field(default_factory=dict)
    depthwise: dict[str, Rows] = field(default_factory=dict)
    bonds: list[tuple[Rows, Rows]] = field(default_factory=list)
    held: list[tuple[Rows, str]] = field(default_factory=list)
    called: frozenset[str] = frozenset()
    squeezes: set[str] = field(default_factory=set)

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
        one.squeezes -= other.called - other.squeezes
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
        squeezes=tuple(layer.name for layer in graph.layers if layer.name in found.squeezes),
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


@dataclass(frozen=True)
class _Owners:
    """Who uses which module and parameter: how often each is called, which are read by name, which have several names."""

    calls: Mapping[int, int]
    read: Collection[str]
    names: Mapping[int, int]

    def share(self, path: str, module: nn.Module) -> bool:
        """Whether somebody else would notice that a module's parameters change their shapes."""
        own = module._parameters
        return (
            self.calls[id(module)] > 1
            or not type(module).__module__.startswith("torch.")
            or bool(module._forward_hooks or module._forward_pre_hooks or module._modules)
            or any(f"{path}.{name}" in self.read for name in (*own, *module._buffers))
            or any(parameter is not None and self.names[id(parameter)] > 1 for parameter in own.values())
        )


class _Walk:
    """One pass over an fx graph in topological order, without layers: the inside of a module that is called as a whole."""

    def __init__(self, fx_graph: fx.Graph, modules: Mapping[str, nn.Module], prefix: str, owners: _Owners) -> None:
        self.fx_graph, self.modules, self.prefix, self.owners = fx_graph, modules, prefix, owners
        self.found = Followed(called=frozenset(_called(fx_graph)))
        self.shapes: dict[fx.Node, tuple[Carried, int]] = {}
        """Nodes that hold the shape of a value that has rows, and its rank."""
        self.widths: dict[fx.Node, Rows] = {}
        """Nodes that hold how many channels there are."""

    def inside(self, given: Sequence[Carried | None]) -> Carried | None:
        """Return what the module makes of these inputs, or None where something in it holds a row."""
        values = iter(given)
        result: object = None
        for node in self.fx_graph.nodes:
            if node.op == "output":
                result = node.args[0]
                continue
            carried = next(values, None) if node.op == "placeholder" else self._carried(node)
            if carried is not None:
                self.found.carried[node] = carried
        return self.found.carried.get(result) if isinstance(result, fx.Node) and not self.found.held else None

    def _carried(self, node: fx.Node) -> Carried | None:
        if rules.is_query(node):
            self._answer(node)
            return None
        if not any(source in self.found.carried for source in node.all_input_nodes):
            self._hold(node, _named(node))
            return None
        made = None
        if SHARED_MEMORY not in node.meta and WRITES not in node.meta and spec_of(node) is not None:
            made = self._through_module(node) if node.op == "call_module" else self._through_function(node)
        if made is None:
            self._hold(node, _named(node))
        elif name_of(node.target) not in _RESHAPES:
            self._hold_sizes(node)
        return made

    def _hold_sizes(self, node: fx.Node) -> None:
        """Hold the rows that a node is told the number of."""
        for source in node.all_input_nodes:
            if source in self.widths:
                self.found.hold(self.widths[source], _named(node))
            if source in self.shapes:
                self.found.hold(self.shapes[source][0].rows, _named(node))

    def _hold(self, node: fx.Node, why: str) -> None:
        """Hold all rows whose values, or whose number, a node reads."""
        self._hold_sizes(node)
        for source in node.all_input_nodes:
            if source in self.found.carried:
                self.found.hold(self.found.carried[source].rows, why)

    def _answer(self, node: fx.Node) -> None:
        """Follow a question about a shape: to know how many channels there are is to hold them, unless a view is told so."""
        name, source = name_of(node.target), self._source(node)
        carried, asked = self.found.carried.get(source), node.args[1] if len(node.args) > 1 else None
        if source in self.shapes and name == "getitem":
            carried, rank = self.shapes[source]
            if isinstance(asked, int) and asked % rank == carried.axis:
                self.widths[node] = carried.rows
            elif not isinstance(asked, int) and not (isinstance(asked, slice) and carried.axis not in _range(asked, rank)):
                self._hold(node, _named(node))
        elif carried is not None and name == "size" and isinstance(asked, int):
            if asked % len(_shape(source)) == carried.axis:
                self.widths[node] = carried.rows
        elif carried is not None and (name == "size" or (name == "getattr" and asked == "shape")):
            self.shapes[node] = carried, len(_shape(source))
        elif name not in _HARMLESS and not (name == "getattr" and asked in _HARMLESS):
            self._hold(node, _named(node))

    def _through_module(self, node: fx.Node) -> Carried | None:
        module, source = self.modules[str(node.target)], self._source(node)
        carried = self.found.carried.get(source)
        if carried is None or len(node.all_input_nodes) > 1 or type(module) is nn.Sequential:
            return self._through_inside(node, module)
        if isinstance(module, nn.Flatten):
            return self._reshaped(node, source) if (module.start_dim, module.end_dim) == (1, -1) else None
        if not (isinstance(module, _MODULES_ALONE) or (isinstance(module, _MODULES_SPATIAL) and carried.axis == 1)):
            return self._through_inside(node, module)
        parameters, buffers, others = _state(module)
        own = parameters or buffers or isinstance(module, nn.modules.batchnorm._NormBase)
        if others or (own and (carried.axis != 1 or self.owners.share(f"{self.prefix}{node.target}", module))):
            return None
        if own:
            self.found.modules[f"{self.prefix}{node.target}"] = carried.rows
        return carried

    def _through_inside(self, node: fx.Node, module: nn.Module) -> Carried | None:
        """Carry rows through a module that is called as a whole, where in both modes its code does."""
        if any(isinstance(inner, LAYER_TYPES) for inner in module.modules()) or node.kwargs:
            return None
        made: list[tuple[Carried | None, Followed]] = []
        prefix, given = f"{self.prefix}{node.target}.", [self.found.carried.get(source) for source in node.all_input_nodes]
        for training in (True, False):
            graph = inside_of(node, module, training=training)
            if graph is None:
                return None
            modules = dict(module.named_modules(remove_duplicate=False))
            times = self.owners.calls[id(module)]
            calls = Counter({key: count * times for key, count in Counter(id(modules[path]) for path in _called(graph)).items()})
            read = {*self.owners.read, *(f"{prefix}{inner.target}" for inner in graph.nodes if inner.op == "get_attr")}
            walk = _Walk(graph, modules, prefix, _Owners(calls, read, self.owners.names))
            made.append((walk.inside(given), walk.found))
        (one, found), (other, evaluated) = made
        if one is None or other is None or one.axis != other.axis or not np.array_equal(one.rows, other.rows):
            return None
        if found.modules.keys() != evaluated.modules.keys():
            return None
        self.found.modules |= found.modules
        self.found.bonds += found.bonds + evaluated.bonds
        return one

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
        if name == "getitem":
            return self._indexed(node, source)
        return self._reshaped(node, source) if name in _RESHAPES else None

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
        if name_of(node.target) in _GATING and len(wide) > 1:
            self._find_squeezes(node, tensors)
        return Carried(wide[0], len(_shape(node)) - behind) if wide else None

    def _find_squeezes(self, product: fx.Node, tensors: Sequence[fx.Node]) -> None:
        """Layers are what a network has, not a module without any."""

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

    def _reshaped(self, node: fx.Node, source: fx.Node) -> Carried | None:
        """Carry rows through a change of the axes behind axis 1, or a flatten of all but the first, which repeats each row.

        The code must not name how many channels there are, other than by asking a value for it.
        """
        old, new, carried = _shape(source), _shape(node), self.found.carried[source]
        if carried.axis != 1 or new[:1] != old[:1] or len(new) < 2:
            return None
        sizes = _sizes(node)
        if len(sizes) != len(new):
            return None
        if sizes[1] == -1 and len(new) == 2:
            return Carried(np.repeat(carried.rows, math.prod(old[2:])), 1)
        asked = self.widths.get(sizes[1]) if isinstance(sizes[1], fx.Node) else None
        others = any(isinstance(size, fx.Node) and size in self.widths for size in (*sizes[:1], *sizes[2:]))
        if others or new[1] != old[1] or (sizes[1] != -1 and asked is None):
            return None
        if asked is not None and not np.array_equal(asked, carried.rows):
            self.found.bonds.append((asked, carried.rows))  # another value's channels are counted: they must stay as many
        return carried

    def _indexed(self, node: fx.Node, source: fx.Node) -> Carried | None:
        """Carry rows through an index that takes all channels: x[:, :, None], x[..., 0]."""
        old, carried, index = _shape(source), self.found.carried[source], node.args[1]
        entries: list[object] = list(index) if isinstance(index, tuple) else [index]
        if len(node.all_input_nodes) > 1:
            return None
        if any(entry is Ellipsis for entry in entries):
            place = next(at for at, entry in enumerate(entries) if entry is Ellipsis)
            missing = len(old) + 1 - sum(entry is not None for entry in entries)
            entries[place : place + 1] = [slice(None)] * missing
        old_axis = new_axis = 0
        for entry in entries:
            if old_axis == carried.axis and entry is not None:
                return Carried(carried.rows, new_axis) if entry == slice(None) else None
            if entry is not None and not isinstance(entry, int | slice):
                return None
            old_axis += entry is not None
            new_axis += entry is None or isinstance(entry, slice)
        return Carried(carried.rows, new_axis + carried.axis - old_axis)

    @staticmethod
    def _source(node: fx.Node) -> fx.Node:
        found = rules.source(node)
        return found if isinstance(found, fx.Node) else node


class _Follower(_Walk):
    """One pass over the graph of a network, which `layers` describes."""

    def __init__(self, graph: LayerGraph, root: nn.Module, fx_graph: fx.Graph, layers: LayerGraph) -> None:
        modules = dict(root.named_modules(remove_duplicate=False))
        calls = Counter(id(modules[path]) for path in _called(fx_graph))
        read = {str(node.target) for node in fx_graph.nodes if node.op == "get_attr"}
        names = Counter(id(parameter) for _, parameter in root.named_parameters(remove_duplicate=False))
        super().__init__(fx_graph, modules, "", _Owners(calls, read, names))
        self.nodes = {node.name: node for node in fx_graph.nodes}
        self.producer = {layer.name: layer.producer for layer in graph.layers}
        self.layers = {layer.node: layer for layer in layers.layers}
        self.by_producer = {self.producer[layer.name]: layer for layer in layers.layers if layer.name in self.producer}
        self.depthwise = {layer.node for layer in layers.layers if self._is_filter(layer)}
        self.chains = {link for layer in layers.layers if layer.node not in self.depthwise for link in layer.chain}

    def run(self) -> Followed:
        for node in self.fx_graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                continue
            if node.name in self.chains:
                self._hold_sizes(node)
                continue
            carried = self._layer(node, self.layers[node.name]) if node.name in self.layers else self._carried(node)
            if carried is not None:
                self.found.carried[node] = carried
        return self.found

    def _layer(self, node: fx.Node, layer: Layer) -> Carried | None:
        spec = spec_of(node)
        if spec is None or layer.name not in self.producer:
            self._hold(node, f"{layer.name}, whose place is not known")
            return None
        self._hold_sizes(node)
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
        return f"{layer.name}, whose parameters are not its own alone" if self.owners.share(str(node.target), module) else ""

    def _find_squeezes(self, product: fx.Node, tensors: Sequence[fx.Node]) -> None:
        """Note the layers that a gate of a product was computed with from the map that it gates."""
        gates = [tensor for tensor in tensors if _is_pooled(tensor) and not _is_pooled(product)]
        maps = [self.found.carried[tensor].rows for tensor in tensors if tensor not in gates and tensor in self.found.carried]
        pending = [self.found.carried[gate].rows for gate in gates if gate in self.found.carried]
        seen: set[str] = set()
        while pending:
            rows = pending.pop()
            producers = np.unique(rows[rows >= 0] >> SHIFT).tolist()
            for layer in (self.by_producer[producer] for producer in producers if producer in self.by_producer):
                point = self.nodes[layer.feature.partition(".")[0]]
                read = self.found.carried.get(point)
                if layer.name in seen or read is None or not _is_pooled(point):
                    continue
                seen.add(layer.name)
                if not any(np.array_equal(read.rows, gated) for gated in maps):
                    pending.append(read.rows)
                elif layer.groups == 1 and not layer.chain and not self._fixed(self.nodes[layer.node], layer):
                    self.found.squeezes.add(layer.name)


def _sizes(node: fx.Node) -> list[object]:
    """Return the sizes that a reshape is given, those of a flatten to two axes included; none where it is something else."""
    if node.op == "call_module":
        return [None, -1]
    given: list[object] = [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")]
    sizes = list(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else given
    if name_of(node.target) != "flatten":
        return sizes
    return [None, -1] if sizes in ([1], [1, -1]) else []


def _range(asked: slice, rank: int) -> range:
    return range(*asked.indices(rank))


def _called(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_module"]


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


def _is_pooled(node: fx.Node) -> bool:
    """Whether a value has channels, and a single place for each."""
    return math.prod(_shape(node)[1:]) == max(_shape(node)[1:], default=0)


def _named(node: fx.Node) -> str:
    return f"{node.name} ({name_of(node.target) or node.op})"
