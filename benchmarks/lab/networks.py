"""The networks of the grids, by name: each a function of the number of classes, of the images' channels and of their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from benchmarks.models import Bottleneck, densenet, plain_cnn, plain_cnn21, resnet, resnet20, unit
from benchmarks.vision import torchvision_models


class Build(Protocol):
    """Build a network for square images of `size` pixels a side."""

    def __call__(self, classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module: ...


def convnet_c(classes: int = 10, channels: int = 3, size: int = 32, slim: int = 1) -> nn.Sequential:
    """Return SWNet's ConvNet-C: VGG16's 13 convolutions, and two fully connected layers; all widths divided by `slim`.

    After each convolution: ReLU, a max pool where the group ends, batch norm; then dropout of .4 where there was no pool, and of
    .5 in front of the first fully connected layer. `size` is 32 to 63.

    Source: Javaheripi, Rouhani and Koushanfar, arXiv 1904.04862, section 4 and Table 1; the widths are VGG16's.
    """
    body: list[nn.Module] = []
    for full, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        width = full // slim
        for place in range(depth):
            ends = place == depth - 1
            pool: list[nn.Module] = [nn.MaxPool2d(2)] if ends else []
            dropout: list[nn.Module] = [] if ends else [nn.Dropout(0.4)]
            body += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), *pool, nn.BatchNorm2d(width), *dropout]
            channels = width
    head = (nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, classes))
    return nn.Sequential(*body, nn.Flatten(), nn.Dropout(0.5), *head)


def plain_cnn41(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return a plain net of 41 weight layers."""
    return plain_cnn((14, 13, 13), classes, channels)


def slim_plain(depths: Sequence[int], classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return a plain net at a third of the widths of `plain_cnn21` and half the resolution, for two CPU cores."""
    return plain_cnn(depths, classes, channels, (8, 16, 32), (2, 2, 2))


def slim_resnet(depth: int, classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return ResNet-8, -20, -32, ... at half the widths and half the resolution."""
    return nn.Sequential(nn.AvgPool2d(2), resnet(((depth - 2) // 6,) * 3, 8, classes, channels))


def slim_bottleneck29(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return a ResNet of nine bottlenecks, 1x1, 3x3 and 1x1 convolutions, 4 to 16 wide inside, at half the resolution."""
    body: list[nn.Module] = [nn.AvgPool2d(2), unit(channels, 16)]
    before = 16
    for group in range(3):
        for place in range(3):
            body.append(Bottleneck(before, 4 << group, 2 if group and place == 0 else 1))
            before = 16 << group
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def slim_densenet16(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return a DenseNet of 16 weight layers, growth 8, at half the resolution."""
    return nn.Sequential(nn.AvgPool2d(2), densenet(16, 8, classes, channels=channels))


def resnet56(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return ResNet-56 for images of 32x32."""
    return resnet((9, 9, 9), 16, classes, channels)


def resnet18_small(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return ResNet-18 with the 3x3 stem that is usual for images of 32x32: 11,173,962 parameters."""
    return resnet((2, 2, 2, 2), 64, classes, channels)


def densenet40(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """Return DenseNet-40 (k = 12)."""
    return densenet(40, 12, classes, channels=channels)


def narrow_densenet40(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """Return a DenseNet of as many layers with 96,637 parameters at 3 channels: 3 new ones a layer behind 25 at first."""
    return densenet(40, 3, classes, first=25, channels=channels)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to `expand` times the channels, a depthwise 3x3, a 1x1 back without activation, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels * expand
        widen = [_conv_relu6(channels, hidden, 1)] if expand > 1 else []
        narrow = (nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))
        self.body = nn.Sequential(*widen, _conv_relu6(hidden, hidden, 3, stride, hidden), *narrow)
        self.shortcut = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


def _conv_relu6(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6())


def mobilenet_v2(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return MobileNetV2 (Sandler et al., arXiv 1801.04381, Table 2), for images of 32x32: the first two strides are 1."""
    table = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    return _mobilenet(32, table, 1280, classes, channels)


def slim_mobilenet(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return eight of MobileNetV2's blocks at a third of the widths and half the resolution."""
    table = ((1, 8, 1, 1), (4, 12, 2, 1), (4, 16, 3, 2), (4, 24, 2, 2))
    return nn.Sequential(nn.AvgPool2d(2), _mobilenet(12, table, 96, classes, channels))


def _mobilenet(first: int, table: Sequence[tuple[int, int, int, int]], last: int, classes: int, channels: int) -> nn.Sequential:
    """Return a stem, blocks by rows of (expansion, width, blocks, stride of the first), a 1x1 convolution and a classifier."""
    body: list[nn.Module] = [_conv_relu6(channels, first, 3)]
    before = first
    for expand, width, depth, stride in table:
        for place in range(depth):
            body.append(InvertedResidual(before, width, stride if place == 0 else 1, expand))
            before = width
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(last, classes))
    return nn.Sequential(*body, _conv_relu6(before, last, 1), *head)


def mlp(classes: int = 10, channels: int = 3, size: int = 32, width: int = 256, depth: int = 8) -> nn.Sequential:
    """Return `depth` hidden layers of `width` neurons, each normalised in front of its ReLU."""
    body: list[nn.Module] = [nn.Flatten()]
    before = channels * size * size
    for _ in range(depth):
        body += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*body, nn.Linear(before, classes))


def plain_mlp(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """Return five hidden layers of 64 neurons without norms: what does not depend on how a batch is shared out."""
    body: list[nn.Module] = [nn.Flatten(), nn.Linear(channels * size * size, 64), nn.ReLU()]
    for _ in range(4):
        body += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(64, classes))


def alexnet(classes: int = 1000, channels: int = 3, size: int = 224) -> nn.Sequential:
    """Return AlexNet as Caffe has it, of 60,965,224 parameters: grouped second, fourth and fifth convolutions, response norms.

    Padded at the image's edge so that 224 pixels give the maps that Caffe gets from 227.
    """
    norm = partial(nn.LocalResponseNorm, 5)
    return nn.Sequential(
        *(nn.Conv2d(channels, 96, 11, 4, 2), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.AdaptiveAvgPool2d(6), nn.Flatten()),
        *(nn.Linear(256 * 6 * 6, 4096), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(4096, classes),
    )


def resnet18(classes: int = 1000, channels: int = 3, size: int = 224) -> nn.Module:
    """Return torchvision's ResNet-18, for images of 3 channels."""
    model: nn.Module = torchvision_models().resnet18(num_classes=classes)
    return model


MODELS: Mapping[str, Build] = {
    "convnet_c": convnet_c,
    "plain_cnn21": plain_cnn21,
    "plain_cnn41": plain_cnn41,
    "slim_convnet_c": partial(convnet_c, slim=8),
    "slim_cnn5": partial(slim_plain, (2, 1, 1)),
    "slim_cnn9": partial(slim_plain, (3, 3, 2)),
    "slim_cnn21": partial(slim_plain, (7, 7, 6)),
    "slim_resnet8": partial(slim_resnet, 8),
    "slim_resnet20": partial(slim_resnet, 20),
    "slim_resnet32": partial(slim_resnet, 32),
    "slim_bottleneck29": slim_bottleneck29,
    "slim_densenet16": slim_densenet16,
    "slim_mobilenet": slim_mobilenet,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet18_small": resnet18_small,
    "densenet40": densenet40,
    "narrow_densenet40": narrow_densenet40,
    "mobilenet_v2": mobilenet_v2,
    "mlp": mlp,
    "mlp3": partial(mlp, depth=3),
    "plain_mlp": plain_mlp,
    "alexnet": alexnet,
    "resnet18": resnet18,
}
