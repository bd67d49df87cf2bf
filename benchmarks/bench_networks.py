"""How fast are whole networks lowered (swnet.lower), beside eager torch and torch.compile as tuned as it gets? Inference.

    python -m benchmarks.bench_networks            all cases; needs torchvision, lower-auto also `swcompile bench --calibrate`
    python -m benchmarks.bench_networks densenet121 --forms eager compile-cat lower-triton

All forms of a case lie side by side in one process and take turns, each round in the other order; on a GPU in bfloat16, channels
last, and every one in a CUDA graph. A row has the quartiles of the milliseconds, their ratio to eager, the most memory that a call
takes beside weights and input, and the error against double precision: a form with more than twice that of eager is wrong, whatever
its speed. A form that fails says why. Below each case is what was to be reached (a batch of 256 on an H200), and what was.

max-autotune tries thousands of kernels; it keeps what it chose in its cache folder, so that a run that was cut off gets further the
next time. Each case is kept in a file of its own.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import swnet
from benchmarks.forms import FORCED_CAT, Call, Outcome, Reference, relative_error, release, side_by_side, tuned
from benchmarks.models import seeded
from benchmarks.record import Judged, compared, quartiles, write_timings
from benchmarks.vision import torchvision_models
from swcompile.bench import asked

P, BLOCK = 0.3, 64
IMAGE = (3, 224, 224)
COMPARED = 8
"""How many images of a batch, spread over it, are compared with double precision."""
BATCH = 256
"""What the targets are for."""


@dataclass(frozen=True)
class Arm:
    """A network as it is built, and the shape of what it reads."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE


def dense_block(number: int) -> nn.Module:
    """Return a dense block of DenseNet-121."""
    return getattr(torchvision_models().densenet121().features, f"denseblock{number}")  # type: ignore[no-any-return]  # torch's and torchvision's are untyped


def rewired(only_1x1: bool = False) -> nn.Module:
    """Return ResNet-50 rewired in blocks of 64 channels: all layers that it can be in, or those of 1x1 among them."""
    model = torchvision_models().resnet50()
    wider = (name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1))
    return swnet.transform(model, torch.zeros(1, *IMAGE), p=P, block=BLOCK, leaf_modules=tuple(wider) if only_1x1 else ())


CASES: dict[str, Mapping[str, Arm]] = {
    "densenet121": {"original": Arm(lambda: torchvision_models().densenet121())},
    "dense-blocks": {
        "block 1": Arm(lambda: dense_block(1), (64, 56, 56)),
        "block 2": Arm(lambda: dense_block(2), (128, 28, 28)),
        "block 3": Arm(lambda: dense_block(3), (256, 14, 14)),
        "block 4": Arm(lambda: dense_block(4), (512, 7, 7)),
    },
    "resnet50": {
        "original": Arm(lambda: torchvision_models().resnet50()),
        "rewired": Arm(rewired),
        "rewired, 1x1 only": Arm(lambda: rewired(only_1x1=True)),
    },
}


def _compiled(model: nn.Module, images: Tensor, **options: Any) -> nn.Module:
    return tuned(model, lambda net: net(images), freezing=True, **options)


def kernels(device: torch.device) -> str:
    """Return the backend that lowers for a device."""
    return "triton" if device.type == "cuda" else "torch"


FORMS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "eager": lambda model, _: model,
    "compile": _compiled,
    "compile-cat": lambda model, images: _compiled(model, images, **FORCED_CAT),
    "lower-torch": lambda model, images: swnet.lower(model, images, backend="torch"),
    "lower-triton": lambda model, images: swnet.lower(model, images, backend="triton"),
    "lower-auto": lambda model, images: swnet.lower(model, images, backend="auto"),
    "lower-compile": lambda model, images: _compiled(swnet.lower(model, images, backend=kernels(images.device)), images),
}
"""What runs a model in each form. The compiled ones are tuned to the most, frozen, and without CUDA graphs of their own."""
COMPILED = ("compile", "compile-cat")
LOWERED = ("lower-torch", "lower-triton", "lower-auto", "lower-compile")
USUAL = {
    "cuda": ("eager", "compile", "compile-cat", "lower-triton", "lower-auto", "lower-compile"),
    "cpu": ("eager", "lower-torch", "lower-auto"),
}


@dataclass(frozen=True)
class Target:
    """How many times as fast as the fastest of some forms of arms the fastest lowered form of others shall be, at least.

    Of several arms the times are added up.
    """

    what: str
    case: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    forms: tuple[str, ...]
    least: float


BLOCKS = tuple(CASES["dense-blocks"])
TARGETS = (
    Target("DenseNet-121 against eager", "densenet121", ("original",), ("original",), ("eager",), 2.3),
    Target("DenseNet-121 against torch.compile", "densenet121", ("original",), ("original",), COMPILED, 1.35),
    Target("its dense blocks alone against torch.compile", "dense-blocks", BLOCKS, BLOCKS, COMPILED, 1.5),
    Target("rewired ResNet-50 against the original's torch.compile", "resnet50", ("rewired",), ("original",), COMPILED, 1 / 1.1),
    Target("the same, 1x1 layers alone rewired", "resnet50", ("rewired, 1x1 only",), ("original",), COMPILED, 1.0),
)


def settle(model: nn.Module) -> nn.Module:
    """Give norms statistics and weights as training leaves them: by those of a new one, a form without the norm would be right."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.running_mean, module.bias):
                    value.normal_(0, 0.2, generator=draw)
                for value in (module.running_var, module.weight):
                    value.uniform_(0.5, 1.5, generator=draw)
    return model.eval()


def examine(
    case: str,
    arms: Mapping[str, Arm],
    forms: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    rounds: int,
    begin: Callable[[tuple[str, str]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Run all forms of all arms side by side, and return a row for each; "eager" is always among them."""
    forms = ("eager", *(form for form in forms if form != "eager"))
    modules: dict[tuple[str, str], nn.Module] = {}
    builds: dict[tuple[str, str], Callable[[], Call]] = {}
    given: dict[str, tuple[tuple[int, ...], Tensor, Reference, int]] = {}

    def build(key: tuple[str, str], model: nn.Module, images: Tensor) -> Call:
        module = modules[key] = FORMS[key[1]](model, images)
        return lambda: module(images)

    torch.compiler.reset()
    with torch.no_grad():
        for label, arm in arms.items():
            model = settle(seeded(arm.build, 0)).to(device, dtype, memory_format=torch.channels_last)
            drawn = torch.randn(batch, *arm.shape, generator=torch.Generator().manual_seed(0))
            images = drawn.to(device, dtype).contiguous(memory_format=torch.channels_last)
            given[label] = (arm.shape, *_reference(model, images))
            builds |= {(label, form): functools.partial(build, (label, form), model, images) for form in forms}
        outcomes = side_by_side(builds, device, rounds, begin)
    rows = []
    for (label, form), outcome in outcomes.items():
        shape, places, reference, flops = given[label]
        row: dict[str, Any] = {"name": f"{case}, {label}, {form}", "case": case, "arm": label, "form": form}
        row |= {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "batch": batch, "rounds": rounds}
        row |= {"baseline": "eager", "bytes": None, "flops": flops, "chosen": chosen(modules.get((label, form)))}
        rows.append(row | _measured(outcome, outcomes[label, "eager"], places, reference))
    return rows


def _reference(model: nn.Module, images: Tensor) -> tuple[Tensor, Reference, int]:
    """Return which images are compared, what they give, and the operations of the whole batch."""
    places = torch.linspace(0, len(images) - 1, min(len(images), COMPARED)).round().long().to(images.device)
    some = images[places].contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counted:
        plain = model(some)
    exact = copy.deepcopy(model).double()(some.double())
    return places, Reference.of(plain, exact), counted.get_total_flops() * len(images) // len(some)


def chosen(module: nn.Module | None) -> str | None:
    """Say which forms swnet.lower chose, where the module is lowered, compiled behind that or not."""
    inner = getattr(module, "_orig_mod", module)
    choices = swnet.ledger(inner).lowered if hasattr(inner, "swcompile") else ()
    return str(choices[-1]) if choices else None


def _measured(outcome: Outcome, eager: Outcome, places: Tensor, reference: Reference) -> dict[str, Any]:
    """Return what a row says of an outcome; a result that is wrong has failed."""
    found: dict[str, Any] = {"failed": outcome.failed, "peak_memory": outcome.peak}
    if outcome.times is None or outcome.made is None:
        return found
    error = relative_error(outcome.made[places], reference.exact)
    found |= {"error": error, "error_allowed": reference.allowed, "ms": quartiles(outcome.times)}
    if error > reference.allowed:
        found["failed"] = f"its result is wrong: an error of {error:.2g}, of at most {reference.allowed:.2g}"
    return found if eager.times is None else found | compared(eager.times, outcome.times)


def fastest(rows: Sequence[dict[str, Any]], case: str, arms: Sequence[str], forms: Sequence[str]) -> tuple[float, str] | None:
    """Return the least median milliseconds of forms that ran right, summed over the arms, and which; None where an arm has none."""
    best: list[tuple[float, str]] = []
    for arm in arms:
        found = [
            (row["ms"][1], row["form"])
            for row in rows
            if (row["case"], row["arm"]) == (case, arm) and row["form"] in forms and not row["failed"]
        ]
        if not found:
            return None
        best.append(min(found))
    return sum(time for time, _ in best), ", ".join(dict.fromkeys(form for _, form in best))


def judged(rows: Sequence[dict[str, Any]], targets: Sequence[Target] = TARGETS) -> Iterator[Judged]:
    """Yield for each target how many times as fast the rows have it."""
    for target in targets:
        ours = fastest(rows, target.case, target.ours, LOWERED)
        theirs = fastest(rows, target.case, target.theirs, target.forms)
        what = f"{target.what}, times as fast"
        if ours is None or theirs is None:
            lacks = LOWERED if ours is None else target.forms
            yield Judged(what, target.least, None, f"none of {', '.join(lacks)} ran right")
        else:
            said = f"{ours[1]} {ours[0]:.2f} ms, {theirs[1]} {theirs[0]:.2f} ms"
            yield Judged(what, target.least, theirs[0] / ours[0], said)


def verdict(rows: Sequence[dict[str, Any]], targets: Sequence[Target] = TARGETS) -> Iterator[str]:
    """Yield a line for each target of the cases that the rows are of."""
    cases = {row["case"] for row in rows}
    yield from map(str, judged(rows, [target for target in targets if target.case in cases]))


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of a case."""
    table = Table(title=f"{rows[0]['case']}, a batch of {rows[0]['batch']} in {rows[0]['dtype']}", box=box.SIMPLE_HEAD)
    for heading in ("", "form", "ms", "its quartiles", "of eager", "its quartiles", "peak MB", "error", "allowed", "remarks"):
        table.add_column(heading, justify="left" if heading in ("", "form", "remarks") else "right")
    for row in rows:
        remarks = "; ".join(filter(None, (row["failed"], row["chosen"])))
        if "ms" not in row:
            table.add_row(row["arm"], row["form"], *("" for _ in range(7)), remarks)
            continue
        low, middle, high = row["ms"]
        ratios = ("", "")
        if "ratio" in row:
            ratios = f"{row['ratio']:.3f}", "{:.3f} to {:.3f}".format(*row["ratio_quartiles"][::2])
        peak = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.0f}"
        errors = (f"{row[kind]:.1e}" for kind in ("error", "error_allowed"))
        table.add_row(row["arm"], row["form"], f"{middle:.3f}", f"{low:.3f} to {high:.3f}", *ratios, peak, *errors, remarks)
    return table


def telling(console: Console) -> Callable[[tuple[str, str]], None]:
    """Return what says which form is built: on a GPU that may take minutes."""
    return lambda key: console.print(f"building {' '.join(key)}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases; print each one's table and targets, and keep its rows."""
    parser = argparse.ArgumentParser(description="Time whole networks lowered, eager and compiled, side by side.")
    parser.add_argument("cases", nargs="*", default=[*CASES], help=f"of {', '.join(CASES)}")
    parser.add_argument("--forms", nargs="+", choices=[*FORMS], help="eager always; default: on a CPU those that compile nothing")
    parser.add_argument("--rounds", type=int, help="inferences of each form (default: 50 on a GPU, 5 on a CPU)")
    parser.add_argument("--batch", type=int, help=f"images (default: {BATCH} on a GPU, 8 on a CPU)")
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    device, dtype, batch = asked(None, None, options.batch)
    torch.backends.cudnn.benchmark = True
    console = Console()
    rounds = options.rounds or (50 if device.type == "cuda" else 5)
    for case in options.cases:
        rows = examine(case, CASES[case], options.forms or USUAL[device.type], device, dtype, batch, rounds, telling(console))
        console.print(show(rows))
        for line in (
            verdict(rows) if (device.type, batch) == ("cuda", BATCH) else ["The targets are for an H200 and a batch of 256."]
        ):
            console.print(line, highlight=False)
        if not options.no_record:
            console.print(f"Kept in {write_timings(f'bench_networks_{case}', rows)}", highlight=False)
        release(device)


if __name__ == "__main__":
    main()
