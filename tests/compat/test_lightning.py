"""Lightning's own shapes: a datamodule, loaders to fit, loaders in the module, torchmetrics, LightningCLI."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torchmetrics
from compat import harness
from compat.parts import (
    CLASSES,
    TRAIN,
    Classifier,
    Data,
    N,
    ids,
    predict,
    train_loader,
    val_loader,
)
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

import lightning_fairprune as lfp


class Metered(Classifier):
    """With a MetricCollection of torchmetrics and nn.CrossEntropyLoss, as in many templates."""

    def __init__(self) -> None:
        super().__init__()
        metrics = torchmetrics.MetricCollection(
            {
                "acc": torchmetrics.classification.MulticlassAccuracy(CLASSES),
                "f1": torchmetrics.classification.MulticlassF1Score(CLASSES),
            }
        )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.train_metrics = metrics.clone("train/")
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")

    def _step(self, batch: Any, metrics: Any) -> Tensor:
        x, y = batch
        logits = self(x)
        metrics(logits.softmax(1), y)
        self.log_dict(metrics, on_step=False, on_epoch=True)
        return self.criterion(logits, y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, self.train_metrics)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, self.test_metrics)


class Silent(Metered):
    """Validates without a loss: its predictions are in a metric only."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.val_metrics.update(self(x).argmax(1), y)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end


class WithLoaders(Classifier):
    """The module brings the loaders."""

    def train_dataloader(self) -> Any:
        return train_loader()

    def val_dataloader(self) -> Any:
        return val_loader()

    def test_dataloader(self) -> Any:
        return val_loader()


def project(name: str, model: Any, data: Any, **options: Any) -> harness.Project:
    return harness.Project(name, model, data, ids, TRAIN, predict, **options)


def loaders() -> dict[str, Any]:
    return {"train_dataloaders": train_loader(), "val_dataloaders": val_loader()}


PROJECTS = [
    project("datamodule", Classifier, lambda: {"datamodule": Data()}),
    project("loaders to fit", Classifier, loaders),
    project("loaders in the module", WithLoaders, dict),
    project("MetricCollection", Metered, lambda: {"datamodule": Data()}),
    project("metric without loss", Silent, lambda: {"datamodule": Data()}),
    project(
        "hard samples",
        Metered,
        lambda: {"datamodule": Data()},
        prune={"score": lfp.scores.el2n, "keep": "hard"},
    ),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:jsonargparse")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.pytorch.cli")
def test_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two lines are lines of the YAML."""
    config = tmp_path / "config.yaml"
    config.write_text(f"""
seed_everything: 1
trainer:
  accelerator: cpu
  max_epochs: 3
  default_root_dir: {tmp_path}
  enable_progress_bar: false
  enable_model_summary: false
  logger: false
  callbacks:
    - class_path: lightning_fairprune.DataPruning
      init_args: {{density: 0.5, warmup_epochs: 1}}
    - class_path: lightning_fairprune.RecallMonitor
model: {{lr: 0.05}}
data: {{batch_size: 8}}
""")
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", str(config)])
    cli = LightningCLI(Classifier, Data, save_config_callback=None)
    prune = next(c for c in cli.trainer.callbacks if isinstance(c, lfp.DataPruning))
    assert prune.selection is not None
    assert len(prune.selection.indices) == N // 2
    assert "val/recall/worst" in cli.trainer.callback_metrics
