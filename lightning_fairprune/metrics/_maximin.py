"""The metric that needs the logits of all samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_fairprune import offsets, recalls
from lightning_fairprune.counts import Counting


class MaximinRecall(Metric):
    """The recall that the worst class would have with one number for each class added to the logits, in [0, 1].

    Each sample is predicted under offsets that were fitted on other samples: :func:`~lightning_fairprune.offsets.cross_fitted`. So
    it is an honest estimate of what :func:`~lightning_fairprune.offsets.fit` gives with no more training, and not a
    bound: it may be below the worst recall as it is where there is nothing to gain. The difference to
    :class:`WorstClassRecall` is a matter of the threshold, what is missing beyond it one of representation.

    All logits are kept, as for the area under a curve: N x C numbers.

    Args:
        num_classes: Number of classes C.
        max_average_loss: How much of the average recall the worst class may cost, in [0, 1].
        ignore_index: The label of samples to leave out.
        **kwargs: Those of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an argument is out of range; in `compute`, if there were fewer than five samples.

    Example:
        Class 1 is predicted too seldom.

        >>> from lightning_fairprune.metrics import WorstClassRecall
        >>> metric = MaximinRecall(num_classes=2)
        >>> target = torch.arange(20) % 2
        >>> logits = torch.stack([torch.ones(20), 0.5 * target], 1)
        >>> WorstClassRecall(num_classes=2)(logits, target), metric(logits, target)
        (tensor(0.), tensor(1.))
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    logits: list[Tensor]
    target: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        *,
        max_average_loss: float = 0.01,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._counting = Counting(num_classes)
        if not 0 <= max_average_loss <= 1:
            raise ValueError(f"`max_average_loss` must be in [0, 1], got {max_average_loss}.")
        self.max_average_loss, self.ignore_index = max_average_loss, ignore_index
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds one batch.

        Args:
            preds: Logits, floating point [B, C] or [B, C, ...].
            target: Class ids in [0, C) or `ignore_index`, [B] or [B, ...].

        Raises:
            TypeError: If a tensor has the wrong dtype.
            ValueError: If shapes do not fit.
        """
        self._counting.check(preds, target)
        if not preds.is_floating_point():
            raise TypeError(f"`preds` must be logits, got {preds.dtype}.")
        self.logits.append(preds.detach().movedim(1, -1).reshape(-1, preds.shape[1]))
        self.target.append(target.reshape(-1).long())

    def compute(self) -> Tensor:
        """Returns the value over all batches and ranks.

        Raises:
            ValueError: If a label was out of range, a highest logit not finite, or there were fewer than five samples.
        """
        logits, target = dim_zero_cat(self.logits), dim_zero_cat(self.target)
        if self.ignore_index is not None:
            known = target != self.ignore_index
            logits, target = logits[known], target[known]
        pred = offsets.cross_fitted(logits, target, max_average_loss=self.max_average_loss)
        counts = self._counting.count(pred, target)
        return recalls.worst(counts.recall).to(self.device, torch.get_default_dtype())
