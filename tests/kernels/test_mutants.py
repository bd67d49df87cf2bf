"""Would the tests see a wrong kernel? Plant one wrong mask or index at a time, and see the comparison or the checker turn red."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import swkernels
from swkernels import (
    Cluster,
    Norm,
    Support,
    Taps,
    block_sparse_conv2d_backward_reference,
    block_sparse_conv2d_reference,
    centered_reference,
    gather_mm_backward_reference,
    gather_mm_reference,
    gather_reference,
    statistics_reference,
)
from swkernels.statistics import empty_statistics
from tests.kernels.cases import close, only_read
from tests.kernels.races import watched

FOLDER = Path(swkernels.__file__).parent


@contextmanager
def mutant(name: str, old: str, new: str, tmp_path: Path) -> Iterator[ModuleType]:
    """Load a module of the package with one piece of its text replaced; its operator is left a plain function."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{name}.py no longer has {old!r}"
    text = re.sub(r"@torch\.library\.custom_op\(.*\)\n", "", text.replace(old, new))
    text = re.sub(r"@_\w+\.register_fake\n(?:.+\n)+", "", text)
    file = tmp_path / f"{name}_mutant.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{name}_mutant", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def shifted(channels: int) -> Norm:
    """Return a norm that makes something of a zero."""
    return Norm(torch.zeros(channels), torch.ones(channels), torch.ones(channels), torch.full((channels,), 3.0))


TAPS = Taps.of((8, 24), (32, 45))
SUPPORT = Support((Cluster(0, 20, ((0, 12), (20, 29))), Cluster(20, 24, ((4, 20),))))


def of_it(taken: tuple[Tensor, Tensor], made: Tensor) -> bool:
    """Say whether statistics are those of a map that was made."""
    return all(close(one, other) for one, other in zip(taken, statistics_reference(made), strict=True))


def gathers(module: Any) -> bool:
    source = only_read(torch.randn(70, 5, 7, 64), TAPS)
    options, taken = {"norm": shifted(29)._replace(mean=torch.full((29,), 9.0)), "window": (2, 3)}, empty_statistics(source, 29)
    with watched() as watch:
        found = module.gather(source, TAPS, statistics=taken, **options)
    return close(found, gather_reference(source, TAPS, **options)) and of_it(taken, found) and not watch.faults


def multiplies(module: Any) -> bool:
    source, weight = only_read(torch.randn(70, 64), TAPS), torch.randn(70, 29)
    options = {"norm": shifted(29), "activation": "relu", "out_norm": shifted(70), "bias": torch.randn(70)}
    halves, offset, taken = (source.half(), TAPS, weight.half()), torch.full((70,), 1000.0), empty_statistics(source, 70)
    with watched() as watch:
        found = module.gather_mm(source, TAPS, weight, **options)
        rounded = module.gather_mm(*halves, bias=offset, out_activation="relu", statistics=taken)
    return close(found, gather_mm_reference(source, TAPS, weight, **options)) and of_it(taken, rounded) and not watch.faults


def convolves(module: Any) -> bool:
    source = only_read(torch.randn(2, 5, 7, 64), TAPS)
    weight = torch.where(SUPPORT.mask(29)[:, None, None, :], torch.randn(24, 3, 3, 29), float("nan"))
    options = {"norm": shifted(29), "activation": "relu", "padding": 1, "out_norm": shifted(24), "bias": torch.randn(24)}
    with watched() as watch:
        found = module.block_sparse_conv2d(source, TAPS, weight, SUPPORT, **options)
    return close(found, block_sparse_conv2d_reference(source, TAPS, weight, SUPPORT, **options)) and not watch.faults


def convolves_back(module: Any) -> bool:
    """Check both gradients, with a stride and without, with more pixels than a program of the weight's takes."""
    module.LEAST_ROWS = 32
    support = Support((Cluster(0, 20, ((0, 12), (20, 29))), Cluster(20, 23, ((4, 20),))))
    source = only_read(torch.randn(3, 5, 7, 64), TAPS)
    weight = torch.where(support.mask(29)[:, None, None, :], torch.randn(23, 3, 3, 29), float("nan"))
    with watched() as watch:
        for grad, options in (torch.randn(3, 3, 4, 23), {"stride": 2, "padding": 1}), (torch.randn(3, 3, 5, 23), {}):
            expected = block_sparse_conv2d_backward_reference(grad, source, TAPS, weight, support, **options)
            found = module.block_sparse_conv2d_backward(grad, source, TAPS, weight, support, **options)
            if not all(close(one, other, 32) for one, other in zip(found, expected, strict=True)):
                return False
    return not watch.faults


def comes_back(module: Any) -> bool:
    """Check the gradients, with one of the map coming in, and with more rows than a program of the weight's takes."""
    module.LEAST_ROWS = 32
    source, weight, grad = only_read(torch.randn(70, 64), TAPS), torch.randn(70, 29), torch.randn(70, 70)
    options = {"norm": shifted(29)._replace(mean=torch.randn(29), weight=torch.randn(29)), "activation": "silu"}
    options["incoming"] = [torch.randn(70, 64)]
    expected = gather_mm_backward_reference(grad, source, TAPS, weight, **options)
    with watched() as watch:
        found = module.gather_mm_backward(grad, source, TAPS, weight, **options)
    return all(close(one, other) for one, other in zip(found, expected, strict=True)) and not watch.faults


def summarises(module: Any) -> bool:
    """Check with three groups of rows, of which two are joined at once, the last one's being fewer."""
    module.LEAST_ROWS, module.AT_ONCE = 128, 2
    source, grad = torch.randn(300, 20) + torch.arange(300)[:, None] / 50, torch.randn(300, 20)
    mean, var = statistics_reference(source)
    with watched() as watch:
        found = *module.statistics(source), module.centered(grad, source, mean, var, mean)
    expected = mean, var, centered_reference(grad, source, mean, var, mean)
    return all(close(one, other) for one, other in zip(found, expected, strict=True)) and not watch.faults


CHECKS: dict[str, Callable[[Any], bool]] = {
    "gather": gathers,
    "gather_mm": multiplies,
    "block_sparse": convolves,
    "block_sparse_backward": convolves_back,
    "gather_mm_backward": comes_back,
    "statistics": summarises,
}
MUTATIONS = [
    ("gather", "live = channel < channels", "live = channel < channels + 1"),
    ("gather", "(row < pixels)[:, None] &", "(row < pixels + 1)[:, None] &"),
    ("gather", "(line % height) * HIGH", "(line % height)"),
    ("gather", 'else float("-inf")', "else 0.0"),
    ("gather", "step // WIDE", "step // HIGH"),
    ("gather", "tl.minimum(pixels - group * ROWS, ROWS)", "tl.minimum(pixels, ROWS)"),
    ("gather", "row < pixels, count)", "row < pixels + ROWS, count)"),
    ("gather", "squares + group * channels + channel", "squares + channel"),
    ("gather", "len(into), height)\n\n", "len(into), height - 1)\n\n"),
    ("gather_mm", "live = channel < channels", "live = channel < channels + 1"),
    ("gather_mm", "in_rows, in_columns = row < height, column < width", "in_rows, in_columns = row <= height, column < width"),
    ("gather_mm", "in_rows, in_columns = row < height, column < width", "in_rows, in_columns = row < height, column <= width"),
    ("gather_mm", "column[None, :] * channels", "column[None, :] * CHANNELS"),
    ("gather_mm", "range(0, channels, CHANNELS)", "range(0, channels - CHANNELS + 1, CHANNELS)"),
    ("gather_mm", "described(rounded.to(tl.float32)", "described(total"),
    ("gather_mm", "in_rows, count)", "row < height + ROWS, count)"),
    ("gather_mm", "tl.minimum(height - group * ROWS, ROWS)", "tl.minimum(height, ROWS)"),
    ("gather_mm", "means + group * width + column", "means + column"),
    ("gather_mm", "statistics, height, high)", "statistics, height, high - 1)"),
    ("block_sparse", "value = tl.where(seen, activate(value, ACTIVATION), 0.0)", "value = activate(value, ACTIVATION)"),
    ("block_sparse", "live = group < last", "live = group <= last"),
    ("block_sparse", "read = live & (channel < channels)", "read = live"),
    ("block_sparse", "(y >= 0) & ", ""),
    ("block_sparse", "& (x < source_width)", ""),
    ("block_sparse", "tap % WIDE\n", "tap % WIDE + 1\n"),
    ("block_sparse", "in_rows, in_columns = row < pixels, column < end", "in_rows, in_columns = row < pixels, column <= end"),
    ("block_sparse", "if border != len(taps)", "if False"),
    ("block_sparse", "first = len(inputs)", "first = 0"),
    ("block_sparse_backward", "in_rows = (row < pixels) & (y < source_height)", "in_rows = (row < pixels)"),
    ("block_sparse_backward", "in_rows = (row < pixels) & (y", "in_rows = (row <= pixels) & (y"),
    ("block_sparse_backward", "& (beside >= 0) ", ""),
    ("block_sparse_backward", "(above < height) & ", ""),
    ("block_sparse_backward", "(down + padding) % STRIDE", "down % STRIDE"),
    ("block_sparse_backward", "left + j * STRIDE", "left + j"),
    ("block_sparse_backward", "tl.cdiv(WIDE - left, STRIDE)", "tl.cdiv(WIDE, STRIDE)"),
    ("block_sparse_backward", "live = group < last", "live = group <= last"),
    ("block_sparse_backward", "live = group < tl.load(tile + 3)", "live = group <= tl.load(tile + 3)"),
    ("block_sparse_backward", "there = live & (output < made)", "there = live"),
    ("block_sparse_backward", "read = live & (channel < channels)", "read = live"),
    ("block_sparse_backward", "in_columns = (column // COLUMN_GROUP < end) &", "in_columns = (column // COLUMN_GROUP <= end) &"),
    ("block_sparse_backward", "(output // COLUMN_GROUP < tl.cdiv(", "(output // COLUMN_GROUP <= tl.cdiv("),
    ("block_sparse_backward", "there = row < pixels", "there = row <= pixels"),
    ("block_sparse_backward", "part.to(tl.int64) * share", "part.to(tl.int64) * (share - 1)"),
    ("block_sparse_backward", "(part * outputs + output[None, :])", "output[None, :]"),
    ("block_sparse_backward", "tap % WIDE - padding", "tap % WIDE"),
    ("block_sparse_backward", "grad.new_zeros((parts", "grad.new_empty((parts"),
    ("gather_mm_backward", "in_rows, live = row < height, channel < channels", "in_rows, live = row <= height, channel < channels"),
    ("gather_mm_backward", "in_rows, live = row < height, channel < channels", "in_rows, live = row < height, channel <= channels"),
    ("gather_mm_backward", "made = output < outputs\n", "made = output <= outputs\n"),
    ("gather_mm_backward", "place = part * channels + channel", "place = channel"),
    ("gather_mm_backward", "total += tl.load(given", "total = tl.load(given"),
    ("gather_mm_backward", "_pass_unread(back, came, taps, widths)", "back.zero_()"),
    ("gather_mm_backward", "came_stride, CAME_GROUP", "came_stride - 1, CAME_GROUP"),
    ("gather_mm_backward", "taps.shifted(_side_by_side(widths))", "Taps.of((0, len(taps)))"),
    ("gather_mm_backward", "there = row < height", "there = row <= height"),
    ("gather_mm_backward", "start = part.to(tl.int64) * share", "start = part.to(tl.int64) * (share - 1)"),
    ("gather_mm_backward", "(part * outputs + output[:, None])", "output[:, None]"),
    ("statistics", "there = row < height", "there = row <= height"),
    ("statistics", "tl.minimum(share, height - group * share)", "share + 0 * height"),
    ("statistics", "distance * distance * count * ratio", "distance * distance * count"),
    ("statistics", "(group < groups)[:, None] & live", "(group <= groups)[:, None] & live"),
    ("statistics", "* GROUPS\n", "* (GROUPS - 1)\n"),
    ("statistics", "tl.sum(away * count[:, None], 0)", "tl.sum(away * share, 0)"),
    ("statistics", "+ away * away * count[:, None]", ""),
    ("statistics", "share * AT_ONCE", "share"),
    ("statistics", "mask = (row < height)[:, None] & live[None, :]", "mask = live[None, :]"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_the_checks_pass_on_the_kernels_as_they_are(name: str, tmp_path: Path) -> None:
    with mutant(name, "reference", "reference", tmp_path) as module:
        assert CHECKS[name](module)


@pytest.mark.parametrize(("name", "old", "new"), MUTATIONS)
def test_a_wrong_kernel_is_seen(name: str, old: str, new: str, tmp_path: Path) -> None:
    with mutant(name, old, new, tmp_path) as module:
        assert not CHECKS[name](module), f"{old!r} became {new!r}, and nothing was seen"
