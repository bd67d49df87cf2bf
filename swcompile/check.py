"""Count what came out: the ledger of a rewired module, read off the module itself and not off the plan.

The rewritten graphs, the one for train mode and the one for eval mode, are traced once more for their layers and channels; what
each layer reads there is compared with the plan, channel by channel. A difference is a bug of ours, and stops everything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from swcompile.certificate import Certificate
from swcompile.choices import Choices
from swcompile.errors import SwnetError
from swcompile.graph import GROWN, Layer, LayerGraph, Run, Tap, join_runs
from swcompile.metrics import Figures, channel_graph, measure
from swcompile.modules import MASKED, RewiredModule
from swcompile.plan import MASKED_WIRINGS, LayerWiring, Note, Plan, Promise, channel_ids, promised_change, weight_left
from swcompile.shrink import shrink
from swcompile.trace import Example, Traced, layer_graph
from swcompile.trace.purify import is_view
from swcompile.trace.shapes import Spec, spec_of
from swcompile.wiring.blocks import Atlas
from swcompile.wiring.budget import as_they_act
from swcompile.wiring.eligible import Site, find_sites
from swcompile.wiring.kernel_skips import without_dense_links, without_skips

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
    """The links of one layer that stayed, came from elsewhere, went, and were added on top."""

    layer: str
    kept: int
    moved: int
    pruned: int
    grown: int = 0


@dataclass(frozen=True)
class Ledger:
    """What a transformation did to a model: both sides, links by layer, and why some layers were left alone.

    `certificate` holds the differences that verify=True found, `lowered` what swnet.lower chose for each kind of call.
    """

    before: Side
    after: Side
    layers: tuple[LayerCount, ...]
    notes: tuple[Note, ...]
    inputs: tuple[str, ...]
    opaque: tuple[tuple[str, str], ...] = ()
    certificate: Certificate | None = None
    lowered: tuple[Choices, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether any link moved, went or was added."""
        return any(count.moved or count.pruned or count.grown for count in self.layers)

    @property
    def computes_the_same(self) -> bool:
        """Whether the model computes what it did: no link moved or went, and those on top start at zero."""
        return not any(count.moved or count.pruned for count in self.layers)

    @property
    def links_kept(self) -> int:
        """Links that stayed."""
        return sum(count.kept for count in self.layers)

    @property
    def links_moved(self) -> int:
        """Links that now come from elsewhere."""
        return sum(count.moved for count in self.layers)

    @property
    def links_grown(self) -> int:
        """Links that were added on top."""
        return sum(count.grown for count in self.layers)

    @property
    def links_pruned(self) -> int:
        """Links that are gone: one that wiring `kernel` moved to another layer left its own, and is not among them."""
        return max(self.before.links - self.links_kept - self.links_moved, 0)

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as plain numbers, texts, lists and dictionaries, for JSON."""
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "links": {"kept": self.links_kept, "moved": self.links_moved, "pruned": self.links_pruned, "grown": self.links_grown},
            "layers": [dataclasses.asdict(count) for count in self.layers],
            "notes": [dataclasses.asdict(note) for note in self.notes],
            "inputs": list(self.inputs),
            "opaque": [list(item) for item in self.opaque],
            "certificate": None if self.certificate is None else dataclasses.asdict(self.certificate),
            "lowered": [dataclasses.asdict(choices) for choices in self.lowered],
        }

    def __str__(self) -> str:
        rows = [
            (name, getattr(self.before, name), getattr(self.after, name)) for name in ("params", "macs", "links", "dead_channels")
        ]
        lines = [f"{name:14} {before:>16,} {after:>16,}" for name, before, after in rows]
        figures = ("C", "L", "S", "long_range", "mean_path")
        lines += [f"{name:14} {getattr(self.before, name):>16.4f} {getattr(self.after, name):>16.4f}" for name in figures]
        grown = f", added {self.links_grown:,}" if self.links_grown else ""
        lines.append(f"links kept {self.links_kept:,}, moved {self.links_moved:,}, pruned {self.links_pruned:,}{grown}; "
                     f"p asked {self.after.p_requested}, achieved {self.after.p_achieved:.4f}")  # fmt: skip
        if not self.changed:
            lines.append("NOTHING CHANGED")
        lines.extend(map(str, self.notes))
        lines.extend([] if self.certificate is None else [str(self.certificate)])
        lines.extend(map(str, self.lowered))
        return "\n".join(lines)


@dataclass(frozen=True)
class Census:
    """A network as counted before rewriting, to compare with afterwards.

    `eval_graph` describes eval mode where it runs other code, `eval_names` gives its names for the features of `graph`.
    """

    graph: LayerGraph
    params: int
    peak_bytes: int
    eval_graph: LayerGraph | None
    eval_names: Mapping[str, str]


def census(traced: Traced) -> Census:
    """Count a traced module before it is rewritten."""
    stored, peak = _stored_params(traced.root), _peak_bytes(traced.train_graph)
    return Census(traced.graph, stored, peak, traced.eval_layers, traced.eval_names)


def check(module: RewiredModule, plan: Plan, before: Census, example: Example, *, fresh: bool = True) -> Ledger:
    """Return the ledger of a rewired module. A count that is not the promised one is an AssertionError: a bug of ours.

    `fresh` tells a plan that this version made from one that was read: another version may have cut other blocks, so there a
    different count of them is a note.
    """
    graph, taps = before.graph, plan.reads()
    after = _reread(module, 0, example, graph)
    left, left_taps = shrink(graph, plan.outputs(), taps)
    _compare_reads(after, left, left_taps, plan.bypassed)
    if before.eval_graph is not None and not plan.bypassed:  # which sums eval mode bypasses, only the rewriting knows
        evaluated = _reread(module, 1, example, before.eval_graph)
        _compare_reads(evaluated, *shrink(before.eval_graph, plan.outputs(), _renamed(taps, before)), ())
    masks = masks_of(module, graph)
    _compare_masks(masks, plan)
    unused = [layer for layer in graph.layers if layer.name not in after.layer_by_name]
    count = _units(plan, graph, masks)
    figures = measure(channel_graph(left, left_taps, masks, bypassed=plan.bypassed))
    sides = _before(before), _after(module, plan, before, after, masks, count.p, figures)
    wirings = {wiring.layer: wiring for wiring in plan.layers}
    saved = sum(weight_left(layer, wirings.get(layer.name))[1] for layer in unused)
    change = sides[1].params - sides[0].params, sides[1].macs - sides[0].macs
    promised = plan.promise.params, plan.promise.macs - saved
    assert change == promised, f"the plan promised a change of {promised} parameters and MACs, the module shows {change}"
    outs = {name: wiring.out(graph.layer_by_name[name]) for name, wiring in wirings.items()}
    grown = {name: sum(tap.width for tap in wiring.grown) for name, wiring in wirings.items()}
    layers = tuple(_count(layer, plan.taps(), masks, outs.get(layer.name, layer.out_channels), graph) for layer in graph.layers)
    layers = tuple(replace(each, grown=grown.get(each.layer, 0) * graph.layer_by_name[each.layer].out_channels) for each in layers)
    notes = *plan.notes, *(Note(layer.name, _UNUSED) for layer in unused), *_miscounted(plan.promise, count, fresh)
    return Ledger(*sides, layers, notes, tuple(map(str, example)), graph.opaque)


def _reread(module: RewiredModule, mode: int, example: Example, like: LayerGraph) -> LayerGraph:
    """Trace a rewritten graph. The original ran with these inputs, so one that does not is no fault of theirs."""
    try:
        return layer_graph(module.graphs[mode], module.shell(), example, like=like)
    except SwnetError as error:
        raise AssertionError(f"the rewritten network does not run: {error}") from error


def _miscounted(promised: Promise, count: Promise, fresh: bool) -> Iterator[Note]:
    said, found = ((made.moved, made.units - made.pruned) for made in (promised, count))
    if said != found:
        text = f"the plan says that {said[0]} of {said[1]} were moved; the module shows {found[0]} of {found[1]}"
        assert not fresh, text
        yield Note("*", text)


_UNUSED = "nothing reads its output any more, so it is not computed; its parameters stay, and get no gradient"


def _before(counted: Census) -> Side:
    graph = counted.graph
    macs = graph.macs
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
    module: RewiredModule, plan: Plan, before: Census, after: LayerGraph, masks: Masks, p_achieved: float, figures: Figures
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
        p_achieved=p_achieved,
        figures=figures,
    )


def _stored_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(layers: Sequence[Layer], masks: Masks) -> int:
    return sum(
        (int(masks[layer.name].sum()) if layer.name in masks else layer.links) * layer.kernel_area * layer.positions
        for layer in layers
    )


def masks_of(module: nn.Module, graph: LayerGraph) -> dict[str, NDArray[np.bool_]]:
    """Return the masks that the module's layers really hold, as (out, in)."""
    found = {}
    for layer in graph.layers:
        owner = module.get_submodule(layer.weight.rpartition(".")[0])
        mask = owner._buffers.get("mask") if isinstance(owner, tuple(MASKED.values())) else None
        if mask is not None:
            found[layer.name] = np.asarray(mask.cpu().reshape(mask.shape[0], mask.shape[1]).numpy(), np.bool_)
    return found


def remasked(plan: Plan, graph: LayerGraph, masks: Masks) -> Plan:
    """Return a plan with other masks, and what it promises of them."""
    layers = tuple(replace(wiring, mask=masks.get(wiring.layer)) for wiring in plan.layers)
    made = replace(plan, layers=layers)
    count, (params, macs) = _units(made, graph, masks), promised_change(layers, graph)
    return replace(made, promise=replace(count, params=params, macs=macs))


def _renamed(taps: Mapping[str, Sequence[Tap]], before: Census) -> dict[str, tuple[Tap, ...]]:
    """Return the taps by the feature names of eval mode, which does not run every layer."""
    assert before.eval_graph is not None
    return {
        name: tuple(replace(tap, feature=before.eval_names[tap.feature]) for tap in found)
        for name, found in taps.items()
        if name in before.eval_graph.layer_by_name
    }


def _compare_reads(
    after: LayerGraph, before: LayerGraph, taps: Mapping[str, Sequence[Tap]], bypassed: Sequence[tuple[str, int]]
) -> None:
    """Assert that every layer of a rewritten graph reads the very channels that the plan names, and no other layer changed."""
    index = {key: place for place, key in enumerate(_keys(before))}
    keys = _keys(after)
    seen = _without(before, dict(bypassed))
    beside = _beside(after, before)
    sums = _sums_of_two(after, beside)
    for layer in after.layers:
        if layer.name not in before.layer_by_name:  # one beside another, and looked at with it
            continue
        found = after.runs_of([tap for one in (layer, beside.get(layer.name)) if one is not None for tap in after.reads(one)])
        named = [(sums[run.producer], True) if run.producer in sums else keys[run.producer] for run in found]
        if bypassed and not index.keys() >= set(named):
            continue  # an opaque addend stayed of a sum that it reads: it has no name of its own in the original
        real = [replace(run, producer=index[key]) for run, key in zip(found, named, strict=True)]
        planned = taps.get(layer.name, before.reads(before.layer_by_name[layer.name]))
        same = _slots(real, seen, bypassed) == _slots(before.runs_of(planned), seen, bypassed)
        assert same, f"{layer.name} reads {_shown(real, before)}, the plan says {' '.join(map(str, planned))}"


def _keys(graph: LayerGraph) -> list[tuple[str, bool]]:
    """Return the producers by their names, and whether they are layers: an input may have the name of one."""
    made = {layer.producer for layer in graph.layers}
    return [(producer.name, place in made) for place, producer in enumerate(graph.producers)]


def _beside(after: LayerGraph, before: LayerGraph) -> dict[str, Layer]:
    """Return the layers that were put beside others, by the names of these."""
    new = (layer for layer in after.layers if layer.name not in before.layer_by_name)
    return {layer.name.removesuffix(f".{GROWN}"): layer for layer in new}


def _sums_of_two(after: LayerGraph, beside: Mapping[str, Layer]) -> dict[int, str]:
    """Return the sums of a layer and the one beside it, by the name of the layer: in the original that is what is read."""
    pairs = {(after.layer_by_name[name].producer, layer.producer): name for name, layer in beside.items()}
    found: dict[int, str] = {}
    for index, made in enumerate(after.producers):
        parts = tuple(part[0].producer for part in made.parts if made.kind == "sum" and len(part) == 1)
        if parts in pairs:
            found[index] = pairs[parts]
    return found


def _without(graph: LayerGraph, bypassed: Mapping[str, int]) -> LayerGraph:
    """Return the graph with one addend left of each bypassed sum."""
    producers = (
        replace(made, parts=(made.parts[bypassed[made.name]],)) if made.name in bypassed else made for made in graph.producers
    )
    return replace(graph, producers=tuple(producers))


def _slots(runs: Sequence[Run], graph: LayerGraph, bypassed: object) -> list[tuple[int, int]]:
    """Return (slot, channel) pairs, ascending; where sums are bypassed, with all that a sum adds up instead of the sum."""
    base = graph.origins(join_runs(runs)) if bypassed else runs
    slots = np.concatenate([np.arange(run.start, run.stop) for run in base])
    return sorted(set(zip(slots.tolist(), channel_ids(base).tolist(), strict=True)))


def _shown(runs: Sequence[Run], graph: LayerGraph) -> str:
    return " ".join(f"{graph.producers[run.producer].name}[{run.first}:{run.first + run.width}]" for run in join_runs(runs)[:12])


def _compare_masks(masks: Masks, plan: Plan) -> None:
    assert masks.keys() == plan.masks().keys(), "masked layers differ from the plan's"
    assert all(np.array_equal(mask, masks[name]) for name, mask in plan.masks().items()), "a mask differs from the plan's"


def _units(plan: Plan, graph: LayerGraph, masks: Masks) -> Promise:
    """Count the blocks or links that moved and went, by what the layers of the module were found to read."""
    if plan.options.wiring in MASKED_WIRINGS:  # which layers took part, the plan knows
        gone = sum(graph.layer_by_name[name].links - int(mask.sum()) for name, mask in masks.items())
        pruned = gone if plan.options.wiring == "tile" else 0  # a link that left one layer is in another
        return Promise(units=plan.promise.units, moved=_moved_links(plan, graph, masks), pruned=pruned)
    sites = find_sites(Atlas(graph), as_they_act(graph, plan.options))[0]
    wirings = {wiring.layer: wiring for wiring in plan.layers}
    counts = [_moved_blocks(site, wirings[site.layer.name], graph) for site in sites if site.layer.name in wirings]
    return Promise(
        units=sum(len(site.slots) for site in sites),
        moved=sum(moved for moved, _ in counts),
        pruned=sum(pruned for _, pruned in counts),
        grown=plan.promise.grown,
    )


def _moved_blocks(site: Site, wiring: LayerWiring, graph: LayerGraph) -> tuple[int, int]:
    """Return how many slots of a layer read other channels than its own, and how many are gone."""
    columns = np.concatenate([np.arange(start, stop) for start, stop in wiring.columns])
    own = channel_ids(graph.feature_by_name[site.layer.feature].runs)
    changed = channel_ids(graph.runs_of(wiring.taps)) != own[columns]
    spans = [np.searchsorted(columns, (slot.start, slot.stop)) for slot in site.slots]
    return sum(bool(changed[low:high].any()) for low, high in spans), sum(bool(low == high) for low, high in spans)


def _moved_links(plan: Plan, graph: LayerGraph, masks: Masks) -> int:
    """Return how many live links of masked layers were not theirs at the start."""
    return sum(int(masks[name][:, ~own].sum()) for name, own in own_columns(plan, graph).items())


def own_columns(plan: Plan, graph: LayerGraph) -> dict[str, NDArray[np.bool_]]:
    """Return which columns of each masked layer were its own at the start, dense links stripped with the shortcuts."""
    stripped = plan.options.skips == "remove"
    start = without_dense_links(without_skips(graph)[0]) if stripped else {}
    found: dict[str, NDArray[np.bool_]] = {}
    for wiring in plan.layers:
        layer = graph.layer_by_name[wiring.layer]
        own = start.get(layer.name, np.ones(layer.in_channels, np.bool_))
        parts = [
            own[tap.start : tap.stop] if tap.feature == layer.feature else np.zeros(tap.width, np.bool_) for tap in wiring.taps
        ]
        found[layer.name] = np.concatenate(parts)
    return found


def _count(layer: Layer, taps: Mapping[str, Sequence[Tap]], masks: Masks, out: int, graph: LayerGraph) -> LayerCount:
    reads, mask = taps.get(layer.name), masks.get(layer.name)
    if reads is None and mask is None:
        return LayerCount(layer.name, layer.links, 0, 0)
    own = channel_ids(graph.feature_by_name[layer.feature].runs)
    kept = np.isin(channel_ids(graph.runs_of(reads if reads is not None else graph.reads(layer))), own)
    per_column = mask.sum(0) if mask is not None else np.full(len(kept), max(out // layer.groups, 1))
    stayed, moved = int(per_column[kept].sum()), int(per_column[~kept].sum())
    return LayerCount(layer.name, stayed, moved, max(layer.links - stayed - moved, 0))


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
