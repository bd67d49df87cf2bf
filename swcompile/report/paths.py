"""How far each layer is from the input, before and after."""

from __future__ import annotations

from matplotlib.figure import Figure

from swcompile.report.facts import Facts
from swcompile.report.style import CAME, SOFT, Drawing, styled


def draw(facts: Facts) -> Drawing:
    """Draw the mean number of layers on the shortest paths from input channels to each layer's channels."""
    about = "Layers on the shortest path from the input to each layer's channels, the mean over channels."
    sides = facts.sides
    with styled():
        drawing = Drawing("paths", "Distance from the input", about, Figure(figsize=(12, 3)))
        axes = drawing.axes("paths", (0.05, 0.16, 0.93, 0.72), len(facts.stops))
        before = {"color": SOFT, "linestyle": "--", "marker": "o", "label": "before"}
        after = {"color": CAME, "linestyle": "-", "marker": "s", "label": "after"}
        size = min(max(250 / max(len(facts.stops), 1), 1.5), 5)
        axes.plot(sides.before_profile.distance, linewidth=1.2, markersize=size, **before)
        if facts.changed and sides.after_profile is not None:
            axes.plot(sides.after_profile.distance, linewidth=1.4, markersize=size, **after)
            axes.legend(loc="upper left")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("number of the layer, in the order in which they run")
        axes.set_ylabel("layers from the input")
    return drawing
