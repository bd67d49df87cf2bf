"""Lines of the user's code: where a node was made, where an exception came from."""

from __future__ import annotations

import os
import sys
from types import FrameType

import torch

WHERE = "swcompile_where"
"""The key in `node.meta` of the user's file and line."""

_STANDARD = os.path.dirname(os.__file__) + os.sep
_OURS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep)

_TRACING = os.path.join(os.path.dirname(os.path.abspath(__file__)), "capture.py")
"""The file that starts a trace: beyond its frames lies whoever called us."""


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs code that is neither torch's nor ours nor generated."""
    return is_users_file(frame.f_code.co_filename)


def is_users_file(name: str) -> bool:
    """Whether a file is neither torch's nor ours nor made up."""
    return not name.startswith(_OURS) and not name.startswith("<")


def user_line(depth: int = 1) -> str:
    """Return file:line of the innermost frame of the user's, `depth` frames above the caller at least.

    "" where the model is made of torch's modules alone: what called us is no line of the model's. A walk over frames, not a
    formatted stack: 10,000 layers cost 20 ms instead of many seconds.
    """
    frame: FrameType | None = sys._getframe(depth + 1)
    while frame is not None and frame.f_code.co_filename != _TRACING:
        if is_users(frame):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def is_by_user(error: BaseException) -> bool:
    """Whether an exception comes out of the user's code: of a method that raises, or calls torch or Python's library wrongly.

    It does not where torch or the library raises what we asked of it.
    """
    step, found = error.__traceback__, False
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        standard = name.startswith((_OURS[0], "<", _STANDARD)) and "site-packages" not in name.removeprefix(_OURS[0])
        found = found if standard else is_users(step.tb_frame)
        step = step.tb_next
    return found


def line_of(error: BaseException) -> str:
    """Return file:line of the innermost frame of the user's that an exception came through."""
    line = ""
    step = error.__traceback__
    while step is not None:
        if is_users(step.tb_frame):
            line = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return line
