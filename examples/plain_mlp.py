"""A plain MLP for images of 28x28, given as a module-level `model`: no function, no example input.

swcompile transform examples/plain_mlp.py --out out/   # then open out/report.html
"""

from torch import nn

model = nn.Sequential(
    nn.Flatten(),
    nn.Linear(784, 256),
    nn.ReLU(),
    nn.Linear(256, 256),
    nn.ReLU(),
    nn.Linear(256, 256),
    nn.ReLU(),
    nn.Linear(256, 256),
    nn.ReLU(),
    nn.Linear(256, 10),
)
