"""Keep an exponential moving average of a rewired model's weights: torch.optim.swa_utils takes it as any module.

Trains on scikit-learn's digits (pip install '.[demo]'): python examples/train_ema.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train import build_model, digits

import swnet


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> AveragedModel:
    """Train the model, and return the moving average of its weights and of its norms' statistics."""
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
    return averaged


def main(steps: int = 60) -> AveragedModel:
    torch.manual_seed(0)
    images, labels = digits()
    rewired = swnet.transform(build_model(), images[:2], p=0.3)  # the new line
    averaged = train(rewired, images[256:], labels[256:], steps)
    with torch.no_grad():
        for name, model in (("last", rewired), ("averaged", averaged)):
            right = (model.eval()(images[:256]).argmax(1) == labels[:256]).float().mean()
            print(f"{name:8} weights after {steps} steps: {right:.1%} of 256 held-out images right")
    return averaged


if __name__ == "__main__":
    main()
