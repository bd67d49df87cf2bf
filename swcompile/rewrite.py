"""Carry out a verified plan: gathers in front of layers, weights sliced or masked. Works on the copy that tracing made.

before: conv2 = layer2(relu1)
after:  gathered = gather(relu1, (stem, relu1), ((1, 0, 8, "max"), (0, 8, 64, "max")), 1); conv2 = layer2(gathered)
grown:  gathered = gather(relu1, (stem,), ((0, 0, 8, "max"),), 1); conv2 = layer2(relu1) + layer2.grown(gathered)
"""

from __future__ import annotations

import copy
import hashlib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from swcompile.errors import SwnetError
from swcompile.graph import GROWN, Layer, LayerGraph, Tap
from swcompile.modules import MASKED, gather
from swcompile.plan import LayerWiring, Plan
from swcompile.rows import Rows
from swcompile.trace import Traced
from swcompile.trace.coupling import follow
from swcompile.trace.lines import WHERE
from swcompile.trace.names import name_of
from swcompile.trace.shapes import ELSEWHERE, SHAPE, spec_of

NEW = -1
"""Marks a channel that a layer's own norm has not seen before."""


Kept = Mapping[fx.Node, tuple[NDArray[np.bool_], int]]
"""For nodes that lose channels, which of them stay, and their axis."""


@dataclass(frozen=True)
class _Site:
    """Where a wiring goes in one graph: the fx names of the layer and its chain, and the translation of feature names."""

    wiring: LayerWiring
    layer: Layer
    names: Mapping[str, str]

    def __call__(self, name: str) -> str:
        """Return the fx name of a node or feature; a value that is read along two axes is two features, x and x.axis1."""
        return self.names.get(name, name).partition(".")[0]


def rewrite(traced: Traced, plan: Plan) -> None:
    """Change the traced graphs and modules in place as the plan says. The plan must have been verified against `traced.graph`."""
    kept = _kept_channels(traced, plan)  # by modules as they are
    fit_modules(traced, plan)
    rewire_graphs(traced, plan, kept)


def fit_modules(traced: Traced, plan: Plan) -> None:
    """Slice or mask the parameters and buffers of the traced module as the plan says; its graphs stay as they are."""
    layers, outputs = traced.graph.layer_by_name, plan.outputs()
    for wiring in plan.layers:
        _change_module(traced.root, layers[wiring.layer], wiring, plan, traced.train_graph)
        if wiring.grown:
            _grow_module(traced.root, layers[wiring.layer], wiring, traced.train_graph)
    for name, spans in outputs.items():
        _drop_rows(traced.root, layers[name], torch.cat([torch.arange(start, stop) for start, stop in spans]))
    if outputs:
        for carrier, stays in Rows(traced.graph).stay(outputs):
            if not carrier.depthwise:
                _refit_norm(traced.root.get_submodule(carrier.name), torch.from_numpy(np.flatnonzero(stays)))


def rewire_graphs(traced: Traced, plan: Plan, kept: Sequence[Kept] = ({}, {})) -> None:
    """Let layers read what the plan says; `kept` are, for each graph, the nodes that lose channels."""
    names = _sums_in_eval(traced, plan) | traced.eval_names
    _rewrite_graph(traced.root, traced.train_graph, traced.graph, plan, {}, kept[0])
    if traced.eval_graph is not None:
        _rewrite_graph(traced.root, traced.eval_graph, traced.graph, plan, names, kept[1], skip_train_only=True)


def _kept_channels(traced: Traced, plan: Plan) -> list[Kept]:
    """Return, for each graph, which channels its nodes keep."""
    outputs = plan.outputs()
    if not outputs:
        return [{} for _ in traced.graphs]
    rows = Rows(traced.graph)
    live = rows.without(outputs)
    made: list[Kept] = []
    for graph, layers in zip(traced.graphs, (traced.graph, traced.eval_layers), strict=False):
        assert layers is not None
        carried = follow(traced.graph, traced.root, graph, layers).carried
        kept = {node: (rows.kept(one.rows, live), one.axis) for node, one in carried.items()}
        made.append({node: stays for node, stays in kept.items() if not stays[0].all()})
    return made


def _rewrite_graph(
    root: nn.Module,
    graph: fx.Graph,
    layers: LayerGraph,
    plan: Plan,
    names: Mapping[str, str],
    kept: Kept,
    skip_train_only: bool = False,
) -> None:
    nodes = {node.name: node for node in graph.nodes}
    for name, chosen in plan.bypassed:
        if not skip_train_only or name in names:
            _bypass(nodes, names.get(name, name), chosen)
    for wiring in plan.layers:
        layer = layers.layer_by_name[wiring.layer]
        if layer.depthwise or (layer.train_only and skip_train_only):
            continue
        site, axis = _Site(wiring, layer, names), layers.feature_by_name[layer.feature].axis
        _insert_gather(graph, nodes, site, axis)
        if wiring.grown:
            _insert_grown(root, graph, nodes, site, axis)
    _renumber(graph, kept)
    graph.lint()


def _renumber(graph: fx.Graph, kept: Kept) -> None:
    """Let gathers count channels as they are once those that nobody reads are gone, and shapes say how many are left."""
    for node in graph.nodes if kept else ():
        if node.target is gather:
            arguments: tuple[Any, ...] = node.args
            like, sources, taps, axis = arguments
            moved = [(index, _places(kept, sources[index], start, stop), kind) for index, start, stop, kind in taps]
            node.args = (like, sources, tuple((index, *places, kind) for index, places, kind in moved), axis)
        elif node in kept:
            spec = spec_of(node)
            assert spec is not None
            stays, axis = kept[node]
            shape = (*spec.shape[:axis], int(stays.sum()), *spec.shape[axis + 1 :])
            node.meta[SHAPE] = replace(spec, shape=shape)


def _places(kept: Kept, source: fx.Node, start: int, stop: int) -> tuple[int, int]:
    """Return where channels [start, stop) of a value are, once others are gone."""
    if source not in kept:
        return start, stop
    stays, _ = kept[source]
    assert stays[start:stop].all(), f"{source.name}[{start}:{stop}] is read, and some of it is gone"
    first = int(stays[:start].sum())
    return first, first + stop - start


def _sums_in_eval(traced: Traced, plan: Plan) -> dict[str, str]:
    """Return the eval-mode names of the sums to bypass: the same operation at the same line, visited as often.

    A sum that is not found is computed in train mode only. Raises SwnetError where a line runs in both, but not as often.
    """
    if not plan.bypassed or traced.eval_graph is None:
        return {}
    ours, theirs = (_by_line(graph) for graph in (traced.train_graph, traced.eval_graph))
    wanted = {name for name, _ in plan.bypassed}
    found: dict[str, str] = {}
    for key, names in ours.items():
        others = theirs.get(key, [])
        if wanted.isdisjoint(names) or not others:
            continue
        if len(names) != len(others):
            raise SwnetError(
                f"skips='remove' cannot tell which sums of {key[1]} eval mode computes: train mode runs the line {len(names)} "
                f"times, eval mode {len(others)} times. Use skips='keep'."
            )
        found.update(zip(names, others, strict=True))
    return found


def _by_line(graph: fx.Graph) -> dict[tuple[str, str], list[str]]:
    """Return the names of nodes by what they call and the user's line that called it."""
    found: dict[tuple[str, str], list[str]] = {}
    for node in graph.nodes:
        found.setdefault((str(node.target), str(node.meta.get(WHERE, ""))), []).append(node.name)
    return found


def _bypass(nodes: dict[str, fx.Node], name: str, kept: int) -> None:
    """Replace a sum by one of its addends, for its readers and for taps of it.

    Raises SwnetError where the node joins maps otherwise than by adding them up, so that none of them can stand in for all.
    """
    node = nodes[name]
    addends = [source for source in node.all_input_nodes if source.op != "get_attr"]
    if kept >= len(addends) or spec_of(addends[kept]) != spec_of(node):
        raise SwnetError(
            f"skips='remove' cannot leave one map of those that {name} ({node.meta.get(WHERE, '')}) joins. Use skips='keep'."
        )
    nodes[name] = addends[kept]
    node.replace_all_uses_with(nodes[name])


def _insert_gather(graph: fx.Graph, nodes: Mapping[str, fx.Node], site: _Site, axis: int) -> None:
    own = nodes[site(site.layer.feature)]
    taps = site.wiring.taps
    if len(taps) == 1 and nodes[site(taps[0].feature)] is own and site.wiring.width == site.layer.in_channels:
        return
    gathered = _gathered(graph, nodes, site, taps, axis)
    nodes[site((site.layer.chain or (site.layer.node,))[0])].replace_input_with(own, gathered)


def _gathered(graph: fx.Graph, nodes: Mapping[str, fx.Node], site: _Site, taps: Sequence[Tap], axis: int) -> fx.Node:
    """Put a gather in front of a layer and its chain."""
    own = nodes[site(site.layer.feature)]
    sources = list(dict.fromkeys(nodes[site(tap.feature)] for tap in taps))
    read = tuple((sources.index(nodes[site(tap.feature)]), tap.start, tap.stop, tap.resample) for tap in taps)
    with graph.inserting_before(nodes[site((site.layer.chain or (site.layer.node,))[0])]):
        return graph.call_function(gather, (own, tuple(sources), read, axis))


def _beside(root: nn.Module, layer: Layer, place: int, node: fx.Node) -> Any:
    """Return what the chain of a grown layer calls where its reader's own calls `node`; None for what draws random numbers."""
    path = f"{layer.name}.{GROWN}.chain{place}"
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU) or any(word in name_of(node.target) for word in _RANDOM):
        return None
    with suppress(AttributeError):
        root.get_submodule(path)
        return path
    return node.target


_RANDOM = ("dropout", "rrelu")


def _insert_grown(root: nn.Module, graph: fx.Graph, nodes: dict[str, fx.Node], site: _Site, axis: int) -> None:
    """Add what the layer beside this one makes of the grown taps, behind a chain like this one's.

    A dropout or RReLU is left out of it: it would draw random numbers, and so change what the others draw.
    """
    layer = nodes[site(site.layer.node)]
    value = _gathered(graph, nodes, site, site.wiring.grown, axis)
    width = sum(tap.width for tap in site.wiring.grown)
    for place, name in enumerate(site.layer.chain):
        node = nodes[site(name)]
        target = _beside(root, site.layer, place, node)
        if target is None:
            continue
        with graph.inserting_before(layer):
            value = graph.node_copy(node, dict.fromkeys(node.all_input_nodes, value).__getitem__)
        spec = spec_of(node)
        assert spec is not None
        value.target = target
        value.meta[SHAPE] = replace(spec, shape=(*spec.shape[:axis], width, *spec.shape[axis + 1 :]))
    with graph.inserting_after(layer):
        beside = graph.call_module(f"{site.layer.name}.{GROWN}", (value,))
    with graph.inserting_after(beside):
        total = graph.call_function(operator.add, (layer, beside))
    layer.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    for node in (beside, total):
        node.meta.update({key: layer.meta[key] for key in (SHAPE, ELSEWHERE) if key in layer.meta})
    nodes[layer.name] = total


def _change_module(root: nn.Module, layer: Layer, wiring: LayerWiring, plan: Plan, graph: fx.Graph) -> None:
    path = layer.name
    if wiring.mask is not None:
        root.set_submodule(path, _masked(root.get_submodule(path), layer, wiring, plan))
        own, columns = _own_columns(layer, wiring)
        index = torch.full((wiring.width,), NEW)
        index[own] = columns
    elif wiring.width < layer.in_channels and not layer.depthwise:
        index = torch.cat([torch.arange(start, stop) for start, stop in wiring.columns])
        _slice_weight(root, layer, index)
    else:
        return
    targets = {node.name: str(node.target) for node in graph.nodes if node.op == "call_module"}
    for name in layer.chain:
        if name in targets:
            _refit_norm(root.get_submodule(targets[name]), index)


def _grow_module(root: nn.Module, layer: Layer, wiring: LayerWiring, graph: fx.Graph) -> None:
    """Put a layer of zeros beside this one, which reads the grown taps, with norms of its own for them."""
    module: Any = root.get_submodule(layer.name)
    kind: Any = getattr(nn, layer.kind)
    if type(module) is not kind:
        raise SwnetError(
            f"{layer.name} is a {layer.kind} of the model's own, beside which no other can be put. Name it in leaf_modules."
        )
    width = sum(tap.width for tap in wiring.grown)
    sizes = ("kernel_size", "stride", "padding", "dilation", "padding_mode") if layer.kernel_size else ()
    beside = kind(width, layer.out_channels, **{name: getattr(module, name) for name in sizes}, bias=False, device="meta")
    beside.weight = _parameter(module.weight, module.weight.new_zeros(beside.weight.shape)).requires_grad_(True)
    module.add_module(GROWN, beside)
    targets = {node.name: str(node.target) for node in graph.nodes if node.op == "call_module"}
    for place, name in enumerate(layer.chain):
        known = root.get_submodule(targets[name]) if name in targets else nn.Identity()
        if _by_channel(known):
            fresh: Any = copy.deepcopy(known)
            _refit_norm(fresh, torch.full((width,), NEW))
            if getattr(fresh, "num_batches_tracked", None) is not None:
                fresh.num_batches_tracked.zero_()
            beside.add_module(f"chain{place}", fresh)
    beside.train(module.training)


def _by_channel(module: nn.Module) -> bool:
    """Whether a module of a chain has numbers for each channel: a norm, or a PReLU with more than one slope."""
    own = isinstance(module, nn.modules.batchnorm._NormBase)
    return own or any(parameter.numel() > 1 for parameter in module.parameters())


def _slice_weight(root: nn.Module, layer: Layer, columns: Tensor) -> None:
    """Keep the input channels `columns` of a layer's weight; grouped layers keep as many in each group."""
    if layer.rigid:
        raise SwnetError(f"{layer.name} cannot lose channels: {layer.rigid}. Use density=1, or a plan that leaves it whole.")
    path, _, name = layer.weight.rpartition(".")
    owner: Any = root.get_submodule(path)
    weight = getattr(owner, name)
    if layer.transposed:
        sliced = weight.index_select(0, columns.to(weight.device))
    else:
        width, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        parts = []
        for group in range(layer.groups):
            mine = columns[(columns >= group * width) & (columns < (group + 1) * width)] - group * width
            parts.append(weight[group * outs : (group + 1) * outs].index_select(1, mine.to(weight.device)))
        sliced = torch.cat(parts)
    setattr(owner, name, _parameter(weight, sliced))
    for attribute in ("in_features", "in_channels"):
        if hasattr(owner, attribute):
            setattr(owner, attribute, len(columns))


def _drop_rows(root: nn.Module, layer: Layer, rows: Tensor) -> None:
    """Keep the output channels `rows` of a layer; a depthwise one reads as many as it makes."""
    module: Any = root.get_submodule(layer.name)
    rows = rows.to(module.weight.device)
    module.weight = _parameter(module.weight, module.weight.index_select(1 if layer.transposed else 0, rows))
    if module.bias is not None:
        module.bias = _parameter(module.bias, module.bias.index_select(0, rows))
    for attribute in ("out_features", "out_channels", *(("in_channels", "groups") if layer.depthwise else ())):
        if hasattr(module, attribute):
            setattr(module, attribute, len(rows))


def _refit_norm(module: Any, index: Tensor) -> None:
    """Fit a norm or activation that belongs to one reader to its new input: channel i is index[i] of before, or NEW.

    New channels start as a fresh norm does: statistics of mean 0 and variance 1, scale 1, shift 0; a PReLU with slope 0.25.
    """
    norm = isinstance(module, nn.modules.batchnorm._NormBase)
    if is_parametrized(module) or any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
        raise SwnetError(
            f"A {type(module).__name__} of the model's own cannot be fitted to other channels. Name it in leaf_modules, or let the "
            "layer behind it stay as it is."
        )
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor is None or tensor.dim() != 1 or (tensor.numel() == 1 and not norm):  # one slope for all channels
            continue
        start = 0.25 if isinstance(module, nn.PReLU) else 1.0 if name in ("weight", "running_var") else 0.0
        where = index.to(tensor.device)
        fitted = torch.where(where == NEW, tensor.new_tensor(start), tensor.detach().index_select(0, where.clamp_min(0)))
        setattr(module, name, _parameter(tensor, fitted) if isinstance(tensor, nn.Parameter) else fitted)
    if norm:
        module.num_features = len(index)
    elif getattr(module, "num_parameters", 1) > 1:
        module.num_parameters = len(index)


def _parameter(like: Tensor, value: Tensor) -> nn.Parameter:
    memory = torch.channels_last if value.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) else None
    kept = value.detach().clone() if memory is None else value.detach().clone(memory_format=memory)
    return nn.Parameter(kept, like.requires_grad)


def _masked(module: nn.Module, layer: Layer, wiring: LayerWiring, plan: Plan) -> nn.Module:
    """Return a masked layer over the gathered union.

    Output channels whose links did not change keep their weights; the others are drawn anew, since a neuron with another fan-in
    needs another scale: He et al. (2015) per neuron, from the fan-in of its live links (init="he") or of the union ("dense"). In
    tiles, which may be what a trained layer needs most, all links that stay keep theirs, and those from far are drawn.
    """
    kind = MASKED.get(type(module))
    if kind is None:
        raise SwnetError(
            f"{layer.name} is a {type(module).__name__}; wiring={plan.options.wiring!r} masks Conv1d, Conv2d, Conv3d and Linear "
            "only."
        )
    assert wiring.mask is not None
    weight: Any = module.weight
    mask = torch.tensor(wiring.mask)  # a copy: loading a state dict into the module must not write into the plan
    made: Any = object.__new__(kind)
    nn.Module.__init__(made)
    made.__dict__.update({key: value for key, value in module.__dict__.items() if key not in ("_parameters", "_buffers")})
    made._parameters = dict(module._parameters)
    made._buffers = dict(module._buffers)
    fresh = _draw(mask, weight.shape[2:], layer, plan)
    own, columns = _own_columns(layer, wiring)
    if plan.options.wiring == "tile" and weight.device.type != "meta":
        whole = weight.detach().cpu().float()[:, columns]
        fresh[:, own] = torch.where(mask[:, own].reshape(*mask[:, own].shape, *(1 for _ in whole.shape[2:])), whole, 0.0)
    same = mask[:, own].all(1) & (mask.sum(1) == layer.in_channels) if len(own) == layer.in_channels else None
    if same is not None and bool(same.any()) and weight.device.type != "meta":
        rows = same.nonzero()[:, 0]
        fresh[rows[:, None], own[None, :]] = weight.detach().cpu().float()[rows[:, None], columns[None, :]]
    made.weight = nn.Parameter(fresh.to(weight.device, weight.dtype), weight.requires_grad)
    made.register_buffer("mask", mask.reshape(*mask.shape, *(1 for _ in weight.shape[2:])).to(weight.device))
    setattr(made, "in_features" if isinstance(module, nn.Linear) else "in_channels", wiring.width)
    masked: nn.Module = made
    return masked


def _own_columns(layer: Layer, wiring: LayerWiring) -> tuple[Tensor, Tensor]:
    """Return the places of the layer's own feature in the union, and the channels that stand there."""
    places: list[int] = []
    channels: list[int] = []
    offset = 0
    for tap in wiring.taps:
        if tap.feature == layer.feature:
            places.extend(range(offset, offset + tap.width))
            channels.extend(range(tap.start, tap.stop))
        offset += tap.width
    return torch.tensor(places, dtype=torch.long), torch.tensor(channels, dtype=torch.long)


def _draw(mask: Tensor, kernel: Iterable[int], layer: Layer, plan: Plan) -> Tensor:
    """Draw live weights with variance 2 / fan-in, seeded by the plan's seed and the layer's name."""
    sizes = tuple(kernel)
    area = math.prod(sizes)
    key = hashlib.sha256(f"weights:{plan.options.seed}:{layer.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    fan_in = mask.sum(1).clamp_min(1) * area if plan.options.init == "he" else torch.full((len(mask),), mask.shape[1] * area)
    fresh = torch.zeros(*mask.shape, *sizes)
    scale = (2.0 / fan_in.double()).sqrt().float()
    rows, places = mask.nonzero(as_tuple=True)
    live = torch.randn(len(rows), *sizes, generator=generator)
    fresh[rows, places] = live * scale[rows].reshape(-1, *(1 for _ in sizes))
    return fresh
