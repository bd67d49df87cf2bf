"""The gate: every shipped configuration compiles for three GPUs, spills nothing, and has the instructions it was chosen for."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_SHARED = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}
"""Bytes that one program may have at most: the limits of CUDA's compute capabilities 8.0 and 9.0, and of CDNA 3."""


@functools.cache
def report(target: str) -> dict[str, dict[str, Any]]:
    """Compile everything for a target, in a process where Triton compiles rather than interprets."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.aot", target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("target", MOST_SHARED)
def test_nothing_spills_and_shared_memory_suffices(target: str) -> None:
    assert len(report(target)) > 30
    assert {name: record["spills"] for name, record in report(target).items() if record["spills"]} == {}
    assert max(record["shared"] for record in report(target).values()) <= MOST_SHARED[target]


@pytest.mark.parametrize(("target", "instruction"), [("sm_80", "mma"), ("sm_90", "wgmma"), ("gfx942", "mfma")])
def test_products_of_half_types_run_on_the_matrix_units(target: str, instruction: str) -> None:
    products = {name: record for name, record in report(target).items() if "mm" in name.split()[0] or "conv" in name}
    few = {name for name in products if "a few rows" in name}  # too few rows for a warp group's instruction: mma then
    plain = {name for name in products if "fp32" in name}  # float32 is computed as float32
    assert few
    assert plain
    assert [name for name in products.keys() - few - plain if not products[name][instruction]] == []
    assert target != "sm_90" or [name for name in few if not products[name]["mma"]] == []


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_products_load_16_bytes_at_once_and_ahead(target: str) -> None:
    products = {name: record for name, record in report(target).items() if "mm" in name.split()[0] or "conv" in name}
    assert len(products) > 25
    assert [name for name, record in products.items() if not record["async_copies"]["16"] or record["narrow_loads"]] == []


def test_maps_that_lie_apart_are_not_taken_to_lie_near() -> None:
    """AMD's loads from buffers reach 2 GiB; other maps may be anywhere."""
    for name, record in report("gfx942").items():
        assert bool(record["far_loads"]) == ("scattered" in name), name
        assert record["near_loads"], name


def test_two_programs_fit_a_multiprocessor_where_that_is_counted_on() -> None:
    """65,536 registers serve two programs of 8 warps where each thread has 128 at most; with all that can go behind it, one."""
    found = report("sm_90")
    assert found["gather_mm scattered wide bf16"]["registers"] <= 128
    assert found["gather_mm scattered wide bf16 with statistics"]["registers"] <= 128
    assert found["gather_mm wide bf16 bare"]["registers"] <= 128
    assert found["gather_mm wide bf16 whole"]["registers"] <= 144
