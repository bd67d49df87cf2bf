"""Write a module of torch.nn as the call that makes one like it: nn.Conv2d(64, 128, 3, padding=1, bias=False)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from swcompile.errors import SwnetError
from swcompile.export.python.expressions import Expression, literal
from swcompile.modules import MASKED

_PLAIN = {masked: plain for plain, masked in MASKED.items()}
_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "output_padding")
"""Arguments that convolutions keep as tuples, one number a dimension."""
_WITH_MASK = ("weight", "mask")


def constructor(module: nn.Module) -> str | None:
    """Return the source of a call that makes a module like this one, with fresh parameters; None where there is no such call.

    Every argument that changes nothing is left out. "Like this one" is found out by making it: the same settings, and the same
    state dict but for the values.
    """
    kind = _PLAIN.get(type(module), type(module))
    if getattr(nn, kind.__name__, None) is not kind:
        return None
    try:
        places = _places(kind)
        arguments = dict(_arguments(module, places))
    except (AttributeError, TypeError, ValueError):
        return None
    if not _makes(module, kind, arguments):
        return None
    for place in reversed(places):
        fewer = {name: value for name, value in arguments.items() if name != place.name}
        if place.name in arguments and place.default is not place.empty and _makes(module, kind, fewer):
            arguments = fewer
    prefix = "" if type(module) in _PLAIN else "nn."
    return f"{prefix}{type(module).__name__}({_written(places, arguments)})"


def _places(kind: type[nn.Module]) -> list[inspect.Parameter]:
    """Return the parameters of a constructor. Those of recurrent layers are their base's, since their own says *args."""
    recurrent = issubclass(kind, nn.RNNBase)
    places = inspect.signature(nn.RNNBase.__init__ if recurrent else kind.__init__).parameters
    left_out = {"self", *(("mode",) if recurrent else ()), *(("proj_size",) if recurrent and kind is not nn.LSTM else ())}
    found = [place for place in places.values() if place.name not in left_out]
    return [*found, inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")] if kind is nn.RNN else found


def _arguments(module: nn.Module, places: list[inspect.Parameter]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments that a module was made with, as its attributes tell."""
    for place in places:
        if place.kind in (place.VAR_POSITIONAL, place.VAR_KEYWORD) or place.name == "device":
            continue
        value = getattr(module, place.name, place.default)
        if place.name == "dtype":
            value = next((one.dtype for one in (*module.parameters(), *module.buffers()) if one.is_floating_point()), None)
        elif place.name == "bias" and not isinstance(value, bool):
            value = value is not None if "bias" in dir(module) else getattr(module, "in_proj_bias", None) is not None
        elif place.name in _CONVOLUTION and isinstance(value, tuple) and len(set(value)) == 1 and hasattr(module, "out_channels"):
            value = value[0]
        if value is place.empty:
            raise AttributeError(place.name)
        yield place.name, value


def _makes(module: nn.Module, kind: type[nn.Module], arguments: dict[str, Any]) -> bool:
    """Whether a constructor makes a module like this one."""
    try:
        with torch.device("meta"):
            made = kind(**arguments)
    except Exception:  # whatever a constructor makes of fewer arguments
        return False
    same = _agree(made, module) and _shapes(made) == _shapes(module)
    return same and type(module) in (kind, MASKED.get(kind))


def _agree(made: nn.Module, module: nn.Module) -> bool:
    """Whether a module has the settings of a freshly made one; what else users have put on it is no setting, but for methods."""
    if [path for path, _ in _own(made)] != [path for path, _ in _own(module)]:
        return False
    fresh, found = _settings(made), _settings(module)
    added = {name.rpartition(".")[2] for name in found.keys() - fresh.keys()}
    same = all(name in found and found[name] == value for name, value in fresh.items())
    return same and not any(hasattr(type(one), name) for name in added for _, one in _own(module))


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return what of a module is neither a tensor nor its mode, those inside included."""
    return {
        f"{path}.{name}": value
        for path, one in _own(module)
        for name, value in vars(one).items()
        if not name.startswith("_") and name not in ("training", "watch")
    }


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and those inside. Convolutions and linear layers hold none, but for a layer that grew beside (GROWN)."""
    if type(module) in MASKED or type(module) in _PLAIN:
        yield "", module
    else:
        yield from module.named_modules()


def _shapes(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return shape and dtype of what a module's state dict holds, but for masks."""
    return {
        f"{path}.{name}": (tuple(tensor.shape), tensor.dtype, isinstance(tensor, nn.Parameter))
        for path, one in _own(module)
        for held in (one._parameters, one._buffers)
        for name, tensor in held.items()
        if tensor is not None and name != "mask"
    }


def _written(places: list[inspect.Parameter], arguments: dict[str, Any]) -> str:
    """Return arguments as a person would write them: those without defaults first, by place, and the others by name."""
    parts: list[str] = []
    in_place = True
    for place in places:
        in_place &= place.name in arguments and place.default is place.empty
        if place.name in arguments:
            text = literal(arguments[place.name], _no_node)
            parts.append(text if in_place else f"{place.name}={text}")
    return ", ".join(parts)


def _no_node(_: Any) -> Expression:
    raise AssertionError("a module is not made of values")


def unwritable(path: str, module: nn.Module) -> SwnetError:
    """Return the error for a module that no constructor makes."""
    if type(module).__module__ == nn.Transformer.__module__:
        return SwnetError(
            f"{path} is a {type(module).__name__}, which does not keep the arguments that it was made with, so its "
            "constructor's call cannot be written as Python source. Export to torch-export or onnx."
        )
    return SwnetError(
        f"{path} is a {type(module).__name__} that no call of its constructor makes with these settings, so it cannot be written "
        "as Python source. Replace it by a plain module of torch.nn, or export to torch-export or onnx."
    )
