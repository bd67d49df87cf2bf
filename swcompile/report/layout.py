"""Lay the page: figures, tables and words in one HTML file that fetches nothing.

Jinja2 escapes every text: layers, files and reasons carry names that somebody else chose. The page's own script is the only one
that its content security policy lets run, by its hash, and nothing may be loaded from anywhere.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from swcompile import tables
from swcompile.report import curve, degrees, matrix, network, paths
from swcompile.report.facts import Facts, Stop
from swcompile.report.style import Drawing, inline, png, svg, variables

MOST_ROWS = 3_000
"""More layers than these have no row of the table: their figures are in ledger.json."""

Row = tuple[str, ...]


def page(facts: Facts) -> str:
    """Return the whole page as HTML."""
    script = _asset("page.js")
    drawings = [made for made in (network.draw(facts, all_names=True), *_others(facts)) if made is not None]
    figures = {made.name: {"title": made.title, "about": made.about, "svg": Markup(inline(made))} for made in drawings}
    made: str = _template().render(
        facts=facts,
        figures=figures,
        style=Markup(_asset("page.css").replace("/* colours */", variables())),
        script=Markup(script),
        policy=_policy(script),
        data=_embedded(_data(facts, drawings)),
        ledger=tuple(tables.ledger_rows(facts.sides.before, facts.sides.after or facts.sides.before)),
        verdict=tuple(tables.verdict((facts.sides.after or facts.sides.before).get("S"))),
        curve=_curve_rows(facts),
        rows=_layer_rows(facts),
        left_out=max(len(facts.stops) - MOST_ROWS, 0),
        notes=_notes(facts),
    )
    return made.encode("utf-8", "backslashreplace").decode()  # names of files may be no text


def plots(facts: Facts) -> Iterator[tuple[str, bytes]]:
    """Yield the figures as files, name and content: each as SVG and as PNG."""
    for made in (network.draw(facts), *_others(facts)):
        if made is not None:
            yield f"{made.name}.svg", svg(made.figure).encode()
            yield f"{made.name}.png", png(made.figure)


def _others(facts: Facts) -> tuple[Drawing | None, ...]:
    return curve.draw(facts), matrix.draw(facts), paths.draw(facts), degrees.draw(facts)


# What the script needs


def _data(facts: Facts, drawings: Sequence[Drawing]) -> dict[str, Any]:
    """Return what the page says of stops and links when they are pointed at, and where they lie in the figures."""
    profiles = facts.sides.before_profile, facts.sides.after_profile or facts.sides.before_profile
    return {
        "changed": facts.changed,
        "stages": facts.stages,
        "stops": [
            [stop.name, stop.stage, _words(stop), stop.where, stop.refused, *(_rounded(one.distance[place]) for one in profiles)]
            for place, stop in enumerate(facts.stops)
        ],
        "links": [[link.source, link.reader, *map(_rounded, (link.kept, link.came, link.gone))] for link in facts.links],
        "panels": {made.name: {name: dataclasses.asdict(axis) for name, axis in made.panels.items()} for made in drawings},
        "tips": {name: text for made in drawings for name, text in made.tips.items()},
    }


def _words(stop: Stop) -> str:
    """Say what a stop is in one line."""
    before, after = stop.before, stop.after
    if stop.kind == "input":
        return f"input, {before.makes:,} channels, {stop.size}"
    kernel = f" {stop.kernel}" if stop.kernel else ""
    ends = " → ".join(dict.fromkeys(f"{size.reads:,} to {size.makes:,}" for size in (before, after)))
    groups = f", {_change(before.groups, after.groups)} groups" if before.groups > 1 else ""
    return f"{stop.kind}{kernel}, {ends} channels{groups}, reads {stop.size}"


def _change(before: int, after: int) -> str:
    """Return a count, and where a plan changes it, what it becomes."""
    return " → ".join(dict.fromkeys((f"{before:,}", f"{after:,}")))


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = round(value, 2)
    return int(short) if short == int(short) else short


def _embedded(data: Mapping[str, Any]) -> Markup:
    """Return data as JSON that no text in it can end early: a script element is over at its first </script."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _policy(script: str) -> str:
    """Return the content security policy: this script runs and no other, and nothing is loaded."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{what} {where}" for what, where in allowed.items())


# Tables


def _layer_rows(facts: Facts) -> list[Row]:
    """Return what the table says of each stop."""
    sums = {place: [0.0, 0.0, 0.0] for place in range(len(facts.stops))}
    for link in facts.links:
        for place, channels in enumerate((link.kept, link.came, link.gone)):
            sums[link.reader][place] += channels
    profiles = facts.sides.before_profile, facts.sides.after_profile or facts.sides.before_profile
    return [
        (
            str(place),
            stop.name,
            stop.kind,
            _change(stop.before.reads, stop.after.reads) if stop.before.reads else "",
            _change(stop.before.makes, stop.after.makes),
            " ".join(
                filter(None, (stop.kernel, f"/{_change(stop.before.groups, stop.after.groups)}" if stop.before.groups > 1 else ""))
            ),
            stop.size,
            _change(stop.before.weights, stop.after.weights) if stop.before.weights else "",
            _change(stop.before.macs, stop.after.macs) if stop.before.macs else "",
            *(f"{round(channels):,}" if channels else "" for channels in sums[place]),
            *(tables.figure(one.distance[place]) for one in profiles),
            stop.where,
            stop.refused,
        )
        for place, stop in enumerate(facts.stops[:MOST_ROWS])
    ]


def _curve_rows(facts: Facts) -> list[tuple[Row, bool]]:
    """Return the sweep as rows, and whether a row is the one nearest to the p that was taken."""
    found = facts.sweep.curve
    if found is None:
        return []
    nearest = min(found.p, key=lambda p: abs(p - facts.sweep.p))
    return [(tuple(map(tables.figure, row)), row[0] == nearest) for row in zip(found.p, found.C, found.L, found.S, strict=True)]


def _notes(facts: Facts) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Return each reason with the layers that it holds for, and what holds for the whole network."""
    named: dict[str, list[str]] = {}
    for name, reason in facts.notes:
        named.setdefault(reason, []).extend([] if name == "*" else [name])
    whole = [reason for reason, names in named.items() if not names]
    return [(reason, names) for reason, names in named.items() if names], [*whole, *facts.remarks]


# The files beside this one


def _asset(name: str) -> str:
    return resources.files("swcompile.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.from_string(_asset("page.html"))
