"""Checkpoints by torch.distributed.checkpoint: whole or not there at all, and readable by any number of processes.

A checkpoint is a folder, `checkpoint-<step>`: the tensors of the model and the optimizer as torch writes them, and run.json with
the rest. It is written under another name, flushed to the disk and renamed: a name that is there names a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from benchmarks.lab.ranks import Ranks

PREFIX = "checkpoint-"


def latest(folder: Path) -> Path | None:
    """Return a run's newest checkpoint."""
    found = sorted(folder.glob(f"{PREFIX}*"), key=lambda checkpoint: int(checkpoint.name.removeprefix(PREFIX)))
    return found[-1] if found else None


def save(
    folder: Path, step: int, model: nn.Module, optimizer: Optimizer, losses: Tensor, rest: dict[str, Any], ranks: Ranks
) -> None:
    """Write a checkpoint, then remove those before it. At least one step must have been taken."""
    part = folder / ".part"
    if ranks.first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    ranks.wait()
    with _quietly():
        dcp.save(_tensors(model, optimizer, losses), storage_writer=dcp.FileSystemWriter(part, sync_files=True))
    if ranks.first:
        write_flushed(part / "run.json", json.dumps(rest))
        whole = folder / f"{PREFIX}{step}"
        part.rename(whole)
        flush_folder(folder)
        for checkpoint in folder.glob(f"{PREFIX}*"):
            if checkpoint != whole:
                shutil.rmtree(checkpoint)
    ranks.wait()


def rest_of(checkpoint: Path) -> dict[str, Any]:
    """Read what is no tensor."""
    rest: dict[str, Any] = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    return rest


def load(checkpoint: Path, model: nn.Module, optimizer: Optimizer, losses: Tensor) -> None:
    """Read a checkpoint into a model, an optimizer that has not stepped yet, and the losses."""
    state = _tensors(model, optimizer, losses)
    with _quietly():
        dcp.load(state, storage_reader=dcp.FileSystemReader(checkpoint))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def _tensors(model: nn.Module, optimizer: Optimizer, losses: Tensor) -> dict[str, Any]:
    of_model, of_optimizer = get_state_dict(model, optimizer)
    return {"model": of_model, "optimizer": of_optimizer, "losses": losses}


def write_flushed(file: Path, text: str) -> None:
    """Write a file and see it onto the disk."""
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """See onto the disk which names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _quietly() -> Iterator[None]:
    """Go without torch's note that a single process saves and loads alone, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield
