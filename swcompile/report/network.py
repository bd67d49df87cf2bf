"""The picture of the network: layers on a line in the order in which they run, and arcs for what they read.

Above the line of the lower panel what came in, in the colour of its source's stage and as wide as it has channels; below, dashed,
what is no longer read. What stayed is grey, as is all of the upper panel, the network as it was; shortcuts are dotted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from swcompile.report.facts import Facts
from swcompile.report.links import Link
from swcompile.report.style import CAME, FAINT, GONE, INK, MARKERS, SOFT, STAGES, Drawing, styled

MOST_ARCS = 4_000
"""More links than these are not drawn, the narrowest first: nobody could tell them apart, and browsers would slow down."""
FEW_ARCS = 150
"""More links than these are drawn thinner and paler, so that a picture of thousands does not turn into a blot."""
DASHES = (0, (2, 1.5))
NAMES = 90
"""How many names fit beneath the picture."""
MOST_STAGES = 9
"""How many stages fit into the legend."""
LONGEST_NAME = 26
UNIT, LEAST = 2.2, 0.16
"""Inches that an arc over all layers is high, and the least share of that which a panel has above its line."""
TOP, BETWEEN, LETTER = 0.5, 0.4, 0.05
"""Inches for the legend, between panels for the title of each, and for a letter of the names beneath."""
DEPTH = 0.6
"""How deep arcs below the line are, where those above it are 1 high."""


def draw(facts: Facts, *, all_names: bool = False) -> Drawing:
    """Draw the network before and, where a plan changes it, after. `all_names` writes every name, for a page that can zoom."""
    panels = {panel: _reach(facts, panel) for panel in (("before", "after") if facts.changed else ("before",))}
    beneath = 0.2 + LETTER * max((len(named(stop.name)) for stop in facts.stops), default=0)
    tall = TOP + beneath + sum(BETWEEN + UNIT * (above + below) for above, below in panels.values())
    with styled():
        drawing = Drawing("network", "The network", _about(facts), Figure(figsize=(13, tall)))
        drawn, place = widest(facts.links), TOP
        for panel, reach in panels.items():
            place += BETWEEN
            axes = _panel(drawing, facts, panel, place, reach)
            place += UNIT * sum(reach)
            _shortcuts(axes, facts, panel)
            _links(axes, facts, panel, drawn)
            _stops(axes, facts)
        _names(axes, facts, all_names)
        _legend(drawing, facts)
    return drawing


def height(source: int, target: int, count: int) -> float:
    """Return how high an arc is between two of `count` stops: 1 over all of them, less than in proportion for far ones."""
    share = abs(target - source) / max(count - 1, 1)
    return max(math.pow(share, 0.6), 0.06)


def _reach(facts: Facts, panel: str) -> tuple[float, float]:
    """Return how far the arcs of a panel reach above and below its line."""
    count = len(facts.stops)
    shortcuts = [height(one.source, one.target, count) for one in facts.shortcuts if panel == "before" or not one.removed]
    above = [height(link.source, link.reader, count) for link in facts.links if getattr(link, panel) > 0]
    below = [DEPTH * height(link.source, link.reader, count) for link in facts.links if panel == "after" and link.gone > 0]
    return max([*shortcuts, *above, LEAST]) + 0.03, max([*below, 0.0]) + 0.06


def widest(links: Sequence[Link]) -> list[tuple[int, Link]]:
    """Return the links that are drawn with their places, narrow ones first, so that wide ones are not hidden."""
    places = sorted(enumerate(links), key=lambda item: (max(item[1].before, item[1].after), -item[0]))
    return places[-MOST_ARCS:]


def named(name: str) -> str:
    """Return a name as short as the picture needs it, its end kept, and on one line."""
    text = "".join(char if char.isprintable() else "?" for char in name)
    return text if len(text) <= LONGEST_NAME else f"…{text[1 - LONGEST_NAME :]}"


def _about(facts: Facts) -> str:
    layers = sum(stop.kind != "input" for stop in facts.stops)
    came = sum(link.came > 0 for link in facts.links)
    gone = sum(link.gone > 0 for link in facts.links)
    more = len(facts.links) - MOST_ARCS
    left_out = f" The {MOST_ARCS:,} widest links are drawn, {more:,} narrower ones are not." if more > 0 else ""
    now = f" {came:,} links between layers came in or grew, {gone:,} went or shrank." if facts.changed else ""
    sums = " What reads a sum is drawn as a reader of its last addend." if facts.shortcuts else ""
    order = f"{layers:,} layers in the order in which they run; arcs go from what is read, on the left, to its reader."
    return order + sums + now + left_out


def _panel(drawing: Drawing, facts: Facts, panel: str, place: float, reach: tuple[float, float]) -> Any:
    """Add a panel `place` inches from the top."""
    tall = float(drawing.figure.get_size_inches()[1])
    above, below = reach
    share = UNIT * (above + below) / tall
    axes = drawing.axes(panel, (0.02, 1 - place / tall - share, 0.96, share), len(facts.stops))
    axes.set_ylim(-below, above)
    axes.axis("off")
    words = {"before": "Before", "after": "After, if it were carried out" if facts.foreseen else "After"}
    axes.text(0, 1, words[panel], transform=axes.transAxes, fontsize=10, fontweight="bold", va="bottom")
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    return axes


def _shortcuts(axes: Any, facts: Facts, panel: str) -> None:
    for shortcut in facts.shortcuts:
        if panel == "before" or not shortcut.removed:
            look: dict[str, Any] = {"edgecolor": (SOFT, 0.8), "linewidth": 0.7, "linestyle": ":"}
            _arc(axes, shortcut.source, shortcut.target, len(facts.stops), **look)


def _links(axes: Any, facts: Facts, panel: str, drawn: Iterable[tuple[int, Link]]) -> None:
    most = max((max(link.before, link.after) for link in facts.links), default=1.0) or 1.0
    count = len(facts.stops)
    thin = min((FEW_ARCS / max(len(facts.links), 1)) ** 0.4, 1.0)
    for place, link in drawn:
        ends = (axes, link.source, link.reader, count)
        widths = {side: thin * (0.5 + 4 * (getattr(link, side) / most) ** 0.5) for side in ("before", "kept", "came", "gone")}
        stays = "before" if panel == "before" else "kept"
        if getattr(link, stays) > 0:
            _arc(*ends, edgecolor=(SOFT, 0.2 + 0.3 * thin), linewidth=widths[stays], gid=f"{stays}-{place}")
        if panel == "after" and link.came > 0:
            colour = STAGES[facts.stops[link.source].stage % len(STAGES)]
            _arc(*ends, edgecolor=(colour, 0.45 + 0.15 * thin), linewidth=widths["came"], gid=f"came-{place}", zorder=2, bend=True)
        if panel == "after" and link.gone > 0:
            look: dict[str, Any] = {
                "edgecolor": (GONE, 0.5 + 0.25 * thin),
                "linewidth": 0.4 + widths["gone"] / 3,
                "linestyle": DASHES,
            }
            _arc(*ends, gid=f"gone-{place}", up=-DEPTH, **look)


def _arc(axes: Any, source: int, target: int, count: int, *, up: float = 1.0, bend: bool = False, **look: Any) -> None:
    """Draw an arc between two stops, the higher the farther they lie apart; a straight line between neighbours, above the line."""
    span = abs(target - source)
    if span <= 1 and up > 0 and not bend:
        path = Path([(source, 0), (target, 0)])
    else:
        control = 4 / 3 * up * height(source, target, count)
        path = Path([(source, 0), (source, control), (target, control), (target, 0)], [Path.MOVETO] + [Path.CURVE4] * 3)
    axes.add_patch(PathPatch(path, facecolor="none", capstyle="butt", clip_on=False, **look))


def _stops(axes: Any, facts: Facts) -> None:
    size = min(max(300 / max(len(facts.stops), 1), 1.8), 7)
    for stage in range(len(facts.stages)):
        places = [place for place, stop in enumerate(facts.stops) if stop.stage == stage]
        axes.plot(places, [0] * len(places), **_mark(stage), markersize=size, clip_on=False, zorder=3)


def _mark(stage: int) -> dict[str, Any]:
    colour = STAGES[stage % len(STAGES)]
    return {"linestyle": "none", "marker": MARKERS[stage % len(MARKERS)], "color": colour, "markeredgewidth": 0}


def _names(axes: Any, facts: Facts, all_names: bool) -> None:
    every = 1 if all_names else -(-len(facts.stops) // NAMES)
    low = axes.get_ylim()[0]
    for place in range(0, len(facts.stops), every):
        name = named(facts.stops[place].name)
        axes.text(place, low, name, rotation=90, va="top", ha="center", fontsize=6, color=INK, gid=f"name-{place}")


def _legend(drawing: Drawing, facts: Facts) -> None:
    arcs = [Line2D([], [], color=SOFT, linewidth=2.5, alpha=0.5, label="read before and after" if facts.changed else "read")]
    if facts.shortcuts:
        arcs.append(Line2D([], [], color=SOFT, linewidth=1, linestyle=":", label="shortcut"))
    if facts.changed:
        arcs.append(Line2D([], [], color=CAME, linewidth=2.5, alpha=0.6, label="came in (colour: its source's stage)"))
        arcs.append(Line2D([], [], color=GONE, linewidth=1.2, linestyle=DASHES, label="no longer read"))
    shown = range(min(len(facts.stages), MOST_STAGES))
    stages = [Line2D([], [], **_mark(stage), markersize=6, label=f"reads {facts.stages[stage]}") for stage in shown]
    for row, handles in enumerate((arcs, stages)):
        place: dict[str, Any] = {"loc": "upper left", "handlelength": 1.8, "columnspacing": 1.2}
        top = 1 - 0.22 * row / float(drawing.figure.get_size_inches()[1])
        drawing.figure.legend(handles=handles, ncols=len(handles), bbox_to_anchor=(0.012, top), **place)
