r"""Offsets of growing strength, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fairprune.offsets._samples import Reduce, Samples, centred

# Measured on CIFAR-10, balanced and long-tailed: more steps, larger ones, and later ends made no difference.
_CALIBRATION_STEPS = 4
_STEPS, _WEAKEST, _STRONGEST = 24, 0.35, 24.0


class Frontier(NamedTuple):
    """Offsets of growing strength, the first of them zero, and the recalls under them.

    Attributes:
        offsets: float32 [S, K].
        recall: of the classes, float64 [S, K]; NaN without a sample.
        worst: the lowest recall of a class, or of a group if there were groups, float64 [S].
        average: the mean recall of the classes, as `weights` says, float64 [S].
    """

    offsets: Tensor
    recall: Tensor
    worst: Tensor
    average: Tensor


def frontier(
    logits: Tensor,
    target: Tensor,
    *,
    weights: Tensor | Sequence[float] | None = None,
    groups: Tensor | None = None,
) -> Frontier:
    r"""Return offsets of growing strength, with the average and the worst recall on the samples they come from.

    Wei et al., "Distributionally Robust Post-hoc Classifiers under Prior Shifts" (ICLR 2023, arXiv 2309.08825), minimise
    the error under the worst class weights :math:`g` near given ones :math:`v`. For the weights :math:`g` the best
    classifier predicts :math:`\arg\max_k \log p_k(x) + \log(g_k / \pi_k)`, with :math:`\pi` the class proportions of
    training. With the distance as a Kullback-Leibler divergence the worst weights are
    :math:`g_k \propto v_k e^{s (1 - r_k)}` for the recalls :math:`r` of that classifier, so the offsets solve

    .. math:: b_k = c_k + s \, (\bar r - r_k(b)), \qquad c_k = \log(v_k / \pi_k),

    for a strength :math:`s` from 0 (the best average) to infinity (equal recalls). Two things differ here. The samples,
    not the class proportions of training, give :math:`c`: offsets under which the mean probability of class k is
    :math:`v_k` when classes come in the parts :math:`v` (at the minimum of the cross-entropy; four steps of it), which
    also holds for training that re-weights, re-samples or prunes. And :math:`b` is followed while :math:`s` grows, one
    damped step for each of 24 strengths, in units of the mean distance between the logit of a sample's class and its
    best rival. Groups weigh in the same way, and a class gets the logarithm of the mean weight of its groups.

    Args:
        logits: Of validation samples, floating point [N, K], as a softmax takes them; -inf closes a class.
        target: Their classes, int [N], in [0, K).
        weights: The part of each class in the average recall, [K], 0 or more; equal parts by default. The class
            proportions make the average the accuracy.
        groups: Groups of which none should be bad, int [N], 0 or more; the classes by default.

    Returns:
        A :class:`Frontier` of S = 26 on the device of the logits. A class without a sample has offset 0, the mean of
        the others.

    Raises:
        TypeError: If `logits` is not floating point, or `target` or `groups` is.
        ValueError: If shapes do not fit, a label, weight or group is out of range, there is no sample, or the highest
            logit of a sample is not finite.

    Example:
        Class 1 is predicted too seldom: half of its samples, all of class 0.

        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> found = frontier(logits, torch.tensor([0, 0, 1, 1]))
        >>> found.recall[0], found.recall[-1]
        (tensor([1.0000, 0.5000], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
    """
    return followed(*samples_of(logits, target, weights, groups))


def fit(
    logits: Tensor,
    target: Tensor,
    *,
    max_average_loss: float = 0.01,
    weights: Tensor | Sequence[float] | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Return one number for each class that, added to the logits, raises the recall of the worst class.

    Of the offsets along `frontier` those with the highest recall of the worst class, among all whose average recall is
    at most `max_average_loss` below the highest average along it; of equal ones the weakest. They are chosen on the
    samples that are given: take validation samples, neither those of training nor those of the final numbers, and see
    `cross_fitted` for an honest estimate.

    Args:
        logits: Of validation samples, floating point [N, K], as a softmax takes them; -inf closes a class.
        target: Their classes, int [N], in [0, K).
        max_average_loss: How much of the average recall the worst class may cost, in [0, 1]. 0.01 costs little; .02 and
            more are stronger; 1 stands for the worst class at any price.
        weights: The part of each class in the average recall, [K], 0 or more; equal parts by default.
        groups: Groups of which none should be bad, int [N], 0 or more; the classes by default.

    Returns:
        Float32 [K] on the device of the logits, their mean 0 over the classes with samples; a class without has 0.

    Raises:
        ValueError: If `max_average_loss` is out of range; else as `frontier`.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> target = torch.tensor([0, 0, 1, 1])
        >>> (logits + fit(logits, target)).argmax(1)
        tensor([0, 0, 1, 1])
    """
    check_loss(max_average_loss)
    found = frontier(logits, target, weights=weights, groups=groups)
    return chosen(found, max_average_loss)


def check_loss(max_average_loss: float) -> None:
    """Raises a ValueError unless the loss is in [0, 1]."""
    if not 0 <= max_average_loss <= 1:
        raise ValueError(f"`max_average_loss` must be in [0, 1], got {max_average_loss}.")


def chosen(found: Frontier, max_average_loss: float) -> Tensor:
    """Returns the offsets with the best worst recall at an average that is high enough, [K]."""
    enough = found.average >= found.average.max() - max_average_loss - 1e-12
    worst = found.worst.where(enough, -1.0)
    return found.offsets[(worst == worst.max()).nonzero()[0, 0]]


def samples_of(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | Sequence[float] | None = None,
    groups: Tensor | None = None,
    reduce: Reduce = torch.clone,
    num_groups: int | None = None,
) -> tuple[Samples, Tensor]:
    """Returns the samples after a check, and the parts of the classes in the average, float64 [K] that sum to 1."""
    check(logits, target, groups)
    if logits.device.type == "mps":  # which has no double precision
        logits = logits.cpu()
    if groups is not None and num_groups is None:
        num_groups = int(groups.max()) + 1
    at = None if groups is None else groups.long().to(logits.device)
    found = Samples(logits, target.long().to(logits.device), at, num_groups or 0, reduce)
    if not int(found.support.sum()):
        raise ValueError("`target` must hold at least one sample, got none.")
    if not found.all_finite():
        raise ValueError(
            "the highest logit of each sample must be finite: the training has diverged; lower the learning rate."
        )
    return found, _parts(weights, found.support[: found.num_classes])


def check(logits: Tensor, target: Tensor, groups: Tensor | None) -> None:
    """Raises for logits, labels or groups of the wrong dtype, shape or range."""
    if not logits.is_floating_point():
        raise TypeError(f"`logits` must be floating point, got {logits.dtype}.")
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"`logits` must be [N, K], got {list(logits.shape)}.")
    most = logits.shape[1]
    for name, value, end in (("target", target, most), ("groups", groups, None)):
        if value is None:
            continue
        if value.is_floating_point() or value.dtype == torch.bool:
            raise TypeError(f"`{name}` must hold whole numbers, got {value.dtype}.")
        if value.shape != logits.shape[:1]:
            raise ValueError(
                f"`{name}` must be [{len(logits)}], one for each row of logits, got {list(value.shape)}."
            )
        low, high = value.aminmax() if len(value) else (0, 0)
        if low < 0 or (end is not None and high >= end):
            allowed = f"in [0, {end})" if end else "0 or more"
            raise ValueError(
                f"`{name}` must be {allowed}, got {int(low)} to {int(high)}: leave other samples out."
            )


def _parts(weights: Tensor | Sequence[float] | None, support: Tensor) -> Tensor:
    if weights is None:
        parts = torch.ones_like(support, dtype=torch.float64)
    else:
        parts = torch.as_tensor(weights, dtype=torch.float64).to(support.device)
        good = parts.shape == support.shape and bool((parts.isfinite() & (parts >= 0)).all())
        if not good:
            raise ValueError(
                f"`weights` must be {len(support)} finite numbers of 0 or more, got {list(parts.shape)}."
            )
    parts = parts.where(support > 0, 0.0)
    if not bool(parts.any()):
        raise ValueError("`weights` must be above 0 for a class with samples.")
    return parts / parts.sum()


def followed(samples: Samples, parts: Tensor) -> Frontier:
    """Returns the frontier of samples; the average recall holds each class in its part."""
    size, seen = samples.num_classes, samples.support[: samples.num_classes] > 0
    start = samples.calibrated(parts, _CALIBRATION_STEPS)
    unit = samples.distance(start)
    shares = samples.shares() if samples.num_groups else None
    offsets, all_offsets = start, [torch.zeros_like(start), start]
    all_recalls = [samples.recalls(all_offsets[0]), samples.recalls(start)]
    growth = (_STRONGEST / _WEAKEST) ** (1 / (_STEPS - 1))
    for step in range(_STEPS):
        strength = _WEAKEST * growth**step
        recall = all_recalls[-1]
        if shares is None:
            push = (recall.nanmean() - recall) * strength * unit
        else:
            push = _of_classes(recall[size:], strength * unit, shares)
        wanted = start + push
        offsets = centred(offsets + min(0.5, 1 / strength) * (wanted - offsets), seen)
        all_offsets.append(offsets)
        all_recalls.append(samples.recalls(offsets))
    recalls = torch.stack(all_recalls)
    counted = recalls[:, size:] if samples.num_groups else recalls
    return Frontier(
        torch.stack(all_offsets).float(),
        recalls[:, :size],
        counted.nan_to_num(nan=torch.inf).amin(1),
        recalls[:, :size].nan_to_num() @ parts,
    )


def _of_classes(recall: Tensor, strength: Tensor, shares: Tensor) -> Tensor:
    """Returns the logarithm of the mean weight of the groups of each class, [K]."""
    push = ((recall.nanmean() - recall) * strength).nan_to_num()
    top = push.max()
    mean = shares @ (push - top).exp() / shares.sum(1)
    return mean.log() + top
