"""Validation recalls that quotas are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_fairprune._observe.ranks import max_over_ranks, sum_over_ranks
from lightning_fairprune.counts import ClassCounts, Tally

__all__ = ["WholeValidation"]


class RecallWindow:
    """Counts predictions in validation and pools the counts of the last few.

    Args:
        length: validations to pool.
        shrinkage: pseudo-samples at the mean recall added to every class.
        grouped: whether groups are counted in place of classes.
    """

    def __init__(self, length: int, shrinkage: float, *, grouped: bool) -> None:
        self.length, self.shrinkage, self.grouped = length, shrinkage, grouped
        self._tally = Tally(self.grouped)
        self._counts: list[ClassCounts] = []

    def __len__(self) -> int:
        return len(self._counts)

    def begin(self) -> None:
        """Before a validation."""
        self._tally = Tally(self.grouped)

    def update(self, logits: Tensor, target: Tensor, group: Tensor | None) -> None:
        """One batch of it."""
        self._tally.update(logits, target, *([] if group is None else [group]))

    def finish(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """After it; all ranks must call this."""
        counts = self._tally.compute(
            grouped=self.grouped,
            reduce_sum=sum_over_ranks(trainer),
            reduce_max=max_over_ranks(trainer),
            device=module.device,
        )
        self._counts = [*self._counts, counts][-self.length :]

    def recall(self) -> Tensor:
        """Returns the pooled recalls, float64 [K]; NaN for a class without a sample."""
        most = max(counts.num_classes for counts in self._counts)
        # An earlier validation may not have met a group.
        pooled = ClassCounts.pooled([counts.padded(most) for counts in self._counts])
        return pooled.shrunk_recall(self.shrinkage)

    def state_dict(self) -> dict[str, Any]:
        """Returns CPU tensors."""
        return {"counts": [(counts.tp, counts.support) for counts in self._counts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self._counts = [ClassCounts(tp, support) for tp, support in state["counts"]]


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
