"""Which predictions pruning changed, sample by sample, and of which classes these samples are.

Accuracy can stay while predictions change. Next to a reference (the unpruned model, say, or several seeds of
it), `Churn` counts them during an evaluation; the functions on class ids [M, N] of M models find the samples
whose predictions pruning changes systematically. None of them builds an N x K matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = [
    "Churn",
    "ClassHistogram",
    "churn",
    "class_histogram",
    "compression_identified_exemplars",
    "pruning_identified_exemplars",
    "taxicab_distance",
]

_CHUNK = 1 << 13  # samples at a time: under 50 MB besides the ids of 30 models against 30


class Churn(Metric):
    r"""Share of samples whose predicted class differs from the reference's, over an evaluation.

    :math:`\frac{1}{N} \sum_i [\hat y_i \ne \hat y_i^{ref}]`: Milani Fard et al., "Launch and Iterate: Reducing Prediction
    Churn" (NeurIPS 2016). The labels play no part. An update does not wait for the device. NaN without samples. Keywords
    are those of :class:`torchmetrics.Metric`.

    Example:
        The last of three predictions differs.

        >>> metric = Churn()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([0]), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.3333)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    changed: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("changed", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, reference: Tensor) -> None:
        """Count one batch, of the form that `churn` takes."""
        differs = _differs(preds, reference)
        self.changed += differs.sum()
        self.total += differs.numel()

    def compute(self) -> Tensor:
        """Return the share of all samples so far, in [0, 1], float32."""
        return self.changed / self.total

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot the value now, or the values given; returns figure and axes."""
        return self._plot(val, ax)


def churn(preds: Tensor, reference: Tensor) -> Tensor:
    """Return the share of samples whose predicted class differs from the reference's, float32; NaN without samples.

    Args:
        preds: Logits or probabilities, floating point [N, C], or class ids, whole numbers [N].
        reference: The same of the reference model, in either form.

    Raises:
        ValueError: If a shape or dtype is neither, or the two do not fit.

    Example:
        >>> churn(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2]))
        tensor(0.2500)
    """
    return _differs(preds, reference).float().mean()


def pruning_identified_exemplars(pred: Tensor, reference: Tensor) -> Tensor:
    """Return the samples for which most pruned models predict another class than most reference models.

    The modal label over the pruned population is not the modal label over the reference population: Hooker et
    al., "What Do Compressed Deep Neural Networks Forget?" (arXiv 1911.05248); Modal CIE in their later paper
    (arXiv 2010.03058). Of several labels that are equally frequent the smallest counts.

    Args:
        pred: Class ids that the pruned models predict, whole numbers [M, N], or [N] of one model.
        reference: Class ids that the reference models predict, [M2, N] or [N].

    Returns:
        Sample ids, ascending, int64.

    Raises:
        TypeError: If the ids are not whole numbers.
        ValueError: If the shapes do not fit, there is no model, or an id is negative.

    Example:
        Sample 1 went from class 1 to class 2 in two of three models.

        >>> pruned = torch.tensor([[0, 2, 1], [0, 2, 1], [1, 1, 0]])
        >>> pruning_identified_exemplars(pruned, torch.tensor([0, 1, 1]))
        tensor([1])
    """
    differs = _per_chunk(lambda p, r: _mode(p) != _mode(r), pred, reference, torch.bool)
    return differs.nonzero().flatten()


def taxicab_distance(pred: Tensor, reference: Tensor) -> Tensor:
    r"""Return how far the labels of the pruned models are from those of the reference models, in [0, 2], float64 [N].

    :math:`d_i = \sum_k |p_{ik} - q_{ik}|`, with p and q the shares of the models that give sample i the label k: the L1
    distance behind the Taxicab CIE of Hooker et al., "Characterising Bias in Compressed Models" (arXiv 2010.03058). Shares,
    and not counts, compare populations of different size. 2 = no label in common; equal distances are exactly equal.

    Arguments and errors are those of `pruning_identified_exemplars`.

    Example:
        Sample 0: all agree. Sample 1: half of the pruned models moved away.

        >>> taxicab_distance(torch.tensor([[0, 1], [0, 2]]), torch.tensor([[0, 1], [0, 1]]))
        tensor([0., 1.], dtype=torch.float64)
    """
    return _per_chunk(_distance, pred, reference, torch.float64)


def compression_identified_exemplars(
    pred: Tensor, reference: Tensor, *, count: int | None = None, threshold: float | None = None
) -> Tensor:
    """Return the samples whose labels pruning moved most, by `taxicab_distance`.

    Sample ids, int64, the greatest distance first, ties by id. Give either `count`, the number of samples in [1, N], which
    leaves out samples that did not move at all, or `threshold`, the lowest distance, in (0, 2]; otherwise a ValueError is
    raised. Other arguments and errors are those of `pruning_identified_exemplars`.

    Example:
        >>> pruned = torch.tensor([[0, 1, 2], [0, 2, 2]])
        >>> compression_identified_exemplars(pruned, torch.tensor([[0, 1, 1]]), count=3)
        tensor([2, 1])
    """
    if (count is None) == (threshold is None):
        raise ValueError(
            f"either `count` or `threshold` must be given, got {count=} and {threshold=}."
        )
    num_samples = _populations(pred, reference)[0].shape[1]
    if count is not None and not 1 <= count <= num_samples:
        raise ValueError(f"`count` must be between 1 and the {num_samples} samples, got {count}.")
    if threshold is not None and not 0 < threshold <= 2:
        raise ValueError(f"`threshold` must be in (0, 2], got {threshold}.")
    distance, ids = taxicab_distance(pred, reference).sort(descending=True, stable=True)
    moved = distance > 0 if threshold is None else distance >= threshold
    return ids[moved][:count]


@dataclass(frozen=True, slots=True, eq=False)
class ClassHistogram:
    """Of which classes a set of samples is: `count`, and all samples of each class, `support`, int64 [K] each."""

    count: Tensor
    support: Tensor

    @property
    def share(self) -> Tensor:
        """Share of each class that is in the set, float64 [K]; NaN without support."""
        return self.count.double() / self.support

    @property
    def over_representation(self) -> Tensor:
        """Share of each class over the share of all samples, float64 [K]: above 1, the class has more."""
        return self.share / (self.count.sum().double() / self.support.sum())


def class_histogram(ids: Tensor, target: Tensor, num_classes: int) -> ClassHistogram:
    """Return how many of the samples `ids` are of each class, next to the size of the class.

    Args:
        ids: Distinct sample ids, whole numbers in [0, N), [n].
        target: Class of every sample, whole numbers in [0, `num_classes`), [N].
        num_classes: Number of classes K.

    Raises:
        TypeError: If `ids` or `target` are not whole numbers.
        ValueError: If a shape is wrong, an id or a class is out of range or an id is repeated.

    Example:
        The one sample of class 1 and one of three of class 0.

        >>> found = class_histogram(torch.tensor([0, 3]), torch.tensor([0, 0, 0, 1]), 2)
        >>> found.count, found.over_representation
        (tensor([1, 1]), tensor([0.6667, 2.0000], dtype=torch.float64))
    """
    for name, values, size in (("ids", ids, len(target)), ("target", target, num_classes)):
        _check_whole(name, values)
        if values.ndim != 1:
            raise ValueError(f"`{name}` must have one dimension, got {list(values.shape)}.")
        outside = values[(values < 0) | (values >= size)]
        if len(outside):
            raise ValueError(f"`{name}` must be in [0, {size}), got {int(outside[0])}.")
    if bool((ids.sort().values.diff() == 0).any()):
        raise ValueError("`ids` must name each sample at most once: take `ids.unique()`.")
    count, support = (
        torch.bincount(of.long(), minlength=num_classes) for of in (target[ids.long()], target)
    )
    return ClassHistogram(count, support)


def _differs(preds: Tensor, reference: Tensor) -> Tensor:
    for name, values in (("preds", preds), ("reference", reference)):
        logits = values.ndim == 2 and values.is_floating_point()
        if not logits and not (values.ndim == 1 and _is_whole(values)):
            raise ValueError(
                f"`{name}` must be logits [B, C], floating point, or class ids [B], whole numbers; "
                f"got {list(values.shape)} of {values.dtype}."
            )
    if len(preds) != len(reference) or (
        preds.ndim == reference.ndim == 2 and preds.shape != reference.shape
    ):
        raise ValueError(
            "`reference` must be for the samples and classes of `preds`, "
            f"{list(preds.shape)}, got {list(reference.shape)}."
        )
    first, second = (v.argmax(-1) if v.ndim == 2 else v for v in (preds, reference))
    return first != second


def _is_whole(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _check_whole(name: str, values: Tensor) -> None:
    if not _is_whole(values):
        raise TypeError(
            f"`{name}` must hold whole numbers, got {values.dtype}: for logits take `argmax(-1)`."
        )


def _populations(pred: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as [M, N], checked."""
    for name, values in (("pred", pred), ("reference", reference)):
        _check_whole(name, values)
        if values.ndim not in (1, 2) or (values.ndim == 2 and not len(values)):
            raise ValueError(
                f"`{name}` must be [M, N], a row per model, or [N], got {list(values.shape)}."
            )
        if values.numel() and int(values.min()) < 0:
            raise ValueError(f"`{name}` must hold class ids from 0, got {int(values.min())}.")
    pred, reference = (v[None] if v.ndim == 1 else v for v in (pred, reference))
    if pred.shape[1] != reference.shape[1]:
        raise ValueError(
            f"`reference` must be for the {pred.shape[1]} samples of `pred`, got {reference.shape[1]}."
        )
    return pred, reference


def _per_chunk(
    formula: Callable[[Tensor, Tensor], Tensor], pred: Tensor, reference: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return `formula` ([M, n], [M2, n] -> [n]) of both, some thousand samples at a time, [N]."""
    pred, reference = _populations(pred, reference)
    # Filled in place: results kept between what each chunk frees would scatter the heap.
    out = torch.empty(pred.shape[1], dtype=dtype, device=pred.device)
    for start in range(0, len(out), _CHUNK):
        here = slice(start, start + _CHUNK)
        out[here] = formula(pred[:, here], reference[:, here])
    return out


def _sorted(ids: Tensor) -> Tensor:
    """Return each column ascending, [M, n]; sorting rows in place of columns takes half the time."""
    return ids.T.contiguous().sort(-1).values.T.contiguous()


def _mode(ids: Tensor) -> Tensor:
    """Return the most frequent id of each column, the smallest of several, [M, n] -> [n]."""
    ordered = _sorted(ids)
    mode = ordered[0]
    run = longest = torch.ones_like(mode, dtype=torch.int64)
    for before, now in pairwise(ordered):  # over the models
        run = torch.where(now == before, run + 1, 1)
        mode = torch.where(run > longest, now, mode)
        longest = torch.maximum(longest, run)
    return mode


def _distance(pred: Tensor, reference: Tensor) -> Tensor:
    """Return the L1 distance between the shares of each label, [M, n] and [M2, n] -> [n]."""
    size, size2 = len(pred), len(reference)
    # In whole numbers: a pruned model weighs M2, a reference model -M, and 1 / (M M2) comes last.
    # The lowest bit tells them apart in what is sorted by label.
    ordered = _sorted(torch.cat([pred.long() * 2 + 1, reference.long() * 2]))
    weight = torch.where(ordered % 2 == 1, size2, -size)
    balance, total = weight[0], torch.zeros_like(weight[0])
    for m, (before, now) in enumerate(pairwise(ordered // 2), start=1):
        same = now == before
        total += torch.where(same, 0, balance.abs())
        balance = torch.where(same, balance, 0) + weight[m]
    return (total + balance.abs()).double() / (size * size2)
