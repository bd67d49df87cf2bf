"""Find the shape and dtype of every value without computing one: fake tensors, and example inputs inferred where none are given."""

from __future__ import annotations

import inspect
import logging
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from swcompile.errors import NothingToDoError, SwnetError, first_line
from swcompile.trace.copies import set_mode, skeleton
from swcompile.trace.interpret import map_in, run_module, tensors, thawed
from swcompile.trace.layers import LAYER_TYPES
from swcompile.trace.lines import WHERE
from swcompile.trace.memo import concatenated, divided
from swcompile.trace.purify import MEMORY, NARROWS, WRITTEN
from swcompile.trace.random_state import random_state

SHAPE = "swcompile_shape"
"""The key in `node.meta` of a value's (shape, dtype), or of a list of them."""
ELSEWHERE = "swcompile_shape_elsewhere"
"""The same at another image size than the example's, where the network runs there."""

IMAGE_SIZES = (32, 224, 64, 28, 96, 128, 256, 299, 512)
STRIDED_IMAGE_SIZES = (224, 299, 256, 128, 64, 32, 96, 512, 28)
"""For first layers with a stride: those networks were made for large images."""
SIGNAL_LENGTHS = (1024, 256, 4096, 16000, 64)
VOLUME_SIZES = ((16, 112, 112), (8, 64, 64), (16, 32, 32), (16, 224, 224), (32, 224, 224))
SMALLEST_MAP = 4
"""An inferred image is large enough when the last layers still see maps of this size, unless no size is."""
BATCH = 2
"""Batch norm in train mode refuses a batch of one value per channel, so examples have two."""


@dataclass(frozen=True)
class Spec:
    """The shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def fake(self) -> torch.Tensor:
        """Return a tensor of this kind under the fake mode in force."""
        return torch.empty(self.shape, dtype=self.dtype)

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) + (f":{str(self.dtype)[6:]}" if self.dtype != torch.float32 else "")


Example = tuple[Any, ...]
"""Example inputs in which every tensor is replaced by its Spec."""
Autocast = tuple[str, torch.dtype]
"""A state of torch.autocast: the type of the devices that it is on for, and the dtype that it computes in."""


def describe_inputs(inputs: object) -> Example:
    """Turn a user's example inputs (a tensor, or a tuple or list of arguments) into specs."""
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(map_in(argument, torch.Tensor, _spec) for argument in given)


def _spec(tensor: torch.Tensor) -> Spec:
    if tensor.is_nested:
        raise SwnetError(
            "An example input is a nested tensor, which has no shape to trace with; give a plain one, padded if need be."
        )
    return Spec(tuple(tensor.shape), tensor.dtype)


def shapes_of(example: Example) -> str:
    """Return an example as a user may read it; what is no tensor is cut short."""
    return ", ".join(str(item) if isinstance(item, Spec) else _brief(item) for item in example)


def _brief(item: Any) -> str:
    shown = map_in(item, Spec, lambda spec: _Shown(str(spec)))
    return textwrap.shorten(repr(shown), 80, placeholder="...")


class _Shown(str):
    """A shape inside a list or dictionary, shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def fakes(example: Example, mode: FakeTensorMode) -> tuple[Any, ...]:
    """Return fake inputs of an example's shapes."""
    with mode:
        return tuple(map_in(argument, Spec, Spec.fake) for argument in example)


def infer_example(model: nn.Module) -> Example:
    """Guess the input from the first layer by trying the usual sizes under fake tensors.

    The first size wins at which the forward succeeds and the deepest maps are at least SMALLEST_MAP wide: a ResNet made for 224
    also runs at 32, but its last stage would then see single pixels. The model is tried in train mode, where auxiliary heads ask
    for more than the rest. Raises SwnetError where no size works.
    """
    first = next((module for module in model.modules() if isinstance(module, (*LAYER_TYPES, nn.Embedding))), None)
    if first is None:
        raise NothingToDoError(f"{type(model).__name__} has no convolution, linear or embedding layer: there is nothing to rewire.")
    best: tuple[int, Example] | None = None
    needed = _required_arguments(model)
    if len(needed) != 1:
        raise SwnetError(
            f"{type(model).__name__} takes {len(needed)} inputs ({', '.join(needed)}), which cannot be inferred; pass "
            "example_inputs, a tuple with one example for each."
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copy = skeleton(model, mode)
    set_mode(copy, True)
    problem: Exception | None = None
    for example in _guesses(first):
        try:
            smallest = _smallest_map(copy, example, mode)
        except Exception as error:
            problem = error
            continue
        if smallest >= SMALLEST_MAP:
            return example
        if best is None or smallest > best[0]:
            best = (smallest, example)
    if best is None:
        assert problem is not None, "each kind of first layer has shapes to try"
        raise SwnetError(
            f"No input was given and none could be inferred for {type(model).__name__}: the usual shapes for its first layer, a "
            f"{type(first).__name__}, all fail (the last with {type(problem).__name__}: {first_line(problem)}). Pass "
            "example_inputs, or --input 1x3x224x224 on the command line."
        )
    return best[1]


def _required_arguments(model: nn.Module) -> list[str]:
    """Return the names of the inputs that a model's forward cannot do without; *args count as one."""
    places = arguments(model)
    needed = [place for place in places if place.default is place.empty and place.kind is not place.VAR_KEYWORD]
    return [place.name for place in needed] or [place.name for place in places[:1]]


def arguments(model: nn.Module) -> list[inspect.Parameter]:
    """Return what a model's forward takes. Raises SwnetError where it does not say."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError) as error:
        raise SwnetError(
            f"The forward of {type(model).__name__} does not say what it takes ({first_line(error)}). Write it as "
            "def forward(self, x)."
        ) from error


def _guesses(first: nn.Module) -> Iterator[Example]:
    if isinstance(first, nn.Embedding):
        yield (Spec((BATCH, 16), torch.int64),)
    elif isinstance(first, nn.Linear):
        dtype = first.weight.dtype
        yield (Spec((BATCH, first.in_features), dtype),)
        yield (Spec((BATCH, 16, first.in_features), dtype),)
        side = round(first.in_features**0.5)
        yield (Spec((BATCH, 1, side, side), dtype),)
        side = round((first.in_features / 3) ** 0.5)
        yield (Spec((BATCH, 3, side, side), dtype),)
    elif isinstance(first, nn.Conv1d | nn.ConvTranspose1d):
        yield from ((Spec((BATCH, first.in_channels, length), first.weight.dtype),) for length in SIGNAL_LENGTHS)
    elif isinstance(first, nn.Conv3d | nn.ConvTranspose3d):
        yield from ((Spec((BATCH, first.in_channels, *size), first.weight.dtype),) for size in VOLUME_SIZES)
    elif isinstance(first, nn.Conv2d | nn.ConvTranspose2d):
        sizes = STRIDED_IMAGE_SIZES if max(first.stride) > 1 else IMAGE_SIZES
        yield from ((Spec((BATCH, first.in_channels, size, size), first.weight.dtype),) for size in sizes)


def _smallest_map(model: nn.Module, example: Example, mode: FakeTensorMode) -> int:
    """Run the forward on fake tensors and return the smallest side of a map that a convolution reads."""
    sides: list[int] = [1 << 30]

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        size = inputs[0].shape[2:]
        if len(size) and max(module.kernel_size) > 1:  # type: ignore[arg-type]  # LAYER_TYPES but Linear have one
            sides.append(min(size))

    convolutions = [module for module in model.modules() if isinstance(module, LAYER_TYPES) and not isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(watch) for module in convolutions]
    try:
        with quiet(), mode, torch.no_grad():
            model(*fakes(example, mode))
    except (DataDependentOutputException, DynamicOutputShapeException):
        if len(sides) == 1:  # it decides by values before any layer has accepted the input
            raise
    finally:
        for handle in handles:
            handle.remove()
    return min(sides)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging a traceback for each operation that fails on fake tensors; the caller gets the exception."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


class _FakeRun(fx.Interpreter):
    """Run a graph on fake tensors as its generated code would run."""

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return {} if target.startswith("**") else super().placeholder(target, args, kwargs)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return thawed(args), thawed(kwargs)

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return getattr(self, n.op)(n.target, args, kwargs)  # fx would note the node for tracebacks, at a third of the time

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run_module(self.fetch_attr(target), args, kwargs)


class _ShapeProp(_FakeRun):
    """Note the shape and dtype of each value."""

    key = SHAPE

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = None
        if target in _KNOWN and not kwargs and not torch.is_autocast_enabled("cpu"):
            known = _KNOWN[target](*args)
        return super().call_function(target, args, kwargs) if known is None else known

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta[self.key] = map_in(result, torch.Tensor, lambda tensor: Spec(tuple(tensor.shape), tensor.dtype))
        return result


_KNOWN: dict[Any, Callable[..., Any]] = {torch.cat: concatenated, torch.split: divided}
"""What our own rewriting puts in, whose every call is another to torch's cache of fake results."""


class _Observation(_ShapeProp):
    """Note which storages each value lives in, and which inputs each call overwrites, besides its shape."""

    mode = "train"

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _FakeRun.call_function(self, target, args, kwargs)  # the pieces of a split share memory

    def run_node(self, n: fx.Node) -> Any:
        before = {source: _versions(self.env[source]) for source in n.all_input_nodes}
        result = super().run_node(n)
        n.meta[MEMORY] = frozenset((self.mode, tensor.untyped_storage()._cdata) for tensor in tensors(result))
        written = tuple(source for source, versions in before.items() if _versions(self.env[source]) != versions)
        if written:
            n.meta[WRITTEN] = written
            n.meta[NARROWS] = _narrows([self.env[source] for source in n.all_input_nodes])
        return result


def _narrows(operands: Sequence[Any]) -> bool:
    """Whether what is written keeps the dtype of the first operand where the same operation, pure, would give another."""
    floats = [one for one in tensors(list(operands)) if one.dim()]
    return len(floats) > 1 and torch.result_type(*floats[:2]) != floats[0].dtype


def _versions(value: Any) -> list[int]:
    return [tensor._version for tensor in tensors(value)]


def observe(graph: fx.Graph, root: nn.Module, example: Example, mode: FakeTensorMode) -> None:
    """Write into the nodes of a graph, as the user wrote it, their shapes, what shares memory with what, and who writes into it.

    Whatever its code raises comes through, and then nothing is written. The module's present mode counts: dropout is an alias in
    one of them.
    """
    try:
        with quiet(), random_state(), mode, torch.no_grad():
            run = _Observation(root, False, graph)
            run.mode = "train" if root.training else "eval"
            run.run(*fakes(example, mode))
    except Exception:
        _forget(graph)
        raise


def is_observed(graph: fx.Graph) -> bool:
    """Whether a run has shown the shape of every value."""
    return all(SHAPE in node.meta for node in graph.nodes)


def merge_memory(graph: fx.Graph, other: fx.Graph) -> None:
    """Add to what was observed of a graph what was observed of its twin, which has the same code, in the other mode."""
    if not (is_observed(graph) and is_observed(other)):
        _forget(graph)
        return
    twins = dict(zip(other.nodes, graph.nodes, strict=True))
    for theirs, ours in twins.items():
        ours.meta[MEMORY] |= theirs.meta[MEMORY]
        if WRITTEN in theirs.meta:
            written = (*ours.meta.get(WRITTEN, ()), *(twins[source] for source in theirs.meta[WRITTEN]))
            ours.meta[WRITTEN] = tuple(dict.fromkeys(written))
            ours.meta[NARROWS] = ours.meta.get(NARROWS, False) or theirs.meta[NARROWS]


def _forget(graph: fx.Graph) -> None:
    for node in graph.nodes:
        for key in (SHAPE, MEMORY, WRITTEN, NARROWS):
            node.meta.pop(key, None)


def follow_shapes(graph: fx.Graph, root: nn.Module, specs: Sequence[Spec | None]) -> None:
    """Write shapes into a small graph of its own; whatever its code raises comes through.

    The tensors of `root` may be real, or fake already: then their own mode goes on, since two cannot meet.
    """
    mode = detect_fake_mode([*root.parameters(), *root.buffers()]) or FakeTensorMode(allow_non_fake_inputs=True)
    with quiet(), mode, torch.no_grad():
        _ShapeProp(root, graph=graph).run(*(spec.fake() for spec in specs if spec is not None))


def propagate(graph: fx.Graph, root: nn.Module, example: Example, mode: FakeTensorMode) -> None:
    """Write the shape of every value of `graph` into its nodes.

    `root` holds the modules, with real or fake parameters; nothing is computed and its buffers are not touched. Raises SwnetError
    where the inputs do not fit.
    """
    check_arity(graph, example)
    try:
        with quiet(), mode, torch.no_grad():
            _ShapeProp(root, graph=graph).run(*fakes(example, mode))
    except DataDependentOutputException as error:
        raise SwnetError(
            f"{type(root).__name__} cannot be traced: {_culprit(graph, root)} decides by the values of its input, which tracing "
            "does not have. Make it independent of them."
        ) from error
    except Exception as error:
        raise SwnetError(
            f"The inputs ({shapes_of(example)}) do not fit {type(root).__name__}: {first_line(error)}. "
            "Pass example_inputs (or --input 1x3x224x224) of the shape that the model takes."
        ) from error


def propagate_elsewhere(graph: fx.Graph, root: nn.Module, example: Example, mode: FakeTensorMode) -> None:
    """Note the shapes at an odd image size as well: two branches that agree at the example's may round others differently.

    2^k - 1 stays odd however often it is halved down. Networks of one fixed size have no shapes elsewhere.
    """
    try:
        with quiet(), mode, torch.no_grad():
            run = _ShapeProp(root, graph=graph)
            run.key = ELSEWHERE
            run.run(*fakes(map_in(example, Spec, _odd), mode))
    except Exception:  # whatever a model raises at a size that it was not made for
        for node in graph.nodes:
            node.meta.pop(ELSEWHERE, None)


def fixed_sizes(graph: fx.Graph, root: nn.Module, example: Example, mode: FakeTensorMode) -> tuple[str, ...]:
    """Say which sizes of its input a graph is fixed to though the model is not: "batch size", "image size".

    Python that decides by a size (a loop over the batch) is traced with the example's. `root` must be in the graph's mode.
    """
    other = {"batch size": _larger, "image size": _odd}
    return tuple(name for name, change in other.items() if not _agree(graph, root, map_in(example, Spec, change), mode))


def _agree(graph: fx.Graph, root: nn.Module, example: Example, mode: FakeTensorMode) -> bool:
    """Whether the graph gives the shapes that the model gives; or the model does not take such inputs itself."""
    inputs = fakes(example, mode)
    with quiet(), random_state(), mode, torch.no_grad():
        try:
            wanted = run_module(root, inputs, {})
        except Exception:  # whatever a model raises at a size that it was not made for
            return True
        try:
            made = _FakeRun(root, graph=graph).run(*inputs)
        except Exception:  # and whatever a graph does that was traced at another
            return False
    return [tensor.shape for tensor in tensors(made)] == [tensor.shape for tensor in tensors(wanted)]


def _larger(spec: Spec) -> Spec:
    return Spec((spec.shape[0] + 1, *spec.shape[1:]), spec.dtype) if spec.shape else spec


def _odd(spec: Spec) -> Spec:
    sizes = spec.shape[2:] if len(spec.shape) > 3 else ()
    return Spec((*spec.shape[: len(spec.shape) - len(sizes)], *(2 ** size.bit_length() - 1 for size in sizes)), spec.dtype)


def _culprit(graph: fx.Graph, root: nn.Module) -> str:
    """Describe the first node that got no shape: the one that failed."""
    node = next(node for node in graph.nodes if SHAPE not in node.meta)
    where = f" at {node.meta[WHERE]}" if node.meta.get(WHERE) else ""
    if node.op == "call_module":
        return f"the module {node.target} ({type(root.get_submodule(str(node.target))).__name__}){where}"
    return f"{node.name}{where}"


def check_arity(graph: fx.Graph, example: Sequence[Any]) -> None:
    """Raise SwnetError where there are more or fewer inputs than a graph takes."""
    every = [node for node in graph.nodes if node.op == "placeholder"]
    places = [node for node in every if not str(node.target).startswith("*")]
    needed = [node for node in places if not node.args]
    more = any(str(node.target).startswith("*") and not str(node.target).startswith("**") for node in every)
    if len(example) < len(needed) or (len(example) > len(places) and not more):
        names = ", ".join(str(node.target) for node in every)
        takes = f"{len(needed)}" if len(needed) == len(places) else f"{len(needed)} to {len(places)}"
        takes = f"{len(needed)} or more" if more else takes
        raise SwnetError(f"The model takes {takes} inputs ({names}); {len(example)} were given. Pass one example for each.")


def spec_of(node: fx.Node) -> Spec | None:
    """Return the shape and dtype of a node's value, or None where it is not one tensor."""
    found = node.meta.get(SHAPE)
    return found if isinstance(found, Spec) else None
