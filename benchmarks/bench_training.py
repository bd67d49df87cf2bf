"""How fast are training steps of networks lowered (swnet.lower, training=True), and in what memory, beside eager and compiled ones?

    python -m benchmarks.bench_training                all cases; needs torchvision, lower-auto also `swcompile bench --calibrate`
    python -m benchmarks.bench_training densenet121 --forms eager compile-cat lower-triton
    python -m benchmarks.bench_training "#resnet18" --batch 8 --side 128 --layout first

A step is forward, loss, backward and SGD with momentum. All forms of a case lie side by side in one process and take turns, each
round in the other order; on a GPU each in a CUDA graph of the whole step, under autocast to bfloat16 with weights of float32. A
dense block alone has no loss: it is given a gradient, and its weights are of the type of its maps. A name with "#" in front is
rewired in tiles (p = 0.3), of which a quarter stays; its eager form multiplies by the zeros of its masks.

A row has the quartiles of the milliseconds, their ratio to eager, the bytes that a forward pass keeps for the backward pass (of
distinct memory, without the parameters), and on a GPU the most that a step takes beside what lies there before it. What is timed
is judged, too: set back to the start, one more step makes the losses, gradients and running statistics that are compared with
double precision. A form with more than twice the error of eager, and more than rounding may do, is wrong, whatever its speed; so
is one that moves running statistics other than once a step. Double precision takes four times the memory of bfloat16:
DenseNet-121 at a batch of 256 needs an H200 for it. Below each case is what was to be reached, and what was; each is kept in a
file of its own.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import swnet
from benchmarks import bench_networks
from benchmarks.bench_networks import BATCH, BLOCKS, COMPARED, COMPILED, LOWERED, USUAL, Arm, Target, fastest
from benchmarks.forms import FORCED_CAT, Call, Outcome, Reference, relative_error, release, side_by_side, tuned
from benchmarks.models import densenet, seeded
from benchmarks.record import Judged, compared, quartiles, write_timings
from benchmarks.vision import torchvision_models
from swcompile.bench import asked
from swcompile.lower.rates import slug


def tiled(model: nn.Module) -> nn.Module:
    """Return a network rewired in tiles, of which a quarter stays."""
    return swnet.transform(model, torch.zeros(1, 3, 128, 128), p=0.3, wiring="tile", density=0.25)


CASES: dict[str, Mapping[str, Arm]] = bench_networks.CASES | {
    "densenet40": {"original": Arm(densenet, (3, 32, 32))},
    "#resnet18": {"in tiles": Arm(lambda: tiled(torchvision_models().resnet18()), (3, 128, 128))},
}
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}
TARGETS = (
    Target("training DenseNet-121 against eager", "densenet121", ("original",), ("original",), ("eager",), 1.8),
    Target("training DenseNet-121 against torch.compile", "densenet121", ("original",), ("original",), COMPILED, 1.2),
    Target("training its dense blocks alone against torch.compile", "dense-blocks", BLOCKS, BLOCKS, COMPILED, 1.35),
    Target("training rewired ResNet-50 against the original compiled", "resnet50", ("rewired",), ("original",), COMPILED, 1 / 1.1),
    Target("training the same, 1x1 layers alone rewired", "resnet50", ("rewired, 1x1 only",), ("original",), COMPILED, 1.0),
)
MEMORY = 2.0
"""How many times the peak of memory of DenseNet-121, lowered in the form that is fastest, shall go into eager's."""
ROUNDED = {"loss": 1e-5, "gradients": 0.01, "statistics": 0.01}
"""The relative errors that are taken for rounding where twice eager's are less.

In float32 eager's gradients are 5e-6 off in DenseNet-40, and either form's some 1e-3 where an activation whose input is 0 but for
rounding goes the other way. Statistics that move twice a step, or not at all, are 0.5 off and more. In bfloat16 twice eager's are
mostly more.
"""


# --- a step ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What a step reads: images and their labels, or maps and the gradient of what is made of them."""

    images: Tensor  # (N, 3, H, W) or (N, C, H, W)
    target: Tensor  # (N,) or (N, K, H, W)
    autocast: torch.dtype | None = None
    """The type that autocast is on for."""

    def precision(self) -> torch.autocast:
        """Return the context that a model is called in."""
        return torch.autocast(self.images.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def backward(self, model: nn.Module) -> Tensor:
        """Run a model forward and backward; return the loss of each image (N,), or what was made of the maps, without its graph."""
        with self.precision():
            made = model(self.images)
            if made.dim() == 2:
                made = functional.cross_entropy(made, self.target, reduction="none")
        if made.dim() == 1:
            made.mean().backward()
        else:
            made.backward(self.target)
        return made.detach()

    def double(self) -> Batch:
        """Return the same in double precision."""
        images = self.images.detach().double().requires_grad_(self.images.requires_grad)
        return Batch(images, self.target.double() if self.target.is_floating_point() else self.target)


class Step:
    """A step of training a model on one batch, over and over; called, it returns what `Batch.backward` does.

    It can be set back to the state of the original that the model was made of. Behind it no gradient is left, so that what a step
    takes beside what lay there before has the gradients in it.
    """

    def __init__(self, model: nn.Module, batch: Batch, original: nn.Module) -> None:
        self.model, self.batch = model, batch
        self.own = getattr(model, "_orig_mod", model)  # compiled code goes by other names
        self.start = _state(original)  # where a model was compiled or lowered by calling it, its statistics have moved
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def __call__(self) -> Tensor:
        made = self.batch.backward(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.batch.images.grad = None
        return made

    def reset(self) -> None:
        """Set parameters, buffers and momentum back, in place, for a CUDA graph goes by where they lie."""
        with torch.no_grad():
            for name, value in _state(self.own).items():
                if not torch.equal(value, self.start[name]):  # a write to a mask would be a change of the model
                    value.copy_(self.start[name])
            for state in self.optimizer.state.values():
                state["momentum_buffer"].zero_()

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the first step behind `reset`: what the momentum then is."""
        named = ((name, self.optimizer.state.get(value)) for name, value in self.own.named_parameters())
        return {name: state["momentum_buffer"] for name, state in named if state}

    def bytes(self) -> int:
        """Return what lies there between steps: parameters, momentum, buffers and the batch."""
        momentum = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        values = [*_state(self.own).values(), *momentum, self.batch.images, self.batch.target]
        return sum(value.numel() * value.element_size() for value in values)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass; memory that several keep counts once, parameters do not."""
    storages: dict[int, int] = {}
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        made = model(images)
    assert made.requires_grad, "nothing is to be differentiated"
    return sum(storages.values())


# --- its forms ---------------------------------------------------------------------------------------------------------------


def _compiled(model: nn.Module, batch: Batch, **options: Any) -> nn.Module:
    return tuned(model, batch.backward, **options)


def _lowered(model: nn.Module, batch: Batch, backend: str) -> nn.Module:
    return swnet.lower(model, batch.images.detach(), backend=backend, training=True).train()


def _lowered_and_compiled(model: nn.Module, batch: Batch) -> nn.Module:
    made = _lowered(model, batch, bench_networks.kernels(batch.images.device))
    with batch.precision():
        made(batch.images)  # inside a compiler, what is for autocast must be there already
    return _compiled(made, batch)


FORMS: dict[str, Callable[[nn.Module, Batch], nn.Module]] = {
    "eager": lambda model, _: model,
    "compile": _compiled,
    "compile-cat": lambda model, batch: _compiled(model, batch, **FORCED_CAT),
    "lower-torch": lambda model, batch: _lowered(model, batch, "torch"),
    "lower-triton": lambda model, batch: _lowered(model, batch, "triton"),
    "lower-auto": lambda model, batch: _lowered(model, batch, "auto"),
    "lower-compile": _lowered_and_compiled,
}
"""What a step calls in each form. The compiled ones are tuned to the most, without CUDA graphs of their own."""


# --- what is right -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """What one step makes in double precision, and how far off a form may be."""

    gradients: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    references: Mapping[str, Reference]

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> Exact:
        """Take a step with copies of a model, in double precision and as it is."""
        wide, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
        made, rounded = batch.double().backward(wide), batch.backward(plain)
        batch.images.grad = None
        exact = cls(_gradients(wide), dict(wide.named_buffers()), {})
        true = exact.parts(made, exact.gradients, wide, torch.float64)
        found = exact.parts(rounded, _gradients(plain), plain)
        references = {kind: Reference.of(found[kind], true[kind]) for kind in found}
        allowed = {kind: max(one.allowed, ROUNDED[kind]) for kind, one in references.items()}
        return replace(exact, references={kind: replace(one, allowed=allowed[kind]) for kind, one in references.items()})

    def parts(
        self, made: Tensor, gradients: Mapping[str, Tensor], model: nn.Module, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """Return what is compared of a step: all parameters' gradients count alike, and so do all buffers."""
        found = {"loss": _some(made), "gradients": _alike(gradients, self.gradients, dtype)}
        if self.statistics:
            found["statistics"] = _alike(dict(model.named_buffers()), self.statistics, dtype)
        return found

    def errors(self, made: Tensor, step: Step) -> dict[str, float]:
        """Return the relative errors of a step that was taken from the start."""
        found = self.parts(made, step.gradients(), step.own)
        return {kind: relative_error(value, self.references[kind].exact) for kind, value in found.items()}


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _some(made: Tensor) -> Tensor:
    """Return the losses, or the maps of some images, spread over the batch."""
    if made.dim() == 1:
        return made
    return made[torch.linspace(0, len(made) - 1, min(len(made), COMPARED)).round().long().to(made.device)]


def _alike(values: Mapping[str, Tensor], exact: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return all values in one vector, each divided by the norm of the exact one, so that wide layers do not hide narrow ones."""
    norms = {name: float(value.double().norm()) for name, value in exact.items()}
    least = 1e-6 * max(norms.values())  # what is 0 but for rounding is not looked at closer than that
    parts = (values[name].double().flatten() / max(norm, least) for name, norm in norms.items())
    return torch.cat(list(parts)).to(dtype)


# --- a case ------------------------------------------------------------------------------------------------------------------


def batch_for(model: nn.Module, shape: Sequence[int], count: int, device: torch.device, dtype: torch.dtype, layout: str) -> Batch:
    """Draw a batch for a model on a device: images under autocast, or maps of its own type, which have a gradient, too."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, *shape, generator=draw).to(device).contiguous(memory_format=LAYOUTS[layout])
    if shape[0] == 3:
        labels = torch.randint(0, 10, (count,), generator=draw).to(device)
        return Batch(images, labels, None if dtype == torch.float32 else dtype)
    images = images.to(dtype)
    with torch.no_grad():
        made = copy.deepcopy(model)(images)
    return Batch(images.requires_grad_(), torch.randn(made.shape, generator=draw).to(made))


def examine(
    case: str,
    arms: Mapping[str, Arm],
    forms: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    count: int,
    rounds: int,
    begin: Callable[[tuple[str, str]], None] = lambda _: None,
    layout: str = "last",
) -> list[dict[str, Any]]:
    """Run all forms of all arms side by side, and return a row for each; "eager" is always among them."""
    forms = ("eager", *(form for form in forms if form != "eager"))
    builds: dict[tuple[str, str], Callable[[], Call]] = {}
    steps: dict[tuple[str, str], Step] = {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    exact: dict[str, Exact] = {}

    def build(key: tuple[str, str], model: nn.Module, batch: Batch) -> Call:
        step = Step(FORMS[key[1]](copy.deepcopy(model), batch), batch, model)
        with batch.precision():
            found[key] |= {"kept_bytes": kept_bytes(step.model, batch.images)}
        steps[key] = step
        return step

    def make(key: tuple[str, str], ready: Call) -> Tensor:
        step = steps[key]
        step.reset()
        made = ready()
        found[key] |= {"errors": exact[key[0]].errors(made, step), "held_bytes": step.bytes()}
        return made

    torch.compiler.reset()
    for label, arm in arms.items():
        weights = torch.float32 if arm.shape[0] == 3 else dtype
        model = bench_networks.settle(seeded(arm.build, 0)).train().to(device, weights, memory_format=LAYOUTS[layout])
        batch = batch_for(model, arm.shape, count, device, dtype, layout)
        exact[label] = Exact.of(model, batch)
        release(device)
        for form in forms:
            row: dict[str, Any] = {"name": f"{case}, {label}, {form}", "case": case, "arm": label, "form": form}
            row |= {"shape": list(arm.shape), "batch": count, "layout": f"channels {layout}", "rounds": rounds}
            row |= {"dtype": str(dtype).removeprefix("torch."), "weights": str(weights).removeprefix("torch.")}
            row |= {"baseline": "eager", "bytes": None, "flops": None}
            found[label, form] = row
            builds[label, form] = functools.partial(build, (label, form), model, batch)
    outcomes = side_by_side(builds, device, rounds, begin, make)
    for key, outcome in outcomes.items():
        found[key]["chosen"] = bench_networks.chosen(steps[key].model) if key in steps else None
        found[key] |= _measured(outcome, outcomes[key[0], "eager"], found[key].get("errors", {}), exact[key[0]].references)
    return list(found.values())


def _measured(outcome: Outcome, eager: Outcome, errors: Mapping[str, float], references: Mapping[str, Reference]) -> dict[str, Any]:
    """Return what a row says of an outcome; one whose result is wrong has failed."""
    measured: dict[str, Any] = {"failed": outcome.failed, "peak_memory": outcome.peak}
    measured["errors_allowed"] = {kind: reference.allowed for kind, reference in references.items()}
    if outcome.times is None:
        return measured
    measured["ms"] = quartiles(outcome.times)
    for kind, error in errors.items():
        if error > references[kind].allowed:
            measured["failed"] = f"its {kind} is wrong: an error of {error:.2g}, of at most {references[kind].allowed:.2g}"
    return measured if eager.times is None else measured | compared(eager.times, outcome.times)


# --- what was to be reached --------------------------------------------------------------------------------------------------


def judged(rows: Sequence[dict[str, Any]]) -> Iterator[Judged]:
    """Yield what was to be reached and what was: times, and the peak of memory."""
    yield from bench_networks.judged(rows, TARGETS)
    yield _memory(rows)


def _memory(rows: Sequence[dict[str, Any]]) -> Judged:
    """Judge the peak of memory of DenseNet-121: weights, momentum and batch, and what a step takes beside them."""
    what = "training DenseNet-121, eager's peak of memory in ours"
    of = {row["form"]: row for row in rows if (row["case"], row["arm"]) == ("densenet121", "original") and row.get("peak_memory")}
    best = fastest(rows, "densenet121", ("original",), LOWERED)
    if best is None or best[1] not in of or "eager" not in of:
        return Judged(what, MEMORY, None, "none was measured")
    ours, theirs = (of[form]["peak_memory"] + of[form]["held_bytes"] for form in (best[1], "eager"))
    return Judged(what, MEMORY, theirs / ours, f"{best[1]} {ours / 1e9:.2f} GB, eager {theirs / 1e9:.2f} GB")


def verdict(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each target of the cases that the rows are of."""
    yield from bench_networks.verdict(rows, TARGETS)
    if any(row["case"] == "densenet121" for row in rows):
        yield str(_memory(rows))


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of a case."""
    first = rows[0]
    table = Table(title=f"Steps of {first['case']}, a batch of {first['batch']} in {first['dtype']}", box=box.SIMPLE_HEAD)
    for heading in ("", "form", "ms", "of eager", "its quartiles", "kept MB", "of eager", "peak MB", "error", "allowed"):
        table.add_column(heading, justify="left" if heading in ("", "form") else "right")
    kept = {row["arm"]: row.get("kept_bytes") for row in rows if row["form"] == "eager"}
    for row in rows:
        if "ms" not in row:
            table.add_row(row["arm"], row["form"], "failed")
            continue
        ratios = ("", "")
        if "ratio" in row:
            ratios = f"{row['ratio']:.3f}", "{:.3f} to {:.3f}".format(*row["ratio_quartiles"][::2])
        keeps = f"{row['kept_bytes'] / 1e6:.1f}", f"{row['kept_bytes'] / (kept[row['arm']] or math.nan):.3f}"
        peak = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.0f}"
        errors = (f"{row[kind]['gradients']:.1e}" for kind in ("errors", "errors_allowed"))
        table.add_row(row["arm"], row["form"], f"{row['ms'][1]:.2f}", *ratios, *keeps, peak, *errors)
    return table


def remarks(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what is to be said of forms: why one failed, what swnet.lower chose."""
    for row in rows:
        if said := "; ".join(filter(None, (row["failed"], row["chosen"]))):
            yield f"{row['arm']}, {row['form']}: {said}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases; print each one's table and targets, and keep its rows."""
    parser = argparse.ArgumentParser(description="Time training steps of networks lowered, eager and compiled, side by side.")
    parser.add_argument("cases", nargs="*", default=[*CASES], help=f"of {', '.join(CASES)}")
    parser.add_argument("--forms", nargs="+", choices=[*FORMS], help="eager always; default: on a CPU those that compile nothing")
    parser.add_argument("--rounds", type=int, help="steps of each form (default: 50 on a GPU, 15 on a CPU)")
    parser.add_argument("--batch", type=int, help=f"images (default: {BATCH} on a GPU, 4 on a CPU)")
    parser.add_argument("--side", type=int, help="of images or maps (default: what the network is for)")
    parser.add_argument("--layout", choices=[*LAYOUTS], default="last", help="where maps have their channels (default: last)")
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    device, dtype, _ = asked(None, None, options.batch)
    on_gpu = device.type == "cuda"
    count, rounds = options.batch or (BATCH if on_gpu else 4), options.rounds or (50 if on_gpu else 15)
    torch.backends.cudnn.benchmark = True
    console = Console()
    for case in options.cases:
        arms = {label: _of_side(arm, options.side) for label, arm in CASES[case].items()}
        forms, telling = options.forms or USUAL[device.type], bench_networks.telling(console)
        rows = examine(case, arms, forms, device, dtype, count, rounds, telling, options.layout)
        console.print(show(rows))
        told = verdict(rows) if on_gpu and count == BATCH else ["The targets are for an H200 and a batch of 256."]
        for line in (*remarks(rows), *told):
            console.print(line, highlight=False)
        if not options.no_record:
            console.print(f"Kept in {write_timings(f'bench_training_{slug(case)}', rows)}", highlight=False)
        release(device)


def _of_side(arm: Arm, side: int | None) -> Arm:
    return arm if side is None else replace(arm, shape=(arm.shape[0], side, side))


if __name__ == "__main__":
    main()
