"""wiring.blocks: cutting features, and finding maps in them."""

from __future__ import annotations

from itertools import pairwise

import block_nets as nets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcompile.graph import GraphBuilder, Layer, Run
from swcompile.wiring.blocks import WHOLE, Atlas, Catalogue, block_size, borders, kind_of


def layer(width: int, groups: int = 1) -> Layer:
    return Layer("y", "y", 1, "Conv2d", "x", 1, width, 8, groups=groups)


@pytest.mark.parametrize(
    ("width", "groups", "block", "size"),
    [
        (16, 1, "auto", 2),
        (24, 1, "auto", 2),
        (3, 1, "auto", 1),
        (64, 1, "auto", 8),
        (4096, 1, "auto", 64),
        (100, 1, 30, 30),
        (100, 1, "producer", WHOLE),
        (128, 32, "auto", None),
        (256, 32, "auto", 4),
        (512, 2, "auto", 64),
        (48, 2, "auto", 4),
        (48, 2, 12, 12),
        (48, 2, 24, None),
        (48, 2, 7, None),
        (48, 2, "producer", None),
    ],
)
def test_block_sizes(width: int, groups: int, block: int | str, size: int | None) -> None:
    assert block_size(layer(width, groups), block) == size


def test_slivers_and_flattened_maps_are_joined() -> None:
    shuffled = [Run(k, k + 1, k % 2, k // 2) for k in range(10)]
    assert list(borders(shuffled, 4)) == [(0, 4), (4, 8), (8, 10)]
    flat = [Run(49 * k, 49 * k + 49, 0, k, 0) for k in range(5)]
    assert list(borders(flat, 64)) == [(0, 98), (98, 196), (196, 245)]
    assert list(borders(flat, WHOLE)) == [(run.start, run.stop) for run in flat]
    assert list(borders([Run(0, 100, 0, 0, 0)], 64)) == [(0, 64), (64, 100)]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1)), min_size=1, max_size=12), st.integers(1, 32))
def test_borders_cover_everything_once(widths: list[tuple[int, int]], size: int) -> None:
    runs, start = [], 0
    for index, (width, step) in enumerate(widths):
        runs.append(Run(start, start + width, index, 0, step))
        start += width
    cuts = list(borders(runs, size))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == start
    assert all(left[1] == right[0] for left, right in pairwise(cuts))
    assert all(low < high for low, high in cuts)


def test_a_catalogue_holds_every_map_once() -> None:
    for graph in (nets.densenet((4, 4), size=32), nets.unet(), nets.resnet50(), nets.shuffled()):
        atlas = Atlas(graph)
        feature = graph.features[2]
        catalogue = Catalogue(atlas, kind_of(feature), 16)
        maps = [k for piece in catalogue.pieces for low, high in piece.maps for k in range(low, high)]
        assert len(maps) == len(set(maps))
        same = [other for other in graph.features if kind_of(other) == kind_of(feature)]
        spans = [atlas.span(run) for other in same for run in other.runs]
        assert set(maps) == {k for low, high in spans for k in range(low, high)}
        assert list(catalogue.positions) == sorted(catalogue.positions)


def test_a_reader_gets_its_own_resolution_where_a_map_has_several() -> None:
    build = GraphBuilder("pooled")
    x = build.layer("stem", build.feature("x", build.input("x", 3), (1, 3, 32, 32)), 16)
    y = [build.layer(f"at{size}", build.feature(f"x{size}", x, (1, 16, size, size)), 16) for size in (32, 16, 8)]
    for size, value in zip((16, 4, 8), y, strict=True):
        build.layer(f"reads{size}", build.feature(f"y{size}", value, (1, 16, size, size)), 16)
    graph = build.finish()
    atlas = Atlas(graph)
    stem = atlas.piece(atlas.place["x32"], 4, 8)
    for size, wanted in ((16, "x16"), (8, "x8"), (4, "x8")):
        reader = graph.layer_by_name[f"reads{size}"]
        feature, start, stop = atlas.best_view(stem, kind_of(graph.features[0]), reader)
        assert (graph.features[feature].name, start, stop) == (wanted, 4, 8)
    early = graph.layer_by_name["at32"]
    assert graph.features[atlas.best_view(stem, kind_of(graph.features[0]), early)[0]].name == "x32"
