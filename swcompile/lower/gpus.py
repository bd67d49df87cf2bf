"""What tells GPUs apart, and how far apart that says they are: for one without timings of its own to go by those of the nearest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GPU:
    """A GPU by its vendor's platform ("cuda" or "hip"), compute capability (major, minor), and sizes.

    `memory` is in bytes, `bandwidth` in bytes a second, by clock and width of the bus; None where this torch does not tell them.
    """

    vendor: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    bandwidth: float | None

    def __post_init__(self) -> None:
        sizes = [self.multiprocessors, self.memory, 1 if self.bandwidth is None else self.bandwidth]
        if len(self.capability) != 2 or not all(math.isfinite(size) and size > 0 for size in sizes):
            raise ValueError("a GPU has a capability of two numbers, multiprocessors, memory and a bandwidth")

    @classmethod
    def of(cls, device: torch.device) -> GPU:
        """Return what torch tells of a device."""
        told = torch.cuda.get_device_properties(device)
        kilohertz, bits = getattr(told, "memory_clock_rate", 0), getattr(told, "memory_bus_width", 0)  # older torch has neither
        bandwidth = 2 * 1000 * kilohertz * bits / 8  # two transfers a clock
        vendor = "cuda" if torch.version.hip is None else "hip"
        return cls(vendor, (told.major, told.minor), told.multi_processor_count, told.total_memory, bandwidth or None)

    def apart(self, other: GPU) -> float:
        """Return how far another GPU is: the factors between their multiprocessors and between their bandwidths, as powers of two.

        Infinite where the vendor or the major capability differs: its kernels are others. Where a bandwidth is not known, memory
        stands for both: a wider bus mostly has more behind it.
        """
        if (self.vendor, self.capability[0]) != (other.vendor, other.capability[0]):
            return math.inf
        fed = self.bandwidth / other.bandwidth if self.bandwidth and other.bandwidth else self.memory / other.memory
        return abs(math.log2(self.multiprocessors / other.multiprocessors)) + abs(math.log2(fed))
