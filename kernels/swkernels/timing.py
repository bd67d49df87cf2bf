"""Time a call on the device that it runs on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.benchmark import Timer

from swkernels._triton import triton

_QUARTILES = (0.25, 0.5, 0.75)


def quartiles(call: Callable[[], object], device: torch.device, seconds: float) -> tuple[float, float, float]:
    """Return the quartiles of the seconds that a call takes, run for about so many seconds, without gradients.

    On a GPU by Triton's do_bench: by the device's own clock, so that launches that it need not wait for are not counted, and each
    time with an empty level-2 cache. On a CPU by torch's Timer, with the threads that torch now uses and warm caches.
    """
    with torch.no_grad():
        if device.type == "cuda":
            with torch.cuda.device(device):
                found = triton.testing.do_bench(call, rep=1000 * seconds, quantiles=_QUARTILES)
            return found[0] / 1000, found[1] / 1000, found[2] / 1000
        timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        times = torch.tensor(timer.blocked_autorange(min_run_time=seconds).times, dtype=torch.float64)
        low, middle, high = torch.quantile(times, torch.tensor(_QUARTILES, dtype=torch.float64)).tolist()
        return low, middle, high
