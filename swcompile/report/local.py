"""Names of files in a report: as a user types them, and no folder of this machine."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def local_file(where: str) -> str:
    """Return file:line from the installed package or the working directory on, else without its folders.

    >>> local_file("/somewhere/else/net.py:12")
    'net.py:12'
    """
    for folder in _folders():
        if where.startswith(folder):
            return where.removeprefix(folder)
    return Path(where).name


def local(text: str) -> str:
    """Return a sentence with the file names in it made local, as `local_file` does.

    A name goes from its first slash to the next colon with a number: a folder may have spaces and brackets in its name, so words
    that stand between an unrelated slash at the start of a word and a file's name go, too.

    >>> local("sort (/somewhere/J D/net.py:12) and 1/2")
    'sort (net.py:12) and 1/2'
    """
    return re.sub(r"(?<![\w.)\]])/[^:\n]+(?=:\d)", lambda found: local_file(found[0]), text)


def _folders() -> Sequence[str]:
    """Return the folders that names are told from; packages first, since they may lie in the working directory."""
    packages = sysconfig.get_path("purelib"), sysconfig.get_path("platlib")
    try:
        here = [os.getcwd()]
    except OSError:  # it has been removed
        here = []
    return [folder.rstrip(os.sep) + os.sep for folder in (*packages, *here)]
