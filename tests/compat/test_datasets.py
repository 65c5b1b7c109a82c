"""HuggingFace datasets: columns in torch format, dictionaries as batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compat import harness
from compat.parts import TRAIN, Classifier, Data, Pictures
from torch import Tensor
from torch.utils.data import DataLoader

import lightning_fairprune as lfp

datasets = pytest.importorskip("datasets")


def table(train: bool) -> Any:
    pictures = Pictures(train)
    columns = {
        "pixels": pictures.images.flatten(1).tolist(),
        "label": pictures.targets.tolist(),
        "number": list(range(len(pictures))),
    }
    return datasets.Dataset.from_dict(columns).with_format("torch")


class Columns(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(table(True), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(table(False), self.batch_size)

    test_dataloader = val_dataloader


class Net(Classifier):
    def _loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch["pixels"]), batch["label"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch))


PROJECTS = [
    harness.Project(
        "columns",
        Net,
        lambda: {"datamodule": Columns()},
        ids=lambda batch: batch["number"],
        labels=TRAIN,
        predict=lambda module, batch: (module(batch["pixels"]).argmax(1), batch["label"]),
        prune={"score": lfp.scores.el2n, "keep": "easy"},
    )
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)


def test_labels_are_those_of_the_column() -> None:
    assert torch.equal(torch.as_tensor(table(True)["label"][:]), TRAIN)
