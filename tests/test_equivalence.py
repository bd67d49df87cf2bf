"""The rewired model against the original, over the whole zoo: the same bits where nothing moves, promises kept where it does."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import swnet
from swcompile.errors import NothingToDoError, SwnetError
from swcompile.modules import MASKED, RewiredModule
from swcompile.record import record
from tests.zoo import ZOO, build

MASKED_LAYERS = tuple(MASKED.values())
everywhere = pytest.mark.parametrize("name", ZOO)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def _transformed(name: str, options: tuple[tuple[str, Any], ...]) -> RewiredModule:
    return swnet.transform(*build(name), **dict(options))


def rewire(name: str, **options: Any) -> RewiredModule:
    """Return a model of the zoo rewired, in train mode: a copy, so that each is made only once."""
    return copy.deepcopy(_transformed(name, tuple(sorted(options.items()))))


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def loss_of(output: Any) -> Tensor:
    """Weigh every output value differently, so that no gradient is zero by symmetry."""
    parts = [(out * torch.linspace(-1, 1, out.numel()).view(out.shape)).mean() for out in tensors(output)]
    return torch.stack(parts).sum()


def run(model: nn.Module, x: Tensor, *, steps: int = 1) -> tuple[Any, dict[str, Tensor | None]]:
    """Forward, backward and an SGD step, as often as asked. Returns the last outputs and gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    torch.manual_seed(0)
    output: Any = None
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(x)
        loss_of(output).backward()
        optimizer.step()
    return output, {key: parameter.grad for key, parameter in model.named_parameters()}


def assert_same(ours: Any, theirs: Any) -> None:
    assert _pytree.tree_structure(ours) == _pytree.tree_structure(theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, those that are not saved included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def noted(rewired: nn.Module, *words: str) -> bool:
    return any(all(word in note.reason for word in words) for note in swnet.ledger(rewired).notes)


def non_persistent(model: nn.Module) -> list[str]:
    return [key for key, _ in model.named_buffers() if key not in model.state_dict()]


def freeze_norms(model: nn.Module) -> list[str]:
    """Put every second batch norm in eval mode and stop its gradients, as fine-tuning does. Returns their names."""
    norms = [(key, module) for key, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)][::2]
    for _, norm in norms:
        norm.eval().requires_grad_(False)
    return [key for key, _ in norms]


def test_the_zoo_is_as_large_as_promised() -> None:
    assert len(ZOO) >= 14


@everywhere
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_at_p_0_a_step_gives_the_same_bits(name: str, training: bool) -> None:
    model, x = build(name)
    rewired = rewire(name, p=0.0)
    outputs, gradients = run(model.train(training), x)
    ours, our_gradients = run(rewired.train(training), x)
    assert_same(ours, outputs)
    assert_same(our_gradients, gradients)
    assert_same(state_of(rewired), state_of(model))


@everywhere
def test_at_p_0_a_model_goes_on_the_same_after_changes_of_mode(name: str) -> None:
    model, x = build(name)
    rewired = rewire(name, p=0.0)
    for training in (False, True, False):
        outputs, _ = run(model.train(training), x, steps=2)
        ours, _ = run(rewired.train(training), x, steps=2)
        assert_same(ours, outputs)
    assert_same(state_of(rewired), state_of(model))


@everywhere
def test_frozen_norms_stay_frozen(name: str) -> None:
    model, x = build(name)
    frozen = freeze_norms(model.train())
    rewired = swnet.transform(model, x, p=0.0)
    assert all(not rewired.get_submodule(key).training for key in frozen)
    outputs, gradients = run(model, x)
    ours, our_gradients = run(rewired, x)
    assert_same(ours, outputs)
    assert_same(our_gradients, gradients)
    assert_same(state_of(rewired), state_of(model))


@everywhere
def test_rewired_keeps_the_state_dict_parameters_and_macs(name: str) -> None:
    model, _ = build(name)
    rewired = rewire(name, p=0.3)
    assert list(rewired.state_dict()) == list(model.state_dict())
    assert [key for key, _ in rewired.named_parameters()] == [key for key, _ in model.named_parameters()]
    rewired.load_state_dict(model.state_dict(), strict=True)
    assert non_persistent(rewired) == non_persistent(model)
    before, after = swnet.ledger(rewired).before, swnet.ledger(rewired).after
    assert (after.params, after.macs, after.links) == (before.params, before.macs, before.links)
    assert after.params == sum(parameter.numel() for parameter in model.parameters())
    assert swnet.ledger(rewired).changed


@everywhere
def test_rewired_reaches_p_or_says_why_not(name: str) -> None:
    rewired = rewire(name, p=0.3)
    plan, after = record(rewired).plan, swnet.ledger(rewired).after
    assert after.p_requested == 0.3
    assert after.p_achieved == plan.promise.moved / plan.promise.units
    off = abs(plan.promise.moved - 0.3 * plan.promise.units)
    assert off <= 1 or noted(rewired, f"p = {after.p_achieved:.4f} instead of 0.3")


@everywhere
def test_rewired_kills_no_channel_or_says_so(name: str) -> None:
    rewired = rewire(name, p=0.3)
    before, after = swnet.ledger(rewired).before, swnet.ledger(rewired).after
    assert after.dead_channels <= before.dead_channels or noted(rewired, "channels are unread")


@everywhere
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_forbid_kills_no_channel(name: str, p: float) -> None:
    try:
        rewired = rewire(name, p=p, dead="forbid")
    except NothingToDoError as error:
        assert "their maps would have had no reader left" in str(error)  # noqa: PT017 - chains may be refused, others not
        return
    before, after = swnet.ledger(rewired).before, swnet.ledger(rewired).after
    assert after.dead_channels <= before.dead_channels


@everywhere
def test_rewired_works_at_another_batch_size(name: str) -> None:
    model, x = build(name)
    rewired = rewire(name, p=0.3)
    for training in (True, False):
        for batch in (x[:2], torch.cat([x, x, x])):
            outputs, ours = model.train(training)(batch), rewired.train(training)(batch)
            assert _pytree.tree_structure(ours) == _pytree.tree_structure(outputs)
            assert [out.shape for out in tensors(ours)] == [out.shape for out in tensors(outputs)]
            assert all(bool(out.isfinite().all()) for out in tensors(ours))


@everywhere
@pytest.mark.parametrize("options", [{"p": 0.3}, {"p": 0.3, "density": 0.5}], ids=str)
def test_every_parameter_that_had_a_gradient_has_one(name: str, options: dict[str, Any]) -> None:
    model, x = build(name)
    rewired = rewire(name, **options)
    _, gradients = run(model.train(), x)
    _, ours = run(rewired.train(), x)
    assert list(ours) == list(gradients)
    assert {key for key, grad in ours.items() if grad is None} == {key for key, grad in gradients.items() if grad is None}
    lost = [key for key, grad in gradients.items() if grad is not None and bool(grad.any()) and not bool(ours[key].any())]
    assert lost == [] or noted(rewired, "channels are unread by density")
    assert all(bool(grad.isfinite().all()) for grad in ours.values() if grad is not None)


EXTREMES: tuple[dict[str, Any], ...] = (
    {"p": 1.0, "dead": "forbid"},
    {"p": 1.0, "dead": "allow"},
    {"p": 0.7, "density": 0.25},
    {"p": 0.3, "density": 0.5, "block": "producer", "dead": "allow"},
)


@pytest.mark.parametrize("name", ["vit", "mobilenet_v2", "unet_upsample", "googlenet", "densenet", "convnext"])
@pytest.mark.parametrize("options", EXTREMES, ids=str)
def test_no_parameter_loses_its_gradient_however_much_moves(name: str, options: dict[str, Any]) -> None:
    model, x = build(name)
    try:
        rewired = rewire(name, **options)
    except NothingToDoError:
        return
    _, gradients = run(model.train(), x)
    _, ours = run(rewired.train(), x)
    assert [key for key, grad in gradients.items() if grad is not None and ours[key] is None] == []


@everywhere
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_argument_is_left_as_it_was(name: str, training: bool) -> None:
    model, x = build(name)
    model.train(training)
    frozen = freeze_norms(model)
    bits, given = copy.deepcopy(state_of(model)), x.clone()
    modes = [module.training for module in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    ids = {key: id(tensor) for key, tensor in state_of(model).items()}
    attributes = [sorted(module.__dict__) for module in model.modules()]
    hooks = [[len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")] for module in model.modules()]
    inplace = [getattr(module, "inplace", None) for module in model.modules()]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    rewired = swnet.transform(model, x, p=0.3)
    assert torch.equal(torch.get_rng_state(), random)
    run(rewired, x)
    assert_same(state_of(model), bits)
    assert_same(x, given)
    assert {key: id(tensor) for key, tensor in state_of(model).items()} == ids
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wants
    assert [parameter.grad for parameter in model.parameters()] == [None] * len(wants)
    assert [sorted(module.__dict__) for module in model.modules()] == attributes
    assert [
        [len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")] for module in model.modules()
    ] == hooks
    assert [getattr(module, "inplace", None) for module in model.modules()] == inplace
    assert [parameter.requires_grad for parameter in rewired.parameters()] == wants
    assert all(not rewired.get_submodule(key).training for key in frozen)
    assert rewired.training == training


@everywhere
def test_rewired_follows_train_and_eval(name: str) -> None:
    model, x = build(name)
    rewired = rewire(name, p=0.3)
    rewired.eval()
    assert not any(module.training for module in rewired.modules())
    kept = copy.deepcopy(state_of(rewired))
    torch.manual_seed(1)
    first = rewired(x)
    torch.manual_seed(2)
    assert_same(rewired(x), first)
    assert_same(state_of(rewired), kept)
    rewired.train()
    assert all(module.training for module in rewired.modules())
    assert _pytree.tree_structure(rewired(x)) == _pytree.tree_structure(model.train()(x))


@everywhere
def test_half_density_shrinks_the_model_by_what_the_ledger_says(name: str) -> None:
    model, x = build(name)
    rewired = rewire(name, p=0.3, density=0.5)
    before, after = swnet.ledger(rewired).before, swnet.ledger(rewired).after
    assert after.params == sum(parameter.numel() for parameter in rewired.parameters()) < before.params
    assert after.macs < before.macs
    assert swnet.ledger(rewired).links_pruned > 0
    assert list(rewired.state_dict()) == list(model.state_dict())
    for training in (True, False):
        outputs, ours = model.train(training)(x), rewired.train(training)(x)
        assert [out.shape for out in tensors(ours)] == [out.shape for out in tensors(outputs)]
        assert all(bool(out.isfinite().all()) for out in tensors(ours))


@everywhere
def test_another_transform_with_the_same_seed_gives_the_same_bits(name: str) -> None:
    model, x = build(name)
    first, second = rewire(name, p=0.3, seed=5), swnet.transform(model, x, p=0.3, seed=5)
    assert record(first).plan.to_json() == record(second).plan.to_json() == swnet.plan(model, x, p=0.3, seed=5).to_json()
    assert_same(run(first, x), run(second, x))


with_kernel = pytest.mark.parametrize("name", list(ZOO))


def masked(model: nn.Module) -> dict[str, Any]:
    return {key: module for key, module in model.named_modules() if isinstance(module, MASKED_LAYERS)}


def off(layer: Any, tensor: Tensor) -> Tensor:
    """Return what a tensor of a masked layer's weight shape holds at masked places."""
    return tensor[~layer.mask.expand_as(tensor)]


def test_kernel_wiring_leaves_alone_what_it_cannot_mask_and_says_so() -> None:
    notes = swnet.ledger(rewire("unet_transposed", p=0.3, wiring="kernel")).notes
    assert any("ConvTranspose2d" in note.reason for note in notes)


@with_kernel
def test_kernel_masked_places_stay_zero_through_training(name: str) -> None:
    rewired = rewire(name, p=0.3, wiring="kernel").train()
    layers, x = masked(rewired), build(name)[1]
    assert any(not bool(layer.mask.all()) for layer in layers.values())
    optimizer = torch.optim.SGD(rewired.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(rewired(x)).backward()
        optimizer.step()
    for layer in layers.values():
        found = [layer.weight, layer.weight.grad, optimizer.state[layer.weight]["momentum_buffer"]]
        assert not any(bool(off(layer, tensor).any()) for tensor in found)
        assert bool(layer.weight.grad.any())


@with_kernel
def test_kernel_ledger_counts_live_links(name: str) -> None:
    rewired = rewire(name, p=0.3, wiring="kernel")
    before, after = swnet.ledger(rewired).before, swnet.ledger(rewired).after
    hidden = sum(off(layer, layer.weight).numel() for layer in masked(rewired).values())
    assert after.links == before.links
    assert after.stored_params == sum(parameter.numel() for parameter in rewired.parameters())
    assert after.params == after.stored_params - hidden


@with_kernel
def test_kernel_state_dict_and_deepcopy_keep_the_masks(name: str) -> None:
    model, x = build(name)
    rewired = rewire(name, p=0.3, wiring="kernel").eval()
    fresh = swnet.transform(model, x, p=0.3, wiring="kernel").eval()
    run(rewired, x)
    fresh.load_state_dict(rewired.state_dict(), strict=True)
    twin = copy.deepcopy(rewired)
    for other in (fresh, twin):
        assert_same(other(x), rewired(x))
        assert all(torch.equal(layer.mask, masked(rewired)[key].mask) for key, layer in masked(other).items())
    run(twin, x)
    assert_same(state_of(fresh), state_of(rewired))


@with_kernel
def test_kernel_trains_under_autocast(name: str) -> None:
    rewired, x = rewire(name, p=0.3, wiring="kernel").train(), build(name)[1]
    with torch.autocast("cpu", torch.bfloat16):
        output = rewired(x)
    loss_of(_pytree.tree_map(lambda out: out.float(), output)).backward()
    for layer in masked(rewired).values():
        assert bool(layer.weight.grad.isfinite().all())
        assert not bool(off(layer, layer.weight.grad).any())


@everywhere
@pytest.mark.parametrize(
    "options", [{"wiring": "kernel", "skips": "remove"}, {"block": "producer"}, {"block": 2}, {"p": 1.0}], ids=str
)
def test_other_options_work_or_are_refused_with_a_reason(name: str, options: dict[str, Any]) -> None:
    try:
        rewired = rewire(name, **{"p": 0.3, **options})
    except SwnetError as error:
        assert len(str(error)) > 40  # noqa: PT017 - either is right, anything else is not
        return
    _, gradients = run(rewired.train(), build(name)[1])
    assert any(grad is not None for grad in gradients.values())
    assert all(bool(grad.isfinite().all()) for grad in gradients.values() if grad is not None)


class TwoAxes(nn.Module):
    """A Linear over the width of maps, whose reader comes before a convolution that reads the same maps."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(16 if number else 3, 16, 3, padding=1) for number in range(5))
        self.over_width = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[1](self.convs[0](x).relu()).relu()
        mixed = self.over_width(x)
        x = self.convs[2](x).relu() + mixed
        return self.convs[4](self.convs[3](x).relu())


def test_maps_read_along_two_axes_are_tapped_along_their_channels() -> None:
    rewired = swnet.transform(TwoAxes(), torch.randn(2, 3, 8, 8), p=0.5)
    assert swnet.ledger(rewired).changed
    assert "over_width" not in record(rewired).plan.taps()
    assert rewired(torch.randn(3, 3, 8, 8)).shape == (3, 16, 8, 8)


class SharedActivation(nn.Module):
    """Pre-activation blocks as many write them: one ReLU module for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(self.relu(norm(x)))
        return x


def test_a_shared_activation_stays_behind_its_readers_norm() -> None:
    rewired = swnet.transform(SharedActivation(), torch.randn(2, 3, 8, 8), p=1.0, dead="allow")
    _, gradients = run(rewired, torch.randn(2, 3, 8, 8))
    assert all(gradients[f"norms.{number}.weight"] is not None for number in range(5))


def test_removed_shortcuts_are_removed_in_eval_mode_too() -> None:
    model, x = build("stochastic_depth")
    rewired = rewire("stochastic_depth", p=0.0, wiring="kernel", skips="remove").eval()
    model.eval()
    out = model.stem(x)
    for block in model.blocks:
        out = block.bn(block.conv2(block.conv1(out).relu())).relu()
    assert_same(rewired(x), model.fc(out.mean((-2, -1))))
