"""Hydra: model, data, callbacks and Trainer from `_target_`, as in the Lightning-Hydra template."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
from compat import harness
from compat.parts import TRAIN, ids, predict

import lightning_fairprune as lfp

pytest.importorskip("hydra")

from hydra.utils import instantiate
from omegaconf import OmegaConf

CONFIG = OmegaConf.create(
    """
seed: 1
data: {_target_: compat.parts.Data, batch_size: 8}
model: {_target_: compat.parts.Classifier, lr: 0.05}
callbacks:
  prune:
    _target_: lightning_fairprune.DataPruning
    density: 0.5
    warmup_epochs: 1
    score: {_target_: hydra.utils.get_method, path: lightning_fairprune.scores.el2n}
    quota: {_target_: lightning_fairprune.quotas.Minimax, step: 0.5}
    keep: hard
  track: {_target_: lightning_fairprune.RecallMonitor, class_names: [cat, dog, eel], figures: false}
trainer:
  _target_: lightning.pytorch.Trainer
  accelerator: cpu
  max_epochs: 3
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""
)


def prune() -> Any:
    """What Hydra makes of the arguments of DataPruning, as the harness wants them."""
    given = instantiate(CONFIG.callbacks.prune).settings
    return {name: getattr(given, name) for name in ("score", "quota", "keep")}


PROJECTS = [
    harness.Project(
        "instantiate",
        lambda: instantiate(CONFIG.model),
        lambda: {"datamodule": instantiate(CONFIG.data)},
        ids,
        TRAIN,
        predict,
        prune=prune(),
        monitor={"class_names": instantiate(CONFIG.callbacks.track).settings.class_names},
    )
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)


def test_template() -> None:
    """The whole of it, as the template's train.py."""
    pl.seed_everything(CONFIG.seed, verbose=False)
    callbacks = [instantiate(one) for one in CONFIG.callbacks.values()]
    trainer = instantiate(CONFIG.trainer, callbacks=callbacks)
    trainer.fit(instantiate(CONFIG.model), datamodule=instantiate(CONFIG.data))
    assert isinstance(callbacks[0], lfp.DataPruning)
    assert len(callbacks[0].selection.indices) == len(TRAIN) // 2
    assert {"val/recall/class/cat", "val/recall/worst"} <= trainer.callback_metrics.keys()
