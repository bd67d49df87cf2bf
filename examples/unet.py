"""A small U-Net: skips by concatenation, upsampling, and features of several resolutions for the taps to choose from.

swcompile transform examples/unet.py --out out/ --input 1x1x64x64   # then open out/report.html
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def double(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.GroupNorm(8, width),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GroupNorm(8, width),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """The only class here that needs no arguments, and so the model."""

    def __init__(self, channels: int = 1, classes: int = 2) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = double(channels, 32), double(32, 64), double(64, 128)
        self.up2, self.up1 = double(128 + 64, 64), double(64 + 32, 32)
        self.head = nn.Conv2d(32, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        x = self.middle(F.max_pool2d(coarse, 2))
        x = self.up2(torch.cat([F.interpolate(x, scale_factor=2.0), coarse], dim=1))
        x = self.up1(torch.cat([F.interpolate(x, scale_factor=2.0), fine], dim=1))
        return self.head(x)
