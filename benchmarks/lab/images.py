"""The images of a run: batches that follow from the seed and the number of the step alone, whoever asks, and how often.

So a run that goes on after a stop needs no state of a sampler, and a batch can be shared out over any number of ranks.
"""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import Dataset
from benchmarks.lab.grids import Task
from benchmarks.lab.ranks import Share

PADDING = 4
TEST_BATCH = 500


def generator(*key: object) -> torch.Generator:
    """Return a generator that follows from a key: the seed, what is drawn, the number of the epoch or step."""
    return torch.Generator().manual_seed(number(*key))


def number(*key: object) -> int:
    """Return 63 bits that follow from a key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


class Pictures(ABC):
    """What a run trains and is tested on, as its own rank sees it."""

    classes: int
    per_epoch: int
    """Steps an epoch; a short last batch is left out."""
    example: Tensor
    """Two images as the network gets them, on the CPU."""
    subset: str
    """Which images these are."""
    tests: int
    """The number of all test images, of all ranks together."""

    @abstractmethod
    def batches(self, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's share of each batch (N / ranks, C, H, W) and its labels, from step `first` on, without end."""

    @abstractmethod
    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's share of the test images, and their labels."""


def split(count: int, held_out: int, part: Literal["train", "held-out"]) -> slice:
    """Return where the training images lie of which the last `held_out` are kept apart, or where these lie."""
    if held_out >= count:
        raise SystemExit(f"{held_out:,} of {count:,} training images cannot be held out; name fewer in the task.")
    return slice(0, count - held_out) if part == "train" else slice(count - held_out, count)


class InMemory(Pictures):
    """A set that lies whole on the device: images are padded once, then cropped, flipped and turned there."""

    def __init__(self, data: Dataset, task: Task, share: Share, *, held_out: bool = False) -> None:
        self.task, self.share, device = task, share, share.device
        self.mean, self.std = (torch.tensor(value, device=device) * 255 for value in (data.mean, data.std))
        images, labels = data.train_images[: task.train_images], data.train_labels[: task.train_images]
        tests, test_labels = data.test_images[: task.test_images], data.test_labels[: task.test_images]
        self.subset = task.subset
        if held_out:
            kept, apart = (split(len(images), task.held_out, part) for part in ("train", "held-out"))
            images, labels, tests, test_labels = images[kept], labels[kept], images[apart], labels[apart]
            self.subset = f"{len(images):,} training images of {task.data}, tested on {len(tests):,} more of them"
        self.classes = int(data.train_labels.max()) + 1
        self.per_epoch = len(labels) // share.whole(task.batch)
        if not self.per_epoch:
            raise SystemExit(f"{self.subset}: {len(labels):,} images do not make one batch of {task.batch}.")
        train = self._framed(torch.from_numpy(images))
        self.size = train.shape[1]
        self.padded = F.pad(train, (0, 0, PADDING, PADDING, PADDING, PADDING)).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.tests = len(tests)
        mine = slice(share.rank, None, share.ranks)
        self.test = self._ready(self._framed(torch.from_numpy(tests[mine])).to(device))
        self.test_labels = torch.from_numpy(test_labels[mine]).to(device)
        self.example = self._ready(self._framed(torch.from_numpy(tests[:2])).to(device)).cpu()
        self._order = functools.lru_cache(2)(self._drawn_order)

    def batches(self, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield crops in random order, each image once an epoch."""
        step = first
        while True:
            epoch, place = divmod(step, self.per_epoch)
            chosen = self._order(seed, epoch)[place * self.task.batch : (place + 1) * self.task.batch]
            mine = self.share.of(self.task.batch)
            images = self._augmented(chosen, generator(seed, "crops", step), mine)
            yield images, self.labels[chosen[mine].to(self.labels.device)]
            step += 1

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every `ranks`-th test image."""
        yield from zip(self.test.split(TEST_BATCH), self.test_labels.split(TEST_BATCH), strict=True)

    def _drawn_order(self, seed: int, epoch: int) -> Tensor:
        return torch.randperm(len(self.labels), generator=generator(seed, "order", epoch))

    def _framed(self, images: Tensor) -> Tensor:
        """Frame images (N, H, W, C) with zeros up to the size that the task asks for."""
        margin = (self.task.size or images.shape[1]) - images.shape[1]
        before, after = margin // 2, margin - margin // 2
        return F.pad(images, (0, 0, before, after, before, after)) if margin else images

    def _ready(self, images: Tensor) -> Tensor:
        """Normalise images (N, H, W, C) in uint8 and return them as (N, C, H, W) in channels-last order."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def _augmented(self, chosen: Tensor, draw: torch.Generator, mine: slice) -> Tensor:
        """Return images flipped at random, shifted by up to PADDING and turned by up to the task's angle.

        Drawn for the whole batch, whichever part of it is asked for.
        """
        place = torch.arange(self.size)
        shift = torch.randint(0, 2 * PADDING + 1, (2, len(chosen), 1), generator=draw)[:, mine]
        flip = (torch.rand(len(chosen), 1, generator=draw) < 0.5)[mine]
        turn = (torch.rand(len(chosen), generator=draw) * 2 - 1)[mine]
        rows = place + shift[0]  # (N, H)
        columns = torch.where(flip, place.flip(0), place) + shift[1]  # (N, W)
        places = (chosen[mine][:, None, None], rows[:, :, None], columns[:, None, :])
        cropped = self._ready(self.padded[tuple(place.to(self.labels.device) for place in places)])
        return turned(cropped, turn * self.task.rotation) if self.task.rotation else cropped


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image (N, C, H, W) about its centre by its own angle (N); what comes in from outside is the mean, 0."""
    angle = degrees.to(images.device) * math.pi / 180
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, none], 1), torch.stack([sin, cos, none], 1)], 1)  # (N, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).contiguous(memory_format=torch.channels_last)
