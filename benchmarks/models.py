"""The networks that are measured, where examples/ does not have them; without weights, and without torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def unit(channels: int, width: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return convolution, norm, activation."""
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def plain_cnn(
    depths: Sequence[int],
    classes: int = 10,
    channels: int = 3,
    widths: Sequence[int] = (24, 48, 96),
    strides: Sequence[int] = (1, 2, 2),
) -> nn.Sequential:
    """Return a plain net: groups of as many 3x3 convolutions as `depths` and as wide as `widths` say, and a classifier.

    Each group's first convolution has a stride out of `strides`, which by default halves the resolution in all but the first. No
    shortcuts: what a deep net suffers from, and what rewiring mends.
    """
    body: list[nn.Module] = []
    for width, depth, stride in zip(widths, depths, strides, strict=True):
        for place in range(depth):
            body.append(unit(channels, width, stride=stride if place == 0 else 1))
            channels = width
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def plain_cnn21(classes: int = 10, channels: int = 3, size: int = 32, widths: Sequence[int] = (24, 48, 96)) -> nn.Sequential:
    """Return a plain net of 21 weight layers: 20 3x3 convolutions in groups of 7, 7 and 6, and a classifier."""
    return plain_cnn((7, 7, 6), classes, channels, widths)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = unit(channels, width, 1)
        self.conv2 = unit(width, width, 3, stride)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(self.conv2(self.conv1(x))))
        return F.relu(y + self.shortcut(x), inplace=True)


def shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """Return what brings a block's input to the shape of its output."""
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def resnet50(classes: int = 1000) -> nn.Sequential:
    """Return ResNet-50 for images of 224x224: 25,557,032 parameters with 1000 classes."""
    body: list[nn.Module] = [unit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for group, depth in enumerate((3, 4, 6, 3)):
        for place in range(depth):
            body.append(Bottleneck(channels, 64 << group, 2 if group and place == 0 else 1))
            channels = 256 << group
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = unit(channels, width, 3, stride)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(self.conv1(x))) + self.shortcut(x), inplace=True)


def resnet(depths: Sequence[int], width: int, classes: int = 10, channels: int = 3) -> nn.Sequential:
    """Return a ResNet for images of 32x32: a 3x3 stem and groups of as many blocks as `depths` says.

    Each group is twice as wide as the one before; 1x1 convolutions are the shortcuts between them.
    """
    body: list[nn.Module] = [unit(channels, width)]
    before = width
    for group, depth in enumerate(depths):
        for place in range(depth):
            body.append(BasicBlock(before, width << group, 2 if group and place == 0 else 1))
            before = width << group
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def resnet20(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return ResNet-20 for images of 32x32: 272,474 parameters."""
    return resnet((3, 3, 3), 16, classes, channels)


class DenseLayer(nn.Module):
    """Norm, activation and a 3x3 convolution to `growth` channels, put behind what it read."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet(depth: int = 40, growth: int = 12, classes: int = 10, first: int = 16, channels: int = 3) -> nn.Sequential:
    """Return DenseNet (Huang et al., arXiv 1608.06993) for 32x32 images, without bottlenecks: 1,019,722 parameters at depth 40."""
    body: list[nn.Module] = [nn.Conv2d(channels, first, 3, padding=1, bias=False)]
    channels = first
    for block in range(3):
        if block:
            transition = (nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2))
            body.append(nn.Sequential(*transition))
        for _ in range((depth - 4) // 3):
            body.append(DenseLayer(channels, growth))
            channels += growth
    return nn.Sequential(
        *body, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def chain(layers: int, width: int = 16) -> nn.Sequential:
    """Return a plain net of `layers` convolutions of one width: what a cost per layer is measured on."""
    return nn.Sequential(*(unit(3 if place == 0 else width, width) for place in range(layers)))


class Shortcut(nn.Module):
    """Two convolutions of one width, and the identity beside them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(width, width), unit(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def residual_chain(layers: int, width: int = 16) -> nn.Sequential:
    """Return `layers` convolutions of one width with an identity around every two: 10,000 layers that do add up."""
    pairs, odd = divmod(layers - 1, 2)
    last = [unit(width, width)] if odd else []
    return nn.Sequential(unit(3, width), *(Shortcut(width) for _ in range(pairs)), *last)


def parameters(model: nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def seeded(build: Callable[..., nn.Module], seed: int, *arguments: object) -> nn.Module:
    """Build a model from a seed, leaving the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments)
