"""Validation by a CombinedLoader."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


def loaders_of(trainer: pl.Trainer) -> list[Any]:
    """Returns the validation loaders of a fit, as the Trainer runs them; none before it has set them up."""
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    return [] if loop._combined_loader is None else list(loop._combined_loader.flattened)


def loaded(trainer: pl.Trainer) -> list[Any]:
    """Returns the validation loaders of a fit; a resumed one may not have set them up yet."""
    if not loaders_of(trainer):
        # As the Trainer does at the start of a fit.
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    return loaders_of(trainer)


def one_loader_a_batch(trainer: pl.Trainer) -> None:
    """Raises if an evaluation mixes batches of several loaders, whose classes could not be told apart."""
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    if trainer.state.fn != "fit":
        loop = trainer.test_loop if trainer.testing else trainer.validate_loop
    combined = loop._combined_loader
    if combined is None or combined._mode == "sequential" or len(combined.flattened) == 1:
        return
    raise ValueError(
        f"a CombinedLoader of mode {combined._mode!r} gives the {'test' if trainer.testing else 'validation'} step one "
        f"batch of each of its {len(combined.flattened)} loaders at once, so that the recalls of each cannot be "
        "counted: use mode='sequential', or return the loaders in a list or dictionary."
    )
