"""A plain MLP as a module-level `model`, rewired by block: no function, no example input."""

from torch import nn

model = nn.Sequential(
    nn.Flatten(),
    nn.Linear(16, 8),
    nn.ReLU(),
    nn.Linear(8, 8),
    nn.ReLU(),
    nn.Linear(8, 8),
    nn.ReLU(),
    nn.Linear(8, 8),
    nn.ReLU(),
    nn.Linear(8, 4),
)
