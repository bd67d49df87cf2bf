"""From a user's module to a pure fx graph and its layer graph."""

from __future__ import annotations

import difflib
import keyword
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swcompile.collector import collector_paused
from swcompile.errors import SwnetError, shown
from swcompile.graph import LayerGraph
from swcompile.trace.attributes import caches
from swcompile.trace.capture import Capture, Island, Steps, Subject, capture, tidy
from swcompile.trace.copies import copy_model, refuse_strange, skeleton
from swcompile.trace.coupling import couple
from swcompile.trace.extract import extract
from swcompile.trace.layers import LAYER_TYPES
from swcompile.trace.lines import is_by_user, line_of
from swcompile.trace.purify import purify
from swcompile.trace.shapes import (
    Autocast,
    Example,
    describe_inputs,
    infer_example,
    is_observed,
    propagate,
    propagate_elsewhere,
    quiet,
)
from swcompile.trace.valued import reason_of

__all__ = ["Example", "Island", "Steps", "Traced", "coupled", "describe_inputs", "layer_graph", "trace", "trace_structure"]


@dataclass
class Traced:
    """A pure copy of a model, its graphs, and the layer graph that plans refer to.

    `graph` describes `train_graph`. Where eval mode runs other code, `eval_graph` is not None, `eval_layers` describes it, and
    `eval_names` translates the fx node names of features, chains and layers. `example` holds the shapes that were traced,
    `inferred` whether we chose them. `in_place` are the paths of modules that worked in place in the original; `steps` says what
    tracing had to do, and `unreached` pairs layers that lie inside a module that stayed one call, or that forward does not call,
    with that reason. What goes together where channels go, `graph` says only once `coupled` has looked.
    """

    root: nn.Module
    train_graph: fx.Graph
    eval_graph: fx.Graph | None
    graph: LayerGraph
    eval_names: dict[str, str]
    example: Example
    inferred: bool
    in_place: frozenset[str] = frozenset()
    steps: Steps = field(default_factory=Steps)
    unreached: tuple[tuple[str, str], ...] = ()
    leaves: frozenset[str] = frozenset()
    eval_layers: LayerGraph | None = None

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graph for train mode, and the one for eval mode where it differs."""
        return (self.train_graph,) if self.eval_graph is None else (self.train_graph, self.eval_graph)


@collector_paused()
def trace(model: nn.Module, example_inputs: object = None, leaves: Iterable[str] = ()) -> Traced:
    """Copy and trace a model; the argument, its mode, its buffers and the random state stay untouched.

    `leaves` are paths of modules that stay as they are. Raises SwnetError where the model cannot be copied or traced, or the
    inputs do not fit.
    """
    with _bounded(model), _answering(model), caches():
        example = _example(model, example_inputs)
        mode, root = FakeTensorMode(allow_non_fake_inputs=True), copy_model(model)
        return _trace(Subject(root, skeleton(root, mode), mode, example, _paths(model, leaves)), example_inputs is None)


@collector_paused()
def trace_structure(model: nn.Module, example_inputs: object = None, leaves: Iterable[str] = ()) -> Traced:
    """Trace a model without its weights: works on `meta`, and at no memory. For analysis and planning only."""
    with _bounded(model), _answering(model), caches():
        example = _example(model, example_inputs)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        root = skeleton(model, mode)  # not the one that is run, for a forward may hang hooks on what is traced
        return _trace(Subject(root, skeleton(root, mode), mode, example, _paths(model, leaves)), example_inputs is None)


@collector_paused()
def coupled(traced: Traced) -> Traced:
    """Return the same with what goes together where layers lose output channels: for whoever prunes."""
    modes = [(traced.train_graph, traced.graph)]
    if traced.eval_graph is not None:
        assert traced.eval_layers is not None
        modes.append((traced.eval_graph, traced.eval_layers))
    return replace(traced, graph=couple(traced.graph, traced.root, modes, traced.eval_names))


@contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """Turn what the model's own code raises when it is asked something (its parameters, a copy) into a SwnetError."""
    try:
        refuse_strange(model)
        with quiet():
            yield
    except (SwnetError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not is_by_user(error):  # SystemExit and the like are never ours
            raise
        raise SwnetError(
            f"{type(model).__name__} cannot be traced: its own code raised {reason_of(error)} (at "
            f"{line_of(error) or 'an unknown line'}). Let it run without that, or give the part that does."
        ) from error


@contextmanager
def _bounded(model: nn.Module) -> Iterator[None]:
    """Say what to do where Python's stack is too short, which copying and tracing use more of than a forward does."""
    try:
        yield
    except (RecursionError, SwnetError) as error:
        if not isinstance(error, RecursionError) and not isinstance(error.__cause__, RecursionError):
            raise
        raise SwnetError(
            f"The modules of {type(model).__name__} are nested too deeply for Python's stack of {sys.getrecursionlimit():,} "
            f"frames. Allow more, sys.setrecursionlimit({10 * sys.getrecursionlimit()}), or nest them less."
        ) from error


def _example(model: nn.Module, example_inputs: object) -> Example:
    return infer_example(model) if example_inputs is None else describe_inputs(example_inputs)


def _paths(model: nn.Module, leaves: Iterable[str]) -> frozenset[str]:
    """Check that leaves are named as the model names them."""
    wanted, known = frozenset(leaves), {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    for name in sorted(wanted - known):
        close = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "model.named_modules() lists them."
        raise SwnetError(f"leaf_modules names {name!r}, but {type(model).__name__} has no such module; {hint}")
    return wanted


def _trace(subject: Subject, inferred: bool) -> Traced:
    captured = capture(subject)
    _refuse_unspellable(captured)
    root, bare, example, mode = subject.root, subject.bare, subject.example, subject.mode
    in_place = _purify(captured, bare)
    graph = _layer_graph(captured.train_graph, root, bare, example, mode)
    names: dict[str, str] = {}
    eval_layers = None
    if captured.eval_graph is not None:
        eval_layers = _layer_graph(captured.eval_graph, root, bare, example, mode)
        graph, names = _match_modes(graph, eval_layers)
    unreached = tuple(_unreached(captured))
    return Traced(
        root,
        captured.train_graph,
        captured.eval_graph,
        graph,
        names,
        example,
        inferred,
        in_place,
        captured.steps,
        unreached,
        subject.leaves,
        eval_layers,
    )


def _refuse_unspellable(captured: Capture) -> None:
    """Raise SwnetError where torch.fx could not write down what a graph calls: it writes names into code as they are."""
    for graph in filter(None, (captured.train_graph, captured.eval_graph)):
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr") and any(map(_is_unspellable, str(node.target).split("."))):
                raise SwnetError(
                    f"A part of the model is called {shown(node.target)}, which torch.fx cannot write into code: a name in it is a "
                    "word of Python's own, or has quotes, backslashes or line breaks. Give it another name."
                )


def _is_unspellable(name: str) -> bool:
    return keyword.iskeyword(name) or bool(set(name) & set('"\\\n\r'))


def _unreached(captured: Capture) -> Iterator[tuple[str, str]]:
    """Yield the modules that are layers but no nodes of a graph, and why."""
    graphs = [graph for graph in (captured.train_graph, captured.eval_graph) if graph is not None]
    called = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"}
    read = {str(node.target).rpartition(".")[0] for graph in graphs for node in graph.nodes if node.op == "get_attr"}
    islands = {island.path: island for island in captured.steps.islands}
    for path, module in captured.root.named_modules():
        if not isinstance(module, LAYER_TYPES) or path in called or path in read:
            continue
        above = next((place for place in _above(path) if place in called), None)
        if above is None:
            yield path, "forward does not call it"
        else:
            island = islands.get(above)
            why = f": {island.reason}" + (f" ({island.where})" if island.where else "") if island is not None else ""
            yield path, f"inside {above} ({type(captured.root.get_submodule(above)).__name__}), which stays one call{why}"


def _above(path: str) -> Iterator[str]:
    """Yield the paths of the modules that hold the one at `path`, from the inside out."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _purify(captured: Capture, bare: nn.Module) -> frozenset[str]:
    """Make the captured graphs pure, by what their runs showed of shared memory."""
    graphs = [graph for graph in (captured.train_graph, captured.eval_graph) if graph is not None]
    in_place = purify(captured.root, graphs)
    for path in in_place:
        bare.get_submodule(path).inplace = False  # type: ignore[assignment]  # a plain attribute
    for graph in graphs:
        tidy(graph)
    return in_place


def layer_graph(graph: fx.Graph, root: nn.Module, example: Example, like: LayerGraph | None = None) -> LayerGraph:
    """Write shapes into a graph and read its layers and features off it; nothing is computed.

    `like` is the layer graph before rewriting.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return _layer_graph(graph, root, skeleton(root, mode), example, mode, like)


def shaped(graph: fx.Graph, root: nn.Module, example: Example, autocast: Autocast | None = None) -> None:
    """Write shapes into a graph, with the dtypes that values have under autocast, or without; nothing is computed.

    Each type of device has operations of its own that autocast leaves in full precision, so the fake tensors are on one of it.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    kind, dtype = autocast or ("cpu", None)
    with torch.device(kind), torch.autocast(kind, dtype, enabled=autocast is not None, cache_enabled=False):
        propagate(graph, skeleton(root, mode, kind), example, mode)


def _layer_graph(
    graph: fx.Graph, root: nn.Module, bare: nn.Module, example: Example, mode: FakeTensorMode, like: LayerGraph | None = None
) -> LayerGraph:
    if like is not None or not is_observed(graph):
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
