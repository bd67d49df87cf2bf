"""Mutations of folders: files that are missing, links, pipes, sockets, endless or enormous; and names that are none."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from .sandbox import SPECIAL, Sandbox, make_special

NAMES = ("plan.json", "manifest.json", "weights.safetensors")


def mutate(draw: Random, folder: Path, sandbox: Sandbox) -> str:
    """Change a saved folder in the sandbox, and say how."""
    if draw.random() < 0.1:
        return _move(draw, folder, sandbox)
    done = []
    for _ in range(draw.choice([1, 1, 2])):
        path = folder / draw.choice(NAMES)
        done.append(f"{path.name} {_change(draw, path, sandbox)}")
    return f"folder: {', '.join(done)}"


def _change(draw: Random, path: Path, sandbox: Sandbox) -> str:
    kind = draw.choice(["missing", "linked", "renamed", "hard", *SPECIAL])
    moved = sandbox.outside / path.name
    if path.is_dir() and not path.is_symlink():
        return "stays"
    content = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 24 else b""
    path.unlink(missing_ok=True)
    if kind == "linked":
        moved.write_bytes(content)
        path.symlink_to(moved)
    elif kind == "hard":
        moved.write_bytes(content)
        path.hardlink_to(moved)
    elif kind == "renamed":
        path.with_name(path.name.upper()).write_bytes(content)
    elif kind != "missing":
        make_special(kind, path, sandbox)
    return kind


def _move(draw: Random, folder: Path, sandbox: Sandbox) -> str:
    """Put something else where the folder was, or the folder behind a link (which is allowed)."""
    kind = draw.choice(["linked", *SPECIAL])
    moved = shutil.move(folder, sandbox.outside / "moved")
    if kind == "linked":
        folder.symlink_to(moved)
    else:
        make_special(kind, folder, sandbox)
    return f"folder: {kind} in its place"


def names(sandbox: Sandbox) -> tuple[object, ...]:
    """Return what may be given as the name of a folder or file, good or not."""
    return (
        "saved",
        "saved/",
        "./saved",
        "../work/saved",
        sandbox.work / "saved",
        str(sandbox.work / "saved"),
        "saved/plan.json",
        "",
        ".",
        "..",
        "/",
        "//",
        "nothing",
        "nothing/saved",
        "a\0b",
        "\ud800",
        "x" * 300,
        "x/" * 3000,
        "~",
        "$HOME",
        "saved\n",
        " saved",
        None,
        0,
        3,
        True,
        b"saved",
        ["saved"],
        object,
        Path(),
        1.5,
        "/dev/null",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self",
        "saved/../../outside",
        "*",
    )
