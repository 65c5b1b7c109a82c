"""Metrics of a model next to a reference model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.metrics._base import CountMetric
from lightning_fairprune.metrics._reference import Reference


class ComparedMetric(CountMetric):
    """Compares with a reference."""

    def __init__(self, num_classes: int, reference: ClassCounts | Tensor, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self._reference = Reference(reference, self._counting.size)


class RecallDistortion(ComparedMetric):
    """The recall of each class minus that of the reference: :func:`~lightning_fairprune.recalls.change`.

    In [-1, 1], [K]; NaN for a class without support here or in the reference.

    Args:
        num_classes: Number of classes C.
        reference: Counts of the reference model, or its recalls [K] in [0, 1], NaN without support.
        **kwargs: As for :class:`ClassRecall`.

    Raises:
        TypeError: If `reference` is neither counts nor floating point recalls.
        ValueError: If an argument is out of range or `reference` is for other classes.

    Example:
        >>> import torch
        >>> metric = RecallDistortion(num_classes=2, reference=torch.tensor([1.0, 0.5]))
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        tensor([-0.3333,  0.5000])
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = -1.0, 1.0
    per_class = True

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.change(counts.recall, self._reference.recall)


class RecallRetention(ComparedMetric):
    """The recall of each class as a fraction of the reference's: :func:`~lightning_fairprune.recalls.retention`.

    At least 0, [K]; NaN without support here or in the reference, and where the reference is 0.
    Arguments and errors are those of :class:`RecallDistortion`.

    Example:
        >>> import torch
        >>> metric = RecallRetention(num_classes=2, reference=torch.tensor([1.0, 0.5]))
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        tensor([0.6667, 2.0000])
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    per_class = True

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.retention(counts.recall, self._reference.recall)


class AdjustedMetric(CountMetric):
    """Compares recalls and accuracies with those of a reference.

    Both accuracies are over the classes with support here and in the reference. The accuracy of this
    model is the share of samples, and so is that of the reference if it is given as counts.
    """

    def __init__(
        self,
        num_classes: int,
        reference: ClassCounts | Tensor,
        *,
        reference_accuracy: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self._reference = Reference(reference, self._counting.size, reference_accuracy)


class AdjustedRecallChange(AdjustedMetric):
    """How much more each recall changed than the accuracy: :func:`~lightning_fairprune.recalls.adjusted_change`.

    In [-2, 2], [K]; NaN for a class without support here or in the reference. `reference_accuracy` is the accuracy of the
    reference model if `reference` are recalls; None takes their mean.
    Arguments and errors are those of :class:`RecallDistortion`.

    Example:
        The accuracy stayed at 3/4.

        >>> import torch
        >>> metric = AdjustedRecallChange(num_classes=2, reference=torch.tensor([1.0, 0.5]))
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        tensor([-0.3333,  0.5000])
    """

    plot_lower_bound, plot_upper_bound = -2.0, 2.0
    per_class = True

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.adjusted_change(*self._reference.compare(counts))


class MaxDisparity(AdjustedMetric):
    """How much more the class that lost most lost than the model: :func:`~lightning_fairprune.recalls.disparity`.

    NaN if no class has support here and in the reference. Arguments and errors are those of :class:`AdjustedRecallChange`.

    Example:
        The accuracy stayed at 3/4, the first recall fell by a third.

        >>> import torch
        >>> metric = MaxDisparity(num_classes=2, reference=torch.tensor([1.0, 0.5]))
        >>> metric(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
        tensor(0.3333)
    """

    higher_is_better = False

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.disparity(*self._reference.compare(counts))


class ClassIntensification(AdjustedMetric):
    """How each recall's distance from the accuracy grew: :func:`~lightning_fairprune.recalls.class_intensification`.

    Ratios, [K]; NaN where undefined. Arguments and errors are those of :class:`AdjustedRecallChange`.

    Example:
        Recalls 1 and 1/2 around the accuracy 3/4 became 1/2 and 1: both changed sides.

        >>> import torch
        >>> metric = ClassIntensification(num_classes=2, reference=torch.tensor([1.0, 0.5]))
        >>> metric(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1]))
        tensor([-1., -1.])
    """

    per_class = True

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.class_intensification(*self._reference.compare(counts))


class IntensificationRatio(AdjustedMetric):
    """How the recalls' distances from the accuracy grew: :func:`~lightning_fairprune.recalls.intensification`.

    The ratio alpha of Good et al. (arXiv 2206.02976) for one model: above 1, classes below the accuracy fell further
    behind, or those above it got further ahead. NaN where undefined.
    Arguments and errors are those of :class:`AdjustedRecallChange`.

    Example:
        As for :class:`ClassIntensification`.

        >>> import torch
        >>> metric = IntensificationRatio(num_classes=2, reference=torch.tensor([1.0, 0.5]))
        >>> metric(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1]))
        tensor(-1.)
    """

    def _derive(self, counts: ClassCounts) -> Tensor:
        return recalls.intensification(*self._reference.compare(counts))
