"""What WeightPruning tells people: settings, logged values, a line for each pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from lightning_fairprune import masks
from lightning_fairprune.callbacks._run_folder import run_folder
from lightning_fairprune.callbacks._settings import name_of
from lightning_fairprune.sparsity import PruneStep, SparsityRecord

if TYPE_CHECKING:
    from lightning_fairprune.callbacks.weight_pruning import WeightPruning

__all__ = ["announce", "save", "settings_of", "step_of", "values"]


def settings_of(callback: WeightPruning) -> dict[str, Any]:
    """Returns what the fit was asked for."""
    return {
        "criterion": name_of(callback.criterion),
        "criterion_options": [f"{k}={v!r}" for k, v in callback.criterion_options.items()],
        "sparsity": callback.sparsity,
        "schedule": name_of(callback.schedule),
        "start": callback.start,
        "end": callback.end,
        "every": callback.every,
        "interval": callback.interval,
        "scope": name_of(callback.scope),
        "include": callback.include,
        "exclude": callback.exclude,
        "keep_classifier": callback.keep_classifier,
        "floor": callback.floor,
        "num_batches": callback.num_batches,
        "group_by": name_of(callback.group_by),
        "rewind": callback.rewind,
        "seed": callback.seed,
    }


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
