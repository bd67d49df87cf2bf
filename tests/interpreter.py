"""A slow interpreter of plans, by definition: what a rewired model has to compute, forward and backward.

It walks the traced graph of the *original* model, node by node, in plain torch. In front of each layer that the plan wires it
builds the layer's input channel by channel, from the taps, and applies the layer with the weights in `state`. Pooling, nearest
upsampling and subsampling are written out below from their definitions. Nothing of swcompile.rewrite, modules or optimize is used.

Where the plan removes output channels the graph runs at full width all the same: weights and norms have zeros in their places.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.fx.node import map_arg

from swcompile.plan import LayerWiring, Plan
from swcompile.rows import Rows, mask_of
from swcompile.trace import Traced

State = Mapping[str, Tensor]


class Interpreter:
    """Compute a plan in one mode. `state` holds the rewired model's parameters and buffers; norms count in it, as they do."""

    def __init__(self, traced: Traced, plan: Plan, state: State, *, training: bool) -> None:
        self.root = traced.root.train(training)
        self.layers = traced.graph.layer_by_name
        self.axes = {feature.name: feature.axis for feature in traced.graph.features}
        self.learned = {name for name, _ in traced.root.named_parameters()}
        in_eval = not training and traced.eval_graph is not None
        self.names = traced.eval_names if in_eval else {}
        self.graph: Any = traced.eval_graph if in_eval else traced.train_graph
        self.bypassed = {self._node(name): kept for name, kept in plan.bypassed}
        outputs = plan.outputs()
        self.stays = {name: mask_of(spans, self.layers[name].out_channels) for name, spans in outputs.items()}
        if outputs:
            self.stays |= {carrier.name: kept for carrier, kept in Rows(traced.graph).stay(outputs)}
        self.full = {name: self._at_full_width(name, value) for name, value in state.items()}
        self.masks = {self._node(self.layers[wiring.layer].node): wiring.mask for wiring in plan.layers}
        wired = [wiring for wiring in plan.layers if not self.layers[wiring.layer].depthwise]  # one reads what it makes
        self.wirings = {self._reader(wiring): wiring for wiring in wired}

    def _at_full_width(self, name: str, value: Tensor) -> Tensor:
        """Return a parameter or buffer with zeros (a variance: ones) for the channels that are gone."""
        path, _, kind = name.rpartition(".")
        if path not in self.stays or not value.dim():
            return value
        kept = torch.from_numpy(self.stays[path])
        axis = 1 if path in self.layers and self.layers[path].transposed and kind == "weight" else 0
        shape = (*value.shape[:axis], len(kept), *value.shape[axis + 1 :])
        return value.new_full(shape, float(kind == "running_var")).index_copy(axis, kept.nonzero()[:, 0], value)

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers of the channels that stay, as they are after a run."""
        found = {}
        for name, value in self.full.items():
            path = name.rpartition(".")[0]
            kept = path in self.stays and value.dim()
            found[name] = value[torch.from_numpy(self.stays[path])] if kept and name not in self.learned else value
        return found

    def _node(self, name: str) -> str:
        """Return the fx name of a feature or layer; a value read along two axes is two features, x and x.axis1."""
        return self.names.get(name, name).partition(".")[0]

    def _reader(self, wiring: LayerWiring) -> str:
        """Return the node that reads the taps: the layer, or the first of the norms and activations that belong to it."""
        layer = self.layers[wiring.layer]
        return self._node((layer.chain or (layer.node,))[0])

    def run(self, *inputs: Tensor) -> Any:
        """Return what the rewired model returns."""
        self.values: dict[str, Any] = {}
        self.resampled: dict[object, Tensor] = {}
        given = iter(inputs)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node.name] = next(given)
            elif node.op == "output":
                return map_arg(node.args[0], lambda source: self.values[source.name])
            else:
                self.values[node.name] = self._call(node)
        raise AssertionError("a graph without an output")

    def _call(self, node: fx.Node) -> Any:
        if node.name in self.bypassed:
            addends = [source for source in node.all_input_nodes if source.op != "get_attr"]
            return self.values[addends[self.bypassed[node.name]].name]
        read = {source.name: self.values[source.name] for source in node.all_input_nodes}
        if node.name in self.wirings:
            own = self._own(self.wirings[node.name])
            read[own] = self._gathered(self.wirings[node.name], self.values[own])
        args, kwargs = map_arg((node.args, node.kwargs), lambda source: read[source.name])
        if node.op == "get_attr":
            return self.full[node.target] if node.target in self.full else operator.attrgetter(node.target)(self.root)
        if node.op == "call_function":
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return self._apply(node, args, kwargs)

    def _apply(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Call a module with its weights in `state`, which are the kept columns; those that a mask leaves out are 0."""
        path = str(node.target)
        own = {name.removeprefix(f"{path}."): value for name, value in self.full.items() if name.startswith(f"{path}.")}
        if self.masks.get(node.name) is not None:
            mask = torch.from_numpy(self.masks[node.name])
            own["weight"] = own["weight"] * mask.view(*mask.shape, *(1 for _ in own["weight"].shape[2:]))
            del own["mask"]
        return functional_call(self.root.get_submodule(path), own, args, kwargs)

    def _own(self, wiring: LayerWiring) -> str:
        return self._node(self.layers[wiring.layer].feature)

    def _gathered(self, wiring: LayerWiring, like: Tensor) -> Tensor:
        axis = self.axes[self.layers[wiring.layer].feature]
        channels = []
        for tap in wiring.taps:
            feature = self._at(self._node(tap.feature), like, tap.resample if axis == 1 else "")
            channels += [feature.select(axis, channel) for channel in range(tap.start, tap.stop)]
        return torch.stack(channels, axis)

    def _at(self, name: str, like: Tensor, how: str) -> Tensor:
        """Return a feature at the size of `like`; one that has been brought to it before is taken from there, to save time."""
        size = like.shape[2:] if how else ()
        if not how or (like.dim() == self.values[name].dim() and self.values[name].shape[2:] == size):
            return self.values[name]
        key = (name, size, how)
        if key not in self.resampled:
            self.resampled[key] = resampled(self.values[name], size, how)
        return self.resampled[key]


def resampled(x: Tensor, size: tuple[int, ...], how: str) -> Tensor:
    """Bring maps (N, C, *spatial) to a size by definition; an empty size asks for one number a channel."""
    have = tuple(x.shape[2:])
    if not size:
        return resampled(x, (1,) * len(have), how).flatten(1)
    shrinks = any(ours > wanted for ours, wanted in zip(have, size, strict=True))
    whole = all(ours % wanted == 0 for ours, wanted in zip(have, size, strict=True))
    if not shrinks or (how == "stride" and not whole):
        return _picked(x, size)
    if how == "stride":
        steps = [ours // wanted for ours, wanted in zip(have, size, strict=True)]
        return x[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
    rows = torch.cartesian_prod(*(torch.arange(wanted) for wanted in size)).view(-1, len(size)).tolist()
    pooled = [_pool(x[(slice(None), slice(None), *_window(row, have, size))].flatten(2), how) for row in rows]
    return torch.stack(pooled, 2).view(*x.shape[:2], *size)


def _picked(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Take for output i of n the input floor(i * m / n) of m, on each axis."""
    for axis, wanted in enumerate(size, start=2):
        x = x.index_select(axis, torch.tensor([place * x.shape[axis] // wanted for place in range(wanted)]))
    return x


def _window(place: list[int], have: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    """Output i of n is computed from inputs floor(i * m / n) to ceil((i + 1) * m / n) of m: every m / n where that is whole."""
    return tuple(
        slice(at * ours // wanted, -(-(at + 1) * ours // wanted)) for at, ours, wanted in zip(place, have, size, strict=True)
    )


def _pool(window: Tensor, how: str) -> Tensor:
    """Reduce (N, C, places) to (N, C). Of equal maxima the first one takes the gradient, as in torch's pooling."""
    if how == "avg":
        return window.mean(2)
    count = window.shape[2]
    ranks = (window == window.amax(2, keepdim=True)) * torch.arange(count, 0, -1)
    return window.gather(2, ranks.argmax(2, keepdim=True))[:, :, 0]
