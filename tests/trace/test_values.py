"""swcompile.trace.values: channels through reshapes and permutations, against a tensor that carries its channel in every cell."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swcompile.graph import Run
from swcompile.trace.values import CONSTANT, MAX_SLOTS, Value, from_runs, opaque, permute, reshape, to_runs

SHIFT = 32


def spread(value: Value, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Write the channel of every cell of a tensor of this shape: what a Value stands for."""
    assert value.ids is not None
    sizes = [size if axis in value.axes else 1 for axis, size in enumerate(shape)]
    return np.broadcast_to(value.ids.reshape(sizes), shape)


@st.composite
def shapes_and_values(draw: st.DrawFn) -> tuple[tuple[int, ...], Value]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    ids = draw(st.lists(st.integers(0, 5), min_size=shape[axis], max_size=shape[axis]))
    return shape, Value(np.array(ids, np.int64), (axis,))


def factorings(number: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw shapes of `number` elements."""
    divisors = [size for size in range(1, number + 1) if number % size == 0]
    return st.lists(st.sampled_from(divisors), max_size=3).map(lambda sizes: _completed(sizes, number))


def _completed(sizes: list[int], number: int) -> tuple[int, ...]:
    kept: list[int] = []
    for size in sizes:
        if number % (math.prod(kept) * size) == 0:
            kept.append(size)
    return (*kept, number // math.prod(kept))


@settings(deadline=None)
@given(data=st.data(), drawn=shapes_and_values())
def test_reshape_carries_the_channel_of_every_cell(data: st.DataObject, drawn: tuple[tuple[int, ...], Value]) -> None:
    shape, value = drawn
    cells = spread(value, shape)
    for _ in range(3):
        new = data.draw(factorings(math.prod(shape)))
        value, cells, shape = reshape(value, shape, new), cells.reshape(new), new
        np.testing.assert_array_equal(spread(value, shape), cells)


@settings(deadline=None)
@given(data=st.data(), drawn=shapes_and_values())
def test_permute_carries_the_channel_of_every_cell(data: st.DataObject, drawn: tuple[tuple[int, ...], Value]) -> None:
    shape, value = drawn
    cells = spread(value, shape)
    for _ in range(3):
        new = data.draw(factorings(math.prod(shape)))
        value, cells = reshape(value, shape, new), cells.reshape(new)
        order = data.draw(st.permutations(range(len(new))))
        value, cells, shape = permute(value, order), cells.transpose(order), tuple(new[axis] for axis in order)
        np.testing.assert_array_equal(spread(value, shape), cells)


@given(ids=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=30))
def test_runs_are_the_ids_again_and_cover_every_slot_once(ids: list[tuple[int, int]]) -> None:
    flat = np.array([(producer << SHIFT) + channel for producer, channel in ids], np.int64)
    runs = to_runs(flat)
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])][: len(runs)]
    if ids:
        assert runs[-1].stop == len(ids)
        np.testing.assert_array_equal(from_runs(runs, 1).ids, flat)


@given(
    parts=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(2, 9), st.sampled_from([0, 1])), min_size=1, max_size=6
    )
)
def test_runs_are_maximal(parts: list[tuple[int, int, int, int]]) -> None:
    """No two neighbours could be one run, so a long stretch never falls apart."""
    runs = [Run(0, width, producer, first, step) for producer, first, width, step in parts]
    ids = np.concatenate([from_runs([run], 1).ids for run in runs])  # type: ignore[arg-type]
    assert len(to_runs(ids)) <= 2 * len(parts)


def test_a_shuffle_of_two_groups_interleaves_them() -> None:
    value = Value(np.arange(6, dtype=np.int64), (1,))
    shuffled = reshape(permute(reshape(value, (2, 6, 5, 5), (2, 2, 3, 5, 5)), (0, 2, 1, 3, 4)), (2, 3, 2, 5, 5), (2, 6, 5, 5))
    assert shuffled.axes == (1,)
    assert shuffled.ids is not None
    assert shuffled.ids.tolist() == [0, 3, 1, 4, 2, 5]


def test_flatten_repeats_each_channel_and_unflatten_takes_it_back() -> None:
    value = Value(np.arange(3, dtype=np.int64), (1,))
    flat = reshape(value, (2, 3, 2, 2), (2, 12))
    assert flat.ids is not None
    assert to_runs(flat.ids) == (Run(0, 4, 0, 0, 0), Run(4, 8, 0, 1, 0), Run(8, 12, 0, 2, 0))
    back = reshape(flat, (2, 12), (2, 3, 2, 2))
    assert back.axes == (1,)
    assert back.ids is not None
    assert back.ids.tolist() == [0, 1, 2]


def test_opaque_values_keep_what_they_were_made_from() -> None:
    two = from_runs([Run(0, 2, 1, 0), Run(2, 4, 4, 0)], 1)
    assert opaque(two).parents == {1, 4}
    assert opaque(opaque(two), Value(None, parents=frozenset({9}))).parents == {1, 4, 9}
    assert opaque(CONSTANT, CONSTANT) is CONSTANT
    assert not opaque(CONSTANT, two).constant


def test_a_huge_flattened_map_is_opaque() -> None:
    side = 1 << 11
    value = from_runs([Run(0, 4, 0, 0)], 1)
    assert 4 * side * side > MAX_SLOTS
    assert not reshape(value, (1, 4, side, side), (1, 4 * side * side)).known


def test_unknown_values_go_through_unchanged() -> None:
    value = Value(None, parents=frozenset({3}))
    assert reshape(value, (2, 3), (6,)) is value
    assert permute(value, (1, 0)) is value
