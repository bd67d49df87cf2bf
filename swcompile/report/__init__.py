"""The report: one HTML page of a network before and after, and its figures as PNG and SVG.

    subjects.py, inputs.py             from a rewired module or an analysis to these, with its example inputs as code: need torch
    facts.py, links.py, profiles.py,
    sizes.py                           from a layer graph, a plan and figures to plain data: no torch, no matplotlib
    local.py                           names of files, without the folders of this machine
    repeat.py                          the call or the command that gives the same again
    network.py ... degrees.py          one figure each, drawn by matplotlib
    style.py                           their colours, and how they become SVG, PNG or a part of the page
    layout.py, page.html, .css, .js    the page

matplotlib's SVG and not a plotting library that runs in the browser: the page needs no library inside (plotly's takes 4.5 MB), its
figures are the very drawings of the PNG and SVG files, it prints as vectors, and its colours follow the reader's.
Drawing needs the extra `report`; what is imported here does not, nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from swcompile.errors import SwnetError, first_line
from swcompile.report.facts import Facts, by_stage
from swcompile.report.repeat import command

__all__ = ["Facts", "absent", "by_stage", "command", "missing", "page", "plots", "require"]

NEEDS = ("matplotlib", "jinja2")
INSTALL = "pip install 'swcompile[report]'"


def missing() -> str | None:
    """Return the package that a report needs and that cannot be imported, None where all can."""
    return next((name for name in NEEDS if _failure(name) is not None), None)


def _failure(name: str) -> ImportError | None:
    """Return why a package cannot be imported: one may be installed, and not fit the numpy beside it."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        return error
    return None


def absent() -> str:
    """Say in a sentence what cannot be imported, and how to get it."""
    name = missing()
    error = None if name is None else _failure(name)
    if error is None or isinstance(error, ModuleNotFoundError):
        return f"a report is drawn by {name}, which is not installed. Install it: {INSTALL}."
    return f"a report is drawn by {name}, which cannot be imported ({first_line(error)}). Install it anew: {INSTALL}."


def require() -> None:
    """Raise SwnetError where what draws a report cannot be imported."""
    if missing() is not None:
        raise SwnetError(f"There is no report: {absent()}")


def page(facts: Facts) -> str:
    """Return the report as one HTML page. Raises SwnetError where what draws it is not installed."""
    made: str = _drawing().page(facts)
    return made


def plots(facts: Facts) -> dict[str, bytes]:
    """Return the figures of the report as files by their names, each as SVG and as PNG. Raises SwnetError as `page` does."""
    return dict(_drawing().plots(facts))


def _drawing() -> Any:
    """Import what draws: half a second that `import swnet` does not take."""
    require()
    return importlib.import_module("swcompile.report.layout")
