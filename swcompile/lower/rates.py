"""How long operations take on a device: tables that `swcompile bench --calibrate` measures, and where they are kept.

A table holds timings of each operation of swcompile.lower.operations for each dtype. One measured on the very device comes first,
by this version of torch and Triton; then the one shipped for a device of that name; then, for a CPU, the one shipped for CPUs, and
for a GPU the one of the nearest GPU that one is shipped for (swcompile.lower.gpus). With none, nothing is known and nothing is
promised.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from swcompile.errors import SwnetError
from swcompile.lower.gpus import GPU

Floats = NDArray[np.float64]

FORMAT = 1
SHIPPED = Path(__file__).parent / "timings"
"""Tables by the device's name in small letters; `cpu.json` stands for CPUs that have none of their own."""


def moved(rows: int, channels: int, outputs: int, item: int) -> int:
    """Return the bytes that an operation must move: what it reads and writes once, weights among it."""
    return item * (rows * (channels + (outputs or channels)) + channels * outputs)


def flops(rows: int, channels: int, outputs: int) -> int:
    """Return the floating-point operations of a product."""
    return 2 * rows * channels * outputs


@dataclass(frozen=True)
class Timing:
    """The seconds of an operation that reads (rows, channels), and makes as much, or (rows, outputs) where it is a product."""

    rows: int
    channels: int
    outputs: int
    seconds: float


@dataclass(frozen=True)
class Timings:
    """The timings of one operation on elements of `item` bytes, and what they say about other sizes.

    A line through them (seconds a call, a byte, a floating-point operation) says how time grows with size; how far off it is at the
    sizes nearest to the one that is asked for corrects it. On a CPU the line alone is off by a factor: the same pass runs at 40
    GB/s in the cache, at 10 in memory, and at 2 where each result is so large that its pages are asked of the system anew.
    """

    item: int
    timings: tuple[Timing, ...]

    def __post_init__(self) -> None:
        numbers = [
            self.item,
            *(number for one in self.timings for number in (one.rows, one.channels, one.outputs + 1, one.seconds)),
        ]
        if len(numbers) == 1 or not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ValueError("timings are of at least one row and channel, and took time")

    def seconds(self, rows: int, channels: int, outputs: int = 0) -> float:
        """Return how long the operation would take."""
        return self._without(None, rows, channels, outputs)

    @cached_property
    def error(self) -> float:
        """The median relative error of the timings as predicted from the others."""
        found = (self._without(at, one.rows, one.channels, one.outputs) / one.seconds for at, one in enumerate(self.timings))
        return float(np.median([abs(ratio - 1) for ratio in found]))

    @cached_property
    def _places(self) -> Floats:
        return np.log2([(one.rows, one.channels, max(one.outputs, 1)) for one in self.timings])

    @cached_property
    def _off(self) -> Floats:
        """Each timing as a power of two of what the line says."""
        lined = [self._line(one.rows, one.channels, one.outputs) for one in self.timings]
        return np.log2([one.seconds for one in self.timings]) - np.log2(lined)

    @cached_property
    def _coefficients(self) -> Floats:
        parts = [(1.0, moved(*_size(one), self.item), flops(*_size(one))) for one in self.timings]
        return fitted(np.array(parts), np.array([one.seconds for one in self.timings]))

    def _line(self, rows: int, channels: int, outputs: int) -> float:
        parts = 1.0, moved(rows, channels, outputs, self.item), flops(rows, channels, outputs)
        return float(self._coefficients @ parts)

    def _without(self, left_out: int | None, rows: int, channels: int, outputs: int) -> float:
        distances = np.square(self._places - np.log2([rows, channels, max(outputs, 1)])).sum(1)
        if left_out is not None:
            distances[left_out] = np.inf
        nearest = np.argsort(distances, kind="stable")[:NEAREST]
        weights = 1 / (distances[nearest] + 1e-6)
        return self._line(rows, channels, outputs) * float(2 ** (self._off[nearest] @ weights / weights.sum()))


NEAREST = 4
"""How many timings correct the line: those around a place in a grid of rows and channels."""


def _size(one: Timing) -> tuple[int, int, int]:
    return one.rows, one.channels, one.outputs


def fitted(parts: Floats, seconds: Floats) -> Floats:
    """Return the non-negative weights of parts (timings, 3) by which their sums are nearest to seconds, in relative terms."""
    relative = parts / seconds[:, None]
    best: tuple[float, Floats] | None = None
    present = [column for column in range(parts.shape[1]) if parts[:, column].any()]
    subsets = (list(kept) for count in range(len(present)) for kept in itertools.combinations(present, count + 1))
    for kept in subsets:  # with three parts the non-negative solution is the plain one of one of seven subsets
        scale, found = relative[:, kept].max(0), np.zeros(parts.shape[1])
        found[kept] = np.linalg.lstsq(relative[:, kept] / scale, np.ones(len(seconds)), rcond=None)[0] / scale
        off = float(np.square(relative @ found - 1).sum())
        if (found >= 0).all() and (best is None or off < best[0]):
            best = off, found
    assert best is not None, "one positive part alone has a positive weight"
    return best[1]


@dataclass(frozen=True)
class Rates:
    """The timings on a device: by dtype ("float32"), by operation. `versions` are those it was measured with; `gpu` tells a GPU."""

    device: str
    versions: Mapping[str, str | None]
    dtypes: Mapping[str, Mapping[str, Timings]]
    gpu: GPU | None = None

    def of(self, dtype: torch.dtype) -> Mapping[str, Timings]:
        """Return the timings of operations on a dtype; none where it was not measured."""
        return self.dtypes.get(str(dtype).removeprefix("torch."), {})

    def as_dict(self) -> dict[str, Any]:
        """Return the table as JSON has it."""
        dtypes = {
            dtype: {
                name: {"item": found.item, "timings": [list(astuple(one)) for one in found.timings]} for name, found in by.items()
            }
            for dtype, by in self.dtypes.items()
        }
        gpu = None if self.gpu is None else asdict(self.gpu)
        return {"format": FORMAT, "device": self.device, "gpu": gpu, "versions": dict(self.versions), "dtypes": dtypes}

    @classmethod
    def of_dict(cls, read: Mapping[str, Any]) -> Rates:
        """Return the table that JSON had. Raises ValueError for one of another format."""
        if read.get("format") != FORMAT:
            raise ValueError(f'its "format" should be {FORMAT}, not {read.get("format")}')
        dtypes = {
            dtype: {name: Timings(found["item"], tuple(Timing(*one) for one in found["timings"])) for name, found in by.items()}
            for dtype, by in read["dtypes"].items()
        }
        gpu = None if read.get("gpu") is None else GPU(**read["gpu"] | {"capability": tuple(read["gpu"]["capability"])})
        return cls(str(read["device"]), dict(read["versions"]), dtypes, gpu)


def device_name(device: torch.device) -> str:
    """Name a device: a GPU as its driver does, a CPU by its processor and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """Return the processor's name, which only Linux tells in a file."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Return the versions on which timings depend."""
    return {name: version_of(name) for name in ("torch", "triton")}


def version_of(package: str) -> str | None:
    """Return a package's version, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def slug(name: str) -> str:
    """Return a device's name as file names have it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def known(device: torch.device) -> Rates | None:
    """Return the table for a device, or None. Raises SwnetError for a file that holds something else."""
    if device.type not in ("cpu", "cuda"):
        return None
    name = device_name(device)
    shipped = [SHIPPED / f"{slug(name)}.json", *([SHIPPED / "cpu.json"] if device.type == "cpu" else [])]
    try:
        measured = [file for file in (_measured(name),) if file.is_file()]
    except (OSError, RuntimeError):  # there is no home, or it is somebody else's
        measured = []
    found = next((_read(file) for file in (*measured, *shipped) if file.is_file()), None)
    return _nearest(GPU.of(device)) if found is None and device.type == "cuda" else found


def _nearest(gpu: GPU) -> Rates | None:
    """Return the shipped table of the GPU nearest to one, or None where all are of other vendors or major capabilities."""
    apart = ((gpu.apart(table.gpu), table) for table in map(_read, sorted(SHIPPED.glob("*.json"))) if table.gpu is not None)
    distance, nearest = min(apart, key=lambda pair: pair[0], default=(math.inf, None))
    return nearest if math.isfinite(distance) else None


def keep(rates: Rates) -> Path:
    """Write a table where `known` looks first, and return the path. Raises SwnetError where it cannot be written."""
    file: Path | str = "the cache folder"
    try:
        file = _measured(rates.device)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(rates.as_dict()) + "\n", encoding="utf-8")
        return part.replace(file)
    except (OSError, RuntimeError) as error:
        raise SwnetError(f"The timings cannot be kept in {file}: {error}. XDG_CACHE_HOME names another folder for them.") from error


def _measured(name: str) -> Path:
    """Return where the table measured on this machine is kept: the user's cache, as the XDG base directories have it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    used = "-".join(f"{package}-{version}" for package, version in versions().items())
    return cache / "swcompile" / "rates" / f"{slug(name)}-{slug(used)}.json"


def _read(file: Path) -> Rates:
    try:
        return Rates.of_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SwnetError(
            f"{file} holds no timings that can be read ({type(error).__name__}: {error}); remove it, or run "
            "`swcompile bench --calibrate`."
        ) from error
