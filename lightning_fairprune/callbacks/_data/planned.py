"""The length of a training whose epochs get shorter."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_fairprune.callbacks._data.length import limited, steps_in
from lightning_fairprune.callbacks._data.run import PruningRun
from lightning_fairprune.callbacks._together import pruning_run


def planned_stepping_batches(trainer: pl.Trainer) -> int:
    """Returns the optimiser steps of a fit whose training data is pruned.

    ``W ceil(B / a) + (E - W) ceil(b / a)`` for E epochs, W of them warm-up, with B batches in a full
    epoch, b in a pruned one and a accumulated batches (a GradientAccumulationScheduler may change a between
    epochs); at most ``max_steps``. Use it in
    ``configure_optimizers`` in place of ``trainer.estimated_stepping_batches``, which assumes full
    epochs. With ``after="restart"`` the schedule restarts with the final model, so only the steps
    after the warm-up count. Without a DataPruning callback both are the same.

    Args:
        trainer: with the :class:`~lightning_fairprune.DataPruning` callback among its callbacks.

    Returns:
        Steps, at least 1.

    Raises:
        ValueError: If neither ``max_epochs`` nor ``max_steps`` limits training.
    """
    estimated = trainer.estimated_stepping_batches  # loads the training data where needed
    run = pruning_run(trainer)
    if run is None:
        return int(estimated)
    run.steps_are_planned = True
    return planned_steps(run)


def planned_steps(run: PruningRun) -> int:
    """Returns the optimiser steps of a schedule in this fit."""
    trainer, source = run.trainer, run.source
    epochs, max_steps = trainer.max_epochs, trainer.max_steps
    if epochs is None or epochs < 0:
        if max_steps < 0:
            raise ValueError(
                "the length of training must be known to plan its steps: set Trainer(max_epochs=...) "
                "or Trainer(max_steps=...)."
            )
        return max_steps
    full, short = (
        limited(source.num_batches(size), trainer)
        for size in (source.num_samples, run.decision.budget(source.num_samples))
    )
    warmup_steps = steps_in(range(run.warmup), full, trainer)
    steps = steps_in(range(run.warmup, epochs), short, trainer)
    if run.settings.after == "continue":
        steps += warmup_steps
    elif max_steps > 0:
        max_steps -= warmup_steps
    return min(steps, max_steps) if max_steps > 0 else steps
