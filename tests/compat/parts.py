"""Pictures and a classifier for projects that are about something else."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from compat import harness
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

N, CLASSES = 60, 3
TRAIN, VAL = harness.labels_of(N), harness.labels_of(45, seed=1)


class Pictures(Dataset[Any]):
    """Small pictures; the first pixel says which."""

    def __init__(self, train: bool = True) -> None:
        self.targets = TRAIN if train else VAL
        self.images = harness.images_of(self.targets, seed=int(not train))
        self.images[:, 0, 0, 0] = torch.arange(len(self.targets)) / 1000

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i], int(self.targets[i])


def ids(batch: Any) -> Tensor:
    return (batch[0][:, 0, 0, 0] * 1000).round().long()


def predict(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch
    return module(x).argmax(1), y


def train_loader() -> DataLoader[Any]:
    return DataLoader(Pictures(), batch_size=8, shuffle=True)


def val_loader() -> DataLoader[Any]:
    return DataLoader(Pictures(train=False), batch_size=8)


class Classifier(pl.LightningModule):
    """With dropout, so that it shows if something else draws a random number."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y), prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(Pictures(), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Pictures(train=False), self.batch_size)

    test_dataloader = val_dataloader
