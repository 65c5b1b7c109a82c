"""torchgeo: its ClassificationTask and its datamodule, whose augmentations run after the transfer to the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compat import harness
from torch import Tensor

pytest.importorskip("torchgeo")

from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset
from torchgeo.trainers import ClassificationTask

N, CLASSES = 40, 3
TRAIN, VAL = harness.labels_of(N), harness.labels_of(30, seed=1)


class Scenes(NonGeoDataset):
    """Satellite scenes, made up; the first pixel says which."""

    def __init__(self, split: str = "train") -> None:
        self.labels = TRAIN if split == "train" else VAL
        size, seed = 32, int(split != "train")
        self.images = harness.images_of(self.labels, size=size, channels=3, seed=seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"image": self.images[i], "label": self.labels[i], "number": torch.tensor(i)}


class SceneData(NonGeoDataModule):
    mean = torch.zeros(3)
    std = torch.ones(3)

    def __init__(self) -> None:
        super().__init__(Scenes, batch_size=8, num_workers=0)

    def setup(self, stage: str) -> None:
        self.train_dataset = Scenes("train")
        self.val_dataset = self.test_dataset = Scenes("val")


def val(module: Any, data: harness.Data) -> Any:
    datamodule = data["datamodule"]
    for batch in datamodule.val_dataloader():
        yield datamodule.val_aug(batch) if datamodule.val_aug is not None else datamodule.aug(batch)


def project(loss: str) -> harness.Project:
    return harness.Project(
        loss,
        lambda: ClassificationTask(
            model="test_resnet",
            weights=None,
            in_channels=3,
            num_classes=CLASSES,
            loss=loss,
            lr=0.003,
        ),
        lambda: {"datamodule": SceneData()},
        ids=lambda batch: batch["number"],
        labels=TRAIN,
        predict=lambda module, batch: (module(batch["image"]).argmax(1), batch["label"]),
        val=val,
        drop_last=True,
    )


PROJECTS = [project("ce"), project("focal")]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)
