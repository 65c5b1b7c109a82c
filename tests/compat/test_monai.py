"""MONAI: dictionaries of MetaTensors from its transforms, its datasets, its DataLoader and its losses."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from compat import harness
from torch import Tensor, nn

pytest.importorskip("monai")

from monai.data import CacheDataset, DataLoader, Dataset
from monai.losses import FocalLoss
from monai.networks.nets import DenseNet
from monai.transforms import Compose, EnsureTyped, RandFlipd, ScaleIntensityd

N, CLASSES = 40, 3
TRAIN, VAL = harness.labels_of(N), harness.labels_of(30, seed=1)


def scans(labels: Tensor, seed: int) -> list[dict[str, Any]]:
    images = harness.images_of(labels, seed=seed).numpy()
    pairs = zip(images, labels.tolist(), strict=True)
    return [{"image": x, "label": y, "number": i} for i, (x, y) in enumerate(pairs)]


def transforms(train: bool) -> Compose:
    flip = [RandFlipd(keys="image", prob=0.5, spatial_axis=1)] if train else []
    return Compose(
        [
            ScaleIntensityd(keys="image"),
            EnsureTyped(keys="image", dtype=torch.float32),  # a MetaTensor
            *flip,
        ]
    )


class Scans(pl.LightningDataModule):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def setup(self, stage: str) -> None:
        options = {"progress": False} if self.kind is CacheDataset else {}
        self.train = self.kind(scans(TRAIN, 0), transforms(True), **options)
        self.val = self.kind(scans(VAL, 1), transforms(False), **options)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=8)

    test_dataloader = val_dataloader


class Net(pl.LightningModule):
    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.net = DenseNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=CLASSES,
            init_features=8,
            growth_rate=4,
            block_config=(2, 2),
        )
        self.loss = loss

    def _loss(self, batch: Any) -> Tensor:
        logits, target = self.net(batch["image"]), batch["label"]
        return self.loss(logits, target[:, None] if isinstance(self.loss, FocalLoss) else target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch), batch_size=len(batch["label"]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch), batch_size=len(batch["label"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


def project(name: str, loss: Any, kind: Any) -> harness.Project:
    return harness.Project(
        name,
        lambda: Net(loss()),
        lambda: {"datamodule": Scans(kind)},
        ids=lambda batch: torch.as_tensor(batch["number"]),
        labels=TRAIN,
        reseed=lambda data, seed: data["datamodule"].train.transform.set_random_state(seed),
        predict=lambda module, batch: (module.net(batch["image"]).argmax(1), batch["label"]),
    )


PROJECTS = [
    project("cross entropy", nn.CrossEntropyLoss, Dataset),
    project("cross entropy, CacheDataset", nn.CrossEntropyLoss, CacheDataset),
    project("FocalLoss", lambda: FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0), Dataset),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)
