"""Import torchvision's models, also where its compiled operators are missing: beside a CPU build of torch, its wheel has none."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []


def torchvision_models() -> Any:
    """Return torchvision.models. Its Python code asks for operators by name as it is imported; names are enough for that."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _kept.append(library)  # an operator goes with its library
    return importlib.import_module("torchvision.models")
