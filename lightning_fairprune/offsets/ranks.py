"""Offsets of samples that several ranks share."""

from __future__ import annotations

from torch import Tensor

from lightning_fairprune.offsets._cross import predicted
from lightning_fairprune.offsets._samples import Reduce
from lightning_fairprune.offsets._search import chosen, followed, samples_of


def fitted_on_ranks(
    logits: Tensor,
    target: Tensor,
    max_average_loss: float,
    groups: Tensor | None,
    reduce: Reduce,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """Returns the offsets of `fit` for the samples of all ranks, [K], and the predictions of `cross_fitted` for its own.

    All ranks must call this, each with its own samples; a rank may have none.
    """
    found = followed(*samples_of(logits, target, None, groups, reduce, num_groups))
    pred = predicted(
        logits, target, max_average_loss, None, groups, reduce=reduce, num_groups=num_groups
    )
    return chosen(found, max_average_loss), pred
