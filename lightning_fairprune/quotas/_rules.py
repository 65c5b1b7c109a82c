"""How many samples of each class to keep: (sizes, recall, budget) -> quota, int64 [K].

Every rule here is a choice of weights; `apportion` turns weights into integers that sum to the
budget exactly, never exceed a class, and never shrink for any class when the budget grows.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Minimax",
    "apportion",
    "balanced",
    "drop",
    "drop_reference",
    "of_subset",
    "proportional",
]


def apportion(
    weights: Tensor | Sequence[float],
    capacity: Tensor | Sequence[int],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
) -> Tensor:
    r"""Return integers that share ``budget`` among classes in proportion to ``weights``.

    This is Webster's divisor rule with capacities. Seat :math:`j = 0, 1, \ldots` of class
    :math:`k` has priority :math:`w_k / (2j + 1)`; the ``budget`` seats of highest priority are
    taken, at most :math:`c_k` (the capacity) per class. Equal priorities go to the lower
    :math:`(2j + 1) / c_k`, then to the lower class index. The order of the seats does not depend
    on the budget, so a smaller budget always takes a subset of the seats of a larger one.

    The first ``floor[k]`` seats of a class come before all others. A class of weight 0 gets seats
    beyond its floor only when every class of positive weight is full; several such classes share
    in proportion to capacity, and so do all classes if every weight is 0.

    The seats are never listed: the priority of the last seat taken is found by bisection, in
    O(K) memory and at most 128 passes over the classes.

    Args:
        weights: float [K], finite and >= 0. Only ratios matter; one below 1e-600 times the
            largest may count as 0.
        capacity: int64 [K], the most that each class can get, >= 0 and below 2**50.
        budget: seats to hand out, 0 <= budget <= sum(capacity).
        floor: seats that each class gets first (capped at its capacity), an int or int64 [K].

    Returns:
        int64 [K] on the CPU, summing to ``budget``.

    Raises:
        ValueError: a negative or non-finite weight, a negative capacity or floor, mismatched
            lengths, a budget out of range, or floors that together exceed the budget.
        TypeError: a capacity, floor or budget that is not integer.

    Example:
        Seats 1 to 4 have priorities 6, 3, 2 and 2. The third seat goes to class 0: both classes
        offer a seat of priority 2 there (6/3 and 2/1), and class 0 has (2j+1)/c = 3/9 < 1/2.

        >>> apportion([6.0, 3.0, 2.0], [9, 9, 2], 3)
        tensor([2, 1, 0])
        >>> apportion([6.0, 3.0, 2.0], [9, 9, 2], 4)
        tensor([2, 1, 1])
        >>> apportion([6.0, 3.0, 0.0], [9, 9, 2], 19)
        tensor([9, 9, 1])
    """
    capacity = _counts("capacity", capacity)
    budget = _integer("budget", budget)
    weight = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    if weight.shape != capacity.shape:
        raise ValueError(
            f"`weights` must have one entry per class, got shape {tuple(weight.shape)} "
            f"for {len(capacity)} classes."
        )
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError(f"`weights` must be finite and >= 0, got {weight.tolist()[:8]}.")
    low = _counts("floor", floor, len(capacity)).minimum(capacity)
    total, least = int(capacity.sum()), int(low.sum())
    if not 0 <= budget <= total:
        raise ValueError(
            f"`budget` must be at most the {total} samples available and at least 0, got {budget}."
        )
    if least > budget:
        raise ValueError(
            f"`floor` asks for {least} samples in all, more than `budget`={budget}; "
            "lower the floor or raise the budget."
        )
    low, high = _bracket(weight, low, capacity, budget)
    low, high = _bracket(capacity.double(), low, high, budget)
    # What is left ties in both priorities, at most one seat per class: first classes first.
    open_seats = high - low
    return low + open_seats.minimum(
        (budget - low.sum() - open_seats.cumsum(0) + open_seats).clamp(min=0)
    )


def _bracket(weight: Tensor, low: Tensor, high: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Narrow low <= quota <= high to the seats that tie at the priority of the last one taken.

    Why quotas are nested exactly, not up to rounding: a seat's priority is the float64 number
    fl(w/(2j+1)), which does not depend on the budget, and `_taken` counts the seats at or above
    a threshold. Its result never increases with the threshold, in floating point too, because
    division, addition and floor are monotone under correct rounding and its correction by one
    looks at the same seat on either side of a step. A larger budget therefore ends at an equal or
    lower threshold, with counts at least as high in every class; at an equal threshold the same
    tied seats are handed out in the same order.
    """
    if int(low.sum()) == budget:
        return low, low
    if int(high.sum()) == budget:
        return high, high
    top = float(weight.max())
    if top > 0:  # exact: a power of two; keeps priorities of tiny weights out of the denormals
        shift = min(max(0, 1023 - math.frexp(top)[1]), 2046)
        weight = weight * 2.0 ** (shift // 2) * 2.0 ** (shift - shift // 2)
        top = float(weight.max())
    # Positive doubles are ordered like their bit patterns, so this bisection ends at two
    # neighbouring numbers, at or above which there are >= budget and < budget seats.
    below, above = 0, _bits(top) + 1
    while above - below > 1:
        middle = (below + above) // 2
        taken = _taken(weight, low, high, _float(middle))
        total = int(taken.sum())
        if total == budget:
            return taken, taken
        if total > budget:
            below = middle
        else:
            above = middle
    return (
        _taken(weight, low, high, _float(above)),
        _taken(weight, low, high, _float(below)) if below else high,
    )


def _taken(weight: Tensor, low: Tensor, high: Tensor, threshold: float) -> Tensor:
    """Count per class the seats of priority >= threshold > 0, clamped to [low, high]."""
    ratio = weight / threshold  # may be inf: clamped before it becomes an integer
    seats = ratio.add_(1).mul_(0.5).floor_().clamp_(min=0).minimum(high.double())
    odd = seats * 2
    # The quotient above is rounded: look at the seats just inside and just outside.
    seats = seats - (weight / (odd - 1) < threshold).double() + (weight / (odd + 1) >= threshold)
    return seats.to(torch.int64).clamp_(low, high)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _float(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])


def drop(
    sizes: Tensor | Sequence[int],
    recall: Tensor | Sequence[float],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Return the DRoP quotas: more of the classes that the model recalls less.

    .. math:: n_k = \min(N_k, c \, N_k (1 - r_k)), \qquad \sum_k n_k = \text{budget},

    where :math:`c` is the one number that meets the budget. This is the fixed point of Algorithm 1
    of Vysogorets, Ahuja and Kempe, "DRoP: Distributionally Robust Data Pruning", ICLR 2025 (arXiv
    2404.05579), which computes it in real numbers by handing out what full classes leave over.
    Here the integers are exact: see `apportion`.

    Args:
        sizes: int64 [K], samples per class, N_k.
        recall: float [K], in [0, 1], the recall r_k of each class on held-out data. NaN marks a
            class that had no held-out sample; it counts as the mean of the known recalls.
        budget: samples to keep, 0 <= budget <= sum(min(sizes, cap)).
        floor: samples that each class keeps at least (or all it has), an int or int64 [K].
        cap: samples that each class keeps at most, an int or int64 [K]; None is no limit.

    Returns:
        int64 [K] on the CPU. A class of recall 1 keeps its floor only, unless all others are full.
        Recalls that are all 1 or all NaN give the same as `proportional`.

    Raises:
        ValueError: a recall outside [0, 1], or what `apportion` refuses.
        TypeError: sizes, budget, floor or cap that are not integer.

    Example:
        Weights 60 * 0.1 = 6, 40 * 0.3 = 12 and 10 * 0.6 = 6 share 24 samples 1 : 2 : 1; with 49,
        class 2 is full and the other two share 39 samples 1 : 2.

        >>> drop([60, 40, 10], [0.9, 0.7, 0.4], 24)
        tensor([ 6, 12,  6])
        >>> drop([60, 40, 10], [0.9, 0.7, 0.4], 49)
        tensor([13, 26, 10])
        >>> drop([60, 40, 10], [0.9, 0.7, float("nan")], 23)  # as if its recall were 0.8
        tensor([ 7, 14,  2])
    """
    size, capacity = _sizes(sizes, cap)
    return apportion(size * _errors(recall, len(size)), capacity, budget, floor=floor)


def drop_reference(
    sizes: Tensor | Sequence[int],
    recall: Tensor | Sequence[float],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Return quotas in the form of DRoP's published code: without the class size in the weight.

    .. math:: n_k = \min(N_k, c \, (1 - r_k)), \qquad \sum_k n_k = \text{budget}

    For classes of equal size this is `drop`; for others it also balances the class sizes. It is
    here for comparisons with numbers obtained from that code (github avysogorets/fair-data-pruning,
    2024). Only its proportions are reproduced. Its roundings are not: there, shares are truncated
    more than once and the missing samples drawn from all classes, and when several classes are
    full, some of the others are passed over in a round of the redistribution.

    Args:
        sizes: int64 [K], samples per class, N_k.
        recall: float [K], in [0, 1] or NaN, as in `drop`.
        budget: samples to keep, 0 <= budget <= sum(min(sizes, cap)).
        floor: samples that each class keeps at least (or all it has), an int or int64 [K].
        cap: samples that each class keeps at most, an int or int64 [K]; None is no limit.

    Returns:
        int64 [K] on the CPU. Recalls that are all 1 or all NaN give the same as `balanced`.

    Raises:
        ValueError: a recall outside [0, 1], or what `apportion` refuses.
        TypeError: sizes, budget, floor or cap that are not integer.

    Example:
        >>> drop_reference([60, 40, 10], [0.9, 0.7, 0.4], 10)  # 0.1 : 0.3 : 0.6
        tensor([1, 3, 6])
    """
    size, capacity = _sizes(sizes, cap)
    return apportion(_errors(recall, len(size)), capacity, budget, floor=floor)


def proportional(
    sizes: Tensor | Sequence[int],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Return quotas that keep the class proportions: :math:`n_k` proportional to :math:`N_k`.

    Args:
        sizes: int64 [K], samples per class, N_k.
        budget: samples to keep, 0 <= budget <= sum(min(sizes, cap)).
        floor: samples that each class keeps at least (or all it has), an int or int64 [K].
        cap: samples that each class keeps at most, an int or int64 [K]; None is no limit.

    Returns:
        int64 [K] on the CPU.

    Raises:
        ValueError: what `apportion` refuses.
        TypeError: sizes, budget, floor or cap that are not integer.

    Example:
        >>> proportional([60, 40, 10], 11)
        tensor([6, 4, 1])
        >>> proportional([60, 40, 10], 11, floor=2)
        tensor([5, 4, 2])
    """
    size, capacity = _sizes(sizes, cap)
    return apportion(size, capacity, budget, floor=floor)


def balanced(
    sizes: Tensor | Sequence[int],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Return quotas of equal size as far as the classes reach: :math:`n_k = \min(N_k, c)`.

    Sub-sampling to equal class or group sizes is the strong baseline of Idrissi et al., "Simple
    data balancing achieves competitive worst-group-accuracy", CLeaR 2022 (arXiv 2110.14503).

    Args:
        sizes: int64 [K], samples per class, N_k.
        budget: samples to keep, 0 <= budget <= sum(min(sizes, cap)).
        floor: samples that each class keeps at least (or all it has), an int or int64 [K].
        cap: samples that each class keeps at most, an int or int64 [K]; None is no limit.

    Returns:
        int64 [K] on the CPU. What is left below one sample per class goes to the largest classes.

    Raises:
        ValueError: what `apportion` refuses.
        TypeError: sizes, budget, floor or cap that are not integer.

    Example:
        >>> balanced([60, 40, 10], 51)
        tensor([21, 20, 10])
    """
    size, capacity = _sizes(sizes, cap)
    return apportion(torch.ones_like(size), capacity, budget, floor=floor)


def of_subset(
    target: Tensor | Sequence[int],
    indices: Tensor | Sequence[int],
    num_classes: int | None = None,
) -> Tensor:
    """Return the class counts of a subset, to be used as the quota of another selection.

    Random selection under the quotas of a score's own subset tells how much of that score's effect
    is its choice of classes and how much its choice within them ("StrategyQ" in the DRoP paper).

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
    target = _integers("target", target)
    indices = _integers("indices", indices)
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


class Minimax:
    r"""Quotas that follow the recalls until they are equal, one step per call.

    Keeps a log-weight :math:`\ell_k` per class, at first 0. A call updates it once from the
    recalls and shares the budget in proportion to :math:`N_k e^{\ell_k}`, capped at the class size:

    .. math::
        \ell_k \leftarrow (1 - \text{leak}) \, \ell_k + \text{step} \, (\bar r - r_k), \qquad
        n_k = \min(N_k, c \, N_k e^{\ell_k})

    with :math:`\bar r` the mean recall over classes. This is exponentiated gradient ascent on the
    class errors, the update by which group DRO (Sagawa, Koh, Hashimoto and Liang, ICLR 2020, arXiv
    1911.08731, Algorithm 1) plays against the learner; there it weights the groups' losses, here it
    chooses how many samples of each class to train on. With ``leak=0`` it can only rest where all
    recalls are equal (or a class has nothing left to give). `drop` does not look again at what its
    quotas did and may correct too much or too little. With ``leak > 0`` it rests at
    :math:`\ell_k = (\bar r - r_k) \, \text{step} / \text{leak}`, between the class proportions
    and equal recalls, and classes that cannot be helped do not take ever more of the budget.

    Adding the same number to all log-weights changes nothing; the steps sum to zero over the
    classes, which keeps the numbers centred. A class of recall NaN (not seen in validation) or
    without training samples is not pushed, and is left out of the mean.

    Args:
        step: size of the update, > 0. An error gap of 0.1 changes a class's share by the factor
            exp(0.1 * step) in one call.
        leak: fraction of the log-weights forgotten in each call, in [0, 1).

    Attributes:
        log_weight: float64 [K], or None before the first call.

    Raises:
        ValueError: a step or leak out of range; when called, what `drop` refuses, or another number
            of classes than before. A call that raises leaves the weights as they were.

    Example:
        Class 1 is recalled less by 0.2: it is pushed by 5 * 0.1, class 0 by -5 * 0.1, and the ratio
        of the quotas becomes e^-1 = 0.368.

        >>> quota = Minimax(step=5.0)
        >>> quota([1000, 1000], [0.9, 0.7], 1000)
        tensor([269, 731])
        >>> quota([1000, 1000], [0.8, 0.8], 1000)  # equal recalls: nothing left to change
        tensor([269, 731])
    """

    def __init__(self, step: float = 1.0, leak: float = 0.0) -> None:
        if not 0 < step < math.inf:
            raise ValueError(f"`step` must be positive and finite, got {step}.")
        if not 0 <= leak < 1:
            raise ValueError(f"`leak` must be in [0, 1), got {leak}.")
        self.step = float(step)
        self.leak = float(leak)
        self.log_weight: Tensor | None = None

    def __call__(
        self,
        sizes: Tensor | Sequence[int],
        recall: Tensor | Sequence[float],
        budget: int,
        *,
        floor: int | Tensor | Sequence[int] = 0,
        cap: int | Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Update the log-weights once and return the quotas, int64 [K]; arguments as in `drop`."""
        size, capacity = _sizes(sizes, cap)
        rate = _recalls(recall, len(size))
        old = torch.zeros_like(size) if self.log_weight is None else self.log_weight
        if len(old) != len(size):
            raise ValueError(
                f"`sizes` must have {len(old)} classes as in the calls before, got {len(size)}; "
                "call reset() to start afresh."
            )
        known = ~rate.isnan() & (size > 0)
        push = torch.where(known, rate[known].mean() - rate, 0.0)
        log_weight = (1 - self.leak) * old + self.step * push
        # Relative to the largest one that counts, so that exp can neither overflow nor vanish.
        top = log_weight.masked_fill(size == 0, -math.inf).max() if len(size) else 0.0
        weight = torch.where(size > 0, size * (log_weight - top).exp(), 0.0)
        quota = apportion(weight, capacity, budget, floor=floor)
        self.log_weight = log_weight
        return quota

    def reset(self) -> None:
        """Forget the log-weights, so that the next call starts from the class proportions."""
        self.log_weight = None

    def state_dict(self) -> dict[str, Any]:
        """Return the log-weights, step and leak as a tensor (or None) and two floats."""
        log_weight = None if self.log_weight is None else self.log_weight.clone()
        return {"log_weight": log_weight, "step": self.step, "leak": self.leak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the log-weights from ``state``; step and leak stay as constructed."""
        value = state["log_weight"]
        if value is not None:
            value = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
            if value.dim() != 1 or not bool(value.isfinite().all()):
                raise ValueError(
                    f"`log_weight` must be finite and of shape [K], got shape {tuple(value.shape)}."
                )
        self.log_weight = value

    def __repr__(self) -> str:
        return f"Minimax(step={self.step:g}, leak={self.leak:g})"


def _recalls(recall: Tensor | Sequence[float], num_classes: int) -> Tensor:
    """Return the recalls as float64 [K], where NaN stands for a class never seen."""
    rate = torch.as_tensor(recall, dtype=torch.float64).detach().cpu()
    if rate.shape != (num_classes,):
        raise ValueError(
            f"`recall` must have one entry per class, got shape {tuple(rate.shape)} "
            f"for {num_classes} classes."
        )
    wrong = (rate < 0) | (rate > 1)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ValueError(
            f"`recall` must be in [0, 1], or NaN for a class never seen in validation, "
            f"got {float(rate[k])} for class {k}."
        )
    return rate


def _errors(recall: Tensor | Sequence[float], num_classes: int) -> Tensor:
    """Return 1 - recall; classes never seen count as average, and no errors at all as equal."""
    error = 1 - _recalls(recall, num_classes)
    error = torch.where(error.isnan(), error.nanmean(), error)
    return error if bool((error > 0).any()) else torch.ones_like(error)


def _sizes(
    sizes: Tensor | Sequence[int], cap: int | Tensor | Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Return the class sizes as float64 [K] and min(sizes, cap) as int64 [K]."""
    size = _counts("sizes", sizes)
    return size.double(), size if cap is None else size.minimum(_counts("cap", cap, len(size)))


def _counts(
    name: str, value: int | Tensor | Sequence[int], num_classes: int | None = None
) -> Tensor:
    """Return counts as int64 [K] on the CPU; an int stands for every class."""
    counts = _integers(name, value)
    if num_classes is not None and counts.dim() == 0:
        counts = counts.expand(num_classes)
    if counts.dim() != 1 or num_classes not in (None, len(counts)):
        wanted = "one-dimensional" if num_classes is None else f"an int or of shape [{num_classes}]"
        raise ValueError(f"`{name}` must be {wanted}, got shape {tuple(counts.shape)}.")
    if bool((counts < 0).any()):
        k = int((counts < 0).nonzero()[0])
        raise ValueError(f"`{name}` must be >= 0, got {int(counts[k])} for class {k}.")
    return counts


def _integers(name: str, value: int | Tensor | Sequence[int]) -> Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    integral = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if not integral and tensor.numel():  # an empty list has no dtype of its own
        raise TypeError(f"`{name}` must hold integers, got {tensor.dtype}.")
    return tensor.to(torch.int64)


def _integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an int, got {value!r}.") from None
