"""Find the layers that read a gather: a concat of maps, or of slices of maps, maybe normed and activated on the way.

    cat([a, b[:, 8:24]], 1) -> norm -> relu -> conv 1x1 -> norm -> relu        one site: a product over taps of a and b
    cat([a, b], 1) -> norm -> relu -> conv 3x3                                  one site: the map that the convolution reads
    cat([a, b], 1) -> conv 3x3                                                  a bare one: cat moves each byte once already
    cat([a, b], 1) -> conv whose outputs read in clusters (wiring "tile")       one site, of any kernel size, and also without cat

Concats of concats, and slices of either, are followed to the maps that they are made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from swcompile.lower.clusters import support_of
from swcompile.lower.pieces import FLOATS, Piece, are_alike, axis_of, channels_of, is_cat, parts_of, pieces_of
from swcompile.lower.steps import CONVS, activation_of, is_norm, module_of, norms_channels, only_user
from swcompile.lower.widths import fixes_width, has_width
from swcompile.modules import MaskedLinear
from swcompile.trace.names import name_of
from swcompile.trace.purify import WRITES
from swcompile.trace.shapes import spec_of
from swkernels import Support

_BY_STORAGE = ("stride", "is_contiguous")
"""Methods whose result goes by how a map lies."""


@dataclass(frozen=True)
class Site:
    """A gather with what follows it: at most a norm and an activation, then maybe a product with its own norm and activation.

    `cat` is the concat, `axis` where it has the channels, 1 or -1. `layer` is the 1x1 convolution or linear layer; without one the
    gathered map itself is what is read. A layer with a `support` is a convolution of any size whose outputs read in clusters; what
    it reads, `cat`, may then be no concat.
    """

    cat: fx.Node
    pieces: tuple[Piece, ...]
    axis: int
    norm: fx.Node | None = None
    activation: fx.Node | None = None
    layer: fx.Node | None = None
    out_norm: fx.Node | None = None
    out_activation: fx.Node | None = None
    support: Support | None = None
    kernel_area: int = 1

    @property
    def steps(self) -> tuple[fx.Node, ...]:
        """The nodes behind the concat that the site takes the place of, in order."""
        found = (self.norm, self.activation, self.layer, self.out_norm, self.out_activation)
        return tuple(node for node in found if node is not None)

    @property
    def last(self) -> fx.Node:
        """The node whose value the site makes."""
        return (self.cat, *self.steps)[-1]

    @property
    def is_bare(self) -> bool:
        """Whether nothing is saved: a concat, and nothing to do on the way."""
        return self.last is self.cat

    @property
    def sources(self) -> tuple[fx.Node, ...]:
        """The maps that are read, each once, in the order of their first piece."""
        return tuple(dict.fromkeys(piece.source for piece in self.pieces))


def find_sites(graph: fx.Graph, root: nn.Module) -> tuple[Site, ...]:
    """Return the sites of an eval-mode graph whose values have their shapes, in the order of their concats.

    A concat that others read too, or that only others read, is a bare site of its own, unless it is only part of another one.
    None are found in a graph that writes into its values, or switches autocast: a site reads its maps at another moment than the
    concat did. Nor in one that takes values apart by their strides.
    """
    if _writes(graph):
        return ()
    found = [site for node in graph.nodes if is_cat(node) for site in _behind(node, root)]
    taken = {site.layer for site in found}
    clusters = (site for node in graph.nodes if not is_cat(node) for site in _in_clusters(node, root))
    found += (site for site in clusters if site.layer not in taken)
    order = {node: place for place, node in enumerate(graph.nodes)}
    found.sort(key=lambda site: order[site.cat])
    return tuple(site for site in found if site.axis == -1 or not _shows_how_it_lies(site.last))


def left_alone(graph: fx.Graph, root: nn.Module, made: fx.Graph) -> str | None:
    """Say why a concat of feature maps of a graph is still in what was made of it by lowering its sites; None where none is.

    A concat along the second axis of three may be one of channels, or of the places of a sequence: it counts where a layer says.
    """
    left = {node.name for node in made.nodes}
    for node in graph.nodes:
        axis = channels_of(node) if is_cat(node) and node.name in left else None
        spec = spec_of(node)
        if axis is None or spec is None or spec.dtype not in FLOATS:
            continue
        is_read = any(fixes_width(user, node, axis, root) for user in node.users)
        if axis == -1 or len(spec.shape) > 3 or is_read:
            return f"the concat {node.name} stays, as {_why_left(graph, node, axis, is_read)}"
    return None


def _why_left(graph: fx.Graph, cat: fx.Node, axis: int, is_read: bool) -> str:
    if _writes(graph):
        return "the model writes into its values, reads them by their strides, or switches autocast"
    if not parts_of(cat):
        return "its maps are not listed one by one"
    if not are_alike(cat, tuple(pieces_of(cat, axis)), axis):
        return "its maps are of several types"
    return "what reads it goes by its strides" if is_read else "no layer reads it that takes this number of channels alone"


def _writes(graph: fx.Graph) -> bool:
    """Say whether a graph is one whose values cannot be made at another moment, or lie otherwise."""
    by_strides = ("as_strided", "set_")
    return any(WRITES in one.meta or "autocast" in str(one.target) or name_of(one.target) in by_strides for one in graph.nodes)


def _shows_how_it_lies(node: fx.Node) -> bool:
    """Say whether a value meets an operation that goes by its strides: sites make maps channels-last."""
    return any(user.op == "call_method" and user.target in _BY_STORAGE for user in node.users)


def _behind(cat: fx.Node, root: nn.Module) -> Iterator[Site]:
    """Yield a site for each user of a concat along its channels with which something can be saved."""
    axis = axis_of(cat)
    if axis is None:
        return
    pieces = tuple(pieces_of(cat, axis))
    if not are_alike(cat, pieces, axis):
        return
    bare = Site(cat, pieces, axis)
    sites = [_with_product(_with_norm(bare, user, root), user, root) for user in cat.users if not _is_part(cat, user, axis)]
    yield from (site for site in sites if not site.is_bare)
    if any(site.is_bare for site in sites) and (
        any(fixes_width(user, cat, axis, root) for user in cat.users)
        or all(has_width(source, axis, root) for source in bare.sources)
    ):
        yield bare


def _in_clusters(node: fx.Node, root: nn.Module) -> Iterator[Site]:
    """Yield a site for each layer that reads a value, which is no concat, in clusters."""
    for user in node.users:
        axis = -1 if type(module_of(user, root)) is MaskedLinear else 1
        if support_of(module_of(user, root)) is None or spec_of(node) is None:
            continue
        pieces = tuple(pieces_of(node, axis))
        if are_alike(node, pieces, axis):
            yield from (site for site in (_with_product(Site(node, pieces, axis), user, root),) if not site.is_bare)


def _is_part(cat: fx.Node, user: fx.Node, axis: int) -> bool:
    """Say whether a user of a concat is a larger one, into whose pieces its own have gone."""
    return is_cat(user) and axis_of(user) == axis and cat in parts_of(user)


def _with_norm(site: Site, user: fx.Node, root: nn.Module) -> Site:
    """Take in a norm that reads the concat, and an activation behind it, or an activation alone where a product follows."""
    if is_norm(user, root) and norms_channels(user, site.cat, site.axis):
        follows = only_user(user)
        active = follows if follows is not None and activation_of(follows, root) is not None else None
        return replace(site, norm=user, activation=active)
    if activation_of(user, root) is not None:
        follows = only_user(user)
        if follows is not None and _reads_all(follows, site.cat, site.axis, root):
            return replace(site, activation=user)
    return site


def _with_product(site: Site, user: fx.Node, root: nn.Module) -> Site:
    """Take in a 1x1 convolution or linear layer, or one of clusters, and the norm and activation behind it."""
    before = site.activation or site.norm
    layer = user if before is None else only_user(before)
    if layer is None or not _reads_all(layer, site.cat, site.axis, root) or layer.args != (before or site.cat,):
        return site
    module: Any = module_of(layer, root)
    area = math.prod(getattr(module, "kernel_size", ()))
    norm = only_user(layer)
    norm = norm if norm is not None and is_norm(norm, root) and norms_channels(norm, layer, site.axis) else None
    active = only_user(norm or layer)
    active = active if active is not None and activation_of(active, root) is not None else None
    site = replace(site, support=support_of(module), kernel_area=area)
    return replace(site, layer=layer, out_norm=norm, out_activation=active)


def _reads_all(node: fx.Node, cat: fx.Node, axis: int, root: nn.Module) -> bool:
    """Say whether a node is a product with a concat's channels: linear over the last axis, or a convolution that can be lowered.

    Not one that is of another type than the concat, as where autocast casts what it reads.
    """
    module, spec, made = module_of(node, root), spec_of(cat), spec_of(node)
    if module is None or spec is None or made is None or made.dtype != spec.dtype:
        return False
    masked = support_of(module) is not None
    if axis == -1:
        return (type(module) is nn.Linear or (masked and type(module) is MaskedLinear)) and module.in_features == spec.shape[-1]
    if (type(module) not in CONVS and not masked) or type(module) is MaskedLinear:
        return False
    conv: Any = module
    if len(spec.shape) != 2 + len(conv.kernel_size) or conv.in_channels != spec.shape[1]:  # without a batch, axis 1 is the height
        return False
    plain = {*conv.kernel_size, *conv.stride, *conv.dilation, conv.groups} == {1}
    return masked or (plain and conv.padding in ("same", "valid", (0,) * len(conv.kernel_size)))
