"""The length of a training whose epochs get shorter."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_fairprune.callbacks._data.length import steps_in
from lightning_fairprune.callbacks._data.run import PruningRun
from lightning_fairprune.callbacks._together import pruning_run


def planned_stepping_batches(trainer: pl.Trainer) -> int:
    """Returns the optimiser steps of a fit whose training data is pruned.

    ``W ceil(B / a) + (E - W) ceil(b / a)`` for E epochs, W of them warm-up, with B batches in a full
    epoch, b in a pruned one and a accumulated batches (a GradientAccumulationScheduler may change a between
    epochs); at most ``max_steps``. Use it in
    ``configure_optimizers`` in place of ``trainer.estimated_stepping_batches``, which assumes full
    epochs. With ``after="restart"`` each phase has a schedule of its own: ``configure_optimizers`` is called
    again for the final model, and the result is ``W ceil(B / a)`` the first time, ``(E - W) ceil(b / a)`` the
    second. Without a DataPruning callback it is ``estimated_stepping_batches``.

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
    if run.settings.after == "restart" and trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()  # without a limit of epochs nothing has asked for it
    run.steps_are_planned = True
    if run.settings.after == "continue":
        return steps_of_fit(run)
    warm_up, final = _steps_of_phases(run)
    return final if run.restarted else warm_up


def steps_of_fit(run: PruningRun) -> int:
    """Returns the optimiser steps of the whole fit."""
    trainer = run.trainer
    if _unlimited(trainer):
        return _max_steps(run)
    return sum(_steps_of_phases(run))


def _steps_of_phases(run: PruningRun) -> tuple[int, int]:
    """Returns the optimiser steps of the warm-up and those after it."""
    trainer, source = run.trainer, run.source
    full = run.batches(source.num_samples)
    short = run.batches(run.decision.budget(source.num_samples))
    warm_up = steps_in(range(run.first_epoch, run.swap_epoch), full, trainer)
    if _unlimited(trainer):
        return warm_up, _max_steps(run) - warm_up
    assert trainer.max_epochs is not None
    final = steps_in(range(run.swap_epoch, trainer.max_epochs), short, trainer)
    if trainer.max_steps > 0:
        final = min(final, _max_steps(run) - warm_up)
    return warm_up, final


def _unlimited(trainer: pl.Trainer) -> bool:
    return trainer.max_epochs is None or trainer.max_epochs < 0


def _max_steps(run: PruningRun) -> int:
    """Returns how many steps the limit leaves; a Trainer that has trained before counts those as well."""
    trainer = run.trainer
    if trainer.max_steps < 0:
        raise ValueError(
            "the length of training must be known to plan its steps: set Trainer(max_epochs=...) "
            "or Trainer(max_steps=...)."
        )
    return trainer.max_steps - run.first_step
