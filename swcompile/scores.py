"""Score what each layer reads, on a trained network: which input channels it could best do without.

    weight        |W[:, c]|^2, the squared norm of the weights that read channel c
    norm          the same, times the variance that the norm in front gives the channel: its scale (gamma) squared
    taylor        (sum of gradient * weight over W[:, c])^2, averaged over batches: how the loss would change without them
                  (Molchanov et al., arXiv 1906.10771, equation 8)
    correlation   |W[:, c]|^2 times the variance of channel c that the channels which stay do not explain: of two maps that are
                  nearly the same, one is redundant (the error of the least useful input in Hassibi and Stork's Optimal Brain
                  Surgeon, on the layer's output)

Each is an array with a number per input channel of each layer, the higher the more needed. All but `taylor` are divided by the
layer's mean, so that layers compare; what `taylor` gives is a change of the loss everywhere. A layer that eval mode does not run
gets 1, or 0 by `taylor`: the loss does not depend on it. Computed in eval mode: dropout is off, norms keep their statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from swcompile.batches import divided, evaluating, shown
from swcompile.errors import SwnetError, first_line
from swcompile.graph import Layer, LayerGraph
from swcompile.trace import Traced, rules
from swcompile.trace.layers import layer_call
from swcompile.trace.names import name_of
from swcompile.trace.shapes import spec_of

Scores = dict[str, NDArray[np.float64]]
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
RIDGE = 1e-6
"""Added to each channel's variance, in units of the mean one: channels that are always zero have none of their own."""


def refuse_unfit(how: str, given: Mapping[str, object]) -> None:
    """Raise SwnetError where a score lacks something of `batches` and `loss_fn`, or was given what it has no use for."""
    for name, value in given.items():
        users = " or ".join(f"score={one!r}" for one, needed in NEEDS.items() if name in needed)
        if value is None and name in NEEDS[how]:
            raise SwnetError(f"score={how!r} needs {name}=, {_WHAT[name]}.")
        if value is not None and name not in NEEDS[how]:
            raise SwnetError(f"{name}= was given, which score={how!r} has no use for. Leave it out, or take {users}.")


def score(traced: Traced, how: str, batches: Iterable[Any] | None = None, loss_fn: Loss | None = None) -> Scores:
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
    network = _Network(traced)
    with evaluating(traced.root):
        if how == "taylor":
            assert batches is not None
            assert loss_fn is not None
            return _taylor(network, batches, loss_fn)
        if how == "correlation":
            assert batches is not None
            return _by_mean(_correlation(network, batches), network)
        return _by_mean(_norm(network) if how == "norm" else network.squared(), network)


class _Network:
    """What eval mode runs, with the layers in it."""

    def __init__(self, traced: Traced) -> None:
        self.root, self.inputs, self.all_layers = traced.root, len(traced.example), traced.graph.layers
        self.graph: fx.Graph = traced.graphs[-1]
        layers: LayerGraph = traced.eval_layers if traced.eval_layers is not None else traced.graph
        self.layers, self.features = layers.layers, layers.feature_by_name
        modules, nodes = dict(traced.root.named_modules()), {node.name: node for node in self.graph.nodes}
        calls = {layer.name: layer_call(nodes[layer.node], modules, _shape) for layer in self.layers}
        self.sources = {name: call.source for name, call in calls.items() if call is not None}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The weight of each layer whose weight is a parameter, and not computed from one."""
        parameters = dict(self.root.named_parameters(remove_duplicate=False))
        return {layer.name: parameters[layer.weight] for layer in self.layers if layer.weight in parameters}

    def squared(self) -> Scores:
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


def _norm(network: _Network) -> Scores:
    modules = dict(network.root.named_modules())
    scales: dict[fx.Node, Tensor] = {}
    for node in network.graph.nodes:
        found = _scale(node, modules, scales)
        if found is not None:
            scales[node] = found
    made = network.squared()
    for layer in network.layers:
        source = network.sources.get(layer.name)
        if layer.name in made and source in scales and len(scales[source]) == layer.in_channels:
            made[layer.name] *= _numbers(scales[source]) ** 2
    return made


def _scale(node: fx.Node, modules: Mapping[str, nn.Module], scales: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """Return the scale that norms gave each channel of a value, or None where it has passed none.

    Variances add up in a sum; a map beside normed ones in a concatenation counts 1.
    """
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    gamma = getattr(module, "weight", None)
    if isinstance(module, rules.NORM_MODULES) and isinstance(gamma, Tensor) and gamma.dim() == 1:
        return gamma.detach().abs().double()
    rule, source = rules.rule_of(node) if module is None else rules.module_rule(module), rules.source(node)
    if rule is rules.concatenated:
        parts, axis = rules.joined(node)
        if not any(part in scales for part in parts):
            return None
        return torch.cat([scales.get(part, torch.ones(_shape(part)[axis], dtype=torch.float64)).cpu() for part in parts])
    if name_of(node.target) in ("add", "iadd"):
        found = [scales[part] for part in node.all_input_nodes if part in scales]
        alike = len({len(part) for part in found}) == 1
        return torch.stack([part.cpu().square() for part in found]).sum(0).sqrt() if alike else None
    if not isinstance(source, fx.Node) or source not in scales:
        return None
    scale, old, new = scales[source], _shape(source), _shape(node)
    if rule is rules.reshaped and len(new) == 2 and len(old) > 2 and old[1] == len(scale):
        return scale.repeat_interleave(max(new[1] // len(scale), 1))
    return scale if rule is rules.same or name_of(node.target) == "mean" else None


def _taylor(network: _Network, batches: Iterable[Any], loss_fn: Loss) -> Scores:
    weights, layers = network.weights, {layer.name: layer for layer in network.layers}
    total = {name: torch.zeros(layers[name].in_channels, dtype=torch.float64) for name in weights}
    run, seen = network.runner(), 0
    with _learning(weights.values()):
        for batch in shown(batches, "scoring"):
            inputs, rest = divided(batch, network.inputs, "batches")
            try:
                loss = loss_fn(run(*inputs), *rest)
            except TypeError as error:
                raise SwnetError(
                    f"loss_fn could not be called with the model's output and {len(rest)} more values of a batch "
                    f"({first_line(error)}). Give batches of {network.inputs} inputs and what loss_fn takes besides."
                ) from error
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise SwnetError("loss_fn did not return a single number. Let it average over the batch.")
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    moved = per_channel(layers[name], gradient.detach().double() * weight.detach().double())
                    total[name] += moved.square().cpu()
            seen += 1
    _refuse_none(seen)
    made = {layer.name: np.zeros(layer.in_channels) for layer in network.all_layers}
    return made | {name: _numbers(sums / seen) for name, sums in total.items()}


@dataclass
class _Moments:
    """Sums over what a layer reads, channel by channel: of the values, and of the products of any two."""

    count: int = 0
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: list[Tensor] = field(default_factory=list)

    def see(self, values: Tensor) -> None:
        """Take up values (channels, places)."""
        parts = torch.split(values, WIDE)
        products = [(part @ part.T).double() for part in parts]
        self.second = products if not self.count else [old + new for old, new in zip(self.second, products, strict=True)]
        self.first = self.first + values.double().sum(1)
        self.count += values.shape[1]

    def covariances(self) -> Iterator[NDArray[np.float64]]:
        """Yield the covariance matrices of WIDE channels after another."""
        for mean, product in zip(torch.split(self.first / self.count, WIDE), self.second, strict=True):
            yield _numbers(product / self.count - mean[:, None] * mean)


def _correlation(network: _Network, batches: Iterable[Any]) -> Scores:
    made = network.squared()
    axes = {layer.name: network.features[layer.feature].axis for layer in network.layers}
    moments = {name: _Moments() for name in made if name in network.sources}

    def watch(name: str, value: Tensor) -> Tensor:
        if name in moments:
            moments[name].see(value.detach().float().movedim(axes[name], 0).flatten(1))
        return value

    run, seen = network.runner(watch), 0
    with torch.no_grad():
        for batch in shown(batches, "scoring"):
            run(*divided(batch, network.inputs, "batches")[0])
            seen += 1
    _refuse_none(seen)
    for name, moment in moments.items():
        place = 0
        for covariance in moment.covariances():
            part = slice(place, place + len(covariance))
            made[name][part] = unexplained(covariance, made[name][part])
            place += len(covariance)
    return made


def unexplained(covariance: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Score channels by weight times the variance that those with higher scores do not explain.

    Channels go one by one, each time the one that costs least; what it costs then is its score, at least that of the one before.

    >>> copies = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> unexplained(copies, np.ones(3)).round(3)
    array([0., 1., 1.])
    """
    size = len(covariance)
    made, least = np.zeros(size), 0.0
    mean = float(np.trace(covariance)) / size
    if mean <= 0:
        return made
    inverse = np.linalg.inv(covariance + RIDGE * mean * np.eye(size))
    left = np.ones(size, np.bool_)
    for _ in range(size):
        cost = np.where(left, weight / np.maximum(np.diag(inverse), 1e-300), np.inf)
        chosen = int(cost.argmin())
        least = made[chosen] = max(least, float(cost[chosen]))
        left[chosen] = False
        column = inverse[:, chosen].copy()
        inverse -= np.outer(column, column / column[chosen])  # the inverse for those that are left; 0 elsewhere
    return made


def _shape(node: fx.Node) -> tuple[int, ...]:
    spec = spec_of(node)
    return () if spec is None else spec.shape


def _numbers(values: Tensor) -> NDArray[np.float64]:
    made: NDArray[np.float64] = values.double().cpu().numpy()
    return made


def _by_mean(scores: Scores, network: _Network) -> Scores:
    """Divide by each layer's mean; a layer without scores gets 1."""
    made = {layer.name: np.ones(layer.in_channels) for layer in network.all_layers}
    for name, values in scores.items():
        mean = float(values.mean())
        made[name] = values / mean if np.isfinite(mean) and mean > 0 else made[name]
    return made


@contextmanager
def _learning(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let frozen weights have gradients meanwhile."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _refuse_none(seen: int) -> None:
    if not seen:
        raise SwnetError("batches= holds no batch. Give an iterable of inputs and targets, such as a DataLoader.")
