"""timm: a model of its own, its Mixup, label smoothing and binary cross-entropy."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from compat import harness
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("timm")

import timm
from timm.data import Mixup
from timm.loss import (
    BinaryCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.optim import create_optimizer_v2

N, CLASSES = 48, 3
TRAIN, VAL = harness.labels_of(N), harness.labels_of(30, seed=1)


def dataset(labels: Tensor, seed: int) -> TensorDataset:
    images = harness.images_of(labels, size=32, channels=3, seed=seed)
    return TensorDataset(images, labels, torch.arange(len(labels)))


class Images(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(dataset(TRAIN, 0), batch_size=8, shuffle=True, drop_last=False)

    def val_dataloader(self) -> Any:
        return DataLoader(dataset(VAL, 1), batch_size=8)

    test_dataloader = val_dataloader


class Net(pl.LightningModule):
    """As timm's own training script: one loss for training, cross-entropy for validation."""

    def __init__(self, loss: Any, mixup: bool = False) -> None:
        super().__init__()
        self.net = timm.create_model("test_resnet", pretrained=False, num_classes=CLASSES)
        self.loss = loss
        self.mixup = Mixup(mixup_alpha=0.4, num_classes=CLASSES) if mixup else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, _ = batch
        if self.mixup is not None:
            x, y = self.mixup(x.clone(), y)
        return self.loss(self.net(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("test_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        return create_optimizer_v2(self, opt="adamw", lr=0.003)


def project(name: str, loss: Any, mixup: bool = False) -> harness.Project:
    return harness.Project(
        name,
        lambda: Net(loss(), mixup),
        lambda: {"datamodule": Images()},
        ids=lambda batch: batch[2],
        labels=TRAIN,
        predict=lambda module, batch: (module.net(batch[0]).argmax(1), batch[1]),
    )


PROJECTS = [
    project("LabelSmoothingCrossEntropy", LabelSmoothingCrossEntropy),
    project("BinaryCrossEntropy", lambda: BinaryCrossEntropy(smoothing=0.1)),
    project("Mixup", SoftTargetCrossEntropy, True),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)
