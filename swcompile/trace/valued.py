"""Tracing with proxies that carry fake tensors, for models whose control flow asks for shapes, types and the like.

Each operation is recorded and at once run on fake tensors, so that `x.shape[2] > 7`, `len(parts)`, `isinstance(x, Tensor)` and
`x.dtype == torch.half` have answers. Sizes stay nodes wherever operations are given them (sizes.py): the batch, and mostly height
and width, remain free. A module that cannot be traced even so, because it decides by the values of its input, stays one call: a
leaf island, and the rest is traced around it.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor, FakeTensorMode

from swcompile.errors import first_line
from swcompile.trace.interpret import run_node, tensors, thawed
from swcompile.trace.lines import line_of, user_line
from swcompile.trace.names import name_of
from swcompile.trace.purify import named_in_place
from swcompile.trace.random_state import random_state
from swcompile.trace.sizes import Size
from swcompile.trace.tracer import LayerTracer, Proxy, UntraceableError, is_compiled, patched

FACTORIES = (
    "arange as_tensor asarray bartlett_window blackman_window empty empty_strided eye frombuffer from_numpy full hamming_window "
    "hann_window kaiser_window linspace logspace normal ones rand randint randn randperm range scalar_tensor tensor tril_indices "
    "triu_indices zeros"
).split()
"""What torch offers to make tensors out of sizes, types and devices: __torch_function__, and with it fx, hears of none of them."""
RANDOM = frozenset(
    "bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial normal normal_ poisson rand rand_like randint "
    "randint_like randn randn_like random_ randperm uniform_".split()
)
SMALL = 1 << 16
"""Constants of at most so many elements are computed while tracing, so that control flow may ask for them."""


class ValuedTensor(Proxy):
    """Stands for a tensor whose shape, type and device are known."""

    def __init__(self, node: fx.Node, tracer: ValuedTracer, value: torch.Tensor) -> None:
        super().__init__(node, tracer)
        self.value = value

    def is_a(self, kind: Any) -> bool:
        return isinstance(self.value, kind)

    def __getattr__(self, k: str) -> Any:
        return _attribute(self, k)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return (self.tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(len(self.value)))

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __contains__(self, item: Any) -> bool:
        return bool((self == item).any())

    def __hash__(self) -> int:
        return id(self)


class Held(Proxy):
    """Stands for a value that is no tensor and no number: a dtype, a device, an object of a user's class."""

    def __init__(self, node: fx.Node, tracer: ValuedTracer, value: Any) -> None:
        super().__init__(node, tracer)
        self.value = value

    def is_a(self, kind: Any) -> bool:
        return isinstance(self.value, kind)

    def __getattr__(self, k: str) -> Any:
        return _attribute(self, k)

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, Mapping):
            return iter(self.value)
        return (self[place] for place, _ in enumerate(self.value))

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __contains__(self, item: Any) -> bool:
        return plain(item) in self.value

    def __eq__(self, other: object) -> bool:
        return bool(self.value == plain(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        return str(self.value)


def plain(value: Any) -> Any:
    """Return what a proxy that is no tensor stands for."""
    return value.value if isinstance(value, Held) else value


def _attribute(proxy: ValuedTensor | Held, name: str) -> Any:
    """Return an attribute as the graph will have it: a method that records its call, or a value that was looked up."""
    tracer: Any = proxy.tracer
    with tracer.running():
        found = getattr(proxy.value, name)
    if callable(found) and not isinstance(found, torch.Tensor):
        return lambda *args, **kwargs: tracer.create_proxy("call_method", name, (proxy, *args), kwargs)
    if name in ("ndim", "itemsize"):
        return found
    return tracer.create_proxy("call_function", getattr, (proxy, name), {})


class _Mark(NamedTuple):
    """How far a trace had come."""

    nodes: int
    grad_modes: list[fx.Node]
    autocasts: list[fx.Node]
    modules: list[tuple[str, Any]]


class ValuedTracer(LayerTracer):
    """Trace `root` with values. `bare` is its copy with fake tensors, in the same mode; `inputs` are the fake inputs in order."""

    def __init__(
        self,
        root: nn.Module,
        bare: nn.Module,
        inputs: Sequence[Any],
        mode: FakeTensorMode,
        fixed: Mapping[str, Any],
        leaves: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(root, fixed, leaves, len(inputs))
        self._bare = bare
        self._inputs = iter(inputs)
        self._mode = mode
        self._values: dict[fx.Node, Any] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with ExitStack() as stack:
            for name in FACTORIES:
                stack.enter_context(patched(torch, name, self._recorded(getattr(torch, name))))
            for name in ("finfo", "iinfo"):
                stack.enter_context(patched(torch, name, _of_plain_values(getattr(torch, name))))
            return super().trace(root, concrete_args)

    # Modules and functions.

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        if m not in self._held_modules:
            return self._call_unheld(m, forward, args, kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path) or is_compiled(m):
            return super().call_module(m, forward, args, kwargs)
        mark = self._mark()
        try:
            with random_state() as drawn:
                made = super().call_module(m, forward, args, kwargs)
                if drawn():
                    raise UntraceableError("it draws random numbers that do not depend on its input")
                return made
        except Exception as error:
            self._undo(mark)
            self.opaque[path] = (reason_of(error), line_of(error) or user_line())
            return self.create_proxy("call_module", path, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _look_into(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mark = self._mark()
        try:
            return function(*args, **kwargs)
        except Exception:  # then it stays the call that its author wanted
            self._undo(mark)
            return self.create_proxy("call_function", function, args, kwargs)

    def _recorded(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return factory(*args, **kwargs)
            return self.create_proxy("call_function", factory, args, kwargs)

        return record

    def _mark(self) -> _Mark:
        return _Mark(len(self._made), list(self._grad_modes), list(self._autocasts), list(self.module_stack.items()))

    def _undo(self, mark: _Mark) -> None:
        """Remove the nodes made since `mark`, as if what made them had not run."""
        gone = self._made[mark.nodes :]
        for node in reversed(gone):
            self.graph.erase_node(node)
            self._values.pop(node, None)
        del self._made[mark.nodes :]
        lost = set(gone)
        self._attributes = {name: proxy for name, proxy in self._attributes.items() if proxy.node not in lost}
        self._grad_modes, self._autocasts = mark.grad_modes, mark.autocasts
        self.module_stack.clear()
        self.module_stack.update(mark.modules)
        self.opaque = {path: why for path, why in self.opaque.items() if path in {str(node.target) for node in self._made}}

    # Values.

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr)
        return self._wrap(node, self._values[node])

    def given(self, node: fx.Node) -> Any:
        """Return what the user's code gets to see of an input."""
        return self._wrap(node, self._values[node])

    def create_arg(self, a: Any) -> Any:
        if type(a) is Size:
            return a.argument(self)
        return super().create_arg(tuple(a) if isinstance(a, torch.Size) else a)

    def _node(self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None) -> fx.Node:
        mark = self._mark()
        node = super()._node(kind, target, args, kwargs, name, type_expr)
        if kind != "output":
            try:
                self._values[node] = self._run(node)
            except Exception:  # the user's code may catch it, and go on without
                self._undo(mark)
                raise
        return node

    def _run(self, node: fx.Node) -> Any:
        """Return what a node computes: a fake tensor, or a real one where nothing but small constants go in."""
        if node.op == "placeholder":
            return self._input(str(node.target), node.args[0] if node.args else None)
        args, kwargs = thawed(fx.map_arg((node.args, node.kwargs), self._values.__getitem__))
        given = tensors((args, kwargs))
        if node.op == "call_module":
            with random_state(), self.running(), self._mode, torch.no_grad():
                return run_node(node, self._bare, args, kwargs)
        with self.running():
            if node.op == "get_attr" and (constant := self._constant(str(node.target))) is not None:
                return constant
            with self._mode, torch.no_grad():
                made = run_node(node, self._bare, args, kwargs)
            if node.op == "get_attr" or not any(isinstance(tensor, FakeTensor) for tensor in tensors(made)):
                return made
            real = not any(isinstance(tensor, FakeTensor) for tensor in given) and name_of(node.target) not in RANDOM
            if real and all(tensor.numel() <= SMALL for tensor in tensors(made)):
                with torch.no_grad():
                    return run_node(node, self._bare, args, kwargs)
            if given and not isinstance(given[0], FakeTensor) and named_in_place(node):
                self._forget(given[0])
            return made

    def _input(self, name: str, default: Any) -> Any:
        if name.startswith("**"):
            return {}
        return tuple(self._inputs) if name.startswith("*") else next(self._inputs, default)

    def _constant(self, path: str) -> torch.Tensor | None:
        """Return a tensor that forward made and fx has put into the root, or None where `path` is the model's own."""
        found = self.root.__dict__.get(path)
        return found if isinstance(found, torch.Tensor) else None

    def _forget(self, written: torch.Tensor) -> None:
        """Stop knowing the values of a constant, and its views, that something unknown was written into."""
        storage = written.untyped_storage()._cdata
        for node, value in self._values.items():
            known = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
            if known and value.untyped_storage()._cdata == storage:
                self._values[node] = self._mode.from_tensor(value)

    def running(self) -> Any:
        """Let modules and factories run, instead of being recorded, for a while."""
        return patched(self, "_running", True)

    def _wrap(self, node: fx.Node, value: Any) -> Any:
        """Return what the user's code gets to see of a value."""
        if isinstance(value, torch.Tensor):
            return ValuedTensor(node, self, value)
        if value is None or isinstance(value, bool | float | complex | str | bytes | enum.Enum):
            return value
        if isinstance(value, int):
            return Size(value, self, lambda tracer: node)
        whole = fx.Proxy(node, self)
        if isinstance(value, torch.Size):
            return torch.Size([Size(size, self, _piece(whole, place)) for place, size in enumerate(value)])
        if isinstance(value, tuple | list):
            items = [self.create_proxy("call_function", operator.getitem, (whole, place), {}) for place in range(len(value))]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if type(value) is dict and all(isinstance(key, str | int) for key in value):
            return {key: self.create_proxy("call_function", operator.getitem, (whole, key), {}) for key in value}
        return Held(node, self, value)


def _piece(whole: fx.Proxy, place: int) -> Callable[[Any], fx.Node]:
    def make(tracer: Any) -> fx.Node:
        made: fx.Node = tracer.create_node("call_function", operator.getitem, (whole.node, place), {})
        return made

    return make


def _of_plain_values(function: Any) -> Any:
    return lambda *args: function(*map(plain, args))


def by_values(error: BaseException) -> bool:
    """Whether an exception says that the code decides by what tracing does not have, rather than that it does not run."""
    known = (UntraceableError, fx.proxy.TraceError, DataDependentOutputException, DynamicOutputShapeException)
    return isinstance(error, known)


def reason_of(error: BaseException) -> str:
    """Return an exception as half a sentence."""
    if isinstance(error, UntraceableError):
        return str(error)
    if isinstance(error, fx.proxy.TraceError):
        return "the code decides by a value or its shape"
    if isinstance(error, DataDependentOutputException):
        return "it decides by values, which tracing does not have"
    if isinstance(error, DynamicOutputShapeException):
        return "the shape of a result depends on values, which tracing does not have"
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f"{kind}: {text}"
