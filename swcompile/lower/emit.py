"""Rewrite a graph so that maps are put into slabs as they are made, and sites read from there.

    a = conv1(x);  b = conv2(a);  c = cat([a, b], 1);  y = conv3(relu(norm(c)))

    a = conv1(x);  s = new_slab(a, 24, 1);  s1 = put(s, a, 0, 1)
    b = conv2(a);  s2 = put(s1, b, 16, 1);  y = product(s2, (0, 0, 24), 1, (norm.running_mean, ...), "relu", conv3.weight, ...)

Parameters and buffers are read by name as the graph runs, so the state dict is as it was, and what is trained or loaded counts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from swcompile.lower import run, run_clusters
from swcompile.lower.clusters import padding_of, parts_of
from swcompile.lower.costs import reads_apart
from swcompile.lower.regions import Region, lay_out_regions
from swcompile.lower.sites import Site
from swcompile.lower.steps import activation_of, is_norm
from swcompile.modules import resample
from swcompile.optimize import drop_unread
from swcompile.trace.shapes import Spec, spec_of
from swkernels import Taps
from swkernels.affine import NO_NORM

_TARGETS: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "torch": (run.read_map, run.product, run_clusters.cluster_products),
    "triton": (run.read_map_by_kernel, run.product_by_kernel, run_clusters.cluster_products_by_kernel),
}


def lowered(graph: fx.Graph, root: nn.Module, forms: Mapping[Site, str]) -> tuple[fx.Graph | None, tuple[str, ...]]:
    """Return a copy of an eval-mode graph with sites in their forms, and the paths of the modules it bypasses.

    None where all forms are "plain", which leaves a site as it is.
    """
    sites = [site for site, form in forms.items() if form != "plain"]
    if not sites:
        return None, ()
    copies: dict[fx.Node, fx.Node] = {}
    made = fx.Graph()
    made.output(made.graph_copy(graph, copies))
    apart = [site for site in sites if reads_apart(site, forms[site])]
    for region in lay_out_regions(graph, [site for site in sites if site not in apart]):
        _emit(made, region, copies, root, forms)
    for site in apart:
        _emit_apart(made, site, copies, root, forms[site])
    drop_unread(made)
    lay_for_views(made, root)
    lay_for_callers(made, root)
    bypassed = [node for site in sites for node in site.steps]
    for node in list(made.nodes):
        if node.target is run.put_by_kernel:
            bypassed += _made_while_put(made, node, root)
    made.lint()
    return made, tuple(dict.fromkeys(str(node.target) for node in bypassed if node.op == "call_module"))


_VIEWS = ("view", "view_as", torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def lay_for_views(made: fx.Graph, root: nn.Module) -> None:
    """Lay values as views need them: sites, and so what is behind them, make channels-last maps. Others stay as they are.

    Modules and functions that are not torch's may take views, too.
    """
    for node in list(made.nodes):
        given = node.args[:1] if node.target in _VIEWS else node.args if _is_foreign(node, root) else ()
        for value in given:
            if isinstance(value, fx.Node) and (_is_ours(value) or isinstance(spec_of(value), Spec)):
                with made.inserting_before(node):
                    node.replace_input_with(value, made.call_method("contiguous", (value,)))


def lay_for_callers(made: fx.Graph, root: nn.Module) -> None:
    """Lay what the graph returns as torch's layers would: behind sites, maps are channels-last in any model."""
    *_, output = made.nodes
    inputs = [node for node in made.nodes if node.op == "placeholder"]
    shown = shown_weight(root)
    behind: set[fx.Node] = set()
    for node in made.nodes:
        if _is_ours(node) or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    for value in output.all_input_nodes:
        if value in behind and (_is_ours(value) or isinstance(spec_of(value), Spec)):
            with made.inserting_before(output):
                like = (*inputs, *(() if shown is None else (made.get_attr(shown[0]),)))
                output.replace_input_with(value, made.call_function(run.lie_as, (value, like)))


def shown_weight(module: nn.Module) -> tuple[str, Tensor] | None:
    """Return the first weight that shows whether a model's maps have their channels first or last, by name; None: none does."""
    for name, weight in module.named_parameters():
        if weight.dim() == 4 and weight.shape[1] > 1 and weight.shape[2:] != (1, 1):
            return name, weight
    return None


def _is_foreign(node: fx.Node, root: nn.Module) -> bool:
    """Say whether a node calls code that is neither torch's nor ours."""
    if node.op == "call_module":
        return not type(root.get_submodule(str(node.target))).__module__.startswith(("torch.nn.", "swcompile."))
    if node.op != "call_function":
        return False
    home = getattr(node.target, "__module__", None) or "torch"  # that of an operator has none
    return home.split(".")[0] not in ("torch", "swcompile", "operator", "_operator", "builtins", "math")


def _is_ours(node: fx.Node) -> bool:
    """Say whether a value is one that a function of this folder made, or that one among several."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return _is_ours(node.args[0])
    return node.op == "call_function" and str(getattr(node.target, "__module__", "")).startswith("swcompile.lower.")


def _made_while_put(made: fx.Graph, put: fx.Node, root: nn.Module) -> Sequence[fx.Node]:
    """Let a put do the norm, activation and change of size whose result only it reads. Return the modules that go for it."""
    given: Any = put.args
    slab, value, start, axis = given
    passed: list[fx.Node] = []

    def taken(is_it: bool) -> fx.Node | None:
        """Go on to what a value is made of, where it is what is looked for, and nobody else reads it, a slab of its size aside."""
        nonlocal value
        readers = [user for user in value.users if user.target is not run.new_slab or value.target is resample]
        if not is_it or len(readers) > 1 or not value.args:
            return None
        passed.append(value)
        value = value.args[0]
        return passed[-1]

    size = taken(value.target is resample)
    activation = taken(activation_of(value, root) is not None)
    norm = taken(is_norm(value, root) and axis == 1)
    if not passed:
        return ()
    with made.inserting_before(put):
        how = (_norm(made, norm, root), named_activation(activation, root), *((None, "max") if size is None else size.args[1:]))
        put.replace_all_uses_with(made.call_function(run.put_made_by_kernel, (slab, value, start, axis, *how)))
    made.erase_node(put)
    for node in passed:
        for slab_of_its_size in list(node.users):
            slab_of_its_size.replace_input_with(node, value)
        made.erase_node(node)
    return passed


def _emit(made: fx.Graph, region: Region, copies: dict[fx.Node, fx.Node], root: nn.Module, forms: Mapping[Site, str]) -> None:
    """Write the puts of a region and replace its sites. A site reads the slab as of the last put in front of it."""
    put = run.put_by_kernel if any(forms[site] == "triton" for site in region.sites) else run.put
    order = {node: number for number, node in enumerate(made.nodes)}
    slabs: list[tuple[int, fx.Node]] = []
    for source, start in zip(region.maps, region.starts, strict=True):
        copy = copies[source]
        behind = behind_placeholders(made, copy)
        if not slabs:
            with made.inserting_after(behind):
                behind = slab = made.call_function(run.new_slab, (copy, region.width, region.axis))
        elif copy.op == "placeholder":  # several of them: one put behind the other
            behind = slab
        with made.inserting_after(behind):
            slab = made.call_function(put, (slab, copy, start, region.axis))
        slabs.append((order[copy], slab))
    for site in region.sites:
        last = copies[site.last]
        slab = [node for place, node in slabs if place < order[last]][-1]
        with made.inserting_before(last):
            value = _value(made, site, slab, region.runs(site), root, forms[site])
        replace_site(site, value, copies)


def _emit_apart(made: fx.Graph, site: Site, copies: dict[fx.Node, fx.Node], root: nn.Module, form: str) -> None:
    """Replace a site by one that reads its maps where they are."""
    last = copies[site.last]
    maps: Any = tuple(copies[source] for source in site.sources)
    with made.inserting_before(last):
        if form == "triton":
            maps = made.call_function(run.beside, maps, {"axis": site.axis})
        value = _value(made, site, maps, apart_runs(site), root, form)
    replace_site(site, value, copies)


def replace_site(site: Site, value: fx.Node, copies: dict[fx.Node, fx.Node]) -> None:
    """Let a value take the place of a site's last node, for what reads that and for sites that come later."""
    copies[site.last].replace_all_uses_with(value)
    copies[site.last] = value


def behind_placeholders(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Return a node, or the last placeholder where it is one: these stay together at the head."""
    return [other for other in graph.nodes if other.op == "placeholder"][-1] if node.op == "placeholder" else node


def _value(made: fx.Graph, site: Site, maps: Any, runs: tuple[int, ...], root: nn.Module, form: str) -> fx.Node:
    read_map, product, cluster_products = _TARGETS[form]
    before = (_norm(made, site.norm, root), named_activation(site.activation, root))
    if site.layer is None:
        return made.call_function(read_map, (maps, runs, site.axis, *before))
    path = str(site.layer.target)
    layer: Any = root.get_submodule(path)
    weight = made.get_attr(f"{path}.weight")
    bias = None if layer.bias is None else made.get_attr(f"{path}.bias")
    behind = (_norm(made, site.out_norm, root), named_activation(site.out_activation, root))
    given = maps, runs, site.axis, *before, weight, bias, *behind
    if site.support is None:
        return made.call_function(product, given)
    stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
    if form == "triton":
        return made.call_function(cluster_products, (*given, tuple(site.support.flat()), stride, padding_of(layer)))
    gathers_first = site.norm is not None or site.activation is not None
    taps = Taps.of((0, sum(piece.stop - piece.start for piece in site.pieces))) if gathers_first else Taps.of_flat(runs)
    return made.call_function(cluster_products, (*given, parts_of(site.support, taps), stride, padding_of(layer)))


def _norm(made: fx.Graph, node: fx.Node | None, root: nn.Module) -> tuple[Any, ...]:
    if node is None:
        return NO_NORM
    norm: Any = root.get_submodule(str(node.target))
    names = ("running_mean", "running_var", "weight", "bias")
    return (*(None if getattr(norm, name) is None else made.get_attr(f"{node.target}.{name}") for name in names), norm.eps)


def named_activation(node: fx.Node | None, root: nn.Module) -> str:
    return "none" if node is None else activation_of(node, root) or "none"


def apart_runs(site: Site) -> tuple[int, ...]:
    """Return what a site reads of its sources, as swkernels.Taps.flat has it."""
    return tuple(number for piece in site.pieces for number in (site.sources.index(piece.source), piece.start, piece.stop))
