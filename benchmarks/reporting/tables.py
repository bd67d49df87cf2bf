"""The report's tables, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.lab.grids import GRIDS
from benchmarks.reporting.curves import COSTS, FRACTIONS, ORIGINAL, Group, Run, family
from benchmarks.reporting.foretold import HEADINGS, known, rows, sentences
from benchmarks.reporting.judged import PAPER, TRIALS, Compared, judged, ours
from benchmarks.reporting.ratios import Change, Comparison, behind, changes, contrasts
from benchmarks.reporting.regression import CHANGE, FEWEST_MODELS, FIGURES, Point, fit, predictors, sets

COLUMNS = {"step": "steps", "epoch": "epochs", "macs": "MACs", "seconds": "clock"}
BEST_PAIRS = 5


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, its first column left-aligned and the others right-aligned."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spread(values: Sequence[float], form: str) -> str:
    """Return a mean with its standard deviation, where there is one."""
    deviation = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"


def ends(group: Group) -> str:
    """Return the table of what each arm is and ends with."""
    measured = ("training loss", "test error, %", "s a step", "peak memory, MB")
    headings = ("arm", "runs", "parameters", "MACs a sample (10^6)", *measured)
    return markdown(headings, [_end(arm, runs) for arm, runs in group.arms.items()])


def _end(arm: str, runs: Sequence[Run]) -> list[str]:
    last = [run.last for run in runs]
    batch = [run.options.get("batch") for run in runs]
    macs = [one["macs"] / one["step"] / size / 1e6 for one, size in zip(last, batch, strict=True) if size]
    peaks = [peak / 1e6 for peak in (run.peak() for run in runs) if peak is not None]
    return [
        arm,
        str(len(runs)),
        f"{np.mean([one['params'] for one in last]):,.0f}",
        f"{np.mean(macs):.1f}" if macs else "?",
        spread([run.values("train_loss")[-1] for run in runs], ".4f"),
        spread([100 * one["test_error"] for one in last], ".2f"),
        spread([one["seconds"] / one["step"] for one in last], ".4f"),
        spread(peaks, ".0f") if peaks else "not measured",
    ]


def ratios(every: Sequence[Comparison]) -> str:
    """Return the table of how many times sooner each arm reached each target than the original."""
    headings = ("target", "arm", "runs there", "steps", *(f"ratio, {COLUMNS[cost]}" for cost in COSTS), "clock over steps")
    return markdown(headings, [_ratio(one) for one in every])


def _ratio(one: Comparison) -> list[str]:
    target = f"{100 * one.target:.2f}% ({one.share:.0%})"
    begin = [target, one.arm, f"{one.got_there} of {one.runs}", f"{one.steps:,.0f}"]
    if one.arm == ORIGINAL:
        return [*begin, *["1"] * len(COSTS), "1"]
    return [*begin, *(str(one.ratios[cost]) for cost in COSTS), f"{one.clock:.2f}"]


def controls(group: Group) -> str:
    """Return the table of each control against the rewired arm that it controls for; empty where there is none."""
    rows = [
        (f"{100 * group.targets[one.share]:.2f}% ({one.share:.0%})", one.control, one.reference, str(one.ratio))
        for one in contrasts(group)
    ]
    return markdown(("target", "control", "against", "ratio, steps"), rows) if rows else ""


def paper(compared: Compared) -> str:
    """Return the table of the papers' numbers beside ours."""
    headings = ("model, data", "original: error % after epochs", "SWNet", "ratio", "ours, epochs to the original's final error")
    return markdown(headings, [(row.named, row.original, row.small_world, row.ratio, ours(compared, row)) for row in PAPER])


def targets(compared: Compared) -> str:
    """Return the table of what the project asks for, and what there is."""
    rows = []
    for one in judged(compared):
        said = "not measured"
        if one.value is not None:
            said = "met" if one.value >= one.least else f"**not met**, short by {one.least - one.value:.2f}"
        rows.append((one.what, f"{one.least:.2f}", "" if one.value is None else f"{one.value:.2f}", said, one.how))
    return markdown(("target", "at least", "measured", "", "which"), rows)


def sizes(group: Group) -> str:
    """Return the table of nets that were pruned to a budget, by size, and which is the smallest that matches the original."""
    first = {arm: runs[0].records[0] for arm, runs in group.arms.items()}
    pruned = [arm for arm, one in first.items() if one.get("params_budget") is not None and one["p"] > 0]
    if len(pruned) < 2:
        return ""
    pruned.sort(key=lambda arm: (float(group.arms[arm][0].last["params"]), arm))
    above = {arm: behind(group, arm) for arm in pruned}
    rows = [(arm, f"{group.arms[arm][0].last['params']:,.0f}", _points(*above[arm])) for arm in pruned]
    found = next((arm for arm in pruned if 100 * sum(above[arm]) <= MARGIN), None)
    said = f"{found} is the smallest of which it is shown that its error is at most {MARGIN:g} point above the original's."
    said = said if found else f"Of none of them it is shown that its error is at most {MARGIN:g} point above the original's."
    return f"{markdown(('arm', 'parameters', 'points of error above the original'), rows)}\n{said}\n"


MARGIN = 1.0
"""Points of test error: the upper end of the interval must lie within them for a size to match."""


def tried(compared: Compared, grid: str) -> str:
    """Return the table of the choices that a grid tries, each against the default one, and what the grid says of it."""
    there = [group for group, _ in compared if group.grid == grid]
    groups = [(group, found) for group in there if (found := {one.arm: one for one in changes(group)})]
    if not groups:
        return "No curves yet.\n"
    headings = ["arm", "against"]
    for group, _ in groups:
        headings += [f"{group.model}, {group.schedule}: ratio at 50%", "ratio at 100%", "points of error less at the end"]
    arms = dict.fromkeys(arm for _, found in groups for arm in found)
    says = verdict if grid == DECIDES else picked
    rows = [_tried([found.get(arm) for _, found in groups], says) for arm in arms]
    told = _missing(grid, there)
    return markdown([*headings, "decided" if grid == DECIDES else "ahead in all"], rows) + (f"\n{told}\n" if told else "")


def _missing(grid: str, groups: Sequence[Group]) -> str:
    """Say which arms a grid declares that were not run."""
    there = {(group.model, arm) for group in groups for arm in group.arms}
    declared = ((task.model, arm.name) for task in GRIDS[grid].tasks for arm in task.arms) if grid in GRIDS else ()
    missing = [f"{arm} of {model}" for model, arm in declared if (model, arm) not in there]
    return f"Declared and not run: {', '.join(missing)}." if missing else ""


def _tried(found: Sequence[Change | None], says: Callable[[Sequence[Change]], str]) -> list[str]:
    known = [one for one in found if one is not None]
    cells = []
    for one in found:
        cells += ["", "", ""] if one is None else [str(one.ratios[0.5]), str(one.ratios[1.0]), _points(one.error, one.within)]
    return [known[0].arm, known[0].base, *cells, says(known)]


def _points(error: float, within: float) -> str:
    return f"{100 * error:+.2f}" + ("" if math.isnan(within) else f" ± {100 * within:.2f}")


DECIDES = "policy-again"
"""The grid whose seeds decide; they are none of those that picked what it tries."""


def picked(found: Sequence[Change]) -> str:
    """Say whether a choice is tried again: where its mean final error is lower in every pair of model and data that it changes.

    A pair in which all curves end alike is none that it changes: an MLP brings no map to another resolution.
    """
    changed = [one for one in found if one.error or one.within]
    return "yes" if changed and all(one.error > 0 for one in changed) else "no"


def verdict(found: Sequence[Change]) -> str:
    """Say what becomes of a choice: "kept" where it is better in some pair of model and data and worse in none, else "dropped".

    Nothing is decided before every pair is there.

    Better is an interval of the ratio at the final target that lies above 1, or of the error's difference that lies above 0, and
    worse one that lies below.
    """
    if len(found) < len(GRIDS[DECIDES].tasks):
        return "undecided"
    better = [name for one in found for name, (low, _) in _intervals(one) if low > 0]
    worse = [name for one in found for name, (_, high) in _intervals(one) if high < 0]
    if worse:
        return f"dropped: worse in {_and(worse)}" + (f", though better in {_and(better)}" if better else "")
    return f"kept: better in {_and(better)}" if better else "dropped: no difference shown"


def _intervals(one: Change) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the intervals that decide, both around 0, with NaN where an end is open."""
    low, high = (math.log(end) for end in one.ratios[1.0].ends)
    yield "steps", (low, high)
    yield "error", (one.error - one.within, one.error + one.within)


def _and(names: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def foretold(compared: Compared) -> str:
    """Return the table of what is known of each network beforehand beside what it gained, and how well that predicts it."""
    found = known(compared)
    return f"{markdown(HEADINGS, rows(found))}\n{chr(10).join(sentences(found))}\n" if found else "No curves yet.\n"


Figures = Callable[[Sequence[Run]], Mapping[str, float] | None]


def networks(group: Group, figures: Figures) -> str:
    """Return the table of each arm's figures; where they cannot be known, the row says so."""
    rows = []
    for arm, runs in group.arms.items():
        found = figures(runs)
        rows.append((arm, *(["?"] * len(FIGURES) if found is None else [_figure(found, name) for name in FIGURES])))
    return markdown(("arm", *FIGURES), rows)


def _figure(found: Mapping[str, float], name: str) -> str:
    return f"{found[name] / 1e6:.1f}M" if name == "MACs" else f"{found[name]:.4g}"


def points(compared: Compared, figures: Figures, share: float) -> list[Point]:
    """Return a point for each arm whose figures and ratio are known: its log ratio in steps at one target, bounds as they are."""
    made = []
    for group, every in compared:
        original = figures(group.originals)
        for one in every:
            skipped = one.share != share or one.arm == ORIGINAL or tried_only(group, one.arm)
            found = None if skipped else figures(group.arms[one.arm])
            if found is not None and original is not None and one.ratios["step"].bound != "?":
                made.append(Point(family(group.model), one.arm, math.log(one.ratios["step"].value), predictors(found, original)))
    return made


def tried_only(group: Group, arm: str) -> bool:
    """Say whether an arm says nothing new of figures: a trial, which has the graph of another, or a run of another grid again."""
    first = group.arms[arm][0].records[0]
    return group.grid.startswith(TRIALS) or bool(first.get("variant") or first.get("rewire_every"))


def regression(compared: Compared, figures: Figures) -> str:
    """Return the table of which figures predict the log ratio in steps: R2 on models left out, and on the points themselves."""
    by_share = {share: points(compared, figures, share) for share in FRACTIONS}
    counts = [f"{len(found)} arms of {_models(found)} models at {share:.0%}" for share, found in by_share.items()]
    said = f"Points: {', '.join(counts)}.\n"
    rows = []
    for names in sets():
        fits = [fit(found, names) for found in by_share.values()]
        known = [one.left_out for one in fits if not math.isnan(one.left_out)]
        rows.append((names, float(np.mean(known)) if known else -math.inf, [_fit(one.left_out, one.r2) for one in fits]))
    if all(order == -math.inf for _, order, _ in rows):
        return f"{said}Too few to leave models out: {FEWEST_MODELS} are needed, so nothing is said yet.\n"
    headings = ("predictors", *(f"{share:.0%}" for share in FRACTIONS))
    return f"{said}\n" + markdown(headings, [[" and ".join(names), *shown] for names, _, shown in _chosen(rows)])


def _models(found: Sequence[Point]) -> int:
    return len({point.model for point in found})


def _fit(left_out: float, own: float) -> str:
    return " / ".join("too few" if math.isnan(value) else f"{value:.2f}" for value in (left_out, own))


Row = tuple[tuple[str, ...], float, list[str]]


def _chosen(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield all single predictors, C with L, and of the other pairs the best."""
    declared = (("C", "L"), (f"{CHANGE}C", f"{CHANGE}L"))
    yield from (row for row in rows if len(row[0]) == 1 or row[0] in declared)
    pairs = [row for row in rows if len(row[0]) > 1 and row[0] not in declared and row[1] > -math.inf]
    yield from sorted(pairs, key=lambda row: (-row[1], row[0]))[:BEST_PAIRS]
