"""Rewired networks in forms that other programs take, each compared with the module before it is written.

torch-export    model.pt2        runs in torch without the model's code, with any batch; and compiled ahead of time (aot=True)
onnx            model.onnx       runs in onnxruntime and wherever ONNX does
python          model.py         a module of torch's layers and plain statements, and weights.safetensors: to own and edit
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from swcompile.errors import SwnetError, first_line, shown
from swcompile.export import onnx
from swcompile.export.compare import BATCHES, Comparison, Inputs, Run, compare, difference, inputs_like, plain, tolerance_of
from swcompile.export.program import PACKAGE, PROGRAM, exported, save_package, save_program
from swcompile.export.python import WEIGHTS, source
from swcompile.modules import RewiredModule
from swcompile.record import record
from swcompile.store import EXPORT, MANIFEST, replacing
from swcompile.trace import Example

FORMS = ("torch-export", "onnx", "python")
MODULE = "model.py"


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares with the module: the largest difference, as a part of the largest output.

    `open_batch` says whether it takes batches of any size, or that of the example alone.
    """

    to: str
    files: tuple[str, ...]
    comparison: Comparison
    open_batch: bool
    trained: bool | None = None
    """Whether train mode was compared, too: False where the module itself does not run in it, None for forms that have none."""


def export(
    module: nn.Module,
    folder: str | Path,
    *,
    to: str,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    aot: bool = False,
    tolerance: float | None = None,
    force: bool = False,
) -> Exported:
    """Write a rewired module to a new folder in another form, once that has been run and agrees with the module.

    Args:
        module: what swnet.transform, apply or load made. It is not changed. A lowered one is exported as it was before.
        folder: where to; it must not exist, or with `force` be an earlier export, which is replaced.
        to: "torch-export", "onnx" or "python".
        example_inputs: what to compare with; drawn from a seed in the shapes that the module was traced with where None.
        aot: for "torch-export", a package compiled by AOTInductor as well; takes a C++ compiler, and a minute.
        tolerance: the largest difference allowed, as a part of the largest output; 1e-5 in float32 (compare.TOLERANCES).

    Raises:
        SwnetError: where the module cannot be brought into that form, or the form computes something else. Nothing is written then.
    """
    if to not in FORMS:
        raise SwnetError(f"There is no form {shown(to)}; export to {', '.join(FORMS)}.")
    if aot and to != "torch-export":
        raise SwnetError(f"aot compiles what torch.export exported; it goes with torch-export, not with {to}.")
    example = record(module).example
    assert isinstance(module, RewiredModule), "only those have a record"
    tolerance_of(module, tolerance)
    if to == "onnx":
        onnx.check_installed()
    given = None if example_inputs is None else (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    with replacing(folder, kind=EXPORT, force=force) as fresh, torch.random.fork_rng(devices=[]):
        compared, open_batch, trained = _write(plain(module), example, given, to, fresh, aot, tolerance)
        files = tuple(sorted(file.name for file in fresh.iterdir()))
        _write_manifest(fresh, to, files, compared, open_batch)
    return Exported(to, files, compared, open_batch, trained)


def _write(
    module: RewiredModule, example: Example, given: Inputs | None, to: str, folder: Path, aot: bool, tolerance: float | None
) -> tuple[Comparison, bool, bool | None]:
    """Write the form and compare it; return how it compares, whether its batch is open, and whether train mode was compared."""
    if to == "python":
        open_batch = _takes_batches(module, example, given)
        text = source(module, example)
        with _written_as_python():
            run = _write_python(text, module, folder)
            compared = compare(module, run, _inputs(example, given, open_batch), tolerance, to)
            trained = _compare_in_training(module, run, inputs_like(example, None, given), compared.tolerance)
        return compared, open_batch, trained
    program, open_batch = exported(module, example, given)
    runs = [onnx.save(program, folder) if to == "onnx" else save_program(program, folder)]
    runs += [save_package(program, folder)] if aot else []
    found = [compare(module, one, _inputs(example, given, open_batch), tolerance, to) for one in runs]
    return max(found, key=lambda one: one.difference), open_batch, None


def _inputs(example: Example, given: Inputs | None, open_batch: bool) -> Iterator[Inputs]:
    for batch in BATCHES if open_batch else (None,):
        yield inputs_like(example, batch, given)


def _takes_batches(module: RewiredModule, example: Example, given: Inputs | None) -> bool:
    """Whether the module itself runs for other batches than the example's."""
    tried = copy.deepcopy(module)  # it may count its calls
    with torch.no_grad(), contextlib.suppress(Exception):  # whatever its code makes of another batch
        for inputs in _inputs(example, given, True):
            tried(*inputs)
        return True
    return False


@contextlib.contextmanager
def _written_as_python() -> Iterator[None]:
    """Make one error of all that can go wrong with source that was written: it is only known to run once it has been."""
    try:
        yield
    except (SwnetError, OSError):  # the latter is said by who makes the folder
        raise
    except Exception as error:
        raise SwnetError(f"The model cannot be written as Python: {first_line(error)}; take torch-export or onnx.") from error


def _write_python(text: str, module: RewiredModule, folder: Path) -> nn.Module:
    """Write model.py and its weights, and return the module that its load() gives."""
    (folder / MODULE).write_text(text, encoding="utf-8")
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / WEIGHTS).chmod((folder / MODULE).stat().st_mode & 0o777)  # safetensors leaves 0600, whatever the umask says
    scope: dict[str, object] = {"__name__": "model", "__file__": str(folder / MODULE)}
    exec(compile(text, str(folder / MODULE), "exec"), scope)  # as an import would, but for bytecode beside it
    made: nn.Module = scope["load"]()  # type: ignore[operator]  # of a scope, anything is an object
    return made


def _compare_in_training(module: RewiredModule, made: Run, inputs: Inputs, tolerance: float) -> bool:
    """Compare train mode, too, from one seed, and say whether the module itself runs in it. Raises SwnetError where they differ."""
    outputs = []
    for one in (module, made):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            try:
                outputs.append(copy.deepcopy(one).train()(*inputs))  # type: ignore[attr-defined]  # the other is a module, too
            except Exception:
                if one is made:
                    raise
                return False  # a batch that its norms do not take, for one
    found = difference(outputs[1], outputs[0])
    if not found <= tolerance:
        raise SwnetError(
            f"In train mode what was written as Python differs from the module by {found:.3g}, more than {tolerance:.3g}; nothing "
            "was kept. This is a bug of swcompile; take torch-export or onnx."
        )
    return True


def _write_manifest(folder: Path, to: str, files: Sequence[str], compared: Comparison, open_batch: bool) -> None:
    document = {
        "format": EXPORT.format,
        "version": 1,
        "to": to,
        "files": {name: (folder / name).stat().st_size for name in files},
        "compared": {"difference": compared.difference, "tolerance": compared.tolerance, "batches": list(compared.batches)},
        "open_batch": open_batch,
        "versions": {name: metadata.version(name) for name in ("torch", *(onnx.NEEDED if to == "onnx" else ()))},
    }
    (folder / MANIFEST).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


__all__ = ["FORMS", "PACKAGE", "PROGRAM", "Exported", "export"]
