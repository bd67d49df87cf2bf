"""The connection matrix: which layer (row) reads which one (column), before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from swcompile.report.facts import Facts
from swcompile.report.links import Link
from swcompile.report.style import CAME, GONE, SOFT, Drawing, styled

SIDE = 4.6
"""Inches of a side."""
LEAST_EDGE = 2.0
"""Points of the edge of a square, at least."""
LOOKS = (
    ("kept", SOFT, True, "read before and after"),
    ("gone", GONE, False, "no longer read"),
    ("came", CAME, True, "came in"),
)


def draw(facts: Facts) -> Drawing:
    """Draw the matrix as squares, the darker the larger a share of the reader's channels; hollow ones are no longer read."""
    panels = ("before", "after") if facts.changed else ("before",)
    about = "Rows are readers, columns what they read, both in the order in which they run: a chain is a line below the diagonal."
    wide, tall = 0.8 + 5.2 * len(panels), SIDE + 1.1
    with styled():
        drawing = Drawing("matrix", "Who reads whom", about, Figure(figsize=(wide, tall)))
        for column, panel in enumerate(panels):
            box = ((0.7 + 5.2 * column) / wide, 0.5 / tall, SIDE / wide, SIDE / tall)
            axes = drawing.axes(f"matrix-{panel}", box, len(facts.stops), rows=True)
            axes.set_title("Before" if panel == "before" else "After")
            axes.set_xlabel("is read (number of the layer)")
            if column == 0:
                axes.set_ylabel("reads (number of the layer)")
            if panel == "before":
                _squares(axes, facts, "before", SOFT, filled=True)
            for side, colour, filled, _ in LOOKS if panel == "after" else ():
                _squares(axes, facts, side, colour, filled=filled)
        if len(panels) > 1:
            _legend(drawing)
    return drawing


def _squares(axes: Any, facts: Facts, side: str, colour: str, *, filled: bool) -> None:
    """Draw the links of one kind: all squares of one shade are one path, which makes a small file."""
    least = LEAST_EDGE / (SIDE * 72) * len(facts.stops)  # of a stop: a square is never too small to be seen
    line = min(0.2 * SIDE * 72 / max(len(facts.stops), 1), 0.8)
    shades: dict[float, list[Link]] = {}
    for link in facts.links:
        if getattr(link, side) > 0:
            share = getattr(link, side) / max(facts.stops[link.reader].before.reads, 1)
            shades.setdefault(0.35 + 0.65 * round(4 * min(share, 1)) / 4, []).append(link)
    for shade, found in sorted(shades.items()):
        path = _path(found, max(0.92 if filled else 0.8, least))
        look = (
            {"facecolor": (colour, shade), "linewidth": 0}
            if filled
            else {"facecolor": "none", "edgecolor": colour, "linewidth": line}
        )
        axes.add_patch(PathPatch(path, clip_on=False, **look))


def _path(found: Sequence[Link], edge: float) -> Path:
    """Return a path of squares with edges of so many stops."""
    corner = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * edge / 2
    centre = np.array([(link.source, link.reader) for link in found], np.float64)
    return Path((centre[:, None] + corner).reshape(-1, 2), ([Path.MOVETO] + [Path.LINETO] * 3 + [Path.CLOSEPOLY]) * len(found))


def _legend(drawing: Drawing) -> None:
    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="s",
            markersize=6,
            color=colour,
            label=words,
            markerfacecolor=None if filled else "none",
        )
        for _, colour, filled, words in LOOKS
    ]
    drawing.figure.legend(handles=marks, ncols=3, loc="upper right")
