"""The metrics as functions of predictions and labels, without a state.

All take what the class of the same name takes: `preds` are logits or probabilities [B, C] or [B, C, ...], or
class ids of the shape of `target`, [B] or [B, ...]. Options by keyword are `ignore_index`, the label of samples
to leave out; `top_k`, how many of the highest predictions may hold the label; `attribute` (of the shape of
`target`) and `num_attributes` A, to count the K = C A groups `label * A + attribute` in place of classes; and, where
accuracies are compared with those of recalls as `reference`, `reference_accuracy`. Results are float32 on the device of
`preds`. Each raises TypeError for a wrong dtype and ValueError for anything out of range.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    """What all functional forms take by keyword."""

    ignore_index: int | None
    top_k: int
    num_attributes: int | None
    attribute: Tensor | None


class Adjusted(Options, total=False):
    """What those take that compare accuracies as well."""

    reference_accuracy: float | None


def class_recall(
    preds: Tensor, target: Tensor, num_classes: int, **options: Unpack[Options]
) -> Tensor:
    """Return the recall of each class, [K]; NaN without support.

    Example:
        >>> class_recall(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 3)
        tensor([0.6667, 1.0000,    nan])
    """
    return _value(lambda c: c.recall, preds, target, num_classes, options)


def worst_class_recall(
    preds: Tensor, target: Tensor, num_classes: int, **options: Unpack[Options]
) -> Tensor:
    """Return the lowest recall of a class with support.

    Example:
        >>> worst_class_recall(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 2)
        tensor(0.6667)
    """
    return _value(lambda c: recalls.worst(c.recall), preds, target, num_classes, options)


def worst_k_recall(
    preds: Tensor, target: Tensor, num_classes: int, k: int, **options: Unpack[Options]
) -> Tensor:
    """Return the mean of the `k` lowest recalls, `k` in [1, K].

    Example:
        >>> worst_k_recall(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 0]), 3, k=2)
        tensor(0.5000)
    """
    return _value(lambda c: recalls.worst_k(c.recall, k), preds, target, num_classes, options)


def recall_cvar(
    preds: Tensor, target: Tensor, num_classes: int, level: float, **options: Unpack[Options]
) -> Tensor:
    """Return the mean recall of the lowest fraction `level`, in (0, 1], of the classes.

    Example:
        >>> recall_cvar(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 0]), 3, level=0.5)
        tensor(0.3333)
    """
    return _value(lambda c: recalls.cvar(c.recall, level), preds, target, num_classes, options)


def recall_gap(
    preds: Tensor, target: Tensor, num_classes: int, **options: Unpack[Options]
) -> Tensor:
    """Return the highest minus the lowest recall.

    Example:
        >>> recall_gap(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 2)
        tensor(0.3333)
    """
    return _value(lambda c: recalls.gap(c.recall), preds, target, num_classes, options)


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
    std = partial(recalls.std, correction=correction)
    return _value(lambda c: std(c.recall), preds, target, num_classes, options)


def zero_recall_classes(
    preds: Tensor, target: Tensor, num_classes: int, **options: Unpack[Options]
) -> Tensor:
    """Return the number of classes that are never predicted right, int64.

    Example:
        >>> zero_recall_classes(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0]), 3)
        tensor(1)
    """
    return _value(lambda c: recalls.zero_recall(c.recall), preds, target, num_classes, options)


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
    return _value(lambda c: balance(c.recall, c.accuracy), preds, target, num_classes, options)


def recall_distortion(
    preds: Tensor, target: Tensor, num_classes: int, reference: Given, **options: Unpack[Options]
) -> Tensor:
    """Return the recall of each class minus that of the reference, [K].

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        >>> recall_distortion(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor([-0.3333,  0.5000])
    """
    return _compared(recalls.change, preds, target, num_classes, reference, options)


def recall_retention(
    preds: Tensor, target: Tensor, num_classes: int, reference: Given, **options: Unpack[Options]
) -> Tensor:
    """Return the recall of each class as a fraction of that of the reference, [K].

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        >>> recall_retention(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor([0.6667, 2.0000])
    """
    return _compared(recalls.retention, preds, target, num_classes, reference, options)


def adjusted_recall_change(
    preds: Tensor, target: Tensor, num_classes: int, reference: Given, **options: Unpack[Adjusted]
) -> Tensor:
    """Return how much more each recall changed than the accuracy, [K].

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        >>> adjusted_recall_change(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor([-0.3333,  0.5000])
    """
    return _adjusted(recalls.adjusted_change, preds, target, num_classes, reference, options)


def max_disparity(
    preds: Tensor, target: Tensor, num_classes: int, reference: Given, **options: Unpack[Adjusted]
) -> Tensor:
    """Return how much more the class that lost most lost than the model.

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        >>> max_disparity(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor(0.3333)
    """
    return _adjusted(recalls.disparity, preds, target, num_classes, reference, options)


def class_intensification(
    preds: Tensor, target: Tensor, num_classes: int, reference: Given, **options: Unpack[Adjusted]
) -> Tensor:
    """Return how each recall's distance from the accuracy grew, [K].

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> class_intensification(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor([-1., -1.])
    """
    return _adjusted(recalls.class_intensification, preds, target, num_classes, reference, options)


def intensification_ratio(
    preds: Tensor, target: Tensor, num_classes: int, reference: Given, **options: Unpack[Adjusted]
) -> Tensor:
    """Return how the recalls' distances from the accuracy grew.

    Example:
        >>> preds, target = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> intensification_ratio(preds, target, 2, torch.tensor([1.0, 0.5]))
        tensor(-1.)
    """
    return _adjusted(recalls.intensification, preds, target, num_classes, reference, options)


def _value(
    derive: Callable[[ClassCounts], Tensor],
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    options: Options,
) -> Tensor:
    value = derive(_counting(num_classes, options).count(preds, target, options.get("attribute")))
    if value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    return value.to(preds.device)


def _compared(
    function: Callable[..., Tensor],
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    reference: Given,
    options: Options,
) -> Tensor:
    before = Reference(reference, _counting(num_classes, options).size)
    return _value(lambda c: function(c.recall, before.recall), preds, target, num_classes, options)


def _adjusted(
    function: Callable[..., Tensor],
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    reference: Given,
    options: Adjusted,
) -> Tensor:
    accuracy = options.pop("reference_accuracy", None)
    before = Reference(reference, _counting(num_classes, options).size, accuracy)
    return _value(lambda c: function(*before.compare(c)), preds, target, num_classes, options)


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
