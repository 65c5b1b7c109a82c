"""Which validations a resumed fit has skipped or cut short, so that their recalls are not those of an epoch."""

from __future__ import annotations

from collections import Counter

import lightning.pytorch as pl

__all__ = ["WholeValidation"]


class WholeValidation:
    """Tells whether a validation went over all its batches, and whether one is missing.

    A checkpoint that was taken after the last batch of an epoch and before the end of its validation (on
    an exception or a signal, or after every step) does not know how far the validation had come. The Trainer
    that resumes it runs what it takes for the rest of the validation, or nothing of it.
    """

    def __init__(self) -> None:
        self.step = -1
        """Global step of the last whole validation."""
        self._batches: Counter[int] = Counter()
        self._resumed_in = -1
        self._is_first = False

    def resumed(self, epoch: int) -> None:
        """At the start of a fit that was resumed in `epoch`."""
        self._resumed_in, self._is_first = epoch, True

    def begin(self) -> None:
        """Before a validation."""
        self._batches.clear()

    def count(self, dataloader_idx: int) -> None:
        """After each of its batches."""
        self._batches[dataloader_idx] += 1

    def ends(self, trainer: pl.Trainer, dataloader_idx: int | None = None) -> bool:
        """After a validation: whether it was whole; only the first of a resumed fit may not be.

        Args:
            trainer: knows how many batches there are.
            dataloader_idx: the loader that matters; None for all.
        """
        is_cut = self._is_first and any(
            self._batches[i] < batches < float("inf")
            for i, batches in enumerate(trainer.num_val_batches)
            if dataloader_idx in (None, i)
        )
        self._is_first = False
        if not is_cut:
            self.step = trainer.global_step
        return not is_cut

    def lacks(self, trainer: pl.Trainer, epoch: int) -> bool:
        """After the last batch of an epoch: whether resuming in or after it has lost its validation."""
        if epoch > self._resumed_in or self.step == trainer.global_step:
            return False
        every, batches = trainer.check_val_every_n_epoch, trainer.num_training_batches
        if every is None:
            batches = trainer.fit_loop.total_batch_idx + 1
        elif (epoch + 1) % every:
            return False
        # None: by the clock; infinite: at the end of a loader without a length.
        interval = trainer.val_check_batch
        if not trainer.enable_validation or interval is None:
            return False
        return interval == float("inf") or batches % interval == 0
