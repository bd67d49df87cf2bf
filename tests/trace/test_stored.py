"""swcompile.trace.stored: what is computed of parameters belongs to the graph, however the code comes by them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import swnet

X = torch.randn(2, 3, 8, 8)


class Penalised(nn.Module):
    """Adds a penalty on all of its weights, counts in a buffer that it looks up, and asks for a type."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        first = next(self.parameters())
        self._buffers["calls"].add_(1)  # type: ignore[union-attr]  # it is there
        penalty = sum(weight[0].abs().sum() * 2 + weight.T.mean() for weight in self.parameters())
        return self.c(self.b(self.a(x.to(first.device, first.dtype)))) + 1e-3 * penalty * first.shape[0] + first.numel()


def test_computations_on_parameters_are_recorded() -> None:
    net = Penalised()
    rewired = swnet.transform(net, X, p=0.0)
    for _ in range(2):
        for model in (net, rewired):
            model.zero_grad()
            model(X).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
    assert all(
        torch.equal(left, right) for left, right in zip(net.state_dict().values(), rewired.state_dict().values(), strict=True)
    )
    assert rewired.calls == 2
