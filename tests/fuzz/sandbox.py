"""A folder to run a mutation in, and what of the disk and of the process must be afterwards as it was before."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch

Snapshot = dict[str, tuple[Any, ...]]


class Overtime(BaseException):
    """Raised in the midst of what takes longer than it may."""


class Sandbox:
    """A temporary folder: `work`, the working directory; `outside`, which nobody may write to; `tmp`, for temporary files."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="swcompile-fuzz-")).resolve()
        self.work, self.outside, self.tmp = (self.root / name for name in ("work", "outside", "tmp"))
        for folder in (self.work, self.outside, self.tmp):
            folder.mkdir()
        (self.outside / "decoy").write_bytes(b"nobody's business")

    def __enter__(self) -> Sandbox:
        self._before = tempfile.tempdir, os.environ.get("TMPDIR"), os.getcwd()
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.tmp)
        os.chdir(self.work)
        return self

    def __exit__(self, *_: object) -> None:
        tempfile.tempdir, named, folder = self._before
        os.environ.pop("TMPDIR")
        if named is not None:
            os.environ["TMPDIR"] = named
        os.chdir(folder)
        shutil.rmtree(self.root, ignore_errors=True)

    def snapshot(self) -> Snapshot:
        """Return every file and folder with its kind, rights, size, time and content; the sandbox's own clock never matters."""
        found: Snapshot = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                found[os.path.relpath(path, self.root)] = _facts(path)
        return found


def _facts(path: str) -> tuple[Any, ...]:
    facts = os.lstat(path)
    plain = stat.S_ISREG(facts.st_mode) and facts.st_size < 1 << 24
    content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if plain else None
    link = os.readlink(path) if stat.S_ISLNK(facts.st_mode) else None
    return facts.st_mode, None if stat.S_ISDIR(facts.st_mode) else (facts.st_size, facts.st_mtime_ns), content, link


def changes(before: Snapshot, after: Snapshot, allowed: str | None) -> list[str]:
    """Return what differs, apart from the folder that may be written."""
    inside = "" if allowed is None else allowed + os.sep
    names = sorted(before.keys() | after.keys())
    wrong = [name for name in names if before.get(name) != after.get(name)]
    return [name for name in wrong if allowed is None or (name != allowed and not name.startswith(inside))]


class Process:
    """What of this process must survive a mutation. `check` names what did not, and puts it back."""

    def __init__(self) -> None:
        self.path, self.paths = sys.path, list(sys.path)
        self.folder = os.getcwd()
        self.streams = sys.stdout, sys.stderr
        self.descriptors = _descriptors()
        self.output = os.fstat(1).st_ino
        self.modules = dict(sys.modules)
        self.handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.threads = threading.active_count()
        self.bytecode = sys.dont_write_bytecode
        self.filters = list(warnings.filters)
        self.imports = list(sys.meta_path), list(sys.path_hooks)
        self.environment = dict(os.environ)
        self.arguments, self.excepthook = list(sys.argv), sys.excepthook

    def check(self, root: Path, *, foreign: bool) -> list[str]:
        """Return what is not as it was; `root` is the sandbox, a few of whose modules may stay imported.

        What `foreign` code, that of a mutated model file, does to stdout is its own affair.
        """
        checks = {
            "the working directory": _folder() == self.folder,
            "sys.path": sys.path is self.path and sys.path == self.paths,
            "sys.stdout": foreign or (sys.stdout is self.streams[0] and not sys.stdout.closed),
            "file descriptor 1": os.fstat(1).st_ino == self.output,
            "the open files": foreign or _descriptors() == self.descriptors,
            "the handlers of signals": all(signal.getsignal(number) is handler for number, handler in self.handlers.items()),
            "the number of threads": threading.active_count() == self.threads,
            "sys.dont_write_bytecode": sys.dont_write_bytecode == self.bytecode,
            "sys.modules": len(self._imported(root)) <= 3,
        }
        return [what for what, holds in checks.items() if not holds]

    def restore(self, root: Path) -> None:
        """Put back what the check looks at, and what the user's code may change for good: the next mutation starts afresh."""
        for name in self._imported(root):
            sys.modules.pop(name, None)
        self.path[:] = self.paths
        sys.path = self.path
        os.chdir(self.folder)
        sys.stdout, sys.stderr = (
            stream(number) if file.closed else file for number, file in zip((1, 2), self.streams, strict=True)
        )
        sys.dont_write_bytecode = self.bytecode
        sys.meta_path[:], sys.path_hooks[:] = self.imports
        sys.argv, sys.excepthook = self.arguments, self.excepthook
        sys.__dict__.pop("tracebacklimit", None)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.setrecursionlimit(1000)
        warnings.filters[:] = self.filters  # type: ignore[index]  # it is a list
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        torch.manual_seed(0)
        random.seed(0)

    def _imported(self, root: Path) -> list[str]:
        known = self.modules
        return [name for name, module in list(sys.modules.items()) if name not in known and _is_inside(module, root)]


def stream(number: int) -> TextIO:
    """Return what Python has as sys.stdout (1) or sys.stderr (2)."""
    return os.fdopen(number, "w", encoding="utf-8", errors="strict" if number == 1 else "backslashreplace", closefd=False)


def _is_inside(module: object, root: Path) -> bool:
    with suppress(Exception):  # a stand-in of the user's, which may answer anything
        return str(root) in str(module.__file__)  # type: ignore[attr-defined]
    return not isinstance(module, type(sys))


def _folder() -> str | None:
    with suppress(OSError):
        return os.getcwd()
    return None


def _descriptors() -> int:
    """Count the open files, but for fonts, which matplotlib keeps open once it has drawn with them."""
    names = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    return sum(not _target(f"/proc/self/fd/{name}").endswith(".ttf") for name in names)


def _target(link: str) -> str:
    with suppress(OSError):  # that of the listing itself is closed by now
        return os.readlink(link)
    return ""


BUSY = 4
"""How many times the processor's seconds may pass by the clock."""


@contextmanager
def limited(seconds: float) -> Iterator[list[str]]:
    """Raise Overtime in the block after so many seconds, and each second from then on; yield a list of where that was.

    They are the processor's, or BUSY times as many by the clock: a machine that has other work is no failure. Again and again,
    since whatever catches everything may catch the first one.
    """
    rung: list[str] = []

    def ring(number: int, frame: FrameType | None) -> None:
        rung.append(f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?")
        by_clock = number == signal.SIGALRM
        raise Overtime(
            f"it took longer than {BUSY * seconds:g} s by the clock" if by_clock else f"it took longer than {seconds:g} s"
        )

    clocks = (signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, BUSY * seconds)
    before = [signal.signal(number, ring) for _, number, _ in clocks]
    for clock, _, least in clocks:
        signal.setitimer(clock, least, 1.0)
    try:
        yield rung
    finally:
        for (clock, number, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


def make_special(kind: str, path: Path, sandbox: Sandbox) -> None:
    """Put what is no plain file at a path."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))  # the full name may be too long for a socket
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        outside = sandbox.outside
        targets = {"link": outside / "decoy", "loop": path, "dangling": outside / "nothing", "outside": outside}
        targets |= {"zero": Path("/dev/zero"), "null": Path("/dev/null")}
        path.symlink_to(targets[kind])


SPECIAL = ("folder", "pipe", "socket", "empty", "sparse", "link", "loop", "dangling", "zero", "null", "outside")
