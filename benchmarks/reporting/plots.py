"""Plots of raw curves and of ratios, as SVG that is the same to the byte whenever it is drawn from the same curves."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from benchmarks.reporting.curves import COSTS, ORIGINAL, Group, mean_path
from benchmarks.reporting.ratios import Comparison, student

STYLE: Any = {
    "svg.hashsalt": "swcompile",  # else every name of a clip path is new
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": False,
}
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""Okabe and Ito's, which colour-blind readers can tell apart; the original is black."""
AXES = {"step": "steps", "epoch": "epochs", "macs": "multiply-accumulates", "seconds": "seconds of training"}
MEASURES = {"test_error": "test error", "train_loss": "training loss"}


@contextmanager
def _styled() -> Iterator[None]:
    """Draw in one style, whatever the reader's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def curves(group: Group) -> str:
    """Draw test error and training loss against each cost: means over runs, with a 95% interval of the mean where there are two.

    The interval is Student's t, so that with three runs it is 4.3 standard errors to each side.
    """
    with _styled():
        figure = Figure(figsize=(13, 5.5), layout="constrained")
        panels = figure.subplots(len(MEASURES), len(COSTS), sharey="row")
        for row, measure in zip(panels, MEASURES, strict=True):
            for panel, cost in zip(row, COSTS, strict=True):
                _draw(panel, group, cost, measure)
            row[0].set_ylabel(MEASURES[measure])
        for panel, cost in zip(panels[-1], COSTS, strict=True):
            panel.set_xlabel(AXES[cost])
        for target in group.targets.values():
            for panel in panels[0]:
                panel.axhline(target, color="#bbbbbb", linewidth=0.6, linestyle=":", zorder=0)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        figure.suptitle(group.name)
        return _svg(figure)


def _draw(panel: Any, group: Group, cost: str, measure: str) -> None:
    for place, (arm, runs) in enumerate(group.arms.items()):
        x, y, deviation = mean_path(runs, cost, measure)
        colour = COLOURS[place % len(COLOURS)]
        panel.plot(x, y, color=colour, linewidth=1, label=f"{arm} ({len(runs)})", linestyle="-" if place < len(COLOURS) else "--")
        if len(runs) > 1:
            half = student(len(runs) - 1) * deviation / math.sqrt(len(runs))
            panel.fill_between(x, y - half, y + half, color=colour, alpha=0.15, linewidth=0)
    if measure == "train_loss":
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        panel.yaxis.set_minor_locator(NullLocator())
    else:  # intervals of three runs would else set the scale
        values = np.concatenate([run.values(measure) for run in group.runs])
        panel.set_ylim(max(np.nanmin(values) - 0.02, 0), np.nanmax(values) + 0.02)


def forest(compared: Sequence[tuple[Group, Sequence[Comparison]]], share: float) -> str:
    """Draw each arm's ratio in steps at one target with its interval; open marks are bounds."""
    rows = [(group, one) for group, every in compared for one in every if one.share == share and _shown(one)]
    with _styled():
        figure = Figure(figsize=(9, 1 + 0.28 * max(len(rows), 1)), layout="constrained")
        panel = figure.subplots()
        for place, (_, one) in enumerate(rows):
            ratio = one.ratios["step"]
            ends = [ratio.value if math.isnan(end) else end for end in ratio.ends]
            panel.plot(ends, [place, place], color=COLOURS[1], linewidth=1)
            face = "none" if ratio.bound else COLOURS[1]
            panel.plot([ratio.value], [place], "o", color=COLOURS[1], markerfacecolor=face, markersize=5)
        panel.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
        panel.set_xscale("log", base=2)
        low, high = panel.get_xlim()
        panel.set_xlim(min(low, 0.5), max(high, 4))
        panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        panel.set_yticks(range(len(rows)), [f"{group.name}: {one.arm}" for group, one in rows])
        panel.invert_yaxis()
        panel.set_xlabel(f"times fewer steps than the original to its error at {share:.0%} of the budget")
        return _svg(figure)


def _shown(one: Comparison) -> bool:
    return one.arm != ORIGINAL and one.ratios["step"].bound != "?"


def _svg(figure: Figure) -> str:
    """Return a figure as SVG without the date and the version that matplotlib would write into it."""
    out = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(out, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
