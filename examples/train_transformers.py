"""Rewire a Hugging Face model in front of its Trainer. The model is built from a configuration: nothing is downloaded.

It is traced for images alone, so it takes no labels any more, and the loss is handed to the Trainer as `compute_loss_func`.
Needs pip install '.[examples]': python examples/train_transformers.py
"""

import tempfile
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from train import digits
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

import swnet


class Digits(Dataset):
    """Rows as the Trainer takes them: named as the arguments of the model's forward, and the labels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def build_model() -> nn.Module:
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [3, 3], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))


def cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    count = len(labels) if num_items_in_batch is None else num_items_in_batch  # of all batches that one step accumulates
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / count


def main(steps: int = 60) -> Trainer:
    set_seed(0)
    images, labels = digits()
    larger = F.interpolate(images, scale_factor=4.0)  # the first layers of this model divide height and width by four
    rewired = swnet.transform(build_model(), larger[:2], p=0.3)  # the new line
    rewired.accepts_loss_kwargs = False  # the Trainer would hand the model's **kwargs a number for its own loss
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=256,
            learning_rate=1e-3,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            label_names=["labels"],
        )
        seen, held_out = Digits(larger[256:], labels[256:]), Digits(larger[:256], labels[:256])
        trainer = Trainer(rewired, arguments, train_dataset=seen, eval_dataset=held_out, compute_loss_func=cross_entropy)
        trainer.train()
        print(f"held-out loss after {trainer.state.global_step} steps: {trainer.evaluate()['eval_loss']:.4f}")
    return trainer


if __name__ == "__main__":
    main()
