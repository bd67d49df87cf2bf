"""Images in folders, as ImageNet comes: train/<class>/*.jpeg and val/<class>/*.jpeg, decoded as they are needed.

The folder is named `imagefolder` in the data folder (see benchmarks/data.py); it may be a link.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.lab.grids import Task
from benchmarks.lab.images import Pictures, generator, split
from benchmarks.lab.ranks import Share

ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"}
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
"""ImageNet's, which folders of other images are normalised by, too: it is the same for all arms."""
ENLARGED = 256 / 224
"""How much larger than the crop in its middle a test image is."""


@dataclass(frozen=True)
class Files:
    """The images of one folder of classes, in a fixed order."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: int

    @classmethod
    def found(cls, folder: Path) -> Files:
        """List a folder; raise SystemExit where there are no classes with images in it."""
        names = sorted(place.name for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
        pairs = [
            (file, label)
            for label, name in enumerate(names)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in ENDINGS
        ]
        if not pairs:
            raise SystemExit(
                f"{folder} holds no <class>/<image> folders; put train/<class>/*.jpeg and val/<class>/*.jpeg into "
                f"{folder.parent}, or link it there."
            )
        files, labels = zip(*pairs, strict=True)
        return cls(files, labels, len(names))

    def of(self, places: Tensor) -> Files:
        """Return some of them."""
        chosen = places.tolist()
        return Files(tuple(self.files[place] for place in chosen), tuple(self.labels[place] for place in chosen), self.classes)


class Decoded(Dataset[tuple[Tensor, int]]):
    """Images (3, size, size): cut at random as the seed and the step say, or the middle."""

    def __init__(self, files: Files, size: int) -> None:
        self.files, self.size = files, size

    def __getitem__(self, asked: int | tuple[int, tuple[Any, ...]]) -> tuple[Tensor, int]:
        place, key = asked if isinstance(asked, tuple) else (asked, None)
        picture = _opened(self.files.files[place])
        cut = _middle(picture, self.size) if key is None else _random_cut(picture, self.size, generator(*key))
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255  # (3, size, size)
        return (pixels - MEAN) / STD, self.files.labels[place]

    def __len__(self) -> int:
        return len(self.files.files)


def _opened(file: Path) -> Any:
    from PIL import Image  # what trains on sets in memory needs no Pillow

    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise SystemExit(f"{file} is no image that Pillow can read ({error}); replace or remove it.") from error


def _middle(picture: Any, size: int) -> Any:
    """Return the middle of an image of which the shorter side is made `ENLARGED` times as long as the crop."""
    scale = size * ENLARGED / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.resize((width, height), BILINEAR).crop((left, top, left + size, top + size))


def _random_cut(picture: Any, size: int, draw: torch.Generator) -> Any:
    """Return a part of between 8% and 100% of the area and a shape of 3:4 to 4:3, in half of the cases mirrored.

    Source: Szegedy et al., arXiv 1409.4842, section 6.
    """
    width, height = picture.size
    area, shape, across, down, mirror = torch.rand(5, generator=draw).tolist()
    ratio = (3 / 4) * (16 / 9) ** shape
    wanted = width * height * (0.08 + 0.92 * area)
    wide, high = min(width, round((wanted * ratio) ** 0.5)), min(height, round((wanted / ratio) ** 0.5))
    left, top = across * (width - wide), down * (height - high)
    cut = picture.resize((size, size), BILINEAR, box=(left, top, left + max(wide, 1), top + max(high, 1)))
    return cut.transpose(MIRROR) if mirror < 0.5 else cut


BILINEAR, MIRROR = 2, 0
"""Pillow's numbers of the two operations."""


class Batches:
    """The places of this rank's share of each batch from step `first` on, without end, with what each image's cut is drawn from."""

    def __init__(self, count: int, batch: int, share: Share, seed: int, first: int) -> None:
        self.count, self.batch, self.share, self.seed, self.first = count, batch, share, seed, first

    def __iter__(self) -> Iterator[list[tuple[int, tuple[Any, ...]]]]:
        per_epoch, step = self.count // self.batch, self.first
        while True:
            epoch, begin = divmod(step, per_epoch)
            order = torch.randperm(self.count, generator=generator(self.seed, "order", epoch))
            for place in range(begin, per_epoch):
                chosen = order[place * self.batch : (place + 1) * self.batch][self.share.of(self.batch)]
                yield [(int(image), (self.seed, "cut", epoch, int(image))) for image in chosen]
                step += 1


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the process that trains, which still needs images up to its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class InFolders(Pictures):
    """Images that processes of their own decode as they are needed."""

    def __init__(self, folder: Path, task: Task, share: Share, *, held_out: bool = False, workers: int = 0) -> None:
        self.task, self.share, self.workers = task, share, workers
        self.train, tests = Files.found(folder / "train"), Files.found(folder / "val")
        if self.train.classes != tests.classes:
            raise SystemExit(f"{folder}: train has {self.train.classes} classes and val {tests.classes}; they must be the same.")
        self.subset = task.subset
        if held_out:
            mixed = torch.randperm(len(self.train.files), generator=generator("held-out"))  # files lie class by class
            kept, apart = (mixed[split(len(mixed), task.held_out, part)] for part in ("train", "held-out"))
            self.train, tests = self.train.of(kept), self.train.of(apart)
            self.subset = f"{len(kept):,} training images of {task.data}, tested on {len(apart):,} more of them"
        self.classes, self.tests = tests.classes, len(tests.files)
        self.per_epoch = len(self.train.files) // share.whole(task.batch)
        if not self.per_epoch:
            raise SystemExit(f"{self.subset}: {len(self.train.files):,} images do not make one batch of {task.batch}.")
        self.size = task.size or 224
        self.test = Decoded(tests, self.size)
        mine = Subset(self.test, range(share.rank, len(self.test), share.ranks))
        self._tests = DataLoader(mine, batch_size=task.batch, persistent_workers=bool(workers), **self._how)
        self.example = torch.zeros(2, 3, self.size, self.size)

    def batches(self, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield cuts in random order, each image once an epoch."""
        chosen = Batches(len(self.train.files), self.task.batch, self.share, seed, first)
        yield from self._loaded(DataLoader(Decoded(self.train, self.size), batch_sampler=chosen, **self._how))

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the middles of every `ranks`-th test image."""
        yield from self._loaded(self._tests)

    @property
    def _how(self) -> dict[str, Any]:
        # A worker process of its own: threads that torch has started do not survive a fork.
        workers = {"num_workers": self.workers, "multiprocessing_context": "spawn" if self.workers else None}
        return workers | {"worker_init_fn": _ignore_interrupts, "pin_memory": self.share.device.type == "cuda"}

    def _loaded(self, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            device = self.share.device
            layout = {"non_blocking": True, "memory_format": torch.channels_last}
            yield images.to(device, **layout), labels.to(device, non_blocking=True)
