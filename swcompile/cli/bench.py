"""`swcompile bench`: time gathers on this machine, or calibrate what `swnet.lower` chooses by."""

from __future__ import annotations

import click

from swcompile.cli import exit_codes
from swcompile.cli.options import screen_options
from swcompile.cli.screen import show, working
from swcompile.cli.signals import import_torch


@click.command(epilog=exit_codes.HELP)
@click.option("--calibrate", is_flag=True, help="Time this device's operations, for swnet.lower to choose by.")
@click.option("--device", metavar="cpu|cuda|cuda:N", help="Where to run. [default: cuda where there is one]")
@click.option("--dtype", metavar="DTYPE", help="Of the maps. [default: bfloat16; float32 on a CPU]")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Images at once. [default: 256; 8 on a CPU]")
@screen_options
def bench(calibrate: bool, device: str | None, dtype: str | None, batch: int | None, as_json: bool, quiet: bool) -> None:
    """Time gathers on this machine, as they are and lowered.

    With --calibrate, time the operations that they consist of, for every dtype, and keep that in your cache folder: swnet.lower
    chooses by it from then on.
    """
    if calibrate and (dtype or batch):
        raise click.UsageError("--calibrate goes over all dtypes and batches: leave out --dtype and --batch.")
    with working(1, quiet=quiet) as begin:
        import_torch(begin)
        from swcompile import bench as timing
        from swcompile import tables

        where, kind, count = timing.asked(device, dtype, batch)
    with working(timing.steps(where, calibrating=calibrate), quiet=quiet) as begin:
        rates, file = timing.calibrate(where, begin) if calibrate else (None, None)
        rows = () if calibrate else tuple(timing.microbenchmarks(where, kind, count, begin))
    if rates is not None:
        document = {"file": str(file), **rates.as_dict()}
        shown = [tables.timings(rates.device, rates.dtypes), f"Kept in {file}"]
    else:
        document = timing.document(where, rows)
        shown = [tables.microbenchmarks(document["device"], rows)]
    show(document, shown, as_json=as_json, quiet=quiet)
