"""Data and network of the demonstration: a plain DataModule and a plain LightningModule."""

from __future__ import annotations

import functools
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fairprune import quotas

NUM_CLASSES = 10
BATCH = 16
LARGEST, SMALLEST = 80, 10  # training images of the easiest and of the hardest class
NUM_TRAIN = 352  # 22 whole batches: drop_last drops no image of a full epoch
NUM_VAL = (
    40  # of each class, for the recalls that quotas follow; the other 54 to 63 are test images
)


@functools.cache
def load() -> tuple[Tensor, Tensor, Tensor]:
    """Returns images float [1797, 1, 8, 8] in [0, 1], labels [1797] and classes by difficulty [10].

    The difficulty of a class is the recall of a linear classifier (ridge
    regression, 5-fold cross-validation over all the images), the lowest last.
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import cross_val_predict

    pixels, labels = load_digits(return_X_y=True)
    predicted = cross_val_predict(RidgeClassifier(), pixels, labels, cv=5)
    recall = [float((predicted[labels == k] == k).mean()) for k in range(NUM_CLASSES)]
    images = torch.from_numpy(pixels.reshape(-1, 1, 8, 8).astype(np.float32) / 16)
    order = torch.tensor(recall).argsort(descending=True, stable=True)
    return images, torch.from_numpy(labels).long(), order


def train_sizes() -> Tensor:
    """Returns the training images of each class, int64 [10]: falling geometrically with difficulty."""
    order = load()[2]
    weights = torch.empty(NUM_CLASSES)
    weights[order] = torch.logspace(0, 1, NUM_CLASSES, base=SMALLEST / LARGEST)
    return quotas.apportion(weights, [LARGEST] * NUM_CLASSES, NUM_TRAIN)


class LongTailedDigits(pl.LightningDataModule):
    """Handwritten digits, the hardest rarest, split by `seed` into disjoint sets."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def setup(self, stage: str) -> None:
        images, labels, _ = load()
        generator = torch.Generator().manual_seed(self.seed)
        parts: list[list[Tensor]] = [[], [], []]
        for k, size in enumerate(train_sizes().tolist()):
            members = (labels == k).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            parts[0].append(members[:size])
            parts[1].append(members[LARGEST : LARGEST + NUM_VAL])
            parts[2].append(members[LARGEST + NUM_VAL :])
        self.train, self.val, self.test = (
            TensorDataset(images[chosen], labels[chosen]) for chosen in map(torch.cat, parts)
        )

    def train_dataloader(self) -> Any:
        # Whole batches only: the steps determine the samples seen.
        return DataLoader(self.train, BATCH, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, len(self.val))

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, len(self.test))


class SmallCNN(pl.LightningModule):
    """Two convolutions and a linear layer; the learning rate falls to 0 with the last step."""

    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, NUM_CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    validation_step = test_step = training_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.trainer.max_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
