"""One run: from its declaration, or from its newest checkpoint, to its curve.

A run is a function of its declaration and of the number of the step: batches, crops and dropout are drawn from the seed and that
number. So a run that was stopped anywhere, and goes on from its last checkpoint, ends with the very curve of one that was not.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swnet
from benchmarks.lab import checkpoint
from benchmarks.lab.grids import Run
from benchmarks.lab.images import Pictures, number
from benchmarks.lab.networks import MODELS
from benchmarks.lab.ranks import ALONE, Ranks
from benchmarks.lab.schedules import Schedule
from benchmarks.models import parameters, seeded
from benchmarks.record import provenance
from benchmarks.variants import VARIANTS

Record = dict[str, Any]
CHECKPOINT_SECONDS = 20.0
SHARE = 50
"""How many times longer than a checkpoint takes to write training goes on before the next."""
GO_ON, SAVE, STOP = range(3)
FIGURES = ("S", "C", "L", "graph_density", "effective_depth", "mean_path", "macs")
"""What a curve says of its network's channel graph: candidates for what predicts the speed."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run was asked to stop; its checkpoint is written."""


@dataclass(frozen=True)
class Conditions:
    """How a run is carried out, as far as it changes the time that it takes and not what it comes to."""

    compile: str | None = None
    """The mode of torch.compile, or None for none."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """The least time between two checkpoints; 0 writes one after every step."""

    def pause(self, cost: float) -> float:
        """Return the seconds from a checkpoint to the next, by those that one costs."""
        return max(self.checkpoint_seconds, SHARE * cost) if self.checkpoint_seconds else 0.0


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    steps: int
    seconds: float
    last: Record | None = None
    """The evaluation that was just made."""


def build(run: Run, example: Tensor, classes: int) -> tuple[nn.Module, Record]:
    """Return an arm's network and what its curve says about it: parameters, multiply-accumulates a sample, p.

    Raises:
        SystemExit: where benchmarks.controls has no control of the arm's name.
    """
    arm = run.arm
    original = seeded(MODELS[arm.model or run.task.model], run.seed, classes, *example.shape[1:3])
    if arm.control:
        made = _controlled(arm.control, original, example, run.topology_seed, arm.p or 0.0)
        return made, _counted(made, example)
    if arm.variant:
        return _varied(VARIANTS[arm.variant](original, example, run.topology_seed, arm.p or 0.0))
    rewired = swnet.transform(
        original, example, p=arm.p or 0.0, wiring=arm.wiring, params=arm.params, seed=run.topology_seed, skips=arm.skips
    )
    ledger = swnet.ledger(rewired)
    return (original, _about(ledger.before)) if arm.p is None else (rewired, _about(ledger.after))


def _varied(made: nn.Module) -> tuple[nn.Module, Record]:
    """Return a variant's network and what its curve says: its ledger does not know of parameters that were added afterwards."""
    side = swnet.ledger(made).after
    return made, _about(side) | {"params": side.params + parameters(made) - side.stored_params}


def _about(side: Any) -> Record:
    """Return what one side of a ledger says of a network, with the figures of its channel graph."""
    counts = {key: getattr(side, key) for key in ("params", "macs", "executed_macs", "p_achieved")}
    return counts | {"figures": {key: float(getattr(side, key)) for key in FIGURES}}


def _controlled(name: str, original: nn.Module, example: Tensor, seed: int, p: float) -> nn.Module:
    """Make a control's network. The module is looked up late: grids without controls run without it."""
    try:
        controls: Mapping[str, Callable[..., nn.Module]] = importlib.import_module("benchmarks.controls").CONTROLS
    except ModuleNotFoundError:
        controls = {}
    if name not in controls:
        raise SystemExit(f"There is no control {name!r}; benchmarks.controls has {', '.join(controls) or 'none'}.")
    return controls[name](original, example, seed, p)


def _counted(model: nn.Module, example: Tensor) -> Record:
    """Count a network that has a ledger, or would have one if nothing was moved in it."""
    try:
        return _about(swnet.ledger(model).after)
    except swnet.SwnetError:
        return _about(swnet.ledger(swnet.transform(model, example, p=0.0)).before)


class Training:
    """A run under way: the network, the optimizer, the schedule and the curve so far, at some step."""

    def __init__(self, run: Run, pictures: Pictures, ranks: Ranks, conditions: Conditions) -> None:
        self.run, self.pictures, self.ranks = run, pictures, ranks
        self.device = ranks.share.device
        made, self.about = build(run, pictures.example, pictures.classes)
        self.model = ranks.wrap(made.to(self.device, memory_format=torch.channels_last))
        if conditions.compile:
            self.model.compile(mode=conditions.compile)  # in place: the state dict keeps its keys
        task = run.task
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=run.lr, momentum=task.momentum, nesterov=True, weight_decay=task.weight_decay
        )
        self.steps = task.epochs * pictures.per_epoch
        self.schedule = Schedule(task.schedule, self.optimizer, run.lr, self.steps)
        self.rewirer = _rewirer(self.optimizer, made, run.arm.rewire_every, self.steps)
        marks = (round(pictures.per_epoch * (place + 1) / task.evaluations) for place in range(task.evaluations))
        self.marks = {mark for mark in marks if mark}
        self.losses = torch.zeros(pictures.per_epoch, device=self.device)  # of the last epoch's worth of steps
        self.step, self.seconds, self.peak_memory = 0, 0.0, 0
        self.curve: list[Record] = []
        how = {"processes": ranks.share.ranks, "way": ranks.way if ranks.many else None, "compile": conditions.compile}
        self.fixed = run.identity | {"subset": pictures.subset} | self.about | how | provenance()

    @property
    def done(self) -> bool:
        """Whether the last step was taken."""
        return self.step == self.steps

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """Take one step."""
        torch.manual_seed(number(self.run.seed, "dropout", self.step, self.ranks.share.rank))
        self.lr = self.schedule.lr
        loss = F.cross_entropy(self._logits(self.model, images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.rewirer:
            self.rewirer.step()
        self.losses[self.step % len(self.losses)] = loss.detach()
        self.step += 1
        self.schedule.stepped()
        if self.schedule.by_epoch and self.step % self.pictures.per_epoch == 0:
            self._settle()
            self.schedule.epoch_done(float(self.losses.double().mean()))

    def evaluate(self) -> Record:
        """Add an evaluation to the curve and return it."""
        self._settle()
        per_epoch, task, before = self.pictures.per_epoch, self.run.task, self.curve[-1] if self.curve else {}
        took = (self.seconds - before.get("seconds", 0.0)) / (self.step - before.get("step", 0))
        loss = float(self.losses[: min(self.step, per_epoch)].double().mean())
        macs = self.about["macs"] * self.step * task.batch
        self.curve.append(
            self.fixed
            | {"step": self.step, "epoch": self.step / per_epoch, "macs": macs, "seconds": round(self.seconds, 3)}
            | {"train_loss": loss if math.isfinite(loss) else None, "test_error": self._test_error(), "lr": self.lr}
            | {"step_seconds": round(took, 6), "peak_memory": self._peak()}
        )
        return self.curve[-1]

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        self._settle()
        rest = {"identity": self.run.identity, "step": self.step, "seconds": self.seconds, "peak_memory": self._peak()}
        rest |= {"schedule": self.schedule.state(), "curve": self.curve}
        rest |= {"rewirer": self.rewirer.state_dict()} if self.rewirer else {}
        checkpoint.save(folder, self.step, self.model, self.optimizer, self.losses, rest, self.ranks)

    def load(self, found: Path) -> None:
        """Go on from a checkpoint; raise SystemExit where it is of another run."""
        rest = checkpoint.rest_of(found)
        if rest["identity"] != self.run.identity:
            raise SystemExit(f"{found.parent} is of a run under other options; remove it, or use another folder (--results).")
        checkpoint.load(found, self.model, self.optimizer, self.losses)
        self.schedule.load(rest["schedule"])
        if self.rewirer:
            self.rewirer.load_state_dict(rest["rewirer"])
        self.step, self.seconds, self.curve = rest["step"], rest["seconds"], rest["curve"]
        self.peak_memory = rest["peak_memory"]

    def synchronize(self) -> None:
        """Wait for the device, so that the clock reads what was done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return a model's outputs for a batch, in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.task.bfloat16):
            logits: Tensor = model(images)
        return logits.float()

    def _settle(self) -> None:
        """Make all ranks hold the same losses and the same running statistics."""
        self.losses.copy_(self.ranks.mean(self.losses))
        self.ranks.same_buffers(self.model)

    @torch.no_grad()
    def _test_error(self) -> float:
        """Return the share of the test images that are classified wrongly; leaves the model in training mode."""
        self.model.eval()
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        for images, labels in self.pictures.test_batches():
            wrong += (self._logits(self.model, images).argmax(1) != labels).sum()
        self.model.train()
        return int(self.ranks.total(wrong)) / self.pictures.tests

    def _peak(self) -> int:
        """Return the most memory in bytes that the run has taken, on the GPU where there is one, else of the process."""
        if self.device.type == "cuda":
            self.peak_memory = max(self.peak_memory, torch.cuda.max_memory_allocated(self.device))
        else:
            self.peak_memory = max(self.peak_memory, _resident_peak())
        return self.peak_memory


def _rewirer(optimizer: torch.optim.Optimizer, model: nn.Module, every: int, steps: int) -> swnet.Rewirer | None:
    """Return what rewires a network during the first three quarters of its steps, as RigL does."""
    return swnet.Rewirer(optimizer, model, every=every, until=max(1, 3 * steps // 4)) if every else None


def train(
    run: Run,
    pictures: Pictures,
    folder: Path,
    *,
    ranks: Ranks = ALONE,
    conditions: Conditions = Conditions(),
    observe: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Carry a run to its end and return its curve, one record an evaluation.

    Args:
        folder: where its checkpoints lie; it goes on from the newest.
        observe: is told how far the run is, after each step.
        stop: is asked after each step whether to stop.

    Raises:
        Stopped: when `stop` says so, with the checkpoint written.
    """
    _reset_peak(ranks.share.device)
    training = Training(run, pictures, ranks, conditions)
    if found := checkpoint.latest(folder):
        training.load(found)
    saved, last, cost = training.step, time.perf_counter(), 0.0
    batches = pictures.batches(run.seed, training.step)
    began = time.perf_counter()
    while not training.done:
        training.advance(*next(batches))
        marked = (training.step - 1) % pictures.per_epoch + 1 in training.marks
        due = time.perf_counter() - last > conditions.pause(cost)
        wanted = ranks.told(STOP if stop() else SAVE if due else GO_ON)
        record = None
        if marked or wanted:
            training.synchronize()
            training.seconds += time.perf_counter() - began
            record = training.evaluate() if marked else None
            if wanted and training.step != saved:
                started = time.perf_counter()
                training.save(folder)
                last = time.perf_counter()
                saved, cost = training.step, last - started
            if wanted == STOP:
                raise Stopped(run.name)
            began = time.perf_counter()
        observe(Progress(training.step, training.steps, training.seconds, record))
    return training.curve


def _reset_peak(device: torch.device) -> None:
    """Count peak memory from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _resident_peak() -> int:
    """Return the most memory that this process has held, in bytes; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
