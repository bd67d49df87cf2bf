"""The convergence laboratory: its grids, networks, images, schedules, the choice of rates, the estimate of the time left."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from benchmarks import convergence, models, record
from benchmarks.data import Dataset, write_npz
from benchmarks.lab import images, networks, tables, training
from benchmarks.lab.display import Display, Estimate, _spoken
from benchmarks.lab.folders import InFolders
from benchmarks.lab.grids import CIFAR100, CORE, DENSENET, FIRST_TRIAL, GRIDS, IMAGEFOLDER, ORIGINAL, QUICK, Arm, Grid, Run, Task
from benchmarks.lab.images import InMemory
from benchmarks.lab.pool import one_by_one
from benchmarks.lab.ranks import ALONE, Share
from benchmarks.lab.schedules import PATIENCE, Kind, Schedule
from benchmarks.lab.store import Place, read_curve, read_curves, same
from benchmarks.lab.training import Conditions, Stopped
from benchmarks.lab.tuning import best, chosen_rates, tuning_runs
from benchmarks.lab.work import Setting, carry_out

CPU = torch.device("cpu")


def text(table: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def small_set(count: int = 64, size: int = 16, classes: int = 10, name: str = "cifar10") -> Dataset:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = np.arange(count) % classes
    return Dataset(name, pixels, labels, pixels[:10], labels[:10])


BLOCK = Arm("block-p0.3", 0.3)
SMALL = Task("plain_cnn21", "cifar10", (ORIGINAL, BLOCK), epochs=2, batch=16, train_images=48, test_images=6, evaluations=3)


def small_run(task: Task = SMALL, arm: Arm = ORIGINAL, seed: int = 0, grid: str = "small") -> Run:
    return Run(grid, task, arm, seed, seed, task.lr)


def trained(task: Task, folder: Path, arm: Arm = ORIGINAL, **told: Any) -> list[dict[str, Any]]:
    run = small_run(task, arm)
    return training.train(run, InMemory(small_set(), task, Share()), folder, **told)


def losses(curve: Sequence[dict[str, Any]]) -> list[float]:
    return [line["train_loss"] for line in curve]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a small CIFAR-10 in it."""
    folder = tmp_path / "data"
    monkeypatch.setenv("SWCOMPILE_DATA", str(folder))
    write_npz(small_set(), folder)
    return folder


# --- networks ----------------------------------------------------------------------------------------------------------------


def test_convnet_c_is_the_papers() -> None:
    net = networks.convnet_c()
    kinds = "".join(
        {"Conv2d": "C", "ReLU": "R", "MaxPool2d": "P", "BatchNorm2d": "B", "Dropout": "D"}.get(type(m).__name__, ".") for m in net
    )
    assert kinds == "CRBDCRPB" * 2 + "CRBDCRBDCRPB" * 3 + ".D.R."
    assert [m.out_channels for m in net if isinstance(m, nn.Conv2d)] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert [m.out_features for m in net if isinstance(m, nn.Linear)] == [512, 10]
    assert [m.p for m in net if isinstance(m, nn.Dropout)] == [0.4] * 8 + [0.5]
    assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [
        ("plain_cnn41", None, 41),
        ("slim_cnn21", None, 21),
        ("resnet56", None, 55 + 1 + 2),
        ("resnet18_small", 11_173_962, 18 + 3),
        ("densenet40", 1_019_722, 40),
        ("narrow_densenet40", 96_637, 40),
        ("mobilenet_v2", 2_236_682, 53),
        ("mlp", None, 9),
        ("alexnet", 60_965_224, 8),
        ("resnet18", 11_689_512, 18 + 3),
    ],
)
def test_a_network_has_its_layers_and_its_published_size(name: str, parameters: int | None, layers: int) -> None:
    large = name in ("alexnet", "resnet18")
    with torch.device("meta"):
        net = networks.MODELS[name](1000, 3, 224) if large else networks.MODELS[name](10, 3, 32)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == layers
    assert parameters in (None, models.parameters(net))


def test_networks_take_grey_images_of_28_pixels() -> None:
    for name in ("mlp", "resnet20", "mobilenet_v2"):
        assert networks.MODELS[name](10, 1, 28).eval()(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


# --- grids -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_the_runs_of_a_grid_have_files_of_their_own_and_networks(grid: Grid) -> None:
    names = [run.name for run in [*grid.runs(), *tuning_runs(grid)]]
    assert len(set(names)) == len(names)
    for task in grid.tasks:
        assert ORIGINAL in task.arms
        assert {task.model} | {arm.model for arm in task.arms if arm.model} <= networks.MODELS.keys()
        assert not task.lrs or (task.tuning_epochs and task.held_out)


def test_the_tiers_are_as_the_protocol_asks() -> None:
    for grid in (QUICK, CORE):
        assert len(grid.seeds) == 3
        assert {"constant"} < {task.schedule for task in grid.tasks}
    assert {task.model for task in CORE.tasks} == {"convnet_c", "plain_cnn21", "resnet20", "densenet40"}
    assert all(len(task.arms) == 5 for task in CORE.tasks)
    assert {arm.p for arm in QUICK.tasks[0].arms if arm.wiring == "block" and not arm.control} == {None, 0.3, 1.0}
    assert "the first 10,000 training images and the first 2,000 test images of cifar10" in QUICK.tasks[0].subset


def test_a_grid_draws_several_topologies_for_rewired_arms_alone() -> None:
    grid = Grid("small", (SMALL,), (0, 1), topologies=3)
    runs = list(grid.runs({(SMALL.name, "block-p0.3"): 0.5}))
    assert [(run.arm.name, run.seed, run.topology_seed, run.lr) for run in runs if run.seed == 1] == [
        ("original", 1, 1, 0.05),
        *(("block-p0.3", 1, seed, 0.5) for seed in (1, 1001, 2001)),
    ]


def test_parts_of_a_grid_are_chosen_by_name() -> None:
    part = QUICK.only(["mlp-fashion-mnist-constant"], ["original"], [7])
    assert [run.name for run in part.runs()] == ["mlp-fashion-mnist-constant-original-seed7"]
    with pytest.raises(SystemExit, match=r"No arm other; first-trial has original, block-p0\.3\."):
        FIRST_TRIAL.only(None, ["other"], None)
    with pytest.raises(SystemExit, match="No task other; first-trial has plain_cnn21-cifar10"):
        FIRST_TRIAL.only(["other"], None, None)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_the_curves_that_are_kept_are_those_of_their_grids(grid: Grid) -> None:
    """So that the command that made them goes on, also where a grid has got more options since."""
    folder = record.RESULTS / "convergence" / grid.name
    runs = {run.name: run for run in grid.runs(chosen_rates(grid, folder.parent))}
    for file in folder.glob("*.jsonl"):
        assert same(read_curve(file)[0], runs[file.stem])


def test_the_arms_of_the_densenet_grid_are_of_equal_size() -> None:
    for arm in DENSENET.arms[1:]:
        model, about = training.build(small_run(DENSENET, arm, 1), torch.zeros(2, 3, 32, 32), 10)
        assert about["params"] == models.parameters(model)
        assert 96_000 < about["params"] <= 98_000
        assert 27e6 < about["macs"] < 30e6


def test_only_what_is_tried_is_told_in_a_curve() -> None:
    tried = small_run(arm=Arm("near", 0.3, variant="near", rewire_every=3)).identity
    assert (tried["variant"], tried["rewire_every"]) == ("near", 3)
    assert not {"variant", "rewire_every"} & small_run(arm=BLOCK).identity.keys()


def test_a_variant_counts_what_it_adds() -> None:
    example = torch.zeros(2, 3, 16, 16)
    plain, scaled = (training.build(small_run(arm=arm), example, 10) for arm in (BLOCK, replace(BLOCK, variant="tap-scale")))
    assert scaled[1]["params"] - plain[1]["params"] == models.parameters(scaled[0]) - models.parameters(plain[0]) > 0


def test_a_control_is_made_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm("wider", 0.3, control="wider")

    def wider(model: nn.Module, example: torch.Tensor, seed: int, p: float) -> nn.Module:
        assert (example.shape, seed, p) == ((2, 3, 16, 16), 4, 0.3)
        return nn.Sequential(model, nn.Linear(10, 10))

    monkeypatch.setitem(sys.modules, "benchmarks.controls", types.SimpleNamespace(CONTROLS={"wider": wider}))
    plain, about = (training.build(small_run(arm=made, seed=4), torch.zeros(2, 3, 16, 16), 10)[1] for made in (ORIGINAL, arm))
    assert about["params"] == plain["params"] + 110
    assert about["macs"] == plain["macs"] + 100
    with pytest.raises(SystemExit, match=r"There is no control 'other'; benchmarks\.controls has wider"):
        training.build(small_run(arm=Arm("other", 0.3, control="other")), torch.zeros(2, 3, 16, 16), 10)


# --- images ------------------------------------------------------------------------------------------------------------------


def some(pictures: images.Pictures, count: int, seed: int = 1, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = pictures.batches(seed, first)
    return [next(batches) for _ in range(count)]


def test_batches_follow_from_the_seed_and_the_step() -> None:
    task = replace(SMALL, batch=8)
    once = some(InMemory(small_set(), task, Share()), 13)
    later = some(InMemory(small_set(), task, Share()), 6, first=7)
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(once[7:], later, strict=True))
    assert once[0][0].shape == (8, 3, 16, 16)
    assert once[0][0].is_contiguous(memory_format=torch.channels_last)
    other = some(InMemory(small_set(), task, Share()), 1, seed=2)
    assert not torch.equal(other[0][0], once[0][0])
    for epoch in (once[:6], once[6:12]):  # each image once
        assert torch.equal(
            torch.cat([labels for _, labels in epoch]).sort()[0], torch.from_numpy(small_set().train_labels[:48]).sort()[0]
        )


def test_ranks_share_out_the_very_batches_and_tests_of_one() -> None:
    task = replace(SMALL, rotation=20.0)
    whole = InMemory(small_set(), task, Share())
    parts = [InMemory(small_set(), task, Share(rank, 2)) for rank in range(2)]
    shares = [some(part, 4) for part in parts]
    for step, (batch, labels) in enumerate(some(whole, 4)):
        torch.testing.assert_close(torch.cat([share[step][0] for share in shares]), batch)
        assert torch.equal(torch.cat([share[step][1] for share in shares]), labels)
    tested = [next(part.test_batches())[1] for part in parts]
    assert torch.equal(torch.stack(tested, 1).ravel(), next(whole.test_batches())[1])
    with pytest.raises(SystemExit, match="A batch of 16 cannot be shared by 3 processes"):
        InMemory(small_set(), task, Share(0, 3))


def test_a_crop_without_shift_or_flip_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = InMemory(small_set(), SMALL, Share())
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.full((2, 3, 1), images.PADDING))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.ones(3, 1))
    chosen = torch.tensor([4, 0, 7])
    expected = pictures._ready(torch.from_numpy(small_set().train_images)[chosen])
    assert torch.equal(pictures._augmented(chosen, torch.Generator(), slice(None)), expected)


def test_images_turn_about_their_centre() -> None:
    batch = torch.randn(2, 3, 8, 8)
    turned = images.turned(batch, torch.tensor([0.0, 90.0]))
    torch.testing.assert_close(turned[0], batch[0])
    torch.testing.assert_close(turned[1], batch[1].rot90(1, (1, 2)), atol=1e-5, rtol=1e-5)


def test_small_images_are_framed() -> None:
    pictures = InMemory(small_set(), replace(SMALL, size=20), Share())
    assert pictures.example.shape == (2, 3, 20, 20)
    inner = InMemory(small_set(), SMALL, Share()).example
    assert torch.equal(pictures.example[:, :, 2:18, 2:18], inner)


def test_held_out_images_are_no_training_images_and_no_test_images() -> None:
    task = replace(SMALL, held_out=16)
    apart = InMemory(small_set(), task, Share(), held_out=True)
    assert apart.per_epoch == 2
    expected = apart._ready(torch.from_numpy(small_set().train_images[32:48]))
    assert torch.equal(apart.test, expected)
    assert apart.subset == "32 training images of cifar10, tested on 16 more of them"
    with pytest.raises(SystemExit, match="48 of 48 training images cannot be held out"):
        InMemory(small_set(), replace(SMALL, held_out=48), Share(), held_out=True)


def image_folder(root: Path, counts: dict[str, int], sizes: Sequence[tuple[int, int]] = ((70, 90), (100, 66))) -> Path:
    """Write <root>/<split>/<class>/<n>.jpeg, three classes."""
    draw = np.random.default_rng(0)
    for split, count in counts.items():
        for label in ("n01", "n02", "n03"):
            place = root / split / label
            place.mkdir(parents=True)
            for number in range(count):
                size = sizes[number % len(sizes)]
                pixels = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.jpeg")
    return root


FOLDER_TASK = replace(SMALL, data="imagefolder", size=64, batch=4, train_images=None, test_images=None, held_out=3)


def test_images_in_folders_are_cut_and_shared_out_alike(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"train": 3, "val": 2})
    whole = InFolders(root, FOLDER_TASK, Share())
    assert (whole.classes, whole.per_epoch, whole.tests) == (3, 2, 6)
    batches = some(whole, 5)
    assert batches[0][0].shape == (4, 3, 64, 64)
    assert not torch.equal(batches[0][0], batches[2][0])
    again = some(whole, 2, first=3)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches[3:], again, strict=True))
    shares = [some(InFolders(root, FOLDER_TASK, Share(rank, 2)), 1)[0] for rank in range(2)]
    assert torch.equal(torch.cat([share[0] for share in shares]), batches[0][0])
    assert torch.cat([labels for _, labels in whole.test_batches()]).tolist() == [0, 0, 1, 1, 2, 2]
    decoded = InFolders(root, FOLDER_TASK, Share(), workers=1)  # in a process of its own
    assert torch.equal(some(decoded, 1, first=3)[0][0], batches[3][0])
    apart = InFolders(root, FOLDER_TASK, Share(), held_out=True)
    assert (len(apart.train.files), apart.tests) == (6, 3)
    assert not set(apart.train.files) & set(apart.test.files.files)


def test_the_middle_of_a_test_image_is_what_is_tested(tmp_path: Path) -> None:
    place = tmp_path / "val" / "one"
    place.mkdir(parents=True)
    pixels = np.zeros((256, 356, 3), np.uint8)
    pixels[16:240, 66:290] = 255  # the middle 224 of what has a shorter side of 256 already
    Image.fromarray(pixels).save(place / "white.png")
    (tmp_path / "train").symlink_to(tmp_path / "val")
    task = replace(FOLDER_TASK, size=224, batch=1)
    tested, _ = next(InFolders(tmp_path, task, Share()).test_batches())
    assert tested.amin() > 2


def test_a_folder_without_images_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no <class>/<image> folders; put train/<class>/\*\.jpeg"):
        InFolders(tmp_path, FOLDER_TASK, Share())
    image_folder(tmp_path, {"train": 1, "val": 1})
    (tmp_path / "train" / "n01" / "0.jpeg").write_bytes(b"none")
    with pytest.raises(SystemExit, match=r"0\.jpeg is no image that Pillow can read"):
        some(InFolders(tmp_path, replace(FOLDER_TASK, batch=1), Share()), 3)


# --- schedules ---------------------------------------------------------------------------------------------------------------


def rates(kind: Kind, steps: int = 8, losses: Sequence[float] = ()) -> list[float]:
    """Return the rate of each step, or, where epochs' losses are given, of each epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.8, momentum=0.9)
    schedule = Schedule(kind, optimizer, 0.8, steps)
    found = []
    for loss in losses or [0.0] * steps:
        found.append(schedule.lr)
        optimizer.step()
        schedule.stepped()
        if losses:
            schedule.epoch_done(loss)
    return found


def test_rates_go_as_their_names_say() -> None:
    assert rates("constant") == [0.8] * 8
    assert rates("steps") == pytest.approx([0.8] * 4 + [0.08] * 2 + [0.008] * 2)
    assert rates("cosine") == pytest.approx([0.4 * (1 + np.cos(np.pi * step / 8)) for step in range(8)])
    cycle = rates("one-cycle", 20)
    assert max(cycle) == pytest.approx(0.8)
    assert cycle[0] == pytest.approx(0.8 / 25)
    assert cycle[-1] < 0.02
    losses = [2.0, *[1.0] * (PATIENCE + 2), *[1.0] * PATIENCE]
    assert rates("plateau", losses=losses) == [0.8] * (PATIENCE + 3) + [0.4] * PATIENCE
    with pytest.raises(SystemExit, match="There is no schedule 'square'"):
        rates("square")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["constant", "plateau", "one-cycle", "cosine", "steps"])
def test_a_schedule_goes_on_from_its_state(kind: Kind) -> None:
    def made() -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.8, momentum=0.9)
        return optimizer, Schedule(kind, optimizer, 0.8, 20)

    def go_on(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> list[tuple[float, float]]:
        found = []
        for _ in range(steps):
            found.append((schedule.lr, optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            schedule.stepped()
            schedule.epoch_done(1.0)
        return found

    whole, (optimizer, schedule) = go_on(*made(), 20), made()
    first = go_on(optimizer, schedule, 4)
    resumed = made()
    resumed[0].load_state_dict(optimizer.state_dict())
    resumed[1].load(json.loads(json.dumps(schedule.state())))
    assert first + go_on(*resumed, 16) == whole


# --- one run -----------------------------------------------------------------------------------------------------------------


def test_a_curve_says_all_that_the_format_asks_for(tmp_path: Path) -> None:
    curve = trained(SMALL, tmp_path)
    required = {
        *("grid", "model", "data", "arm", "p", "wiring", "seed", "topology_seed", "step", "epoch", "macs", "seconds"),
        *("train_loss", "test_error", "lr", "params", "commit", "versions", "hardware", "step_seconds", "peak_memory"),
    }
    assert all(required <= line.keys() for line in curve)
    assert [line["step"] for line in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1]["macs"] == 6 * 16 * curve[-1]["executed_macs"]
    assert curve[-1]["params"] == models.parameters(models.plain_cnn21())
    assert (curve[0]["figures"]["C"], curve[0]["figures"]["effective_depth"], curve[0]["p_achieved"]) == (0, 21, 0)
    assert curve[-1]["peak_memory"] > 50e6
    assert sum(line["step_seconds"] for line in curve) == pytest.approx(curve[-1]["seconds"], abs=0.002)
    assert json.loads(json.dumps(curve)) == curve


def test_the_arms_of_a_seed_start_alike_and_see_the_same_images(tmp_path: Path) -> None:
    original, copied = (trained(replace(SMALL, lr=0.0), tmp_path, arm) for arm in (ORIGINAL, Arm("copy", 0.0)))
    assert [line["train_loss"] for line in original] == pytest.approx([line["train_loss"] for line in copied])


def test_bfloat16_trains(tmp_path: Path) -> None:
    full, half = (trained(replace(SMALL, bfloat16=form), tmp_path)[0]["train_loss"] for form in (False, True))
    assert full != half
    assert half == pytest.approx(full, rel=0.02)


def test_links_move_while_it_trains_and_go_on_doing_so_from_a_checkpoint(tmp_path: Path) -> None:
    arm = Arm("kernel-p0.3-rewired", 0.3, "kernel", rewire_every=2)
    task, asked = replace(SMALL, epochs=3), []

    def third() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Stopped):
        trained(task, tmp_path / "stopped", arm, stop=third)
    stopped, whole = (losses(trained(task, tmp_path / name, arm)) for name in ("stopped", "whole"))
    still = losses(trained(task, tmp_path / "still", replace(arm, rewire_every=0)))
    assert stopped == whole
    assert whole[0] == still[0]  # nothing has moved by the first evaluation
    assert whole[-1] != still[-1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside inductor
def test_a_compiled_network_trains_and_its_checkpoint_is_the_same_as_another(tmp_path: Path) -> None:
    task = replace(SMALL, model="plain_mlp")
    asked: list[int] = []
    with pytest.raises(Stopped):
        trained(task, tmp_path, conditions=Conditions(compile="default"), stop=lambda: asked.append(1) or len(asked) == 3)
    compiled, eager = trained(task, tmp_path), trained(task, tmp_path / "none")
    assert [line["compile"] for line in compiled] == ["default"] * 3 + [None] * 3
    assert [line["train_loss"] for line in compiled] == pytest.approx([line["train_loss"] for line in eager], rel=1e-5)


def test_a_loss_that_is_not_finite_is_written_as_none_and_the_run_ends(tmp_path: Path) -> None:
    curve = trained(replace(SMALL, lr=1e30, schedule="constant", model="plain_mlp"), tmp_path)
    assert len(curve) == 6
    assert curve[-1]["train_loss"] is None
    assert "NaN" not in json.dumps(curve)


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(SMALL, tmp_path, stop=lambda: True)
    with pytest.raises(SystemExit, match="is of a run under other options"):
        trained(replace(SMALL, momentum=0.5), tmp_path)


@pytest.mark.parametrize("task", [*CIFAR100.tasks, *IMAGEFOLDER.tasks], ids=lambda task: task.name)
def test_the_grids_of_other_images_train_on_folders_of_their_shape(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWCOMPILE_DATA", str(tmp_path))
    if task.data == "cifar100":
        write_npz(small_set(200, 32, 100, "cifar100"), tmp_path)
        part = replace(task, epochs=1, batch=2, train_images=2, test_images=2, evaluations=1)
    else:
        image_folder(tmp_path / "imagefolder", {"train": 1, "val": 1})
        part = replace(task, epochs=1, batch=3, evaluations=1, size=64)
    arm = next(arm for arm in task.arms if arm.p == 0.3)
    assert carry_out(small_run(part, arm), Setting(tmp_path / "out", Conditions()), ALONE) == "trained"
    (line,) = read_curve(Place(tmp_path / "out", small_run(part, arm)).curve)
    assert 0 <= line["test_error"] <= 1
    assert line["p_achieved"] > 0.2


# --- a grid ------------------------------------------------------------------------------------------------------------------

SMALL_GRID = Grid("small", (SMALL,), (0,))


def run_grid(results: Path, grid: Grid = SMALL_GRID) -> dict[str, str]:
    runs = list(grid.runs())
    with Display(runs, 1, Console(quiet=True)) as display:
        assert not one_by_one(runs, Setting(results, Conditions()), display)
    return display.outcomes


def test_a_small_grid_runs_once_and_reports_from_its_files(tmp_path: Path, data: Path) -> None:
    assert set(run_grid(tmp_path).values()) == {"trained"}
    curves = read_curves(SMALL_GRID, tmp_path / "small")
    assert [found[0]["arm"] for found in curves] == ["original", "block-p0.3"]
    original, rewired = (found[-1] for found in curves)
    assert (original["params"], original["macs"]) == (rewired["params"], rewired["macs"])
    assert "the first 48 training images and the first 6 test images of cifar10" in original["subset"]
    (group,) = tables.by_task(curves)
    assert "plain_cnn21, one-cycle rate: steps to a training loss of" in text(tables.report(group))
    assert "after 2 epochs on the first 48 training images" in text(tables.summary(group))
    first = next(SMALL_GRID.runs())
    Place(tmp_path, first).curve.unlink()
    assert run_grid(tmp_path) == {first.name: "trained", first.name.replace("original", "block-p0.3"): "there"}


def test_a_curve_of_other_options_is_not_taken_for_the_runs_own(tmp_path: Path, data: Path) -> None:
    run_grid(tmp_path)
    other = Grid("small", (replace(SMALL, epochs=1),), (0,))
    assert set(run_grid(tmp_path, other).values()) == {"failed"}
    with pytest.raises(SystemExit, match="was made under other options; move it away"):
        Place(tmp_path, next(other.runs())).finished()


def test_the_command_lists_trains_again_and_reports(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convergence, "GRIDS", {"small": SMALL_GRID})
    told = ["small", "--results", str(tmp_path), "--arms", "original"]
    convergence.main([*told, "--list"])
    assert "not begun  plain_cnn21-cifar10-original-seed0  lr 0.05" in capsys.readouterr().out
    for expected, more in (("trained", []), ("is there already", []), ("trained", ["--again"])):
        convergence.main([*told, *more])
        assert f"original-seed0  {expected}" in capsys.readouterr().out
    with Place(tmp_path, next(SMALL_GRID.runs())).lock(), pytest.raises(SystemExit, match="in another process's hands"):
        convergence.main([*told, "--again"])
    with pytest.raises(SystemExit, match="There is no curve in"):
        convergence.main(["small", "--results", str(tmp_path / "none"), "--report"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="torchrun has started several processes already"):
        convergence.main([*told, "--workers", "2"])


def test_a_run_that_fails_does_not_keep_others_from_running(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = replace(SMALL, arms=(Arm("broken", 0.3, control="none such"), ORIGINAL))
    monkeypatch.setattr(convergence, "GRIDS", {"small": Grid("small", (broken,), (0,))})
    with pytest.raises(SystemExit, match="1 of 2 runs failed: plain_cnn21-cifar10-broken-seed0"):
        convergence.main(["small", "--results", str(tmp_path)])
    told = capsys.readouterr().out
    assert "FAILED: There is no control 'none such'" in told
    assert "original-seed0  trained" in told


def test_the_rate_of_each_arm_is_chosen_on_held_out_images(tmp_path: Path, data: Path) -> None:
    task = replace(SMALL, model="plain_mlp", lrs=(0.05, 0.0), tuning_epochs=1, held_out=16)
    grid = Grid("small", (task,), (0,))
    runs = list(tuning_runs(grid))
    assert len(runs) == 4
    for run in runs:
        assert not chosen_rates(grid, tmp_path)  # half a tuning is none
        carry_out(run, Setting(tmp_path, Conditions()), ALONE)
    assert {line["subset"] for line in read_curve(Place(tmp_path, runs[0]).curve)} == {
        "32 training images of cifar10, tested on 16 more of them"
    }
    assert set(chosen_rates(grid, tmp_path)) == {(task.name, "original"), (task.name, "block-p0.3")}
    assert [run.lr for run in grid.runs(dict.fromkeys(chosen_rates(grid, tmp_path), 0.7))] == [0.7, 0.7]


def test_the_best_rate_is_the_one_with_the_lowest_late_error() -> None:
    def curve(*errors: float, loss: float | None = 1.0) -> list[dict[str, Any]]:
        return [{"test_error": error, "train_loss": loss} for error in errors]

    assert best([(0.1, curve(0.1, 0.1, 0.1, 0.4)), (0.2, curve(0.9, 0.9, 0.9, 0.3))]) == 0.2
    assert best([(0.3, curve(0.3)), (0.1, curve(0.3))]) == 0.1
    assert best([(0.1, curve(0.5)), (0.2, curve(0.0, loss=None))]) == 0.1


def test_a_terminal_shows_each_run_under_way_and_the_time_left() -> None:
    shown, runs = io.StringIO(), list(SMALL_GRID.runs())
    with Display(runs, 1, Console(file=shown, force_terminal=True, width=200)) as display:
        display.began(runs[0].name)
        for step in (1, 2):
            display.progressed(runs[0].name, training.Progress(step, 6, 0.1, {"test_error": 0.25}))
        display.bars.refresh()
        for told in (runs[0].name, "test error 0.250", "2/6", "0/2", "about 0 s left"):
            assert told in shown.getvalue()
        display.ended(runs[0].name, "trained")
    assert f"{runs[0].name}  trained; about 0 s left" in shown.getvalue()
    assert display.outcomes == {runs[0].name: "trained"}


def test_the_time_left_is_estimated_by_runs_alike() -> None:
    now = [0.0]
    runs = list(Grid("small", (SMALL, replace(SMALL, variant="other")), (0,)).runs())
    estimate = Estimate(runs, 2, lambda: now[0])
    assert estimate.left() is None
    names = [run.name for run in runs]
    estimate.reached(names[0], 0.5)  # a run that was resumed
    now[0] = 10.0
    estimate.reached(names[0], 0.75)
    assert estimate.left() == pytest.approx((10 + 3 * 40) / 2)
    now[0] = 20.0
    estimate.ended(names[0], whole=True)
    estimate.reached(names[1], 0.0)
    now[0] = 30.0
    estimate.reached(names[1], 0.1)
    assert estimate.left() == pytest.approx((90 + 2 * 70) / 2)
    assert [_spoken(seconds) for seconds in (89.6, 100, 89 * 60, 3 * 3600 + 240)] == ["90 s", "2 min", "89 min", "3:04 h"]


# --- tables ------------------------------------------------------------------------------------------------------------------


def curve(values: Sequence[float], arm: str = "original", seed: int = 0, p: float = 0.0) -> list[dict[str, Any]]:
    options = dataclasses.asdict(SMALL)
    fixed = {"arm": arm, "seed": seed, "p": p, "wiring": "block" if p else None, "params": 10, "subset": "all", "options": options}
    return [
        fixed
        | {"step": 10 * place, "epoch": place / 2, "train_loss": value, "test_error": value / 4, "seconds": 2.0 * place}
        | {"macs": 100 * place}
        for place, value in enumerate(values, start=1)
    ]


def test_a_target_is_reached_where_the_median_of_three_is() -> None:
    assert tables.reached(curve([3, 1, 3, 3, 2, 2]), "train_loss", 2) == 50  # not at the dip of the second evaluation
    assert tables.reached(curve([3, 3, 3]), "train_loss", 2) is None


def test_the_report_compares_with_the_original_and_tells_who_never_got_there() -> None:
    fast, slow = curve([3, 1, 1, 0.5], "fast", p=0.3), curve([4, 4, 4, 4], "slow", p=0.9)
    shown = text(tables.report([curve([4, 3, 2, 1]), fast, slow]))
    assert "steps to a training loss of 1.000" in shown
    assert "2.00x" in shown
    assert "not reached" in shown


def test_the_report_refuses_curves_that_do_not_compare() -> None:
    with pytest.raises(SystemExit, match="no curve of an original"):
        tables.report([curve([1, 2], "fast", p=0.3)])
    other = [line | {"options": {"lr": 1.0}} for line in curve([1, 2], "fast", p=0.3)]
    assert len(tables.by_task([curve([1, 2]), other])) == 2
    with pytest.raises(SystemExit, match="different options"):
        tables.report([curve([1, 2]), other])


def test_the_summary_gives_mean_and_deviation_over_seeds() -> None:
    runs = [curve([3, loss], seed=loss) for loss in (1, 2)]
    assert "1.5000 ± 0.7071" in text(tables.summary(runs))
