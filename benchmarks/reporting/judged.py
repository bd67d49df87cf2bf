"""What the curves have to show: the paper's numbers, the project's own targets, and how ours compare."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.record import Judged
from benchmarks.reporting.curves import ORIGINAL, Group
from benchmarks.reporting.ratios import Comparison, Ratio

Compared = Sequence[tuple[Group, Sequence[Comparison]]]

PAPER_EPOCHS = 2.64
PAPER_LOW = 2.0
CONSTANT_RATE = 2.1
CLOCK = 0.9
DENSENET_EPOCHS = 300
"""What DenseNet is trained for in the paper; the errors of shorter runs are no answer."""


@dataclass(frozen=True)
class Paper:
    """A row of the papers: error in % after epochs, of the original and of the small-world network."""

    model: str
    data: str
    named: str
    original: str
    small_world: str
    ratio: str


PAPER = (
    Paper("convnetc", "cifar10", "ConvNet-C (VGG16-like), CIFAR-10", "7.56 after 145", "7.44 after 55", "2.64"),
    Paper("convnetc", "cifar100", "ConvNet-C, CIFAR-100", "29.52 after 226", "29.26 after 80", "2.82"),
    Paper("alexnet", "imagenet", "AlexNet, ImageNet", "42.01 after 80", "41.55 after 59", "1.36"),
    Paper("resnet18", "imagenet", "ResNet-18, ImageNet", "31.72 after 73", "31.68 after 56", "1.31"),
    Paper("cnn5", "mnist", "5-layer CNN, MNIST", ".9 after 19", ".9 after 9", "2.1"),
    Paper("densenet40", "cifar10", "DenseNet-40, CIFAR-10, no augmentation", "7.1, 910K parameters", "7.4, 98K", "same speed"),
)
"""Javaheripi et al., arXiv 1904.04862, and IEEE JETCAS 11(4), 2021; "iterations" there are epochs times the batch size."""


def same(model: str, other: str) -> bool:
    """Say whether two names of a network are one but for case and punctuation."""
    return _bare(model) == _bare(other)


def _bare(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def rewired(group: Group, arm: str) -> bool:
    """Say whether an arm is a network rewired as users get it: neither the original nor a control nor something tried."""
    first = group.arms[arm][0].records[0]
    other = any(first.get(key) for key in ("control", "variant", "rewire_every"))
    return bool(first.get("wiring")) and not other


TRIALS = "policy"
"""What the names of grids begin with whose runs choose the defaults; some repeat others' runs, and none judges its own choice."""


def at_end(compared: Compared) -> Iterator[tuple[Group, Comparison]]:
    """Yield the rewired arms' comparisons at the original's final error, but for grids of trials."""
    for group, every in compared:
        if group.grid.startswith(TRIALS):
            continue
        yield from ((group, one) for one in every if one.share == 1.0 and rewired(group, one.arm))


def at_constant_rate(compared: Compared) -> dict[str, dict[tuple[str, str], tuple[Group, Comparison]]]:
    """Return what `at_end` yields of a constant rate, by arm and by model and data; of several grids the first by name counts."""
    by_arm: dict[str, dict[tuple[str, str], tuple[Group, Comparison]]] = {}
    for group, one in at_end(compared):
        if group.kind == "constant":
            by_arm.setdefault(one.arm, {}).setdefault((group.model, group.data), (group, one))
    return by_arm


def ours(compared: Compared, row: Paper) -> str:
    """Return what our curves say of a row: each rewired arm's ratio in epochs at the original's final error, and both errors."""
    found = [
        f"{one.arm} ({group.grid}, {group.schedule}): {one.ratios['epoch']}; "
        f"error {_error(group, one.arm)} for {_error(group, ORIGINAL)}"
        for group, one in at_end(compared)
        if same(group.model, row.model) and same(group.data, row.data)
    ]
    return "<br>".join(found) or "not measured"


def _error(group: Group, arm: str) -> str:
    """Return an arm's final test error and the epochs it took."""
    last = [run.last for run in group.arms[arm]]
    return f"{100 * float(np.mean([one['test_error'] for one in last])):.2f} after {last[0]['epoch']:g}"


def judged(compared: Compared) -> list[Judged]:
    """Judge what the curves show against the project's targets; where there are no curves the value is None."""
    return [*_plateau(compared), *_constant(compared), *_clock(compared), *_densenet(compared)]


def _plateau(compared: Compared) -> Iterator[Judged]:
    what = "ConvNet-C on CIFAR-10, plateau schedule: times fewer epochs to the original's final error"
    found = [
        (one.arm, one.ratios["epoch"])
        for group, one in at_end(compared)
        if same(group.model, "convnetc") and group.data == "cifar10" and group.schedule == "plateau"
    ]
    for arm, ratio in found:
        yield Judged(what, PAPER_EPOCHS, *_claimed(PAPER_EPOCHS, ratio.value, [ratio], arm))
        yield Judged(f"{what}, lower end of the interval", PAPER_LOW, _known(ratio.ends[0]), arm)
    if not found:
        yield Judged(what, PAPER_EPOCHS, None)
        yield Judged(f"{what}, lower end of the interval", PAPER_LOW, None)


def _constant(compared: Compared) -> Iterator[Judged]:
    what = "Constant rate, mean over (model, data): times fewer steps to the original's final error"
    by_arm = at_constant_rate(compared)
    for arm, found in sorted(by_arm.items()):
        pairs = {pair: one.ratios["step"] for pair, (_, one) in found.items()}
        ratios = list(pairs.values())
        known = [ratio for ratio in ratios if ratio.bound != "?"] or ratios
        mean = float(np.mean([math.log(ratio.value) for ratio in known]))
        unknown = [pair for pair, ratio in pairs.items() if ratio not in known]
        how = f"{arm}, {len(known)} pairs: {_named(set(pairs) - set(unknown))}"
        if unknown:
            stand = math.exp(float(np.mean([math.log(ratio.value) for ratio in ratios])))
            how += f"; not known of {_named(unknown)}, with which as they stand it is {stand:.2f}"
        yield Judged(what, CONSTANT_RATE, *_claimed(CONSTANT_RATE, math.exp(mean), ratios, how))
        yield Judged(f"{what}, lower end of the interval", CONSTANT_RATE, _known(math.exp(mean - _half(ratios))), arm)
    if not by_arm:
        yield Judged(what, CONSTANT_RATE, None)


def _named(pairs: Collection[tuple[str, str]]) -> str:
    return ", ".join(f"{model} on {data}" for model, data in sorted(pairs))


def _half(ratios: Sequence[Ratio]) -> float:
    """Return how far below the mean of independent log ratios the interval of that mean ends; NaN where one of them is open."""
    below = [math.log(ratio.value / ratio.ends[0]) for ratio in ratios]
    return math.sqrt(sum(one * one for one in below)) / len(below)


def _clock(compared: Compared) -> Iterator[Judged]:
    """Judge the worst arm of each hardware: whether a step in a rewired network takes about as long as in its original."""
    what = "Ratio on the clock over ratio in steps, wiring block, the worst arm"
    worst: dict[str, tuple[float, str]] = {}
    for group, one in at_end(compared):
        first = group.arms[one.arm][0].records[0]
        if first["wiring"] == "block" and first.get("params_budget") is None:
            hardware = str(first.get("hardware", "unknown hardware"))
            worst[hardware] = min(worst.get(hardware, (math.inf, "")), (one.clock, f"{group.model}, {one.arm}"))
    for hardware, (value, which) in sorted(worst.items()):
        yield Judged(what, CLOCK, value, f"{which}, {hardware}")
    if not worst:
        yield Judged(what, CLOCK, None)


def _densenet(compared: Compared) -> Iterator[Judged]:
    what = "DenseNet-40: points of test error by which the small-world net of 98K parameters is below a narrow DenseNet"
    found = False
    for group, _ in compared:
        whole = group.originals[0].options.get("epochs") == DENSENET_EPOCHS
        if whole and same(group.model, "densenet40") and {"small-world-98K", "narrow-97K"} <= group.arms.keys():
            ends = [[100 * run.last["test_error"] for run in group.arms[arm]] for arm in ("narrow-97K", "small-world-98K")]
            found = True
            yield Judged(what, 0.0, float(np.mean(ends[0]) - np.mean(ends[1])), group.name)
    if not found:
        yield Judged(what, 0.0, None)


def _claimed(least: float, value: float, ratios: Sequence[Ratio], how: str) -> tuple[float | None, str]:
    """Return a value and how it was found; None where it would meet the target only by what is not known.

    Not known is what runs say that never got there. Ratios that are not known at all have no part in the value.
    """
    if all(not math.isnan(ratio.at_least) for ratio in ratios):
        return value, how
    said = f"{how}; some runs of it never get there"
    high = value < least and any(ratio.bound != "?" for ratio in ratios)
    return (value, said) if high else (None, said)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
