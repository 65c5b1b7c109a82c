"""Models whose weights are pruned: from the dense model of their seed, trained on, then tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune import statistics
from lightning_fairprune.experiments._cells import Cell, needs
from lightning_fairprune.experiments._model import train_and_test
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._store import Store, read_result
from lightning_fairprune.experiments._train import END, loaded


def run_weights(
    cell: Cell, experiment: Experiment, folder: Path, seed: int, dense: Path
) -> dict[str, Any]:
    """Prunes the weights of the model in the folder `dense`, trains the others on and tests.

    Returns what `result.json` says, with the intensification ratio against the dense model.
    """
    data, model = experiment.data(), experiment.model()
    loaded(data)
    model.load_state_dict(torch.load(dense / END, weights_only=True))
    prune = experiment.weights[cell.name].at(cell.sparsity, seed)
    finetune = experiment.finetune
    # Slower first: a pruning that rewinds puts back the learning rates that it finds.
    callbacks = [Slower(finetune.lr_factor), prune]
    limits: Any = {"max_epochs": finetune.epochs, "limit_val_batches": 0}
    found = train_and_test(experiment, folder, model, data, data, callbacks, **limits)
    before = read_result(dense)["recall"]
    alpha = float(statistics.intensification_ratio(_numbers(before), _numbers(found["recall"])))
    return found | {"alpha": alpha if math.isfinite(alpha) else None}


def _numbers(recall: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if r is None else r for r in recall], dtype=torch.float64)


class Slower(pl.Callback):
    """Multiplies the learning rates of a module's own optimisers and schedules."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                for name in ("lr", "initial_lr", "max_lr", "min_lr"):  # those of OneCycleLR too
                    if name in group:
                        group[name] = group[name] * self.factor
        for config in trainer.lr_scheduler_configs:
            self._schedule(config.scheduler)

    def _schedule(self, scheduler: Any) -> None:
        for name in ("base_lrs", "min_lrs", "max_lrs"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, [rate * self.factor for rate in getattr(scheduler, name)])
        if hasattr(scheduler, "eta_min"):
            scheduler.eta_min *= self.factor
        for inner in getattr(scheduler, "_schedulers", ()):  # SequentialLR and ChainedScheduler
            self._schedule(inner)


def check_dense(store: Store, cells: Sequence[Cell], experiment: Experiment) -> None:
    """Refuses to continue from dense models that were trained before there were `weights`.

    Raises:
        ValueError: If the weights of one are needed and were not kept.
    """
    for cell in cells:
        if cell.kind != "weights" or store.result(cell) is not None:
            continue
        (dense,) = needs(cell, experiment)
        folder = store.folder(dense)
        if store.result(dense) is not None and not (folder / END).exists():
            raise ValueError(
                f"`weights` start from the weights of {dense.label}, which was trained without saving "
                f"them: remove {str(folder)!r} to train it again."
            )
