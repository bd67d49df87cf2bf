"""Two names for one weight, buffers of other dtypes, an auxiliary head that only train mode runs, concatenations, two inputs."""

import torch
from torch import Tensor, nn


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.enter = nn.Linear(8, 8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(16, 8)
        self.fourth = nn.Linear(8, 8)
        self.leave = nn.Linear(8, 11)
        self.leave.weight = self.embed.weight
        self.side = nn.Linear(8, 3)
        self.register_buffer("scale", torch.tensor([2.0], dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, tokens: Tensor, more: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = torch.relu(self.enter(self.embed(tokens) + more))
        y = torch.relu(self.first(x))
        z = torch.relu(self.third(torch.cat([torch.relu(self.second(y)), x], dim=-1)))
        out = self.leave(torch.relu(self.fourth(z)))
        return (out, self.side(z)) if self.training else out


def build_model() -> nn.Module:
    return Shared()


example_inputs = (torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6, 8))
