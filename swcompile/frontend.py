"""What a user gives, as tracing takes it: the module inside of other things, its example inputs, the modules to leave alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from swcompile.errors import SwnetError, first_line
from swcompile.plan import Options
from swcompile.trace import Traced, coupled

_log = logging.getLogger("swcompile")


def trace_given(
    how: Callable[[nn.Module, object, Sequence[str]], Traced],
    model: object,
    example_inputs: object,
    leaf_modules: Sequence[str | type[nn.Module]],
    options: Options,
) -> Traced:
    """Trace a model as options need it; `how` is swcompile.trace's `trace` or, without weights, `trace_structure`."""
    found = module_of(model)
    traced = _announced(how(found, inputs_of(model, example_inputs), _leaves(found, leaf_modules)))
    return coupled(traced) if options.prunes else traced


def inputs_of(model: object, given: object) -> object:
    """Return the example inputs that were given, or else those that an exported program was made with and has kept."""
    kept = getattr(model, "example_inputs", None) if given is None and _is_exported(model) else None
    return kept[0] if kept is not None and kept[0] and not kept[1] else given


def module_of(model: object) -> nn.Module:
    """Return what is to be traced: a module, the inside of an exported program, or what torch.compile has wrapped."""
    kind = type(model)
    try:
        _ = kind.__name__
    except Exception as error:  # a metaclass of the user's; messages name the class
        raise SwnetError(
            f"The class of the model cannot be asked for its name ({first_line(error)}); take its metaclass away."
        ) from error
    if _is_exported(model):
        exported: Any = model
        return module_of(exported.module())
    if kind.__name__ == "OptimizedModule" and isinstance(model, nn.Module):  # of torch.compile
        return module_of(model._modules["_orig_mod"])
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise SwnetError(f"The model that was given is {what}; pass an nn.Module that has been built, such as Net().")
    if issubclass(kind, nn.DataParallel | DistributedDataParallel):  # isinstance would ask a model's own __class__, too
        raise SwnetError(f"A {type(model).__name__} was given; pass the model inside, model.module, and wrap the result.")
    if issubclass(kind, torch.jit.ScriptModule):
        raise SwnetError(
            "A TorchScript module was given, whose code cannot be traced any more; pass the nn.Module it was made from."
        )
    return model


def _is_exported(model: object) -> bool:
    """Whether this is a torch.export.ExportedProgram: by name, since the import would cost seconds."""
    kind = type(model)
    return (kind.__module__, kind.__name__) == ("torch.export.exported_program", "ExportedProgram")


def _leaves(model: nn.Module, named: Sequence[str | type[nn.Module]]) -> tuple[str, ...]:
    """Return the paths of the modules that a user named, by path or by class."""
    if isinstance(named, str | type):
        named = (named,)
    if not isinstance(named, list | tuple | set | frozenset) or not all(isinstance(item, str | type) for item in named):
        raise SwnetError(f"leaf_modules={str(named)[:80]} was given; give a list of paths, such as 'router', or of module classes.")
    paths: list[str] = []
    for item in named:
        if isinstance(item, str):
            paths.append(item)
            continue
        found = [path for path, module in model.named_modules() if path and isinstance(module, item)]
        if not found:
            raise SwnetError(f"leaf_modules names {item.__name__}, but {type(model).__name__} holds no module of that class.")
        paths += found
    return tuple(dict.fromkeys(paths))


def _announced(traced: Traced) -> Traced:
    if traced.inferred:
        _log.warning(
            "no example input was given; traced with %s, inferred from the first layer", ", ".join(map(str, traced.example))
        )
    return traced
