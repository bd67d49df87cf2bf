"""Find the model and its example inputs in a user's Python file.

The file is the user's own code and is run as `import` would run it, siblings in its folder importable, but leaving no bytecode
behind. A model is looked for under, in this order: the entry that was named; a function `build_model` or `get_model`; a
module-level `nn.Module` called `model`; the only `nn.Module` subclass defined in the file that needs no arguments.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from swcompile.errors import SwnetError, first_line, shown

BUILDERS = ("build_model", "get_model")
INPUTS = "example_inputs"
QUANTIZED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)
MAX_ELEMENTS = 1 << 30
"""The largest example input: sizes on a command line or in a manifest may be typing errors."""

Shape = tuple[tuple[int, ...], torch.dtype]
"""Sizes and dtype of one example input."""


@dataclass(frozen=True)
class ModelFile:
    """A model that was found in a file.

    `example_inputs` are the file's own, None where it has none. `entry_name` is what `--entry` would have named. `root` is the
    folder that the file's imports start from, and `sources` the files under it that make the model: itself and its siblings.
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...] | None
    entry_name: str
    root: Path
    sources: tuple[Path, ...]


def load_model(path: str | Path, entry: str | None = None) -> ModelFile:
    """Run a Python file and build the model in it.

    `entry` names a function, a class or a module of the file. Raises SwnetError where the file cannot be run, holds no model or
    several, or where building the model fails; the message then carries the user's own exception, file and line.
    """
    file = Path(path)
    if file.suffix != ".py" or not os.path.isfile(file):  # which, unlike Path.is_file, takes any name
        raise SwnetError(f"There is no Python file {path}; name one that builds a model, such as model.py.")
    file = file.resolve()  # now: what is run may change the working directory
    if file.suffix != ".py":
        raise SwnetError(f"{path} is a link to {file.name}, which is no Python file; name one, such as model.py.")
    root, name = _package_root(file)
    with _importing(root, name) as new_modules:
        module = _run(file, name)
        with _blaming(file, "while a model was looked for in it"):  # by asking its objects, whose methods may raise
            entry_name, made = _find(module, entry, file.name)
            model = _build(entry_name, made, file)
            inputs = _example_inputs(module, file)
        sources = (file, *(source for source in new_modules() if source != file))
    return ModelFile(model, inputs, entry_name, root, tuple(dict.fromkeys(sources)))


def load_rewired(folder: str | Path) -> nn.Module:
    """Build the rewired model of a folder that `swcompile transform` wrote, by the model.py in it.

    Raises SwnetError where it holds none, or one that builds another model.
    """
    file = Path(folder) / "model.py"
    if not os.path.isfile(file):
        raise SwnetError(
            f"{folder} holds no model.py; name a folder that `swcompile transform` wrote. A model of your own is exported from "
            "Python: swcompile.export.export(swnet.load(folder, model), ...)."
        )
    model = load_model(file).model
    if "swcompile" not in vars(model):
        raise SwnetError(f"{file} builds a {type(model).__name__} that swcompile has not rewired; run `swcompile transform` on it.")
    return model


def parse_input(text: str) -> Tensor:
    """Make an example input, all zeros, from a command line's `1x3x32x32` or, with a dtype, `1x128:int64`."""
    sizes, colon, dtype = text.partition(":")
    parts = sizes.split("x")
    if not all(part.isascii() and part.isdigit() and len(part) < 12 for part in parts) or (colon and not dtype):
        raise SwnetError(f"--input {text!r} is not a shape; write sizes such as 1x3x32x32, or 1x128:int64 with a dtype.")
    shape, kind = check_shape(tuple(map(int, parts)), dtype or "float32", f"--input {text}")
    return torch.zeros(shape, dtype=kind)


def check_shape(sizes: tuple[int, ...], dtype: str, what: str) -> Shape:
    """Return a shape from numbers and the name of a dtype. Raises SwnetError where no such example input can be made."""
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise SwnetError(
            f"{what}: {shown(dtype)} is not a dtype; take float32, float64, bfloat16, int64 or another name of torch's."
        )
    if found in QUANTIZED:
        raise SwnetError(f"{what}: {dtype} is of quantized tensors, which cannot be traced; take float32, int64 or another dtype.")
    elements = 1
    for size in sizes:
        elements *= size
        if size < 1 or elements > MAX_ELEMENTS:
            written = "x".join(map(str, sizes))
            raise SwnetError(f"{what}: {written} is not a size to try; take sizes from 1 up, {MAX_ELEMENTS:,} elements at most.")
    return sizes, found


# Running the file


def _package_root(file: Path) -> tuple[Path, str]:
    """Return the folder that imports start from and the dotted name of the file seen from there, as `import` would have it."""
    root, names = file.parent, [] if file.stem == "__init__" else [file.stem.replace(".", "_")]
    while (root / "__init__.py").is_file() and root.parent != root:
        names.insert(0, root.name)
        root = root.parent
    return root, ".".join(names)


@contextlib.contextmanager
def _importing(root: Path, name: str) -> Iterator[Callable[[], list[Path]]]:
    """Make the files under `root` importable for the length of the block; yield a function that lists those imported since.

    Modules imported stay imported under their own names, for whoever looks them up later (torch.compile does); when the block
    fails they are forgotten. Modules of the same names from other folders are put aside and come back. So do `sys.path` and the
    working directory, whatever the files make of them.
    """
    known = dict(sys.modules)
    hidden = {key: found for key, found in known.items() if _shadows(key, found, root) and (key != name or "." in name)}
    writes, path, entries = sys.dont_write_bytecode, sys.path, list(sys.path)

    def imported() -> list[Path]:
        fresh = [module for key, module in list(sys.modules.items()) if known.get(key) is not module or key in hidden]
        files = [file for module in fresh if (file := _file_of(module)) is not None]
        return [file for file in files if file.suffix == ".py" and file.is_relative_to(root) and not _installed(file)]

    for key in hidden:
        del sys.modules[key]
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    folder = _folder()
    try:
        yield imported
    except BaseException:
        for key, module in list(sys.modules.items()):
            if key not in known and _inside(module, root):
                del sys.modules[key]
        raise
    finally:
        sys.modules.update(hidden)
        sys.path = path
        path[:] = entries
        sys.dont_write_bytecode = writes
        if folder is not None and _folder() != folder:
            with contextlib.suppress(OSError):  # it is gone
                os.chdir(folder)


def _folder() -> str | None:
    """Return the working directory, or None where it has been removed."""
    with contextlib.suppress(OSError):
        return os.getcwd()
    return None


def _shadows(name: str, module: ModuleType, root: Path) -> bool:
    """Whether an imported module stands in the way of a sibling of the same name."""
    top = name.split(".")[0]
    if top in sys.stdlib_module_names or not ((root / f"{top}.py").is_file() or (root / top / "__init__.py").is_file()):
        return False
    file = _file_of(module)
    return file is not None and not file.is_relative_to(root) and not _installed(file)


def _inside(module: ModuleType, root: Path) -> bool:
    file = _file_of(module)
    return file is not None and file.is_relative_to(root)


def _file_of(module: object) -> Path | None:
    """Return the file of a module, None where it has none: in sys.modules, code may have put any object under any name."""
    file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
    with contextlib.suppress(ValueError):  # a name that no file can have
        return Path(os.path.realpath(file)) if isinstance(file, str) else None
    return None


def _installed(file: Path) -> bool:
    return any(file.is_relative_to(place) for place in _places())


@functools.cache
def _places() -> frozenset[str]:
    """Return the folders that hold installed packages, also by their names behind links."""
    places = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
    return frozenset([*places, *map(os.path.realpath, places)])


def _run(file: Path, name: str) -> ModuleType:
    """Import the file under its own name, or under its folder's too where another file has taken that name."""
    if "." in name:
        with _blaming(file, "while it was imported"):
            return _module(importlib.import_module(name))
    place = file.resolve()
    before = sys.modules.get(name)
    if before is not None and getattr(before, "__file__", None) != str(place):
        name = f"{place.parent.name}.{name}"
        before = sys.modules.get(name)
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _blaming(file, "while it was imported"):
            spec.loader.exec_module(module)
    except BaseException:
        _restore(name, before)
        raise
    return module


def _module(found: object) -> ModuleType:
    """Return what an import gave, which a file may have replaced by any object."""
    if not isinstance(found, ModuleType):
        raise TypeError(f"it put an object of type {type(found).__name__} in place of its module")
    return found


def _restore(name: str, module: ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module


@contextlib.contextmanager
def _blaming(file: Path, when: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a SwnetError with the exception and the user's file and line."""
    try:
        yield
    except (SwnetError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit for one
        kind, said = type(error).__name__, first_line(error)
        text = kind if said == kind else f"{kind}: {said}"
        raise SwnetError(
            f"{file.name} failed {when}, at {_where(error, file)}: {text}. Run `python {file.name}` to see more."
        ) from error


def _where(error: BaseException, file: Path) -> str:
    if isinstance(error, SyntaxError) and isinstance(error.filename, str):
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(file.parent) and not _installed(Path(frame.filename))]
    last = own[-1] if own else None
    return f"{Path(last.filename).name}:{last.lineno}" if last else file.name


# Finding the model


def _find(module: ModuleType, entry: str | None, file: str) -> tuple[str, Any]:
    if entry is not None:
        return _named(module, entry, file)
    for found in _ranks(module):
        if len(found) == 1:
            return next(iter(found.items()))
        if found:
            raise SwnetError(f"{file} holds several models: {', '.join(found)}. Say which: {_entries(found)}.")
    raise SwnetError(
        f"{file} holds no model to take: no function {' or '.join(BUILDERS)}, no nn.Module called model, no nn.Module class "
        f"that needs no arguments. {_alternatives(module)}"
    )


def _ranks(module: ModuleType) -> Iterator[dict[str, Any]]:
    """Yield the candidates of each rank, best first; one object under two names is one candidate."""
    functions = {name: found for name in BUILDERS if callable(found := vars(module).get(name))}
    yield {name: found for place, (name, found) in enumerate(functions.items()) if found not in list(functions.values())[:place]}
    yield {"model": module.model} if isinstance(vars(module).get("model"), nn.Module) else {}
    yield {name: found for name, found in _classes(module).items() if not _needs(found)}


def _classes(module: ModuleType) -> dict[str, type[nn.Module]]:
    """Return the nn.Module classes that the file itself defines and that can run."""
    return {
        name: found
        for name, found in vars(module).items()
        if isinstance(found, type)
        and issubclass(found, nn.Module)
        and found.__module__ == module.__name__
        and found.__name__ == name
        and found.forward is not nn.Module.forward
    }


def _needs(call: Callable[..., object]) -> list[str]:
    """Return the arguments without which a function or class cannot be called."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty and parameter.kind not in optional]


def _alternatives(module: ModuleType) -> str:
    """Say what the file does hold, and what could be typed or written."""
    ready = [name for name, found in vars(module).items() if isinstance(found, nn.Module)]
    ready += [name for name, found in _classes(module).items() if not _needs(found)]
    functions = [
        name
        for name, found in vars(module).items()
        if inspect.isfunction(found) and found.__module__ == module.__name__ and not _needs(found) and not name.startswith("_")
    ]
    if ready or functions:
        return f"If it is one of these, say so: {_entries([*ready, *functions])}."
    classes = [f"{name} needs {', '.join(_needs(found))}" for name, found in _classes(module).items()]
    found = f"Found: class {'; class '.join(classes)}. " if classes else ""
    return f"{found}Write a function build_model() that returns the model."


def _entries(names: Sequence[str] | dict[str, Any]) -> str:
    return " or ".join(f"--entry {name}" for name in list(names)[:8])


def _named(module: ModuleType, entry: str, file: str) -> tuple[str, Any]:
    found = vars(module).get(entry)
    if found is None:
        raise SwnetError(f"{file} defines nothing called {entry!r}. {_alternatives(module)}")
    if not callable(found):
        raise SwnetError(f"{entry} in {file} is of type {type(found).__name__}; --entry names a function, a class or an nn.Module.")
    return entry, found


def _build(name: str, found: Any, file: Path) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    missing = _needs(found)
    if missing:
        raise SwnetError(
            f"{name} in {file.name} needs arguments: {', '.join(missing)}. Write a function build_model() that passes them."
        )
    with _blaming(file, f"while {name}() built the model"):
        model = found()
    if not isinstance(model, nn.Module):
        raise SwnetError(
            f"{name}() in {file.name} returned an object of type {type(model).__name__}; it should return an nn.Module."
        )
    return model


def _example_inputs(module: ModuleType, file: Path) -> tuple[Tensor, ...] | None:
    found = vars(module).get(INPUTS)
    if callable(found):
        missing = _needs(found)
        if missing:
            raise SwnetError(f"{INPUTS} in {file.name} needs arguments: {', '.join(missing)}. It is called without any.")
        with _blaming(file, f"while {INPUTS}() was called"):
            found = found()
    if found is None:
        return None
    inputs = (found,) if isinstance(found, Tensor) else found
    if not isinstance(inputs, list | tuple) or not inputs or not all(isinstance(item, Tensor) for item in inputs):
        raise SwnetError(f"{INPUTS} in {file.name} should be a tensor or a tuple of tensors; it is {type(found).__name__}.")
    return tuple(inputs)
