"""The figures of the network that a curve was trained on, from the compiler itself.

A curve that carries them (`figures`) is taken at its word. Otherwise its network is built again from model, data, arm, p, wiring,
parameter budget and seeds, and counted by this version: where the wiring's draw has changed since, by another draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import nn

import swnet
from benchmarks.controls import CONTROLS
from benchmarks.lab.networks import MODELS
from benchmarks.models import seeded
from benchmarks.reporting.curves import Run
from benchmarks.reporting.regression import FIGURES
from swcompile.modules import RewiredModule

NAMES = dict(zip(FIGURES, ("S", "C", "L", "graph_density", "effective_depth", "mean_path", "macs"), strict=True))
SETS: Mapping[str, tuple[int, int, int]] = {"cifar10": (10, 3, 32), "cifar100": (100, 3, 32), "fashion-mnist": (10, 1, 28)}
"""Classes, channels and size of each set whose images are of one size."""


def figures(runs: Sequence[Run]) -> dict[str, float] | None:
    """Return the mean figures of an arm's networks over its topologies, None where they cannot be known."""
    found = [_of(run) for run in runs]
    known = [one for one in found if one is not None]
    return {name: float(np.mean([one[name] for one in known])) for name in FIGURES} if len(known) == len(found) else None


def _of(run: Run) -> Mapping[str, float] | None:
    first = run.records[0]
    if "figures" in first:
        return {name: float(first["figures"][kept]) for name, kept in NAMES.items()}
    if first["model"] not in MODELS or first["data"] not in SETS:
        return None
    classes, channels, size = SETS[first["data"]]
    made = first.get("control"), first.get("wiring")
    seed = run.topology if any(made) else 0  # a network that is not rewired has the same figures whatever its weights are
    asked = first["p"], first.get("params_budget"), first.get("skips", "keep")
    return _counted(first["model"], (classes, channels, run.options.get("size") or size), *made, *asked, seed)


@cache
def _counted(
    model: str,
    images: tuple[int, int, int],
    control: str | None,
    wiring: str | None,
    p: float,
    params: int | None,
    skips: str,
    seed: int,
) -> Mapping[str, float]:
    classes, channels, size = images
    example = torch.zeros(2, channels, size, size)
    network = seeded(MODELS[model], 0, classes, channels, size)
    if control is not None:
        network = CONTROLS[control](network, example, seed, p)
    elif wiring is not None:
        network = swnet.transform(network, example, p=p, wiring=wiring, params=params, seed=seed, skips=skips)
    side = swnet.ledger(_counting(network, example)).after
    return {name: float(getattr(side, kept)) for name, kept in NAMES.items()}


def _counting(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a network that has a ledger: itself, or the same one after nothing was moved in it."""
    known = isinstance(network, RewiredModule) and network.swcompile is not None
    return network if known else swnet.transform(network, example, p=0.0)
