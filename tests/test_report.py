"""The report on training speed: its rules on synthetic curves whose true ratio is known, and its files to the byte."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import swnet
from benchmarks import models, report
from benchmarks.record import RESULTS, Judged
from benchmarks.reporting import plots, tables
from benchmarks.reporting.curves import COSTS, Group, Run, grouped, reached, read, waiting
from benchmarks.reporting.figures import figures
from benchmarks.reporting.foretold import Known, Network, known, line, rows, sentences
from benchmarks.reporting.foretold import points as points_of
from benchmarks.reporting.judged import PAPER, judged, ours, rewired
from benchmarks.reporting.ratios import Comparison, Ratio, Spent, changes, compare, compared, contrasts
from benchmarks.reporting.regression import FIGURES, Point, fit, predictors
from swcompile import outlook

ROOT = RESULTS.parent.parent
NONE = Ratio(1.0, math.nan, math.nan)


def synthetic(
    arm: str = "original",
    seed: int = 0,
    rate: float = 1.0,
    *,
    errors: Sequence[float] | None = None,
    noise: float = 0.0,
    pace: float = 0.1,
    **other: Any,
) -> Run:
    """Return a curve whose test error falls as exp(-rate * epoch): twice the rate is there in half the steps."""
    draw = np.random.default_rng([seed, sum(arm.encode())])
    steps = np.arange(1, (len(errors) if errors is not None else 800) + 1) * 10
    exact = 0.9 * np.exp(-rate * steps / 1000) if errors is None else np.array(errors)
    measured = exact * np.exp(noise * draw.standard_normal(len(steps)))
    told = {"grid": "g", "model": "convnet_c", "data": "cifar10", "arm": arm, "seed": seed, "p": 0.3, "lr": 0.1, "params": 10}
    told |= {"wiring": None if arm == "original" else "block", "options": {"schedule": "constant", "batch": 2}} | other
    points = zip(steps.tolist(), measured.tolist(), strict=True)
    return Run(
        tuple(
            told
            | {"step": step, "epoch": step / 1000, "macs": step * 2000, "seconds": pace * step}
            | {"train_loss": error * 3, "test_error": error}
            for step, error in points
        )
    )


def at(runs: Sequence[Run], arm: str, share: float) -> Comparison:
    (group,) = grouped(runs)
    (found,) = [one for one in compared(group, COSTS) if (one.arm, one.share) == (arm, share)]
    return found


def test_a_target_is_reached_where_the_median_of_three_is() -> None:
    assert reached([3, 1, 3, 3, 2, 2], 2) == 4  # not at the dip of the second evaluation
    assert reached([3, 3, 3], 2) is None
    assert reached([5, 4, 3, 2], 2) == 3  # a falling curve is there at its first value at the target, the last one included
    assert reached([3, 2, 3, 1, 3, 3], 2) == 2  # two of three are enough, be they its neighbours
    assert reached([3, math.nan, 3, 3, 3], 9) == 3  # no median is taken over what is no number


def test_targets_are_the_originals_mean_errors_at_each_quarter() -> None:
    (group,) = grouped([synthetic(seed=seed, errors=[8 + seed, 6, 6, 4, 4, 3, 2, 1 + seed]) for seed in (0, 1)])
    assert group.targets == {0.25: 6.0, 0.5: 4.0, 0.75: 3.0, 1.0: 1.5}


def test_a_curve_twice_as_fast_has_the_ratio_two() -> None:
    runs = [synthetic(arm, rate=rate, pace=pace) for arm, rate, pace in (("original", 0.5, 0.1), ("fast", 1.0, 0.2))]
    found = at(runs, "fast", 1.0)
    assert [found.ratios[cost].value for cost in ("step", "epoch", "macs")] == pytest.approx([2.0] * 3)
    assert found.ratios["seconds"].value == pytest.approx(1.0)
    assert found.clock == pytest.approx(0.5)
    assert math.isnan(found.ratios["step"].low)  # of one seed there is no interval
    assert str(found.ratios["step"]) == "2.00"


def paired(spread: float, arm_seeds: Sequence[int]) -> Comparison:
    """Compare an arm of twice the rate where seeds make both sides faster or slower by the same factor."""
    factor = {seed: math.exp(spread * place) for seed, place in enumerate((-1, 1, 0.5, -0.5, 0.8, -0.3))}
    runs = [synthetic(seed=seed, rate=factor[seed], noise=0.01) for seed in (0, 1, 2)]
    runs += [synthetic("fast", seed, 2 * factor[seed], noise=0.01) for seed in arm_seeds]
    return at(runs, "fast", 0.5)


def test_the_interval_covers_the_true_ratio_and_pairs_runs_of_one_seed() -> None:
    same, other = paired(0.2, (0, 1, 2)).ratios["step"], paired(0.2, (3, 4, 5)).ratios["step"]
    for ratio in (same, other):
        assert ratio.low < 2 < ratio.high
    assert same.high / same.low < 1.1 < 2 < other.high / other.low


def test_sides_may_have_other_seeds_and_other_numbers_of_them() -> None:
    found = paired(0.05, (2, 3))
    assert (found.runs, found.originals) == (2, 3)
    assert found.ratios["step"].low < 2 < found.ratios["step"].high
    assert math.isnan(paired(0.05, (3,)).ratios["step"].low)


@pytest.mark.parametrize(("ahead", "count", "least"), [((0, 0), 3, 0.92), ((0, 0), 6, 0.92), ((0, 100), 3, 0.92)])
def test_the_interval_covers_in_as_many_cases_as_it_says(ahead: tuple[int, int], count: int, least: float) -> None:
    """Simulated with log costs that vary by seed on both sides, paired by seed or (seeds 100 apart) not."""
    draw = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        shared = draw.normal(0, 0.3, count) if ahead == (0, 0) else np.zeros(count)
        sides = [
            [Spent(first + seed, first + seed, math.exp(mean + shared[seed] + draw.normal(0, 0.2))) for seed in range(count)]
            for first, mean in zip(ahead, (math.log(2), 0.0), strict=True)
        ]
        found = compare(*sides)
        covered.append(found.low <= 2 <= found.high)
    assert least <= np.mean(covered) <= 0.995


def test_topologies_are_resampled_too() -> None:
    original = [Spent(seed, seed, 8.0) for seed in range(3)]
    same = [Spent(seed, topology, 4.0) for seed in range(3) for topology in range(3)]
    by_topology = [replace(one, cost=4.0 * 1.5**one.topology) for one in same]
    assert compare(original, same).high == pytest.approx(2.0)
    crossed = compare(original, by_topology)
    assert crossed.high > 1.2 * crossed.value
    own = [replace(one, topology=one.topology * 1000 + one.seed) for one in by_topology]
    nested = compare(original, own)
    assert nested.high == pytest.approx(nested.value)  # each seed has all of the spread, so that seeds do not differ


def test_runs_that_never_get_there_make_the_ratio_a_bound() -> None:
    there, never = Spent(0, 0, 4.0), Spent(1, 1, 8.0, censored=True)
    full = [there, replace(never, censored=False)]
    assert compare(full, [there, never]).bound == "<="
    assert compare([there, never], full).bound == ">="
    assert compare([there, never], [there, never]).bound == "?"
    assert str(Ratio(1.5, 1.0, 2.0, "<=")) == "<= 1.50 (up to 2.00)"
    assert str(Ratio(1.5, 1.0, 2.0, ">=")) == ">= 1.50 (from 1.00)"
    assert str(Ratio(1.5, 1.0, 2.0, "?")) == "not known"


def test_a_censored_curve_is_counted_and_enters_at_its_end() -> None:
    runs = [*(synthetic(seed=seed) for seed in (0, 1)), synthetic("slow", 0, 0.5), synthetic("slow", 1, 1.0)]
    found = at(runs, "slow", 1.0)
    assert (found.got_there, found.runs, found.originals_there) == (1, 2, 2)
    assert found.steps == 8000.0
    assert found.ratios["step"].bound == "<="
    half = at(runs, "slow", 0.5)
    assert half.ratios["step"].bound == ""
    assert half.ratios["step"].value == pytest.approx(math.sqrt(0.5), abs=0.01)


def test_a_control_is_held_against_the_wiring_that_it_controls_for() -> None:
    told = {"control": "clustering-up", "wiring": None}
    arms: list[tuple[str, float, dict[str, Any]]] = [
        ("original", 0.5, {}),
        ("kernel-p0.3", 1.0, {"wiring": "kernel"}),
        ("kernel-p1", 3.0, {"wiring": "kernel", "p": 1.0}),
        ("block-p0.3", 3.0, {}),
        ("up", 2.0, told),
    ]
    runs = [synthetic(arm, seed, rate, **other) for arm, rate, other in arms for seed in (0, 1)]
    (group,) = grouped(runs)
    found = contrasts(group)
    assert {(one.control, one.reference) for one in found} == {("up", "kernel-p0.3")}
    assert [one.ratio.value for one in found] == pytest.approx([2.0] * 4, abs=0.05)
    assert tables.controls(group).count("| up | kernel-p0.3 | 2.0") == 4
    assert tables.controls(grouped(runs[:2])[0]) == ""


def tried(rate: float, grid: str = "g", noise: float = 0.0, seeds: Sequence[int] = (0, 1, 2), **told: Any) -> list[Run]:
    arms: list[tuple[str, float, dict[str, Any]]] = [
        ("original", 1.0, {"p": 0.0}),
        ("block-p0.3", 2.0, {}),
        ("block-p0.6", 2.0, {"p": 0.6}),
        ("block-p0.3-near", 2.0 * rate, {"variant": "near"}),
    ]
    return [synthetic(arm, seed, of, noise=noise, grid=grid, **other, **told) for arm, of, other in arms for seed in seeds]


def test_what_was_tried_is_held_against_the_plain_arm() -> None:
    (group,) = grouped(tried(1.5))
    found = {one.arm: one for one in changes(group)}
    assert {arm: one.base for arm, one in found.items()} == dict.fromkeys(("block-p0.6", "block-p0.3-near"), "block-p0.3")
    assert found["block-p0.3-near"].ratios[1.0].value == pytest.approx(1.5, rel=0.01)
    assert found["block-p0.3-near"].error > 0 == found["block-p0.6"].error
    assert [arm for arm in group.arms if rewired(group, arm)] == ["block-p0.3", "block-p0.6"]
    assert not changes(grouped(tried(1.5)[:9])[0])  # p alone is the main table's business


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ((1.5, 1.0), "kept: better in steps and error"),
        ((0.7, 1.0), "dropped: worse in steps and error"),
        ((1.5, 0.7), "dropped: worse in steps and error, though better in steps and error"),
        ((1.0, 1.0), "dropped: no difference shown"),
    ],
)
def test_a_choice_is_kept_where_it_is_better_somewhere_and_worse_nowhere(rates: tuple[float, float], said: str) -> None:
    models = zip(rates, ("convnet_c", "mlp"), strict=True)
    groups = grouped([run for rate, model in models for run in tried(rate, "policy-again", noise=0.01, model=model)])
    made = [(group, compared(group, COSTS)) for group in groups]
    (row,) = [line for line in tables.tried(made, "policy-again").splitlines() if line.startswith("| block-p0.3-near")]
    assert row.split(" | ")[-1].removesuffix(" |") == said
    assert tables.tried(made, "policy") == "No curves yet.\n"


def test_what_is_ahead_in_every_pair_is_tried_again() -> None:
    for rates, said in (((1.5, 1.2), "yes"), ((1.5, 0.9), "no")):
        models = zip(rates, ("convnet_c", "mlp"), strict=True)
        groups = grouped([run for rate, model in models for run in tried(rate, "policy", model=model)])
        shown = tables.tried([(group, compared(group, COSTS)) for group in groups], "policy").splitlines()
        assert [line.split(" | ")[-1] for line in shown[2:4]] == [f"{said} |", "no |"]  # block-p0.6 does as block-p0.3 does


def gained(**by_model: tuple[float, float]) -> list[Known]:
    """Return networks by their effective depths, and what they gained; those whose names begin with "r" have shortcuts."""
    return [
        Known(model, "cifar10", "gains", Network(20, 4 if model[0] == "r" else 20, depth), Ratio(gain, gain - 0.1, gain + 0.1))
        for model, (depth, gain) in by_model.items()
    ]


def test_the_line_is_found_and_judged_on_families_left_out() -> None:
    exact = {name: (depth, 0.5 * depth**0.5) for name, depth in (("a", 4.0), ("b", 9.0), ("c", 16.0), ("rd", 25.0), ("re", 36.0))}
    pairs = gained(**exact)
    found = line(pairs)
    assert (found.least, found.most, found.factor) == pytest.approx((4.0, 36.0, 1.0))
    assert found.at(49.0) == pytest.approx(3.5)
    said = list(sentences(pairs))
    assert said[0] == "Known of 5 of 5 pairs, of 5 families; the others have no part in this."
    assert said[1].startswith("By effective depth: R2 1.00 on families left out, better than the others' mean, and 1.00 on all")
    assert said[3] == (
        "The line over effective depth: 1.00 times at 4.0 to 3.00 at 36.0; two of three networks lie within a factor of 1.00 of it."
    )
    against = gained(a=(4.0, 1.0), b=(9.0, 3.0), c=(16.0, 1.0), rd=(25.0, 3.0), re=(36.0, 1.0))
    assert "no better than the others' mean" in list(sentences(against))[1]
    assert list(sentences(pairs[:2]))[1] == "By effective depth: too few to leave families out."


def test_what_is_not_known_stays_in_the_table_and_out_of_the_line() -> None:
    pairs = gained(a=(4.0, 1.0), b=(9.0, 1.5), c=(16.0, 2.0))
    unknown = Known("slim_cnn5", "cifar10", "gains", Network(5, 5, 5.0), Ratio(9.0, 1.0, 20.0, "?"))
    assert line([*pairs, unknown]) == line(pairs)
    (row,) = [row for row in rows([*pairs, unknown]) if row[0] == "slim_cnn5, cifar10"]
    assert row[3:5] == ("little", "not known")
    assert next(sentences([*pairs, unknown])).startswith("Known of 3 of 4 pairs")
    assert 'trained, "little": slim_cnn5 on cifar10 not known.' in " ".join(sentences([*pairs, unknown]))


def test_sizes_of_one_family_do_not_vouch_for_each_other() -> None:
    assert {point.model for point in points_of(gained(slim_resnet8=(6.0, 1.0), slim_bottleneck29=(9.0, 2.0)))} == {"resnet"}
    assert list(sentences(gained(r8=(6.0, 1.0), r20=(9.0, 1.5), r32=(12.0, 2.0), r56=(15.0, 2.5))))[1].endswith(
        "too few to leave families out."
    )


def test_what_is_known_beforehand_is_taken_from_the_network() -> None:
    runs = [
        synthetic(arm, rate=rate, model=model, options={"schedule": schedule, "batch": 2})
        for model in ("plain_cnn21", "slim_densenet16")
        for arm, rate in (("original", 1.0), ("block-p0.3", 2.0))
        for schedule in ("constant", "cosine")
    ]
    compares = [(group, compared(group, COSTS)) for group in grouped(runs)]
    plain, dense = known(compares)
    assert (plain.network.longest, plain.network.shortest) == (21, 21)
    assert (dense.network.longest, dense.network.shortest) == (16, 4)
    assert (plain.network.depth, dense.network.depth) == pytest.approx((21.0, 5.75), abs=0.01)
    assert [one.ratio.value for one in (plain, dense)] == pytest.approx([2.0, 2.0], rel=0.01)
    assert tables.foretold(compares).splitlines()[2].startswith("| slim_densenet16, cifar10 | 5.75 | 4.00 |")


def replace_error(run: Run, more: float) -> Run:
    """Return a run whose test errors are so much higher."""
    return Run(tuple(record | {"test_error": record["test_error"] + more} for record in run.records))


def test_the_smallest_size_that_matches_is_named() -> None:
    sized = [("small-world-98K", 0.9, 98_000), ("small-world-200K", 1.01, 200_000), ("small-world-300K", 1.2, 300_000)]
    runs = [synthetic(seed=seed) for seed in (0, 1)]
    runs += [synthetic(arm, seed, rate, params=size, params_budget=size) for arm, rate, size in sized for seed in (0, 1)]
    (group,) = grouped(runs)
    said = tables.sizes(group)
    assert [line.split(" | ")[1] for line in said.splitlines()[2:5]] == ["98,000", "200,000", "300,000"]
    assert "small-world-98K is the smallest of which it is shown" in said  # .04 points above, within the margin of 1
    worse = [replace_error(run, 0.02) if run.arm == "small-world-98K" else run for run in runs]
    assert "small-world-200K is the smallest of which it is shown" in tables.sizes(grouped(worse)[0])
    none = [run if run.arm == "original" else replace_error(run, 0.02) for run in runs]
    assert "Of none of them it is shown" in tables.sizes(grouped(none)[0])
    assert tables.sizes(grouped(runs[:4])[0]) == ""  # one size is no choice


def test_only_runs_that_compare_are_grouped() -> None:
    other = {"schedule": "constant", "batch": 4}
    with pytest.raises(SystemExit, match="batch is 2 in one and 4 in another"):
        grouped([synthetic(), synthetic("fast", options=other)])
    with pytest.raises(SystemExit, match="no finished curve of an original"):
        grouped([synthetic("fast")])
    with pytest.raises(SystemExit, match="two curves are of arm fast"):
        grouped([synthetic(), synthetic("fast"), synthetic("fast")])
    begun = [synthetic(), synthetic("fast", grid="later")]
    groups = grouped(begun)
    assert [group.grid for group in groups] == ["g"]
    assert waiting(begun, groups) == ["later: convnet_c, cifar10, constant"]
    assert "no finished curve of their originals yet: later: convnet_c" in report.report(begun, "this")["report.md"]
    (tuned,) = grouped([synthetic(base_lr=0.1), synthetic("fast", base_lr=0.3)])
    assert "Learning rate: original 0.1, fast 0.3." in report._about(tuned)


def test_unfinished_runs_are_named_and_left_out() -> None:
    (group,) = grouped([synthetic(), synthetic("fast"), synthetic("fast", 1, errors=[0.5, 0.4])])
    assert [run.seed for run in group.arms["fast"]] == [0]
    assert "Not finished, and left out: fast seed 1 (step 20)." in report._about(group)


def test_schedules_are_kept_apart_and_read_off_the_rate_where_not_named() -> None:
    falling = Run(tuple({**record, "lr": 1 / record["step"]} for record in synthetic(options={}).records))
    groups = grouped([synthetic(options={}), falling, synthetic(options={"schedule": "plateau"})])
    assert [group.kind for group in groups] == ["constant", "decaying", "plateau"]


@pytest.mark.parametrize(("line", "said"), [("{", "is not a curve of JSON lines"), ('{"grid": "g"}', "has no 'model'")])
def test_what_is_no_curve_is_refused(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "run.jsonl").write_text(line + "\n")
    with pytest.raises(SystemExit, match=said):
        read([tmp_path])
    with pytest.raises(SystemExit, match="no curves"):
        read([tmp_path / "nothing"])


def test_curves_of_tuning_are_no_evidence(tmp_path: Path) -> None:
    for name, run in (("a", synthetic()), ("b", synthetic(grid="g-tuning"))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run.records))
    assert [run.key[0] for run in read([tmp_path])] == ["g"]


def test_a_run_that_diverged_is_reported() -> None:
    broken = Run(tuple({**record, "train_loss": None, "test_error": 0.9} for record in synthetic("broken").records))
    (group,) = grouped([synthetic(), broken])
    assert "| broken | 1 |" in tables.ends(group)
    assert at([synthetic(), broken], "broken", 1.0).ratios["step"].bound == "<="
    assert "nan" not in plots.curves(group).lower()


def points(count: int, noise: float) -> list[Point]:
    draw = np.random.default_rng(1)
    made = []
    for number in range(count):
        for arm in range(4):
            x = {name: float(draw.standard_normal()) for name in FIGURES}
            made.append(Point(f"model{number}", f"arm{arm}", 2 * x["C"] - x["L"] + noise * float(draw.standard_normal()), x))
    return made


def test_the_regression_finds_what_predicts_on_models_left_out() -> None:
    exact = fit(points(4, 0.0), ("C", "L"))
    assert exact.left_out == pytest.approx(1.0)
    assert fit(points(4, 0.0), ("S",)).left_out < 0.3
    noisy = fit(points(4, 0.7), ("C", "L"))
    assert 0.4 < noisy.left_out < noisy.r2 < 0.98


def test_the_regression_says_nothing_of_too_few_models() -> None:
    assert math.isnan(fit(points(2, 0.0), ("C",)).left_out)
    assert math.isnan(fit(points(4, 0.0)[:3], ("C", "L")).r2)
    scarce = [point for point in points(3, 0.0) if point.arm == "arm0"]
    assert math.isnan(fit(scarce, ("C",)).left_out)


def test_a_model_left_out_is_not_seen() -> None:
    made = points(4, 0.0)
    odd = [replace(point, y=point.y + 100) if point.model == "model3" else point for point in made]
    assert fit(odd, ("C", "L")).left_out < 0.1  # nothing in the other models tells of the shift


def test_predictors_are_figures_and_their_change() -> None:
    plain = {"S": 0.0, "C": 0.0, "L": 4.0, "density": 0.1, "effective depth": 20.0, "mean path": 20.0, "MACs": 100.0}
    made = predictors(plain | {"C": 0.1, "L": 2.0}, plain)
    assert made["C"] == made["change of C"] == 0.1
    assert made["L"] == pytest.approx(math.log(2))
    assert made["change of L"] == pytest.approx(-math.log(2))
    assert made["change of MACs"] == 0.0


def test_figures_are_those_of_the_network_that_was_trained() -> None:
    told: dict[str, Any] = {"model": "plain_cnn21", "p": 0.3, "topology_seed": 3, "options": {}}
    found = figures([synthetic("block-p0.3", 3, **told)])
    example = torch.zeros(2, 3, 32, 32)
    side = swnet.ledger(swnet.transform(models.plain_cnn21(), example, p=0.3, seed=3)).after
    assert found is not None
    assert (found["C"], found["L"], found["mean path"], found["MACs"]) == (side.C, side.L, side.mean_path, side.macs)
    plain = figures([synthetic(**told)])
    assert plain is not None
    assert (plain["C"], plain["mean path"]) == (0.0, 21.0)
    assert figures([synthetic(model="nobody's")]) is None
    recorded = {"S": 1, "C": 2, "L": 3, "graph_density": 4, "effective_depth": 5, "mean_path": 6, "macs": 7}
    assert figures([synthetic(figures=recorded)]) == dict(zip(FIGURES, range(1, 8), strict=True))


def plateau(rates: Sequence[float], noise: float = 0.0) -> list[tuple[Group, list[Comparison]]]:
    told: dict[str, Any] = {"options": {"schedule": "plateau"}}
    runs = [synthetic(seed=seed, rate=0.5, noise=noise, **told) for seed in range(3)]
    runs += [synthetic("block", seed, rate, noise=noise, **told) for seed, rate in enumerate(rates)]
    return [(group, compared(group, COSTS)) for group in grouped(runs)]


def test_the_papers_ratio_is_judged_with_the_lower_end_of_its_interval() -> None:
    met = {one.what.rpartition(",")[2]: one for one in judged(plateau([1.5, 1.6, 1.7])) if "ConvNet-C" in one.what}
    first, low = met.values()
    assert first.value == pytest.approx(3.2, abs=0.1)
    assert low.value is not None
    assert 2 < low.value < (first.value or 0)
    assert "block (g, plateau): 3.19 (2.7" in ours(plateau([1.5, 1.6, 1.7]), PAPER[0])
    assert ours(plateau([1.5, 1.6, 1.7]), PAPER[1]) == "not measured"


def test_a_ratio_too_high_for_runs_that_never_get_there_meets_no_target() -> None:
    first, low = judged(plateau([4.0, 4.0, 0.3]))[:2]
    assert low.value is None
    assert first.value is None or first.value < first.least


def test_what_was_not_measured_is_said() -> None:
    assert all(one.value is None for one in judged([]))
    assert tables.targets([]).count("not measured") == 5


def test_the_constant_rate_is_judged_over_all_pairs() -> None:
    decaying: dict[str, Any] = {"options": {"schedule": "cosine", "batch": 2}}
    pairs: list[tuple[str, float, dict[str, Any]]] = [("a", 1.0, {}), ("b", 2.0, {}), ("c", 4.0, decaying)]
    runs = [synthetic("original", rate=0.5, data=data, **other) for data, _, other in pairs]
    runs += [synthetic("block", rate=fast, data=data, **other) for data, fast, other in pairs]
    found = [one for one in judged([(group, compared(group, COSTS)) for group in grouped(runs)]) if "Constant" in one.what]
    assert [one.value for one in found] == [pytest.approx(math.sqrt(8), abs=0.05), None]  # of one seed there is no interval
    again = [Run(tuple(record | {"grid": "policy"} for record in run.records)) for run in runs]
    both = [(group, compared(group, COSTS)) for group in grouped(runs + again)]
    assert [one for one in judged(both) if "Constant" in one.what] == found  # a trial of the same pair counts no more


def test_pairs_of_which_nothing_is_known_are_named_and_do_not_hide_the_others() -> None:
    slow = [synthetic(arm, seed, rate, model="slow") for arm, rate in (("original", 1.0), ("block", 1.5)) for seed in (0, 1)]
    ends = [[0.9, 0.8, 0.7, 0.3], [0.9, 0.8, 0.7, 0.5]]  # the target is .4: one run of each arm never gets there
    open_ = [synthetic(arm, seed, model="open", errors=ends[seed]) for arm in ("original", "block") for seed in (0, 1)]
    fast = [synthetic(arm, seed, rate, model="fast") for arm, rate in (("original", 0.5), ("block", 2.0)) for seed in (0, 1)]

    def mean(runs: list[Run]) -> Judged:
        return next(one for one in judged([(group, compared(group, COSTS)) for group in grouped(runs)]) if "Constant" in one.what)

    short = mean(slow + open_)
    assert short.value == pytest.approx(1.5, abs=0.05)
    assert "block, 1 pairs: slow on cifar10; not known of open on cifar10, with which as they stand it is 1.2" in short.how
    assert mean(slow + open_ + fast).value is None  # 2.4 without what is not known: that meets nothing
    assert mean(open_).value is None


def test_of_a_pair_in_several_grids_the_same_one_counts_everywhere() -> None:
    runs = [
        synthetic(arm, rate=rate, model="plain_cnn21", grid=grid)
        for grid, gain in (("core", 2.0), ("full", 1.5))
        for arm, rate in (("original", 1.0), ("block-p0.3", gain))
    ]
    compares = [(group, compared(group, COSTS)) for group in grouped(runs)]
    assert [(one.grid, round(one.ratio.value)) for one in known(compares)] == [("core", 2)]
    assert next(one.value for one in judged(compares) if "Constant" in one.what) == pytest.approx(2.0, rel=0.01)


def test_the_interval_of_the_mean_ratio_is_judged_too() -> None:
    runs = [
        synthetic(arm, seed, rate, model=model, noise=0.01)
        for model in ("a", "b")
        for arm, rate in (("original", 0.5), ("block", 1.5))
        for seed in (0, 1, 2)
    ]
    mean, low = [one for one in judged([(group, compared(group, COSTS)) for group in grouped(runs)]) if "Constant" in one.what]
    assert mean.value is not None
    assert low.value is not None
    assert 2.5 < low.value < mean.value < 3.2
    assert "2 pairs: a on cifar10, b on cifar10" in mean.how


def curve_files(folder: Path) -> None:
    for name, arms in (("quick", ("original", "block-p0.3")), ("other", ("original", "kernel"))):
        for arm in arms:
            for seed in (0, 1):
                told: dict[str, Any] = {"grid": name, "model": "unknown", "topology_seed": seed}
                run = synthetic(arm, seed, 2.0 if arm != "original" else 1.0, noise=0.02, **told)
                file = folder / name / f"{arm}-{seed}.jsonl"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(json.dumps(record) + "\n" for record in run.records[::20]))


def test_the_report_is_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve_files(tmp_path / "curves")
    monkeypatch.chdir(tmp_path)
    report.main(["curves/quick", "curves/other", "--out", "first"])
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])}
    command = [sys.executable, "-m", "benchmarks.report", "curves/quick", "curves/other", "--out", "second"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    first, second = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second
    assert len(first) == 4
    assert str(tmp_path) not in "".join(map(str, first.values()))
    text = first["report.md"].decode()
    assert all(f"({name})" in text for name in first if name.endswith(".svg"))
    assert "unknown" in text


def test_the_report_that_is_kept_is_what_the_curves_say() -> None:
    folder = RESULTS / "convergence"
    made = report.report(read([folder]), "python -m benchmarks.report benchmarks/results/convergence")
    kept = {file.name: file.read_text(encoding="utf-8") for file in (folder / "report").iterdir()}
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == [], (
        "run python -m benchmarks.report benchmarks/results/convergence"
    )
    text = kept["report.md"]
    decaying = text[text.index("## Rate that falls by the clock") :]
    assert "### densenet40-short: densenet40, cifar10, one-cycle" in decaying
    assert "| small-world-98K | 3 | 97,996 |" in decaying


def test_what_check_says_is_the_line_through_the_kept_curves() -> None:
    folders = [RESULTS / "convergence" / grid for grid in ("quick", "breadth", "gains")]
    found = line(known([(group, compared(group, COSTS)) for group in grouped(read(folders))]))
    assert (round(found.least, 1), round(found.most, 1)) == (outlook.LEAST, outlook.MOST)
    assert (round(found.at(found.least), 2), round(found.at(found.most), 2)) == (outlook.LEAST_GAIN, outlook.MOST_GAIN)
    assert round(found.factor, 2) == outlook.FACTOR
    assert outlook.foreseen(9.0) == pytest.approx(found.at(9.0), abs=0.02)
