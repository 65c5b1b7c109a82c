"""Integers in proportion to weights, by a divisor rule that never lists the seats."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_fairprune.quotas._arguments import class_counts, integer


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
        budget: seats in all, 0 <= budget <= sum(capacity).
        floor: seats that each class gets first (capped at its capacity), an int or int64 [K].

    Returns:
        int64 [K] on the CPU, summing to ``budget``.

    Raises:
        ValueError: a negative or non-finite weight, a negative capacity or floor, mismatched
            lengths, a budget out of range, or floors that together exceed the budget.
        TypeError: a capacity, floor or budget that is not integer.

    Example:
        Seats 1 to 4 have priorities 6, 3, 2 and 2. The third goes to class 0: of two seats of
        priority 2 (6/3 and 2/1), that of class 0 has the lower (2j+1)/c, 3/9 < 1/2.

        >>> apportion([6.0, 3.0, 2.0], [9, 9, 2], 3)
        tensor([2, 1, 0])
        >>> apportion([6.0, 3.0, 2.0], [9, 9, 2], 4)
        tensor([2, 1, 1])
        >>> apportion([6.0, 3.0, 0.0], [9, 9, 2], 19)
        tensor([9, 9, 1])
    """
    capacity = class_counts("capacity", capacity)
    budget = integer("budget", budget)
    weight = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    if weight.shape != capacity.shape:
        raise ValueError(
            f"`weights` must have one entry per class, got shape {tuple(weight.shape)} "
            f"for {len(capacity)} classes."
        )
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError(f"`weights` must be finite and >= 0, got {weight.tolist()[:8]}.")
    low = class_counts("floor", floor, len(capacity)).minimum(capacity)
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

    Quotas are nested exactly, not up to rounding: a seat's priority is the float64 number
    fl(w/(2j+1)), which does not depend on the budget, and the counts of `_taken` never increase with
    the threshold, in floating point too: division, addition and floor are monotone under correct
    rounding, and the correction by one tests the same seat on either side of a step. A larger budget
    therefore ends at an equal or lower threshold, where ties are taken in the same order.
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
    # The quotient above is rounded: test the seats just inside and just outside.
    seats = seats - (weight / (odd - 1) < threshold).double() + (weight / (odd + 1) >= threshold)
    return seats.to(torch.int64).clamp_(low, high)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _float(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
