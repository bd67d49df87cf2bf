"""`swcompile export`: write a rewired model in a form that other programs take."""

from __future__ import annotations

import os

import click

from swcompile.cli import exit_codes
from swcompile.cli.options import screen_options
from swcompile.cli.screen import show, working
from swcompile.cli.signals import import_torch

FORMS = ("torch-export", "onnx", "python")
"""Those of swcompile.export, which imports torch."""


@click.command(epilog=exit_codes.HELP)
@click.argument("folder", metavar="FOLDER")
@click.option("--to", required=True, type=click.Choice(FORMS), metavar="|".join(FORMS), help="The form.")
@click.option("--out", metavar="FOLDER", help="Where it goes. [default: FOLDER-python and the like]")
@click.option("--force", is_flag=True, help="Replace a folder that an earlier export wrote.")
@click.option("--aot", is_flag=True, help="With torch-export: also compile it ahead of time. Takes a C++ compiler.")
@click.option(
    "--tolerance",
    type=float,
    metavar="SHARE",
    help="How far it may be off, as a part of the largest output. [default: 1e-5 in float32]",
)
@screen_options
def export(
    folder: str, to: str, out: str | None, force: bool, aot: bool, tolerance: float | None, as_json: bool, quiet: bool
) -> None:
    """Write a rewired model in a form that other programs take.

    FOLDER is what transform wrote. python is a readable module of torch's own layers, with its weights beside it; torch-export a
    .pt2 file; onnx a .onnx file. Each is run and compared with the model before it is written.
    """
    target = out or f"{_named(folder)}-{to}"
    with working(3, quiet=quiet) as begin:
        import_torch(begin)
        from swcompile import export as exporting
        from swcompile import modelfile, store

        path = store.check_target(target, kind=store.EXPORT, force=force)
        begin("building the model")
        model = modelfile.load_rewired(folder)
        begin(f"exporting to {to}")
        done = exporting.export(model, path, to=to, aot=aot, tolerance=tolerance, force=force)
    document = {"out": target, "to": done.to, "files": done.files, "open_batch": done.open_batch, **vars(done.comparison)}
    batches = " and ".join(map(str, done.comparison.batches))
    found, allowed = done.comparison.difference, done.comparison.tolerance
    shown = [
        f"Off by {found:.2g} of the largest output at batches of {batches} ({allowed:.2g} is allowed).",
        *(["Train mode was not compared: the module itself does not run in it on these inputs."] if done.trained is False else []),
        *([] if done.open_batch else ["The batch size is fixed to that of the example, as it is in the model."]),
        f"Written to {target}: {', '.join(done.files)}",
    ]
    show(document, shown, as_json=as_json, quiet=quiet)


def _named(folder: str) -> str:
    """Return a folder without . and .. at its end: what is called after it lies beside it, not inside."""
    path = os.path.normpath(folder)
    return os.path.abspath(path) if os.path.basename(path) in ("", ".", "..") else path
