"""What commands do alike with the model of MODEL.PY: load it, say what was found in it, and where its graph is written.

This needs torch, and is imported behind it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from torch import Tensor

from swcompile import graphfile, modelfile, store, tables
from swcompile.errors import SwnetError
from swcompile.modelfile import ModelFile
from swcompile.survey import Survey


def load(path: str, entry: str | None, inputs: Sequence[str]) -> tuple[ModelFile, tuple[Tensor, ...] | None]:
    """Return the model of a file, and the example inputs: those of --input, else the file's, else None."""
    shapes = tuple(modelfile.parse_input(text) for text in inputs)
    found = modelfile.load_model(path, entry)
    if "swcompile" in vars(found.model):
        raise SwnetError(f"{path} builds a model that swcompile has rewired already. Name the file of the original model.")
    return found, shapes or found.example_inputs


def graph_path(name: str | None, out: str | None = None) -> Path | None:
    """Return where --graph writes, checked and absolute before any work: the user's file may change the folder.

    It must not be one of the files that go into the folder `out`.
    """
    if name is None:
        return None
    path = graphfile.check_path(name)
    if out is not None and str(path) in {os.path.abspath(os.path.join(out, part)) for part in store.MODEL.files}:
        raise SwnetError(f"--graph {name} is a file of the model that goes to {out}; name another one.")
    return path


def facts(found: ModelFile, surveyed: Survey) -> dict[str, Any]:
    """Return what the documents of analyze and check have in common."""
    return {
        "model": found.entry_name,
        "example_inputs": [str(item) for item in surveyed.example],
        "inferred": surveyed.inferred,
        "tracing": surveyed.steps,
        "eligible": surveyed.eligible,
        "refused": surveyed.refused,
        "unreached": surveyed.unreached,
        "opaque": surveyed.opaque,
        "share": tables.share(surveyed.graph, dict(surveyed.refused)),
    }


def remarks(surveyed: Survey) -> Iterator[RenderableType]:
    """Yield the same for people: what can be rewired, how the model was traced, and what was left as it is."""
    yield str(tables.share(surveyed.graph, dict(surveyed.refused)))
    steps = surveyed.steps
    yield tables.tracing(steps.step, steps.why, steps.where, steps.fixed)
    if steps.assigned:
        yield f"{steps.about_assigned}."
    if steps.islands:
        yield tables.islands([(island.path, island.reason, island.where) for island in steps.islands])
    if surveyed.opaque:
        yield tables.opaque(surveyed.opaque)
