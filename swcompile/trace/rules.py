"""How each kind of operation carries channels: the tables, and one rule for each kind.

A rule takes the node and its context and returns the Value of the result (a list of Values for chunk and split). Operations in
no table are opaque: their result is a value of its own without origin. A table lists what torch offers, never a model's names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.nn import functional

from swcompile.trace.layers import FUNCTIONS
from swcompile.trace.names import name_of
from swcompile.trace.shapes import SHAPE, Spec, spec_of
from swcompile.trace.values import CONSTANT, Value, opaque, permute, reshape

Result = Value | list[Value]


class Context(Protocol):
    """What a rule may ask of the extraction that runs it."""

    def value(self, node: object) -> Value:
        """Return the value of a node; numbers and parameters are CONSTANT."""

    def union(self, name: str, nodes: Sequence[fx.Node]) -> Value:
        """Return the values of nodes added up: each channel has the origins of all."""

    def concatenate(self, node: fx.Node, parts: Sequence[fx.Node], axis: int) -> Value:
        """Return the values of the parts of a concatenation one after another along `axis`."""

    def merge(self, name: str, values: Sequence[Value]) -> Value:
        """Return known values of the same channel axes added up: each channel has the origins of all."""

    def consume(self, value: Value) -> None:
        """Note that something other than a layer reads the value."""


Rule = Callable[[fx.Node, Context], Result]

ELEMENTWISE = (
    "relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh elu selu celu leaky_relu rrelu prelu mish softplus "
    "softsign logsigmoid threshold tanhshrink hardshrink softshrink softmin softmax log_softmax dropout dropout1d dropout2d "
    "dropout3d alpha_dropout feature_alpha_dropout feature_dropout clamp clip clamp_min clamp_max neg abs sqrt rsqrt square exp "
    "log log1p sin cos erf sign round floor ceil reciprocal contiguous clone detach to type type_as float half double bfloat16 "
    "cuda cpu normalize batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm masked_fill requires_grad_ "
    "nan_to_num isnan isfinite isinf logical_not"
).split()
POOLING = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d lp_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate upsample "
    "upsample_nearest upsample_bilinear fractional_max_pool2d fractional_max_pool3d pad"
).split()
RESHAPES = "view reshape flatten unflatten squeeze unsqueeze view_as reshape_as ravel".split()
PERMUTES = "permute transpose swapaxes swapdims movedim moveaxis t".split()
EXPANSIONS = "expand expand_as broadcast_to repeat tile".split()
REDUCTIONS = "mean sum amax amin std var norm logsumexp prod".split()
SPLITS = "chunk split split_with_sizes tensor_split unbind".split()
SUMS = (
    "add sub rsub maximum minimum max min where lerp addcmul addcdiv gt lt ge le eq ne greater less greater_equal less_equal "
    "not_equal logical_and logical_or logical_xor"
).split()
PRODUCTS = "mul multiply div divide true_divide truediv pow float_power".split()
REORDERINGS = "roll flip index_select".split()
MAX_MERGED = 64
"""Values that would be merged out of more channels than this become opaque."""

NORM_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)
BARRIER_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
"""Norms whose statistics mix channels: a reader's norm of these kinds cannot be sliced, so no gather goes in front of it."""

ACTIVATION_MODULES = tuple(
    getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name != "MultiheadAttention" and name not in ("GLU", "Softmin", "Softmax", "Softmax2d", "LogSoftmax")
)
SOFTMAX_MODULES = (nn.Softmin, nn.Softmax, nn.Softmax2d, nn.LogSoftmax)
DROPOUT_MODULES = (nn.modules.dropout._DropoutNd,)
POOLING_MODULES: tuple[type[nn.Module], ...] = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.Upsample,
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
)


def source(node: fx.Node) -> Any:
    """Return the tensor that an operation works on: its first argument, or `input`."""
    return node.args[0] if node.args else node.kwargs.get("input")


def is_query(node: fx.Node) -> bool:
    """Whether a node's value is neither a tensor nor made of any: a size, a type, an answer."""
    return SHAPE in node.meta and not _holds_tensor(node.meta[SHAPE])


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, tuple | list):
        return any(map(_holds_tensor, value))
    return isinstance(value, Spec) or type(value).__module__ not in ("builtins", "torch")


def same(node: fx.Node, context: Context) -> Result:
    """Carry channels through an operation that works on each channel by itself."""
    value, old, new = context.value(source(node)), spec_of(source(node)), spec_of(node)
    kept = old is not None and new is not None and len(old.shape) == len(new.shape)
    return value if kept and _sizes_match(value, new) else opaque(value)


def expanded(node: fx.Node, context: Context) -> Result:
    """Carry channels through repetition along other axes, new ones in front included."""
    value, old, new = context.value(source(node)), spec_of(source(node)), spec_of(node)
    if value.ids is None or old is None or new is None:
        return opaque(value)
    moved = Value(value.ids, tuple(axis + len(new.shape) - len(old.shape) for axis in value.axes))
    return moved if _sizes_match(moved, new) else opaque(value)


def _sizes_match(value: Value, spec: Spec | None) -> bool:
    """Whether the result still has the value's channels on the same axes."""
    if value.ids is None:
        return True
    return spec is not None and all(
        axis < len(spec.shape) and spec.shape[axis] == size for axis, size in zip(value.axes, value.ids.shape, strict=True)
    )


def reshaped(node: fx.Node, context: Context) -> Result:
    """Carry channels through a view."""
    value, old, new = context.value(source(node)), spec_of(source(node)), spec_of(node)
    return reshape(value, old.shape, new.shape) if old is not None and new is not None else opaque(value)


def permuted(node: fx.Node, context: Context) -> Result:
    """Carry channels through a permutation of axes."""
    value, old = context.value(source(node)), spec_of(source(node))
    order = _order(node, len(old.shape)) if old is not None else None
    return permute(value, order) if order is not None else opaque(value)


def _order(node: fx.Node, rank: int) -> list[int] | None:
    name = name_of(node.target)
    given = list(_flat((*node.args[1:], *(v for k, v in node.kwargs.items() if k != "input"))))
    if not all(isinstance(item, int) for item in given):
        return None
    dims = [item % rank for item in given]
    if name == "permute":
        return dims if len(dims) == rank else None
    if name in ("transpose", "swapaxes", "swapdims", "t"):
        first, second = dims or (0, 1)
        order = list(range(rank))
        order[first], order[second] = second, first
        return order
    if len(dims) != 2:
        return None
    order = [axis for axis in range(rank) if axis != dims[0]]
    order.insert(dims[1], dims[0])
    return order


def _flat(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        if isinstance(item, tuple | list):
            yield from _flat(item)
        else:
            yield item


def reduced(node: fx.Node, context: Context) -> Result:
    """Carry channels through a mean over other axes; a mean over the channels is opaque."""
    value, old, new = context.value(source(node)), spec_of(source(node)), spec_of(node)
    if old is None or new is None or value.ids is None:
        return opaque(value)
    place = 2 if name_of(node.target) == "norm" else 1  # whose first argument is the power
    dims = node.kwargs.get("dim", node.args[place] if len(node.args) > place else None)
    gone = {int(axis) % len(old.shape) for axis in _flat((dims,)) if isinstance(axis, int) and not isinstance(axis, bool)}
    among = gone & set(value.axes)
    if not gone or among == set(value.axes):
        return opaque(value)
    if among:
        value = _merged(node, value, among, context)
    if len(new.shape) == len(old.shape):
        return value
    return Value(value.ids, tuple(axis - sum(other < axis for other in gone) for axis in value.axes))


def _merged(node: fx.Node, value: Value, gone: set[int], context: Context) -> Value:
    """Return what is left of a value with several channel axes when those of `gone` are added up."""
    assert value.ids is not None
    places = [place for place, axis in enumerate(value.axes) if axis in gone]
    axes = tuple(axis for axis in value.axes if axis not in gone)
    slices = np.moveaxis(value.ids, places, range(len(places))).reshape(-1, *(value.ids.shape[value.axes.index(a)] for a in axes))
    distinct = np.unique(slices, axis=0)
    if len(distinct) > MAX_MERGED:
        return opaque(value)
    return _merge(node, [Value(ids, axes) for ids in distinct], context)


def _merge(node: fx.Node, values: list[Value], context: Context) -> Value:
    return values[0] if len(values) == 1 else context.merge(node.name, values)


def concatenated(node: fx.Node, context: Context) -> Result:
    """Carry channels through `cat`: along the channel axis one after another, along another axis as a union."""
    parts, axis = joined(node)
    values = [context.value(part) for part in parts]
    known = next((value for value in values if value.known), None)
    if known is None or axis < 0:
        return opaque(*values)
    if known.axes == (axis,):
        return context.concatenate(node, parts, axis)
    carried = [part for part in parts if not context.value(part).constant]
    return _union(node, carried, context) if axis not in known.axes else opaque(*values)


def joined(node: fx.Node) -> tuple[Sequence[fx.Node], int]:
    """Return the parts of a concatenation and its axis; -1 where that is not known.

    An empty vector among larger tensors, which torch lets pass in `cat`, is no part.
    """
    parts = source(node) if node.args else node.kwargs.get("tensors")
    spec = spec_of(node)
    if not isinstance(parts, tuple | list) or not all(isinstance(part, fx.Node) for part in parts):
        return (), -1
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if spec is None or not isinstance(dim, int) or any(spec_of(part) is None for part in parts):
        return parts, -1
    rank = len(spec.shape)
    stacks = rule_of(node) is not concatenated  # whose parts have an axis less
    return [part for part in parts if stacks or len(_shape(part)) == rank], dim % rank


def stacked(node: fx.Node, context: Context) -> Result:
    """Carry channels through `stack`: where the parts have other channels, the new axis is a channel axis, too."""
    parts, axis = joined(node)
    values = [context.value(part) for part in parts if not context.value(part).constant]
    if axis < 0 or any(value.ids is None or value.axes != values[0].axes for value in values):
        return opaque(*map(context.value, parts))
    axes = tuple(place + (place >= axis) for place in values[0].axes)
    if all(_equal(value, values[0]) for value in values):
        return Value(values[0].ids, axes)
    if len(values) < len(parts):
        return opaque(*values)
    both = tuple(sorted((*axes, axis)))
    return Value(np.stack([value.ids for value in values if value.ids is not None], both.index(axis)), both)


def reordered(node: fx.Node, context: Context) -> Result:
    """Carry channels through roll and flip, and through index_select along another axis."""
    value, spec = context.value(source(node)), spec_of(node)
    name, given = name_of(node.target), [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")]
    if value.ids is None or spec is None:
        return opaque(value)
    if name == "index_select":
        return value if isinstance(given[0], int) and given[0] % len(spec.shape) not in value.axes else opaque(value)
    dims = [axis % len(spec.shape) for axis in _flat(given if name == "flip" else given[1:]) if isinstance(axis, int)]
    if name == "flip":
        return Value(np.flip(value.ids, tuple(value.axes.index(axis) for axis in dims if axis in value.axes)), value.axes)
    shifts = list(_flat(given[:1]))
    if len(given) < 2 or len(shifts) != len(dims) or not set(dims).isdisjoint(value.axes):
        return opaque(value)
    return value


def gated_halves(node: fx.Node, context: Context) -> Result:
    """Carry channels through glu: a channel of one half times a gate, the same channel of the other."""
    return _halves(node, node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else -1), context)


def _halves(node: fx.Node, dim: Any, context: Context) -> Value:
    value, old = context.value(source(node)), spec_of(source(node))
    if value.ids is None or old is None or not isinstance(dim, int):
        return opaque(value)
    axis = dim % len(old.shape)
    if axis not in value.axes:
        return value
    halves = np.split(value.ids, 2, value.axes.index(axis))
    return _merge(node, [Value(ids, value.axes) for ids in halves], context)


def sampled(node: fx.Node, context: Context) -> Result:
    """Carry channels through grid_sample: where the samples are taken is read like a gate."""
    for place in node.all_input_nodes[1:]:
        context.consume(context.value(place))
    return same(node, context)


def shuffled(node: fx.Node, context: Context) -> Result:
    """Carry channels through channel_shuffle."""
    groups = node.kwargs.get("groups", node.args[1] if len(node.args) > 1 else None)
    return _shuffle(context.value(source(node)), groups)


def _shuffle(value: Value, groups: Any) -> Value:
    if value.ids is None or value.axes != (1,) or not isinstance(groups, int):
        return opaque(value)
    return Value(value.ids.reshape(groups, -1).T.reshape(-1), value.axes)


def unshuffled(node: fx.Node, context: Context) -> Result:
    """Carry channels through pixel_unshuffle: each becomes one channel per pixel of a tile."""
    value, old, new = context.value(source(node)), spec_of(source(node)), spec_of(node)
    if value.ids is None or value.axes != (1,) or old is None or new is None or len(old.shape) != 4:
        return opaque(value)
    return Value(value.ids.repeat(new.shape[1] // old.shape[1]), value.axes)


def pixels(node: fx.Node, context: Context) -> Result:
    """Carry channels through pixel_shuffle: each is woven of one channel per pixel of a tile."""
    value, old, new = context.value(source(node)), spec_of(source(node)), spec_of(node)
    if value.ids is None or value.axes != (1,) or old is None or new is None or len(old.shape) != 4:
        return opaque(value)
    tile = old.shape[1] // new.shape[1]
    if tile > MAX_MERGED:
        return opaque(value)
    return _merge(node, [Value(ids, value.axes) for ids in value.ids.reshape(-1, tile).T], context)


def filtered(node: fx.Node, context: Context) -> Result:
    """Carry channels through a convolution with a constant that filters each channel by itself, such as a blur."""
    given: dict[str, Any] = {**dict(zip(FUNCTIONS[node.target], node.args, strict=False)), **node.kwargs}
    value, old, new = context.value(given.get("input")), spec_of(given["input"]), spec_of(node)
    each = old is not None and new is not None and given.get("groups") == old.shape[1] == new.shape[1]
    return value if each and value.axes == (1,) and context.value(given.get("weight")).constant else opaque(value)


def split(node: fx.Node, context: Context) -> Result:
    """Carry channels through chunk and split: a list of values."""
    value, old = context.value(source(node)), spec_of(source(node))
    pieces = node.meta.get(SHAPE)
    name = name_of(node.target)
    default = 0 if name == "unbind" else 1
    dim = node.kwargs.get("dim", node.args[default + 1] if len(node.args) > default + 1 else 0)
    if value.ids is None or old is None or not isinstance(pieces, tuple | list) or not isinstance(dim, int):
        return [opaque(value) for _ in pieces] if isinstance(pieces, tuple | list) else opaque(value)
    axis = dim % len(old.shape)
    if name == "unbind":
        return [_select(value, axis, place) for place in range(len(pieces))]
    if axis not in value.axes:
        return [value for _ in pieces]
    place, start, found = value.axes.index(axis), 0, []
    for piece in pieces:
        size = piece.shape[axis]
        found.append(Value(value.ids.take(np.arange(start, start + size), axis=place), value.axes))
        start += size
    return found


def _select(value: Value, axis: int, place: int) -> Value:
    """Take one index of an axis, which disappears."""
    assert value.ids is not None
    if axis in value.axes:
        if len(value.axes) == 1:
            return opaque(value)
        ids = value.ids[(slice(None),) * value.axes.index(axis) + (place,)]
    else:
        ids = value.ids
    return Value(ids, tuple(other - (other > axis) for other in value.axes if other != axis))


def _number(value: Any) -> Any:
    """Return the number that a node computes from sizes (x.shape[1] // 2), anything else as it is."""
    found = value.meta.get(SHAPE) if isinstance(value, fx.Node) else None
    return found if isinstance(found, int) else value


def item(node: fx.Node, context: Context) -> Result:
    """Carry channels through indexing: a piece of a split, or slices of a tensor."""
    base, index = node.args[0], fx.node.map_aggregate(node.args[1], _number)
    spec = spec_of(base) if isinstance(base, fx.Node) else None
    value = context.value((base, index)) if spec is None else context.value(base)
    if spec is None or value.ids is None:
        return value
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(entry is Ellipsis for entry in entries):
        place = next(number for number, entry in enumerate(entries) if entry is Ellipsis)
        missing = len(spec.shape) - sum(entry is not None for entry in entries) + 1
        entries[place : place + 1] = [slice(None)] * missing
    axis = 0
    moved: dict[int, int] = {}
    taken: list[int] = []
    out = 0
    ids = value.ids
    for entry in entries:
        if entry is None:
            out += 1
            continue
        if isinstance(entry, slice) and all(
            part is None or isinstance(part, int) for part in (entry.start, entry.stop, entry.step)
        ):
            if axis in value.axes:
                where = value.axes.index(axis)
                ids = ids[(slice(None),) * where + (entry,)]
            moved[axis] = out
            out += 1
        elif isinstance(entry, int) and not isinstance(entry, bool):
            if axis in value.axes:
                ids = ids.take([entry], axis=value.axes.index(axis))
                taken.append(axis)
        else:
            return opaque(value)
        axis += 1
    if set(taken) == set(value.axes):
        return opaque(value)
    for rest in range(axis, len(spec.shape)):
        moved[rest] = out + rest - axis
    left = tuple(moved[axis] for axis in value.axes if axis not in taken)
    return Value(ids.squeeze(tuple(value.axes.index(axis) for axis in taken)), left)


def attribute(node: fx.Node, context: Context) -> Result:
    """Carry channels through attributes that are tensors: x.T, x.mT, x.data."""
    base, name = node.args[0], node.args[1]
    value, old = context.value(base), spec_of(base) if isinstance(base, fx.Node) else None
    if old is None or name not in ("T", "mT", "H", "mH", "data", "real"):
        return opaque(value)
    rank = len(old.shape)
    order = list(range(rank))
    if name == "T":
        order.reverse()
    elif name in ("mT", "H", "mH"):
        order[-2:] = order[:-3:-1]
    return permute(value, order)


def narrowed(node: fx.Node, context: Context) -> Result:
    """Carry channels through narrow(dim, start, length)."""
    value, old = context.value(source(node)), spec_of(source(node))
    names = ("dim", "start", "length")
    given = (node.kwargs.get(name, node.args[place] if len(node.args) > place else None) for place, name in enumerate(names, 1))
    numbers = [number for number in map(_number, given) if isinstance(number, int)]
    if value.ids is None or old is None or len(numbers) < len(names):
        return opaque(value)
    dim, start, length = numbers
    axis = dim % len(old.shape)
    if axis not in value.axes:
        return value
    return Value(value.ids.take(np.arange(start, start + length), axis=value.axes.index(axis)), value.axes)


def sliced(node: fx.Node, context: Context) -> Result:
    """Carry channels through ATen's slice(dim, start, stop, step), which exported programs hold."""
    value, old = context.value(source(node)), spec_of(source(node))
    given: tuple[Any, ...] = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    if value.ids is None or old is None or not all(number is None or isinstance(number, int) for number in given):
        return opaque(value)
    dim, *borders = given
    axis = dim % len(old.shape)
    if axis not in value.axes:
        return value
    places = np.arange(old.shape[axis])[slice(*borders)]
    return Value(value.ids.take(places, axis=value.axes.index(axis)), value.axes)


def _operands(node: fx.Node) -> list[Any]:
    return [argument for argument in (*node.args, *node.kwargs.values()) if isinstance(argument, fx.Node) and spec_of(argument)]


def summed(node: fx.Node, context: Context) -> Result:
    """Carry channels through an addition: the union of both sides; a constant or a number adds no origin."""
    return _combined(node, context, gates=False)


def product(node: fx.Node, context: Context) -> Result:
    """Carry channels through a product: a gate, which is broadcast, leaves the gated side's channels."""
    return _combined(node, context, gates=True)


def _combined(node: fx.Node, context: Context, *, gates: bool) -> Result:
    spec = spec_of(node)
    operands = [operand for operand in _operands(node) if not context.value(operand).constant]
    values = [context.value(operand) for operand in operands]
    if not operands:
        return CONSTANT
    if spec is None:
        return opaque(*values)
    if gates and len(operands) > 1:
        full = [place for place, operand in enumerate(operands) if _shape(operand) == spec.shape]
        if len(full) == 1:
            for place, value in enumerate(values):
                if place != full[0]:
                    context.consume(value)
            operands, values = [operands[full[0]]], [values[full[0]]]
    first = next((value for value in values if value.known), values[0])
    if not _sizes_match(first, spec):
        return opaque(*values)
    return _union(node, operands, context)


def _union(node: fx.Node, operands: Sequence[fx.Node], context: Context) -> Value:
    """Return the union of values, each counted once: a map beside itself is that map."""
    values = [context.value(operand) for operand in operands]
    distinct = [place for place, value in enumerate(values) if not any(_equal(value, other) for other in values[:place])]
    return values[0] if len(distinct) == 1 else context.union(node.name, [operands[place] for place in distinct])


def _shape(node: fx.Node) -> tuple[int, ...]:
    spec = spec_of(node)
    return spec.shape if spec is not None else ()


def _equal(left: Value, right: Value) -> bool:
    if left.ids is None or right.ids is None:
        return left is right
    return left.axes == right.axes and np.array_equal(left.ids, right.ids)


def _table(names: Iterable[str], rule: Rule) -> dict[object, Rule]:
    found: dict[object, Rule] = {}
    for name in names:
        for home in (torch, functional, operator):
            if callable(function := getattr(home, name, None)):
                found[function] = rule
        found[name] = rule
    return found


RULES: dict[object, Rule] = {
    **_table(ELEMENTWISE, same),
    **_table(POOLING, same),
    **_table(EXPANSIONS, expanded),
    **_table(RESHAPES, reshaped),
    **_table(PERMUTES, permuted),
    **_table(REDUCTIONS, reduced),
    **_table(["cat", "concat", "concatenate"], concatenated),
    **_table(["stack"], stacked),
    **_table(REORDERINGS, reordered),
    **_table(["glu"], gated_halves),
    **_table(["grid_sample"], sampled),
    **_table(["channel_shuffle"], shuffled),
    **_table(["pixel_unshuffle"], unshuffled),
    **_table(["pixel_shuffle"], pixels),
    **_table(SPLITS, split),
    **_table(["narrow"], narrowed),
    "slice": sliced,
    **_table(SUMS, summed),
    **_table(PRODUCTS, product),
    operator.iadd: summed,
    operator.isub: summed,
    operator.getitem: item,
    getattr: attribute,
    operator.neg: same,
    **{function: filtered for function, order in FUNCTIONS.items() if "stride" in order},
}
"""From a function, or the name of a tensor method, to its rule."""


def rule_of(node: fx.Node) -> Rule | None:
    """Return the rule for a function, a method or an ATen operator, or None where it is opaque."""
    if isinstance(node.target, OpOverload):
        return RULES.get(name_of(node.target))
    return RULES.get(node.target)


def declare(function: Callable[..., Any], rule: Rule) -> None:
    """Say how a function of ours carries channels; called once where the function is defined."""
    RULES[function] = rule


def module_rule(module: nn.Module) -> Rule | None:
    """Return the rule for a module without layers, or None where it is not one that torch defines."""
    carried = (*NORM_MODULES, *ACTIVATION_MODULES, *SOFTMAX_MODULES, *DROPOUT_MODULES, *POOLING_MODULES, nn.Identity)
    if isinstance(module, carried):
        return same
    if isinstance(module, nn.Flatten | nn.Unflatten):
        return reshaped
    if isinstance(module, nn.ChannelShuffle):
        return lambda node, context: _shuffle(context.value(source(node)), module.groups)
    if isinstance(module, nn.GLU):
        return lambda node, context: _halves(node, module.dim, context)
    return {nn.PixelShuffle: pixels, nn.PixelUnshuffle: unshuffled}.get(type(module))


CHAIN_FUNCTIONS = frozenset(
    function
    for name in ELEMENTWISE[: ELEMENTWISE.index("clamp")]
    for home in (torch, functional)
    if "softm" not in name and callable(function := getattr(home, name, None))
)
CHAIN_METHODS = frozenset(name for name in ("relu", "sigmoid", "tanh", "clamp") if hasattr(torch.Tensor, name))


def in_chain(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node is a norm, activation or dropout that a gather may stand in front of."""
    if node.op == "call_module" and module is not None:
        carried = (nn.modules.batchnorm._NormBase, *ACTIVATION_MODULES, *DROPOUT_MODULES, nn.Identity)
        return isinstance(module, carried) and not isinstance(module, BARRIER_MODULES)
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_method":
        return node.target in CHAIN_METHODS
    return node.op == "call_function" and node.target in CHAIN_FUNCTIONS
