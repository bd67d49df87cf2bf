"""The layer graph: which layer reads which channels, and where each of those channels was made.

Four kinds of frozen data describe a network without its weights:

    Producer   whatever makes channels: the network's input, a layer, a sum of earlier maps, an operation we cannot see through
    Run        consecutive channels of a value that are consecutive channels of one producer
    Feature    a value that at least one layer reads, as runs
    Layer      a convolution or linear layer, and the feature it reads

Channels are followed through normalisation, activation, pooling, concatenation and slices without becoming new ones, so a
run names the very map that a layer reads, however many channelwise operations lie between. Needs numpy and networkx, not torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import networkx as nx
import numpy as np
from numpy.typing import NDArray

ProducerKind = Literal["input", "layer", "sum", "opaque"]

UNREACHABLE = 1 << 29
"""The distance between two layers that no path joins."""


@dataclass(frozen=True, slots=True)
class Run:
    """Say that channels [start, stop) of a value are channels first, first + step, ... of a producer.

    `step` is 1, or 0 where every channel of the run is the same producer channel (a flattened map: one channel, many slots).
    """

    start: int
    stop: int
    producer: int
    first: int
    step: int = 1

    @property
    def width(self) -> int:
        return self.stop - self.start

    def cut(self, start: int, stop: int, offset: int = 0) -> Run:
        """Return the part inside [start, stop), moved by `offset`."""
        low, high = max(self.start, start), min(self.stop, stop)
        return Run(low + offset, high + offset, self.producer, self.first + (low - self.start) * self.step, self.step)


def slice_runs(runs: Iterable[Run], start: int, stop: int, offset: int | None = None) -> tuple[Run, ...]:
    """Return the runs of channels [start, stop) of a value, renumbered from 0 (or from `start + offset`)."""
    shift = -start if offset is None else offset
    return tuple(run.cut(start, stop, shift) for run in runs if run.start < stop and run.stop > start)


def join_runs(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Merge neighbouring runs that continue each other."""
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if last is not None and _continues(last, run):
            step = last.step if last.width > 1 else run.first - last.first if run.width == 1 else run.step
            merged[-1] = Run(last.start, run.stop, last.producer, last.first, step)
        else:
            merged.append(run)
    return tuple(merged)


def _continues(last: Run, run: Run) -> bool:
    if run.producer != last.producer or run.start != last.stop:
        return False
    step = run.first - (last.first + (last.width - 1) * last.step)
    return step in (0, 1) and all(part.width == 1 or part.step == step for part in (last, run))


@dataclass(frozen=True, slots=True)
class Producer:
    """Something that makes `channels` channels.

    `parts` holds, for a sum, the runs of each addend; for an opaque operation, the runs of each input it was computed from (for
    paths only: its channels have no origin). It is empty for the network's input and for layers. `axis` is, for an opaque value
    and for an input, the axis on which somebody reads its channels.
    """

    name: str
    kind: ProducerKind
    channels: int
    parts: tuple[tuple[Run, ...], ...] = ()
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Feature:
    """A value of the network that at least one layer reads.

    `name` is the fx node's. `shape` is the example's, batch first; `axis` is the channel axis: 1 for (N, C, *spatial), the last
    one for (N, *tokens, C). `position` is the value's place in the topological order of the fx graph. `train_only` marks a
    value that eval mode does not compute, `written` one that shares memory with what an in-place operation overwrites,
    `mixed` one that its reader reads along another axis than its channels' (a Linear over tokens): it has no map to tap.
    `rows` says for each channel which layer's output channel must stay for it to stay (see Coupling), nobody's (producer NOBODY)
    where no layer has a say in it.
    """

    name: str
    position: int
    shape: tuple[int, ...]
    axis: int
    runs: tuple[Run, ...]
    dtype: str = "float32"
    train_only: bool = False
    written: bool = False
    mixed: bool = False
    rows: tuple[Run, ...] = ()

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def spatial(self) -> tuple[int, ...]:
        """The example's size without batch and channels: height and width, or the number of tokens."""
        return tuple(size for axis, size in enumerate(self.shape) if axis not in (0, self.axis))

    @property
    def is_map(self) -> bool:
        """Whether channels come before the spatial axes, so that the feature can be resampled."""
        return self.axis == 1 and len(self.shape) > 2


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that carries weights, at one place in the network.

    `name` is the module's path in the user's model (with `@1`, `@2` added at the later call sites of a module called several
    times), `node` the fx node. `chain` names the fx nodes of norms, activations and dropouts between the reading point and the
    layer that belong to this reader; `chain_params` is how many parameters per channel they carry. `reads_at` is the place in
    the fx graph in front of which a gather would stand. `positions` is how many outputs per channel and sample the layer
    computes (output height times width), so that multiply-accumulates are `links * kernel_area * positions`. `refused` says why
    the layer can never be rewired, whatever the options. `train_only` marks a layer that eval mode does not run. `weight` is the
    path of its weight among the model's parameters, "" where that is computed; `rigid` says why the weight must keep its shape and
    its values ("" where it need not): such a layer can read from elsewhere, but not read fewer channels nor be masked.
    """

    name: str
    node: str
    position: int
    kind: str
    feature: str
    producer: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    groups: int = 1
    positions: int = 1
    bias: bool = False
    chain: tuple[str, ...] = ()
    chain_params: int = 0
    reads_at: int = -1
    transposed: bool = False
    refused: str | None = None
    where: str = ""
    train_only: bool = False
    weight: str = ""
    rigid: str = ""

    @property
    def kernel_area(self) -> int:
        return int(np.prod(self.kernel_size, dtype=np.int64)) if self.kernel_size else 1

    @property
    def links(self) -> int:
        """The number of (input channel, output channel) pairs that the layer connects."""
        return self.in_channels // self.groups * self.out_channels

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels


@dataclass(frozen=True, slots=True, order=True)
class Tap:
    """Channels [start, stop) of an earlier feature, brought to the reader's resolution by `resample`."""

    feature: str
    start: int
    stop: int
    resample: str = "max"

    @property
    def width(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.feature}[{self.start}:{self.stop}]"


NOBODY = -1
"""The producer of the rows of a value whose channels no layer can take away."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """Something between layers that holds `params` parameters for each channel it carries on: a norm, or a depthwise convolution.

    `name` is the module's path, for a depthwise convolution the layer's name. `rows` are the rows that its channels come from.
    """

    name: str
    rows: tuple[Run, ...]
    params: int
    depthwise: bool = False


@dataclass(frozen=True)
class Coupling:
    """What goes together where a layer loses output channels. A *row* is an output channel of a layer, as a Run says it.

        conv1 -> norm -> relu -> depthwise -> conv2     a row of conv1 takes its channel of the norm and of `depthwise` with it
        add(conv2, conv3)                               row i of conv2 and row i of conv3 go together, or stay
        view(conv4)                                     the rows of conv4 are held: the view would no longer fit

    `bonds` are pairs of values, each as rows, whose channels go together one by one. `held` are rows that something needs as they
    are, each with what that is. `squeezes` are the layers that read a map only to compute a gate for that very map (squeeze and
    excitation): a channel that nobody else reads goes, and its column of the squeeze with it.
    """

    carriers: tuple[Carrier, ...] = ()
    bonds: tuple[tuple[tuple[Run, ...], tuple[Run, ...]], ...] = ()
    held: tuple[tuple[tuple[Run, ...], str], ...] = ()
    squeezes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerGraph:
    """A network as layers, features and producers, each in topological order.

    `sinks` are the runs that something other than a layer consumes: the network's output, a gate, an opaque operation. A
    channel is dead when neither a layer nor a sink reads it, alone or as part of a sum. `params` counts the whole model's.
    `coupling` says what goes with an output channel that is taken from a layer.
    """

    name: str
    producers: tuple[Producer, ...]
    features: tuple[Feature, ...]
    layers: tuple[Layer, ...]
    sinks: tuple[Run, ...] = ()
    opaque: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    params: int = field(default=0, compare=False)
    coupling: Coupling = field(default=Coupling(), compare=False)

    @cached_property
    def feature_by_name(self) -> dict[str, Feature]:
        return {feature.name: feature for feature in self.features}

    @cached_property
    def layer_by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def heads(self) -> frozenset[str]:
        """Names of the layers whose output no other layer reads: classifiers, auxiliary ones included."""
        read: set[int] = set()
        for layer in self.layers:
            read.update(run.producer for run in self.feature_by_name[layer.feature].runs)
        for index in range(len(self.producers) - 1, -1, -1):
            if index in read:
                read.update(run.producer for part in self.producers[index].parts for run in part)
        return frozenset(layer.name for layer in self.layers if layer.producer not in read)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers, per sample."""
        return sum(layer.links * layer.kernel_area * layer.positions for layer in self.layers)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the topology: names, widths, runs and resolutions, not the batch size, the weights or the file."""
        facts = {
            "producers": [[p.name, p.kind, p.channels, [_plain(part) for part in p.parts]] for p in self.producers],
            "features": [[f.name, list(f.shape[1:]), f.axis, f.dtype, _plain(f.runs)] for f in self.features],
            "layers": [
                [y.name, y.kind, y.feature, y.in_channels, y.out_channels, list(y.kernel_size), y.groups] for y in self.layers
            ],
        }
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()

    def reads(self, layer: Layer) -> tuple[Tap, ...]:
        """Return what the layer reads in the network as it stands: the whole of its feature."""
        return (Tap(layer.feature, 0, layer.in_channels),)

    def runs_of(self, taps: Sequence[Tap]) -> tuple[Run, ...]:
        """Return the runs of the concatenation of `taps`."""
        runs: list[Run] = []
        offset = 0
        for tap in taps:
            feature = self.feature_by_name[tap.feature]
            runs.extend(slice_runs(feature.runs, tap.start, tap.stop, offset - tap.start))
            offset += tap.width
        return tuple(runs)

    @cached_property
    def _base_runs(self) -> dict[int, tuple[Run, ...]]:
        return {}

    def base_runs(self, producer: int) -> tuple[Run, ...]:
        """Return the channels of a producer as runs of inputs, layers and opaque operations: a sum as all of its addends.

        Runs of a sum overlap, since each of its channels is the union of several origins.
        """
        known = self._base_runs
        pending = [producer]
        while pending:
            index = pending[-1]
            made = self.producers[index]
            if index in known:
                pending.pop()
            elif made.kind != "sum":
                known[index] = (Run(0, made.channels, index, 0),)
            else:
                missing = {run.producer for part in made.parts for run in part} - known.keys()
                if missing:
                    pending.extend(missing)
                    continue
                found = (base for part in made.parts for run in part for base in _through(run, known[run.producer]))
                known[index] = tuple(dict.fromkeys(found))
        return known[producer]

    def origins(self, runs: Iterable[Run]) -> tuple[Run, ...]:
        """Replace runs of sums by the runs of everything that was added up."""
        return tuple(base for run in runs for base in _through(run, self.base_runs(run.producer)))

    def distances(self) -> Iterator[tuple[Layer, NDArray[np.int32]]]:
        """Yield each layer with how many layers lie between every producer and it, the layer itself counted.

        1 means that the layer reads the producer directly, alone or in a sum; UNREACHABLE that no path leads to it. One vector
        per value, kept until its last use: linear in layers in the number of vector operations.
        """
        last_use = self._last_uses()
        at: dict[int, NDArray[np.int32]] = {}
        by_producer = {layer.producer: layer for layer in self.layers}
        for index, producer in enumerate(self.producers):
            layer = by_producer.get(index)
            parts = (self.feature_by_name[layer.feature].runs,) if layer is not None else producer.parts
            sources = {run.producer for part in parts for run in part}
            vector = np.full(len(self.producers), UNREACHABLE, np.int32)
            for source in sources:
                np.minimum(vector, at[source], out=vector)
            if layer is not None:
                vector = np.minimum(vector + 1, UNREACHABLE).astype(np.int32)
                yield layer, vector
                vector = vector.copy()
            vector[index] = 0
            at[index] = vector
            for source in [*sources, index]:
                if last_use.get(source, -1) <= index:
                    at.pop(source, None)

    def _last_uses(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for index, producer in enumerate(self.producers):
            for part in producer.parts:
                last.update((run.producer, index) for run in part)
        for layer in self.layers:
            for run in self.feature_by_name[layer.feature].runs:
                last[run.producer] = max(last.get(run.producer, -1), layer.producer)
        return last

    def to_networkx(self) -> nx.DiGraph[str]:
        """Return a DiGraph of producers: an edge for each that a layer, a sum or an opaque operation reads.

        Node attributes: kind, channels, and for layers node, in_channels, kernel_size, refused, where. Edge attribute: channels.
        An input that has the name of a layer has "(input)" behind it.
        """
        made: nx.DiGraph[str] = nx.DiGraph(name=self.name)
        by_producer = {layer.producer: layer for layer in self.layers}
        taken = self.layer_by_name
        names = [
            one.name if index in by_producer or one.name not in taken else f"{one.name} ({one.kind})"
            for index, one in enumerate(self.producers)
        ]
        for index, producer in enumerate(self.producers):
            layer = by_producer.get(index)
            made.add_node(names[index], kind=producer.kind, channels=producer.channels, **_layer_attributes(layer))
            parts = (self.feature_by_name[layer.feature].runs,) if layer is not None else producer.parts
            widths: dict[str, int] = {}
            for run in (run for part in parts for run in part):
                source = names[run.producer]
                widths[source] = widths.get(source, 0) + run.width
            made.add_edges_from((source, names[index], {"channels": width}) for source, width in widths.items())
        return made

    def to_graphml(self) -> str:
        """Return the producer graph as GraphML."""
        return "\n".join(nx.generate_graphml(self.to_networkx())) + "\n"

    def to_dot(self) -> str:
        """Return the producer graph in Graphviz's DOT language."""
        graph = self.to_networkx()
        shapes = {"layer": "box", "sum": "circle", "input": "invhouse", "opaque": "octagon"}
        lines = [f"digraph {_quoted(self.name)} {{", "  rankdir=TB;"]
        for name, data in graph.nodes(data=True):
            label = _quoted(f"{name}\n{data['channels']} channels")
            lines.append(f"  {_quoted(name)} [shape={shapes[data['kind']]}, label={label}];")
        for source, target, data in graph.edges(data=True):
            lines.append(f"  {_quoted(source)} -> {_quoted(target)} [label={data['channels']}];")
        return "\n".join([*lines, "}", ""])


def _through(run: Run, bases: Iterable[Run]) -> Iterator[Run]:
    """Yield what a run reads, given the base runs of its producer: both in the run's own coordinates."""
    if run.step == 0:
        for base in bases:
            if base.start <= run.first < base.stop:
                yield Run(run.start, run.stop, base.producer, base.first + (run.first - base.start) * base.step, 0)
        return
    yield from slice_runs(bases, run.first, run.first + run.width, run.start - run.first)


def _plain(runs: Iterable[Run]) -> list[list[int]]:
    return [[run.start, run.stop, run.producer, run.first, run.step] for run in runs]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _layer_attributes(layer: Layer | None) -> dict[str, str | int]:
    if layer is None:
        return {}
    return {
        "node": layer.node,
        "in_channels": layer.in_channels,
        "kernel_size": "x".join(map(str, layer.kernel_size)),
        "refused": layer.refused or "",
        "where": layer.where,
    }


class GraphBuilder:
    """Assemble a LayerGraph value by value, in topological order.

    A value is the tuple of its runs. The tracer uses this, and so does whoever wants a graph without a model:

    >>> build = GraphBuilder("two layers")
    >>> x = build.input("x", 3)
    >>> y = build.layer("conv1", build.feature("x", x, (1, 3, 8, 8)), 16, kernel_size=(3, 3), positions=64)
    >>> _ = build.layer("conv2", build.feature("conv1", y, (1, 16, 8, 8)), 16, kernel_size=(3, 3), positions=64)
    >>> [layer.links for layer in build.finish().layers]
    [48, 256]
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.producers: list[Producer] = []
        self.features: dict[str, Feature] = {}
        self.layers: list[Layer] = []
        self.sinks: list[Run] = []
        self.opaque: list[tuple[str, str]] = []
        self._position = 0

    def _tick(self, position: int | None) -> int:
        self._position = self._position + 1 if position is None else position
        return self._position

    def produce(
        self, name: str, kind: ProducerKind, channels: int, parts: Sequence[tuple[Run, ...]] = (), axis: int | None = None
    ) -> tuple[Run, ...]:
        """Add a producer and return the runs of the value it makes."""
        self.producers.append(Producer(name, kind, channels, tuple(parts), axis))
        return (Run(0, channels, len(self.producers) - 1, 0),)

    def input(self, name: str, channels: int, axis: int | None = None) -> tuple[Run, ...]:
        """Add a network input of `channels` channels."""
        return self.produce(name, "input", channels, axis=axis)

    def add(self, name: str, *values: tuple[Run, ...]) -> tuple[Run, ...]:
        """Add the elementwise sum of values of equal width."""
        return self.produce(name, "sum", values[0][-1].stop, values)

    @staticmethod
    def cat(*values: tuple[Run, ...]) -> tuple[Run, ...]:
        """Return the runs of a concatenation along the channel axis."""
        runs: list[Run] = []
        offset = 0
        for value in values:
            runs.extend(slice_runs(value, 0, value[-1].stop, offset))
            offset += value[-1].stop
        return join_runs(runs)

    def feature(
        self,
        name: str,
        value: tuple[Run, ...],
        shape: tuple[int, ...],
        *,
        axis: int = 1,
        position: int | None = None,
        dtype: str = "float32",
        written: bool = False,
        mixed: bool = False,
    ) -> Feature:
        """Name a value as a feature; the same name twice is the same feature."""
        if name not in self.features:
            place = self._tick(position)
            self.features[name] = Feature(name, place, shape, axis, join_runs(value), dtype, written=written, mixed=mixed)
        return self.features[name]

    def layer(
        self,
        name: str,
        feature: Feature,
        out_channels: int,
        *,
        node: str | None = None,
        kind: str = "Conv2d",
        position: int | None = None,
        reads_at: int | None = None,
        kernel_size: tuple[int, ...] = (),
        groups: int = 1,
        positions: int = 1,
        bias: bool = False,
        chain: tuple[str, ...] = (),
        chain_params: int = 0,
        transposed: bool = False,
        refused: str | None = None,
        where: str = "",
        weight: str = "",
        rigid: str = "",
    ) -> tuple[Run, ...]:
        """Add a layer that reads `feature`, and return the runs of its output."""
        place = self._tick(position)
        value = self.produce(name, "layer", out_channels)
        self.layers.append(
            Layer(
                name=name,
                node=node or name,
                position=place,
                kind=kind,
                feature=feature.name,
                producer=value[0].producer,
                in_channels=feature.channels,
                out_channels=out_channels,
                kernel_size=kernel_size,
                groups=groups,
                positions=positions,
                bias=bias,
                chain=chain,
                chain_params=chain_params,
                reads_at=place if reads_at is None else reads_at,
                transposed=transposed,
                refused=refused,
                where=where,
                weight=weight,
                rigid=rigid,
            )
        )
        return value

    def sink(self, value: Iterable[Run]) -> None:
        """Note that something other than a layer reads this value."""
        self.sinks.extend(value)

    def finish(self, params: int | None = None) -> LayerGraph:
        """Return the graph as frozen data; `params` is how many the whole model has, those of the layers' links where None."""
        if params is None:
            params = sum(layer.links * layer.kernel_area + layer.in_channels * layer.chain_params for layer in self.layers)
        features = sorted(self.features.values(), key=lambda feature: feature.position)
        return LayerGraph(
            self.name,
            tuple(self.producers),
            tuple(features),
            tuple(self.layers),
            tuple(dict.fromkeys(self.sinks)),
            tuple(self.opaque),
            params,
        )


def unreadable(graph: LayerGraph, feature: Feature, layer: Layer, *, conv_to_linear: bool = False) -> str | None:
    """Return why `layer` cannot tap `feature`, or None where it can.

    Maps can be resampled to the reader's height and width; tokens and vectors must have the reader's very shape. With
    `conv_to_linear` a reader of vectors may tap a map, which is then pooled globally.
    """
    own = graph.feature_by_name[layer.feature]
    pooled = conv_to_linear and feature.is_map and len(own.shape) == 2
    if feature.position >= layer.reads_at:
        return f"{feature.name} is computed after {layer.name} reads its input, so the tap would make a cycle"
    if not pooled and (len(feature.shape) != len(own.shape) or feature.axis != own.axis):
        return (
            f"{feature.name} has shape {feature.shape} with channels on axis {feature.axis}, {own.name} {own.shape} on {own.axis}"
        )
    if feature.shape[0] != own.shape[0]:
        return f"{feature.name} has batch size {feature.shape[0]}, {own.name} {own.shape[0]}"
    if feature.written:
        return f"{feature.name} shares memory with a value that is overwritten in place"
    if feature.mixed:
        return f"{feature.name} is read along axis {feature.axis}, on which its channels do not lie"
    if feature.train_only and not layer.train_only:
        return f"{feature.name} is computed in train mode only"
    if feature.dtype != own.dtype:
        return f"{feature.name} is {feature.dtype}, {own.name} {own.dtype}"
    if own.is_map:
        if max(feature.spatial) == 1 < max(own.spatial):
            return f"{feature.name} is a gate or a pooled vector of size {feature.spatial}, {own.name} a map of {own.spatial}"
    elif not pooled and feature.spatial != own.spatial:
        return f"{feature.name} has tokens {feature.spatial}, {own.name} {own.spatial}"
    return None


GROWN = "grown"
"""What a layer beside another one is called, as a child of it."""


def ungrowable(graph: LayerGraph, layer: Layer) -> str | None:
    """Return why no layer can be put beside this one to add to what it makes, or None where one can."""
    if f"{layer.name}.{GROWN}" in graph.layer_by_name:
        return "there is a layer beside it already, from an earlier time, which can have one itself"
    if layer.kind not in ("Conv1d", "Conv2d", "Conv3d", "Linear"):
        return f"a {layer.kind}, beside which no second one can be put"
    return f"in {layer.groups} groups, and links on top would join them" if layer.groups > 1 else None
