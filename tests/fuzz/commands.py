"""Mutations that the command line meets: model files, plans, options and names."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from swcompile import cli
from swcompile.cli import exit_codes
from swcompile.errors import SwnetError

from . import folders, sources
from .judge import Attempt, FindingError
from .loading import any_plan
from .sandbox import SPECIAL, Sandbox, make_special
from .subjects import Subject


class CommandRefusedError(SwnetError):
    """Raised for exit codes 2 and 3, with what the command line said."""


def _command(arguments: Sequence[str]) -> Callable[[], None]:
    """Run a command line in this process; what it writes to file descriptors 1 and 2 is caught by the worker."""

    def act() -> None:
        marks = [_end(number) for number in (1, 2)]
        code = cli.run(arguments)
        out, err = (_since(number, mark) for number, mark in zip((1, 2), marks, strict=True))
        if code not in (exit_codes.DONE, exit_codes.BAD_INPUT, exit_codes.NOTHING_TO_DO):
            raise FindingError(f"exit code {code}: {_summary(err)}")
        if code != exit_codes.DONE:
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
    if out and not (arguments[0] == "check" and code == exit_codes.NOTHING_TO_DO):
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
    content, told = any_plan(draw, subject)
    (sandbox.work / "plan.json").write_bytes(content)
    arguments = ["transform", "net.py", *_given(subject), "--plan", "plan.json", "--out", "out"]
    return Attempt(f"{subject.name}, {told}: {' '.join(arguments)}", _command(arguments), out="out")


def command_options(draw: Random, subject: Subject, sandbox: Sandbox) -> Attempt:
    """Run a command line with strange values of its options on a good model file."""
    (sandbox.work / "net.py").write_bytes(subject.file.read_bytes())
    out = draw.choice(
        ["out"] * 12
        + [
            "deep/er/out",
            "./out",
            "out/",
            "../work/out",
            "",
            "net.py",
            "net.py/out",
            "/dev/null",
            "/dev/null/x",
            "a\0b",
            "x" * 300,
            ".",
            "..",
            "-",
            "\ud800",
        ]
    )
    arguments = [draw.choice(["transform", "transform", "analyze", "check"]), "net.py", *_given(subject)]
    if arguments[0] == "transform":
        arguments += ["--out", out]
    for _ in range(draw.choice([1, 1, 2, 3])):
        arguments += _option(draw)
    first = os.path.normpath(out).split(os.sep)[0] if out in ("deep/er/out", "./out", "out/", "../work/out", "out", "-") else None
    return Attempt(f"{subject.name}: {arguments!r:.300}", _command(arguments), out="out" if first == ".." else first)


OPTIONS = (
    "--p --density --score --grow --wiring --block --resample --reach --seed --dead --leaf --skips --params --macs --keep --spread "
    "--budget --init --min-in-degree --points --entry --input --plan --nothing"
).split()
VALUES = (
    *"0 1 0.5 -1 1.5 3 16 40 nan inf -inf 1e400 1e-400 1_0 0x10 auto boundary max_S kernel block producer max avg stride".split(),
    *"near far forbid allow keep remove links params he dense x é --p - model build_model body body.1 head stem".split(),
    *"tile weight erk global *=0.5 body*=0.25 =1 x=nan 85e6".split(),
    *"net.py .. plan.json 1x3x8x8 2x16 1x16:int64 1x16: 0x16 2x16:float8_e4m3fn 2x16:complex64 2x16:__class__".split(),
    *"1073741825 99999999999x1".split(),
    *("", " ", "\0", "\ud800", "\u0661", "9" * 30, "9" * 5_000, "a" * 5_000, "1" + "x1" * 70, "1" + "x1" * 3_000),
)


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
    arguments += draw.choice(
        [[], [], [], ["--json"], ["--quiet"], ["--wiring", "kernel"], ["--entry", draw.choice(["Net", "model", "nn"])]]
    )
    act, back = _command(arguments), command == "transform" and draw.random() < 0.3

    def and_back() -> None:
        act()
        if back:
            with contextlib.suppress(SwnetError):  # the mutated file may build another model each time
                sys.argv = ["model.py"]  # whatever the mutated file has made of it
                runpy.run_path("out/model.py")["build_model"]()

    return Attempt(f"{told}: {' '.join(arguments)}", and_back, out="out" if command == "transform" else None, foreign=back)


FILE_NAMES = (
    *"torch.py json.py swcompile.py swnet.py numpy.py sys.py typing.py builtins.py os.py re.py site.py torch/nn.py".split(),
    *"class.py __init__.py __main__.py a/__init__.py deep/er/net.py n.e.t.py net.py.py 1net.py -x.py".split(),
    *"'.py ünï.py None.py .py net.PY net.pyc net.txt net".split(),
    *("a b.py", "net\n.py", "\udc80.py", "x" * 250 + ".py"),
)


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
        given, told = (
            draw.choice([str(given) for given in folders.names(sandbox)] + [f"{name}\0", "net.py/", "../outside/decoy"]),
            "a name",
        )
    arguments = [draw.choice(["check", "transform"]), "--", given]
    return Attempt(f"{told}: {arguments!r:.300}", _command(arguments), out="out")
