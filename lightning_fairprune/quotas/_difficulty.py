"""Quotas without validation: how hard the samples of each class are, by a score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_fairprune.quotas._apportion import apportion
from lightning_fairprune.quotas._arguments import integers, losses, sizes_and_capacity


def class_difficulty(
    score: Tensor | Sequence[float],
    target: Tensor | Sequence[int],
    *,
    winsorise: float = 0.05,
    num_classes: int | None = None,
) -> Tensor:
    r"""Return the winsorised mean score of each class, the difficulty that `difficulty` sets quotas by.

    .. math::
        S_k = \frac{1}{N_k} \sum_{i \in k} \min(\max(s_i, s_{(g+1)}), s_{(N_k - g)}), \qquad
        g = \lfloor w N_k \rfloor

    with :math:`s_{(1)} \le s_{(2)} \le \ldots` the sorted scores of class :math:`k`: the g lowest scores
    count as the next higher one, the g highest as the next lower one, so that a few wrong labels do not set
    the difficulty of a class. This is :math:`S_k` of Zhang et al., "Non-Uniform Class-Wise Coreset
    Selection for Vision Model Fine-tuning" (NUCS, arXiv 2504.13234); the default of `winsorise` is ours.

    Quotas need numbers >= 0. Where a score has negative ones (AUM, margin), all are counted from the lowest
    winsorised score of the data set.

    Args:
        score: float or integer [N], finite, higher = harder.
        target: int64 [N], the class of each sample; -1 leaves it out, whatever its score.
        winsorise: the fraction w of each end that is replaced, in [0, 0.5); 0 gives the mean.
        num_classes: K; by default one more than the largest class in ``target``.

    Returns:
        float64 [K] on the CPU, >= 0; NaN for a class without samples.

    Raises:
        ValueError: shapes that differ, a score that is not finite, a class >= ``num_classes``, or a
            fraction out of range.
        TypeError: targets that are not integer.

    Example:
        >>> class_difficulty([0.0, 1.0, 2.0, 9.0, 5.0], [0, 0, 0, 0, 1], winsorise=0.25)  # 1 1 2 2
        tensor([1.5000, 5.0000], dtype=torch.float64)
        >>> class_difficulty([-2.0, 0.0, 1.0], [0, 0, 1])  # counted from -2
        tensor([1., 3.], dtype=torch.float64)
    """
    if not 0 <= winsorise < 0.5:
        raise ValueError(f"`winsorise` must be in [0, 0.5), got {winsorise}.")
    value, label = scores_of_classes(score, target)
    found = int(label.max()) + 1 if len(label) else 0
    if num_classes is not None and found > num_classes:
        raise ValueError(f"`target` must be below {num_classes}, got {found - 1}.")
    size = torch.bincount(label, minlength=num_classes or 0)
    start = size.cumsum(0) - size
    order = value.argsort()
    order = order[label[order].argsort(stable=True)]
    value, label = value[order], label[order]
    cut = (size * winsorise).long()
    place = torch.arange(len(value)) - start[label]
    place = place.clamp(cut[label], (size - cut - 1)[label])
    value = value[start[label] + place]
    if len(value):
        value = value - value.min().clamp(max=0)
    # An empty sum has a type of its own.
    return torch.bincount(label, weights=value, minlength=len(size)).double() / size


def difficulty(
    sizes: Tensor | Sequence[int],
    difficulty: Tensor | Sequence[float],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
    repeat: int = 1,
) -> Tensor:
    r"""Return the quotas of NUCS: more of the classes whose samples are harder, without validation data.

    .. math:: n_k = \min(N_k, c \, N_k S_k), \qquad \sum_k n_k = \text{budget}

    with :math:`S_k` from `class_difficulty`. Zhang et al., "Non-Uniform Class-Wise Coreset Selection for
    Vision Model Fine-tuning" (arXiv 2504.13234, version of November 2025), give each class
    :math:`(1 - \alpha) N S_k N_k / \sum_j S_j N_j`, which is the same while no class is full. `drop` has the
    error on held-out data in place of :math:`S_k`. A difficulty from training data is high where labels are
    wrong, too.

    Args:
        sizes: int64 [K], samples per class, N_k.
        difficulty: float [K], finite and >= 0. Only ratios matter. NaN marks a class not seen; it counts
            as the mean over the other classes with samples.
        budget: as in `drop`, like `floor`, `cap` and `repeat`.
        floor: samples that each class keeps at least.
        cap: samples that each class keeps at most.
        repeat: how often an epoch may draw the same sample.

    Returns:
        int64 [K] on the CPU. A class of difficulty 0 keeps its floor only, unless all others are full.

    Raises:
        ValueError: a difficulty that is negative or infinite, or what `apportion` refuses.

    Example:
        Weights 60 * 0.1 = 6, 40 * 0.3 = 12 and 10 * 0.6 = 6 share 24 samples 1 : 2 : 1.

        >>> difficulty([60, 40, 10], [0.1, 0.3, 0.6], 24)
        tensor([ 6, 12,  6])
    """
    size, capacity = sizes_and_capacity(sizes, cap, repeat)
    weight = size * losses(difficulty, size, "difficulty")
    return apportion(weight, capacity, budget, floor=floor)


def separability(score: Tensor | Sequence[float], target: Tensor | Sequence[int]) -> float:
    r"""Return how much of the order of the scores the classes explain, in [0, 1].

    .. math:: \frac{\sum_k N_k (\bar R_k - \bar R)^2}{\sum_i (R_i - \bar R)^2}

    with :math:`R_i` the rank of score i among all samples (the mean rank of equal scores): the share of the
    variance of ranks between classes, which is :math:`H / (N - 1)` of the Kruskal-Wallis test. 0: all classes
    are equally hard; near 1: a class-blind selection by this score keeps or drops whole classes. Two
    classes of equal size that do not overlap have 3/4.

    The question is that of the class difficulty separability coefficient (CDSC) of Tsai, Zheng and Prakash,
    "Class-Proportional Coreset Selection for Difficulty-Separable Data" (arXiv 2507.10904): where it is high,
    class-agnostic selections hurt. This formula is ours, not theirs.

    Args:
        score: float or integer [N], not NaN, higher = harder. Only the order matters.
        target: int64 [N], the class of each sample; -1 leaves it out.

    Returns:
        A float; 0.0 where all scores are equal.

    Raises:
        ValueError: shapes that differ, or a score that is NaN.
        TypeError: targets that are not integer.

    Example:
        Ranks 1, 2 and 3, 4: class means 1.5 and 3.5 around 2.5, 4 of a sum of squares of 5.

        >>> separability([0.1, 0.2, 0.3, 0.9], [0, 0, 1, 1])
        0.8
        >>> separability([0.1, 0.2, 0.2, 0.1], [0, 0, 1, 1])
        0.0
    """
    value, label = scores_of_classes(score, target, finite=False)
    _, place, count = torch.unique(value, return_inverse=True, return_counts=True)
    # Mean ranks, around their mean.
    rank = (count.cumsum(0) - count / 2 - len(value) / 2).double()[place]
    total = float(rank.square().sum())
    if not total:
        return 0.0
    size = torch.bincount(label)
    between = torch.bincount(label, weights=rank).square() / size.clamp(min=1)
    return float(between.sum()) / total


def scores_of_classes(
    score: Tensor | Sequence[float], target: Tensor | Sequence[int], *, finite: bool = True
) -> tuple[Tensor, Tensor]:
    """Return scores as float64 and labels as int64 of the samples that have a class."""
    label = integers("target", target)
    value = torch.as_tensor(score, dtype=torch.float64).detach().cpu()
    if label.dim() != 1 or value.shape != label.shape:
        raise ValueError(
            "`score` and `target` must be of the same shape [N], got "
            f"{tuple(value.shape)} and {tuple(label.shape)}."
        )
    known = label >= 0
    value, label = value[known], label[known]
    bad = ~value.isfinite() if finite else value.isnan()
    if bool(bad.any()):
        first = int(known.nonzero().flatten()[bad][0])
        raise ValueError(
            f"`score` must be {'finite' if finite else 'a number'} for samples that have a class, "
            f"{int(bad.sum())} of {len(value)} are not, first at index {first}: score every sample, or set the target of samples to leave out to -1."
        )
    return value, label
