"""torchvision: MixUp of whole batches in `collate_fn`, tv_tensors, and the sigmoid focal loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compat import harness
from compat.parts import CLASSES, TRAIN, Classifier, Data, Pictures, predict
from compat.parts import ids as ids_of
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

pytest.importorskip("torchvision")

from torchvision import tv_tensors
from torchvision.ops import sigmoid_focal_loss
from torchvision.transforms import v2


class Tagged(Pictures):
    """tv_tensors through transforms of v2."""

    def __init__(self, train: bool = True) -> None:
        super().__init__(train)
        self.transform = v2.Compose([v2.ToDtype(torch.float32), v2.Normalize([0.0], [1.0])])

    def __getitem__(self, i: int) -> Any:
        return self.transform(tv_tensors.Image(self.images[i])), int(self.targets[i])


def tagged(batch: list[Any]) -> tuple[Tensor, Tensor]:
    """Keeps the type, as collate functions for detection do."""
    return tv_tensors.Image(torch.stack([x for x, _ in batch])), torch.tensor([y for _, y in batch])


class TaggedData(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(Tagged(), self.batch_size, shuffle=True, collate_fn=tagged)

    def val_dataloader(self) -> Any:
        return DataLoader(Tagged(train=False), self.batch_size, collate_fn=tagged)

    test_dataloader = val_dataloader


class KeepsType(Classifier):
    """A network whose output is a tv_tensor, too."""

    def forward(self, x: Tensor) -> Tensor:
        with tv_tensors.set_return_type("TVTensor"):
            return super().forward(x)


class Numbered(Pictures):
    def __getitem__(self, i: int) -> Any:
        return *super().__getitem__(i), i


class MixedData(Data):
    """As in torchvision's documentation: the batch is mixed where it is collated."""

    def train_dataloader(self) -> Any:
        mixup = v2.MixUp(num_classes=CLASSES, alpha=0.4)

        def collate(batch: list[Any]) -> Any:
            x, y, number = default_collate(batch)
            # One seed a batch, because the Trainer does not resume the random state.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(number[0]))
                return *mixup(x, y), number

        return DataLoader(Numbered(), self.batch_size, shuffle=True, collate_fn=collate)


class Mixed(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, _ = batch
        return F.cross_entropy(self(x), y)


class Focal(Classifier):
    def _loss(self, batch: Any) -> Tensor:
        x, y = batch
        return sigmoid_focal_loss(self(x), F.one_hot(y, CLASSES).float(), reduction="mean")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch))


def project(name: str, model: Any, data: Any, ids: Any = ids_of) -> harness.Project:
    return harness.Project(name, model, lambda: {"datamodule": data()}, ids, TRAIN, predict)


PROJECTS = [
    project("tv_tensors", Classifier, TaggedData),
    project("tv_tensors through the network", KeepsType, TaggedData),
    project("MixUp in collate_fn", Mixed, MixedData, lambda batch: batch[2]),
    project("sigmoid_focal_loss", Focal, Data),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)
