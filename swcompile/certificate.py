"""Certify that what was removed is what a mask would have silenced, on the user's own model and weights.

Two modules are run in float64 and their outputs, gradients and buffers compared: the pruned one, and a reference that keeps every
channel, reads what the pruned one reads, and has zeros in the weights of the input channels that were dropped. Nothing of the
reference was removed, so it shows what removal should have come to. A masked module is compared with dense layers over what its
live links read, as a sparse kernel would compute it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from swcompile.errors import SwnetError, first_line
from swcompile.graph import Layer, Tap
from swcompile.modules import MASKED, RewiredModule
from swcompile.plan import LayerWiring, Plan, own_taps
from swcompile.rewrite import fit_modules, rewire_graphs
from swcompile.rows import mask_of
from swcompile.trace import Traced
from swcompile.trace.random_state import random_state
from swcompile.trace.shapes import Spec

TOLERANCE = 1e-10
"""The largest difference allowed, relative to the largest entry of the tensor."""
SMALL = 1e-3
"""How much smaller than the largest of its kind a tensor may be to be measured by its own size."""


@dataclass(frozen=True)
class Certificate:
    """The largest differences found between the pruned module and the masked one, in float64.

    With `masks`, between the masked module and the live links alone. `modes` are those that were compared: train mode is left out
    where it draws random numbers, of which fewer channels draw fewer.
    """

    modes: tuple[str, ...]
    outputs: float
    gradients: float
    buffers: float
    masks: bool = False

    def __str__(self) -> str:
        worst = max(self.outputs, self.gradients, self.buffers)
        what = "masked equals the live links alone" if self.masks else "removed equals masked"
        return f"verified: {what} to {worst:.1e} in float64, in {' and '.join(self.modes)} mode"


def certify(traced: Traced, plan: Plan, module: RewiredModule, inputs: Sequence[Any]) -> Certificate:
    """Compare a pruned module with the masked one. `traced` is a fresh trace of the same model, and is used up.

    Raises SwnetError where the model does not run in float64, and AssertionError, a bug of ours, where the two differ.
    """
    pruned = copy.deepcopy(module).double()
    traced.root.double()
    whole = {wiring.layer: _unpruned(wiring, traced.graph.layer_by_name[wiring.layer]) for wiring in plan.layers}
    rewire_graphs(traced, replace(plan, layers=tuple(made for made in whole.values() if made is not None)))
    _silence(traced, plan)
    masked = RewiredModule.assemble(traced.root, traced.train_graph, traced.eval_graph)
    return _compared(masked, pruned, inputs, lambda: _left_of(traced, plan))


def certify_masks(module: RewiredModule, inputs: Sequence[Any]) -> Certificate:
    """Compare a masked module with one that computes, for outputs with the same live links, a dense layer over what they read.

    Raises as `certify` does.
    """
    masked, alone = copy.deepcopy(module).double(), copy.deepcopy(module).double()
    for layer in alone.modules():
        if isinstance(layer, tuple(MASKED.values())):
            layer.forward = _Alone(layer)

    def left() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        grads = {key: parameter.grad for key, parameter in alone.named_parameters() if parameter.grad is not None}
        return grads, dict(alone.named_buffers())

    return replace(_compared(alone, masked, inputs, left), masks=True)


class _Alone:
    """What a masked layer computes, from its live links alone: one dense layer for each set of outputs that read the same."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        mask = layer.mask.reshape(layer.mask.shape[:2])
        reads, group = torch.unique(mask, dim=0, return_inverse=True)
        self.parts = [((group == place).nonzero()[:, 0], live.nonzero()[:, 0]) for place, live in enumerate(reads)]

    def __call__(self, value: Tensor) -> Tensor:
        axis = 1 if isinstance(self.layer, nn.modules.conv._ConvNd) else value.dim() - 1
        made = [self._part(value.index_select(axis, live), rows, live) for rows, live in self.parts]
        order = torch.cat([rows for rows, _ in self.parts]).argsort()
        return torch.cat(made, axis).index_select(axis, order)

    def _part(self, value: Tensor, rows: Tensor, live: Tensor) -> Tensor:
        weight = self.layer.weight.index_select(0, rows).index_select(1, live)
        bias = None if self.layer.bias is None else self.layer.bias.index_select(0, rows)
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(value, weight, bias)
        made: Tensor = self.layer._conv_forward(value, weight, bias)
        return made


Left = Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
"""Returns the reference's gradients and buffers after a run, in the shapes that the module has."""


def _compared(reference: RewiredModule, module: RewiredModule, inputs: Sequence[Any], left: Left) -> Certificate:
    """Run both in each mode and return the largest differences."""
    modes: list[str] = []
    found = {"outputs": 0.0, "gradients": 0.0, "buffers": 0.0}
    device = next(reference.parameters()).device
    examples = tuple(_example(value, device) for value in inputs)
    for name in ("eval", "train"):
        wanted = _reference_run(reference, examples, training=name == "train")
        if wanted is None:
            continue
        gradients, buffers = left()
        reference.zero_grad()  # each of the two sets of gradients may be as large as all else in memory
        made = _run(module, examples, training=name == "train")
        assert made is not None, "the changed model draws random numbers, the reference does not"
        modes.append(name)
        found["outputs"] = max(found["outputs"], _difference(dict(enumerate(wanted)), dict(enumerate(made)), "output"))
        mine = {key: parameter.grad for key, parameter in module.named_parameters() if parameter.grad is not None}
        found["gradients"] = max(found["gradients"], _difference(gradients, mine, "gradient"))
        found["buffers"] = max(found["buffers"], _difference(buffers, dict(module.named_buffers()), "buffer"))
        module.zero_grad()
        del gradients, mine
    return Certificate(tuple(modes), found["outputs"], found["gradients"], found["buffers"])


def _reference_run(reference: nn.Module, examples: tuple[Any, ...], *, training: bool) -> list[Tensor] | None:
    """Run the reference; what it raises is of the model's own code, while what the other raises would be a bug of ours."""
    try:
        wanted = _run(reference, examples, training=training)
    except Exception as error:
        raise SwnetError(
            f"verify=True runs the model in float64, where it raised {type(error).__name__}: {first_line(error)}. "
            "Leave verify out, or let the model follow its input's dtype."
        ) from error
    if wanted is not None and not all(value.isfinite().all() for value in wanted if value.is_floating_point()):
        raise SwnetError("verify=True found outputs that are not finite. Give example_inputs that the model is made for.")
    return wanted


def _unpruned(wiring: LayerWiring, layer: Layer) -> LayerWiring | None:
    """Return the wiring with what was dropped in its place again, or None where the layer reads all that it did."""
    if layer.refused is not None:  # depthwise convolutions and gates read what is there
        return None
    places = iter([Tap(tap.feature, at, at + 1, tap.resample) for tap in wiring.taps for at in range(tap.start, tap.stop)])
    kept = mask_of(wiring.columns, layer.in_channels)
    taps = (next(places) if kept[column] else Tap(layer.feature, column, column + 1) for column in range(layer.in_channels))
    whole = ((0, layer.in_channels),)
    made = LayerWiring(layer.name, tuple(_joined(taps)), whole)
    return None if made.taps == own_taps(layer, whole, made.taps[0].resample) else made


def _joined(taps: Any) -> list[Tap]:
    joined: list[Tap] = []
    for tap in taps:
        last = joined[-1] if joined else None
        if last is not None and (last.feature, last.stop, last.resample) == (tap.feature, tap.start, tap.resample):
            joined[-1] = replace(last, stop=tap.stop)
        else:
            joined.append(tap)
    return joined


def _silence(traced: Traced, plan: Plan) -> None:
    """Zero the weights of the input channels that the plan drops."""
    for wiring in plan.layers:
        layer = traced.graph.layer_by_name[wiring.layer]
        gone = np.flatnonzero(~mask_of(wiring.columns, layer.in_channels))
        if layer.depthwise or not len(gone):
            continue
        path, _, name = layer.weight.rpartition(".")
        weight: Tensor = getattr(traced.root.get_submodule(path), name)
        width, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        with torch.no_grad():
            for group in range(layer.groups):
                mine = torch.from_numpy(gone[gone // width == group] - group * width).to(weight.device)
                if layer.transposed:
                    weight[mine + group * width] = 0
                else:
                    weight[group * outs : (group + 1) * outs].index_fill_(1, mine, 0)


def _example(value: Any, device: torch.device) -> Any:
    """Return an input to run with: the user's own tensor, or random numbers where only its shape is known."""
    if isinstance(value, Spec):
        floating = value.dtype.is_floating_point
        made = torch.rand(value.shape, dtype=torch.float64) if floating else torch.zeros(value.shape, dtype=value.dtype)
        return made.to(device)
    return pytree.tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, value)


def _run(module: nn.Module, inputs: tuple[Any, ...], *, training: bool) -> list[Tensor] | None:
    """Run forward and backward. Returns the outputs, or None where random numbers were drawn."""
    module.train(training).zero_grad()
    for inner in module.modules():
        if isinstance(inner, nn.modules.dropout._DropoutNd):
            inner.eval()
    with random_state() as drawn:
        made = [value for value in pytree.tree_leaves(module(*inputs)) if isinstance(value, Tensor)]
        if drawn():
            return None
    losses = [
        (value * torch.linspace(-1, 1, value.numel(), dtype=value.dtype, device=value.device).view_as(value)).sum()
        for value in made
        if value.requires_grad
    ]
    if losses:
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    return [value.detach() for value in made]


def _left_of(traced: Traced, plan: Plan) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the plan leaves of the reference's gradients and buffers: those are cut just as weights are."""
    grads: dict[int, Any] = {}  # a copy of all weights would only be written over, and there are three more in memory
    for parameter in traced.root.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        grads[id(parameter)] = nn.Parameter(gradient, requires_grad=parameter.requires_grad)
    cut = replace(traced, root=copy.deepcopy(traced.root, grads))
    fit_modules(cut, plan)
    return {key: value.detach() for key, value in cut.root.named_parameters()}, dict(cut.root.named_buffers())


def _difference(wanted: Mapping[Any, Tensor], found: Mapping[Any, Tensor], what: str) -> float:
    """Return the largest difference, relative to the largest entry of its tensor, or to SMALL times that of all of them."""
    largest = {
        key: float(wanted[key].abs().max()) if wanted[key].numel() else 0.0 for key in found if found[key].is_floating_point()
    }
    least = SMALL * max(largest.values(), default=0.0) or 1.0
    worst = 0.0
    for key, value in found.items():
        other = wanted[key]
        assert value.shape == other.shape, f"{what} {key} has shape {tuple(value.shape)}, masked {tuple(other.shape)}"
        if key in largest:
            worst = max(worst, float((value - other).abs().max()) / max(largest[key], least))
    assert worst <= TOLERANCE, f"what was removed or masked still counts: a {what} differs by {worst:.1e}"
    return worst
