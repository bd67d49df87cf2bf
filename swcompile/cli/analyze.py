"""`swcompile analyze`: show the graph's figures over p, and the p that would be chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from swcompile.cli import exit_codes
from swcompile.cli.options import graph_file_option, graph_options, model_options, screen_options
from swcompile.cli.screen import plain, show, working
from swcompile.cli.signals import import_torch


@click.command(epilog=exit_codes.HELP, short_help="Show the figures over p, and the p that would be chosen.")
@model_options
@graph_options
@graph_file_option
@click.option("--points", type=int, default=20, metavar="N", help="How many values of p. [default: 20]")
@click.option("--report", "report_file", metavar="FILE", help="Write a page that shows what that p would make of the network.")
@click.option("--plots", is_flag=True, help="With --report: its figures as PNG and SVG, too, into plots/ beside it.")
@screen_options
def analyze(
    path: str,
    entry: str | None,
    inputs: Sequence[str],
    graph_file: str | None,
    report_file: str | None,
    plots: bool,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Show the graph's figures over p, and the p that would be chosen.

    Nothing is rewired, nor written but the report and the file that --graph names.
    """
    if plots and report_file is None:
        raise click.UsageError("--plots writes figures beside the report: say where that goes, --report FILE.")
    page = None if report_file is None else os.path.abspath(report_file)  # now: the user's file may change the folder
    with working(3 if page is None else 4, quiet=quiet) as begin:
        import_torch(begin)
        from swcompile import api, graphfile, report, store, tables
        from swcompile.cli import models
        from swcompile.report.subjects import facts

        if page is not None:
            report.require()
        graph_path = models.graph_path(graph_file)
        begin("building the model")
        found, examples = models.load(path, entry, inputs)
        begin("analyzing")
        analysis = api.analyze(found.model, examples, **asked)
        if graph_path is not None:
            graphfile.write(graph_path, analysis.graph)
        if page is not None:
            begin(f"writing {report_file}")
            seen = facts(analysis, report.command(click.get_current_context()))
            store.write_files(page, report.page(seen).encode(), report.plots(seen) if plots else {})
    curve = {name: plain(getattr(analysis.curve, name)) for name in ("p", "C", "L", "S")}
    document = {"p_requested": asked["p"], "p": analysis.p, "curve": curve, **models.facts(found, analysis), "report": report_file}
    rows = zip(curve["p"], curve["C"], curve["L"], curve["S"], strict=True)
    written = [] if report_file is None else [f"See {report_file} in a browser."]
    shown = [tables.sweep(rows, analysis.p, str(asked["p"])), *models.remarks(analysis), *written]
    show(document, shown, as_json=as_json, quiet=quiet)
