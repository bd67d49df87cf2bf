"""Models of other libraries rewired, and rewired models in other people's tools: timm, averages of weights, quantization."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import swnet
from benchmarks.vision import torchvision_models
from swcompile.modules import RewiredModule
from tests.zoo import build

# timm: small members of families that differ in how they are built.

TIMM = {
    "resnet10t": 64,
    "mobilenetv3_small_050": 64,
    "test_byobnet": 64,
    "convnext_atto": 64,
    "test_vit": 160,
}


@pytest.mark.parametrize(("name", "side"), TIMM.items())
def test_a_model_of_timm_is_rewired(name: str, side: int) -> None:
    torchvision_models()  # which timm imports
    model = importlib.import_module("timm").create_model(name, pretrained=False, num_classes=10).eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(swnet.transform(model, x, p=0)(x), model(x))
    rewired = swnet.transform(model, x, p=0.3)
    rewired.load_state_dict(model.state_dict(), strict=True)
    ledger = swnet.ledger(rewired)
    assert ledger.links_moved > 0
    assert (ledger.after.params, ledger.after.macs) == (ledger.before.params, ledger.before.macs)
    rewired.train()(x).square().mean().backward()
    assert all(parameter.grad is not None for name, parameter in rewired.named_parameters() if parameter.requires_grad)


# Averages of weights.


def test_an_average_of_weights_is_a_rewired_module_that_can_be_saved(tmp_path: Path) -> None:
    model, x = build("resnet_basic")
    rewired = swnet.transform(model, x, p=0.3)
    first = copy.deepcopy(rewired.state_dict())
    averaged = AveragedModel(rewired, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.update_parameters(rewired)  # the first update copies
    with torch.no_grad():
        for parameter in rewired.parameters():
            parameter.add_(torch.randn_like(parameter))
    averaged.update_parameters(rewired)
    wanted = {key: 0.9 * first[key] + 0.1 * parameter for key, parameter in rewired.named_parameters()}
    assert isinstance(averaged.module, RewiredModule)
    for key, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter, wanted[key])
    swnet.save(averaged.module, tmp_path / "averaged")
    loaded = swnet.load(tmp_path / "averaged", build("resnet_basic")[0])
    assert torch.equal(loaded.eval()(x), averaged.eval()(x))


# Quantization by torch itself; examples/quantize.py does it by torchao, its successor.


def chain() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, width in [(1, 16)] + [(16, 16)] * 4:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))


def off_by(outputs: Tensor, wanted: Tensor) -> float:
    return float((outputs - wanted).abs().max() / (wanted.max() - wanted.min()))


deprecated = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor, :UserWarning",
    "ignore:.*reduce_range will be deprecated:UserWarning",
)


@deprecated
@torch.no_grad()
def test_torch_quantizes_the_linear_layers() -> None:
    quantization: Any = importlib.import_module("torch.ao.quantization")
    x = torch.randn(16, 1, 8, 8)
    rewired = swnet.transform(chain(), x, p=0.3).eval()
    quantized = quantization.quantize_dynamic(rewired, {nn.Linear}, dtype=torch.qint8)
    assert type(quantized.get_submodule("17")) is not nn.Linear
    assert type(rewired.get_submodule("17")) is nn.Linear
    assert 0 < off_by(quantized(x), rewired(x)) < 0.05


@deprecated
@torch.no_grad()
def test_torch_quantizes_the_graph() -> None:
    quantization: Any = importlib.import_module("torch.ao.quantization")
    quantize_fx: Any = importlib.import_module("torch.ao.quantization.quantize_fx")
    x = torch.randn(16, 1, 8, 8)
    rewired = swnet.transform(chain(), x, p=0.3).eval()
    prepared = quantize_fx.prepare_fx(copy.deepcopy(rewired), quantization.get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    quantized = quantize_fx.convert_fx(prepared)
    assert sum(hasattr(module, "zero_point") for module in quantized.modules()) == 7  # convolutions with their norms, linear layers
    assert 0 < off_by(quantized(x), rewired(x)) < 0.05
