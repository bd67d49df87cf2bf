"""From a user's module to a pure fx graph and its layer graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swcompile.graph import LayerGraph
from swcompile.trace.capture import Capture, capture, copy_model, skeleton, tidy
from swcompile.trace.extract import extract
from swcompile.trace.purify import purify
from swcompile.trace.shapes import Example, describe_inputs, infer_example, observe_memory, propagate, propagate_elsewhere

__all__ = ["Example", "Traced", "describe_inputs", "layer_graph", "trace", "trace_structure"]


@dataclass
class Traced:
    """A pure copy of a model, its graphs, and the layer graph that plans refer to.

    `graph` describes `train_graph`. Where eval mode runs other code, `eval_graph` is not None and `eval_names` translates the
    fx node names of features, chains and layers. `example` holds the shapes that were traced, `inferred` whether we chose them.
    `in_place` are the paths of modules that worked in place in the original.
    """

    root: nn.Module
    train_graph: fx.Graph
    eval_graph: fx.Graph | None
    graph: LayerGraph
    eval_names: dict[str, str]
    example: Example
    inferred: bool
    in_place: frozenset[str] = frozenset()

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graph for train mode, and the one for eval mode where it differs."""
        return (self.train_graph,) if self.eval_graph is None else (self.train_graph, self.eval_graph)


def trace(model: nn.Module, example_inputs: object = None) -> Traced:
    """Copy and trace a model; the argument, its mode, its buffers and the random state stay untouched.

    Raises SwnetError where the model cannot be copied or traced, or the inputs do not fit.
    """
    example = _example(model, example_inputs)
    return _trace(copy_model(model), example, example_inputs is None, None)


def trace_structure(model: nn.Module, example_inputs: object = None) -> Traced:
    """Trace a model without its weights: works on `meta`, and at no memory. For analysis and planning only."""
    example = _example(model, example_inputs)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    root = skeleton(model, mode)
    with mode:
        return _trace(root, example, example_inputs is None, mode)


def _example(model: nn.Module, example_inputs: object) -> Example:
    return infer_example(model) if example_inputs is None else describe_inputs(example_inputs)


def _trace(root: nn.Module, example: Example, inferred: bool, mode: FakeTensorMode | None) -> Traced:
    """Capture `root`, which is ours to change; its tensors are fake in `mode`, or real where it is None."""
    captured = capture(root, len(example))
    in_place = _purify(captured, example, mode)
    graph = layer_graph(captured.train_graph, root, example, mode)
    names: dict[str, str] = {}
    if captured.eval_graph is not None:
        graph, names = _match_modes(graph, layer_graph(captured.eval_graph, root, example, mode))
    return Traced(root, captured.train_graph, captured.eval_graph, graph, names, example, inferred, in_place)


def _purify(captured: Capture, example: Example, mode: FakeTensorMode | None) -> frozenset[str]:
    """Make the captured graphs pure, by what a run of each in its mode shows of shared memory."""
    root, both = captured.root, captured.eval_graph
    inside = mode if mode is not None else FakeTensorMode(allow_non_fake_inputs=True)
    bare = root if mode is not None else skeleton(root, inside)
    modes = {module: module.training for module in bare.modules()}
    observe_memory(captured.train_graph, bare.train(), example, inside)
    observe_memory(both if both is not None else captured.train_graph, bare.eval(), example, inside)
    for module, training in modes.items():
        module.training = training
    graphs = [captured.train_graph] if both is None else [captured.train_graph, both]
    in_place = purify(root, graphs)
    for graph in graphs:
        tidy(graph)
    return in_place


def layer_graph(
    graph: fx.Graph, root: nn.Module, example: Example, mode: FakeTensorMode | None = None, like: LayerGraph | None = None
) -> LayerGraph:
    """Write shapes into a graph and read its layers and features off it; nothing is computed.

    `mode` is the one in which the tensors of `root` are fake, None where they are real; `like` the graph before rewriting.
    """
    if mode is None:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        bare = skeleton(root, mode)
    else:
        bare = root
    propagate(graph, bare, example, mode)
    if like is None:
        propagate_elsewhere(graph, bare, example, mode)
    return extract(graph, root, type(root).__name__, like)


def _match_modes(train: LayerGraph, evaluation: LayerGraph) -> tuple[LayerGraph, dict[str, str]]:
    """Find the eval-mode counterpart of each feature, chain and layer by the layer that reads it.

    A layer that eval mode does not run (an auxiliary head) is marked, and so are features that only such layers read. A layer
    that reads something else in eval mode is refused.
    """
    names: dict[str, str] = {}
    layers = []
    for layer in train.layers:
        other = evaluation.layer_by_name.get(layer.name)
        if other is None:
            layers.append(replace(layer, train_only=True))
            continue
        ours, theirs = (layer.feature, *layer.chain, layer.node), (other.feature, *other.chain, other.node)
        agrees = len(ours) == len(theirs) and all(names.get(a, b) == b for a, b in zip(ours, theirs, strict=True))
        if agrees and other.in_channels == layer.in_channels:
            names.update(zip(ours, theirs, strict=True))
            layers.append(layer)
        else:
            layers.append(replace(layer, refused=layer.refused or "it reads another value in eval mode than in train mode"))
    features = tuple(replace(feature, train_only=feature.name not in names) for feature in train.features)
    return replace(train, layers=tuple(layers), features=features), names
