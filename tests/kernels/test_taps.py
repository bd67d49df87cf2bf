from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swkernels import Taps, launch
from swkernels.taps import places

RUNS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(1, 12)).map(
        lambda run: (run[0], run[1] * 2, run[1] * 2 + run[2] * 2)
    ),
    min_size=1,
    max_size=6,
).map(tuple)


@given(RUNS)
def test_groups_hold_neighbours_in_order(runs: tuple[tuple[int, int, int], ...]) -> None:
    taps = Taps(runs)
    wanted = [(source, channel) for source, start, stop in runs for channel in range(start, stop)]
    starts, owners = taps.starts, taps.owners_of(taps.group)
    found = [(owners[k // taps.group], starts[k // taps.group] + k % taps.group) for k in range(len(taps))]
    assert found == wanted
    assert taps.group in (2, 4, 8)
    assert all(start % taps.group == 0 for start in starts)


@given(RUNS)
def test_taps_come_back_from_a_flat_list_and_from_a_pickle(runs: tuple[tuple[int, int, int], ...]) -> None:
    taps = Taps(runs)
    assert Taps.of_flat(taps.flat()) == taps
    assert pickle.loads(pickle.dumps(taps)) == taps


@given(RUNS, st.randoms())
def test_taps_take_what_a_slice_takes(runs: tuple[tuple[int, int, int], ...], random: object) -> None:
    maps = [torch.randn(3, 64) for _ in range(5)]
    expected = torch.cat([maps[source][:, start:stop] for source, start, stop in runs], 1)
    assert torch.equal(Taps(runs).take(maps), expected)


def test_one_run_is_not_copied() -> None:
    source = torch.zeros(2, 16)
    assert Taps.of((0, 4), (4, 12)).take([source]).data_ptr() == source.data_ptr()


@pytest.mark.parametrize("runs", [(), ((0, 4, 4),), ((0, -2, 4),), ((-1, 0, 4),)])
def test_empty_and_negative_taps_are_refused(runs: tuple[tuple[int, int, int], ...]) -> None:
    with pytest.raises(ValueError, match=r"Taps are \(map, start, stop\)"):
        Taps(runs)


@pytest.mark.parametrize("count", [2, 4, 5, 11])
def test_maps_that_lie_apart_are_found_by_their_distance_from_the_first(count: int) -> None:
    maps = [torch.zeros(6, 24 + 8 * place)[:, 8 : 24 + 8 * place] for place in range(count)]
    taps = Taps(tuple((place, 0, 16) for place in reversed(range(count))))
    found = places(maps, taps)
    assert found.strides is not None
    size = maps[0].element_size()
    for k in range(len(taps)):
        source = maps[taps.owners_of(found.group)[k // found.group]]
        address = found.base.data_ptr() + (int(found.starts[k // found.group]) + k % found.group) * size
        assert address == source.data_ptr() + (k % 16) * size
        assert int(found.strides[k // found.group]) == source.stride(0)


def test_tables_longer_than_one_program_writes() -> None:
    maps = [torch.zeros(2, 1601) for _ in range(2)]
    found = places(maps, Taps(((0, 0, 1601), (1, 0, 1601))))
    assert found.group == 1
    distance = (maps[1].data_ptr() - maps[0].data_ptr()) // 4
    assert found.starts.tolist() == [*range(1601), *range(distance, distance + 1601)]


def test_groups_shrink_where_maps_lie_askew() -> None:
    maps = [torch.zeros(4, 16), torch.zeros(4, 18)[:, 2:]]
    taps = Taps(((0, 0, 16), (1, 0, 16)))
    assert taps.group == 8
    assert places(maps, taps).group == 2


def test_a_table_is_made_once(launched: list[str]) -> None:
    source, taps = torch.zeros(4, 64), Taps.of((16, 32), (0, 8))
    assert places([source], taps).starts is places([source], taps).starts
    assert not launched
    assert launch.on_kernels(source)
