"""Rewire a model in front of a Lightning trainer: the LightningModule holds the rewired model as it would hold the other.

Needs pip install '.[examples]': python examples/train_lightning.py
"""

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train import build_model, digits

import swnet


class Classifier(lightning.LightningModule):
    """Trains whatever model it is given; nothing here knows of swnet."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def fit(classifier: Classifier, images: Tensor, labels: Tensor, steps: int) -> lightning.Trainer:
    batches = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", devices=1, log_every_n_steps=1, **quiet)
    trainer.fit(classifier, batches)
    return trainer


def main(steps: int = 60) -> lightning.Trainer:
    lightning.seed_everything(0, verbose=False)
    images, labels = digits()
    rewired = swnet.transform(build_model(), images[:2], p=0.3)  # the new line
    trainer = fit(Classifier(rewired), images, labels, steps)
    print(f"loss after {trainer.global_step} steps: {trainer.callback_metrics['loss']:.4f}")
    return trainer


if __name__ == "__main__":
    main()
