"""torchgeo: its ClassificationTask and its datamodule, whose augmentations run after the transfer to the device."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from compat import harness
from torch import Tensor

import lightning_fairprune as lfp

pytest.importorskip("torchgeo")

from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset
from torchgeo.trainers import ClassificationTask, SemanticSegmentationTask

N, CLASSES, IGNORED = 40, 3, 255
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


class Maps(NonGeoDataset):
    """Scenes of three kinds of land; the border is not to be learnt."""

    def __init__(self, split: str = "train") -> None:
        generator = torch.Generator().manual_seed(int(split == "train"))
        land = torch.randint(0, CLASSES, (N, 4, 4), generator=generator)
        self.masks = land.repeat_interleave(8, 1).repeat_interleave(8, 2)
        self.images = torch.randn(N, 3, 32, 32, generator=generator) + self.masks[:, None]
        self.masks[:, :4] = IGNORED

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"image": self.images[i], "mask": self.masks[i], "number": torch.tensor(i)}


class MapData(SceneData):
    def setup(self, stage: str) -> None:
        self.train_dataset = Maps("train")
        self.val_dataset = self.test_dataset = Maps("val")


def pixels(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    known = batch["mask"] != IGNORED
    return module(batch["image"]).argmax(1)[known], batch["mask"][known]


def segmentation(loss: str) -> harness.Project:
    return harness.Project(
        f"segmentation, {loss}",
        lambda: SemanticSegmentationTask(
            model="unet",
            backbone="resnet18",
            weights=None,
            in_channels=3,
            num_classes=CLASSES,
            loss=loss,
            ignore_index=IGNORED,
            lr=0.003,
        ),
        lambda: {"datamodule": MapData()},
        ids=lambda batch: batch["number"],
        labels=torch.zeros(N, dtype=torch.int64),  # a scene has no class
        predict=pixels,
        val=val,
        prune={"quota": None, "score": lfp.scores.el2n, "keep": "hard"},
        drop_last=True,
    )


PROJECTS = [project("ce"), project("focal"), segmentation("ce")]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)


def test_samples_of_many_classes_need_no_quota() -> None:
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lfp.DataPruning(density=0.5, warmup_epochs=1)],
    )
    with pytest.raises(ValueError, match=r"`quota=None`"):
        trainer.fit(segmentation("ce").model(), datamodule=MapData())
