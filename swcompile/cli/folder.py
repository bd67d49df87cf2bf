"""What `swcompile transform` writes: the rewired model, its counts and report, the model's own code, and a program that builds it.

This needs torch, and is imported behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import fx

from swcompile import report, store
from swcompile.check import Ledger
from swcompile.cli.screen import json_text
from swcompile.errors import first_line
from swcompile.modelfile import ModelFile
from swcompile.record import Record
from swcompile.report import Facts


def write(
    out: Path, found: ModelFile, rewired: fx.GraphModule, known: Record, ledger: Ledger, pages: Mapping[str, bytes], *, force: bool
) -> None:
    """Write the folder, whole or not at all; `known` and `ledger` are of `rewired`, `pages` are what `pages` gives."""
    copies = {f"source/{file.relative_to(found.root).as_posix()}": file.read_bytes() for file in found.sources}
    program = MODEL_PY.format(source=next(iter(copies)), entry=found.entry_name)
    counts = f"{json_text(ledger.as_dict())}\n"
    extras = {**copies, "ledger.json": counts.encode(), "model.py": program.encode(), **pages}
    name = type(found.model).__name__
    store.write(out, known.plan, rewired.state_dict(), known.example_shapes, model=name, extras=extras, force=force)


def pages(seen: Facts, *, plots: bool) -> tuple[dict[str, bytes], str]:
    """Return the report, and with `plots` its figures, as files of the folder; without `plots`, none and why where drawing fails.

    The folder is written once, with all that is in it, so that an interruption leaves nothing; hence it is drawn first.
    """
    if report.missing() is not None and not plots:
        return {}, report.absent()
    try:
        pictures = {f"{store.PLOTS}/{name}": content for name, content in report.plots(seen).items()} if plots else {}
        return {store.REPORT: report.page(seen).encode(), **pictures}, ""
    except Exception as error:  # whatever it is: a picture that nobody asked for is not worth the result
        if plots:
            raise
        return {}, f"it could not be drawn ({type(error).__name__}: {first_line(error)})."


MODEL_PY = '''"""A model rewired by swcompile, ready to train or to run.

    from model import build_model          # with this folder on the path
    model = build_model()                  # an ordinary nn.Module, with the weights in weights.safetensors

source/ holds the model's own code as it was, and is the place for other files that this code reads; plan.json says what each
layer reads. Move the folder as a whole.
"""

import contextlib
import os
import sys
from pathlib import Path

import swnet
from swcompile.modelfile import load_model
from torch import nn

HERE = Path(__file__).resolve().parent


def build_original() -> nn.Module:
    """Build the model as it was before it was rewired."""
    return load_model(HERE / {source!r}, {entry!r}).model


def build_model() -> nn.Module:
    """Build the rewired model and load its weights."""
    return swnet.load(HERE, build_original())


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # what the model's own code prints
        model = build_model()
    try:
        print(model.swcompile.plan, flush=True)
    except BrokenPipeError:  # `| head` has read enough; let Python's own flush at the end go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
'''
