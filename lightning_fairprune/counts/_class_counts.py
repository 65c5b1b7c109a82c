"""Class counts: true positives and support, from which every per-class result is derived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.counts._answers import Answers


@dataclass(frozen=True, slots=True, eq=False)
class ClassCounts:
    """True positives and support of each class (or group).

    A class without support has recall NaN and is left out of worst, gap, std and mean.

    Args:
        tp: Samples of class k that were predicted as k, int64 [K].
        support: Samples of class k, int64 [K].
        answers: Which samples were right; None if it is not known.

    Raises:
        TypeError: If they are floating.
        ValueError: If the shapes differ or a count is impossible.

    Example:
        >>> counts = ClassCounts(torch.tensor([9, 3, 0]), torch.tensor([10, 5, 0]))
        >>> counts.recall
        tensor([0.9000, 0.6000,    nan], dtype=torch.float64)
        >>> round(counts.worst, 3), round(counts.gap, 3), round(counts.mean, 3)
        (0.6, 0.3, 0.75)
    """

    tp: Tensor
    support: Tensor
    answers: Answers | None = None

    def __post_init__(self) -> None:
        if self.tp.shape != self.support.shape or self.tp.ndim != 1:
            raise ValueError(
                "`tp` and `support` must both be [K], got "
                f"{list(self.tp.shape)} and {list(self.support.shape)}."
            )
        if self.tp.is_floating_point() or self.support.is_floating_point():
            raise TypeError(
                "`tp` and `support` must be whole numbers of samples, got "
                f"{self.tp.dtype} and {self.support.dtype}."
            )
        bad = (self.tp < 0) | (self.tp > self.support)
        if bad.any():
            k = int(bad.nonzero()[0])
            raise ValueError(
                "`tp` must be between 0 and `support`, got "
                f"{int(self.tp[k])} of {int(self.support[k])} for class {k}."
            )
        if self.answers is not None and len(self.answers.right) != int(self.support.sum()):
            raise ValueError(
                f"`answers` must be of all {int(self.support.sum())} samples, got "
                f"{len(self.answers.right)}."
            )

    @classmethod
    def pooled(cls, counts: Sequence[ClassCounts]) -> ClassCounts:
        """Returns the sum of several counts, as if their samples had been one set."""
        if not counts:
            raise ValueError("`counts` must hold at least one ClassCounts, got none.")
        return cls(
            torch.stack([c.tp for c in counts]).sum(0),
            torch.stack([c.support for c in counts]).sum(0),
        )

    def padded(self, num_classes: int) -> ClassCounts:
        """Returns the counts with classes (or groups) without support added up to `num_classes`."""
        missing = self.tp.new_zeros(max(0, num_classes - self.num_classes))
        tp, support = torch.cat([self.tp, missing]), torch.cat([self.support, missing])
        return ClassCounts(tp, support, self.answers)

    def changes(self, reference: ClassCounts) -> tuple[Tensor, Tensor] | None:
        """Returns how many samples of each class `reference` alone had right, and this alone, int64 [K] each.

        None if that is not known: either lacks its answers, or they are of other samples or in another order.

        Example:
            >>> label, support = torch.tensor([0, 0, 1]), torch.tensor([2, 1])
            >>> before = Answers.of(label, torch.tensor([True, False, True]))
            >>> now = Answers.of(label, torch.tensor([False, False, True]))
            >>> ClassCounts(torch.tensor([0, 1]), support, now).changes(
            ...     ClassCounts(torch.tensor([1, 1]), support, before)
            ... )
            (tensor([1, 0]), tensor([0, 0]))
        """
        ours, theirs = self.answers, reference.answers
        if ours is None or theirs is None or ours.digest != theirs.digest:
            return None
        if not torch.equal(self.support, reference.support):
            return None
        return ours.changes(theirs, self.support)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.tp)

    @property
    def recall(self) -> Tensor:
        """Share of each class that was predicted right, float64 [K]; NaN without support."""
        return self.tp.double() / self.support.double()

    def shrunk_recall(self, pseudo: float | Literal["auto"]) -> Tensor:
        r"""Recall pulled towards the mean recall: :math:`(tp_k + a \bar r) / (n_k + a)` with `pseudo` as a.

        So the noisy recall of a class with few validation samples moves its quota less. With ``"auto"`` the counts
        themselves say how far, see :func:`lightning_fairprune.recalls.empirical_bayes`. NaN without support.
        """
        if pseudo == "auto":
            fitted = recalls.empirical_bayes(self.tp, self.support)
            return torch.where(self.support > 0, fitted, torch.nan)
        shrunk = (self.tp + pseudo * self.recall.nanmean()) / (self.support.double() + pseudo)
        return torch.where(self.support > 0, shrunk, torch.nan)

    @property
    def accuracy(self) -> float:
        """Share of all samples that were predicted right."""
        return (self.tp.sum().double() / self.support.sum()).item()

    @property
    def mean(self) -> float:
        """Mean recall over the classes with support (macro average)."""
        return self.recall.nanmean().item()

    @property
    def worst(self) -> float:
        """Lowest recall of a class with support; NaN when no class has any."""
        return self._reduced(recalls.worst)

    @property
    def gap(self) -> float:
        """Highest minus lowest recall."""
        return self._reduced(recalls.gap)

    @property
    def std(self) -> float:
        """Population standard deviation of the recalls."""
        return self._reduced(recalls.std)

    def _reduced(self, function: Callable[[Tensor], Tensor]) -> float:
        return function(self.recall).item() if self.num_classes else float("nan")

    def first_other_support(self, other: ClassCounts) -> int | None:
        """Returns the first class of which `other` saw another number of samples, or None.

        Up to 8 samples, or 1 %, may differ: with several ranks, the last batch repeats some.
        """
        apart = (other.support - self.support).abs()
        beyond = apart > (torch.maximum(other.support, self.support) // 100).clamp(min=8)
        return int(beyond.nonzero()[0]) if beyond.any() else None

    def check_comparable(self, reference: ClassCounts, name: str) -> None:
        """Raises a ValueError unless `reference` was counted on the data called `name` as well."""
        if reference.num_classes != self.num_classes:
            raise ValueError(
                f"the reference of {name!r} must have the {self.num_classes} classes of the model, it "
                f"has {reference.num_classes}: it was counted with another model or other data."
            )
        k = self.first_other_support(reference)
        if k is not None:
            raise ValueError(
                f"the reference of {name!r} must be counted on the same data: it has "
                f"{int(reference.support[k])} samples of class {k}, this evaluation "
                f"{int(self.support[k])}. Evaluate the reference model on this data."
            )
