"""What a rewired network is made of besides the user's own modules: gathers, masked layers, and the module that holds two graphs.

gather(like, sources, taps, axis)    the taps of a layer, each brought to the resolution of `like`, concatenated
MaskedConv1d/2d/3d, MaskedLinear     a layer over a gathered union of which only some links are live
RewiredModule                        an fx.GraphModule that follows .train() and .eval()
"""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import _get_qualified_name, map_aggregate
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from swcompile.choices import Choices
from swcompile.trace.rules import declare, same
from swcompile.trace.shapes import Autocast

_NUMBERS = itertools.count()
_Pools = dict[int, Callable[..., Tensor]]
_MAX_POOL: _Pools = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVG_POOL: _Pools = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_ADAPTIVE_MAX: _Pools = {1: functional.adaptive_max_pool1d, 2: functional.adaptive_max_pool2d, 3: functional.adaptive_max_pool3d}
_ADAPTIVE_AVG: _Pools = {1: functional.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


def resample(x: Tensor, like: Tensor, kind: str) -> Tensor:
    """Bring a feature to the height and width of `like`.

    Args:
        x: (N, C, *spatial).
        like: a tensor of the wanted size, (N, C', *size); or (N, C'), which asks for global pooling.
        kind: how a larger feature shrinks: "max" or "avg" pooling, or "stride" (subsampling). A smaller one is repeated
            (nearest upsampling). Sizes that do not divide are pooled adaptively.

    Returns:
        (N, C, *size), or (N, C).
    """
    if like.dim() < x.dim():
        flat = x.flatten(2)
        return flat.mean(-1) if kind == "avg" else flat.amax(-1) if kind == "max" else flat[..., 0]
    size = like.shape[2:]
    if x.shape[2:] == size:
        return x
    if all(have <= want for have, want in zip(x.shape[2:], size, strict=True)):
        return _nearest(x, size)
    ratio = tuple(have // want for have, want in zip(x.shape[2:], size, strict=True))
    whole = all(have == want * times for have, want, times in zip(x.shape[2:], size, ratio, strict=True))
    if kind == "stride":
        return x[(slice(None), slice(None), *(slice(None, None, times) for times in ratio))] if whole else _nearest(x, size)
    if whole and kind == "max" and x.dim() == 4 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _max_pool_cpu(x, ratio)
    if whole:
        return (_MAX_POOL if kind == "max" else _AVG_POOL)[len(size)](x, ratio)
    adaptive = _ADAPTIVE_MAX if kind == "max" else _ADAPTIVE_AVG
    return adaptive[len(size)](x, tuple(size))


def _max_pool_cpu(x: Tensor, ratio: tuple[int, ...]) -> Tensor:
    """Max-pool in the layout that torch's CPU kernel has vector code for, and fetch the winners from `x` as it lies.

    Same values and gradients as max_pool2d. Eight channels at a time: torch's copy into the other layout walks the channels, and
    with 64 of them 4 KiB apart they drive each other out of the cache. Milliseconds on one core, forward and backward, by 2:

        (32, 16, 32, 32)    max_pool2d  3.0    here 1.2
        (32, 64, 32, 32)    max_pool2d 11.5    here 7.1    all channels at once 10.5; by 4: 7.5, 4.1 and 8.6
    """
    if x.stride(1) == 1:
        return functional.max_pool2d(x, ratio)
    with torch.no_grad():
        parts = (part.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for part in torch.split(x, 8, 1))  # runs under vmap, too
        best = torch.cat([functional.max_pool2d(part, ratio, return_indices=True)[1] for part in parts], 1)
    return x.flatten(2).gather(2, best.flatten(2)).view(*x.shape[:2], *best.shape[2:])


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    sizes: Any = tuple(size)  # torch types this argument as one number
    return functional.interpolate(x, size=sizes, mode="nearest")


def gather(like: Tensor, sources: Sequence[Tensor], taps: Sequence[tuple[int, int, int, str]], axis: int) -> Tensor:
    """Concatenate taps along the channel axis: the plain form of what a rewired layer reads.

    Args:
        like: a tensor at the reader's resolution.
        sources: the features that are tapped.
        taps: (index into `sources`, start, stop, how to resample) each.
        axis: the channel axis of the sources and of the result.

    Returns:
        The reader's new input, as wide as the taps together.
    """
    parts = []
    for index, start, stop, kind in taps:
        part = sources[index].narrow(axis, start, stop - start)
        parts.append(resample(part, like, kind) if axis == 1 else part)
    return torch.cat(parts, axis)


# The masked layers form weight * mask in every forward, so that gradients, and with them momentum and weight decay, are exactly
# zero at masked places whatever the optimizer; the mask is a buffer, and so part of the state dict. `watch`, where it is set, is
# given the gradient of that product, which has one at masked places too: what swcompile.rewirer grows links by.

Watch = Callable[[Tensor], None]


def _live(weight: Tensor, mask: Tensor, watch: Watch | None) -> Tensor:
    product = weight * mask
    if watch is not None and product.requires_grad:
        product.register_hook(watch)  # type: ignore[no-untyped-call]
    return product


class MaskedConv1d(nn.Conv1d):
    """A Conv1d over a gathered union, of which `mask` (out, in, 1) marks the live links."""

    mask: Tensor
    watch: Watch | None = None

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(input, _live(self.weight, self.mask, self.watch), self.bias)
        return out


class MaskedConv2d(nn.Conv2d):
    """A Conv2d over a gathered union, of which `mask` (out, in, 1, 1) marks the live links."""

    mask: Tensor
    watch: Watch | None = None

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(input, _live(self.weight, self.mask, self.watch), self.bias)
        return out


class MaskedConv3d(nn.Conv3d):
    """A Conv3d over a gathered union, of which `mask` (out, in, 1, 1, 1) marks the live links."""

    mask: Tensor
    watch: Watch | None = None

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(input, _live(self.weight, self.mask, self.watch), self.bias)
        return out


class MaskedLinear(nn.Linear):
    """A Linear over a gathered union, of which `mask` (out, in) marks the live links."""

    mask: Tensor
    watch: Watch | None = None

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, _live(self.weight, self.mask, self.watch), self.bias)


MASKED: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
    nn.Linear: MaskedLinear,
}

declare(resample, same)

_STATE = (
    "training",
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_modules",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_extra_state",
)
"""What of a user's root module outlives its class: everything that its state dict and its hooks consist of."""

EVAL, TRAINING = "eval", "training"
"""The keys of each mode's program for the example inputs, which runs where Python cannot look at a call's own.

With a state of autocast behind, those under autocast; with the key of a kind of call (swcompile.lower.Lowering.key), those for it.
"""


@dataclass(frozen=True)
class Lowered:
    """A graph in place of the eval-mode one (None: nothing was lowered), the modules it does without, and what was chosen."""

    graph: fx.Graph | None
    bypassed: tuple[str, ...]
    choices: Choices | None


@dataclass(frozen=True)
class _Program:
    """A lowered graph as a function, and the modules that it does without."""

    lowered: Lowered
    run: Callable[..., Any] | None
    around: tuple[nn.Module, ...]
    kinds: tuple[type[nn.Module], ...]
    masks: tuple[tuple[Tensor | None, int], ...]
    settings: list[tuple[Any, ...]]
    devices: tuple[str, ...]

    def stands(self, root: nn.Module) -> bool:
        """Say whether the modules that it does without are still those it was made for, of their kind, set so, and not patched.

        So must be their masks, since what they let through was taken into the program; a write to one that no call outside of a
        compiler follows, or through `.data`, is not noticed, nor are other settings inside of a compiler. On devices of several
        types, of which autocast is on for some, nothing stands.
        """
        if len(self.devices) > 1 and any(_autocast_on(device) for device in self.devices):
            return False
        if torch.compiler.is_exporting():  # with other tensors in the place of buffers
            return not self.is_written()
        if not torch.compiler.is_compiling() and (self.is_written() or self.settings != [_settings(one) for one in self.around]):
            return False
        return all(
            _submodule(root, path) is one and type(one) is kind and "forward" not in vars(one) and one._buffers.get("mask") is mask
            for path, one, kind, (mask, _) in zip(self.lowered.bypassed, self.around, self.kinds, self.masks, strict=True)
        )

    def masked(self) -> list[tuple[nn.Module, Tensor]]:
        """Return the modules that have masks, and these."""
        return [(one, mask) for one, (mask, _) in zip(self.around, self.masks, strict=True) if mask is not None]

    def is_written(self) -> bool:
        """Say whether a mask was written to since it was taken into the program."""
        return any(mask is not None and not mask.is_inference() and mask._version != writes for mask, writes in self.masks)


class RewiredModule(fx.GraphModule):
    """A GraphModule that keeps the user's whole module tree, and may hold a second graph for eval mode.

    `graphs` holds the one for train mode, and the one for eval mode where it differs (`eval_graph`, else None); both call the
    same modules. With a `lowering` (swcompile.lower.Lowering), eval mode runs a lowered graph instead when no gradient is asked
    for, and no module that it does without has a hook or is in train mode; and so does train mode, where the lowering is for that,
    too. There is one for each kind of call and state of autocast, made when the first one comes. Inside torch.compile,
    torch.export and torch.func, it is the one for the example inputs; under autocast there is none of it before a call like them
    has come under it, and none at all in torch.func.
    `graph` is the one that the module's mode runs, since torch.export and others interpret it. The state dict has exactly the keys
    of the original, in its order, whether or not a graph reaches them. `swcompile` is the record of what was done
    (swcompile.record.Record), and is kept by deepcopy and pickle.
    """

    eval_graph: fx.Graph | None = None
    lowering: Any = None
    _lowers: bool = False
    _programs: dict[Any, _Program]
    _making: threading.RLock
    swcompile: Any = None

    @classmethod
    def assemble(cls, root: nn.Module, graph: fx.Graph, eval_graph: fx.Graph | None = None) -> RewiredModule:
        """Make a module that owns the state of `root`, which must be ours to take, and runs the graphs."""
        made = cls(root, graph, type(root).__name__)
        made.__dict__.update({name: root.__dict__[name] for name in _STATE if name in root.__dict__})
        if type(root).get_extra_state is not nn.Module.get_extra_state:
            made.__dict__["_extra_state"] = root.get_extra_state()
        _hold_extra_state(made)
        if eval_graph is not None:
            made.eval_graph = eval_graph
            made.recompile()
        return made

    @property
    def graph(self) -> fx.Graph:
        """The graph that runs in the module's present mode, and as gradients are on or off."""
        if self._lowers and not self.training:
            program = self._example_program(EVAL)
            may = program is not None and _may_be_lowered(self, program.around, (), {}) and program.stands(self)
            if program is not None and may and program.lowered.graph is not None:
                return program.lowered.graph
        return self._graph if self.training or self.eval_graph is None else self.eval_graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        inherited: Any = fx.GraphModule.graph
        inherited.__set__(self, graph)

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graph for train mode, and the one for eval mode where it differs."""
        return (self._graph,) if self.eval_graph is None else (self._graph, self.eval_graph)

    def shell(self) -> nn.Module:
        """Return a bare module that holds the same modules, parameters and buffers."""
        return _shell({name: self.__dict__[name] for name in _STATE if name in self.__dict__})

    def recompile(self) -> Any:
        """Compile the graphs, after they were changed, into `forward`."""
        code = super().recompile()
        lowers = self.lowering is not None and self.lowering.is_for(self)
        self.__dict__.update(_lowers=lowers, _programs={}, _making=threading.RLock())  # copies have their own
        if self.eval_graph is None and not lowers:
            return code
        in_training, in_eval = type(self).forward, self._forward_of(self.eval_graph)
        if lowers:
            if _lower_anew not in self._load_state_dict_post_hooks.values():
                self.register_load_state_dict_post_hook(_lower_anew)  # type: ignore[no-untyped-call]  # torch's is untyped
            for mode in (EVAL, TRAINING) if self.lowering.training else (EVAL,):
                self._programs[mode] = self._program_of(self.lowering.program(self, None, None, in_training=mode == TRAINING))
                if (key := self.lowering.example_key(self, None)) is not None:
                    self._programs[mode, key] = self._programs[mode]

        @functools.wraps(in_training)
        def forward(module: RewiredModule, *args: Any, **kwargs: Any) -> Any:
            run = in_training if module.training or in_eval is None else in_eval
            if module._lowers:
                run = module._lowered_run(args, kwargs) or run
            return run(module, *args, **kwargs)

        # Of its own code, by object and by name: torch.compile allows one code eight compilations, and takes what differs
        # between calls of one name for dynamic; all modules would share both.
        own: Any = forward
        own.__code__ = own.__code__.replace(co_name=f"forward_{next(_NUMBERS)}")
        type(self).forward = own
        return code

    def _forward_of(self, graph: fx.Graph | None) -> Callable[..., Any] | None:
        """Return a graph as a function of the module and its inputs."""
        return None if graph is None else type(fx.GraphModule(self, graph)).forward

    def with_lowering(self, lowering: Any) -> RewiredModule:
        """Return a copy that runs what a lowering makes of it."""
        made = copy.deepcopy(self)
        made.lower_by(lowering)
        return made

    def lower_by(self, lowering: Any) -> None:
        """Run from now on what a lowering makes of this module, where it is for it."""
        self.lowering = lowering
        if self._lowers or lowering.is_for(self):
            self.recompile()

    @property
    def programs(self) -> tuple[Lowered, ...]:
        """What has been lowered so far: for the example inputs, and for each kind of call that came."""
        programs = {id(program): program.lowered for program in list(self._programs.values())}
        return tuple(programs.values())

    def _lowered_run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
        """Return what a call runs instead of the graph of the module's mode, or None."""
        program: _Program | None
        if not torch.compiler.is_compiling():
            if _is_told_of_all() or torch.autograd.forward_ad._current_level >= 0:  # operators of ours have no tangents
                return None
            if any(one.is_written() for one in list(self._programs.values())):
                self.recompile()
        if self.training:
            if kwargs or not self.lowering.training or not self.lowering.takes_in_training(self, args) or _is_taken_apart():
                return None
            program = self._training_program(args)
            may = program is not None and not any(_has_hooks(one) or _is_watched(one) for one in program.around)
            return program.run if program is not None and may and program.stands(self) else None
        if not _may_be_lowered(self, (), args, kwargs):
            return None
        program = self._program(args, kwargs)
        may = program is not None and _may_be_lowered(self, program.around, args, kwargs) and program.stands(self)
        return program.run if program is not None and may else None

    def _program(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Program | None:
        """Return the program for a call, made now where it is the first of its kind; None where the call runs as it is."""
        programs: dict[Any, _Program] = self._programs
        if torch.compiler.is_compiling():  # no other can be made inside a compiler, or a transform of torch.func
            return self._example_program(EVAL) if self.lowering.is_like_example(self, args) else None
        autocast = autocast_of(self)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return programs[EVAL] if autocast is None else None  # convolutions take no notice of autocast there, products do
        if kwargs or not args or torch._C._get_tracing_state() is not None:
            return None
        return self._program_for(EVAL, args, autocast)

    def _training_program(self, args: tuple[Any, ...]) -> _Program | None:
        """Return the program for a call in train mode; inside a compiler that for the example inputs, if it has been made yet."""
        if torch.compiler.is_compiling():
            return self._example_program(TRAINING)
        return self._program_for(TRAINING, args, autocast_of(self))

    def _program_for(self, mode: str, args: tuple[Any, ...], autocast: Any) -> _Program | None:
        """Return the program for a kind of call, made now where it is the first of it; None where it runs as it is."""
        programs, key = self._programs, self.lowering.key(self, args, autocast)
        if key is None:
            return None
        if (mode, key) not in programs:
            with self._making:  # threads whose first calls come together make one
                if (mode, key) not in programs:
                    made = self._program_of(self.lowering.program(self, args, autocast, in_training=mode == TRAINING))
                    if autocast is not None and key == self.lowering.example_key(self, autocast):
                        programs[mode, autocast] = made
                    programs[mode, key] = made
        return programs[mode, key]

    def _example_program(self, mode: str) -> _Program | None:
        """Return the program for the example inputs; under autocast, None where no call like them has come under it yet."""
        autocast = autocast_of(self)
        return self._programs.get(mode if autocast is None else (mode, autocast))

    def _apply(self, fn: Any, recurse: bool = True) -> RewiredModule:
        """Move or convert the module; what was chosen for another device or dtype, or by masks that lay there, is forgotten."""
        before = self._taken_in()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's is untyped
        if self.lowering is None or not (self._lowers or self.lowering.is_for(self)):
            return self
        if (self.lowering.backend == "auto" or self._has_masks()) and before != self._taken_in():
            self.recompile()
        return self

    def _taken_in(self) -> list[Any]:
        """Return what programs were made for: a device, a dtype, and masks."""
        first = next(self.parameters(), None)
        return [None if first is None else (first.device, first.dtype), *(id(_mask_of(module)) for module in self.modules())]

    def _has_masks(self) -> bool:
        return any(_mask_of(module) is not None for module in self.modules())

    def _program_of(self, made: Lowered) -> _Program:
        around = tuple(self.get_submodule(path) for path in made.bypassed)
        kinds = tuple(type(one) for one in around)
        writes = [0 if mask is None or mask.is_inference() else mask._version for mask in map(_mask_of, around)]
        masks = tuple(zip(map(_mask_of, around), writes, strict=True))
        devices = tuple({parameter.device.type for parameter in self.parameters()})
        return _Program(made, self._forward_of(made.graph), around, kinds, masks, [_settings(one) for one in around], devices)

    def __deepcopy__(self, memo: dict[int, Any]) -> RewiredModule:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        shell = _shell({name: copy.deepcopy(self.__dict__[name], memo) for name in _STATE if name in self.__dict__})
        graphs = [copy.deepcopy(graph) for graph in (self._graph, self.eval_graph)]
        return _fill(made, shell, graphs, type(self).__name__, self.swcompile, copy.copy(self.meta), self.lowering)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: self.__dict__[name] for name in _STATE if name in self.__dict__}
        graphs = [None if graph is None else _pack(graph) for graph in (self._graph, self.eval_graph)]
        return _rebuild, (state, graphs, type(self).__name__, self.swcompile, self.lowering)


def _may_be_lowered(module: nn.Module, around: Sequence[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether a call in eval mode may take the lowered graph, which does without the modules `around` it.

    Not where it is to be differentiated, and not where one of those modules was given a hook, or put into train mode, since.
    """
    if any(one.training or _has_hooks(one) for one in around):
        return False
    if not torch.is_grad_enabled():
        return True
    given = (value for value in tree_leaves((tuple(args), dict(kwargs))) if isinstance(value, Tensor))
    return not any(value.requires_grad for value in (*given, *module.parameters()))


def _mask_of(module: nn.Module) -> Tensor | None:
    return module._buffers.get("mask")


def _lower_anew(module: RewiredModule, _: Any) -> None:
    """Make the programs of a module anew that goes by masks, behind the loading of a state dict, its own or one around it."""
    if module._lowers and module._has_masks():
        module.recompile()


def _submodule(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path, or None where there is none."""
    found: nn.Module | None = root
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _is_taken_apart() -> bool:
    """Say whether torch.func, torch.jit.trace or torch.export takes operators apart, which what trains consists of."""
    if torch.compiler.is_compiling():  # which answers the other questions as if it did
        return torch.compiler.is_exporting()
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None


def autocast_of(module: nn.Module) -> Autocast | None:
    """Return the state of autocast on the device of a module's first parameter or buffer (the CPU without one); None for off."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return _autocast_on("cpu" if first is None else first.device.type)


def _autocast_on(device: str) -> Autocast | None:
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):  # "meta" has none to ask for
        return None
    return device, torch.get_autocast_dtype(device)


_SETTINGS = ("stride", "padding", "dilation", "groups", "eps", "approximate")
"""Attributes of modules that a program takes in."""


def _settings(module: nn.Module) -> tuple[Any, ...]:
    own, parameters = module.__dict__, module._parameters
    return (*(own.get(name) for name in _SETTINGS), *(parameters.get(name) is None for name in ("weight", "bias")))


def _is_told_of_all() -> bool:
    """Say whether something is to be told whenever any module runs (torch.nn.modules.module.register_module_forward_hook)."""
    return bool(torch.nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]  # torch's is untyped


def _has_hooks(module: nn.Module) -> bool:
    """Say whether something is to be told when a module runs, or when gradients come back through it."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(kinds)


def _is_watched(module: nn.Module) -> bool:
    """Say whether a masked layer is to tell the gradient of its product, which has one at masked places, too."""
    return getattr(module, "watch", None) is not None


def _shell(state: dict[str, Any]) -> nn.Module:
    """Return a bare module that holds `state`."""
    shell = nn.Module()
    shell.__dict__.update(state)
    return shell


def _hold_extra_state(made: RewiredModule) -> None:
    """Let a module whose root had extra state keep it as it was, in its state dict, too: the methods that made it are gone.

    nn.Module asks the class, and each GraphModule has one of its own.
    """
    if "_extra_state" in made.__dict__:
        kind: Any = type(made)
        kind.get_extra_state = lambda self: self.__dict__["_extra_state"]
        kind.set_extra_state = lambda self, state: self.__dict__.update(_extra_state=state)


def _fill(
    made: RewiredModule,
    shell: nn.Module,
    graphs: Sequence[fx.Graph | None],
    name: str,
    record: Any,
    meta: dict[str, Any],
    lowering: Any,
) -> RewiredModule:
    in_training, made_eval = graphs
    assert in_training is not None
    fx.GraphModule.__init__(made, shell, in_training, name)
    made.__dict__.update({key: shell.__dict__[key] for key in _STATE if key in shell.__dict__})
    _hold_extra_state(made)
    made.swcompile = record
    made.meta = meta
    made.eval_graph, made.lowering = made_eval, lowering
    made.recompile()
    return made


def _rebuild(state: dict[str, Any], graphs: list[list[_Packed] | None], name: str, record: Any, lowering: Any) -> RewiredModule:
    unpacked = [None if graph is None else _unpack(graph) for graph in graphs]
    return _fill(RewiredModule.__new__(RewiredModule), _shell(state), unpacked, name, record, {}, lowering)


# fx pickles a graph as its code and traces that again, through our own functions too. So graphs are pickled as plain data.


@dataclass(frozen=True)
class _Name:
    """Stands for a node in a packed graph, or for a function by its dotted path."""

    name: str


_Packed = tuple[str, str, Any, Any, Any, Any, dict[str, Any]]
"""A node as op, name, target, args, kwargs, type and what we noted in its meta."""


def _pack(graph: fx.Graph) -> list[_Packed]:
    def named(value: Any) -> Any:
        return _Name(value.name) if isinstance(value, fx.Node) else value

    return [
        (
            node.op,
            node.name,
            _path(node.target) if callable(node.target) else node.target,
            map_aggregate(node.args, named),
            map_aggregate(node.kwargs, named),
            node.type,
            {key: value for key, value in node.meta.items() if key.startswith("swcompile_")},
        )
        for node in graph.nodes
    ]


def _path(function: Callable[..., Any]) -> Any:
    """Return the dotted path of a function where it leads back to it, else the function: torch's own often know no better one."""
    path = _Name(_get_qualified_name(function))
    try:
        found = _resolve(path)
    except (ImportError, AttributeError):
        return function
    return path if found is function else function


def _resolve(path: _Name) -> Any:
    module, _, name = path.name.rpartition(".")
    return getattr(importlib.import_module(module or "builtins"), name)


def _unpack(packed: list[_Packed]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def found(value: Any) -> Any:
        return nodes[value.name] if isinstance(value, _Name) else value

    for op, name, target, args, kwargs, kind, meta in packed:
        called = _resolve(target) if isinstance(target, _Name) else target
        node = graph.create_node(op, called, map_aggregate(args, found), map_aggregate(kwargs, found), name, kind)
        node.meta.update(meta)
        nodes[name] = node
    return graph
