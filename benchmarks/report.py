"""Write the report on training speed from raw curves alone: tables and plots, the same to the byte from the same curves.

    python -m benchmarks.report benchmarks/results/convergence               all grids; into benchmarks/results/convergence/report
    python -m benchmarks.report FOLDER FOLDER --out DIR                      some grids, elsewhere

It writes report.md, a plot of each group's curves (curves-*.svg) and one of all ratios (ratios.svg). The rules are in
benchmarks/reporting: curves.py (targets, and when one is reached), ratios.py (ratios, intervals, runs that never get there),
regression.py (which figure predicts the speed-up), judged.py (the paper's numbers, and what the project asks for).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.record import RESULTS, write_whole
from benchmarks.reporting import plots, tables
from benchmarks.reporting.curves import COSTS, FRACTIONS, Group, Run, grouped, read, waiting
from benchmarks.reporting.figures import figures
from benchmarks.reporting.foretold import ARM
from benchmarks.reporting.judged import Compared
from benchmarks.reporting.ratios import RESAMPLES, compared

KINDS = {
    "constant": ("Constant rate", "Nothing but the network decides when a target is reached."),
    "plateau": (
        "Rate halved on a plateau",
        "The paper's schedule: each run's own stalling lowers its rate, so that the point of the final error depends on it.",
    ),
    "decaying": (
        "Rate that falls by the clock",
        "One-cycle, cosine or steps: all arms share the decay, and most of the error falls with it. That caps what any network can "
        "show at the final target; these ratios do not compare with those at a constant rate.",
    ),
}
RULES = f"""\
- A target is the mean test error of the originals' runs at {", ".join(f"{share:.0%}" for share in FRACTIONS)} of their budget.
- It is reached at the first evaluation at which the median of it and its two neighbours is at or below the target. The original
  is timed by the same rule as the arms, and so may be there before the share of its budget that the target is named after.
- A ratio is the originals' cost over the arm's, geometric means over runs; above 1 the arm is sooner. MACs are those of the forward
  pass. In brackets is a 95% interval: the bootstrap's standard error ({RESAMPLES:,} resamples of seeds, paired between arms where
  they are the same) by Student's t, none for a single seed. Targets are taken as given, and nothing is corrected for there being
  many arms.
- A run that never gets there is right-censored and enters at its end. ">=" marks a ratio that is too low by that, since runs of the
  original are among them; "<=" one that is too high, since runs of the arm are; where both are, the ratio is not known. Of the
  interval the end that stands is given.
- A control is also held against the rewired arm that it controls for: above 1 the control is sooner.
- ± is the standard deviation over runs. Bands in the plots are 95% intervals of the mean by Student's t.
- Seconds are those of training alone, on the hardware named, beside whatever else ran on it.
"""


TRIED = """\
Each arm differs in one choice from the plain arm that it is held against (block-p0.3 or kernel-p0.3; benchmarks/variants.py says
what each is); seeds are paired. Above 1 it is sooner. What has a lower mean final error in every pair of model and data is tried
again with other seeds, and those alone decide: what is better in some pair, by its 95% interval, and worse in none becomes a
default. Of choices that change nothing about one in twelve would pass that. The images are the same in both grids. The second
grid was added when 69 of the 90 curves of the first's `block` arms were there (until then, better in some pair and worse in none
was to be enough): it asks for more, and the first picked what the earlier rule would have kept. Those of `kernel` came to both
later. Rewiring 1x1 layers alone takes a network that has others too: that was tried in the grid gains (on slim_mobilenet, in
breadth, `block` rewires nothing else anyway: that is no answer). All arms of a pair learn at one rate, that of block-p0.3, which
for `kernel` on slim_cnn21 is a quarter of what tuning chose for it in quick. dense-init draws smaller weights at first, which in
front of a norm is much like a higher rate; so it was tried at the tuned rate, too (policy-rate, added when it was seen ahead
here), and was to become a default only if ahead in both. It is not, though its row below says kept: the default stays, which also
keeps the scale of what passes through networks without norms, of which none was trained.
"""


FORETOLD = f"""\
{ARM} at a constant rate, at the original's final error. Networks of the grids quick and breadth learned at rates near those that
tuning chose; those of gains at the rates of slim_cnn21 and mlp, not tuned for each. Before any curve of gains was made it was
declared of each of its networks whether it would gain (benchmarks/lab/grids.py), by effective depth, with a threshold of 7.4 that
two of the five earlier networks had given. As a threshold that was not confirmed: see "declared" below. That the gain grows with
the depth is what is left, as a line, and what `swcompile check` says; slim_cnn21 and slim_resnet20 were among the five, on other
images. All were trained for 7 epochs on 10,000 images: nothing is said here of training to the end.
"""


def report(runs: Sequence[Run], command: str) -> dict[str, str]:
    """Return the report's files by name."""
    groups = grouped(runs)
    made = [(group, compared(group, COSTS)) for group in groups]
    files = {f"curves-{group.slug}.svg": plots.curves(group) for group in groups}
    files["ratios.svg"] = plots.forest(made, FRACTIONS[-1])
    return {"report.md": "\n".join(_text(made, waiting(runs, groups), command))} | files


def _text(made: Compared, left_out: Sequence[str], command: str) -> Iterator[str]:
    yield "# Does it train faster? What the raw curves say\n"
    yield f"Written by `{command}`; do not edit.\n"
    if left_out:
        yield f"Left out, as there is no finished curve of their originals yet: {'; '.join(left_out)}.\n"
    yield RULES
    yield "## What the project asks for\n"
    yield tables.targets(made)
    yield "## Beside the paper\n"
    yield tables.paper(made)
    yield "## What was tried for the defaults\n"
    yield TRIED
    for grid in ("policy", "gains", tables.DECIDES, "policy-rate"):
        yield f"### {grid}\n"
        yield tables.tried(made, grid)
    yield "## Does check tell beforehand who gains?\n"
    yield FORETOLD
    yield tables.foretold(made)
    yield "## All ratios at the original's final error\n"
    yield "![ratios](ratios.svg)\n"
    for kind, (heading, why) in KINDS.items():
        chosen = [(group, every) for group, every in made if group.kind == kind]
        yield f"## {heading}\n"
        yield f"{why}\n"
        if not chosen:
            yield "No curves yet.\n"
            continue
        for group, every in chosen:
            yield f"### {group.name}\n"
            yield _about(group)
            yield f"![curves](curves-{group.slug}.svg)\n"
            yield tables.ends(group)
            yield tables.ratios(every)
            yield tables.controls(group)
            yield tables.sizes(group)
            yield tables.networks(group, figures)
        yield f"### {heading}: which figure predicts the ratio in steps?\n"
        yield (
            "R2 on families of models left out / on the points themselves, at each target. Below 0 the others' mean predicts "
            "better. Pairs of figures but for C with L are the best of many, which flatters them.\n"
        )
        yield tables.regression(chosen, figures)


def _about(group: Group) -> str:
    """Say what the runs have in common, and what should not be compared."""
    options = group.originals[0].options
    named = ("epochs", "batch", "momentum", "weight_decay", "evaluations", "bfloat16")
    asked = ", ".join(f"{key} {options[key]}" for key in named if key in options)
    first = [run.records[0] for run in group.runs]
    hardware = sorted({str(one.get("hardware", "unknown hardware")) for one in first})
    commits = sorted({str(one.get("commit", "unknown"))[:12] for one in first})
    lines = [f"{group.subset}. {asked}. {'; '.join(hardware)}. Commits {', '.join(commits)}.\n"]
    if len(hardware) > 1:
        lines.append("The runs ran on different hardware: their seconds do not compare.\n")
    rates = {arm: "/".join(sorted({f"{run.lr:g}" for run in runs})) for arm, runs in group.arms.items()}
    lines.append(f"Learning rate: {', '.join(f'{arm} {rate}' for arm, rate in rates.items())}.\n")
    if group.unfinished:
        who = ", ".join(f"{run.arm} seed {run.seed} (step {run.last['step']})" for run in group.unfinished)
        lines.append(f"Not finished, and left out: {who}.\n")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the curves and write the report."""
    parser = argparse.ArgumentParser(description="Write tables and plots from raw curves.")
    parser.add_argument("folders", nargs="+", type=Path, help="folders of raw curves (*.jsonl), searched in depth")
    parser.add_argument("--out", type=Path, default=RESULTS / "convergence" / "report", help="where the report goes")
    options = parser.parse_args(arguments)
    command = " ".join(["python -m benchmarks.report", *(folder.as_posix() for folder in options.folders)])
    for name, text in report(read(options.folders), command).items():
        print(write_whole(options.out / name, text))


if __name__ == "__main__":
    main()
