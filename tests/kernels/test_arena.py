from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swkernels.arena import Lifetime, lay_out

MAPS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(0, 6)).map(lambda m: Lifetime(m[0], m[1], m[1] + m[2])),
    max_size=14,
)


@given(MAPS)
def test_maps_that_live_together_lie_apart(maps: list[Lifetime]) -> None:
    slab = lay_out(maps)
    spans = [(start, start + m.channels) for start, m in zip(slab.starts, maps, strict=True)]
    for place, (one, (low, high)) in enumerate(zip(maps, spans, strict=True)):
        assert 0 <= low < high <= slab.width
        for other, (start, stop) in list(zip(maps, spans, strict=True))[place + 1 :]:
            together = one.written <= other.read and other.written <= one.read
            assert not together or high <= start or stop <= low


@given(MAPS)
def test_a_slab_is_no_wider_than_all_maps_and_their_alignment(maps: list[Lifetime]) -> None:
    slab = lay_out(maps)
    assert slab.width % 8 == 0
    assert slab.width <= sum(-(-m.channels // 8) * 8 for m in maps) + 7


def test_a_dense_block_lies_in_one_run() -> None:
    block = [Lifetime(16, 0, 9)] + [Lifetime(12, step, 9) for step in range(1, 9)]
    slab = lay_out(block)
    assert slab.starts == (0, *range(16, 16 + 8 * 12, 12))
    assert slab.width == 16 + 8 * 12


def test_a_chain_takes_turns() -> None:
    chain = [Lifetime(32, step, step + 1) for step in range(10)]
    assert set(lay_out(chain).starts) == {0, 32}
