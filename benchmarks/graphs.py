"""Layer graphs of the networks whose figures are timed, made without their models: link for link the published networks."""

from __future__ import annotations

from collections.abc import Sequence

from swcompile.graph import GraphBuilder, LayerGraph, Run

VGG16 = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
"""The widths of VGG16's convolutions, the network's input first."""
VGG16_SIZES = (32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2)
"""What each of them reads when the image is 32x32."""

Value = tuple[Run, ...]


class Builder(GraphBuilder):
    """Adds convolutions, whose maps have a name and a size."""

    def conv(self, name: str, reads: str, value: Value, size: int, width: int, kernel: int = 1, stride: int = 1) -> Value:
        """Add a convolution that reads the map `reads` of size x size, and return the runs of its output."""
        feature = self.feature(reads, value, (1, value[-1].stop, size, size))
        return self.layer(name, feature, width, kernel_size=(kernel, kernel), positions=(size // stride) ** 2)

    def classify(self, value: Value, classes: int = 1000) -> LayerGraph:
        """Add the classifier behind a global pooling, and return the graph."""
        pooled = self.feature("pooled", value, (1, value[-1].stop))
        self.sink(self.layer("head", pooled, classes, kind="Linear"))
        return self.finish()


def chain(widths: Sequence[int], sizes: Sequence[int] = ()) -> LayerGraph:
    """Return a plain chain of 3x3 convolutions; `widths[0]` is the network's input, `sizes` what each reads (8x8 maps if empty)."""
    build = Builder("chain")
    value, name = build.input("x", widths[0]), "x"
    for number, (width, size) in enumerate(zip(widths[1:], sizes or [8] * (len(widths) - 1), strict=True), start=1):
        value, name = build.conv(f"conv{number}", name, value, size, width, 3), f"conv{number}"
    build.sink(value)
    return build.finish()


def residual(blocks: int, width: int = 16, size: int = 8) -> LayerGraph:
    """Return a stem, `blocks` residual blocks of two 3x3 convolutions each, and a classifier."""
    build = Builder("residual")
    value, name = build.conv("stem", "x", build.input("x", 3), size, width, 3), "stem"
    for number in range(blocks):
        inner = build.conv(f"{number}.1", name, value, size, width, 3)
        name = f"add{number}"
        value = build.add(name, value, build.conv(f"{number}.2", f"map{number}", inner, size, width, 3))
    return build.classify(value, 10)


def vgg16() -> LayerGraph:
    """Return VGG16's convolutions on a 32x32 image."""
    return chain(VGG16, VGG16_SIZES)


def resnet50() -> LayerGraph:
    """Return ResNet-50 on a 224x224 image."""
    build = Builder("ResNet-50")
    value, name, size = build.conv("stem", "x", build.input("x", 3), 224, 64, 7, 2), "stem", 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            label, stride = f"{stage}.{block}", 2 if stage and block == 0 else 1
            inner = build.conv(f"{label}.1", name, value, size, width)
            inner = build.conv(f"{label}.2", f"{label}.map1", inner, size, width, 3, stride)
            inner = build.conv(f"{label}.3", f"{label}.map2", inner, size // stride, 4 * width)
            short = build.conv(f"{label}.shortcut", name, value, size, 4 * width, 1, stride) if block == 0 else value
            value, name, size = build.add(f"{label}.add", inner, short), f"{label}.add", size // stride
    return build.classify(value)


def densenet201() -> LayerGraph:
    """Return DenseNet-201 on a 224x224 image."""
    build = Builder("DenseNet-201")
    value, size = build.conv("stem", "x", build.input("x", 3), 224, 64, 7, 2), 56
    for stage, layers in enumerate((6, 12, 48, 32)):
        for number in range(layers):
            label = f"{stage}.{number}"
            inner = build.conv(f"{label}.1", f"{label}.cat", value, size, 128)
            value = build.cat(value, build.conv(f"{label}.2", f"{label}.map", inner, size, 32, 3))
        if stage < 3:
            value, size = build.conv(f"{stage}.transition", f"{stage}.cat", value, size, value[-1].stop // 2), size // 2
    return build.classify(value)
