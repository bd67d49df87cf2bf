"""Does it hold on the models that people have? Every model of a zoo is transformed, compared with the original and trained.

    python -m benchmarks.zoo                      all of torchvision's; needs torchvision and hours
    python -m benchmarks.zoo resnet swin_t        those whose names contain one of these
    python -m benchmarks.zoo --zoo timm           the smallest of each of timm's families; needs timm, too
    python -m benchmarks.zoo --zoo timm --all     all of timm's: days
    python -m benchmarks.zoo --prune              prune them, verified against masked models: a quarter of an hour

A model passes when at p = 0 outputs, gradients and buffers equal the original's to the bit, in train mode (same random state,
dropout, stochastic depth and auxiliary heads on) and in eval mode, there also at other sizes; and at p = 0.3 outputs are finite
and of the same structure, every parameter that had a gradient has one, the number of parameters and the keys of the state dict
are the original's, and the model runs at another batch size, and at another image size wherever plain tracing sufficed. Of
detectors the backbone is examined, since their own forward decides by values. A model may be refused, with a reason; it may not
fail.

With --prune a model passes when at density 0.4 and p = 0.2, the head included, outputs, gradients and buffers of what is left equal
those of a model of which the same channels are masked, to 1e-10 in float64 (verify=True).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import importlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import swnet
from benchmarks.record import RESULTS, commit, provenance, write_whole
from benchmarks.vision import torchvision_models
from swcompile.trace import trace_structure

FAMILIES = ("classification", "segmentation", "video", "quantization", "optical_flow", "detection")
SIDES = (64, 128, 224, 299)
VOLUMES = ((8, 64, 64), (16, 64, 64), (16, 112, 112), (16, 224, 224))
P = 0.3
PRUNED_P, DENSITY = 0.2, 0.4
console = Console()


@dataclass(frozen=True)
class Case:
    """A model of the zoo: how to build it, how many inputs it takes, and which part of it is examined."""

    name: str
    family: str
    build: Callable[..., nn.Module]
    inputs: int = 1
    part: str = ""
    side: int = 0
    """The image size that it was made for, tried after the usual ones."""


@dataclass
class Outcome:
    """What came of a model.

    `outcome` is "passed", "refused" or "failed", the last two with a reason. `elsewhere` are the other sizes ("batch", "image") at
    which it ran, too: one is missing where the original itself does not take it. `moved` is the share of its links that moved,
    `left` that of its parameters that pruning left, which `verified` speaks of.
    """

    name: str
    family: str
    outcome: str = "failed"
    reason: str = ""
    shape: tuple[int, ...] = ()
    step: str = ""
    islands: int = 0
    fixed: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    layers: int = 0
    moved: float = 0.0
    params: int = 0
    left: float = 1.0
    verified: str = ""
    trace_s: float = 0.0
    seconds: float = 0.0


def cases() -> Iterator[Case]:
    """Yield every model that torchvision lists."""
    models = torchvision_models()
    homes = {"classification": models, "quantization": models.quantization}
    for family in FAMILIES:
        home = homes.get(family) or getattr(models, family)
        for name in models.list_models(module=home):
            build = models.get_model_builder(name)
            if family == "detection":
                yield Case(name, family, partial(build, weights=None, weights_backbone=None), part="backbone")
            elif family == "segmentation":
                heads = {} if name.startswith("lraspp") else {"aux_loss": True}  # lraspp has no auxiliary head
                yield Case(name, family, partial(build, weights=None, weights_backbone=None, **heads))
            elif family == "quantization":
                yield Case(name, family, partial(build, weights=None, quantize=False))
            elif name in ("googlenet", "inception_v3"):
                yield Case(name, family, partial(build, weights=None, init_weights=False))
            else:
                yield Case(name, family, partial(build, weights=None), 2 if family == "optical_flow" else 1)


def timm_cases(families: Sequence[str], every: bool) -> Iterator[Case]:
    """Yield the smallest model of each of timm's modules, or all models: without weights, with the input size that each names."""
    torchvision_models()  # timm imports it
    timm = importlib.import_module("timm")
    for family in families or timm.list_modules():
        names = [name for name in timm.list_models(module=family) if not name.startswith("test_")]
        for name in names if every else [min(names, key=lambda name: (_size_of(timm, name), name))] if names else []:
            config = timm.get_pretrained_cfg(name)
            build = partial(timm.create_model, name, pretrained=False)
            yield Case(name, family, build, side=config.input_size[-1] if config is not None else 0)


def _size_of(timm: Any, name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, pretrained=False).parameters())


def examine(case: Case, prune: bool = False) -> Outcome:
    """Put one model through everything; what it raises becomes a failure, with the last line of the traceback."""
    outcome, start = Outcome(case.name, case.family), time.perf_counter()
    try:
        _examine(case, outcome, prune)
        outcome.outcome = "passed"
    except swnet.SwnetError as error:
        outcome.outcome, outcome.reason = "refused", str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome.reason = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def _examine(case: Case, outcome: Outcome, prune: bool) -> None:
    torch.manual_seed(0)
    model = case.build()
    model = model.get_submodule(case.part) if case.part else model
    size = _size(model, case.inputs, case.side)
    inputs = _inputs(size, case.inputs)
    start = time.process_time()
    traced = trace_structure(model, inputs)
    outcome.trace_s = round(time.process_time() - start, 2)
    outcome.shape, outcome.layers, outcome.step = size, len(traced.graph.layers), traced.steps.step
    outcome.islands, outcome.fixed = len(traced.steps.islands), traced.steps.fixed
    outcome.params = sum(parameter.numel() for parameter in model.parameters())
    if prune:
        _removed_is_masked(model, inputs, outcome)
        return
    _same_at_p_0(model, inputs, outcome)
    gc.collect()
    _sound_when_rewired(model, inputs, outcome)


def _size(model: nn.Module, inputs: int, side: int) -> tuple[int, ...]:
    """Return the smallest of the usual input sizes that the model takes, by a trace without weights."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)
    volumes = isinstance(first, nn.Conv3d)
    problem: Exception | None = None
    sides = dict.fromkeys((*(SIDES if inputs == 1 else SIDES[1:]), *([side] if side else [])))
    for size in VOLUMES if volumes else ((side, side) for side in sides):
        shape = (2, 3, *size)
        try:
            trace_structure(model, _inputs(shape, inputs))
        except swnet.SwnetError as error:
            problem = error
        else:
            return shape
    raise problem if problem is not None else AssertionError


def _inputs(shape: tuple[int, ...], count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(shape, generator=generator) for _ in range(count))


def _run(model: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> tuple[Any, dict[str, Tensor | None]]:
    """Return the outputs, and in train mode the gradients of their sum."""
    model.train(training)
    torch.manual_seed(2)
    model.zero_grad()
    with torch.set_grad_enabled(training):
        made = model(*inputs)
        if training:
            floats = [value for value in _tensors(made) if value.requires_grad]
            torch.stack([value.float().square().mean() for value in floats]).sum().backward()
    return made, {name: parameter.grad for name, parameter in model.named_parameters()}


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _same_at_p_0(model: nn.Module, inputs: tuple[Tensor, ...], outcome: Outcome) -> None:
    rewired = swnet.transform(model, inputs, p=0.0)
    state = copy.deepcopy(model.state_dict())  # with its metadata: some models look at the version of what they load
    for training in (True, False):
        made = [_run(one, inputs, training) for one in (model, rewired)]
        (ours, grads), (theirs, others) = made
        _equal(f"outputs, training={training}", _tensors(ours), _tensors(theirs))
        _equal(f"gradients, training={training}", list(grads.values()), list(others.values()))
        _equal("buffers", list(model.state_dict().values()), list(rewired.state_dict().values()))
    for what, wanted, made in _elsewhere(model, rewired, inputs, outcome):
        _equal(f"outputs at another {what} size", wanted, made)
    model.load_state_dict(state)
    model.zero_grad()


def _equal(what: str, ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> None:
    assert len(ours) == len(theirs), f"{what} at p = 0: {len(ours)} and {len(theirs)}"
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        same = one is other is None or (one is not None and other is not None and torch.equal(one, other))
        nan = one is not None and other is not None and one.isnan().any() and other.isnan().equal(one.isnan())
        assert same or nan, f"{what} at p = 0 differ in number {place}"


def _sound_when_rewired(model: nn.Module, inputs: tuple[Tensor, ...], outcome: Outcome) -> None:
    rewired = swnet.transform(model, inputs, p=P)
    assert list(rewired.state_dict()) == list(model.state_dict()), "other keys in the state dict"
    count = sum(parameter.numel() for parameter in rewired.parameters())
    assert count == outcome.params == swnet.ledger(rewired).after.params, "another number of parameters"
    for training in (True, False):
        wanted, grads = _run(model, inputs, training)
        made, others = _run(rewired, inputs, training)
        assert pytree.tree_structure(made) == pytree.tree_structure(wanted), "outputs of another structure"
        finite = all(value.isfinite().all() for value in _tensors(wanted))
        assert not finite or all(value.isfinite().all() for value in _tensors(made)), "outputs that are not finite"
        lost = [name for name, grad in grads.items() if grad is not None and others[name] is None]
        assert not lost, f"no gradient any more: {', '.join(lost[:3])}"
    ran = []
    for what, wanted, made in _elsewhere(model, rewired, inputs, outcome):
        assert [value.shape for value in made] == [value.shape for value in wanted], f"other shapes at another {what} size"
        finite = all(value.isfinite().all() for value in wanted)
        assert not finite or all(value.isfinite().all() for value in made), f"outputs that are not finite at another {what} size"
        ran.append(what)
    outcome.elsewhere = tuple(ran)
    ledger = swnet.ledger(rewired)
    outcome.moved = round(ledger.links_moved / max(ledger.before.links, 1), 4)


def _removed_is_masked(model: nn.Module, inputs: tuple[Tensor, ...], outcome: Outcome) -> None:
    ledger = swnet.ledger(swnet.transform(model, inputs, p=PRUNED_P, density=DENSITY, head=True, verify=True))
    outcome.left = round(ledger.after.params / ledger.before.params, 4)
    outcome.verified = str(ledger.certificate)


def _elsewhere(
    model: nn.Module, rewired: nn.Module, inputs: tuple[Tensor, ...], outcome: Outcome
) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Yield the outputs of both at another batch size, and at another image size where plain tracing sufficed.

    A size that the original does not take is left out; that the result does not take it is an error.
    """
    batch, *rest = inputs[0].shape
    shapes = {"batch": (batch + 1, *rest)}
    if outcome.step == "plain":
        shapes["image"] = (batch, *rest[:-2], *(side + 32 for side in rest[-2:]))
    for what, shape in shapes.items():
        others = _inputs(shape, len(inputs))
        try:
            wanted, _ = _run(model, others, False)
        except Exception:  # whatever a model raises at a size that it was not made for
            continue
        yield what, _tensors(wanted), _tensors(_run(rewired, others, False)[0])


def table(outcomes: Sequence[Outcome], zoo: str) -> Table:
    """Return one row a model."""
    made = Table(title=f"{zoo}'s models", box=box.SIMPLE_HEAD)
    for heading in ("model", "outcome", "tracing", "layers", "moved", "left", "trace CPU s", "reason"):
        made.add_column(heading)
    for one in outcomes:
        tracing = one.step + (f", {one.islands} islands" if one.islands else "") + "".join(f", fixed {what}" for what in one.fixed)
        reason = one.reason.splitlines()[0][:60] if one.reason else ""
        made.add_row(
            one.name, one.outcome, tracing, str(one.layers), f"{one.moved:.2f}", f"{one.left:.2f}", f"{one.trace_s:.1f}", reason
        )
    return made


def recorded(file: Path) -> list[Outcome]:
    """Return the outcomes in a file, if they are this commit's and the commit is clean."""
    if not file.is_file():
        return []
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept["commit"] != commit() or kept["commit"].endswith("-dirty"):
        return []
    return [
        Outcome(**row | {"shape": tuple(row["shape"]), "fixed": tuple(row["fixed"]), "elsewhere": tuple(row["elsewhere"])})
        for row in kept["rows"]
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine the models, print the table, keep the outcomes. Those of an earlier run of the same commit are not run again."""
    parser = argparse.ArgumentParser(description="Transform every model of a zoo and compare it with the original.")
    parser.add_argument("names", nargs="*", help="parts of names; all models where none is given")
    parser.add_argument("--zoo", choices=("torchvision", "timm"), default="torchvision")
    parser.add_argument("--families", nargs="*", help=f"of torchvision: {', '.join(FAMILIES)}; of timm: its modules")
    parser.add_argument("--all", action="store_true", help="every model of timm's, not only the smallest of each family")
    parser.add_argument("--prune", action="store_true", help="prune the models and verify what is left")
    parser.add_argument("--no-record", action="store_true", help="print only; leave the results folder as it is")
    options = parser.parse_args(arguments)
    found = cases() if options.zoo == "torchvision" else timm_cases(options.families or (), options.all)
    wanted = [
        case
        for case in found
        if (not options.families or case.family in options.families)
        and (not options.names or any(name in case.name for name in options.names))
    ]
    names = ["zoo", *([] if options.zoo == "torchvision" else [options.zoo]), *(["pruned"] if options.prune else [])]
    results = RESULTS / f"{'_'.join(names)}.json"
    known = {} if options.no_record else {(one.family, one.name): one for one in recorded(results)}
    outcomes: list[Outcome] = []
    for place, case in enumerate(wanted, 1):
        last = known.get((case.family, case.name)) or examine(case, options.prune)
        outcomes.append(last)
        console.print(
            f"{place}/{len(wanted)} {case.name}: {last.outcome} {last.seconds:.0f} s {last.reason[:300]}", highlight=False
        )
        gc.collect()
        if not options.no_record:
            kept = {"benchmark": "zoo", "zoo": options.zoo, "rows": [dataclasses.asdict(outcome) for outcome in outcomes]}
            write_whole(results, json.dumps(provenance() | kept, indent=1) + "\n")
    console.print(table(outcomes, options.zoo))
    counts = {name: sum(outcome.outcome == name for outcome in outcomes) for name in ("passed", "refused", "failed")}
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
