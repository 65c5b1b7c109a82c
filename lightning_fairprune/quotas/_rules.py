"""The rules without state: each is a choice of weights for `apportion`, or a count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_fairprune.quotas._apportion import apportion
from lightning_fairprune.quotas._arguments import errors, integers, losses, sizes_and_capacity


def drop(
    sizes: Tensor | Sequence[int],
    recall: Tensor | Sequence[float],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
    repeat: int = 1,
) -> Tensor:
    r"""Return the DRoP quotas: more of the classes that the model recalls less.

    .. math:: n_k = \min(N_k, c \, N_k (1 - r_k)), \qquad \sum_k n_k = \text{budget},

    where :math:`c` is the one number that meets the budget. This is the fixed point of Algorithm 1
    of Vysogorets, Ahuja and Kempe, "DRoP: Distributionally Robust Data Pruning", ICLR 2025 (arXiv
    2404.05579), which computes it in real numbers by redistributing what exceeds the class sizes.
    Here the quotas are integers that sum to the budget exactly: see `apportion`.

    Args:
        sizes: int64 [K], samples per class, N_k.
        recall: float [K], in [0, 1], the recall r_k of each class on held-out data. NaN marks a
            class without held-out samples; it counts as the mean over the classes with known recall
            and with training samples.
        budget: samples of an epoch, 0 <= budget <= sum(min(repeat * sizes, cap)).
        floor: samples that each class keeps at least (all that it can have if those are fewer), an int or
            int64 [K].
        cap: samples that each class keeps at most, an int or int64 [K]; None is no limit.
        repeat: how often an epoch may draw the same sample, >= 1: the limit of a quota is repeat * N_k, and in
            its weight the class counts as min(repeat * N_k, max N). So 1 is the paper's form, and where repeat
            is at least the largest size by the smallest all classes count equally, as in `drop_reference`.

    Returns:
        int64 [K] on the CPU. A class of recall 1 keeps its floor only, unless all others are full.
        Recalls that are all 1 or all NaN give the same as `proportional`.

    Raises:
        ValueError: a recall outside [0, 1], or what `apportion` refuses.
        TypeError: sizes, budget, floor, cap or repeat that are not integer.

    Example:
        Weights 60 * 0.1 = 6, 40 * 0.3 = 12 and 10 * 0.6 = 6 share 24 samples 1 : 2 : 1; with 49,
        class 2 is full and the other two share 39 samples 1 : 2.

        >>> drop([60, 40, 10], [0.9, 0.7, 0.4], 24)
        tensor([ 6, 12,  6])
        >>> drop([60, 40, 10], [0.9, 0.7, 0.4], 49)
        tensor([13, 26, 10])
        >>> drop([60, 40, 10], [0.9, 0.7, 0.4], 36, repeat=2)  # 60 * 0.1 : 60 * 0.3 : 20 * 0.6
        tensor([ 6, 18, 12])
        >>> drop([60, 40, 10], [0.9, 0.7, float("nan")], 23)  # as if its recall were 0.8
        tensor([ 7, 14,  2])
    """
    size, capacity = sizes_and_capacity(sizes, cap, repeat)
    return apportion(size * errors(recall, size), capacity, budget, floor=floor)


def drop_reference(
    sizes: Tensor | Sequence[int],
    recall: Tensor | Sequence[float],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
    repeat: int = 1,
) -> Tensor:
    r"""Return quotas in the form of DRoP's published code: without the class size in the weight.

    .. math:: n_k = \min(N_k, c \, (1 - r_k)), \qquad \sum_k n_k = \text{budget}

    For classes of equal size this is `drop`; otherwise it also balances the class sizes. Use it to
    compare with numbers obtained from that code (github avysogorets/fair-data-pruning, 2024). We
    reproduce its proportions, not its rounding: it truncates shares more than once, draws the
    missing samples from all classes, and skips classes when several are full. Arguments and errors
    are those of `drop`.

    Returns:
        int64 [K] on the CPU. Recalls that are all 1 or all NaN give the same as `balanced`.

    Example:
        >>> drop_reference([60, 40, 10], [0.9, 0.7, 0.4], 10)  # 0.1 : 0.3 : 0.6
        tensor([1, 3, 6])
    """
    size, capacity = sizes_and_capacity(sizes, cap, repeat)
    return apportion(errors(recall, size), capacity, budget, floor=floor)


def rcap(
    sizes: Tensor | Sequence[int],
    loss: Tensor | Sequence[float],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
    repeat: int = 1,
) -> Tensor:
    r"""Return the quotas of RCAP: more of the classes that the model fits less, and of the large ones.

    .. math:: n_k = \min(N_k, c \sqrt{N_k L_k}), \qquad \sum_k n_k = \text{budget}

    This minimises :math:`\sum_k N_k L_k / n_k`. It is the choice of class sizes in the code (github
    atif-hassan/RCAP-dynamic-dataset-pruning) of Hassan, Khare and Paik, "RCAP: Robust, Class-Aware,
    Probabilistic Dynamic Dataset Pruning", UAI 2025 (PMLR 286): proportional to the root of class
    loss times class share. There :math:`L_k` is the share of the class's softmax of losses that fell
    to the last subset; here it is the mean loss. Their sums differ as well: they round every class
    up and do not redistribute what exceeds the class sizes.

    Args:
        sizes: int64 [K], samples per class, N_k.
        loss: float [K], finite and >= 0, the mean loss L_k of each class. Only ratios matter. NaN
            marks a class not seen; it counts as the mean over the other classes with samples.
        budget: as in `drop`, like `floor`, `cap` and `repeat`.
        floor: samples that each class keeps at least.
        cap: samples that each class keeps at most.
        repeat: how often an epoch may draw the same sample.

    Returns:
        int64 [K] on the CPU. A class of loss 0 keeps its floor only, unless all others are full.

    Raises:
        ValueError: a loss that is negative or infinite, or what `apportion` refuses.

    Example:
        Weights sqrt(90 * 0.1) = 3, sqrt(40 * 0.4) = 4 and sqrt(10 * 0.9) = 3 share 20 samples
        3 : 4 : 3; with 38, class 2 is full and the other two share 28 samples 3 : 4.

        >>> rcap([90, 40, 10], [0.1, 0.4, 0.9], 20)
        tensor([6, 8, 6])
        >>> rcap([90, 40, 10], [0.1, 0.4, 0.9], 38)
        tensor([12, 16, 10])
    """
    size, capacity = sizes_and_capacity(sizes, cap, repeat)
    return apportion((size * losses(loss, size)).sqrt(), capacity, budget, floor=floor)


def proportional(
    sizes: Tensor | Sequence[int],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
    repeat: int = 1,
) -> Tensor:
    r"""Return quotas that keep the class proportions: :math:`n_k` proportional to :math:`N_k`.

    Arguments, result and errors are those of `drop`.

    Example:
        >>> proportional([60, 40, 10], 11)
        tensor([6, 4, 1])
        >>> proportional([60, 40, 10], 11, floor=2)
        tensor([5, 4, 2])
        >>> proportional([60, 40, 10], 12, repeat=6)  # no class counts more than the largest
        tensor([4, 4, 4])
    """
    size, capacity = sizes_and_capacity(sizes, cap, repeat)
    return apportion(size, capacity, budget, floor=floor)


def balanced(
    sizes: Tensor | Sequence[int],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
    repeat: int = 1,
) -> Tensor:
    r"""Return equal quotas, limited by the class sizes: :math:`n_k = \min(N_k, c)`.

    Sub-sampling to equal class or group sizes is the strong baseline of Idrissi et al., "Simple
    data balancing achieves competitive worst-group-accuracy", CLeaR 2022 (arXiv 2110.14503).
    Arguments and errors are those of `drop`.

    Returns:
        int64 [K] on the CPU. What is left below one sample per class goes to the largest classes.

    Example:
        >>> balanced([60, 40, 10], 51)
        tensor([21, 20, 10])
        >>> balanced([60, 40, 10], 51, repeat=2)
        tensor([17, 17, 17])
    """
    size, capacity = sizes_and_capacity(sizes, cap, repeat)
    return apportion(torch.ones_like(size), capacity, budget, floor=floor)


def of_subset(
    target: Tensor | Sequence[int], indices: Tensor | Sequence[int], num_classes: int | None = None
) -> Tensor:
    """Return the class counts of a subset, as the quota of another selection.

    Random selection under the class counts of a score's subset shows how much of the score's effect
    is its choice of classes, and how much its choice within them ("StrategyQ" in the DRoP paper).

    Args:
        target: int64 [N], the class of each sample of the whole set.
        indices: int64 [n], the subset, in [0, N), each sample once.
        num_classes: K; by default one more than the largest class in ``target``.

    Returns:
        int64 [K] on the CPU, summing to n.

    Raises:
        ValueError: an index out of range or a class outside [0, num_classes) in the subset.
        TypeError: targets or indices that are not integer.

    Example:
        >>> of_subset([0, 1, 1, 2, 0], [0, 1, 2], num_classes=4)
        tensor([1, 2, 0, 0])
    """
    target = integers("target", target)
    indices = integers("indices", indices)
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(target):
        raise ValueError(
            f"`indices` must be in [0, {len(target)}), got {int(indices.min())} to "
            f"{int(indices.max())}."
        )
    if num_classes is None:
        num_classes = int(target.max()) + 1 if target.numel() else 0
    chosen = target[indices]
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < num_classes:
        raise ValueError(
            f"`target` must be in [0, {num_classes}) for the samples in `indices`, got "
            f"{int(chosen.min())} to {int(chosen.max())}."
        )
    return torch.bincount(chosen, minlength=num_classes)
