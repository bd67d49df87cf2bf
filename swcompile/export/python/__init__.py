"""Write a rewired network as plain Python source: a module that needs torch alone."""

from __future__ import annotations

import itertools
import re
from typing import Any

from torch import fx, nn

from swcompile.errors import SwnetError
from swcompile.export.python import layout, support
from swcompile.export.python.expressions import literal
from swcompile.export.python.flatten import NOT_TRAINING, TRAINING, flattened
from swcompile.export.python.names import argument_name
from swcompile.export.python.statements import RESAMPLERS, Statements, refuse_modes
from swcompile.export.python.tree import Tree
from swcompile.modules import MASKED, RewiredModule
from swcompile.trace import Example, shaped
from swcompile.trace.shapes import spec_of

HEADER = '''"""{name}, rewired by swcompile: written by it, and yours to edit.

    from model import load

    model = load()  # with the weights in weights.safetensors, in eval mode

Model() is the same network with fresh weights. A name such as relu_c16 stands for the
channels of relu from 16 on. It needs torch, and load() safetensors as well.
"""
'''
WEIGHTS = "weights.safetensors"
LOAD = '''WEIGHTS = Path(__file__).with_name("weights.safetensors")


def load(weights: str | Path = WEIGHTS) -> Model:
    """Build the network with its weights, in eval mode."""
    from safetensors.torch import load_file

    model = Model()
    model.load_state_dict(load_file(weights))
    return model.eval()
'''


def source(module: RewiredModule, example: Example) -> str:
    """Return the source of a Python module that computes what a rewired module does, in train mode and in eval mode.

    It has a class Model, whose state dict has the keys of the module's, and a function load. `example` are the inputs' shapes.
    Raises SwnetError for what cannot be written: modules and functions of the user's own that are no plain composition of torch's.
    """
    _refuse_hooks(module)
    first, second = flattened(module)
    graphs = [first] if second is None else [first, second]
    for graph in graphs:
        refuse_modes(graph)
        _write_shapes(graph, module, example)
    tree = Tree(module, *_used(graphs))
    bodies = [Statements(graph, module, tree.reach) for graph in graphs]
    methods = _methods(graphs, bodies)  # which says what helps them
    init = tree.lines()
    model = ["class Model(nn.ModuleList):" if tree.is_list else "class Model(nn.Module):", "    def __init__(self) -> None:", *init]
    parts = [*_support(init, bodies), "\n".join([*model, "", *methods]) + "\n", LOAD]
    text = "\n\n".join(parts)
    apart = "\n\n" if text.startswith(("def ", "class ")) else "\n"
    return f"{HEADER.format(name=_title(module))}\n{_imports(text)}{apart}{text}"


def _title(module: nn.Module) -> str:
    """Return the name of the user's class, where it has one of its own."""
    name = type(module).__name__
    return "A network" if hasattr(nn, name) or name == "GraphModule" else name


def _write_shapes(graph: fx.Graph, module: nn.Module, example: Example) -> None:
    """Note the shape of every value; where the two modes are one, by the numbers of the module's present mode."""
    plain = {node: (node.args, node.kwargs) for node in graph.nodes}
    for node in graph.nodes:
        node.args, node.kwargs = _as_value(node.args), _as_value(node.kwargs)
    shaped(graph, module, example)
    for node, (args, kwargs) in plain.items():
        node.args, node.kwargs = args, kwargs


def _as_value(value: Any) -> Any:
    return fx.node.map_aggregate(value, lambda item: item is NOT_TRAINING if item is TRAINING or item is NOT_TRAINING else item)


def _refuse_hooks(module: nn.Module) -> None:
    for path, one in module.named_modules():
        if one._forward_hooks or one._forward_pre_hooks:
            raise SwnetError(
                f"{path or 'The model'} ({type(one).__name__}) has hooks (as weight_norm and torch.nn.utils.prune set), which are "
                "code that cannot be written. Remove them (remove_weight_norm, prune.remove), or take torch-export or onnx."
            )


def _used(graphs: list[fx.Graph]) -> tuple[set[str], set[str]]:
    """Return the paths of the modules that graphs call, and those of the parameters and buffers that they read."""
    nodes = list(itertools.chain.from_iterable(graph.nodes for graph in graphs))
    return tuple({str(node.target) for node in nodes if node.op == op} for op in ("call_module", "get_attr"))  # type: ignore[return-value]


def _methods(graphs: list[fx.Graph], bodies: list[Statements]) -> list[str]:
    if len(bodies) == 1:
        return [*_signature(graphs[0], "forward"), *bodies[0].lines()]
    names = ", ".join(argument_name(node) for node in graphs[0].nodes if node.op == "placeholder")
    lines = [*_signature(graphs[0], "forward"), "        if self.training:"]
    lines += [f"            return self._forward_in_training({names})", f"        return self._forward_in_eval({names})"]
    for graph, body, name in zip(graphs, bodies, ("_forward_in_training", "_forward_in_eval"), strict=True):
        lines += ["", *_signature(graph, name), *body.lines()]
    return lines


def _signature(graph: fx.Graph, name: str) -> list[str]:
    places = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    returned = "Tensor" if isinstance(output, fx.Node) and spec_of(output) is not None else "Any"
    inner = ", ".join(["self", *map(_declared, places)])
    return layout.call(f"def {name}({inner})", 4, behind=f" -> {returned}:")


def _declared(node: fx.Node) -> str:
    kind = "Tensor" if spec_of(node) is not None else "Any"
    default = f" = {literal(node.args[0], _no_node)}" if node.args else ""
    return f"{argument_name(node)}: {kind}{default}"


def _no_node(_: fx.Node) -> Any:
    raise AssertionError("a default is no node")


def _support(init: list[str], bodies: list[Statements]) -> list[str]:
    """Return the functions and classes that the module needs beside it."""
    text = "\n".join(init)
    helpers: dict[str, Any] = {}
    for body in bodies:
        for name, what in body.helpers.items():
            helpers[name] = helpers.get(name, set()) | what if isinstance(what, set) else what
    parts = [support.named_tuple(name, kind) for name, kind in helpers.items() if isinstance(kind, type)]
    parts += [support.resampler(name, helpers[name]) for name in RESAMPLERS.values() if name in helpers]
    parts += [support.STOCHASTIC_DEPTH] if "stochastic_depth" in helpers else []
    parts += [support.GROUP] if "Group(" in text else []
    return parts + [support.masked(kind.__name__) for kind in MASKED.values() if f"{kind.__name__}(" in text]


def _imports(text: str) -> str:
    containers = ", ".join(name for name in ("OrderedDict", "namedtuple") if re.search(rf"\b{name}\(", text))
    standard = [
        *(["import math\n"] if re.search(r"\bmath\.", text) else []),
        *([f"from collections import {containers}\n"] if containers else []),
        *(["from pathlib import Path\n"] if re.search(r"\bPath", text) else []),
        *(["from typing import Any\n"] if re.search(r"\bAny", text) else []),
    ]
    third = ["import torch\n"] if re.search(r"\btorch\.", text) else []
    third += [f"from torch import {'Tensor, nn' if re.search(r'Tensor', text) else 'nn'}\n"]
    third += ["from torch.nn import functional as F\n"] if re.search(r"\bF\.", text) else []
    return "".join([*standard, "\n", *third])
