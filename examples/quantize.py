"""Quantize a rewired model to eight bits with torchao: the weights of its linear layers, or all of an exported program.

Needs pip install '.[examples]': python examples/quantize.py
"""

import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from train import build_model, digits, train

import swnet


def weights_only(model: nn.Module) -> nn.Module:
    """Store the weights of linear layers in eight bits; the model itself is changed, and stays an eager module."""
    quantize_(model, Int8WeightOnlyConfig())
    return model


def whole(model: nn.Module, images: Tensor) -> nn.Module:
    """Return an exported program whose convolutions and linear layers compute in eight bits, in ranges seen for `images`."""
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model.eval(), (images,)).module(), quantizer)
    prepared(images)
    return convert_pt2e(prepared)


def main(steps: int = 60) -> dict[str, float]:
    """Return the largest difference that each makes to the output, in that of the output's range."""
    torch.manual_seed(0)
    images, labels = digits()
    rewired = swnet.transform(build_model(), images[:2], p=0.3)
    train(rewired, images, labels, steps)
    some, errors = images[:64], {}
    with torch.no_grad():
        wanted = rewired.eval()(some)
        for name, outputs in (("whole", whole(rewired, some)(some)), ("weights only", weights_only(rewired)(some))):
            errors[name] = float((outputs - wanted).abs().max() / (wanted.max() - wanted.min()))
            same = (outputs.argmax(1) == wanted.argmax(1)).float().mean()
            print(f"{name:12} in eight bits: {same:.0%} answered the same, off by {errors[name]:.1%} of the range at most")
    return errors


if __name__ == "__main__":
    main()
