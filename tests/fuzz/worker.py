"""A process of its own that runs mutations: what hangs in native code, crashes or eats all memory ends it, and no one else."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from . import cases
from .sandbox import stream
from .subjects import subjects

MEMORY = 6 << 30
"""How many bytes a worker may allocate: what asks for more is refused by us, or it is a finding."""


def work(seed: int, indices: range, keep: Path | None = None) -> None:
    """Run mutations, and report each on what stdout was when the process started: a line with its index, one with how it ended."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    faulthandler.enable(os.fdopen(os.dup(2), "w"))
    good = subjects()
    with _caught() as forget:
        for index in indices:
            print(index, file=report, flush=True)
            forget()
            print(json.dumps(asdict(cases.run(seed, index, good, keep))), file=report, flush=True)


@contextmanager
def _caught() -> Iterator[Callable[[], None]]:
    """Let what is printed, by Python or beside it, go to files; yield a function that empties them."""
    before = [(number, os.dup(number)) for number in (1, 2)]
    streams = sys.stdout, sys.stderr
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:

        def forget() -> None:
            sys.stdout.flush()
            sys.stderr.flush()
            for file in (out, err):
                os.ftruncate(file.fileno(), 0)
                os.lseek(file.fileno(), 0, os.SEEK_SET)

        for file, number in ((out, 1), (err, 2)):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = stream(1), stream(2)
        try:
            yield forget
        finally:  # what goes wrong in the fuzzing itself is to be seen
            sys.stdout, sys.stderr = streams
            for number, kept in before:
                os.dup2(kept, number)
