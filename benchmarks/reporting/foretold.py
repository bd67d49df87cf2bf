"""Does `swcompile check` tell beforehand who gains? Its rule on each model, and the rule with a threshold found without that model.

A network gains where its arm block-p0.3 reaches the original's final error at least GAIN times sooner in steps, at a constant rate,
and the 95% interval of that lies above 1; it does not where the ratio is below GAIN; else nothing is known of it. `check` says "may
gain little" of a network with norms whose longest path is at least SHORTER times as long as its shortest. Left out, a model is
judged by the threshold that is right most often on all the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch

from benchmarks.lab.networks import MODELS
from benchmarks.models import seeded
from benchmarks.reporting.judged import Compared, at_end
from benchmarks.reporting.ratios import Ratio
from swcompile.api import survey
from swcompile.outlook import SHORTER, outlook, paths

ARM = "block-p0.3"
GAIN = 1.1
"""Times sooner: what published data has at most for networks with norms and shortcuts, at their final error."""


@dataclass(frozen=True)
class Known:
    """A model's longest path over its shortest (1 where it has no norms), what check says of it, and what it gained."""

    model: str
    ratio: float
    told: bool
    """Whether check says that it may gain little."""
    gained: float
    low: float
    """The lower end of the interval of `gained`, NaN where it is open."""

    @property
    def gains(self) -> bool | None:
        """Whether it gains, None where that is not known."""
        if self.gained < GAIN:
            return False
        return True if self.low > 1 else None


@dataclass(frozen=True)
class Judgement:
    """Whether check was right about a model, and whether its rule would have been with a threshold found on the others."""

    known: Known
    right: bool | None
    left_out: bool | None
    """None where there are no others. Both are None where it is not known whether the model gains."""


def known(compared: Compared) -> list[Known]:
    """Return what there is for each model, by name; models whose ratio is not known, or that cannot be built here, are left out."""
    found: dict[str, Ratio] = {}
    for group, one in at_end(compared):
        ratio = one.ratios["step"]
        if one.arm == ARM and group.kind == "constant" and ratio.bound != "?" and group.model in MODELS:
            found.setdefault(group.model, ratio)
    return [Known(model, *_said(model), ratio.value, ratio.low) for model, ratio in sorted(found.items())]


@cache
def _said(model: str) -> tuple[float, bool]:
    found = survey(seeded(MODELS[model], 0), torch.zeros(2, 3, 32, 32))
    length = paths(found.graph)
    normed = outlook(found.graph, normed=True) == found.outlook  # check says the same as of a network with norms
    return length.longest / length.shortest if normed else 1.0, found.outlook is not None


def judge(models: Sequence[Known]) -> list[Judgement]:
    """Judge each model, by the rule as it is and by the others alone."""
    sure = [one for one in models if one.gains is not None]
    return [
        Judgement(one, one.told != one.gains, _left_out(one, [other for other in sure if other is not one]))
        if one.gains is not None
        else Judgement(one, None, None)
        for one in models
    ]


def _left_out(one: Known, others: Sequence[Known]) -> bool | None:
    if not others:
        return None
    threshold = max(thresholds(others), key=lambda value: (right(others, value), -abs(math.log(value / SHORTER))))
    return (one.ratio >= threshold) != one.gains


def thresholds(models: Sequence[Known]) -> list[float]:
    """Return a threshold below all ratios, above all, the rule's own, and one between each two neighbours."""
    ratios = sorted({one.ratio for one in models})
    between = (math.sqrt(low * high) for low, high in pairwise(ratios))
    return [ratios[0] / 2, *between, ratios[-1] * 2, float(SHORTER)]


def right(models: Sequence[Known], threshold: float) -> int:
    """Count the models of which a threshold is right."""
    return sum((one.ratio >= threshold) != one.gains for one in models)


def sentences(found: Sequence[Judgement]) -> Iterator[str]:
    """Say how often the rule is right, beside saying the same of all."""
    sure = [one for one in found if one.right is not None]
    gains = sum(bool(one.known.gains) for one in sure)
    yield f"check is right about {sum(bool(one.right) for one in sure)} of the {len(sure)} models of which it is known"
    if len(sure) > 1:
        yield f"with its threshold found on the others alone, about {sum(bool(one.left_out) for one in sure)}"
    yield f"saying the same of all would be right about {max(gains, len(sure) - gains)}"


def rows(found: Sequence[Judgement]) -> list[tuple[str, ...]]:
    """Return the table's rows."""
    words: Mapping[bool | None, str] = {True: "right", False: "wrong", None: "not known"}
    return [
        (
            one.known.model,
            f"{one.known.ratio:.2f}",
            "may gain little" if one.known.told else "nothing",
            f"{one.known.gained:.2f}" + ("" if math.isnan(one.known.low) else f" (from {one.known.low:.2f})"),
            words[one.right],
            words[one.left_out],
        )
        for one in found
    ]
