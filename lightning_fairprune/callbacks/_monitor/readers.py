"""What reads the values of a monitor during a fit: early stopping, checkpoints, schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import lightning.pytorch as pl

from lightning_fairprune._lightning.kinds import lightning_class

_OURS = re.compile(r"val(/[^/]+)*/recall/")


def check_readers(trainer: pl.Trainer, every_n_epochs: int) -> None:
    """Raises if something reads a recall after an epoch in which the monitor logs none.

    The Trainer raises there after the first epoch, or hands out the value of an earlier epoch as if it were new.
    """
    for who, monitor, every in _readers(trainer):
        if every % every_n_epochs == 0 or not _OURS.match(monitor):
            continue
        often = "every epoch" if every == 1 else f"every {every} epochs"
        raise ValueError(
            f"{who} reads {monitor!r} {often}, but RecallMonitor(every_n_epochs={every_n_epochs}) logs it every "
            f"{every_n_epochs} epochs only: use every_n_epochs={math.gcd(every, every_n_epochs)}, or monitor another value."
        )


def _readers(trainer: pl.Trainer) -> Iterator[tuple[str, str, int]]:
    """Yields who reads which value after how many epochs each."""
    validated = trainer.check_val_every_n_epoch or 1
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str):
            continue
        if lightning_class(callback, "EarlyStopping") is not None:
            yield "EarlyStopping", monitor, validated
        elif lightning_class(callback, "ModelCheckpoint") is not None and callback.every_n_epochs:
            yield "ModelCheckpoint", monitor, math.lcm(validated, callback.every_n_epochs)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor is not None:
            epochs = config.frequency if config.interval == "epoch" else validated
            yield "ReduceLROnPlateau", config.monitor, epochs
