"""Which classes pruning treats better or worse than the model as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.statistics._multiplicity import benjamini_hochberg
from lightning_fairprune.statistics._numbers import accuracies, fractions
from lightning_fairprune.statistics._ttests import independent_test


@dataclass(frozen=True, slots=True, eq=False)
class ClassChange:
    """Per class, how its recall changed relative to the accuracy, float64 [K].

    Args:
        difference: mean of recall - accuracy after minus before; below 0 = relative loss.
        p: two-sided p-value of Welch's test; NaN where it is undefined.
        adjusted: p-values adjusted over the classes (`benjamini_hochberg`).
    """

    difference: Tensor
    p: Tensor
    adjusted: Tensor

    def gained(self, rate: float = 0.05) -> Tensor:
        """Return the classes that gained at this false discovery rate, ascending, int64."""
        return ((self.difference > 0) & (self.adjusted <= rate)).nonzero().flatten()

    def lost(self, rate: float = 0.05) -> Tensor:
        """Return the classes that lost at this false discovery rate, ascending, int64."""
        return ((self.difference < 0) & (self.adjusted <= rate)).nonzero().flatten()


def class_change_test(
    recall_before: Tensor | Sequence[Any],
    recall_after: Tensor | Sequence[Any],
    *,
    accuracy_before: Tensor | Sequence[float] | float | None = None,
    accuracy_after: Tensor | Sequence[float] | float | None = None,
) -> ClassChange:
    """Return which classes pruning treats better or worse than the model as a whole.

    Welch's test per class of `recall - accuracy` over two populations of models: Hooker et al., "What Do
    Compressed Deep Neural Networks Forget?" (arXiv 1911.05248). By default each model's own accuracy is
    subtracted; the published code subtracts the mean over the population and does not correct for the number of
    classes.

    Args:
        recall_before: recalls of the unpruned models, [M, K].
        recall_after: recalls of the pruned models, [M2, K].
        accuracy_before: accuracies of the unpruned models, [M], or one for all; None: the mean recall of each.
        accuracy_after: likewise of the pruned models, [M2].

    Returns:
        Differences and p-values, [K]; undefined for a class with fewer than two models on either side.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        Class 0 leads by .1 before, by about .3 after.

        >>> found = class_change_test([[0.9, 0.7], [0.8, 0.6]], [[0.91, 0.3], [0.9, 0.3]])
        >>> found.difference, found.gained(), found.lost()
        (tensor([ 0.2025, -0.2025], dtype=torch.float64), tensor([0]), tensor([1]))
    """
    before = _relative("before", recall_before, accuracy_before)
    after = _relative("after", recall_after, accuracy_after)
    if before.shape[1] != after.shape[1]:
        raise ValueError(
            "`recall_before` [M, K] and `recall_after` [M2, K] must have the same classes, got "
            f"{list(before.shape)} and {list(after.shape)}."
        )
    tested = independent_test(after.T, before.T)
    difference = after.nanmean(0) - before.nanmean(0)
    return ClassChange(difference, tested.p, benjamini_hochberg(tested.p))


def _relative(
    when: str, recall: Tensor | Sequence[Any], accuracy: Tensor | Sequence[float] | float | None
) -> Tensor:
    """Return recall - accuracy, [M, K]."""
    found = fractions(f"recall_{when}", recall)
    if found.ndim != 2:
        raise ValueError(
            f"`recall_{when}` must be [M, K], a row per model, got {list(found.shape)}."
        )
    return recalls.balance(found, accuracies(f"accuracy_{when}", accuracy, found))
