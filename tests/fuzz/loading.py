"""Mutations that Python code meets: saved folders to load, plans to read and apply."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

import swnet
from swcompile.modelfile import load_model
from swcompile.plan import Plan

from . import documents, folders, plans, raw, sources, weights
from .judge import Attempt, FindingError
from .sandbox import SPECIAL, Sandbox, make_special
from .subjects import Subject, outputs


def _saved(subject: Subject, sandbox: Sandbox) -> Path:
    folder = sandbox.work / "saved"
    folder.mkdir()
    for name, content in subject.files.items():
        (folder / name).write_bytes(content)
    return folder


def _seal(folder: Path) -> None:
    """Make the manifest describe the files as they are: what is wrong inside them is then all that is wrong."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _loading(folder: object, subject: Subject, *, finite: bool = True) -> Callable[[], None]:
    def act() -> None:
        with _random_state_kept():
            module = swnet.load(folder, subject.model)  # type: ignore[arg-type]
        exercise(module, subject, finite=finite)

    return act


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    before = torch.random.get_rng_state()
    try:
        yield
    finally:
        if not torch.equal(torch.random.get_rng_state(), before):
            raise FindingError("torch's random state is not as it was")


def exercise(module: nn.Module, subject: Subject, *, finite: bool = True) -> None:
    """Use a module as its owner would: both modes, backward, ledger. Raises FindingError where it is not sound."""
    for training, shapes in subject.shapes.items():
        made = outputs(module.train(training), subject.inputs)
        if [out.shape for out in made] != shapes:
            raise FindingError(f"the outputs have shapes {[tuple(out.shape) for out in made]}")
        if finite and not all(bool(out.isfinite().all()) for out in made):
            raise FindingError("the outputs are not finite")
        sum(out.float().sum() for out in made).backward()  # type: ignore[union-attr]
    made_of = swnet.ledger(module)
    json.dumps(made_of.as_dict(), allow_nan=False, default=str)
    str(module.swcompile.plan)  # type: ignore[union-attr]


def any_plan(draw: Random, subject: Subject) -> tuple[bytes, str]:
    """Mutate a plan by its bytes, its form, or (mostly) its meaning."""
    good = subject.files["plan.json"]
    match draw.choice(["bytes", "form", "form", "form", "meaning", "meaning", "meaning", "meaning"]):
        case "bytes":
            return raw.mutate(draw, good)
        case "form":
            return documents.mutate(draw, json.loads(good))
        case _:
            return plans.mutate(draw, json.loads(good), subject)


def sealed_plan(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Load a folder whose plan was changed, and its manifest with it."""
    folder = _saved(subject, sandbox)
    content, told = any_plan(draw, subject)
    (folder / "plan.json").write_bytes(content)
    _seal(folder)
    return Attempt(f"{subject.name}, {told}, sealed", _loading(folder, subject))


def sealed_weights(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Load a folder whose weights were changed, and its manifest with them."""
    folder = _saved(subject, sandbox)
    content, told = weights.mutate(draw, subject.files["weights.safetensors"])
    (folder / "weights.safetensors").write_bytes(content)
    _seal(folder)
    return Attempt(f"{subject.name}, {told}, sealed", _loading(folder, subject, finite=False))


def manifest(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Load a folder whose manifest was changed."""
    folder = _saved(subject, sandbox)
    good = subject.files["manifest.json"]
    content, told = raw.mutate(draw, good) if draw.random() < 0.25 else documents.mutate(draw, json.loads(good))
    (folder / "manifest.json").write_bytes(content)
    return Attempt(f"{subject.name}, manifest, {told}", _loading(folder, subject))


def unsealed(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Load a folder with one to three files changed as bytes, which the hashes must notice, or with another subject's file."""
    folder = _saved(subject, sandbox)
    told = []
    for name in draw.sample(sorted(subject.files), draw.choice([1, 1, 2, 3])):
        content, how = raw.mutate(draw, subject.files[name])
        (folder / name).write_bytes(content)
        told.append(f"{name}, {how}")
    return Attempt(f"{subject.name}, {'; '.join(told)}", _loading(folder, subject, finite=False))


def odd_folder(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Load a folder that holds something else than files, or by a strange name."""
    folder = _saved(subject, sandbox)
    if draw.random() < 0.25:
        given = draw.choice(folders.names(sandbox))
        return Attempt(f"{subject.name}, load({given!r:.80})", _loading(given, subject))
    return Attempt(f"{subject.name}, {folders.mutate(draw, folder, sandbox)}", _loading(folder, subject))


def plan_file(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Read a plan and apply it; save what comes out of it now and then, and load it again."""
    path: Any = sandbox.work / "plan.json"
    if draw.random() < 0.06:
        path, told = _odd_file(draw, path, sandbox)
    else:
        content, told = any_plan(draw, subject)
        path.write_bytes(content)
    back = draw.random() < 0.25

    def act() -> None:
        plan = Plan.read(path)
        if Plan.from_json(plan.to_json()) != plan:
            raise FindingError("a plan that was read and written is another one")
        with _random_state_kept():
            module = swnet.apply(subject.model, plan, subject.inputs)
        exercise(module, subject)
        if back:
            swnet.save(module, "again")
            again = swnet.load("again", subject.model)
            if any(not torch.equal(tensor, again.state_dict()[name]) for name, tensor in module.state_dict().items()):
                raise FindingError("the weights that were saved are not those that were loaded")

    return Attempt(f"{subject.name}, {told}{', save and load' if back else ''}", act, out="again")


def _odd_file(draw: Random, path: Path, sandbox: Sandbox) -> tuple[object, str]:
    """Return something in place of a file, or a name that is none."""
    if draw.random() < 0.5:
        kind = draw.choice(SPECIAL)
        make_special(kind, path, sandbox)
        return path, f"a {kind} as the plan"
    given = draw.choice(folders.names(sandbox))
    return given, f"Plan.read({given!r:.80})"


def model_file_loaded(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Load a good folder into what a changed model file builds."""
    folder = _saved(subject, sandbox)
    good = subject.file.read_text(encoding="utf-8")
    content, told = (sources.tokens(draw, good).encode(), "tokens") if draw.random() < 0.6 else sources.mutate(draw)
    (sandbox.work / "net.py").write_bytes(content)

    def act() -> None:
        swnet.load(folder, load_model("net.py").model)

    return Attempt(f"{subject.name} loaded into: {told}", act, foreign=True)
