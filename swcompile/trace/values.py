"""What is known of a value's channels while they are followed through a graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import Run

SHIFT = 32
MAX_SLOTS = 1 << 22
"""Values with more channel slots than this (huge flattened maps) become opaque."""


@dataclass(frozen=True)
class Value:
    """The channels of one tensor.

    `ids` has the sizes of the tensor's channel axes, which `axes` names in ascending order (more than one only between the
    reshapes of a channel shuffle or a flatten); each entry is producer and channel in one number. None means that an operation
    we cannot see through made the value; `parents` are then the producers it was made from, for paths.
    """

    ids: NDArray[np.int64] | None
    axes: tuple[int, ...] = ()
    parents: frozenset[int] = frozenset()
    constant: bool = False

    @property
    def known(self) -> bool:
        return self.ids is not None

    def producers(self) -> frozenset[int]:
        """Return the producers of the channels, or the parents of an opaque value."""
        if self.ids is None:
            return self.parents
        return frozenset((np.unique(self.ids) >> SHIFT).tolist())


CONSTANT = Value(None, constant=True)
"""A parameter, a buffer, or something computed from them alone."""


def opaque(*sources: Value) -> Value:
    """Return a value without origins, made from `sources`."""
    if sources and all(source.constant for source in sources):
        return CONSTANT
    return Value(None, parents=frozenset().union(*(source.producers() for source in sources)))


def from_runs(runs: Iterable[Run], axis: int) -> Value:
    """Return the value with these runs along one channel axis."""
    parts = [(np.int64(run.producer) << SHIFT) + run.first + np.arange(run.width, dtype=np.int64) * run.step for run in runs]
    return Value(np.concatenate(parts), (axis,))


def to_runs(ids: NDArray[np.int64]) -> tuple[Run, ...]:
    """Return a one-dimensional id array as maximal runs."""
    flat = ids.reshape(-1)
    if not len(flat):
        return ()
    starts = [0]
    steps = np.diff(flat)
    borders = np.concatenate([[0], np.flatnonzero(np.diff(steps)) + 1, [len(steps)]]).tolist() if len(steps) else [0]
    joined = False
    for left, right in pairwise(borders):
        if steps[left] not in (0, 1):
            starts.extend(range(left + 1, right + 1))
            joined = False
        elif joined:
            starts.append(left + 1)
            joined = right - left > 1
        else:
            joined = True
    stops = [*starts[1:], len(flat)]
    runs = []
    for start, stop in zip(starts, stops, strict=True):
        step = int(steps[start]) if stop - start > 1 else 1
        first = int(flat[start])
        runs.append(Run(start, stop, first >> SHIFT, first & ((1 << SHIFT) - 1), step))
    return tuple(runs)


def reshape(value: Value, old: Sequence[int], new: Sequence[int]) -> Value:
    """Follow the channels of a value through a reshape from shape `old` to shape `new`.

    Axes are grouped as far as they correspond (2x6x4 to 2x3x2x4: 6 becomes 3x2). A group that merges channels with other axes
    (flatten) repeats each channel; one that unmerges them drops the axes along which the channel does not change.
    """
    if value.ids is None or not value.axes:
        return value
    axes: list[int] = []
    pieces: list[tuple[list[int], list[int]]] = []
    for group in _groups(old, new):
        if any(axis in value.axes for axis in group[0]):
            pieces.append(group)
            axes.extend(group[1])
    sources = [axis for group in pieces for axis in group[0]]
    shape = [old[axis] if axis in value.axes else 1 for axis in sources]
    full = [old[axis] for axis in sources]
    if int(np.prod(full, dtype=np.float64)) > MAX_SLOTS:
        return opaque(value)
    spread = np.broadcast_to(value.ids.reshape(shape), full).reshape([new[axis] for axis in axes])
    return _drop_constant_axes(spread, axes)


def _drop_constant_axes(ids: NDArray[np.int64], axes: Sequence[int]) -> Value:
    """Forget channel axes along which the channel is always the same, but for the last one that is left."""
    kept = list(axes)
    for place in range(len(kept) - 1, -1, -1):
        first = ids.take([0], axis=place)
        if len(kept) > 1 and bool((ids == first).all()):
            ids = first.squeeze(place)
            del kept[place]
    return Value(np.ascontiguousarray(ids), tuple(kept))


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair runs of old and new axes with the same number of elements, as short as possible."""
    groups: list[tuple[list[int], list[int]]] = []
    left = right = 0
    while left < len(old) or right < len(new):
        ours, theirs = [], []
        a = b = 1
        if left < len(old):
            ours, a, left = [left], old[left], left + 1
        if right < len(new):
            theirs, b, right = [right], new[right], right + 1
        while a != b:
            if a < b and left < len(old):
                ours, a, left = [*ours, left], a * old[left], left + 1
            elif right < len(new):
                theirs, b, right = [*theirs, right], b * new[right], right + 1
            else:
                ours, a, left = [*ours, left], a * old[left], left + 1
        groups.append((ours, theirs))
    return groups


def permute(value: Value, order: Sequence[int]) -> Value:
    """Follow the channels through a permutation of axes: new axis i is old axis order[i]."""
    if value.ids is None or not value.axes:
        return value
    places = {axis: order.index(axis) for axis in value.axes}
    ranking = sorted(range(len(value.axes)), key=lambda index: places[value.axes[index]])
    return Value(value.ids.transpose(ranking), tuple(sorted(places.values())))
