"""The plain tracer: torch.fx, with what it gets silently wrong made right or refused.

Left to itself, torch.fx loses whatever is no operation on a tensor. Tracing succeeds, and the graph computes something else:

    isinstance(x, Tensor)          is False of a proxy            -> refused here; proxies that carry values answer it (valued.py)
    x += y, x[:, 0] = y            other names keep the old value -> recorded as in-place operations
    x.data = y                     is forgotten                   -> recorded as an in-place operation
    with torch.no_grad(): ...      gradients flow again           -> recorded as nodes that switch the mode and put it back
    with torch.autocast(...): ...  precision is full again        -> recorded as nodes that begin it and end it
    sum(self.parameters())         computed once, without grads   -> operations on them are recorded (stored.py)
    MyFunction.apply(x)            its backward is lost           -> one opaque call
    hooks of a module              run once, on proxies           -> the module stays one opaque call
"""

from __future__ import annotations

import builtins
import inspect
import operator
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx import _symbolic_trace
from torch.utils.checkpoint import CheckpointFunction

from swcompile.trace.attributes import HOOKS
from swcompile.trace.functions import is_function
from swcompile.trace.layers import LAYER_TYPES, LEFT, modules_with_layers
from swcompile.trace.lines import WHERE, is_users, user_line
from swcompile.trace.purify import PURE_OPERATORS, WRITES
from swcompile.trace.stored import StoredMode

ASSIGNED = frozenset(["data", "grad", "requires_grad"])
"""Attributes of a tensor that torch itself reads, so that an assignment to them is an operation."""


class UntraceableError(Exception):
    """Raised where going on would give a graph that computes something else; `remedy` is what to do where that is known."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


class Proxy(fx.Proxy):
    """A proxy that can be written into: x[:, 0] = y and x += y become nodes, which purification then treats as in-place operations.

    fx alone turns x += y into x = x + y, and another name for the same tensor would keep the old value.
    """

    def is_a(self, kind: Any) -> bool:
        """Answer the user's isinstance."""
        raise UntraceableError("the code asks for the type of a value")

    def __getattr__(self, k: str) -> Any:
        if not hasattr(torch.Tensor, k) and is_users(sys._getframe(1)):
            raise UntraceableError(f"the code asks for the attribute {k} of a value")
        return super().__getattr__(k)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ASSIGNED:
            node = self.tracer.create_node("call_function", setattr, (self.node, name, self.tracer.create_arg(value)), {})
            node.meta[WRITES] = True
        else:
            super().__setattr__(name, value)


def _augmented(in_place: Callable[[Any, Any], Any], pure: Callable[[Any, Any], Any]) -> Callable[[Proxy, Any], fx.Proxy]:
    def assign(self: Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", pure if _is_number(self.node) else in_place, (self, other), {})

    return assign


for _in_place, _pure in PURE_OPERATORS.items():
    setattr(Proxy, f"__{_in_place.__name__}__", _augmented(_in_place, _pure))


def _is_number(node: fx.Node) -> bool:
    """Whether a node computes with sizes only, which nothing can overwrite."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim"):
        return True
    return node.op == "call_function" and bool(node.all_input_nodes) and all(map(_is_number, node.all_input_nodes))


class AutogradCall:
    """A torch.autograd.Function as one call: traced into, it would lose its backward."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = function.__name__  # the module stays ours: fx writes what torch defines by its name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AutogradCall) and other.function is self.function

    def __hash__(self) -> int:
        return hash(self.function)


class WithDefault:
    """Makes a defaultdict: fx cannot write the class of its defaults into code."""

    __name__ = __qualname__ = "WithDefault"

    def __init__(self, factory: Callable[[], Any] | None) -> None:
        self.factory = factory

    def __call__(self, items: dict[Any, Any]) -> defaultdict[Any, Any]:
        return defaultdict(self.factory, items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithDefault) and other.factory is self.factory

    def __hash__(self) -> int:
        return hash(self.factory)


def enter_grad_mode(enabled: bool) -> bool:
    """Switch gradients on or off, and return what they were: the beginning of a user's `with torch.no_grad()` in a graph."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(enabled)
    return before


def leave_grad_mode(before: bool) -> None:
    """Put the gradient mode back: the end of a user's `with torch.no_grad()` in a graph."""
    torch._C._set_grad_enabled(before)


class LayerTracer(fx.Tracer):
    """Enter a module only if a layer lies inside, or if it is a plain function (swcompile.trace.functions).

    Everything else stays a call: fewer models fail to trace, norms keep their buffers, and modules go on following `.train()`.
    `fixed` are arguments that keep their value: control flow may ask for it, and the graph refuses another. `leaves` are paths of
    modules to leave alone whatever lies inside. `opaque` collects modules with layers that stayed calls, with the reason and the
    line of the call. `count` is how many arguments the example has; what it leaves out is left out, for a decorator may add it.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        root: nn.Module,
        fixed: Mapping[str, Any] = MappingProxyType({}),
        leaves: frozenset[str] = frozenset(),
        count: int = 1,
    ) -> None:
        super().__init__()
        self._fixed = fixed
        self._count = count
        self.opaque: dict[str, tuple[str, str]] = {}
        self._leaves = leaves
        self._holders = modules_with_layers(root)
        self._held_modules = frozenset(root.modules())
        self._hooked = {module for module in root.modules() if any(getattr(module, name) for name in HOOKS)}
        self._names = {id(tensor): name for name, tensor in (*root.named_parameters(), *root.named_buffers())}
        self._attributes: dict[str, Any] = {}
        self._made: list[fx.Node] = []
        self._grad_modes: list[fx.Node] = []
        self._autocasts: list[fx.Node] = []
        self._running = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(patched(builtins, "isinstance", _isinstance))
            stack.enter_context(patched(torch, "is_tensor", _is_tensor))
            stack.enter_context(patched(torch.autograd.Function, "apply", classmethod(self._apply_function)))
            stack.enter_context(patched(torch.autocast, "__enter__", self._entering(torch.autocast.__enter__)))
            stack.enter_context(patched(torch.autocast, "__exit__", self._leaving(torch.autocast.__exit__)))
            stack.enter_context(self._own_wraps())
            stack.enter_context(StoredMode(self))
            return super().trace(root, concrete_args)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: dict[str, Any] | tuple[Any, ...] | None = None
    ) -> tuple[Any, list[Any]]:
        """Return a call of the root's forward as the user would call it; fx calls what decorates one as if that were it."""
        forward: Any = self.root.forward if is_module else root_fn
        types = getattr(inspect.unwrap(forward), "__annotations__", {})
        places = list(inspect.signature(forward).parameters.values())
        nodes = [self._placeholder(place, types) for place in sorted(places, key=lambda place: _RANKS.get(place.kind, 0))]
        values = {str(node.target).lstrip("*"): self._held(node) for node in nodes}
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for number, place in enumerate(places):
            if place.kind is place.VAR_POSITIONAL:
                positional += self._further(values[place.name], self._count - number)
            elif place.kind is place.POSITIONAL_ONLY or (number < self._count and place.kind is place.POSITIONAL_OR_KEYWORD):
                positional.append(values[place.name])
            elif place.kind is not place.VAR_KEYWORD and place.name not in self._fixed:
                named[place.name] = values[place.name]
        return lambda *_: forward(*positional, **named), [self.root]

    def _placeholder(self, place: inspect.Parameter, types: Mapping[str, Any]) -> fx.Node:
        stars = "*" if place.kind is place.VAR_POSITIONAL else "**" if place.kind is place.VAR_KEYWORD else ""
        default = () if place.default is place.empty else (place.default,)
        return self._node("placeholder", stars + place.name, default, {}, None, None if stars else types.get(place.name))

    def _held(self, node: fx.Node) -> Any:
        """Return what forward gets for an input; where that is fixed, the graph is made to refuse anything else."""
        name = str(node.target)
        if name.startswith("**"):
            self._refuse(operator.not_, (node,), f"{name} were traced as none, and there can be no others")
        elif name in self._fixed:
            value = self._fixed[name]
            says = f"{name} was traced as {value!r} and cannot be anything else; give the value to be traced with"
            self._refuse(operator.is_ if value is None else operator.eq, (node, value), says)
            return value
        return self.given(node)

    def _refuse(self, unless: Callable[..., Any], args: tuple[Any, ...], says: str) -> None:
        holds = self._node("call_function", unless, args, {})
        self._node("call_function", torch._assert, (holds, says), {})

    def _further(self, value: Any, count: int) -> list[Any]:
        """Return the arguments that are bound to *args."""
        return list(value) if isinstance(value, tuple) else [value[place] for place in range(count)]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def given(self, node: fx.Node) -> Any:
        """Return what the user's code gets to see of an input."""
        return self.proxy(node)

    # Modules.

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if m not in self._held_modules:
            return self._call_unheld(m, forward, args, kwargs)
        if self.recording and is_compiled(m):  # followed as if it were not: the result can be compiled as a whole
            return m._modules["_orig_mod"](*args, **kwargs)  # type: ignore[misc]  # is there
        return super().call_module(m, forward, args, kwargs)

    def _call_unheld(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Follow a module that the model does not hold, such as nn.ReLU()(x) in a forward, as the function that it is."""
        if [*m.parameters(), *m.buffers()]:
            kind = type(m).__name__
            raise UntraceableError(
                f"it calls a {kind} that it does not hold, whose weights nobody trains or saves",
                f"Assign the {kind} to an attribute in __init__, or put it into an nn.ModuleList or nn.ModuleDict instead of a "
                "list or dictionary.",
            )
        return forward(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, LAYER_TYPES) or (id(m) not in self._holders and not self._is_code_alone(m, module_qualified_name)):
            return True
        reason = self._reason_to_stay(m, module_qualified_name)
        if reason is not None:
            self.opaque.setdefault(module_qualified_name, (reason, user_line()))
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def _is_code_alone(self, module: nn.Module, path: str) -> bool:
        """Say whether a module of the user's is a function: a concat, a sum, an activation, without any state."""
        stateless = next(module.parameters(), None) is None and next(module.buffers(), None) is None
        return stateless and not super().is_leaf_module(module, path) and is_function(module)

    def _reason_to_stay(self, module: nn.Module, path: str) -> str | None:
        if path in self._leaves:
            return "named as a leaf"
        if module in self._hooked:
            return "it has hooks"
        if isinstance(module, torch.jit.ScriptModule):
            return "it is a TorchScript module"
        return None

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a parameter or buffer as a proxy; fx would look through all of them for each."""
        if not isinstance(attr_val, torch.Tensor):
            return attr_val
        found = self.stored(attr_val)
        return attr_val if found is None else found

    @property
    def recording(self) -> bool:
        """Whether it is the user's forward that runs, to be recorded."""
        return not self._running

    def stored(self, tensor: torch.Tensor) -> Any:
        """Return the proxy of a parameter or buffer of the root, None for any other tensor."""
        name = self._names.get(id(tensor))
        if name is None:
            return None
        if name not in self._attributes:
            self._attributes[name] = self.create_proxy("get_attr", name, (), {})
        return self._attributes[name]

    # Nodes.

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> fx.Node:
        self._follow_modes(kind)
        return self._node(kind, target, args, kwargs, name, type_expr)

    def _node(self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta[WHERE] = user_line(2)
        if kind == "call_module" and target in self._leaves:
            node.meta[LEFT] = True
        self._made.append(node)
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):  # in front of all that fx asks, which a proxy would answer with the type of its value
            return a.node
        if isinstance(a, OrderedDict):  # and output classes made of one: fx would make a plain dictionary of it
            given: dict[str, Any] = {key: self.create_arg(value) for key, value in a.items()}
            return self.create_node("call_function", type(a), *(((), given) if is_dataclass(a) else ((given,), {})))
        if isinstance(a, defaultdict):  # and of this one, too
            return self.create_node("call_function", WithDefault(a.default_factory), (self.create_arg(dict(a)),), {})
        if isinstance(a, np.generic):  # a number that numpy made
            return a.item()
        return super().create_arg(a)

    # What is no operation on a tensor.

    def _follow_modes(self, kind: str) -> None:
        """Note in the graph that the code has switched gradients, or put them back."""
        if torch.is_inference_mode_enabled():
            raise UntraceableError("the code switches inference_mode; use torch.no_grad()")
        if kind in ("placeholder", "get_attr") or torch.is_grad_enabled() == (len(self._grad_modes) % 2 == 0):
            return
        if self._grad_modes and torch.is_grad_enabled():
            self._switch(leave_grad_mode, (self._grad_modes.pop(),))
        else:
            self._grad_modes.append(self._switch(enter_grad_mode, (torch.is_grad_enabled(),)))

    def _entering(self, enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def entering(context: Any) -> Any:
            entered = enter(context)
            if self.recording:
                how = (context.device, context.fast_dtype, context._enabled, context._cache_enabled)
                self._autocasts.append(self._switch(_enter_autocast, how))
            return entered

        return entering

    def _leaving(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        def leaving(context: Any, *error: Any) -> Any:
            if self.recording and self._autocasts:
                self._switch(_exit_autocast, (self._autocasts.pop(),))
            return leave(context, *error)

        return leaving

    def _switch(self, function: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        """Note in the graph that a mode changes."""
        node = self._node("call_function", function, args, {})
        node.meta[WRITES] = True
        return node

    def _apply_function(self, function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if function is CheckpointFunction and self.recording:  # what torch does with use_reentrant=False is followed, too
            run, _, *given = args
            return run(*given)
        if has_proxy((args, kwargs)):
            return self.create_proxy("call_function", AutogradCall(function), args, kwargs)
        return _APPLY.__func__(function, *args, **kwargs)

    @contextmanager
    def _own_wraps(self) -> Iterator[None]:
        """Try to look into functions that somebody gave to torch.fx.wrap: layers may lie inside, and we do see shapes."""
        registry: dict[tuple[int, str], dict[str, Any]] = getattr(_symbolic_trace, "_wrapped_fns_to_patch", {})
        ours = {key: home for key, home in registry.items() if inspect.isfunction(home.get(key[1]))}
        originals = [(home, key[1], home[key[1]]) for key, home in ours.items()]
        for key in ours:
            del registry[key]
        for home, name, original in originals:
            home[name] = self._wrapped(original)
        try:
            yield
        finally:
            for home, name, original in originals:
                home[name] = original
            registry.update(ours)

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if has_proxy((args, kwargs)):
                return self._look_into(original, args, kwargs)
            return original(*args, **kwargs)

        return wrapped

    def _look_into(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what torch.compile makes of one; by name, since the import would cost more than a second."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def _isinstance(value: Any, kind: Any, ask: Callable[[Any, Any], bool] = isinstance) -> bool:
    """Answer isinstance in the user's code by what a proxy stands for.

    A `__class__` that says so would be shorter, but torch's C++ believes it, and reads a tensor where none is.
    """
    if Proxy in type(value).__mro__ and is_users(sys._getframe(1)):
        return bool(value.is_a(kind))
    return ask(value, kind)


def _is_tensor(value: Any) -> bool:
    return value.is_a(torch.Tensor) if isinstance(value, Proxy) and is_users(sys._getframe(1)) else isinstance(value, torch.Tensor)


_RANKS: dict[Any, int] = {inspect.Parameter.KEYWORD_ONLY: 1, inspect.Parameter.VAR_POSITIONAL: 2, inspect.Parameter.VAR_KEYWORD: 3}
"""How fx orders the inputs of a graph."""
_APPLY: Any = torch.autograd.Function.__dict__["apply"]


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute for a while."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def has_proxy(value: Any) -> bool:
    """Whether a proxy lies in nested tuples, lists and dictionaries."""
    if type(value) in (tuple, list):
        return any(map(has_proxy, value))
    if type(value) is dict:
        return any(map(has_proxy, value.values()))
    return isinstance(value, fx.Proxy)
