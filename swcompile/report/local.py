"""Names of files in a report: as a user types them, and no folder of this machine."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def local_file(where: str) -> str:
    """Return file:line from the working directory or the installed package on, else without its folders.

    >>> local_file("/somewhere/else/net.py:12")
    'net.py:12'
    """
    for folder in _folders():
        if where.startswith(folder):
            return where.removeprefix(folder)
    return Path(where).name


def local(text: str) -> str:
    """Return a sentence with the file names in it made local, as `local_file` does."""
    return re.sub(r"/[^\s():]+(?=:\d)", lambda found: local_file(found[0]), text)


def _folders() -> Sequence[str]:
    try:
        here = [os.getcwd()]
    except OSError:  # it has been removed
        here = []
    return [folder + os.sep for folder in (*here, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))]
