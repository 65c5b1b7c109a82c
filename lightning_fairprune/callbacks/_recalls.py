"""Validation recalls that quotas are made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_fairprune.callbacks._observe import max_over_ranks, sum_over_ranks
from lightning_fairprune.counts import ClassCounts, Tally


class RecallWindow:
    """Counts predictions in validation and pools the counts of the last few.

    Args:
        length: validations to pool.
        shrinkage: pseudo-samples at the mean recall added to every class.
        grouped: whether groups are counted in place of classes.
    """

    def __init__(self, length: int, shrinkage: float, *, grouped: bool) -> None:
        self.length, self.shrinkage, self.grouped = length, shrinkage, grouped
        self._tally = Tally()
        self._counts: list[ClassCounts] = []

    def __len__(self) -> int:
        return len(self._counts)

    def begin(self) -> None:
        """Before a validation."""
        self._tally = Tally()

    def update(self, logits: Tensor, target: Tensor, group: Tensor | None) -> None:
        """One batch of it."""
        self._tally.update(logits, target, group)

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
