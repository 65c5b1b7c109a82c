"""lightly, on `pytorch_lightning`: its linear evaluation, SimSiam beside an online classifier, its kNN benchmark."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from compat import harness
from compat.parts import CLASSES, TRAIN, Pictures, ids, train_loader, val_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_fairprune as lfp

pytest.importorskip("lightly")
pytorch_lightning = pytest.importorskip("pytorch_lightning")

from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.utils.benchmarking import BenchmarkModule, LinearClassifier, OnlineLinearClassifier


class Data(pytorch_lightning.LightningDataModule):
    def train_dataloader(self) -> Any:
        return train_loader()

    def val_dataloader(self) -> Any:
        return val_loader()

    test_dataloader = val_dataloader


def backbone() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())


class Linear(LinearClassifier):
    """lightly's own, without its schedule, whose length is that of unpruned epochs."""

    def __init__(self) -> None:
        super().__init__(
            backbone(),
            batch_size_per_device=8,
            lr=1.0,
            feature_dim=16,
            num_classes=CLASSES,
            topk=(1,),
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.get_trainable_parameters(), self.get_effective_lr())

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, _ = self.shared_step(batch, batch_idx)
        self.log("test_loss", loss)
        return loss


class SimSiam(pytorch_lightning.LightningModule):
    """As lightly's benchmarks: the loss of the views first, then that of the classifier beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection = SimSiamProjectionHead(16, 16, 8)
        self.prediction = SimSiamPredictionHead(8, 4, 8)
        self.criterion = NegativeCosineSimilarity()
        self.online = OnlineLinearClassifier(feature_dim=16, num_classes=CLASSES, topk=(1,))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        features = self.backbone(x)
        views = [
            self.projection(f) for f in (features, self.backbone(x + 0.1 * torch.randn_like(x)))
        ]
        one, two = (self.prediction(view) for view in views)
        loss = self.criterion(one, views[1].detach()) + self.criterion(two, views[0].detach())
        online_loss, found = self.online.training_step((features.detach(), y), batch_idx)
        self.log_dict(found, batch_size=len(y))
        return loss / 2 + online_loss

    def _evaluate(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss, found = self.online.validation_step((self.backbone(x), y), batch_idx)
        self.log_dict(found, batch_size=len(y))
        return loss

    validation_step = test_step = _evaluate

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.2)


class MoCo(SimSiam):
    """NTXent with a memory bank is a cross-entropy of its own, over a batch of the same size, whose classes are others.

    Args:
        first: whether it is computed before the loss of the classes.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.contrast = NTXentLoss(memory_bank_size=(32, 8))
        self.first = first

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        features = self.backbone(x)
        near = self.backbone(x + 0.1 * torch.randn_like(x))
        loss = torch.zeros(())
        if self.first:
            loss = self.contrast(self.projection(features), self.projection(near))
        online_loss, found = self.online.training_step((features.detach(), y), batch_idx)
        if not self.first:
            loss = self.contrast(self.projection(features), self.projection(near))
        self.log_dict(found, batch_size=len(y))
        return loss + online_loss

    # The bank is no part of lightly's state dictionary.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        bank = self.contrast.memory_bank
        checkpoint["bank"] = {name: value.clone() for name, value in bank.named_buffers()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint["bank"].items():
            setattr(self.contrast.memory_bank, name, value)


def linear(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return module(batch[0]).argmax(1), batch[1]


def online(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return module.online(module.backbone(batch[0])).argmax(1), batch[1]


def project(name: str, model: Any, predict: Any) -> harness.Project:
    return harness.Project(
        name,
        model,
        lambda: {"datamodule": Data()},
        ids,
        TRAIN,
        predict,
        package="pytorch_lightning",
    )


PROJECTS = [
    project("LinearClassifier", Linear, linear),
    project("SimSiam with OnlineLinearClassifier", SimSiam, online),
    project("MoCo after OnlineLinearClassifier", partial(MoCo, False), online),
    project("MoCo before OnlineLinearClassifier", partial(MoCo, True), online),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)


# ----------------------------------------------------------------------------------- the kNN benchmark


class Named(Pictures):
    """lightly's data: picture, class, file name."""

    def __getitem__(self, i: int) -> Any:
        return *super().__getitem__(i), f"{i}.png"


class Benchmark(BenchmarkModule):
    """Validated by the neighbours alone: the loss and the network know no classes."""

    def __init__(self) -> None:
        bank = DataLoader(Named(), batch_size=8)
        super().__init__(bank, CLASSES, knn_k=5)
        self.backbone = backbone()
        self.projection = SimSiamProjectionHead(16, 16, 8)
        self.prediction = SimSiamPredictionHead(8, 4, 8)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _, _ = batch
        view = self.projection(self.backbone(x))
        return self.criterion(self.prediction(view), view.detach())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("callback", ["RecallMonitor", "DataPruning"])
def test_what_knows_no_classes_is_refused(callback: str) -> None:
    options = {"RecallMonitor": {}, "DataPruning": {"density": 0.5, "warmup_epochs": 1}}[callback]
    trainer = pytorch_lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[getattr(lfp, callback)(**options)],
    )
    with pytest.raises(ValueError, match=r"logits_fn"):
        trainer.fit(Benchmark(), datamodule=NamedData())


class NamedData(pytorch_lightning.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Named(), batch_size=8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Named(train=False), batch_size=8)
