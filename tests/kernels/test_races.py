"""The checker finds what it is there for."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from swkernels import launch
from tests.kernels.races import watched


@triton.jit
def copy(source, out, count, STEP: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr):
    place = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    x = tl.load(source + place + SHIFT, mask=place < count, other=0.0)
    tl.store(out + place, x, mask=place < count)


def faults(count: int, step: int, block: int, shift: int = 0, *, in_place: bool = False) -> list[str]:
    source, out = torch.zeros(200)[50:150], torch.zeros(200)[50:150]
    with watched() as watch:
        launch.run(copy, 7, source, source if in_place else out, count, STEP=step, BLOCK=block, SHIFT=shift)
    return sorted(set(watch.faults))


def test_a_sound_kernel_has_no_faults() -> None:
    assert faults(100, 16, 16) == []
    assert faults(100, 16, 16, in_place=True) == []


def test_programs_that_write_the_same_place_are_found() -> None:
    assert faults(60, 8, 16) == ["two programs write the same place"]


def test_accesses_outside_are_found_even_inside_the_storage() -> None:
    assert faults(104, 16, 16) == ["load outside the tensors, at 4 places", "store outside the tensors, at 4 places"]
    assert faults(100, 16, 16, shift=-1) == ["load outside the tensors, at 1 places"]


def test_a_program_that_reads_what_another_writes_is_found() -> None:
    assert faults(96, 16, 16, shift=1, in_place=True) == ["a program reads what another writes"]
