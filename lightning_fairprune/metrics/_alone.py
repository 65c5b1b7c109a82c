"""Metrics of one model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.metrics._base import CountMetric


class ClassRecall(CountMetric):
    """The recall of each class, in [0, 1], NaN without support, [K].

    Args:
        num_classes: Number of classes C.
        **kwargs: `ignore_index`, the label of samples to leave out; `top_k`, how many of the highest
            predictions may hold the label; `num_attributes` A, to count the K = C A groups
            `label * A + attribute` in place of classes; `class_names`, K names for plots; and those of
            :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> metric = ClassRecall(num_classes=3)
        >>> metric.update(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        >>> metric.compute()
        tensor([0.6667, 1.0000,    nan])
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    per_class = True

    def _derive(self, counts: ClassCounts) -> Tensor:
        return counts.recall


class WorstClassRecall(CountMetric):
    """The lowest recall of a class with support, in [0, 1]: :func:`~lightning_fairprune.recalls.worst`.

    Arguments and errors are those of :class:`ClassRecall`.

    Example:
        >>> import torch
        >>> metric = WorstClassRecall(num_classes=2)
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        tensor(0.6667)
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.worst(counts.recall)


class WorstKRecall(CountMetric):
    """The mean of the `k` lowest recalls, in [0, 1]: :func:`~lightning_fairprune.recalls.worst_k`.

    `k` is in [1, K]. Arguments and errors are those of :class:`ClassRecall`.

    Example:
        >>> import torch
        >>> metric = WorstKRecall(num_classes=3, k=2)
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 0]))
        tensor(0.5000)
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(self, num_classes: int, k: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        if not 1 <= k <= self._counting.size:
            raise ValueError(
                f"`k` must be between 1 and the {self._counting.size} classes (or groups), got {k}."
            )
        self.k = k

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.worst_k(counts.recall, self.k)


class RecallCVaR(CountMetric):
    """The mean recall of the lowest fraction of the classes, in [0, 1]: :func:`~lightning_fairprune.recalls.cvar`.

    `level` is the fraction of the classes with support, in (0, 1]. Arguments and errors are those of :class:`ClassRecall`.

    Example:
        Half of three classes are the lowest, with recall 0, and half of the next, with recall 1.

        >>> import torch
        >>> metric = RecallCVaR(num_classes=3, level=0.5)
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 0]))
        tensor(0.3333)
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(self, num_classes: int, level: float, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        if not 0 < level <= 1:
            raise ValueError(f"`level` must be in (0, 1], got {level}.")
        self.level = level

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.cvar(counts.recall, self.level)


class RecallGap(CountMetric):
    """The highest minus the lowest recall, in [0, 1]: :func:`~lightning_fairprune.recalls.gap`.

    Arguments and errors are those of :class:`ClassRecall`.

    Example:
        >>> import torch
        >>> metric = RecallGap(num_classes=2)
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        tensor(0.3333)
    """

    higher_is_better = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.gap(counts.recall)


class RecallStd(CountMetric):
    """The standard deviation of the recalls over classes: :func:`~lightning_fairprune.recalls.std`.

    `correction` is 0 for the deviation of these classes (population), 1 for the estimate from a sample of classes, NaN of
    only one. Arguments and errors are those of :class:`ClassRecall`.

    Example:
        >>> import torch
        >>> metric = RecallStd(num_classes=2)
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        tensor(0.1667)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, num_classes: int, *, correction: int = 0, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        if correction not in (0, 1):
            raise ValueError(
                f"`correction` must be 0 (population) or 1 (sample), got {correction}."
            )
        self.correction = correction

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.std(counts.recall, correction=self.correction)


class ZeroRecallClasses(CountMetric):
    """The number of classes that are never predicted right: :func:`~lightning_fairprune.recalls.zero_recall`.

    Int64, in [0, K]; classes without support do not count. Arguments and errors are those of :class:`ClassRecall`.

    Example:
        >>> import torch
        >>> metric = ZeroRecallClasses(num_classes=3)
        >>> metric(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0]))
        tensor(1)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.zero_recall(counts.recall)


class RecallBalance(CountMetric):
    """The recall of each class minus the accuracy, [K]: :func:`~lightning_fairprune.recalls.balance`.

    At least -1; NaN without support. The accuracy is the share of all samples, as in Good et al. (arXiv 2206.02976), not
    the mean recall. `normalised` divides by it: :func:`~lightning_fairprune.recalls.normalised_balance`.
    Arguments and errors are those of :class:`ClassRecall`.

    Example:
        The accuracy is 3/4.

        >>> import torch
        >>> metric = RecallBalance(num_classes=2)
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        tensor([-0.0833,  0.2500])
    """

    per_class = True
    plot_lower_bound = -1.0

    def __init__(self, num_classes: int, *, normalised: bool = False, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.normalised = normalised

    def _derive(self, counts: ClassCounts) -> Tensor:
        balance = recalls.normalised_balance if self.normalised else recalls.balance
        return balance(counts.recall, counts.accuracy)
