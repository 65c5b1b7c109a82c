"""kornia: augmentation of whole batches in `on_after_batch_transfer`, as in Lightning's tutorial, and its focal loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compat import harness
from compat.parts import TRAIN, Classifier, Data, ids, predict
from torch import Tensor, nn

pytest.importorskip("kornia")

from kornia import augmentation as K
from kornia.losses import FocalLoss, focal_loss


class Augmented(Classifier):
    """With or without a focal loss."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss
        self.augment = nn.Sequential(
            K.RandomHorizontalFlip(p=0.5), K.RandomRotation(degrees=5.0, p=0.5)
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        if self.trainer.training:
            number = x[:, :1, :1, :1].clone()
            # One seed a batch, because the Trainer does not resume the random state.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(ids(batch)[0]))
                x = self.augment(x)
            x[:, :1, :1, :1] = number
        return x, y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self(x), y))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", self.loss(self(x), y))


def project(name: str, loss: Any) -> harness.Project:
    return harness.Project(
        name, lambda: Augmented(loss()), lambda: {"datamodule": Data()}, ids, TRAIN, predict
    )


def focal(logits: Tensor, target: Tensor) -> Tensor:
    return focal_loss(logits, target, alpha=0.5, gamma=2.0, reduction="mean")


PROJECTS = [
    project("augmentation", nn.CrossEntropyLoss),
    project("focal_loss", lambda: focal),
    project("FocalLoss", lambda: FocalLoss(alpha=0.5, gamma=2.0, reduction="mean")),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)
