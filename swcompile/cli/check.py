"""`swcompile check`: say for each layer whether it can be rewired, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from swcompile.cli import exit_codes
from swcompile.cli.options import graph_options, model_options, screen_options
from swcompile.cli.screen import show, working
from swcompile.cli.signals import import_torch
from swcompile.errors import NothingToDoError


@click.command(epilog=exit_codes.HELP)
@model_options
@graph_options
@screen_options
def check(path: str, entry: str | None, inputs: Sequence[str], as_json: bool, quiet: bool, **asked: Any) -> None:
    """Say for each layer whether it can be rewired, and why not.

    Nothing is rewired or written. Ends with 3 where no layer can be.
    """
    with working(3, quiet=quiet) as begin:
        import_torch(begin)
        from swcompile import tables
        from swcompile.cli import models
        from swcompile.survey import survey

        begin("building the model")
        found, examples = models.load(path, entry, inputs)
        begin("tracing")
        surveyed = survey(found.model, examples, **asked)
    refused = dict(surveyed.refused)
    rows = tables.layers(surveyed.graph, refused, surveyed.unreached)
    document = {"layers": tables.records(surveyed.graph, refused), **models.facts(found, surveyed), "outlook": surveyed.outlook}
    remarks = [*models.remarks(surveyed), *([surveyed.outlook] if surveyed.outlook else [])]
    show(document, [rows, *remarks], as_json=as_json, quiet=quiet)
    if not surveyed.eligible:
        reasons = "".join(f"\n  {layer}: {reason}" for layer, reason in (*surveyed.refused, *surveyed.unreached))
        raise NothingToDoError(f"No layer of {found.entry_name} in {path} can be rewired:{reasons}")
