"""Can it be told beforehand who gains? Rules on each model as they are, and with a threshold found without the model's family.

A network gains where its arm block-p0.3 reaches the original's final error at least GAIN times sooner in steps, at a constant rate,
and the 95% interval of that lies above 1; it does not where the ratio is below GAIN; else nothing is known of it. A rule gives a
network a score, and says that it gains where that is above a threshold. Left out, a network is judged by the threshold that is
right most often on all the networks of other families, the lowest of several; the rule's own has no part in that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch

from benchmarks.lab.networks import MODELS
from benchmarks.models import seeded
from benchmarks.reporting.curves import family
from benchmarks.reporting.figures import SETS
from benchmarks.reporting.judged import Compared, at_end
from benchmarks.reporting.ratios import Ratio
from swcompile.outlook import DEEP, LITTLE, effective_depth, paths
from swcompile.survey import survey

ARM = "block-p0.3"
GAIN = 1.1
"""Times sooner: what published data has at most for networks with norms and shortcuts, at their final error."""


@dataclass(frozen=True)
class Network:
    """What is known before training: layers on the longest path and on the shortest, the effective depth, and what check says."""

    longest: int
    shortest: int
    depth: float
    told: bool
    """Whether check says that it may gain little."""


@dataclass(frozen=True)
class Known:
    """A model on a set of images, and what it gained."""

    model: str
    data: str
    network: Network
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
class Rule:
    """Who gains: networks whose score is above a threshold."""

    name: str
    threshold: float
    score: Callable[[Network], float]


RULES = (
    Rule("effective depth", DEEP, lambda network: network.depth),
    Rule("shortcuts", 0.5, lambda network: network.shortest / network.longest),
)
"""What `swcompile check` goes by, and what it went by before, from published data: shortcuts to half the depth, and norms."""


@dataclass(frozen=True)
class Judgement:
    """Whether a rule was right about a network, and whether it would have been with a threshold found on other families."""

    right: bool
    left_out: bool | None
    """None where there are no others."""


def known(compared: Compared) -> list[Known]:
    """Return what there is for each model and set, by name; what is not known, or cannot be built here, is left out."""
    found: dict[tuple[str, str], Ratio] = {}
    for group, one in at_end(compared):
        ratio = one.ratios["step"]
        if one.arm == ARM and group.kind == "constant" and ratio.bound != "?" and group.model in MODELS and group.data in SETS:
            found.setdefault((group.model, group.data), ratio)
    return [Known(*pair, _network(*pair), ratio.value, ratio.low) for pair, ratio in sorted(found.items())]


@cache
def _network(model: str, data: str) -> Network:
    classes, channels, size = SETS[data]
    found = survey(seeded(MODELS[model], 0, classes, channels, size), torch.zeros(2, channels, size, size))
    length = paths(found.graph)
    return Network(length.longest, length.shortest, effective_depth(found.graph), (found.outlook or "").startswith(LITTLE))


def judge(rule: Rule, pairs: Sequence[Known]) -> list[Judgement | None]:
    """Judge a rule by each pair, as it is and by other families alone; None where it is not known whether it gains."""
    sure = [one for one in pairs if one.gains is not None]
    return [
        None if one.gains is None else Judgement(_right(rule, one, rule.threshold), _left_out(rule, one, sure)) for one in pairs
    ]


def _right(rule: Rule, one: Known, threshold: float) -> bool:
    return (rule.score(one.network) > threshold) == one.gains


def _left_out(rule: Rule, one: Known, sure: Sequence[Known]) -> bool | None:
    others = [other for other in sure if family(other.model) != family(one.model)]
    if not others:
        return None

    best = max(thresholds(rule, others), key=lambda value: sum(_right(rule, other, value) for other in others))
    return _right(rule, one, best)


def thresholds(rule: Rule, pairs: Sequence[Known]) -> list[float]:
    """Return a threshold below all scores, one between each two neighbours and one above all, in that order."""
    scores = sorted({rule.score(one.network) for one in pairs})
    return [scores[0] / 2, *(math.sqrt(low * high) for low, high in pairwise(scores)), scores[-1] * 2]


def sentences(pairs: Sequence[Known]) -> Iterator[str]:
    """Say how often each rule is right, beside saying the same of all."""
    for rule in RULES:
        found = [one for one in judge(rule, pairs) if one is not None]
        left_out = [one.left_out for one in found if one.left_out is not None]
        yield (
            f"By {rule.name}: right about {sum(one.right for one in found)} of the {len(found)} of which it is known; "
            f"with a threshold found on other families, about {sum(left_out)} of {len(left_out)}."
        )
    sure = [one.gains for one in pairs if one.gains is not None]
    yield f"Saying the same of all would be right about {max(sum(sure), len(sure) - sum(sure))} of {len(sure)}."


HEADINGS = (
    *("model, images", "longest path over shortest", "effective depth", "check says", "ratio in steps"),
    *(column for rule in RULES for column in (f"by {rule.name}", "left out")),
)


def rows(pairs: Sequence[Known]) -> list[tuple[str, ...]]:
    """Return the table's rows."""
    judgements = [judge(rule, pairs) for rule in RULES]
    return [
        (
            f"{one.model}, {one.data}",
            f"{one.network.longest / one.network.shortest:.2f}",
            f"{one.network.depth:.1f}",
            "may gain little" if one.network.told else "nothing",
            f"{one.gained:.2f}" + ("" if math.isnan(one.low) else f" (from {one.low:.2f})"),
            *(word for judged in judgements for word in _words(judged[place])),
        )
        for place, one in enumerate(pairs)
    ]


def _words(found: Judgement | None) -> tuple[str, str]:
    words: Mapping[bool | None, str] = {True: "right", False: "wrong", None: "not known"}
    return ("not known", "not known") if found is None else (words[found.right], words[found.left_out])
