"""The length of the warm-up and of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_fairprune._lightning.kinds import lightning_class


def resolve_warmup(warmup_epochs: float, trainer: pl.Trainer) -> int:
    """Returns the warm-up in epochs, which must end before training does."""
    max_epochs = trainer.max_epochs
    unlimited = max_epochs is None or max_epochs < 0
    if isinstance(warmup_epochs, float):
        if unlimited:
            raise ValueError(
                f"`warmup_epochs`={warmup_epochs} is a fraction of max_epochs, which is not set: "
                "give Trainer(max_epochs=...) or a whole number of warm-up epochs."
            )
        assert max_epochs is not None
        warmup_epochs = max(1, round(warmup_epochs * max_epochs))
    warmup = int(warmup_epochs)
    if getattr(trainer, "fast_dev_run", False):
        rank_zero_info(
            "DataPruning: a fast_dev_run ends before the warm-up does; nothing is pruned."
        )
    elif not unlimited and warmup >= (max_epochs or 0):
        raise ValueError(
            f"`warmup_epochs` must end before training does, got {warmup} of max_epochs="
            f"{max_epochs}."
        )
    return warmup


def limited(batches: int, trainer: pl.Trainer) -> int:
    """Returns how many batches of an epoch the Trainer runs."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def steps_in(epochs: Iterable[int], batches: int, trainer: pl.Trainer) -> int:
    """Returns the optimiser steps of epochs of so many batches, with automatic optimisation."""
    return sum(math.ceil(batches / _accumulated(trainer, epoch)) for epoch in epochs)


def _accumulated(trainer: pl.Trainer, epoch: int) -> int:
    """Returns how many batches make a step in an epoch."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        # It sets the Trainer's number only when the epoch starts.
        if lightning_class(callback, "GradientAccumulationScheduler") is not None:
            return int(callback.get_accumulate_grad_batches(epoch))
    return trainer.accumulate_grad_batches
