"""What one mutation does, and whether it ended as it should."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swcompile.errors import SwnetError

from .sandbox import Process, Sandbox, changes, limited

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

    `act` returns where it succeeds and raises SwnetError where it refuses. `out` is the folder that a success may write, in the
    working directory; `foreign` marks code of a mutated file that nobody shields stdout from.
    """

    told: str
    act: Callable[[], None]
    out: str | None = None
    foreign: bool = False


def judge(attempt: Attempt, sandbox: Sandbox) -> tuple[str, str]:
    """Run an attempt in its sandbox; return the verdict, and the message of a refusal or what is wrong."""
    before, process = sandbox.snapshot(), Process()
    with limited(SECONDS) as rung:
        verdict, said = _ended(attempt.act)
    problems = [said] if verdict == FAILED else []
    if rung:
        problems.append(f"it took longer than {SECONDS:g} s, at {', '.join(rung[:3])}")
    problems += [f"{what} is not as it was" for what in process.check(sandbox.root, foreign=attempt.foreign)]
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
    except BaseException:  # the class of a mutated model file, which may even exit
        return "(no text)"


def _place(error: BaseException) -> str:
    """Return the innermost places of an exception, ours among them."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}swcompile{os.sep}" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*frames[:-2:-1], *ours[:-4:-1]])


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
    return re.sub(r"-?\d+(?:[,.]\d+)*", "#", text)[:72]
