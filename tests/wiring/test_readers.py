"""wiring.readers: counts kept step by step equal counts made anew."""

from __future__ import annotations

import block_nets as nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swcompile.graph import LayerGraph
from swcompile.wiring.blocks import Atlas, Piece
from swcompile.wiring.readers import Readers, tally

NETS = [nets.residual(8, 16), nets.resnet50(), nets.densenet((3, 3), size=32), nets.vgg16()]


def pieces_of(atlas: Atlas, graph: LayerGraph) -> list[Piece]:
    return [piece for index, feature in enumerate(graph.features) for piece in atlas.cut(index, feature.runs, 8)]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NETS), st.lists(st.tuples(st.integers(0, 1 << 30), st.booleans()), max_size=60))
def test_reading_and_dropping_equals_counting_anew(graph: LayerGraph, steps: list[tuple[int, bool]]) -> None:
    atlas = Atlas(graph)
    pieces = pieces_of(atlas, graph)
    read = [piece.maps for piece in pieces]
    readers = Readers(atlas, tally(atlas, read))
    for number, drops in steps:
        if drops and read:
            readers.drop(read.pop(number % len(read)))
        else:
            read.append(pieces[number % len(pieces)].maps)
            readers.read(read[-1])
    anew = Readers(atlas, tally(atlas, read), readers.needed)
    np.testing.assert_array_equal(readers.count, anew.count)
    gone = np.flatnonzero(readers.needed & (readers.count == 0))
    assert set(gone.tolist()) <= {int(channel) for died in readers.died for channel in died}


def test_a_sum_holds_its_parts_only_while_it_is_read() -> None:
    graph = nets.residual(4, 16)
    atlas = Atlas(graph)
    readers = Readers(atlas, tally(atlas, [(atlas.span(run),) for run in graph.features[-1].runs]))
    assert readers.unread() == 0
    readers.drop((atlas.span(graph.features[-1].runs[0]),))
    assert readers.unread() == 16 * 3  # the stem and both branches


@pytest.mark.parametrize("graph", NETS)
def test_spare_means_that_nothing_dies(graph: LayerGraph) -> None:
    atlas = Atlas(graph)
    pieces = pieces_of(atlas, graph)
    readers = Readers(atlas, tally(atlas, [piece.maps for piece in pieces]))
    for piece in pieces:
        spare = readers.spare(piece.maps)
        readers.drop(piece.maps)
        assert spare == (not readers.died)
        readers.died.clear()
        readers.read(piece.maps)
