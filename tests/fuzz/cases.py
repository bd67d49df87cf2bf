"""One mutation by its seed and index: what it is, and how it ended."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from . import commands, loading
from .judge import Attempt, Outcome, judge
from .sandbox import Sandbox
from .subjects import Subject

SURFACES: dict[str, tuple[int, Callable[[Random, Subject, Sandbox], Attempt]]] = {
    "plan and manifest": (20, loading.sealed_plan),
    "weights and manifest": (15, loading.sealed_weights),
    "manifest": (13, loading.manifest),
    "any file": (5, loading.unsealed),
    "folder": (5, loading.odd_folder),
    "plan": (14, loading.plan_file),
    "plan, command line": (4, commands.command_plan),
    "options, command line": (4, commands.command_options),
    "model file, command line": (14, commands.model_file),
    "model file, load": (4, loading.model_file_loaded),
    "name of the model file": (2, commands.model_name),
}
"""What is fuzzed, and how many in a hundred mutations."""


def run(seed: int, index: int, subjects: Sequence[Subject], keep: Path | None = None) -> Outcome:
    """Run one mutation in a sandbox, and judge it; `keep` is a folder for its files as they were before it ran."""
    draw = Random(f"{seed}:{index}")
    surface = draw.choices(list(SURFACES), [weight for weight, _ in SURFACES.values()])[0]
    with Sandbox() as sandbox:
        attempt = SURFACES[surface][1](draw, draw.choice(subjects), sandbox)
        if keep is not None:
            _keep(sandbox, keep)
        start = time.perf_counter()
        verdict, said = judge(attempt, sandbox)
        return Outcome(index, surface, attempt.told, verdict, said, time.perf_counter() - start)


def _keep(sandbox: Sandbox, keep: Path) -> None:
    shutil.copytree(
        sandbox.work,
        keep,
        symlinks=True,
        dirs_exist_ok=True,
        ignore=lambda folder, names: [
            name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()
        ],
    )
