"""Score what each layer reads, on a trained network: which input channels it could best do without.

    weight        |W[:, c]|^2, the squared norm of the weights that read channel c
    norm          the same, times the variance that the norm in front gives the channel: its scale (gamma) squared
    taylor        (sum of gradient * weight over W[:, c])^2, averaged over batches: how the loss would change without them
                  (Molchanov et al., arXiv 1906.10771, equation 8)
    correlation   |W[:, c]|^2 times the variance of channel c that the blocks which stay do not explain: of two maps that are
                  nearly the same, one is redundant (swcompile.wiring.score.Unexplained)

The higher the more needed. All but `taylor` are divided by the layer's mean, so that layers compare; what `taylor` gives is a
change of the loss everywhere. A layer that eval mode does not run gets 1, or 0 by `taylor`: the loss does not depend on it.
Batches go through a copy of the model in eval mode: dropout is off, norms keep their statistics. `norm` follows gamma through what
works on each channel by itself, through sums, gates and concatenations; where it finds none, it counts 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from swcompile.batches import divided, reported, shown
from swcompile.errors import SwnetError
from swcompile.graph import Layer, LayerGraph
from swcompile.trace import Traced, rules
from swcompile.trace.copies import copy_model
from swcompile.trace.layers import layer_call
from swcompile.trace.names import name_of
from swcompile.trace.shapes import spec_of
from swcompile.wiring.score import ByChannel, Score, Unexplained

Numbers = dict[str, NDArray[np.float64]]
"""For each layer a number per input channel."""
Loss = Callable[..., Tensor]

NEEDS: Mapping[str, tuple[str, ...]] = {
    "distance": (),
    "weight": (),
    "norm": (),
    "taylor": ("batches", "loss_fn"),
    "correlation": ("batches",),
}
"""What each score has to be given; "distance" is that of the wiring itself."""
_WHAT = {
    "batches": "an iterable of inputs and targets, such as a DataLoader",
    "loss_fn": "which is called with the model's output and each batch's targets",
}

WIDE = 1024
"""The most channels among which `correlation` looks for redundant ones: wider inputs (a flattened map) fall into such parts."""
ENOUGH = 4
"""With fewer values a channel than this times the channels, `correlation` says that it has seen too little."""

_log = logging.getLogger("swcompile")


def refuse_unfit(how: str, given: Mapping[str, object]) -> None:
    """Raise SwnetError where a score lacks something of `batches` and `loss_fn`, or was given what it has no use for."""
    for name, value in given.items():
        users = " or ".join(f"score={one!r}" for one, needed in NEEDS.items() if name in needed)
        if value is None and name in NEEDS[how]:
            raise SwnetError(f"score={how!r} needs {name}=, {_WHAT[name]}.")
        if value is not None and name not in NEEDS[how]:
            raise SwnetError(f"{name}= was given, which score={how!r} has no use for. Leave it out, or take {users}.")


def score(traced: Traced, how: str, batches: Iterable[Any] | None = None, loss_fn: Loss | None = None) -> dict[str, Score]:
    """Return the scores of every layer.

    Args:
        traced: the model; its weights, modes and gradients are left as they were.
        how: "weight", "norm", "taylor" or "correlation".
        batches: for the last two: tensors, or tuples of the forward's arguments followed by what `loss_fn` takes.
        loss_fn: for "taylor": from the model's output and the rest of a batch to a number.

    Raises:
        SwnetError: where batches or the loss are missing, or do not fit the model.
    """
    refuse_unfit(how, {"batches": batches, "loss_fn": loss_fn})
    if any(parameter.is_meta for parameter in traced.root.parameters()):
        raise SwnetError(f"score={how!r} looks at weights, and the model is on the meta device, without values. Load them first.")
    if how in ("weight", "norm"):
        network = _Network(traced, traced.root)
        return _by_mean(_norm(network) if how == "norm" else network.squared(), network)
    assert batches is not None
    with torch.random.fork_rng():  # a forward may draw
        network = _Network(traced, copy_model(traced.root))
        network.root.eval()
        for parameter in network.root.parameters():
            (parameter._backward_hooks or {}).clear()  # the user's, which the copy has kept, may change gradients
        if how == "correlation":
            return _correlation(network, batches)
        assert loss_fn is not None
        return _taylor(network, batches, loss_fn)


class _Network:
    """What eval mode runs, with the layers in it."""

    def __init__(self, traced: Traced, root: nn.Module) -> None:
        self.root, self.inputs, self.all_layers = root, len(traced.example), traced.graph.layers
        self.graph: fx.Graph = traced.graphs[-1]
        layers: LayerGraph = traced.eval_layers if traced.eval_layers is not None else traced.graph
        self.layers, self.features = layers.layers, layers.feature_by_name
        modules, nodes = dict(root.named_modules()), {node.name: node for node in self.graph.nodes}
        calls = {layer.name: layer_call(nodes[layer.node], modules, _shape) for layer in self.layers}
        self.sources = {name: call.source for name, call in calls.items() if call is not None}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The weight of each layer whose weight is a parameter, and not computed from one."""
        parameters = dict(self.root.named_parameters(remove_duplicate=False))
        return {layer.name: parameters[layer.weight] for layer in self.layers if layer.weight in parameters}

    def squared(self) -> Numbers:
        """Return the squared norm of the weights that read each channel."""
        layers, weights = {layer.name: layer for layer in self.layers}, self.weights
        return {name: _numbers(per_channel(layers[name], weight.detach().double().square())) for name, weight in weights.items()}

    def runner(self, watch: Callable[[str, Tensor], Tensor] | None = None) -> nn.Module:
        """Return a module that runs the graph, and gives `watch` what each layer reads."""
        if watch is None:
            return fx.GraphModule(self.root, self.graph)
        copied: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        output = graph.graph_copy(self.graph, copied)
        for name, source in self.sources.items():
            with graph.inserting_after(copied[source]):
                graph.call_function(watch, (name, copied[source]))
        graph.output(output)
        return fx.GraphModule(self.root, graph)


def per_channel(layer: Layer, values: Tensor) -> Tensor:
    """Sum numbers in the shape of a layer's weight over all that reads one input channel: (in_channels,)."""
    if layer.transposed:  # (in, out / groups, *kernel)
        return values.flatten(1).sum(1)
    flat = values.reshape(layer.groups, -1, values.shape[1], max(layer.kernel_area, 1))  # groups, out / groups, in / groups, kernel
    return flat.sum((1, 3)).reshape(-1)


def _norm(network: _Network) -> Numbers:
    modules = dict(network.root.named_modules())
    scales: dict[fx.Node, Scale] = {}
    for node in network.graph.nodes:
        found = _scale(node, modules, scales)
        if found is not None:
            scales[node] = found
    made = network.squared()
    for layer in network.layers:
        scale = scales.get(network.sources[layer.name]) if layer.name in network.sources else None
        if scale is not None and (scale.axis, len(scale.gamma)) == (network.features[layer.feature].axis, layer.in_channels):
            made[layer.name] = made[layer.name] * _numbers(scale.gamma) ** 2
    return made


@dataclass(frozen=True)
class Scale:
    """What a norm has multiplied the channels of a value by, and the axis on which they lie."""

    gamma: Tensor
    axis: int


def _scale(node: fx.Node, modules: Mapping[str, nn.Module], scales: Mapping[fx.Node, Scale]) -> Scale | None:
    """Return the scale that norms gave each channel of a value, or None where it has passed none.

    Variances add up in a sum; what no norm has scaled counts 1 beside what one has. A gate leaves the gated value's scale.
    """
    module, shape = modules.get(str(node.target)) if node.op == "call_module" else None, _shape(node)
    gamma = getattr(module, "weight", None)
    if isinstance(module, rules.NORM_MODULES) and isinstance(gamma, Tensor) and gamma.dim() == 1:
        last = isinstance(module, nn.LayerNorm | nn.RMSNorm)
        return Scale(gamma.detach().abs().double().cpu(), len(shape) - 1 if last else 1)
    rule, source, name = (
        rules.rule_of(node) if module is None else rules.module_rule(module),
        rules.source(node),
        name_of(node.target),
    )
    known = [scales[part] for part in node.all_input_nodes if part in scales]
    if not known or name.endswith("_norm") or isinstance(module, rules.NORM_MODULES):
        return None
    axis = known[0].axis
    if rule is rules.concatenated:
        parts, along = rules.joined(node)
        fit = along == axis and all(part not in scales or scales[part].axis == axis for part in parts)
        return Scale(torch.cat([_gamma(part, scales, axis) for part in parts]), axis) if fit else None
    full = [part for part in node.all_input_nodes if _shape(part) == shape]
    if rule is rules.summed and name in _SUMS and full:
        squares = [_gamma(part, scales, axis).square() for part in full]
        return Scale(torch.stack(squares).sum(0).sqrt(), axis) if len(set(map(len, squares))) == 1 else None
    if rule in (rules.product, rules.summed):
        return next((scales[part] for part in full if part in scales), None)
    if not isinstance(source, fx.Node) or source not in scales:
        return None
    old = _shape(source)
    if rule is rules.reshaped and len(shape) == 2 and len(old) > 2 and old[1] == len(scales[source].gamma) and axis == 1:
        return Scale(scales[source].gamma.repeat_interleave(max(shape[1] // old[1], 1)), 1)
    return scales[source] if rule is rules.same or name == "mean" else None


_SUMS = ("add", "iadd", "sub", "isub")


def _gamma(node: fx.Node, scales: Mapping[fx.Node, Scale], axis: int) -> Tensor:
    return scales[node].gamma if node in scales else torch.ones(_shape(node)[axis], dtype=torch.float64)


def _taylor(network: _Network, batches: Iterable[Any], loss_fn: Loss) -> dict[str, Score]:
    weights, layers = network.weights, {layer.name: layer for layer in network.layers}
    for weight in weights.values():
        weight.requires_grad_(True)  # also of frozen layers, in the copy
    total = {name: torch.zeros(layers[name].in_channels, dtype=torch.float64) for name in weights}
    run, seen = network.runner(), 0
    for batch in shown(batches, "scoring", "batches"):
        inputs, rest = divided(batch, network.inputs, "batches")
        with (
            torch.enable_grad(),
            reported(seen, "batches", f"the model or loss_fn, which got {len(rest)} more values of the batch"),
        ):
            loss = loss_fn(run(*inputs), *rest)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise SwnetError("loss_fn did not return a single number. Let it average over the batch.")
        if not loss.requires_grad or not weights:
            raise SwnetError("The loss depends on no layer's weight, so none can be scored by it. Give one that has gradients.")
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                moved = per_channel(layers[name], gradient.detach().double() * weight.detach().double())
                total[name] += moved.square().cpu()
        seen += 1
    _refuse_none(seen)
    made = {layer.name: np.zeros(layer.in_channels) for layer in network.all_layers}
    made |= {name: _finite(name, _numbers(sums / seen)) for name, sums in total.items()}
    return {name: ByChannel(values) for name, values in made.items()}


@dataclass
class _Moments:
    """Sums over what a layer reads, channel by channel: of the values, and of the products of any two.

    In float64 and around the first values seen, so that what is left of maps that are nearly the same is no rounding error.
    """

    count: int = 0
    around: Tensor | None = None
    first: Tensor | None = None
    second: list[Tensor] = field(default_factory=list)

    def see(self, values: Tensor) -> None:
        """Take up values (channels, places)."""
        values = values.double()
        if self.around is None:
            self.around = values.mean(1, keepdim=True)
        values = values - self.around
        products = [part @ part.T for part in torch.split(values, WIDE)]
        self.second = [old + new for old, new in zip(self.second, products, strict=True)] if self.second else products
        self.first = values.sum(1) if self.first is None else self.first + values.sum(1)
        self.count += values.shape[1]

    def covariances(self, name: str) -> tuple[NDArray[np.float64], ...]:
        """Return the covariance matrices of WIDE channels after another."""
        assert self.first is not None
        means = torch.split(self.first / self.count, WIDE)
        pairs = zip(means, self.second, strict=True)
        return tuple(_finite(name, _numbers(product / self.count - mean[:, None] * mean)) for mean, product in pairs)


def _correlation(network: _Network, batches: Iterable[Any]) -> dict[str, Score]:
    weights = network.squared()
    axes = {layer.name: network.features[layer.feature].axis for layer in network.layers}
    moments = {name: _Moments() for name in weights if name in network.sources}

    def watch(name: str, value: Tensor) -> Tensor:
        if name in moments:
            moments[name].see(value.detach().movedim(axes[name], 0).flatten(1))
        return value

    run, seen = network.runner(watch), 0
    for batch in shown(batches, "scoring", "batches"):
        inputs, _ = divided(batch, network.inputs, "batches")
        with torch.no_grad(), reported(seen, "batches", "the model"):
            run(*inputs)
        seen += 1
    _refuse_none(seen)
    made: dict[str, Score] = {layer.name: ByChannel(np.ones(layer.in_channels)) for layer in network.all_layers}
    for name, moment in moments.items():
        covariances = moment.covariances(name)
        if moment.count < ENOUGH * max(map(len, covariances)):
            _log.warning("score='correlation' has seen %d values of each input of %s; give more batches", moment.count, name)
        variances = np.concatenate([np.diag(covariance) for covariance in covariances])
        mean = float((variances * _finite(name, weights[name])).mean())
        if mean > 0:
            made[name] = Unexplained(weights[name], covariances, 1 / mean)
    return made


def _shape(node: fx.Node) -> tuple[int, ...]:
    spec = spec_of(node)
    return () if spec is None else spec.shape


def _numbers(values: Tensor) -> NDArray[np.float64]:
    made: NDArray[np.float64] = values.double().cpu().numpy()
    return made


def _by_mean(scores: Numbers, network: _Network) -> dict[str, Score]:
    """Divide by each layer's mean; a layer without scores gets 1."""
    made = {layer.name: np.ones(layer.in_channels) for layer in network.all_layers}
    for name, values in scores.items():
        mean = float(_finite(name, values).mean())
        made[name] = values / mean if mean > 0 else made[name]
    return {name: ByChannel(values) for name, values in made.items()}


def _finite(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise SwnetError(
            f"{name} cannot be scored: its weights, what it reads or the loss are not finite. Mend the model or batches."
        )
    return values


def _refuse_none(seen: int) -> None:
    if not seen:
        raise SwnetError("batches= holds no batch. Give an iterable of inputs and targets, such as a DataLoader.")
