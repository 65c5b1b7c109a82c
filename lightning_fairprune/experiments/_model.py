"""The models of the table: trained on all the data, on a subset, or pruning as they go; then tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from lightning_fairprune.callbacks import DataPruning
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._length import final_length, one_fit_length
from lightning_fairprune.experiments._parts import Method
from lightning_fairprune.experiments._query import Known
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._train import (
    END,
    RUN,
    Meter,
    keep_weights,
    loaded,
    monitor,
    recalls,
    trainer,
)
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.settings import name_of
from lightning_fairprune.selection.candidates import order_in_words
from lightning_fairprune.selection.decision import Decision


def run_baseline(cell: Cell, experiment: Experiment, folder: Path, seed: int) -> dict[str, Any]:
    """Trains and tests a model on all the data; returns what `result.json` says."""
    data, model = experiment.data(), experiment.model()
    training = loaded(data)
    weighting = experiment.baselines[cell.name].weighting
    length = final_length(experiment.final, training.total, 1.0, training)
    options: Any = {"limit_val_batches": 0} if weighting is None else {"last": [weighting()]}
    options |= {"max_epochs": length.epochs, "max_steps": length.steps}
    found = train_and_test(experiment, folder, model, data, data, **options)
    if experiment.weights and cell.name == experiment.dense:
        keep_weights(model, folder / END)
    labels = labels_of(sampled_dataset(data.train_dataloader()))
    if labels is not None and experiment.group_by is None:
        found["kept"] = torch.bincount(labels, minlength=len(found["classes"])).tolist()
    return found


def run_final(
    cell: Cell, experiment: Experiment, folder: Path, seed: int, known: Known
) -> dict[str, Any]:
    """Chooses a subset by what the query models say, trains a model on it from scratch and tests that.

    Leaves the selection among the records of the logger, and returns what `result.json` says.
    """
    start = time.perf_counter()
    record = _choose(cell, experiment, known, seed)
    seconds = time.perf_counter() - start + known.seconds
    users, model = experiment.data(), experiment.model()
    training = loaded(users)
    selection = record.selection
    length = final_length(experiment.final, len(selection), cell.density, training)
    data = FairPruneDataModule(users, selection, seed=seed)
    limits: Any = {"max_epochs": length.epochs, "max_steps": length.steps, "limit_val_batches": 0}
    found = train_and_test(experiment, folder, model, data, users, **limits)
    record.save(folder / RUN / RUN_FOLDER)
    return found | {
        "kept": selection.quota.tolist(),
        "select_seconds": round(seconds, 3),
        "query_seconds": round(known.query_seconds, 3),
    }


def _choose(cell: Cell, experiment: Experiment, known: Known, seed: int) -> PruningRecord:
    method = experiment.methods[cell.name]
    limits: Any = {"cutoff": method.cutoff, "pool": method.pool}
    decision = Decision(cell.density, method.quota, method.keep, seed, **limits)
    if method.quota is quotas.of_subset:
        decision = Decision(cell.density, _quota_of(method, cell, known, seed), "random", seed)
    decision.learn(known.target, known.score, len(known.recall))
    decision.estimate(0, known.recall if decision.needs_recall else None)
    settings = {
        "density": cell.density,
        "score": name_of(method.score),
        "score_on": f"{method.score_on} of a query model, {method.at}" if method.score else None,
        "quota": name_of(method.quota),
        "keep": order_in_words(method.keep, **limits),
        "seed": seed,
    }
    drawn, history = decision.draw(), tuple(decision.history)
    return PruningRecord(drawn, known.target, known.score, history, settings)


def _quota_of(method: Method, cell: Cell, known: Known, seed: int) -> Callable[..., Tensor]:
    """Returns the quota function of the subset that a method chooses without quotas."""
    limits: Any = {"cutoff": method.cutoff, "pool": method.pool}
    # Its chance is its own.
    alone = Decision(cell.density, None, method.keep, seed + 1, **limits)
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
    length = one_fit_length(experiment.final, setting.warmup, kept, cell.density, training)
    more: dict[str, Any] = {"seed": seed}
    if experiment.group_by is not None:
        more["group_by"] = experiment.group_by
    prune: DataPruning = setting.prune(cell.density, length.warmup, **more)
    limits: Any = {"max_epochs": length.epochs, "max_steps": length.steps}
    found = train_and_test(experiment, folder, model, data, data, [prune], **limits)
    assert prune.selection is not None
    return found | {"kept": prune.selection.quota.tolist()}


def train_and_test(
    experiment: Experiment,
    folder: Path,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    users: pl.LightningDataModule,
    callbacks: Sequence[pl.Callback] = (),
    last: Sequence[pl.Callback] = (),
    **options: Any,
) -> dict[str, Any]:
    """Trains a model, tests it, and returns what `result.json` says of any.

    `callbacks` come before the monitor and `last` after it; `users` knows the names of the classes.
    """
    counted, meter = monitor(experiment, users), Meter()
    fit = trainer(experiment, folder, [meter, *callbacks, counted, *last], **options)
    fit.fit(model, datamodule=data)
    steps = fit.global_step
    fit.test(model, datamodule=data, verbose=False)
    counts = recalls(counted, experiment, "test")
    names = (
        counted.settings.group_names
        if experiment.group_by is not None
        else counted.settings.class_names
    )
    return {
        "average": counts.mean,
        "worst": counts.worst,
        "gap": counts.gap,
        "std": counts.std,
        "recall": [None if value != value else value for value in counts.recall.tolist()],
        "classes": list(names or map(str, range(counts.num_classes))),
        "samples_seen": meter.samples,
        "steps": steps,
        "training_seconds": round(meter.seconds, 3),
    }
