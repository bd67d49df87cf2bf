"""Find the layers that read a gather: a concat of maps, or of slices of maps, maybe normed and activated on the way.

    cat([a, b[:, 8:24]], 1) -> norm -> relu -> conv 1x1 -> norm -> relu        one site: a product over taps of a and b
    cat([a, b], 1) -> norm -> relu -> conv 3x3                                  one site: the map that the convolution reads
    cat([a, b], 1) -> conv 3x3                                                  a bare one: cat moves each byte once already
    cat([a, b], 1) -> conv whose outputs read in clusters (wiring "tile")       one site, of any kernel size, and also without cat

Concats of concats, and slices of either, are followed to the maps that they are made of.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from swcompile.lower.clusters import support_of
from swcompile.modules import MASKED, MaskedLinear
from swcompile.trace.purify import WRITES
from swcompile.trace.shapes import Spec, spec_of
from swkernels import Support

_CATS = (torch.cat, torch.concat, torch.concatenate)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_MODULES: Mapping[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_FUNCTIONS: Mapping[object, str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    functional.relu_: "relu",
    torch.relu_: "relu",
    functional.relu6: "relu6",
    functional.silu: "silu",
    functional.hardswish: "hardswish",
}
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONAL: Mapping[object, tuple[int, int]] = {
    functional.linear: (-1, 0),
    functional.conv1d: (1, 3),
    functional.conv2d: (1, 4),
    functional.conv3d: (1, 5),
}
"""Functions that take a weight, where their input has the channels, and its rank with a batch (0: any)."""
_FIXED = (*_CONVS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, *(MASKED[conv] for conv in _CONVS))
"""Layers that take one number of channels and no other."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_BY_STORAGE = ("as_strided", "set_", "stride", "is_contiguous")
"""Methods whose result goes by how a map lies."""


@dataclass(frozen=True)
class Piece:
    """Channels [start, stop) of a map."""

    source: fx.Node
    start: int
    stop: int


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
    concat did.
    """
    if any(WRITES in node.meta or "autocast" in str(node.target) for node in graph.nodes):
        return ()
    found = (site for node in graph.nodes for site in (_behind(node, root) if _is_cat(node) else _in_clusters(node, root)))
    return tuple(site for site in found if site.axis == -1 or not _shows_how_it_lies(site.last))


def _shows_how_it_lies(node: fx.Node) -> bool:
    """Say whether a value leaves the graph, or meets an operation that goes by its strides: sites make maps channels-last."""
    return any(user.op == "output" or (user.op == "call_method" and user.target in _BY_STORAGE) for user in node.users)


def _behind(cat: fx.Node, root: nn.Module) -> Iterator[Site]:
    """Yield a site for each user of a concat along its channels with which something can be saved."""
    axis = _axis(cat)
    if axis is None:
        return
    pieces = tuple(pieces_of(cat, axis))
    if not _alike(cat, pieces, axis):
        return
    bare = Site(cat, pieces, axis)
    sites = [_with_product(_with_norm(bare, user, root), user, root) for user in cat.users if not _is_part(cat, user, axis)]
    yield from (site for site in sites if not site.is_bare)
    if any(site.is_bare for site in sites) and any(_fixes_width(user, cat, axis, root) for user in cat.users):
        yield bare


def _in_clusters(node: fx.Node, root: nn.Module) -> Iterator[Site]:
    """Yield a site for each layer that reads a value, which is no concat, in clusters."""
    for user in node.users:
        axis = -1 if type(module_of(user, root)) is MaskedLinear else 1
        if support_of(module_of(user, root)) is None or spec_of(node) is None:
            continue
        pieces = tuple(pieces_of(node, axis))
        if _alike(node, pieces, axis):
            yield from (site for site in (_with_product(Site(node, pieces, axis), user, root),) if not site.is_bare)


def _fixes_width(user: fx.Node, value: fx.Node, axis: int, root: nn.Module) -> bool:
    """Say whether a value's channels are as many for every input, because a layer or norm behind takes no other number.

    Without one they may be places of a sequence, as where a class token is put in front of others.
    """
    if activation_of(user, root) is not None:
        return any(_fixes_width(other, user, axis, root) for other in user.users)
    if user.op == "call_function" and user.target in _FUNCTIONAL and len(user.args) > 1:
        source, weight, *_ = user.args
        is_own = isinstance(weight, fx.Node) and weight.op == "get_attr"
        at, rank = _FUNCTIONAL[user.target]
        spec = spec_of(value)
        return source is value and is_own and axis == at and spec is not None and rank in (0, len(spec.shape))
    module: Any = _called(user, root)
    if type(module) in _NORMS:
        return _norms_channels(user, value, axis)
    if axis == -1:
        return type(module) in (nn.Linear, MaskedLinear)
    spec = spec_of(value)
    return (
        type(module) in _FIXED
        and type(module) is not MaskedLinear
        and spec is not None
        and len(spec.shape) == 2 + len(module.kernel_size)
    )


def _alike(cat: fx.Node, pieces: Sequence[Piece], axis: int) -> bool:
    """Say whether maps are floating, of the concat's type and of its size but for the channels, and are all that it is made of."""
    whole = spec_of(cat)
    if whole is None or whole.dtype not in _FLOATS or sum(piece.stop - piece.start for piece in pieces) != whole.shape[axis]:
        return False
    for spec in (spec_of(piece.source) for piece in pieces):
        if spec is None or spec.dtype != whole.dtype or _but_channels(spec, axis) != _but_channels(whole, axis):
            return False
    return True


def _but_channels(spec: Spec, axis: int) -> tuple[int, ...]:
    shape = list(spec.shape)
    del shape[axis]
    return tuple(shape)


def _is_part(cat: fx.Node, user: fx.Node, axis: int) -> bool:
    """Say whether a user of a concat is a larger one, into whose pieces its own have gone."""
    return _is_cat(user) and _axis(user) == axis and cat in _parts(user)


def _with_norm(site: Site, user: fx.Node, root: nn.Module) -> Site:
    """Take in a norm that reads the concat, and an activation behind it, or an activation alone where a product follows."""
    if is_norm(user, root) and _norms_channels(user, site.cat, site.axis):
        follows = _only_user(user)
        active = follows if follows is not None and activation_of(follows, root) is not None else None
        return replace(site, norm=user, activation=active)
    if activation_of(user, root) is not None:
        follows = _only_user(user)
        if follows is not None and _reads_all(follows, site.cat, site.axis, root):
            return replace(site, activation=user)
    return site


def _with_product(site: Site, user: fx.Node, root: nn.Module) -> Site:
    """Take in a 1x1 convolution or linear layer, or one of clusters, and the norm and activation behind it."""
    before = site.activation or site.norm
    layer = user if before is None else _only_user(before)
    if layer is None or not _reads_all(layer, site.cat, site.axis, root) or layer.args != (before or site.cat,):
        return site
    module: Any = module_of(layer, root)
    area = math.prod(getattr(module, "kernel_size", ()))
    norm = _only_user(layer)
    norm = norm if norm is not None and is_norm(norm, root) and _norms_channels(norm, layer, site.axis) else None
    active = _only_user(norm or layer)
    active = active if active is not None and activation_of(active, root) is not None else None
    site = replace(site, support=support_of(module), kernel_area=area)
    return replace(site, layer=layer, out_norm=norm, out_activation=active)


def pieces_of(node: fx.Node, axis: int) -> Iterator[Piece]:
    """Follow concats and splits back to the maps; yield what a value is made of, neighbours joined and no empty ones."""
    last: Piece | None = None
    for piece in _unjoined(node, axis):
        if piece.start == piece.stop:
            continue
        if last is not None and last.source is piece.source and last.stop == piece.start:
            last = Piece(last.source, last.start, piece.stop)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _unjoined(node: fx.Node, axis: int) -> Iterator[Piece]:
    if _is_cat(node) and _axis(node) == axis:
        for part in _parts(node):
            yield from _unjoined(part, axis)
        return
    cut = _slice(node, axis)
    if cut is None:
        width = _width(node, axis)
        yield Piece(node, 0, width)
        return
    source, start, stop = cut
    place = 0
    for piece in _unjoined(source, axis):
        low, high = max(start, place), min(stop, place + piece.stop - piece.start)
        if low < high:
            yield Piece(piece.source, piece.start + low - place, piece.start + high - place)
        place += piece.stop - piece.start


def concats_of(node: fx.Node, axis: int) -> Iterator[fx.Node]:
    """Yield the concats along an axis that a value is made by."""
    if _is_cat(node) and _axis(node) == axis:
        yield node
        for part in _parts(node):
            yield from concats_of(part, axis)
    elif (cut := _slice(node, axis)) is not None:
        yield from concats_of(cut[0], axis)


def _slice(node: fx.Node, axis: int) -> tuple[fx.Node, int, int] | None:
    """Return source, start and stop of a value that is one piece of a split along the channels."""
    if node.target is not operator.getitem or not isinstance(node.args[1], int):
        return None
    split: Any = node.args[0]
    if split.target not in (torch.split, torch.functional.split) or len(split.args) != 3:
        return None
    source, sizes, dim = split.args
    if not isinstance(sizes, list | tuple) or not all(isinstance(size, int) for size in sizes) or not _same_axis(dim, axis, source):
        return None
    start = sum(sizes[: node.args[1]])
    return source, start, start + sizes[node.args[1]]


def _is_cat(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in _CATS


def _parts(cat: fx.Node) -> list[fx.Node]:
    """Return the parts of a concat; none where they are not written out, or differ in rank, as an empty tensor of no shape may."""
    given: Any = cat.args[0] if cat.args else cat.kwargs.get("tensors")
    if not isinstance(given, list | tuple) or not all(isinstance(part, fx.Node) for part in given):
        return []
    ranks = {len(spec.shape) if (spec := spec_of(part)) is not None else None for part in (cat, *given)}
    return list(given) if len(ranks) == 1 and None not in ranks else []


def _axis(cat: fx.Node) -> int | None:
    """Return 1 or -1 where a concat is along channels, which is what a product behind it needs; None for any other."""
    spec = spec_of(cat)
    dim: Any = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    if spec is None or not isinstance(dim, int) or not _parts(cat):
        return None
    dim %= len(spec.shape)
    rank = len(spec.shape)
    if dim == rank - 1 and rank in (2, 3):
        return -1
    return 1 if dim == 1 and rank in (3, 4, 5) else None


def _same_axis(dim: Any, axis: int, source: fx.Node) -> bool:
    spec = spec_of(source)
    return spec is not None and isinstance(dim, int) and dim % len(spec.shape) == axis % len(spec.shape)


def _width(node: fx.Node, axis: int) -> int:
    spec = spec_of(node)
    return spec.shape[axis] if isinstance(spec, Spec) else 0


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return what reads a value, where one node does."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _called(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module a node calls."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module a node calls, where it may be bypassed: a hook or a forward of the user's must run."""
    module = _called(node, root)
    return None if module is None or module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__ else module


def is_norm(node: fx.Node, root: nn.Module) -> bool:
    """Say whether a node is a batch norm that goes by its running statistics in eval mode."""
    module: Any = module_of(node, root)
    return type(module) in _NORMS and module.running_mean is not None


def _norms_channels(norm: fx.Node, value: fx.Node, axis: int) -> bool:
    """Say whether a batch norm, which goes by its input's second axis, goes by the channels of a value."""
    spec = spec_of(value)
    return spec is not None and (axis == 1 or len(spec.shape) == 2)


def activation_of(node: fx.Node, root: nn.Module) -> str | None:
    """Return an activation by its name in swkernels.affine.ACTIVATIONS, or None."""
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return "relu" if node.target in ("relu", "relu_") else None
    module = module_of(node, root)
    if type(module) is nn.GELU and module.approximate == "none":
        return "gelu"
    return _MODULES.get(type(module)) if module is not None else None


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
    if (type(module) not in _CONVS and not masked) or type(module) is MaskedLinear:
        return False
    conv: Any = module
    if len(spec.shape) != 2 + len(conv.kernel_size) or conv.in_channels != spec.shape[1]:  # without a batch, axis 1 is the height
        return False
    plain = {*conv.kernel_size, *conv.stride, *conv.dilation, conv.groups} == {1}
    return masked or (plain and conv.padding in ("same", "valid", (0,) * len(conv.kernel_size)))
