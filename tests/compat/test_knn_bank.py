"""The shape of self-supervised projects: a bank of features of the training data for a kNN classifier.

lightly's and solo-learn's benchmark modules go through a training loader at the start of a validation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from compat import harness
from compat.parts import CLASSES, TRAIN, Classifier, Data, ids
from torch import Tensor


class Bank(Classifier):
    """Trained with a linear head; validated by the nearest features of the bank, too.

    Args:
        asks: where the bank comes from: ``"datamodule"`` or ``"trainer"``.
    """

    def __init__(self, asks: str) -> None:
        super().__init__()
        self.asks = asks
        self.bank: list[Tensor] = []
        self.seen: list[int] = []

    def _train_batches(self) -> Any:
        if self.asks == "datamodule":
            return self.trainer.datamodule.train_dataloader()
        return self.trainer.train_dataloader

    def on_validation_epoch_start(self) -> None:
        self.bank = []
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        features, targets = [], []
        for x, y in self._train_batches():
            features.append(F.normalize(self.net[:3](x), dim=1))
            targets.append(y)
        self.bank = [torch.cat(features), torch.cat(targets)]
        self.seen.append(len(self.bank[1]))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        if self.bank:
            features, targets = self.bank
            near = (F.normalize(self.net[:3](x), dim=1) @ features.T).topk(3).indices
            votes = F.one_hot(targets[near], CLASSES).sum(1)
            self.log("knn_acc", (votes.argmax(1) == y).float().mean())


def predict(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch
    return module(x).argmax(1), y


def project(asks: str) -> harness.Project:
    return harness.Project(
        asks, lambda: Bank(asks), lambda: {"datamodule": Data()}, ids, TRAIN, predict
    )


PROJECTS = [project("datamodule"), project("trainer")]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)


def test_bank_is_of_the_users_own_batches(tmp_path: Any) -> None:
    """What a hook gets from its own datamodule are all samples, as without the callback."""
    run = harness.Runs(PROJECTS[0], tmp_path).pruned
    assert isinstance(run.module, Bank)
    assert run.module.seen == [len(TRAIN)] * harness.EPOCHS
