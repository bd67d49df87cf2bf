"""The good saved models that mutations start from: every wiring, pruned layers, masks, shared weights, several inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import swnet
from swcompile.graph import LayerGraph
from swcompile.modelfile import load_model

MODELS = Path(__file__).resolve().parent / "models"
EXAMPLES = MODELS.parents[2] / "examples"

WIRED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {"p": 0.5}),
    "pruned": ("residual", {"p": 0.4, "density": 0.7, "head": True}),
    "masked": ("residual", {"p": 0.5, "wiring": "kernel", "skips": "remove"}),
    "shared": ("shared", {"p": 0.5, "head": True, "leaf_modules": "side"}),
}
"""The name of each subject, the file that builds its model, and how that is rewired."""


@dataclass(frozen=True)
class Subject:
    """A model as the user builds it, the files of the folder it was saved to, and its graph and outputs as they should be."""

    name: str
    file: Path
    model: nn.Module
    inputs: tuple[Tensor, ...]
    files: Mapping[str, bytes]
    graph: LayerGraph
    shapes: Mapping[bool, list[torch.Size]]


def subjects() -> tuple[Subject, ...]:
    """Build, rewire and save each subject; the same bytes each time."""
    return tuple(_subject(name, MODELS / f"{source}.py", options) for name, (source, options) in WIRED.items())


def _subject(name: str, file: Path, options: dict[str, Any]) -> Subject:
    torch.manual_seed(7)
    found = load_model(file)
    inputs = found.example_inputs or (torch.zeros(2, 16),)
    rewired = swnet.transform(found.model, inputs, seed=1, **options)
    graph = swnet.analyze(found.model, inputs, points=2, leaf_modules=options.get("leaf_modules", ())).graph
    with tempfile.TemporaryDirectory() as folder:
        swnet.save(rewired, Path(folder) / "saved")
        files = {path.name: path.read_bytes() for path in sorted((Path(folder) / "saved").iterdir())}
    shapes = {training: [out.shape for out in outputs(rewired.train(training), inputs)] for training in (True, False)}
    return Subject(name, file, found.model, inputs, files, graph, shapes)


def outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the tensors that a module gives, one or a tuple."""
    made = module(*inputs)
    return list(made) if isinstance(made, tuple) else [made]
