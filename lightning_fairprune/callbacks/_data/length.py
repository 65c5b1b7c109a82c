"""The length of the warm-up and of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_fairprune._lightning.kinds import lightning_class
from lightning_fairprune._loading.position import progress


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


def training_is_over(trainer: pl.Trainer, epochs_done: int) -> bool:
    """Whether the Trainer will run no further step, as far as can be known now."""
    max_epochs, max_steps = trainer.max_epochs, trainer.max_steps
    if 0 <= max_steps <= trainer.global_step:
        return True
    # A stop that is requested before these minima stays requested, and the Trainer trains on.
    least = epochs_done >= (trainer.min_epochs or 0)
    if trainer.should_stop and least and trainer.global_step >= (trainer.min_steps or 0):
        return True
    return max_epochs is not None and 0 <= max_epochs <= epochs_done


def is_cut(trainer: pl.Trainer, epoch: int) -> bool:
    """Whether training ends inside this epoch, as with `max_time`, although the Trainer ends the epoch."""
    return progress(trainer) < trainer.num_training_batches and training_is_over(trainer, epoch + 1)
