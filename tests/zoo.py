"""Small models as their users write them, one for each family of networks: ZOO maps a name to (builder, example input)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # as users write it


def image(side: int = 16, batch: int = 4, channels: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(7))


def vector(width: int, batch: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, width, generator=torch.Generator().manual_seed(7))


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Basic(nn.Module):
    """The basic block of ResNet v1: one in-place ReLU module, called at two places."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """The bottleneck block of ResNet v1, and of ResNeXt with groups."""

    expansion = 2

    def __init__(self, inputs: int, width: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        wide = width * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride, groups), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != wide:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class GroupedBottleneck(Bottleneck):
    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__(inputs, width, stride, groups=2)


class ResNet(nn.Module):
    def __init__(self, block: type[Basic] | type[Bottleneck], widths: tuple[int, ...] = (16, 32)) -> None:
        super().__init__()
        inputs = widths[0]
        self.conv1, self.bn1, self.relu = conv3x3(3, inputs), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        stages = []
        for stage, width in enumerate(widths):
            for number in range(2):
                stages.append(block(inputs, width, 2 if stage and not number else 1))
                inputs = width * block.expansion
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.flatten(self.avgpool(self.stages(x)), 1))


class Preact(nn.Module):
    """A block of ResNet v2: the activation comes first, and the shortcut leaves after it."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv3x3(width, width)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride != 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


def resnet_basic() -> nn.Module:
    return ResNet(Basic)


def resnet_bottleneck() -> nn.Module:
    return ResNet(Bottleneck)


def resnext() -> nn.Module:
    return ResNet(GroupedBottleneck)


def preact_resnet() -> nn.Module:
    blocks = [Preact(16, 16), Preact(16, 16), Preact(16, 32, 2), Preact(32, 32)]
    tail = [nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(conv3x3(3, 16), *blocks, *tail)


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (16, 16, 0, 32, 32, 0, 32, 32, 0):
            if not width:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        self.features = nn.Sequential(*layers)
        hidden = [nn.Linear(128, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class DenseLayer(nn.Module):
    """Norm, ReLU, convolution, twice; the outputs of all earlier layers are concatenated inside."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), conv3x3(2 * growth, growth)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        out = self.conv1(self.relu(self.norm1(torch.cat(maps, 1))))
        return self.drop(self.conv2(self.relu(self.norm2(out))))


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, inputs: int, growth: int) -> None:
        super().__init__({f"layer{number}": DenseLayer(inputs + number * growth, growth) for number in range(layers)})

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


def densenet() -> nn.Module:
    transition = [nn.BatchNorm2d(48), nn.ReLU(inplace=True), nn.Conv2d(48, 24, 1, bias=False), nn.AvgPool2d(2)]
    tail = [nn.BatchNorm2d(56), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(56, 10)]
    return nn.Sequential(conv3x3(3, 16), DenseBlock(4, 16, 8), *transition, DenseBlock(4, 24, 8), *tail)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * self.expand(F.silu(self.reduce(gate))).sigmoid()


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 2 * inputs
        self.use_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)),
            nn.Sequential(conv3x3(wide, wide, stride, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)),
            SqueezeExcite(wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_shortcut else self.conv(x)


def mobilenet_v2() -> nn.Module:
    blocks = [InvertedResidual(16, 16, 1), InvertedResidual(16, 24, 2), InvertedResidual(24, 24, 1), InvertedResidual(24, 24, 1)]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10)]
    return nn.Sequential(conv_bn_relu(3, 16), *blocks, conv_bn_relu(24, 32, 1), *tail)


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1 = conv_bn_relu(inputs, 8, 1)
        self.branch2 = nn.Sequential(conv_bn_relu(inputs, 8, 1), conv_bn_relu(8, 16))
        self.branch3 = nn.Sequential(conv_bn_relu(inputs, 8, 1), conv_bn_relu(8, 8), conv_bn_relu(8, 8))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_bn_relu(inputs, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = conv_bn_relu(inputs, 16, 1), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(F.adaptive_avg_pool2d(x, (2, 2))), 1)
        return self.fc2(F.dropout(F.relu(self.fc1(x), inplace=True), 0.5, self.training))


class GoogLeNetOutputs(NamedTuple):
    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class GoogLeNet(nn.Module):
    """Two auxiliary heads, in train mode only, which then answers with a namedtuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 16)
        self.inception1, self.inception2, self.inception3 = Inception(16), Inception(40), Inception(40)
        self.aux1, self.aux2 = Auxiliary(40), Auxiliary(40)
        self.dropout, self.fc = nn.Dropout(0.2), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        x = F.max_pool2d(self.inception1(self.stem(x)), 2)
        aux1 = self.aux1(x) if self.training else None
        x = self.inception2(x)
        aux2 = self.aux2(x) if self.training else None
        x = self.fc(self.dropout(self.inception3(x).mean((2, 3))))
        if aux1 is not None and aux2 is not None:
            return GoogLeNetOutputs(x, aux2, aux1)
        return x


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(*conv_bn_relu(inputs, outputs), *conv_bn_relu(outputs, outputs))


class UNet(nn.Module):
    """Skips by `cat`, up by a transposed convolution or by interpolation, the last pair padded as in the paper's code."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        self.inc, self.down1, self.down2 = DoubleConv(3, 16), DoubleConv(16, 32), DoubleConv(32, 32)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2) if transposed else nn.Conv2d(32, 16, 1)
        self.up2 = nn.ConvTranspose2d(16, 16, 2, stride=2) if transposed else nn.Conv2d(16, 16, 1)
        self.conv1, self.conv2 = DoubleConv(48, 16), DoubleConv(32, 16)
        self.outc = nn.Conv2d(16, 2, 1)

    def grow(self, up: nn.Module, x: Tensor) -> Tensor:
        return up(x) if self.transposed else up(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        x = self.conv1(torch.cat([x2, self.grow(self.up1, x3)], dim=1))
        grown = self.grow(self.up2, x)
        grown = F.pad(grown, [0, x1.shape[-1] - grown.shape[-1], 0, x1.shape[-2] - grown.shape[-2]])
        return self.outc(self.conv2(torch.cat([x1, grown], dim=1)))


def unet_transposed() -> nn.Module:
    return UNet(transposed=True)


def unet_upsample() -> nn.Module:
    return UNet(transposed=False)


def mlp() -> nn.Module:
    hidden = [nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(0.1)) for _ in range(4)]
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), *hidden, nn.Linear(32, 5))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the other half is convolved, then both are shuffled by view and transpose."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        depthwise = nn.Sequential(conv3x3(half, half, groups=half), nn.BatchNorm2d(half))
        self.branch = nn.Sequential(conv_bn_relu(half, half, 1), depthwise, conv_bn_relu(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


def shufflenet() -> nn.Module:
    units = [ShuffleUnit(32) for _ in range(3)]
    return nn.Sequential(
        conv_bn_relu(3, 32), *units, conv_bn_relu(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.act = nn.Conv2d(inputs, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


def squeezenet() -> nn.Module:
    features = [nn.Conv2d(3, 16, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, ceil_mode=True)]
    fires = [Fire(16, 8, 8), Fire(16, 8, 8), Fire(16, 16, 16), Fire(32, 16, 16)]
    tail = [nn.Dropout(), nn.Conv2d(32, 10, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*features, *fires, *tail)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, width))


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, 2), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.ModuleList(Encoder(width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ConvNeXtBlock(nn.Module):
    """Channels are axis 1 for the convolution and the last one for the Linears between the permutes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        out = self.gamma * self.pwconv2(F.gelu(self.pwconv1(out)))
        return x + out.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    down = nn.Conv2d(16, 32, 2, 2)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 10)]
    blocks = [ConvNeXtBlock(16), ConvNeXtBlock(16), down, ConvNeXtBlock(32), ConvNeXtBlock(32)]
    return nn.Sequential(nn.Conv2d(3, 16, 2, 2), *blocks, *tail)


class MixerBlock(nn.Module):
    """One MLP over the tokens, whose number looks like a width, and one over the channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_mlp = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channel_mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(16, 16), MixerBlock(16, 16), MixerBlock(16, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def drop_path(x: Tensor, drop: float, training: bool) -> Tensor:
    if drop == 0.0 or not training:
        return x
    keep = 1 - drop
    mask = x.new_empty((x.shape[0],) + (1,) * 3).bernoulli_(keep)
    mask.div_(keep)
    return x * mask


class StochasticBlock(nn.Module):
    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.conv1, self.conv2, self.bn = conv3x3(width, width), conv3x3(width, width), nn.BatchNorm2d(width)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        out = F.dropout(F.relu(self.conv1(x)), p=0.2, training=self.training)
        return F.relu(x + drop_path(self.bn(self.conv2(out)), self.drop, self.training))


class StochasticDepth(nn.Module):
    """Functional dropout, stochastic depth and noise: code that runs in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv3x3(3, 16)
        self.blocks = nn.ModuleList(StochasticBlock(16, 0.1 * number) for number in range(4))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if self.training:
            noise = torch.empty_like(x)
            noise.normal_(0, 0.1)
            x = x + noise
        return self.fc(F.dropout(x.mean([-2, -1]), training=self.training))


class InPlace(nn.Module):
    """Values overwritten by functions, methods and operators, some of them read again afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(3 if not number else 16, 16) for number in range(5))
        self.bns = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bns[0](self.convs[0](x)), inplace=True)
        z = self.bns[1](self.convs[1](y))
        z += y
        z.relu_()
        w = self.bns[2](self.convs[2](z))
        w.add_(z)
        torch.relu_(w)
        v = self.bns[3](self.convs[3](w))
        v *= 0.5
        F.leaky_relu_(v, 0.1)
        u = self.bns[4](self.convs[4](v))
        u.clamp_(min=-1.0).add_(w, alpha=0.5)
        u[:, :4] = 0.25 * u[:, 4:8]
        return self.fc(u.mean((2, 3)))


class LooseEnds(nn.Module):
    """Buffers that are not saved, modules and parameters that the forward never reaches, a buffer that the forward updates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("center", torch.zeros(32))
        self.unused = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.stem = conv_bn_relu(3, 16)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.body = nn.Sequential(conv_bn_relu(16, 16), conv_bn_relu(16, 32, stride=2), conv_bn_relu(32, 32), conv_bn_relu(32, 32))
        self.loose = nn.Parameter(torch.randn(3))
        self.fc = nn.Linear(32, 10)
        self.names = ["a", "b"]

    def forward(self, x: Tensor, temperature: float = 1.0) -> dict[str, Tensor | list[Tensor]]:
        maps = self.body(self.stem(x - self.mean) * self.scale)
        pooled = maps.mean((2, 3))
        if self.training:
            self.seen.add_(1)
            self.center.mul_(0.9).add_(pooled.detach().mean(0), alpha=0.1)
        return {"logits": self.fc(pooled - self.center) / temperature, "maps": [maps, pooled]}


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, vector(20)),
    "resnet_basic": (resnet_basic, image()),
    "resnet_bottleneck": (resnet_bottleneck, image()),
    "preact_resnet": (preact_resnet, image()),
    "resnext": (resnext, image()),
    "vgg": (Vgg, image()),
    "densenet": (densenet, image()),
    "mobilenet_v2": (mobilenet_v2, image()),
    "googlenet": (GoogLeNet, image()),
    "unet_transposed": (unet_transposed, image()),
    "unet_upsample": (unet_upsample, image(20)),
    "shufflenet": (shufflenet, image()),
    "squeezenet": (squeezenet, image(17)),
    "vit": (ViT, image()),
    "convnext": (convnext, image()),
    "mixer": (Mixer, image()),
    "stochastic_depth": (StochasticDepth, image()),
    "in_place": (InPlace, image()),
    "loose_ends": (LooseEnds, image()),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model of the zoo with the same weights every time, and its example input. Torch's random state stays as it was."""
    builder, example = ZOO[name]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(11)
        return builder(), example()
