"""One mutation: what it is, how it is run, and whether it ended as it should."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

import swnet
from swcompile import cli
from swcompile.errors import SwnetError
from swcompile.modelfile import load_model
from swcompile.plan import Plan

from . import documents, folders, plans, raw, sources, weights
from .sandbox import SPECIAL, Process, Sandbox, changes, limited, make_special
from .subjects import Subject, outputs

SECONDS = 5.0
"""How long one mutation may take."""
LONGEST_MESSAGE = 8_000
"""How many characters a message may have: it is to be read. Names that a user types, up to 6,000 here, may be repeated."""

ACCEPTED, REFUSED, FAILED = "accepted", "refused", "failed"


@dataclass(frozen=True)
class Outcome:
    """How a mutation ended: `said` is the message of a refusal, or what went wrong."""

    index: int
    surface: str
    told: str
    verdict: str
    said: str
    seconds: float


class FindingError(Exception):
    """Raised where something did not end as it should."""


@dataclass(frozen=True)
class Attempt:
    """A mutation whose files lie in the sandbox: what was done to them, and what is to be done with them.

    `act` returns where it succeeds and raises SwnetError where it refuses. `out` is the
    folder that a success may write, in the working directory.
    """

    told: str
    act: Callable[[], None]
    out: str | None = None


def run(seed: int, index: int, subjects: Sequence[Subject], keep: Path | None = None) -> Outcome:
    """Run one mutation in a sandbox, and judge it; `keep` is a folder for its files as they were before it ran."""
    draw = Random(f"{seed}:{index}")
    surface = draw.choices(list(SURFACES), [weight for weight, _ in SURFACES.values()])[0]
    with Sandbox() as sandbox:
        attempt = SURFACES[surface][1](draw, draw.choice(subjects), sandbox)
        if keep is not None:
            _keep(sandbox, keep)
        start = time.perf_counter()
        verdict, said = _judge(attempt, sandbox)
        return Outcome(index, surface, attempt.told, verdict, said, time.perf_counter() - start)


def _keep(sandbox: Sandbox, keep: Path) -> None:
    shutil.copytree(sandbox.work, keep, symlinks=True, dirs_exist_ok=True, ignore=lambda folder, names: [
        name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()])  # fmt: skip


def _judge(attempt: Attempt, sandbox: Sandbox) -> tuple[str, str]:
    before, process = sandbox.snapshot(), Process()
    with limited(SECONDS) as rung:
        verdict, said = _ended(attempt.act)
    problems = [said] if verdict == FAILED else []
    if rung:
        problems.append(f"it took longer than {SECONDS:g} s, at {', '.join(rung[:3])}")
    problems += [f"{what} is not as it was" for what in process.check(sandbox.root)]
    process.restore(sandbox.root)
    allowed = None if attempt.out is None or verdict == REFUSED else f"work/{attempt.out}"
    problems += [f"{name} was changed, made or removed" for name in changes(before, sandbox.snapshot(), allowed)]
    return (FAILED, "; ".join(problems)) if problems else (verdict, said)


def _ended(act: Callable[[], None]) -> tuple[str, str]:
    """Return the verdict on what an attempt did, and its message."""
    try:
        act()
    except SwnetError as error:
        message = str(error)
        wrong = _wrong_message(message)
        return (FAILED, f"a message {wrong}: {message[:300]!r}") if wrong else (REFUSED, message)
    except (KeyboardInterrupt, MemoryError) as error:
        return FAILED, f"{type(error).__name__} from {_place(error)}"
    except BaseException as error:  # whatever it is: that it came is the finding
        text = _text(error)
        return FAILED, f"{type(error).__name__}: {text[:500]} from {_place(error)}"
    return ACCEPTED, ""


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the class of a mutated model file
        return "(no text)"


def _place(error: BaseException) -> str:
    """Return the innermost places of an exception, ours among them."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}swcompile{os.sep}" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*frames[:-2:-1], *ours[: -4 : -1]])


def _wrong_message(message: str) -> str | None:
    if len(message) > LONGEST_MESSAGE:
        return f"of {len(message):,} characters"
    if not message.strip():
        return "without words"
    return None


def message_class(message: str) -> str:
    """Return a message without what differs between two of its kind: names, numbers, paths."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", message.split("\n")[0])
    text = re.sub(r"\([^)]*\)|\[[^]]*\]", "(…)", text)
    return re.sub(r"-?\d[\d,.]*", "#", text)[:72]


# Surfaces: each writes a mutation into the sandbox, and says what is to be done with it


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


def _any_plan(draw: Random, subject: Subject) -> tuple[bytes, str]:
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
    content, told = _any_plan(draw, subject)
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
        content, told = _any_plan(draw, subject)
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


# The command line


class CommandRefusedError(SwnetError):
    """Raised for exit codes 2 and 3, with what the command line said."""


def _command(arguments: Sequence[str]) -> Callable[[], None]:
    """Run a command line in this process; what it writes to file descriptors 1 and 2 is caught by the worker."""

    def act() -> None:
        marks = [_end(number) for number in (1, 2)]
        code = cli.run(arguments)
        out, err = (_since(number, mark) for number, mark in zip((1, 2), marks, strict=True))
        if code not in (cli.DONE, cli.BAD_INPUT, cli.NOTHING_TO_DO):
            raise FindingError(f"exit code {code}: {_summary(err)}")
        if code != cli.DONE:
            _refused(code, out, err, arguments)
        if "--json" in arguments:
            json.loads(out)

    return act


def _summary(err: str) -> str:
    """Return the exception of a traceback with the places it came through, the innermost first."""
    places = [f"{Path(name).name}:{line}" for name, line in re.findall(r'File "([^"]+)", line (\d+)', err)]
    raised = re.findall(r"^(?:[\w.]+(?:Error|Exception|Exit|Interrupt|Warning|Iteration|Group)|E|E\\n.*)\b.*", err, re.MULTILINE)
    return f"{(raised or [err[-300:]])[-1][:300]} from {' < '.join(places[:-7:-1])}"


def _refused(code: int, out: str, err: str, arguments: Sequence[str]) -> None:
    messages = re.findall(r"^(?:error|Error): ([\s\S]*)", err, re.MULTILINE)
    if len(messages) != 1 or ("Traceback" in err and "Traceback" not in _user_text()):
        raise FindingError(f"exit code {code} with {len(messages)} messages: {err[-1500:]!r}")
    if out and not (arguments[0] == "check" and code == cli.NOTHING_TO_DO):
        raise FindingError(f"exit code {code} with a result: {out[:300]!r}")
    if re.search(r"[^\n -~\u00a0-\U0010ffff]", messages[0]):
        raise FindingError(f"a message that steers the terminal: {messages[0][:300]!r}")
    raise CommandRefusedError(messages[0].strip())


def _user_text() -> str:
    """Return what the user's own code may have said: an exception of its own can carry any word."""
    path = Path("net.py")
    return path.read_text(errors="replace") if path.is_file() else ""


def _end(number: int) -> int:
    return os.lseek(number, 0, os.SEEK_END)


def _since(number: int, mark: int) -> str:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed by the mutated file
            stream.flush()
    size = os.fstat(number).st_size - mark
    return os.pread(number, min(size, 1 << 20), mark + max(0, size - (1 << 20))).decode("utf-8", "replace")


def _given(subject: Subject) -> list[str]:
    return [part for one in subject.inputs for part in ("--input", f"{'x'.join(map(str, one.shape))}:{str(one.dtype)[6:]}")]


def command_plan(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Transform a good model file by a changed plan."""
    (sandbox.work / "net.py").write_bytes(subject.file.read_bytes())
    content, told = _any_plan(draw, subject)
    (sandbox.work / "plan.json").write_bytes(content)
    arguments = ["transform", "net.py", *_given(subject), "--plan", "plan.json", "--out", "out"]
    return Attempt(f"{subject.name}, {told}: {' '.join(arguments)}", _command(arguments), out="out")


def command_options(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Run a command line with strange values of its options on a good model file."""
    (sandbox.work / "net.py").write_bytes(subject.file.read_bytes())
    out = draw.choice(["out"] * 12 + ["deep/er/out", "./out", "out/", "../work/out", "", "net.py", "net.py/out", "/dev/null", "/dev/null/x",
                                      "a\0b", "x" * 300, ".", "..", "-", "\ud800"])  # fmt: skip
    arguments = [draw.choice(["transform", "transform", "analyze", "check"]), "net.py", *_given(subject)]
    if arguments[0] == "transform":
        arguments += ["--out", out]
    for _ in range(draw.choice([1, 1, 2, 3])):
        arguments += _option(draw)
    first = os.path.normpath(out).split(os.sep)[0] if out in ("deep/er/out", "./out", "out/", "../work/out", "out") else None
    return Attempt(f"{subject.name}: {arguments!r:.300}", _command(arguments), out="out" if first == ".." else first)


OPTIONS = ("--p", "--density", "--wiring", "--block", "--resample", "--reach", "--seed", "--dead", "--leaf", "--skips", "--params",
           "--macs", "--budget", "--init", "--min-in-degree", "--points", "--entry", "--input", "--plan", "--nothing")  # fmt: skip
VALUES = ("0", "1", "0.5", "-1", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "auto", "boundary", "max_S", "kernel", "block", "producer", "max",
          "avg", "stride", "near", "far", "forbid", "allow", "keep", "remove", "links", "params", "he", "dense", "3", "16", "1000", "", " ", "x",
          "\0", "\ud800", "é", "١", "1_0", "0x10", "9" * 30, "9" * 5_000, "a" * 5_000, "--p", "-", "model", "build_model", "body", "body.1", "head", "stem",
          "1x3x8x8", "2x16", "1x16:int64", "1x16:", "0x16", "2x16:float8_e4m3fn", "2x16:complex64", "1" + "x1" * 70, "1" + "x1" * 3_000, "1073741825",
          "2x16:__class__", "99999999999x1", "net.py", "..", "plan.json")  # fmt: skip


def _option(draw: Random) -> list[str]:
    if draw.random() < 0.15:
        return [draw.choice(["--json", "--quiet", "--head", "--conv-to-linear", "--force", "--help", "--version"])]
    name, value = draw.choice(OPTIONS), draw.choice(VALUES)
    return [f"{name}={value}"] if draw.random() < 0.5 else [name, value]


def model_file(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Run a command line on a changed model file, and load what it wrote."""
    content, told = sources.mutate(draw)
    (sandbox.work / "net.py").write_bytes(content)
    command = draw.choice(["check", "check", "analyze", "transform", "transform", "transform"])
    arguments = [command, "net.py"]
    arguments += {"analyze": ["--points", "3"], "transform": ["--p", "0.5", "--out", "out"]}.get(command, [])
    arguments += draw.choice([[], [], [], ["--json"], ["--quiet"], ["--wiring", "kernel"], ["--entry", draw.choice(["Net", "model", "nn"])]])
    act, back = _command(arguments), command == "transform" and draw.random() < 0.3

    def and_back() -> None:
        act()
        if back:
            with contextlib.suppress(SwnetError):  # the mutated file may build another model each time
                runpy.run_path("out/model.py")["build_model"]()

    return Attempt(f"{told}: {' '.join(arguments)}", and_back, out="out" if command == "transform" else None)


def model_file_loaded(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Load a good folder into what a changed model file builds."""
    folder = _saved(subject, sandbox)
    good = subject.file.read_text(encoding="utf-8")
    content, told = (sources.tokens(draw, good).encode(), "tokens") if draw.random() < 0.6 else sources.mutate(draw)
    (sandbox.work / "net.py").write_bytes(content)

    def act() -> None:
        swnet.load(folder, load_model("net.py").model)

    return Attempt(f"{subject.name} loaded into: {told}", act)


FILE_NAMES = ("a b.py", "1net.py", "class.py", "torch.py", "json.py", "swcompile.py", "swnet.py", "numpy.py", "sys.py", "__init__.py", "__main__.py", "ünï.py",
              "-x.py", "n.e.t.py", ".py", "net.PY", "net.pyc", "net.txt", "net", "x" * 250 + ".py", "\udc80.py", "net\n.py", "'.py", "con.py", "typing.py",
              "builtins.py", "os.py", "re.py", "__builtin__.py", "site.py", "net.py.py", "None.py", "torch/nn.py", "deep/er/net.py", "a/__init__.py")  # fmt: skip


def model_name(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Run a command line on a model file of a strange name, or on what is no file."""
    name = draw.choice(FILE_NAMES)
    path = sandbox.work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if draw.random() < 0.5:
        path.write_bytes(subject.file.read_bytes())
        for above in path.parents:
            if above != sandbox.work and sandbox.work in above.parents and draw.random() < 0.5:
                (above / "__init__.py").write_text("")
        given, told = name, "a good file"
    elif draw.random() < 0.5:
        kind = draw.choice(SPECIAL)
        make_special(kind, sandbox.work / "net.py", sandbox)
        given, told = "net.py", kind
    else:
        given, told = draw.choice([str(given) for given in folders.names(sandbox)] + [f"{name}\0", "net.py/", "../outside/decoy"]), "a name"
    arguments = [draw.choice(["check", "transform"]), "--", given]
    return Attempt(f"{told}: {arguments!r:.300}", _command(arguments), out="out")


SURFACES: dict[str, tuple[int, Callable[[Random, Subject, Sandbox], Attempt]]] = {
    "plan and manifest": (20, sealed_plan),
    "weights and manifest": (15, sealed_weights),
    "manifest": (13, manifest),
    "any file": (5, unsealed),
    "folder": (5, odd_folder),
    "plan": (14, plan_file),
    "plan, command line": (4, command_plan),
    "options, command line": (4, command_options),
    "model file, command line": (14, model_file),
    "model file, load": (4, model_file_loaded),
    "name of the model file": (2, model_name),
}
"""What is fuzzed, and how many in a hundred mutations."""
