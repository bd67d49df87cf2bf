"""How many links channels have, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from swcompile.report.facts import Facts
from swcompile.report.profiles import Degrees
from swcompile.report.style import CAME, SOFT, Drawing, styled

BINS = 30


def draw(facts: Facts) -> Drawing:
    """Draw the shares of channels by the number of channels that they read, and by the number that read them."""
    about = (
        "Channels by the number of links into them and out of them; one that nothing reads has 0 out of it. A channel that is "
        "added twice into one sum counts twice here, and once in the ledger."
    )
    with styled():
        drawing = Drawing("degrees", "Degrees", about, Figure(figsize=(12, 2.9)))
        for place, (side, words) in enumerate((("inward", "links into a channel"), ("outward", "links out of a channel"))):
            axes: Any = drawing.figure.add_axes((0.06 + 0.49 * place, 0.17, 0.43, 0.7))
            axes.set_title(words)
            axes.set_xlabel("links")
            axes.set_ylabel("share of channels")
            _histogram(axes, facts, side)
    return drawing


def _histogram(axes: Any, facts: Facts, side: str) -> None:
    before: Degrees = getattr(facts.sides.before_profile, side)
    after: Degrees | None = getattr(facts.sides.after_profile, side) if facts.changed else None
    both = (*before.links, *(after.links if after else ()))
    edges = np.linspace(0, max(both, default=1.0) * 1.0001 + 1e-9, BINS + 1)
    axes.stairs(shares(before, edges), edges, color=SOFT, linewidth=1.2, linestyle="--", label="before")
    if after is not None:
        axes.stairs(shares(after, edges), edges, color=CAME, linewidth=1.4, label="after")
        axes.legend(loc="upper right")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(bottom=0)


def shares(degrees: Degrees, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return which share of channels has a number of links between each two edges."""
    count = np.histogram(degrees.links, edges, weights=degrees.channels)[0]
    return np.asarray(count / max(sum(degrees.channels), 1), np.float64)
