"""The metrics as functions of predictions and labels, without a state.

All take what the class of the same name takes: `preds` are logits or probabilities [B, C] or [B, C, ...], or
class ids of the shape of `target`, [B] or [B, ...]. Options by keyword are `ignore_index`, the label of samples
to leave out; `top_k`, how many of the highest predictions may hold the label; `attribute` (of the shape of
`target`) and `num_attributes` A, to count the K = C A groups `label * A + attribute` in place of classes.
Results are float32 on the device of `preds`. Each raises TypeError for a wrong dtype and ValueError for
anything out of range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.counts import ClassCounts, Counting
from lightning_fairprune.metrics._reference import Reference

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "adjusted_recall_change",
    "class_intensification",
    "class_recall",
    "intensification_ratio",
    "max_disparity",
    "recall_balance",
    "recall_cvar",
    "recall_distortion",
    "recall_gap",
    "recall_retention",
    "recall_std",
    "worst_class_recall",
    "worst_k_recall",
    "zero_recall_classes",
]


Given = ClassCounts | Tensor  # of the reference: counts, or recalls


class Options(TypedDict, total=False):
    """What the functional forms take beside predictions, labels and `num_classes`."""

    ignore_index: int | None
    top_k: int
    num_attributes: int | None
    attribute: Tensor | None


def class_recall(
    preds: Tensor, target: Tensor, num_classes: int, **options: Unpack[Options]
) -> Tensor:
    """Return the recall of each class, [K]; NaN without support.

    Example:
        >>> class_recall(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 3)
        tensor([0.6667, 1.0000,    nan])
    """
    counts = _counts(preds, target, num_classes, options)
    return _result(counts.recall, preds)


def worst_class_recall(
    preds: Tensor, target: Tensor, num_classes: int, **options: Unpack[Options]
) -> Tensor:
    """Return the lowest recall of a class with support.

    Example:
        >>> worst_class_recall(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 2)
        tensor(0.6667)
    """
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.worst(counts.recall), preds)


def worst_k_recall(
    preds: Tensor, target: Tensor, num_classes: int, k: int, **options: Unpack[Options]
) -> Tensor:
    """Return the mean of the `k` lowest recalls, `k` in [1, K].

    Example:
        >>> worst_k_recall(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 0]), 3, k=2)
        tensor(0.5000)
    """
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.worst_k(counts.recall, k), preds)


def recall_cvar(
    preds: Tensor, target: Tensor, num_classes: int, level: float, **options: Unpack[Options]
) -> Tensor:
    """Return the mean recall of the lowest fraction `level`, in (0, 1], of the classes.

    Example:
        >>> recall_cvar(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 0]), 3, level=0.5)
        tensor(0.3333)
    """
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.cvar(counts.recall, level), preds)


def recall_gap(
    preds: Tensor, target: Tensor, num_classes: int, **options: Unpack[Options]
) -> Tensor:
    """Return the highest minus the lowest recall.

    Example:
        >>> recall_gap(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 2)
        tensor(0.3333)
    """
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.gap(counts.recall), preds)


def recall_std(
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    correction: int = 0,
    **options: Unpack[Options],
) -> Tensor:
    """Return the standard deviation of the recalls; `correction` 0 for population, 1 for sample.

    Example:
        >>> recall_std(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 2)
        tensor(0.1667)
    """
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.std(counts.recall, correction=correction), preds)


def zero_recall_classes(
    preds: Tensor, target: Tensor, num_classes: int, **options: Unpack[Options]
) -> Tensor:
    """Return the number of classes that are never predicted right, int64.

    Example:
        >>> zero_recall_classes(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0]), 3)
        tensor(1)
    """
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.zero_recall(counts.recall), preds)


def recall_balance(
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    normalised: bool = False,
    **options: Unpack[Options],
) -> Tensor:
    """Return each recall minus the accuracy, [K], divided by it if `normalised`.

    Example:
        >>> recall_balance(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 2)
        tensor([-0.0833,  0.2500])
    """
    balance = recalls.normalised_balance if normalised else recalls.balance
    counts = _counts(preds, target, num_classes, options)
    return _result(balance(counts.recall, counts.accuracy), preds)


def recall_distortion(
    preds: Tensor, target: Tensor, num_classes: int, reference: Given, **options: Unpack[Options]
) -> Tensor:
    """Return the recall of each class minus that of the reference, [K].

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        >>> recall_distortion(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor([-0.3333,  0.5000])
    """
    before = _reference(reference, num_classes, options)
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.change(counts.recall, before.recall), preds)


def recall_retention(
    preds: Tensor, target: Tensor, num_classes: int, reference: Given, **options: Unpack[Options]
) -> Tensor:
    """Return the recall of each class as a fraction of that of the reference, [K].

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        >>> recall_retention(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor([0.6667, 2.0000])
    """
    before = _reference(reference, num_classes, options)
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.retention(counts.recall, before.recall), preds)


def adjusted_recall_change(
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    reference: Given,
    *,
    reference_accuracy: float | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Return how much more each recall changed than the accuracy, [K].

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        >>> adjusted_recall_change(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor([-0.3333,  0.5000])
    """
    before = _reference(reference, num_classes, options, reference_accuracy)
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.adjusted_change(*before.compare(counts)), preds)


def max_disparity(
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    reference: Given,
    *,
    reference_accuracy: float | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Return how much more the class that lost most lost than the model.

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        >>> max_disparity(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor(0.3333)
    """
    before = _reference(reference, num_classes, options, reference_accuracy)
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.disparity(*before.compare(counts)), preds)


def class_intensification(
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    reference: Given,
    *,
    reference_accuracy: float | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Return how each recall's distance from the accuracy grew, [K].

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> class_intensification(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor([-1., -1.])
    """
    before = _reference(reference, num_classes, options, reference_accuracy)
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.class_intensification(*before.compare(counts)), preds)


def intensification_ratio(
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    reference: Given,
    *,
    reference_accuracy: float | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Return how the recalls' distances from the accuracy grew.

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> intensification_ratio(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor(-1.)
    """
    before = _reference(reference, num_classes, options, reference_accuracy)
    counts = _counts(preds, target, num_classes, options)
    return _result(recalls.intensification(*before.compare(counts)), preds)


def _counts(preds: Tensor, target: Tensor, num_classes: int, options: Options) -> ClassCounts:
    return _counting(num_classes, options).count(preds, target, options.get("attribute"))


def _reference(
    reference: Given,
    num_classes: int,
    options: Options,
    accuracy: float | None = None,
) -> Reference:
    return Reference(reference, _counting(num_classes, options).size, accuracy)


def _counting(num_classes: int, options: Options) -> Counting:
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        raise TypeError(
            f"options must be among {', '.join(sorted(Options.__annotations__))}, "
            f"got {', '.join(unknown)}."
        )
    return Counting(
        num_classes,
        options.get("ignore_index"),
        options.get("top_k", 1),
        options.get("num_attributes"),
    )


def _result(value: Tensor, preds: Tensor) -> Tensor:
    if value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    return value.to(preds.device)
