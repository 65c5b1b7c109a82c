"""The models of the table: trained on all the data, on a subset, or pruning as they go; then tested."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune import quotas
from lightning_fairprune._files import RUN_FOLDER
from lightning_fairprune._loading.labels import labels_of
from lightning_fairprune._loading.rebuild import sampled_dataset
from lightning_fairprune._loading.wrapper import FairPruneDataModule
from lightning_fairprune.callbacks import DataPruning, RecallMonitor
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._length import final_length, one_fit_length
from lightning_fairprune.experiments._parts import Method
from lightning_fairprune.experiments._query import Known
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._train import (
    END,
    RUN,
    Meter,
    Training,
    keep_weights,
    loaded,
    monitor,
    recalls,
    trainer,
)
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.settings import name_of
from lightning_fairprune.selection import Selection
from lightning_fairprune.selection.decision import Decision

__all__ = ["run_baseline", "run_final", "run_one_fit", "tested"]


def run_baseline(cell: Cell, experiment: Experiment, folder: Path, seed: int) -> dict[str, Any]:
    """Trains and tests a model on all the data; returns what `result.json` says."""
    data, model = experiment.data(), experiment.model()
    training = loaded(data)
    weighting = experiment.baselines[cell.name].weighting
    length = _final_length(experiment, training, training.total, 1.0)
    counted, meter = monitor(experiment, data), Meter()
    callbacks: list[pl.Callback] = [meter, counted]
    options: dict[str, Any] = {"limit_val_batches": 0}
    if weighting is not None:
        callbacks.append(weighting())
        options = {}
    fit = trainer(
        experiment, folder, callbacks, max_epochs=length.epochs, max_steps=length.steps, **options
    )
    fit.fit(model, datamodule=data)
    if experiment.weights and cell.name == experiment.dense:
        keep_weights(model, folder / END)
    found = tested(experiment, fit, model, data, counted, meter)
    labels = labels_of(sampled_dataset(data.train_dataloader()))
    if labels is not None and experiment.group_by is None:
        found["kept"] = torch.bincount(labels, minlength=len(found["classes"])).tolist()
    return found


def run_final(
    cell: Cell, experiment: Experiment, folder: Path, seed: int, known: Known
) -> dict[str, Any]:
    """Chooses a subset, trains a model on it from scratch and tests that.

    Args:
        cell: method, density and seed.
        experiment: whose.
        folder: gets the selection among the records of its logger.
        seed: of the choice and of the order of samples.
        known: what the query models say.

    Returns:
        What `result.json` says.
    """
    start = time.perf_counter()
    record = _choose(cell, experiment, known, seed)
    seconds = time.perf_counter() - start + known.seconds
    users, model = experiment.data(), experiment.model()
    training = loaded(users)
    selection = record.selection
    length = _final_length(experiment, training, len(selection), cell.density)
    data = FairPruneDataModule(users, selection, seed=seed)
    counted, meter = monitor(experiment, users), Meter()
    fit = trainer(
        experiment,
        folder,
        [meter, counted],
        max_epochs=length.epochs,
        max_steps=length.steps,
        limit_val_batches=0,
    )
    fit.fit(model, datamodule=data)
    record.save(folder / RUN / RUN_FOLDER)
    return tested(experiment, fit, model, data, counted, meter) | {
        "kept": _kept(selection),
        "select_seconds": round(seconds, 3),
        "query_seconds": round(known.query_seconds, 3),
    }


def _choose(cell: Cell, experiment: Experiment, known: Known, seed: int) -> PruningRecord:
    method = experiment.methods[cell.name]
    decision = Decision(cell.density, method.quota, method.keep, seed)
    if method.quota is quotas.of_subset:
        decision = Decision(cell.density, _quota_of(method, cell, known, seed), "random", seed)
    decision.learn(
        known.target, None if decision.keep == "random" else known.score, len(known.recall)
    )
    decision.estimate(0, known.recall if decision.needs_recall else None)
    settings = {
        "density": cell.density,
        "score": name_of(method.score),
        "score_on": f"{method.score_on} of a query model, {method.at}" if method.score else None,
        "quota": name_of(method.quota),
        "keep": method.keep,
        "seed": seed,
    }
    return PruningRecord(
        decision.draw(), known.target, known.score, tuple(decision.history), settings
    )


def _quota_of(method: Method, cell: Cell, known: Known, seed: int) -> Callable[..., Tensor]:
    """Returns the quota function of the subset that a method chooses without quotas."""
    alone = Decision(cell.density, None, method.keep, seed + 1)  # its chance is its own
    alone.learn(known.target, known.score)
    indices = alone.draw().indices

    def of_subset(sizes: Tensor, budget: int) -> Tensor:
        return quotas.of_subset(known.target, indices, len(sizes))

    return of_subset


def run_one_fit(cell: Cell, experiment: Experiment, folder: Path, seed: int) -> dict[str, Any]:
    """Trains a model that prunes its data on the way, and tests it; returns what `result.json` says."""
    data, model = experiment.data(), experiment.model()
    training = loaded(data)
    setting = experiment.one_fit[cell.name]
    kept = max(1, round(cell.density * training.total))
    length = one_fit_length(
        experiment.final,
        setting.warmup,
        kept,
        training.total,
        cell.density,
        training.batch_size,
        drop_last=training.drop_last,
    )
    more: dict[str, Any] = {"seed": seed}
    if experiment.group_by is not None:
        more["group_by"] = experiment.group_by
    prune: DataPruning = setting.prune(cell.density, length.warmup, **more)
    counted, meter = monitor(experiment, data), Meter()
    fit = trainer(
        experiment,
        folder,
        [meter, prune, counted],
        max_epochs=length.epochs,
        max_steps=length.steps,
    )
    fit.fit(model, datamodule=data)
    assert prune.selection is not None
    return tested(experiment, fit, model, data, counted, meter) | {"kept": _kept(prune.selection)}


def _final_length(experiment: Experiment, training: Training, kept: int, density: float) -> Any:
    return final_length(
        experiment.final,
        kept,
        training.total,
        density,
        training.batch_size,
        drop_last=training.drop_last,
    )


def _kept(selection: Selection) -> list[int]:
    found: list[int] = selection.quota.tolist()
    return found


def tested(
    experiment: Experiment,
    fit: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    counted: RecallMonitor,
    meter: Meter,
) -> dict[str, Any]:
    """Tests a model that has been trained, and returns what `result.json` says of any."""
    fit.test(model, datamodule=data, verbose=False)
    counts = recalls(counted, experiment, "test")
    recall: Tensor = counts.recall
    names = counted.group_names if experiment.group_by is not None else counted.class_names
    return {
        "average": counts.mean,
        "worst": counts.worst,
        "gap": counts.gap,
        "std": counts.std,
        "recall": [None if value != value else value for value in recall.tolist()],
        "classes": list(names or map(str, range(counts.num_classes))),
        "samples_seen": meter.samples,
        "steps": fit.global_step,
        "training_seconds": round(meter.seconds, 3),
    }
