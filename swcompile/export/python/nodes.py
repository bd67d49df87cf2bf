"""What a node is to a reader: a statement, a piece of one, or something that is written where it is read."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from swcompile.export.python.expressions import INFIX, PREFIX
from swcompile.modules import resample
from swcompile.trace.lines import WHERE
from swcompile.trace.purify import WRITES
from swcompile.trace.rules import is_query
from swcompile.trace.shapes import SHAPE, Spec

_SIZES = ("size", "dim", "numel")


def is_cut(node: fx.Node) -> bool:
    return node.target in (torch.split, torch.functional.split) and len(node.args) == 3 and not node.kwargs


def sizes_of(sizes: Any) -> Any:
    """Return the sizes of a split as one number where they are all equal."""
    return (
        sizes[0] if isinstance(sizes, tuple | list) and len(set(sizes)) == 1 else list(sizes) if isinstance(sizes, tuple) else sizes
    )


def gathers(node: fx.Node) -> bool:
    """Whether rewiring has put a node in front of a layer: a concatenation, or a map brought to another size."""
    return WHERE not in node.meta and node.target in (torch.cat, resample)


def parts_of(node: fx.Node) -> list[fx.Node | None] | None:
    """Return the pieces of a value that is several, in their order (None: nobody reads it), where it is only taken apart."""
    spec = node.meta.get(SHAPE)
    if node.op not in ("call_function", "call_method") or not isinstance(spec, tuple | list) or not node.users:
        return None
    if not spec or not all(isinstance(part, Spec) for part in spec):
        return None
    parts: list[fx.Node | None] = [None] * len(spec)
    for user in node.users:
        place = user.args[1] if user.target is operator.getitem and user.args[0] is node else None
        if not isinstance(place, int) or parts[place] is not None:
            return None
        parts[place] = user
    return parts


def is_inlined(node: fx.Node) -> bool:
    """Whether a value is written where it is read: an attribute, a size, or a map that one concatenation brings to its size."""
    if node.op == "get_attr":
        return True
    if node.target is resample:
        return len(node.users) == 1 and next(iter(node.users)).target is torch.cat
    if node.op not in ("call_function", "call_method") or not node.users or WRITES in node.meta:
        return False
    if node.target is getattr:
        return True
    if node.target is operator.getitem or (node.op == "call_method" and node.target in _SIZES):
        return is_query(node)
    known = node.target in INFIX or node.target in PREFIX
    return known and len(node.users) == 1 and is_query(node)
