"""The length of the warm-up and of an epoch."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info


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
