"""`swcompile transform`: rewire a model and write it to a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import RenderableType

from swcompile.cli import exit_codes
from swcompile.cli.options import completed_by, graph_file_option, graph_options, kernel_options, model_options, screen_options
from swcompile.cli.screen import show, working
from swcompile.cli.signals import import_torch
from swcompile.errors import NothingToDoError

if TYPE_CHECKING:
    from swcompile.check import Ledger
    from swcompile.plan import Note
    from swcompile.report import Facts


@click.command(epilog=exit_codes.HELP)
@model_options
@click.option(
    "--out", default="out", metavar="FOLDER", shell_complete=completed_by("dir"), help="Where the result goes. [default: out]"
)
@click.option("--force", is_flag=True, help="Replace a folder that transform or swnet.save wrote.")
@click.option(
    "--plan", "plan_file", metavar="PLAN.JSON", shell_complete=completed_by("file"), help="Apply this plan instead of making one."
)
@click.option(
    "--score",
    default="distance",
    metavar="distance|weight|norm",
    help="Which blocks a budget drops: far ones, or those that a trained model's weights need least. [default: distance]",
)
@click.option(
    "--grow",
    type=float,
    default=0.0,
    metavar="SHARE",
    help="Move nothing, and add this share of long-range blocks on top at zero weight. [default: 0]",
)
@click.option("--verify", is_flag=True, default=False, help="Run pruned and masked model in float64, and compare them.")
@click.option("--plots", is_flag=True, help="Write the report's figures as PNG and SVG, too, into plots/.")
@graph_options
@kernel_options
@graph_file_option
@screen_options
def transform(
    path: str,
    entry: str | None,
    inputs: Sequence[str],
    out: str,
    force: bool,
    plan_file: str | None,
    plots: bool,
    graph_file: str | None,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Rewire the model in MODEL.PY and write it to a folder.

    The folder holds plan.json, weights.safetensors, manifest.json, ledger.json, report.html, model.py, whose build_model() gives
    the rewired model, and source/, the model's own code. It can be moved as a whole.
    """
    if plan_file is not None:
        _refuse_options(asked)
    with working(5, quiet=quiet) as begin:
        import_torch(begin)
        from swcompile import api, graphfile, plan, report, store
        from swcompile.cli import folder, models
        from swcompile.record import record
        from swcompile.report.subjects import facts

        if plots:
            report.require()
        graph_path = models.graph_path(graph_file, out)
        # The target is absolute, and the plan is read now: the user's file may change the folder.
        target = store.check_target(out, kind=store.MODEL, force=force)
        made = None if plan_file is None else plan.Plan.read(plan_file)
        begin("building the model")
        found, examples = models.load(path, entry, inputs)
        begin("rewiring")
        rewired = api.transform(found.model, examples, **asked) if made is None else api.apply(found.model, made, examples)
        known, ledger = record(rewired), api.ledger(rewired)
        if not ledger.changed:
            raise NothingToDoError(_unchanged(found.entry_name, ledger.notes))
        begin("reporting")
        seen = facts(rewired, report.command(click.get_current_context()))
        pages, left_out = folder.pages(seen, plots=plots)
        begin(f"writing {out}")
        folder.write(target, found, rewired, known, ledger, pages, force=force)
        if graph_path is not None:
            graphfile.write(graph_path, known.graph, known.plan)
    page = os.path.join(out, store.REPORT) if pages else None
    document = {"out": out, "report": page, "model": found.entry_name, "plan": known.plan.digest, "ledger": ledger.as_dict()}
    shown = [
        f"{found.entry_name} of {path}, rewired: {_links(ledger)}",
        *_tables(ledger, seen),
        f"Written to {out}: model.py there has a build_model() that gives the rewired model.",
        f"See {page} in a browser." if pages else f"{store.REPORT} was left out: {left_out}",
    ]
    show(document, shown, as_json=as_json, quiet=quiet)


def _refuse_options(asked: Mapping[str, Any]) -> None:
    """Raise UsageError where a plan was given, and options that say how to make one."""
    context = click.get_current_context()
    given = [name for name in asked if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"--plan says how the model is wired, and so does {flags}. Leave one of the two out.")


def _unchanged(name: str, notes: Sequence[Note]) -> str:
    """Say that a plan, or p = 0, asks for no change, with what the ledger notes of each layer."""
    reasons = "".join(f"\n  {note}" for note in notes)
    return f"Nothing changed in {name}, and nothing was written: the plan (or p = 0 at density 1) moves no link.{reasons}"


def _links(ledger: Ledger) -> str:
    pruned = f", {ledger.links_pruned:,} pruned" if ledger.links_pruned else ""
    grown = f", {ledger.links_grown:,} added" if ledger.links_grown else ""
    return f"{ledger.links_moved:,} links moved, {ledger.links_kept:,} kept{pruned}{grown}"


def _tables(ledger: Ledger, seen: Facts) -> list[RenderableType]:
    """Return what was done as tables: both sides of the ledger, what was verified, and a row for each stage."""
    from swcompile import report, tables

    notes = [(note.layer, note.reason) for note in ledger.notes]
    verified = [] if ledger.certificate is None else [str(ledger.certificate)]
    counts = tables.ledger(ledger.before.as_dict(), ledger.after.as_dict(), notes)
    return [counts, *verified, "", tables.stages(report.by_stage(seen)), ""]
