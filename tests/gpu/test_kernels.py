"""The kernels on a GPU: every type, against references in float64, with an error at most twice that of torch's own operations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swnet
from benchmarks import bench_training, calibration
from benchmarks.bench_networks import Arm, examine
from benchmarks.models import densenet, seeded
from swcompile.lower import calibrate, operations
from swkernels import (
    Cluster,
    Norm,
    Support,
    Taps,
    block_sparse_conv2d,
    block_sparse_conv2d_backward,
    block_sparse_conv2d_backward_reference,
    block_sparse_conv2d_reference,
    centered,
    centered_reference,
    gather,
    gather_mm,
    gather_mm_backward,
    gather_mm_backward_reference,
    gather_mm_reference,
    gather_reference,
    launch,
    statistics,
    statistics_reference,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or launch.interpreting(), reason="needs a GPU, and TRITON_INTERPRET=0: make gpu"
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROWS = (2, 13, 11)


@pytest.fixture(autouse=True)
def _kernels_ran(launched: list[str]) -> Iterator[None]:
    """Each test must have launched some: else it would have compared the references with themselves."""
    yield
    assert launched


def norm(channels: int) -> Norm:
    drawn = (torch.randn(channels), torch.rand(channels) + 0.5, torch.randn(channels), torch.randn(channels))
    return Norm(*(value.cuda() for value in drawn))


def wide(value: Any) -> Any:
    """Return tensors, alone or in a norm, in float64."""
    if isinstance(value, Tensor):
        return value.double()
    return Norm(*(wide(part) for part in value)) if isinstance(value, Norm) else value


def check(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Compare with the exact result: at most twice the error of torch's own operations in the same type, or rounding."""
    error, allowed = ((value.double() - exact).pow(2).mean().sqrt().item() for value in (found, plain))
    rounding = torch.finfo(found.dtype).eps * exact.pow(2).mean().sqrt().item()
    assert error <= max(2 * allowed, rounding), (error, allowed, rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runs", [((64, 192), (0, 64)), ((3, 50), (100, 101)), ((0, 200),)])
@pytest.mark.parametrize("outputs", [32, 64, 128, 200])
def test_gather_mm(outputs: int, runs: tuple[tuple[int, int], ...], dtype: torch.dtype) -> None:
    taps, source = Taps.of(*runs), torch.randn(*ROWS, 200, device="cuda", dtype=dtype)
    weight = (torch.randn(outputs, len(taps), device="cuda") / len(taps) ** 0.5).to(dtype)
    options = {"norm": norm(len(taps)), "activation": "relu", "out_norm": norm(outputs), "out_activation": "relu"}
    exact = gather_mm_reference(wide(source), taps, wide(weight), **{key: wide(value) for key, value in options.items()})
    check(gather_mm(source, taps, weight, **options), gather_mm_reference(source, taps, weight, **options), exact)
    assert torch.equal(gather_mm(source, taps, weight, **options), gather_mm(source, taps, weight, **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 5])
def test_maps_that_lie_apart(count: int, dtype: torch.dtype) -> None:
    maps = [torch.randn(*ROWS, 48, device="cuda", dtype=dtype) for _ in range(count)]
    taps = Taps(tuple((place, 8 * (place % 3), 48) for place in reversed(range(count))))
    weight = (torch.randn(128, len(taps), device="cuda") / len(taps) ** 0.5).to(dtype)
    exact = gather_mm_reference([wide(source) for source in maps], taps, wide(weight))
    check(gather_mm(maps, taps, weight), gather_mm_reference(maps, taps, weight), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(1, 1), (2, 2)])
def test_gather(window: tuple[int, int], dtype: torch.dtype) -> None:
    taps, source = Taps.of((64, 192), (0, 64)), torch.randn(*ROWS, 200, device="cuda", dtype=dtype)
    options: dict[str, Any] = {"norm": norm(192), "activation": "silu", "window": window}
    exact = gather_reference(wide(source), taps, **{key: wide(value) for key, value in options.items()})
    check(gather(source, taps, **options), gather_reference(source, taps, **options), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_block_sparse_conv2d(width: int, kernel: int, dtype: torch.dtype) -> None:
    taps, source = Taps.of((64, 192), (0, 64)), torch.randn(*ROWS, 200, device="cuda", dtype=dtype)
    support = Support((Cluster(0, width, ((0, 32), (96, 128))), Cluster(width, 2 * width, ((32, 192),))))
    weight = (torch.randn(2 * width, kernel, kernel, 192, device="cuda") / (kernel * 10)).to(dtype)
    options: dict[str, Any] = {"padding": kernel // 2, "norm": norm(192), "activation": "relu"}
    exact = block_sparse_conv2d_reference(
        wide(source), taps, wide(weight), support, **{key: wide(value) for key, value in options.items()}
    )
    found, plain = (
        function(source, taps, weight, support, **options) for function in (block_sparse_conv2d, block_sparse_conv2d_reference)
    )
    check(found, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_block_sparse_conv2d_backward(width: int, kernel: int, stride: int, dtype: torch.dtype) -> None:
    taps, source = Taps.of((64, 192), (0, 64)), torch.randn(16, 13, 11, 200, device="cuda", dtype=dtype)
    support = Support((Cluster(0, width, ((0, 32), (96, 128))), Cluster(width, 2 * width, ((32, 192),))))
    weight = (torch.randn(2 * width, kernel, kernel, 192, device="cuda") / (kernel * 10)).to(dtype)
    options = {"stride": stride, "padding": kernel // 2}
    grad = torch.randn_like(block_sparse_conv2d_reference(source, taps, weight, support, **options))
    given = source, taps, weight, support
    exact = block_sparse_conv2d_backward_reference(wide(grad), wide(source), taps, wide(weight), support, **options)
    plain = block_sparse_conv2d_backward_reference(grad, *given, **options)
    found, again = (block_sparse_conv2d_backward(grad, *given, **options) for _ in range(2))
    for one, other, torchs, true in zip(found, again, plain, exact, strict=True):
        assert torch.equal(one, other)
        check(one, torchs, true)


def test_offsets_beyond_32_bits() -> None:
    """Rows times channels beyond 2^31: the last row is read, not one that overflowed."""
    slab = torch.zeros(1 << 21, 1032, device="cuda", dtype=torch.float16)
    slab[-1] = 1
    found = gather_mm(slab, Taps.of((0, 64)), torch.ones(16, 64, device="cuda", dtype=torch.float16))
    assert found[-1].tolist() == [64.0] * 16
    assert not found[:-1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_lowered_dense_net_under_a_graph(dtype: torch.dtype) -> None:
    """A captured graph replays on new inputs and on new weights."""
    model = seeded(densenet, 0).cuda()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # no statistic and no parameter at its default
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
        model(torch.randn(64, 3, 32, 32, device="cuda"))
    model = model.eval().to(dtype=dtype, memory_format=torch.channels_last)
    lowered = swnet.lower(model, torch.randn(2, 3, 32, 32, device="cuda", dtype=dtype), backend="triton")
    x = torch.randn(8, 3, 32, 32, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(3):
            lowered(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = lowered(x)
        x.copy_(torch.randn_like(x))
        nn.init.normal_(lowered.get_parameter("3.conv.weight"), std=0.05)
        graph.replay()
        torch.testing.assert_close(y, lowered(x), rtol=0, atol=0)
        plain = model(x)
    exact = model.double()(x.double())
    check(lowered_again(model, x, dtype), plain, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_lowered_dense_net_under_autocast(dtype: torch.dtype) -> None:
    model = seeded(densenet, 0).cuda().eval()
    x = torch.randn(8, 3, 32, 32, device="cuda")
    lowered = swnet.lower(model, x, backend="triton")
    with torch.inference_mode():
        with torch.autocast("cuda", dtype):
            found, plain = lowered(x), model(x)
        assert found.dtype == plain.dtype == dtype
        check(found, plain, model.double()(x.double()))


def lowered_again(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a fresh lowering of a model makes of images, in a type."""
    lowered = swnet.lower(model.to(dtype), x, backend="triton")
    with torch.inference_mode():
        return lowered(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("comes_in", [True, False])
@pytest.mark.parametrize("outputs", [32, 128, 200])
def test_gather_mm_backward(outputs: int, comes_in: bool, dtype: torch.dtype) -> None:
    taps, source = Taps.of((64, 192), (0, 64)), torch.randn(64, 13, 11, 200, device="cuda", dtype=dtype)
    weight = (torch.randn(outputs, len(taps), device="cuda") / len(taps) ** 0.5).to(dtype)
    grad, options = torch.randn(64, 13, 11, outputs, device="cuda", dtype=dtype), {"norm": norm(len(taps)), "activation": "relu"}
    came = [torch.randn_like(source) if comes_in else None]
    exact = gather_mm_backward_reference(
        wide(grad),
        wide(source),
        taps,
        wide(weight),
        norm=wide(options["norm"]),
        activation="relu",
        incoming=[wide(one) for one in came],
    )
    options["incoming"] = came
    plain = gather_mm_backward_reference(grad, source, taps, weight, **options)
    found, again = (gather_mm_backward(grad, source, taps, weight, **options) for _ in range(2))
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one, other)
    for one, other, true in zip(found, plain, exact, strict=True):
        check(one, other, true)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_and_what_comes_back_through_them(dtype: torch.dtype) -> None:
    source, grad = (torch.randn(64, 28, 28, 72, device="cuda", dtype=dtype)[..., :67] for _ in range(2))
    mean, var = statistics(source)
    for one, plain, true in zip((mean, var), statistics_reference(source), statistics_reference(wide(source)), strict=True):
        check(one, plain, true)
    exact = centered_reference(wide(grad), wide(source), wide(mean), wide(var), wide(mean))
    check(centered(grad, source, mean, var, mean), centered_reference(grad, source, mean, var, mean), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "outputs"), [(3, 128), (5000, 100), (40_001, 32), (40_001, 64), (40_001, 128), (2_200_000, 16)])
def test_statistics_of_what_is_made(rows: int, outputs: int, dtype: torch.dtype) -> None:
    """By tiles of every size; those of 2,200,000 rows are joined three times."""
    source, taps = torch.randn(rows, 72, device="cuda", dtype=dtype), Taps.of((0, outputs // 2), (64, 72))
    weight = (torch.randn(outputs, len(taps), device="cuda") / len(taps) ** 0.5).to(dtype)
    bias = torch.randn(outputs, device="cuda")
    for count, product in ((outputs, True), (len(taps), False)):
        mean, var, again, other = torch.empty(4, count, device="cuda")
        for taken in ((mean, var), (again, other)):
            if product:
                made = gather_mm(source, taps, weight, bias=bias, statistics=taken)
            else:
                made = gather(source, taps, activation="relu", statistics=taken)
        assert torch.equal(mean, again)
        assert torch.equal(var, other)
        true = statistics_reference(wide(made))
        assert torch.allclose(mean.double(), true[0], rtol=1e-5, atol=1e-5)
        assert torch.allclose(var.double(), true[1], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_training_step_of_a_lowered_dense_net(dtype: torch.dtype) -> None:
    """Gradients of the weights: an error at most twice that of the model as it was."""
    model = seeded(densenet, 0).cuda().to(dtype=dtype, memory_format=torch.channels_last).train()
    x = torch.randn(16, 3, 32, 32, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    lowered = swnet.lower(model, x, backend="triton", training=True).train()
    exact = copy.deepcopy(model).double()
    for one, images in ((model, x), (lowered, x), (exact, x.double())):
        one(images).float().square().mean().backward()
    pairs = zip(lowered.parameters(), model.parameters(), exact.parameters(), strict=True)
    errors = [[(value.grad.double() - true.grad).pow(2).sum().item() for value in (mine, plain)] for mine, plain, true in pairs]
    ours, theirs = (sum(side) for side in zip(*errors, strict=True))
    assert ours**0.5 <= 2 * theirs**0.5


def test_the_networks_of_the_benchmark_run_in_graphs_in_all_forms() -> None:
    arms = {"original": Arm(lambda: densenet(10, 16), (3, 32, 32))}
    asked = ("compile-cat", "lower-triton", "lower-auto", "lower-compile")
    rows = examine("small", arms, asked, torch.device("cuda"), torch.bfloat16, 16, 3)
    assert [(row["form"], row["failed"]) for row in rows] == [(form, None) for form in ("eager", *asked)]
    assert all(row["peak_memory"] > 0 for row in rows)


def test_whole_training_steps_run_in_graphs_in_all_forms() -> None:
    """Each right in a replay, running statistics among it, which a replay moves once; and the graphs share their memory."""
    arms = {
        "original": Arm(lambda: densenet(10, 16), (3, 32, 32)),
        "block": Arm(lambda: nn.Sequential(*densenet(10, 16)[1:3]), (16, 16, 16)),
    }
    asked = ("compile-cat", "lower-triton", "lower-auto", "lower-compile")
    rows = bench_training.examine("small", arms, asked, torch.device("cuda"), torch.bfloat16, 16, 3)
    assert [(row["arm"], row["form"], row["failed"]) for row in rows] == [
        (arm, form, None) for arm in arms for form in ("eager", *asked)
    ]
    assert all(row["peak_memory"] > 0 for row in rows)
    chosen = {(row["arm"], row["form"]): row["chosen"] for row in rows}
    assert all("by triton" in str(chosen[arm, form]) for arm in arms for form in ("lower-triton", "lower-compile"))


@pytest.mark.parametrize(
    "question",
    [
        calibration.strided,
        calibration.gather,
        calibration.block_sparse,
        calibration.block_sparse_backward,
        calibration.launch,
    ],
)
def test_the_questions_of_the_calibration_are_answered(question: Any) -> None:
    gather(torch.randn(*ROWS, 64, device="cuda"), Taps.of((0, 8)))  # one question asks torch alone
    rows = calibration.answered(question, calibration.Setting(torch.device("cuda"), torch.bfloat16, 8, 0.01))
    assert rows
    assert not [row["failed"] for row in rows if row.get("failed")]


def test_a_training_step_is_captured_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "third_block", lambda: (nn.Sequential(*densenet(10, 16)[1:3]), 16))
    rows = calibration.answered(calibration.training, calibration.Setting(torch.device("cuda"), torch.bfloat16, 8))
    assert [(row["form"], row.get("failed")) for row in rows] == [(form, None) for form in ("eager", "compile-cat", "lower-triton")]


def test_calibration_times_the_kernels_on_the_last_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("SIDES", (8,)), ("CHANNELS", (64,)), ("OUTPUTS", (32,)), ("BATCHES", {"cuda": (2,)})):
        monkeypatch.setattr(calibrate, name, few)
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    found = calibrate.calibrated(device, seconds=0.01)
    assert found.gpu is not None
    assert found.gpu.capability == torch.cuda.get_device_capability(device)
    assert found.gpu.apart(found.gpu) == 0
    for dtype in DTYPES:
        assert {*operations.KERNEL_MAPS, *operations.KERNEL_PRODUCTS} < set(found.of(dtype))
