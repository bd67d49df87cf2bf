"""Example inputs as Python code that makes some like them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from swcompile.trace import Example
from swcompile.trace.shapes import Spec


def as_code(example: Example) -> str:
    """Return example inputs as Python code that makes some like them; by their name where they hold what has no such code."""
    try:
        items = [_item_as_code(item) for item in example]
    except ValueError:
        return "example_inputs"
    return items[0] if len(items) == 1 and not isinstance(example[0], tuple | list) else _tuple_of(items)


def _item_as_code(item: object) -> str:
    """Return one example input as Python code. Raises ValueError for an object of a class that is not Python's own."""
    if isinstance(item, Spec):
        kind = "" if item.dtype == torch.float32 else f", dtype={item.dtype}"
        sizes = ", ".join(map(str, item.shape)) or "()"
        return f"torch.zeros({sizes}{kind})"
    if type(item) is dict:
        return f"{{{', '.join(f'{_item_as_code(key)}: {_item_as_code(value)}' for key, value in item.items())}}}"
    if type(item) is list or type(item) is tuple:
        items = [_item_as_code(one) for one in item]
        return f"[{', '.join(items)}]" if type(item) is list else _tuple_of(items)
    if item is None or type(item) in (bool, int, str) or (type(item) is float and np.isfinite(item)):
        return repr(item)
    raise ValueError(f"no code for a {type(item).__name__}")


def _tuple_of(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
