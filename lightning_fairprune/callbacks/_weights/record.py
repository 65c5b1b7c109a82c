"""What WeightPruning tells people: settings, logged values, a line for each pruning."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from lightning_fairprune import masks
from lightning_fairprune.callbacks._run_folder import run_folder
from lightning_fairprune.records.sparsity_record import PruneStep, SparsityRecord


def step_of(epoch: int, step: int, target: float, found: Mapping[str, Tensor]) -> PruneStep:
    """Returns the record of a pruning that led to these masks."""
    sparsity = masks.sparsity_of(found)
    return PruneStep(epoch, step, target, sparsity.total, sparsity.layers)


def values(last: PruneStep | None) -> dict[str, float]:
    """Returns what is logged of the sparsity in force."""
    names = ("sparsity/total", "sparsity/layer/min", "sparsity/layer/max")
    if last is None:
        return dict.fromkeys(names, 0.0)
    layers = last.layers.values()
    return dict(zip(names, (last.total, min(layers), max(layers)), strict=True))


@rank_zero_only
def announce(trainer: pl.Trainer, last: PruneStep, total: int) -> None:
    """Sends a pruning to the loggers and prints a line."""
    layers = {f"sparsity/layer/{name}": value for name, value in last.layers.items()}
    for logger in trainer.loggers:
        logger.log_metrics(values(last) | layers, step=trainer.global_step)
    sparsest = max(last.layers, key=lambda name: last.layers[name])
    rank_zero_info(
        f"WeightPruning: after {last.step} steps {round(last.total * total):,} of {total:,} weights are "
        f"removed ({last.total:.2%}); the sparsest layer is `{sparsest}` ({last.layers[sparsest]:.2%})."
    )


@rank_zero_only
def save(trainer: pl.Trainer, record: SparsityRecord) -> None:
    """Leaves the record in the folder of the logger, for `fairprune report`."""
    folder = run_folder(trainer)
    if folder is not None and record.steps:
        record.save(folder)
