"""pytorch_metric_learning: ArcFace, whose classifier is inside the loss, and a miner beside cross-entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from compat import harness
from compat.parts import CLASSES, TRAIN, Classifier, Data, ids, predict
from torch import Tensor, nn

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import losses, miners


class ArcFace(Classifier):
    """The network gives embeddings; `get_logits` of the loss gives the cosines that classes are read from."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.criterion = losses.ArcFaceLoss(CLASSES, embedding_size=16)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.criterion(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.criterion(self(x), y))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", self.criterion(self(x), y))


def logits_of(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch
    return module.criterion.get_logits(module(x)), y


def cosines(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    logits, y = logits_of(module, batch)
    return logits.argmax(1), y


class Mined(Classifier):
    """Triplets first, then cross-entropy: the loss that is computed first is not the one of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.miner, self.triplet = miners.MultiSimilarityMiner(), losses.TripletMarginLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        features = self.net[:3](x)
        metric = self.triplet(features, y, self.miner(features, y))
        return metric + F.cross_entropy(self.net[3:](features), y)


class Contrasted(Classifier):
    """NTXent, itself a cross-entropy over pairs, first."""

    def __init__(self) -> None:
        super().__init__()
        self.contrast = losses.NTXentLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        features = self.net[:3](x)
        return self.contrast(features, y) + F.cross_entropy(self.net[3:](features), y)


def project(name: str, model: Any, predicted: Any = predict, **options: Any) -> harness.Project:
    return harness.Project(
        name, model, lambda: {"datamodule": Data()}, ids, TRAIN, predicted, **options
    )


PROJECTS = [
    project("ArcFaceLoss", ArcFace, cosines),
    # Once for all callbacks.
    project("ArcFaceLoss, named", ArcFace, cosines, prune={"logits_fn": logits_of}),
    project("miner and triplets", Mined),
    project("NTXentLoss", Contrasted),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)
