"""Count what came out: the ledger of a rewired module, read off the module itself and not off the plan.

The rewritten graph is traced once more for its layers, features and channels; what each layer reads there is expressed in
features of the original and compared with the plan, tap by tap. A difference is a bug of ours, and stops everything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from swcompile.graph import Layer, LayerGraph, Run, Tap, join_runs, unreadable
from swcompile.metrics import Figures, channel_graph, measure
from swcompile.modules import RewiredModule
from swcompile.plan import Note, Plan
from swcompile.trace import Example, layer_graph
from swcompile.trace.purify import is_view
from swcompile.trace.shapes import Spec, spec_of

Masks = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Side:
    """One side of the ledger: the network before or after.

    `params` and `macs` (multiply-accumulates of the layers, per sample) count live links; `stored_params` and `executed_macs`
    what the module holds and runs, more only for wiring `kernel`. `links` are (input channel, output channel) pairs. `C`, `L`,
    `S` and the rest: swcompile.metrics. `peak_bytes` is how much of one sample's feature maps must be kept at once in inference.
    """

    params: int
    stored_params: int
    macs: int
    executed_macs: int
    links: int
    peak_bytes: int
    p_requested: float | str
    p_achieved: float
    figures: Figures

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "figures":
            raise AttributeError(name)
        return getattr(self.figures, name)

    def as_dict(self) -> dict[str, Any]:
        """Return all counts and figures as one flat dictionary."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "figures"}
        return {**own, **self.figures.as_dict()}


@dataclass(frozen=True)
class LayerCount:
    """The links of one layer that stayed, came from elsewhere, and went."""

    layer: str
    kept: int
    moved: int
    pruned: int


@dataclass(frozen=True)
class Ledger:
    """What a transformation did to a model: both sides, links by layer, and why some layers were left alone."""

    before: Side
    after: Side
    layers: tuple[LayerCount, ...]
    notes: tuple[Note, ...]
    inputs: tuple[str, ...]
    opaque: tuple[tuple[str, str], ...] = ()

    @property
    def changed(self) -> bool:
        """Whether any link moved or went."""
        return any(count.moved or count.pruned for count in self.layers)

    @property
    def links_kept(self) -> int:
        return sum(count.kept for count in self.layers)

    @property
    def links_moved(self) -> int:
        return sum(count.moved for count in self.layers)

    @property
    def links_pruned(self) -> int:
        """Links that are gone: one that wiring `kernel` moved to another layer left its own, and is not among them."""
        return max(self.before.links - self.links_kept - self.links_moved, 0)

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as plain numbers, texts, lists and dictionaries, for JSON."""
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "links": {"kept": self.links_kept, "moved": self.links_moved, "pruned": self.links_pruned},
            "layers": [dataclasses.asdict(count) for count in self.layers],
            "notes": [dataclasses.asdict(note) for note in self.notes],
            "inputs": list(self.inputs),
            "opaque": [list(item) for item in self.opaque],
        }

    def __str__(self) -> str:
        rows = [
            (name, getattr(self.before, name), getattr(self.after, name)) for name in ("params", "macs", "links", "dead_channels")
        ]
        lines = [f"{name:14} {before:>16,} {after:>16,}" for name, before, after in rows]
        figures = ("C", "L", "S", "long_range", "mean_path")
        lines += [f"{name:14} {getattr(self.before, name):>16.4f} {getattr(self.after, name):>16.4f}" for name in figures]
        lines.append(f"links kept {self.links_kept:,}, moved {self.links_moved:,}, pruned {self.links_pruned:,}; "
                     f"p asked {self.after.p_requested}, achieved {self.after.p_achieved:.4f}")  # fmt: skip
        if not self.changed:
            lines.append("NOTHING CHANGED")
        lines.extend(f"{note.layer}: {note.reason}" for note in self.notes)
        return "\n".join(lines)


@dataclass(frozen=True)
class Census:
    """A network as counted before rewriting, to compare with afterwards."""

    graph: LayerGraph
    params: int
    peak_bytes: int


def census(root: nn.Module, train_graph: fx.Graph, graph: LayerGraph) -> Census:
    """Count a traced module before it is rewritten."""
    return Census(graph, _stored_params(root), _peak_bytes(train_graph))


def check(module: RewiredModule, plan: Plan, before: Census, example: Example) -> Ledger:
    """Return the ledger of a rewired module. A count that is not the promised one is an AssertionError: a bug of ours."""
    after = layer_graph(module.graphs[0], module, example, like=before.graph)
    unused = [layer for layer in before.graph.layers if layer.name not in after.layer_by_name]
    taps = {layer.name: plan.taps()[layer.name] for layer in unused if layer.name in plan.taps()}
    taps |= _read_back(after, before.graph) if not plan.bypassed else plan.taps()
    masks = _masks(module, before.graph)
    _compare_with_plan(taps, masks, plan, before.graph)
    sides = _before(before), _after(module, plan, before, after, taps, masks)
    saved = sum(_links(layer, taps, masks) * layer.kernel_area * layer.positions for layer in unused)
    change = sides[1].params - sides[0].params, sides[1].macs - sides[0].macs
    promised = plan.promise.params, plan.promise.macs - saved
    assert change == promised, f"the plan promised a change of {promised} parameters and MACs, the module shows {change}"
    counts = tuple(_count(layer, taps, masks, before.graph) for layer in before.graph.layers)
    notes = *plan.notes, *(Note(layer.name, _UNUSED) for layer in unused)
    return Ledger(*sides, counts, notes, tuple(map(str, example)), before.graph.opaque)


_UNUSED = "nothing reads its output any more, so it is not computed; its parameters stay, and get no gradient"


def _links(layer: Layer, taps: Mapping[str, Sequence[Tap]], masks: Masks) -> int:
    """Return the live links of a layer that reads `taps`."""
    if layer.name in masks:
        return int(masks[layer.name].sum())
    width = sum(tap.width for tap in taps[layer.name]) if layer.name in taps else layer.in_channels
    return width // layer.groups * layer.out_channels


def _before(counted: Census) -> Side:
    graph = counted.graph
    macs = _macs(graph.layers, {})
    return Side(
        params=counted.params,
        stored_params=counted.params,
        macs=macs,
        executed_macs=macs,
        links=sum(layer.links for layer in graph.layers),
        peak_bytes=counted.peak_bytes,
        p_requested=0.0,
        p_achieved=0.0,
        figures=measure(channel_graph(graph)),
    )


def _after(
    module: RewiredModule, plan: Plan, before: Census, after: LayerGraph, taps: Mapping[str, Sequence[Tap]], masks: Masks
) -> Side:
    stored = _stored_params(module)
    area = {layer.name: layer.kernel_area for layer in before.graph.layers}
    masked = sum(int(mask.size - mask.sum()) * area[name] for name, mask in masks.items())
    return Side(
        params=stored - masked,
        stored_params=stored,
        macs=_macs(after.layers, masks),
        executed_macs=_macs(after.layers, {}),
        links=sum(int(masks[layer.name].sum()) if layer.name in masks else layer.links for layer in after.layers),
        peak_bytes=_peak_bytes(module.graphs[0]),
        p_requested=plan.requested_p,
        p_achieved=plan.promise.p,
        figures=measure(channel_graph(before.graph, taps, masks, bypassed=plan.bypassed)),
    )


def _stored_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(layers: Sequence[Layer], masks: Masks) -> int:
    return sum(
        (int(masks[layer.name].sum()) if layer.name in masks else layer.links) * layer.kernel_area * layer.positions
        for layer in layers
    )


def _masks(module: nn.Module, graph: LayerGraph) -> dict[str, NDArray[np.bool_]]:
    """Return the masks that the module's layers really hold, as (out, in)."""
    found = {}
    for layer in graph.layers:
        mask = getattr(module.get_submodule(layer.name.partition("@")[0]), "mask", None)
        if mask is not None and "mask" in module.get_submodule(layer.name.partition("@")[0])._buffers:
            found[layer.name] = np.asarray(mask.cpu().reshape(mask.shape[0], mask.shape[1]).numpy(), np.bool_)
    return found


def _read_back(after: LayerGraph, before: LayerGraph) -> dict[str, tuple[Tap, ...]]:
    """Return what each layer of the rewritten graph reads, in features of the original; unchanged layers are left out."""
    index = {producer.name: place for place, producer in enumerate(before.producers)}
    changed = {}
    for layer in after.layers:
        original = before.layer_by_name[layer.name]
        feature = after.feature_by_name[layer.feature]
        runs = [dataclasses.replace(run, producer=index[after.producers[run.producer].name]) for run in feature.runs]
        own = before.feature_by_name[original.feature]
        if join_runs(runs) != join_runs(own.runs):
            changed[layer.name] = tuple(Tap(*found) for run in runs for found in _feature_of(run, original, before))
    return changed


def _feature_of(run: Run, reader: Layer, graph: LayerGraph) -> list[tuple[str, int, int]]:
    """Return (feature, start, stop) triples that together hold the run's channels, the reader's own feature first."""
    own = graph.feature_by_name[reader.feature]
    found: list[tuple[str, int, int]] = []
    done = run.start
    while done < run.stop:
        rest = run.cut(done, run.stop)
        for feature in (own, *graph.features):
            match = _match(rest, feature.runs)
            if match is not None and (feature is own or unreadable(graph, feature, reader, conv_to_linear=True) is None):
                start, width = match
                found.append((feature.name, start, start + width))
                done += width
                break
        else:
            raise AssertionError(f"{reader.name} reads channels that no feature of the original holds: {rest}")
    return found


def _match(run: Run, candidates: Sequence[Run]) -> tuple[int, int] | None:
    """Return where the first channels of a run stand in a feature, and how many of them."""
    for other in candidates:
        if other.producer != run.producer or (other.step != run.step and min(run.width, other.width) > 1):
            continue
        if run.step == 0 or other.step == 0:
            if other.first == run.first:
                return other.start, min(run.width, other.width)
        elif other.first <= run.first < other.first + other.width:
            offset = run.first - other.first
            return other.start + offset, min(run.width, other.width - offset)
    return None


def _compare_with_plan(taps: Mapping[str, Sequence[Tap]], masks: Masks, plan: Plan, graph: LayerGraph) -> None:
    """Assert that every layer reads the very maps that the plan names, and no other layer changed."""
    planned = plan.taps()
    for name in {*taps, *planned}:
        layer = graph.layer_by_name[name]
        default = graph.reads(layer)
        real, wanted = (join_runs(graph.runs_of(found.get(name, default))) for found in (taps, planned))
        assert real == wanted, f"{name} reads {taps.get(name)}, the plan says {planned.get(name)}"
    assert masks.keys() == plan.masks().keys(), "masked layers differ from the plan's"
    assert all(np.array_equal(mask, masks[name]) for name, mask in plan.masks().items()), "a mask differs from the plan's"


def _count(layer: Layer, taps: Mapping[str, Sequence[Tap]], masks: Masks, graph: LayerGraph) -> LayerCount:
    reads, mask = taps.get(layer.name), masks.get(layer.name)
    if reads is None and mask is None:
        return LayerCount(layer.name, layer.links, 0, 0)
    own = _channels(graph.feature_by_name[layer.feature].runs)
    kept = np.isin(_channels(graph.runs_of(reads if reads is not None else graph.reads(layer))), own)
    per_column = mask.sum(0) if mask is not None else np.full(len(kept), layer.out_channels // layer.groups)
    stayed, moved = int(per_column[kept].sum()), int(per_column[~kept].sum())
    return LayerCount(layer.name, stayed, moved, max(layer.links - stayed - moved, 0))


def _channels(runs: Sequence[Run]) -> NDArray[np.int64]:
    return np.concatenate([(run.producer << 32) + run.first + np.arange(run.width, dtype=np.int64) * run.step for run in runs])


def _peak_bytes(graph: fx.Graph) -> int:
    """Return the most bytes of feature maps alive at once in one sample's forward, views not counted."""
    nodes = list(graph.nodes)
    holder: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        holder[node] = holder[node.all_input_nodes[0]] if is_view(node) and node.all_input_nodes else node
        for source in node.all_input_nodes:
            last[holder[source]] = place
    change = [0] * (len(nodes) + 1)
    for place, node in enumerate(nodes):
        if holder[node] is node and node.op != "get_attr":
            size = _bytes(spec_of(node))
            change[place] += size
            change[last.get(node, place) + 1] -= size
    return int(np.max(np.cumsum(change)))


def _bytes(spec: Spec | None) -> int:
    return 0 if spec is None or not spec.shape else math.prod(spec.shape[1:]) * spec.dtype.itemsize
