"""Compile the kernels for a GPU without one, exactly as a launch would specialise them, and read registers and instructions.

    python -m tests.kernels.aot sm_90 > report.json       one record a configuration

Not to be run under TRITON_INTERPRET=1: there the functions that a kernel calls are not compilable. So the tests start it anew.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from swkernels import (
    Cluster,
    Norm,
    Support,
    Taps,
    block_sparse,
    block_sparse_backward,
    block_sparse_conv2d,
    block_sparse_conv2d_backward,
    centered,
    gather,
    gather_mm,
    gather_mm_backward,
    launch,
    statistics,
)
from swkernels.gather_mm import SHIPPED, Tiles
from swkernels.statistics import empty_statistics

TARGETS = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}


def compiled(target: GPUTarget, call: Callable[[], object], which: int = -1) -> dict[str, Any]:
    """Compile a kernel that a call launches, the last one, on tensors that need no GPU, and return what came out."""
    launched: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def note(kernel: Any, _: int, *arguments: Any, **options: Any) -> None:
        launched.append((kernel, arguments, options))

    hip = "7.0" if target.backend == "hip" else None
    with (
        mock.patch.object(launch, "run", note),
        mock.patch.object(launch, "on_kernels", return_value=True),
        mock.patch.object(torch.version, "hip", hip),
    ):
        call()
    return _compiled(target, *launched[which])


def _compiled(target: GPUTarget, kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    names = kernel.arg_names
    plain = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    aligned = plain | {parameter.name for parameter in kernel.params if parameter.do_not_specialize_on_alignment}
    constants = {name: value for name, value in options.items() if name in names}
    runtime = dict(zip(names, arguments, strict=False))
    signature = {name: "constexpr" if name in constants else _type(runtime[name]) for name in names}
    constants |= {name: runtime[name] for name, kind in signature.items() if kind == "constexpr" and name in runtime}
    attributes = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, value in runtime.items()
        if name not in aligned and signature[name] != "constexpr" and _divisible(value)
    }
    if target.backend == "hip":  # its launcher says of tensors of up to 2 GiB that offsets have 32 bits
        for name, value in runtime.items():
            if isinstance(value, Tensor) and name not in plain:
                attributes.setdefault((names.index(name),), []).append(["tt.pointer_range", 32])
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, attributes)
    made = triton.compile(
        source, target=target, options={key: options[key] for key in ("num_warps", "num_stages") if key in options}
    )
    return {"shared": made.metadata.shared} | (_on_nvidia(made) if target.backend == "cuda" else _on_amd(made))


def _type(value: Any) -> str:
    """Return an argument's type as a launch has it; None, and the number 1, are compiled in."""
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "constexpr" if value is None or value == 1 else "i32" if value < 2**31 else "i64"


def _divisible(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and value != 1 and value % 16 == 0


def _on_nvidia(made: Any) -> dict[str, Any]:
    ptx = made.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([TOOLS / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flags in (("cuobjdump", ["-res-usage"]), ("nvdisasm", []))
        )
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x(\w+)", ptx)
    return {
        "registers": _number(r"REG:(\d+)", usage),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "async_copies": {str(size): copies.count(f"{size:x}") for size in (4, 8, 16)},
        "narrow_loads": len(re.findall(r"ld\.global\S*\.(?:b|u)16\b", ptx)),
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"the compiler no longer says {pattern}"
    return int(found[1])


def _on_amd(made: Any) -> dict[str, Any]:
    text = made.asm["amdgcn"]
    counts = {name: _number(rf"\.{name}:\s+(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")}
    return {
        "registers": counts["vgpr_count"],
        "spills": counts["vgpr_spill_count"],
        "scalar_spills": counts["sgpr_spill_count"],  # into lanes of vector registers, not into memory
        "mfma": text.count("v_mfma"),
        "near_loads": len(re.findall(r"buffer_load_\w+", text)),  # within 2 GiB of their base
        "far_loads": len(re.findall(r"(?:global|flat)_load_\w+", text)),
    }


def norm(count: int) -> Norm:
    return Norm(torch.zeros(count), torch.ones(count), torch.ones(count), torch.zeros(count))


def product(tiles: Tiles, dtype: torch.dtype, whole: bool) -> Callable[[], object]:
    """Return a call of gather_mm that runs the given tiles: bare, or with everything before and behind the product."""
    source, taps = torch.zeros(64, 256, dtype=dtype), Taps.of((128, 256), (0, 64))
    weight = torch.zeros(128, 192, dtype=dtype)
    more: dict[str, Any] = (
        {"norm": norm(192), "activation": "relu", "out_norm": norm(128), "out_activation": "relu"} if whole else {}
    )

    def call() -> object:
        with mock.patch("swkernels.gather_mm.tiles_for", return_value=tiles):
            return gather_mm(source, taps, weight, **more)

    return call


def scattered(tiles: Tiles, dtype: torch.dtype, statistics: bool = False) -> Callable[[], object]:
    """Return a call of gather_mm over maps that lie apart; with statistics, its last launch joins them."""
    sources, taps = [torch.zeros(64, 64, dtype=dtype) for _ in range(3)], Taps(((0, 0, 64), (1, 0, 64), (2, 0, 64)))
    weight = torch.zeros(128, 192, dtype=dtype)

    def call() -> object:
        with mock.patch("swkernels.gather_mm.tiles_for", return_value=tiles):
            taken = empty_statistics(weight, 128) if statistics else None
            return gather_mm(sources, taps, weight, norm=norm(192), activation="relu", statistics=taken)

    return call


def convolution(tiles: Tiles, dtype: torch.dtype, kernel: int) -> Callable[[], object]:
    """Return a call of block_sparse_conv2d that runs the given tiles."""
    source, taps = torch.zeros(2, 8, 8, 256, dtype=dtype), Taps.of((128, 256), (0, 128))
    support = Support((Cluster(0, 64, ((0, 64),)), Cluster(64, 128, ((64, 128), (192, 256)))))
    weight = torch.zeros(128, kernel, kernel, 256, dtype=dtype)

    def call() -> object:
        with mock.patch("swkernels.block_sparse.tiles_for", return_value=tiles):
            return block_sparse_conv2d(
                source, taps, weight, support, padding=kernel // 2, out_norm=norm(128), out_activation="relu"
            )

    return call


def convolution_backward(tiles: Tiles, what: str, dtype: torch.dtype, kernel: int, stride: int) -> Callable[[], object]:
    """Return a call of block_sparse_conv2d_backward that runs the given tiles for one of its two kernels."""
    source, taps = torch.zeros(2, 8, 8, 256, dtype=dtype), Taps.of((128, 256), (0, 128))
    support = Support((Cluster(0, 64, ((0, 64),)), Cluster(64, 128, ((64, 128), (192, 256)))))
    weight, side = torch.zeros(128, kernel, kernel, 256, dtype=dtype), 8 // stride

    def call() -> object:
        with mock.patch.object(block_sparse_backward, what, return_value=tiles):
            grad = torch.zeros(2, side, side, 128, dtype=dtype)
            return block_sparse_conv2d_backward(grad, source, taps, weight, support, stride=stride, padding=kernel // 2)

    return call


def backward(dtype: torch.dtype, adds: bool) -> Callable[[], object]:
    """Return a call of gather_mm_backward, which launches two kernels last."""
    source, taps = torch.zeros(64, 256, dtype=dtype), Taps.of((128, 256), (0, 64))
    grad, weight, came = torch.zeros(64, 128, dtype=dtype), torch.zeros(128, 192, dtype=dtype), torch.zeros_like(source)
    options: dict[str, Any] = {"norm": norm(192), "activation": "relu", "incoming": [came if adds else None]}
    return lambda: gather_mm_backward(grad, source, taps, weight, **options)


def scattered_backward(dtype: torch.dtype) -> Callable[[], object]:
    """Return the same of maps that lie apart, as does what comes in."""
    sources, came = ([torch.zeros(64, 64, dtype=dtype) for _ in range(3)] for _ in range(2))
    taps, weight = Taps(((0, 0, 64), (1, 0, 64), (2, 0, 64))), torch.zeros(128, 192, dtype=dtype)
    options: dict[str, Any] = {"norm": norm(192), "activation": "relu", "incoming": came}
    return lambda: gather_mm_backward(torch.zeros(64, 128, dtype=dtype), sources, taps, weight, **options)


def cases() -> Iterator[tuple[str, Callable[[], object], int]]:
    """Yield every configuration that is shipped, with a call that runs it, and which of its launches is meant."""
    for name, tiles in SHIPPED.items():
        for dtype in (torch.float32,) if name == "float32" else (torch.bfloat16, torch.float16):
            for whole in (True, False):
                yield f"gather_mm {name} {TYPES[dtype]} {'whole' if whole else 'bare'}", product(tiles, dtype, whole), -1
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        yield f"gather_mm scattered {name} {TYPES[dtype]}", scattered(tiles, dtype), -1
        yield f"gather_mm scattered {name} {TYPES[dtype]} with statistics", scattered(tiles, dtype, True), -2
    for name, tiles in block_sparse.SHIPPED.items():
        for kernel in (1, 3):
            dtype = torch.float32 if name == "float32" else torch.bfloat16
            yield f"block_sparse_conv2d {kernel}x{kernel} {name} {TYPES[dtype]}", convolution(tiles, dtype, kernel), -1
    yield from block_sparse_backward_cases()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        source, taps = torch.zeros(2, 8, 8, 256, dtype=dtype), Taps.of((128, 256), (0, 64))
        yield f"gather {TYPES[dtype]}", lambda s=source, t=taps: gather(s, t, norm=norm(192), activation="relu"), -1
        yield f"gather pooled {TYPES[dtype]}", lambda s=source, t=taps: gather(s, t, pool="max", window=(2, 2)), -1
        taken = empty_statistics(source, 192)
        yield f"gather {TYPES[dtype]} with statistics", lambda s=source, t=taps, m=taken: gather(s, t, statistics=m), -2
        for adds in (True, False):
            yield f"data_gradient_mm {TYPES[dtype]} {'added' if adds else 'alone'}", backward(dtype, adds), -2
        yield f"data_gradient_mm scattered {TYPES[dtype]}", scattered_backward(dtype), -2
        yield f"weight_gradient_mm {TYPES[dtype]}", backward(dtype, False), -1
        of = torch.zeros(64, 256, dtype=dtype)
        yield f"statistics {TYPES[dtype]}", lambda x=of: statistics(x), 0
        yield f"joined after {TYPES[dtype]}", lambda x=of: statistics(x), -1
        yield f"centered {TYPES[dtype]}", lambda x=of: centered(x, x, *torch.zeros(3, 256)), 0


def block_sparse_backward_cases() -> Iterator[tuple[str, Callable[[], object], int]]:
    """Yield the configurations of what comes back through block_sparse_conv2d: to its map, and to its weight."""
    shipped = {"data_tiles_for": block_sparse_backward.SHIPPED_DATA, "tiles_for": block_sparse_backward.SHIPPED}
    for which, (what, tiles_by_name) in enumerate(shipped.items()):
        for name, tiles in tiles_by_name.items():
            dtype = torch.float32 if name == "float32" else torch.bfloat16
            for kernel, stride in ((1, 1), (3, 1), (3, 2)):
                told = f"{'weight' if which else 'data'} {kernel}x{kernel} by {stride} {name} {TYPES[dtype]}"
                call = convolution_backward(tiles, what, dtype, kernel, stride)
                yield f"block_sparse_conv2d_backward {told}", call, which


def main() -> None:
    """Compile all cases for the target that is named."""
    target = TARGETS[sys.argv[1]]
    report = {name: compiled(target, call, which) for name, call, which in cases()}
    report["write_places"] = compiled(target, scattered(SHIPPED["wide"], torch.bfloat16), 0)
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
