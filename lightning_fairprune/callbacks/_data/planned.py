"""How long training will be when its epochs get shorter on the way."""

from __future__ import annotations

import math

import lightning.pytorch as pl

from lightning_fairprune.callbacks._data.length import limited
from lightning_fairprune.callbacks.data_pruning import DataPruning

__all__ = ["planned_stepping_batches"]


def planned_stepping_batches(trainer: pl.Trainer) -> int:
    """Returns the optimiser steps of a fit whose training data is pruned on the way.

    ``W ceil(B / a) + (E - W) ceil(b / a)`` for E epochs, W of them warm-up, with B batches in a full
    epoch, b in a pruned one and a accumulated batches; at most ``max_steps``. Use it in
    ``configure_optimizers`` where ``trainer.estimated_stepping_batches`` stood, which multiplies the
    full epoch. With ``after="restart"`` the schedule begins anew with the final model, so the steps
    are those after the warm-up. Without a DataPruning callback both are the same.

    Args:
        trainer: with the :class:`~lightning_fairprune.DataPruning` callback among its callbacks.

    Returns:
        Steps, at least 1.

    Raises:
        ValueError: If neither ``max_epochs`` nor ``max_steps`` limits training.
    """
    estimated = trainer.estimated_stepping_batches  # loads the training data where needed
    pruning = [c for c in trainer.callbacks if isinstance(c, DataPruning)]  # type: ignore[attr-defined]
    if not pruning:
        return int(estimated)
    callback = pruning[0]
    callback.stepping_batches_planned = True
    epochs, max_steps = trainer.max_epochs, trainer.max_steps
    if epochs is None or epochs < 0:
        if max_steps < 0:
            raise ValueError(
                "the length of training must be known to plan its steps: set Trainer(max_epochs=...) "
                "or Trainer(max_steps=...)."
            )
        return max_steps
    source, accumulated = callback.source, trainer.accumulate_grad_batches
    full = limited(source.num_batches(source.num_samples), trainer)
    short = limited(source.num_batches(callback.decision.budget(source.num_samples)), trainer)
    warmup_steps = callback.warmup * math.ceil(full / accumulated)
    steps = (epochs - callback.warmup) * math.ceil(short / accumulated)
    if callback.after == "continue":
        steps += warmup_steps
    elif max_steps > 0:
        max_steps -= warmup_steps
    return min(steps, max_steps) if max_steps > 0 else steps
