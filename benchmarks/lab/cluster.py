"""Hand a grid's runs to Ray Tune, which shares them out over the machines of a cluster. Needs the extra `cluster`.

The machines must see one results folder and have the images in their own data folders. Ray only decides who trains what: locks,
checkpoints and curves are those of any other command, so a run that its machine loses goes on elsewhere from its checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray import tune

from benchmarks.lab.grids import Run
from benchmarks.lab.ranks import CPU, Ranks, Share
from benchmarks.lab.training import Progress
from benchmarks.lab.work import Setting, carry_out

FAILURES = 3
"""How often a run is taken up again whose machine was lost."""


def over_machines(runs: Sequence[Run], setting: Setting, address: str, workers: int) -> None:
    """Carry out runs on the cluster at `address`, or on one of this machine for "local", `workers` at a time on each GPU.

    Raises:
        SystemExit: where some runs failed, with their errors.
    """
    setting = replace(setting, results=setting.results.absolute(), threads=setting.threads or 1)
    with ray.init(address, log_to_driver=False):
        named = {run.name: run for run in runs}
        asked = {"cpu": setting.threads, "gpu": 1 / workers if ray.cluster_resources().get("GPU") else 0}
        trainable = tune.with_parameters(_trial, runs=named, setting=setting, data=os.environ.get("SWCOMPILE_DATA"))
        results = tune.Tuner(
            tune.with_resources(trainable, asked),
            param_space={"run": tune.grid_search(list(named))},
            run_config=tune.RunConfig(
                name=runs[0].grid,
                storage_path=str(setting.results / ".running"),
                failure_config=tune.FailureConfig(max_failures=FAILURES),
                verbose=1,
            ),
        ).fit()
    if results.errors:
        raise SystemExit(f"{len(results.errors)} of {len(runs)} runs failed:\n" + "\n".join(map(str, results.errors)))


def _trial(config: Mapping[str, Any], runs: Mapping[str, Run], setting: Setting, data: str | None) -> None:
    """Carry out one run where Ray has put it, and report each evaluation."""
    if data:
        os.environ["SWCOMPILE_DATA"] = data
    torch.set_num_threads(setting.threads or 1)
    device = torch.device("cuda") if torch.cuda.is_available() else CPU

    def observe(progress: Progress) -> None:
        if progress.last:
            tune.report({"step": progress.step, "test_error": progress.last["test_error"]})

    outcome = carry_out(runs[config["run"]], setting, Ranks(Share(device=device)), observe)
    tune.report({"outcome": outcome})
