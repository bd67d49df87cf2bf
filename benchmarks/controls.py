"""Control arms: is it small-worldness, or just shortcuts; and does clustering matter at all?

    random-residual    the original, and a share p of its layers also read a random earlier map, which is added to their input
    clustering-up      wiring `kernel` at p, then links swapped inside pairs of layers as long as that raises the clustering C
    clustering-down    the same as long as it lowers C; both are to be compared with plain wiring `kernel` at the same p and seed

Each is a function of a model, an example input, a seed and p, and returns a new module with the original's parameters and
multiply-accumulates (random-residual) or those of wiring `kernel` (the others). A plain narrow DenseNet, the control of nets a
tenth of DenseNet's size, is a network of its own: `narrow_densenet40` in the grids.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import swnet
from swcompile.errors import SwnetError
from swcompile.graph import Feature, Layer, LayerGraph, Run, unreadable
from swcompile.metrics import ChannelGraph, Figures, channel_graph, measure
from swcompile.metrics.bits import unpack
from swcompile.modules import RewiredModule, resample
from swcompile.plan import LayerWiring, Note, Plan
from swcompile.survey import survey
from swcompile.wiring.draw import Draw

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Control = Callable[[nn.Module, Tensor, int, float], nn.Module]


AUGMENTED = {operator.iadd: operator.add, operator.isub: operator.sub}
"""What tracing lets work in place again, and the same without."""


# --- shortcuts alone ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shortcut:
    """A layer's input, named by the fx nodes of the value and its reader, to which the value `source` is added on axis `axis`."""

    reader: str
    reads: str
    source: str
    axis: int


def random_residual(model: nn.Module, example: Tensor, seed: int, p: float) -> nn.Module:
    """Return a copy of a model in which a share p of the eligible layers also read a random earlier map, added to their input.

    See `draw_shortcuts` and `with_shortcut`. Parameters, their names and the multiply-accumulates are the original's.

    Raises:
        SwnetError: where no layer has an earlier map to read, or eval mode runs another graph.
    """
    made = swnet.transform(model, example, p=0.0)
    if len(made.graphs) > 1:
        raise SwnetError("The model runs other code in eval mode, where this control adds no shortcuts; take one that does not.")
    found = survey(model, example)
    _add(made, draw_shortcuts(found.graph, found.eligible, seed, p))
    return made


def draw_shortcuts(graph: LayerGraph, eligible: tuple[str, ...], seed: int, p: float) -> list[Shortcut]:
    """Draw round(p * n) of the n eligible layers that have an earlier map at a layer distance of 2 or more, and a map for each."""
    sources = {layer.name: (layer, found) for layer, found in _sources(graph) if layer.name in eligible and found}
    if not sources:
        raise SwnetError("No layer has an earlier map to read at a layer distance of 2 or more, so there is no shortcut to draw.")
    draw = Draw(seed, "shortcuts")
    chosen = draw.shuffled(sorted(sources))[: round(p * len(sources))]
    return [_shortcut(graph, *sources[name], Draw(seed, f"shortcut:{name}")) for name in chosen]


def _sources(graph: LayerGraph) -> Iterator[tuple[Layer, list[Feature]]]:
    """Yield each layer, one for each reading point, with the long-range maps that it could read."""
    seen: set[str] = set()
    for layer, distance in graph.distances():
        if (reader := _reader(layer)) not in seen:
            seen.add(reader)
            features = (feature for feature in graph.features if unreadable(graph, feature, layer) is None)
            yield layer, [feature for feature in features if min(distance[run.producer] for run in feature.runs) >= 2]


def _shortcut(graph: LayerGraph, layer: Layer, sources: list[Feature], draw: Draw) -> Shortcut:
    source = sources[draw.integer(len(sources))]
    return Shortcut(_reader(layer), layer.feature, source.name, graph.feature_by_name[layer.feature].axis)


def _reader(layer: Layer) -> str:
    """Return the fx node that reads the layer's feature: the first of its norms and activations, else the layer itself."""
    return layer.chain[0] if layer.chain else layer.node


def _add(made: RewiredModule, shortcuts: list[Shortcut]) -> None:
    """Put the additions into the module's graph, and make it forget the ledger, which does not know of them."""
    nodes = {node.name: node for node in made.graph.nodes}
    for each in shortcuts:
        reader, value = nodes[each.reader], nodes[each.reads]
        with made.graph.inserting_before(reader):
            added = made.graph.call_function(with_shortcut, (value, nodes[each.source], each.axis))
        reader.replace_input_with(value, added)
    _without_in_place(made)
    made.recompile()
    made.swcompile = None


def _without_in_place(made: RewiredModule) -> None:
    """Let nothing work in place: a shortcut may read later what an activation would have overwritten."""
    for node in made.graph.nodes:
        if node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
        if node.target in AUGMENTED:
            node.target = AUGMENTED[node.target]
    for module in made.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # a plain attribute of torch's activations


def with_shortcut(x: Tensor, source: Tensor, axis: int) -> Tensor:
    """Return x with an earlier value added to its first channels: as many as both have, the others as they are.

    Args:
        x: (N, C, *spatial) with `axis` 1, or (N, *tokens, C) with the last one.
        source: (N, C', *spatial) of any size, brought to that of x by max pooling or nearest upsampling; or (N, *tokens, C').

    Returns:
        A tensor of the shape of x. The shape-preserving, parameter-free shortcut of He et al. (arXiv 1512.03385, option A).
    """
    source = resample(source, x, "max") if axis == 1 and x.dim() > 2 else source
    width = min(x.shape[axis], source.shape[axis])
    added = x.narrow(axis, 0, width) + source.narrow(axis, 0, width)
    rest = x.shape[axis] - width
    return torch.cat([added, x.narrow(axis, width, rest)], axis) if rest else added


# --- clustering moved, all degrees and densities held ------------------------------------------------------------------------

SWEEPS, ROUNDS = 3, 20
"""Sweeps over all pairs of layers, and rounds of trades in each. ConvNet-C at p = .3 takes under a minute on one core, and C goes
from .126 to .136 or .116; of the plain 21-layer net it goes from .090 to .105 or .075, and at p = 1 from .184 to .27 or .13. Six
times the work moves the latter by a fifth more."""


@dataclass(frozen=True)
class Swapped:
    """A plan of wiring `kernel` after swaps, and the figures of its channel graph before and after."""

    plan: Plan
    swaps: int
    before: Figures
    after: Figures


def clustering_moved(model: nn.Module, example: Tensor, seed: int, p: float, *, up: bool) -> nn.Module:
    """Return a model under wiring `kernel` whose clustering was moved up or down by swaps; its ledger notes C and L of both.

    Raises:
        SwnetError: where wiring `kernel` moves no link, or no swap moves C.
    """
    plan = swnet.plan(model, example, p=p, wiring="kernel", seed=seed)
    made = swap(plan, survey(model, example).graph, seed, up=up)
    return swnet.apply(model, made.plan, example)


def swap(plan: Plan, graph: LayerGraph, seed: int, *, up: bool) -> Swapped:
    """Swap the ends of links inside pairs of layers, (a, b), (c, d) to (a, d), (c, b), where that moves C in the wanted direction.

    a and c are channels of one producer, b and d outputs of one layer: every in-degree and out-degree and the density between each
    two layers stay. A triangle has its corners in three layers, since no link joins channels of one; so only one of its sides lies
    in a given pair of layers, and what a link (x, y) adds to C depends on links in other pairs alone:

        V * C = sum over links of g / 3,  g(x, y) = (w_x + w_y) n + sum of w_z,  w = 2 / (k (k - 1))

    over the n common neighbours z of x and y. So the change by a swap, g(a, d) + g(c, b) - g(a, b) - g(c, d), is exact however
    many swaps of the pair go before it. Left alone are links through sums, which join several channels at once, and links that
    are doubled by such. Rounding of g may decide ties otherwise on another machine.
    """
    masks = {wiring.layer: wiring.mask.copy() for wiring in plan.layers if wiring.mask is not None}
    before = _channels(plan, graph, masks)
    state = _State.of(before)
    swaps = 0
    for sweep in range(SWEEPS):
        for wiring in plan.layers:
            draw = Draw(seed, f"swaps:{sweep}:{wiring.layer}")
            for pair in _pairs(before, wiring, masks[wiring.layer]):
                swaps += _swap_inside(pair, masks[wiring.layer], state, draw, up=up)
    if not swaps:
        raise SwnetError(f"No swap inside a pair of layers moves C at p={plan.options.number:g}; take a larger p.")
    after = _channels(plan, graph, masks)
    assert np.array_equal(before.classes.degrees, after.classes.degrees), "a swap changed a degree"
    figures = measure(before), measure(after)
    assert figures[0].C < figures[1].C if up else figures[0].C > figures[1].C, "swaps moved C in the other direction"
    return Swapped(_replanned(plan, masks, swaps, *figures), swaps, *figures)


def _channels(plan: Plan, graph: LayerGraph, masks: Mapping[str, Bools]) -> ChannelGraph:
    return channel_graph(graph, plan.taps(), masks, bypassed=plan.bypassed).by_channel()


def _replanned(plan: Plan, masks: Mapping[str, Bools], swaps: int, before: Figures, after: Figures) -> Plan:
    said = (
        f"{swaps} swaps inside pairs of layers moved C from {before.C:.4f} to {after.C:.4f} and L from {before.L:.4f} to "
        f"{after.L:.4f}; all degrees are as they were"
    )
    layers = tuple(dataclasses.replace(wiring, mask=masks[wiring.layer]) for wiring in plan.layers)
    return dataclasses.replace(plan, layers=layers, notes=(*plan.notes, Note("*", said)))


@dataclass(frozen=True)
class _State:
    """The adjacency of the channel graph by classes, which swaps change; weights of classes, and w of the module's formula."""

    joined: NDArray[np.float32]
    weight: NDArray[np.float32]
    share: NDArray[np.float32]

    @staticmethod
    def of(channels: ChannelGraph) -> _State:
        classes = channels.classes
        degree = classes.degrees.astype(np.float64)
        share = np.divide(2.0, degree * (degree - 1), out=np.zeros_like(degree), where=degree > 1)
        rows = unpack(classes.rows, classes.count).astype(np.float32)
        return _State(rows, classes.weight.astype(np.float32), share.astype(np.float32))

    def gains(self, outs: Ints, sources: Ints) -> Floats:
        """Return g of each link between outputs and sources, whether it is there or not: (outs, sources)."""
        left, right = self.joined[outs], self.joined[sources]
        common = (left * self.weight) @ right.T
        shares = (left * (self.weight * self.share)) @ right.T
        return ((self.share[outs][:, None] + self.share[sources]) * common + shares).astype(np.float64)


@dataclass(frozen=True)
class _Pair:
    """A layer and one producer that it reads: classes of the outputs and of the sources, the sources' columns of the mask.

    `doubled` (outs, sources) marks the links that are there by another column, too.
    """

    outs: Ints
    sources: Ints
    columns: Ints
    doubled: Bools


def _pairs(channels: ChannelGraph, wiring: LayerWiring, mask: Bools) -> list[_Pair]:
    """Return the pairs of a masked layer, one for each producer of which it reads two channels or more as they are."""
    columns, nodes, producers = _origins(channels, wiring)
    several = np.bincount(columns, minlength=mask.shape[1]) > 1
    layer = channels.graph.layer_by_name[wiring.layer]
    outs = _nodes(channels, layer.producer, np.arange(layer.out_channels))
    made = []
    for producer in np.unique(producers):
        chosen = (producers == producer) & ~several[columns] & (nodes >= 0)
        single, first = np.unique(nodes[chosen], return_index=True)  # a flattened map has several slots for a channel
        if len(single) == chosen.sum() > 1:
            own = columns[chosen][first]
            others = ~np.isin(columns, own) & np.isin(nodes, single)
            doubled = np.zeros((len(outs), len(single)), np.bool_)
            for column, node in zip(columns[others], nodes[others], strict=True):
                doubled[:, np.searchsorted(single, node)] |= mask[:, column]
            made.append(_Pair(outs, single, own, doubled))
    return made


def _origins(channels: ChannelGraph, wiring: LayerWiring) -> tuple[Ints, Ints, Ints]:
    """Return (column, class, producer) of every channel that a layer reads: a column of a sum comes once for each addend."""
    runs = channels.graph.origins(channels.graph.runs_of(wiring.taps))
    columns = np.concatenate([np.arange(run.start, run.stop) for run in runs])
    nodes = np.concatenate([_nodes(channels, run.producer, _channels_of(run)) for run in runs])
    return columns, nodes, np.repeat([run.producer for run in runs], [run.width for run in runs])


def _channels_of(run: Run) -> Ints:
    return run.first + run.step * np.arange(run.width, dtype=np.int64)


def _nodes(channels: ChannelGraph, producer: int, numbers: Ints) -> Ints:
    """Return the classes of a producer's channels, -1 for those of opaque operations, which are no nodes."""
    cells = channels.cells
    made: Ints = cells.number[cells.of[cells.offset[producer] + numbers]]
    return made


def _swap_inside(pair: _Pair, mask: Bools, state: _State, draw: Draw, *, up: bool) -> int:
    """Swap inside one pair of layers, in the mask and in the state; return how many swaps there were."""
    gain = state.gains(pair.outs, pair.sources) * (1 if up else -1)
    live = mask[:, pair.columns]
    done = sum(_trade(live, pair.doubled, gain, draw) for _ in range(ROUNDS))
    if done:
        mask[:, pair.columns] = live
        joined = (live | pair.doubled).astype(np.float32)
        state.joined[np.ix_(pair.outs, pair.sources)] = joined
        state.joined[np.ix_(pair.sources, pair.outs)] = joined.T
    return done


def _trade(live: Bools, doubled: Bools, gain: Floats, draw: Draw) -> int:
    """Let random pairs of outputs b, d swap links: of the sources that one of them reads, b gets those at which it gains most.

    As many as it had, so that all degrees stay; where nothing is gained, a source stays where it is. Carries out at once what
    single swaps of the two would come to. Returns how many swaps that is.
    """
    order = np.argsort(draw.uniforms(len(live)), kind="stable")
    half = len(order) // 2
    b, d = order[:half], order[half : 2 * half]
    tradable = (live[b] ^ live[d]) & ~doubled[b] & ~doubled[d]  # (pairs, sources)
    own = live[b] & tradable
    better = gain[b] - gain[d] + own * 1e-9 * np.abs(gain).max(initial=0)
    place = np.argsort(np.where(tradable, -better, np.inf), axis=1, kind="stable")
    rank = np.empty_like(place)
    np.put_along_axis(rank, place, np.arange(live.shape[1])[None], axis=1)
    chosen = tradable & (rank < own.sum(axis=1)[:, None])
    live[b] = live[b] & ~tradable | chosen
    live[d] = live[d] & ~tradable | tradable & ~chosen
    return int((chosen & ~own).sum())


CONTROLS: Mapping[str, Control] = {
    "random-residual": random_residual,
    "clustering-up": partial(clustering_moved, up=True),
    "clustering-down": partial(clustering_moved, up=False),
}
