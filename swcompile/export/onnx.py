"""Export to ONNX, and run it in onnxruntime."""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from swcompile.errors import SwnetError, first_line
from swcompile.export.compare import Run

MODEL = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Raise SwnetError where one of the packages that ONNX takes is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SwnetError(
            f"Export to ONNX needs {', '.join(NEEDED)}; missing: {', '.join(missing)}. Install them: pip install 'swcompile[onnx]'."
        )


def save(program: ExportedProgram, folder: Path) -> Run:
    """Write model.onnx, and return it as read back by onnxruntime on the CPU: a function of tensors that gives a list of them."""
    file = folder / MODEL
    try:
        with warnings.catch_warnings():
            # torch's own, at each exported program that is copied
            warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        made.save(file)
    except Exception as error:  # of torch.onnx, onnxscript or onnx
        raise SwnetError(f"torch.onnx cannot export it: {first_line(error)}. Take another form, such as torch-export.") from error
    _name_batch(file)
    return _session(file)


def _name_batch(file: Path) -> None:
    """Call the open size "batch", which torch.export names s77 or the like."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(str(file), load_external_data=False)
    sizes = [size for value in model.graph.input for size in value.type.tensor_type.shape.dim]
    symbol = next((size.dim_param for size in sizes if size.dim_param), None)
    if symbol is None:
        return
    for values in (model.graph.input, model.graph.output, model.graph.value_info):
        for size in (size for value in values for size in value.type.tensor_type.shape.dim):
            if size.dim_param:
                size.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", size.dim_param)
    onnx.save(model, str(file))


def _session(file: Path) -> Run:
    runtime = importlib.import_module("onnxruntime")
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no class for all of its own
        raise SwnetError(
            f"onnxruntime does not take what was exported: {first_line(error)}. Export in float32, or in another form."
        ) from error
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: tensor.detach().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return run
