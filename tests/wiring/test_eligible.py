"""wiring.eligible: which layers may change, and what is said of the others."""

from __future__ import annotations

import block_nets as nets
import pytest

from swcompile.errors import SwnetError
from swcompile.graph import GraphBuilder
from swcompile.plan import Options
from swcompile.wiring.block import wire_block
from swcompile.wiring.eligible import eligible
from tests import graphs as by_hand


def reasons(graph, **options) -> dict[str, str]:  # type: ignore[no-untyped-def]
    return {note.layer: note.reason for note in eligible(graph, Options(**options))[1]}


def test_every_layer_is_eligible_or_has_a_reason() -> None:
    for graph in (nets.vgg16(), nets.resnet50(8), nets.densenet((3, 3)), nets.unet(), nets.shuffled()):
        layers, notes = eligible(graph, Options())
        assert sorted([layer.name for layer in layers] + [note.layer for note in notes]) == sorted(y.name for y in graph.layers)


def test_reasons_say_what_is_in_the_way() -> None:
    build = GraphBuilder("all kinds")
    options = {"kernel_size": (3, 3)}
    x = build.layer("stem", build.feature("x", build.input("x", 3), (1, 3, 16, 16)), 32, **options)
    feature = build.feature("a", x, (1, 32, 16, 16))
    y = build.layer("depthwise", feature, 32, groups=32, **options)
    z = build.layer("narrow", build.feature("b", y, (1, 32, 16, 16)), 32, groups=16, **options)
    build.layer("gate", build.feature("c", z, (1, 32, 1, 1)), 32)
    w = build.layer("shared", build.feature("d", z, (1, 32, 16, 16)), 1, refused="called at two places", **options)
    v = build.layer("single", build.feature("e", w, (1, 1, 16, 16)), 32, **options)
    t = build.layer("token", build.feature("f", v, (1, 16, 32), axis=2), 32)
    build.sink(build.layer("head", build.feature("g", t, (1, 16, 32), axis=2), 10))
    told = reasons(build.finish())
    assert told["stem"].startswith("the stem")
    assert told["depthwise"].startswith("depthwise")
    assert told["narrow"].startswith("narrower groups: 2 channels")
    assert "1x1" in told["gate"]
    assert told["shared"] == "called at two places"
    assert told["single"] == "its 1 input channels make fewer than two blocks of 1"
    assert told["token"].startswith("the stem") or "no earlier feature" in told["token"]
    assert told["head"].startswith("a head")


def test_the_head_is_an_option() -> None:
    graph = nets.vgg16()
    head = graph.layers[-1].name
    assert head in reasons(graph)
    assert head not in reasons(graph, head=True)


def test_a_block_larger_than_every_layer_is_refused_with_sizes_that_fit() -> None:
    with pytest.raises(SwnetError, match=r"block=1000 is too large.*Sizes up to 32 fit"):
        wire_block(nets.chain(4, 64), Options(p=0.2, block=1000))


def test_explicit_blocks_must_divide_groups() -> None:
    graph = nets.resnet50(groups=8)  # groups of 8, 16, 32 and 64 channels
    told = reasons(graph, block=16)
    grouped = [layer for layer in graph.layers if layer.groups > 1]
    assert {layer.name for layer in grouped if layer.in_channels // 8 <= 16} <= told.keys()
    assert not {layer.name for layer in grouped if layer.in_channels // 8 > 16} & told.keys()


def test_block_producer_needs_a_layer_with_two_runs() -> None:
    assert "single run" in reasons(nets.chain(5), block="producer")["conv3"]
    layers, _ = eligible(nets.densenet((4,), size=64), Options(block="producer"))
    assert layers


def test_a_layer_behind_an_opaque_operation_stays_as_it_is_and_the_operation_is_named() -> None:
    build = GraphBuilder("opaque")
    shape = (1, 16, 32)
    x = build.layer("stem", build.feature("x", build.input("x", 32), shape, axis=2), 32)
    y = build.layer("before", build.feature("a", x, shape, axis=2), 32)
    build.sink(y)
    build.opaque.append(("mixed (matmul)", "model.py:7"))
    z = build.layer("behind", build.feature("b", build.produce("mixed", "opaque", 32, [y]), shape, axis=2), 32)
    w = build.layer("further", build.feature("c", z, shape, axis=2), 32)
    build.sink(build.layer("head", build.feature("d", w, shape, axis=2), 10))
    told = reasons(build.finish())
    assert told["behind"] == "behind an operation that channels cannot be followed through (mixed (matmul), model.py:7)"
    assert not {"before", "further"} & told.keys()


def test_a_layer_that_nobody_reads_takes_no_part() -> None:
    build = GraphBuilder("unread")
    x = build.layer("stem", build.feature("x", build.input("x", 3), (1, 3, 8, 8)), 32)
    y = build.layer("read", build.feature("a", x, (1, 32, 8, 8)), 32)
    unread = build.layer("unread", build.feature("b", y, (1, 32, 8, 8)), 32)
    build.layer("end", build.feature("c", unread, (1, 32, 8, 8)), 32)
    build.sink(build.layer("head", build.feature("b", y, (1, 32, 8, 8)), 10))
    assert reasons(build.finish())["unread"].startswith("nothing reads its output")


def test_below_density_1_a_layer_without_candidates_is_pruned() -> None:
    graph = nets.chain(3)
    first = graph.layers[0].name
    assert first in reasons(graph, density=0.5)
    dense = by_hand.dense(6)
    assert len(reasons(dense)) == len(dense.layers)
    assert set(reasons(dense, density=0.5)) == {dense.layers[0].name, dense.layers[-1].name}
