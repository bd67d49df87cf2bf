"""The changes of policy that are tried: each changes what it says, and nothing else."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import swnet
from benchmarks.lab.grids import BREADTH, POLICY
from benchmarks.models import parameters, seeded, unit
from benchmarks.variants import VARIANTS
from swcompile.graph import Tap
from swcompile.modules import RewiredModule

EXAMPLE = torch.zeros(2, 3, 16, 16)
P = 0.3


def plain() -> nn.Sequential:
    widths = [3, 16, 16, 16, 16, 16, 16, 16]
    body = [unit(a, b, 1 if place % 2 else 3, stride=2 if place == 3 else 1) for place, (a, b) in enumerate(pairwise(widths))]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def made(name: str) -> RewiredModule:
    return VARIANTS[name](seeded(plain, 0), EXAMPLE, 0, P)


def taps(module: RewiredModule) -> Mapping[str, tuple[Tap, ...]]:
    assert module.swcompile is not None
    return module.swcompile.plan.taps()


def default(wiring: str = "block") -> RewiredModule:
    return swnet.transform(seeded(plain, 0), EXAMPLE, p=P, wiring=wiring)


def moved_by_layer(module: RewiredModule) -> list[int]:
    """Return how many channels of each rewired layer come from elsewhere than most do, in order of depth."""
    names = [name for name, _ in module.named_modules()]
    counts = {
        layer: sum(tap.stop - tap.start for tap in found) - max(tap.stop - tap.start for tap in found)
        for layer, found in taps(module).items()
    }
    return [counts[layer] for layer in sorted(counts, key=names.index)]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_a_network_of_the_same_size_that_trains(name: str) -> None:
    module = made(name)
    assert module(torch.randn(5, 3, 16, 16)).shape == (5, 10)
    module(torch.randn(5, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    own = swnet.ledger(module).after
    other = swnet.ledger(default("kernel" if name == "dense-init" else "block")).after
    assert (own.params, own.macs) == (other.params, other.macs)
    assert 0 < own.p_achieved <= P + 0.05


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - {"tap-scale", "dense-init"}))
def test_a_variant_reads_other_maps_than_the_default_or_brings_them_otherwise(name: str) -> None:
    assert taps(made(name)) != taps(default())


def test_p_rises_or_falls_with_depth() -> None:
    deep, shallow = moved_by_layer(made("deep")), moved_by_layer(made("shallow"))
    assert np.polyfit(range(len(deep)), deep, 1)[0] > 0 > np.polyfit(range(len(shallow)), shallow, 1)[0]


def test_without_the_image_only_the_first_layer_reads_it() -> None:
    image = swnet.analyze(seeded(plain, 0), EXAMPLE).graph.features[0].name
    without = [VARIANTS["no-image"](seeded(plain, 0), EXAMPLE, seed, P) for seed in range(5)]
    assert not any(tap.feature == image for module in without for found in taps(module).values() for tap in found)
    assert any(tap.feature == image for found in taps(default()).values() for tap in found)


def test_taps_are_scaled_by_factors_that_are_one_at_first_and_learned() -> None:
    images = torch.randn(4, 3, 16, 16)
    module, plain_one = made("tap-scale"), default()
    assert torch.equal(module(images), plain_one(images))
    factors = {name: value for name, value in module.named_parameters() if name.endswith("factors")}
    assert parameters(module) - parameters(plain_one) == sum(len(value) for value in factors.values()) > len(factors)
    layer, found = next((layer, found) for layer, found in taps(module).items() if len(found) > 1)
    with torch.no_grad():
        factors[f"{layer}.parametrizations.weight.0.factors"][0] = 0.0
        width = found[0].stop - found[0].start
        plain_one.get_submodule(layer).weight[:, :width] = 0.0
    assert torch.equal(module(images), plain_one(images))


def test_layers_of_larger_kernels_stay() -> None:
    module = made("only-1x1")
    assert {module.get_submodule(layer).kernel_size for layer in taps(module)} == {(1, 1)}


def test_the_grids_try_each_variant_where_it_can_be_made() -> None:
    tried = {arm.variant for task in (*POLICY.tasks, *BREADTH.tasks) for arm in task.arms}
    assert tried == VARIANTS.keys() | {None}
