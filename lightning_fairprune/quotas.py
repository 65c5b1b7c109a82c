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
        weights: float [K], finite and >= 0. Only ratios matter.
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
        shift = max(0, 1023 - math.frexp(top)[1])
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
    """Return the DRoP quotas: sizes proportional to N_k (1 - r_k), capped at N_k."""
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
    """Return the quotas of DRoP's published code: sizes proportional to 1 - r_k, capped at N_k."""
    size, capacity = _sizes(sizes, cap)
    return apportion(_errors(recall, len(size)), capacity, budget, floor=floor)


def proportional(
    sizes: Tensor | Sequence[int],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
) -> Tensor:
    """Return quotas that keep the class proportions: sizes proportional to N_k."""
    size, capacity = _sizes(sizes, cap)
    return apportion(size, capacity, budget, floor=floor)


def balanced(
    sizes: Tensor | Sequence[int],
    budget: int,
    *,
    floor: int | Tensor | Sequence[int] = 0,
    cap: int | Tensor | Sequence[int] | None = None,
) -> Tensor:
    """Return quotas of equal class sizes, as far as the classes reach: n_k = min(N_k, c)."""
    size, capacity = _sizes(sizes, cap)
    return apportion(torch.ones_like(size), capacity, budget, floor=floor)


def of_subset(
    target: Tensor, indices: Tensor | Sequence[int], num_classes: int | None = None
) -> Tensor:
    """Return the class counts of a subset, to be used as the quota of another one."""
    target = torch.as_tensor(target).detach().cpu()
    chosen = target[torch.as_tensor(indices, dtype=torch.int64).cpu()]
    return torch.bincount(chosen, minlength=num_classes or int(target.max()) + 1)


class Minimax:
    """Quotas from class weights that follow the recalls: multiplied up where recall is low."""

    def __init__(self, step: float = 1.0, leak: float = 0.0) -> None:
        if not step > 0 or math.isinf(step):
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
        """Update the class weights once from ``recall`` and return the quotas, int64 [K]."""
        size, capacity = _sizes(sizes, cap)
        rate = _recalls(recall, len(size))
        known = ~rate.isnan() & (size > 0)
        log_weight = torch.zeros_like(size) if self.log_weight is None else self.log_weight
        if len(log_weight) != len(size):
            raise ValueError(
                f"Minimax has weights for {len(log_weight)} classes, but `sizes` has {len(size)}; "
                "call reset() before it is used with other classes."
            )
        push = torch.where(known, rate[known].mean() - rate, 0.0)
        log_weight = (1 - self.leak) * log_weight + self.step * push
        relative = log_weight - log_weight[size > 0].max() if bool((size > 0).any()) else log_weight
        quota = apportion(size * relative.exp(), capacity, budget, floor=floor)
        self.log_weight = log_weight  # only now: a call that raises changes nothing
        return quota

    def reset(self) -> None:
        """Forget the class weights."""
        self.log_weight = None

    def state_dict(self) -> dict[str, Any]:
        """Return the class weights and settings as tensors and Python primitives."""
        log_weight = None if self.log_weight is None else self.log_weight.clone()
        return {"step": self.step, "leak": self.leak, "log_weight": log_weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the class weights of ``state``; step and leak stay as constructed."""
        log_weight = state["log_weight"]
        self.log_weight = (
            None if log_weight is None else torch.as_tensor(log_weight, dtype=torch.float64).clone()
        )

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
    tensor = torch.as_tensor(value).detach().cpu()
    if tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise TypeError(f"`{name}` must hold integers, got {tensor.dtype}.")
    tensor = tensor.to(torch.int64)
    if num_classes is not None and tensor.dim() == 0:
        tensor = tensor.expand(num_classes)
    if tensor.dim() != 1 or num_classes not in (None, len(tensor)):
        wanted = "" if num_classes is None else f" of {num_classes} entries"
        raise ValueError(
            f"`{name}` must be one-dimensional{wanted}, one entry per class, "
            f"got shape {tuple(tensor.shape)}."
        )
    if bool((tensor < 0).any()):
        k = int((tensor < 0).nonzero()[0])
        raise ValueError(f"`{name}` must be >= 0, got {int(tensor[k])} for class {k}.")
    return tensor


def _integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an int, got {value!r}.") from None
