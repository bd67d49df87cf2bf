"""What a node does that a site can take over: a batch norm, an activation, or what a module computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from swcompile.trace.shapes import spec_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
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


def only_user(node: fx.Node) -> fx.Node | None:
    """Return what reads a value, where one node does."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def called(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module a node calls."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module a node calls, where it may be bypassed: a hook or a forward of the user's must run."""
    module = called(node, root)
    return None if module is None or module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__ else module


def is_norm(node: fx.Node, root: nn.Module) -> bool:
    """Say whether a node is a batch norm that goes by its running statistics in eval mode."""
    module: Any = module_of(node, root)
    return type(module) in NORMS and module.running_mean is not None


def norms_channels(norm: fx.Node, value: fx.Node, axis: int) -> bool:
    """Say whether a batch norm, which goes by its input's second axis, goes by the channels of a value."""
    spec = spec_of(value)
    return spec is not None and (axis == 1 or len(spec.shape) == 2)


def activation_of(node: fx.Node, root: nn.Module) -> str | None:
    """Return an activation by its name in swkernels.affine.ACTIVATIONS, or None."""
    if node.target is functional.gelu:
        return "gelu" if node.kwargs.get("approximate", "none") == "none" else None
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return "relu" if node.target in ("relu", "relu_") else None
    module = module_of(node, root)
    if type(module) is nn.GELU and module.approximate == "none":
        return "gelu"
    return _MODULES.get(type(module)) if module is not None else None
