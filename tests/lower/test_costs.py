"""backend="auto": timings are kept and believed, the cheapest forms are found, and each kind of call gets its own."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import swnet
from benchmarks.models import densenet, seeded
from swcompile.errors import SwnetError
from swcompile.lower import calibrate, costs, lowering, operations, rates, run, run_training
from swcompile.lower import training_operations as steps
from swcompile.lower.emit_training import as_trained
from swcompile.lower.gpus import GPU
from swcompile.lower.rates import Rates, Timing, Timings, flops, moved
from swcompile.lower.regions import lay_out_regions
from swcompile.lower.sites import find_sites
from swcompile.lower.training_costs import choose_training
from swcompile.trace import shaped
from tests.lower.test_lower import X, targets, used
from tests.zoo import densenet as bottlenecked

CPU = torch.device("cpu")
LAYOUTS = calibrate.LAYOUTS
PLAIN = [f"{name} {layout}" for name in (operations.MAPS | operations.PRODUCTS) for layout in LAYOUTS if name != "put"]
TORCH = [*(f"put {layout}" for layout in LAYOUTS), *(operations.SLAB_MAPS | operations.SLAB_PRODUCTS)]
TRITON = [*(operations.KERNEL_MAPS | operations.KERNEL_PRODUCTS)]
TRAINED = [f"{name} {layout}" for name in (steps.TRAINED_MAPS | steps.TRAINED_PRODUCTS) for layout in LAYOUTS]
BY_KERNELS = ["shared triton first", "shared triton last", "trained triton map last", "trained triton product last"]


def table(plain: float = 1.0, by_torch: float | None = 1.0, by_triton: float | None = None) -> Rates:
    """Return made-up timings: so many nanoseconds a byte in each form."""
    sizes = list(itertools.product((8, 512, 4096), (16, 64, 256), (0, 16, 64)))

    def timed(per_byte: float) -> Timings:
        return Timings(4, tuple(Timing(*size, 1e-6 + 1e-9 * per_byte * moved(*size, 4)) for size in sizes))

    plainly = [name for name in TRAINED if "plain" in name]
    by = ([name for name in TRAINED if name not in plainly], BY_KERNELS)
    forms = ((PLAIN + plainly, plain), (TORCH + by[0], by_torch), (TRITON + by[1], by_triton))
    found = {name: timed(per_byte) for names, per_byte in forms if per_byte is not None for name in names}
    return Rates("a device", {"torch": "0", "triton": None}, {"float32": found})


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rates | None], None]:
    """Return a function that sets what is known of any device."""
    return lambda found: monkeypatch.setattr("swcompile.lower.lowering.known", lambda _: found)


# --- what is chosen ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_up", "form"),
    [
        (table(plain=10), "torch"),
        (table(by_torch=10), "plain"),
        (table(plain=10, by_torch=9, by_triton=1), "triton"),
        (table(plain=1, by_torch=20, by_triton=10), "plain"),
    ],
)
def test_the_fastest_form_is_chosen(made_up: Rates, form: str, believed: Callable[[Rates], None], launched: list[str]) -> None:
    believed(made_up)
    model = used(bottlenecked(), X).to(memory_format=torch.channels_last)
    lowered = swnet.lower(model, X)
    (choices,) = swnet.ledger(lowered).lowered
    assert {one.form for one in choices.gathers} == {form}
    with torch.no_grad():
        torch.testing.assert_close(lowered(X), model(X), rtol=1e-4, atol=1e-5)
    assert bool(launched) == (form == "triton")
    predicted = [(one.seconds, one.plain_seconds) for one in choices.gathers]
    assert sum(one for one, _ in predicted) < sum(one for _, one in predicted) or form == "plain"
    assert "as predicted from timings of another CPU, a device, torch 0" in choices.why


def test_more_is_asked_of_what_another_device_says(believed: Callable[[Rates], None]) -> None:
    made_up, model = table(plain=2.0, by_torch=2.2), used(bottlenecked(), X).to(memory_format=torch.channels_last)
    forms = []
    for device in (rates.device_name(CPU), "another device"):
        believed(replace(made_up, device=device))
        (choices,) = swnet.ledger(swnet.lower(model, X)).lowered
        forms.append({one.form for one in choices.gathers})
        share = sum(one.seconds or 0 for one in choices.gathers) / sum(one.plain_seconds or 0 for one in choices.gathers)
        assert costs.WORTH_IT_ELSEWHERE < share <= 1
    assert forms == [{"torch"}, {"plain"}]


@pytest.mark.parametrize(("found", "why"), [(None, "nothing is known"), (replace(table(), dtypes={}), "nothing for this dtype")])
def test_what_nothing_is_known_of_is_left_alone(found: Rates | None, why: str, believed: Callable[[Rates | None], None]) -> None:
    believed(found)
    lowered = swnet.lower(used(bottlenecked(), X), X)
    assert lowered.programs[0].graph is None
    (choices,) = swnet.ledger(lowered).lowered
    assert why in choices.why
    assert {one.form for one in choices.gathers} == {"plain"}
    assert "10 gathers, 10 left alone" in str(swnet.ledger(lowered))


def test_no_change_of_one_concats_readers_makes_a_region_cheaper() -> None:
    """And none of them all alike: with made-up prices at which forms are mixed."""
    model = used(seeded(densenet, 0, 16, 12), X)
    graph, root = _shaped(model)
    sites = find_sites(graph, root)
    mixed = 0
    for seed in range(8):
        generator = np.random.default_rng(seed)
        found = table(by_triton=1.0)
        scaled = {name: _scaled(one, float(generator.uniform(0.2, 2.0))) for name, one in found.of(torch.float32).items()}
        found = replace(found, dtypes={"float32": scaled})
        for region in lay_out_regions(graph, sites):
            prices = costs._Prices(region, found, "first")
            best = costs._cheapest(region, prices)
            total = prices.total(best)
            plain = prices.total(dict.fromkeys(region.sites, "plain"))
            assert total <= plain
            mixed += len(set(best.values())) > 1
            if total == plain:
                continue
            for form in costs.FORMS:
                assert total <= prices.total(dict.fromkeys(region.sites, form)) + 1e-15
                for cat in {site.cat for site in region.sites}:
                    other = {site: form if site.cat is cat else chosen for site, chosen in best.items()}
                    assert total <= prices.total(other) + 1e-15
    assert mixed > 0


def test_what_pays_only_for_all_readers_together_is_found() -> None:
    """A slab so dear that no concat alone is worth it, while all that read it are: nothing but that start leads there."""
    graph, root = _shaped(used(bottlenecked(), X))
    region = lay_out_regions(graph, find_sites(graph, root))[0]
    rates = table(plain=3, by_torch=1).of(torch.float32)
    dear = {name: _scaled(one, 16) if name == "put last" else one for name, one in rates.items()}
    prices = costs._Prices(region, replace(table(), dtypes={"float32": dear}), "last")
    plain = dict.fromkeys(region.sites, "plain")
    assert costs._improved(plain, prices) == plain
    assert set(costs._cheapest(region, prices).values()) == {"torch"}


def _scaled(timings: Timings, by: float) -> Timings:
    return Timings(timings.item, tuple(replace(one, seconds=one.seconds * by) for one in timings.timings))


def _shaped(model: nn.Module) -> tuple[Any, nn.Module]:
    module = swnet.transform(model, X, p=0.0)
    graph = copy.deepcopy(module.graphs[-1])
    shaped(graph, module.shell(), module.swcompile.example)
    return graph, module.shell()


def test_what_is_shared_is_divided_and_nothing_is_lost() -> None:
    graph, root = _shaped(used(bottlenecked(), X))
    for region in lay_out_regions(graph, find_sites(graph, root)):
        prices = costs._Prices(region, table(by_triton=1.0), "first")
        for form in costs.FORMS:
            forms = dict.fromkeys(region.sites, form)
            shares = prices.shares(forms)
            assert all(share > 0 for share in shares.values())
            assert prices.total(forms) == pytest.approx(sum(shares.values()))
        plain = prices.shares(dict.fromkeys(region.sites, "plain"))
        nodes = set().union(*(prices.needed[site] for site in region.sites))
        once = sum(prices._node(node, site) for site in region.sites for node in prices.needed[site] if node in nodes)
        assert sum(plain.values()) <= once  # a concat that several read counts once


# --- one program for each kind of call ---------------------------------------------------------------------------------------


def test_each_kind_of_call_is_chosen_for_when_it_first_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def choose(graph: Any, sites: Any, found: Rates | None, layout: str, worth_it: float) -> costs.Chosen:
        asked.append(layout)
        return costs.choose(graph, sites, found, layout, worth_it)

    monkeypatch.setattr("swcompile.lower.lowering.choose", choose)
    monkeypatch.setattr("swcompile.lower.lowering.known", lambda _: table(plain=10))
    model = used(bottlenecked(), X)
    lowered = swnet.lower(model, X)
    assert asked == ["first"]
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        for shape, layout, count in [
            *(((2, 3, 8, 8), torch.contiguous_format, 1), ((2, 3, 7, 6), torch.contiguous_format, 1)),
            *(((16, 3, 8, 8), torch.contiguous_format, 2), ((13, 3, 8, 8), torch.contiguous_format, 2)),
            *(((2, 3, 8, 8), torch.channels_last, 3), ((2, 3, 8, 8), torch.contiguous_format, 3)),
            *(((0, 3, 8, 8), torch.contiguous_format, 3), ((2, 3, 8, 8), torch.contiguous_format, 3)),
        ]:
            x = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
            torch.testing.assert_close(lowered(x), model(x), rtol=1e-4, atol=1e-5)
            assert len(asked) == count
        told = [choices.call.split()[0] for choices in swnet.ledger(lowered).lowered]
        assert asked == ["first", "first", "last"]
        assert told == ["2x3x8x8", "16x3x8x8", "2x3x8x8"]
        lowered.double()(X.double())
    assert len(asked) == 4
    (choices,) = swnet.ledger(lowered).lowered
    assert choices.call.startswith("2x3x8x8:float64")
    assert "nothing for this dtype" in choices.why
    assert len(swnet.ledger(lowered).as_dict()["lowered"]) == 1


def test_other_threads_are_another_kind_of_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the timings of a CPU with other threads are another table."""
    by_threads = {1: table(plain=10), 2: table(by_torch=10)}
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr("swcompile.lower.lowering.known", lambda _: by_threads[torch.get_num_threads()])
    model = used(bottlenecked(), X)
    chosen, asked = swnet.lower(model, X), swnet.lower(model, X, backend="torch")
    for threads, made in ((1, 1), (2, 2), (1, 2), (2, 2)):
        monkeypatch.setattr("torch.get_num_threads", functools.partial(int, threads))
        with torch.no_grad():
            torch.testing.assert_close(chosen(X), asked(X), rtol=1e-4, atol=1e-5)
        assert (len(chosen.programs), len(asked.programs)) == (made, 1)
    first, second = swnet.ledger(chosen).lowered
    assert first.call.endswith(", 1 threads")
    assert second.call.endswith(", 2 threads")
    assert {one.form for one in first.gathers} == {"torch"}
    assert {one.form for one in second.gathers} == {"plain"}


@pytest.mark.parametrize("remade", [lambda module: module, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_threads_whose_first_calls_come_together_make_one_program_a_kind(
    remade: Callable[[nn.Module], Any], believed: Callable[[Rates], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    believed(table(plain=10))
    model = used(bottlenecked(), X)
    lowered = remade(swnet.lower(model, X))
    made: list[int] = []
    program, together = lowering.Lowering.program, threading.Barrier(6)

    def slow(self: Any, module: Any, arguments: Any, autocast: Any, *, in_training: bool) -> Any:
        made.append(len(arguments[0]))
        time.sleep(0.1)  # for the others to come to where they would make it, too
        return program(self, module, arguments, autocast, in_training=in_training)

    def call(x: Tensor) -> Tensor:
        together.wait(timeout=60)
        with torch.no_grad():  # which is each thread's own
            return lowered(x)

    monkeypatch.setattr(lowering.Lowering, "program", slow)
    xs = [torch.randn(batch, *X.shape[1:]) for batch in (16, 64) * 3]
    with ThreadPoolExecutor(len(xs)) as pool:
        found = list(pool.map(call, xs, timeout=60))
    assert sorted(made) == [16, 64]
    assert len(lowered.programs) == 3
    with torch.no_grad():
        for x, y in zip(xs, found, strict=True):
            torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("remade", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_choose_for_themselves(remade: Callable[[nn.Module], Any], believed: Callable[[Rates], None]) -> None:
    believed(table(plain=10))
    lowered = swnet.lower(used(bottlenecked(), X), X)
    believed(table(by_torch=10))
    again = remade(lowered)
    assert run.product in targets(lowered)
    assert again.programs[0].graph is None
    with torch.no_grad():
        torch.testing.assert_close(again(X), lowered(X), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's advice on vmap
def test_a_first_call_inside_vmap_or_a_compiler(believed: Callable[[Rates], None]) -> None:
    believed(table(plain=10))
    model, xs = used(bottlenecked(), X), torch.randn(3, 5, 3, 8, 8)
    for wrapped in (torch.func.vmap, lambda module: torch.compile(module, backend="aot_eager", fullgraph=True)):
        lowered = swnet.lower(model, X)
        with torch.no_grad():
            given = xs if wrapped is torch.func.vmap else xs[0]
            expected = torch.stack([model(x) for x in xs]) if wrapped is torch.func.vmap else model(xs[0])
            torch.testing.assert_close(wrapped(lowered)(given), expected, rtol=1e-4, atol=1e-5)


def test_a_wrong_input_gets_the_models_own_error(believed: Callable[[Rates], None]) -> None:
    believed(table(plain=10))
    lowered = swnet.lower(used(bottlenecked(), X), X)
    with torch.no_grad(), pytest.raises(RuntimeError, match="expected input"):
        lowered(torch.randn(2, 5, 8, 8))


# --- timings -----------------------------------------------------------------------------------------------------------------


def test_a_line_is_found_and_corrected_by_its_neighbours() -> None:
    sizes = list(itertools.product((64, 512, 4096, 32768), (32, 128, 512), (32, 128)))
    lined = Timings(4, tuple(Timing(*size, 2e-6 + 1e-10 * moved(*size, 4) + 1e-11 * flops(*size)) for size in sizes))
    assert lined.error < 1e-6
    assert lined.seconds(1000, 200, 50) == pytest.approx(2e-6 + 1e-10 * moved(1000, 200, 50, 4) + 1e-11 * flops(1000, 200, 50))
    slow = Timings(4, tuple(replace(one, seconds=one.seconds * (10 if one.rows > 4096 else 1)) for one in lined.timings))
    assert slow.seconds(32768, 128, 32) == pytest.approx(10 * lined.seconds(32768, 128, 32), rel=0.01)
    assert slow.seconds(64, 128, 32) == pytest.approx(lined.seconds(64, 128, 32), rel=0.01)


def test_no_part_of_a_line_is_negative() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        parts = generator.uniform(0, 1, (12, 3)) * [1, 1e6, generator.choice([0, 1e9])]
        seconds = generator.uniform(1e-6, 1e-3, 12)
        found = rates.fitted(parts, seconds)
        assert (found >= 0).all()
        off = np.square(parts @ found / seconds - 1).sum()
        for column in np.flatnonzero(parts.any(0)):  # no small step from there is better
            for step in (-1e-3, 1e-3):
                other = found.copy()
                other[column] = max(other[column] * (1 + step), 0) or 1e-9 / parts[:, column].max()
                assert np.square(parts @ other / seconds - 1).sum() >= off - 1e-9


def test_tables_are_kept_and_the_nearest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(rates, "SHIPPED", shipped)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert rates.known(CPU) is None
    for file, name in (("cpu.json", "some CPU"), (f"{rates.slug(rates.device_name(CPU))}.json", "this CPU")):
        (shipped / file).write_text(_text(replace(table(), device=name)))
        assert rates.known(CPU).device == name
    mine = replace(table(plain=3), device=rates.device_name(CPU))
    file = rates.keep(mine)
    assert file.is_relative_to(tmp_path / "cache")
    assert rates.known(CPU) == mine
    monkeypatch.setattr(rates, "versions", lambda: {"torch": "another", "triton": None})
    assert rates.known(CPU).device == "this CPU"


A100, A10, H100, H200 = (
    GPU("cuda", (8, 0), 108, 80 << 30, 2.0e12),
    GPU("cuda", (8, 6), 72, 24 << 30, 0.6e12),
    GPU("cuda", (9, 0), 132, 80 << 30, 3.4e12),
    GPU("cuda", (9, 0), 132, 141 << 30, 4.8e12),
)


@pytest.mark.parametrize(
    ("gpu", "nearest"),
    [
        (replace(H200, memory=96 << 30, bandwidth=4.0e12), "H100"),
        (replace(H200, bandwidth=None), "H200"),  # by its memory
        (replace(H200, memory=94 << 30, bandwidth=None), "H100"),
        (replace(H100, capability=(9, 1)), "H100"),
        (replace(A10, multiprocessors=84, bandwidth=0.7e12), "A10"),
        (replace(A10, multiprocessors=120, memory=40 << 30, bandwidth=1.5e12), "A100"),
        (replace(H100, capability=(10, 0)), None),
        (replace(H100, vendor="hip"), None),
    ],
)
def test_a_gpu_without_a_table_goes_by_that_of_the_nearest(
    gpu: GPU, nearest: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda:1")
    told = SimpleNamespace(major=gpu.capability[0], minor=gpu.capability[1], multi_processor_count=gpu.multiprocessors)
    told.total_memory = gpu.memory
    if gpu.bandwidth is not None:
        told.memory_bus_width, told.memory_clock_rate = 4096, gpu.bandwidth / 1024 / 1000  # kHz, two transfers of 512 bytes
    properties = {device: told}
    monkeypatch.setattr("torch.cuda.get_device_properties", properties.__getitem__)
    monkeypatch.setattr("torch.cuda.get_device_name", {device: "a GPU"}.__getitem__)
    monkeypatch.setattr("torch.version.hip", "7.0" if gpu.vendor == "hip" else None)
    assert GPU.of(device) == gpu

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert rates.known(device) is None  # no GPU's table is shipped yet
    monkeypatch.setattr(rates, "SHIPPED", tmp_path)
    assert rates.known(device) is None
    for name, one in (("A100", A100), ("A10", A10), ("H100", H100), ("H200", H200), ("some CPU", None)):
        file = tmp_path / f"{'cpu' if one is None else rates.slug(name)}.json"
        file.write_text(_text(replace(table(), device=name, gpu=one)))
    found = rates.known(device)
    assert (found and found.device) == nearest
    if found is not None:
        assert lowering._told(found, device) == f"another GPU, {nearest}, torch 0"

    (tmp_path / "a-gpu.json").write_text(_text(replace(table(), device="a GPU", gpu=gpu)))
    found = rates.known(device)
    assert found == replace(table(), device="a GPU", gpu=gpu)
    assert lowering._told(found, device) == "a GPU, torch 0"


def test_what_a_gpu_must_have() -> None:
    for wrong in ({"capability": (9,)}, {"multiprocessors": 0}, {"bandwidth": 0.0}, {"memory": -1}):
        with pytest.raises(ValueError, match="a GPU has"):
            replace(H100, **wrong)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSONDecodeError"),
        ("{}", 'its "format" should be 1, not None'),
        ("[1]", "AttributeError"),
        ('{"format": 1}', "KeyError"),
        (
            '{"format": 1, "device": 1, "gpu": null, "versions": {}, "dtypes": {"float32": {"cat": {"item": 4, "timings": []}}}}',
            "at least one row",
        ),
        ('{"format": 1, "device": 1, "gpu": {"capability": [9]}, "versions": {}, "dtypes": {}}', "TypeError"),
        ('{"format": 2, "device": 1, "gpu": null, "versions": {}, "dtypes": {}}', 'its "format" should be 1, not 2'),
    ],
)
def test_a_file_that_holds_no_timings_is_told(text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = rates.keep(replace(table(), device=rates.device_name(CPU)))
    file.write_text(text)
    told = rf"holds no timings that can be read \(.*{why}.*\); remove it, or run `swcompile bench --calibrate`"
    with pytest.raises(SwnetError, match=told):
        rates.known(CPU)
    lowered = swnet.lower(used(bottlenecked(), X), X)
    assert "holds no timings that can be read" in swnet.ledger(lowered).lowered[0].why
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(SwnetError, match="cannot be kept in"):
        rates.keep(table())


def _text(found: Rates) -> str:
    return json.dumps(found.as_dict())


def test_calibration_times_all_that_a_choice_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BATCHES", {"cpu": (1,)})
    monkeypatch.setattr(calibrate, "SIDES", (4, 8))
    monkeypatch.setattr(calibrate, "CHANNELS", (16, 32))
    monkeypatch.setattr(calibrate, "OUTPUTS", (8, 16))
    told: list[str] = []
    found = calibrate.calibrated(CPU, told.append, seconds=0.001)
    assert told == ["timing operations on float32"]
    assert found.device == rates.device_name(CPU)
    assert set(found.of(torch.float32)) == {*PLAIN, *TORCH, *TRAINED}
    assert all(one.seconds > 0 for timings in found.of(torch.float32).values() for one in timings.timings)
    graph, root = _shaped(used(bottlenecked(), X))
    chosen = costs.choose(graph, find_sites(graph, root), found, "first")
    assert all(one.plain_seconds is not None and one.plain_seconds > 0 for one in chosen.choices)
    sites = [part for site in find_sites(graph, root) for part in as_trained(site, root)]
    trained = choose_training(graph, sites, found, "first")
    assert len(trained.choices) == 10
    assert all(one.plain_seconds is not None and one.seconds is not None and one.seconds > 0 for one in trained.choices)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_that_are_timed_come_to_the_same_gradients(layout: str) -> None:
    """Where nobody reads behind: the plain step, and the reader with what brings it its maps."""
    x = steps.TrainedInputs(operations.Size(2, 5, 24, 16), torch.float64, CPU, layout)
    x.norm.double()
    x.behind = [torch.zeros_like(grad) for grad in x.behind]
    *expected, weight_norm, bias_norm, weight = x.plain(x.weight)
    token, moments, other, more, *parameters = x.read(x.weight, by_kernel=False)
    torch.testing.assert_close(parameters, [weight_norm, bias_norm, weight])
    for half, whole, given, through in zip(x.halves, expected, (token, other), (moments, more), strict=True):
        shared = run_training.shared(half, 1, True, False)
        (found,) = torch.autograd.grad(shared[1:], half, (given, through))
        torch.testing.assert_close(found, whole)


# --- training ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_up", "form"),
    [
        (table(plain=10), "torch"),
        (table(plain=10, by_torch=9, by_triton=1), "triton"),
        (table(plain=1, by_torch=20, by_triton=10), "plain"),
        (table(plain=3, by_torch=None), "plain"),
    ],
)
def test_the_fastest_form_of_training_is_chosen(made_up: Rates, form: str, believed: Callable[[Rates], None]) -> None:
    believed(made_up)
    model = used(bottlenecked(), X).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # which draws by the layout of what it reads
    lowered = swnet.lower(model, X, training=True).train()
    for x in (X, torch.randn(9, *X.shape[1:])):
        torch.testing.assert_close(lowered(x), copy.deepcopy(model)(x), rtol=1e-4, atol=1e-4)
    trained = [one for one in swnet.ledger(lowered).lowered if one.call.startswith("training")]
    assert [one.call[:12] for one in trained] == ["training, 2x", "training, 9x"]
    assert {choice.form for one in trained for choice in one.gathers} == {form}
    assert all("ms in them before" in one.why or form == "plain" for one in trained)


def test_gathers_without_a_norm_are_not_trained_by_timings_of_others(believed: Callable[[Rates], None]) -> None:
    believed(table(plain=10))
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)]

    class Normless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = layers

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return self.c(torch.relu(torch.cat([a, self.b(a)], 1))) + 0

    lowered = swnet.lower(Normless(), X, training=True)
    assert {choice.form for one in swnet.ledger(lowered).lowered for choice in one.gathers if "training" in one.call} == {"plain"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operations_that_are_timed_do_the_same_work(layout: str) -> None:
    size = operations.Size(2, 5, 24, 16)
    x = operations.Inputs(size, torch.float32, CPU, layout)
    assert (size.rows, x.map.shape, x.weight.shape) == (50, (2, 24, 5, 5), (16, 24, 1, 1))
    with torch.no_grad():
        assert torch.equal(operations.MAPS["cat"](x), x.map)
        for put in (operations.MAPS["put"], operations.KERNEL_MAPS["triton put"]):
            x.slab.fill_(torch.nan)
            put(x)
            assert torch.equal(x.slab[..., :24], x.map.movedim(1, -1))
        active = torch.relu(x.norm(x.map))
        for name, made in (operations.SLAB_MAPS | {"triton map": operations.KERNEL_MAPS["triton map"]}).items():
            torch.testing.assert_close(made(x), active, msg=name)
        product = operations.PRODUCTS["product"]
        torch.testing.assert_close(operations.SLAB_PRODUCTS["torch product"](x), product(x))
        by_kernel = operations.KERNEL_PRODUCTS["triton product"](x)
        torch.testing.assert_close(by_kernel, torch.conv2d(active, x.weight), rtol=1e-4, atol=1e-4)


# --- what transform does by default ------------------------------------------------------------------------------------------


def test_transform_lowers_where_the_weights_are_on_a_gpu(
    believed: Callable[[Rates], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    believed(table(plain=10))
    on_gpu = False
    monkeypatch.setattr("swcompile.lower.Lowering.is_for", lambda lowering, module: on_gpu or not lowering.only_gpus)
    model = used(bottlenecked(), X)
    off, made = (swnet.transform(model, X, p=0.0, lower=lower).eval() for lower in ("off", "auto"))
    for module in (off, made):
        with torch.no_grad():
            module(X)
        assert not module.programs
        assert not swnet.ledger(module).lowered
    on_gpu = True
    for module in (off, made):
        module.double().float()  # stands for .cuda()
        with torch.no_grad():
            torch.testing.assert_close(module(X), model(X), rtol=1e-4, atol=1e-5)
    assert run.put in targets(made)
    assert any("training" in choices.call for choices in swnet.ledger(made).lowered)
    assert not off.programs
    on_gpu = False
    made.double().float()
    assert not made.programs
    with pytest.raises(SwnetError, match='lower is "auto" or "off"'):
        swnet.transform(model, X, p=0.0, lower="triton")


def test_a_gather_without_a_norm_keeps_no_other_from_being_trained(believed: Callable[[Rates], None]) -> None:
    believed(table(plain=10))

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(8)
            self.normed, self.other = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            y = self.normed(torch.relu(self.norm(torch.cat([x, a], 1))))
            return y + self.other(torch.relu(torch.cat([a, x], 1)))

    lowered = swnet.lower(Beside(), X, training=True)
    (trained,) = [one for one in swnet.ledger(lowered).lowered if one.call.startswith("training")]
    assert {choice.layer: choice.form for choice in trained.gathers} == {"normed": "torch", "other": "plain"}
