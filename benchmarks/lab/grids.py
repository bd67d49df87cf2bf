"""What is trained: grids of tasks (model, data, schedule), each with its arms, times seeds; data, declared before a run.

GRIDS["quick"]        two CPU cores, under 40 minutes
GRIDS["policy"]       two CPU cores: what the defaults rest on, each choice changed alone
GRIDS["policy-again"] the choices that it picked, with other seeds, which decide
GRIDS["policy-rate"]  the initialisation that it picked, at the rate that suits the wiring without it
GRIDS["breadth"]      two CPU cores: three families that have shortcuts already
GRIDS["gains"]        two CPU cores: nets from shallow to deep, with shortcuts and without; who gains, and is it foretold?
GRIDS["core"]         one H200, at most 30 minutes by estimate
GRIDS["full"]         every model on every set
GRIDS["cifar100"], GRIDS["imagefolder"]     where those images are present
GRIDS["slim-sizes"]   two CPU cores: small-world nets of several sizes, of a slim DenseNet
GRIDS["densenet-sizes"]     the same of DenseNet-40
GRIDS["densenet40"], GRIDS["densenet40-short"]     DenseNet-40 against nets a tenth its size
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.lab.schedules import Kind


@dataclass(frozen=True)
class Arm:
    """One kind of network in a task; without p it is as it was built."""

    name: str
    p: float | None = None
    wiring: str = "block"
    params: int | None = None
    """The budget to prune to, of parameters; None prunes nothing."""
    model: str | None = None
    """Another network than the task's: a control."""
    control: str | None = None
    """Who makes the network of the task's, a name in benchmarks.controls.CONTROLS, instead of a wiring."""
    variant: str | None = None
    """Which change of the wiring's policy is tried, a name in benchmarks.variants.VARIANTS; None for none."""
    rewire_every: int = 0
    """For wiring "kernel": steps between two rewirings while it is trained, over the first three quarters; 0 for none."""
    skips: Literal["keep", "remove"] = "keep"
    """For wiring "kernel": whether shortcuts stay."""


@dataclass(frozen=True)
class Task:
    """What is trained, and how. `train_images` and `test_images` count from the front of the set; None is all."""

    model: str
    data: str
    arms: tuple[Arm, ...]
    epochs: int
    batch: int = 128
    """Images a step, over all processes together."""
    lr: float = 0.05
    """The highest rate, of every arm until the grid has been tuned."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Kind = "one-cycle"
    bfloat16: bool = False
    """Whether forward and backward run under autocast to bfloat16."""
    train_images: int | None = None
    test_images: int | None = None
    evaluations: int = 8
    """Evaluations an epoch."""
    size: int | None = None
    """Pixels a side: images in memory are framed with zeros up to it, those of folders are cut to it."""
    rotation: float = 0.0
    """Degrees that an image is turned by, at most."""
    variant: str = ""
    """What tells the runs of two tasks of one model and one set apart."""
    lrs: tuple[float, ...] = ()
    """The rates that `--tune` tries for every arm."""
    tuning_epochs: int = 0
    held_out: int = 0
    """How many of the training images `--tune` tests on instead of training on them; the last ones."""

    @property
    def name(self) -> str:
        """The model, the data, and the variant where there are several."""
        return "-".join(filter(None, (self.model, self.data, self.variant)))

    @property
    def subset(self) -> str:
        """Say which images are used, so that no subset goes by the full set's name."""
        named = ((self.train_images, "training"), (self.test_images, "test"))
        parts = (f"all {kind} images" if count is None else f"the first {count:,} {kind} images" for count, kind in named)
        return f"{' and '.join(parts)} of {self.data}"

    @property
    def options(self) -> dict[str, Any]:
        """Return what must be equal for two curves to compare."""
        apart = ("arms", "variant", "lrs", "tuning_epochs", "held_out")
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in apart}


@dataclass(frozen=True)
class Run:
    """One curve: an arm of a task with one seed of weights and data order and one of the topology, at one rate."""

    grid: str
    task: Task
    arm: Arm
    seed: int
    topology_seed: int
    lr: float
    tuning: bool = False
    """Whether it tests on held-out training images."""

    @property
    def name(self) -> str:
        """Name the run's files."""
        topology = "" if self.topology_seed == self.seed else f"-topology{self.topology_seed}"
        rate = f"-lr{self.lr:g}" if self.tuning else ""
        return f"{self.task.name}-{self.arm.name}-seed{self.seed}{topology}{rate}"

    @property
    def identity(self) -> dict[str, Any]:
        """Return what tells one run from another; every line of its curve says so."""
        task, arm = self.task, self.arm
        trained = {"grid": self.grid, "model": arm.model or task.model, "data": task.data, "arm": arm.name}
        topology = {"p": arm.p or 0.0, "wiring": None if arm.p is None or arm.control else arm.wiring, "params_budget": arm.params}
        made = {"control": arm.control, "skips": arm.skips}
        tried = {"variant": arm.variant, "rewire_every": arm.rewire_every}
        made |= {key: value for key, value in tried.items() if value}
        seeds = {"seed": self.seed, "topology_seed": self.topology_seed, "base_lr": self.lr}
        return trained | topology | made | seeds | {"options": task.options}


@dataclass(frozen=True)
class Grid:
    """Tasks times arms times seeds. `topologies` draws so many topologies for each seed of a rewired arm."""

    name: str
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    topologies: int = 1

    def runs(self, rates: Mapping[tuple[str, str], float] | None = None) -> Iterator[Run]:
        """Yield the runs, seed by seed, so that what is done first is one whole comparison; `rates` are of (task, arm)."""
        for seed in self.seeds:
            for task in self.tasks:
                for arm in task.arms:
                    lr = (rates or {}).get((task.name, arm.name), task.lr)
                    drawn = self.topologies if arm.p is not None else 1
                    for topology in range(drawn):
                        yield Run(self.name, task, arm, seed, seed + 1000 * topology, lr)

    def only(self, tasks: Sequence[str] | None, arms: Sequence[str] | None, seeds: Sequence[int] | None) -> Grid:
        """Return the grid with these tasks, arms and seeds alone; raise SystemExit where it has no such task or arm."""
        _known("task", tasks, [task.name for task in self.tasks], self.name)
        _known("arm", arms, [arm.name for task in self.tasks for arm in task.arms], self.name)
        left = tuple(
            replace(task, arms=tuple(arm for arm in task.arms if arms is None or arm.name in arms))
            for task in self.tasks
            if tasks is None or task.name in tasks
        )
        return replace(self, tasks=left, seeds=self.seeds if seeds is None else tuple(seeds))


def _known(kind: str, asked: Sequence[str] | None, there: Sequence[str], grid: str) -> None:
    if unknown := sorted(set(asked or ()) - set(there)):
        raise SystemExit(f"No {kind} {', '.join(unknown)}; {grid} has {', '.join(dict.fromkeys(there))}.")


ORIGINAL = Arm("original")
BLOCKS = tuple(Arm(f"block-p{p:g}", p) for p in (0.3, 1.0))
KERNEL = Arm("kernel-p0.3", 0.3, "kernel")
SHORTCUTS = Arm("random-residual", 0.3, control="random-residual")
ARMS = (ORIGINAL, *BLOCKS, KERNEL, SHORTCUTS)
"""The original, the two wirings, `block` at p = 1 too, and shortcuts that make no small world."""
FULL_ARMS = (
    *(ORIGINAL, *BLOCKS, *(Arm(f"block-p{p:g}", p) for p in (0.15, 0.6))),
    *(Arm(f"kernel-p{p:g}", p, "kernel") for p in (0.3, 0.85, 1.0)),
    *(Arm(name, 0.3, control=name) for name in ("random-residual", "clustering-up", "clustering-down")),
)

FIRST_TRIAL = Grid(
    name="first-trial",
    tasks=(Task("plain_cnn21", "cifar10", (ORIGINAL, Arm("block-p0.3", 0.3)), epochs=6, train_images=12_000, test_images=1_000),),
    seeds=(0,),
)

SLIM = Task(
    model="slim_cnn21",
    data="cifar10",
    arms=(*ARMS, Arm("clustering-up", 0.3, control="clustering-up")),
    epochs=7,
    lr=0.05,
    train_images=10_000,
    test_images=2_000,
    evaluations=4,
    lrs=(0.02, 0.05, 0.1, 0.2),
    tuning_epochs=3,
    held_out=1_000,
)
SLIM_CONSTANT = replace(SLIM, schedule="constant", variant="constant")
SLIM_MLP = replace(SLIM_CONSTANT, model="mlp", data="fashion-mnist", lrs=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2))
QUICK = Grid("quick", (SLIM_CONSTANT, replace(SLIM, schedule="cosine", variant="cosine"), SLIM_MLP))
"""On two CPU cores: a slim plain net and an MLP, at a constant rate and at one that decays."""


def _tried(*names: str, wiring: str = "block") -> tuple[Arm, ...]:
    return tuple(Arm(f"{wiring}-p0.3-{name}", 0.3, wiring, variant=name) for name in names)


REWIRED = Arm("kernel-p0.3-rewired", 0.3, "kernel", rewire_every=25)
TRIED = (
    *(Arm(f"block-p{p:g}", p) for p in (0.15, 0.3, 0.6, 1.0)),
    *_tried("near", "far", "avg", "stride", "block-1", "block-8", "deep", "shallow", "no-image", "tap-scale"),
    KERNEL,
    *_tried("dense-init", wiring="kernel"),
    REWIRED,
)
"""The policies: each arm differs from block-p0.3, or from kernel-p0.3, in one choice."""

POLICY = Grid(
    name="policy",
    tasks=tuple(replace(task, arms=(ORIGINAL, *TRIED), lr=lr, lrs=()) for task, lr in ((SLIM_CONSTANT, 0.05), (SLIM_MLP, 0.01))),
)
"""What the defaults rest on: all arms at the rate that tuning chose for block-p0.3, on two CPU cores."""

PICKED = (
    *(ORIGINAL, *BLOCKS, *_tried("far"), Arm("block-p1-far", 1.0, variant="far")),
    *(KERNEL, *_tried("dense-init", wiring="kernel"), REWIRED),
)
POLICY_AGAIN = Grid("policy-again", tuple(replace(task, arms=PICKED) for task in POLICY.tasks), seeds=(10, 11, 12, 13, 14))
"""What `policy` picked, with seeds that had no part in that: p = 1, far sources, both together, and both changes of `kernel`."""

POLICY_RATE = Grid(
    name="policy-rate",
    tasks=(replace(SLIM_CONSTANT, arms=(ORIGINAL, KERNEL, *_tried("dense-init", wiring="kernel")), lr=0.2, lrs=()),),
    seeds=POLICY_AGAIN.seeds,
)
"""Smaller weights at first make for larger steps: the same at the rate that tuning chose for `kernel`, four times `policy`'s."""

SLIM_ARMS = (ORIGINAL, BLOCKS[0], KERNEL)
BREADTH = Grid(
    name="breadth",
    tasks=(
        *(replace(SLIM_CONSTANT, model=model, arms=SLIM_ARMS) for model in ("slim_resnet20", "slim_densenet16")),
        replace(SLIM_CONSTANT, model="slim_mobilenet", arms=(*SLIM_ARMS, *_tried("only-1x1"))),
    ),
)
"""Who gains, on two CPU cores: three families that have shortcuts already, next to the plain nets of `quick`."""

SLIM_PAIR = (ORIGINAL, BLOCKS[0])
GAINS = Grid(
    name="gains",
    tasks=(
        *(
            replace(SLIM_CONSTANT, model=f"slim_{name}", arms=SLIM_PAIR)
            for name in ("cnn5", "cnn9", "resnet8", "resnet32", "convnet_c")
        ),
        replace(SLIM_CONSTANT, model="slim_bottleneck29", arms=(*SLIM_PAIR, *_tried("only-1x1"))),
        *(replace(SLIM_CONSTANT, model=f"slim_{name}", data="fashion-mnist", arms=SLIM_PAIR) for name in ("cnn21", "resnet20")),
        replace(SLIM_MLP, model="mlp3", arms=SLIM_PAIR, lr=0.01),
    ),
    seeds=(0, 1, 2, 3, 4),
)
"""Who gains: seven nets that had no part in what was said of that, and two that had, on other images; at rates tuned for others.

What came of it is in the report: "Does check tell beforehand who gains?".
"""
DECLARED_LITTLE = frozenset({"slim_cnn5", "slim_resnet8", "mlp3"})
"""Those of `gains` that were declared to gain little before the first of them ran; the other six, to gain.

From the five models of `quick` and `breadth`: not that there are shortcuts tells who gains little, but that a network's effective
depth is small already, below 7.4 (half way, as a ratio, between those that were known of: a DenseNet of 5.8 that gained nothing and
a ResNet of 9.5 that did).
"""

SMALL_DENSENETS = (
    Arm("small-world-98K", 0.3, params=98_000),
    Arm("nearest-98K", 0.0, params=98_000),
    Arm("narrow-97K", model="narrow_densenet40"),
)
"""Nets of SWNet's 98K parameters; DenseNet's own schedule and augmentation are in arXiv 1608.06993, section 4.2."""

DENSENET = Task(
    model="densenet40",
    data="cifar10",
    arms=(ORIGINAL, *SMALL_DENSENETS),
    epochs=300,
    batch=64,
    lr=0.1,
    weight_decay=1e-4,
    schedule="steps",
    bfloat16=True,
    evaluations=2,
    lrs=(0.03, 0.1, 0.3),
    tuning_epochs=20,
    held_out=5_000,
)
DENSENET40 = Grid("densenet40", (DENSENET,))


def _sizes(*params: int) -> tuple[Arm, ...]:
    return tuple(Arm(f"small-world-{size // 1000}K", 0.3, params=size) for size in params)


DENSENET_SIZES = Grid("densenet-sizes", (replace(DENSENET, arms=(ORIGINAL, *_sizes(98_000, 200_000, 300_000, 500_000, 700_000))),))
"""Which is the smallest small-world net that matches DenseNet-40?"""
SLIM_SIZES = Grid(
    name="slim-sizes",
    tasks=(
        replace(
            SLIM,
            model="slim_densenet16",
            arms=(ORIGINAL, *_sizes(8_000, 13_000, 26_000, 45_000)),
            schedule="cosine",
            variant="cosine",
            lrs=(),
            lr=0.1,
        ),
    ),
)
"""The same on two CPU cores, of a DenseNet of 16 layers."""
DENSENET40_SHORT = Grid("densenet40-short", (replace(DENSENET, epochs=3, schedule="one-cycle", tuning_epochs=1),))

PAPER = Task(
    model="convnet_c",
    data="cifar10",
    arms=ARMS,
    epochs=145,
    lr=0.01,
    schedule="plateau",
    bfloat16=True,
    evaluations=4,
    rotation=10.0,
    variant="plateau",
    lrs=(0.005, 0.01, 0.02, 0.05),
    tuning_epochs=10,
    held_out=5_000,
)
"""As the paper trains on CIFAR: 145 epochs are those of its original's final error; what "slight rotation" is, is ours."""

SHORT = replace(PAPER, epochs=15, lr=0.02, schedule="constant", variant="constant", tuning_epochs=5)
CORE = Grid(
    name="core",
    tasks=(
        SHORT,
        replace(SHORT, model="plain_cnn21", epochs=10, lr=0.05, lrs=(0.02, 0.05, 0.1)),
        replace(SHORT, model="resnet20", epochs=10, lr=0.05, lrs=(0.02, 0.05, 0.1)),
        replace(
            DENSENET,
            arms=(ORIGINAL, BLOCKS[0], *SMALL_DENSENETS),
            epochs=4,
            schedule="one-cycle",
            variant="one-cycle",
            evaluations=4,
            tuning_epochs=2,
        ),
    ),
)
"""On one H200, replicas side by side: a constant rate for the plain question, the decaying one that DenseNet cannot do without.

That it takes at most 30 minutes is reckoned, not measured: at 80 TFLOP/s for ConvNet-C, and at 3 to 16 ms a step for the others.
"""


def _full() -> Iterator[Task]:
    for data in ("cifar10", "fashion-mnist"):
        frame = 32 if data == "fashion-mnist" else None
        yield replace(PAPER, data=data, arms=FULL_ARMS, size=frame)
        base = replace(PAPER, data=data, arms=FULL_ARMS, size=frame, epochs=100, lr=0.05, lrs=(0.01, 0.02, 0.05, 0.1))
        for kind in ("constant", "cosine"):
            for model in (
                "convnet_c",
                "plain_cnn21",
                "plain_cnn41",
                "resnet20",
                "resnet56",
                "resnet18_small",
                "mobilenet_v2",
                "mlp",
            ):
                yield replace(base, model=model, schedule=kind, variant=kind)
    yield replace(DENSENET, arms=(*FULL_ARMS, *SMALL_DENSENETS), variant="steps")


FULL = Grid("full", tuple(_full()), topologies=3)

CIFAR100 = Grid(
    name="cifar100",
    tasks=(
        replace(PAPER, data="cifar100", epochs=226),
        replace(PAPER, data="cifar100", epochs=100, lr=0.02, schedule="constant", variant="constant"),
    ),
)

IMAGENET = Task(
    model="alexnet",
    data="imagefolder",
    arms=(ORIGINAL, BLOCKS[0], KERNEL),
    epochs=80,
    batch=256,
    lr=0.01,
    schedule="plateau",
    bfloat16=True,
    evaluations=2,
    size=224,
    lrs=(0.005, 0.01, 0.02),
    tuning_epochs=2,
    held_out=10_000,
)
IMAGEFOLDER = Grid(
    name="imagefolder",
    tasks=(IMAGENET, replace(IMAGENET, model="resnet18", epochs=73, lr=0.1, weight_decay=1e-4, lrs=(0.05, 0.1, 0.2))),
)
"""ImageNet, or any folder laid out as it is: epochs and SGD as in the paper, batch and rates as Caffe and torchvision have them."""

GRIDS: Mapping[str, Grid] = {
    grid.name: grid
    for grid in (
        QUICK,
        POLICY,
        POLICY_AGAIN,
        POLICY_RATE,
        BREADTH,
        GAINS,
        SLIM_SIZES,
        DENSENET_SIZES,
        CORE,
        FULL,
        CIFAR100,
        IMAGEFOLDER,
        DENSENET40,
        DENSENET40_SHORT,
        FIRST_TRIAL,
    )
}
