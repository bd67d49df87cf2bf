"""Mutations of plans that mean something: taps, columns, masks and promises that fit each other, but not the model, or just so.

What breaks the form of a plan is refused by its reader. These get further: to the verification against the graph, and beyond.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from swcompile.errors import SwnetError
from swcompile.plan import Plan, promised_change

from .subjects import Subject

Change = Callable[[Random, dict[str, Any], Subject], None]


def _layer(draw: Random, document: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = draw.choice(document["layers"])
    return made


def _index(document: dict[str, Any], feature: str) -> int:
    if feature not in document["features"]:
        document["features"].append(feature)
    return int(document["features"].index(feature))


def _width(taps: Sequence[Any]) -> int:
    return sum(stop - start for _, start, stop, _ in taps)


def rewire(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Let a layer read taps drawn anywhere, as wide together as before."""
    layer = _layer(draw, document)
    left, taps = max(0, _width(layer["taps"])), []
    for _ in range(40):
        feature = draw.choice(subject.graph.features)
        start = draw.randrange(feature.channels)
        stop = min(feature.channels, start + draw.randint(1, left)) if left else start
        if stop > start:
            taps.append([_index(document, feature.name), start, stop, draw.choice(["max", "avg", "stride"])])
            left -= stop - start
    layer["taps"] = taps if not left or draw.random() < 0.2 else layer["taps"]


def grow(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Let a layer read some taps drawn anywhere on top, and mostly say so in the options."""
    layer = _layer(draw, document)
    for _ in range(draw.randint(1, 3)):
        feature = draw.choice(subject.graph.features)
        start = draw.randrange(feature.channels)
        layer["grown"].append([_index(document, feature.name), start, draw.randint(start, feature.channels), "max"])
    if draw.random() < 0.8:
        document["options"] |= {"grow": 0.5, "p": 0}


def straighten(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Let a layer read what it reads in the model, in one tap or in pieces, in order or not."""
    layer = _layer(draw, document)
    own = subject.graph.layer_by_name[layer["layer"]]
    pieces = [[_index(document, own.feature), start, start + 1, "max"] for start in range(own.in_channels)]
    if draw.random() < 0.5:
        pieces = [[_index(document, own.feature), 0, own.in_channels, draw.choice(["max", "avg", "stride"])]]
    draw.shuffle(pieces)
    layer["taps"] = pieces
    if layer["mask"] is None:
        layer["columns"] = [[0, own.in_channels]]


def shift(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Move a bound of a tap or of a column."""
    layer = _layer(draw, document)
    spans = [(tap, 1) for tap in layer["taps"]] + [(column, 0) for column in layer["columns"]]
    if spans:
        span, first = draw.choice(spans)
        span[first + draw.randrange(2)] += draw.choice([-1, 1, 2, 8, 1 << 40])


def cut(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Write a tap as two, or two columns as one."""
    layer = _layer(draw, document)
    at = draw.randrange(len(layer["taps"])) if layer["taps"] else 0
    if layer["taps"] and draw.random() < 0.6:
        feature, start, stop, kind = layer["taps"][at]
        middle = (start + stop) // 2
        layer["taps"][at : at + 1] = [[feature, start, middle, kind], [feature, middle, stop, kind]]
    elif len(layer["columns"]) > 1:
        layer["columns"][:2] = [[layer["columns"][0][0], layer["columns"][1][1]]]


def exchange(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Let two layers read each other's taps, or one wiring stand under another name."""
    one, other = _layer(draw, document), _layer(draw, document)
    if draw.random() < 0.5:
        one["taps"], other["taps"] = other["taps"], one["taps"]
    else:
        one["layer"] = draw.choice([layer.name for layer in subject.graph.layers])


def drop(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Let a tap and as much of the columns go: the layer becomes smaller."""
    layer = _layer(draw, document)
    bounds = [bound for tap in (*layer["taps"], *layer["columns"]) for bound in tap if isinstance(bound, int)]
    if len(layer["taps"]) < 2 or layer["mask"] is not None or not 0 <= min(bounds) <= max(bounds) < 1000:
        return
    _, start, stop, _ = layer["taps"].pop(draw.randrange(len(layer["taps"])))
    kept = [column for first, last in layer["columns"] for column in range(first, last)]
    for _ in range(stop - start):
        if kept:
            kept.pop(draw.randrange(len(kept)))
    layer["columns"] = [[column, column + 1] for column in kept]


def forget(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Wire fewer layers, or none, or one twice."""
    layers = document["layers"]
    document["layers"] = draw.choice([layers[1:], layers[:1], [], layers[::-1], layers + layers[:1]])


def remask(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Give a layer another mask: full, empty, of another shape, or where none belongs."""
    layer = _layer(draw, document)
    rows = subject.graph.layer_by_name[layer["layer"]].out_channels if layer["layer"] in subject.graph.layer_by_name else 4
    rows, columns = rows + draw.choice([0, 0, 0, 1, -1]), _width(layer["taps"])
    raw = draw.choice([bytes, lambda count: b"\xff" * count, draw.randbytes])(min(max(0, -(-rows * columns // 8)), 1 << 16))
    layer["mask"] = {"shape": [rows, columns], "bits": base64.b64encode(raw).decode()}
    if draw.random() < 0.5:
        layer["columns"] = []


def choose(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Change an option to another value that it may have."""
    name, value = draw.choice(
        [
            ("wiring", "kernel"),
            ("wiring", "block"),
            ("wiring", "tile"),
            ("skips", "remove"),
            ("skips", "keep"),
            ("init", "dense"),
            ("conv_to_linear", True),
            ("density", 0.5),
            ("params", 1 << 20),
            ("macs", -1),
            ("keep", [["body*", 0.5]]),
            ("keep", [["body*"], 3]),
            ("spread", "erk"),
            ("score", "weight"),
            ("grow", 0.5),
            ("seed", (1 << 63) - 1),
            ("p", 0),
            ("p", 1),
            ("p", 1e-300),
            ("dead", "forbid"),
            ("block", 3),
            ("head", True),
            ("budget", "params"),
        ]
    )
    document["options"][name] = value


def bypass(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Bypass sums, the model's own or none."""
    sums = [producer.name for producer in subject.graph.producers if producer.kind == "sum"] or ["add"]
    chosen = [[draw.choice([*sums, "add_99"]), draw.choice([0, 0, 1, 2, -1])] for _ in range(draw.randint(1, 3))]
    document["bypassed"] = chosen
    if draw.random() < 0.7:
        document["options"] |= {"skips": "remove", "wiring": "kernel"}


def leave(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Name modules that tracing shall leave alone: it then sees another graph."""
    document["leaves"] = [
        draw.choice(["body", "body.1", "head", "0", "3", "first", "", ".", "nothing", "body.1.conv1", "body..1"])
        for _ in range(draw.randint(1, 2))
    ]


def promise(draw: Random, document: dict[str, Any], subject: Subject) -> None:
    """Promise other counts."""
    document["promise"][draw.choice(sorted(document["promise"]))] = draw.choice([-1, 0, 1, 5, (1 << 63) - 1, 1 << 70, -(1 << 70)])


CHANGES: tuple[Change, ...] = (
    rewire,
    rewire,
    rewire,
    grow,
    straighten,
    shift,
    cut,
    exchange,
    drop,
    forget,
    remask,
    choose,
    bypass,
    leave,
    promise,
)


def mutate(draw: Random, document: dict[str, Any], subject: Subject) -> tuple[bytes, str]:
    """Change what a plan means, mostly make its promises true again, and return it as bytes with what was done."""
    done = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        change = draw.choice(CHANGES)
        if document["layers"] or change is not drop:
            change(draw, document, subject) if document["layers"] else promise(draw, document, subject)
            done.append(change.__name__)
    if draw.random() < 0.85 and fulfil(document, subject):
        done.append("fulfil")
    return json.dumps(document).encode(), "plan: " + ", ".join(done)


def fulfil(document: dict[str, Any], subject: Subject) -> bool:
    """Make the promised counts those of the wirings, where the wirings are ones; return whether they are."""
    try:
        layers = Plan.from_json(json.dumps(document)).layers
        params, macs = promised_change(layers, subject.graph)
    except (SwnetError, KeyError):
        return False
    promised = document["promise"]
    document["promise"] = {**promised, "params": params, "macs": macs, "moved": max(1, promised["moved"])}
    document["promise"]["grown"] = sum(bool(wiring.grown) for wiring in layers)
    return True
