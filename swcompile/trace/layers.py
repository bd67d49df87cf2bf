"""What counts as a layer: modules that hold weights, and functions that are given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from swcompile.trace.names import name_of

LAYER_TYPES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)

LEFT = "swcompile_left"
"""The key in `node.meta` of calls of a module that the user wants left as it is."""

_CONVOLVES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSES = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_GENERAL = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
_aten = torch.ops.aten
FUNCTIONS: dict[object, Sequence[str]] = {
    **dict.fromkeys((functional.conv1d, functional.conv2d, functional.conv3d), _CONVOLVES),
    **dict.fromkeys((_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default), _CONVOLVES),
    **dict.fromkeys((_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding), _CONVOLVES),
    **dict.fromkeys((functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d), _TRANSPOSES),
    **dict.fromkeys((_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input), _TRANSPOSES),
    _aten.convolution.default: _GENERAL,
    functional.linear: ("input", "weight", "bias"),
    _aten.linear.default: ("input", "weight", "bias"),
}
"""Functions that are layers, each with the order of its arguments."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a graph.

    `path` names the layer in the user's model: the module, or for a function the module or parameter that its weight comes from.
    `weight` is the path of the weight, "" where it is computed (weight standardisation) from others.
    """

    path: str
    weight: str
    kind: str
    source: fx.Node
    groups: int
    kernel_size: tuple[int, ...]
    transposed: bool
    bias: bool

    @property
    def linear(self) -> bool:
        return not self.kernel_size


def layer_call(node: fx.Node, modules: Mapping[str, nn.Module], shape_of: Any) -> LayerCall | None:
    """Return the call of a layer that a node is, or None. `shape_of` gives a node's shape, or None."""
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return _of_module(node, module) if isinstance(module, LAYER_TYPES) else None
    if node.op == "call_function" and node.target in FUNCTIONS:
        return _of_function(node, shape_of)
    return None


def _of_module(node: fx.Node, module: Any) -> LayerCall | None:
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, fx.Node):
        return None
    return LayerCall(
        path=str(node.target),
        weight=f"{node.target}.weight",
        kind=_kind(type(module)),
        source=source,
        groups=getattr(module, "groups", 1),
        kernel_size=() if isinstance(module, nn.Linear) else tuple(module.kernel_size),
        transposed=getattr(module, "transposed", False),
        bias=module.bias is not None,
    )


def _kind(kind: type) -> str:
    """Return the name of a layer's class; one of the user's that bears the name of torch's with its module's."""
    borrowed = kind not in LAYER_TYPES and kind.__name__ in {known.__name__ for known in LAYER_TYPES}
    return f"{kind.__module__}.{kind.__name__}" if borrowed else kind.__name__


def _of_function(node: fx.Node, shape_of: Any) -> LayerCall | None:
    given: dict[str, Any] = {**dict(zip(FUNCTIONS[node.target], node.args, strict=False)), **node.kwargs}
    source, weight = given.get("input"), given.get("weight")
    if not isinstance(source, fx.Node) or not isinstance(weight, fx.Node):
        return None
    shape, named, groups = shape_of(weight), _parameter_behind(weight), given.get("groups", 1)
    if shape is None or named is None or not isinstance(groups, int):
        return None
    name = name_of(node.target)
    return LayerCall(
        path=named.removesuffix(".weight"),
        weight=named if weight.op == "get_attr" else "",
        kind=name,
        source=source,
        groups=groups,
        kernel_size=tuple(shape[2:]),
        transposed="transpose" in name or given.get("transposed") is True,
        bias=given.get("bias") is not None,
    )


def _parameter_behind(weight: fx.Node) -> str | None:
    """Return the path of the parameter that a weight is, or that it is computed from; None where an input has a say in it."""
    named: str | None = None
    pending, seen = [weight], {weight}
    while pending:
        node = pending.pop()
        if node.op in ("placeholder", "call_module"):
            return None
        if node.op == "get_attr" and (named is None or str(node.target).endswith("weight")):
            named = str(node.target)
        pending.extend(source for source in node.all_input_nodes if source not in seen)
        seen.update(node.all_input_nodes)
    return named


def modules_with_layers(root: nn.Module) -> set[int]:
    """Return the ids of modules that hold a layer somewhere below them, or a parameter of the shape of a layer's weight."""
    parents: dict[int, list[nn.Module]] = {}
    for module in root.modules():
        for child in module.children():
            parents.setdefault(id(child), []).append(module)
    own = [module for module in root.modules() if _holds_weight(module)]
    pending = [*own, *(module for module in root.modules() if isinstance(module, LAYER_TYPES))]
    found = {id(module) for module in own}
    while pending:
        for parent in parents.get(id(pending.pop()), ()):
            if id(parent) not in found:
                found.add(id(parent))
                pending.append(parent)
    return found


def _holds_weight(module: nn.Module) -> bool:
    """Whether a user's module has a parameter of its own that its forward may give to one of FUNCTIONS."""
    if type(module).__module__.startswith("torch."):
        return False
    return any(sum(size > 1 for size in parameter.shape) > 1 for parameter in module.parameters(recurse=False))
