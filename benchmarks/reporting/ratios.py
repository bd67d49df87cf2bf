"""How much sooner an arm reaches a target than the original: a ratio of geometric means over runs, with a 95% interval.

    ratio = exp(mean over the original's runs of log cost - mean over the arm's runs of log cost)

Both sides are timed by the same rule. Where the original is given its whole budget instead, a second original seems to be faster
than the first, since a noisy curve passes its own last error before its end.

A run that never gets there is right-censored: it enters at what it had spent when it ended. The ratio is then a bound: the true one
is larger where such runs are the original's (">="), which leaves the lower end of the interval, smaller where they are the arm's
("<="), which leaves the upper one, and not known where both have some ("?").

The interval is exp(log ratio +- t * s): s is the standard deviation of the log ratio over bootstrap resamples of the seeds (one
draw for both sides, so that runs of one seed stay paired; a draw for each where no seed is in both), times sqrt(n / (n - 1)), t the
quantile of Student's t with n - 1 degrees of freedom, n the fewer seeds of both sides: too wide rather than too narrow where both
sides' seeds are not the same. Percentiles of the resamples cannot do: with three seeds they never reach past the smallest and the
largest of three values, which hold the mean in 75% of cases and not in 95%. Where one topology is trained with several seeds,
topologies are resampled as well (the two-way bootstrap of Owen, Ann. Appl. Stat. 1(2), 2007); where each seed has topologies of its
own, they come and go with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from benchmarks.reporting.curves import Floats, Group, Run, reached
from swcompile.wiring.draw import Draw

RESAMPLES = 4000
LEVEL = 0.95


def student(degrees: int) -> float:
    """Return the quantile of Student's t that a two-sided interval at LEVEL takes.

    >>> round(student(2), 3)
    4.303
    """
    return float(stdtrit(degrees, (1 + LEVEL) / 2))


@dataclass(frozen=True)
class Spent:
    """What one run had spent when it reached a target, or, `censored`, at its end without having reached it."""

    seed: int
    topology: int
    cost: float
    censored: bool = False


@dataclass(frozen=True)
class Ratio:
    """How many times sooner; `low` and `high` are NaN where there are not two seeds on each side."""

    value: float
    low: float
    high: float
    bound: str = ""
    """"" where every run got there, else ">=", "<=" or "?": see the module."""

    @property
    def at_least(self) -> float:
        """What the ratio is at least: NaN where runs of the arm never got there."""
        return self.value if self.bound in ("", ">=") else math.nan

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval that stand: NaN for an end that censored runs leave open."""
        return self.low if self.bound in ("", ">=") else math.nan, self.high if self.bound in ("", "<=") else math.nan

    def __str__(self) -> str:
        if self.bound == "?":
            return "not known"
        low, high = (f"{end:.2f}" for end in self.ends)
        shown = {"": f"{low} to {high}", ">=": f"from {low}", "<=": f"up to {high}"}[self.bound]
        interval = "" if math.isnan(self.low) else f" ({shown})"
        return f"{self.bound and self.bound + ' '}{self.value:.2f}{interval}"


def spent(runs: Sequence[Run], target: float, cost: str) -> list[Spent]:
    """Return what each run had spent, in one of COSTS, when its test error reached the target."""
    made = []
    for run in runs:
        place = reached(run.values("test_error"), target)
        record = run.last if place is None else run.records[place]
        made.append(Spent(run.seed, run.topology, float(record[cost]), place is None))
    return made


def compare(original: Sequence[Spent], arm: Sequence[Spent]) -> Ratio:
    """Return the ratio of what the original spent to what the arm did.

    >>> compare([Spent(0, 0, 8.0), Spent(1, 1, 4.0)], [Spent(0, 0, 4.0), Spent(1, 1, 2.0)])
    Ratio(value=2.0, low=2.0, high=2.0, bound='')
    """
    value = _log_mean(original, np.ones((1, len(original)))) - _log_mean(arm, np.ones((1, len(arm))))
    spread = half_width(original, arm)
    low, high = (math.exp(float(value[0]) + sign * spread) for sign in (-1, 1))
    return Ratio(math.exp(float(value[0])), low, high, bound(original, arm))


def bound(original: Sequence[Spent], arm: Sequence[Spent]) -> str:
    """Say which side of the true ratio the estimate lies on, by who did not get there."""
    low, high = (any(one.censored for one in side) for side in (original, arm))
    return "?" if low and high else ">=" if low else "<=" if high else ""


def half_width(original: Sequence[Spent], arm: Sequence[Spent]) -> float:
    """Return half the width of the interval of the log ratio, NaN where a side has fewer than two seeds."""
    fewest = min(len({one.seed for one in side}) for side in (original, arm))
    if fewest < 2:
        return math.nan
    logs = _log_mean(original, _weights(original, arm, "original")) - _log_mean(arm, _weights(arm, original, "arm"))
    logs = logs[~np.isnan(logs)]  # a resample without a run of one side says nothing
    return student(fewest - 1) * float(logs.std()) * math.sqrt(fewest / (fewest - 1))


def _weights(side: Sequence[Spent], other: Sequence[Spent], name: str) -> Floats:
    """Return how often each run of a side is in each resample: (RESAMPLES, runs)."""
    own, others = ({one.seed for one in runs} for runs in (side, other))
    shared = bool(own & others)
    weights = _counts([one.seed for one in side], own | others if shared else own, "seed" if shared else f"seed of the {name}")
    topologies = [one.topology for one in side]
    if len({(one.seed, one.topology) for one in side}) > len(set(topologies)):  # one topology with several seeds
        weights *= _counts(topologies, set(topologies), f"topology of the {name}")
    return weights


def _counts(labels: Sequence[int], known: set[int], name: str) -> Floats:
    """Return how often each label is among as many draws as there are known ones: (RESAMPLES, labels)."""
    drawn = Draw(0, name).integers(len(known), RESAMPLES * len(known)).reshape(RESAMPLES, len(known))
    places = np.searchsorted(sorted(known), labels)
    made: Floats = (drawn[:, :, None] == places).sum(axis=1).astype(np.float64)
    return made


def _log_mean(side: Sequence[Spent], weights: Floats) -> Floats:
    """Return the mean log cost under each row of weights, NaN where all of a row are 0."""
    logs = np.log([one.cost for one in side])
    total = weights.sum(axis=1)
    made: Floats = np.divide(weights @ logs, total, out=np.full(len(total), math.nan), where=total > 0)
    return made


@dataclass(frozen=True)
class Comparison:
    """An arm against the original at one target: what each had spent, and the ratio, in each of COSTS."""

    arm: str
    share: float
    target: float
    got_there: int
    runs: int
    originals_there: int
    originals: int
    steps: float
    """The geometric mean of the arm's steps, censored runs at their end."""
    ratios: Mapping[str, Ratio]

    @property
    def clock(self) -> float:
        """The ratio on the clock over the ratio in steps: 1 where a step takes as long as the original's."""
        return self.ratios["seconds"].value / self.ratios["step"].value


def compared(group: Group, costs: Sequence[str]) -> list[Comparison]:
    """Compare each arm of a group with its original at each target; the original itself is compared, too."""
    return [_compared(group, arm, share, target, costs) for share, target in group.targets.items() for arm in group.arms]


def _compared(group: Group, arm: str, share: float, target: float, costs: Sequence[str]) -> Comparison:
    sides = {cost: [spent(runs, target, cost) for runs in (group.originals, group.arms[arm])] for cost in costs}
    original, own = sides["step"]
    return Comparison(
        arm=arm,
        share=share,
        target=target,
        got_there=sum(not one.censored for one in own),
        runs=len(own),
        originals_there=sum(not one.censored for one in original),
        originals=len(original),
        steps=math.exp(float(np.mean(np.log([one.cost for one in own])))),
        ratios={cost: compare(*pair) for cost, pair in sides.items()},
    )


REFERENCES = {"random-residual": "block", "clustering-up": "kernel", "clustering-down": "kernel"}
"""The wiring at the same p that each control is held against."""


@dataclass(frozen=True)
class Contrast:
    """A control against the rewired arm that it controls for: how many times sooner it reached a target in steps."""

    share: float
    control: str
    reference: str
    ratio: Ratio


def contrasts(group: Group) -> list[Contrast]:
    """Compare each control with the rewired arm of the same p, where there is one: seeds of both are paired."""
    return [
        Contrast(share, arm, other, compare(*(spent(group.arms[name], target, "step") for name in (other, arm))))
        for share, target in group.targets.items()
        for arm, runs in group.arms.items()
        for other in group.arms
        if _is_reference(runs[0], group.arms[other][0])
    ]


BASE_P = 0.3
"""The p of the arms that every other choice of a policy is held against."""


@dataclass(frozen=True)
class Change:
    """An arm that differs from a plain rewired one, `base`, in one choice: how many times sooner than that, by targets.

    `error` is by how much its final test error is lower than the base's, and `within` half the 95% interval of that, NaN where
    there are no two seeds of both.
    """

    arm: str
    base: str
    ratios: Mapping[float, Ratio]
    error: float
    within: float


def behind(group: Group, arm: str) -> tuple[float, float]:
    """Return by how much an arm's final test error is above the original's, and half the 95% interval of that (paired by seed)."""
    return _difference(_ends(group.arms[arm]), _ends(group.originals))


def changes(group: Group) -> list[Change]:
    """Hold each arm that changes one choice against the plain arm of its wiring at p = .3; return none where nothing is tried."""
    if not any(_changed(runs[0]) for runs in group.arms.values()):
        return []
    bases = {_wiring(runs[0]): arm for arm, runs in group.arms.items() if _plain(runs[0]) and _p(runs[0]) == BASE_P}
    return [
        _change(group, arm, bases[_wiring(runs[0])])
        for arm, runs in group.arms.items()
        if (_plain(runs[0]) or (_changed(runs[0]) and _p(runs[0]) == BASE_P)) and bases.get(_wiring(runs[0]), arm) != arm
    ]


def _change(group: Group, arm: str, base: str) -> Change:
    own, other = group.arms[arm], group.arms[base]
    ratios = {share: compare(spent(other, target, "step"), spent(own, target, "step")) for share, target in group.targets.items()}
    return Change(arm, base, ratios, *_difference(_ends(other), _ends(own)))


def _ends(runs: Sequence[Run]) -> dict[int, float]:
    """Return each seed's final test error, the mean over topologies."""
    found: dict[int, list[float]] = {}
    for run in runs:
        found.setdefault(run.seed, []).append(float(run.last["test_error"]))
    return {seed: sum(ends) / len(ends) for seed, ends in found.items()}


def _difference(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[float, float]:
    """Return the mean of first - second over the seeds of both, and half the 95% interval of it by Student's t."""
    values = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])
    if len(values) < 2:
        return float(values.mean()) if len(values) else math.nan, math.nan
    return float(values.mean()), student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))


def _wiring(run: Run) -> str | None:
    return run.records[0].get("wiring")


def _p(run: Run) -> float:
    return float(run.records[0]["p"])


def _changed(run: Run) -> bool:
    return bool(run.records[0].get("variant") or run.records[0].get("rewire_every"))


def _plain(run: Run) -> bool:
    """Say whether an arm is rewired by a wiring as it is."""
    first = run.records[0]
    unpruned = first.get("params_budget") is None and first.get("skips", "keep") == "keep"
    return bool(first.get("wiring")) and unpruned and not first.get("control") and not _changed(run)


def _is_reference(control: Run, other: Run) -> bool:
    """Say whether an arm is what a control is held against: rewired as it would be, of the same p, and nothing pruned."""
    first, second = control.records[0], other.records[0]
    wiring = REFERENCES.get(str(first.get("control")))
    return wiring is not None and _plain(other) and second.get("wiring") == wiring and second["p"] == first["p"]
