"""Capture a model's forward as fx graphs: one for train mode, and one for eval mode where it differs.

Three steps, each tried only where the one before fails: plain fx; proxies that carry fake tensors; and, with these, leaf islands.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from swcompile.errors import SwnetError
from swcompile.trace.attributes import Buffers, attributes, caches, changed, held
from swcompile.trace.batch import free_batch, marked
from swcompile.trace.copies import set_mode
from swcompile.trace.interpret import map_in
from swcompile.trace.lines import line_of
from swcompile.trace.purify import WRITES, named_in_place
from swcompile.trace.random_state import random_state
from swcompile.trace.shapes import (
    Example,
    Spec,
    arguments,
    check_arity,
    fakes,
    fixed_sizes,
    merge_memory,
    observe,
    quiet,
    shapes_of,
)
from swcompile.trace.tracer import LayerTracer, UntraceableError
from swcompile.trace.valued import ValuedTensor, ValuedTracer, by_values, reason_of

UNREAD = "swcompile_unread"
"""The key in `node.meta` of calls whose result the user's own code ignores: they may count something, and stay."""


@dataclass(frozen=True)
class Island:
    """A module with layers inside that stays one opaque call, why, and the line that decided it."""

    path: str
    reason: str
    where: str


@dataclass(frozen=True)
class Steps:
    """What tracing did: "plain" fx or "values" (proxies that carry fake tensors), why plain fx was not enough, the islands left.

    `fixed` are the sizes of the input that the result cannot change, though the model can. `assigned` are attributes that forward
    gives other values and that are no tensors of the state: the result does not.
    """

    step: str = "plain"
    why: str = ""
    where: str = ""
    islands: tuple[Island, ...] = ()
    fixed: tuple[str, ...] = ()
    assigned: tuple[str, ...] = ()

    @property
    def about_assigned(self) -> str:
        """What a user should know of `assigned`."""
        return (
            f"forward assigns {', '.join(self.assigned[:8])}: the result computes what the traced call did, and assigns none of it "
            "(keep such state in buffers, or name the module in leaf_modules)"
        )


@dataclass
class Capture:
    """A copy of the user's model with its graphs. `eval_graph` is None where both modes run the same code."""

    root: nn.Module
    train_graph: fx.Graph
    eval_graph: fx.Graph | None
    steps: Steps


@dataclass(frozen=True)
class Subject:
    """What is to be traced: a module that is ours to change, its twin of fake tensors, and the inputs.

    `leaves` are the paths of modules to leave alone.
    """

    root: nn.Module
    bare: nn.Module
    mode: FakeTensorMode
    example: Example
    leaves: frozenset[str] = frozenset()

    def train(self, training: bool) -> None:
        for module in (self.root, self.bare):
            set_mode(module, training)


def capture(subject: Subject) -> Capture:
    """Trace in train and in eval mode. The graphs are as the user wrote them, not yet pure, and show what a run in
    their mode shows of shapes and shared memory.

    fx bakes `self.training` into its graphs: functional dropout, stochastic depth and auxiliary heads would stay in the mode of
    the trace. So both are traced, and only models whose code is the same in both get by with one graph.
    """
    root = subject.root
    modes = [(module, module.training) for top in (root, subject.bare) for module in top.modules()]
    try:
        subject.train(True)
        train_graph, train_constants, steps = _trace(subject)
        subject.train(False)
        eval_graph, eval_constants, eval_steps = _trace(subject)
        same = _code(train_graph) == _code(eval_graph) and _equal(train_constants, eval_constants)
        _register(subject, train_graph, train_constants)
        if same:
            merge_memory(train_graph, eval_graph)
        else:
            _register(subject, eval_graph, _renamed(eval_graph, eval_constants, train_constants))
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
    return Capture(root, train_graph, None if same else eval_graph, _both(steps, eval_steps))


def _both(train: Steps, evaluation: Steps) -> Steps:
    """Return what tracing did in either mode."""
    further = evaluation if train.step == "plain" else train
    islands = {island.path: island for island in (*evaluation.islands, *train.islands)}
    fixed = tuple(sorted({*train.fixed, *evaluation.fixed}))
    assigned = tuple(sorted({*train.assigned, *evaluation.assigned}))
    return Steps(further.step, further.why, further.where, tuple(islands.values()), fixed, assigned)


Constants = dict[str, torch.Tensor]
_Found = tuple[fx.Graph, Constants, Steps]


def _trace(subject: Subject) -> _Found:
    """Return the graph of the present mode, the tensors that forward made without looking at its input, and what tracing did."""
    root = subject.root
    fixed = _fixed_arguments(root, subject.example)
    decide = {name: value for name, value in fixed.items() if value is None or isinstance(value, bool)}
    try:
        found = _attempt(subject, LayerTracer(root, decide, subject.leaves, len(subject.example)), Steps())
        check_arity(found[0], subject.example)
        _observe(subject, found)
        return found
    except SwnetError:
        raise
    except Exception as error:
        first = Steps("values", reason_of(error), line_of(error))
    try:
        found = _with_values(subject, fixed, first)
    except Exception as error:
        raise SwnetError(_why_untraceable(root, subject.example, error)) from error
    with suppress(Exception):  # the run that follows on the purified graph reports it
        _observe(subject, found)
    return found


def _observe(subject: Subject, found: _Found) -> None:
    """Run a graph once: fx follows a `try` whose body fails in earnest, and takes any buffer for any other."""
    graph, constants, _ = found
    with attributes(subject.bare):
        subject.bare.__dict__.update(constants)
        observe(graph, subject.bare, subject.example, subject.mode)


def _why_untraceable(root: nn.Module, example: Example, error: Exception) -> str:
    name, reason, where = type(root).__name__, reason_of(error), line_of(error)
    where = f" (at {where})" if where else ""
    if isinstance(error, UntraceableError) and error.remedy:
        return f"{name} cannot be traced: {reason}{where}. {error.remedy}"
    if by_values(error):
        return (
            f"{name} cannot be traced: {reason}{where}. Its forward must not decide by the values of its input; move that line "
            "into a submodule, which then stays as it is, or give the part that can be traced."
        )
    return (
        f"The inputs ({shapes_of(example)}) do not fit {name}: {reason}{where}. Pass example_inputs (or --input 1x3x224x224) of "
        "the shape that the model takes; where it takes these, move that line into a submodule, which then stays as it is."
    )


def _with_values(subject: Subject, fixed: Mapping[str, Any], steps: Steps) -> _Found:
    """Trace with values, and free the graph from the example's batch size where Python has made it a number."""

    def attempt(example: Example) -> _Found:
        inputs = fakes(example, subject.mode)
        with caches():
            return _attempt(subject, ValuedTracer(subject.root, subject.bare, inputs, subject.mode, fixed, subject.leaves), steps)

    found = attempt(subject.example)
    sizes = _fixed(subject, found)
    names = [argument.name for argument in arguments(subject.root)]
    source = next((name for name, value in zip(names, subject.example, strict=False) if isinstance(value, Spec)), None)
    if "batch size" in sizes and source is not None:
        with suppress(Exception):  # a model that takes no other batch, or that loops over it: then it stays as it is
            freed = attempt(map_in(subject.example, Spec, marked))
            free_batch(freed[0], source)
            left = _fixed(subject, freed)
            if "batch size" not in left:
                found, sizes = freed, left
    return found[0], found[1], replace(found[2], fixed=sizes)


def _fixed(subject: Subject, found: _Found) -> tuple[str, ...]:
    graph, constants, _ = found
    with attributes(subject.bare), caches():
        subject.bare.__dict__.update(constants)
        return fixed_sizes(graph, subject.bare, subject.example, subject.mode)


def _attempt(subject: Subject, tracer: LayerTracer, steps: Steps) -> _Found:
    root = subject.root
    had = set(root.__dict__)
    before = held(root)
    with attributes(root) as buffers, quiet():
        with random_state() as drawn:
            graph = tracer.trace(root)
            if drawn():
                raise UntraceableError("it draws random numbers that do not depend on its input, which tracing would freeze")
        _write_back(root, graph, buffers)
        fresh = [name for name in root.__dict__ if name not in had and isinstance(root.__dict__[name], torch.Tensor)]
        constants = {name: root.__dict__[name] for name in fresh}
        assigned = tuple(path for path in changed(root, before) if path not in constants)
        if any(isinstance(constant, FakeTensor) for constant in constants.values()):
            raise UntraceableError(
                "it reads what a hook kept of another module; remove the hooks, or give a model that has not run"
            )
    islands = tuple(Island(path, *why) for path, why in tracer.opaque.items())
    return graph, constants, replace(steps, islands=islands, assigned=assigned)


def _write_back(root: nn.Module, graph: fx.Graph, buffers: Buffers) -> None:
    """Turn what forward assigned to buffers into writes.

    self.n = self.n + 1 leaves a proxy where the buffer was, and would count no further; it becomes self.n.copy_(self.n + 1). A
    buffer that gets another shape holds what was computed of the input's sizes, and the graph computes that anew.
    """
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    for path, module in root.named_modules():
        for name in buffers.get(module, ()):
            value, full = module._buffers.get(name), f"{path}.{name}".lstrip(".")
            if isinstance(value, ValuedTensor) and value.value.shape != getattr(buffers[module][name], "shape", None):
                continue
            if isinstance(value, fx.Proxy) and not value.node._erased and not _writes_to(value.node, full):
                with graph.inserting_before(output):
                    graph.call_method("copy_", (graph.get_attr(full), value.node))


def _writes_to(node: fx.Node, path: str) -> bool:
    """Whether a node's result is the buffer at `path` itself, written in place."""
    while node.op != "get_attr" and node.args and isinstance(node.args[0], fx.Node) and named_in_place(node):
        node = node.args[0]
    return node.op == "get_attr" and node.target == path


def _fixed_arguments(root: nn.Module, example: Example) -> dict[str, Any]:
    """Return the arguments that are no tensors: those that the example leaves out, with their defaults, and None and bool in it."""
    places = arguments(root)
    named = [place for place in places if place.kind in (place.POSITIONAL_ONLY, place.POSITIONAL_OR_KEYWORD, place.KEYWORD_ONLY)]
    given = {
        place.name: value
        for place, value in zip(named, example, strict=False)
        if place.kind is not place.KEYWORD_ONLY and (value is None or isinstance(value, bool))
    }
    return given | {place.name: place.default for place in named[len(example) :] if place.default is not place.empty}


def _code(graph: fx.Graph) -> str:
    return graph.python_code("self").src


def _equal(left: Constants, right: Constants) -> bool:
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and (left[name].device.type == "meta" or bool(torch.equal(left[name], right[name])))
        for name in left
    )


def _renamed(graph: fx.Graph, constants: Constants, taken: Constants) -> Constants:
    """Give the constants of one graph names that another does not use: fx numbers both from 0."""
    names = {name: f"{name}_eval" for name in constants if name in taken}
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names.get(str(node.target), node.target)
    return {names.get(name, name): value for name, value in constants.items()}


def _register(subject: Subject, graph: fx.Graph, constants: Constants) -> None:
    """Make tensors that are neither parameters nor buffers into buffers, so that they move with the model; they are not saved."""
    for module in (subject.root, subject.bare):
        module.__dict__.update(constants)
    root = subject.root
    for node in graph.nodes:
        path, _, name = str(node.target).rpartition(".")
        owner = root.get_submodule(path) if node.op == "get_attr" else None
        if owner is not None and isinstance(owner.__dict__.get(name), torch.Tensor):
            owner.register_buffer(name, owner.__dict__.pop(name), persistent=False)


def tidy(graph: fx.Graph) -> None:
    """Drop what does nothing, and mark what the user's own code ignores."""
    graph.eliminate_dead_code(is_impure_node=_keeps)
    for node in graph.nodes:
        if not node.users:
            node.meta[UNREAD] = True
    graph.lint()


def _keeps(node: fx.Node) -> bool:
    """Keep calls of modules and whatever fx calls impure: a module nobody reads may still count something."""
    return node.op in ("call_module", "placeholder", "output") or WRITES in node.meta or bool(node.is_impure())
