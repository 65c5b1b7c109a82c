"""Functions of the recalls of one model."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_fairprune.recalls._arguments import broadcast, checked, ratio


def worst(recall: Tensor) -> Tensor:
    """Return the lowest recall of a class with support.

    Args:
        recall: Recalls in [0, 1], NaN without support, [..., K].

    Returns:
        Lowest recalls, [...]; NaN if no class has support.

    Raises:
        TypeError: If `recall` is not floating point.
        ValueError: If it has no class.

    Example:
        >>> worst(torch.tensor([0.9, 0.6, torch.nan]))
        tensor(0.6000)
    """
    recall = checked(recall)
    return _nan_if_unseen(_filled(recall, torch.inf).amin(-1), recall)


def worst_k(recall: Tensor, k: int) -> Tensor:
    """Return the mean of the k lowest recalls; of all, if fewer than k classes have support.

    Args:
        recall: Recalls in [0, 1], NaN without support, [..., K].
        k: Number of classes, in [1, K].

    Returns:
        Means, [...]; NaN if no class has support.

    Raises:
        ValueError: If `k` is out of range; for `recall` as `worst`.

    Example:
        >>> worst_k(torch.tensor([0.9, 0.6, 0.7]), 2)
        tensor(0.6500)
    """
    recall = checked(recall)
    if not 1 <= k <= recall.shape[-1]:
        raise ValueError(f"`k` must be between 1 and the {recall.shape[-1]} classes, got {k}.")
    return recall.sort(-1).values[..., :k].nanmean(-1)  # sorting puts NaN last


def cvar(recall: Tensor, level: float) -> Tensor:
    r"""Return the mean recall of the fraction `level` of the classes with the lowest recalls.

    The expected shortfall over equally likely classes. With `m = level n` for n classes with support and recalls
    `r_1 <= ... <= r_n`, the class on the boundary has a fractional weight:

    .. math:: \frac{1}{m} \sum_i \min(1, \max(0, m - i + 1)) \, r_i

    Level 1 is the mean recall, a level up to 1/n the worst. Rockafellar and Uryasev, "Conditional
    value-at-risk for general loss distributions" (Journal of Banking & Finance 26, 2002).

    Args:
        recall: Recalls in [0, 1], NaN without support, [..., K].
        level: Fraction of the classes with support, in (0, 1].

    Returns:
        Means, [...]; NaN if no class has support.

    Raises:
        ValueError: If `level` is out of range; for `recall` as `worst`.

    Example:
        Half of three classes: (0.6 + 0.5 * 0.9) / 1.5.

        >>> cvar(torch.tensor([0.9, 0.6, 1.0]), 0.5)
        tensor(0.7000)
    """
    recall = checked(recall)
    if not 0 < level <= 1:
        raise ValueError(f"`level` must be in (0, 1], got {level}.")
    size = level * _count(recall).to(recall.dtype)
    rank = torch.arange(recall.shape[-1], device=recall.device, dtype=recall.dtype)
    weight = (size.unsqueeze(-1) - rank).clamp(0, 1)  # 0 for what is NaN: size <= classes seen
    return (weight * recall.sort(-1).values.nan_to_num(0)).sum(-1) / size


def gap(recall: Tensor) -> Tensor:
    """Return the highest minus the lowest recall of a class with support.

    Argument and errors are those of `worst`.

    Returns:
        Gaps in [0, 1], [...]; NaN if no class has support.

    Example:
        >>> gap(torch.tensor([0.9, 0.6, torch.nan]))
        tensor(0.3000)
    """
    recall = checked(recall)
    return _nan_if_unseen(_filled(recall, -torch.inf).amax(-1), recall) - worst(recall)


def std(recall: Tensor, *, correction: int = 0) -> Tensor:
    """Return the standard deviation of the recalls over classes.

    Args:
        recall: Recalls in [0, 1], NaN without support, [..., K].
        correction: 0 for these classes (population), 1 for the estimate from a sample of classes.

    Returns:
        Deviations, [...]; NaN if no class, or with `correction=1` only one, has support.

    Raises:
        ValueError: If `correction` is another number; for `recall` as `worst`.

    Example:
        >>> values = torch.tensor([0.8, 0.6, torch.nan])
        >>> std(values), std(values, correction=1)
        (tensor(0.1000), tensor(0.1414))
    """
    recall = checked(recall)
    if correction not in (0, 1):
        raise ValueError(f"`correction` must be 0 (population) or 1 (sample), got {correction}.")
    squares = (recall - recall.nanmean(-1, keepdim=True)).square().nansum(-1)
    # Without a class, a sample would have 0 / -1.
    return (squares / (_count(recall) - correction).clamp(min=0)).sqrt()


def zero_recall(recall: Tensor) -> Tensor:
    """Return the number of classes with support and recall 0.

    Argument and errors are those of `worst`.

    Returns:
        Numbers of classes, int64 [...]; 0 if no class has support.

    Example:
        >>> zero_recall(torch.tensor([0.9, 0.0, torch.nan]))
        tensor(1)
    """
    return (checked(recall) == 0).sum(-1)


def balance(recall: Tensor, accuracy: float | Tensor | None = None) -> Tensor:
    """Return each recall minus the accuracy: above 0, the class is better than the model as a whole.

    The recall balance `B^c = R^c - A` of Good et al., "Recall Distortion in Neural Network Pruning and the
    Undecayed Pruning Algorithm" (NeurIPS 2022, arXiv 2206.02976).

    Args:
        recall: Recalls in [0, 1], NaN without support, [..., K].
        accuracy: Accuracy of the model in [0, 1], [...]; None for the mean recall over the classes with
            support, which equals it on a balanced set.

    Returns:
        Balances in [-1, 1], NaN without support, [..., K].

    Example:
        >>> balance(torch.tensor([0.9, 0.7]))
        tensor([ 0.1000, -0.1000])
    """
    recall = checked(recall)
    return recall - broadcast(accuracy, recall)


def normalised_balance(recall: Tensor, accuracy: float | Tensor | None = None) -> Tensor:
    """Return each recall minus the accuracy, in units of the accuracy: `(R^c - A) / A`.

    The normalised recall balance of Good et al. (arXiv 2206.02976), comparable between models of different
    accuracy. Arguments and errors are those of `balance`.

    Returns:
        Balances, at least -1, [..., K]; NaN without support and where the accuracy is 0.

    Example:
        >>> normalised_balance(torch.tensor([0.9, 0.7]))
        tensor([ 0.1250, -0.1250])
    """
    recall = checked(recall)
    return ratio(balance(recall, accuracy), broadcast(accuracy, recall))


def _count(recall: Tensor) -> Tensor:
    return (~recall.isnan()).sum(-1)


def _filled(recall: Tensor, value: float) -> Tensor:
    return recall.masked_fill(recall.isnan(), value)


def _nan_if_unseen(value: Tensor, recall: Tensor) -> Tensor:
    return value.masked_fill(recall.isnan().all(-1), torch.nan)
