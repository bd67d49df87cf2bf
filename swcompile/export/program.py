"""Export by torch.export: a .pt2 file that torch runs without the model's code, and a package compiled ahead of time."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from swcompile.errors import SwnetError, first_line
from swcompile.export.compare import Inputs, Run, has_batch, inputs_like
from swcompile.modules import RewiredModule
from swcompile.trace import Example

PROGRAM, PACKAGE = "model.pt2", "model.aot.pt2"
MAX_BATCH = 1 << 20


def exported(module: RewiredModule, example: Example, given: Inputs | None) -> tuple[ExportedProgram, bool]:
    """Return the program of a plain module in eval mode, and whether it leaves the batch open.

    It does where the module does; one that computes with the batch size of the example (Python that decides by it) is exported for
    that one. Raises SwnetError where torch.export cannot.
    """
    batch: Any = Dim("batch", min=1, max=MAX_BATCH)
    open_batch = tuple({0: batch} if has_batch(spec, example) else None for spec in example)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, inputs_like(example, 2, given), dynamic_shapes=open_batch), True
    except Exception:  # torch.export has many, and what matters is whether it can do without
        pass
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, inputs_like(example, None, given)), False
    except Exception as error:
        raise SwnetError(
            f"torch.export cannot export {type(module).__name__}: {first_line(error)}. Take another form, such as python."
        ) from error


def save_program(program: ExportedProgram, folder: Path) -> Run:
    """Write model.pt2, and return it as read back."""
    with _quiet():
        torch.export.save(program, folder / PROGRAM)
        run: Run = torch.export.load(folder / PROGRAM).module()
    return run


def save_package(program: ExportedProgram, folder: Path) -> Run:
    """Compile the program ahead of time by AOTInductor into model.aot.pt2, and return it as read back. Needs a C++ compiler."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise SwnetError("AOTInductor needs a C++ compiler, and there is none. Install g++ or clang++, or leave --aot out.")
    inductor: Any = torch._inductor  # torch types neither of the two
    try:
        with _quiet(), torch.no_grad():
            inductor.aoti_compile_and_package(program, package_path=str(folder / PACKAGE))
            run: Run = inductor.aoti_load_package(str(folder / PACKAGE))
    except Exception as error:
        raise SwnetError(f"AOTInductor cannot compile it: {first_line(error)}. Leave --aot out.") from error
    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch warns of its own code: deprecations that nobody but torch can mend."""
    with warnings.catch_warnings():
        for message, kind in _OF_TORCH:
            warnings.filterwarnings("ignore", message=message, category=kind)
        yield


_OF_TORCH: tuple[tuple[str, type[Warning]], ...] = (
    (r".*treespec, LeafSpec", FutureWarning),  # at each exported program that is copied
    (r".*torch\.jit\.script_method. is deprecated", DeprecationWarning),  # as inductor is imported
)
