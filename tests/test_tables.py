"""Tables: every figure in its place, names as they are, 80 columns."""

from __future__ import annotations

import doctest
import io

from rich.console import Console, RenderableType

from swcompile import tables
from swcompile.graph import GraphBuilder, LayerGraph


def shown(item: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(item)
    return file.getvalue()


def network() -> LayerGraph:
    build = GraphBuilder("net")
    x = build.input("x", 3)
    first = build.layer("stem[0]", build.feature("x", x, (1, 3, 8, 8)), 16, kernel_size=(3, 3), positions=64)
    feature = build.feature("stem", first, (1, 16, 8, 8))
    build.layer("shared", feature, 16, kernel_size=(3, 3), positions=64, groups=4)
    build.layer("shared@1", feature, 16, kernel_size=(3, 3), positions=16, groups=4)
    return build.finish()


def test_the_docstring_shows_what_is_printed():
    assert doctest.testmod(tables).failed == 0


def test_the_ledger_knows_numbers_words_and_what_is_missing():
    before = {"params": 1200, "stored_params": 1200, "dead_channels": 0, "S": float("nan"), "p_requested": 0.0, "other": 3}
    after = {"params": 900, "stored_params": 900, "dead_channels": 2, "S": 1.23456, "p_requested": "auto", "unreachable": 0.0}
    rows = [line.split() for line in shown(tables.ledger(before, after)).splitlines()[2:]]
    assert rows == [
        ["parameters", "1,200", "900", "-25.0%"],
        ["p", "requested", "auto"],
        ["dead", "channels", "0", "2", "+2"],
        ["small-worldness", "(S)", "-", "1.235"],
    ]


def test_of_degrees_the_mean_is_shown():
    degrees = [{"least": 0, "mean": mean, "greatest": 9} for mean in (4.0, 5.0)]
    assert shown(tables.ledger({"in_degree": degrees[0]}, {"in_degree": degrees[1]})).splitlines()[-1].split()[-3:] == [
        "4",
        "5",
        "+25.0%",
    ]


def test_stages_have_a_row_each():
    lines = shown(tables.stages([("16x16", 3, 40.0, 7.6, 8.0, 2.25, 1.5), ("vectors", 1, 64.0, 0.0, 0.0, 4.0, float("nan"))]))
    assert [line.split() for line in lines.splitlines()[2:]] == [
        ["16x16", "3", "40", "8", "8", "2.25", "1.5"],
        ["vectors", "1", "64", "0", "0", "4", "-"],
    ]
    assert max(map(len, lines.splitlines())) <= 80


def test_masked_weights_have_a_row_of_their_own():
    assert "stored, masked ones too" in shown(tables.ledger({"params": 5, "stored_params": 5}, {"params": 5, "stored_params": 9}))


def test_a_net_that_is_no_small_world_is_told():
    assert "S is below 1: not a small world" in shown(tables.ledger({"S": 0.0}, {"S": 0.5}))
    assert "S is below 1" not in shown(tables.ledger({"S": 0.0}, {"S": 1.0}))


def test_layers_that_share_a_reason_are_named_together():
    notes = [*((f"layer{index}", "too narrow") for index in range(10)), ("fc", "[bold]head[/]"), ("*", "of the whole")]
    text = shown(tables.ledger({}, {}, notes))
    assert "layer7 and 2 more: too" in " ".join(text.split())
    assert "fc: [bold]head[/]" in text
    assert "\nof the whole" in text


def test_the_sweep_marks_the_point_that_is_taken():
    lines = shown(tables.sweep([(0.5, 0.1, 1.9, 0.7), (0.0, 0.0, 2.3, 0.2), (1.0, 0.2, 1.8, 1.2)], 0.47, "auto")).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["0", "0.5", "1"]
    assert lines[3].endswith("<- auto: 0.47")
    assert "<-" not in lines[2] + lines[4]


def test_shares_count_the_weights_of_a_shared_module_once():
    share = tables.share(network(), {"stem[0]": "the stem"})
    weights = 16 * 16 // 4 * 9
    assert (share.layers, share.all_layers) == (2, 3)
    assert (share.params, share.all_params) == (weights, weights + 3 * 16 * 9)
    assert share.macs == weights * (64 + 16)
    assert str(share).startswith("2 of 3 layers can be rewired, 57.1% of their weights, ")


def test_layers_are_listed_with_the_reason():
    text = shown(
        tables.layers(network(), {"stem[0]": "nothing comes earlier, so that there is nothing that it could read instead"})
    )
    assert "stem[0]" in text
    assert "no: nothing" in text
    assert "16 3x3 /4" in text
    assert max(map(len, text.splitlines())) <= 80
    records = tables.records(network(), {"stem[0]": "stem"})
    assert [record["refused"] for record in records] == ["stem", None, None]


def test_opaque_operations_are_named_with_their_line():
    text = " ".join(shown(tables.opaque([("sort", "net.py:3"), *(("topk", "") for _ in range(9))])).split())
    assert text.startswith("Channels are not followed through sort (net.py:3), topk,")
    assert "and 2 more: what is around them stays as it is." in text
