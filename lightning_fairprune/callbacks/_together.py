"""What the callbacks of a Trainer ask of each other."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_fairprune.callbacks._data.run import PruningRun
from lightning_fairprune.callbacks.data_pruning import DataPruning
from lightning_fairprune.callbacks.recall_monitor import RecallMonitor


def pruning_run(trainer: pl.Trainer) -> PruningRun | None:
    """Returns the run of the DataPruning callback, if there is one."""
    found = [c for c in trainer.callbacks if isinstance(c, DataPruning)]  # type: ignore[attr-defined]
    return found[0].run if found else None


def check_reference(trainer: pl.Trainer) -> None:
    """Warns at the first pruning if a monitor has not validated the dense model it compares with."""
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        waits = isinstance(other, RecallMonitor) and other.settings.reference == "before_pruning"
        if waits and not other.history.evaluations:
            rank_zero_warn(
                "RecallMonitor(reference='before_pruning') has nothing to compare with, because weights "
                "are pruned before the first validation: raise `start`, or use reference='fit_start'."
            )
