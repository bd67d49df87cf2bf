"""The benchmarks: their networks, their curves and tables, and a very small run of each."""

import copy
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import swnet
from benchmarks import (
    bench_lower,
    bench_metrics,
    bench_networks,
    bench_prune,
    bench_step,
    bench_training,
    bench_transform,
    calibration,
    forms,
    gpu_table,
    graphs,
    lowered_training,
    models,
    record,
)
from swcompile.graph import LayerGraph
from swcompile.metrics import channel_graph
from swcompile.trace import trace_structure
from tests.test_convergence import small_set


def text(table: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_plain_network_has_21_weight_layers() -> None:
    model = models.plain_cnn21()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 21
    assert [layer.out_channels for layer in layers[:-1] if isinstance(layer, nn.Conv2d)] == [24] * 7 + [48] * 7 + [96] * 6
    assert model[:-3](torch.zeros(1, 3, 32, 32)).shape == (1, 96, 8, 8)


def test_resnet50_has_its_published_size() -> None:
    with torch.device("meta"):
        assert models.parameters(models.resnet50()) == 25_557_032


def test_building_from_a_seed_repeats_and_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = (models.seeded(models.chain, 3, 2).state_dict() for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_timings_of_a_step_are_kept_with_their_origin(tmp_path: Path) -> None:
    taken = {"original": [1.0, 2.0, 3.0], "rewired": [2.0, 2.0, 4.0]}
    times = {name: {part: list(values) for part in bench_step.PARTS} for name, values in taken.items()}
    row = bench_step.row(times, "NCHW", "step", batch=2, macs=100)
    assert row["ratio"] == 1.0
    assert row["flops"] == 1200
    assert "step NCHW" in text(bench_step.show([row]))
    kept = json.loads(record.write_timings("bench_step", [row], tmp_path).read_text())
    assert {"hardware", "versions", "commit", "date", "rows"} <= kept.keys()


def test_a_step_is_measured_in_turns() -> None:
    networks = {name: models.seeded(models.plain_cnn21, 0) for name in ("original", "rewired")}
    times = bench_step.measure(networks, "channels_last", batch=2, rounds=2, warmup=0)
    assert all(len(times[name][part]) == 2 for name in networks for part in bench_step.PARTS)
    assert all(times[name]["step"][0] >= times[name]["forward"][0] for name in networks)


def test_lowering_is_timed_or_said_to_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_lower, "SHAPE", (3, 32, 32))
    monkeypatch.setattr(bench_prune, "SHAPE", (3, 32, 32))
    monkeypatch.setattr("swcompile.lower.lowering.known", lambda _: None)
    network = models.densenet(10, 4)
    rows = [
        bench_lower.examine("densenet", network, "channels last", batch=2, rounds=2, backend="torch"),
        bench_lower.examine("densenet", network, "channels first", batch=2, rounds=2),
    ]
    tiled = swnet.transform(network, torch.zeros(1, 3, 32, 32), **bench_lower.REWIRED["#"])
    rows.append(bench_lower.examine("#densenet", tiled, "channels first", 2, 2, "torch", network))
    assert rows[0]["ratio"] > 0
    assert rows[2]["ratio"] > 0
    assert rows[2]["baseline"] == "original"
    assert "by torch" in rows[0]["chosen"]
    assert "nothing is known of this device" in rows[1]["left_alone"]
    shown = text(bench_lower.show(rows))
    assert "densenet channels last" in shown
    assert "left alone" in shown


CPU = torch.device("cpu")


def small_networks() -> dict[str, bench_networks.Arm]:
    return {
        "original": bench_networks.Arm(lambda: models.densenet(10, 4), (3, 16, 16)),
        "plain": bench_networks.Arm(lambda: models.chain(2), (3, 16, 16)),
    }


def test_networks_run_in_all_forms_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swcompile.lower.lowering.known", lambda _: None)
    told: list[tuple[str, str]] = []
    wanted = ("lower-torch", "lower-auto")
    rows = bench_networks.examine("small", small_networks(), wanted, CPU, torch.float32, 3, 2, told.append)
    found = {(row["arm"], row["form"]): row for row in rows}
    assert list(found) == told == [(arm, form) for arm in ("original", "plain") for form in ("eager", *wanted)]
    lowered = found["original", "lower-torch"]
    assert lowered["failed"] is None
    assert "6 by torch" in lowered["chosen"]
    assert lowered["ms"][1] > 0
    assert lowered["ratio"] > 0
    assert 0 < lowered["error"] <= lowered["error_allowed"] < 1e-6
    assert found["original", "eager"]["ratio"] == 1
    assert "nothing is known of this device" in found["original", "lower-auto"]["chosen"]
    assert "There is nothing to lower" in found["plain", "lower-torch"]["failed"]
    convolutions = 16 * 16 * 3 * 16 * 9 + 16 * 16 * 16 * 16 * 9
    assert found["plain", "eager"]["flops"] == 2 * 3 * convolutions
    shown = text(bench_networks.show(rows))
    assert "NothingToDoError" in shown
    assert "6 by torch" in shown


def test_a_fast_form_that_computes_something_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a form without the last norm would: with the statistics of a new network it would be right."""

    def without_norm(model: nn.Module, _: torch.Tensor) -> nn.Module:
        return nn.Sequential(*(nn.Identity() if isinstance(part, nn.BatchNorm2d) else part for part in model.children()))

    monkeypatch.setitem(bench_networks.FORMS, "lower-torch", without_norm)
    eager, wrong = bench_networks.examine("densenet121", small_networks(), ["lower-torch"], CPU, torch.float32, 2, 1)[:2]
    assert eager["failed"] is None
    assert "its result is wrong" in wrong["failed"]
    assert wrong["ms"][1] > 0
    assert bench_networks.fastest([eager, wrong], "densenet121", ["original"], ["lower-torch"]) is None


def test_a_form_that_breaks_says_why_and_the_others_go_on() -> None:
    calls: list[str] = []

    def breaks_later() -> torch.Tensor:
        calls.append("later")
        if len(calls) > forms.WARMUP + 2:
            raise RuntimeError("an illegal access\nmore")
        return torch.ones(1)

    def no_build() -> forms.Call:
        try:
            raise KeyError("tiles")
        finally:
            raise ValueError("no kernel.")

    builds = {"one": lambda: lambda: torch.ones(2), "two": no_build, "three": lambda: breaks_later}
    found = forms.side_by_side(builds, CPU, 4)
    assert [outcome.failed for outcome in found.values()] == [
        None,
        "ValueError: no kernel (after KeyError: 'tiles')",
        "RuntimeError: an illegal access",
    ]
    assert found["one"].times is not None
    assert len(found["one"].times) == 4
    assert found["two"].times is found["three"].times is None


def test_what_is_not_finite_is_wrong() -> None:
    exact = torch.ones(4, dtype=torch.float64)
    reference = forms.Reference.of(torch.tensor([1.0, 1.0, 1.0, 1.5]), exact)
    assert reference.allowed == pytest.approx(0.5)
    for value in (torch.nan, torch.inf):
        assert forms.relative_error(torch.tensor([1.0, 1.0, 1.0, value]), exact) == torch.inf
    with pytest.raises(AssertionError, match="nothing to compare with"):
        forms.Reference.of(torch.full((4,), torch.nan), exact)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside inductor
def test_compiled_forms_are_frozen_and_do_not_share_their_code() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    model, x = nn.Sequential(models.unit(3, 4), nn.Conv2d(4, 4, 3)).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for options in ({}, forms.FORCED_CAT):
            made = forms.tuned(model, lambda net: net(x), freezing=True, **options)
            torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2
    assert counters["inductor"]["binary_folding_conv"] > 0  # the norm went into the weight


def made_up(arm: str, form: str, ms: float, failed: str | None = None, case: str = "densenet121") -> dict[str, Any]:
    row = {"case": case, "arm": arm, "form": form, "ms": [ms, ms, ms], "failed": failed}
    return row | {"dtype": "bfloat16", "batch": 256}


def test_targets_are_judged_by_the_fastest_forms_that_are_right() -> None:
    rows = [
        made_up("original", "eager", 24),
        made_up("original", "compile", 14),
        made_up("original", "compile-cat", 13),
        made_up("original", "lower-triton", 10),
        made_up("original", "lower-auto", 11),
        made_up("original", "lower-compile", 5, "its result is wrong"),
    ]
    against_eager, against_compile = bench_networks.verdict(rows)
    assert against_eager == (
        "DenseNet-121 against eager, times as fast: at least 2.30; 2.40 (lower-triton 10.00 ms, eager 24.00 ms): met"
    )
    assert against_compile.endswith("at least 1.35; 1.30 (lower-triton 10.00 ms, compile-cat 13.00 ms): NOT MET")
    without = list(bench_networks.verdict(rows[:1] + rows[3:]))
    assert without[1].endswith("not measured: none of compile, compile-cat ran right")


def test_targets_over_several_arms_are_judged_by_sums_and_against_other_arms() -> None:
    blocks = [made_up(f"block {place}", form, ms, case="dense-blocks")
              for place in range(1, 5) for form, ms in (("compile-cat", 3.0), ("lower-triton", 1.0 + place / 4))]  # fmt: skip
    (said,) = bench_networks.verdict(blocks)
    assert said.endswith("1.85 (lower-triton 6.50 ms, compile-cat 12.00 ms): met")
    (lacks,) = bench_networks.verdict([row for row in blocks if row["arm"] != "block 2"])
    assert "not measured" in lacks
    times = {"original": ("compile", 10.0), "rewired": ("lower-triton", 10.9), "rewired, 1x1 only": ("lower-triton", 10.1)}
    some, only = bench_networks.verdict([made_up(arm, form, ms, case="resnet50") for arm, (form, ms) in times.items()])
    assert some.endswith("at least 0.91; 0.92 (lower-triton 10.90 ms, compile 10.00 ms): met")
    assert only.endswith("NOT MET")


def test_the_networks_of_the_targets_are_there_and_rewired_as_they_say() -> None:
    for target in bench_networks.TARGETS:
        assert {*target.ours, *target.theirs} <= bench_networks.CASES[target.case].keys()
        assert {*target.forms} <= bench_networks.FORMS.keys()
    arms = bench_networks.CASES["resnet50"]
    kernels = {}
    for name in ("rewired", "rewired, 1x1 only"):
        model = models.seeded(arms[name].build, 0)
        plan = model.swcompile.plan
        layers = dict(model.named_modules())
        kernels[name] = {layers[wiring.layer].kernel_size for wiring in plan.layers}
        widths = {stop - start for wiring in plan.layers for start, stop in wiring.columns}
        assert all(width % 64 == 0 for width in widths)
        assert 0.25 < swnet.ledger(model).after.p_achieved <= 0.3
    assert kernels == {"rewired": {(1, 1), (3, 3)}, "rewired, 1x1 only": {(1, 1)}}
    for arm in bench_networks.CASES["dense-blocks"].values():
        assert arm.build()(torch.zeros(1, *arm.shape)).shape[2:] == arm.shape[1:]


def test_networks_are_kept_case_by_case(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_networks, "CASES", {"small": small_networks()})
    monkeypatch.setattr(bench_networks, "write_timings", lambda name, rows: record.write_timings(name, rows, tmp_path))
    bench_networks.main(["--rounds", "1", "--batch", "2", "--forms", "lower-torch"])
    shown = capsys.readouterr().out
    assert "building original lower-torch" in shown
    assert "The targets are for an H200" in shown
    (file,) = tmp_path.glob("*/bench_networks_small.json")
    rows = json.loads(file.read_text())["rows"]
    required = {"name", "shape", "dtype", "batch", "baseline", "bytes", "flops", "peak_memory"}
    assert all(required <= row.keys() for row in rows)
    with pytest.raises(SystemExit):
        bench_networks.main(["resnet5"])
    assert "there is no case resnet5; there are small" in capsys.readouterr().err


def trained_networks() -> dict[str, bench_networks.Arm]:
    return {
        "original": small_networks()["original"],
        "plain": bench_networks.Arm(models.resnet20, (3, 16, 16)),
        "block": bench_networks.Arm(lambda: nn.Sequential(*models.densenet(10, 4)[1:3]), (16, 8, 8)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_steps_run_in_all_forms_and_what_they_keep_is_counted(dtype: torch.dtype) -> None:
    arms = trained_networks()
    rows = bench_training.examine("small", arms, ["lower-torch"], CPU, dtype, 2, 2)
    found = {(row["arm"], row["form"]): row for row in rows}
    assert list(found) == [(arm, form) for arm in arms for form in ("eager", "lower-torch")]
    for arm in ("original", "block"):
        eager, lowered = found[arm, "eager"], found[arm, "lower-torch"]
        assert lowered["failed"] is None
        assert "by torch" in lowered["chosen"]
        assert 0 < lowered["kept_bytes"] < 0.9 * eager["kept_bytes"]
        assert lowered["errors"].keys() == {"loss", "gradients", "statistics"}
        assert lowered["ratio"] > 0
    assert found["original", "lower-torch"]["weights"] == "float32"
    assert ("autocast" in found["original", "lower-torch"]["chosen"]) == (dtype == torch.bfloat16)
    assert found["block", "lower-torch"]["weights"] == str(dtype).removeprefix("torch.")
    assert "There is nothing to lower" in found["plain", "lower-torch"]["failed"]
    shown = text(bench_training.show(rows))
    assert f"{found['block', 'lower-torch']['kept_bytes'] / found['block', 'eager']['kept_bytes']:.3f}" in shown
    said = list(bench_training.remarks(rows))
    assert [line.partition(": ")[0] for line in said] == [f"{arm}, lower-torch" for arm in arms]
    assert "NothingToDoError" in said[1]


def off_by_a_hundredth(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, images, made: made * 1.01)


def half_a_gradient(model: nn.Module) -> None:
    model[1].norm.weight.register_hook(lambda grad: grad / 2)  # of 16 values, among 15 parameters


def norms_run_twice(model: nn.Module) -> None:
    """As where a backward pass runs a forward pass anew, or a step is recorded twice."""
    norm = model[1].norm
    norm.register_forward_hook(lambda module, maps, made: nn.functional.batch_norm(
        maps[0], norm.running_mean, norm.running_var, training=True) * 0 + made)  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "kind"), [(off_by_a_hundredth, "loss"), (half_a_gradient, "gradients"), (norms_run_twice, "statistics")]
)
def test_a_step_that_computes_something_else_is_wrong(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[nn.Module], None], kind: str
) -> None:
    def spoiled(model: nn.Module, _: bench_training.Batch) -> nn.Module:
        spoil(model)
        return model

    monkeypatch.setitem(bench_training.FORMS, "lower-torch", spoiled)
    arms = {"original": trained_networks()["original"]}
    eager, wrong = bench_training.examine("small", arms, ["lower-torch"], CPU, torch.float32, 4, 1)
    assert eager["failed"] is None
    assert wrong["errors"][kind] > wrong["errors_allowed"][kind]
    assert "is wrong" in wrong["failed"]
    assert wrong["ms"][1] > 0


def test_gradients_of_narrow_layers_count_as_much_as_those_of_wide_ones() -> None:
    exact = {"wide": torch.full((100, 100), 100.0), "narrow": torch.ones(4), "none": torch.zeros(4)}
    true = bench_training._alike(exact, exact, torch.float64)
    for name in ("wide", "narrow"):
        off = bench_training._alike(exact | {name: 2 * exact[name]}, exact, torch.float64)
        assert forms.relative_error(off, true) == pytest.approx(0.5**0.5)
    noise = bench_training._alike(exact | {"none": torch.full((4,), 1e-6)}, exact, torch.float64)
    assert forms.relative_error(noise, true) < 1e-3


def test_a_step_goes_back_to_its_start_and_leaves_no_gradient() -> None:
    """However many were taken before: what one step makes is compared, and its memory has the gradients in it."""
    model = models.seeded(models.densenet, 0, 10, 4).train()
    batch = bench_training.batch_for(model, (3, 8, 8), 4, CPU, torch.float32, "last")
    step = bench_training.Step(copy.deepcopy(model), batch, model)
    for _ in range(3):
        first = step()
    step.reset()
    again = step()
    assert not torch.equal(first, again)
    assert all(value.grad is None for value in step.own.parameters())
    assert step.own[1].norm.num_batches_tracked == 1
    assert torch.equal(again, batch.backward(model))
    assert {name: torch.equal(value, step.gradients()[name]) for name, value in bench_training._gradients(model).items()} == (
        dict.fromkeys(dict(model.named_parameters()), True)
    )
    assert step.bytes() == 4 * (2 * models.parameters(model) + sum(value.numel() for value in model.buffers()) + 4 * 3 * 64) + (
        4 * sum(value.dtype == torch.int64 for value in model.buffers()) + 4 * 8
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside inductor
def test_a_lowered_step_that_is_compiled_runs_lowered_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a compiler that makes no code, in place of one that takes a minute."""
    seen: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    def traced(model: nn.Module, call: Callable[[nn.Module], torch.Tensor], **_: Any) -> nn.Module:
        made = torch.compile(model, backend=compiler, fullgraph=True, dynamic=False)
        call(made)
        return made

    monkeypatch.setattr(bench_training, "tuned", traced)
    for dtype in (torch.float32, torch.bfloat16):
        seen.clear()
        arms = {"original": trained_networks()["original"]}
        rows = bench_training.examine("small", arms, ["lower-compile"], CPU, dtype, 2, 1)
        assert [row["failed"] for row in rows] == [None, None]
        assert any("gather" in target for target in seen), sorted(set(seen))


def test_training_is_judged_by_time_and_by_what_the_fastest_form_takes() -> None:
    rows = [
        made_up("original", "eager", 40) | {"peak_memory": 9e9, "held_bytes": 1e9},
        made_up("original", "compile", 30) | {"peak_memory": 8e9, "held_bytes": 1e9},
        made_up("original", "lower-triton", 20) | {"peak_memory": 3e9, "held_bytes": 1e9},
        made_up("original", "lower-auto", 21) | {"peak_memory": 1e9, "held_bytes": 1e9},
    ]
    assert list(bench_training.verdict(rows)) == [
        "training DenseNet-121 against eager, times as fast: at least 1.80; 2.00 (lower-triton 20.00 ms, eager 40.00 ms): met",
        "training DenseNet-121 against torch.compile, times as fast: at least 1.20; "
        "1.50 (lower-triton 20.00 ms, compile 30.00 ms): met",
        "training DenseNet-121, eager's peak of memory in ours: at least 2.00; 2.50 (lower-triton 4.00 GB, eager 10.00 GB): met",
    ]
    unmeasured = [row | {"peak_memory": None} for row in rows]
    assert list(bench_training.verdict(unmeasured))[-1].endswith("not measured: none was measured")
    for target in bench_training.TARGETS:
        assert {*target.ours, *target.theirs} <= bench_training.CASES[target.case].keys()
        assert {*target.forms} <= bench_training.FORMS.keys()


def test_training_steps_are_kept_case_by_case(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiles = bench_networks.Arm(lambda: bench_training.tiled(models.resnet20()), (3, 128, 128))
    monkeypatch.setattr(bench_training, "CASES", {"#small": {"in tiles": tiles}})
    monkeypatch.setattr(bench_training, "write_timings", lambda name, rows: record.write_timings(name, rows, tmp_path))
    bench_training.main(["--rounds", "1", "--batch", "2", "--side", "16", "--layout", "first", "--forms", "lower-torch"])
    assert "The targets are for an H200" in capsys.readouterr().out
    (file,) = tmp_path.glob("*/bench_training_small.json")
    eager, lowered = json.loads(file.read_text())["rows"]
    assert (lowered["shape"], lowered["layout"], lowered["failed"]) == ([3, 16, 16], "channels first", None)
    assert lowered["kept_bytes"] < eager["kept_bytes"]
    required = {"name", "shape", "dtype", "batch", "baseline", "bytes", "flops", "peak_memory"}
    assert required <= lowered.keys()
    with pytest.raises(SystemExit):
        bench_training.main(["resnet5"])
    assert "there is no case resnet5; there are #small" in capsys.readouterr().err


def small_densenet(seed: int) -> nn.Module:
    return models.seeded(models.densenet, seed, 10, 4)


def test_networks_are_trained_lowered_and_not_and_their_curves_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lowered_training, "NETWORKS", {"small": small_densenet})
    monkeypatch.setattr(lowered_training, "STEPS", 6)
    monkeypatch.setattr(lowered_training, "load", lambda _: small_set())
    monkeypatch.setattr(lowered_training, "RESULTS", tmp_path)
    monkeypatch.setattr(lowered_training, "write_timings", lambda name, rows: record.write_timings(name, rows, tmp_path))
    lowered_training.main(["--steps", "6", "--seeds", "0", "1", "--repeated", "3", "--batch", "24", "--images", "60"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "seeds' distance in that of lowered from eager: at least 1.00" in shown
    assert "small trained lowered, twice: the same bits: at least 1.00; 1.00 (after 3 steps): met" in shown
    (file,) = tmp_path.glob("*/lowered_training_small.json")
    (row,) = json.loads(file.read_text())["rows"]
    assert row["differing"] == []
    assert "6 by torch" in row["chosen"]
    assert 0 < row["apart"]["forms"][0] < 1e-3 < row["apart"]["seeds"][0]
    assert all(seconds > 0 for form in lowered_training.FORMS for seconds in row["seconds"][form])
    curves = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
    assert len(curves) == 2 * 2 * 6
    assert {(one["form"], one["seed"]) for one in curves} == {(form, seed) for form in lowered_training.FORMS for seed in (0, 1)}
    with pytest.raises(SystemExit, match=r"30 images make no batch of 31; take more \(--images\)"):
        lowered_training.main(["--images", "30", "--batch", "31"])
    with pytest.raises(SystemExit):
        lowered_training.main(["resnet5"])
    assert "there is no network resnet5; there are small" in capsys.readouterr().err


def test_runs_that_differ_in_a_bit_are_told_apart() -> None:
    images = lowered_training.Images(small_set(), None, CPU)
    on = lowered_training.Setting(CPU, 16, 3)
    one, other = (lowered_training.train("eager", small_densenet(0), images, on, 0) for _ in range(2))
    assert lowered_training.differing(one, other) == []
    with torch.no_grad():
        other.model[0].weight[0, 0, 0, 0] = torch.nextafter(other.model[0].weight[0, 0, 0, 0], torch.tensor(torch.inf))
    assert lowered_training.differing(one, other) == ["0.weight"]
    again = lowered_training.train("eager", small_densenet(0), images, on, 1)
    assert "losses" in lowered_training.differing(one, again)


def test_curves_are_compared_in_means_over_a_twentieth() -> None:
    ramp = torch.arange(40.0)
    noise = torch.tensor([0.5, -0.5]).repeat(20)
    assert lowered_training.apart(ramp, ramp + noise) == 0
    assert lowered_training.apart(ramp, ramp + 2) == pytest.approx(2)
    assert lowered_training.apart(ramp[:5], ramp[:5] + 1) == pytest.approx(1)  # fewer steps than means


def trained(name: str, forms: Sequence[float], steps: int = 1000, differing: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "name": name,
        "steps": steps,
        "apart": {"forms": list(forms), "seeds": [0.02, 0.04, 0.03]},
        "repeated": 100,
        "differing": list(differing),
        "dtype": "bfloat16",
        "batch": 256,
    }


def test_curves_are_judged_by_the_distance_of_seeds_over_a_thousand_steps() -> None:
    rows = [trained("densenet121", [0.01, 0.02, 0.03]), trained("resnet18", [0.04, 0.05, 0.06], differing=["losses", "fc.weight"])]
    near, same, far, other = map(str, lowered_training.judged(rows))
    assert near.endswith("at least 1.00; 1.50 (0.0200 apart, seeds 0.0300): met")
    assert same.endswith("1.00 (after 100 steps): met")
    assert far.endswith("0.60 (0.0500 apart, seeds 0.0300): NOT MET")
    assert other.endswith("0.00 (after 100 steps, but for losses, fc.weight): NOT MET")
    (short, *_) = map(str, lowered_training.judged([trained("densenet121", [0.01], steps=999)]))
    assert short.endswith("not measured: it takes 1000 steps and two seeds")


def test_the_networks_that_are_trained_lowered_are_lowered() -> None:
    for build in lowered_training.NETWORKS.values():
        lowered = swnet.lower(build(0), torch.zeros(2, 3, 32, 32), backend="torch", training=True)
        (said,) = (str(one) for one in swnet.ledger(lowered).lowered if one.call.startswith("training"))
        assert "by torch" in said
        assert "left alone" not in said


def answer(name: str, form: str, ms: float = 1.0, gbytes: float = 1.0) -> dict[str, Any]:
    return {"name": name, "form": form, "ms": [ms, ms, ms], "gbytes": gbytes, "dtype": "bfloat16"}


def calibrated(k1: float, step: float) -> list[dict[str, Any]]:
    return [
        answer("copy", "ceiling", gbytes=4000),
        answer("K1", "triton", gbytes=4000 * k1),
        answer("block-sparse 3x3 of 256", "dense", 2.5),
        answer("block-sparse 3x3 of 256", "density 0.25", 1.0),
        answer("block-sparse 3x3 of 512", "dense", 2.0),
        answer("block-sparse 3x3 of 512", "density 0.25", 1.0),
        answer("training block 3", "compile-cat", step),
        answer("training block 3", "lower-triton", 1.0),
    ]


def test_the_stop_rule_follows_from_what_was_measured() -> None:
    assert list(calibration.verdict(calibrated(0.6, 1.3))) == [
        "K1 with norm and activation, of the copy's bandwidth: at least 0.70; 0.60: NOT MET",
        "block-sparse 3x3 of 256 at density 0.25, times as fast as dense: at least 2.20; 2.50: met",
        "block-sparse 3x3 of 512 at density 0.25, times as fast as dense: at least 2.20; 2.00: NOT MET",
        "training block 3 by the kernels, times as fast as torch.compile: at least 1.20; 1.30: met",
        "Stop rule: go on.",
    ]
    for rows in (calibrated(0.5, 1.3), calibrated(0.8, 1.1), calibrated(0.5, 1.3)[:-1]):
        assert "STOP" in list(calibration.verdict(rows))[-1]
    failed = calibrated(0.6, 1.3)
    failed[-1] = {"name": "training block 3", "form": "lower-triton", "failed": "RuntimeError: out of memory"}
    assert "open" in list(calibration.verdict(failed))[-1]


def test_the_table_of_what_gpus_measured_has_every_target(tmp_path: Path) -> None:
    targets = sum(len(list(judge([]))) for _, judge in gpu_table.PROGRAMS)
    assert targets == 5 + 4 + 6 + 4
    assert gpu_table.table(tmp_path).count("not measured") == targets
    rows = [made_up("original", "eager", 24), made_up("original", "lower-triton", 10)]
    resnets = [made_up("original", "compile", 20, case="resnet50"), made_up("rewired", "lower-triton", 10, case="resnet50")]
    resnets = [row | {"batch": 8} for row in resnets]  # is not what the target is for
    for name, of in (
        ("bench_networks_densenet121", rows),
        ("calibration", calibrated(0.6, 1.3)),
        ("bench_training_densenet121", rows),
        ("lowered_training_resnet18", [trained("resnet18", [0.02])]),
        ("bench_training_resnet50", resnets),
    ):
        (tmp_path / "some-gpu").mkdir(exist_ok=True)
        (tmp_path / "some-gpu" / f"{name}.json").write_text(json.dumps({"hardware": "Some GPU", "rows": of}))
    (tmp_path / "some-cpu").mkdir()
    document = {"hardware": "Some CPU", "rows": [row | {"dtype": "float32"} for row in rows]}
    (tmp_path / "some-cpu" / "bench_training_densenet121.json").write_text(json.dumps(document))
    told = gpu_table.table(tmp_path)
    assert (
        "| DenseNet-121 against eager, times as fast | 2.30 | **2.40**, met; lower-triton 10.00 ms, eager 24.00 ms, Some GPU |"
        in told
    )
    assert "| K1 with norm and activation, of the copy's bandwidth | 0.70 | **0.60**, not met; Some GPU |" in told
    assert "| training DenseNet-121 against eager, times as fast | 1.80 | **2.40**, met; " in told
    assert "| resnet18 trained lowered, twice: the same bits | 1.00 | **1.00**, met; after 100 steps, Some GPU |" in told
    assert "CPU" not in told
    assert told.count("not measured") == 4 + 5 + 2  # but DenseNet-121 against eager, and of what is trained ResNet-18


def test_a_support_has_the_density_that_is_asked_for() -> None:
    for width, _ in calibration.SPARSE:
        for density in calibration.DENSITIES:
            live = calibration.support(width, density).mask(width)
            assert live.float().mean() == density
            assert live.any(0).all()  # every input is read


def test_the_questions_are_answered(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_: calibration.Setting) -> Any:
        """What breaks?"""
        yield answer("first", "ceiling") | {"shape": [1], "ratio": None, "gflops": 0.0}
        raise RuntimeError("nothing left")

    small = {"SIDE": 3, "K1_WIDTHS": (16, 8), "CONVOLUTIONS": ((64, 64, 2),), "SPARSE": ((256, 2),), "LAUNCHES": 2, "TIMES": 3}
    for name, value in small.items():
        monkeypatch.setattr(calibration, name, value)
    monkeypatch.setattr(calibration, "third_block", lambda: (nn.Sequential(*models.densenet(10, 4)[1:3]), 16))
    monkeypatch.setattr(calibration, "QUESTIONS", (*calibration.QUESTIONS, broken))
    monkeypatch.setattr(calibration, "write_timings", lambda name, rows: record.write_timings(name, rows, tmp_path))
    calibration.main(["--batch", "2", "--seconds", "0.001"])
    assert "What was to be reached is for a GPU." in capsys.readouterr().out
    (file,) = tmp_path.glob("*/calibration.json")
    rows = json.loads(file.read_text())["rows"]
    assert [(row["name"], row["form"]) for row in rows if row.get("failed")] == [("broken", "")]
    assert "RuntimeError: nothing left" in text(calibration.show(rows))
    found = {(row["name"], row["form"]): row for row in rows}
    assert found["training block 3", "lower-torch"]["ratio"] > 0
    for name in ("block-sparse 3x3 of 256", "block-sparse 3x3 of 256, back"):
        sparse, dense = found[name, "density 0.25"], found[name, "dense"]
        assert sparse["gflops"] * sparse["ms"][1] == pytest.approx(dense["gflops"] * dense["ms"][1] / 4, rel=0.2)
    assert {row["name"] for row in rows} >= {"copy", "concat", "product of a slab", "3x3", "K1", "launch"}


def test_growth_is_read_off_the_chains() -> None:
    rows = [{"name": "chain", "layers": count, "cpu_seconds": 0.001 * count} for count in (10, 100, 1000)]
    assert bench_transform.exponent(rows) == pytest.approx(1)
    assert bench_transform.exponent(rows[:2]) is None
    assert bench_transform.exponent(rows, "residual chain") is None
    steep = [{"name": "residual chain", "layers": count, "cpu_seconds": 1e-6 * count**2} for count in (100, 1000)]
    assert bench_transform.exponent(rows + steep, "residual chain") == pytest.approx(2)


@pytest.mark.parametrize("name", bench_transform.CHAINS)
@pytest.mark.parametrize("layers", [5, 6])
def test_a_chain_is_transformed_and_timed(name: str, layers: int) -> None:
    row = bench_transform.measure(name, lambda: bench_transform.CHAINS[name](layers), 8, 0.3, 1)
    assert (row["layers"], row["shape"]) == (layers, [3, 8, 8])
    assert name in text(bench_transform.show([row]))


def weights(graph: LayerGraph) -> int:
    return sum(layer.links * layer.kernel_area for layer in graph.layers)


def test_the_layer_graphs_have_the_published_sizes() -> None:
    assert weights(graphs.vgg16()) == 14_710_464
    resnet, dense = graphs.resnet50(), graphs.densenet201()
    after = 2 * sum(layer.out_channels for layer in resnet.layers[:-1])  # a norm behind every convolution
    assert weights(resnet) + after + 1000 == 25_557_032
    before = 2 * (64 + sum(layer.in_channels for layer in dense.layers[1:]))  # a norm in front of every layer, two at the stem
    assert weights(dense) + before + 1000 == 20_013_928


def test_resnet50_as_a_graph_is_the_model_as_traced() -> None:
    with torch.device("meta"):
        model = models.resnet50()
    traced = trace_structure(model, torch.zeros(1, 3, 224, 224)).graph
    built, found = channel_graph(graphs.resnet50()), channel_graph(traced)
    assert (built.nodes, built.edges) == (found.nodes, found.edges)
    layers = [sorted((y.in_channels, y.out_channels, y.kernel_size, y.positions) for y in graph.layers[:-1])
              for graph in (graphs.resnet50(), traced)]  # fmt: skip
    assert layers[0] == layers[1]


def test_a_sweep_in_closed_form_is_followed_by_an_exact_count_at_the_p_chosen() -> None:
    (block,) = bench_metrics.swept("a chain", graphs.chain((3, 16, 16, 16, 16)), "block", 1)
    over, counted = bench_metrics.swept("a chain", graphs.chain((3, 16, 16, 16, 16)), "kernel", 1)
    assert [row["exact"] for row in (block, over, counted)] == [True, False, True]
    assert [row["points"] for row in (block, over, counted)] == [20, 20, 1]
    assert [row["target_seconds"] for row in (block, over, counted)] == [2, 2, 5]
    counted |= {"seconds": 9.9, "cpu_seconds": 6.04}  # the clock alone tells of a busy machine
    assert bench_metrics.verdict([block, over, counted]).splitlines() == [
        "2 of 3 targets are met.",
        "Not met: a chain, kernel, wired and counted: 6.0 s, not 5",
    ]


def test_a_long_run_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    assert bench_metrics.timed(lambda: runs.append(1) or len(runs), 3)[0] == 3
    monkeypatch.setattr(bench_metrics, "PATIENCE", 0.0)
    assert bench_metrics.timed(lambda: runs.append(1) or len(runs), 3)[0] == 4


def test_the_figures_are_timed_from_end_to_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_metrics, "NETWORKS", {"a chain": lambda: graphs.chain(bench_metrics.SMALL)})
    monkeypatch.setattr(bench_metrics, "vgg16", lambda: graphs.chain(bench_metrics.SMALL))
    monkeypatch.setattr(bench_metrics, "PUBLISHED", {})
    monkeypatch.setattr(bench_metrics, "write_timings", lambda name, rows: record.write_timings(name, rows, tmp_path))
    bench_metrics.main(["--repeats", "1", "--blocks", "10"])
    assert "of 3 targets are met" in capsys.readouterr().out
    (file,) = tmp_path.glob("*/bench_metrics.json")
    rows = json.loads(file.read_text())["rows"]
    assert {row["table"] for row in rows} == set(bench_metrics.COLUMNS) - {"figures"}
    assert len({row["name"] for row in rows}) == len(rows)


def test_the_benchmarks_stand_without_the_tests() -> None:
    for file in Path(bench_metrics.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(from|import) tests\b", file.read_text(), re.MULTILINE), file.name


def test_the_programs_run_from_end_to_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_step, "build_model", models.plain_cnn21)  # ResNet-18 and 50 take a minute on a busy machine
    monkeypatch.setattr(bench_transform, "resnet50", models.plain_cnn21)
    bench_step.main(["--rounds", "1", "--batch", "2", "--no-record"])
    assert "the target is 1.10" in capsys.readouterr().out
    bench_transform.main(["--layers", "4", "5", "--no-record"])
    assert "the target is 5 s" in capsys.readouterr().out


def test_results_do_not_make_a_commit_dirty_and_programs_do(tmp_path: Path) -> None:
    assert record.commit(tmp_path) == "unknown"
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for file in (tmp_path / "program.py", results / "row.json"):
        file.write_text("1")
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "all")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = record.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (results / "row.json").write_text("2")
    (tmp_path / "new.py").write_text("unknown to git")
    assert record.commit(tmp_path) == clean
    (tmp_path / "program.py").write_text("2")
    assert record.commit(tmp_path) == f"{clean}-dirty"
