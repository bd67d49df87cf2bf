"""ResNet-20 for CIFAR, as its authors describe it: three groups of six 3x3 convolutions, 16 to 64 channels wide.

swcompile transform examples/resnet20.py --out out/   # then open out/report.html
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, width - channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:  # a shortcut without weights: every second pixel, and zeros for the new channels
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """0.27 million parameters, 41 million multiply-accumulates on a 32x32 image."""

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.group1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.group2 = nn.Sequential(Block(16, 32, stride=2), Block(32, 32), Block(32, 32))
        self.group3 = nn.Sequential(Block(32, 64, stride=2), Block(64, 64), Block(64, 64))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.group3(self.group2(self.group1(x)))
        return self.head(x.mean(dim=(2, 3)))


def build_model() -> nn.Module:
    return ResNet20()


def example_inputs() -> Tensor:
    return torch.randn(2, 3, 32, 32)
