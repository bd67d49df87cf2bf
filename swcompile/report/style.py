"""How figures look, and how they become PNG, SVG, or a part of the page.

Every figure is drawn once, by matplotlib, with the colours of LIGHT. In the page each of these colours is a CSS variable, so that
the same drawing is readable on a dark ground and on paper, at any size, and fetches nothing. The bytes are the same whenever the
same facts are drawn: no date, no version, no random names.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, SOFT, FAINT, GROUND = "#1b1f23", "#6e7781", "#d8dee4", "#fefefe"
CAME, GONE, CHOSEN = "#0072b2", "#1b1f24", "#d55e00"
STAGES = ("#0072b3", "#d55e01", "#009e73", "#b5679b", "#4aa3d9", "#c98a00", "#555555")
"""Okabe and Ito's, which colour-blind readers can tell apart, light ones a little darker to be seen on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "h", "<", ">")
"""Each stage has a shape as well as a colour; after 7 colours and 12 shapes both begin anew, at different places."""

THEME: Mapping[str, tuple[str, str]] = {
    INK: ("ink", "#e6edf3"),
    SOFT: ("soft", "#9aa4ae"),
    FAINT: ("faint", "#3a424b"),
    GROUND: ("ground", "#14181d"),
    CAME: ("came", "#5db4ea"),
    GONE: ("gone", "#e6edf4"),
    CHOSEN: ("chosen", "#ff8f4a"),
    "#0072b3": ("stage-0", "#5db4eb"),
    "#d55e01": ("stage-1", "#ff8f4b"),
    "#009e73": ("stage-2", "#33c49a"),
    "#b5679b": ("stage-3", "#e09ac6"),
    "#4aa3d9": ("stage-4", "#9bd4f5"),
    "#c98a00": ("stage-5", "#f0b93a"),
    "#555555": ("stage-6", "#b9c0c7"),
}
"""For each colour of a drawing, the CSS variable it becomes, and that variable's value on a dark ground."""

STYLE: Any = {
    "svg.hashsalt": "swcompile",  # else every name of a clip path is new
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "text.parse_math": False,  # a layer may be called $x$
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "path.simplify": False,
}
DOTS = 160
"""Dots an inch of a PNG."""


@dataclass(frozen=True)
class Axis:
    """Where the stops of a panel lie in a drawing, in units of its view box: stop i at first + i * step; top and bottom."""

    first: float
    step: float
    top: float
    bottom: float


@dataclass
class Drawing:
    """A figure with what the page needs to answer the pointer: panels by name, and texts by the name of a drawn part."""

    name: str
    title: str
    about: str
    figure: Figure
    panels: dict[str, Axis] = field(default_factory=dict)
    tips: dict[str, str] = field(default_factory=dict)

    def axes(self, panel: str, box: tuple[float, float, float, float], count: int, *, rows: bool = False) -> Any:
        """Add a panel whose horizontal axis counts stops; `box` is left, bottom, width, height in shares of the figure.

        With `rows`, the vertical axis counts them from the top, too.
        """
        axes: Any = self.figure.add_axes(box)
        axes.set_xlim(-0.5, max(count, 1) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if rows:
            axes.set_ylim(max(count, 1) - 0.5, -0.5)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        wide, tall = (float(size) * 72 for size in self.figure.get_size_inches())
        left, bottom, width, height = box
        step = width * wide / max(count, 1)
        self.panels[panel] = Axis(left * wide + step / 2, step, (1 - bottom - height) * tall, (1 - bottom) * tall)
        return axes


@contextmanager
def styled() -> Iterator[None]:
    """Draw in one style, whatever the reader's own settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)  # a name in letters that the font has not
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def svg(figure: Figure, *, ground: str = "white") -> str:
    """Return a figure as SVG, on a ground of this colour or of "none"."""
    out = io.StringIO()
    figure.set_facecolor(ground)
    canvas: Any = FigureCanvasSVG(figure)
    with styled():
        canvas.print_svg(out, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def png(figure: Figure) -> bytes:
    """Return a figure as PNG on a white ground."""
    out = io.BytesIO()
    figure.set_facecolor("white")
    figure.set_dpi(DOTS)
    canvas: Any = FigureCanvasAgg(figure)
    with styled():
        canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def inline(drawing: Drawing) -> str:
    """Return a drawing as an element of the page: ids of its own, colours as variables, and words for who cannot see it."""
    text = svg(drawing.figure, ground="none")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r">\s+<", "><", re.sub(r"\n\s*", " ", text))
    text = re.sub(r"<[^>]*>", lambda tag: _of_page(tag[0], drawing.name), text)
    return text.replace("<svg ", f'<svg class="{drawing.name}" role="img" aria-labelledby="{drawing.name}-title" ', 1)


def _of_page(tag: str, name: str) -> str:
    """Return a tag with ids that are the drawing's own, colours as variables, and two decimals, a hundredth of a point.

    Only tags: what stands between them may be a layer that is called "#0072b2".
    """
    tag = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r'(?<= )(?:d|x|y|transform|style)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), tag)
    tag = re.sub(r"; stroke-linejoin: miter|; stroke-dashoffset: 0(?=[;\"])", "", tag)
    return re.sub("|".join(THEME), lambda colour: f"var(--{THEME[colour[0]][0]})", tag)


def variables() -> str:
    """Return the colours of the page as CSS declarations, for a light and for a dark ground."""
    return "\n".join(f"  --{name}: light-dark({light}, {dark});" for light, (name, dark) in THEME.items())
