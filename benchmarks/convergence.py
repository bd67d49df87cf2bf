"""Does a rewired network learn in fewer steps? Train an original, its rewired twins and controls on the same images, by a grid.

    python -m benchmarks.convergence quick --workers 2        two CPU cores, under 40 minutes
    python -m benchmarks.convergence core --workers 8         one H200; its runs side by side on the GPU
    python -m benchmarks.convergence quick --tune             first choose each arm's learning rate, on held-out training images
    python -m benchmarks.convergence quick --list             what is there, what is under way
    python -m benchmarks.convergence quick --report           the tables again, from the raw curves alone
    torchrun --nproc-per-node 8 -m benchmarks.convergence imagefolder --image-workers 8        one run at a time, on all of them

Needs `make data`; CIFAR-100 and image folders are read where they are present. The grids are declared in benchmarks/lab/grids.py.
The runs of one seed start from the same weights (where they have the same) and see the same images, in the same order and
augmented alike, under the same schedule. A curve is a file of JSON lines, one an evaluation; `train_loss` in it is the mean over
the last epoch's worth of steps (fewer at the start), null where that is not finite.

The command can be stopped in any way at any time, and started again: curves that are there are not made again (unless `--again`
says so), runs that were under way go on from their last checkpoint to the very same curve. Several commands can share a grid: each
run is locked by who trains it. The seconds are those of this machine beside whatever else ran on it: for the cost of a step see
bench_step.py.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from filelock import Timeout
from rich.console import Console

from benchmarks.lab.display import Display
from benchmarks.lab.grids import GRIDS, ORIGINAL, Grid, Run
from benchmarks.lab.pool import one_by_one, side_by_side
from benchmarks.lab.ranks import is_launched
from benchmarks.lab.store import Place, read_curves
from benchmarks.lab.tables import by_epoch, by_task, report, summary
from benchmarks.lab.training import CHECKPOINT_SECONDS, Conditions
from benchmarks.lab.tuning import chosen_rates, tuning_runs
from benchmarks.lab.work import Setting
from benchmarks.record import RESULTS

STOPPED = 130
"""The exit status of what was interrupted, as shells have it."""
console = Console()


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(description="Compare how fast and how well an original and its rewired twins learn.")
    made.add_argument("grid", choices=GRIDS, help="what to train")
    made.add_argument("--tasks", nargs="+", help="only these of its tasks (default: all)")
    made.add_argument("--arms", nargs="+", help="only these of its arms (default: all)")
    made.add_argument("--seeds", type=int, nargs="+", help="seeds of weights, data order and topology (default: the grid's)")
    made.add_argument(
        "--workers",
        type=int,
        default=1,
        help="runs side by side, each in a process of its own; with --ray, on each GPU (default: 1)",
    )
    made.add_argument("--threads", type=int, help="threads of each process (default: its share of the cores)")
    made.add_argument("--image-workers", type=int, default=0, help="processes a run that decode images from folders (default: 0)")
    made.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="train under torch.compile, in this mode")
    made.add_argument("--shard", action="store_true", help="under torchrun: share out the weights, too (FSDP2), not only the batch")
    made.add_argument("--checkpoint-seconds", type=float, default=CHECKPOINT_SECONDS, help="least time between checkpoints")
    made.add_argument("--tune", action="store_true", help="train for the choice of each arm's learning rate instead")
    made.add_argument("--again", action="store_true", help="train also where a curve is there already, and replace it")
    made.add_argument("--list", action="store_true", help="do not train; say which runs are there")
    made.add_argument("--report", action="store_true", help="do not train; print the tables from the curves")
    made.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="hand the runs to Ray Tune, on this cluster")
    made.add_argument("--results", type=Path, default=RESULTS / "convergence", help="where the curves lie")
    return made


def train(runs: Sequence[Run], setting: Setting, workers: int) -> None:
    """Carry out runs; raise SystemExit where it was stopped or some failed."""
    with Display(runs, workers, console) as display:
        if workers > 1:
            stopped = side_by_side(runs, setting, workers, display)
        else:
            stopped = one_by_one(runs, setting, display)
    if stopped:
        if not display.silent:
            console.print("Stopped. The same command goes on where it was.")
        raise SystemExit(STOPPED)
    if failed := [name for name, outcome in display.outcomes.items() if outcome == "failed"]:
        raise SystemExit(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def show(grid: Grid, results: Path) -> None:
    """Print the tables of a grid's curves, task by task, where there is an original to compare with; and all losses."""
    curves = read_curves(grid, results / grid.name)
    if not curves:
        raise SystemExit(f"There is no curve in {results / grid.name}; run the grid first.")
    for group in by_task(curves):
        if any(curve[0]["arm"] == ORIGINAL.name for curve in group):
            console.print(summary(group))
            console.print(report(group))
    for curve in curves:
        console.print(by_epoch(curve), highlight=False)


def show_runs(runs: Sequence[Run], results: Path) -> None:
    """Print which runs are there, which under way, and which not begun."""
    for run in runs:
        place = Place(results, run)
        state = "there" if place.finished() else "under way" if place.begun else "not begun"
        console.print(f"{state:9}  {run.name}  lr {run.lr:g}", highlight=False)


def show_rates(grid: Grid, results: Path) -> None:
    """Print the rates that were chosen."""
    for (task, arm), lr in chosen_rates(grid, results).items():
        console.print(f"{task}  {arm}  lr {lr:g}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a grid, or say how far it is, or only report on its curves."""
    options = parser().parse_args(arguments)
    grid = GRIDS[options.grid].only(options.tasks, options.arms, options.seeds)
    if options.report:
        return show(grid, options.results)
    runs = list(tuning_runs(grid) if options.tune else grid.runs(chosen_rates(GRIDS[options.grid], options.results)))
    if options.list:
        return show_runs(runs, options.results)
    if options.workers > 1 and is_launched():
        raise SystemExit("torchrun has started several processes already, which train each run together; leave --workers out.")
    if options.again:
        forget(runs, options.results)
    setting = Setting(
        results=options.results,
        conditions=Conditions(options.compile, options.checkpoint_seconds),
        threads=options.threads or _share(options.workers),
        image_workers=options.image_workers,
        way="fsdp" if options.shard else "ddp",
    )
    if options.ray:
        from benchmarks.lab.cluster import over_machines  # an extra

        over_machines(runs, setting, options.ray, options.workers)
    else:
        train(runs, setting, options.workers)
    if int(os.environ.get("RANK", "0")) == 0:
        (show_rates if options.tune else show)(grid, options.results)
    return None


def forget(runs: Sequence[Run], results: Path) -> None:
    """Remove the curves and checkpoints of runs that are to be trained again; raise SystemExit where another process is at one."""
    for run in runs:
        place = Place(results, run)
        try:
            with place.lock():
                place.forget()
        except Timeout:
            raise SystemExit(f"{run.name} is in another process's hands; wait for it, or leave --again out.") from None


def _share(workers: int) -> int | None:
    """Return how many threads each of several processes gets; None leaves a single one what torch gives it."""
    if workers == 1:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before there was a run to stop, or for the second time
        console.print("Stopped. The same command goes on from the last checkpoints.")
        raise SystemExit(STOPPED) from None
