"""wiring.apportion: largest remainder."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swcompile.wiring.apportion import apportion


@given(st.floats(0, 1), st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_ungrouped_counts_add_up_exactly_and_miss_their_share_by_less_than_one(share: float, sizes: list[int]) -> None:
    counts = apportion(share, sizes, [1] * len(sizes))
    assert sum(counts) == round(share * sum(sizes))
    assert all(abs(count - share * size) < 1 + 1e-9 for count, size in zip(counts, sizes, strict=True))


@given(st.floats(0, 1), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 8)), min_size=1, max_size=20), st.integers(0, 1))
def test_grouped_counts_are_whole_groups(share: float, layers: list[tuple[int, int]], least: int) -> None:
    sizes, units = [rows * unit for rows, unit in layers], [unit for _, unit in layers]
    counts = apportion(share, sizes, units, least)
    assert all(count % unit == 0 and least * unit <= count <= size for count, size, unit in zip(counts, sizes, units, strict=True))
    target = round(share * sum(sizes))
    assert sum(counts) <= max(target, least * sum(units)) + sum(units) * least
    assert sum(counts) > target - max(units)
