"""Which figure of a network predicts how much sooner it learns? Least squares over arms, judged on models left out.

    y = log speed-up of an arm, x = figures of its network, as they are and as they differ from the original's
    leave-one-model-out R2 = 1 - sum (y - y_predicted)^2 / sum (y - mean of y over the other models)^2

where each model's arms are predicted from the other models' alone. 1 is perfect, 0 is no better than the others' mean, and below 0
is worse. It needs three models, and more arms in every rest than there are coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from benchmarks.reporting.curves import Floats

FIGURES = ("S", "C", "L", "density", "effective depth", "mean path", "MACs")
LOGARITHMIC = {"L", "density", "effective depth", "mean path", "MACs"}
"""Figures that are never 0 enter by their logarithm: speed-ups are ratios, too. C, and S with it, is 0 in a plain chain."""
CHANGE = "change of "
FEWEST_MODELS = 3


@dataclass(frozen=True)
class Point:
    """One arm of one group: its log speed-up and the predictors by name."""

    model: str
    arm: str
    y: float
    x: Mapping[str, float]


@dataclass(frozen=True)
class Fit:
    """A least-squares fit: R2 on its own points, and on models left out (NaN where there are too few)."""

    names: tuple[str, ...]
    points: int
    r2: float
    left_out: float


def predictors(figures: Mapping[str, float], original: Mapping[str, float]) -> dict[str, float]:
    """Return an arm's figures as predictors, as they are and as they differ from the original's."""
    own, before = (
        {name: math.log(of[name]) if name in LOGARITHMIC else of[name] for name in FIGURES} for of in (figures, original)
    )
    return own | {CHANGE + name: own[name] - before[name] for name in FIGURES}


def sets() -> list[tuple[str, ...]]:
    """Return the sets of predictors that are tried: each alone, and each two of one kind."""
    kinds = [FIGURES, tuple(CHANGE + name for name in FIGURES)]
    return [(name,) for kind in kinds for name in kind] + [pair for kind in kinds for pair in combinations(kind, 2)]


def fit(points: Sequence[Point], names: Sequence[str]) -> Fit:
    """Fit log speed-ups by an intercept and the named predictors."""
    y = np.array([point.y for point in points])
    x = np.array([[point.x[name] for name in names] for point in points])
    if len(points) <= len(names) + 1:
        return Fit(tuple(names), len(points), math.nan, math.nan)
    everyone = np.ones(len(points), bool)
    own = _r2(y, _predicted(x, y, everyone, everyone), np.full(len(y), y.mean()))
    return Fit(tuple(names), len(points), own, _left_out(x, y, np.array([point.model for point in points])))


def _left_out(x: Floats, y: Floats, models: np.typing.NDArray[np.str_]) -> float:
    known = sorted(set(models.tolist()))
    if len(known) < FEWEST_MODELS or any((models != model).sum() <= x.shape[1] + 1 for model in known):
        return math.nan
    predicted, naive = np.empty_like(y), np.empty_like(y)
    for model in known:
        inside = models != model
        predicted[~inside] = _predicted(x, y, inside, ~inside)
        naive[~inside] = y[inside].mean()
    return _r2(y, predicted, naive)


def _predicted(x: Floats, y: Floats, inside: np.typing.NDArray[np.bool_], asked: np.typing.NDArray[np.bool_]) -> Floats:
    """Fit the points `inside` and predict those `asked`, on predictors scaled by the former."""
    center, scale = x[inside].mean(axis=0), x[inside].std(axis=0)
    scaled = (x - center) / np.where(scale > 0, scale, 1.0)
    design = np.column_stack([np.ones(len(x)), np.where(scale > 0, scaled, 0.0)])
    found: Floats = design[asked] @ np.linalg.lstsq(design[inside], y[inside], rcond=1e-10)[0]
    return found


def _r2(y: Floats, predicted: Floats, naive: Floats) -> float:
    total = float(((y - naive) ** 2).sum())
    return 1 - float(((y - predicted) ** 2).sum()) / total if total > 0 else math.nan
