"""What the trainings of all cells have in common: Trainer, loaders, meters."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.data import DataLoader

from lightning_fairprune._files import write_whole
from lightning_fairprune._loading.rebuild import check_restrictable, sampled_dataset
from lightning_fairprune.callbacks import RecallMonitor
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.experiments._length import Training
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.records.recall_history import GROUPS

# The folder of the logger inside that of a cell, and the weights at the end of a training.
RUN, END = "run", "end.pt"


def loaded(data: pl.LightningDataModule) -> Training:
    """Sets a data module up and returns what its training loader is like."""
    data.prepare_data()
    data.setup("fit")
    loader: DataLoader[Any] = data.train_dataloader()
    check_restrictable(loader)
    total = len(sampled_dataset(loader))  # type: ignore[arg-type]
    batches: Any = loader if loader.batch_size is not None else loader.batch_sampler
    return Training(total, int(batches.batch_size), bool(batches.drop_last))


def monitor(experiment: Experiment, data: Any) -> RecallMonitor:
    """Returns the callback that counts and leaves the counts for the report."""
    grouped = experiment.group_by is not None
    return RecallMonitor(
        class_names=getattr(data, "class_names", None),
        group_by=experiment.group_by,
        group_names=getattr(data, "group_names", None) if grouped else None,
        figures=False,
    )


def recalls(counted: RecallMonitor, experiment: Experiment, stage: str) -> ClassCounts:
    """Returns the last counts of a stage, of groups where the experiment is about groups."""
    return counted.counts[stage + GROUPS if experiment.group_by is not None else stage]


def keep_weights(module: pl.LightningModule, path: Path) -> None:
    """Writes the weights of a module, whole or not at all."""
    state = {name: value.cpu() for name, value in module.state_dict().items()}
    write_whole(path, partial(torch.save, state))


def trainer(
    experiment: Experiment, folder: Path, callbacks: list[pl.Callback], **options: Any
) -> pl.Trainer:
    """Returns a Trainer that keeps its records in the folder of a cell and is silent otherwise."""
    defaults: dict[str, Any] = {
        **vars(experiment.trainer),
        "logger": CSVLogger(folder, name="", version=RUN),
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=callbacks, **(defaults | options))


class Meter(pl.Callback):
    """Counts the training samples and times the fit."""

    def __init__(self) -> None:
        self.samples, self.seconds, self._start = 0, 0.0, 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        self.samples += extract_batch_size(batch)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._start
