"""Share heavy numpy work between threads: numpy holds no lock while it works on large arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each(work: Callable[[Item], Result], items: Iterable[Item], *, heavy: bool) -> list[Result]:
    """Return the result for each item, in order; by one thread per processor where the work is heavy enough to pay for them."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not heavy or processors == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(processors) as pool:
        return list(pool.map(work, items))
