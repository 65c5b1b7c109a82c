"""Counting predictions batch after batch, sixteen batches at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_fairprune.counts._class_counts import ClassCounts, count

__all__ = ["Tally"]
_MOST_BATCHES, _MOST_LOGITS = 16, 1 << 22  # that wait to be looked at


class Tally:
    """Collects the predictions of one evaluation and counts them once at its end.

    Batches are put by and looked at together: on a small batch the dozen tensor functions that it takes
    cost their fixed price, not their arithmetic. Nothing is copied to the host before `compute`.
    """

    def __init__(self) -> None:
        self.num_classes = 0
        self._labels: list[Tensor] = []
        self._outcomes: list[Tensor] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._waiting_logits = 0

    def __len__(self) -> int:
        return sum(len(labels) for labels in self._labels)

    def update(self, logits: Tensor, target: Tensor, group: Tensor | None = None) -> None:
        """Adds one batch.

        Args:
            logits: [B, C].
            target: int64 [B].
            group: what to count by instead of the class, int64 [B].
        """
        if self._waiting and logits.shape[1:] != self._waiting[0][0].shape[1:]:
            self._look()
        self.num_classes = max(self.num_classes, logits.shape[1])
        # Copies: a compiled step may use the same memory again for the next batch.
        target = target.clone()
        self._waiting.append((logits.clone(), target))
        self._labels.append(target if group is None else group)
        self._waiting_logits += logits.numel()
        if len(self._waiting) >= _MOST_BATCHES or self._waiting_logits >= _MOST_LOGITS:
            self._look()

    def _look(self) -> None:
        if not self._waiting:
            return
        logits, target = (torch.cat(column) for column in zip(*self._waiting, strict=True))
        self._waiting, self._waiting_logits = [], 0
        right = logits.argmax(dim=1) == target
        finite = logits.isfinite().all(dim=1)
        self._outcomes.append(right.to(torch.int8) + 2 * (~finite).to(torch.int8))

    def compute(
        self,
        *,
        grouped: bool = False,
        reduce_sum: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        reduce_max: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        device: torch.device | str = "cpu",
    ) -> ClassCounts:
        """Returns the counts over all ranks, on the host.

        Args:
            grouped: whether labels are groups, whose number is one more than the largest.
            reduce_sum: sums a tensor over the ranks.
            reduce_max: takes the maximum over the ranks.
            device: where to count when this rank saw nothing.

        Raises:
            ValueError: If a logit was not finite or a label not in [0, K).
        """
        self._look()
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        labels = torch.cat([nothing, *self._labels])
        outcomes = torch.cat([nothing.to(torch.int8), *self._outcomes])
        largest = labels.max() if grouped and len(labels) else labels.new_tensor(-1)
        size = labels.new_tensor(self.num_classes) if not grouped else largest + 1
        num_classes = int(reduce_max(size))
        tp, support = count(outcomes == 1, labels, num_classes)
        outside = ((labels < 0) | (labels >= num_classes)).sum()
        broken = (outcomes >= 2).sum()
        total = reduce_sum(torch.cat([tp, support, outside[None], broken[None]])).cpu()
        if total[-1]:
            raise ValueError(
                f"the logits of {int(total[-1])} validation samples are not finite: the training "
                "has diverged; lower the learning rate."
            )
        if total[-2]:
            raise ValueError(
                f"{int(total[-2])} validation samples have a {'group' if grouped else 'label'} outside "
                f"[0, {num_classes}): number them from 0"
                f"{'' if grouped else ', as the logits are'}."
            )
        return ClassCounts(total[:num_classes], total[num_classes : 2 * num_classes])
