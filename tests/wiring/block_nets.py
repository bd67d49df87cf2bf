"""Layer graphs of well-known networks, built by hand: real widths and shapes, without a model."""

from __future__ import annotations

from swcompile.graph import GraphBuilder, LayerGraph, Run

Value = tuple[Run, ...]


class Net:
    """A GraphBuilder that remembers the spatial size and names things by number."""

    def __init__(self, name: str, size: int = 32, channels: int = 3) -> None:
        self.build = GraphBuilder(name)
        self.size = size
        self.count = 0
        self.image = self.build.input("x", channels)
        self.mark: dict[Value, str] = {}

    def conv(self, value: Value, out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1, tag: str = "") -> Value:
        """Read a value (shared names for equal values at one size) and return the layer's output."""
        self.count += 1
        key = (
            "f" + "_".join(f"{run.producer}.{run.first}.{run.width}.{run.step}" for run in value[:4]) + f"_{len(value)}_{self.size}"
        ) + self.mark.get(value, "")
        feature = self.build.feature(key, value, (1, value[-1].stop, self.size, self.size))
        self.size //= stride
        return self.build.layer(
            f"conv{self.count}{tag}", feature, out, kernel_size=(kernel, kernel), groups=groups, positions=self.size**2
        )

    def norm(self, value: Value) -> Value:
        """Put a norm behind a value: the same channels as another feature."""
        self.count += 1
        self.mark[value] = f"_norm{self.count}"
        return value

    def gate(self, value: Value) -> Value:
        """Squeeze and excite: from now on the value is read behind the gate, whose producer the feature's name tells."""
        size, self.size = self.size, 1
        gate = self.conv(self.conv(value, 4, kernel=1), value[-1].stop, kernel=1, tag="gate")
        self.size = size
        self.build.sink(gate)
        self.mark[value] = f"_gated{gate[0].producer}"
        return value

    def linear(self, value: Value, out: int, tag: str = "") -> Value:
        self.count += 1
        key = f"v{self.count}"
        return self.build.layer(f"linear{self.count}{tag}", self.build.feature(key, value, (1, value[-1].stop)), out, kind="Linear")

    def flatten(self, value: Value) -> Value:
        area = self.size**2
        runs: list[Run] = []
        for run in value:
            runs += [
                Run((run.start + k) * area, (run.start + k + 1) * area, run.producer, run.first + k * run.step, 0)
                for k in range(run.width)
            ]
        return tuple(runs)

    def finish(self, value: Value) -> LayerGraph:
        self.build.sink(value)
        return self.build.finish()


def chain(depth: int, width: int = 64, size: int = 32) -> LayerGraph:
    net = Net("chain", size)
    value = net.image
    for _ in range(depth):
        value = net.conv(value, width)
    return net.finish(net.linear(value, 10))


def vgg16() -> LayerGraph:
    net = Net("vgg16", 224)
    value = net.image
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in widths:
            value = net.conv(value, width)
        net.size //= 2
    value = net.linear(net.flatten(value), 4096)
    return net.finish(net.linear(net.linear(value, 4096), 1000))


def resnet50(groups: int = 1) -> LayerGraph:
    net = Net("resnet50", 224)
    value = net.conv(net.image, 64, kernel=7, stride=2)
    net.size //= 2
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            size, inner = net.size, net.conv(value, width, kernel=1)
            inner = net.conv(net.conv(inner, width, stride=stride, groups=groups), 4 * width, kernel=1)
            after, net.size = net.size, size
            short = net.conv(value, 4 * width, kernel=1, stride=stride) if block == 0 else value
            net.size = after
            value = net.build.add(f"add{stage}.{block}", short, inner)
    return net.finish(net.linear(value, 1000))


def residual(depth: int, width: int = 64) -> LayerGraph:
    net = Net("residual")
    value = net.conv(net.image, width)
    for block in range(depth // 2):
        value = net.build.add(f"add{block}", value, net.conv(net.conv(value, width), width))
    return net.finish(net.linear(value, 10))


def densenet(blocks: tuple[int, ...] = (6, 12, 48, 32), growth: int = 32, size: int = 224) -> LayerGraph:
    net = Net("densenet", size)
    value = net.conv(net.image, 2 * growth, kernel=7, stride=2)
    net.size //= 2
    for stage, depth in enumerate(blocks):
        for _ in range(depth):
            value = net.build.cat(value, net.conv(net.conv(value, 4 * growth, kernel=1), growth))
        if stage < len(blocks) - 1:
            value = net.conv(value, value[-1].stop // 2, kernel=1)
            net.size //= 2
    return net.finish(net.linear(value, 1000))


def unet(width: int = 32, depth: int = 3) -> LayerGraph:
    net = Net("unet", 64)
    skips: list[Value] = []
    value = net.image
    for level in range(depth):
        value = net.conv(net.conv(value, width << level), width << level)
        skips.append(value)
        net.size //= 2
    value = net.conv(net.conv(value, width << depth), width << depth)
    for level in reversed(range(depth)):
        net.size *= 2
        value = net.conv(net.build.cat(skips[level], value), width << level)
        value = net.conv(value, width << level)
    return net.finish(net.conv(value, 2, kernel=1))


def gated(depth: int = 6, width: int = 32) -> LayerGraph:
    """Inverted residuals with squeeze-excite gates, as in MobileNetV3: depthwise convolutions, gates, sums."""
    net = Net("gated")
    value = net.conv(net.image, width)
    for block in range(depth):
        wide = net.conv(net.conv(value, 2 * width, kernel=1), 2 * width, groups=2 * width)
        value = net.build.add(f"add{block}", value, net.conv(net.gate(wide), width, kernel=1))
    return net.finish(net.linear(value, 10))


def transformer(depth: int = 4, width: int = 32) -> LayerGraph:
    """Encoders of tokens with a norm in front of each branch; attention is an opaque operation."""
    net = Net("transformer", 16)
    value = net.conv(net.image, width)
    for block in range(depth):
        for branch in ("attention", "mlp"):
            hidden = net.conv(net.norm(value), 3 * width if branch == "attention" else 2 * width, kernel=1, tag=branch)
            if branch == "attention":
                net.build.sink(hidden)
                hidden = net.build.produce(f"attention{block}", "opaque", width, [hidden])
            value = net.build.add(f"{branch}.add{block}", value, net.conv(hidden, width, kernel=1))
    return net.finish(net.linear(value, 10))


def inception(depth: int = 4, width: int = 32) -> LayerGraph:
    """Blocks of parallel branches of different depth, concatenated."""
    net = Net("inception")
    value = net.conv(net.image, width)
    for _ in range(depth):
        short = net.conv(value, width // 4, kernel=1)
        middle = net.conv(net.conv(value, width // 4, kernel=1), width // 4)
        deep = net.conv(net.conv(net.conv(value, width // 4, kernel=1), width // 4), width // 2)
        value = net.build.cat(short, middle, deep)
    return net.finish(net.linear(value, 10))


def shuffled(depth: int = 6, width: int = 32) -> LayerGraph:
    """Two branches whose channels are interleaved after every layer, as in ShuffleNet."""
    net = Net("shuffled")
    value = net.conv(net.image, width)
    for _ in range(depth):
        half = width // 2
        left = [run.cut(0, half) for run in value if run.start < half]
        right = net.conv(tuple(run.cut(half, width, -half) for run in value if run.stop > half), half)
        mixed = [
            part
            for k in range(half)
            for run in (left, right)
            for part in (next(r.cut(k, k + 1) for r in run if r.start <= k < r.stop),)
        ]
        value = net.build.cat(*[(Run(0, 1, run.producer, run.first, run.step),) for run in mixed])
    return net.finish(net.linear(value, 10))
