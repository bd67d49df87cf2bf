"""Rewire a model in front of an ordinary training loop: one line is new.

Trains on scikit-learn's digits (pip install '.[demo]'): python examples/train.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import swnet


def build_model() -> nn.Module:
    layers: list[nn.Module] = []
    for channels, width in [(1, 32)] + [(32, 32)] * 7:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> float:
    """Return the mean loss of the last ten steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


def main(steps: int = 60) -> None:
    torch.manual_seed(0)
    images, labels = digits()
    model = build_model()
    rewired = swnet.transform(model, images[:2], p=0.3)  # the new line
    print(f"rewired   loss after {steps} steps: {train(rewired, images, labels, steps):.4f}")
    print(f"original  loss after {steps} steps: {train(model, images, labels, steps):.4f}")
    print("To see it in a browser: swnet.report(rewired, 'report.html')")


if __name__ == "__main__":
    main()
