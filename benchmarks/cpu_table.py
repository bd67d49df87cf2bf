"""Write the README's table of what CPUs measured, from the results that lie here, each row with the program, commit and machine.

`python -m benchmarks.readme` puts it into the README.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.record import RESULTS

Row = Mapping[str, Any]


class Question(NamedTuple):
    """What was asked, the program that answers, the results that it wrote (a pattern), and what to say of their rows."""

    what: str
    program: str
    file: str
    answer: Callable[[Sequence[Row]], str]


def table(results: Path = RESULTS) -> str:
    """Return the table in Markdown: a row for each question and each machine that was asked."""
    lines = ["| question | answer | by | on, at |", "|---|---|---|---|"]
    for question in QUESTIONS:
        for file in sorted(results.glob(question.file)):
            found = json.loads(file.read_text(encoding="utf-8"))
            where = f"{found['hardware']}, torch {found['versions']['torch']}; `{found['commit'][:8]}`, {found['date']}"
            lines.append(f"| {question.what} | {question.answer(found['rows'])} | `{question.program}` | {where} |")
    return "\n".join(lines) + "\n"


def _ratios(rows: Iterable[Row], names: Sequence[str]) -> Iterator[str]:
    """Yield the ratio of each of these rows, as a share of the original's time."""
    found = {row["name"]: row for row in rows if "ratio" in row}
    yield from (_share(found[name]["ratio"]) for name in names)


def _share(ratio: float) -> str:
    return f"{ratio:.2f}".removeprefix("0")


def _step(rows: Sequence[Row]) -> str:
    first, last = _ratios(rows, ("step NCHW", "step channels_last"))
    return f"**{first}** times the original's; with channels last {last}"


def _transform(rows: Sequence[Row]) -> str:
    took = {(row["name"], row["layers"], row["p"]): row["seconds"] for row in rows}
    return (
        f"ResNet-50 {took['resnet50', 54, 0.3]:.1f} s at p = 0.3, {took['resnet50', 54, 'auto']:.1f} s at p = auto; a chain of "
        f"10,000 convolutions {took['chain', 10_000, 0.3]:.0f} s, with shortcuts {took['residual chain', 10_000, 0.3]:.0f} s"
    )


def _zoo(rows: Sequence[Row]) -> str:
    counts = Counter(row["outcome"] for row in rows)
    return f"**{counts['passed']}** passed, {counts['refused']} refused, {counts['failed']} failed"


def _zoo_pruned(rows: Sequence[Row]) -> str:
    worst = max(float(row["verified"].split(" to ")[1].split()[0]) for row in rows if row["outcome"] == "passed")
    return f"{_zoo(rows)}; equal to {worst:.1e} or better"


def _scores(rows: Sequence[Row]) -> str:
    original = _right(rows[0]["original"]["error"])
    parts = [
        f"{row['name']} {', '.join(_right(row[f'error_{when}']) for when in ('pruned', 'calibrated', 'tuned'))}"
        for row in sorted(rows, key=lambda row: float(row["error_tuned"]))
    ]
    return f"before {original}; " + "; ".join(parts)


def _right(error: float) -> str:
    return f"{100 * (1 - error):.1f}"


def _prune(rows: Sequence[Row]) -> str:
    said = []
    for budget in ("macs / 4", "macs / 2", "params / 4", "params / 2"):
        found = sorted((row["ratio"], row["network"]) for row in rows if row["name"].endswith(budget) and "ratio" in row)
        refused = sum(row["name"].endswith(budget) and "refused" in row for row in rows)
        text = ", ".join(f"{network} {_share(ratio)}" for ratio, network in found) + (f" ({refused} refused)" if refused else "")
        said.append(f"{budget}: {text}")
    return "; ".join(said)


def _lower(rows: Sequence[Row]) -> str:
    said: dict[str, list[str]] = {}
    for row in rows:
        if "ratio" in row:
            case = row["name"].removeprefix("#") + (" in tiles" if row["name"].startswith("#") else "")
            said.setdefault(case, []).append(f"{_share(row['ratio'])} at batch {row['batch']}")
    left = sum("ratio" not in row for row in rows)
    return "; ".join(f"{name} {', '.join(ratios)}" for name, ratios in said.items()) + f"; {left} of {len(rows)} cases left alone"


def _training(rows: Sequence[Row]) -> str:
    eager, lowered = (next(row for row in rows if row["form"] == form) for form in ("eager", "lower-torch"))
    kept = lowered["kept_bytes"] / eager["kept_bytes"]
    return f"**{_share(lowered['ratio'])}** of the time, {_share(kept)} of the bytes kept for the backward pass"


def _metrics(rows: Sequence[Row]) -> str:
    ours = [row["seconds"] for row in rows if row["name"].startswith(("C of VGG16", "L of VGG16"))]
    faster = {row["figure"]: row["ratio"] for row in rows if row.get("baseline") == "igraph" and row["network"] == "VGG16"}
    return f"{min(ours):.1f} to {max(ours):.1f} s; C {faster['C']:.0f} and L {faster['L']:.0f} times as fast as igraph"


def _exports(rows: Sequence[Row]) -> str:
    worst: dict[str, float] = {}
    for row in rows:
        worst[row["to"]] = max(worst.get(row["to"], 0.0), float(row["difference"]))
    return "; ".join(f"{form} {difference:.1e}" for form, difference in worst.items()) + f" ({len(rows)} exports)"


def _reports(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row['name']} {row['bytes'] / 1e6:.2f} MB, open in {row['open_seconds']:.2f} s" for row in rows)


QUESTIONS = (
    Question(
        "Training step of ResNet-18 on 32x32 images, batch 32, p = 0.3 (the target is 1.10)",
        "python -m benchmarks.bench_step", "*/bench_step.json", _step,
    ),
    Question("Time that `swnet.transform` takes", "python -m benchmarks.bench_transform", "*/bench_transform.json", _transform),
    Question(
        "Torchvision's models: equal to the bit at p = 0, sound at p = 0.3", "python -m benchmarks.zoo", "zoo.json", _zoo,
    ),
    Question(
        "The same, pruned to 40% of their blocks: removed equals masked in float64",
        "python -m benchmarks.zoo --prune", "zoo_pruned.json", _zoo_pruned,
    ),
    Question(
        "ResNet-20 trained 8 epochs on CIFAR-10 and cut to half its multiplications, one seed: percent right as cut, calibrated, "
        "and an epoch later, by each score", "python -m benchmarks.bench_scores", "amd-*/bench_scores.json", _scores,
    ),
    Question(
        "Inference at 224x224, batch 4, of networks cut to half and a quarter, in the original's time",
        "python -m benchmarks.bench_prune", "*/bench_prune.json", _prune,
    ),
    Question(
        "The same by `swnet.lower`'s own choice, a quarter of the tiles left, in the time of the network that it was",
        "python -m benchmarks.bench_lower", "amd-*/bench_lower.json", _lower,
    ),
    Question(
        "Training step lowered in plain torch: ResNet-18 in tiles, a quarter left, against itself masked; batch 8 at 128x128",
        'python -m benchmarks.bench_training "#resnet18" --batch 8 --side 128', "*/bench_training_resnet18.json", _training,
    ),
    Question(
        "The same: DenseNet-40 against itself, batch 32",
        "python -m benchmarks.bench_training densenet40 --batch 32", "*/bench_training_densenet40.json", _training,
    ),
    Question(
        "Clustering and path lengths of VGG16's graph (1.6 million edges), exact, one core",
        "python -m benchmarks.bench_metrics", "*/bench_metrics.json", _metrics,
    ),
    Question(
        "Ten architectures exported: largest difference from the module, as a part of its largest output, in float32",
        "python -m benchmarks.exports", "*/exports.json", _exports,
    ),
    Question(
        "Size of `report.html`, and until a browser shows it",
        "python -m benchmarks.bench_report", "*/bench_report.json", _reports,
    ),
)  # fmt: skip
"""bench_scores and bench_lower were run by earlier versions on another machine, too: the README has the newest."""
