"""What values are made of: concats of concats, splits and slices of either are followed to the maps that they are made of."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from swcompile.trace.names import name_of
from swcompile.trace.shapes import Spec, spec_of

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CATS = (torch.cat, torch.concat, torch.concatenate)
_SIZES = ("sizes", "chunks", "split_size", "split_size_or_sections")
"""How the second argument of a split is called: torch.chunk's, Tensor.split's and torch.split's."""


@dataclass(frozen=True)
class Piece:
    """Channels [start, stop) of a map."""

    source: fx.Node
    start: int
    stop: int


def pieces_of(node: fx.Node, axis: int) -> Iterator[Piece]:
    """Follow concats and splits back to the maps; yield what a value is made of, neighbours joined and no empty ones."""
    last: Piece | None = None
    for piece in _unjoined(node, axis):
        if piece.start == piece.stop:
            continue
        if last is not None and last.source is piece.source and last.stop == piece.start:
            last = Piece(last.source, last.start, piece.stop)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _unjoined(node: fx.Node, axis: int) -> Iterator[Piece]:
    if is_cat(node) and axis_of(node) == axis:
        for part in parts_of(node):
            yield from _unjoined(part, axis)
        return
    cut = _slice(node, axis)
    if cut is None:
        width = width_of(node, axis)
        yield Piece(node, 0, width)
        return
    source, start, stop = cut
    place = 0
    for piece in _unjoined(source, axis):
        low, high = max(start, place), min(stop, place + piece.stop - piece.start)
        if low < high:
            yield Piece(piece.source, piece.start + low - place, piece.start + high - place)
        place += piece.stop - piece.start


def concats_of(node: fx.Node, axis: int) -> Iterator[fx.Node]:
    """Yield the concats along an axis that a value is made by."""
    if is_cat(node) and axis_of(node) == axis:
        yield node
        for part in parts_of(node):
            yield from concats_of(part, axis)
    elif (cut := _slice(node, axis)) is not None:
        yield from concats_of(cut[0], axis)


def _slice(node: fx.Node, axis: int) -> tuple[fx.Node, int, int] | None:
    """Return source, start and stop of a value that is one piece of a split along the channels, or a slice of them."""
    if node.target is not operator.getitem:
        return None
    whole, which = node.args
    assert isinstance(whole, fx.Node), "what is indexed is made by a node"
    if isinstance(which, tuple):
        return _sliced(whole, which, axis)
    cut = _cuts(whole, axis)
    if cut is None or not isinstance(which, int):
        return None
    source, stops = cut
    start, stop = list(itertools.pairwise(stops))[which]
    return source, start, stop


def _sliced(whole: fx.Node, which: tuple[Any, ...], axis: int) -> tuple[fx.Node, int, int] | None:
    """Return source, start and stop where an index slices the channels alone."""
    spec = spec_of(whole)
    if spec is None or not all(isinstance(one, slice) for one in which) or len(which) > len(spec.shape):
        return None
    at = axis % len(spec.shape)
    if at >= len(which) or any(one != slice(None) for number, one in enumerate(which) if number != at):
        return None
    parts: Any = which[at].start, which[at].stop
    if which[at].step not in (None, 1) or not all(part is None or type(part) is int for part in parts):
        return None
    start, stop, _ = slice(*parts).indices(spec.shape[at])
    return whole, start, max(start, stop)


def _cuts(split: fx.Node, axis: int) -> tuple[fx.Node, list[int]] | None:
    """Return what is split or chunked along the channels, and where: from 0 to its width."""
    given: dict[str, Any] = dict(zip(("tensor", "sizes", "dim"), split.args, strict=False)) | dict(split.kwargs)
    source, sizes = given.get("tensor"), next((given[name] for name in _SIZES if name in given), None)
    if name_of(split.target) not in ("split", "chunk") or not isinstance(source, fx.Node):
        return None
    if not _same_axis(given.get("dim", 0), axis, source):
        return None
    width = width_of(source, axis)
    if isinstance(sizes, list | tuple):
        return (source, [0, *itertools.accumulate(sizes)]) if all(type(size) is int for size in sizes) else None
    if type(sizes) is not int:
        return None
    size = -(-width // sizes) if name_of(split.target) == "chunk" else sizes
    return source, [*range(0, width, size), width]


def is_cat(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in _CATS


def parts_of(cat: fx.Node) -> list[fx.Node]:
    """Return the parts of a concat; none where they are not written out. Empty ones of no shape, which torch ignores, are none."""
    given: Any = cat.args[0] if cat.args else cat.kwargs.get("tensors")
    if not isinstance(given, list | tuple) or not all(isinstance(part, fx.Node) for part in given):
        return []
    specs = {part: spec for part in (cat, *given) if (spec := spec_of(part)) is not None}
    if not all(part in specs for part in (cat, *given)):
        return []
    parts = [part for part in given if specs[part].shape != (0,)]
    return parts if len({len(specs[part].shape) for part in (cat, *parts)}) == 1 else []


def axis_of(cat: fx.Node) -> int | None:
    """Return 1 or -1 where a concat of known parts is along channels, which is what a product behind needs; None for any other."""
    return channels_of(cat) if parts_of(cat) else None


def channels_of(cat: fx.Node) -> int | None:
    spec = spec_of(cat)
    dim: Any = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    if spec is None or not isinstance(dim, int):
        return None
    dim %= len(spec.shape)
    rank = len(spec.shape)
    if dim == rank - 1 and rank in (2, 3):
        return -1
    return 1 if dim == 1 and rank in (3, 4, 5) else None


def _same_axis(dim: Any, axis: int, source: fx.Node) -> bool:
    spec = spec_of(source)
    return spec is not None and isinstance(dim, int) and dim % len(spec.shape) == axis % len(spec.shape)


def width_of(node: fx.Node, axis: int) -> int:
    spec = spec_of(node)
    return spec.shape[axis] if isinstance(spec, Spec) else 0


def are_alike(cat: fx.Node, pieces: Sequence[Piece], axis: int) -> bool:
    """Say whether maps are floating, of the concat's type and of its size but for the channels, and are all that it is made of."""
    whole = spec_of(cat)
    if whole is None or whole.dtype not in FLOATS or sum(piece.stop - piece.start for piece in pieces) != whole.shape[axis]:
        return False
    for spec in (spec_of(piece.source) for piece in pieces):
        if spec is None or spec.dtype != whole.dtype or _but_channels(spec, axis) != _but_channels(whole, axis):
            return False
    return True


def _but_channels(spec: Spec, axis: int) -> tuple[int, ...]:
    shape = list(spec.shape)
    del shape[axis]
    return tuple(shape)
