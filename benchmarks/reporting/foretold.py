"""Can it be told beforehand who gains? A line through what networks gained over one figure of each, judged on families left out.

    log ratio in steps = intercept + slope * log figure

over the arm block-p0.3 at the original's final error and at a constant rate. A figure has skill where its line predicts families
that it has not seen better than the mean of the others does: where R2 on families left out is above 0 (reporting/regression.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from benchmarks.lab.grids import DECLARED_LITTLE, GAINS
from benchmarks.lab.networks import MODELS
from benchmarks.models import seeded
from benchmarks.reporting.curves import family
from benchmarks.reporting.figures import SETS
from benchmarks.reporting.judged import Compared, at_constant_rate
from benchmarks.reporting.ratios import Ratio
from benchmarks.reporting.regression import Fit, Point, fit
from swcompile.outlook import effective_depth, paths
from swcompile.survey import survey

ARM = "block-p0.3"


@dataclass(frozen=True)
class Network:
    """What is known before training: layers on the longest path and on the shortest, and the effective depth."""

    longest: int
    shortest: int
    depth: float


@dataclass(frozen=True)
class Known:
    """A network on a set of images, and how many times sooner it came to the original's final error."""

    model: str
    data: str
    grid: str
    network: Network
    ratio: Ratio

    @property
    def declared(self) -> str:
        """What was declared of it beforehand."""
        if self.grid != GAINS.name:
            return ""
        return "little" if self.model in DECLARED_LITTLE else "gains"


FIGURES: Mapping[str, Callable[[Network], float]] = {
    "effective depth": lambda network: network.depth,
    "longest path over shortest": lambda network: network.longest / network.shortest,
}
"""What `swcompile check` goes by; and shortcuts, which it went by alone before, from published data."""


def known(compared: Compared) -> list[Known]:
    """Return what there is for each network and set of images, by name; those that cannot be built here are left out."""
    return [
        Known(model, data, group.grid, _network(model, data), one.ratios["step"])
        for (model, data), (group, one) in sorted(at_constant_rate(compared).get(ARM, {}).items(), key=lambda item: item[0])
        if model in MODELS and data in SETS
    ]


@cache
def _network(model: str, data: str) -> Network:
    classes, channels, size = SETS[data]
    graph = survey(seeded(MODELS[model], 0, classes, channels, size), torch.zeros(2, channels, size, size)).graph
    length = paths(graph)
    return Network(length.longest, length.shortest, effective_depth(graph))


def points(pairs: Sequence[Known]) -> list[Point]:
    """Return a point for each pair whose ratio is known, bounds as they are, with its figures' logarithms."""
    return [
        Point(
            family(one.model),
            ARM,
            math.log(one.ratio.value),
            {name: math.log(figure(one.network)) for name, figure in FIGURES.items()},
        )
        for one in pairs
        if one.ratio.bound != "?"
    ]


@dataclass(frozen=True)
class Line:
    """What is expected of a depth: exp(intercept + slope * log depth), and the factor that two of three networks stay within."""

    intercept: float
    slope: float
    factor: float
    least: float
    most: float
    """The effective depths that it was found on."""

    def at(self, depth: float) -> float:
        """Return how many times sooner."""
        return math.exp(self.intercept + self.slope * math.log(depth))


def line(pairs: Sequence[Known]) -> Line:
    """Return the line over effective depth."""
    found = points(pairs)
    x, y = np.array([point.x["effective depth"] for point in found]), np.array([point.y for point in found])
    slope, intercept = np.polyfit(x, y, 1)
    spread = math.sqrt(float(((y - intercept - slope * x) ** 2).sum()) / (len(found) - 2))
    return Line(float(intercept), float(slope), math.exp(spread), math.exp(x.min()), math.exp(x.max()))


def sentences(pairs: Sequence[Known]) -> Iterator[str]:
    """Say how well each figure predicts, and what became of what was declared."""
    found = points(pairs)
    families = len({point.model for point in found})
    yield f"Known of {len(found)} of {len(pairs)} pairs, of {families} families; the others have no part in this."
    for name in FIGURES:
        yield f"By {name}: {_skill(fit(found, [name]))}."
    if len(found) > 2:
        at = line(pairs)
        yield (
            f"The line over effective depth: {at.at(at.least):.2f} times at {at.least:.1f} to {at.at(at.most):.2f} at "
            f"{at.most:.1f}; two of three networks lie within a factor of {at.factor:.2f} of it."
        )
    for words in ("little", "gains"):
        told = [f"{one.model} on {one.data} {one.ratio}" for one in pairs if one.declared == words]
        if told:
            yield f'Declared before they were trained, "{words}": {"; ".join(told)}.'


def _skill(found: Fit) -> str:
    if math.isnan(found.left_out):
        return "too few to leave families out"
    said = "no better than the others' mean" if found.left_out <= 0 else "better than the others' mean"
    return f"R2 {found.left_out:.2f} on families left out, {said}, and {found.r2:.2f} on all"


HEADINGS = ("network, images", *FIGURES, "declared", "ratio in steps", "by the line over effective depth")


def rows(pairs: Sequence[Known]) -> list[tuple[str, ...]]:
    """Return the table's rows, by effective depth."""
    at = line(pairs) if len(points(pairs)) > 2 else None
    return [
        (
            f"{one.model}, {one.data}",
            *(f"{figure(one.network):.2f}" for figure in FIGURES.values()),
            one.declared,
            str(one.ratio),
            f"{at.at(one.network.depth):.2f}" if at else "",
        )
        for one in sorted(pairs, key=lambda one: one.network.depth)
    ]
