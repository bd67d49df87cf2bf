"""Clustering C, path length L and small-worldness S over p, with the p that was taken."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from swcompile.report.facts import Facts
from swcompile.report.style import CAME, CHOSEN, INK, SOFT, Drawing, styled

FIGURES = {"C": "clustering C", "L": "path length L", "S": "small-worldness S"}


def draw(facts: Facts) -> Drawing | None:
    """Draw the three curves side by side; None where there are none to draw."""
    curve = facts.sweep.curve
    if curve is None:
        return None
    how = "counted on the plan of each p" if curve.exact else "expected of each p, by the closed form"
    about = f"The figures of the channel graph over the share of links that move, {how}. {facts.sweep.why}".strip()
    with styled():
        drawing = Drawing("curve", "C, L and S over p", about, Figure(figsize=(12, 2.9)))
        for place, name in enumerate(FIGURES):
            axes: Any = drawing.figure.add_axes((0.05 + 0.325 * place, 0.17, 0.26, 0.7))
            axes.set_title(FIGURES[name])
            axes.set_xlabel("p")
            values = getattr(curve, name)
            axes.plot(curve.p, values, color=CAME, linewidth=1.4)
            for point, (p, value) in enumerate(zip(curve.p, values, strict=True)):
                axes.plot([p], [value], marker="o", markersize=4, color=CAME, gid=f"{name}-{point}")
                drawing.tips[f"curve-{name}-{point}"] = f"p = {p:.3g}: {FIGURES[name]} = {value:.4g}"
            axes.axvline(facts.sweep.p, color=CHOSEN, linewidth=1, linestyle="--")
            axes.annotate(
                f"p = {facts.sweep.p:.3g}", (facts.sweep.p, 1), (3, -2), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", color=INK, ha="left" if facts.sweep.p < 0.8 else "right",
            )  # fmt: skip
            if name == "S":
                axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=":")
                axes.set_ylim(0, 1.05 * max([1.0, *filter(math.isfinite, values)]))
    return drawing
