"""What must hold before weights can be pruned, said before any work is done where that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_fairprune._lightning.kinds import shards_weights
from lightning_fairprune.callbacks._arguments import function, number
from lightning_fairprune.callbacks._weights.masks import averages
from lightning_fairprune.callbacks._weights.plan import Plan, steps_per_epoch
from lightning_fairprune.callbacks.data_pruning import DataPruning
from lightning_fairprune.callbacks.recall_monitor import RecallMonitor

if TYPE_CHECKING:
    from lightning_fairprune.callbacks.weight_pruning import WeightPruning

__all__ = ["arguments", "plain", "plan", "reference", "sizes", "strategy"]


def plain(value: Any) -> Any:
    """Returns a number of numpy as one of Python: neither checkpoints nor records can hold others."""
    return value.item() if hasattr(value, "item") else value


def arguments(
    criterion: object, scope: object, *, floor: int, num_batches: int, rewind: object
) -> None:
    """Checks the arguments of WeightPruning that are not about time."""
    function("criterion", criterion, "criteria.magnitude")
    function("scope", scope, "masks.globally")
    number("floor", floor, whole=True)
    number("num_batches", num_batches, whole=True)
    if floor < 0:
        raise ValueError(f"`floor` must be 0 or more weights a layer, got {floor}.")
    if num_batches < 1:
        raise ValueError(f"`num_batches` must be at least 1, got {num_batches}.")
    epochs = isinstance(rewind, int) and not isinstance(rewind, bool) and rewind >= 0
    if rewind not in (None, "start") and not epochs:
        raise ValueError(f"`rewind` must be None, 'start' or 0 or more epochs, got {rewind!r}.")


def strategy(trainer: pl.Trainer) -> None:
    """Checks that every process has whole weights."""
    if shards_weights(trainer.strategy):
        raise ValueError(
            "WeightPruning ranks whole weights, which no process has with "
            f"{type(trainer.strategy).__name__}: use DDP or one device."
        )


def sizes(callback: WeightPruning, sizes: dict[str, int]) -> None:
    """Checks that the last target leaves what `floor` keeps."""
    total, sparsity = sum(sizes.values()), callback.sparsity
    least = sum(min(callback.floor, size) for size in sizes.values())
    remaining = total - round(sparsity * total)
    if remaining < least:
        raise ValueError(
            f"`floor`={callback.floor} keeps {least} weights in {len(sizes)} layers, but `sparsity`="
            f"{sparsity} leaves {remaining} of {total}: lower one of them."
        )


def plan(callback: WeightPruning, trainer: pl.Trainer, plan: Plan) -> None:
    """Checks what the plan must leave room for."""
    steps, interval = steps_per_epoch(trainer), callback.interval
    per_epoch = 1 if interval == "epoch" else steps
    first, last = plan.at[0], plan.at[-1]
    if callback.rewind is not None and callback.rewind_epoch * per_epoch >= max(first, 1):
        raise ValueError(
            f"`rewind` must lie before the first pruning, got epoch {callback.rewind_epoch} and a first "
            f"pruning after {first} {interval}s."
        )
    if callback.rewind is not None and any(True for _ in averages(trainer)):
        raise ValueError(
            "`rewind` puts the weights back, but not the average of them that another callback keeps: "
            "leave out either."
        )
    shrinks = any(isinstance(c, DataPruning) for c in trainer.callbacks)  # type: ignore[attr-defined]
    if interval == "epoch" and not shrinks and 0 <= trainer.max_steps <= last * steps:
        raise ValueError(
            "the last pruning must leave at least one step of training after it, but it comes after "
            f"{last} epochs of {steps} steps with max_steps={trainer.max_steps}: lower `end`, or train "
            "for longer."
        )
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        restarts = isinstance(other, DataPruning) and other.after == "restart"
        if restarts and first <= other.warmup * per_epoch:
            raise ValueError(
                f"DataPruning(after='restart') puts all weights back after its {other.warmup} epochs of "
                "warm-up, so weights must be pruned later: raise `start`."
            )


def reference(trainer: pl.Trainer) -> None:
    """Warns, at the first pruning, a monitor that has no validation of the dense model."""
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        waits = isinstance(other, RecallMonitor) and other.reference == "before_pruning"
        if waits and not other.history.evaluations:
            rank_zero_warn(
                "RecallMonitor(reference='before_pruning') has nothing to compare with, because weights "
                "are pruned before the first validation: raise `start`, or use reference='fit_start'."
            )
