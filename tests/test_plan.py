"""swcompile.plan: a plan comes back from JSON as it was, and whatever else is in the file is one SwnetError that says what."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swcompile.errors import SwnetError
from swcompile.graph import GraphBuilder, LayerGraph, Run, Tap, slice_runs
from swcompile.plan import VERSION, LayerWiring, Note, Options, Plan, Promise, promised_change
from swcompile.verify import verify
from swcompile.wiring import wire_block, wire_kernel
from tests.graphs import chain, dense, residual

GRAPH = chain([8, 16, 16, 16, 16])
BLOCK = wire_block(GRAPH, Options(p=0.3, seed=3))
KERNEL = wire_kernel(chain([3, 4, 4, 4]), Options(p=0.5, wiring="kernel"))
PLANS = [
    BLOCK,
    KERNEL,
    wire_block(GRAPH, Options(p=0.3, density=0.5)),
    wire_kernel(residual(2, 4), Options(p=0.4, wiring="kernel", skips="remove")),
]


def document(plan: Plan = BLOCK) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(plan.to_json())
    return made


def altered(plan: Plan = BLOCK, **changes: Any) -> str:
    return json.dumps({**document(plan), **changes})


def message(text: str) -> str:
    with pytest.raises(SwnetError) as caught:
        Plan.from_json(text)
    return str(caught.value)


def first_layer(plan: Plan = BLOCK, **changes: Any) -> str:
    layers = document(plan)["layers"]
    return altered(plan, layers=[{**layers[0], **changes}, *layers[1:]])


# Round trips.


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_comes_back_from_json_as_it_was(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.digest == plan.digest
    assert hash(again.layers) == hash(plan.layers)


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_is_the_same_from_a_file(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert Plan.read(tmp_path / "plan.json") == plan


def test_names_and_notes_in_any_script_survive() -> None:
    plan = dataclasses.replace(BLOCK, notes=(Note("слой", 'quotes " and \n lines'),))
    assert plan.to_json().isascii()
    assert Plan.from_json(plan.to_json()) == plan


@given(bits=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=7))
def test_masks_of_any_size_survive(bits: list[list[bool]]) -> None:
    mask = np.array(bits)
    wiring = LayerWiring("conv", (Tap("x", 0, 3), Tap("y", 7, 9)), (), mask)
    plan = Plan("f", Options(p=0.5, wiring="kernel"), "auto", (wiring,), Promise())
    assert Plan.from_json(plan.to_json()) == plan


def test_printed_it_says_what_each_layer_reads() -> None:
    text = str(BLOCK)
    assert text.startswith("wiring block, p = 0.3 (asked: 0.3), density 1, seed 3: ")
    wiring = BLOCK.layers[0]
    assert f"  {wiring.layer} reads {wiring.taps[0]} " in text
    assert all(note.reason in text for note in BLOCK.notes)
    assert "live links)" in str(KERNEL)
    assert "is bypassed: input" in str(PLANS[3])


# What else a file may hold.


NO_PLANS = (
    [
        ("", "The plan is not JSON (Expecting value"),
        ("{", "The plan is not JSON ("),
        ("[" * 100_000, "The plan is not JSON ("),
        ('{"a":' * 100_000, "The plan is not JSON ("),
        ("9" * 5_000, "The plan is not JSON ("),
        ("[]", 'This is not a plan: its "format" should be "swcompile-plan".'),
        ("null", "This is not a plan"),
        ('{"format": "other"}', "This is not a plan"),
        (
            altered(version=VERSION + 1),
            f"The plan has version {VERSION + 1}, this swcompile reads up to {VERSION}; install a newer",
        ),
        (altered(version=True), "The plan's version is True; it should be a whole number"),
        (altered(version="1"), "The plan's version is '1'"),
        (altered(version=0), "The plan's version is 0"),
        (altered(run="rm"), 'The plan has a key "run"; the keys of version 1 are format, version, fingerprint, options,'),
        (BLOCK.to_json().replace('"seed":3', '"seed":3,"seed":4'), 'The plan has the key "seed" twice in one object'),
        (BLOCK.to_json().replace('"version":1', '"version":1,"version":1'), 'The plan has the key "version" twice'),
        (altered(promise={**document()["promise"], "more": 1}), '"promise" should be an object with the keys'),
        (first_layer(more=1), '"layers[0]" should be an object with layer, taps, columns, mask, outputs and grown'),
        (first_layer(KERNEL, mask={"shape": [4, 3], "bits": "", "more": 1}), '"layers[0].mask" should be an object with shape and'),
        (altered(fingerprint=7), "In the plan, \"fingerprint\" should be text; it is '7'."),
        (altered(requested_p=float("nan")), "The plan contains NaN, which is not a number that it may hold."),
        (altered(requested_p=float("-inf")), "The plan contains -Infinity"),
        (altered(requested_p=None), '"requested_p" should be a number or the name of a policy'),
        (altered(options={}), '"options" should be an object with the keys'),
        (altered(options={**document()["options"], "more": 1}), '"options" should be an object with the keys'),
        (altered(options={**document()["options"], "p": 1.5}), "p=1.5 is outside [0, 1]"),
        (altered(options={**document()["options"], "p": "auto"}), "options.p is a policy; a plan holds the number"),
        (altered(options={**document()["options"], "p": [0.3]}), '"options.p" should be float or str'),
        (altered(options={**document()["options"], "seed": -1}), "seed=-1 is not a seed"),
        (altered(options={**document()["options"], "resample": "bicubic"}), "resample='bicubic' is not a choice"),
        (altered(promise={**document()["promise"], "params": 0.5}), '"promise.params" should be int'),
        (altered(features=[1]), '"features" should be a list of str'),
        (altered(layers={}), '"layers" should be a list of dict'),
        (altered(notes=[["a"]]), '"notes" should be a list of pairs'),
        (altered(bypassed=[["add", "0"]]), '"bypassed" should be a list of pairs'),
        (first_layer(taps="x"), "should be an object whose taps, columns, outputs and grown are lists"),
        (first_layer(taps=[[0, 0, 4]]), '"layers[0].taps" should be a list of [feature, start, stop, resample]'),
        (first_layer(taps=[[0, 0, 1 << 70, "max"]]), '"layers[0].taps" should be'),
        (first_layer(taps=[[0, 0, 1e300, "max"]]), '"layers[0].taps" should be'),
        (first_layer(taps=[[-1, 0, 4, "max"]]), '"layers[0].taps" should be'),
        (first_layer(taps=[[True, 0, 4, "max"]]), '"layers[0].taps" should be'),
        (first_layer(taps=[[99, 0, 4, "max"]]), "layers[0].taps names feature number 99; there are"),
        (first_layer(taps=[[0, 4, 4, "max"]]), "channels start < stop and a way to resample"),
        (first_layer(taps=[[0, 0, 4, "cubic"]]), "channels start < stop and a way to resample"),
        (first_layer(taps=[[0, 0, 4, ["max"]]]), "channels start < stop and a way to resample"),
        (first_layer(columns=[3]), '"layers[0].columns" should be a list of pairs'),
        (first_layer(columns=[[0, "4"]]), '"layers[0].columns" should be a list of pairs'),
        (first_layer(mask=[]), '"layers[0].mask" should be an object with shape and bits'),
        (first_layer(KERNEL, mask={"shape": [4, 3], "bits": "!"}), '"layers[0].mask.bits" should be base64'),
        (first_layer(KERNEL, mask={"shape": [4, 3], "bits": "AAAA"}), "the mask of layers[0] has 3 bytes; 4 x 3 bits need"),
        (first_layer(KERNEL, mask={"shape": [1 << 40, 3], "bits": "AA=="}), "bits need more or fewer"),
        (first_layer(KERNEL, mask={"shape": [4, 9], "bits": "AA=="}), "the mask of layers[0] is 9 wide; its taps are 3."),
        (first_layer(KERNEL, mask={"shape": [4.0, 3], "bits": "AA=="}), '"layers[0].mask.shape" should be two sizes'),
    ]
)  # fmt: skip


@pytest.mark.parametrize(("text", "says"), NO_PLANS, ids=[says[:50] for _, says in NO_PLANS])
def test_what_is_not_a_plan_is_refused_and_the_message_says_where(text: str, says: str) -> None:
    assert says in message(text)
    if "plan" in says:
        assert re.search(r"; (write it anew: |install a newer ).*\.$", message(text))


@pytest.mark.parametrize("key", sorted(document()))
def test_a_missing_key_is_named(key: str) -> None:
    text = json.dumps({name: value for name, value in document().items() if name != key})
    assert key in message(text)


def test_a_file_that_is_not_there_too_large_or_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    with pytest.raises(SwnetError, match=r"The plan plan.json cannot be read: No such file"):
        Plan.read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SwnetError, match="not text in UTF-8"):
        Plan.read(file)
    with file.open("wb") as large:
        large.truncate(300 << 20)
    with pytest.raises(SwnetError, match=r"plan.json is 314,572,800 bytes; a plan has at most 268,435,456"):
        Plan.read(file)


@pytest.mark.parametrize("kind", ["pipe", "folder", "endless"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """A pipe for which nobody writes would be waited for, and /dev/zero has no end."""
    file = tmp_path / "plan.json"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(SwnetError, match=r"The plan plan\.json (is not a plain file|cannot be read: Is a directory)\. Name a plan"):
        Plan.read(file)


@pytest.mark.parametrize("key", ["features", "leaves", "layer", "bypassed", "requested_p"])
def test_names_too_long_to_be_repeated_are_refused(key: str) -> None:
    long = "a" * 1001
    changed = {"layer": lambda: first_layer(layer=long), "bypassed": lambda: altered(bypassed=[[long, 0]]),
               "requested_p": lambda: altered(requested_p=long)}.get(key, lambda: altered(**{key: [long]}))  # fmt: skip
    said = message(changed())
    assert "should be" in said
    assert len(said) < 400


# Fuzzing: a plan or a SwnetError, and nothing else.

VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        3,
        1 << 62,
        1 << 63,
        1 << 200,
        0.5,
        1e308,
        "",
        "max",
        "auto",
        "x",
        [],
        [[]],
        {},
        [0, 0, 4, "max"],
        [0, 4],
    ]
)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), plan=st.sampled_from(PLANS))
def test_a_changed_value_gives_a_plan_or_a_swnet_error(data: st.DataObject, plan: Plan) -> None:
    made: Any = document(plan)
    place = made
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 3)):
            place = place[key]
        else:
            break
    place[key] = data.draw(VALUES)
    _read_and_verify(json.dumps(made))


@settings(deadline=None, max_examples=100)
@given(at=st.floats(0, 1), new=st.binary(max_size=3), drop=st.integers(0, 4), plan=st.sampled_from(PLANS))
def test_changed_bytes_give_a_plan_or_a_swnet_error(at: float, new: bytes, drop: int, plan: Plan) -> None:
    raw = plan.to_json().encode()
    place = int(at * len(raw))
    _read_and_verify((raw[:place] + new + raw[place + drop :]).decode("utf-8", "replace"))


def _read_and_verify(text: str) -> None:
    try:
        plan = Plan.from_json(text)
        assert Plan.from_json(plan.to_json()) == plan
        str(plan)
        for graph in (GRAPH, chain([3, 4, 4, 4]), residual(2, 4)):
            verify(dataclasses.replace(plan, fingerprint=graph.fingerprint), graph)
    except SwnetError:
        return


# Against the graph.


def planned(
    *wirings: LayerWiring, graph: LayerGraph = GRAPH, promise: Promise | None = None, options: Options | None = None
) -> Plan:
    return Plan(graph.fingerprint, options or Options(p=0.3), 0.3, wirings, promise or Promise())


def refusal(plan: Plan, graph: LayerGraph = GRAPH) -> str:
    with pytest.raises(SwnetError) as caught:
        verify(plan, graph)
    return str(caught.value)


def wired(*taps: tuple[str, int, int], layer: str = "conv3", columns: tuple[tuple[int, int], ...] = ((0, 16),)) -> LayerWiring:
    return LayerWiring(layer, tuple(Tap(*tap) for tap in taps), columns)


@pytest.mark.parametrize("plan", PLANS[:1])
def test_the_plans_of_the_wirings_pass(plan: Plan) -> None:
    verify(plan, GRAPH)
    verify(KERNEL, chain([3, 4, 4, 4]))


@pytest.mark.parametrize(
    ("wirings", "says"),
    [
        ([wired(("conv2", 0, 16), layer="conv9")], "wires a layer 'conv9', which the model does not have."),
        ([wired(("conv2", 0, 16))] * 2, "wires a layer twice"),
        ([wired()], "leaves conv3 without any input"),
        ([wired(("conv7", 0, 16))], "conv3 taps a feature 'conv7', which the model does not have."),
        ([wired(("conv2", 0, 8), ("conv1", 9, 17))], "conv3 taps conv1[9:17]; conv1 has 16 channels."),
        ([wired(("conv3", 0, 16))], "conv3 cannot tap conv3[0:16]: conv3 is computed after conv3 reads its input, so the"),
        ([wired(("conv2", 0, 8), ("conv2", 4, 12))],
         "conv3 reads channel 4 of conv2 twice, in conv2[0:8] and in conv2[4:12]; a layer reads no channel twice."),
        ([wired(("conv2", 0, 8))], "conv3 taps 8 channels for weights of another width."),
        ([wired(("conv2", 0, 16), columns=((8, 16), (0, 8)))], "the columns of conv3 are not ascending parts of its 16 channels."),
        ([wired(("conv2", 0, 16), columns=((0, 8), (4, 12)))], "are not ascending parts"),
        ([wired(("conv2", 0, 16), columns=((8, 24),))], "are not ascending parts"),
        ([wired(("conv2", 0, 16), columns=())], "are not ascending parts"),
        ([wired(("conv2", 0, 16), columns=((-4, 12),))], "are not ascending parts"),
        ([LayerWiring("conv3", (Tap("conv2", 0, 16),), (), np.ones((3, 16), np.bool_))], "mask of conv3 has shape (3, 16); (16"),
    ],
)  # fmt: skip
def test_a_wiring_that_does_not_fit_the_model_is_refused(wirings: list[LayerWiring], says: str) -> None:
    assert says in refusal(planned(*wirings))
    assert refusal(planned(*wirings)).endswith("Make a new plan with swnet.plan(model).")


def test_a_map_read_through_a_concatenation_and_directly_is_read_twice() -> None:
    graph = dense(4, 4)
    twice = LayerWiring("conv4", (Tap("cat2", 6, 10), Tap("cat1", 6, 10), Tap("x", 0, 6), Tap("cat3", 10, 14)), ((0, 18),))
    assert planned(twice, graph=graph).layers[0].width == graph.layer_by_name["conv4"].in_channels
    assert "conv4 reads channel 0 of conv1 twice" in refusal(planned(twice, graph=graph), graph)


def test_a_flattened_map_is_one_channel_in_many_slots() -> None:
    """A Linear may read them all, as it does in the user's model, but not the first of them through another feature too."""
    build = GraphBuilder("flat")
    x = build.layer("first", build.feature("x", build.input("x", 4), (1, 4)), 4, kind="Linear")
    build.feature("pooled", x, (1, 4))
    slots = (Run(0, 2, x[0].producer, 0, 0), Run(2, 4, x[0].producer, 1, 0))
    build.sink(build.layer("second", build.feature("flat", slots, (1, 4)), 4, kind="Linear"))
    graph = build.finish()
    verify(planned(wired(("flat", 2, 4), ("flat", 0, 2), layer="second", columns=((0, 4),)), graph=graph), graph)
    verify(planned(wired(("flat", 1, 4), ("pooled", 3, 4), layer="second", columns=((0, 4),)), graph=graph,
                   promise=Promise(units=1, moved=1)), graph)  # fmt: skip
    twice = planned(wired(("flat", 0, 3), ("pooled", 0, 1), layer="second", columns=((0, 4),)), graph=graph)
    assert "second reads channel 0 of first twice, in flat[0:3] and in pooled[0:1]" in refusal(twice, graph)


def test_a_plan_for_another_model_is_refused_by_its_fingerprint() -> None:
    text = refusal(BLOCK, chain([8, 16, 16, 16, 17]))
    assert "The plan was made for another model or input size: its fingerprint is" in text
    assert "Make a new plan with swnet.plan(model)." in text


def test_altered_counts_are_refused() -> None:
    plan = dataclasses.replace(BLOCK, promise=dataclasses.replace(BLOCK.promise, params=-7))
    assert "promises a change of -7 parameters and 0 multiply-accumulates; its wirings make it 0 and 0." in refusal(plan)


@pytest.mark.parametrize(
    ("bypassed", "says"),
    [
        ([("add", 0), ("add", 1)], "bypasses 'add' twice, where a sum has one input that stays."),
        ([("scaled", 1)], "bypasses 'scaled' for its input 1, which is narrower than the sum."),
        ([("add", 2)], "bypasses 'add' for its input 2; the model has no such sum."),
    ],
)
def test_sums_that_cannot_be_bypassed_as_said(bypassed: list[tuple[str, int]], says: str) -> None:
    build = GraphBuilder("sums")
    x = build.layer("first", build.feature("x", build.input("x", 4), (1, 4)), 4, kind="Linear")
    y = build.layer("second", build.feature("y", x, (1, 4)), 4, kind="Linear")
    added = build.add("add", x, y)
    build.sink(build.add("scaled", added, slice_runs(x, 0, 1)))
    graph = build.finish()
    options = Options(p=0.3, wiring="kernel", skips="remove")
    plan = dataclasses.replace(planned(graph=graph, options=options), bypassed=tuple(bypassed))
    assert says in refusal(plan, graph)


def test_a_layer_that_can_never_be_rewired_is_refused_with_its_reason() -> None:
    build = GraphBuilder("one")
    x = build.layer("stem", build.feature("x", build.input("x", 4), (1, 4, 8, 8)), 4)
    build.sink(build.layer("deep", build.feature("stem", x, (1, 4, 8, 8)), 4, groups=4, refused="depthwise"))
    graph = build.finish()
    assert "wires deep, which cannot be rewired: depthwise." in refusal(
        planned(wired(("x", 0, 4), layer="deep"), graph=graph), graph
    )


@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "says"),
    [
        ((1, 4), 1, "float32", "odd has shape (1, 4) with channels on axis 1, stem (1, 4, 8, 8) on 1"),
        ((2, 4, 8, 8), 1, "float32", "odd has batch size 2, stem 1"),
        ((1, 4, 8, 8), 1, "float64", "odd is float64, stem float32"),
        ((1, 4, 1, 1), 1, "float32", "odd is a gate or a pooled vector of size (1, 1), stem a map of (8, 8)"),
        ((1, 8, 8, 4), 3, "float32", "odd has shape (1, 8, 8, 4) with channels on axis 3"),
    ],
)
def test_an_incompatible_feature_is_refused(shape: tuple[int, ...], axis: int, dtype: str, says: str) -> None:
    build = GraphBuilder("odd")
    odd = build.feature("odd", build.produce("odd", "opaque", 4), shape, axis=axis, dtype=dtype)
    x = build.layer("first", build.feature("x", build.input("x", 4), (1, 4, 8, 8)), 4)
    build.sink(build.layer("second", build.feature("stem", x, (1, 4, 8, 8)), 4))
    build.sink(odd.runs)
    graph = build.finish()
    plan = planned(LayerWiring("second", (Tap("odd", 0, 4),), ((0, 4),)), graph=graph)
    assert says in refusal(plan, graph)


def test_pruned_columns_change_the_promise_by_links_and_norms() -> None:
    wirings = [wired(("conv2", 0, 8), columns=((0, 8),))]
    assert promised_change(wirings, GRAPH) == (-8 * 16 * 9, -8 * 16 * 9 * 64)
    verify(planned(*wirings, promise=Promise(params=-1152, macs=-73728)), GRAPH)


# Options.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"p": -0.1}, "p=-0.1 is outside [0, 1]"),
        ({"p": float("nan")}, "p=nan is outside [0, 1]"),
        ({"p": True}, "p=True is outside"),
        ({"p": "small"}, "p='small' is not a policy; take a number from 0 to 1 or one of auto, boundary, max_S."),
        ({"density": 0}, "density=0 is outside (0, 1]"),
        ({"density": float("inf")}, "density=inf is outside (0, 1]"),
        ({"density": "1"}, "density='1' is outside (0, 1]"),
        ({"block": 0}, "block=0 is not a block size"),
        ({"block": 2.5}, "block=2.5 is not a block size"),
        ({"block": "large"}, "block='large' is not a block size"),
        ({"seed": 1.0}, "seed=1.0 is not a seed"),
        ({"seed": 1 << 64}, "is not a seed"),
        ({"min_in_degree": -1}, "min_in_degree=-1 is not a degree"),
        ({"head": 1}, "head=1 is not a truth value"),
        ({"wiring": "mesh"}, "wiring='mesh' is not a choice; take one of 'block', 'kernel', 'tile'."),
        ({"wiring": "kernel", "density": 0.5}, "density does not apply to wiring='kernel'"),
        ({"resample": ["max"]}, "resample=['max'] is not a choice"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SwnetError) as caught:
        Options(**options)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["resample", "p", "block", "density", "head", "seed"])
def test_messages_repeat_no_more_of_a_value_than_fits_a_line(name: str) -> None:
    with pytest.raises(SwnetError, match=f"{name}='aaa") as caught:
        Options(**{name: "a" * 100_000})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200
    assert len(message(altered(version="a" * 100_000))) < 300
